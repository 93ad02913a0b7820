r"""The forward process, and the only place that knows its schedule.

.. math:: dx = -\tfrac12 x\,dt + dw, \qquad v_t = \alpha_t x + \sigma_t z, \qquad
          \alpha_t = e^{-t/2}, \quad \sigma_t^2 = 1 - e^{-t}.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from ..support.draws import drawn, normal_like
from ..support.validation import (
    as_floating,
    require_count,
    require_floating,
    require_range,
    require_sequences,
    require_step,
)


def alpha(t: float | Tensor) -> float | Tensor:
    r"""Signal level :math:`\alpha_t = e^{-t/2}`. Source: FDGWC Forward process.

    Args:
        t: diffusion step, a number or a tensor of any shape.

    Returns:
        A number for a number, a tensor of the same shape, device and floating dtype (float64 for
        integers) for a tensor.
    """
    t = floating_step(t)
    return elementary(t).exp(-t / 2)


def sigma(t: float | Tensor) -> float | Tensor:
    r"""Noise level :math:`\sigma_t = \sqrt{1 - e^{-t}}`, exact for small t.

    Source: FDGWC Forward process.

    Args:
        t: diffusion step >= 0, a number or a tensor of any shape.

    Returns:
        A number for a number, a tensor of the same shape, device and floating dtype (float64 for
        integers) for a tensor.
    """
    t = floating_step(t)
    return elementary(t).sqrt(-elementary(t).expm1(-t))


def half_log_snr(t: float | Tensor) -> float | Tensor:
    r"""Half the log signal-to-noise ratio, :math:`\log(\alpha_t/\sigma_t)`.

    The natural clock of diffusion solvers: in it, the difficulty of denoising is spread evenly.
    """
    t = floating_step(t)
    return -0.5 * (t + elementary(t).log(-elementary(t).expm1(-t)))


def step_at(half_log_snr: float | Tensor) -> float | Tensor:
    r"""The diffusion step of a half log signal-to-noise ratio h, :math:`t = \log(1 + e^{-2h})`.

    The inverse of :func:`half_log_snr`, without cancellation at either end.
    """
    half_log_snr = floating_step(half_log_snr)
    if isinstance(half_log_snr, Tensor):
        return torch.logaddexp(-2 * half_log_snr, torch.zeros_like(half_log_snr))
    # log(1 + e^a) = max(a, 0) + log(1 + e^-|a|), whose exponential cannot overflow
    return max(-2 * half_log_snr, 0.0) + math.log1p(math.exp(-2 * abs(half_log_snr)))


def stratified_steps(
    n: int, t_min: float, t_max: float, generator: torch.Generator | None = None
) -> Tensor:
    """n random diffusion steps, one in each of n strata, together uniform in logSNR.

    Args:
        n: number of steps.
        t_min, t_max: their range.
        generator: source of randomness; its device is the result's, without one the CPU.

    Returns:
        (n,) in float64, from t_max down to t_min.

    Raises:
        ValueError: for n < 1 or unless 0 < t_min < t_max.
    """
    require_count("n", n)
    require_range(t_min, t_max)
    low, high = half_log_snr(t_max), half_log_snr(t_min)
    return step_at(low + (high - low) * strata(n, generator))


def strata(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n random numbers, the k-th uniform in [(k − 1)/n, k/n): (n,) in float64."""
    within = drawn(torch.rand, n, generator=generator)
    return (torch.arange(n, device=within.device) + within) / n


def floating_step(t: float | Tensor) -> float | Tensor:
    """The step; integers in a tensor as float64, for torch takes their exponentials in float32."""
    return as_floating("the diffusion step t", t) if isinstance(t, Tensor) else t


def elementary(t: float | Tensor) -> ModuleType:
    """The module whose elementary functions take t: torch for a tensor, math for a number."""
    return torch if isinstance(t, Tensor) else math


def step_tensor(t: float | Tensor, device: torch.device) -> Tensor:
    """The step as floating point, (1,) or (batch,), on a device; a number in float64.

    A number is made there: a copy from the host would stall an accelerator.
    """
    if not isinstance(t, Tensor):
        return torch.full((1,), t, dtype=torch.float64, device=device)
    return floating_step(t).to(device).reshape(-1)


def levels(t: float | Tensor, v: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """(alpha_t, sigma_t) in a form that multiplies a batch of sequences.

    Args:
        t: diffusion step, a number, a tensor with one entry, or one step per sequence (batch,).
        v: (batch, seq_len, dim), whose dtype and device the levels take.

    Returns:
        Numbers for a number, else tensors of shape () or (batch, 1, 1).

    Raises:
        ValueError: if t has neither one entry nor one per sequence.
    """
    require_floating("v", v)
    if not isinstance(t, Tensor):
        return alpha(t), sigma(t)
    if t.shape not in ((), (1,), (len(v),)):
        raise ValueError(f"t must be a number or have shape ({len(v)},), got {tuple(t.shape)}")
    t = floating_step(t)
    # exponentials in t's own dtype: a float64 step keeps its accuracy beside float32 data
    shape = (-1, 1, 1) if t.ndim else ()
    return tuple(level(t).to(v).reshape(shape) for level in (alpha, sigma))


def perturb(
    x: Tensor, t: float | Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draw :math:`v_t = \alpha_t x + \sigma_t z` given x. Source: FDGWC Forward process.

    Args:
        x: clean sequences (batch, seq_len, dim).
        t: diffusion step > 0, a number or one per sequence (batch,).
        generator: source of the noise, drawn on its device.

    Returns:
        The noised sequences v and the noise z, both (batch, seq_len, dim), dtype and device of x.

    Raises:
        ValueError: for a wrong shape or a step that is not finite and > 0.
    """
    require_sequences("x", x)
    require_step(t)
    noise = normal_like(x, generator)
    signal_level, noise_level = levels(t, x)
    return signal_level * x + noise_level * noise, noise
