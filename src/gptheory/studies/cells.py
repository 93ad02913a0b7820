r"""A cell of a sweep: one estimate of one law from one training set, and how good it is.

:class:`SweepCell` is what a sweep asks of a cell; :class:`Cell` is that of chapter 6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data.estimate import kronecker_mle, toeplitz_moments
from ..data.kernels import PowerExponential
from ..data.process import GaussianProcess, decaying_process
from ..diffusion.exact import ExactScore, Score, WienerScore
from ..diffusion.sampler import sample
from ..measures.covariances import (
    lag_correlations,
    relative_error,
    sampling_floor,
    temporal_covariance,
)
from ..measures.scores import path_kl, score_error
from ..networks.dit import DiT
from ..networks.learned import LearnedCovariance
from ..support.files import digest
from ..support.precision import full_precision
from ..support.validation import require_count, require_positive
from ..training.config import TrainConfig
from ..training.ensemble import Member
from .results import SAMPLER

HEAD_DIM = 16
SCORE_STEPS = (0.01, 0.1, 1.0)
SCORE_N, PATH_N, GENERATED, SOLVER_STEPS = 512, 1024, 512, 20

# estimator -> what it makes of (cell, generator of weights), or of a training set
TRAINED: dict[str, Callable[[Cell, torch.Generator], nn.Module]] = {
    "dit": lambda cell, generator: DiT(
        cell.dim, cell.seq_len, cell.hidden, cell.heads, cell.depth, fused=False,
        generator=generator,
    ),
    "unrolled": lambda cell, generator: LearnedCovariance(
        cell.dim, cell.seq_len, cell.depth, stationary=False, generator=generator
    ),
    "unrolled-stationary": lambda cell, generator: LearnedCovariance(
        cell.dim, cell.seq_len, cell.depth, stationary=True, generator=generator
    ),
}  # fmt: skip
CLOSED: dict[str, Callable[[Tensor], Score]] = {
    "wiener": WienerScore,
    "kronecker": lambda x: ExactScore(kronecker_mle(x)),
    "stationary": lambda x: ExactScore(toeplitz_moments(x)),
}


class SweepCell(ABC):
    """What :func:`.sweep` asks of a cell, a frozen dataclass of JSON values.

    Attributes:
        FORMAT: changes whenever a cell of the same settings would be measured otherwise.
        OWN: the fields that may differ among cells that are trained together.
        KNOWN: the names that a field may have.

    Raises:
        ValueError: for an unknown name, or an integer below 1 that is no seed.
    """

    FORMAT: ClassVar[str]
    OWN: ClassVar[frozenset[str]]
    KNOWN: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for name, known in self.KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for field in fields(self):
            kind, value = field.type, getattr(self, field.name)
            if kind in (int, "int", "int | None") and field.name != "seed" and value is not None:
                require_count(field.name, value)
            # 8 == 8.0, and so are cells; but names and seeds come from JSON, which tells them apart
            if kind in (float, "float"):
                object.__setattr__(self, field.name, float(value))

    @property
    def name(self) -> str:
        """A digest of the settings, which names its file."""
        return digest(asdict(self))[:20]

    @property
    def shape(self) -> tuple:
        """What cells that are trained together have in common."""
        return tuple(v for k, v in asdict(self).items() if k not in self.OWN)

    def closed_form(self) -> Score | None:
        """The estimate, or None where it has to be trained."""
        return None

    @abstractmethod
    def member(self) -> Member:
        """The untrained network, its data and the seed of its noise."""

    @abstractmethod
    def training(self) -> TrainConfig:
        """How it is trained."""

    @abstractmethod
    def assess(self, score: Score) -> dict[str, float]:
        """How good an estimate is."""

    def _seed(self, purpose: str, *names: str) -> int:
        return int(digest(purpose, [getattr(self, name) for name in names])[:15], 16)

    def _generator(self, purpose: str, *names: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(purpose, *names))


@dataclass(frozen=True)
class Cell(SweepCell):
    r"""One estimate of one law from one training set.

    Source: FDGWC Theorem 2; FDGWC Fig. 4a.

    Args:
        estimator: ``"dit"``, ``"unrolled"`` or ``"unrolled-stationary"`` (trained, see
            :class:`.LearnedCovariance`); ``"wiener"``, ``"kronecker"`` or
            ``"stationary"`` (closed form, see :mod:`gptheory.networks.learned`).
        n: training sequences; None for fresh ones in every step, which only training can use.
        exponent, lengthscale: ν and ℓ of Γ.
        correlation: ρ of :math:`\Sigma_{ij} = \rho^{|i-j|}`.
        seq_len, dim: N and d.
        steps, batch_size, learning_rate: of the training.
        hidden, depth: width and blocks of the DiT; ``depth`` iterations of the unrolled estimators.
        seed: of training set, weights, batches and noise. Cells that differ in n only start from
            the same weights.

    Attributes:
        LAW: the fields that decide the law, and with n and seed the training set.

    Raises:
        ValueError: for an unknown estimator, numbers out of range, a width that cannot be divided
            into heads, or no n where it is needed.
    """

    FORMAT: ClassVar[str] = "sweep-2"
    OWN: ClassVar[frozenset[str]] = frozenset(
        {"n", "exponent", "lengthscale", "correlation", "seed"}
    )
    KNOWN: ClassVar[Mapping[str, tuple[str, ...]]] = {"estimator": (*TRAINED, *CLOSED)}
    LAW: ClassVar[tuple[str, ...]] = ("exponent", "lengthscale", "correlation", "seq_len", "dim")

    estimator: str = "dit"
    n: int | None = None
    exponent: float = 1.0
    lengthscale: float = 8.0
    correlation: float = 0.5
    seq_len: int = 16
    dim: int = 2
    steps: int = 800
    batch_size: int = 16
    learning_rate: float = 6e-3
    hidden: int = 32
    depth: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is None and self.estimator in CLOSED:
            raise ValueError(f"the estimator {self.estimator!r} needs n, got None")
        require_positive("learning_rate", self.learning_rate)
        PowerExponential(self.lengthscale, self.exponent)  # refuses what is no kernel
        if not -1 < self.correlation < 1:
            raise ValueError(f"correlation must lie in (-1, 1), got {self.correlation!r}")
        if self.estimator == "dit" and self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden must be an even multiple of its {self.heads} heads (one for every"
                f" {HEAD_DIM}), got {self.hidden}"
            )

    @property
    def heads(self) -> int:
        """Heads of the DiT."""
        return max(1, self.hidden // HEAD_DIM)

    def process(self) -> GaussianProcess:
        """The law of the sequences. Source: FDGWC Data model."""
        return decaying_process(
            self.seq_len, self.dim, self.lengthscale, self.exponent, self.correlation
        )

    def training_set(self) -> Tensor | GaussianProcess:
        """n sequences (n, N, d), or the law itself for fresh ones."""
        law = self.process()
        if self.n is None:
            return law
        return law.sample(self.n, self._generator("data", *self.LAW, "n", "seed"))

    def member(self) -> Member:
        """The untrained network, its data and the seed of its noise."""
        names = ("estimator", "seq_len", "dim", "hidden", "depth", "seed")
        model = TRAINED[self.estimator](self, self._generator("weights", *names))
        return Member(model, self.training_set(), self._seed("noise", "seed"))

    def training(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate
        )

    def closed_form(self) -> Score | None:
        """The estimate, or None where it has to be trained."""
        return CLOSED[self.estimator](self.training_set()) if self.estimator in CLOSED else None

    def assess(self, score: Score) -> dict[str, float]:
        """How far a score is from the exact one of the law, on noise that all cells share.

        Args:
            score: called as (v, t).

        Returns:
            - ``score_error_T``: relative, at diffusion steps T;
            - ``path_kl``: per coordinate;
            - ``coupled_ode``: relative distance of sequences generated from the same noise;
            - ``covariance``, ``lags``: relative errors of the temporal covariance of the generated
              sequences, and of its averages along diagonals;
            - ``covariance_floor``: what as many true sequences are expected to have;
            - ``covariance_coupled``: difference from the covariance of what the exact score makes
              of the same noise, relative to the truth: nearly free of sampling noise;
            - ``data_covariance``: relative error of the training set's own temporal covariance;
            - ``nearest``: mean distance of a generated sequence to the nearest one of the training
              set, divided by that to as many sequences held out.
        """
        law = self.process()
        draws = (torch.Generator().manual_seed(seed) for seed in range(201, 300))
        numbers = {
            f"score_error_{t:g}": score_error(score, law, t, SCORE_N, next(draws))
            for t in SCORE_STEPS
        }
        numbers["path_kl"] = path_kl(score, law, n=PATH_N, generator=next(draws))
        generated, reference = (
            sample(
                each, GENERATED, self.seq_len, self.dim, steps=SOLVER_STEPS,
                generator=torch.Generator().manual_seed(301), show_progress=False, **SAMPLER,
            )
            for each in (score, ExactScore(law))
        )  # fmt: skip
        numbers["coupled_ode"] = relative_error(generated, reference)
        numbers |= self._covariances(law, generated, reference)
        return numbers if self.n is None else numbers | self._training_set_errors(law, generated)

    def _covariances(
        self, law: GaussianProcess, generated: Tensor, reference: Tensor
    ) -> dict[str, float]:
        truth = law.gram()
        own, theirs = (temporal_covariance(x, law.mean).double() for x in (generated, reference))
        return {
            "covariance": relative_error(own, truth),
            "covariance_floor": sampling_floor(law, GENERATED),
            "covariance_coupled": ((own - theirs).norm() / truth.norm()).item(),
            "lags": relative_error(lag_correlations(own), lag_correlations(truth)),
        }

    def _training_set_errors(self, law: GaussianProcess, generated: Tensor) -> dict[str, float]:
        x = self.training_set()
        held_out = law.sample(self.n, self._generator("held out", "n", "seed"))
        with full_precision():
            near, far = (
                torch.cdist(generated.flatten(1), each.flatten(1)).amin(dim=1).mean()
                for each in (x, held_out)
            )
        return {
            "data_covariance": relative_error(temporal_covariance(x, law.mean), law.gram()),
            "nearest": (near / far).item(),
        }


FIELDS = tuple(field.name for field in fields(Cell))
