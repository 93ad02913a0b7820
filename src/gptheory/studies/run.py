"""A run of a study: where it computes, what it keeps, how long it took.

A study is a function of its settings and a :class:`Run`. Everything that takes long is kept in the
run's folder: killed and started again, a study goes on where it was.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..data.process import GaussianProcess
from ..diffusion.exact import Score
from ..diffusion.sampler import restart, sample
from ..measures.scores import coupled_ode_error, path_kl
from ..networks.baselines import FrameMLP, UNet1d
from ..networks.dit import DiT
from ..networks.score_network import ScoreNetwork
from ..support.files import digest, provenance, remembered
from ..training.config import TrainConfig, TrainResult
from ..training.resume import fit
from .results import SAMPLER, Result, save_result

NETWORKS: dict[str, type[ScoreNetwork]] = {"DiT": DiT, "UNet1d": UNet1d, "FrameMLP": FrameMLP}
CHUNK = 250  # sequences generated at a time
CHECKPOINTS = 10  # of a short training; a long one has them every 200 steps

# arguments of gptheory.data.process.decaying_process
QUICK_DATA = {"seq_len": 32, "dim": 4, "lengthscale": 8.0, "exponent": 1.0}
PAPER_DATA = {"seq_len": 128, "dim": 8, "lengthscale": 8.0, "exponent": 1.0}


@dataclass
class Run:
    """One run of a study.

    Args:
        name: of its result; the names of its files begin with it.
        device: where it trains and generates.
        folder: of checkpoints, sequences and the result.
        show: see :func:`.progress`.
    """

    name: str
    device: torch.device
    folder: Path
    show: bool | None = None

    def __post_init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began; training that a killed process did before counts too."""
        return time.perf_counter() - self._start

    def path(self, label: str, kind: str) -> Path:
        """The file of a kind with a label."""
        label = label.replace(" ", "-").replace("/", "over")
        return self.folder / f"{self.name}-{label}.{kind}"

    def keep(
        self, label: str, kind: str, identity: Mapping[str, Any],
        make: Callable[[], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:  # fmt: skip
        """Arrays that are made once, see :func:`.remembered`."""
        return remembered(self.path(label, kind), identity, make)

    def train(
        self, label: str, network: ScoreNetwork, data: Tensor | GaussianProcess, config: TrainConfig
    ) -> TrainResult:
        """Train a network on the run's device, with a checkpoint; see :func:`.fit`.

        Args:
            label: of the checkpoint.
            network: untrained; it is moved, and trained in place.
            data, config: on what and how.
        """
        start = time.perf_counter()
        every, path = max(1, min(200, config.steps // CHECKPOINTS)), self.path(label, "checkpoint")
        result = fit(network.to(self.device), data, config, None, path, every, self.show)
        self._start -= result.seconds - (time.perf_counter() - start)
        return result

    def generate(
        self, label: str, network: ScoreNetwork, n: int, seed: int,
        repair: Mapping[str, Any] | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        """Sequences from a network, a chunk at a time; chunks that are there are not made again.

        Args:
            label: of the files.
            network: the score.
            n: number of sequences.
            seed: of the noise; the number of a chunk's first sequence is added to it.
            repair: arguments of :func:`.restart`, if it follows.
            options: of :func:`.sample`.

        Returns:
            (n, N, d) on the CPU.
        """
        weights = digest(*network.state_dict().values())

        def chunk(first: int) -> Tensor:
            size = min(CHUNK, n - first)
            identity = {
                "weights": weights, "size": size, "seed": seed, "device": self.device.type,
                "options": options, "repair": repair,
            }  # fmt: skip

            def draw() -> dict[str, Tensor]:
                generator = torch.Generator(self.device).manual_seed(seed + first)
                x = sample(
                    network, size, network.seq_len, network.dim, generator=generator,
                    device=self.device, show_progress=self.show, **SAMPLER | options,
                )  # fmt: skip
                return {"x": restart(network, x, generator=generator, **repair) if repair else x}

            return self.keep(f"{label}-{first:05d}", "sequences", identity, draw)["x"]

        return torch.cat([chunk(first) for first in range(0, n, CHUNK)])

    def save(
        self,
        settings: Mapping[str, Any],
        numbers: Mapping[str, Any],
        tables: Mapping[str, pd.DataFrame | Iterable[Mapping[str, Any]]],
        arrays: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Store the result: see :func:`.save_result`.

        Args:
            settings, numbers: JSON values.
            tables: data frames, or their rows.
            arrays: tensors by name, if there are any.

        Returns:
            The path of the result's record.
        """
        frames = {name: pd.DataFrame(rows) for name, rows in tables.items()}
        return save_result(
            self.folder, self.name, arrays or {}, settings, numbers, frames,
            provenance(self.device), self.seconds,
        )  # fmt: skip


def new_network(kind: str, seq_len: int, dim: int, seed: int, **options: Any) -> ScoreNetwork:
    """An untrained network.

    Args:
        kind: key of ``NETWORKS``.
        seq_len, dim: N and d.
        seed: of its weights.
        options: of the network.
    """
    return NETWORKS[kind](dim, seq_len, generator=torch.Generator().manual_seed(seed), **options)


def seeded(process: GaussianProcess, seed: int) -> torch.Generator:
    """A generator on the device of a law: what is measured twice is measured on one noise."""
    return torch.Generator(process.mean.device).manual_seed(seed)


def accuracy(score: Score, process: GaussianProcess, monte_carlo: int = 4096) -> dict[str, float]:
    """The two numbers that say most: path divergence and coupled-ODE error, on fixed noise."""
    return {
        "path_kl": path_kl(score, process, n=monte_carlo, generator=seeded(process, 101)),
        "coupled_ode_error": coupled_ode_error(score, process, generator=seeded(process, 102)),
    }


def in_half_precision(network: nn.Module) -> nn.Module:
    """A copy whose weights are rounded to half precision, and kept in their own dtype."""
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for value in rounded.state_dict().values():
            value.copy_(value.half())
    return rounded


def half_weights(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Weights in half precision as arrays of a result, for :func:`with_weights`."""
    return {f"{prefix}{name}": value.half() for name, value in network.state_dict().items()}


def with_weights(network: nn.Module, arrays: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """A network with the arrays whose names begin with a prefix as its weights, ready for use."""
    own = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
    network.load_state_dict(own)  # which keeps its own dtype
    return network.eval().requires_grad_(False)


def stored_network(result: Result, kind: str) -> ScoreNetwork:
    """The trained network of a result.

    Args:
        result: of Figure 1, or of another study that keeps its networks.
        kind: ``"DiT"`` or ``"UNet1d"``, or the name that the study gave to a DiT.

    Returns:
        The network, in single precision and evaluation mode.

    Raises:
        ValueError: if the result holds no such network.
    """
    networks = result.record["settings"].get("networks", {})
    if kind not in networks:
        raise ValueError(f"{result.name} holds the networks {sorted(networks)}, not {kind!r}")
    made = NETWORKS.get(kind, DiT)(**networks[kind])
    return with_weights(made, result.arrays, f"{kind}.weights.")
