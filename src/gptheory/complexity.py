"""The sweep behind chapter 6: how the error falls with the number of sequences, and what it costs.

Every part is a grid of :class:`gptheory.cell.Cell`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from .cell import FIELDS, Cell
from .sweep import SweepStudy

CONFIDENCE = 0.95
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
                "estimator": ["wiener", "kronecker", "stationary"], "n": [16, 64, 256],
                "lengthscale": [2.0, 8.0], "seed": [0, 1],
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
            "closed": {
                "estimator": ["wiener", "kronecker", "stationary"], "n": SIZES,
                "lengthscale": THREE, "seed": SEEDS,
            },
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


def fitted_slope(n: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    r"""Exponent a of :math:`\text{error} \approx c\,n^a` and half the width of its 95 % interval.

    Least squares of log error on log n; the interval is Student's.

    Args:
        n: sizes > 0, more than two values, not all equal.
        error: positive errors, same shape; repetitions with other seeds count as points.

    Raises:
        ValueError: for fewer than three points, equal sizes, or numbers that are not positive.
    """
    n, error = np.asarray(n, float), np.asarray(error, float)
    if n.shape != error.shape or n.size < 3 or np.ptp(n) == 0:
        raise ValueError(f"a slope needs three or more points of several sizes, got n = {n}")
    for name, values in (("sizes", n), ("errors", error)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be positive and finite, got {values}")
    x, y = np.log(n), np.log(error)
    fit = stats.linregress(x, y)
    # not linregress's own error: that comes from 1 − r², which rounds to u where the residuals
    # are of size u, and its root, 1e-8, hides what they say
    residuals = y - fit.intercept - fit.slope * x
    variance = residuals @ residuals / (n.size - 2)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n.size - 2) * np.sqrt(
        variance / np.sum((x - x.mean()) ** 2)
    )
    return float(fit.slope), float(reach)


def excess(table: pd.DataFrame, column: str = "path_kl") -> pd.DataFrame:
    """What the finite training set costs: a column minus that of the paired run on fresh data.

    Args:
        table: of a sweep that has both, see :func:`gptheory.sweep.collect`.
        column: the error.

    Returns:
        The rows with finite n and a column ``excess``. Pairs agree in all settings but n.

    Raises:
        ValueError: if a row has no partner.
    """
    keys = [name for name in FIELDS if name != "n" and name in table.columns]
    fresh = table[table["n"].isna()].set_index(keys)[column].rename("fresh")
    paired = table[table["n"].notna()].join(fresh, on=keys)
    if paired["fresh"].isna().any():
        lonely = paired[paired["fresh"].isna()].iloc[0][[*keys, "n"]].to_dict()
        raise ValueError(f"no run on fresh data agrees with {lonely}")
    return paired.assign(excess=paired[column] - paired["fresh"]).drop(columns="fresh")
