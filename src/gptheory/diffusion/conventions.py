r"""Other people's networks as scores, and scores as networks that other people's samplers drive.

Most trained networks are asked as ``model(x, timestep)``, k = 0..T−1, at the noise of a discrete
schedule :math:`\bar\alpha_k` and predict noise, data or a velocity. In this package's terms

.. math:: \bar\alpha = \alpha_t^2 = e^{-t}, \qquad t = -\log\bar\alpha, \qquad
          x_k = \sqrt{\bar\alpha_k}\,x_0 + \sqrt{1 - \bar\alpha_k}\,\epsilon = v_t ,

and the three predictions are the score in other words: with :math:`\hat x_0 = E[x \mid v_t]`

.. math:: \hat\epsilon = -\sigma_t s, \qquad \hat x_0 = (v + \sigma_t^2 s)/\alpha_t, \qquad
          \alpha_t\hat\epsilon - \sigma_t\hat x_0 = -(v + s)\,\sigma_t/\alpha_t .

Source: Ho et al. 2020 (noise); Salimans and Ho 2022 (velocity); the names are those of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from ..support.validation import (
    as_floating,
    as_real,
    require_finite,
    require_one_of,
    require_score,
    require_sequences,
    require_step,
)
from ..support.wrappers import lasting
from .exact import Score
from .schedule import half_log_snr, levels, step_at

Network = Callable[[Tensor, Tensor], Tensor]
PREDICTIONS = ("epsilon", "sample", "v_prediction")
TERMINAL = 2.0**-24  # stands for a last 0: pure noise is no finite step
MARGIN = 1e-5  # of a step in single precision, or of six digits as errors print them


class TrainingSchedule:
    r"""A discrete schedule :math:`\bar\alpha_k` and its diffusion steps :math:`t_k`, both ways.

    Between its entries half the logSNR is linear in k, as in diffusers' own schedulers.

    Args:
        alphas_cumprod: :math:`\bar\alpha_k`, (T,), T >= 2, decreasing, in (0, 1). A last entry of 0
            (*zero terminal SNR*) is t = ∞ and counts as 2⁻²⁴, t = 16.6, as in diffusers' multistep
            schedulers, or as a quarter of the entry before where that is less.

    Attributes:
        steps: :math:`t_k = -\log\bar\alpha_k`, (T,) in float64 on the CPU, increasing.
        t_range: the first and the last of them.

    Raises:
        ValueError: for what is no such schedule.

    Accuracy: float64 rounding; :math:`t_0` is as exact as :math:`1 - \bar\alpha_0` is, to 6e-4 for
        1e-4 in single precision.
    """

    @lasting
    def __init__(self, alphas_cumprod: Tensor) -> None:
        kept = as_floating("alphas_cumprod", alphas_cumprod).detach()
        require_finite("alphas_cumprod", kept)
        if kept.ndim != 1 or len(kept) < 2:
            raise ValueError(
                f"alphas_cumprod must have shape (T,) with T >= 2, got {tuple(kept.shape)}"
            )
        kept = kept.to("cpu", torch.float64, copy=True)
        if kept[-1] == 0:
            kept[-1] = torch.clamp(kept[-2] / 4, max=TERMINAL)
        _require_decreasing(kept)
        # ᾱ − 1 is exact above a half only
        self.steps = -torch.where(kept < 0.5, kept.log(), torch.log1p(kept - 1))
        self.t_range = (self.steps[0].item(), self.steps[-1].item())
        self._half_log_nsr = -half_log_snr(self.steps)
        self._count = torch.arange(len(kept), dtype=torch.float64, device="cpu")

    def timestep(self, t: float | Tensor) -> float | Tensor:
        """The timestep k of a diffusion step, in general between two integers.

        Args:
            t: a number or a tensor of any shape, within ``t_range``.

        Returns:
            A number for a number, a tensor in float64 of the same shape and device for a tensor.

        Raises:
            ValueError: for a step outside, where it can be looked at (see :func:`.require_step`);
                elsewhere it counts as the nearest end.
        """
        require_step(t)
        hint = "; sample from t_max={1:.6g} or below, down to t_min={0:.6g}".format(*self.t_range)
        _require_inside("the diffusion step t", t, self.t_range, hint)
        steps = _double(t)
        found = _interpolated(-half_log_snr(steps), self._half_log_nsr, self._count)
        return found if isinstance(t, Tensor) else found.item()

    def step(self, timestep: float | Tensor) -> float | Tensor:
        """The diffusion step t of a timestep k, which need not be an integer.

        Args:
            timestep: a number or a tensor of any shape, in [0, T − 1].

        Returns:
            As :meth:`timestep`.

        Raises:
            ValueError: for a timestep outside, where it can be looked at.
        """
        _require_inside("timestep", timestep, (0.0, len(self.steps) - 1.0))
        found = step_at(-_interpolated(_double(timestep), self._count, self._half_log_nsr))
        return found if isinstance(timestep, Tensor) else found.item()


class PredictedScore(nn.Module):
    """The score that a network's prediction is; see :func:`from_epsilon`, which makes it.

    Args:
        model, alphas_cumprod, prediction, rounded: as there.

    Attributes:
        model: as given.
        schedule: its :class:`TrainingSchedule`.
        prediction, rounded: as given.
        t_range: diffusion steps that it was trained on, which samplers ask for.
    """

    def __init__(
        self,
        model: Network,
        alphas_cumprod: Tensor,
        prediction: str = "epsilon",
        rounded: bool = False,
    ) -> None:
        super().__init__()
        require_one_of("prediction", prediction, PREDICTIONS)
        self.model, self.prediction, self.rounded = model, prediction, rounded
        self.schedule = TrainingSchedule(alphas_cumprod)
        self.t_range = self.schedule.t_range

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score.

        Args:
            v: noised sequences (batch, N, d).
            t: diffusion step within ``t_range``, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), dtype and device of v where the network keeps them.

        Raises:
            ValueError: for a wrong shape or step, or a prediction of another shape than v.
        """
        require_sequences("v", v)
        require_step(t)
        signal, noise = levels(t, v)
        answer = self.model(v, self._asked(self.schedule.timestep(t), v))
        made = require_score(getattr(answer, "sample", answer), v)
        if self.prediction == "epsilon":
            return -made / noise
        if self.prediction == "sample":
            return (signal * made - v) / noise**2
        return -signal / noise * made - v

    def _asked(self, timestep: float | Tensor, v: Tensor) -> Tensor:
        """The timestep as networks take it, (batch,): whole, or in single precision or better."""
        if not isinstance(timestep, Tensor):
            timestep = torch.full((), timestep, dtype=torch.float64, device=v.device)
        timestep = timestep.to(v.device).expand(len(v))
        if self.rounded:
            return timestep.round().long()
        return timestep.to(torch.promote_types(v.dtype, torch.float32))


