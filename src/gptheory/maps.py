r"""Maps from frames to frames, beside the kernel: attention maps, and what a denoiser does.

A map has the shape (…, N (receives), N (is read)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .diffusion import alpha, sigma
from .precision import full_precision
from .process import GaussianProcess
from .rounding import gamma
from .score import Score, denoise
from .validation import require_finite, require_floating, require_positive, require_sequences

JACOBIAN_TOKENS = 2**17  # frames that go through a network at a time


@full_precision()
def denoising_operator(covariance: Tensor, t: float) -> Tensor:
    r"""The mixing of frames that denoises,
    :math:`W_t = \Gamma(\alpha_t^2\Gamma + \sigma_t^2 I)^{-1}`.

    For Σ = I the best guess of x is :math:`\alpha_t W_t v_t`. Where there is little signal it is
    nearly Γ; it sharpens as t falls, and where there is little noise it is nearly the identity.

    Args:
        covariance: Γ, (N, N), or that of anything else that is noised.
        t: diffusion step > 0.

    Returns:
        (N, N), dtype and device of Γ.

    Raises:
        ValueError: for a matrix that is not square, or a step that is not > 0.
    """
    require_positive("the diffusion step t", t)
    require_floating("covariance", covariance)
    require_finite("covariance", covariance)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"expected a square covariance, got shape {tuple(covariance.shape)}")
    noise = sigma(t) ** 2 * torch.eye(
        len(covariance), dtype=covariance.dtype, device=covariance.device
    )
    return torch.linalg.solve(alpha(t) ** 2 * covariance + noise, covariance)  # the two commute


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
    index = torch.arange(maps.shape[-1], device=maps.device)
    lag = (index[:, None] - index).abs().to(maps)
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
    return torch.stack([maps.diagonal(m, -2, -1).mean(dim=-1) for m in range(1 - n, n)], dim=-1)


def denoiser_jacobian(score: Score, v: Tensor, t: float) -> Tensor:
    r"""Derivative of a score's denoiser at each v, :math:`\partial\hat x / \partial v`.

    Args:
        score: a score whose sequences do not see each other, differentiable in v.
        v: (batch, N, d).
        t: diffusion step > 0.

    Returns:
        (batch, N·d, N·d), dtype and device of v. That of the exact score is
        :func:`exact_jacobian`, at every v.

    Raises:
        ValueError: for a wrong shape or step.
    """
    require_sequences("v", v)
    size = v[0].numel()
    units = torch.eye(size, dtype=v.dtype, device=v.device).unflatten(1, v.shape[1:])
    jacobians = v.new_empty(len(v), size, size)
    for point, jacobian in zip(v.detach(), jacobians, strict=True):
        rows = jacobian.split(max(1, JACOBIAN_TOKENS // v.shape[1]))
        for some, out in zip(units.split(len(rows[0])), rows, strict=True):
            at = point.expand_as(some).clone().requires_grad_()  # one copy for each row
            with torch.enable_grad():
                clean = denoise(score, at, t)
            with full_precision():
                out.copy_(torch.autograd.grad(clean, at, some)[0].flatten(1))
    return jacobians


def exact_jacobian(process: GaussianProcess, t: float) -> Tensor:
    r""":math:`\alpha_t C(\alpha_t^2 C + \sigma_t^2 I)^{-1}` with :math:`C = \Gamma\otimes\Sigma`.

    Returns:
        (N·d, N·d) in float64, dense.
    """
    return alpha(t) * denoising_operator(process.covariance(), t)


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
