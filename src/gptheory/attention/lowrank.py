r"""Polynomial attention of a network: map and gradients through their low rank, fit for training.

The same sums as :func:`.poly_attention`, for logits :math:`\langle q_i, k_j\rangle` that are known
to lie where P is positive, so that nothing has to be looked at. Forward,

.. math:: S = \sum_j k_j^\alpha\,[v_j, 1], \qquad
          [n_i, z_i] = \sum_\alpha q_i^\alpha\,w_\alpha S_\alpha, \qquad o_i = n_i / z_i .

Backward, with :math:`\delta_i = [g_i, -\langle g_i, o_i\rangle]/z_i` for the gradient g of o and
:math:`T = \sum_i q_i^\alpha \delta_i`, since
:math:`\partial_a q^{\beta + e_a} = (\beta_a + 1)\,q^\beta`,

.. math:: \nabla q_{ia} = \sum_{|\beta| < g} q_i^\beta\,(\beta_a + 1)\,w_{\beta+e_a}
          \langle S_{\beta + e_a}, \delta_i\rangle, \qquad
          \nabla [v_j, 1] = \sum_\alpha k_j^\alpha\,w_\alpha T_\alpha,

and for k as for q with T and :math:`[v_j, 1]`. So the monomials are computed twice, forward and
backward, never differentiated, and never kept: one chunk of tokens at a time.

Tensors are feature-major here, (…, h, N): a monomial of all tokens is a contiguous row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import Function

from ..support.precision import full_precision
from ..support.wrappers import lasting
from .polynomial import _alphas, _multinomials

CHUNK = 512  # tokens whose monomials are held at a time


def low_rank_attention(q: Tensor, k: Tensor, v: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    r""":math:`o_i = \sum_j P(\langle q_i, k_j\rangle)\,v_j / \sum_j P(\langle q_i, k_j\rangle)`.

    In time and memory linear in N, forward and backward, in full precision whatever the context;
    also under ``torch.func.vmap`` and ``torch.compile``. Differentiable once.

    Args:
        q, k, v: (…, h, N), (…, h, M) and (…, c, M), float32 or float64. P must be positive at all
            logits; this is not checked.
        coefficients: of P, from degree 0.

    Returns:
        (…, c, N).
    """
    with full_precision():
        return _Mixing.apply(q, k, v, coefficients)[0]


class _Mixing(Function):
    """(o, z, S) of the module's formulas; the first is what is asked for."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, coefficients: tuple[float, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        degree = len(coefficients) - 1
        state = _summary(k, with_ones(v), degree)
        read = _weighed(state, coefficients, q.shape[-2])
        sums = torch.cat([read @ rows for _, rows in _monomials(q, degree)], dim=-1)
        norm = sums[..., -1:, :]
        return sums[..., :-1, :] / norm, norm.clone(), state

    @staticmethod
    def setup_context(ctx: Function, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.coefficients = inputs[3]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Function, gradient: Tensor | None, *_unused: None) -> tuple:
        if gradient is None:
            return None, None, None, None
        with full_precision():
            return *_Gradient.apply(*ctx.saved_tensors, gradient, ctx.coefficients), None

    @staticmethod
    def vmap(info: object, in_dims: tuple, *inputs: object) -> tuple:
        return _Mixing.apply(*_batched(info, in_dims, inputs)), (0, 0, 0)


class _Gradient(Function):
    """(∇q, ∇k, ∇v) of the module's formulas. A function of its own, so that it can be vmapped."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, output: Tensor, norm: Tensor, state: Tensor,
        gradient: Tensor, coefficients: tuple[float, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        degree, dim = len(coefficients) - 1, q.shape[-2]
        gradient = gradient / norm
        moved = torch.cat([gradient, -(gradient * output).sum(dim=-2, keepdim=True)], dim=-2)
        state_of_queries = _summary(q, moved, degree)
        of_q = _slopes(q, moved, _weighed(state, coefficients, dim), degree)
        weighed = _weighed(state_of_queries, coefficients, dim)
        return of_q, *_slopes(k, with_ones(v), weighed, degree, values=True)

    @staticmethod
    def setup_context(ctx: Function, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Function, *_gradients: Tensor) -> tuple:
        raise RuntimeError("polynomial attention is differentiable once, not twice")

    @staticmethod
    def vmap(info: object, in_dims: tuple, *inputs: object) -> tuple:
        return _Gradient.apply(*_batched(info, in_dims, inputs)), (0, 0, 0)


def with_ones(v: Tensor) -> Tensor:
    """[v, 1], (…, c, N) -> (…, c + 1, N)."""
    return torch.cat([v, torch.ones_like(v[..., :1, :])], dim=-2)


def _batched(info: object, in_dims: tuple, inputs: tuple) -> tuple:
    """Inputs of a vmapped call with the mapped dimension in front: one more of the batch's."""
    *tensors, coefficients = inputs
    *dims, _ = in_dims
    moved = [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]
    return *moved, coefficients


