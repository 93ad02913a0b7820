"""Stops at whole experiments with tiny settings, at films, files, figures and the session."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from gptheory.data import PowerExponential, decaying_process, estimate, video
from gptheory.data.digits import Digits, handwritten
from gptheory.diffusion import ExactScore
from gptheory.figures import player
from gptheory.figures import style as figures_style
from gptheory.measures import measured_motion, motion_floor, true_motion
from gptheory.studies import (
    cells,
    comparison,
    decay,
    fig1,
    fig4a,
    fig5,
    finetune,
    growth,
    latent,
    locality,
    long,
    reproduce,
    results,
    samplers,
    statistics,
    stored_network,
    variation,
)
from gptheory.studies import swap as studies_swap
from gptheory.studies import video as studies_video
from gptheory.studies.run import Run
from gptheory.studies.sweeps import SweepStudy, sweep_study
from gptheory.support import files as support_files
from gptheory.support import progress, session
from gptheory.training import TrainConfig

from .networks import transformer
from .stop import Found, law, normal, seeded, sequences, shaken, stop

DATA = {"seq_len": 8, "dim": 2, "lengthscale": 2.0}
TRAINING = TrainConfig(steps=2, batch_size=4, log_every=1, evaluate_n=8, evaluate_at=(0.1,))


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for the time of a stop."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def run(study: Callable[[Any, Run], Path], settings: Any, device: torch.device) -> results.Result:
    """The stored result of an experiment."""
    once = {fig1: "SCORE_STEPS", fig5: "STEPS", studies_video: "ATTENTION_STEPS"}
    with folder() as place, contextlib.ExitStack() as thinned:
        for module, name in once.items():  # one diffusion step does for all
            thinned.enter_context(mock.patch.object(module, name, (fig5.AT,)))
        record = study(settings, Run("tour", device, place, False))
        return results.load_result(record.stem, place)


def size(result: results.Result) -> Found:
    """How much a result holds: its numbers come out of training."""
    return {"tables": len(result.record["tables"]), "arrays": len(result.arrays)}


@stop("network", compare=False)
def figure_1(device: torch.device, dtype: torch.dtype) -> Found:
    """Training, generation and measurement of both networks; the stored network, moved."""
    settings = fig1.Figure1(DATA, TRAINING, 8, picture=4, solver_steps=3, monte_carlo=16)
    result = run(fig1.figure1, settings, device)
    network = stored_network(result, "DiT").to(device)
    score = network(sequences(1, 2, device, dtype).repeat(1, 2, 1)[:, :8], 0.1)
    assert torch.isfinite(score).all() and score.dtype == dtype
    assert all(math.isfinite(x) for row in result.numbers.values() for x in row.values())
    return size(result)


@stop("network", compare=False)
def compared_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """All networks for one step; bands of runs."""
    settings = comparison.Comparison(
        DATA,
        replace(TRAINING, steps=1),
        seeds=(0,),
        band_seeds=(0, 1),
        wiener=(50,),
        monte_carlo=16,
    )
    variants = dict(list(comparison.VARIANTS.items())[:3])
    with mock.patch.object(comparison, "VARIANTS", variants):
        result = run(comparison.comparison, settings, device)
    runs = [result.table("runs").assign(value=1.0, step=1, seed=k) for k in (0, 1)]
    bands = statistics.expected_bands(runs, ["variant"], "value")
    inside = statistics.within_bands(runs[0], bands, "value")
    return {**size(result), "bands": len(bands), "inside": len(inside)}


@stop("network", compare=False)
def attention_maps(device: torch.device, dtype: torch.dtype) -> Found:
    """Networks, their nulls and edits of their maps."""
    settings = fig5.Probing(
        DATA, TRAINING, 1, (0,), (0,), True, sequences=2, ablated=4, jacobians=1, edited_at=(0.1,)
    )
    return size(run(fig5.probing, settings, device))


@stop("network", compare=False)
def fine_tuning(device: torch.device, dtype: torch.dtype) -> Found:
    """Training on from the constructed transformer."""
    rates = dict.fromkeys(finetune.STARTS, (1e-05,))
    data, training = {**DATA, "seq_len": 4, "dim": 1}, replace(TRAINING, steps=1)
    settings = finetune.FineTuning(data, training, 1, rates, noise=(0.01,), seeds=(0,))
    return size(run(finetune.fine_tuning, settings, device))


@stop("network", compare=False)
def swap(device: torch.device, dtype: torch.dtype) -> Found:
    """Polynomials for the softmax of a network trained here."""
    settings = studies_swap.Swap(
        None, DATA, TRAINING, (2, 4), steps=(0.1, 1.0), score_steps=(0.1,), monte_carlo=8,
        samples=4, solver_steps=2,
    )  # fmt: skip
    return size(run(studies_swap.swap, settings, device))


@stop("exact", compare=False)
def growth_of_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """Times and memory at two lengths; the command line that asks for them."""
    settings = growth.Growth(dim=2, gradient_degree=4, lengths=(64, 128), rounds=1)
    summary = reproduce.Experiment("two lengths", growth.attention_growth, {"quick": settings})
    reproduce.EXPERIMENTS["tour"] = summary
    try:
        with folder() as place, contextlib.redirect_stdout(io.StringIO()):
            options = ["--device", str(device), "--out", str(place)]
            assert reproduce.main(["reproduce", "tour", *options]) == 0
            assert reproduce.main(["reproduce", "--list"]) == 0
            result = reproduce.reproduce("tour", device=str(device), out=place, show_progress=False)
    finally:
        del reproduce.EXPERIMENTS["tour"]
    return {**size(result), "stored": len(reproduce.full_size("fig1").arrays)}


CELL = cells.Cell("dit", 8, seq_len=4, steps=2, batch_size=4, hidden=16, depth=1)
LATENT = latent.LatentCell(
    "latent", 8, ambient_dim=8, latent_dim=4, steps=1, batch_size=4, hidden=8
)


@stop("network", compare=False)
def sweeps(device: torch.device, dtype: torch.dtype) -> Found:
    """Cells on the CPU, where sweeps run whatever the device is."""
    axes = {k: v for k, v in asdict(CELL).items() if k not in ("n", "estimator")}
    parts = {
        "own": {**axes, "n": [8, 16, 64, None]},
        "closed": {**axes, "n": 64, "estimator": "wiener"},
    }
    settings = SweepStudy(cells.Cell, parts)
    table = run(sweep_study, settings, device).table("cells")
    excess = fig4a.excess(table[table["part"] == "own"])
    assert CELL.heads and CELL.shape and CELL.process() and CELL.training()
    trained = CELL.member().model.to(device)
    assert trained(CELL.training_set()[:2].to(device), 0.1).device.type == device.type
    exact = CELL.assess(ExactScore(CELL.process()))
    slope = statistics.fitted_slope(np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.5, 0.25]))
    return {"cells": len(settings.cells()), "excess": len(excess), "slope": slope[0], **exact}


@stop("network", compare=False)
def decay_and_variation(device: torch.device, dtype: torch.dtype) -> Found:
    """A law with a nugget, what the committed sweep finds; a distance of a closed form."""
    table = results.load_result("decay-quick").table("cells")
    laws, slopes = decay.along(table, "memory"), decay.sensitivities(table)
    given = {"n": 8, "seq_len": 4, "dim": 1}
    nugget = decay.DecayCell("stationary", condition=3.0, **given).process()
    cell = variation.VariationCell("wiener", draws=2, flow_steps=2, **given)
    found = cell.assess(ExactScore(cell.process()))
    grids = len(decay.parts("quick")) + len(decay.parts("paper"))
    return {
        "laws": len(laws), "slopes": len(slopes), "grids": grids, "tv": found["tv"],
        "gram": nugget.gram(),
    }  # fmt: skip


@stop("network", compare=False)
def latent_study(device: torch.device, dtype: torch.dtype) -> Found:
    """A sweep over networks with an encoder, on the CPU."""
    axes = {k: v for k, v in asdict(LATENT).items() if k != "n"}
    settings = SweepStudy(latent.LatentCell, {"own": {**axes, "n": [8]}})
    result = run(sweep_study, settings, device)
    given = {k: v for k, v in asdict(LATENT).items() if k != "seed"}
    rows = latent.cells_like(result.table("cells"), **given)
    rival = latent.linear_rival(LATENT.data())
    v = normal(1, 3, 1, 8, device=device, dtype=dtype)
    assert LATENT.closed_form() is None
    return {"rows": len(rows), "cells": len(settings.cells()), "rival": ExactScore(rival)(v, 0.1)}


BALL = studies_video.Film(
    2, TRAINING, videos=12, seq_len=4, lengthscale=2.0, size=10, hidden=16, samples=4
)


@stop("network", compare=False)
def video_study(device: torch.device, dtype: torch.dtype) -> Found:
    """A film of a ball, its network, its twin; the stored network and map, moved."""
    digits = replace(BALL, size=20, classes=(0, 1))
    with_digits = digits if _digits_are_here() else None
    settings = studies_video.VideoStudy(BALL, with_digits, (0,), 2, 1, 1)
    with warnings.catch_warnings():  # correlations of four videos may have no variance
        warnings.simplefilter("ignore", RuntimeWarning)
        result = run(studies_video.video_study, settings, device)
    network, latent_map = studies_video.stored_ball(result)
    z = network.to(device)(normal(1, 2, 4, 2, device=device, dtype=dtype), 0.1)
    frames = latent_map.decode(z)
    assert frames.device.type == device.type
    return {**size(result), "frames": frames.shape[-1]}


def _digits_are_here() -> bool:
    try:
        return len(handwritten((0, 1))) > 0
    except ModuleNotFoundError:
        return False


@stop("exact")
def films(device: torch.device, dtype: torch.dtype) -> Found:
    """Paths, balls and digits on the device, found again; a map and a twin of the CPU's."""
    ball, kernel = video.Ball(12), PowerExponential(2.0)
    paths = video.uniform_paths(kernel, 6, 4, ball.reach, seeded(1), torch.float64)
    frames = ball.render(paths.to(device, dtype))
    seen = ball.locate(frames, 0.5)
    fitted = video.LatentMap.fit(ball.render(paths).to(dtype), 3)
    images = normal(2, 3, 4, 4, device=torch.device("cpu"), dtype=torch.float32).abs()
    digits = Digits(images, torch.arange(3), 16)
    which = torch.tensor([0, 1, 2] * 2)
    shown = digits.render(paths.to(device, dtype) / ball.reach, which)
    centres, _distance, label = digits.locate(shown)
    assert seen.single.all() and label.device.type == device.type
    twin = estimate.GaussianTwin(paths).to(device)
    assert twin.device.type == device.type
    return {
        "frames": frames, "centres": seen.centres, "shown": shown, "digits": centres,
        "code": fitted.encode(frames), "decoded": fitted.decode(fitted.encode(frames)),
        "moved code": fitted.to(device).encode(frames),
        "moved digits": digits.to(device).render(paths.to(device, dtype) / ball.reach, which),
        "drawn": twin.sample(2, seeded(3)), "parts": len(twin.parts),
        "pixels": fitted.pixel_covariance(torch.eye(3, device=device, dtype=dtype)),
        "recentred": digits.recentred(shown, centres),
        "share": twin.kronecker_share(),
        "uniform": video.uniform_correlation(torch.linspace(-1, 1, 5, dtype=dtype).to(device)),
    }  # fmt: skip


