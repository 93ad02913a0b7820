"""Results with provenance, bands for readers' runs, and the command line that makes results."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from strategies import seeded
from tolerances import assert_float32, assert_statistical

from gptheory.data import decaying_process
from gptheory.measures import (
    path_kl,
    relative_error,
    sampling_floor,
    score_error,
    temporal_covariance,
)
from gptheory.networks import DiT
from gptheory.studies import comparison, fig1, load_result, reproduce, stored_network, within_bands
from gptheory.studies import run as running
from gptheory.studies.comparison import Comparison
from gptheory.studies.fig1 import Figure1
from gptheory.studies.results import SIZE_LIMIT, move_result, save_result, stored_results
from gptheory.studies.run import Run
from gptheory.studies.statistics import expected_bands
from gptheory.support.files import DamagedFileError, load_arrays, provenance
from gptheory.training import TrainConfig
from gptheory.training import loop as training

TINY = TrainConfig(steps=6, batch_size=4, evaluate_every=3, evaluate_n=8, log_every=3)
DATA = {"seq_len": 8, "dim": 2}
FIGURE = Figure1(DATA, TINY, samples=300, picture=100, solver_steps=3, monte_carlo=16)
LAW = decaying_process(**DATA)


@pytest.fixture
def stored(tmp_path):
    arrays = {"x": torch.randn(3, 2, generator=seeded(0)).half()}
    table = pd.DataFrame({"step": [1, 2], "loss": [1 / 3, 2e-7], "name": ["a", "b"]})
    settings, numbers = {"seed": np.int64(0), "sizes": (1, 2)}, {"error": np.float64(0.1)}
    save_result(
        tmp_path, "demo", arrays, settings, numbers, {"history": table},
        provenance(), 12.34,
    )  # fmt: skip
    return tmp_path, arrays, table


# ---- results ------------------------------------------------------------------------------------


def test_results_come_back_with_their_provenance(stored):
    folder, arrays, table = stored
    result = load_result("demo", folder)
    assert torch.equal(result.arrays["x"], arrays["x"]) and result.arrays["x"].dtype == torch.half
    assert result.record["settings"] == {"seed": 0, "sizes": [1, 2]}
    assert result.numbers == {"error": 0.1}
    assert result.record["provenance"] == provenance() and result.record["seconds"] == 12.3
    pd.testing.assert_frame_equal(result.table("history"), table, rtol=1e-5)
    assert result.table("history").loss[0] == 0.333333  # six significant digits
    with pytest.raises(KeyError, match="no table 'x', only history"):
        result.table("x")
    assert stored_results(folder) == ["demo"]


def test_equal_results_are_equal_files(tmp_path):
    saved = {save_value(tmp_path / str(k), 0.5) for k in range(12)}
    for suffix in (".json", ".safetensors"):
        assert len({path.with_suffix(suffix).read_bytes() for path in saved}) == 1, suffix
    again = move_value(tmp_path / "moved", 0.5)
    assert again.read_bytes() == saved.pop().read_bytes()


def test_missing_results_say_what_there_is(stored, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result 'other' .* there are: demo"):
        load_result("other", stored[0])
    with pytest.raises(FileNotFoundError, match="there are: none"):
        load_result("other", tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["[]", "1", "null", '"text"', "{}", '{"digest": 1}', "{", ""])
def test_a_file_that_is_no_record_is_a_damaged_one(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"x\.json is damaged"):
        load_result("x", tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def save_value(folder: Path, value: float) -> Path:
    return save_result(
        folder, "demo", {"x": torch.full((2,), value)}, {}, {"value": value}, {}, {}, 0
    )


def move_value(folder: Path, value: float) -> Path:
    return move_result(save_value(folder / "work", value), folder)


@pytest.mark.parametrize("put", [save_value, move_value])
def test_a_killed_save_leaves_the_old_result_or_the_new_one(put, tmp_path, monkeypatch):
    """Killed at every step, then saved again and killed at every step, then saved."""
    put(tmp_path, 0.0)
    replace, value = os.replace, 0.0

    def deadly(at: int):
        calls = itertools.count(1)

        def step(source, target):
            if Path(target).parent == tmp_path and next(calls) == at:
                raise KeyboardInterrupt
            replace(source, target)

        return step

    for first, second in itertools.product((1, 2, 3), repeat=2):
        for at in (first, second):
            value += 1
            monkeypatch.setattr(os, "replace", deadly(at))
            before = load_result("demo", tmp_path).numbers["value"]
            with pytest.raises(KeyboardInterrupt):
                put(tmp_path, value)
            found = load_result("demo", tmp_path)
            assert found.numbers["value"] == (value if at == 3 else before)
            assert found.arrays["x"].tolist() == [found.numbers["value"]] * 2
        monkeypatch.setattr(os, "replace", replace)
        value += 1
        put(tmp_path, value)
        assert load_result("demo", tmp_path).arrays["x"].tolist() == [value] * 2
        assert names(tmp_path) == {"demo.json", "demo.safetensors"}


@pytest.mark.skipif(sys.platform == "win32", reason="no links")
def test_arrays_that_lie_elsewhere_stay_there(tmp_path):
    save_value(tmp_path, 1.0)
    here, elsewhere = tmp_path / "demo.safetensors", tmp_path / "large"
    here.replace(elsewhere)
    here.symlink_to(elsewhere)
    save_value(tmp_path, 2.0)
    assert here.is_symlink() and load_result("demo", tmp_path).arrays["x"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("put", [save_value, move_value])
def test_a_result_is_two_files(put, tmp_path):
    for value in (1.0, 2.0):
        assert put(tmp_path, value) == tmp_path / "demo.json"
        assert names(tmp_path) == {"demo.json", "demo.safetensors"}
    assert put is save_value or not names(tmp_path / "work")
    assert move_result(tmp_path / "demo.json", tmp_path) == tmp_path / "demo.json"
    assert load_result("demo", tmp_path).numbers == {"value": 2.0}


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_every_change_of_a_result_is_noticed(stored, suffix):
    path = (stored[0] / "demo").with_suffix(suffix)
    content = path.read_bytes()
    for k in range(0, len(content), 5):
        changed = bytearray(content)
        changed[k] ^= 2
        path.write_bytes(changed)
        if suffix == ".json" and _same_json(changed, content):
            continue
        with pytest.raises(DamagedFileError):
            load_result("demo", stored[0])
    path.write_bytes(content)
    load_result("demo", stored[0])


def _same_json(changed: bytes, content: bytes) -> bool:
    try:
        return json.loads(changed) == json.loads(content)
    except ValueError:
        return False


def test_arrays_of_another_result_are_noticed(stored):
    folder = stored[0]
    save_result(folder, "other", {"x": torch.zeros(1)}, {}, {}, {}, {}, 0)
    (folder / "other.safetensors").replace(folder / "demo.safetensors")
    with pytest.raises(DamagedFileError, match="belongs to another run"):
        load_result("demo", folder)


def test_results_inside_the_package_are_whole_and_small():
    folder, sizes = Path(fig1.__file__).parent / "data", []
    for name in stored_results():
        result = load_result(name)
        assert {"settings", "numbers", "tables", "provenance", "seconds"} <= result.record.keys()
        assert result.record["name"] == name
        sizes.append(sum(path.stat().st_size for path in folder.glob(f"{name}.*")))
    assert all(size <= SIZE_LIMIT for size in sizes) and sum(sizes) <= 6_000_000


# ---- bands --------------------------------------------------------------------------------------


def runs(n: int, seed: int = 0) -> list[pd.DataFrame]:
    """Log-normal curves of three rows."""
    noise = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64).numpy()
    values = np.exp(np.log([1.0, 0.1, 0.01]) + 0.1 * noise)
    return [pd.DataFrame({"step": [1, 2, 3], "error": row}) for row in values]


def test_bands_hold_one_more_run_as_often_as_they_say():
    inside = [
        within_bands(curves[0], expected_bands(curves[1:], ["step"], "error"), "error").inside
        for curves in (runs(5, seed) for seed in range(400))
    ]
    share = np.mean(inside)
    # Student's quantile assumes a variance from one row; it comes from three, so bands are wide
    print(f"{share:.4f} inside")
    assert 0.985 <= share <= 1.0
    narrow = [np.log(expected_bands(runs(4, s), ["step"], "error").eval("high / low")[0])
              for s in range(50)]  # fmt: skip
    assert 0.5 < np.mean(narrow) < 2 * 5.84 * 0.1 * math.sqrt(1.25) * 1.2


def test_a_run_outside_is_told_so():
    bands = expected_bands(runs(5), ["step"], "error")
    assert (bands.low < [1, 0.1, 0.01]).all() and (bands.high > [1, 0.1, 0.01]).all()
    run = pd.DataFrame({"step": [3, 2, 9], "error": [0.01, 10.0, 1.0], "extra": 0})
    table = within_bands(run, bands, "error")
    assert list(table.step) == [3, 2] and list(table.inside) == [True, False]
    assert list(table.columns) == ["step", "error", "low", "high", "inside"]
    below = within_bands(run.assign(error=1e-9), bands, "error")
    assert not below.inside.any()


def test_bands_need_comparable_runs():
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        expected_bands(runs(1), ["step"], "error")
    other = runs(2)
    other[1]["step"] = [1, 2, 4]
    with pytest.raises(ValueError, match="agree in their columns"):
        expected_bands(other, ["step"], "error")
    with pytest.raises(ValueError, match="positive"):
        expected_bands([r.assign(error=0.0) for r in runs(2)], ["step"], "error")
    with pytest.raises(ValueError, match="no row of the bands"):
        within_bands(runs(1)[0].assign(step=7), expected_bands(runs(3), ["step"], "error"), "error")


# ---- experiments --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    """The figure at a tiny scale, through the function that the command line calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fig1.FIGURE1, "tiny", FIGURE)
        out = tmp_path_factory.mktemp("out")
        return reproduce.reproduce("fig1", "tiny", "cpu", out, show_progress=False), out


