r"""Sliding-window attention: softmax over the frames within W of one's own, in time O(N W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..support.validation import require_count
from .layer import Attention


class WindowAttention(Attention):
    r"""Softmax over :math:`|i - j| \le W` (Beltagy et al. 2020, without global tokens).

    Queries are taken W at a time, and see 3W keys each: a band, never the N × N map.

    Args:
        width, heads, fused: see :class:`.layer.Attention`.
        window: W >= 1.

    Raises:
        ValueError: for a window that is no integer >= 1.
    """

    def __init__(self, width: int, heads: int, fused: bool = True, window: int = 16) -> None:
        super().__init__(width, heads, "softmax", fused)
        require_count("window", window)
        self.kind, self.window = "window", window

    def extra_repr(self) -> str:
        """What is printed of a layer, and what checkpoints compare."""
        return f"window={self.window}"

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Σ_j A_ij v_j, (batch, heads, N, h)."""
        length, reach = query.shape[-2], self.window
        chunk = max(reach, 16)
        blocks = -(-length // chunk)
        more = blocks * chunk - length
        query = nn.functional.pad(query, (0, 0, 0, more)).unflatten(-2, (blocks, chunk))
        key, value = (
            nn.functional.pad(x, (0, 0, reach, more + reach))
            .unfold(-2, chunk + 2 * reach, chunk)
            .transpose(-1, -2)
            for x in (key, value)
        )  # (batch, heads, blocks, chunk + 2W, h)
        seen = self._band(length, blocks, chunk, query.device)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        else:
            logits = super().logits(query, key).masked_fill(~seen, -torch.inf)
            mixed = logits.softmax(dim=-1) @ value
        return mixed.flatten(-3, -2)[..., :length, :]

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """⟨q_i, k_j⟩ / √h, (batch, heads, N, N), of all pairs; :meth:`weigh` looks at the near."""
        return super().logits(query, key)

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape."""
        place = torch.arange(logits.shape[-1], device=logits.device)
        far = (place[:, None] - place).abs() > self.window
        return logits.masked_fill(far, -torch.inf).softmax(dim=-1)

    def _band(self, length: int, blocks: int, chunk: int, device: torch.device) -> Tensor:
        """Which keys a query sees, (blocks, chunk, chunk + 2W); past the end, its own at least."""
        own = torch.arange(blocks * chunk, device=device).view(blocks, chunk, 1)
        offset = torch.arange(chunk + 2 * self.window, device=device) - self.window
        theirs = own[:, :1] + offset  # (blocks, 1, chunk + 2W)
        near = (own - theirs).abs() <= self.window
        return near & (((theirs >= 0) & (theirs < length)) | (own >= length))
