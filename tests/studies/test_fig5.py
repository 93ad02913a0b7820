"""The experiment of chapter 7, tiny, and what its committed results must show."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from strategies import seeded

from gptheory.data import decaying_process
from gptheory.diffusion import denoiser, perturb
from gptheory.measures import score_error
from gptheory.networks import DiT
from gptheory.probing import edits, maps, recording
from gptheory.studies import fig5, load_result, reproduce, stored_network
from gptheory.studies.fig5 import PROBING, Probing, learned, training_data
from gptheory.studies.reproduce import Experiment
from gptheory.studies.run import Run, in_half_precision
from gptheory.training import TrainConfig

KINDS = {"trained", "untrained", "permuted", "white noise", "shuffled"}
CPU = torch.device("cpu")
DATA = {"seq_len": 8, "dim": 2}
LAW = decaying_process(**DATA)
TINY = Probing(
    DATA, TrainConfig(steps=4, batch_size=4, evaluate_n=8), null_steps=3, seeds=(0,),
    null_seeds=(1,), keep=True, sequences=6, ablated=8, jacobians=1,
)  # fmt: skip
COMMITTED = ["fig5-quick", "fig5-paper"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run by the command line's function, and a second one that finds the first's checkpoints."""
    folder = tmp_path_factory.mktemp("probing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig5, "SHUFFLED", 16)
        tiny = Experiment("tiny", reproduce.EXPERIMENTS["fig5"].study, {"quick": TINY})
        patch.setitem(reproduce.EXPERIMENTS, "fig5", tiny)
        return [reproduce.reproduce("fig5", "quick", "cpu", folder, False) for _ in range(2)]


def test_tables_hold_every_network_layer_and_step(run):
    result = run[0]
    looks = result.table("maps")
    assert len(looks) == 5 * 4 * len(fig5.STEPS)
    assert set(looks.network) == KINDS == set(result.numbers)
    assert set(looks.layer) == {1, 2, 3, 4}
    shares = looks[list(recording.BLOCKS)].sum(axis=1)
    assert (shares - 1).abs().max() < 1e-5
    everywhere = result.table("ablations").query("layer == 0")
    assert set(everywhere.edit) == {"none", "permuted positions", *fig5.EDITS}
    assert (everywhere[everywhere.edit == "none"].ratio == 1).all()
    for kind in ("white noise", "shuffled"):
        assert result.arrays[kind].shape == (4, 8, 8) and result.arrays[kind].dtype == torch.half
        assert (result.arrays[kind].sum(dim=-1) - 1).abs().max() < 0.01


def test_the_kept_network_is_the_one_that_was_looked_at(run):
    network = stored_network(run[0], "DiT")
    rows = pd.DataFrame(fig5.looked_at(network, LAW, TINY))
    kept = run[0].table("maps").query("network == 'trained'")
    for column in ("ee", "contrast", "content"):
        assert rows[column].to_numpy() == pytest.approx(kept[column].to_numpy(), rel=1e-4)


def test_a_second_run_gives_the_same_numbers(run):
    for name in ("maps", "norms", "ablations", "jacobians"):
        pd.testing.assert_frame_equal(run[0].table(name), run[1].table(name))


def test_rows_are_what_the_probe_says(run):
    """One row beside the same numbers, computed here."""
    t = 0.5
    model = DiT(2, 8, generator=seeded(1)).requires_grad_(False)
    rows = list(fig5.looked_at(model, LAW, TINY))
    row = next(r for r in rows if r["t"] == t and r["layer"] == 2)
    generator = seeded(104)
    v, _ = perturb(LAW.sample(6, generator), t, generator)
    seen = recording.record(model, v, t)[1]
    mean = seen.maps.double().mean(dim=0)
    operator = denoiser.denoising_operator(LAW.gram(), t)
    assert row["R²"] == pytest.approx(maps.explained(operator, mean), rel=1e-6)
    assert row["ee"] == pytest.approx(recording.logit_shares(seen)["ee"], rel=1e-6)
    alike = maps.off_diagonal_correlation(mean, operator).mean().item()
    assert row["correlation with W"] == pytest.approx(alike, rel=1e-6)
    assert 0 < row["content"] < 1 and row["spread"] > 0


def test_ablations_are_score_errors(run, tmp_path):
    row = run[0].table("ablations").query("edit == 'uniform' and layer == 3").iloc[0]
    model = learned("trained", 0, TINY, Run("again", CPU, tmp_path, False))
    edited = edits.Edited(in_half_precision(model), edits.uniform, layers=[2])
    error = score_error(edited, LAW, 0.1, 8, seeded(103))
    assert row.score_error == pytest.approx(error, rel=1e-4)


def test_shuffled_sequences_keep_their_frames_and_lose_their_order():
    law = decaying_process(8, 2, lengthscale=50.0)  # neighbours are nearly equal
    x = training_data("shuffled", law)
    plain = law.sample(fig5.SHUFFLED, seeded(fig5.SHUFFLED))
    assert torch.equal(x.sort(dim=1).values, plain.sort(dim=1).values)
    steps = [(y[:, 1:] - y[:, :-1]).square().mean().item() for y in (plain, x)]
    assert steps[1] > 2 * steps[0]


def test_training_data_of_the_other_networks():
    white = training_data("white noise", LAW)
    assert torch.equal(white.gram(), torch.eye(8).double())
    assert torch.equal(white.spatial, LAW.spatial)
    assert torch.equal(training_data("trained", LAW).gram(), LAW.gram())
    with pytest.raises(ValueError, match=r"null must be 'trained', .*got 'pink noise'"):
        training_data("pink noise", LAW)


# ---- committed results --------------------------------------------------------------------------


@pytest.fixture(params=COMMITTED)
def committed(request):
    return load_result(request.param)


def test_committed_results_are_those_of_the_settings(committed):
    settings = PROBING[committed.name.removeprefix("fig5-")]
    record = committed.record["settings"]
    assert set(record["seeds"]) <= set(settings.seeds)
    if committed.name == "fig5-quick":
        assert record["seeds"] == list(settings.seeds) and len(settings.seeds) >= 3
    assert record["training"]["steps"] == settings.training.steps
    assert record["data"] == settings.data


@pytest.mark.statement("FDGWC Fig. 4b")
def test_positions_make_the_logits_of_trained_networks(committed):
    """Bars: share of e-e at least .8 where it matters. Nulls: .4 on average, not in each layer."""
    looks, ablations = committed.table("maps"), committed.table("ablations")
    at = looks[looks.t == 0.1]
    one = ablations[(ablations.edit == "without e-e") & (ablations.layer > 0)]
    carrying = one[one.ratio >= 2][["seed", "layer"]]
    for _, layers in carrying.groupby("seed"):
        assert {1, 2, 3} <= set(layers.layer)
    own = at[at.network == "trained"].merge(carrying)
    nulls = at[at.network.isin(["untrained", "white noise", "shuffled"])]
    print(own.ee.min(), nulls.groupby("network").ee.agg(["min", "mean", "max"]))
    assert own.ee.min() >= 0.8
    assert nulls.groupby("network").ee.mean().max() <= 0.45 and nulls.ee.max() <= 0.6
    norms = committed.table("norms")
    ratio = norms.ee / norms[["xx", "xe", "ex"]].max(axis=1)
    trained = norms.network.isin(["trained", "permuted"])
    assert ratio[trained].min() > 1.3 > ratio[~trained].max()


@pytest.mark.statement("FDGWC Fig. 4b")
def test_taking_positions_away_ruins_the_score_and_content_is_not_missed(committed):
    rows = committed.table("ablations").query("layer == 0 and t == 0.1")
    ratio = rows.groupby("edit").ratio
    # the bar is 2; by coordinate, at N = 128, positions have leaked into the coordinates of x
    kept = 2 if committed.name == "fig5-quick" else 4
    assert ratio.min()["without e-e"] >= 50 and ratio.max()["only e-e"] <= kept
    assert ratio.min()["without e-e by batch"] >= 50 and ratio.max()["only e-e by batch"] <= 1.3
    assert ratio.min()["uniform"] >= 50 and ratio.max()["batch mean"] <= 1.3
    assert ratio.min()["permuted positions"] >= 50


@pytest.mark.statement("FDGWC Fig. 5")
def test_maps_are_the_denoising_operator_and_those_of_nulls_are_not(committed):
    """Bars: R² of W at least .9, nulls at most .4 (all but the one that attends to content)."""
    at = committed.table("maps").query("t == 0.5").groupby(["network", "seed"])
    r2 = at["R²"].max().groupby("network")
    assert r2.min()["trained"] >= 0.9
    assert r2.max().drop(["trained", "shuffled"], errors="ignore").max() <= 0.4
    off = at["R² off the diagonal"].max().groupby("network")
    assert off.min()["trained"] > 0.95 and off.max().drop("trained").max() < 0.7
    assert at["content"].mean()["trained"].max() < 0.2


@pytest.mark.statement("FDGWC Fig. 5")
def test_a_network_that_cannot_know_positions_shows_the_kernel_all_the_same():
    """What averaging hides: its average maps resemble Γ, its single maps are their contents'."""
    result = load_result("fig5-quick")
    at = result.table("maps").query("t == 0.1").groupby(["network", "seed"])
    assert at["correlation with Γ"].max()["shuffled"].min() > 0.7
    assert at["content"].mean()["shuffled"].min() > 0.7 and at["ee"].max()["shuffled"].max() < 0.1
    assert set(result.arrays) == {"white noise", "shuffled"}


@pytest.mark.statement("FDGWC Fig. 5")
def test_maps_become_sharper_as_denoising_proceeds_and_less_like_the_kernel(committed):
    looks = committed.table("maps")
    own = looks[looks.network == "trained"].set_index(["seed", "layer"])
    early, late = (own[own.t == t] for t in (2.0, 0.02))
    assert (late.contrast > early.contrast).all()
    assert (late["mean lag"] < early["mean lag"]).all()
    assert (late["correlation with Γ"] < early["correlation with Γ"]).all()
    untrained = looks[looks.network == "untrained"]
    assert untrained.contrast.max() < 0.05 < own.contrast.min()


def test_the_network_does_to_frames_what_the_exact_denoiser_does(committed):
    jacobians = committed.table("jacobians")
    assert jacobians.correlation.min() > 0.95 and jacobians.error.max() < 0.2
