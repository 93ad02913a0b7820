"""The sweep that holds memory or conditioning fixed: its laws, its numbers, its result."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from tolerances import assert_identity

from gptheory.data import PowerExponential
from gptheory.measures import relative_error, temporal_covariance
from gptheory.studies import along, load_result, reproduce, sensitivities, sweep, sweeps
from gptheory.studies.cells import Cell
from gptheory.studies.decay import AXES, BUDGETS, DECAY, DecayCell
from gptheory.studies.run import Run
from gptheory.studies.sweeps import SweepStudy, sweep_study

LENGTHS = {"quick": 16, "paper": 128}
SMALL = {"seq_len": 4, "steps": 2, "hidden": 8, "depth": 1}


def table_of(path_kl) -> pd.DataFrame:
    """A sweep without training: what a function of a cell and its law says."""
    rows = []
    for cell in DECAY["quick"].cells():
        correlations = cell.process().gram()
        values = torch.linalg.eigvalsh(correlations)
        lags, condition = correlations[0, 1:].sum().item(), (values[-1] / values[0]).item()
        rows.append({**asdict(cell), "path_kl": path_kl(cell, lags, condition)})
    return pd.DataFrame(rows).astype({"n": float})


# ---- cells --------------------------------------------------------------------------------------


def test_a_cell_without_a_nugget_has_the_law_of_its_kernel():
    plain, cell = Cell(n=8, exponent=1.5), DecayCell(n=8, exponent=1.5)
    assert torch.equal(cell.process().gram(), plain.process().gram())
    assert cell.name != plain.name


def test_nuggets_make_other_laws_other_data_and_the_same_weights():
    plain, other = DecayCell(n=8, **SMALL), DecayCell(n=8, condition=3.0, **SMALL)
    values = torch.linalg.eigvalsh(other.process().gram())
    assert_identity(values[-1] / values[0], 3.0)
    assert torch.equal(other.process().spatial, plain.process().spatial)
    assert not torch.allclose(other.training_set(), plain.training_set(), atol=0.1)
    assert torch.equal(*(c.member().model.lift.weight for c in (plain, other)))
    assert plain.shape == other.shape  # trained together


@pytest.mark.parametrize("condition", [1.0, 0.5, -3.0, float("nan")])
def test_cells_refuse_a_condition_that_no_law_has(condition):
    with pytest.raises(ValueError, match="condition must be 0 or above 1"):
        DecayCell(condition=condition)


def test_a_condition_above_that_of_the_kernel_is_recorded(tmp_path):
    cell = DecayCell("stationary", 8, condition=1e6, seq_len=4)
    with pytest.warns(UserWarning, match="1 of 1 cells failed"):
        row = sweep([cell], tmp_path).iloc[0]
    assert "at most that of the Gram matrix" in row["error"]


# ---- what varies along an axis, and what does not -----------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """Price: only conditioning counts. Fresh data: only memory does. Seeds differ."""

    def path_kl(cell, lags, condition):
        fresh = 0.02 + 0.001 * np.log2(lags) + 1e-5 * cell.seed
        if cell.n is None:
            return fresh
        return fresh + (3 + np.log2(condition) + 0.1 * (cell.seed - 3.5)) / cell.n

    return table_of(path_kl)


def test_memory_grows_with_the_exponent_at_one_lengthscale_and_falls_at_one_scale(planted):
    at_one_lengthscale, at_one_scale = along(planted, "lag"), along(planted, "power")
    assert at_one_lengthscale["lags"].round(2).tolist() == [6.06, 6.36, 6.49, 6.54]
    assert at_one_scale["lags"].round(2).tolist() == [10.77, 6.36, 3.11, 2.15]
    assert at_one_scale["band"].tolist() == [16, 16, 12, 7]
    for rows in (at_one_lengthscale, at_one_scale):
        assert rows["condition"].is_unique and rows["exponent"].is_monotonic_increasing


@pytest.mark.parametrize("scale", AXES)
def test_each_axis_holds_what_it_says(scale):
    for axis, laws in AXES[scale].items():
        cells = [
            DecayCell(exponent=nu, lengthscale=ell, condition=kappa, seq_len=LENGTHS[scale])
            for nu, ell, kappa in laws
        ]
        grams = [cell.process().gram() for cell in cells]
        lags = np.array([each[0, 1:].sum().item() for each in grams])
        spectra = [torch.linalg.eigvalsh(each) for each in grams]
        conditions = np.array([(each[-1] / each[0]).item() for each in spectra])
        assert all((each.diagonal() - 1).abs().max() < 1e-12 for each in grams)
        if axis in ("memory", "smoothness"):
            assert_identity(conditions, np.full(len(laws), laws[0][2]), conditions.max())
        if axis in ("conditioning", "smoothness"):
            assert np.ptp(lags) < 1e-3 * lags.mean()  # ℓ is given to three digits behind the point
        if axis in ("memory", "power"):
            assert (np.diff(lags) < -0.9).all()
        if axis == "conditioning":
            assert (np.diff(np.log10(conditions)) > 0.5).all()


def test_memory_is_ordered_at_every_lag_and_not_in_the_sum_only():
    for axis in ("power", "memory"):
        laws = AXES["quick"][axis]
        rows = [
            DecayCell(exponent=nu, lengthscale=ell, condition=kappa).process().gram()[0]
            for nu, ell, kappa in laws
        ]
        assert (torch.stack(rows).diff(dim=0)[:, 2:] < 0).all()


def test_scales_of_the_power_axis_are_those_of_one_kernel():
    for scale in AXES:
        for nu, ell, _ in [*AXES[scale]["power"], *AXES[scale]["memory"]]:
            assert ell == round(PowerExponential.of_power(8.0, nu).lengthscale, 3)


def test_exponents_stay_within_the_assumption_of_a_positive_definite_covariance():
    for scale, study in DECAY.items():
        assert max(cell.exponent for cell in study.cells()) < 2
        assert {cell.seq_len for cell in study.cells()} == {LENGTHS[scale]}


def test_every_law_has_every_size_and_seed():
    for scale, budget in BUDGETS.items():
        laws = {law for axis in AXES[scale].values() for law in axis}
        cells = DECAY[scale].cells()
        assert len(cells) == len(laws) * len(budget["n"]) * len(budget["seed"])


# ---- what is found ------------------------------------------------------------------------------


def test_prices_are_relative_to_the_axis_and_errors_those_of_seeds(planted):
    rows = along(planted, "conditioning")
    true = 3 + np.log2(rows["condition"])
    assert_identity(rows["price"], true / true.mean())
    spread = 0.1 * np.std(np.arange(8), ddof=1) / np.sqrt(8) / true.mean()
    assert_identity(rows["price_error"], np.full(4, spread))
    assert_identity(rows["fresh"], 0.02 + 0.001 * np.log2(rows["lags"]) + 3.5e-5)
    assert_identity(rows["path_kl"] - rows["fresh"], true / 256)


def test_every_size_counts_alike_in_a_price():
    """Two laws cost twice as much at n = 256, where an excess is smallest, and the same before."""

    def path_kl(cell, _lags, _condition):
        twice = 2 if cell.n == 256 and cell.exponent >= 1.5 else 1
        return 0.02 + (0 if cell.n is None else twice * cell.n**-3.0)

    prices = along(table_of(path_kl), "power")["price"]
    assert_identity(prices, [8 / 9, 8 / 9, 10 / 9, 10 / 9])


def test_sensitivities_tell_memory_from_conditioning(planted):
    found = sensitivities(planted)
    assert_identity(found.loc["lags", "fresh"], 0.001, 10)
    assert abs(found.loc["condition", "fresh"]) < 1e-12
    assert abs(found.loc["lags", "price"]) < 1e-9
    laws = planted.groupby(["exponent", "lengthscale", "condition"])["path_kl"]
    assert len(laws) == len({law for axis in AXES["quick"].values() for law in axis})
    relative = 1 / found.loc["condition", "price"]  # the mean of 3 + log2 κ over all laws
    assert 3 + np.log2(30) < relative < 3 + np.log2(2e4)
    assert (found.filter(like="error") < 1e-9).all(axis=None)


def test_order_of_rows_does_not_matter(planted):
    shuffled = planted.sample(frac=1, random_state=0)
    assert np.allclose(along(shuffled, "memory"), along(planted, "memory"), rtol=1e-12)
    assert np.allclose(sensitivities(shuffled), sensitivities(planted), atol=1e-9)


@pytest.mark.parametrize(("axis", "scale"), [("colour", "quick"), ("lag", "huge")])
def test_unknown_axes_are_refused(axis, scale, planted):
    with pytest.raises(ValueError, match=f"no axis '{axis}' at scale '{scale}'; there are quick: "):
        along(planted, axis, scale)


# ---- the study ----------------------------------------------------------------------------------


def test_an_interrupted_study_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    parts = {"own": {"n": [4, None], "condition": [0.0, 3.0], **SMALL}}
    settings, device = SweepStudy(DecayCell, parts), torch.device("cpu")
    whole = sweep_study(settings, Run("tiny", device, tmp_path / "whole", False))
    original, calls = DecayCell.assess, []

    def interrupted(cell, score):
        calls.append(cell)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(cell, score)

    monkeypatch.setattr(DecayCell, "assess", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep_study(settings, Run("tiny", device, tmp_path / "cut", False))
    monkeypatch.setattr(sweeps, "fit_ensemble", lambda *_: pytest.fail("trained again"))
    cut = sweep_study(settings, Run("tiny", device, tmp_path / "cut", False))
    assert len(calls) == 3 + 2
    tables = [load_result("tiny", path.parent).table("cells") for path in (whole, cut)]
    assert tables[0].equals(tables[1])


def test_studies_are_listed_as_what_they_are(capsys):
    assert reproduce.main(["reproduce", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("decay", "variation"):
        assert "scales: quick, paper" in lines[name] and "paper scale never run" in lines[name]
        assert f"{name}-quick" in lines and f"{name}-paper" not in lines


# ---- the committed sweep ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    return load_result("decay-quick")


@pytest.mark.statement("FDGWC Fig. 4a", "FDGWC Theorem 2")
def test_committed_sweep_is_the_whole_grid(committed):
    assert committed.numbers["sweep"] == {"cells": len(DECAY["quick"].cells()), "failed": 0}
    assert {"python", "torch", "machine", "device"} <= committed.record["provenance"].keys()
    assert committed.record["settings"]["format"] == DecayCell.FORMAT
    table, cells = committed.table("cells"), list(DECAY["quick"].cells())
    for name in ("exponent", "lengthscale", "condition", "seed"):
        assert table[name].tolist() == [getattr(cell, name) for cell in cells]


@pytest.mark.statement("FDGWC Fig. 4a", "FDGWC Theorem 2")
def test_price_has_no_order_and_path_kl_has_that_of_the_condition_number(committed):
    """What chapter 6 says of the committed numbers, which are the same on every machine."""
    table = committed.table("cells")
    slopes = sensitivities(table)
    assert (slopes["price"].abs() < 2 * slopes["price_error"]).all()
    for name in ("path_kl", "fresh"):
        assert slopes.loc["condition", name] > 10 * slopes.loc["condition", f"{name}_error"]
        assert -slopes.loc["lags", name] > 5 * slopes.loc["lags", f"{name}_error"]
    at_one_memory, alike = along(table, "conditioning"), along(table, "smoothness")
    assert at_one_memory["fresh"].is_monotonic_increasing
    assert at_one_memory["fresh"].max() > 3 * at_one_memory["fresh"].min()
    assert alike["fresh"].max() < 1.25 * alike["fresh"].min()


@pytest.mark.statement("FDGWC Theorem 2")
def test_a_law_of_the_committed_sweep_is_the_one_its_row_names(committed):
    """A training set's own error has no training in it: another machine finds the same."""
    rows = committed.table("cells").query("n == 64 and seed == 0 and condition > 0")
    for row in [rows.iloc[0], rows.iloc[-1]]:
        given = {name: row[name] for name in ("exponent", "lengthscale", "condition")}
        cell = DecayCell(n=64, seed=0, **given)
        x, law = cell.training_set(), cell.process()
        error = relative_error(temporal_covariance(x, law.mean), law.gram())
        assert abs(error / row["data_covariance"] - 1) < 1e-3
