"""The experiments behind committed results: what is trained, what is measured.

Each is a function of its settings, a device and a folder, in which everything that took long is
kept: killed and started again, it goes on where it was.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .dit import DiT
from .metrics import (
    coupled_ode_error,
    debiased_error,
    lag_correlations,
    path_kl,
    relative_error,
    sampling_floor,
    score_error,
    spatial_covariance,
    temporal_covariance,
)
from .precondition import ScoreNetwork
from .process import GaussianProcess, decaying_process
from .results import Result, expected_bands, save_result
from .sample import sample
from .score import Score
from .store import digest, provenance, remembered
from .structured import WienerScore
from .train import TrainConfig, TrainResult, fit
from .unet import FrameMLP, UNet1d

NETWORKS: dict[str, type[ScoreNetwork]] = {"DiT": DiT, "UNet1d": UNet1d, "FrameMLP": FrameMLP}
SCORE_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # of the table of errors
T_MAX = 10.0  # where sampling starts
CHUNK = 250  # sequences sampled at a time
SHOWN_FRAMES = 5  # frames whose spatial covariance is kept, as in the paper's figure
SHOWN_PATHS = 16


@dataclass(frozen=True)
class Data:
    r"""The paper's data: γ power-exponential with exponent 1, Σ_ij = ½^{lag}, mean 0.

    Source: FDGWC Data model.

    Args:
        seq_len, dim: N and d.
        lengthscale: ℓ.
        exponent: ν.
    """

    seq_len: int
    dim: int
    lengthscale: float = 8.0
    exponent: float = 1.0

    def process(self, device: torch.device | str = "cpu") -> GaussianProcess:
        """The process, with its factors on a device."""
        law = decaying_process(self.seq_len, self.dim, self.lengthscale, self.exponent)
        return law.to(device)


@dataclass(frozen=True)
class Figure1:
    """Settings of :func:`figure1`.

    Args:
        data: the law of the sequences.
        training: of both networks.
        samples: sequences generated from each; the first ``picture`` make the paper's figure.
        solver_steps: of the probability-flow ODE.
        monte_carlo: sequences of the path divergence.
    """

    data: Data
    training: TrainConfig
    samples: int
    picture: int = 1000
    solver_steps: int = 40
    monte_carlo: int = 4096


FIGURE1 = {
    "quick": Figure1(
        Data(32, 4), TrainConfig(steps=800, evaluate_every=100), 1000, solver_steps=25
    ),
    "paper": Figure1(
        Data(128, 8),
        TrainConfig(
            steps=32_000, ema_decay=0.999, weight="velocity", log_every=200, evaluate_every=2000
        ),
        samples=6000,
    ),
}


def figure1(
    settings: Figure1, name: str, device: torch.device, folder: Path, show: bool | None = None
) -> Path:
    """A trained DiT and a trained UNet, and the covariances of what they generate.

    Source: FDGWC Fig. 1; FDGWC UNet comparison.

    Both see the same data in the same order. Their weights are rounded to half precision before
    anything is measured, so that the stored weights have exactly the errors reported.

    Args:
        settings: see :class:`Figure1`.
        name: of the result.
        device: where to train.
        folder: for checkpoints, sequences and the result.
        show: see :func:`gptheory.progress.progress`.

    Returns:
        The path of the result's record.
    """
    process = settings.data.process(device)
    arrays, numbers, tables = {}, {}, {"scores": [], "lags": [], "covariances": []}
    seconds = 0.0
    for kind in ("DiT", "UNet1d"):
        label = f"{name}-{kind}"
        run = trained(kind, settings.data, settings.training, folder, device, show, label)
        network = in_half_precision(run.model)
        start = time.perf_counter()
        x = generated(network, settings, folder / label, device, show)
        seconds += run.seconds + time.perf_counter() - start
        numbers[kind] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "training seconds": round(run.seconds, 1),
            **accuracy(network, process, settings.monte_carlo),
            "path_kl before rounding": accuracy(run.model, process, settings.monte_carlo)[
                "path_kl"
            ],
        }
        for key, rows in measured(network, x, process, settings).items():
            tables[key].append(rows.assign(network=kind))
        numbers[kind] |= _summary(tables["lags"][-1], tables["covariances"][-1])
        tables[f"{kind} history"], tables[f"{kind} evaluations"] = run.history, run.evaluations
        arrays |= {f"{kind}.{key}": value for key, value in _pictures(x, settings).items()}
        arrays |= {f"{kind}.weights.{k}": p.half() for k, p in network.state_dict().items()}
    for key in ("scores", "lags", "covariances"):
        tables[key] = pd.concat(tables[key], ignore_index=True)
    networks = {kind: NETWORKS[kind](settings.data.dim, settings.data.seq_len).config
                for kind in numbers}  # fmt: skip
    record = {"networks": networks, **asdict(settings)}
    return save_result(folder, name, arrays, record, numbers, tables, provenance(device), seconds)


def trained(
    kind: str,
    data: Data,
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    show: bool | None,
    label: str,
    **options: Any,
) -> TrainResult:
    """Train a network from fresh samples, with a checkpoint in the folder.

    Args:
        kind: key of ``NETWORKS``.
        data, config: what and how; the configuration's seed is also that of the first weights.
        folder, device, show: as in :func:`figure1`.
        label: of the checkpoint.
        options: of the network.
    """
    generator = torch.Generator().manual_seed(config.seed)
    network = NETWORKS[kind](data.dim, data.seq_len, generator=generator, **options).to(device)
    path = folder / f"{label}.checkpoint"
    every = max(1, min(200, config.steps // 10))
    return fit(network, data.process(device), config, None, path, every, show)


def accuracy(score: Score, process: GaussianProcess, monte_carlo: int = 4096) -> dict[str, float]:
    """The two numbers that say most: path divergence and coupled-ODE error, on fixed noise."""
    device = process.mean.device
    draws = [torch.Generator(device).manual_seed(seed) for seed in (101, 102)]
    return {
        "path_kl": path_kl(score, process, n=monte_carlo, generator=draws[0]),
        "coupled_ode_error": coupled_ode_error(score, process, generator=draws[1]),
    }


def generated(
    network: nn.Module, settings: Figure1, stem: Path, device: torch.device, show: bool | None
) -> Tensor:
    """Sequences from a network, (n, N, d) on the CPU; chunks that are there are not made again."""
    data, chunks = settings.data, []
    weights = digest(*network.state_dict().values())
    for first in range(0, settings.samples, CHUNK):
        size = min(CHUNK, settings.samples - first)
        identity = {
            "weights": weights, "first": first, "size": size, "steps": settings.solver_steps,
            "seed": settings.training.seed, "device": device.type, "t_max": T_MAX,
        }  # fmt: skip

        def draw(first: int = first, size: int = size) -> dict[str, Tensor]:
            generator = torch.Generator(device).manual_seed(10**6 * settings.training.seed + first)
            return {
                "x": sample(
                    network, size, data.seq_len, data.dim, steps=settings.solver_steps,
                    t_max=T_MAX, generator=generator, device=device, show_progress=show,
                )
            }  # fmt: skip

        path = stem.with_name(f"{stem.name}-{first:05d}.sequences")
        chunks.append(remembered(path, identity, draw)["x"])
    return torch.cat(chunks)


def measured(
    score: Score, x: Tensor, process: GaussianProcess, settings: Figure1
) -> dict[str, pd.DataFrame]:
    """Tables of a network: score errors by t, correlations by lag, covariance errors by n."""
    device = process.mean.device
    truth = {"temporal": process.gram().cpu(), "spatial": process.spatial.cpu()}
    estimators = {"temporal": temporal_covariance, "spatial": spatial_covariance}
    scores = [
        {"t": t, "score_error": score_error(
            score, process, t, 1024, torch.Generator(device).manual_seed(103)
        )}
        for t in SCORE_STEPS
    ]  # fmt: skip
    covariances, mean = [], process.mean.cpu()
    for n in sorted({min(settings.picture, len(x)), len(x)}):
        for factor, estimator in estimators.items():
            error = relative_error(estimator(x[:n], mean), truth[factor])
            floor = sampling_floor(process, n, factor)
            row = {"factor": factor, "n": n, "error": error, "floor": floor}
            covariances.append({**row, "debiased": debiased_error(error, floor)})
    lags = pd.DataFrame(
        {
            "lag": range(settings.data.seq_len),
            "correlation": lag_correlations(temporal_covariance(x, mean).double()),
            "truth": lag_correlations(truth["temporal"]),
        }
    )
    return {
        "scores": pd.DataFrame(scores),
        "covariances": pd.DataFrame(covariances),
        "lags": lags,
    }


def in_half_precision(network: nn.Module) -> nn.Module:
    """A copy whose weights are rounded to half precision, and kept in their own dtype."""
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for value in rounded.state_dict().values():
            value.copy_(value.half())
    return rounded


def stored_network(result: Result, kind: str) -> ScoreNetwork:
    """The trained network of a result.

    Args:
        result: of :func:`figure1`.
        kind: ``"DiT"`` or ``"UNet1d"``.

    Returns:
        The network, in single precision and evaluation mode.

    Raises:
        ValueError: if the result holds no such network.
    """
    networks = result.record["settings"].get("networks", {})
    if kind not in networks:
        raise ValueError(f"{result.name} holds the networks {sorted(networks)}, not {kind!r}")
    return with_weights(NETWORKS[kind](**networks[kind]), result, f"{kind}.weights.")


def with_weights(network: ScoreNetwork, result: Result, prefix: str) -> ScoreNetwork:
    """A network with the arrays of a result whose names begin with the prefix, ready for use."""
    weights = {k.removeprefix(prefix): x for k, x in result.arrays.items() if k.startswith(prefix)}
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Args:
        label: in words.
        kind: key of ``NETWORKS``.
        options: of the network.
        training: what differs from the common configuration.
    """

    label: str
    kind: str = "DiT"
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("DiT"),
    Variant("UNet", "UNet1d"),
    Variant("MLP per frame", "FrameMLP"),
    Variant("t uniform", training={"times": "uniform"}),
    Variant("logSNR normal", training={"times": "normal"}),
    Variant("velocity weight", training={"weight": "velocity"}),
    Variant("ReLU attention", options={"attention": "relu"}),
    Variant("ReLU attention / N", options={"attention": "relu-mean"}),
    Variant("ReLU attention, rows normalised", options={"attention": "relu-rows"}),
)


