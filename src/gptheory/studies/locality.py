r"""The measurement behind chapter 11: what bounded logits cost on sequences with short memory.

Every network sees the same number of frames in a step, whatever N is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..diffusion.exact import Score
from ..diffusion.schedule import perturb
from ..measures.scores import path_kl, score_error
from ..networks.dit import DiT
from ..probing.recording import record
from ..training.ensemble import Member
from .cells import SCORE_STEPS, Cell
from .sweeps import SweepStudy

FRAMES = 2**15  # of the Monte Carlo sequences of a measurement, together
SHOWN = 4  # sequences whose maps are looked at
NEAR = 4  # frames to either side that count as near
AT = 0.1  # diffusion step of the maps


@dataclass(frozen=True)
class LocalityCell(Cell):
    r"""A :class:`.Cell` whose DiT has small heads and a kind of attention of its own.

    Source: HWLSL Practical guidance.

    Args:
        attention: ``"softmax"``, ``"normalised"``, ``"certified"`` or ``"window"``.
        radius, degree, window: of that kind, see :class:`.DiT`; absent where it has none.
        head_dim: size of a head.

    Raises:
        ValueError: as for a cell, or for an option that the kind of attention does not have.
    """

    FORMAT: ClassVar[str] = "locality-1"
    OWN: ClassVar[frozenset[str]] = frozenset({"lengthscale", "seed"})
    KNOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "estimator": ("dit",), "attention": ("softmax", "normalised", "certified", "window"),
    }  # fmt: skip

    attention: str = "softmax"
    radius: float | None = None
    degree: int | None = None
    window: int | None = None
    head_dim: int = 4

    @property
    def heads(self) -> int:
        """Heads of the DiT."""
        return self.hidden // self.head_dim

    def member(self) -> Member:
        """The untrained network, its data and the seed of its noise."""
        options = {"radius": self.radius, "degree": self.degree, "window": self.window}
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        model = DiT(
            self.dim, self.seq_len, self.hidden, self.heads, self.depth, fused=False,
            attention=self.attention, generator=self._generator("weights", "seq_len", "seed"),
            **given,
        )  # fmt: skip
        return Member(model, self.training_set(), self._seed("noise", "seed"))

    def assess(self, score: Score) -> dict[str, float]:
        """How far a score is from the exact one, and how local its heads are.

        Args:
            score: called as (v, t).

        Returns:
            ``path_kl`` and ``score_error_T`` as :meth:`.Cell.assess`; ``near``, the weight that the
            most local head gives to frames at most 4 away, at t = 0.1, and ``reach``, what uniform
            weights would give.
        """
        law, n = self.process(), max(16, FRAMES // self.seq_len)
        draws = (torch.Generator().manual_seed(seed) for seed in range(501, 600))
        numbers = {
            f"score_error_{t:g}": score_error(score, law, t, n, next(draws)) for t in SCORE_STEPS
        }
        numbers["path_kl"] = path_kl(score, law, n=n, generator=next(draws))
        v, _ = perturb(law.sample(SHOWN, next(draws)), AT, next(draws))
        shares = [_near_share(seen.maps) for seen in record(score, v, AT)]
        uniform = _near_share(torch.full((1, self.seq_len, self.seq_len), 1 / self.seq_len))
        return numbers | {"near": max(s.max().item() for s in shares), "reach": uniform.item()}


def _near_share(maps: Tensor) -> Tensor:
    """Weight on keys at most 4 frames away, the mean over queries and sequences.

    Args:
        maps: (..., heads, N, N), rows adding up to 1.

    Returns:
        (heads,).
    """
    frames = torch.arange(maps.shape[-1], device=maps.device)
    near = (frames[:, None] - frames).abs() <= NEAR
    shares = (maps * near).sum(dim=-1).mean(dim=-1)  # (..., heads)
    return shares.reshape(-1, shares.shape[-1]).mean(dim=0)


KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"attention": "softmax"},
    **{f"normalised, R = {r}": {"attention": "normalised", "radius": r} for r in (1, 2, 3, 4)},
    **{
        f"certified, R = {r}, g = {g}": {"attention": "certified", "radius": r, "degree": g}
        for r, g in ((1, 2), (2, 4), (3, 6))
    },
    **{f"window, W = {w}": {"attention": "window", "window": w} for w in (4, 16)},
}  # fmt: skip
LAWS = {"lengthscale": [2.0, 8.0], "seed": [0, 1], "steps": 600}
BATCHES = {32: 32, 128: 8, 512: 2}

LOCALITY = {
    "quick": SweepStudy(
        LocalityCell,
        {
            f"{kind}, N = {n}": {**LAWS, **options, "seq_len": n, "batch_size": batch}
            for n, batch in BATCHES.items()
            for kind, options in KINDS.items()
        },
    ),
}  # fmt: skip
