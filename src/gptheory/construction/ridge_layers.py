"""Layers whose heads have size one and whose ReLUs share one direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..support.precision import full_precision


class SizeOneAttention(nn.Module):
    r"""Softmax attention with heads of size one, added to its input.

    .. math:: y_j + \sum_h o_h \sum_k \mathrm{softmax}_k\big((q_h^\top y_j + b_h)\,
              k_h^\top y_k\big)\; v_h^\top y_k

    If a query is far from zero the softmax picks the token with the largest key (or, for a negative
    query, the smallest): in float64 it *is* the hard maximum once logits differ by 746, where the
    exponential is exactly zero. The bias of the query stands in the proof (E.5) and not in the
    definition of attention (2.6). Source: HWLSL Lemma E.4.

    Args:
        query, key, value, output: (heads, d).
        bias: of the queries, (heads,).
        label: what the layer is for, in words.
    """

    def __init__(
        self, query: Tensor, bias: Tensor, key: Tensor, value: Tensor, output: Tensor, label: str
    ) -> None:
        super().__init__()
        self.query, self.bias = nn.Parameter(query), nn.Parameter(bias)
        self.key, self.value, self.output = (nn.Parameter(w) for w in (key, value, output))
        self.label = label

    @full_precision()
    def forward(self, y: Tensor) -> Tensor:
        """(batch, L, d) -> (batch, L, d)."""
        query, key, value = (
            (y @ weight.T).transpose(1, 2) for weight in (self.query, self.key, self.value)
        )  # (batch, heads, L)
        logits = (query + self.bias[:, None])[..., None] * key[:, :, None]
        mixed = logits.softmax(dim=-1) @ value[..., None]  # (batch, heads, L, 1)
        return y + mixed[..., 0].transpose(1, 2) @ self.output


@dataclass(frozen=True)
class Units:
    r"""A piecewise linear function of one number, :math:`\sum_k a_k \mathrm{relu}(s_k x - c_k)`.

    Attributes:
        signs: s_k, 1 or -1.
        knots: c_k.
        slopes: a_k.
    """

    signs: tuple[float, ...]
    knots: tuple[float, ...]
    slopes: tuple[float, ...]


class RidgeFeedForward(nn.Module):
    r"""One hidden layer of at most four ReLUs along one direction, added to its input.

    .. math:: y + w \sum_{k \le 4} a_k\,\mathrm{relu}(s_k u^\top y - c_k)

    is a feed-forward layer with :math:`W_1 = s u^\top` and :math:`W_2 = w a^\top`. The second is
    kept as a product: the sum over k cancels exactly, where w is eight digits long and the sum is 0
    or 1, and entry by entry it would not. Source: HWLSL Lemma E.5; HWLSL Lemma E.7.

    Args:
        read: u, (d,).
        units: s, c and a.
        write: w, (d,).
        label: what the layer is for, in words.
    """

    def __init__(self, read: Tensor, units: Units, write: Tensor, label: str) -> None:
        super().__init__()
        signs, knots, slopes = torch.tensor(
            [units.signs, units.knots, units.slopes], dtype=torch.float64
        )
        self.up, self.up_bias = nn.Parameter(signs[:, None] * read), nn.Parameter(-knots)
        self.slopes, self.write = nn.Parameter(slopes), nn.Parameter(write)
        self.label = label

    @full_precision()
    def forward(self, y: Tensor) -> Tensor:
        """(batch, L, d) -> (batch, L, d)."""
        hidden = torch.relu(nn.functional.linear(y, self.up, self.up_bias))
        return y + (hidden @ self.slopes)[..., None] * self.write


# ---- the five activations of the proof, with ramps where they jump ------------------------------


def cleared(floor: float, ramp: float) -> Units:
    r"""ζ₁: :math:`-x - J` outside [0, 1), so that x becomes −J; zero inside."""
    below, above = floor / ramp, (1 + floor) / ramp
    return Units(
        signs=(-1, -1, 1, 1),
        knots=(0, ramp, 1 - ramp, 1),
        slopes=(1 - below, below, -above, above - 1),
    )


def floored(start: float, width: float, ramp: float) -> Units:
    r"""ζ₂: :math:`\mathrm{start} - x` in [start, start + width), so that x becomes its start."""
    end = start + width
    steep = width / ramp
    return Units(
        signs=(1, 1, 1, 1), knots=(start, end, end - ramp, end), slopes=(-1, 1, steep, -steep)
    )


def outside(low: float, high: float, ramp: float) -> Units:
    """ζ₃: one outside [low, high], zero inside."""
    knots = (-low, ramp - low, high, high + ramp)
    return Units((-1, -1, 1, 1), knots, tuple(s / ramp for s in (1, -1, 1, -1)))


def negative_part() -> Units:
    r"""ζ₄: :math:`\mathrm{relu}(-x)`."""
    return Units((-1,), (0,), (1,))


def bump(centre: float, width: float) -> Units:
    """ζ₅: one within a quarter of the width of its centre, zero beyond half of it."""
    knots = tuple(centre + width * k for k in (-0.5, -0.25, 0.25, 0.5))
    return Units((1, 1, 1, 1), knots, tuple(s * 4 / width for s in (1, -1, -1, 1)))
