"""What a spectrum decides and what it leaves to chance.

LAPACK libraries agree on eigenvalues to rounding, but not on eigenvectors: each may change their
signs, and rotate those of equal eigenvalues. Whatever a seed decides must therefore be made from
combinations that do not see the choice, or from vectors whose signs are fixed by a rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .precision import full_precision
from .rounding import SUMMED, spectrum_rounding
from .validation import NotPSDError

# what a calculation in float64 may lose beyond its rounding, relative to the largest eigenvalue: a
# Schur complement of 64 rows that divides by a matrix of condition 1e4, n κ u
PSD_TOLERANCE = 1e-10


def clipped_eigh(matrix: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    r"""Eigenvalues, ascending, and eigenvectors; those negative by rounding alone are 0.

    That is, above :math:`-\max(10^{-10}\|A\|_2, r)`, with r what rounding may do in the precision
    in which A was made (:func:`.spectrum_rounding`, for entries that are sums).

    Args:
        matrix: A, symmetric (..., n, n) float64.
        dtype: the precision that it had on arrival.

    Returns:
        (..., n) and (..., n, n).
    """
    values, vectors = torch.linalg.eigh(matrix)
    largest = values.abs().amax(dim=-1, keepdim=True)
    limit = torch.maximum(PSD_TOLERANCE * largest, spectrum_rounding(values, dtype, SUMMED))
    return torch.where((values < 0) & (values >= -limit), 0, values), vectors


def covariance_spectrum(
    name: str, matrix: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """What :func:`clipped_eigh` returns, of a matrix without eigenvalues that are truly negative.

    Raises:
        NotPSDError: for any other; names it, its precision and the remedies.
    """
    values, vectors = clipped_eigh(matrix, dtype)
    if (values < 0).any():
        worst = min(values.reshape(-1, values.shape[-1]), key=lambda each: each[0])
        raise NotPSDError(
            f"the {name} is not positive semidefinite: its smallest eigenvalue is {worst[0]:.3g},"
            f" its largest {worst[-1]:.3g}, more than rounding in {dtype} explains; pass it in the"
            " precision in which it was computed, taper a truncated covariance (kernels.taper) or"
            " add a multiple of the identity above that eigenvalue"
        )
    return values, vectors


def nearest_covariance(
    matrix: Tensor, spectrum: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """A float64 matrix that is a covariance to float64, whatever the precision it arrived in.

    What arrives in fewer digits may have eigenvalues that are negative by its rounding. Handed on
    in float64 it would be refused, for nobody could tell that it had been rounded.

    Args:
        matrix: A, symmetric (n, n) float64.
        spectrum: what :func:`covariance_spectrum` returned for it.
        dtype: the precision that A had on arrival.

    Returns:
        (n, n): A itself where it came in float64 or has no eigenvalue of 0, else the nearest
        positive semidefinite matrix, as near as rounding.
    """
    values, vectors = spectrum
    if dtype == torch.float64 or values[0] > 0:
        return matrix
    return (vectors * values) @ vectors.T


def symmetric_root(values: Tensor, vectors: Tensor) -> Tensor:
    r"""The root :math:`C^{1/2} = V \operatorname{diag}(\sqrt\lambda) V^\top` of a covariance.

    Of all R with :math:`R R^\top = C` it is the only positive semidefinite one, so it is the same
    whichever eigenvectors are handed in: samples :math:`C^{1/2} z` of a seed are the same on every
    machine up to rounding, those of :math:`V \operatorname{diag}(\sqrt\lambda) z` are not.

    Args:
        values: eigenvalues >= 0, (..., n).
        vectors: orthonormal eigenvectors in columns, (..., n, n).

    Returns:
        (..., n, n), dtype and device of the vectors.

    Accuracy: :math:`n\,u\,\lambda_{max}^{1/2}` where C is well conditioned; an eigenvalue that is
    zero up to rounding, :math:`n\,u\,\lambda_{max}`, contributes the root of that, 1e-7 in float64.
    """
    return (vectors * values.sqrt()[..., None, :]) @ vectors.mT


@full_precision()
def on_spectrum(u: Tensor, w: Tensor, frames: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    r"""A function of a matrix that is diagonal in :math:`U \otimes W`: rotate, change, rotate back.

    Args:
        u, w: orthonormal, (N, N) and (d, d).
        frames: (N, batch, d).
        change: of the coordinates (N, batch, d), which it changes one by one.

    Returns:
        (batch, N, d). O(N²d + Nd²) a sequence.
    """
    coordinates = change(along_frames(u.T, frames @ w))
    return (along_frames(u, coordinates) @ w.T).transpose(0, 1)


@full_precision()
def along_frames(matrix: Tensor, frames: Tensor) -> Tensor:
    """Apply an (N, N) matrix to (N, batch, d) as one large product."""
    return (matrix @ frames.flatten(1)).view_as(frames)


def frames_first(level: float | Tensor) -> float | Tensor:
    """A level (batch, 1, 1) as (1, batch, 1); numbers stay numbers."""
    return level.transpose(0, 1) if isinstance(level, Tensor) and level.ndim else level


def orthonormal(matrix: Tensor) -> Tensor:
    """The orthonormal basis Q of the columns, A = QR with diag R > 0: unique where A has full rank.

    LAPACK leaves the signs to chance; with this rule Q is a continuous function of A.

    Args:
        matrix: (..., n, k), k <= n.

    Returns:
        (..., n, k), differentiable.
    """
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).to(q)
    return q * signs[..., None, :]


def principal_axes(moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a moment (n, n), descending, and the first vectors (n, count), oriented."""
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0), oriented(vectors.flip(1)[:, :count])


def oriented(vectors: Tensor) -> Tensor:
    r"""Columns with their signs chosen such that :math:`\sum_k \sqrt{k}\, v_k > 0`.

    The weights single out no direction by symmetry: modes that are even or odd in any sense have
    no sum of zero. Vectors of equal eigenvalues remain rotated by chance.

    Args:
        vectors: (n, k).
    """
    weights = torch.arange(1, len(vectors) + 1, dtype=vectors.dtype, device=vectors.device).sqrt()
    return vectors * torch.where(weights @ vectors < 0, -1, 1).to(vectors)
