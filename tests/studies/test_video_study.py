"""The experiment of chapter 8: it resumes, its nulls are nulls, its stored network is the one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from strategies import seeded
from tolerances import assert_float32

from gptheory.data import Ball, LatentMap
from gptheory.diffusion import restart, sample
from gptheory.measures import spatial_covariance
from gptheory.networks import DiT
from gptheory.probing import record
from gptheory.probing.nulls import shuffled_frames
from gptheory.studies import load_result
from gptheory.studies import video as study
from gptheory.studies.results import SAMPLER
from gptheory.studies.run import Run
from gptheory.studies.video import Film, VideoStudy
from gptheory.training import TrainConfig

CPU = torch.device("cpu")
TINY = VideoStudy(
    Film(
        4,
        TrainConfig(steps=6, batch_size=4, log_every=3),
        videos=30,
        seq_len=6,
        hidden=16,
        samples=8,
    ),
    seeds=(0, 1),
    solver_steps=2,
    restarts=1,
    null_steps=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module")
def result(folder):
    study.video_study(TINY, Run("tiny", CPU, folder, False))
    return load_result("tiny", folder)


# ---- films --------------------------------------------------------------------------------------


def test_dataset_is_the_film_through_the_map_of_its_first_videos(monkeypatch):
    monkeypatch.setattr(study, "CHUNK_VIDEOS", 20)
    film = TINY.ball
    latent_map, latents = film.dataset()
    frames = torch.cat([film.shoot(n, g) for g in [seeded(0)] for n in (20, 10)])
    assert torch.equal(latent_map.basis, LatentMap.fit(frames[:20], 4).basis)
    assert latents.shape == (30, 6, 4)
    assert_float32(latents, latent_map.encode(frames))
    assert Ball().locate(frames).single.all()


def test_film_of_digits_shows_one_digit_a_video():
    pytest.importorskip("sklearn")
    film = dataclasses.replace(TINY.ball, classes=(0, 1), size=20)
    frames = film.shoot(12, seeded(0))
    assert frames.shape == (12, 6, 20, 20)
    _, distance, label = film.sprite.locate(frames)
    assert distance.max() < 0.02
    assert (label == label[:, :1]).all() and set(label[:, 0].tolist()) == {0, 1}


# ---- attention ----------------------------------------------------------------------------------


def test_attention_maps_are_those_of_the_forward_pass_and_leave_no_hooks():
    network = DiT(3, 5, 16, 2, 2, generator=seeded(0))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=seeded(1)))
    v = torch.randn(4, 5, 3, generator=seeded(2))
    before = network(v, 0.3)
    seen: list[torch.Tensor] = []
    maps = torch.stack([layer.maps for layer in record(network, v, 0.3)]).detach()
    for block in network.blocks:  # the unfused path computes the maps that it uses
        block.attention.fused = False
        weigh = block.attention.weigh
        block.attention.weigh = lambda x, weigh=weigh: seen.append(weigh(x)) or seen[-1]
    assert_float32(network(v, 0.3), before)
    assert maps.shape == (2, 4, 2, 5, 5)
    assert_float32(maps, torch.stack(seen).detach())
    assert not any(block.attention._forward_hooks for block in network.blocks)


def test_shuffled_videos_have_the_same_frames_in_another_order():
    x = torch.arange(40.0).view(5, 4, 2)
    mixed = shuffled_frames(x, seeded(0))
    assert torch.equal(mixed.sort(dim=1).values, x.sort(dim=1).values)
    orders = {tuple(row.tolist()) for row in mixed[:, :, 0] - x[:, :1, 0]}
    assert len(orders) > 1 and not torch.equal(mixed, x)
    assert torch.equal(shuffled_frames(x, seeded(0)), mixed)


# ---- the experiment -----------------------------------------------------------------------------


def test_tables_have_every_row(result):
    balls = result.table("ball")
    assert (
        len(balls) == 6 and set(balls["kind"]) == set(study.KINDS) and set(balls["seed"]) == {0, 1}
    )
    assert len(result.table("lags")) == 2 * 3 * 6
    attention = result.table("attention")
    assert len(attention) == (3 + 2) * len(study.ATTENTION_STEPS) * 4 * 4  # one null is of seed 0
    assert attention["content"].between(0, 1).all()
    assert attention[["path kernel", "latent factor"]].abs().max().max() <= 1
    lags = result.table("lags").set_index("lag")
    assert (lags.loc[0, ["exact", "position", "latent"]] == 1).all().all()
    rows = balls.set_index("kind")
    errors = balls.groupby("kind")["correlation error"]
    assert errors.max()["data"] < errors.min()["DiT"]
    median = rows.loc["DiT", "lag 1"].median()  # of a table, which keeps six digits
    assert result.numbers["ball, DiT"]["lag 1"] == pytest.approx(median, rel=1e-5)


def test_study_goes_on_where_it_was(result, folder, monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("gptheory.diffusion.sampler.sample", fail)
    monkeypatch.setattr("gptheory.training.loop.Training._update", fail)
    study.video_study(TINY, Run("tiny", CPU, folder, False))
    again = load_result("tiny", folder)
    assert again.record["tables"] == result.record["tables"]
    assert all(torch.equal(again.arrays[k], x) for k, x in result.arrays.items())


def test_stored_network_and_map_are_the_ones_that_were_measured(result, folder):
    network, latent_map = study.stored_ball(result)
    studio = study.filmed(TINY.ball, TINY, Run("tiny", CPU, folder, False))
    v = torch.randn(2, 6, 4, generator=seeded(0))
    assert torch.equal(network(v, 0.2), studio.networks["DiT"](v, 0.2))
    assert torch.equal(latent_map.decode(v), studio.map.decode(v))
    covariance = spatial_covariance(studio.videos["twin"])
    assert torch.equal(result.arrays["covariance.twin"], covariance)


def test_videos_are_generated_by_the_sde_and_restarted(result, folder):
    network, _ = study.stored_ball(result)
    studio = study.filmed(TINY.ball, TINY, Run("tiny", CPU, folder, False))
    generator = seeded(2 * 10**6)
    z = sample(
        network, 8, 6, 4, "sde", steps=2, generator=generator, show_progress=False, **SAMPLER
    )
    z = restart(network, z, study.RESTART_STEP, TINY.restarts, 6, generator=generator)
    assert torch.equal(studio.videos["DiT"], z)


def test_digits_are_measured_too(tmp_path):
    pytest.importorskip("sklearn")
    film = dataclasses.replace(TINY.ball, classes=(0, 1), size=20, dim=60)
    settings = dataclasses.replace(TINY, seeds=(), digits=film)
    study.video_study(settings, Run("tiny", CPU, tmp_path, False))
    found = load_result("tiny", tmp_path)
    rows = found.table("digits").set_index("kind")
    assert rows.loc["data", "digits"] > rows.loc["DiT", "digits"]
    assert rows["consistency"].between(0.5, 1).all()
    assert found.arrays["digits.data"].dtype == torch.uint8
    assert found.arrays["digits.data"].shape == (study.SHOWN_VIDEOS, 6, 20, 20)


@pytest.mark.statement("FDGWC Semi-synthetic video")
def test_committed_result_says_what_chapter_8_says():
    result = load_result("video-paper")
    balls = result.table("ball").set_index("kind")
    dit, twin = balls.loc["DiT"], balls.loc["twin"]
    assert sorted(dit["seed"]) == [0, 1, 2]
    assert (dit["frames"] >= 0.998).all() and (dit["whole videos"] >= 0.97).all()
    assert (twin["frames"] <= 0.01).all() and (twin["whole videos"] == 0).all()
    assert ((dit["jump"] - 1).abs() <= 0.10).all()
    gaps = dit["lag 1, truth"] - dit["lag 1"]
    assert (dit["videos"] >= 1000).all() and (gaps.abs() <= 0.02).all()
    assert (dit["correlation error, debiased"] <= 0.08).all()
    digits = result.table("digits").set_index("kind")["digits"]
    assert 0.6 < digits["DiT"] < 0.7 and digits["twin"] == 0
