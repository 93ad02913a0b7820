r"""How far the covariance of a sample is from the truth, and how far it must be.

**Scale.** :math:`\Gamma \otimes \Sigma = (c\,\Gamma) \otimes (\Sigma / c)` for every c > 0, so the
factors are determined only up to a scale. Here the temporal estimate always has **mean diagonal 1**
(a correlation, when the process is stationary) and the spatial estimate carries the variance: it is
the average covariance of a frame. Their product estimates Γ ⊗ Σ itself; for a kernel (γ(0) = 1) the
estimates are those of Γ and Σ as they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.covariance import diagonal_means
from ..data.process import GaussianProcess
from ..support.precision import full_precision
from ..support.validation import (
    as_real,
    require_count,
    require_finite,
    require_floating,
    require_one_of,
    require_sequences,
    require_values,
)

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
        mean = _known_mean(x, mean)
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
        require_finite(name, as_real(name, values))
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
    require_one_of("factor", factor, ("temporal", "spatial"))
    own, other = process.temporal_spectrum[0], process.spatial_spectrum[0]
    if factor == "spatial":
        own, other = other, own
    else:
        own = own * (len(own) / own.sum())
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
    averages = diagonal_means(temporal, range(len(temporal)))
    return averages / averages[0]


def debiased_error(error: float, floor: float) -> float:
    r"""What remains of a relative error when the sampling floor is taken away, in squares,

    .. math:: \sqrt{\max(\text{error}^2 - \text{floor}^2, 0)},

    because the error of the law and that of a finite sample add up in squares on average.
    """
    return math.sqrt(max(error**2 - floor**2, 0.0))


@full_precision()
def _second_moment(x: Tensor, mean: Tensor | None, columns: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of outer products of ``columns(frames)``, in float64 across chunks of x."""
    require_sequences("x", x)
    require_values("x", x)
    needed = 2 if mean is None else 1
    if len(x) < needed:
        raise ValueError(f"x must hold at least {needed} sequences, got {len(x)}")
    mean = _known_mean(x, mean)
    mean = x.mean(dim=0) if mean is None else mean.to(x)
    total = 0.0
    for frames in x.split(max(1, CHUNK_VALUES // x[0].numel())):
        block = columns(frames - mean)
        total = total + (block @ block.T).double()
    if not torch.isfinite(total).all():  # one bad entry shows here; looking at all of x costs more
        require_finite("x", x)
        raise ValueError(f"x is too large for products in {x.dtype}: rescale it or use float64")
    return total


def _known_mean(x: Tensor, mean: Tensor | None) -> Tensor | None:
    if mean is None:
        return None
    mean = as_real("mean", mean)
    if mean.shape not in (x.shape[1:], x.shape[2:]):
        raise ValueError(
            f"mean must have shape {tuple(x.shape[1:])} or {tuple(x.shape[2:])},"
            f" got {tuple(mean.shape)}"
        )
    require_finite("mean", mean)
    return mean