@dataclass(frozen=True)
class Comparison:
    """Settings of :func:`comparison`.

    Args:
        data, training: common to all variants.
        seeds: of the first weights, the data, the steps and the noise.
        band_seeds: those of the DiT, from which the bands come.
        wiener: numbers of sequences of the Wiener filters.
        monte_carlo: sequences of the path divergence.
    """

    data: Data
    training: TrainConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    band_seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    wiener: tuple[int, ...] = (1000, 25_600)
    monte_carlo: int = 4096


COMPARISON = {"quick": Comparison(Data(32, 4), TrainConfig(steps=800, evaluate_every=100))}


def comparison(
    settings: Comparison, name: str, device: torch.device, folder: Path, show: bool | None = None
) -> Path:
    """Networks, laws of t, weights and kinds of attention on one budget, several seeds each.

    Source: FDGWC UNet comparison.

    The bands in which another run of the DiT is expected come from its seeds.
    Takes and returns what :func:`figure1` does.
    """
    rows, evaluations, seconds = [], [], 0.0
    seeds = {"DiT": settings.band_seeds}
    pairs = ((v, s) for v in VARIANTS for s in seeds.get(v.label, settings.seeds))
    for variant, seed in pairs:
        config = replace(settings.training, seed=seed, **variant.training)
        label = f"{name}-{variant.label}-{seed}".replace(" ", "-").replace("/", "over")
        run = trained(
            variant.kind, settings.data, config, folder, device, show, label, **variant.options
        )
        row = {
            "variant": variant.label,
            "seed": seed,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "seconds": run.seconds,
            **accuracy(run.model, settings.data.process(device), settings.monte_carlo),
        }
        rows.append(row)
        evaluations.append(run.evaluations.assign(variant=variant.label, seed=seed))
        seconds += run.seconds
    rows += list(_wiener_rows(settings, device))
    runs, curves = pd.DataFrame(rows), pd.concat(evaluations, ignore_index=True)
    tables = {"runs": runs, "evaluations": curves, **_bands(runs, curves)}
    best = runs.groupby("variant")[["path_kl", "coupled_ode_error"]].median()
    return save_result(
        folder, name, {}, asdict(settings), best.to_dict("index"), tables,
        provenance(device), seconds,
    )  # fmt: skip


