r"""Theorem 3.1 of Hu et al. as weights: a transformer that looks its answer up.

The proof approximates a function on :math:`[0, 1]^{d\times L}` by one that is constant on the
cubes of a grid of width δ, and the constants by a network with heads of size one and feed-forward
layers of four ReLUs, in three parts (Yun et al. 2020):

1. **quantisation**, d/δ + d feed-forward layers: a coordinate becomes the lower end of its cell, or
   −J if it lies outside the cube; then the positions E are added, so that token j lives in
   :math:`[j-1, j)^d`;
2. **contextual mapping**, :math:`L\delta^{-d} + 1` attention layers: selective shifts, after which
   the number :math:`u^\top y_j`, the *id* of token j, tells the token and the whole sequence;
3. **values**, :math:`1 + d + L\delta^{-dL}` feed-forward layers: one for each id, which puts the
   answer in place of what it finds there.

Everything on the grid is a multiple of δ below 2^53, so float64 holds it exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..support.precision import full_precision
from ..support.validation import require_count, require_finite, require_sequences
from . import ridge_layers as ridge
from .ridge_layers import RidgeFeedForward, SizeOneAttention

MOST_LAYERS = 2**14  # of the third part, one for each id; so few that ids are below 2^53 δ
QUANTISER_RAMP = 2.0**-20  # of a cell: the share of a cell in which a quantiser is on its way


class ContextualTransformer(nn.Module):
    r"""Quantisation, contextual mapping and values, called as a function of sequences.

    Source: HWLSL Theorem 3.1.

    Made by :func:`build_contextual_transformer`. It computes in float64.

    Attributes:
        quantiser, contextual, values: the layers of the three parts, (batch, L, d) to the same.
        position: E, (L, d).
        direction: u, (d,).
        spacing: δ.
        id_range: (t_l, t_r), where the ids of sequences inside the cube lie, and no others.
        seq_len, dim: L and d.
    """

    def __init__(self, seq_len: int, dim: int, cells: int, low: float, high: float) -> None:
        super().__init__()
        self.seq_len, self.dim, self.low, self.high = seq_len, dim, low, high
        self.spacing = 1 / cells
        powers = cells ** torch.arange(dim, dtype=torch.float64)
        positions = torch.arange(seq_len, dtype=torch.float64)[:, None].expand(seq_len, dim)
        self.direction = nn.Parameter(powers)
        self.position = nn.Parameter(positions.clone())
        self.id_range = _id_range(seq_len, dim, cells)
        self.quantiser = nn.ModuleList(_quantiser(seq_len, dim, cells))
        self.contextual = nn.ModuleList(_contextual(seq_len, powers, cells))
        self.values = nn.ModuleList()

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        """Sequences (batch, L, d) to sequences of the same shape and dtype; 0 outside the cube."""
        *_, y = self.states(x)
        return y.to(x)

    @full_precision()
    def ids(self, x: Tensor) -> Tensor:
        r"""The contextual mapping: :math:`u^\top y_j` after the second part, (batch, L)."""
        return self.context(x) @ self.direction

    @full_precision()
    def context(self, x: Tensor) -> Tensor:
        """The tokens after the second part, (batch, L, d)."""
        upto = 1 + len(self.quantiser) + len(self.contextual)
        return next(itertools.islice(self.states(x), upto, None))

    def layers(self) -> list[nn.Module]:
        """All layers, in order; their ``label`` says what each is for."""
        return [*self.quantiser, *self.contextual, *self.values]

    @full_precision()
    def states(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens (batch, L, d): scaled to the cube, after every layer, and with positions.

        There is one state more than layers and input: positions follow the quantiser.
        """
        require_sequences("x", x, self.seq_len, self.dim)
        y = (x.to(self.position) - self.low) / (self.high - self.low)
        yield y
        for layer in self.quantiser:
            y = layer(y)
            yield y
        y = y + self.position
        yield y
        for layer in (*self.contextual, *self.values):
            y = layer(y)
            yield y


