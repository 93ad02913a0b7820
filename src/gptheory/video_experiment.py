"""The experiment behind chapter 8: transformers trained on moving balls and digits, and controls.

Like those of :mod:`gptheory.experiments` it goes on where it was when it is started again.
"""

from __future__ import annotations

import pathlib
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .diffusion import perturb
from .dit import DiT
from .experiments import CHUNK, in_half_precision, with_weights
from .kernels import PowerExponential, gram
from .maps import off_diagonal_correlation
from .metrics import (
    debiased_error,
    lag_correlations,
    relative_error,
    spatial_covariance,
    temporal_covariance,
)
from .probe import record
from .probing import shuffled_frames
from .results import Result, save_result
from .sample import restart, sample
from .store import digest, provenance, remembered
from .train import TrainConfig, fit
from .video import (
    Ball,
    Digits,
    Found,
    GaussianTwin,
    LatentMap,
    handwritten,
    measured_motion,
    motion_floor,
    true_motion,
    uniform_correlation,
    uniform_paths,
)

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
    def kernel(self) -> PowerExponential:
        """γ of the path."""
        return PowerExponential(self.lengthscale)

    @cached_property
    def sprite(self) -> Ball | Digits:
        """What moves."""
        return Digits(*handwritten(self.classes), self.size) if self.classes else Ball(self.size)

    def network(self) -> DiT:
        """The untrained transformer."""
        generator = torch.Generator().manual_seed(self.training.seed)
        return DiT(self.dim, self.seq_len, self.hidden, generator=generator)

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
        restarts: rounds from ``RESTART_STEP`` after it, see :func:`gptheory.sample.restart`.
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


def video_study(
    settings: VideoStudy,
    name: str,
    device: torch.device,
    folder: pathlib.Path,
    show: bool | None = None,
) -> pathlib.Path:
    """Balls and digits from trained transformers, beside the truth and the Gaussian twin.

    Source: FDGWC Semi-synthetic video.

    Weights are rounded to half precision before anything is measured. Takes and returns what
    :func:`gptheory.experiments.figure1` does.
    """
    films = [
        replace(settings.ball, training=replace(settings.ball.training, seed=seed))
        for seed in settings.seeds
    ]
    films += [settings.digits] if settings.digits else []
    tables: dict[str, list[pd.DataFrame]] = {}
    arrays, seconds = {}, 0.0
    for film in films:
        label = f"{name}-{'digits' if film.classes else 'ball'}-{film.training.seed}"
        studio = Studio(film, settings, folder / label, device, show)
        for key, rows in studio.measured().items():
            tables.setdefault(key, []).append(pd.DataFrame(rows).assign(seed=film.training.seed))
        if film is films[0] or film.classes:
            arrays |= studio.shown()
        seconds += studio.seconds
    whole = {key: pd.concat(parts, ignore_index=True) for key, parts in tables.items()}
    medians = {key: whole[key].groupby("kind").median(numeric_only=True).drop(columns="seed")
               for key in ("ball", "digits") if key in whole}  # fmt: skip
    numbers = {f"{key}, {kind}": row.to_dict()
               for key, table in medians.items() for kind, row in table.iterrows()}  # fmt: skip
    record = {"network": settings.ball.network().config, **asdict(settings)}
    return save_result(folder, name, arrays, record, numbers, whole, provenance(device), seconds)