def _wiener_rows(settings: Comparison, device: torch.device) -> Iterator[dict[str, Any]]:
    process = settings.data.process(device)
    for n in settings.wiener:
        for seed in settings.seeds:
            x = process.sample(n, torch.Generator(device).manual_seed(seed), torch.float64)
            yield {
                "variant": f"Wiener filter, n = {n}", "seed": seed, "parameters": 0,
                "seconds": 0.0, **accuracy(WienerScore(x), process, settings.monte_carlo),
            }  # fmt: skip


def _bands(runs: pd.DataFrame, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Bands of the DiT's curves (by step and t) and of its final numbers (by quantity)."""
    own = curves[curves.variant == "DiT"]
    by_seed = [rows for _, rows in own.groupby("seed")]
    finals = runs[runs.variant == "DiT"].melt("seed", ["path_kl", "coupled_ode_error"], "quantity")
    final_runs = [rows for _, rows in finals.groupby("seed")]
    return {
        "curve bands": expected_bands(by_seed, ["step", "t"], "score_error"),
        "number bands": expected_bands(final_runs, ["quantity"], "value"),
    }


def _pictures(x: Tensor, settings: Figure1) -> dict[str, Tensor]:
    """What is drawn: covariances of all sequences and of the paper's number, and a few paths."""
    shown = torch.linspace(0, settings.data.seq_len - 1, SHOWN_FRAMES).round().long().tolist()
    mean, picture = torch.zeros(settings.data.dim), x[: settings.picture]
    return {
        "temporal": temporal_covariance(x, mean).half(),
        "temporal picture": temporal_covariance(picture, mean).half(),
        "spatial": spatial_covariance(x, mean).half(),
        "spatial picture": torch.stack(
            [spatial_covariance(picture, mean, frame) for frame in shown]
        ).half(),
        "frames": torch.tensor(shown),
        "paths": x[:SHOWN_PATHS].half(),
    }


def _summary(lags: pd.DataFrame, covariances: pd.DataFrame) -> dict[str, float]:
    """The numbers that bars are about."""
    errors = (lags.correlation - lags.truth).abs()[1 : max(2, len(lags) // 4 + 1)]
    temporal = covariances[covariances.factor == "temporal"].iloc[-1]
    return {
        "largest lag error": float(errors.max()),
        "temporal error, debiased": float(temporal.debiased),
    }
