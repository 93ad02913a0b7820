"""The measurement behind chapter 6: total variation between data and what networks generate.

Every part is a grid of :class:`VariationCell`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from ..diffusion.exact import Score
from ..measures.likelihood import total_variation
from .cells import Cell
from .sweeps import SweepStudy


@dataclass(frozen=True)
class VariationCell(Cell):
    r"""A :class:`.Cell` whose law is also compared in total variation.

    It takes a backward pass for every coordinate: half a minute for 512 draws of a network of the
    default shape, longer than its training.

    Source: FDGWC Theorem 2.

    Args:
        draws: of the data, at t_0 = 0.005.
        flow_steps: of the flow that follows the density.

    Raises:
        ValueError: as for a cell, or for draws or steps below 1.
    """

    FORMAT: ClassVar[str] = "variation-1"
    OWN: ClassVar[frozenset[str]] = Cell.OWN | {"draws", "flow_steps"}

    draws: int = 512
    flow_steps: int = 24

    def assess(self, score: Score) -> dict[str, float]:
        """What a cell measures, and the distance, on draws that all cells of a law share.

        Args:
            score: called as (v, t).

        Returns:
            :meth:`.Cell.assess`, and ``tv``, ``tv_error``, ``kl``, ``kl_error`` of
            :class:`.TotalVariation`, the divergence of whole sequences.
        """
        found = asdict(
            total_variation(
                score, self.process(), self.draws, steps=self.flow_steps,
                generator=torch.Generator().manual_seed(401),
            )
        )  # fmt: skip
        del found["n"]
        found["tv"], found["tv_error"] = found.pop("value"), found.pop("standard_error")
        return super().assess(score) | found


NETWORKS = {"steps": 600}
VARIATION = {
    "quick": SweepStudy(
        VariationCell,
        {
            "networks": {"n": [64, 256, 1024, None], "seed": [0, 1, 2], **NETWORKS},
            # twice the flow's steps: what the solver has in the distance
            "solver": {"n": 256, "flow_steps": 48, **NETWORKS},
            "closed": {"estimator": "wiener", "n": [64, 256, 1024], "seed": [0, 1, 2]},
        },
    ),
    # not run: the sizes of Fig. 4a's sweep, more draws
    "paper": SweepStudy(
        VariationCell,
        {
            "networks": {
                "n": [16, 64, 256, 1024, 4096, None], "seed": [0, 1, 2, 3], "draws": 2048,
                **NETWORKS,
            },
        },
    ),
}  # fmt: skip
