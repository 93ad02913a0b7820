r"""How far a sample, a score or a Gaussian is from the truth.

**Scale.** :math:`\Gamma \otimes \Sigma = (c\,\Gamma) \otimes (\Sigma / c)` for every c > 0, so the
factors are determined only up to a scale. Here the temporal estimate always has **mean diagonal 1**
(a correlation, when the process is stationary) and the spatial estimate carries the variance: it is
the average covariance of a frame. Their product estimates Γ ⊗ Σ itself; for a kernel (γ(0) = 1) the
estimates are those of Γ and Σ as they stand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion import alpha, half_log_snr, perturb, sigma, stratified_steps
from .gaussians import gaussian_kl, gaussian_tv_bounds, gaussian_w2
from .law import KnownLaw
from .precision import full_precision
from .process import GaussianProcess
from .sample import sample, step_grid, trajectory
from .score import ExactScore, Score
from .validation import (
    require_count,
    require_finite,
    require_floating,
    require_real,
    require_sequences,
    require_values,
)

__all__ = [
    "coupled_ode_error",
    "debiased_error",
    "gaussian_kl",
    "gaussian_tv_bounds",
    "gaussian_w2",
    "lag_correlations",
    "path_kl",
    "propagated_spectrum",
    "relative_error",
    "sampling_floor",
    "score_error",
    "spatial_covariance",
    "temporal_covariance",
]

CHUNK_VALUES = 2**17  # numbers multiplied at a time: float32 products, float64 sums across chunks


def temporal_covariance(x: Tensor, mean: Tensor | None = None) -> Tensor:
    r"""Temporal factor, :math:`\hat\Gamma_{ij} \propto \sum_n \langle x_i^{(n)}, x_j^{(n)}\rangle`.

    Its scale is fixed by a mean diagonal of 1.

    Args:
        x: sequences (n, N, d).
        mean: known mean, (d,) or (N, d); by default the sample mean of each frame is subtracted.

    Returns:
        (N, N), dtype and device of x. Its expected relative error is :func:`sampling_floor`.

    Raises:
        ValueError: for a wrong shape, non-finite values, fewer than 2 sequences (or none, where
            the mean is given), or data without any variance.
    """
    total = _second_moment(x, mean, lambda frames: frames.transpose(0, 1).flatten(1))
    scale = total.diagonal().mean()
    # what the rounding of a mean leaves of sequences that are all equal
    rounding = 16 * torch.finfo(x.dtype).eps * x[0].abs().max()
    if scale <= len(x) * x.shape[2] * rounding**2:
        raise ValueError("x has no variance above rounding: every sequence equals the mean")
    return (total / scale).to(x)


def spatial_covariance(x: Tensor, mean: Tensor | None = None, frame: int | None = None) -> Tensor:
    r"""Covariance of a frame, :math:`\hat\Sigma = \frac1{nN}\sum_{n,i} x_i^{(n)} x_i^{(n)\top}`.

    This is the average over frames; ``frame`` picks one.

    Args:
        x: sequences (n, N, d).
        mean: known mean, (d,) or (N, d); by default the sample mean of each frame is subtracted
            and n − 1 takes the place of n.
        frame: estimate from this frame alone (counted from 0), as in FDGWC Fig. 1.

    Returns:
        (d, d), dtype and device of x.

    Raises:
        ValueError: as :func:`temporal_covariance`, or for a frame outside the sequence.
    """
    if frame is not None:
        require_sequences("x", x)
        if not 0 <= frame < x.shape[1]:
            raise ValueError(f"frame must lie in 0..{x.shape[1] - 1}, got {frame!r}")
        _require_mean(x, mean)
        x = x[:, frame : frame + 1]
        mean = mean[frame] if mean is not None and mean.ndim == 2 else mean
    total = _second_moment(x, mean, lambda frames: frames.flatten(0, 1).T)
    return (total / (x.shape[1] * (len(x) - (mean is None)))).to(x)


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Relative Frobenius error, ‖estimate − truth‖ / ‖truth‖, in float64 on the truth's device.

    Raises:
        ValueError: for shapes that differ, values that are not real and finite, or a truth that is
            zero.
    """
    if estimate.shape != truth.shape:
        raise ValueError(f"shapes differ: {tuple(estimate.shape)} and {tuple(truth.shape)}")
    for name, values in (("estimate", estimate), ("truth", truth)):
        require_real(name, values)
        require_finite(name, values)
    truth = truth.double()
    norm = truth.norm()
    if norm == 0:
        raise ValueError("a relative error needs a truth that is not zero")
    return ((estimate.to(truth) - truth).norm() / norm).item()


