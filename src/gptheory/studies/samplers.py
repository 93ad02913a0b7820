"""Trained networks sampled anew: which part of the lost variance is the sampler's.

What a network generates is set beside what the *exact* score would with the same sampler, mode by
mode: the second is computed (:func:`.sampling_error`), and all of it is the sampler's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.process import GaussianProcess, decaying_process
from ..measures.covariances import (
    debiased_error,
    relative_error,
    sampling_floor,
    temporal_covariance,
)
from ..measures.sampling import sampling_error
from .results import SAMPLER, load_result
from .run import PAPER_DATA, Run, stored_network

GROUPS = 8  # of modes, equally many in each, by their variance
SEED = 2024

NEW: dict[str, Any] = {"solver": "exp-ab3", "spacing": "log-snr", "t_min": SAMPLER["t_min"]}


@dataclass(frozen=True)
class Samplers:
    """Settings of :func:`samplers`.

    Args:
        network: name of the stored result whose networks are sampled.
        kinds: of its networks.
        data: on which they were trained, as in :class:`.Figure1`.
        samplers: arguments of :func:`.sample` by name.
        samples: sequences generated from each network with each.
    """

    network: str
    kinds: tuple[str, ...]
    data: Mapping[str, Any]
    samplers: Mapping[str, Mapping[str, Any]]
    samples: int


RUNS = {
    "before, 20": {**SAMPLER, "steps": 20},
    "before, 40": {**SAMPLER, "steps": 40},
    "now, 20": {**NEW, "steps": 20},
    "now, 40": {**NEW, "steps": 40},
    # where the law's own smallest variance would stop it, far below the steps of training
    "now, 20, below training": {**NEW, "steps": 20, "t_min": 2e-4},
}
SAMPLERS = {
    "quick": Samplers("fig1-paper", ("DiT",), PAPER_DATA, RUNS, 50),
    "paper": Samplers("fig1-paper", ("DiT", "UNet1d"), PAPER_DATA, RUNS, 2000),
}


def samplers(settings: Samplers, run: Run) -> Path:
    """Variances of what networks generate, in groups of modes, for several samplers.

    Table ``modes``: by sampler, score (``exact``, or a network) and group, the group's mean true
    ``variance``, the mean ``ratio`` of generated variance to the true one, and its
    ``standard_error`` (0 for the exact score, whose ratios are computed). Table ``covariances``:
    the relative error of the temporal covariance, its floor, and the error without it.
    Takes and returns what :func:`.figure1` does.
    """
    process = decaying_process(**settings.data)
    stored, modes, covariances = load_result(settings.network), [], []
    for name, options in settings.samplers.items():
        modes += [{"sampler": name, "score": "exact", **row} for row in _exact(process, options)]
        for kind in settings.kinds:
            network = stored_network(stored, kind).to(run.device)
            with warnings.catch_warnings():  # one of them asks below the training, on purpose
                warnings.filterwarnings("ignore", message=".*below the diffusion steps")
                x = run.generate(f"{kind} {name}", network, settings.samples, SEED, **options)
            own = {"sampler": name, "score": kind}
            modes += [{**own, **row} for row in _generated(x, process)]
            covariances.append(own | _covariance(x, process))
    return run.save(asdict(settings), {}, {"modes": modes, "covariances": covariances})


def _exact(process: GaussianProcess, options: Mapping[str, Any]) -> list[dict[str, float]]:
    """Rows of the exact score, computed."""
    given = {("grid" if key == "spacing" else key): value for key, value in options.items()}
    ratio = sampling_error(process, **given).ratio.flatten()
    return [
        {"group": k, "variance": variance, "ratio": ratio[group].mean().item(), "standard_error": 0}
        for k, (group, variance) in enumerate(_groups(process))
    ]


def _generated(x: Tensor, process: GaussianProcess) -> list[dict[str, float]]:
    """Rows of what was generated: squares in the eigenbasis, over the true variances."""
    (temporal, u), (spatial, w) = process.temporal_spectrum, process.spatial_spectrum
    rotated = u.T @ (x.double() - process.mean) @ w
    ratios = (rotated.square() / torch.outer(temporal, spatial)).flatten(1)
    rows = []
    for k, (group, variance) in enumerate(_groups(process)):
        each = ratios[:, group].mean(dim=1)  # one number per sequence
        error = (each.std() / len(each) ** 0.5).item()
        mean = each.mean().item()
        rows.append({"group": k, "variance": variance, "ratio": mean, "standard_error": error})
    return rows


def _groups(process: GaussianProcess) -> list[tuple[Tensor, float]]:
    """Places of the modes in the flattened spectrum, faintest first, and their mean variance."""
    variances = torch.outer(process.temporal_spectrum[0], process.spatial_spectrum[0]).flatten()
    return [(group, variances[group].mean().item()) for group in variances.argsort().chunk(GROUPS)]


def _covariance(x: Tensor, process: GaussianProcess) -> dict[str, float]:
    floor = sampling_floor(process, len(x))
    error = relative_error(temporal_covariance(x, process.mean), process.gram().to(x))
    return {"error": error, "floor": floor, "debiased": debiased_error(error, floor)}
