r"""Attention in almost-linear time: a polynomial for the exponential, a low rank for the map.

With :math:`P(s) = \sum_m c_m s^m` close to :math:`e^s`, and :math:`q^\alpha` the monomials of
degree at most g in the d entries of a query,

.. math:: P(\lambda\langle q, k\rangle) = \sum_{|\alpha| \le g} w_\alpha\,q^\alpha k^\alpha, \qquad
          w_\alpha = c_{|\alpha|}\,\lambda^{|\alpha|}\,\frac{|\alpha|!}{\alpha!}.

The L × L map is a product of two L × r matrices, :math:`r = \binom{d+g}{g}`, and need not be
formed: one pass over the keys sums :math:`k_j^\alpha [v_j, 1]`, one over the queries reads it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, combinations_with_replacement

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..support.precision import full_precision
from ..support.validation import (
    require_count,
    require_finite,
    require_floating,
    require_one_device,
    require_one_of,
)
from ..support.wrappers import lasting
from .exponential import ExpPolynomial, exp_polynomial

CHUNK = 512  # tokens whose monomials are held at a time: they stay in the cache
BEYOND = ("raise", "warn")
SMALLEST_RADIUS = 1e-3  # queries or keys that are zero still need an interval


class BeyondRangeWarning(UserWarning):
    """Logits may leave the range on which the polynomial is certified."""


class DenseIsCheaperWarning(UserWarning):
    """The rank exceeds the number of keys, so that the L × L map is smaller."""


@full_precision()
def poly_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    degree: int,
    scale: float | None = None,
    radius: float | None = None,
    kind: str = "minimax",
    beyond: str = "raise",
    chunk: int = CHUNK,
) -> Tensor:
    r"""Softmax attention with P for the exponential, in time O(L r (d + d_v)),

    .. math:: o_i = \frac{\sum_j P(\lambda\langle q_i, k_j\rangle)\,v_j}
                         {\sum_j P(\lambda\langle q_i, k_j\rangle)}.

    Source: HWLSL Problem 2; HWLSL Proposition 4.2; HWLSL Lemma G.3.

    Differentiable, P being held fixed; the backward pass recomputes the monomials chunk by chunk,
    so that it too needs memory for the inputs, the output and one chunk only.

    Args:
        q: queries (..., L, dim), float32 or float64.
        k, v: keys (..., M, dim) and values (..., M, d_v); often M = L.
        degree: g of the polynomial.
        scale: λ; by default 1 / dim as in Alman and Song 2023, whose theorem the paper cites. The
            paper itself prints no scale (λ = 1); torch takes dim^{-1/2}.
        radius: R such that all logits lie in [−R, R]; by default :func:`logit_bound`. A given one
            is checked; either way the data are looked at, which stalls an accelerator.
        kind: of polynomial, see :func:`.exp_polynomial`.
        beyond: what to do where logits may exceed ``radius``: ``"raise"`` or ``"warn"``.
        chunk: tokens a pass takes at a time.

    Returns:
        (..., L, d_v), dtype and device of q.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, entries that are not finite,
            arguments out of range, logits beyond the range, or a polynomial whose error, rounding
            included, is not below 1.

    Warns:
        DenseIsCheaperWarning: where r > M.
        BeyondRangeWarning: if asked for.

    Accuracy: within ``exp_polynomial(...).error_bound`` × the largest \|v\| of softmax attention;
    on top of it rounding, of order :math:`u\,e^{2R}`. Both hold in every context, also under
    autocast and with a lower precision of products (see :mod:`gptheory.support.precision`).
    """
    require_attention(q, k, v)
    scale = 1 / q.shape[-1] if scale is None else float(scale)
    polynomial = _certified(q, k, scale, degree, radius, kind, beyond)
    require_count("chunk", chunk)
    weights = _weights(q.shape[-1], polynomial, scale).to(q)[:, None]
    if len(weights) > k.shape[-2]:
        warnings.warn(
            f"the rank {len(weights)} of dimension {q.shape[-1]} and degree {degree} exceeds the"
            f" {k.shape[-2]} keys: dense attention is cheaper",
            DenseIsCheaperWarning,
            stacklevel=3,  # past the guard
        )
    state = 0.0
    for keys, values in zip(k.split(chunk, -2), v.split(chunk, -2), strict=True):
        state = state + _lean(_summarise, keys, values, polynomial.degree)
    if not torch.isfinite(state).all():  # queries and keys are finite; to look at v costs more
        require_finite("v", v)
    state = weights * state  # (..., r, d_v + 1)
    blocks = (_lean(_read, queries, state, polynomial.degree) for queries in q.split(chunk, -2))
    if torch.is_grad_enabled() and (state.requires_grad or q.requires_grad):
        return torch.cat(list(blocks), dim=-2)
    output = q.new_empty(*q.shape[:-1], v.shape[-1])
    for place, block in zip(output.split(chunk, -2), blocks, strict=True):
        place.copy_(block)
    return output


def monomials(x: Tensor, degree: int) -> Tensor:
    r"""All monomials :math:`x^\alpha`, :math:`|\alpha| \le g`, of each token, feature-major.

    In the order of their degree, then lexicographic. Those of degree m + 1 that begin with
    :math:`x_a` are :math:`x_a` times those of degree m in :math:`x_a, \dots, x_d`, which lie
    together at the end: one product of contiguous slices for each a.

    Args:
        x: (..., L, d).
        degree: g >= 0.

    Returns:
        (..., r, L).
    """
    rows = x.transpose(-1, -2)
    level = torch.ones_like(rows[..., :1, :])
    levels, starts = [level], [0] * rows.shape[-2]
    for _ in range(degree):
        parts = [rows[..., a, None, :] * level[..., s:, :] for a, s in enumerate(starts)]
        ends = accumulate(part.shape[-2] for part in parts)
        level, starts = torch.cat(parts, dim=-2), [0, *ends][:-1]
        levels.append(level)
    return torch.cat(levels, dim=-2)


@full_precision()
def logit_bound(q: Tensor, k: Tensor, scale: float) -> float:
    r"""A bound on all logits, :math:`|\lambda| \max_i \|q_i\| \max_j \|k_j\|`, in one pass.

    It never exceeds :math:`B^2`, where entries are at most B in size and λ = 1/d
    (Cauchy-Schwarz); with the λ = 1 of the paper it may be :math:`d B^2`.

    Args:
        q, k: (..., L, dim) and (..., M, dim).
        scale: λ.

    Returns:
        The bound; NaN or infinite where an entry is.
    """
    require_comparable(q=q, k=k)
    norms = [[y.norm(dim=-1).amax() for y in x.detach().split(CHUNK, -2)] for x in (q, k)]
    product = abs(scale) * math.prod(torch.stack(each).amax().item() for each in norms)
    return product * (1 + 4 * q.shape[-1] * torch.finfo(q.dtype).eps)  # the norms are rounded


def _summarise(keys: Tensor, values: Tensor, degree: int) -> Tensor:
    """Σ_j k_j^α [v_j, 1], (..., r, d_v + 1)."""
    ones = torch.ones_like(values[..., :1])
    return monomials(keys, degree) @ torch.cat([values, ones], dim=-1)


def _read(queries: Tensor, state: Tensor, degree: int) -> Tensor:
    """The quotient of the two sums, (..., chunk, d_v)."""
    sums = monomials(queries, degree).transpose(-1, -2) @ state
    return sums[..., :-1] / sums[..., -1:]


def _lean(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call a function of tensors; what its backward pass needs is computed again, not kept."""
    if torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in arguments):
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return function(*arguments)


