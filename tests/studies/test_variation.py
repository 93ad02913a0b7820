"""The measurement of total variation of trained networks: its cells and its committed result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategies import seeded

from gptheory.diffusion import ExactScore, WienerScore, alpha, sigma
from gptheory.measures import gaussian_kl, gaussian_tv, total_variation
from gptheory.studies import load_result, sweep, sweeps
from gptheory.studies.cells import Cell
from gptheory.studies.run import Run
from gptheory.studies.sweeps import SweepStudy, sweep_study
from gptheory.studies.variation import VARIATION, VariationCell

SMALL = {"seq_len": 4, "steps": 2, "hidden": 8, "depth": 1, "draws": 8, "flow_steps": 2}
T0 = 0.005


def noised_wiener(cell: Cell) -> tuple[torch.Tensor, ...]:
    """Covariance of the data at t_0, covariance and mean of what the Wiener filter generates."""
    law, x = cell.process(), cell.training_set().flatten(1).double()
    covariances = law.covariance(), torch.cov(x.T, correction=0)
    white = sigma(T0) ** 2 * torch.eye(x.shape[1], dtype=torch.float64)
    p, q = (alpha(T0) ** 2 * each + white for each in covariances)
    return p, q, alpha(T0) * x.mean(dim=0)


# ---- cells --------------------------------------------------------------------------------------


def test_cells_are_trained_as_those_of_the_large_sweep():
    own, plain = VariationCell(n=8, seq_len=4), Cell(n=8, seq_len=4)
    assert torch.equal(own.training_set(), plain.training_set())
    assert torch.equal(*(c.member().model.lift.weight for c in (own, plain)))
    assert own.member().seed == plain.member().seed and own.name != plain.name
    finer = VariationCell(n=8, seq_len=4, flow_steps=48)
    assert finer.shape == own.shape and finer.name != own.name  # one group, one network


def test_the_exact_score_is_at_no_distance():
    cell = VariationCell(n=8, seq_len=4)
    numbers = cell.assess(ExactScore(cell.process()))
    assert numbers["tv"] < 1e-3 and abs(numbers["kl"]) < 1e-3
    assert numbers["path_kl"] < 1e-9


def test_distance_is_that_of_the_closed_form():
    cell = VariationCell("wiener", 40, seq_len=4)
    numbers = cell.assess(WienerScore(cell.training_set()))
    p, q, mean = noised_wiener(cell)
    for name, truth in (("tv", gaussian_tv), ("kl", gaussian_kl)):
        error = numbers[f"{name}_error"]
        assert abs(numbers[name] - truth(p, q, mean_q=mean)) < 5 * error + 2e-3
        assert error < 0.1


def test_numbers_are_those_of_the_measure_and_of_a_cell():
    cell = VariationCell("wiener", 20, **SMALL)
    score = WienerScore(cell.training_set())
    numbers, plain = cell.assess(score), Cell("wiener", 20, seq_len=4).assess(score)
    again = total_variation(score, cell.process(), 8, steps=2, generator=seeded(401))
    assert numbers["tv"] == again.value and numbers["kl_error"] == again.kl_error
    assert plain.items() <= numbers.items()
    assert numbers.keys() - plain.keys() == {"tv", "tv_error", "kl", "kl_error"}


@pytest.mark.parametrize("name", ["draws", "flow_steps"])
def test_cells_refuse_counts_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        VariationCell(**{name: 0})


def test_an_interrupted_study_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    settings = SweepStudy(VariationCell, {"own": {"n": [4, None], "seed": [0, 1], **SMALL}})
    device = torch.device("cpu")
    whole = sweep_study(settings, Run("tiny", device, tmp_path / "whole", False))
    original, calls = VariationCell.assess, []

    def interrupted(cell, score):
        calls.append(cell)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(cell, score)

    monkeypatch.setattr(VariationCell, "assess", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep_study(settings, Run("tiny", device, tmp_path / "cut", False))
    monkeypatch.setattr(sweeps, "fit_ensemble", lambda *_: pytest.fail("trained again"))
    cut = sweep_study(settings, Run("tiny", device, tmp_path / "cut", False))
    tables = [load_result("tiny", path.parent).table("cells") for path in (whole, cut)]
    assert tables[0].equals(tables[1]) and len(calls) == 2 + 3


# ---- the committed measurement ------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    return load_result("variation-quick")


@pytest.fixture(scope="module")
def networks(committed):
    table = committed.table("cells")
    return table[table["part"] == "networks"].fillna({"n": np.inf})


@pytest.mark.statement("FDGWC Theorem 2")
def test_committed_measurement_is_the_whole_grid(committed, networks):
    assert committed.numbers["sweep"] == {"cells": len(VARIATION["quick"].cells()), "failed": 0}
    assert {"python", "torch", "machine", "device"} <= committed.record["provenance"].keys()
    assert (networks.groupby("n")["seed"].nunique() == 3).all()
    assert sorted(networks["n"].unique()) == [64, 256, 1024, np.inf]


@pytest.mark.statement("FDGWC Theorem 2")
def test_distances_keep_below_their_ceilings(networks):
    """Pinsker holds for the true laws: the estimates may miss by their errors."""
    slack = networks["tv_error"] + networks["kl_error"] / networks["kl"] ** 0.5
    assert (networks["tv"] <= (networks["kl"] / 2) ** 0.5 + 3 * slack).all()
    girsanov = 32 * networks["path_kl"]
    assert (networks["kl"] <= girsanov + 5 * networks["kl_error"]).all()


@pytest.mark.statement("FDGWC Theorem 2")
def test_closed_forms_of_the_measurement_agree_with_the_integral(committed):
    closed = committed.table("cells").query("part == 'closed'")
    assert len(closed) == 9
    for row in closed.itertuples():
        cell = VariationCell("wiener", int(row.n), seed=int(row.seed))
        p, q, mean = noised_wiener(cell)
        assert abs(row.tv - gaussian_tv(p, q, mean_q=mean)) < 5 * row.tv_error
        assert abs(row.kl - gaussian_kl(p, q, mean_q=mean)) < 5 * row.kl_error


@pytest.mark.statement("FDGWC Theorem 2")
def test_twice_the_steps_of_the_flow_find_the_same(committed, networks):
    finer = committed.table("cells").query("part == 'solver'").iloc[0]
    own = networks.query("n == 256 and seed == 0").iloc[0]
    assert finer["path_kl"] == own["path_kl"]  # one network
    assert abs(finer["tv"] - own["tv"]) < 2e-3 and abs(finer["kl"] - own["kl"]) < 0.02


@pytest.mark.statement("FDGWC Theorem 2")
def test_a_cell_of_the_committed_measurement_is_reproduced(committed, tmp_path):
    row = committed.table("cells").query("part == 'closed' and n == 256 and seed == 1").iloc[0]
    again = sweep([VariationCell("wiener", 256, seed=1)], tmp_path).iloc[0]
    for name in ("tv", "kl", "path_kl", "covariance"):
        assert abs(again[name] / row[name] - 1) < 2e-3, name
