"""Sweeps: cells, files, kills, backends, failures, and what is measured."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import joblib
import mortal
import numpy as np
import pytest
import torch
from strategies import seeded
from tolerances import assert_float32

from gptheory.data import toeplitz_moments
from gptheory.diffusion import ExactScore, WienerScore
from gptheory.measures import path_kl, temporal_covariance
from gptheory.studies import grid, sweep, sweeps
from gptheory.studies.cells import Cell, SweepCell
from gptheory.studies.fig4a import COMPLEXITY
from gptheory.studies.latent import LATENT
from gptheory.studies.sweeps import collect
from gptheory.support import files
from gptheory.support.files import digest

SMALL = {"seq_len": 4, "dim": 2, "steps": 3, "batch_size": 16, "hidden": 8, "depth": 1}


def cells() -> list[Cell]:
    """Three groups: two of networks, one of them partly on fresh data, and one in closed form."""
    return [
        *grid(n=[4, None], lengthscale=[2.0, 4.0], **SMALL),
        *grid(estimator="unrolled-stationary", n=4, seed=range(2), **SMALL),
        *grid(estimator="stationary", n=[4, 8], **SMALL),
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return sweep(cells(), tmp_path_factory.mktemp("sweep"))


# ---- cells --------------------------------------------------------------------------------------


def test_grid_is_the_product_of_its_axes():
    made = grid(n=[16, 64], lengthscale=(2.0, 8.0), seed=range(3), dim=1)
    assert len(set(made)) == 12
    assert made[0] == Cell(n=16, lengthscale=2.0, seed=0, dim=1)
    assert made[-1] == Cell(n=64, lengthscale=8.0, seed=2, dim=1)
    assert len({cell.name for cell in made}) == 12


def test_cells_that_differ_in_n_start_from_the_same_weights_with_other_data():
    few, many, other = (Cell(n=4, **SMALL), Cell(n=8, **SMALL), Cell(n=4, seed=1, **SMALL))
    weights = [c.member().model.lift.weight for c in (few, many, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert few.member().seed == many.member().seed != other.member().seed
    assert torch.equal(few.training_set(), few.training_set())
    assert not torch.equal(few.training_set(), many.training_set()[:4])
    assert not torch.equal(few.training_set(), other.training_set())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n must be an integer >= 1, got 0"),
        ({"estimator": "mlp"}, "estimator must be one of .* got 'mlp'"),
        ({"estimator": "wiener"}, "needs n"),
        ({"lengthscale": 0.0}, "lengthscale must be a finite number > 0"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"hidden": 50}, "hidden must be an even multiple of its 3 heads .*, got 50"),
        ({"correlation": 2.0}, r"correlation must lie in \(-1, 1\), got 2.0"),
        ({"exponent": 3.0}, r"exponent must lie in \(0, 2\], got 3.0"),
    ],
)
def test_cells_refuse_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Cell(**settings)


def test_empty_grids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="axis n of the grid is empty"):
        grid(n=[])
    with pytest.raises(ValueError, match="the grid is empty"):
        sweep([], tmp_path)


def test_equal_cells_are_one_cell_whatever_their_numbers_were_written_as():
    plain = Cell(n=4, lengthscale=8.0, learning_rate=1.0, **SMALL)
    other = Cell(n=np.int64(4), lengthscale=8, learning_rate=np.float32(1), **SMALL)
    assert plain == other and plain.name == other.name
    assert torch.equal(plain.training_set(), other.training_set())


def test_cells_with_numbers_of_numpy_are_swept(tmp_path):
    settings = {"estimator": "stationary", "seq_len": 4}
    table = sweep(grid(n=[np.int64(8)], dim=np.int64(1), **settings), tmp_path)
    assert collect([Cell(n=8, dim=1, **settings)], tmp_path).equals(table)


def test_names_are_those_of_the_committed_sweeps():
    """Training sets, weights and files are named after settings: none may change unnoticed."""
    names = [digest([cell.name for cell in s["paper"].cells()])[:12] for s in (COMPLEXITY, LATENT)]
    assert names == ["15c9a90f34d3", "d50c072ca64e"]


def test_what_a_cell_ignores_may_be_anything():
    assert Cell(estimator="wiener", n=4, hidden=50).hidden == 50


# ---- what is measured ---------------------------------------------------------------------------


def test_the_exact_score_has_no_error_but_the_sampling_floor():
    cell = Cell(n=300, seq_len=6, dim=2)
    numbers = cell.assess(ExactScore(cell.process()))
    for name in ("score_error_0.1", "path_kl", "coupled_ode", "covariance_coupled"):
        assert numbers[name] < 1e-9, name
    assert 0.3 < numbers["covariance"] / numbers["covariance_floor"] < 2.5
    assert abs(numbers["nearest"] - 1) < 0.1  # knows nothing of the training set


def test_numbers_are_those_of_the_metrics():
    cell = Cell(estimator="wiener", n=40, seq_len=6, dim=2)
    law, x = cell.process(), cell.training_set()
    score = WienerScore(x)
    numbers = cell.assess(score)
    assert abs(numbers["path_kl"] / path_kl(score, law, n=8192, generator=seeded(0)) - 1) < 0.1
    error = (temporal_covariance(x, law.mean) - law.gram()).norm() / law.gram().norm()
    assert math.isclose(numbers["data_covariance"], error, rel_tol=1e-5)


def test_a_memoriser_is_found_out():
    """The score of the training set itself, a mixture, generates its members."""
    cell = Cell(n=8, seq_len=4, dim=1)
    x = cell.training_set()

    def memoriser(v, t):
        alpha, variance = math.exp(-t / 2), -math.expm1(-t)
        distances = ((v[:, None] - alpha * x) ** 2).sum(dim=(2, 3)) / (2 * variance)
        mean = torch.einsum("bk,kid->bid", (-distances).softmax(dim=1), x)
        return (alpha * mean - v) / variance

    def adapted(v, t):  # one step per sequence, as path_kl asks
        if not isinstance(t, torch.Tensor):
            return memoriser(v, t)
        return torch.cat([memoriser(row[None], s.item()) for row, s in zip(v, t, strict=True)])

    assert cell.assess(adapted)["nearest"] < 0.2


def test_estimators_are_what_they_say(tmp_path):
    """The table's numbers belong to the estimator of the row, and its training set."""
    cell = Cell(estimator="stationary", n=50, seq_len=5, dim=2, exponent=0.7, seed=3)
    row = sweep([cell], tmp_path).iloc[0]
    expected = cell.assess(ExactScore(toeplitz_moments(cell.training_set())))
    for name, value in expected.items():
        assert_float32(row[name], value)
    assert row["n"] == 50 and row["exponent"] == 0.7 and row["error"] is None


