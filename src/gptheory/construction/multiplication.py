r"""Multiplication of a scalar and a vector that live in the same token.

**By feed-forward layers**, to 4^−m in the depth m. On [0, 1] the parabola is the diagonal minus a
sum of teeth, :math:`z^2 = z - \sum_{k\ge1} 4^{-k} g_k(z)`, where
:math:`g_1(z) = 2z - 4\,\mathrm{relu}(z - \tfrac12)` is a hat and :math:`g_{k+1} = g_1 \circ g_k`.
The first m teeth give the line through :math:`2^m + 1` points of the parabola, off by at most
:math:`4^{-(m+1)}`, and a product is a difference of two squares (Yarotsky 2017).

**By attention**, exactly. If every token holds the same scalar z >= 0, a head whose query is z and
whose key is a coordinate x scores relu(z x_j) = z relu(x_j) at token j, whatever the other token;
averaging the constant 1 with these scores, and once more for −x, gives z x_j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .builders import AttentionBuilder, FeedForwardBuilder
from .layers import Attention, Block
from .subspaces import Subspaces

TEETH = "teeth"  # the subspace that holds g_k of every square under way


@dataclass(frozen=True)
class Product:
    r"""``target += coefficient * scalar * vector``, for names of subspaces.

    The error is at most :math:`|\mathrm{coefficient}|\, R_s R_v\, 4^{-(m+1)}` for each entry, while
    :math:`|\mathrm{scalar}| \le R_s` and :math:`|\mathrm{vector}| \le R_v`; a factor 0 gives 0.
    Source: FDGWC Theorem 1.

    Attributes:
        scalar, vector, target: subspaces; the first of size 1, the others of one size.
        scalar_range, vector_range: R_s and R_v.
        coefficient: a constant.
    """

    scalar: str
    vector: str
    target: str
    scalar_range: float
    vector_range: float
    coefficient: float = 1.0

    @property
    def label(self) -> str:
        """The product in words."""
        return f"{self.scalar} * {self.vector}"


def multiplication_blocks(
    spaces: Subspaces, products: Sequence[Product], depth: int
) -> list[Block]:
    """``depth`` blocks without heads that carry out all products at once.

    The buffer ``"teeth"`` is zero before and after. The first block's limits hold the ranges.
    """
    blocks = []
    for level in range(1, depth + 1):
        layer, first = FeedForwardBuilder(spaces), 0
        for product in products:
            size = spaces[product.vector].stop - spaces[product.vector].start
            for sign in (1.0, -1.0):
                teeth = _rows(spaces, first, size)
                if level == 1:
                    _first_level(layer, product, sign, teeth, size, keep=depth > 1)
                else:
                    _next_level(layer, product, sign, teeth, size, level, keep=level < depth)
                first += size
        words = ", ".join(product.label for product in products)
        label = f"multiply {level}/{depth}: {words}"
        limits = _limits(spaces, products) if level == 1 else None
        blocks.append(Block(Attention.without_heads(spaces.width), layer.build(), label, limits))
    return blocks


def attention_multiplication(
    spaces: Subspaces, products: Sequence[Product], seq_len: int
) -> list[Block]:
    """One block that carries out all products exactly, two heads for each entry of each vector.

    Every token must hold the same scalar, not negative, and 1 in the subspace ``"one"``; the ranges
    of the products do not matter.
    """
    attention = AttentionBuilder(spaces)
    one = torch.ones(1, 1, dtype=torch.float64)
    for product in products:
        size = spaces[product.vector].stop - spaces[product.vector].start
        for entry, unit in enumerate(torch.eye(size, dtype=torch.float64)):
            for sign in (1.0, -1.0):
                attention.add(
                    f"{product.label} [{entry}] ({'+' if sign > 0 else '-'})",
                    query={product.scalar: one},
                    key={product.vector: sign * unit[None]},
                    value={"one": one / seq_len},
                    write={product.target: sign * product.coefficient * unit[:, None]},
                )
    label = "multiply exactly: " + ", ".join(product.label for product in products)
    return [Block(attention.build(), FeedForwardBuilder(spaces).build(), label)]


def _first_level(
    layer: FeedForwardBuilder, product: Product, sign: float, teeth: Tensor, size: int, keep: bool
) -> None:
    """Hidden units relu(±z) and relu(±z − 1/2), z = (scalar/R_s + sign · vector/R_v) / 2.

    |z| is the sum of the first two, and the hat is 2|z| − 4 times the sum of the others.
    """
    identity = torch.eye(size, dtype=torch.float64)
    half_scalar = torch.full((size, 1), 0.5 / product.scalar_range, dtype=torch.float64)
    half_vector = sign * 0.5 / product.vector_range * identity
    signs = (1.0, -1.0, 1.0, -1.0)
    read = {
        product.scalar: torch.cat([s * half_scalar for s in signs]),
        product.vector: torch.cat([s * half_vector for s in signs]),
    }
    bias = torch.cat([torch.zeros(2 * size), torch.full((2 * size,), -0.5)])
    scale = sign * product.coefficient * product.scalar_range * product.vector_range
    # z² ≈ |z| − hat / 4
    square = torch.cat([f * scale * identity for f in (0.5, 0.5, 1.0, 1.0)], dim=1)
    write = {product.target: square}
    if keep:
        write[TEETH] = teeth @ torch.cat([f * identity for f in (2.0, 2.0, -4.0, -4.0)], dim=1)
    layer.add(f"{product.label} ({'+' if sign > 0 else '-'})", read, bias, write)


def _next_level(
    layer: FeedForwardBuilder,
    product: Product,
    sign: float,
    teeth: Tensor,
    size: int,
    level: int,
    keep: bool,
) -> None:
    """Hidden units relu(g) and relu(g − 1/2): the next tooth corrects the square, replaces g."""
    identity = torch.eye(size, dtype=torch.float64)
    bias = torch.cat([torch.zeros(size), torch.full((size,), -0.5)])
    scale = sign * product.coefficient * product.scalar_range * product.vector_range
    correction = torch.cat([-2.0 * identity, 4.0 * identity], dim=1) * (scale / 4**level)
    change = (1.0, -4.0) if keep else (-1.0, 0.0)  # g ← 2 relu(g) − 4 relu(g − 1/2), or g ← 0
    write = {
        product.target: correction,
        TEETH: teeth @ torch.cat([f * identity for f in change], dim=1),
    }
    label = f"{product.label} ({'+' if sign > 0 else '-'})"
    layer.add(label, {TEETH: torch.cat([teeth.T, teeth.T])}, bias, write)


def _rows(spaces: Subspaces, first: int, size: int) -> Tensor:
    """(teeth, size): places a vector in the buffer from coordinate ``first`` on."""
    buffer = spaces[TEETH].stop - spaces[TEETH].start
    return torch.eye(buffer, dtype=torch.float64)[:, first : first + size]


def _limits(spaces: Subspaces, products: Sequence[Product]) -> Tensor:
    limits = torch.full((spaces.width,), math.inf, dtype=torch.float64)
    for product in products:
        for name, largest in (
            (product.scalar, product.scalar_range),
            (product.vector, product.vector_range),
        ):
            limits[spaces[name]] = torch.clamp(limits[spaces[name]], max=largest)
    return limits
