"""Networks on long sequences: what is stored, what is committed."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from strategies import seeded

from gptheory.measures import lag_products, path_kl, spectral_ratios
from gptheory.studies import load_result, stored_network
from gptheory.studies.long import BANDS, LAGS, LONG, SCORE_STEPS, long_sequences
from gptheory.studies.run import Run, in_half_precision
from gptheory.studies.run import seeded as seeded_on
from gptheory.training import TrainConfig

SMALL = replace(
    LONG["quick"],
    seq_len=128,
    training=TrainConfig(steps=2, batch_size=1, log_every=1, evaluate_n=2, evaluate_at=(0.1,)),
    samples=2,
    solver_steps=3,
    networks={
        name: {**options, "hidden": 8, "heads": 2, "depth": 1}
        for name, options in LONG["quick"].networks.items()
    },
)  # fmt: skip


def run(folder):
    long_sequences(SMALL, Run("tiny", torch.device("cpu"), folder, False))
    return load_result("tiny", folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return run(tmp_path_factory.mktemp("long"))


def test_study_stores_a_row_for_every_network_lag_band_and_step(tiny):
    names = ["exact", "no memory", *SMALL.networks]
    for table, per in (("lags", len(LAGS)), ("spectrum", BANDS), ("scores", len(SCORE_STEPS))):
        assert tiny.table(table)["network"].tolist() == [n for n in names for _ in range(per)]
    assert list(tiny.numbers) == names
    assert tiny.numbers["exact"]["path_kl"] == 0 < tiny.numbers["no memory"]["path_kl"]


def test_numbers_are_those_of_the_stored_weights(tiny):
    law = SMALL.process()
    for name in SMALL.networks:
        network = stored_network(tiny, name)
        assert in_half_precision(network).state_dict().keys() == network.state_dict().keys()
        found = path_kl(network, law, n=SMALL.monte_carlo, generator=seeded_on(law, 101))
        assert found == pytest.approx(tiny.numbers[name]["path_kl"], rel=1e-5)


def test_an_interrupted_study_ends_as_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    from gptheory.studies import long

    kept = long.new_network

    def killed(kind, seq_len, dim, seed, **options):
        if options["attention"] == "window":
            raise KeyboardInterrupt
        return kept(kind, seq_len, dim, seed, **options)

    monkeypatch.setattr(long, "new_network", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(long, "new_network", kept)
    again = run(tmp_path)
    for name, value in tiny.arrays.items():
        assert torch.equal(value, again.arrays[name])


@pytest.fixture(scope="module")
def committed():
    return load_result("long-paper")


@pytest.mark.statement("HWLSL Practical guidance")
def test_committed_result_is_of_these_settings(committed):
    settings = committed.record["settings"]
    own = asdict(LONG["paper"])
    assert {k: v for k, v in settings.items() if k in ("lengthscale", "seq_len", "samples")} == {
        k: own[k] for k in ("lengthscale", "seq_len", "samples")
    }
    for key in ("steps", "batch_size", "learning_rate", "seed"):
        assert settings["training"][key] == own["training"][key]
    assert {"python", "torch", "machine", "device"} <= committed.record["provenance"].keys()


@pytest.mark.statement("HWLSL Practical guidance")
def test_committed_numbers_are_those_of_the_stored_networks(committed):
    """On fewer sequences, which say as much: each is 8192 coordinates."""
    law = LONG["paper"].process()
    for name in LONG["paper"].networks:
        network = stored_network(committed, name)
        found = path_kl(network, law, n=8, generator=seeded(0))
        assert found == pytest.approx(committed.numbers[name]["path_kl"], rel=0.2)


def test_committed_exact_rows_are_within_their_errors(committed):
    lags = committed.table("lags").query("network == 'exact'")
    truth = LONG["paper"].process().autocovariance()[lags["lag"].tolist()].numpy()
    # the sampler stops at t = .005: every mode's variance is changed by less than 5 %
    assert (abs(lags["product"] - truth) < 4 * lags["standard_error"] + 0.05 * truth).all()


def test_measures_of_the_law_itself_have_the_errors_they_state():
    law = LONG["paper"].process()
    x = law.sample(4, seeded(1))
    products, error = lag_products(x, law, LAGS)
    assert ((products - law.autocovariance()[list(LAGS)]).abs() < 4 * error).all()
    ratios, error = spectral_ratios(x, law, BANDS)
    assert ((ratios - 1).abs() < 4 * error).all()
