"""Attention edited while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..support.wrappers import uncompiled
from .recording import (
    BLOCKS,
    Seen,
    Transformer,
    _chosen,
    _require_known,
    _tapped,
    content_coordinates,
)

Edit = Callable[[Seen], Tensor]


def only(*blocks: str, split: str = "coordinate") -> Edit:
    """Maps from these blocks of the logits alone (names: ``BLOCKS``).

    Raises:
        ValueError: for an unknown block or split, or none at all.
    """
    _require_known(blocks, split)
    if not blocks:
        raise ValueError(f"at least one block must be kept, of {BLOCKS}")

    def edit(seen: Seen) -> Tensor:
        found = seen.blocks(split)
        return seen.layer.weigh(sum(found[name] for name in blocks))

    return edit


def without(*blocks: str, split: str = "coordinate") -> Edit:
    """Maps from all blocks of the logits but these; raises as :func:`only` does."""
    _require_known(blocks, split)
    return only(*(name for name in BLOCKS if name not in blocks), split=split)


def uniform(seen: Seen) -> Tensor:
    """Maps whose rows are constant and sum to what they did: 1/N everywhere, for softmax."""
    return seen.maps.mean(dim=-1, keepdim=True).expand_as(seen.maps)


def batch_mean(seen: Seen) -> Tensor:
    """The average map of the batch for every sequence: attention that cannot see the content."""
    return seen.maps.mean(dim=0, keepdim=True).expand_as(seen.maps)


class Edited:
    """A transformer with other attention maps: again a score, called as (v, t).

    Args:
        model: the transformer, which is not changed.
        edit: makes the maps of a layer from what it sees; ``only("ee")``, ``without("ee")``,
            ``uniform``, ``batch_mean`` or a function of yours.
        layers: where, counted from 0; everywhere by default. Later layers see what follows.

    Raises:
        ValueError: for a model without attention, or a layer that it does not have.
    """

    def __init__(self, model: Transformer, edit: Edit, layers: Sequence[int] | None = None) -> None:
        model = uncompiled(model)
        self.model, self.edit = model, edit
        self.layers, self._content = _chosen(model, layers), content_coordinates(model)

    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        """The score, (batch, N, d)."""

        def replace(index: int, layer: nn.Module, inputs: Tensor) -> Tensor:
            return layer.attend(self.edit(Seen(index, layer, inputs, self._content)), inputs)

        with _tapped(self.model, self.layers, replace):
            return self.model(v, t)