@stop("exact", drawn=True)
def motion(device: torch.device, dtype: torch.dtype) -> Found:
    """How paths on the device move, beside the exact law; a twin of videos."""
    kernel = PowerExponential(2.0)
    paths = video.uniform_paths(kernel, 20, 4, 3.0, seeded(1), dtype).to(device)
    found = {
        "true": true_motion(kernel, 4, 3.0), "own": measured_motion(paths, kernel),
        "floor": motion_floor(kernel, 6, 4, draws=2),
    }  # fmt: skip
    twin = estimate.GaussianTwin(paths)
    numbers = {f"{k}, {name}": x for k, m in found.items() for name, x in asdict(m).items()}
    return {**numbers, "twin": twin.sample(3, seeded(2))}


@stop("exact")
def files(device: torch.device, dtype: torch.dtype) -> Found:
    """Tensors of the device in files, their digests and their provenance."""
    x = sequences(1, 2, device, dtype)
    with folder() as place:
        support_files.save_arrays(place / "arrays", {"x": x}, {"at": 1})
        arrays, record = support_files.load_arrays(place / "arrays")
        kept = support_files.remembered(place / "kept", {"seed": 1}, lambda: {"x": x})
        support_files.write_atomically(place / "text", support_files.to_json(record).encode())
        packed = len(support_files.packed({"x": x}, record))
        table = pd.DataFrame({"value": [1.0, 2.0]})
        path = results.save_result(
            place / "work", "tour", {"x": x}, {"n": 2}, {"own": {"a": 1.0}}, {"t": table},
            support_files.provenance(device), 0.1,
        )  # fmt: skip
        result = results.load_result(results.move_result(path, place).stem, place)
        assert results.stored_results(place) == ["tour"] and result.numbers
    assert support_files.digest(x) == support_files.digest(x.cpu())
    return {
        "x": arrays["x"],
        "kept": kept["x"],
        "bytes": float(packed > 0),
        "rows": len(result.table("t")),
    }


