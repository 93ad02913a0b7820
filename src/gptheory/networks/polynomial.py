"""A trained diffusion transformer whose softmax is exchanged for a polynomial."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..attention import layer
from ..attention.exponential import exp_polynomial
from ..attention.polynomial import SMALLEST_RADIUS
from ..support.validation import require_count
from ..support.wrappers import uncompiled
from .dit import DiT

MARGIN = 1 + 1e-5  # logits are rounded


class PolynomialAttention(layer.Attention):
    r"""Attention with weights :math:`p(l_{ij}/2)^2`, normalised, for :math:`e^{l_{ij}}`.

    p is the minimax polynomial of degree g/2 on half the range of the logits: their square has
    degree g and is positive everywhere. (This is scaling and squaring, as for the exponential of a
    matrix: its rounding is of order :math:`u\,e^R`, where a polynomial on the whole range would
    have :math:`u\,e^{2R}`.) With ε the error of p, a row of the map is that of a polynomial of
    error :math:`2\varepsilon/(1+\varepsilon^2)`, hence off by at most 2ε in the sum of absolute
    values.

    Keys are centred first: a constant added to the logits of a row does not change softmax.

    Args:
        trained: the layer whose weights are used (shared, not copied).
        degree: g, even.
        radius: R; by default the largest logit of the batch at hand.
    """

    def __init__(self, trained: layer.Attention, degree: int, radius: float | None = None) -> None:
        require_count("degree", degree, minimum=0)
        if degree % 2:
            raise ValueError(f"degree must be even, got {degree}: the weights are squares")
        if trained.kind != "softmax":
            raise ValueError(f"only softmax attention can be exchanged, got {trained.kind!r}")
        torch.nn.Module.__init__(self)
        self.heads, self.kind, self.fused = trained.heads, "polynomial", False
        self.project, self.output = trained.project, trained.output
        self.degree, self.radius = degree, radius

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Those of softmax attention with centred keys."""
        return super().logits(query, key - key.mean(dim=-2, keepdim=True))

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape; evaluated in float64.

        Raises:
            ValueError: for logits beyond the radius, or an error that is not below 1.
        """
        largest = logits.detach().abs().max().item() if len(logits) else 0.0
        reach = max(largest, SMALLEST_RADIUS) * MARGIN
        if self.radius is not None and reach > self.radius * MARGIN:
            raise ValueError(f"logits reach {reach:.4g}, the radius is {self.radius:.4g}")
        root = exp_polynomial(self.degree // 2, (self.radius or reach) / 2)
        weights = root(logits.double() / 2) ** 2
        return (weights / weights.sum(dim=-1, keepdim=True)).to(logits)


def with_polynomial_attention(network: DiT, degree: int, radius: float | None = None) -> DiT:
    """A copy of a network with :class:`PolynomialAttention` in every block.

    Args:
        network: trained with softmax attention.
        degree, radius: see :class:`PolynomialAttention`.

    Returns:
        The copy, a score (v, t) like the network; it refuses what its polynomials refuse.
    """
    swapped = copy.deepcopy(uncompiled(network))
    for block in swapped.blocks:
        block.attention = PolynomialAttention(block.attention, degree, radius)
    return swapped
