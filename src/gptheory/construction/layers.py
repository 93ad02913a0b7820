"""Layers of the paper's transformers: entrywise-ReLU attention and feed-forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..support.precision import full_precision

CHUNK_SCORES = 2**17  # attention scores formed at a time, so that they stay in cache


class Attention(nn.Module):
    r"""Attention with entrywise ReLU, added to its input.

    .. math:: Y + \sum_m V_m Y\,\mathrm{relu}\left((Q_m Y)^\top K_m Y\right)

    Source: FDGWC Transformer class.

    Token j receives from token i the score relu⟨q_i, k_j⟩ times V_m y_i; there is no
    normalisation. V_m is kept as a product ``output[m] @ value[m]``.

    Args:
        query, key: (heads, head_dim, D).
        value: (heads, value_dim, D).
        output: (heads, D, value_dim).
        labels: one name per head, for reading and drawing.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        labels: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.query, self.key = nn.Parameter(query), nn.Parameter(key)
        self.value, self.output = nn.Parameter(value), nn.Parameter(output)
        self.labels = labels

    @classmethod
    def without_heads(cls, width: int) -> Attention:
        """The empty sum: the identity."""
        empty = torch.zeros(0, 1, width, dtype=torch.float64)
        return cls(empty, empty, empty, empty.transpose(1, 2))

    @full_precision()
    def forward(self, y: Tensor) -> Tensor:
        """(batch, N, D) -> (batch, N, D)."""
        batch, seq_len, _ = y.shape
        at_once = max(1, CHUNK_SCORES // (max(1, batch) * seq_len**2))
        update = y
        for first in range(0, len(self.query), at_once):
            heads = slice(first, first + at_once)
            update = update + self._mixed(self.scores(y, heads).transpose(-1, -2), y, heads)
        return update

    @full_precision()
    def scores(self, y: Tensor, heads: slice = slice(None)) -> Tensor:
        r""":math:`\mathrm{relu}(\langle q_i, k_j\rangle)` as (batch, heads, N (i), N (j))."""
        query, key = _per_head(y, self.query[heads]), _per_head(y, self.key[heads])
        return torch.relu(query @ key.transpose(-1, -2))

    # ---- as in attention.layer, where rows belong to the tokens that receive --------------------

    @full_precision()
    def maps(self, y: Tensor) -> Tensor:
        """The scores, transposed: (batch, heads, N (receives), N (is read))."""
        query, key, _ = self.query_key_value(y)
        return self.weigh(self.logits(query, key))

    @full_precision()
    def attend(self, maps: Tensor, y: Tensor) -> Tensor:
        """What the layer returns for inputs y if its maps, in the shape above, are these."""
        return y + self._mixed(maps, y, slice(None))

    @full_precision()
    def query_key_value(self, y: Tensor) -> tuple[Tensor, ...]:
        """Three tensors (batch, heads, N, head_dim or value_dim)."""
        return tuple(_per_head(y, weight) for weight in (self.query, self.key, self.value))

    @full_precision()
    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """⟨k_j, q_i⟩, (batch, heads, N (receives), N (is read))."""
        return key @ query.transpose(-1, -2)

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape."""
        return torch.relu(logits)

    def _mixed(self, maps: Tensor, y: Tensor, heads: slice) -> Tensor:
        """What the heads add: values weighed by their maps, and written back."""
        mixed = maps @ _per_head(y, self.value[heads])  # (batch, heads, N, value_dim)
        back = self.output[heads].transpose(1, 2).flatten(0, 1)  # (heads * value_dim, D)
        return mixed.transpose(1, 2).flatten(2) @ back

    @full_precision()
    def operator(self, y: Tensor, write: slice, read: slice) -> Tensor:
        r"""What the layer does between two subspaces when its scores are those of one sequence y.

        Args:
            y: (1, N, D).
            write, read: coordinates of the two subspaces.

        Returns:
            (N·size(write), N·size(read)), :math:`\sum_m S_m^\top \otimes (V_m)_{write,read}`.
        """
        maps = (self.output @ self.value)[:, write, read]
        scores = self.scores(y)[0]
        dense = torch.einsum("mij,mab->jaib", scores, maps)
        return dense.reshape(len(scores[0]) * maps.shape[1], -1)


class FeedForward(nn.Module):
    r"""One hidden layer of ReLU, added to its input.

    .. math:: y + W_2\,\mathrm{relu}(W_1 y + b_1) + b_2

    Source: FDGWC Transformer class.

    Args:
        up: W_1, (hidden, D).
        up_bias: b_1, (hidden,).
        down: W_2, (D, hidden).
        down_bias: b_2, (D,).
        groups: name -> number of hidden units, in order, for reading and drawing.
    """

    def __init__(
        self,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        groups: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.up, self.up_bias = nn.Parameter(up), nn.Parameter(up_bias)
        self.down, self.down_bias = nn.Parameter(down), nn.Parameter(down_bias)
        self.groups = dict(groups or {})

    @full_precision()
    def forward(self, y: Tensor) -> Tensor:
        """(batch, N, D) -> (batch, N, D)."""
        hidden = torch.relu(nn.functional.linear(y, self.up, self.up_bias))
        return y + nn.functional.linear(hidden, self.down, self.down_bias)


class Block(nn.Module):
    """Attention, then feed-forward.

    Args:
        attention, feed_forward: the two layers.
        label: what the block is for, in words.
        limits: (D,) largest magnitude of each coordinate at which the feed-forward layer does what
            its builder promises (infinite where it does not matter); :class:`.ScoreTransformer`
            refuses inputs that leave it. Not a weight.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        label: str = "",
        limits: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.label = label
        self.register_buffer("limits", limits, persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """(batch, N, D) -> (batch, N, D)."""
        return self.feed_forward(self.attention(y))


def _per_head(y: Tensor, weight: Tensor) -> Tensor:
    """(batch, N, D) through (heads, size, D) to (batch, heads, N, size)."""
    heads, size, _ = weight.shape
    return (y @ weight.flatten(0, 1).T).unflatten(-1, (heads, size)).transpose(1, 2)
