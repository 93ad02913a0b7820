"""The study behind chapter 8: transformers trained on moving balls and digits, and controls."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data.covariance import gram
from ..data.digits import Digits, handwritten
from ..data.estimate import GaussianTwin
from ..data.kernels import PowerExponential
from ..data.video import Ball, Found, LatentMap, uniform_correlation, uniform_paths
from ..diffusion.schedule import perturb
from ..measures.covariances import (
    debiased_error,
    lag_correlations,
    relative_error,
    spatial_covariance,
    temporal_covariance,
)
from ..measures.motion import Motion, measured_motion, motion_floor, true_motion
from ..networks.dit import DiT
from ..probing.maps import off_diagonal_correlation
from ..probing.nulls import shuffled_frames
from ..probing.recording import record
from ..training.config import TrainConfig
from .results import Result
from .run import Run, half_weights, in_half_precision, new_network, with_weights

CHUNK_VIDEOS = 1000  # rendered at a time; the latent map is fitted to the first chunk
ATTENTION_STEPS = (0.02, 0.1, 0.5, 1.0)  # diffusion steps at which maps are taken
ATTENTION_VIDEOS = 64
RESTART_STEP = 0.7  # below it the network knows motion nearly exactly
SHOWN_STEP, SHOWN_VIDEOS = 0.1, 6  # what is stored to be drawn
GOOD_DIGIT = (
    0.09  # relative squared distance from a known digit; 99 % of real unseen ones are nearer
)
KINDS = ("data", "DiT", "twin")


@dataclass(frozen=True)
class Film:
    """What is filmed, and the network that learns it.

    Args:
        dim: d, latent coordinates of a frame.
        training: of the transformer; its seed is that of data and generation too.
        videos: in the training set.
        seq_len: N.
        lengthscale: ℓ of the path's kernel, whose exponent is 1.
        size: pixels along a side of a frame.
        classes: the digits that move; none for a ball.
        hidden: width of the transformer.
        samples: videos generated from the network, and from each control.
    """

    dim: int
    training: TrainConfig
    videos: int = 10_000
    seq_len: int = 32
    lengthscale: float = 8.0
    size: int = 16
    classes: tuple[int, ...] = ()
    hidden: int = 64
    samples: int = 500

    @property
    def label(self) -> str:
        """Names its files."""
        return f"{'digits' if self.classes else 'ball'}-{self.training.seed}"

    @property
    def kernel(self) -> PowerExponential:
        """γ of the path."""
        return PowerExponential(self.lengthscale)

    @cached_property
    def sprite(self) -> Ball | Digits:
        """What moves."""
        return Digits(*handwritten(self.classes), self.size) if self.classes else Ball(self.size)

    def network(self) -> DiT:
        """The untrained transformer."""
        return new_network("DiT", self.seq_len, self.dim, self.training.seed, hidden=self.hidden)

    def shoot(self, n: int, generator: torch.Generator) -> Tensor:
        """Fresh videos (n, N, size, size)."""
        paths = uniform_paths(self.kernel, n, self.seq_len, self.sprite.reach, generator)
        if not self.classes:
            return self.sprite.render(paths)
        which = torch.randint(len(self.sprite.images), (n,), generator=generator, device="cpu")
        return self.sprite.render(paths, which)

    def dataset(self) -> tuple[LatentMap, Tensor]:
        """The latent map, from the first videos, and all videos through it, (n, N, d)."""
        generator = torch.Generator().manual_seed(self.training.seed)
        latent_map, latents = None, []
        for first in range(0, self.videos, CHUNK_VIDEOS):
            frames = self.shoot(min(CHUNK_VIDEOS, self.videos - first), generator)
            latent_map = latent_map or LatentMap.fit(frames, self.dim)
            latents.append(latent_map.encode(frames))
        return latent_map, torch.cat(latents)


@dataclass(frozen=True)
class VideoStudy:
    """Settings of :func:`video_study`.

    Args:
        ball: the film of the ball.
        digits: the film of the digits, or none.
        seeds: of the ball's runs.
        solver_steps: of the backward SDE.
        restarts: rounds from ``RESTART_STEP`` after it, see :func:`.restart`.
        null_steps: training steps of the null model on shuffled frames, of the first seed.
    """

    ball: Film
    digits: Film | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    solver_steps: int = 40
    restarts: int = 8
    null_steps: int = 300


LONG = TrainConfig(steps=4000, ema_decay=0.999, log_every=100, weight="velocity")
VIDEO = {
    "quick": VideoStudy(Film(16, TrainConfig(steps=600), 4000), seeds=(0,)),
    "paper": VideoStudy(
        Film(16, LONG, 20_000, samples=1000),
        Film(48, replace(LONG, steps=2000, weight="noise"), size=20, classes=(0, 1, 4, 7),
             hidden=96, samples=250),
    ),
}  # fmt: skip


def video_study(settings: VideoStudy, run: Run) -> Path:
    """Balls and digits from trained transformers, beside the truth and the Gaussian twin.

    Source: FDGWC Semi-synthetic video.

    Weights are rounded to half precision before anything is measured. Takes and returns what
    :func:`.figure1` does.
    """
    films = [
        replace(settings.ball, training=replace(settings.ball.training, seed=seed))
        for seed in settings.seeds
    ]
    films += [settings.digits] if settings.digits else []
    arrays, tables = {}, defaultdict(list)
    for film in films:
        studio = filmed(film, settings, run)
        for table, rows in measured(studio).items():
            tables[table] += [{**row, "seed": film.training.seed} for row in rows]
        if film is films[0] or film.classes:
            arrays |= shown(studio)
    numbers = {}
    for table in [name for name in ("ball", "digits") if name in tables]:
        medians = pd.DataFrame(tables[table]).groupby("kind").median(numeric_only=True)
        rows = medians.drop(columns="seed").to_dict("index")
        numbers |= {f"{table}, {kind}": row for kind, row in rows.items()}
    record = {"network": settings.ball.network().config, **asdict(settings)}
    return run.save(record, numbers, tables, arrays)


@dataclass(frozen=True)
class Studio:
    """What is there to be measured of one film.

    Attributes:
        film: what was filmed.
        map: its latent map.
        latents: the training set, (n, N, d).
        networks: the transformer and, for a ball, those whose attention is compared, by name.
        videos: latent videos (n, N, d) on the CPU of each of ``KINDS``: fresh data, what the
            transformer generated, and the Gaussian twin's.
    """

    film: Film
    map: LatentMap
    latents: Tensor
    networks: dict[str, DiT]
    videos: dict[str, Tensor]

    @property
    def truth(self) -> Motion:
        """How the film's law moves."""
        return true_motion(self.film.kernel, self.film.seq_len, self.film.sprite.reach)


