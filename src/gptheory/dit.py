r"""The diffusion transformer: frames are tokens, the diffusion step modulates every block.

A token is a lifted frame **concatenated** with an embedding of its position, as in the paper, so
that queries and keys of the first layer split into a part that reads the frame and a part that
reads the position. Blocks are those of Peebles and Xie 2022 (adaLN-zero): each is the identity
before training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .kernels import time_embedding
from .precondition import Modulation, ScoreNetwork, modulated_norm, weights_from, zero_init
from .validation import require_count

ATTENTIONS = ("softmax", "relu", "relu-mean", "relu-rows")
POSITIONS = ("sinusoidal", "circle", "learned", "none")
SHORTEST_PERIOD = 4.0  # frames; of the sinusoidal embedding, whose longest is 4N


class Attention(nn.Module):
    r"""Multi-head attention, :math:`y_i \mapsto W_o \sum_j A_{ij} W_v y_j`, heads concatenated.

    With logits :math:`l_{ij} = \langle q_i, k_j\rangle / \sqrt{h}`, h the head dimension, the map A
    is softmax over j; relu(l), the paper's entrywise ReLU (``"relu"``); relu(l) / N
    (``"relu-mean"``); or relu(l) normalised to row sums of 1 (``"relu-rows"``).

    Args:
        width: size of a token, a multiple of ``heads``.
        heads: number of heads.
        kind: one of the four above.
        fused: let torch compute softmax attention without forming the maps; the numbers are the
            same. Turn it off under ``torch.func.vmap``.
    """

    def __init__(self, width: int, heads: int, kind: str = "softmax", fused: bool = True) -> None:
        super().__init__()
        self.heads, self.kind, self.fused = heads, kind, fused
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        """(batch, N, width) -> (batch, N, width)."""
        query, key, value = self.query_key_value(y)
        if self.fused and self.kind == "softmax":
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = self.weigh(self.logits(query, key)) @ value
        return self.output(mixed.transpose(1, 2).flatten(2))

    def maps(self, y: Tensor) -> Tensor:
        """A for inputs y of this layer: (batch, N, width) -> (batch, heads, N (i), N (j)).

        A forward hook on the layer sees its inputs; :mod:`gptheory.probe` has one.
        """
        query, key, _ = self.query_key_value(y)
        return self.weigh(self.logits(query, key))

    def attend(self, maps: Tensor, y: Tensor) -> Tensor:
        """What the layer returns for inputs y if its maps, in the shape above, are these."""
        mixed = maps @ self.query_key_value(y)[2]
        return self.output(mixed.transpose(1, 2).flatten(2))

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


class Block(nn.Module):
    r"""One transformer block, adaLN-zero: shifts, scales and gates are linear in the clock.

    .. math:: y \leftarrow y + g_1 \mathrm{Attn}(\mathrm{LN}(y; a_1, b_1)), \qquad
              y \leftarrow y + g_2 \mathrm{MLP}(\mathrm{LN}(y; a_2, b_2)).

    Args:
        width: size of a token and of the clock.
        heads, attention, fused: see :class:`Attention`.
        expansion: hidden units of the feed-forward layer, in multiples of the width.
    """

    def __init__(self, width: int, heads: int, attention: str, expansion: int, fused: bool) -> None:
        super().__init__()
        self.modulation = Modulation(width, width, 6)
        self.attention = Attention(width, heads, attention, fused)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

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
        expansion: see :class:`Block`.
        attention: ``"softmax"``, ``"relu"``, ``"relu-mean"`` or ``"relu-rows"``; see
            :class:`Attention`.
        position: e_i of size hidden / 2: ``"sinusoidal"`` with periods from 4 to 4N frames (pairs
            of coordinates, so rounded down to an even size), ``"learned"``; or of size 2:
            ``"circle"``, the paper's, with period 2N; or ``"none"``.
        fused: see :class:`Attention`.
        generator: source of the initial weights.

    Attributes:
        lift_dim: size of the lifted frame, the first coordinates of a token; the rest is e_i.

    Raises:
        ValueError: for sizes or names out of range.

    Accuracy: chapter 5 measures it; 248k parameters at the defaults, and a score error of 1 % at
    t = 0.1 after a minute on two cores (N = 32, d = 4).
    """

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
    ) -> None:
        sizes = {"hidden": hidden, "heads": heads, "depth": depth, "expansion": expansion}
        for name, size in sizes.items():
            require_count(name, size)
        if hidden % (2 * heads):
            raise ValueError(f"hidden must be an even multiple of heads={heads}, got {hidden}")
        if attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {ATTENTIONS}, got {attention!r}")
        config = {**sizes, "attention": attention, "position": position}
        with weights_from(generator):
            super().__init__(dim, seq_len, hidden, {"dim": dim, "seq_len": seq_len, **config})
            embedding = frame_embedding(position, seq_len, hidden // 2)
            if position == "learned":
                self.embedding = nn.Parameter(embedding)
            else:
                self.register_buffer("embedding", embedding, persistent=False)
            self.lift_dim = hidden - embedding.shape[1]
            self.lift = nn.Linear(dim, self.lift_dim)
            self.blocks = nn.ModuleList(
                Block(hidden, heads, attention, expansion, fused) for _ in range(depth)
            )
            self.modulation = Modulation(hidden, hidden, 2)
            self.readout = zero_init(nn.Linear(hidden, dim))

    def velocity(self, v: Tensor, clock: Tensor) -> Tensor:
        """F; see :class:`gptheory.precondition.ScoreNetwork`."""
        y = self.tokens(v)
        for block in self.blocks:
            y = block(y, clock)
        return self.readout(modulated_norm(y, *self.modulation(clock)))

    def tokens(self, v: Tensor) -> Tensor:
        """[lifted frame, position]: (batch, N, d) -> (batch, N, hidden)."""
        embedding = self.embedding.to(v).expand(len(v), -1, -1)
        return torch.cat([self.lift(v), embedding], dim=-1)


def frame_embedding(kind: str, seq_len: int, size: int) -> Tensor:
    """Embeddings of the frames i = 1..N.

    Args:
        kind: ``"sinusoidal"``, ``"circle"``, ``"learned"`` (its random start) or ``"none"``.
        seq_len: N.
        size: columns of the sinusoidal and the learned embedding; of the sinusoidal one, which
            has pairs, one less where it is odd.

    Returns:
        (N, size), (N, 2) for the circle, (N, 0) for none; float32.

    Raises:
        ValueError: for an unknown kind, or a size that leaves no pair.
    """
    require_count("seq_len", seq_len)
    if kind == "sinusoidal":
        if size < 2:
            raise ValueError(
                "sinusoidal positions take two coordinates or more, half of a hidden width of at"
                f" least 4; got {size}"
            )
        ends = (math.log(SHORTEST_PERIOD), math.log(max(4.0 * seq_len, SHORTEST_PERIOD)))
        periods = torch.linspace(*ends, size // 2, dtype=torch.float32, device="cpu").exp()
        return torch.cat([time_embedding(seq_len, p.item()).float() for p in periods], dim=1)
    if kind == "circle":
        return time_embedding(seq_len, 2 * seq_len).float()
    if kind == "learned":
        return torch.randn(seq_len, size)
    if kind == "none":
        return torch.empty(seq_len, 0)
    raise ValueError(f"position must be one of {POSITIONS}, got {kind!r}")
