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
from .subspaces import Map, Subspaces

TEETH = "teeth"  # the subspace that holds g_k of every square under way


@dataclass(frozen=True)
class Product:
    r"""``target += coefficient * scalar * vector``, for names of subspaces.

    The error is at most :math:`|\mathrm{coefficient}|\, R_s R_v\, 4^{-(m+1)}` for each entry, while
    :math:`|\mathrm{scalar}| \le R_s` and :math:`|\mathrm{vector}| \le R_v`; a factor 0 gives 0.
    Source: FDGWC Theorem 1; FDGWC Corollary 3.

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
    blocks, rows = [], torch.eye(spaces.size(TEETH), dtype=torch.float64)
    for level in range(1, depth + 1):
        layer, first = FeedForwardBuilder(spaces), 0
        for product in products:
            size = spaces.size(product.vector)
            for sign in (1.0, -1.0):
                teeth = rows[:, first : first + size]  # (teeth, size)
                _add_level(layer, product, sign, teeth, level, keep=level < depth)
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
        units = torch.eye(spaces.size(product.vector), dtype=torch.float64)
        for entry, unit in enumerate(units):
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


def _add_level(
    layer: FeedForwardBuilder, product: Product, sign: float, teeth: Tensor, level: int, keep: bool
) -> None:
    """Hidden units that take the next tooth from a square, and put it in place of the last one.

    The first are relu(±z) and relu(±z − 1/2): |z| is the sum of the first two, and the hat is
    2|z| − 4 times the sum of the others. Later ones are relu(g) and relu(g − 1/2).
    """
    size = teeth.shape[1]
    scale = sign * product.coefficient * product.scalar_range * product.vector_range
    if level == 1:
        read = _signed_argument(product, sign, size)
        square, tooth = (0.5, 0.5, 1.0, 1.0), (2.0, 2.0, -4.0, -4.0)  # z² ≈ |z| − hat / 4
    else:
        read, scale = {TEETH: torch.cat([teeth.T, teeth.T])}, scale / 4**level
        # g ← 2 relu(g) − 4 relu(g − 1/2), or g ← 0
        square, tooth = (-2.0, 4.0), (1.0, -4.0) if keep else (-1.0, 0.0)
    half = len(square) // 2 * size
    bias = torch.cat([torch.zeros(half), torch.full((half,), -0.5)])
    identity = torch.eye(size, dtype=torch.float64)
    write = {product.target: torch.cat([f * scale * identity for f in square], dim=1)}
    if keep or level > 1:
        write[TEETH] = teeth @ torch.cat([f * identity for f in tooth], dim=1)
    layer.add(f"{product.label} ({'+' if sign > 0 else '-'})", read, bias, write)


def _signed_argument(product: Product, sign: float, size: int) -> Map:
    """z, −z, z, −z for z = (scalar/R_s + sign · vector/R_v) / 2."""
    half_scalar = torch.full((size, 1), 0.5 / product.scalar_range, dtype=torch.float64)
    half_vector = sign * 0.5 / product.vector_range * torch.eye(size, dtype=torch.float64)
    halves = {product.scalar: half_scalar, product.vector: half_vector}
    return {name: torch.cat([half, -half, half, -half]) for name, half in halves.items()}


def _limits(spaces: Subspaces, products: Sequence[Product]) -> Tensor:
    limits = torch.full((spaces.width,), math.inf, dtype=torch.float64)
    for product in products:
        factors = (product.scalar, product.scalar_range), (product.vector, product.vector_range)
        for name, largest in factors:
            limits[spaces[name]] = torch.clamp(limits[spaces[name]], max=largest)
    return limits
