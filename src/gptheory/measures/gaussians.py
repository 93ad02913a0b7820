r"""Closed-form distances between Gaussians: Kullback-Leibler, Wasserstein-2, total variation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg
from torch import Tensor

from ..support.overlap import line_tv, relative_tv
from ..support.rounding import spectrum_rounding
from ..support.spectra import covariance_spectrum, symmetric_root
from ..support.validation import NotPSDError, as_real, require_finite, require_symmetric


def gaussian_kl(
    cov_p: Tensor, cov_q: Tensor, mean_p: Tensor | None = None, mean_q: Tensor | None = None
) -> float:
    r"""Kullback-Leibler divergence of two Gaussians,

    .. math:: KL(p\|q) = \tfrac12\left[\operatorname{tr}(C_q^{-1}C_p) - D + \log\det C_q
              - \log\det C_p + \delta^\top C_q^{-1}\delta\right].

    Args:
        cov_p, cov_q: (D, D) covariances; q must be positive definite.
        mean_p, mean_q: (D,), zero if absent; δ is their difference.

    Returns:
        The divergence in nats; infinite where p is singular and q is not.

    Raises:
        NotPSDError: if a matrix is not positive semidefinite, or q is singular.
        ValueError: for shapes that disagree, or matrices not symmetric and finite.

    Accuracy: eigenvalues that rounding in the dtype of their matrix could have made
    (:func:`.spectrum_rounding`) count as zero.
    """
    eigenvalues, shift = _relative_spectrum(cov_p, cov_q, mean_p, mean_q)
    return float(0.5 * (_excess(eigenvalues).sum() + (shift**2).sum()))


def gaussian_w2(
    cov_p: Tensor, cov_q: Tensor, mean_p: Tensor | None = None, mean_q: Tensor | None = None
) -> float:
    r"""Wasserstein-2 distance of two Gaussians,

    .. math:: W_2^2 = \|\delta\|^2
              + \operatorname{tr}\left(C_p + C_q - 2(C_p^{1/2} C_q C_p^{1/2})^{1/2}\right).

    The trace is computed as :math:`\min_R \|C_p^{1/2} - C_q^{1/2}R\|_F^2` over rotations R, which
    has no cancellation when the two are close.

    Args:
        cov_p, cov_q: (D, D) positive semidefinite covariances.
        mean_p, mean_q: (D,), zero if absent.

    Returns:
        The distance, in the unit of the data.

    Raises:
        NotPSDError: if a matrix is not positive semidefinite.
        ValueError: for shapes that disagree, or matrices not symmetric and finite.
    """
    p, q, delta = _gaussian_pair(cov_p, cov_q, mean_p, mean_q)
    root_p, root_q = (symmetric_root(*each.spectrum).numpy() for each in (p, q))
    left, _, right = np.linalg.svd(root_q @ root_p)
    return math.sqrt(np.sum((root_p - root_q @ (left @ right)) ** 2) + np.sum(delta**2))


def gaussian_tv(
    cov_p: Tensor, cov_q: Tensor, mean_p: Tensor | None = None, mean_q: Tensor | None = None
) -> float:
    r"""Total variation distance of two Gaussians, :math:`E_p(1 - q/p)_+`.

    In coordinates where both are diagonal it is one integral (:mod:`.overlap`).

    Args:
        cov_p, cov_q: (D, D) covariances; q must be positive definite.
        mean_p, mean_q: (D,), zero if absent.

    Returns:
        The distance, in [0, 1]; 1 where p is singular and q is not.

    Raises:
        NotPSDError: if a matrix is not positive semidefinite, or q is singular.
        ValueError: for shapes that disagree, or matrices not symmetric and finite.

    Accuracy: that of :func:`.relative_tv`, 1e-8 or better but for odd cases.
    """
    return relative_tv(*_relative_spectrum(cov_p, cov_q, mean_p, mean_q))


def gaussian_tv_bounds(
    cov_p: Tensor, cov_q: Tensor, mean_p: Tensor | None = None, mean_q: Tensor | None = None
) -> tuple[float, float]:
    r"""Two-sided bounds on the total variation distance of two Gaussians, in closed form.

    The distance itself, an integral, is :func:`gaussian_tv`.

    Upper: the smaller of :math:`\sqrt{1 - BC^2}`, with the Bhattacharyya coefficient BC, and
    Pinsker's :math:`\sqrt{KL/2}` in either direction. (Bretagnolle and Huber's :math:`\sqrt{1 -
    e^{-KL}}` is never below the first.) Lower: the largest of :math:`1 - BC`, the exact distance of
    the two laws projected on the one direction that separates them best (of the generalised
    eigenvectors and the linear discriminants of the means), and, for equal means,
    :math:`\tfrac1{100}\min(1, \|C_p^{-1}C_q - I\|_F)` (Devroye, Mehrabian and Reddad 2018). In one
    dimension the two coincide.

    Args:
        cov_p, cov_q: (D, D) positive definite covariances.
        mean_p, mean_q: (D,), zero if absent.

    Returns:
        (lower, upper), 0 <= lower <= TV <= upper <= 1.

    Raises:
        NotPSDError: if a matrix is not positive definite.
        ValueError: for shapes that disagree, or matrices not symmetric and finite.
    """
    eigenvalues, shift = _relative_spectrum(cov_p, cov_q, mean_p, mean_q)
    if eigenvalues.min() <= 0:
        smallest = eigenvalues.min()
        raise NotPSDError(
            f"cov_p must be positive definite, its smallest eigenvalue relative to cov_q is"
            f" {smallest:.3g}; add a small multiple of the identity to both"
        )
    # log of (1 + e) / (2 sqrt(e)), in the form that cannot round below 0 when p and q are close
    root = np.sqrt(eigenvalues)
    overlap = np.log1p((root - 1) ** 2 / (2 * root))
    log_bc = -0.5 * overlap.sum() - 0.25 * np.sum(shift**2 / (1 + eigenvalues))
    forward = _excess(eigenvalues).sum() + np.sum(shift**2)
    backward = _excess(1 / eigenvalues).sum() + np.sum(shift**2 / eigenvalues)
    kl = 0.5 * min(forward, backward)
    upper = min(math.sqrt(-math.expm1(2 * log_bc)), math.sqrt(kl / 2))
    lower = max(-math.expm1(log_bc), _best_projection(eigenvalues, shift))
    if not shift.any():
        lower = max(lower, min(1.0, float(np.linalg.norm(1 / eigenvalues - 1))) / 100)
    if len(eigenvalues) == 1:
        return lower, lower
    return min(lower, upper), upper


@dataclass(frozen=True)
class _Covariance:
    """A covariance on the CPU: float64, its clipped spectrum, and what of that is rounding."""

    matrix: Tensor
    spectrum: tuple[Tensor, Tensor]
    rounding: float

    @classmethod
    def checked(cls, name: str, given: Tensor) -> _Covariance:
        given = as_real(name, given)
        matrix = require_symmetric(name, given).detach().cpu()
        spectrum = covariance_spectrum(name, matrix, given.dtype)
        return cls(matrix, spectrum, spectrum_rounding(spectrum[0], given.dtype).item())

    @property
    def zeros(self) -> int:
        """Number of eigenvalues that cannot be told from 0."""
        return int((self.spectrum[0] <= self.rounding).sum())


def _gaussian_pair(
    cov_p: Tensor, cov_q: Tensor, mean_p: Tensor | None, mean_q: Tensor | None
) -> tuple[_Covariance, _Covariance, np.ndarray]:
    """Both covariances and the difference of means, checked."""
    p, q = _Covariance.checked("cov_p", cov_p), _Covariance.checked("cov_q", cov_q)
    shapes = tuple(p.matrix.shape), tuple(q.matrix.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(f"covariances must have one shape, got {shapes[0]} and {shapes[1]}")
    delta = np.zeros(len(p.matrix))
    for name, mean, sign in (("mean_p", mean_p, 1.0), ("mean_q", mean_q, -1.0)):
        if mean is None:
            continue
        mean = as_real(name, mean)
        if tuple(mean.shape) != delta.shape:
            raise ValueError(f"{name} must have shape ({len(delta)},), got {tuple(mean.shape)}")
        require_finite(name, mean)
        delta = delta + sign * mean.detach().cpu().double().numpy()
    return p, q, delta


def _relative_spectrum(
    cov_p: Tensor, cov_q: Tensor, mean_p: Tensor | None, mean_q: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """In coordinates where q is standard and p diagonal: variances of p, difference of means."""
    p, q, delta = _gaussian_pair(cov_p, cov_q, mean_p, mean_q)
    if q.zeros:
        raise NotPSDError(
            "cov_q must be positive definite, its smallest eigenvalue is"
            f" {q.spectrum[0][0]:.3g} and rounding in its dtype reaches {q.rounding:.3g};"
            " add a small multiple of the identity to both"
        )
    eigenvalues, basis = linalg.eigh(p.matrix.numpy(), q.matrix.numpy())
    # p has as many zeros in these coordinates as in its own, where rounding is easier to tell
    eigenvalues[: p.zeros] = 0
    return eigenvalues.clip(min=0), basis.T @ delta


def _excess(ratio: np.ndarray) -> np.ndarray:
    """r − 1 − log r >= 0, the divergence of a variance ratio (twice); infinite at 0."""
    with np.errstate(divide="ignore"):
        return np.maximum(ratio - 1 - np.log(ratio), 0)  # rounding must not make it negative


def _best_projection(eigenvalues: np.ndarray, shift: np.ndarray) -> float:
    """Largest exact TV among one-dimensional projections; TV can only fall under a projection."""
    distances = [line_tv(m, v) for m, v in zip(shift, eigenvalues, strict=True)]
    # discriminants of the means under the covariance of q, of p, and of both (Fisher's)
    for normal in (shift, shift / eigenvalues, shift / (1 + eigenvalues)):
        length = np.linalg.norm(normal)
        if length > 0:
            normal = normal / length
            distances.append(line_tv(float(normal @ shift), float(eigenvalues @ normal**2)))
    return max(distances)