@pytest.mark.statement("FDGWC Fig. 1")
def test_figure_holds_what_is_drawn(figure):
    result, out = figure
    assert result.name == "fig1-tiny" and load_result("fig1-tiny", out).numbers == result.numbers
    for kind in ("DiT", "UNet1d"):
        shapes = {
            "temporal": (8, 8), "temporal picture": (8, 8), "spatial": (2, 2),
            "spatial picture": (5, 2, 2), "frames": (5,), "paths": (16, 8, 2),
        }  # fmt: skip
        for key, shape in shapes.items():
            assert result.arrays[f"{kind}.{key}"].shape == shape, key
        assert result.arrays[f"{kind}.frames"].tolist() == [0, 2, 4, 5, 7]
        assert {"step", "loss"} <= set(result.table(f"{kind} history").columns)
        assert list(result.table(f"{kind} evaluations").step.unique()) == [3, 6]
    covariances = result.table("covariances")
    assert set(covariances.n) == {100, 300} and (covariances.floor > 0).all()
    assert result.record["provenance"]["torch"] == torch.__version__


@pytest.mark.statement("FDGWC Fig. 1", "FDGWC UNet comparison")
@pytest.mark.parametrize("kind", ["DiT", "UNet1d"])
def test_stored_weights_have_exactly_the_errors_reported(kind, figure):
    result, _ = figure
    network = stored_network(result, kind)
    assert path_kl(network, LAW, n=16, generator=seeded(101)) == result.numbers[kind]["path_kl"]
    scores = result.table("scores").query("network == @kind and t == 0.1").score_error
    assert_float32(score_error(network, LAW, 0.1, 1024, seeded(103)), scores.iloc[0])
    with pytest.raises(ValueError, match=r"holds the networks \['DiT', 'UNet1d'\], not 'GAN'"):
        stored_network(result, "GAN")