def filmed(film: Film, settings: VideoStudy, run: Run) -> Studio:
    """Shoot a film, train its networks and generate.

    Restarts repair errors that the score made at large t: see chapter 8.
    """
    seed, n = film.training.seed, film.samples
    latent_map, latents = dataset(film, run)
    network = run.train(f"{film.label}-DiT", film.network(), latents, film.training).model
    networks = {"DiT": in_half_precision(network)}
    repair = {"t": RESTART_STEP, "rounds": settings.restarts, "steps": 6}
    fresh, twins = (torch.Generator().manual_seed(10**6 + seed) for _ in range(2))
    videos = {
        "data": latent_map.encode(film.shoot(n, fresh)),
        "DiT": run.generate(
            film.label, networks["DiT"], n, 10**6 * (seed + 2), repair,
            method="sde", steps=settings.solver_steps,
        ),
        "twin": GaussianTwin(latents).sample(n, twins),
    }  # fmt: skip
    if not film.classes:  # attention that has nothing to do with the order of frames
        networks["untrained"] = film.network().to(run.device)
    if not film.classes and seed == settings.seeds[0]:
        steps = min(film.training.steps, settings.null_steps)
        mixed = shuffled_frames(latents, torch.Generator().manual_seed(0))
        networks["shuffled"] = run.train(
            f"{film.label}-shuffled", film.network(), mixed, replace(film.training, steps=steps)
        ).model
    return Studio(film, latent_map, latents, networks, videos)


def dataset(film: Film, run: Run) -> tuple[LatentMap, Tensor]:
    """A film's latent map and latent videos, kept in a file."""

    def shoot() -> dict[str, Tensor]:
        fitted, latents = film.dataset()
        numbers = torch.tensor([fitted.scale, fitted.lost], dtype=torch.float64)
        return {"mean": fitted.mean, "basis": fitted.basis, "numbers": numbers, "z": latents}

    identity = asdict(film) | {"training": film.training.seed}
    kept = run.keep(film.label, "latents", identity, shoot)
    return LatentMap(kept["mean"], kept["basis"], *kept["numbers"].tolist()), kept["z"]


