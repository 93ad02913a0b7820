r"""Generation: the reverse process, driven by any score.

The backward SDE and the probability-flow ODE both transport :math:`N(0, I)` at t_max to the law of
:math:`v_t` at t_min; they differ in whether noise is injected on the way:

.. math:: dv = \left[\tfrac12 v + s(v, t)\right] d\tau + dw, \qquad
          dv = \left[\tfrac12 v + \tfrac12 s(v, t)\right] d\tau, \qquad \tau = t_{max} - t.

Source: FDGWC Backward process; Anderson 1982; Song et al. 2021; DPM-Solver++: Lu et al. 2022.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..support.draws import drawn
from ..support.progress import progress
from ..support.validation import require_count, require_range, require_score, require_sequences
from .denoiser import denoise
from .exact import Score
from .schedule import alpha, half_log_snr, perturb, sigma

Noise = Callable[[int], Tensor]
SOLVERS = {"ode": ("dpmpp-2m", "ddim", "heun"), "sde": ("dpmpp-2m", "ddpm", "euler-maruyama")}


@torch.no_grad()
def sample(
    score: Score,
    n: int,
    seq_len: int,
    dim: int,
    method: str = "ode",
    solver: str = "dpmpp-2m",
    steps: int = 50,
    t_min: float = 0.005,
    t_max: float = 10.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    final_denoise: bool = True,
    show_progress: bool | None = None,
) -> Tensor:
    r"""Draw sequences by running the diffusion backwards from :math:`N(0, I)`.

    Args:
        score: any callable (v, t) -> score, v of shape (batch, seq_len, dim), t a float.
        n: number of sequences.
        seq_len, dim: N and d.
        method: ``"ode"`` (probability flow) or ``"sde"`` (backward SDE).
        solver: ``"dpmpp-2m"`` for both methods (second-order multistep, in its stochastic form for
            the SDE); for the ODE also ``"ddim"`` (its first-order form) and ``"heun"``; for the SDE
            also ``"ddpm"`` (first order, exact for a frozen denoiser) and ``"euler-maruyama"``.
        steps: intervals of the grid; one score evaluation each, two for ``"heun"``, and one more
            for the final denoising.
        t_min, t_max: early stopping t_0 and horizon T.
        generator: source of randomness, drawn on its device.
        dtype: of the result.
        device: of the result; by default the device of the score's parameters, else the
            generator's, else that of the process whose score it is, else the CPU.
        final_denoise: return E[x | v] at t_min instead of v itself.
        show_progress: see :func:`.progress`.

    Returns:
        (n, N, d).

    Raises:
        ValueError: for sizes, steps or names out of range, or a score of the wrong shape.
        FloatingPointError: if the result is not finite.

    Accuracy with the exact score (N = 32, lengthscale 8, T = 10; covariance at t_0, relative
    Frobenius error without Monte Carlo noise): chapter 2 prints the table for every solver.
    """
    for name, value in (("seq_len", seq_len), ("dim", dim)):
        require_count(name, value)
    require_count("n", n, minimum=0)
    grid = step_grid(steps, t_min, t_max)
    device = _device_for(score, generator) if device is None else torch.device(device)

    def noise(_step: int) -> Tensor:
        return drawn(torch.randn, n, seq_len, dim, generator=generator, dtype=dtype, device=device)

    path = trajectory(score, noise(-1), grid, method, solver, noise, final_denoise)
    states = progress(path, steps + final_denoise, "sampling", show_progress)
    _t, v = deque(states, maxlen=1).pop()  # the others are not kept
    if not torch.isfinite(v).all():
        raise FloatingPointError("sampling produced NaN or infinite values: check the score")
    return v


@torch.no_grad()
def restart(
    score: Score,
    x: Tensor,
    t: float,
    rounds: int = 1,
    steps: int = 10,
    t_min: float = 0.005,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise sequences to diffusion step t and denoise them again by the ODE, some rounds.

    With the exact score this leaves the law of the data as it is, and pulls every other law
    towards it. With a learned one it repairs what went wrong above t as far as the score below t
    knows better. Source: Xu et al. 2023 (restart sampling).

    Args:
        score: as in :func:`sample`.
        x: clean sequences (batch, N, d).
        t: where a round begins.
        rounds: how many.
        steps, t_min: of the grid from t down; two-step DPM-Solver++ with final denoising.
        generator: source of randomness.

    Returns:
        (batch, N, d), dtype and device of x.

    Raises:
        ValueError: for a wrong shape, counts or steps out of range.
    """
    require_count("rounds", rounds, minimum=0)
    grid = step_grid(steps, t_min, t)
    for _ in range(rounds):
        v, _noise = perturb(x, t, generator)
        _t, x = deque(trajectory(score, v, grid), maxlen=1).pop()
    return x