def test_errors_are_those_of_the_sequences_that_were_generated(figure):
    result, out = figure
    files = sorted((out / "work").glob("fig1-tiny-DiT-*.sequences"))
    x = torch.cat([load_arrays(file)[0]["x"] for file in files])
    assert x.shape == (300, 8, 2)
    temporal = temporal_covariance(x, torch.zeros(2))
    assert_float32(result.arrays["DiT.temporal"], temporal.half())
    table = result.table("covariances").query("network == 'DiT' and factor == 'temporal'")
    error = relative_error(temporal, LAW.gram())
    assert_float32(table.error.iloc[-1], error)
    floor = sampling_floor(LAW, 300)
    assert_float32(table.floor.iloc[-1], floor)
    assert_float32(table.debiased.iloc[-1], math.sqrt(max(error**2 - floor**2, 0)))
    assert_float32(result.numbers["DiT"]["temporal error, debiased"], table.debiased.iloc[-1])
    assert len(x.unique(dim=0)) == 300  # no chunk repeats the noise of another


def test_data_are_the_papers():
    law = decaying_process(**{**running.PAPER_DATA, "seq_len": 5, "dim": 3, "lengthscale": 2.0})
    assert_float32(law.spatial, [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])
    assert_float32(law.gram()[0], [math.exp(-i / 2) for i in range(5)])