@stop("exact")
def session_and_progress(device: torch.device, dtype: torch.dtype) -> Found:
    """The first cell of a notebook."""
    with contextlib.redirect_stdout(io.StringIO()):
        session.opening(1.0, ["fig1"])
    assert session.choose_device(str(device)).type == device.type and session.scale()
    return {"items": sum(progress.progress(range(4), show=False))}


@stop("network")
def figures(device: torch.device, dtype: torch.dtype) -> Found:
    """What is drawn lies on the device and may carry a gradient."""
    figures_style.use_style()
    x = shaken(transformer(), device, dtype)(sequences(1, 3, device, dtype), 0.1)
    figure, axes = plt.subplots(1, 3)
    mesh = figures_style.heatmap(axes[0], x[0])
    figures_style.paths(axes[1], x)
    image = figures_style.picture(axes[2], x[0])
    page = player.animation(figure, lambda k: axes[1].set_title(str(k)), ["a", "b"], "two frames")
    assert page.startswith("<div")
    drawn = torch.from_numpy(np.array(axes[1].lines[0].get_ydata()))
    shown = torch.from_numpy(np.array(image.get_array()))
    return {"drawn": drawn, "shown": shown, "limit": float(mesh.get_clim()[1])}


@stop("exact", compare=False)
def laws_of_the_experiments(device: torch.device, dtype: torch.dtype) -> Found:
    """What networks and null models are trained on."""
    found, process = {}, decaying_process(**DATA).to(device)
    for null in ("trained", "white noise"):
        found[null] = fig5.training_data(null, process).gram()
    found["shuffled"] = fig5.training_data("shuffled", process)[:4]
    assert law(device).mean.device.type == device.type
    return found


@stop("network", compare=False)
def samplers_of_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """A stored network sampled in two ways."""
    given = {"now": {**samplers.NEW, "steps": 2}}
    settings = samplers.Samplers("fig1-paper", ("UNet1d",), samplers.PAPER_DATA, given, 2)
    return size(run(samplers.samplers, settings, device))


@stop("network", compare=False)
def long_sequences(device: torch.device, dtype: torch.dtype) -> Found:
    """Kinds of attention on short sequences, trained in a moment."""
    cell = locality.LocalityCell(seq_len=8, hidden=8, steps=2, attention="window", window=2)
    networks = {
        name: {**options, "hidden": 8, "heads": 2, "depth": 1}
        for name, options in long.NETWORKS.items()
    }
    settings = replace(
        long.LONG["quick"], seq_len=128, networks=networks, training=TRAINING, samples=1,
        solver_steps=2, monte_carlo=2,
    )  # fmt: skip
    own = cell.assess(cell.member().model.eval())
    return {"near": own["near"], **size(run(long.long_sequences, settings, device))}
