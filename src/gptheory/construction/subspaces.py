"""Named subspaces of a residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Mapping[str, Tensor]


@dataclass(frozen=True)
class Subspaces:
    """Consecutive coordinates of a vector, by name.

    Args:
        sizes: name -> number of coordinates, in order.

    Raises:
        ValueError: for a size below 1.
        KeyError: for a name that does not exist, telling which do.
    """

    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"subspace {name!r} must have at least 1 coordinate, got {size}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(self.sizes)

    @property
    def width(self) -> int:
        """Number of all coordinates."""
        return sum(self.sizes.values())

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def __getitem__(self, name: str) -> slice:
        if name not in self.sizes:
            raise KeyError(f"no subspace {name!r}; there are {', '.join(self.names)}")
        start = sum(list(self.sizes.values())[: self.names.index(name)])
        return slice(start, start + self.sizes[name])

    def size(self, name: str) -> int:
        """Number of coordinates of one subspace."""
        found = self[name]
        return found.stop - found.start

    def boundaries(self) -> list[int]:
        """First coordinate of every subspace, and the width at the end."""
        return [self[name].start for name in self.names] + [self.width]

    def read(self, maps: Map, rows: int) -> Tensor:
        """The (rows, width) matrix that applies ``maps[name]``, (rows, size), to each subspace."""
        matrix = torch.zeros(rows, self.width, dtype=torch.float64)
        for name, block in maps.items():
            self._require_shape(f"the map from {name!r}", block, (rows, self.size(name)))
            matrix[:, self[name]] += block
        return matrix

    def write(self, maps: Map, columns: int) -> Tensor:
        """The (width, columns) matrix that sends a vector to ``maps[name]``, (size, columns)."""
        matrix = torch.zeros(self.width, columns, dtype=torch.float64)
        for name, block in maps.items():
            self._require_shape(f"the map to {name!r}", block, (self.size(name), columns))
            matrix[self[name]] += block
        return matrix

    def touched(self, matrix: Tensor) -> tuple[str, ...]:
        """Names of the subspaces in which a (…, width) matrix has a column that is not zero."""
        used = (matrix.reshape(-1, self.width) != 0).any(dim=0)
        return tuple(name for name in self.names if used[self[name]].any())

    @staticmethod
    def _require_shape(what: str, block: Tensor, expected: tuple[int, int]) -> None:
        if tuple(block.shape) != expected:
            raise ValueError(f"{what} must have shape {expected}, got {tuple(block.shape)}")