def from_epsilon(
    model: Network, alphas_cumprod: Tensor, prediction: str = "epsilon", rounded: bool = False
) -> PredictedScore:
    r"""The score of a network that was trained elsewhere, for the samplers of this package.

    Args:
        model: called as (x, timestep) with x (batch, N, d) and timestep (batch,); returns a tensor
            of the shape of x, or an object that has it as ``sample``, as diffusers' networks do. A
            network for (batch, d, N) needs a wrapper that transposes.
        alphas_cumprod: the schedule it was trained on, (T,), see :class:`TrainingSchedule`; a
            diffusers scheduler has it under this name.
        prediction: what it predicts: the noise ``"epsilon"``, the data ``"sample"``, or
            ``"v_prediction"``, :math:`\alpha_t\epsilon - \sigma_t x_0`; the ``prediction_type`` in
            a diffusers scheduler's configuration.
        rounded: whether it takes whole timesteps only. They are rounded to the nearest, and the
            noise is then up to half a training step off, most at the end, where the first two steps
            of the linear schedule differ by half. With the exact noise and 20 to 200 evaluations
            that moves the variance of a mode λ by 0.2 % at 0.1, 1 % at 0.01, 5 % at 0.001 at most.

    Returns:
        A :class:`PredictedScore`. Its ``t_range`` is that of the schedule: :func:`.sample` stops at
        :math:`1 - \bar\alpha_0` by default, and modes below lose variance. A schedule that ends
        before t = 10 (``scaled_linear`` at 5.4) needs ``t_max=score.t_range[1]``.

    Raises:
        ValueError: for what is no schedule or no known prediction.

    Accuracy: that of the network; the noise is divided by σ_t, and data predicted in a precision u
        give a score with error u / σ_t².
    """
    return PredictedScore(model, alphas_cumprod, prediction, rounded)


