"""Pictures of constructed networks, drawn from their weights.

Imported by notebooks, never by the numerics.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ..construction.layers import Block
from ..construction.network import ScoreTransformer
from ..construction.subspaces import Subspaces
from .style import BOUND, LEARNED, NULL, heatmap


def draw_weight(
    ax: Axes,
    matrix: Tensor,
    rows: Subspaces | None = None,
    columns: Subspaces | None = None,
    title: str = "",
) -> None:
    """Draw a weight matrix cut at the borders of named subspaces; zero is white.

    Args:
        ax: where to draw.
        matrix: (height, width).
        rows, columns: subspaces along each side, where that side is the residual stream; only
            those with an entry that is not zero are named.
        title: above the matrix.

    Raises:
        ValueError: if a side has another length than its subspaces.
    """
    sides = zip(("rows", "columns"), (rows, columns), matrix.shape, strict=True)
    for side, spaces, length in sides:
        if spaces is not None and spaces.width != length:
            raise ValueError(f"{side} has width {spaces.width}, but the matrix has {length} there")
    heatmap(ax, matrix, title)
    ax.set(aspect="auto", xticks=[], yticks=[])
    if rows is not None:
        _name_side(ax.yaxis, ax.axhline, rows, rows.touched(matrix.T))
    if columns is not None:
        _name_side(ax.xaxis, ax.axvline, columns, columns.touched(matrix))
        ax.tick_params(axis="x", rotation=90)


def draw_block(block: Block, spaces: Subspaces, head: int = 0) -> Figure:
    """All matrices of one block: one head's query, key and value, and the feed-forward layer.

    Source: FDGWC Fig. 3, drawn from weights.

    Args:
        block: with at least one head.
        spaces: of the residual stream.
        head: which one.

    Returns:
        A figure of five panels.
    """
    attention, layer = block.attention, block.feed_forward
    value = attention.output[head] @ attention.value[head]
    fig = plt.figure(figsize=(7, 6.2))
    left, right = fig.subfigures(1, 2, width_ratios=(1.1, 1))
    upper, middle, lower = left.subplots(3, 1, height_ratios=(1, 1, 2.6))
    draw_weight(upper, attention.query[head], None, spaces, "query Q (one head)")
    draw_weight(middle, attention.key[head], None, spaces, "key K")
    draw_weight(lower, layer.up, None, spaces, "feed-forward, W₁")
    beside, below = right.subplots(2, 1)
    draw_weight(beside, value, spaces, spaces, "value V")
    draw_weight(below, layer.down, spaces, None, "feed-forward, W₂")
    return fig


def draw_network(network: ScoreTransformer) -> Figure:
    """Which block reads which subspace (left half of a cell) and writes which (right half).

    Source: FDGWC Fig. 2, drawn from weights.

    Args:
        network: with named subspaces.

    Returns:
        A figure with a row for each subspace and a column for each block.
    """
    spaces = network.spaces
    fig, ax = plt.subplots(figsize=(7, 0.26 * len(spaces.names) + 1))
    for column, block in enumerate(network.blocks):
        attention, layer = block.attention, block.feed_forward
        read = (attention.query, attention.key, attention.value, layer.up)
        written = (attention.output.transpose(-1, -2), layer.down.T)
        for shift, weights, color in ((0.0, read, LEARNED), (0.5, written, BOUND)):
            for name in {name for weight in weights for name in spaces.touched(weight)}:
                corner = (column + shift, spaces.names.index(name))
                ax.add_patch(Rectangle(corner, 0.5, 1, color=color, lw=0))
        if len(attention.query):
            ax.axvspan(column, column + 1, color=NULL, alpha=0.18, lw=0, zorder=0)
    ax.set(xlim=(0, len(network.blocks)), ylim=(len(spaces.names), 0), xlabel="block")
    ax.set_yticks([k + 0.5 for k in range(len(spaces.names))], spaces.names)
    ax.hlines(range(len(spaces.names)), 0, len(network.blocks), color=NULL, lw=0.3)
    keys = {"reads": LEARNED, "writes": BOUND, "has attention": "#e6e6e6"}
    handles = [Patch(color=color, label=label) for label, color in keys.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return fig


def _name_side(axis, line, spaces: Subspaces, named: tuple[str, ...]) -> None:
    for border in spaces.boundaries():
        line(border + 0.5, color=NULL, lw=0.3)
    centres = [(spaces[name].start + spaces[name].stop + 1) / 2 for name in named]
    axis.set_ticks(centres, named)
    axis.set_tick_params(labelsize=8)
