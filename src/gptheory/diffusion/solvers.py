r"""Solvers of the reverse process, one step at a time.

In :math:`y = v/\alpha_t` and :math:`u = \log(\alpha_t/\sigma_t)`, which rises from noise to data,
both forms of the reverse process are linear but for the denoiser :math:`D = E[x \mid v_t]`:

.. math:: v_s = \frac{\sigma_s}{\sigma_t} e^{h - ch}\, v_t
          + \alpha_s \int_0^h c\,e^{-c(h - \tau)}\,D(u + \tau)\,d\tau
          + \sigma_s\sqrt{1 - e^{-2(c - 1)h}}\;z,

with c = 1 for the probability flow and c = 2 for the SDE, and h the length of the step in u. The
linear part is exact. *Exponential Adams-Bashforth* of order p continues D by the polynomial through
its last p values and integrates it exactly (Certaine 1960; Nørsett 1969; for diffusions Zhang and
Chen 2023); order 1 holds D fixed, which is DDIM (c = 1) and DDPM's step (c = 2). DPM-Solver++(2M)
continues D by a straight line and takes its value half-way (Lu et al. 2022).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..support.validation import as_floating, require_finite, require_score, require_sequences
from .denoiser import denoise
from .exact import Score
from .schedule import alpha, half_log_snr, sigma

Noise = Callable[[int], Tensor]
SOLVERS = {
    "ode": ("exp-ab3", "exp-ab2", "exp-ab4", "ddim", "dpmpp-2m", "heun"),
    "sde": ("exp-ab3", "exp-ab2", "exp-ab4", "ddpm", "dpmpp-2m", "euler-maruyama"),
}
ORDERS = {"ddim": 1, "ddpm": 1, "exp-ab2": 2, "exp-ab3": 3, "exp-ab4": 4}
SERIES = 20  # terms after which that of a moment at z <= 1 is below rounding


@torch.no_grad()
def trajectory(
    score: Score,
    v: Tensor,
    grid: list[float],
    method: str = "ode",
    solver: str = "exp-ab3",
    noise: Noise | None = None,
    final_denoise: bool = True,
) -> Iterator[tuple[float, Tensor]]:
    """The states of the reverse process, one a grid step: what :func:`.sample` iterates.

    Args:
        score: as in :func:`.sample`.
        v: the state at grid[0], (batch, seq_len, dim).
        grid: decreasing diffusion steps, as made by :func:`.step_grid`.
        method, solver: as in :func:`.sample`.
        noise: standard normal noise of the shape of v for step k, needed by the SDE.
        final_denoise: end with one more item, E[x | v] at the last grid step, under t = 0.

    Yields:
        Pairs (t, v_t), from grid[1] on.

    Raises:
        ValueError: for a wrong shape, grid or name, missing noise, or a score of the wrong shape.
    """
    require_sequences("v", v)
    require_solver(method, solver)
    if method == "sde" and noise is None:
        raise ValueError("the SDE needs noise: pass a function of the step number")
    if len(grid) < 2 or min(grid) <= 0 or any(s >= t for t, s in pairwise(grid)):
        raise ValueError(f"grid must be two or more decreasing steps > 0, got {grid!r}")

    def checked(v: Tensor, t: float) -> Tensor:
        return require_score(score(v, t), v)

    for state in _path(checked, v, grid, solver, noise if method == "sde" else None):
        yield state
        _t, v = state
    if final_denoise:
        yield 0.0, denoise(checked, v, grid[-1])


def require_solver(method: str, solver: str) -> None:
    """Raise unless there is such a method, and such a solver for it."""
    if method not in SOLVERS or solver not in SOLVERS[method]:
        names = "; ".join(f"{m}: {', '.join(s)}" for m, s in SOLVERS.items())
        raise ValueError(f"expected a method and solver of {names}; got {method!r}, {solver!r}")


def mode_variances(
    values: Tensor,
    grid: list[float],
    method: str = "ode",
    solver: str = "exp-ab3",
    final_denoise: bool = False,
    initial: Tensor | float = 1.0,
) -> Tensor:
    r"""Variances of what a solver makes, with the exact score, of modes of given variances.

    A linear score lets each mode evolve alone, so its final variance is the sum of its squared
    responses to the initial draw and to the noise of each step: the solver runs on unit impulses.

    Args:
        values: λ >= 0 of the modes, (M,).
        grid, method, solver, final_denoise: as in :func:`trajectory`.
        initial: variances at grid[0], one for all or (M,).

    Returns:
        (M,) in float64, on the device of the values.

    Raises:
        ValueError: for variances that are not real and finite, or what :func:`trajectory` refuses.
    """
    values = as_floating("values", values)
    require_finite("values", values)
    initial = as_floating("initial", initial).to(values.device)
    require_finite("initial", initial)
    values = values.double().reshape(1, -1, 1)
    impulses = len(grid) if method == "sde" else 1  # row 0: initial draw, row k + 1: step k

    def impulse(step: int) -> Tensor:
        unit = values.new_zeros(impulses, values.shape[1], 1)
        unit[step + 1] = 1
        return unit

    def score(v: Tensor, t: float) -> Tensor:
        return -v / (alpha(t) ** 2 * values + sigma(t) ** 2)

    path = trajectory(score, impulse(-1), grid, method, solver, impulse, final_denoise)
    _t, response = deque(path, maxlen=1).pop()
    squares = response.square().squeeze(2)  # (impulses, M)
    return initial * squares[0] + squares[1:].sum(dim=0)


def adams_weights(
    steps: tuple[float, ...], rate: float = 1.0, known_ahead: bool = False
) -> tuple[float, ...]:
    r"""Weights of known values of D in a step of an exponential Adams method,

    .. math:: w_j = \int_0^h c\,e^{-c(h - \tau)}\,\ell_j(\tau)\,d\tau,

    with the Lagrange polynomials of the times at which D is known: 0 and those before
    (Adams-Bashforth), and h itself where it is known there too (Adams-Moulton). They follow from
    the moments of the kernel, :math:`\mu_m = \int_0^1 z e^{-z(1 - x)} x^m dx` with z = c h.

    Args:
        steps: lengths h of the step to take and of those before it, latest first, (p,).
        rate: c.
        known_ahead: whether D is known at the end of the step.

    Returns:
        p weights, or p + 1, latest value first; their sum is :math:`1 - e^{-ch}`.

    Accuracy: 1e-14, also for small steps.
    """
    h = steps[0]
    nodes = -np.cumsum([0.0, *steps[1:]]) / h
    nodes = np.concatenate([[1.0], nodes]) if known_ahead else nodes
    powers = np.vander(nodes, increasing=True).T  # row m: x_j^m
    return tuple(np.linalg.solve(powers, _moments(rate * h, len(nodes))).tolist())


def _moments(z: float, count: int) -> list[float]:
    r"""μ_0, …: :math:`\mu_m = 1 - (m/z)\mu_{m-1}` cancels for small z, where a series does not."""
    if z < 1:
        return [_series(z, m) for m in range(count)]
    moments = [-math.expm1(-z)]
    for m in range(1, count):
        moments.append(1 - m / z * moments[-1])
    return moments


def _series(z: float, m: int) -> float:
    r"""μ_m = Σ_k (−1)^k z^{k+1} m! / (m + k + 1)!."""
    term = total = z / (m + 1)
    for k in range(1, SERIES):
        term *= -z / (m + k + 1)
        total += term
    return total


def _path(
    score: Score, v: Tensor, grid: list[float], solver: str, noise: Noise | None
) -> Iterator[tuple[float, Tensor]]:
    if solver in ORDERS:
        return _adams(score, v, grid, noise, ORDERS[solver])
    if solver == "dpmpp-2m":
        return _dpmpp(score, v, grid, noise)
    if solver == "heun":
        return _heun(score, v, grid)
    return _euler_maruyama(score, v, grid, noise)


def _adams(
    score: Score, v: Tensor, grid: list[float], noise: Noise | None, order: int
) -> Iterator[tuple[float, Tensor]]:
    """Exponential Adams-Bashforth, of lower order while fewer values are known.

    That would cost the whole method its order. So the first p − 1 steps are corrected as soon as D
    is known at their end, where it is needed anyway (Adams-Moulton): no evaluation more.
    """
    values: deque[Tensor] = deque(maxlen=order)
    steps: deque[float] = deque(maxlen=order)
    rate = 1 if noise is None else 2
    for k, (t, s) in enumerate(pairwise(grid)):
        values.appendleft(denoise(score, v, t))
        if 0 < k < order:
            v = _advanced(v.clone(), alpha(t), _correction(tuple(steps), rate), values)
        steps.appendleft(half_log_snr(s) - half_log_snr(t))
        kept = _kept(t, s, steps[0], rate) * v
        v = _advanced(kept, alpha(s), adams_weights(tuple(steps), rate), values)
        v = _stirred(v, s, steps[0], noise, k)
        yield s, v


def _advanced(
    v: Tensor, signal: float, weights: tuple[float, ...], values: Iterable[Tensor]
) -> Tensor:
    """The state, changed in place: large sequences cost as much in memory as in arithmetic."""
    for weight, clean in zip(weights, values, strict=True):
        v.add_(clean, alpha=signal * weight)
    return v


def _correction(steps: tuple[float, ...], rate: float) -> tuple[float, ...]:
    """Weights of Adams-Moulton less those of the step that was taken."""
    taken = (0.0, *adams_weights(steps, rate))
    return tuple(np.subtract(adams_weights(steps, rate, known_ahead=True), taken).tolist())


def _dpmpp(
    score: Score, v: Tensor, grid: list[float], noise: Noise | None
) -> Iterator[tuple[float, Tensor]]:
    """DPM-Solver++(2M): the denoiser half-way, along the line through its last two values."""
    last_clean, last_h = None, None
    rate = 1 if noise is None else 2
    for k, (t, s) in enumerate(pairwise(grid)):
        h = half_log_snr(s) - half_log_snr(t)
        clean = target = denoise(score, v, t)
        if last_clean is not None:
            target = clean + (clean - last_clean) * (h / (2 * last_h))
        v = _kept(t, s, h, rate) * v - alpha(s) * math.expm1(-rate * h) * target
        last_clean, last_h = clean, h
        v = _stirred(v, s, h, noise, k)
        yield s, v


def _kept(t: float, s: float, h: float, rate: int) -> float:
    """What is left of v_t at s: its noise scales with σ, and the SDE forgets it besides."""
    return sigma(s) / sigma(t) * math.exp(h - rate * h)


def _stirred(v: Tensor, s: float, h: float, noise: Noise | None, k: int) -> Tensor:
    """The state with the fresh noise of a step of the SDE."""
    return v if noise is None else v + sigma(s) * math.sqrt(-math.expm1(-2 * h)) * noise(k)


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
