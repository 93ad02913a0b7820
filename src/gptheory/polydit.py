r"""A trained diffusion transformer whose softmax is exchanged for a polynomial, weights untouched.

At the sizes of this book the rank of the polynomial exceeds N by far, so the maps are formed: what
is asked here is not how fast such a network is, but what the polynomial does to what it generates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dit
from .diffusion import perturb
from .dit import DiT
from .exppoly import exp_polynomial
from .metrics import (
    debiased_error,
    path_kl,
    relative_error,
    sampling_floor,
    score_error,
    temporal_covariance,
)
from .probe import record
from .process import GaussianProcess, decaying_process
from .results import load_result
from .run import PAPER_DATA, QUICK_DATA, Run, new_network, stored_network
from .sample import sample
from .score import ExactScore, Score
from .train import TrainConfig
from .validation import require_count
from .wrappers import uncompiled

SMALLEST_RADIUS = 1e-3  # of logits that are all zero
MARGIN = 1 + 1e-5  # logits are rounded
SHOWN_PATHS = 4


class PolynomialAttention(dit.Attention):
    r"""Attention with weights :math:`p(l_{ij}/2)^2`, normalised, for :math:`e^{l_{ij}}`.

    p is the minimax polynomial of degree g/2 on half the range of the logits: their square has
    degree g and is positive everywhere. (This is scaling and squaring, as for the exponential of a
    matrix: its rounding is of order :math:`u\,e^R`, where a polynomial on the whole range would
    have :math:`u\,e^{2R}`.) With ε the error of p, a row of the map is that of a polynomial of
    error :math:`2\varepsilon/(1+\varepsilon^2)`, hence off by at most 2ε in the sum of absolute
    values.

    Keys are centred first: a constant added to the logits of a row does not change softmax.

    Args:
        trained: the layer whose weights are used (shared, not copied).
        degree: g, even.
        radius: R; by default the largest logit of the batch at hand.
    """

    def __init__(self, trained: dit.Attention, degree: int, radius: float | None = None) -> None:
        require_count("degree", degree, minimum=0)
        if degree % 2:
            raise ValueError(f"degree must be even, got {degree}: the weights are squares")
        if trained.kind != "softmax":
            raise ValueError(f"only softmax attention can be exchanged, got {trained.kind!r}")
        torch.nn.Module.__init__(self)
        self.heads, self.kind, self.fused = trained.heads, "polynomial", False
        self.project, self.output = trained.project, trained.output
        self.degree, self.radius = degree, radius

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Those of softmax attention with centred keys."""
        return super().logits(query, key - key.mean(dim=-2, keepdim=True))

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape; evaluated in float64.

        Raises:
            ValueError: for logits beyond the radius, or an error that is not below 1.
        """
        reach = max(logits.detach().abs().max().item(), SMALLEST_RADIUS) * MARGIN
        if self.radius is not None and reach > self.radius * MARGIN:
            raise ValueError(f"logits reach {reach:.4g}, the radius is {self.radius:.4g}")
        root = exp_polynomial(self.degree // 2, (self.radius or reach) / 2)
        weights = root(logits.double() / 2) ** 2
        return (weights / weights.sum(dim=-1, keepdim=True)).to(logits)


def with_polynomial_attention(network: DiT, degree: int, radius: float | None = None) -> DiT:
    """A copy of a network with :class:`PolynomialAttention` in every block.

    Args:
        network: trained with softmax attention.
        degree, radius: see :class:`PolynomialAttention`.

    Returns:
        The copy, a score (v, t) like the network; it refuses what its polynomials refuse.
    """
    swapped = copy.deepcopy(uncompiled(network))
    for block in swapped.blocks:
        block.attention = PolynomialAttention(block.attention, degree, radius)
    return swapped


@torch.no_grad()
def logit_ranges(
    network: DiT,
    process: GaussianProcess,
    steps: tuple[float, ...],
    n: int = 64,
    generator: torch.Generator | None = None,
) -> list[dict[str, float]]:
    """The largest logit, in size, of every layer at some diffusion steps, keys as is and centred.

    Args:
        network: with softmax attention.
        process: law of the clean sequences.
        steps: diffusion steps t.
        n: sequences at each.
        generator: source of randomness.

    Returns:
        One row per step and layer: ``layer`` (from 1), ``t``, ``range`` and ``centred``.
    """
    x, rows = process.sample(n, generator), []
    for t in steps:
        for seen in record(network, perturb(x, t, generator)[0], t):
            query, key, _ = seen.layer.query_key_value(seen.inputs)
            centred = key - key.mean(dim=-2, keepdim=True)
            reach = [seen.layer.logits(query, k).abs().max().item() for k in (key, centred)]
            rows.append({"layer": seen.index + 1, "t": t, "range": reach[0], "centred": reach[1]})
    return rows


@dataclass(frozen=True)
class Swap:
    """Settings of :func:`swap`.

    Args:
        network: name of the stored result whose DiT is used; without one, a DiT is trained.
        data: on which either was trained, as in :class:`gptheory.experiments.Figure1`.
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

    Table ``ranges``: see :func:`logit_ranges`. Table ``quality``: score errors, path divergence,
    coupled-ODE error and covariance error of generated sequences by degree; degree −1 is softmax,
    and a degree that was refused has no numbers.
    Takes and returns what :func:`gptheory.experiments.figure1` does.
    """
    process = decaying_process(**settings.data).to(run.device)
    if settings.network is None:
        fresh = new_network("DiT", process.seq_len, process.dim, settings.training.seed)
        network = run.train("DiT", fresh, process, settings.training).model
    else:
        network = stored_network(load_result(settings.network), "DiT").to(run.device)
    draw = torch.Generator(run.device).manual_seed(0)
    ranges = logit_ranges(network, process, settings.steps, settings.samples, draw)
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
        generator=torch.Generator(run.device).manual_seed(1), device=run.device,
        show_progress=run.show,
    )  # fmt: skip


def _quality(
    score: Score, x: Tensor, truth: Tensor, process: GaussianProcess, settings: Swap
) -> dict[str, float]:
    """Numbers of a score, and of what it generated from the noise from which the truth came."""

    def draw() -> torch.Generator:
        return torch.Generator(process.mean.device).manual_seed(2)

    n = settings.monte_carlo
    errors = {
        f"score error, t = {t:g}": score_error(score, process, t, min(n, 128), draw())
        for t in settings.score_steps
    }
    error = relative_error(temporal_covariance(x, process.mean), process.gram().to(x))
    floor = sampling_floor(process, settings.samples)
    return {
        **errors,
        "path_kl": path_kl(score, process, n=n, generator=draw()),
        "coupled_ode_error": relative_error(x, truth),
        "covariance error, debiased": debiased_error(error, floor),
    }
