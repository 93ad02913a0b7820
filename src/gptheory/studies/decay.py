r"""The sweep behind chapter 6's question: what makes a law dear, its memory or its conditioning?

Fig. 4a varies the exponent ν of the kernel, which changes both. Here each changes while the other
is held, by a nugget (:func:`.conditioned`). A law is (ν, ℓ, κ), with κ = 0 for the kernel without
nugget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ..data.covariance import conditioned
from ..data.process import GaussianProcess
from .cells import Cell
from .fig4a import excess
from .sweeps import SweepStudy

Law = tuple[float, float, float]
NAMES = ["exponent", "lengthscale", "condition"]  # of the fields that decide a law
NEGLIGIBLE = 0.01  # correlation of frames outside the band J


@dataclass(frozen=True)
class DecayCell(Cell):
    r"""A :class:`.Cell` whose law may have a nugget.

    Source: FDGWC Theorem 2; FDGWC Fig. 4a.

    Args:
        condition: condition number κ(Γ), see :func:`.conditioned`; 0 for the kernel as it is.

    Raises:
        ValueError: as for a cell, or for a condition that is neither 0 nor above 1.
    """

    FORMAT: ClassVar[str] = "decay-1"
    OWN: ClassVar[frozenset[str]] = Cell.OWN | {"condition"}
    LAW: ClassVar[tuple[str, ...]] = (*Cell.LAW, "condition")

    condition: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition != 0 and not self.condition > 1:
            raise ValueError(f"condition must be 0 or above 1, got {self.condition!r}")

    def process(self) -> GaussianProcess:
        """The law of the sequences. Source: FDGWC Data model."""
        law = super().process()
        if self.condition == 0:
            return law
        return GaussianProcess(conditioned(law.gram(), self.condition), law.spatial)


# what varies -> its laws. ℓ is s^(1/ν) of exp(-r^ν/s) with s = 8 where it is 64, 4 or 2.988; where
# memory is fixed, it makes the sum of all lags that of ν = 1, ℓ = 8 with the axis's nugget
AXES: dict[str, dict[str, list[Law]]] = {
    "quick": {
        "lag": [(0.5, 8.0, 0.0), (1.0, 8.0, 0.0), (1.5, 8.0, 0.0), (1.9, 8.0, 0.0)],
        "power": [(0.5, 64.0, 0.0), (1.0, 8.0, 0.0), (1.5, 4.0, 0.0), (1.9, 2.988, 0.0)],
        "memory": [(0.5, 64.0, 100.0), (1.0, 8.0, 100.0), (1.5, 4.0, 100.0), (1.9, 2.988, 100.0)],
        "conditioning": [
            (1.9, 11.033, 30.0), (1.9, 8.365, 100.0), (1.9, 7.634, 1000.0), (1.9, 7.567, 10000.0),
        ],
        "smoothness": [
            (0.5, 9.955, 30.0), (1.0, 12.02, 30.0), (1.5, 11.4, 30.0), (1.9, 11.033, 30.0),
        ],
    },
    "paper": {
        "lag": [(0.5, 8.0, 0.0), (1.0, 8.0, 0.0), (1.5, 8.0, 0.0), (1.9, 8.0, 0.0)],
        "power": [(0.5, 64.0, 0.0), (1.0, 8.0, 0.0), (1.5, 4.0, 0.0), (1.9, 2.988, 0.0)],
        "memory": [(0.5, 64.0, 200.0), (1.0, 8.0, 200.0), (1.5, 4.0, 200.0), (1.9, 2.988, 200.0)],
        "conditioning": [
            (1.9, 11.798, 60.0), (1.9, 9.598, 200.0), (1.9, 9.025, 1000.0), (1.9, 8.906, 10000.0),
        ],
        "smoothness": [(1.0, 9.883, 60.0), (1.5, 11.512, 60.0), (1.9, 11.798, 60.0)],
    },
}  # fmt: skip

BUDGETS: dict[str, dict[str, Any]] = {
    "quick": {"n": [64, 128, 256, None], "seed": list(range(8)), "steps": 600},
    "paper": {
        "n": [64, 128, 256, 512, 1024, None], "seed": list(range(8)), "steps": 6000, "hidden": 64,
        "seq_len": 128, "dim": 8,
    },
}  # fmt: skip


def parts(scale: str) -> dict[str, Mapping[str, Any]]:
    """The grids of a scale, one for every law of every axis."""
    return {
        f"{axis} {k}": {**dict(zip(NAMES, law, strict=True)), **BUDGETS[scale]}
        for axis, laws in AXES[scale].items()
        for k, law in enumerate(laws)
    }


# "quick" is committed. "paper", the shape of the paper's Figure 1, has not been run by anyone: we
# have not even tried whether its budget is enough
DECAY = {scale: SweepStudy(DecayCell, parts(scale)) for scale in AXES}


def along(table: pd.DataFrame, axis: str, scale: str = "quick") -> pd.DataFrame:
    """What varies along an axis, and what a finite training set costs there.

    Args:
        table: of the sweep, ``load_result("decay-quick").table("cells")``.
        axis: ``"lag"``, the kernel exp(-(r/ℓ)^ν) at one ℓ; ``"power"``, exp(-r^ν/8);
            ``"memory"``, the same with one κ; ``"conditioning"``, ν = 1.9 with one sum of lags;
            ``"smoothness"``, several ν with one κ and one sum of lags.
        scale: of the sweep.

    Returns:
        One row a law: ``exponent``, ``lengthscale``; ``lags``, the sum of its correlations at
        lags 1 to N - 1; ``condition``, κ(Γ); ``band``, the number J of lags, 0 among them, where it
        is above 0.01; ``price``, the excess path KL relative to the axis's mean at the same n,
        averaged over n; ``path_kl`` at the largest n; ``fresh``, that on fresh data. The last three
        have their standard errors over seeds, in ``price_error`` and so on.

    Raises:
        ValueError: for an unknown axis or scale.
    """
    laws = _laws(axis, scale)
    known = pd.DataFrame([_properties(law, scale) for law in laws])
    chosen = table[pd.MultiIndex.from_frame(table[NAMES]).isin(laws)]
    grouped = _by_seed(chosen).groupby(NAMES)
    means, errors = (
        each.loc[laws].reset_index(drop=True) for each in (grouped.mean(), grouped.sem())
    )
    return pd.concat([known, means, errors.add_suffix("_error")], axis=1)


def sensitivities(table: pd.DataFrame, scale: str = "quick") -> pd.DataFrame:
    r"""What twice the memory and twice the condition number add, over all laws of a sweep at once.

    Least squares of ``price`` (relative to the mean of all laws), ``path_kl`` and ``fresh`` of
    :func:`along` on :math:`\log_2` of the sum of lags and of κ, for every seed.

    Args:
        table, scale: as there.

    Returns:
        One row for ``lags`` and one for ``condition``: the slopes' means over seeds, and with
        ``_error`` their standard errors.
    """
    by_seed = _by_seed(table)
    laws = list(by_seed.index.droplevel("seed").unique())
    known = pd.DataFrame([_properties(law, scale) for law in laws])[["lags", "condition"]]
    inverse = np.linalg.pinv(np.column_stack([np.ones(len(laws)), np.log2(known)]))[1:]
    found = {}
    for name in by_seed:
        values = by_seed[name].unstack("seed").loc[laws]
        slopes = inverse @ values.to_numpy()
        found[name] = slopes.mean(axis=1)
        found[f"{name}_error"] = slopes.std(axis=1, ddof=1) / slopes.shape[1] ** 0.5
    return pd.DataFrame(found, index=known.columns)


def _laws(axis: str, scale: str) -> list[Law]:
    if scale not in AXES or axis not in AXES[scale]:
        known = "; ".join(f"{name}: {', '.join(axes)}" for name, axes in AXES.items())
        raise ValueError(f"no axis {axis!r} at scale {scale!r}; there are {known}")
    return AXES[scale][axis]


def _properties(law: Law, scale: str) -> dict[str, float]:
    """The law and what the bound has of it: memory, conditioning, band."""
    named = dict(zip(NAMES, law, strict=True))
    cell = DecayCell(**named, seq_len=BUDGETS[scale].get("seq_len", DecayCell.seq_len))
    process = cell.process()
    values, correlations = process.temporal_spectrum[0], process.gram()[0]
    return {
        **named,
        "lags": correlations[1:].sum().item(),
        "condition": (values[-1] / values[0]).item(),
        "band": int((correlations > NEGLIGIBLE).sum()),
    }


def _by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Price, path KL at the largest n and on fresh data, indexed by law and seed."""
    costs = excess(table, fields=[field.name for field in fields(DecayCell)])
    costs["price"] = costs["excess"] / costs.groupby("n")["excess"].transform("mean")
    costs["fresh"] = costs["path_kl"] - costs["excess"]
    keys = [*NAMES, "seed"]
    most = costs[costs["n"] == costs["n"].max()].set_index(keys)[["path_kl", "fresh"]]
    return most.assign(price=costs.groupby(keys)["price"].mean())
