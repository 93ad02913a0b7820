"""Training on from the constructed transformer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from strategies import seeded
from tolerances import assert_float32, assert_identity

from gptheory.data import decaying_process
from gptheory.diffusion import UnrolledScore, perturb
from gptheory.measures import relative_error
from gptheory.studies import finetune, load_result
from gptheory.studies.finetune import FINE_TUNING, STARTS, FineTuning, keep_zeros, toeplitz_defect
from gptheory.studies.run import Run
from gptheory.training import TrainConfig, fit
from gptheory.training.loop import Training

LAW = decaying_process(4, 2, 2.0)
TINY = FineTuning(
    {"seq_len": 4, "dim": 2, "lengthscale": 2.0},
    TrainConfig(steps=5, batch_size=4, weight_decay=0.0, evaluate_n=8),
    steps=2,
    rates={STARTS[0]: (1e-6,), STARTS[1]: (1e-6, 1e6), STARTS[2]: (1e-3,)},
    noise=(1e-7, 1e-1),
    seeds=(0,),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(folder):
    finetune.fine_tuning(TINY, Run("tiny", torch.device("cpu"), folder, False))
    return load_result("tiny", folder)


def test_kept_zeros_stay_and_the_others_move():
    network = finetune.built(TINY)
    network.check_ranges = False
    before = [p.detach().clone() for p in network.parameters()]
    keep_zeros(network)
    fit(network, LAW, dataclasses.replace(TINY.training, learning_rate=1e-4))
    moved = 0
    for old, new in zip(before, network.parameters(), strict=True):
        assert (new[old == 0] == 0).all()
        moved += (new != old).sum().item()
    nonzero = sum((old != 0).sum().item() for old in before)
    assert nonzero / 2 < moved <= nonzero < sum(old.numel() for old in before)


def test_toeplitz_defect_is_the_distance_from_the_diagonal_averages():
    maps = torch.randn(3, 5, 5, generator=seeded(0), dtype=torch.float64)
    expected = torch.zeros_like(maps)
    for m in range(-4, 5):
        for h in range(3):
            rows = torch.arange(max(0, -m), min(5, 5 - m))
            expected[h, rows, rows + m] = maps[h].diagonal(m).mean()
    assert_identity(toeplitz_defect(maps), ((maps - expected).norm() / maps.norm()).item())
    assert toeplitz_defect(expected) < 1e-12


def test_what_moved_is_measured_on_the_scores_of_every_block():
    before, after = finetune.built(TINY), finetune.built(TINY)
    finetune.shake(after, ("query", "value"), 0.1, seeded(0))
    draw = seeded(7)
    v, _ = perturb(LAW.sample(1, draw), 0.1, draw)
    old, new = (
        torch.cat(
            [b.attention.scores(y)[0] for b, y in zip(n.blocks, n.states(v, 0.1), strict=False)]
        )
        for n in (before, after)
    )
    assert len(old) == sum(len(block.attention.query) for block in before.blocks)
    moved = finetune._moved(before, after, LAW)
    found = [moved[f"toeplitz defect {when}"] for when in ("before", "after")]
    expected = [relative_error(new, old), toeplitz_defect(old), toeplitz_defect(new)]
    assert_float32([moved["attention moved"], *found], expected)
    assert moved["path_kl after"] == finetune._divergence(after, LAW)


def test_table_has_every_run_and_says_what_diverged(result):
    runs = result.table("runs").set_index(["start", "learning rate"])
    assert len(runs) == 4
    wild = runs.loc[(STARTS[1], 1e6)]
    tame = runs.drop((STARTS[1], 1e6))
    assert wild.diverged or not wild["path_kl after"] < wild["path_kl before"]
    assert not tame.diverged.any() and (tame["weights moved"] > 0).all()
    assert (tame["attention moved"] > 0).all()
    kept, free = (runs.loc[(start, 1e-6)] for start in STARTS[:2])
    assert kept["path_kl after"] != free["path_kl after"]
    constructed = [STARTS[0], STARTS[1]]
    descent = finetune._divergence(UnrolledScore(LAW, 2), LAW)
    # the construction in single precision is gradient descent, before it is trained
    before = runs.loc[constructed]["path_kl before"]
    assert (before.sub(descent).abs() < 1e-3 * descent).all()
    assert result.numbers["gradient descent"]["path_kl"] == descent
    assert runs.loc[STARTS[2]]["path_kl before"].iloc[0] != before.iloc[0]


def test_study_goes_on_where_it_was(result, folder, monkeypatch):
    """What has been trained is not trained again; the run that diverged diverges again."""
    updates, update = [], Training._update
    monkeypatch.setattr(Training, "_update", lambda own: updates.append(own) or update(own))
    finetune.fine_tuning(TINY, Run("tiny", torch.device("cpu"), folder, False))
    assert load_result("tiny", folder).record["tables"] == result.record["tables"]
    assert len({id(own) for own in updates}) == result.table("runs").diverged.sum()


@pytest.mark.parametrize("names", [("query", "key"), ("value", "output")])
def test_shaking_is_relative_and_stays_in_its_part(names):
    network = finetune.built(TINY)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    finetune.shake(network, names, 0.01, seeded(0))
    ratios = []
    for name, weight in network.named_parameters():
        old = before[name]
        assert (weight[old == 0] == 0).all()
        if name.endswith(names):
            ratios.append((weight / old)[old != 0].detach() - 1)
        else:
            assert torch.equal(weight, old)
    ratios = torch.cat(ratios)
    assert 0.005 < ratios.std() < 0.015


def test_noise_does_the_more_harm_the_larger_it_is(result):
    noise = result.table("noise").set_index(["part", "noise"]).path_kl
    for part in finetune.PARTS:
        assert abs(noise[part, 1e-7] / result.numbers["constructed"]["path_kl"] - 1) < 0.05
        assert noise[part, 1e-1] > 1.2 * noise[part, 1e-7]


def test_published_settings_cover_every_start():
    for settings in FINE_TUNING.values():
        assert set(settings.rates) == set(STARTS)
