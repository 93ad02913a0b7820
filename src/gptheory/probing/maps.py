r"""Maps from frames to frames, beside the kernel: how alike they are, how far they reach.

A map has the shape (…, N (receives), N (is read)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data.covariance import diagonal_means, lags
from ..support.precision import full_precision
from ..support.rounding import gamma
from ..support.validation import require_finite, require_floating


@full_precision()
def off_diagonal_correlation(maps: Tensor, target: Tensor) -> Tensor:
    """Correlation of the entries off the diagonal of maps (…, N, N) with those of a target (N, N).

    The diagonal is left out, because there the residual connection can do the same.

    Returns:
        (…,) in float64; 0 where the map or the target is constant off the diagonal.
    """
    _require_maps(maps=maps, target=target)
    a, b = (_standardised(_off_diagonal(x), x.dtype) for x in (maps, target.to(maps.device)))
    return a @ b


@full_precision()
def explained(target: Tensor, maps: Tensor, diagonal: bool = True) -> float:
    r"""R² of a matrix on the maps of several heads: :math:`W \approx c_0 + \sum_h c_h A_h`.

    Args:
        target: (N, N), not constant.
        maps: (heads, N, N).
        diagonal: whether to compare the diagonal too; a network that keeps its input has it for
            free, and it dominates W_t as t falls.

    Returns:
        1 minus the share of the variance of the target's entries that the best c leave.
    """
    _require_maps(maps=maps, target=target)
    rows = [x.flatten(-2).double() if diagonal else _off_diagonal(x) for x in (maps, target)]
    regressors, w = rows[0].T, rows[1].to(rows[0])
    regressors, w = regressors - regressors.mean(dim=0), w - w.mean()
    # the pseudo-inverse, because two heads may have the same map
    rest = w - regressors @ (torch.linalg.pinv(regressors) @ w)
    return 1 - (rest.square().sum() / w.square().sum()).item()


def mean_lag(maps: Tensor) -> Tensor:
    r"""How far a map reaches, :math:`\sum_{ij} A_{ij}|i-j| / \sum_{ij} A_{ij}` frames.

    Takes (…, N, N) with entries >= 0, returns (…,). For uniform attention it is
    :math:`(N^2-1)/(3N)`.
    """
    _require_maps(maps=maps)
    lag = lags(maps.shape[-1], maps.device).to(maps)
    return (maps * lag).sum(dim=(-2, -1)) / maps.sum(dim=(-2, -1))


def contrast(maps: Tensor) -> Tensor:
    r"""How much clearer than uniform a map is, :math:`1 - H / \log N`, H the entropy of a row.

    Rows are scaled to sum to 1 first, and their contrasts averaged. Takes (…, N, N), N > 1, with
    entries >= 0; returns (…,): 0 for uniform rows, 1 for rows with a single entry.
    """
    _require_maps(maps=maps)
    rows = maps / maps.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(rows).sum(dim=-1).mean(dim=-1)
    return 1 - entropy / math.log(maps.shape[-1])


def lag_profile(maps: Tensor) -> Tensor:
    """Averages of maps (…, N, N) along their diagonals, (…, 2N − 1).

    Entry N − 1 + m belongs to lag m: frame i reads frame i + m.
    """
    _require_maps(maps=maps)
    n = maps.shape[-1]
    return diagonal_means(maps, range(1 - n, n))


def _require_maps(**maps: Tensor) -> None:
    for name, x in maps.items():
        require_floating(name, x, "(..., N, N)")
        if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"{name} must have shape (..., N, N), got {tuple(x.shape)}")
        require_finite(name, x)


def _standardised(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Vectors (…, n) with mean 0 and norm 1, or 0 where they are constant.

    That is, up to the rounding of a softmax in the dtype in which they were made, some 8 u, and of
    the mean, γ_n.
    """
    rest = x - x.mean(dim=-1, keepdim=True)
    size = rest.norm(dim=-1, keepdim=True)
    rounding = gamma(8, dtype) + gamma(x.shape[-1])
    return (rest / size).masked_fill(size <= rounding * x.norm(dim=-1, keepdim=True), 0)


def _off_diagonal(maps: Tensor) -> Tensor:
    """(…, N, N) -> (…, N(N − 1)) in float64."""
    off = ~torch.eye(maps.shape[-1], dtype=torch.bool, device=maps.device)
    return maps[..., off].double()
