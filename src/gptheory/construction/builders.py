r"""Weights written as maps between named subspaces.

Whoever builds a network by hand writes ``{"offset": identity}`` for *reads the offset* and
``{"score": -identity}`` for *subtracts it from the score*; the builders place these blocks in the
weight matrices, and refuse a block of the wrong shape or a name that does not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import Attention, FeedForward
from .subspaces import Map, Subspaces


class FeedForwardBuilder:
    """Collects groups of hidden units of one feed-forward layer."""

    def __init__(self, spaces: Subspaces) -> None:
        self.spaces = spaces
        self._groups: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def add(self, label: str, read: Map, bias: Tensor, write: Map) -> None:
        """Hidden units relu(read · y + bias), whose values are added through ``write``."""
        units = len(bias)
        up, down = self.spaces.read(read, units), self.spaces.write(write, units)
        self._groups.append((label, up, bias.double(), down))

    def linear(self, label: str, read: Map, write: Map) -> None:
        """An exact linear map, by x = relu(x) − relu(−x)."""
        rows = len(next(iter(read.values())))
        both = {name: torch.cat([block, -block]) for name, block in read.items()}
        signed = {name: torch.cat([block, -block], dim=1) for name, block in write.items()}
        self.add(label, both, torch.zeros(2 * rows), signed)

    def build(self) -> FeedForward:
        """The layer with all groups side by side."""
        width = self.spaces.width
        up = torch.cat([torch.zeros(0, width, dtype=torch.float64)] + [g[1] for g in self._groups])
        bias = torch.cat([torch.zeros(0, dtype=torch.float64)] + [g[2] for g in self._groups])
        parts = [torch.zeros(width, 0, dtype=torch.float64)] + [g[3] for g in self._groups]
        down = torch.cat(parts, dim=1)
        groups = {group[0]: len(group[2]) for group in self._groups}
        return FeedForward(up, bias, down, torch.zeros(width, dtype=torch.float64), groups)


class AttentionBuilder:
    """Collects the heads of one attention layer."""

    def __init__(self, spaces: Subspaces) -> None:
        self.spaces = spaces
        self._heads: list[tuple[Tensor, ...]] = []
        self._labels: list[str] = []

    def add(self, label: str, query: Map, key: Map, value: Map, write: Map) -> None:
        """A head with scores relu(⟨query · y_i, key · y_j⟩) that adds write · value · y_i to y_j.

        ``query`` and ``key`` map to one space of head coordinates, ``value`` to another, from
        which ``write`` leads back.
        """
        head_dim, value_dim = (len(next(iter(maps.values()))) for maps in (query, value))
        read = self.spaces.read
        weights = (read(query, head_dim), read(key, head_dim), read(value, value_dim))
        self._heads.append((*weights, self.spaces.write(write, value_dim)))
        self._labels.append(label)

    def build(self) -> Attention:
        """The layer with all heads; smaller heads are filled up with zeros."""
        width = self.spaces.width
        if not self._heads:
            return Attention.without_heads(width)
        query, key, value, output = zip(*self._heads, strict=True)
        output = [block.T for block in output]
        stacked = [_stack(blocks) for blocks in (query, key, value, output)]
        return Attention(*stacked[:3], stacked[3].transpose(1, 2), tuple(self._labels))


def _stack(blocks: list[Tensor]) -> Tensor:
    """(heads, largest number of rows, width)."""
    return torch.nn.utils.rnn.pad_sequence(list(blocks), batch_first=True)
