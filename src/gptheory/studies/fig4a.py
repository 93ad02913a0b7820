"""The sweep behind chapter 6: how the error falls with the number of sequences, and what it costs.

Every part is a grid of :class:`.Cell`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .cells import CLOSED, FIELDS, Cell
from .sweeps import SweepStudy

SIZES = [2**k for k in range(4, 13)]
SEEDS = [0, 1, 2, 3]
THREE = [2.0, 8.0, 32.0]  # lengthscales
UNROLLED = {"steps": 800, "batch_size": 32, "learning_rate": 1e-2, "depth": 12}  # K = 12
BUDGET = {"steps": 600}

COMPLEXITY = {
    "quick": SweepStudy(
        Cell,
        {
            "networks": {
                "n": [16, 64, 256, None], "lengthscale": [2.0, 8.0], "seed": [0, 1], "steps": 300,
            },
            "closed": {
                "estimator": [*CLOSED], "n": [16, 64, 256], "lengthscale": [2.0, 8.0],
                "seed": [0, 1],
            },
        }
    ),
    "paper": SweepStudy(
        Cell,
        {
            # Fig. 4a: every law, every size
            "networks": {
                "lengthscale": [2.0, 4.0, 8.0, 16.0, 32.0], "exponent": [0.5, 1.0, 1.5, 2.0],
                "n": [*SIZES, None], "seed": SEEDS, **BUDGET,
            },
            "closed": {"estimator": [*CLOSED], "n": SIZES, "lengthscale": THREE, "seed": SEEDS},
            "unrolled": {
                "estimator": ["unrolled", "unrolled-stationary"], "n": SIZES[::2],
                "lengthscale": THREE, "seed": SEEDS, **UNROLLED,
            },
            # one axis at a time around N = 16, d = 2, ρ = .5, width 32, 600 steps
            "dimension": {"dim": [1, 4, 8], "n": [256, None], "seed": SEEDS, **BUDGET},
            "conditioning": {
                "correlation": [0.0, 0.8, 0.95], "n": [256, None], "seed": SEEDS, **BUDGET,
            },
            "width": {"hidden": [16, 64], "n": [64, 256, None], "seed": SEEDS, **BUDGET},
            "budget": {
                "steps": [75, 150, 300, 1200], "n": [16, 64, 256, None], "seed": SEEDS,
            },
            "length": {"seq_len": [8, 64], "n": [256, None], "seed": SEEDS, **BUDGET},
            # Fig. 4a at a larger N, thinned
            "longer": {
                "lengthscale": THREE, "n": [16, 64, 256, 1024, None], "seq_len": 32,
                "seed": SEEDS, **BUDGET,
            },
        }
    ),
}  # fmt: skip


def excess(
    table: pd.DataFrame, column: str = "path_kl", fields: Sequence[str] = FIELDS
) -> pd.DataFrame:
    """What the finite training set costs: a column minus that of the paired run on fresh data.

    Args:
        table: of a sweep that has both, see :func:`.collect`.
        column: the error.
        fields: of the cells, where they are no :class:`.Cell`.

    Returns:
        The rows with finite n and a column ``excess``. Pairs agree in all settings but n.

    Raises:
        ValueError: if a row has no partner.
    """
    keys = [name for name in fields if name != "n" and name in table.columns]
    fresh = table[table["n"].isna()].set_index(keys)[column].rename("fresh")
    paired = table[table["n"].notna()].join(fresh, on=keys)
    if paired["fresh"].isna().any():
        lonely = paired[paired["fresh"].isna()].iloc[0][[*keys, "n"]].to_dict()
        raise ValueError(f"no run on fresh data agrees with {lonely}")
    return paired.assign(excess=paired[column] - paired["fresh"]).drop(columns="fresh")
