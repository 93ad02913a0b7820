"""Training on from the constructed transformer: what moves, what breaks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..construction.build import build_score_transformer
from ..construction.network import ScoreTransformer
from ..data.process import GaussianProcess, decaying_process
from ..diffusion.schedule import perturb
from ..diffusion.unrolled import UnrolledScore
from ..measures.covariances import relative_error
from ..measures.scores import path_kl
from ..probing.maps import lag_profile
from ..probing.recording import record
from ..support.draws import normal_like
from ..training.config import TrainConfig, TrainingDivergedError
from .run import Run, seeded

STARTS = ("constructed, zeros kept", "constructed, all weights", "random, all weights")
PARTS = {"query and key": ("query", "key"), "value": ("value", "output")}
PROBE_STEP = 0.1  # t at which attention is compared


@dataclass(frozen=True)
class FineTuning:
    """Settings of :func:`fine_tuning`.

    Args:
        data, training: as in :class:`.Figure1`; the learning rate and the seed
            are those of the runs.
        steps: K of the constructed network.
        rates: learning rates, by where a run starts (keys: ``STARTS``).
        noise: relative sizes of random changes of weights.
        seeds: of the runs and of the changes.
    """

    data: Mapping[str, Any]
    training: TrainConfig
    steps: int
    rates: dict[str, tuple[float, ...]]
    noise: tuple[float, ...] = (1e-3, 1e-2, 3e-2)
    seeds: tuple[int, ...] = (0, 1)


FINE_TUNING = {
    "quick": FineTuning(
        {"seq_len": 16, "dim": 2, "lengthscale": 2.0, "exponent": 1.0},
        TrainConfig(steps=500, weight_decay=0.0, evaluate_every=100),
        steps=6,
        rates={
            STARTS[0]: (1e-4, 3e-4, 1e-3),
            STARTS[1]: (1e-6, 1e-5, 1e-4),
            STARTS[2]: (3e-3,),
        },
    )
}


def fine_tuning(settings: FineTuning, run: Run) -> Path:
    """Fine-tune the constructed transformer in several ways, and shake its weights.

    Table ``runs``: path divergence before and after, whether it diverged, how far the weights
    (``weights moved``) and the attention maps (``attention moved``) went, relative to where they
    were, and how far the maps are from depending on the lag alone (``toeplitz defect before`` and
    ``after``). Table ``noise``: path divergence with weights multiplied by 1 + ε × normal noise.
    Takes and returns what :func:`.figure1` does.
    """
    process = decaying_process(**settings.data).to(run.device)
    runs = pd.DataFrame(_runs(settings, process, run))
    starts = {
        "gradient descent": UnrolledScore(process, settings.steps),
        "constructed": built(settings, run.device),
    }
    numbers = {label: {"path_kl": _divergence(s, process)} for label, s in starts.items()}
    after = runs.groupby(["start", "learning rate"])["path_kl after"].median()
    numbers["after, median"] = {f"{a}, {b:g}": _finite(x) for (a, b), x in after.items()}
    tables = {"runs": runs, "noise": _shaken(settings, process)}
    return run.save(asdict(settings), numbers, tables)


def built(settings: FineTuning, device: torch.device | str = "cpu") -> ScoreTransformer:
    """The constructed network, in single precision, its weights free."""
    network = build_score_transformer(
        decaying_process(**settings.data), settings.steps, form="position-once",
        heads="shared-knots", multiplication="attention", dtype=torch.float32,
    )  # fmt: skip
    return network.to(device).requires_grad_()


def keep_zeros(model: nn.Module) -> None:
    """Train only the weights that are not zero now: the gradients of the others are set to 0."""
    for parameter in model.parameters():
        mask = (parameter.detach() != 0).to(parameter)
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Give every weight a normal value of deviation 1 / (4 √(its last dimension)).

    Attention without softmax multiplies three of them and sums over frames: at four times the size
    the first gradient overflows.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            draw = normal_like(parameter, generator)
            parameter.copy_(draw / (4 * math.sqrt(parameter.shape[-1])))


def shake(
    model: nn.Module, names: tuple[str, ...], size: float, generator: torch.Generator
) -> None:
    """Multiply weights whose names end with one of ``names`` by 1 + size × normal noise."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(names):
                weight.mul_(1 + size * normal_like(weight, generator))


def toeplitz_defect(maps: Tensor) -> float:
    """Relative distance of (…, N, N) maps from their averages along diagonals."""
    index = torch.arange(maps.shape[-1], device=maps.device)
    return relative_error(lag_profile(maps)[..., index - index[:, None] + len(index) - 1], maps)


def _runs(settings: FineTuning, process: GaussianProcess, run: Run) -> Iterator[dict[str, Any]]:
    original = built(settings, run.device)
    original.check_ranges = False  # weights that move leave the ranges they were made for
    for start, rates in settings.rates.items():
        for rate, seed in product(rates, settings.seeds):
            network = copy.deepcopy(original)
            if start == STARTS[2]:
                randomise(network, torch.Generator().manual_seed(seed))
            elif start == STARTS[0]:
                keep_zeros(network)
            before = copy.deepcopy(network)
            row = {"start": start, "learning rate": rate, "seed": seed}
            row["path_kl before"] = _divergence(before, process)
            config = replace(settings.training, learning_rate=rate, seed=seed)
            try:
                trained = run.train(f"{start}-{rate:g}-{seed}", network, process, config)
            except TrainingDivergedError:
                yield {**row, "diverged": True, "seconds": 0.0}
                continue
            moved = _moved(before, trained.model, process)
            yield {**row, "diverged": False, "seconds": trained.seconds, **moved}


def _moved(before: nn.Module, after: nn.Module, process: GaussianProcess) -> dict[str, Any]:
    """How far training has taken a network, in quality, weights and attention."""
    draw = seeded(process, 7)
    v, _ = perturb(process.sample(1, draw), PROBE_STEP, draw)
    old, new = (
        torch.cat([seen.maps[0] for seen in record(network, v, PROBE_STEP)])
        for network in (before, after)
    )
    return {
        "path_kl after": _divergence(after, process),
        "weights moved": relative_error(_flat(after), _flat(before)),
        "attention moved": relative_error(new, old),
        "toeplitz defect before": toeplitz_defect(old),
        "toeplitz defect after": toeplitz_defect(new),
    }


def _shaken(settings: FineTuning, process: GaussianProcess) -> Iterator[dict[str, Any]]:
    for part, size, seed in product(PARTS, settings.noise, settings.seeds):
        network = built(settings, process.mean.device)
        network.check_ranges = False
        shake(network, PARTS[part], size, torch.Generator().manual_seed(seed))
        error = _divergence(network, process)
        yield {"part": part, "noise": size, "seed": seed, "path_kl": error}


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _divergence(score: nn.Module, process: GaussianProcess) -> float | None:
    return _finite(path_kl(score, process, generator=seeded(process, 101)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
