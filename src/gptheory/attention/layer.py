"""The trainable attention layer: softmax, and ReLU in its place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..support.memory import require_memory
from ..support.validation import require_one_of

ATTENTIONS = ("softmax", "relu", "relu-mean", "relu-rows")


class Attention(nn.Module):
    r"""Multi-head attention, :math:`y_i \mapsto W_o \sum_j A_{ij} W_v y_j`, heads concatenated.

    With logits :math:`l_{ij} = \langle q_i, k_j\rangle / \sqrt{h}`, h the head dimension, the map A
    is softmax over j; relu(l), the paper's entrywise ReLU (``"relu"``); relu(l) / N
    (``"relu-mean"``); or relu(l) normalised to row sums of 1 (``"relu-rows"``).

    Args:
        width: size of a token, a multiple of ``heads``.
        heads: number of heads.
        kind: one of the four above; :mod:`.choice` has the others.
        fused: let torch compute softmax attention without forming the maps; the numbers are the
            same. Turn it off under ``torch.func.vmap``.

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(self, width: int, heads: int, kind: str = "softmax", fused: bool = True) -> None:
        super().__init__()
        require_one_of("kind", kind, ATTENTIONS)
        self.heads, self.kind, self.fused = heads, kind, fused
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        """(batch, N, width) -> (batch, N, width)."""
        mixed = self.mix(*self.query_key_value(y))
        return self.output(mixed.transpose(1, 2).flatten(2))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Σ_j A_ij v_j, (batch, heads, N, h)."""
        if self.fused and self.kind == "softmax":
            return nn.functional.scaled_dot_product_attention(query, key, value)
        return self.weigh(self.logits(query, key)) @ value

    def maps(self, y: Tensor) -> Tensor:
        """A for inputs y of this layer: (batch, N, width) -> (batch, heads, N (i), N (j)).

        A forward hook on the layer sees its inputs; :mod:`gptheory.probing.recording` has one.

        Raises:
            ValueError: for maps that do not fit into memory.
        """
        self.require_room(y)
        query, key, _ = self.query_key_value(y)
        return self.weigh(self.logits(query, key))

    def attend(self, maps: Tensor, y: Tensor) -> Tensor:
        """What the layer returns for inputs y if its maps, in the shape above, are these."""
        mixed = maps @ self.query_key_value(y)[2]
        return self.output(mixed.transpose(1, 2).flatten(2))

    def require_room(self, y: Tensor, count: int = 2) -> None:
        """Raise unless as many tensors of the size of the maps, as a probe makes, fit."""
        size = count * len(y) * self.heads * y.shape[1] ** 2 * y.element_size()
        what = f"{count} x {len(y)} x {self.heads} maps of {y.shape[1]} x {y.shape[1]}"
        remedy = "look at fewer sequences at once, or at a network for shorter ones"
        require_memory(what, size, y.device, remedy)

    def query_key_value(self, y: Tensor) -> tuple[Tensor, ...]:
        """Three tensors (batch, heads, N, h)."""
        return self.project(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """⟨q_i, k_j⟩ / √h, (batch, heads, N, N)."""
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape."""
        if self.kind == "softmax":
            return logits.softmax(dim=-1)
        weights = logits.relu()
        if self.kind == "relu":
            return weights
        if self.kind == "relu-mean":
            return weights / weights.shape[-1]
        tiny = torch.finfo(weights.dtype).tiny  # a row without any positive logit stays zero
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=tiny)