def to_epsilon(score: Score, alphas_cumprod: Tensor, prediction: str = "epsilon") -> Network:
    """What a network would predict if it knew a score: for other people's samplers.

    Args:
        score: any score, called as (v, t).
        alphas_cumprod, prediction: as in :func:`from_epsilon`.

    Returns:
        A function (x, timestep) of x (batch, N, d) and timesteps in [0, T − 1], a number or a
        tensor of one or (batch,); its result has the shape of x. It raises ValueError for others.

    Raises:
        ValueError: for what is no schedule or no known prediction.

    Accuracy: that of the score. Data and velocity divide by :math:`α_t`, as :func:`.denoise` does.
    """
    require_one_of("prediction", prediction, PREDICTIONS)
    schedule = TrainingSchedule(alphas_cumprod)

    def model(x: Tensor, timestep: float | Tensor) -> Tensor:
        require_sequences("x", x)
        t = schedule.step(timestep)
        signal, noise = levels(t, x)
        made = require_score(score(x, t), x)
        if prediction == "epsilon":
            return -noise * made
        if prediction == "sample":
            return (x + noise**2 * made) / signal
        return -noise / signal * (x + made)

    return model


def _require_decreasing(kept: Tensor) -> None:
    expected = "alphas_cumprod must decrease and lie in (0, 1), its last entry may be 0; got"
    outside = kept[~((kept > 0) & (kept < 1))]
    if outside.numel():
        raise ValueError(f"{expected} {outside[0].item():.6g} among {len(kept)} entries")
    rising = (kept.diff() >= 0).nonzero()
    if rising.numel():
        k = int(rising[0]) + 1
        raise ValueError(f"{expected} {kept[k]:.6g} in place {k} after {kept[k - 1]:.6g}")


def _require_inside(
    name: str, value: float | Tensor, ends: tuple[float, float], hint: str = ""
) -> None:
    """Raise unless every value lies between the ends; what is seen, :func:`.require_step` says."""
    value = as_real(name, value)
    if value.device.type != "cpu" or torch.compiler.is_compiling() or is_batchedtensor(value):
        return
    low, high = ends
    bad = value[~((value >= low * (1 - MARGIN)) & (value <= high * (1 + MARGIN)))]
    if bad.numel():
        raise ValueError(
            f"{name} must lie in [{low:.6g}, {high:.6g}], the range of the training schedule, got"
            f" {bad[0].item():.6g}{hint}"
        )


def _double(value: float | Tensor) -> Tensor:
    """In float64, on its device; a number on the CPU."""
    return as_floating("value", value).double()


def _interpolated(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The line through (x_k, y_k), x increasing, continued by its ends."""
    xs, ys = xs.to(at.device), ys.to(at.device)
    right = torch.searchsorted(xs, at.contiguous()).clamp(1, len(xs) - 1)
    share = (at - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share.clamp(0, 1) * (ys[right] - ys[right - 1])
