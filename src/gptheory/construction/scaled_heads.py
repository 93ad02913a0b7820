r"""Heads whose scores are a function of the lag, times a scalar of either token, behind a gate.

With :math:`z_i e_i` and z_i in token i a head can score

.. math:: \operatorname{relu}\left(z_i w_j (e_i^\top G e_j - c) + B(f_i + g_j - 2)\right)

for a scalar z of the token that is read, w of the one that receives, and flags f, g that are 0 or
1. Where both are 1 the gate adds nothing, else it takes B or 2B away; a B above all that stands
before it makes that an exact 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .builders import AttentionBuilder
from .lag_heads import LagFunction
from .subspaces import Map


@dataclass(frozen=True)
class Scores:
    """Which scalars and flags are in the scores of a group of heads; names of subspaces.

    Attributes:
        sender: z; its product with the position stands in ``{sender}_position``; 1 if absent.
        receiver: w, likewise.
        gate: f and g, or None.
        height: B.
    """

    sender: str | None = None
    receiver: str | None = None
    gate: tuple[str, str] | None = None
    height: float = 0.0

    @property
    def label(self) -> str:
        """In words, for labels of heads."""
        scalars = "·".join(name for name in (self.sender, self.receiver) if name)
        gate = f"{self.gate[0]} to {self.gate[1]}" if self.gate else ""
        return ", ".join(each for each in (scalars, gate) if each)


def add_scaled_heads(
    attention: AttentionBuilder,
    function: LagFunction,
    scores: Scores,
    source: str,
    target: str,
    matrix: Tensor,
) -> None:
    """Heads that add, over all tokens i, scores times ``matrix`` · source_i to the target."""
    identity = torch.eye(len(matrix), dtype=torch.float64)
    heads = zip(function.knots, function.weights, function.labels, strict=True)
    for knot, weight, label in heads:
        query, key = _query_and_key(scores, function.form, knot.item())
        attention.add(
            f"{scores.label}: {label}".removeprefix(": "),
            query=query,
            key=key,
            value={source: identity},
            write={target: weight * matrix},
        )


def _query_and_key(scores: Scores, form: Tensor, knot: float) -> tuple[Map, Map]:
    """Head coordinates: two of the embedding, one of the threshold, two of the gate."""
    axes = torch.eye(5 if scores.gate else 3, dtype=torch.float64)
    embedding, threshold = axes[:, :2], axes[:, 2:3]
    sender, receiver = scores.sender, scores.receiver
    query = [(_position(sender), embedding), (sender or "one", -knot * threshold)]
    key = [(_position(receiver), embedding @ form.T), (receiver or "one", threshold)]
    if scores.gate:
        (sends, receives), height = scores.gate, scores.height
        from_sender, from_receiver = axes[:, 3:4], axes[:, 4:]
        # B (f − 1) · 1 + B · (g − 1): an open gate adds 0, exactly
        query += [(sends, height * from_sender), ("one", height * (from_receiver - from_sender))]
        key += [(receives, from_receiver), ("one", from_sender - from_receiver)]
    return _summed(query), _summed(key)


def _position(scalar: str | None) -> str:
    """The subspace that holds the position, or its product with a scalar."""
    return "position" if scalar is None else f"{scalar}_position"


def _summed(maps: list[tuple[str, Tensor]]) -> Map:
    """Maps by name, those of one name added."""
    total: dict[str, Tensor] = {}
    for name, block in maps:
        total[name] = total[name] + block if name in total else block
    return total
