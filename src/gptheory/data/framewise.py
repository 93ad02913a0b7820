r"""Scores of sequences whose frames are noised each in its own measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..support.rounding import gamma
from ..support.validation import NotPSDError

if TYPE_CHECKING:
    from typing import Any as GaussianProcess  # which imports this file


def framewise_scores(process: GaussianProcess, v: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """What :meth:`.GaussianProcess.framewise_score` says, of all sequences at once.

    Args:
        process, v, signal, noise: as there.
    """
    gram, mean, (spatial, w) = (
        _on(v.device, part) for part in (process.gram(), process.mean, process.spatial_spectrum)
    )
    signal, noise = signal.to(mean), noise.to(mean)
    kind, which = _kinds(torch.cat([signal, noise], dim=1))
    a, s = signal[kind], noise[kind]  # (P, N, 1)
    scaled = (a * gram * a.mT)[:, None] * spatial[:, None, None]  # (P, d, N, N)
    factor = _factor(scaled + (s**2)[..., 0].diag_embed()[:, None])
    residual = ((v.to(mean) - signal * mean) @ w).mT  # (batch, d, N)
    if len(kind) == 1:  # sequences side by side, one factorisation for all
        solved = torch.cholesky_solve(residual.permute(1, 2, 0), factor[0]).permute(2, 0, 1)
    else:
        solved = torch.cholesky_solve(residual[..., None], factor[which])[..., 0]
    return -(solved.mT @ w.T).to(v)


def _kinds(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each kind of levels, (P,), and which kind a row is, (batch,)."""
    kinds, which = levels.detach().flatten(1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(levels), device=levels.device)
    first = torch.full_like(rows[: len(kinds)], len(levels))
    return first.scatter_reduce(0, which, rows, "amin"), which


def _factor(matrices: Tensor) -> Tensor:
    """Cholesky's factors (..., N, N); a pivot that is rounding is refused as a negative one is."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    pivots, own = factor.detach().diagonal(dim1=-2, dim2=-1), matrices.detach()
    allowed = gamma(own.shape[-1]) * own.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
    if failed.any() or (pivots.amin(dim=-1) ** 2 <= allowed).any():
        raise NotPSDError(
            "the covariance of frames noised each in its own measure is singular to rounding: the"
            " process is too smooth for steps of 0; make them larger, or add a nugget"
            " (covariance.conditioned)"
        )
    return factor


def _on(device: torch.device, part: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return tuple(x.to(device) for x in part) if isinstance(part, tuple) else part.to(device)