def _weights(dim: int, polynomial: ExpPolynomial, scale: float) -> Tensor:
    """w_α in the order of :func:`monomials`, (r,) float64."""
    degrees, counts = _multinomials(dim, polynomial.degree)
    factors = [c * scale**m for m, c in enumerate(polynomial.coefficients)]
    return torch.tensor(factors, dtype=torch.float64, device="cpu")[degrees] * counts


@lru_cache(maxsize=32)
@lasting
def _multinomials(dim: int, degree: int) -> tuple[Tensor, Tensor]:
    """Of every α: its degree m, and m!/α!, the number of ways to order its factors."""
    alphas = _alphas(dim, degree)
    counts = [
        math.factorial(len(a)) // math.prod(math.factorial(a.count(i)) for i in set(a))
        for a in alphas
    ]
    degrees = torch.tensor([len(a) for a in alphas], device="cpu")
    return degrees, torch.tensor(counts, dtype=torch.float64, device="cpu")


def _alphas(dim: int, degree: int) -> list[tuple[int, ...]]:
    """Every α in the order of :func:`monomials`, as the sorted tuple of its factors."""
    return [a for m in range(degree + 1) for a in combinations_with_replacement(range(dim), m)]


def _certified(
    q: Tensor, k: Tensor, scale: float, degree: int, radius: float | None, kind: str, beyond: str
) -> ExpPolynomial:
    """The polynomial for these logits, or the reason why there is none."""
    require_one_of("beyond", beyond, BEYOND)
    reach = logit_bound(q, k, scale)
    if not math.isfinite(reach):
        raise ValueError("queries and keys must be finite, got NaN or infinite entries")
    if radius is None:
        radius = max(reach, SMALLEST_RADIUS)
    polynomial = exp_polynomial(degree, radius, kind)
    error = polynomial.relative_error + polynomial.rounding(q.dtype)
    if not error < 1:
        raise ValueError(
            f"the relative error on [-{radius:.4g}, {radius:.4g}] in {q.dtype} is {error:.3g} with"
            " rounding, expected below 1: use float64, or scale queries and keys down"
        )
    if reach > radius * (1 + 8 * q.shape[-1] * torch.finfo(q.dtype).eps):
        message = (
            f"logits may reach {reach:.4g}, the polynomial is certified up to {radius:.4g} only:"
            " give a larger radius, or scale queries and keys down"
        )
        if beyond == "raise":
            raise ValueError(f'{message}; beyond="warn" goes on without a guarantee')
        warnings.warn(message, BeyondRangeWarning, stacklevel=4)
    return polynomial


def require_comparable(**tensors: Tensor) -> None:
    """Raise unless all tensors, given by name, are floating point and on one device."""
    require_one_device(**tensors)
    for name, x in tensors.items():
        require_floating(name, x)


def require_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless queries, keys and values fit together: shapes, dtypes and devices."""
    require_comparable(q=q, k=k, v=v)
    if q.dtype not in (torch.float32, torch.float64) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k and v must all be float32 or all float64, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    fits = q.ndim == k.ndim == v.ndim >= 2 and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    if (
        not (fits and q.numel() and k.numel())
        or q.shape[-1] != k.shape[-1]
        or k.shape[-2] != v.shape[-2]
    ):
        raise ValueError(
            "expected q (..., L, dim), k (..., M, dim) and v (..., M, d_v), got"
            f" {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