def step_grid(steps: int, t_min: float = 0.005, t_max: float = 10.0) -> list[float]:
    r"""Diffusion steps from t_max down to t_min, quadratic in t (fine where the score is stiff).

    :math:`t_k = (\sqrt{T} + \tfrac{k}{K}(\sqrt{t_0} - \sqrt{T}))^2`, k = 0..K.

    Raises:
        ValueError: unless steps >= 1 and 0 < t_min < t_max.
    """
    require_count("steps", steps)
    require_range(t_min, t_max)
    low, high = math.sqrt(t_min), math.sqrt(t_max)
    return [(high + k / steps * (low - high)) ** 2 for k in range(steps + 1)]


@torch.no_grad()
def trajectory(
    score: Score,
    v: Tensor,
    grid: list[float],
    method: str = "ode",
    solver: str = "dpmpp-2m",
    noise: Noise | None = None,
    final_denoise: bool = True,
) -> Iterator[tuple[float, Tensor]]:
    """The states of the reverse process, one a grid step: what :func:`sample` iterates.

    Args:
        score: as in :func:`sample`.
        v: the state at grid[0], (batch, seq_len, dim).
        grid: decreasing diffusion steps, as made by :func:`step_grid`.
        method, solver: as in :func:`sample`.
        noise: standard normal noise of the shape of v for step k, needed by the SDE.
        final_denoise: end with one more item, E[x | v] at the last grid step, under t = 0.

    Yields:
        Pairs (t, v_t), from grid[1] on.

    Raises:
        ValueError: for a wrong shape, grid or name, missing noise, or a score of the wrong shape.
    """
    require_sequences("v", v)
    if method not in SOLVERS or solver not in SOLVERS[method]:
        names = "; ".join(f"{m}: {', '.join(s)}" for m, s in SOLVERS.items())
        raise ValueError(f"expected a method and solver of {names}; got {method!r}, {solver!r}")
    if method == "sde" and noise is None:
        raise ValueError("the SDE needs noise: pass a function of the step number")
    if len(grid) < 2 or min(grid) <= 0 or any(s >= t for t, s in pairwise(grid)):
        raise ValueError(f"grid must be two or more decreasing steps > 0, got {grid!r}")

    def checked(v: Tensor, t: float) -> Tensor:
        return require_score(score(v, t), v)

    if solver == "heun":
        path = _heun(checked, v, grid)
    elif solver == "euler-maruyama":
        path = _euler_maruyama(checked, v, grid, noise)
    else:
        path = _dpmpp(checked, v, grid, noise if method == "sde" else None, solver == "dpmpp-2m")
    for t, v in path:
        yield t, v
    if final_denoise:
        yield 0.0, denoise(checked, v, grid[-1])


def _dpmpp(
    score: Score, v: Tensor, grid: list[float], noise: Noise | None, multistep: bool
) -> Iterator[tuple[float, Tensor]]:
    """DPM-Solver++ in its ODE form (no noise) or SDE form, of first or second order.

    Between two grid steps the denoiser is held constant, or continued along the line through its
    last two values; what remains of the equation is linear and solved exactly.
    """
    last_clean, last_h = None, None
    for k, (t, s) in enumerate(pairwise(grid)):
        h = half_log_snr(s) - half_log_snr(t)
        clean = denoise(score, v, t)
        target = clean
        if multistep and last_clean is not None:
            target = clean + (clean - last_clean) * (h / (2 * last_h))
        forget = h if noise is None else 2 * h  # the SDE forgets its noise twice as fast
        v = sigma(s) / sigma(t) * math.exp(h - forget) * v - alpha(s) * math.expm1(-forget) * target
        if noise is not None:
            v = v + sigma(s) * math.sqrt(-math.expm1(-forget)) * noise(k)
        last_clean, last_h = clean, h
        yield s, v


def _heun(score: Score, v: Tensor, grid: list[float]) -> Iterator[tuple[float, Tensor]]:
    """Heun's method on the probability-flow ODE: Euler predictor, trapezoid corrector."""
    for t, s in pairwise(grid):
        slope = (v + score(v, t)) / 2
        guess = v + (t - s) * slope
        v = v + (t - s) / 2 * (slope + (guess + score(guess, s)) / 2)
        yield s, v


def _euler_maruyama(
    score: Score, v: Tensor, grid: list[float], noise: Noise
) -> Iterator[tuple[float, Tensor]]:
    for k, (t, s) in enumerate(pairwise(grid)):
        v = v + (t - s) * (v / 2 + score(v, t)) + math.sqrt(t - s) * noise(k)
        yield s, v


def _device_for(score: Score, generator: torch.Generator | None) -> torch.device:
    if isinstance(score, torch.nn.Module):
        for parameter in score.parameters():
            return parameter.device
    if generator is None and hasattr(score, "device"):  # an exact or unrolled score
        return score.device
    return torch.device("cpu") if generator is None else generator.device
