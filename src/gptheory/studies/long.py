"""Networks trained on long sequences: certified attention beside a window, and beside no memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.kernels import PowerExponential
from ..data.process import GaussianProcess
from ..diffusion.exact import ExactScore, Score
from ..diffusion.sampler import sample
from ..measures.scores import path_kl, score_error
from ..measures.spectrum import lag_products, spectral_ratios
from ..training.config import TrainConfig
from .run import Run, half_weights, in_half_precision, new_network, seeded

LAGS = (0, 1, 2, 4, 8, 16, 32, 64)
BANDS = 8
SCORE_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
SEED = 4096
OWN: dict[str, Any] = {"solver": "exp-ab3", "spacing": "log-snr", "t_min": 0.005}  # sampler
NO_MEMORY = 1e-3  # a length-scale at which frames are independent in floating point


@dataclass(frozen=True)
class LongSequences:
    """Settings of :func:`long_sequences`.

    Args:
        lengthscale, seq_len, correlation: ℓ and N of exp(-lag / ℓ), and the one entry of Σ, 2 × 2,
            beside its diagonal of ones.
        networks: arguments of :class:`.DiT` by name.
        training: of each.
        samples: sequences generated from each.
        solver_steps: of the sampler.
        monte_carlo: sequences of the path divergence.
    """

    lengthscale: float
    seq_len: int
    correlation: float
    networks: Mapping[str, Mapping[str, Any]]
    training: TrainConfig
    samples: int
    solver_steps: int = 24
    monte_carlo: int = 64

    def process(self, lengthscale: float | None = None) -> GaussianProcess:
        """The law of the sequences, or one with another memory."""
        spatial = torch.eye(2, dtype=torch.float64)
        spatial[0, 1] = spatial[1, 0] = self.correlation
        kernel = PowerExponential(self.lengthscale if lengthscale is None else lengthscale)
        return GaussianProcess(kernel, spatial, seq_len=self.seq_len)


SHAPE: dict[str, Any] = {"hidden": 64, "heads": 16, "depth": 4}  # head_dim 4
NETWORKS: dict[str, Mapping[str, Any]] = {
    "certified": {**SHAPE, "attention": "certified", "radius": 3.0, "degree": 6},
    "window": {**SHAPE, "attention": "window", "window": 16},
}
LONG = {
    "quick": LongSequences(
        8.0, 4096, 0.5, NETWORKS,
        TrainConfig(steps=20, batch_size=1, ema_decay=0.5, log_every=5, evaluate_n=4), 4,
        monte_carlo=8,
    ),
    "paper": LongSequences(
        8.0, 4096, 0.5, NETWORKS,
        TrainConfig(
            steps=3000, batch_size=2, learning_rate=3e-3, ema_decay=0.995, log_every=50,
            evaluate_n=16,
        ),
        16,
    ),
}  # fmt: skip


def long_sequences(settings: LongSequences, run: Run) -> Path:
    """Networks on sequences too long for dense attention, and what they generate.

    Source: HWLSL Practical guidance.

    Tables by network, with ``exact`` (the exact score, sampled alike) and ``no memory`` (that of
    independent frames): ``scores``, the score error by t; ``lags``, mean products of whitened
    frames with their standard error under the law; ``spectrum``, periodogram over its expectation
    in bands. Takes and returns what :func:`.figure1` does.
    """
    process = settings.process().to(run.device)
    unconnected = ExactScore(settings.process(NO_MEMORY).to(run.device))
    found = _Found(settings, process)
    networks, arrays, numbers = {}, {}, {}
    for name, score in (("exact", ExactScore(process)), ("no memory", unconnected)):
        numbers[name] = found.add(name, score, _drawn(score, settings))
    for name, options in settings.networks.items():
        network = new_network("DiT", process.seq_len, 2, settings.training.seed, **options)
        trained = run.train(name, network, process, settings.training)
        network = in_half_precision(trained.model)
        x = run.generate(name, network, settings.samples, SEED, steps=settings.solver_steps, **OWN)
        numbers[name] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "training seconds": round(trained.seconds, 1),
            **found.add(name, network, x),
        }
        found.tables[f"{name} history"] = trained.history.to_dict("records")
        networks[name] = network.config
        arrays |= half_weights(network, f"{name}.weights.")
    return run.save(asdict(settings) | {"networks": networks}, numbers, found.tables, arrays)


def _drawn(score: ExactScore, settings: LongSequences) -> Tensor:
    """Sequences from an exact score, made as those of the networks."""
    generator = torch.Generator(score.device).manual_seed(SEED)
    shape = settings.samples, settings.seq_len, 2
    return sample(score, *shape, steps=settings.solver_steps, generator=generator, **OWN)


class _Found:
    """The tables of what was measured."""

    def __init__(self, settings: LongSequences, process: GaussianProcess) -> None:
        self.settings, self.process = settings, process
        self.tables: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, name: str, score: Score, x: Tensor) -> dict[str, float]:
        """Rows of a score and of what it generated; its path divergence."""
        law, n = self.process, self.settings.monte_carlo
        for t in SCORE_STEPS:
            error = score_error(score, law, t, max(2, n // 8), seeded(law, 103))
            self.tables["scores"].append({"network": name, "t": t, "score_error": error})
        products, errors = lag_products(x, law, LAGS)
        lags = zip(LAGS, products.tolist(), errors.tolist(), strict=True)
        self._rows("lags", name, ("lag", "product", "standard_error"), lags)
        ratios, errors = spectral_ratios(x, law, BANDS)
        bands = zip(range(BANDS), ratios.tolist(), errors.tolist(), strict=True)
        self._rows("spectrum", name, ("band", "ratio", "standard_error"), bands)
        return {"path_kl": path_kl(score, law, n=n, generator=seeded(law, 101))}

    def _rows(
        self, table: str, name: str, columns: Sequence[str], rows: Iterable[tuple[float, ...]]
    ) -> None:
        for row in rows:
            self.tables[table].append({"network": name, **dict(zip(columns, row, strict=True))})