def sampling_floor(process: GaussianProcess, n: int, factor: str = "temporal") -> float:
    r"""Expected relative error of a covariance estimated from n *true* sequences.

    The root mean square of ``relative_error(temporal_covariance(x), Γ)`` over draws of the truth:
    single draws fall on both sides of it. With
    :math:`c = \|\Sigma\|_F^2 / (n \operatorname{tr}^2\Sigma)`,

    .. math:: c\,(1 + N^2/\|\Gamma\|_F^2), \qquad \Gamma_{ii} = 1,

    is the mean square where the scale is known; fixing the trace instead takes away
    :math:`c\,(4\operatorname{tr}\Gamma^3/N - 2\|\Gamma\|_F^4/N^2) / \|\Gamma\|_F^2`.

    Args:
        process: the truth; a Γ of mean diagonal other than 1 is rescaled.
        n: number of sequences, the mean being known (subtract 1 where it is estimated).
        factor: ``"temporal"``, or ``"spatial"`` for the floor of :func:`spatial_covariance`.

    Returns:
        The floor, to first order in 1/n.

    Raises:
        ValueError: for n < 1 or an unknown factor.
    """
    require_count("n", n)
    temporal, spatial = process.temporal_spectrum[0], process.spatial_spectrum[0]
    if factor == "temporal":
        own, other = temporal * (len(temporal) / temporal.sum()), spatial
    elif factor == "spatial":
        own, other = spatial, temporal
    else:
        raise ValueError(f"factor must be 'temporal' or 'spatial', got {factor!r}")
    share = (other**2).sum() / (n * other.sum() ** 2)
    square = (own**2).sum()
    spread = own.sum() ** 2 + square
    if factor == "temporal":
        spread = spread - 4 * (own**3).sum() / len(own) + 2 * square**2 / len(own) ** 2
    return math.sqrt(share * spread / square)


def lag_correlations(temporal: Tensor) -> Tensor:
    r"""Average of a temporal covariance along its diagonals,

    .. math:: \hat\gamma(m) = \frac{1}{N-m}\sum_i \hat\Gamma_{i,i+m}
              \Big/ \frac1N\sum_i \hat\Gamma_{ii}.

    For a stationary process this estimates γ far better than any single row does.

    Args:
        temporal: (N, N).

    Returns:
        (N,), one correlation per lag m = 0..N−1; the first is 1.

    Raises:
        ValueError: for a matrix that is not square, floating point and finite.
    """
    require_floating("temporal", temporal)
    if temporal.ndim != 2 or temporal.shape[0] != temporal.shape[1]:
        raise ValueError(f"temporal must be a square matrix, got shape {tuple(temporal.shape)}")
    require_finite("temporal", temporal)
    averages = torch.stack([temporal.diagonal(m).mean() for m in range(len(temporal))])
    return averages / averages[0]


def debiased_error(error: float, floor: float) -> float:
    r"""What remains of a relative error when the sampling floor is taken away, in squares,

    .. math:: \sqrt{\max(\text{error}^2 - \text{floor}^2, 0)},

    because the error of the law and that of a finite sample add up in squares on average.
    """
    return math.sqrt(max(error**2 - floor**2, 0.0))