def build_contextual_transformer(
    function: Callable[[Tensor], Tensor],
    seq_len: int,
    dim: int,
    cells: int,
    low: float = 0.0,
    high: float = 1.0,
) -> ContextualTransformer:
    r"""A transformer of the class :math:`\mathcal{T}^{2,1,4}` that is constant on cubes.

    .. math:: f_T(x) = f(C_G) \text{ for } x \in S_G, \qquad f_T(x) = 0
              \text{ outside } [\mathrm{low}, \mathrm{high})^{d \times L},

    where :math:`C_G` is the centre of the cube :math:`S_G` of the grid that has ``cells`` cells a
    side. Source: HWLSL Theorem 3.1; HWLSL Lemma E.3; HWLSL Lemma E.4; HWLSL Lemma E.5.

    Attention has two heads of size one, feed-forward layers at most four hidden units; there are
    d/δ + d, then Lδ^{-d} + 1, then 1 + d + Lδ^{-dL} layers (HWLSL Lemma E.6 has the orders). It is
    a network for *one* function: the diffusion step would be a function each.

    Args:
        function: f, (batch, L, d) -> (batch, L, d) in float64; it is called once.
        seq_len: L, at least 2.
        dim: d.
        cells: 1/δ, a power of two.
        low, high: ends of the cube in every coordinate.

    Returns:
        The network. On the grid it is exact; values are rounded to what float64 holds beside the
        largest id (multiples of 2^-23 at L = d = 2, δ = 1/4). In the top millionth of a cell a
        coordinate is neither here nor there, and the answer can be as large as an id.

    Raises:
        ValueError: for numbers out of range, a grid with more than 2^14 ids, or values as large as
            ids, which a later layer would take for one.
    """
    _require_grid(seq_len, dim, cells, low, high)
    network = ContextualTransformer(seq_len, dim, cells, float(low), float(high))
    network.requires_grad_(False)
    inside = _centres(network, cells, beyond=0)
    values = _values_at(function, inside, network)
    largest = network.context(_centres(network, cells, beyond=1)).abs().max().item()
    network.values.extend(_refusal(network, largest))
    network.values.extend(_answers(network, inside, values))
    return network.requires_grad_(False)


# ---- the layers of the three parts -------------------------------------------------------------


def _quantiser(seq_len: int, dim: int, cells: int) -> Iterator[RidgeFeedForward]:
    floor, ramp = outlier(seq_len, dim, cells), QUANTISER_RAMP / cells
    for i, unit in enumerate(torch.eye(dim, dtype=torch.float64)):
        yield RidgeFeedForward(unit, ridge.cleared(floor, ramp), unit, f"clear coordinate {i}")
    for i, unit in enumerate(torch.eye(dim, dtype=torch.float64)):
        for k in range(cells):
            step = ridge.floored(k / cells, 1 / cells, ramp)
            yield RidgeFeedForward(unit, step, unit, f"floor coordinate {i} at {k}/{cells}")


def _contextual(seq_len: int, direction: Tensor, cells: int) -> Iterator[SizeOneAttention]:
    """One selective shift for every value a column of the grid can have, and the global shift."""
    dim, count = len(direction), cells ** len(direction)
    for token in range(seq_len):
        first = token * direction.sum().item()  # δ_j, the smallest id of this token
        for k in range(count):
            at, half = first + k / cells, 0.5 / cells
            label = f"shift token {token} at {at:g}"
            yield _shift(direction, cells, (at - half, at + half), float(count), label)
    factor = float(seq_len * cells ** ((seq_len + 1) * dim + 1))
    yield _shift(direction, cells, (0.0,), factor, "shift all")


def _shift(
    direction: Tensor, cells: int, thresholds: tuple[float, ...], factor: float, label: str
) -> SizeOneAttention:
    """Attention that adds, for each threshold b, ± factor · (max or min of u·y) to coordinate 0.

    A token gets the maximum if its own u·y is above b, the minimum if it is below; with two
    thresholds the difference is left, max − min between them and nothing elsewhere.
    """
    sharpness = 2048.0 * cells**2  # queries and keys differ by δ/2 and δ: logits by 1024
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[: len(thresholds)]
    reads = direction.detach().expand(len(signs), -1).clone()
    output = torch.zeros_like(reads)
    output[:, 0] = factor * signs
    bias = -sharpness * torch.tensor(thresholds, dtype=torch.float64)
    return SizeOneAttention(sharpness * reads, bias, reads, reads.clone(), output, label)