def measured(studio: Studio) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables of a film."""
    tables = defaultdict(list)
    for kind, videos in studio.videos.items():
        found = studio.film.sprite.locate(studio.map.decode(videos))
        if studio.film.classes:
            tables["digits"].append(digits_row(studio, kind, *found))
        else:
            tables["ball"].append(ball_row(studio, kind, found))
            tables["lags"] += lag_rows(studio, kind, found.centres)
    if not studio.film.classes:
        tables["attention"] = attention_rows(studio)
    return tables


def ball_row(studio: Studio, kind: str, found: Found) -> dict[str, Any]:
    """How many balls, how they move, and the covariance of pixels."""
    film, videos, truth = studio.film, studio.videos[kind], studio.truth
    motion = measured_motion(found.centres, film.kernel)
    floor = motion_floor(film.kernel, len(videos), film.seq_len)
    pixels, own = (
        studio.map.pixel_covariance(spatial_covariance(z)) for z in (studio.latents, videos)
    )
    return {
        "kind": kind, "videos": len(videos),
        "frames": found.single.double().mean().item(),
        "whole videos": found.single.all(dim=1).double().mean().item(),
        "lag 1": motion.lag_one, "lag 1, truth": truth.lag_one, "lag 1, floor": floor.lag_one,
        "jump": motion.jump / truth.jump, "jump, floor": floor.jump,
        "correlation error": motion.error, "correlation floor": floor.error,
        "correlation error, debiased": debiased_error(motion.error, floor.error),
        "pixel covariance error": relative_error(own, pixels),
        "Kronecker share": GaussianTwin(videos).kronecker_share(),
    }  # fmt: skip


def lag_rows(studio: Studio, kind: str, centres: Tensor) -> list[dict[str, Any]]:
    """Correlation by lag: of the paths in theory, of positions read from pixels, of latents."""
    gamma = gram(studio.film.kernel, studio.film.seq_len)[0]
    columns = {
        "gamma": gamma,
        "exact": uniform_correlation(gamma),
        "position": lag_correlations(temporal_covariance(centres, torch.zeros(2))),
        "latent": lag_correlations(temporal_covariance(studio.videos[kind])),
    }
    return pd.DataFrame(columns).assign(kind=kind, lag=range(len(gamma))).to_dict("records")


def digits_row(
    studio: Studio, kind: str, centres: Tensor, distance: Tensor, label: Tensor
) -> dict[str, Any]:
    """How many real digits, whether each stays the same, and how they move."""
    motion, truth = measured_motion(centres, studio.film.kernel), studio.truth
    votes = torch.stack([(label == k).double().mean(dim=1) for k in studio.film.classes])
    return {
        "kind": kind, "videos": len(centres), "variance lost": studio.map.lost,
        "digits": (distance <= GOOD_DIGIT).double().mean().item(),
        "consistency": votes.amax(dim=0).mean().item(),
        "lag 1": motion.lag_one, "lag 1, truth": truth.lag_one,
        "jump": motion.jump / truth.jump,
    }  # fmt: skip


def attention_rows(studio: Studio) -> list[dict[str, Any]]:
    """Correlation of each head's mean map with the path's kernel and the latent's factor."""
    gamma = gram(studio.film.kernel, studio.film.seq_len)
    latent = temporal_covariance(studio.latents)
    return [
        {
            "kind": kind, "t": t, "layer": layer, "head": head,
            "path kernel": off_diagonal_correlation(own.mean(dim=0), gamma).item(),
            "latent factor": off_diagonal_correlation(own.mean(dim=0), latent).item(),
            "content": (own.var(dim=0, correction=0).mean() / own.var(correction=0)).item(),
        }
        for kind in studio.networks
        for t in ATTENTION_STEPS
        for layer, maps in enumerate(attention_maps(studio, kind, t), start=1)
        for head, own in enumerate(maps.transpose(0, 1), start=1)
    ]  # fmt: skip


@torch.no_grad()
def attention_maps(studio: Studio, kind: str, t: float) -> Tensor:
    """Maps of a network on noised data, (depth, batch, heads, N, N), on the CPU."""
    network = studio.networks[kind]
    generator = torch.Generator().manual_seed(studio.film.training.seed)
    v, _ = perturb(studio.latents[:ATTENTION_VIDEOS], t, generator)
    return torch.stack([seen.maps for seen in record(network, v.to(network.embedding), t)]).cpu()


def shown(studio: Studio) -> dict[str, Tensor]:
    """What is drawn: the ball's network, its maps and covariances; videos of the digits."""
    if studio.film.classes:
        frames = {k: studio.map.decode(z[:SHOWN_VIDEOS]) for k, z in studio.videos.items()}
        levels = {k: (x.clamp(0, 1) * 255).round() for k, x in frames.items()}
        return {f"digits.{kind}": x.to(torch.uint8) for kind, x in levels.items()}
    maps = {kind: attention_maps(studio, kind, SHOWN_STEP).mean(dim=1) for kind in studio.networks}
    return {
        "map.mean": studio.map.mean, "map.basis": studio.map.basis,
        "map.scale": torch.tensor(studio.map.scale),
        **half_weights(studio.networks["DiT"], "weights."),
        **{f"maps.{kind}": x.half() for kind, x in maps.items()},
        **{f"covariance.{k}": spatial_covariance(z) for k, z in studio.videos.items()},
    }  # fmt: skip


def stored_ball(result: Result) -> tuple[DiT, LatentMap]:
    """The trained transformer of a result of :func:`video_study`, and its latent map."""
    network = DiT(**result.record["settings"]["network"])
    network = with_weights(network, result.arrays, "weights.")
    mean, basis, scale = (result.arrays[f"map.{part}"] for part in ("mean", "basis", "scale"))
    return network, LatentMap(mean, basis, scale.item())