class Studio:
    """One film: its data, its networks, what they generate and how good that is.

    Args:
        film: what is filmed.
        settings, device, show: as in :func:`video_study`.
        stem: beginning of the names of its files.
    """

    def __init__(
        self,
        film: Film,
        settings: VideoStudy,
        stem: pathlib.Path,
        device: torch.device,
        show: bool | None,
    ) -> None:
        self.film, self.settings, self.stem = film, settings, stem
        self.device, self.show, self.seconds = device, show, 0.0
        start = time.perf_counter()
        self.map, self.latents = self.dataset()
        self.seconds += time.perf_counter() - start
        networks = {"DiT": in_half_precision(self.trained("DiT", self.latents))}
        start = time.perf_counter()
        self.networks = networks
        self.videos = {kind: self.latent_videos(kind) for kind in KINDS}
        self.seconds += time.perf_counter() - start
        if not film.classes:  # attention that has nothing to do with the order of frames
            networks["untrained"] = film.network().to(device)
        if not film.classes and film.training.seed == settings.seeds[0]:
            networks["shuffled"] = self.trained("shuffled", shuffled(self.latents))

    def dataset(self) -> tuple[LatentMap, Tensor]:
        """The film's latent map and latent videos, kept in a file."""
        identity = asdict(self.film) | {"training": self.film.training.seed}

        def shoot() -> dict[str, Tensor]:
            fitted, latents = self.film.dataset()
            numbers = torch.tensor([fitted.scale, fitted.lost], dtype=torch.float64)
            return {"mean": fitted.mean, "basis": fitted.basis, "numbers": numbers, "z": latents}

        kept = remembered(self.stem.with_name(f"{self.stem.name}.latents"), identity, shoot)
        return LatentMap(kept["mean"], kept["basis"], *kept["numbers"].tolist()), kept["z"]

    def trained(self, label: str, latents: Tensor) -> DiT:
        """A network trained on latent videos, with a checkpoint; the null model more briefly."""
        config = self.film.training
        if label == "shuffled":
            config = replace(config, steps=min(config.steps, self.settings.null_steps))
        path = self.stem.with_name(f"{self.stem.name}-{label}.checkpoint")
        every = max(1, min(200, config.steps // 10))
        network = self.film.network().to(self.device)
        run = fit(network, latents, config, None, path, every, self.show)
        self.seconds += run.seconds
        return run.model

    def latent_videos(self, kind: str) -> Tensor:
        """Videos (n, N, d) on the CPU: fresh data, generated ones, or the Gaussian twin's."""
        film, n = self.film, self.film.samples
        generator = torch.Generator().manual_seed(10**6 + film.training.seed)
        if kind == "data":
            return self.map.encode(film.shoot(n, generator))
        if kind == "twin":
            return GaussianTwin(self.latents).sample(n, generator)
        return torch.cat([self.generated(k, min(CHUNK, n - k)) for k in range(0, n, CHUNK)])

    def generated(self, first: int, n: int) -> Tensor:
        """One chunk of videos from the transformer; not made again if it is there.

        Restarts repair errors that the score made at large t: see chapter 8.
        """
        film, network, steps = self.film, self.networks["DiT"], self.settings.solver_steps
        seed = 10**6 * (film.training.seed + 2) + first
        identity = {
            "weights": digest(*network.state_dict().values()), "n": n, "seed": seed,
            "steps": steps, "restarts": self.settings.restarts, "device": self.device.type,
        }  # fmt: skip

        def draw() -> dict[str, Tensor]:
            generator = torch.Generator(self.device).manual_seed(seed)
            z = sample(network, n, film.seq_len, film.dim, "sde", steps=steps, device=self.device,
                       generator=generator, show_progress=self.show)  # fmt: skip
            z = restart(network, z, RESTART_STEP, self.settings.restarts, 6, generator=generator)
            return {"z": z}

        path = self.stem.with_name(f"{self.stem.name}-{first:05d}.videos")
        return remembered(path, identity, draw)["z"]

    @cached_property
    def found(self) -> dict[str, Found]:
        """Balls in the videos of each kind."""
        return {k: self.film.sprite.locate(self.map.decode(z)) for k, z in self.videos.items()}

    def measured(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the tables of this film."""
        if self.film.classes:
            return {"digits": [self.digits_row(kind) for kind in KINDS]}
        return {
            "ball": [self.ball_row(kind) for kind in KINDS],
            "lags": [row for kind in KINDS for row in self.lag_rows(kind)],
            "attention": [row for kind in self.networks for row in self.attention_rows(kind)],
        }

    def ball_row(self, kind: str) -> dict[str, Any]:
        """How many balls, how they move, and the covariance of pixels."""
        film, videos, found = self.film, self.videos[kind], self.found[kind]
        motion = measured_motion(found.centres, film.kernel)
        floor = motion_floor(film.kernel, len(videos), film.seq_len)
        truth = true_motion(film.kernel, film.seq_len, film.sprite.reach)
        pixels, own = (
            self.map.pixel_covariance(spatial_covariance(z)) for z in (self.latents, videos)
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

    def lag_rows(self, kind: str) -> list[dict[str, Any]]:
        """Correlation by lag: of the paths in theory, of positions read from pixels, of latents."""
        film, videos, centres = self.film, self.videos[kind], self.found[kind].centres
        gamma = gram(film.kernel, film.seq_len)[0]
        columns = {
            "gamma": gamma,
            "exact": uniform_correlation(gamma),
            "position": lag_correlations(temporal_covariance(centres, torch.zeros(2))),
            "latent": lag_correlations(temporal_covariance(videos)),
        }
        return pd.DataFrame({k: x.tolist() for k, x in columns.items()}).assign(
            kind=kind, lag=range(film.seq_len)
        ).to_dict("records")  # fmt: skip

    def attention_rows(self, kind: str) -> list[dict[str, Any]]:
        """Correlation of each head's mean map with the path's kernel and the latent's factor."""
        gamma, latent = gram(self.film.kernel, self.film.seq_len), temporal_covariance(self.latents)
        return [
            {
                "kind": kind, "t": t, "layer": layer, "head": head,
                "path kernel": off_diagonal_correlation(own.mean(dim=0), gamma).item(),
                "latent factor": off_diagonal_correlation(own.mean(dim=0), latent).item(),
                "content": (own.var(dim=0, correction=0).mean() / own.var(correction=0)).item(),
            }
            for t in ATTENTION_STEPS
            for layer, maps in enumerate(self.maps(kind, t), start=1)
            for head, own in enumerate(maps.transpose(0, 1), start=1)
        ]  # fmt: skip

    def maps(self, kind: str, t: float) -> Tensor:
        """Attention maps on noised data, (depth, batch, heads, N, N), on the CPU."""
        generator = torch.Generator().manual_seed(self.film.training.seed)
        v, _ = perturb(self.latents[:ATTENTION_VIDEOS], t, generator)
        return attention_maps(self.networks[kind], v.to(self.device), t).cpu()

    def digits_row(self, kind: str) -> dict[str, Any]:
        """How many real digits, whether each stays the same, and how they move."""
        film, videos = self.film, self.videos[kind]
        centres, distance, label = film.sprite.locate(self.map.decode(videos))
        motion = measured_motion(centres, film.kernel)
        truth = true_motion(film.kernel, film.seq_len, film.sprite.reach)
        votes = torch.stack([(label == k).double().mean(dim=1) for k in film.classes])
        return {
            "kind": kind, "videos": len(videos), "variance lost": self.map.lost,
            "digits": (distance <= GOOD_DIGIT).double().mean().item(),
            "consistency": votes.amax(dim=0).mean().item(),
            "lag 1": motion.lag_one, "lag 1, truth": truth.lag_one,
            "jump": motion.jump / truth.jump,
        }  # fmt: skip

    def shown(self) -> dict[str, Tensor]:
        """What is drawn: the ball's network, its maps and covariances; videos of the digits."""
        if self.film.classes:
            frames = {k: self.map.decode(z[:SHOWN_VIDEOS]) for k, z in self.videos.items()}
            levels = {k: (x.clamp(0, 1) * 255).round() for k, x in frames.items()}
            return {f"digits.{kind}": x.to(torch.uint8) for kind, x in levels.items()}
        weights = self.networks["DiT"].state_dict()
        maps = {kind: self.maps(kind, SHOWN_STEP).mean(dim=1) for kind in self.networks}
        return {
            "map.mean": self.map.mean, "map.basis": self.map.basis,
            "map.scale": torch.tensor(self.map.scale),
            **{f"weights.{key}": value.half() for key, value in weights.items()},
            **{f"maps.{kind}": x.half() for kind, x in maps.items()},
            **{f"covariance.{k}": spatial_covariance(z) for k, z in self.videos.items()},
        }  # fmt: skip


def shuffled(x: Tensor) -> Tensor:
    """Sequences (n, N, d) with their frames in random order, another one for each; seeded."""
    return shuffled_frames(x, torch.Generator().manual_seed(0))


@torch.no_grad()
def attention_maps(network: DiT, v: Tensor, t: float) -> Tensor:
    """Maps of every layer and head, (depth, batch, heads, N (i), N (j)), in one forward pass."""
    return torch.stack([seen.maps for seen in record(network, v, t)])


def stored_ball(result: Result) -> tuple[DiT, LatentMap]:
    """The trained transformer of a result of :func:`video_study`, and its latent map."""
    network = with_weights(DiT(**result.record["settings"]["network"]), result, "weights.")
    mean, basis, scale = (result.arrays[f"map.{part}"] for part in ("mean", "basis", "scale"))
    return network, LatentMap(mean, basis, scale.item())
