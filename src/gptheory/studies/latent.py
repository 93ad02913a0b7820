r"""The sweep behind chapter 9: what depends on d_0, on D and on n.

Every part is a grid of :class:`LatentCell`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pandas as pd
import torch

from ..data.mixture import GaussianMixture, random_mixture
from ..data.process import GaussianProcess, decaying_process
from ..diffusion.exact import ExactScore, Score
from ..diffusion.sampler import sample
from ..diffusion.schedule import alpha, sigma
from ..latent.errors import STEPS, orthogonal_energy, sliced_distance, support_errors
from ..latent.networks import FullScore, LatentScore
from ..latent.subspace import (
    SubspaceData,
    principal_subspace,
    random_basis,
    require_sizes,
    subspace_error,
    warn_if_few,
)
from ..networks.dit import DiT
from ..support.precision import full_precision
from ..support.validation import require_nonnegative, require_positive
from ..training.config import TrainConfig
from ..training.ensemble import Member
from .cells import SweepCell
from .results import SAMPLER
from .sweeps import SweepStudy

NETWORKS = ("latent", "full", "full-skip")
FRESH = 2**14  # samples that stand for fresh ones
GENERATED, SOLVER_STEPS, T_MAX = 256, 200, 8.0  # samples whose orthogonal energy is measured
HEADS = 2

# latent law -> what makes it, from (L, d, generator); all have E‖h‖² = L·d
LATENTS = {
    "mixture": lambda seq_len, dim, generator: random_mixture(
        seq_len, dim, generator=generator
    ),
    "gaussian": lambda seq_len, dim, _generator: decaying_process(
        1, seq_len * dim, correlation=0.0
    ),
    "sequence": lambda seq_len, dim, _generator: decaying_process(seq_len, dim),
}  # fmt: skip


@dataclass(frozen=True)
class LatentCell(SweepCell):
    r"""One network, trained on n samples of one law on or near a subspace.

    Source: HWLSL Theorem 3.1; HWLSL Theorem 3.2; HWLSL Corollary 3.2.1.

    Args:
        network: ``"latent"`` (:class:`.LatentScore`), ``"full"`` or ``"full-skip"``
            (:class:`.FullScore`).
        n: training samples; None for a pool of 2^14, which stands for fresh ones (400 steps of 64
            read each 1.6 times on average).
        law: of the latent: ``"mixture"`` (four Gaussians), ``"gaussian"`` (white) or ``"sequence"``
            (a Gaussian process of L frames).
        ambient_dim, latent_dim: D and d_0.
        noise: τ, known to the latent network.
        tokens: L of the network; by default those of the latent, d_0/2.
        steps, batch_size, learning_rate: of the training.
        hidden, depth: width and blocks of the transformer.
        seed: of basis, law, training set, weights and noise. Cells that differ in D only have the
            same latent law.

    Raises:
        ValueError: for an unknown name, counts below 1, d_0 > D, dimensions that cannot be divided
            into tokens, a width that cannot be divided into heads, or a negative noise.

    Warns:
        UserWarning: for n < d_0.
    """

    FORMAT: ClassVar[str] = "latent-2"
    OWN: ClassVar[frozenset[str]] = frozenset({"n", "law", "seed"})
    KNOWN: ClassVar[Mapping[str, tuple[str, ...]]] = {"network": NETWORKS, "law": tuple(LATENTS)}

    network: str = "latent"
    n: int | None = None
    law: str = "mixture"
    ambient_dim: int = 64
    latent_dim: int = 8
    noise: float = 0.0
    tokens: int | None = None
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-2
    hidden: int = 32
    depth: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self.ambient_dim, self.latent_dim)
        require_positive("learning_rate", self.learning_rate)
        require_nonnegative("noise", self.noise)
        if self.hidden % (2 * HEADS):
            raise ValueError(f"hidden must be a multiple of {2 * HEADS}, got {self.hidden}")
        if self.latent_dim % 2 or self._size % self._tokens:
            raise ValueError(
                f"{self._size} coordinates cannot be divided into {self._tokens} tokens"
                f" (latent_dim={self.latent_dim} must be even)"
            )
        if self.n is not None:
            warn_if_few(self.n, self.latent_dim)

    @property
    def _size(self) -> int:
        """Coordinates that the transformer divides into tokens."""
        return self.latent_dim if self.network == "latent" else self.ambient_dim

    @property
    def _tokens(self) -> int:
        return max(1, self.latent_dim // 2) if self.tokens is None else self.tokens

    def data(self) -> SubspaceData:
        """The law of the samples."""
        latent = LATENTS[self.law](
            self.latent_dim // 2, 2, self._generator("law", "law", "latent_dim", "seed")
        )
        generator = self._generator("basis", "ambient_dim", "latent_dim", "seed")
        basis = random_basis(self.ambient_dim, self.latent_dim, generator)
        return SubspaceData(basis, latent, self.noise)

    def training_set(self) -> torch.Tensor:
        """The samples, (n, 1, D)."""
        names = ("law", "ambient_dim", "latent_dim", "noise", "n", "seed")
        return self.data().sample(self.n or FRESH, self._generator("data", *names))

    def member(self) -> Member:
        """The untrained network, its data and the seed of its noise."""
        weights = self._generator("weights", "network", "hidden", "depth", "seed")
        inside = DiT(
            self._size // self._tokens, self._tokens, self.hidden, HEADS, self.depth,
            fused=False, generator=weights,
        )  # fmt: skip
        if self.network == "latent":
            model = LatentScore(
                self.ambient_dim, self.latent_dim, inside, weights, noise=self.noise
            )
        else:
            model = FullScore(inside, skip=self.network == "full-skip")
        return Member(model, self.training_set(), self._seed("noise", "seed"))

    def training(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            t_min=STEPS[0], t_max=STEPS[1],
        )  # fmt: skip

    def assess(self, score: Score) -> dict[str, float]:
        r"""How far a score is from the exact one of the law, on noise that all cells share.

        Args:
            score: called as (v, t).

        Returns:
            - ``on``, ``off``: see :func:`.support_errors`;
            - ``linear``: the first for the best score that is linear, from the true covariance;
            - ``energy``: orthogonal energy of generated samples over what is exact,
              :math:`\sigma_{t_0}^2 + \alpha_{t_0}^2\tau^2`;
            - ``sliced``, ``sliced_floor``: distance of their latents from true ones, and of true
              ones from each other;

            and for a latent network

            - ``subspace``: error of its encoder; ``control``: the same against the basis with its
              rows in another order;
            - ``orthonormality``: largest entry of :math:`W^\top W - I`;
            - ``pca``: subspace error of PCA on the same training set, where n is finite.
        """
        data = self.data()
        draws = [torch.Generator().manual_seed(seed) for seed in range(201, 206)]
        numbers = support_errors(score, data, generator=draws[0])
        linear = support_errors(ExactScore(linear_rival(data)), data, generator=draws[1])
        numbers["linear"] = linear["on"]
        x = sample(
            score, GENERATED, 1, self.ambient_dim, steps=SOLVER_STEPS, t_max=T_MAX,
            generator=draws[2], final_denoise=False, show_progress=False,
            **SAMPLER | {"t_min": STEPS[0]},
        )  # fmt: skip
        exact = sigma(STEPS[0]) ** 2 + (alpha(STEPS[0]) * self.noise) ** 2
        if self.latent_dim < self.ambient_dim:
            numbers["energy"] = orthogonal_energy(x, data) / exact
        numbers |= _latent_distances(data.encode(x), data, draws[3])
        if isinstance(score, LatentScore):
            numbers |= self._recovery(score.encoder.detach(), data, draws[4])
        return numbers

    def _recovery(
        self, encoder: torch.Tensor, data: SubspaceData, generator: torch.Generator
    ) -> dict[str, float]:
        order = torch.randperm(self.ambient_dim, generator=generator, device="cpu")
        with full_precision():
            gram = encoder.T @ encoder
        numbers = {
            "subspace": subspace_error(encoder, data.basis),
            "control": subspace_error(encoder, data.basis[order]),
            "orthonormality": (gram - torch.eye(len(gram))).abs().max().item(),
        }
        if self.n is not None and self.n >= self.latent_dim:
            basis = principal_subspace(self.training_set(), self.latent_dim)
            numbers["pca"] = subspace_error(basis, data.basis)
        return numbers


def linear_rival(data: SubspaceData) -> SubspaceData:
    """The Gaussian law with the mean and covariance of the data: its score is the best linear one.

    Among the scores that are affine in v none has a smaller error, at every diffusion step.
    """
    latent = data.latent
    if isinstance(latent, GaussianMixture):
        mean = (latent.weights @ latent.means)[None]
        latent = GaussianProcess(torch.eye(1), latent.covariance(), mean)
    return SubspaceData(data.basis, latent, data.noise)


def _latent_distances(
    h: torch.Tensor, data: SubspaceData, generator: torch.Generator
) -> dict[str, float]:
    """Distance of generated latents at T_0 from true ones, and of true ones from others."""

    def true() -> torch.Tensor:
        noisy = data.encode(data.sample(len(h), generator))
        white = torch.randn(noisy.shape, generator=generator)
        return alpha(STEPS[0]) * noisy + sigma(STEPS[0]) * white

    one, other = true(), true()
    return {
        "sliced": sliced_distance(h, one, generator=generator),
        "sliced_floor": sliced_distance(other, one, generator=generator),
    }


SEEDS = [0, 1, 2, 3]
LONG = {"steps": 800}

LATENT = {
    "quick": SweepStudy(
        LatentCell,
        {
            "samples": {"n": [64, 256, None], "seed": [0, 1], "steps": 100},
            "ambient": {"ambient_dim": [16, 128], "seed": [0, 1], "steps": 100},
        }
    ),
    "paper": SweepStudy(
        LatentCell,
        {
            "budget": {"steps": [100, 200, 400, 800, 1600], "n": [64, None], "seed": SEEDS},
            "ambient": {"ambient_dim": [16, 32, 64, 128, 256], "seed": SEEDS, **LONG},
            "samples": {
                "n": [16, 32, 64, 128, 256, 512, 1024, None], "seed": SEEDS, **LONG,
            },
            "noisy": {
                "n": [64, 256, 1024, 4096, None], "noise": 0.5, "law": "gaussian",
                "seed": SEEDS, **LONG,
            },
            "laws": {"law": ["mixture", "gaussian", "sequence"], "seed": SEEDS},
            "bar": {"batch_size": 128, "seed": SEEDS},
            # the same budget without an encoder; learning rates for each kind of network
            "latent rates": {"learning_rate": [5e-3, 1e-2, 2e-2], "seed": SEEDS[:3]},
            "full rates": {
                "network": "full-skip", "tokens": [1, 4, 8],
                "learning_rate": [4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2], "seed": SEEDS[:3],
            },
            "full rates, no skip": {
                "network": "full", "tokens": 4,
                "learning_rate": [8e-3, 1.6e-2, 3.2e-2, 6.4e-2], "seed": SEEDS[:3],
            },
            # the best network found, for every latent dimension
            "approximation": {
                "latent_dim": [2, 4, 8, 16, 32], "hidden": [16, 32, 64], "seed": SEEDS[:3],
                **LONG,
            },
        }
    ),
}  # fmt: skip


def cells_like(
    table: pd.DataFrame, free: tuple[str, ...] = ("seed",), **given: Any
) -> pd.DataFrame:
    """The rows of a sweep that are as the default cell but for what is named.

    Args:
        table: of a sweep of latent cells.
        free: columns that may have any value.
        given: column -> the value it must have instead of the default's.

    Raises:
        ValueError: for a name that is no field of a cell, or if there is no such row.
    """
    rows, defaults = table, asdict(LatentCell())
    if unknown := {*given, *free} - defaults.keys():
        raise ValueError(f"names must be among {', '.join(defaults)}, got {sorted(unknown)}")
    for name, default in defaults.items():
        if name in free or name not in table.columns:
            continue
        value = given.get(name, default)
        rows = rows[rows[name].isna()] if value is None else rows[rows[name] == value]
    if rows.empty:
        raise ValueError(f"no cell of the sweep has {given} with {', '.join(free)} free")
    return rows
