"""Bands in which another run is expected, slopes with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

SLOPE_CONFIDENCE, BAND_CONFIDENCE = 0.95, 0.99


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
    reach = stats.t.ppf((1 + SLOPE_CONFIDENCE) / 2, n.size - 2) * np.sqrt(
        variance / np.sum((x - x.mean()) ** 2)
    )
    return float(fit.slope), float(reach)


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost against log size, by least squares: 1 is linear, 2 quadratic."""
    return float(np.polyfit(np.log(np.asarray(sizes)), np.log(np.asarray(costs)), 1)[0])


def expected_bands(runs: list[pd.DataFrame], by: list[str], value: str) -> pd.DataFrame:
    r"""Where one more run is expected, from runs that differ in their seed only.

    Values are positive and compared as logarithms: the band is
    :math:`m \pm q\,s\sqrt{1 + 1/n}`, with m the mean over the n runs, s² their variance averaged
    over the rows, and q the 99.5 % quantile of Student's law with n − 1 degrees of freedom.

    Args:
        runs: two or more tables with the same rows.
        by: the columns that name a row.
        value: the column that is compared.

    Returns:
        One row per row of a run: the columns ``by``, then ``low`` and ``high``; one more run has
        a value between them with probability about 99 %, each.

    Raises:
        ValueError: for fewer than two runs, rows that differ, or values that are not positive.
    """
    if len(runs) < 2:
        raise ValueError(f"bands need at least two runs, got {len(runs)}")
    names = runs[0][by].reset_index(drop=True)
    if any(not run[by].reset_index(drop=True).equals(names) for run in runs):
        raise ValueError(f"the runs must agree in their columns {by}")
    values = np.stack([run[value].to_numpy(float) for run in runs])
    if not (values > 0).all():
        raise ValueError(f"{value} must be positive to be compared on a logarithmic scale")
    logs, n = np.log(values), len(runs)
    spread = math.sqrt(logs.var(axis=0, ddof=1).mean() * (1 + 1 / n))
    reach = stats.t.ppf((1 + BAND_CONFIDENCE) / 2, n - 1) * spread
    middle = logs.mean(axis=0)
    return names.assign(low=np.exp(middle - reach), high=np.exp(middle + reach))


def within_bands(run: pd.DataFrame, bands: pd.DataFrame, value: str) -> pd.DataFrame:
    """Compare a reader's run with published bands.

    Args:
        run: a table with the columns that name a row of ``bands``, and ``value``.
        bands: what :func:`expected_bands` returned.
        value: the column that is compared.

    Returns:
        The rows of ``bands`` that the run has too, with columns ``value``, ``low``, ``high`` and
        ``inside``.

    Raises:
        ValueError: if the two have no row in common.
    """
    by = [column for column in bands.columns if column not in ("low", "high")]
    table = run[[*by, value]].merge(bands, on=by)
    if table.empty:
        raise ValueError(f"the run has no row of the bands: their columns {by} never agree")
    return table.assign(inside=table[value].between(table.low, table.high))