def score_error(
    score: Score,
    law: KnownLaw,
    t: float,
    n: int = 1024,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    r"""Relative score error :math:`E\|\hat s - s\|^2 / E\|s\|^2` over :math:`v \sim p_t`.

    Args:
        score: the score under test, called as (v, t).
        law: of the clean sequences.
        t: diffusion step > 0.
        n: Monte Carlo sequences; both expectations use the same ones.
        generator: source of randomness.
        dtype: of the sequences handed to the score.

    Returns:
        The error; 0 for the exact score, 1 for the score that is always zero.

    Raises:
        ValueError: for a step that is not > 0, n < 1, or a score of the wrong shape.
    """
    require_count("n", n)
    v, _ = perturb(law.sample(n, generator, dtype), t, generator)
    with torch.no_grad():
        estimate, truth = score(v, t), ExactScore(law)(v, t)
    return relative_error(estimate, truth) ** 2


def propagated_spectrum(
    process: GaussianProcess,
    steps: int,
    method: str = "ode",
    solver: str = "dpmpp-2m",
    t_min: float = 0.005,
    t_max: float = 10.0,
    final_denoise: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Exact variances of what a solver samples with the exact score: no Monte Carlo.

    The exact score is linear, so each eigen-direction of Γ ⊗ Σ evolves alone, and its final
    variance is the sum of its squared responses to the initial draw and to the noise of each step.
    The responses come from running the solver itself on unit impulses.

    Args:
        process: the truth, with mean zero.
        steps, method, solver, t_min, t_max, final_denoise: as in :func:`gptheory.sample.sample`.

    Returns:
        Sampled and true variances, both (N, d): true are those of p at t_min, or of the clean law
        when ``final_denoise``. The relative error of the sampled covariance is
        ``relative_error(sampled, true)``, since both share their eigenvectors.

    Accuracy: float64 rounding.
    """
    temporal, spatial = process.temporal_spectrum[0], process.spatial_spectrum[0]
    score = ExactScore(GaussianProcess(temporal.diag(), spatial.diag()))
    impulses = steps + 1 if method == "sde" else 1  # row 0: initial draw, row k + 1: step k

    def impulse(step: int) -> Tensor:
        unit = temporal.new_zeros(impulses, len(temporal), len(spatial))
        unit[step + 1] = 1
        return unit

    grid = step_grid(steps, t_min, t_max)
    path = trajectory(score, impulse(-1), grid, method, solver, impulse, final_denoise)
    _t, response = deque(path, maxlen=1).pop()
    clean = torch.outer(temporal, spatial)
    true = clean if final_denoise else alpha(t_min) ** 2 * clean + sigma(t_min) ** 2
    return (response**2).sum(dim=0), true


@torch.no_grad()
def path_kl(
    score: Score,
    law: KnownLaw,
    t_min: float = 0.005,
    t_max: float = 8.0,
    n: int = 2048,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    r"""Path divergence per coordinate: the score error, weighed as it enters what is sampled,

    .. math:: \frac{1}{2Nd}\int_{t_{min}}^{t_{max}} E\|\hat s(v_t, t) - s(v_t, t)\|^2\,dt,
              \qquad v_t \sim p_t.

    By Girsanov's theorem this is the Kullback-Leibler divergence between the paths of the backward
    SDE with the exact score and with :math:`\hat s`, started alike, and so an upper bound on that
    of the laws they reach at t_min (Chen et al. 2023). Where :math:`\hat s` is itself the score of
    a noised law q, it equals :math:`KL(p_t\|q_t)` at t_min less that at t_max.

    Since :math:`dt = -\sigma_t^2\, d\,\text{logSNR}`, the integral is an average over logSNR. It is
    stratified: every sequence has a step in a stratum of its own.

    Args:
        score: the score under test, called as (v, t) with one t per sequence.
        law: of the clean sequences.
        t_min, t_max: range of diffusion steps.
        n: Monte Carlo sequences.
        generator: source of randomness.
        dtype: of the sequences handed to the score.

    Returns:
        The divergence in nats per coordinate; 0 for the exact score.

    Raises:
        ValueError: for n < 1, steps out of order, or a score of the wrong shape.

    Accuracy: a standard error of about 2 % at the default n for N·d = 128; it falls as
    :math:`n^{-1/2}`.
    """
    steps = stratified_steps(n, t_min, t_max, generator)
    exact, total = ExactScore(law), 0.0
    for t in steps.split(max(1, CHUNK_VALUES // (law.seq_len * law.dim))):
        x = law.sample(len(t), generator, dtype)
        v, _ = perturb(x, t.to(x.device), generator)
        estimate, truth = score(v, t.to(v.device)), exact(v, t.to(v.device))
        if estimate.shape != truth.shape:
            expected, given = tuple(truth.shape), tuple(estimate.shape)
            raise ValueError(f"the score must return a tensor of shape {expected}, got {given}")
        squares = (estimate - truth).double().square().mean(dim=(1, 2))
        total += (sigma(t).to(squares) ** 2 * squares).sum().item()
    return (half_log_snr(t_min) - half_log_snr(t_max)) * total / n


def coupled_ode_error(
    score: Score,
    law: KnownLaw,
    n: int = 48,
    steps: int = 50,
    t_min: float = 0.005,
    t_max: float = 10.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    r"""Relative root mean square difference of what a score and the exact score make of one noise,

    .. math:: \left(E\|\hat x - x\|^2 / E\|x\|^2\right)^{1/2},

    where :math:`\hat x` and x solve the probability-flow ODE from the same draw. The numerator
    bounds the squared Wasserstein-2 distance of the two sampled laws, because it is the cost of one
    coupling; and the coupling takes away the sampling noise, so that few sequences are enough.

    Args:
        score: the score under test, called as (v, t).
        law: of the clean sequences.
        n: Monte Carlo sequences.
        steps, t_min, t_max: as in :func:`gptheory.sample.sample`, with DPM-Solver++(2M) and a final
            denoising step.
        generator: source of randomness; by default a fixed one.
        dtype: of the sequences.

    Returns:
        The error; 0 for the exact score.

    Raises:
        ValueError: for sizes out of range, or a score of the wrong shape.
        FloatingPointError: if the learned ODE leaves the range of floating point.

    Accuracy: the difference between two draws of the default n is about 5 %.
    """
    require_count("n", n)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start = generator.get_state()
    results = []
    for each in (score, ExactScore(law)):
        generator.set_state(start)
        results.append(
            sample(
                each, n, law.seq_len, law.dim, steps=steps, t_min=t_min, t_max=t_max,
                generator=generator, dtype=dtype, device=law.device, show_progress=False,
            )
        )  # fmt: skip
    return relative_error(*results)


@full_precision()
def _second_moment(x: Tensor, mean: Tensor | None, columns: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of outer products of ``columns(frames)``, in float64 across chunks of x."""
    require_sequences("x", x)
    require_values("x", x)
    needed = 2 if mean is None else 1
    if len(x) < needed:
        raise ValueError(f"x must hold at least {needed} sequences, got {len(x)}")
    _require_mean(x, mean)
    mean = x.mean(dim=0) if mean is None else mean.to(x)
    total = 0.0
    for frames in x.split(max(1, CHUNK_VALUES // x[0].numel())):
        block = columns(frames - mean)
        total = total + (block @ block.T).double()
    if not torch.isfinite(total).all():  # one bad entry shows here; looking at all of x costs more
        require_finite("x", x)
        raise ValueError(f"x is too large for products in {x.dtype}: rescale it or use float64")
    return total


def _require_mean(x: Tensor, mean: Tensor | None) -> None:
    if mean is None:
        return
    require_real("mean", mean)
    if mean.shape not in (x.shape[1:], x.shape[2:]):
        raise ValueError(
            f"mean must have shape {tuple(x.shape[1:])} or {tuple(x.shape[2:])},"
            f" got {tuple(mean.shape)}"
        )
    require_finite("mean", mean)
