"""What a computation costs in memory."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter(TorchDispatchMode):
    """Counts, inside a ``with`` block, what torch allocates: deterministic, on every device.

    What an operation uses internally and gives back before it returns is not seen.

    Attributes:
        largest: numbers in the largest single tensor.
        peak: bytes of the tensors that were alive together, inputs not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._live = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and note the storages that it made."""
        result = func(*args, **(kwargs or {}))
        known = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _address(x) not in known:
                known.add(_address(x))
                storage = x.untyped_storage()
                self.largest = max(self.largest, storage.nbytes() // x.element_size())
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self._live -= size


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
