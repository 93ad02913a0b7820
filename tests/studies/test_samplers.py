"""Networks sampled in several ways: what is counted, what is computed, what is committed."""

from __future__ import annotations

import pytest
import torch
from strategies import seeded
from tolerances import assert_identity

from gptheory.data import decaying_process
from gptheory.diffusion import ExactScore, sample
from gptheory.studies import load_result, stored_network
from gptheory.studies.run import Run
from gptheory.studies.samplers import (
    GROUPS,
    NEW,
    RUNS,
    SAMPLERS,
    Samplers,
    _exact,
    _generated,
    samplers,
)

LAW = decaying_process(8, 4, 3.0)


def test_groups_hold_every_mode_once_faintest_first():
    rows = _generated(LAW.sample(2, seeded(0)), LAW)
    variances = [row["variance"] for row in rows]
    assert len(rows) == GROUPS and variances == sorted(variances)
    spectrum = torch.outer(LAW.temporal_spectrum[0], LAW.spatial_spectrum[0])
    assert sum(variances) / GROUPS == pytest.approx(spectrum.mean().item(), rel=1e-12)


def test_the_law_itself_has_ratio_one_and_a_tenth_more_shows():
    x = LAW.sample(4000, seeded(0), torch.float64)
    for scale in (1.0, 1.1):
        for row in _generated(scale * x, LAW):
            assert abs(row["ratio"] - scale**2) < 4 * row["standard_error"] < 0.06


def test_means_are_subtracted():
    moved = type(LAW)(LAW.gram(), LAW.spatial, torch.full((4,), 3.0))
    x = LAW.sample(8, seeded(0), torch.float64)
    for plain, shifted in zip(_generated(x, LAW), _generated(x + 3, moved), strict=True):
        assert_identity(torch.tensor(shifted["ratio"]), torch.tensor(plain["ratio"]))


@pytest.mark.parametrize("name", ["before, 20", "now, 20"])
def test_computed_ratios_are_those_of_sequences(name):
    x = sample(
        ExactScore(LAW), 3000, 8, 4, generator=seeded(0), dtype=torch.float64,
        show_progress=False, **RUNS[name],
    )  # fmt: skip
    for computed, drawn in zip(_exact(LAW, RUNS[name]), _generated(x, LAW), strict=True):
        assert abs(computed["ratio"] - drawn["ratio"]) < 4.5 * drawn["standard_error"]


def test_study_stores_a_row_for_every_sampler_score_and_group(tmp_path):
    few = {name: {**options, "steps": 2} for name, options in RUNS.items()}
    settings = Samplers("fig1-paper", ("UNet1d",), SAMPLERS["paper"].data, few, 2)
    samplers(settings, Run("tiny", torch.device("cpu"), tmp_path, False))
    result = load_result("tiny", tmp_path)
    modes, covariances = result.table("modes"), result.table("covariances")
    assert len(modes) == len(RUNS) * 2 * GROUPS and len(covariances) == len(RUNS)
    assert (modes.query("score == 'exact'")["standard_error"] == 0).all()


@pytest.fixture(scope="module")
def committed():
    return load_result("samplers-paper")


def test_committed_result_is_of_these_settings(committed):
    settings = committed.record["settings"]
    assert settings["samplers"] == RUNS and settings["samples"] == SAMPLERS["paper"].samples


def test_committed_exact_rows_are_computed_again(committed):  # to their six digits
    law = decaying_process(**SAMPLERS["paper"].data)
    modes = committed.table("modes").query("score == 'exact'").set_index(["sampler", "group"])
    for name in ("before, 20", "now, 20"):
        for row in _exact(law, RUNS[name]):
            stored = modes.loc[(name, row["group"])]
            assert stored["ratio"] == pytest.approx(row["ratio"], rel=6e-6)
            assert stored["variance"] == pytest.approx(row["variance"], rel=6e-6)


def test_committed_rows_are_those_of_the_stored_network(committed):
    law = decaying_process(**SAMPLERS["paper"].data)
    network = stored_network(load_result("fig1-paper"), "DiT")
    x = sample(network, 16, 128, 8, generator=seeded(5), show_progress=False, steps=20, **NEW)
    modes = committed.table("modes").query("score == 'DiT' and sampler == 'now, 20'")
    for stored, row in zip(modes["ratio"], _generated(x, law), strict=True):
        assert abs(stored - row["ratio"]) < 4.5 * row["standard_error"]
