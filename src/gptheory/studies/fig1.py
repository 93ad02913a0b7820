"""The study behind Figure 1: a trained DiT and a trained UNet beside the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data.process import GaussianProcess, decaying_process
from ..diffusion.exact import Score
from ..measures.covariances import (
    debiased_error,
    lag_correlations,
    relative_error,
    sampling_floor,
    spatial_covariance,
    temporal_covariance,
)
from ..measures.scores import score_error
from ..training.config import TrainConfig
from .run import (
    PAPER_DATA,
    QUICK_DATA,
    Run,
    accuracy,
    half_weights,
    in_half_precision,
    new_network,
    seeded,
)

SCORE_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # of the table of errors
T_MAX = 10.0  # where sampling starts
SHOWN_FRAMES = 5  # frames whose spatial covariance is kept, as in the paper's figure
SHOWN_PATHS = 16


@dataclass(frozen=True)
class Figure1:
    """Settings of :func:`figure1`.

    Args:
        data: the law of the sequences: arguments of :func:`.decaying_process`.
        training: of both networks.
        samples: sequences generated from each; the first ``picture`` make the paper's figure.
        solver_steps: of the probability-flow ODE.
        monte_carlo: sequences of the path divergence.
    """

    data: Mapping[str, Any]
    training: TrainConfig
    samples: int
    picture: int = 1000
    solver_steps: int = 40
    monte_carlo: int = 4096


FIGURE1 = {
    "quick": Figure1(
        QUICK_DATA, TrainConfig(steps=800, evaluate_every=100), 1000, solver_steps=25
    ),
    "paper": Figure1(
        PAPER_DATA,
        TrainConfig(
            steps=32_000, ema_decay=0.999, weight="velocity", log_every=200, evaluate_every=2000
        ),
        samples=6000,
    ),
}  # fmt: skip


def figure1(settings: Figure1, run: Run) -> Path:
    """A trained DiT and a trained UNet, and the covariances of what they generate.

    Source: FDGWC Fig. 1; FDGWC UNet comparison.

    Both see the same data in the same order. Their weights are rounded to half precision before
    anything is measured, so that the stored weights have exactly the errors reported.

    Args:
        settings: see :class:`Figure1`.
        run: where it computes and what it keeps.

    Returns:
        The path of the result's record.
    """
    process, seed = decaying_process(**settings.data).to(run.device), settings.training.seed
    networks, arrays, numbers, tables = {}, {}, {}, defaultdict(list)
    for kind in ("DiT", "UNet1d"):
        network = new_network(kind, process.seq_len, process.dim, seed)
        trained = run.train(kind, network, process, settings.training)
        network = in_half_precision(trained.model)
        x = run.generate(
            kind, network, settings.samples, 10**6 * seed, steps=settings.solver_steps, t_max=T_MAX
        )
        own = measured(network, x, process, settings)
        for table, rows in own.items():
            tables[table] += [{**row, "network": kind} for row in rows]
        tables[f"{kind} history"] = trained.history
        tables[f"{kind} evaluations"] = trained.evaluations
        before = accuracy(trained.model, process, settings.monte_carlo)
        numbers[kind] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "training seconds": round(trained.seconds, 1),
            **accuracy(network, process, settings.monte_carlo),
            "path_kl before rounding": before["path_kl"],
            **_summary(own["lags"], own["covariances"]),
        }
        networks[kind] = network.config
        arrays |= {f"{kind}.{key}": value for key, value in _pictures(x, settings).items()}
        arrays |= half_weights(network, f"{kind}.weights.")
    return run.save({"networks": networks, **asdict(settings)}, numbers, tables, arrays)


def measured(
    score: Score, x: Tensor, process: GaussianProcess, settings: Figure1
) -> dict[str, list[dict[str, Any]]]:
    """Rows of a network: score errors by t, correlations by lag, covariance errors by n."""
    scores = [
        {"t": t, "score_error": score_error(score, process, t, 1024, seeded(process, 103))}
        for t in SCORE_STEPS
    ]
    mean, gram = process.mean.cpu(), process.gram().cpu()
    lags = {
        "lag": range(process.seq_len),
        "correlation": lag_correlations(temporal_covariance(x, mean).double()),
        "truth": lag_correlations(gram),
    }
    factors = {
        "temporal": (temporal_covariance, gram),
        "spatial": (spatial_covariance, process.spatial.cpu()),
    }
    covariances = []
    for n in sorted({min(settings.picture, len(x)), len(x)}):
        for factor, (estimator, truth) in factors.items():
            error = relative_error(estimator(x[:n], mean), truth)
            floor = sampling_floor(process, n, factor)
            row = {"factor": factor, "n": n, "error": error, "floor": floor}
            covariances.append({**row, "debiased": debiased_error(error, floor)})
    lag_rows = pd.DataFrame(lags).to_dict("records")
    return {"scores": scores, "lags": lag_rows, "covariances": covariances}


def _pictures(x: Tensor, settings: Figure1) -> dict[str, Tensor]:
    """What is drawn: covariances of all sequences and of the paper's number, and a few paths."""
    seq_len, dim = x.shape[1:]
    shown = torch.linspace(0, seq_len - 1, SHOWN_FRAMES).round().long().tolist()
    mean, picture = torch.zeros(dim), x[: settings.picture]
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


def _summary(lags: list[dict[str, Any]], covariances: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers that bars are about."""
    errors = [abs(row["correlation"] - row["truth"]) for row in lags]
    temporal = [row["debiased"] for row in covariances if row["factor"] == "temporal"]
    return {
        "largest lag error": max(errors[1 : max(2, len(lags) // 4 + 1)]),
        "temporal error, debiased": temporal[-1],
    }
