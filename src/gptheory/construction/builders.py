r"""Weights written as maps between named subspaces.

Whoever builds a network by hand writes ``{"offset": identity}`` for *reads the offset* and
``{"score": -identity}`` for *subtracts it from the score*; the builders place these blocks in the
weight matrices, and refuse a block of the wrong shape or a name that does not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .layers import Attention, FeedForward
from .subspaces import Map, Subspaces


class FeedForwardBuilder:
    """Collects groups of hidden units of one feed-forward layer."""

    def __init__(self, spaces: Subspaces) -> None:
        self.spaces = spaces
        self._groups: dict[str, int] = {}
        nothing = torch.zeros(0, dtype=torch.float64)
        self._parts = [(spaces.read({}, 0), nothing, spaces.write({}, 0))]

    def add(self, label: str, read: Map, bias: Tensor, write: Map) -> None:
        """Hidden units relu(read · y + bias), whose values are added through ``write``."""
        units = len(bias)
        up, down = self.spaces.read(read, units), self.spaces.write(write, units)
        self._parts.append((up, bias.double(), down))
        self._groups[label] = units

    def linear(self, label: str, read: Map, write: Map) -> None:
        """An exact linear map, by x = relu(x) − relu(−x)."""
        rows = len(next(iter(read.values())))
        both = {name: torch.cat([block, -block]) for name, block in read.items()}
        signed = {name: torch.cat([block, -block], dim=1) for name, block in write.items()}
        self.add(label, both, torch.zeros(2 * rows), signed)

    def build(self) -> FeedForward:
        """The layer with all groups side by side."""
        up, bias, down = zip(*self._parts, strict=True)
        no_bias = torch.zeros(self.spaces.width, dtype=torch.float64)
        return FeedForward(
            torch.cat(up), torch.cat(bias), torch.cat(down, dim=1), no_bias, self._groups
        )


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
        self._heads.append((*weights, self.spaces.write(write, value_dim).T))
        self._labels.append(label)

    def build(self) -> Attention:
        """The layer with all heads; smaller heads are filled up with zeros."""
        if not self._heads:
            return Attention.without_heads(self.spaces.width)
        # of each kind (heads, largest number of rows, width)
        kinds = zip(*self._heads, strict=True)
        query, key, value, back = (pad_sequence(blocks, batch_first=True) for blocks in kinds)
        return Attention(query, key, value, back.transpose(1, 2), tuple(self._labels))
