r"""The diffusion transformer: frames are tokens, the diffusion step modulates every block.

A token is a lifted frame **concatenated** with an embedding of its position, as in the paper, so
that queries and keys of the first layer split into a part that reads the frame and a part that
reads the position. Blocks are those of Peebles and Xie 2022 (adaLN-zero): each is the identity
before training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention.choice import attention_layer, attention_options
from ..attention.positions import frame_embedding
from ..support.draws import weights_from
from ..support.validation import require_count
from .score_network import Modulation, ScoreNetwork, mlp, modulated_norm, zero_init


class DiTBlock(nn.Module):
    r"""One transformer block, adaLN-zero: shifts, scales and gates are linear in the clock.

    .. math:: y \leftarrow y + g_1 \mathrm{Attn}(\mathrm{LN}(y; a_1, b_1)), \qquad
              y \leftarrow y + g_2 \mathrm{MLP}(\mathrm{LN}(y; a_2, b_2)).

    Args:
        width: size of a token and of the clock.
        heads, attention, fused: see :class:`.layer.Attention`.
        expansion: hidden units of the feed-forward layer, in multiples of the width.
        options: what else decides this attention, see :func:`.attention_options`.
    """

    def __init__(
        self, width: int, heads: int, attention: str, expansion: int, fused: bool,
        **options: float | int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.modulation = Modulation(width, width, 6)
        self.attention = attention_layer(attention, width, heads, fused, **options)
        self.mlp = mlp(width, expansion)

    def forward(self, y: Tensor, clock: Tensor) -> Tensor:
        """(batch, N, width) and (batch or 1, width) -> (batch, N, width)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(clock)
        y = torch.addcmul(y, gate_1, self.attention(modulated_norm(y, shift_1, scale_1)))
        return torch.addcmul(y, gate_2, self.mlp(modulated_norm(y, shift_2, scale_2)))


class DiT(ScoreNetwork):
    r"""Diffusion transformer, a score (v, t).

    The token of frame i is [W v_i + b, e_i]; ``depth`` blocks; a modulated norm; a linear map to
    F, zero before training. Source: FDGWC Fig. 4b, which fixes the token; Peebles and Xie 2022.

    Args:
        dim: d.
        seq_len: N.
        hidden: width of a token, an even multiple of ``heads``.
        heads, depth: heads of a block, number of blocks.
        expansion: see :class:`DiTBlock`.
        attention: ``"softmax"``, ``"relu"``, ``"relu-mean"`` or ``"relu-rows"``, see
            :class:`.layer.Attention`; ``"certified"``, in time linear in N, see
            :class:`.CertifiedAttention`; ``"normalised"``, softmax with the same logits, see
            :class:`.NormalisedAttention`; or ``"window"``, see :class:`.WindowAttention`.
        position: e_i of size hidden / 2: ``"sinusoidal"`` with periods from 4 to 4N frames (pairs
            of coordinates, so rounded down to an even size), ``"learned"``; or of size 2:
            ``"circle"``, the paper's, with period 2N; or ``"none"``.
        fused: see :class:`.layer.Attention`.
        generator: source of the initial weights.
        radius: R of certified (by default 2) and normalised attention (2).
        degree: g of certified attention (4).
        window: W of window attention, in frames.

    Attributes:
        lift_dim: size of the lifted frame, the first coordinates of a token; the rest is e_i.

    Raises:
        ValueError: for sizes or names out of range.

    Accuracy: chapter 5 measures it; 248k parameters at the defaults, and a score error of 1 % at
    t = 0.1 after a minute on two cores (N = 32, d = 4).
    """

    flags = 0  # numbers beside a frame in its token

    def __init__(
        self,
        dim: int,
        seq_len: int,
        hidden: int = 64,
        heads: int = 4,
        depth: int = 4,
        expansion: int = 2,
        attention: str = "softmax",
        position: str = "sinusoidal",
        fused: bool = True,
        generator: torch.Generator | None = None,
        radius: float | None = None,
        degree: int | None = None,
        window: int | None = None,
    ) -> None:
        sizes = {"hidden": hidden, "heads": heads, "depth": depth, "expansion": expansion}
        for name, size in sizes.items():
            require_count(name, size)
        if hidden % (2 * heads):
            raise ValueError(f"hidden must be an even multiple of heads={heads}, got {hidden}")
        options = attention_options(attention, radius=radius, degree=degree, window=window)
        config = {**sizes, "attention": attention, "position": position, **options}
        with weights_from(generator):
            super().__init__(dim, seq_len, hidden, config)
            embedding = frame_embedding(position, seq_len, hidden // 2)
            if position == "learned":
                self.embedding = nn.Parameter(embedding)
            else:
                self.register_buffer("embedding", embedding, persistent=False)
            self.lift_dim = hidden - embedding.shape[1]
            self.lift = nn.Linear(dim + self.flags, self.lift_dim)
            self.blocks = nn.ModuleList(
                DiTBlock(hidden, heads, attention, expansion, fused, **options)
                for _ in range(depth)
            )
            self.modulation = Modulation(hidden, hidden, 2)
            self.readout = zero_init(nn.Linear(hidden, dim))

    def velocity(self, v: Tensor, clock: Tensor, *given: Tensor) -> Tensor:
        """F; see :class:`.ScoreNetwork`. What else is given goes into the tokens."""
        y = self.tokens(v, *given)
        for block in self.blocks:
            y = block(y, clock)
        return self.readout(modulated_norm(y, *self.modulation(clock)))

    def tokens(self, v: Tensor) -> Tensor:
        """[lifted frame, position]: (batch, N, d) -> (batch, N, hidden)."""
        embedding = self.embedding.to(v).expand(len(v), -1, -1)
        return torch.cat([self.lift(v), embedding], dim=-1)
