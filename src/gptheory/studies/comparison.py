"""The comparison behind chapter 5: networks, laws of t, weights and attention on one budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..data.process import GaussianProcess, decaying_process
from ..diffusion.exact import WienerScore
from ..training.config import TrainConfig
from .run import QUICK_DATA, Run, accuracy, new_network, seeded
from .statistics import expected_bands

NUMBERS = ["path_kl", "coupled_ode_error"]

# row of the table -> network, its options, what differs from the common training
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DiT": ("DiT", {}, {}),
    "UNet": ("UNet1d", {}, {}),
    "MLP per frame": ("FrameMLP", {}, {}),
    "t uniform": ("DiT", {}, {"times": "uniform"}),
    "logSNR normal": ("DiT", {}, {"times": "normal"}),
    "velocity weight": ("DiT", {}, {"weight": "velocity"}),
    "ReLU attention": ("DiT", {"attention": "relu"}, {}),
    "ReLU attention / N": ("DiT", {"attention": "relu-mean"}, {}),
    "ReLU attention, rows normalised": ("DiT", {"attention": "relu-rows"}, {}),
}


@dataclass(frozen=True)
class Comparison:
    """Settings of :func:`comparison`.

    Args:
        data, training: common to all variants; the former as in
            :class:`.Figure1`.
        seeds: of the first weights, the data, the steps and the noise.
        band_seeds: those of the DiT, from which the bands come.
        wiener: numbers of sequences of the Wiener filters.
        monte_carlo: sequences of the path divergence.
    """

    data: Mapping[str, Any]
    training: TrainConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    band_seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    wiener: tuple[int, ...] = (1000, 25_600)
    monte_carlo: int = 4096


COMPARISON = {"quick": Comparison(QUICK_DATA, TrainConfig(steps=800, evaluate_every=100))}


def comparison(settings: Comparison, run: Run) -> Path:
    """Networks, laws of t, weights and kinds of attention on one budget, several seeds each.

    Source: FDGWC UNet comparison.

    The bands in which another run of the DiT is expected come from its seeds.
    Takes and returns what :func:`.figure1` does.
    """
    process = decaying_process(**settings.data).to(run.device)
    rows, evaluations, seeds = [], [], {"DiT": settings.band_seeds}
    for label, seed in ((v, s) for v in VARIANTS for s in seeds.get(v, settings.seeds)):
        kind, options, training = VARIANTS[label]
        network = new_network(kind, process.seq_len, process.dim, seed, **options)
        config = replace(settings.training, seed=seed, **training)
        trained = run.train(f"{label}-{seed}", network, process, config)
        row = {
            "variant": label,
            "seed": seed,
            "parameters": sum(p.numel() for p in trained.model.parameters()),
            "seconds": trained.seconds,
            **accuracy(trained.model, process, settings.monte_carlo),
        }
        rows.append(row)
        evaluations.append(trained.evaluations.assign(variant=label, seed=seed))
    rows += _wiener_rows(settings, process)
    runs, curves = pd.DataFrame(rows), pd.concat(evaluations, ignore_index=True)
    tables = {"runs": runs, "evaluations": curves, **_bands(runs, curves)}
    best = runs.groupby("variant")[NUMBERS].median()
    return run.save(asdict(settings), best.to_dict("index"), tables)


def _wiener_rows(settings: Comparison, process: GaussianProcess) -> Iterator[dict[str, Any]]:
    for n in settings.wiener:
        for seed in settings.seeds:
            x = process.sample(n, seeded(process, seed), torch.float64)
            yield {
                "variant": f"Wiener filter, n = {n}", "seed": seed, "parameters": 0,
                "seconds": 0.0, **accuracy(WienerScore(x), process, settings.monte_carlo),
            }  # fmt: skip


def _bands(runs: pd.DataFrame, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Bands of the DiT's curves (by step and t) and of its final numbers (by quantity)."""
    finals = runs.melt(["variant", "seed"], NUMBERS, "quantity")
    by_seed, final_runs = (
        [rows for _, rows in table[table.variant == "DiT"].groupby("seed")]
        for table in (curves, finals)
    )
    return {
        "curve bands": expected_bands(by_seed, ["step", "t"], "score_error"),
        "number bands": expected_bands(final_runs, ["quantity"], "value"),
    }
