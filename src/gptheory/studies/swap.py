r"""A trained diffusion transformer whose softmax is exchanged for a polynomial, weights untouched.

At the sizes of this book the rank of the polynomial exceeds N by far, so the maps are formed: what
is asked here is not how fast such a network is, but what the polynomial does to what it generates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.process import GaussianProcess, decaying_process
from ..diffusion.exact import ExactScore, Score
from ..diffusion.sampler import sample
from ..measures.covariances import (
    debiased_error,
    relative_error,
    sampling_floor,
    temporal_covariance,
)
from ..measures.scores import path_kl, score_error
from ..networks.polynomial import with_polynomial_attention
from ..probing.recording import logit_ranges
from ..training.config import TrainConfig
from .results import SAMPLER, load_result
from .run import PAPER_DATA, QUICK_DATA, Run, new_network, seeded, stored_network

SHOWN_PATHS = 4


@dataclass(frozen=True)
class Swap:
    """Settings of :func:`swap`.

    Args:
        network: name of the stored result whose DiT is used; without one, a DiT is trained.
        data: on which either was trained, as in :class:`.Figure1`.
        training: of a DiT that is trained here.
        degrees: of the polynomials.
        steps: diffusion steps of the logits' ranges.
        score_steps: diffusion steps of the score errors.
        monte_carlo: sequences of the path divergence; score errors take 128 of them at most.
        samples: sequences generated.
        solver_steps: of the probability-flow ODE.
    """

    network: str | None
    data: Mapping[str, Any]
    training: TrainConfig | None
    degrees: tuple[int, ...]
    steps: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    score_steps: tuple[float, ...] = (0.01, 0.1, 1.0)
    monte_carlo: int = 512
    samples: int = 256
    solver_steps: int = 25


SWAP = {
    "quick": Swap(None, QUICK_DATA, TrainConfig(steps=800), (2, 4, 6, 8, 10, 12, 14, 16, 20)),
    "paper": Swap(
        "fig5-paper", PAPER_DATA, None, degrees=(8, 16, 24, 32), monte_carlo=256, samples=64
    ),
}


def swap(settings: Swap, run: Run) -> Path:
    """What polynomials of several degrees do to a trained DiT.

    Table ``ranges``: see :func:`.logit_ranges`. Table ``quality``: score errors, path divergence,
    coupled-ODE error and covariance error of generated sequences by degree; degree −1 is softmax,
    and a degree that was refused has no numbers.
    Takes and returns what :func:`.figure1` does.
    """
    process = decaying_process(**settings.data).to(run.device)
    if settings.network is None:
        fresh = new_network("DiT", process.seq_len, process.dim, settings.training.seed)
        network = run.train("DiT", fresh, process, settings.training).model
    else:
        network = stored_network(load_result(settings.network), "DiT").to(run.device)
    ranges = logit_ranges(network, process, settings.steps, settings.samples, seeded(process, 0))
    truth = _generated(ExactScore(process), process, settings, run)
    arrays, quality = {"paths.exact": truth[:SHOWN_PATHS].half()}, []
    for degree in (-1, *settings.degrees):
        score = network if degree < 0 else with_polynomial_attention(network, degree)
        try:
            x = _generated(score, process, settings, run)
            numbers = _quality(score, x, truth, process, settings)
        except ValueError:  # the polynomial was refused: its error is not below 1
            quality.append({"degree": degree})
            continue
        quality.append({"degree": degree, **numbers})
        arrays[f"paths.{degree}"] = x[:SHOWN_PATHS].half()
    numbers = {
        "head dimension": network.config["hidden"] // network.config["heads"],
        "sampling floor": sampling_floor(process, settings.samples),
    }
    tables = {"ranges": ranges, "quality": quality}
    return run.save(asdict(settings), {"network": numbers}, tables, arrays)


def _generated(score: Score, process: GaussianProcess, settings: Swap, run: Run) -> Tensor:
    """Sequences from the same noise, whatever the score."""
    return sample(
        score, settings.samples, process.seq_len, process.dim, steps=settings.solver_steps,
        generator=seeded(process, 1), device=run.device, show_progress=run.show, **SAMPLER,
    )  # fmt: skip


def _quality(
    score: Score, x: Tensor, truth: Tensor, process: GaussianProcess, settings: Swap
) -> dict[str, float]:
    """Numbers of a score, and of what it generated from the noise from which the truth came."""
    n = settings.monte_carlo
    errors = {
        f"score error, t = {t:g}": score_error(score, process, t, min(n, 128), seeded(process, 2))
        for t in settings.score_steps
    }
    error = relative_error(temporal_covariance(x, process.mean), process.gram().to(x))
    floor = sampling_floor(process, settings.samples)
    return {
        **errors,
        "path_kl": path_kl(score, process, n=n, generator=seeded(process, 2)),
        "coupled_ode_error": relative_error(x, truth),
        "covariance error, debiased": debiased_error(error, floor),
    }
