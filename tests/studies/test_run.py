"""A run of a study: what it keeps, what it does not do twice, how long it took."""

from __future__ import annotations

import types

import pandas as pd
import pytest
import torch
from strategies import seeded

from gptheory.data import decaying_process
from gptheory.diffusion import restart, sample
from gptheory.networks import DiT
from gptheory.studies import load_result
from gptheory.studies import run as running
from gptheory.studies.results import SAMPLER
from gptheory.studies.run import Run, in_half_precision, new_network, with_weights
from gptheory.studies.run import seeded as noise
from gptheory.training import TrainConfig
from gptheory.training.config import TrainResult

CPU = torch.device("cpu")
LAW = decaying_process(4, 2)
TINY = TrainConfig(steps=3, batch_size=4, evaluate_n=4)


def fail(*_args, **_kwargs):
    raise AssertionError("computed again")


@pytest.fixture
def run(tmp_path):
    return Run("tiny", CPU, tmp_path, False)


@pytest.fixture
def network():
    return new_network("DiT", 4, 2, seed=3, hidden=8, heads=2, depth=1).requires_grad_(False)


def test_files_are_named_after_the_run_and_what_they_are(run, tmp_path):
    assert run.path("a b / c", "checkpoint") == tmp_path / "tiny-a-b-over-c.checkpoint"


def test_new_networks_are_those_of_their_seed(network):
    again = DiT(2, 4, 8, 2, 1, generator=seeded(3))
    assert all(torch.equal(x, again.state_dict()[k]) for k, x in network.state_dict().items())


def test_sequences_come_in_chunks_each_from_noise_of_its_own(run, network, monkeypatch):
    monkeypatch.setattr(running, "CHUNK", 4)
    x = run.generate("x", network, 10, 5, steps=2)
    parts = [
        sample(
            network,
            size,
            4,
            2,
            steps=2,
            generator=seeded(5 + first),
            show_progress=False,
            **SAMPLER,
        )
        for first, size in ((0, 4), (4, 4), (8, 2))
    ]
    assert torch.equal(x, torch.cat(parts))
    assert len(list(run.folder.glob("tiny-x-*.sequences"))) == 3


def test_chunks_that_are_there_are_not_made_again(run, network, monkeypatch):
    monkeypatch.setattr(running, "CHUNK", 4)
    original, calls = running.sample, []
    x = run.generate("x", network, 10, 5, steps=2)
    run.path("x-00004", "sequences").unlink()
    monkeypatch.setattr(
        running, "sample", lambda *a, **options: calls.append(a[1]) or original(*a, **options)
    )
    assert torch.equal(run.generate("x", network, 10, 5, steps=2), x) and calls == [4]


CHANGES = {
    "seed": {"seed": 6},
    "number": {"n": 3},
    "options": {"steps": 3},
    "repair": {"repair": {"t": 0.3, "steps": 2}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_sequences_of_another_kind_are_made_anew(change, run, network):
    given = {"n": 4, "seed": 5, "steps": 2}
    x = run.generate("x", network, **given)
    other = run.generate("x", network, **(given | CHANGES[change]))
    assert other.shape != x.shape or not torch.equal(other, x)


def test_sequences_of_other_weights_are_made_anew(run, network):
    x = run.generate("x", network, 4, 5, steps=2)
    network.readout.bias.add_(0.1)
    assert not torch.equal(run.generate("x", network, 4, 5, steps=2), x)


def test_a_repair_follows_on_the_same_noise(run, network):
    x = run.generate("x", network, 4, 5, repair={"t": 0.3, "rounds": 2, "steps": 2}, steps=2)
    generator = seeded(5)
    plain = sample(network, 4, 4, 2, steps=2, generator=generator, show_progress=False, **SAMPLER)
    assert torch.equal(x, restart(network, plain, 0.3, 2, 2, generator=generator))


def test_a_network_is_trained_once(run, tmp_path, monkeypatch):
    first = run.train("DiT", new_network("DiT", 4, 2, 0), LAW, TINY)
    monkeypatch.setattr("gptheory.training.loop.Training._update", fail)
    again = Run("tiny", CPU, tmp_path).train("DiT", new_network("DiT", 4, 2, 0), LAW, TINY)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert again.seconds == first.seconds


@pytest.mark.parametrize(("steps", "every"), [(3, 1), (800, 80), (32_000, 200)])
def test_checkpoints_are_a_tenth_of_a_run_apart_and_no_more_than_200_steps(
    steps, every, run, network, monkeypatch
):
    given = []
    result = TrainResult(network, pd.DataFrame(), pd.DataFrame(), 0.0)
    monkeypatch.setattr(running, "fit", lambda *a: given.append(a) or result)
    run.train("DiT", network, LAW, TrainConfig(steps=steps))
    assert given[0][4:] == (run.path("DiT", "checkpoint"), every, False)


def test_seconds_count_what_a_killed_process_trained(tmp_path, network, monkeypatch):
    """Training took 100 s in all, 2 s of them here; the rest of this process 3 s."""
    now = [50.0]

    def resumed(*_):
        now[0] += 2.0
        return TrainResult(network, pd.DataFrame(), pd.DataFrame(), 100.0)

    monkeypatch.setattr(running, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(running, "fit", resumed)
    run = Run("tiny", CPU, tmp_path)
    run.train("DiT", network, LAW, TINY)
    now[0] += 3.0
    assert run.seconds == 103.0
    record = run.save({}, {}, {})
    assert load_result("tiny", record.parent).record["seconds"] == 103.0


def test_results_take_tables_as_frames_or_as_rows(run):
    rows = [{"a": 1, "b": 0.5}, {"a": 2}]
    run.save({"seed": 1}, {"x": 2.0}, {"rows": iter(rows), "frame": pd.DataFrame(rows)})
    result = load_result("tiny", run.folder)
    pd.testing.assert_frame_equal(result.table("rows"), result.table("frame"))
    assert result.numbers == {"x": 2.0} and not result.arrays
    assert result.record["provenance"]["device"] == "cpu"


def test_weights_of_a_result_are_those_of_their_prefix_in_the_networks_dtype(network):
    rounded = in_half_precision(network)
    arrays = running.half_weights(rounded, "a.") | running.half_weights(new_network(
        "DiT", 4, 2, seed=4, hidden=8, heads=2, depth=1), "b.")  # fmt: skip
    again = with_weights(new_network("DiT", 4, 2, 5, hidden=8, heads=2, depth=1), arrays, "a.")
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, rounded.state_dict()[name])


def test_fixed_noise_is_that_of_its_seed():
    assert torch.equal(torch.rand(3, generator=noise(LAW, 7)), torch.rand(3, generator=seeded(7)))