def _refusal(network: ContextualTransformer, largest: float) -> Iterator[RidgeFeedForward]:
    """All tokens of a sequence that left the cube become negative, then zero."""
    eye = torch.eye(network.dim, dtype=torch.float64)
    alarm = ridge.outside(*network.id_range, network.spacing / 4)
    away = torch.full((network.dim,), -(largest + 1), dtype=torch.float64)
    yield RidgeFeedForward(network.direction.detach(), alarm, away, "refuse what is outside")
    for i, unit in enumerate(eye):
        yield RidgeFeedForward(unit, ridge.negative_part(), unit, f"negative to zero, {i}")


def _answers(
    network: ContextualTransformer, inside: Tensor, values: Tensor
) -> Iterator[RidgeFeedForward]:
    """One layer for each id: the token found there becomes the value."""
    tokens, u = network.context(inside), network.direction.detach()
    for cube, of_cube in enumerate(tokens):
        for token, found in enumerate(of_cube):
            here = ridge.bump((found @ u).item(), network.spacing)
            difference = values[cube, token] - found
            yield RidgeFeedForward(u, here, difference, f"answer {cube}, token {token}")


# ---- numbers -----------------------------------------------------------------------------------


def outlier(seq_len: int, dim: int, cells: int) -> int:
    r"""J of (E.7), :math:`L + 3L\delta^{-dL}`: what lies outside the cube becomes −J."""
    return seq_len + 3 * seq_len * cells ** (dim * seq_len)


def _id_range(seq_len: int, dim: int, cells: int) -> tuple[float, float]:
    r"""t_l and t_r. The first is printed with δ^{-2(L+1)d}, which is above all ids.

    The largest shifted id is at least δ^{-(L-1)d+1}(δ^{-d} − 1) (Lemma E.8) and multiplied by
    Lδ^{-(L+1)d-1}, which makes Lδ^{-2Ld}(δ^{-d} − 1).
    """
    low = seq_len * cells ** (2 * seq_len * dim) * (cells**dim - 1)
    power = (seq_len + 1) * dim
    high = seq_len**2 * cells ** (2 * power + 1) + seq_len * cells**power
    return float(low), float(high)


def _centres(network: ContextualTransformer, cells: int, beyond: int) -> Tensor:
    """Centres of all cubes, (cells^{dL}, L, d), and of those ``beyond`` the upper end."""
    ticks = (torch.arange(cells + beyond, dtype=torch.float64) + 0.5) / cells
    ticks = network.low + (network.high - network.low) * ticks
    size = network.seq_len * network.dim
    return torch.cartesian_prod(*[ticks] * size).reshape(-1, network.seq_len, network.dim)


def _values_at(
    function: Callable[[Tensor], Tensor], inside: Tensor, network: ContextualTransformer
) -> Tensor:
    """The answers, rounded to what float64 holds beside an id, and checked."""
    values = function(inside)
    if not isinstance(values, Tensor) or values.shape != inside.shape:
        given = tuple(values.shape) if isinstance(values, Tensor) else values
        raise ValueError(f"the function must return {tuple(inside.shape)}, got {given}")
    require_finite("values of the function", values)
    low, high = network.id_range
    largest = (values.to(inside) @ network.direction.detach()).abs().max().item()
    if largest >= low - network.spacing:
        raise ValueError(f"values must be below {low:g} along u = (1, 1/δ, …), got {largest:g}")
    scale = 2.0 ** (52 - math.ceil(math.log2(high)))
    return (values.to(inside) * scale).round() / scale


def _require_grid(seq_len: int, dim: int, cells: int, low: float, high: float) -> None:
    require_count("seq_len", seq_len, minimum=2)
    require_count("dim", dim)
    require_count("cells", cells, minimum=2)
    if cells & (cells - 1):
        raise ValueError(f"cells must be a power of two, got {cells}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"expected finite low < high, got low={low!r}, high={high!r}")
    layers = seq_len * cells ** (dim * seq_len)
    if layers > MOST_LAYERS:
        raise ValueError(
            f"L δ^(-dL) = {layers} layers for as many ids; this builds at most {MOST_LAYERS}"
        )