def test_interrupted_reproduction_goes_on_where_it_was(figure, tmp_path, monkeypatch):
    """Killed while sampling from the second network, it neither trains nor samples again."""
    monkeypatch.setitem(fig1.FIGURE1, "tiny", FIGURE)
    original, calls = running.sample, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(running, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce("fig1", "tiny", "cpu", tmp_path, show_progress=False)
    steps = []
    monkeypatch.setattr(training, "matching_loss", lambda *a: (steps.append(1), figure)[1])
    result = reproduce.reproduce("fig1", "tiny", "cpu", tmp_path, show_progress=False)
    assert len(calls) == 5 and not steps
    for name, value in figure[0].arrays.items():
        assert torch.equal(result.arrays[name], value), name


def test_scales_do_not_disturb_each_other(figure, monkeypatch):
    """Another scale in the same folder is another run, not a foreign checkpoint."""
    config = dataclasses.replace(TINY, steps=3)
    other = dataclasses.replace(FIGURE, training=config, samples=10, picture=5)
    monkeypatch.setitem(fig1.FIGURE1, "other", other)
    result = reproduce.reproduce("fig1", "other", "cpu", figure[1], show_progress=False)
    assert result.record["settings"]["training"]["steps"] == 3
    assert stored_results(figure[1]) == ["fig1-other", "fig1-tiny"]


def test_comparison_has_a_row_for_every_run_and_bands(tmp_path, monkeypatch):
    settings = Comparison(
        {"seq_len": 4, "dim": 2}, TINY, seeds=(0, 1), band_seeds=(0, 1, 2), wiener=(50,),
        monte_carlo=64,
    )  # fmt: skip
    monkeypatch.setitem(comparison.COMPARISON, "tiny", settings)
    result = reproduce.reproduce("comparison", "tiny", "cpu", tmp_path, show_progress=False)
    runs = result.table("runs")
    labels = list(comparison.VARIANTS)
    assert set(runs.variant) == {*labels, "Wiener filter, n = 50"}
    assert len(runs) == 2 * (len(labels) + 1) + 1 and (runs.path_kl > 0).all()
    # every variant really differs from the plain DiT of its seed
    plain = runs[runs.variant == "DiT"].set_index("seed").path_kl[:2]
    for label, rows in runs[runs.variant != "DiT"].groupby("variant"):
        assert (rows.set_index("seed").path_kl != plain).all(), label
    curve = result.table("evaluations").query("variant == 'DiT' and seed == 1")
    table = within_bands(curve, result.table("curve bands"), "score_error")
    assert len(table) == 6 and table.inside.all()
    numbers = runs[(runs.variant == "DiT") & (runs.seed == 0)].melt(
        "seed", ["path_kl", "coupled_ode_error"], "quantity"
    )
    assert within_bands(numbers, result.table("number bands"), "value").inside.all()


def test_generated_covariance_is_right_for_an_exact_score(tmp_path):
    """The measuring chain itself: with the exact score in place of a network nothing remains."""
    from gptheory.diffusion import ExactScore

    n = 4000

    class Exact(torch.nn.Module):
        seq_len, dim = 8, 2

        def forward(self, v, t):
            return ExactScore(LAW)(v, t)

    run = Run("exact", torch.device("cpu"), tmp_path, False)
    x = run.generate("x", Exact(), n, 0, steps=40, t_max=10.0)
    rows = fig1.measured(ExactScore(LAW), x, LAW, FIGURE)
    tables = {name: pd.DataFrame(own) for name, own in rows.items()}
    assert (tables["scores"].score_error < 1e-9).all()
    lags = tables["lags"]
    # a lag's correlation averages n sequences of d = 2 dependent coordinates: at least n pairs
    assert_statistical(lags.correlation[:5], lags.truth[:5], np.full(5, 1.5 / n**0.5), n)
    rows = tables["covariances"].query("n == @n")
    assert (rows.error < 2 * rows.floor + 0.005).all()


# ---- what the committed results say -------------------------------------------------------------


@pytest.mark.statement("FDGWC UNet comparison")
def test_transformer_beats_the_unet_in_every_seed():
    runs = load_result("comparison-quick").table("runs").set_index(["variant", "seed"])
    for seed in (0, 1, 2):
        dit, unet = runs.loc[("DiT", seed)], runs.loc[("UNet", seed)]
        assert 0.8 < unet.parameters / dit.parameters < 1.2
        assert dit.path_kl < unet.path_kl


@pytest.mark.statement("FDGWC Fig. 1", "FDGWC UNet comparison")
def test_paper_scale_transformer_is_close_to_the_truth():
    result = load_result("fig1-paper")
    dit, unet = result.numbers["DiT"], result.numbers["UNet1d"]
    assert dit["path_kl"] <= 0.001 and dit["path_kl"] < unet["path_kl"]
    assert dit["coupled_ode_error"] <= 0.04
    assert dit["temporal error, debiased"] <= 0.03
    assert dit["largest lag error"] <= 0.02
    assert (result.table("covariances").n.unique() == [1000, 6000]).all()
    assert stored_network(result, "DiT").seq_len == 128


# ---- the command line ---------------------------------------------------------------------------


def test_list_names_experiments_and_results(capsys):
    assert reproduce.main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    assert "fig1" in text and "scales: quick, paper" in text and "results inside" in text
    assert all(name in text for name in stored_results())


def test_command_line_runs_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fig1.FIGURE1, "tiny", FIGURE)
    arguments = ["reproduce", "fig1", "--scale", "tiny", "--device", "auto", "--out", str(tmp_path)]
    assert reproduce.main(arguments) == 0
    text = capsys.readouterr().out
    assert "fig1-tiny" in text and "path_kl" in text and stored_results(tmp_path) == ["fig1-tiny"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing"], "name must be one of fig1"),
        (["fig1", "--scale", "huge"], "fig1 has the scales quick, paper"),
        (["fig1", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_mistakes_get_one_line(arguments, complaint, capsys, tmp_path):
    assert reproduce.main(["reproduce", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


@pytest.mark.parametrize("error", [ModuleNotFoundError("pip install x"), OSError(28, "disk full")])
def test_what_this_machine_lacks_gets_one_line(error, capsys, tmp_path, monkeypatch):
    def lacking(*_args, **_kwargs):
        raise error

    lame = dataclasses.replace(reproduce.EXPERIMENTS["video"], study=lacking)
    monkeypatch.setitem(reproduce.EXPERIMENTS, "video", lame)
    assert reproduce.main(["reproduce", "video", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_full_size_knows_its_names_at_every_scale(scale, monkeypatch):
    monkeypatch.setenv("GPTHEORY_SCALE", scale)
    with pytest.raises(ValueError, match=r"name must be one of fig1, .* got 'nope'"):
        reproduce.full_size("nope")
    with pytest.raises(ValueError, match="comparison has the scales quick, got 'paper'"):
        reproduce.full_size("comparison")


def test_module_can_be_executed():
    ended = subprocess.run(
        [sys.executable, "-m", "gptheory", "reproduce", "--list"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0 and "experiments:" in ended.stdout


def test_paper_scale_is_the_papers():
    paper = fig1.FIGURE1["paper"]
    assert paper.data == {"seq_len": 128, "dim": 8, "lengthscale": 8.0, "exponent": 1.0}
    assert paper.samples >= 5000 and paper.picture == 1000
    assert DiT(8, 128).config["hidden"] == 64