def test_rows_come_in_the_order_of_the_grid_once_each(table, tmp_path):
    doubled = [*cells(), *cells()[:2]]
    again = sweep(doubled, tmp_path)
    assert again.equals(table)
    assert list(again["lengthscale"])[:4] == [2.0, 4.0, 2.0, 4.0]
    assert list(again["n"].isna())[:4] == [False, False, True, True]


# ---- files --------------------------------------------------------------------------------------


def test_finished_cells_are_not_computed_again(table, tmp_path, monkeypatch):
    sweep(cells()[:3], tmp_path)  # part of a group
    computed = []
    original = Cell.assess
    monkeypatch.setattr(Cell, "assess", lambda c, s: computed.append(c) or original(c, s))
    with pytest.raises(FileNotFoundError, match="run the sweep first"):
        collect(cells(), tmp_path)
    assert sweep(cells(), tmp_path).equals(table)
    assert computed == cells()[3:]
    assert collect(cells(), tmp_path).equals(table)
    assert (collect(cells(), tmp_path, seconds=True)["seconds"] > 0).all()


@pytest.mark.parametrize("damage", ["cut short", "of another version", "changed", "no record"])
def test_unusable_files_are_computed_again_and_reported(damage, table, tmp_path):
    sweep(cells(), tmp_path)
    path = tmp_path / f"{cells()[0].name}.json"
    text = path.read_text()
    if damage == "cut short":
        path.write_text(text[: len(text) // 2])
    elif damage == "no record":
        path.write_text("[1, 2]")
    elif damage == "changed":
        path.write_text(text.replace('"path_kl": ', '"path_kl": 1'))
    else:
        record = json.loads(text)
        record["format"] = "sweep-0"
        record.pop("digest")
        path.write_text(json.dumps({**record, "digest": files.digest(record)}))
    with pytest.warns(UserWarning, match=rf"1 files in .* {path.name} among them"):
        again = sweep(cells(), tmp_path)
    assert again.equals(table)


def test_a_group_that_another_sweep_has_finished_is_left_alone(tmp_path):
    """Two sweeps may share a folder: what is missing is looked up again before work starts."""
    group = tuple(grid(estimator="stationary", n=[4, 8], **SMALL))
    assert set(sweeps._run_group(group, tmp_path)) == set(group)
    assert sweeps._run_group(group, tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sweeps, "_run_group", lambda *_: pytest.fail("it worked"))
    with pytest.raises(OSError):
        sweep(cells(), tmp_path / "file" / "folder")


def test_nothing_is_left_but_a_file_for_each_cell(tmp_path):
    sweep(cells(), tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{cell.name}.json" for cell in cells()}


# ---- kills --------------------------------------------------------------------------------------

# what dies, at which call, and how many cells are then stored
KILLS = {
    "training": ("training", 2, 0),
    "writing the weights of a group": ("replace", 1, 0),
    "between the cells of a group": ("replace", 4, 2),
    "writing a cell": ("half", 5, 3),
    "between two groups": ("training", 5, 4),
}


def run_and_die(kill: str, folder: Path) -> None:
    """What the child process does."""
    torch.set_num_threads(1)
    what, number, _ = KILLS[kill]
    if what == "training":
        torch.optim.AdamW.step = mortal.fatal_at_call(number, torch.optim.AdamW.step)
    elif what == "replace":
        os.replace = mortal.fatal_at_call(number, os.replace)
    else:
        os.fdopen = mortal.fatal_at_call(number, os.fdopen, instead=mortal.HalfWriter)
    sweep(cells(), folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("kill", KILLS)
def test_killed_sweeps_repeat_no_finished_cell_and_give_the_same_table(
    kill, table, tmp_path, monkeypatch
):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gptheory.studies.sweeps", "torch._dynamo"])
    child = context.Process(target=run_and_die, args=(kill, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    finished = {c for c in cells() if (tmp_path / f"{c.name}.json").exists()}
    assert len(finished) == KILLS[kill][2]
    computed, trained = [], []
    assess_one, train_group = Cell.assess, sweeps.fit_ensemble
    monkeypatch.setattr(Cell, "assess", lambda c, s: computed.append(c) or assess_one(c, s))
    monkeypatch.setattr(
        sweeps, "fit_ensemble", lambda m, c: trained.append(len(m)) or train_group(m, c)
    )
    assert sweep(cells(), tmp_path).equals(table)
    assert set(computed) == set(cells()) - finished and len(computed) == len(set(computed))
    # a group whose weights were stored is not trained again
    assert trained == ([2] if len(finished) > 0 else [4, 2])


# ---- backends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_local_processes_and_threads_give_the_same_table(backend, table, tmp_path):
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert sweep(cells(), tmp_path).equals(table)


@pytest.mark.filterwarnings("default")  # distributed warns of ports and of versions
def test_a_dask_cluster_gives_the_same_table(table, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask is an optional extra")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert sweep(cells(), tmp_path).equals(table)


# ---- failures -----------------------------------------------------------------------------------


def test_cells_that_fail_are_recorded_and_do_not_take_the_rest_down(tmp_path, monkeypatch):
    good = Cell(estimator="stationary", n=8, **SMALL)
    too_few = Cell(estimator="kronecker", n=3, seq_len=8, dim=1)
    diverging = Cell(n=4, **SMALL, learning_rate=1e30)
    with pytest.warns(UserWarning, match="2 of 3 cells failed; the first, .*needs 9 sequences"):
        table = sweep([too_few, good, diverging], tmp_path)
    assert list(table["error"].isna()) == [False, True, False]
    assert re.match("ValueError: a Kronecker maximum", table["error"][0])
    assert re.match("TrainingDivergedError: training diverged at step", table["error"][2])
    assert table["path_kl"].isna().tolist() == [True, False, True]
    monkeypatch.setattr(sweeps, "_run_group", lambda *_: pytest.fail("computed again"))
    with pytest.warns(UserWarning, match="2 of 3"):
        sweep([too_few, good, diverging], tmp_path)


@pytest.mark.parametrize("kind", [ValueError, OverflowError, torch.linalg.LinAlgError])
def test_a_network_that_fails_to_be_made_leaves_its_group_alone(kind, tmp_path, table, monkeypatch):
    original = Cell.training_set

    def broken(cell):
        if cell == cells()[1]:
            raise kind("no data")
        return original(cell)

    monkeypatch.setattr(Cell, "training_set", broken)
    with pytest.warns(UserWarning, match="1 of 8 cells failed"):
        again = sweep(cells(), tmp_path)
    assert again["error"][1] == f"{kind.__name__}: no data"
    rest = [0, *range(2, 8)]
    assert again.drop(columns="error").loc[rest].equals(table.drop(columns="error").loc[rest])


@pytest.mark.parametrize("stage", ["training_set", "assess"])
@pytest.mark.parametrize("kind", [MemoryError("full"), RuntimeError("out of memory"), OSError(5)])
def test_a_failure_that_may_not_come_again_is_not_stored(stage, kind, table, tmp_path, monkeypatch):
    """It ends the sweep; what was finished is there, and the next sweep does the rest."""
    original, calls, trained = getattr(Cell, stage), [], []

    def once(cell, *rest):
        calls.append(cell)
        if len(calls) == 3:
            raise kind
        return original(cell, *rest)

    monkeypatch.setattr(Cell, stage, once)
    with pytest.raises(type(kind)) as raised:
        sweep(cells(), tmp_path)
    assert raised.value is kind
    assert len(list(tmp_path.glob("*.json"))) == (2 if stage == "assess" else 0)
    train_group = sweeps.fit_ensemble
    monkeypatch.setattr(
        sweeps, "fit_ensemble", lambda m, c: trained.append(len(m)) or train_group(m, c)
    )
    assert sweep(cells(), tmp_path).equals(table)
    assert trained == ([2] if stage == "assess" else [4, 2])  # stored weights are read


def test_weights_of_another_format_are_not_used(tmp_path, monkeypatch):
    """A killed sweep left them; then training changed, and FORMAT with it."""
    group, trained = tuple(cells()[:2]), []
    train_group, assess_one = sweeps.fit_ensemble, Cell.assess
    monkeypatch.setattr(
        sweeps, "fit_ensemble", lambda m, c: trained.append(len(m)) or train_group(m, c)
    )

    def killed(cell, score):
        raise KeyboardInterrupt

    for version, fresh in (("sweep-1", 1), ("sweep-1", 1), ("sweep-2", 2)):
        monkeypatch.setattr(Cell, "FORMAT", version)
        monkeypatch.setattr(Cell, "assess", killed)
        with pytest.raises(KeyboardInterrupt):
            sweeps._run_group(group, tmp_path)
        assert trained == [2] * fresh
    monkeypatch.setattr(Cell, "assess", assess_one)
    sweeps._run_group(group, tmp_path)
    assert trained == [2, 2] and len(list(tmp_path.glob("*.json"))) == 2


def test_training_that_diverged_before_a_kill_is_not_tried_again(tmp_path, monkeypatch):
    wild = grid(n=4, seed=range(2), **SMALL, learning_rate=1e30)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "_store", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(wild, tmp_path)
    monkeypatch.setattr(sweeps, "fit_ensemble", lambda *_: pytest.fail("trained again"))
    with pytest.warns(UserWarning, match="2 of 2 cells failed"):
        table = sweep(wild, tmp_path)
    assert table["error"].str.startswith("TrainingDivergedError: training diverged at step").all()


def test_a_kind_of_cell_without_a_measure_cannot_be_made():
    @dataclass(frozen=True)
    class Unmeasured(SweepCell):
        FORMAT, OWN = "1", frozenset()

    with pytest.raises(TypeError, match="abstract"):
        Unmeasured()