def _monomials(x: Tensor, degree: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of tokens and their monomials (…, r, chunk), in the order of :func:`.monomials`.

    The rows are good until the next chunk.
    """
    dim, length = x.shape[-2:]
    rank = math.comb(dim + degree, degree)
    rows = x.new_empty(*x.shape[:-2], rank, min(CHUNK, length))
    for start in range(0, length, CHUNK):
        part = x[..., start : start + CHUNK]
        own = rows[..., : part.shape[-1]]
        _fill(own, part, degree)
        yield slice(start, start + CHUNK), own


def _fill(rows: Tensor, x: Tensor, degree: int) -> None:
    """All monomials of x (…, d, chunk) into rows (…, r, chunk); see :func:`.monomials`."""
    dim = x.shape[-2]
    rows[..., 0, :] = 1
    end = 1  # of the monomials so far
    for m in range(1, degree + 1):
        place = end
        for a in range(dim):
            # those of degree m - 1 in x_a, ..., x_d alone stand at the end
            count = math.comb(dim - a + m - 2, m - 1)
            torch.mul(
                x[..., a : a + 1, :], rows[..., end - count : end, :],
                out=rows[..., place : place + count, :],
            )  # fmt: skip
            place += count
        end = place


def _summary(x: Tensor, values: Tensor, degree: int) -> Tensor:
    """Σ_j values_j x_j^α, (…, c, r)."""
    total = 0.0
    for part, rows in _monomials(x, degree):
        total = total + values[..., part] @ rows.mT
    return total


def _slopes(
    x: Tensor, against: Tensor, weighed: Tensor, degree: int, values: bool = False
) -> tuple[Tensor, ...] | Tensor:
    """Σ_c against_c ∂_a Σ_α weighed_{cα} x^α, (…, d, N); with the sums without the last c, too."""
    dim, count = x.shape[-2], weighed.shape[-2]
    index, powers = _derivatives(dim, degree, x.dtype, x.device)
    slopes = (weighed[..., index] * powers).unflatten(-1, (dim, -1)).flatten(-3, -2)
    lower = slopes.shape[-1]
    found, sums = torch.empty_like(x), []
    for part, rows in _monomials(x, degree):
        each = (slopes @ rows[..., :lower, :]).unflatten(-2, (count, dim))
        found[..., part] = (each * against[..., None, part]).sum(dim=-3)
        if values:
            sums.append(weighed[..., :-1, :] @ rows)
    return (found, torch.cat(sums, dim=-1)) if values else found


def _weighed(state: Tensor, coefficients: tuple[float, ...], dim: int) -> Tensor:
    """w_α S_α, same shape."""
    return state * _weights(dim, coefficients, state.dtype, state.device)


@lru_cache(maxsize=64)
@lasting
def _weights(
    dim: int, coefficients: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """w_α = c_m m!/α!, (r,)."""
    degrees, counts = _multinomials(dim, len(coefficients) - 1)
    factors = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
    return (factors[degrees] * counts).to(device, dtype)


@lru_cache(maxsize=64)
@lasting
def _derivatives(
    dim: int, degree: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of every a and every β of degree below g: the place of β + e_a, and β_a + 1; (d r',)."""
    places = {alpha: place for place, alpha in enumerate(_alphas(dim, degree))}
    lower = [alpha for alpha in places if len(alpha) < degree]
    index = [places[tuple(sorted((*beta, a)))] for a in range(dim) for beta in lower]
    powers = [beta.count(a) + 1 for a in range(dim) for beta in lower]
    return (
        torch.tensor(index, dtype=torch.int64, device="cpu").to(device),
        torch.tensor(powers, dtype=torch.float64, device="cpu").to(device, dtype),
    )
