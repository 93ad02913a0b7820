"""The sweep of chapter 6: its result, its slopes, its pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from gptheory.studies import excess, fitted_slope, load_result, sweep
from gptheory.studies.cells import Cell
from gptheory.studies.fig4a import COMPLEXITY
from gptheory.studies.results import stored_results
from gptheory.studies.run import Run
from gptheory.studies.sweeps import SweepStudy, collect, sweep_study

TINY = SweepStudy(
    Cell,
    {
        "networks": {
            "n": [4, None], "lengthscale": [2.0, 4.0], "seq_len": 4, "steps": 2, "hidden": 8,
            "depth": 1,
        },
        "closed": {"estimator": "stationary", "n": [4, 8], "seq_len": 4},
    },
)  # fmt: skip


def test_result_holds_every_cell_and_its_part(tmp_path):
    path = sweep_study(TINY, Run("tiny", torch.device("cpu"), tmp_path))
    result = load_result("tiny", path.parent)
    table = result.table("cells")
    assert list(table["part"]) == ["networks"] * 4 + ["closed"] * 2
    assert result.numbers == {"sweep": {"cells": 6, "failed": 0}}
    assert result.record["seconds"] > 0
    whole = collect(TINY.cells(), tmp_path / "tiny")
    assert np.allclose(table["path_kl"], whole["path_kl"], rtol=1e-5)
    assert list(table["n"].isna()) == [False, False, True, True, False, False]
    assert list(table.columns) == ["part", *whole.columns]
    assert set(table["seq_len"]) == {4} and table["error"].isna().all()


def test_slopes_of_a_power_law():
    n = np.repeat([16, 64, 256, 1024], 3)
    noise = np.random.default_rng(0).normal(size=n.size)
    slope, reach = fitted_slope(n, 5.0 * n**-0.8)
    assert abs(slope + 0.8) < 1e-12 and reach < 1e-9
    errors = 5.0 * n**-0.8 * np.exp(0.1 * noise)
    slope, reach = fitted_slope(n, errors)
    reference = stats.linregress(np.log(n), np.log(errors))
    assert abs(slope / reference.slope - 1) < 1e-12
    assert abs(reach / (stats.t.ppf(0.975, n.size - 2) * reference.stderr) - 1) < 1e-9


def test_intervals_of_slopes_cover_the_truth_as_often_as_they_say():
    random, n = np.random.default_rng(1), np.repeat([16, 64, 256], 4)
    inside = 0
    for _ in range(400):
        slope, reach = fitted_slope(n, np.exp(-np.log(n) + 0.3 * random.normal(size=n.size)))
        inside += abs(slope + 1) < reach
    assert abs(inside / 400 - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        ([1, 2], [1.0, 1.0], "three or more points"),
        ([2, 2, 2], [1.0, 1.0, 1.0], "several sizes"),
        ([1, 2, 3], [1.0, 0.0, 1.0], "errors must be positive"),
        ([0, 1, 2, 4], [1.0, 1.0, 1.0, 1.0], "sizes must be positive"),
        ([1, 2, np.inf], [1.0, 1.0, 1.0], "sizes must be positive and finite"),
    ],
)
def test_slopes_refuse_bad_input(n, error, message):
    with pytest.raises(ValueError, match=message):
        fitted_slope(np.array(n), np.array(error))


def test_excess_is_taken_from_the_paired_run():
    rows = [
        {"n": n, "seed": seed, "lengthscale": ell, "path_kl": kl}
        for n, seed, ell, kl in [
            (16, 0, 2.0, 5.0), (16, 1, 2.0, 7.0), (16, 0, 8.0, 9.0),
            (None, 0, 2.0, 1.0), (None, 1, 2.0, 2.0), (None, 0, 8.0, 4.0),
        ]
    ]  # fmt: skip
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    found = excess(table).set_index(["seed", "lengthscale"])["excess"]
    assert found[0, 2.0] == 4.0 and found[1, 2.0] == 5.0 and found[0, 8.0] == 5.0
    with pytest.raises(ValueError, match=r"no run on fresh data agrees with .*'seed': 1"):
        excess(pd.DataFrame(rows[:4]))


# ---- the committed sweep ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    table = load_result("fig4a-paper").table("cells")
    return table[table["part"] == "networks"]


@pytest.mark.statement("FDGWC Fig. 4a", "FDGWC Theorem 2")
def test_committed_sweep_is_the_whole_grid(networks):
    assert "fig4a-paper" in stored_results()
    finite = networks[networks["n"].notna()]
    assert len(finite) == 9 * 4 * 5 * 4 and len(networks) == len(finite) + 80
    record = load_result("fig4a-paper").record
    assert record["numbers"]["sweep"]["cells"] == len(COMPLEXITY["paper"].cells())
    assert {"python", "torch", "machine", "device"} <= record["provenance"].keys()


@pytest.mark.statement("FDGWC Fig. 4a", "FDGWC Theorem 2")
def test_error_falls_with_the_number_of_sequences(networks):
    """Means over seeds; excess over the paired run on fresh data, n = 32 to 256."""
    costs = excess(networks).query("16 < n < 512")
    for _, rows in costs.query("exponent == 1").groupby("lengthscale"):
        assert rows.groupby("n")["excess"].mean().is_monotonic_decreasing
    at_8 = costs.query("lengthscale == 8")
    for exponent, rows in at_8.groupby("exponent"):
        slope, reach = fitted_slope(rows["n"], rows["excess"])
        print(f"ν = {exponent}: slope {slope:.2f} ± {reach:.2f}")
        assert slope - reach < -1 and slope + reach < -0.5  # one law's four seeds tell no more
    slope, reach = fitted_slope(at_8["n"], at_8["excess"])
    assert slope + reach < -1


@pytest.mark.statement("FDGWC Theorem 2")
def test_a_cell_of_the_committed_sweep_is_reproduced(tmp_path):
    """One in closed form, from its settings alone."""
    cells = [c for c, part in COMPLEXITY["paper"].cells().items() if part == "closed"]
    cell = next(c for c in cells if c.estimator == "stationary" and c.n == 256)
    stored = load_result("fig4a-paper").table("cells").query(
        "estimator == 'stationary' and n == 256 and lengthscale == @cell.lengthscale and seed == 0"
    )  # fmt: skip
    again = sweep([cell], tmp_path).iloc[0]
    for name in ("path_kl", "covariance", "data_covariance", "nearest"):
        assert abs(again[name] / stored.iloc[0][name] - 1) < 1e-3, name
