"""Stops among the data: kernels, processes, the forward process, distances, estimators."""

from __future__ import annotations

import torch

from gptheory.attention import positions
from gptheory.data import (
    GaussianProcess,
    ToeplitzSolver,
    covariance,
    decaying_process,
    estimate,
    framewise,
    kernels,
    masks,
)
from gptheory.data import law as laws_of
from gptheory.diffusion import ExactScore, schedule, stopping
from gptheory.diffusion import exact as diffusion_exact
from gptheory.measures import covariances, gaussians
from gptheory.support import conjugate, draws, overlap, spectra, validation

from .stop import D, Found, N, law, normal, seeded, sequences, steps, stop

POWER = kernels.PowerExponential(2.0, 1.5)


@stop("exact")
def kernel_values(device: torch.device, dtype: torch.dtype) -> Found:
    """Correlations at lags that lie on the device, and at one that is a number."""
    lags = torch.arange(N, device=device).to(dtype)
    own = {
        "power": kernels.PowerExponential.of_power(2.0, 1.5), "matern": kernels.Matern(2.0, 1.7),
        "rational": kernels.RationalQuadratic(2.0, 1.0), "periodic": kernels.Periodic(1.0, 5.0),
        "white": kernels.WhiteNoise(),
    }  # fmt: skip
    found = {name: kernel(lags) for name, kernel in own.items()}
    distance = positions.embedding_distance(lags, 2 * N)
    return {**found, "number": POWER(3), "distance": distance}


@stop("exact")
def covariance_matrices(device: torch.device, dtype: torch.dtype) -> Found:
    """Matrices made of a kernel, and what a band leaves of them."""
    gram = covariance.toeplitz(POWER(torch.arange(N, device=device).to(dtype)))
    return {
        "toeplitz": gram,
        "gram": covariance.gram(POWER, N, dtype),
        "truncated": covariance.truncate(gram, 2),
        "tapered": covariance.taper(gram, 4),
        "conditioned": covariance.conditioned(gram, 2.0),
        "embedding": positions.time_embedding(N, 2.0 * N),
        "random": covariance.random_covariance(3, generator=seeded(1)),
    }


@stop("exact")
def process_on_the_device(device: torch.device, dtype: torch.dtype) -> Found:
    """A law whose factors were moved: its matrices, its samples and their likelihood."""
    spatial = covariance.random_covariance(D, generator=seeded(2))
    mean = normal(3, N, D, device=torch.device("cpu"), dtype=torch.float64)
    moved = GaussianProcess(POWER, spatial, mean, seq_len=N).to(device)
    (values, vectors), (small, axes) = moved.temporal_spectrum, moved.spatial_spectrum
    x = moved.sample(4, seeded(4), torch.float64)
    return {
        "gram": moved.gram(), "covariance": moved.covariance(), "values": values,
        "temporal": (vectors * values) @ vectors.T, "spatial": (axes * small) @ axes.T,
        "x": x, "log_prob": moved.log_prob(x.to(dtype)),
        "of the CPU": law().log_prob(sequences(5, 3, device, dtype)),
    }  # fmt: skip


@stop("exact")
def toeplitz_systems(device: torch.device, dtype: torch.dtype) -> Found:
    """Systems with a column of the CPU, right-hand sides and levels on the device."""
    own = ToeplitzSolver(covariance.kernel_values(POWER, N))
    b, shift = normal(1, 3, N, device=device, dtype=dtype), steps(3, device)
    assert len(own) == N and own.solve(b, 1.0, shift).device.type == device.type
    found = own.solution(b, 0.9, shift)
    parts = conjugate.Solution.joined([found, found])
    matrix = covariance.toeplitz(own.column).to(device)
    dense = conjugate.System(lambda x: x @ matrix, torch.clone, lambda x, b: 1e-14 * (x + b))
    return {
        "solved": own.solve(b, 1.0, shift), "product": own.product(b), "values": found.values,
        "joined": parts.values, "log det": own.log_det(0.9, shift),
        "dense": conjugate.conjugate_gradients(dense, b.double(), 1e-12, 50).values,
    }  # fmt: skip


@stop("exact")
def long_process_on_the_device(device: torch.device, dtype: torch.dtype) -> Found:
    """The law of a kernel without eigenvectors: its score and its densities."""
    mean, x = normal(3, N, D, device=device, dtype=torch.float64), sequences(5, 3, device, dtype)
    own = GaussianProcess(POWER, law().spatial, mean.cpu(), N, "conjugate-gradients").to(device)
    assert own.method == "conjugate-gradients"
    return {
        "score": ExactScore(own)(x, 0.1), "steps": ExactScore(own)(x, steps(3, device)),
        "density": own.noised_log_prob(x, 0.8, 0.6), "clean": own.log_prob(x),
        "faintest": own.smallest_variance,
    }  # fmt: skip


@stop("exact")
def laws_of_masks(device: torch.device, _dtype: torch.dtype) -> Found:
    """Drawn on the CPU; a table also where it lies."""
    own = masks.strategy("S3", 12, 4)
    alone = masks.Blocks(12, 2, 2)
    table = masks.require_masks(own.draw(5, seeded(1)).to(device), 12)
    rows = masks.draw_masks(table, 3, seeded(2))
    assert rows.device.type == device.type and masks.require_masks(own, 12) is own
    return {
        "mixture": own.draw(4, seeded(3)).double(), "rows": rows.double(),
        "blocks": masks.draw_masks(alone, 2, seeded(4)).double(), "frames": own.seq_len,
        "parts": [float(len(own.parts)), *map(float, alone.parts)],
    }  # fmt: skip


@stop("exact")
def what_is_missing(device: torch.device, dtype: torch.dtype) -> Found:
    """Laws given frames, given entries and given noisy frames: means, scores and densities."""
    own, x, v = law(device), sequences(5, 2, device, dtype), sequences(6, 4, device, dtype)
    frames = torch.stack(
        [masks.pattern("middle", N, 2), masks.random_gaps(1, N, 1, 3, seeded(2))[0]]
    )
    entries = frames[..., None] ^ torch.tensor([False, True])
    found: Found = {}
    for name, mask, noise in (("f", frames, 0.0), ("e", entries, 0.0), ("n", frames, 0.1)):
        given = own.condition(x, mask.to(device), noise).to(device)
        assert given.device.type == device.type
        own_density = given.noised_log_prob(v, 0.8, 0.6)
        found |= {
            f"{name} mean": given.mean, f"{name} score": given.score(v, steps(4, device)),
            f"{name} covariance": given.covariance(1), f"{name} κ": given.condition_number,
            f"{name} dimension": given.effective_dimension, f"{name} whole": given.completed(v),
            f"{name} least": given.smallest_variance, f"{name} density": own_density,
            f"{name} draws": given.sample(2, seeded(3), torch.float64),
            f"{name} parts": float(len(given.parts)), f"{name} variance": given.variance,
            f"{name} open": [given.batch, given.open_share],
        }  # fmt: skip
    given = own.condition(x, ~frames)
    alone = given.process(1)
    return found | {
        "density": given.log_prob(v), "weights": given.weights(1), "temporal": given.temporal(1),
        "precision": own.precision, "process": ExactScore(alone)(v[:, : alone.seq_len], 0.1),
        "seen": given.observed.double(),
    }  # fmt: skip


@stop("exact")
def steps_of_frames(device: torch.device, dtype: torch.dtype) -> Found:
    """A score of frames that are noised each in its own measure, and not at all."""
    own, v = law(device), sequences(6, 3, device, dtype)
    t = torch.linspace(0, 2.0, 3 * N, dtype=torch.float64).view(3, N).to(device)
    a, s = (-t / 2).exp()[..., None], (1 - (-t).exp()).sqrt()[..., None]
    return {
        "score": ExactScore(own)(v, t), "levels": own.framewise_score(v, a, s),
        "inner": framewise.framewise_scores(own, v, a, s),
    }  # fmt: skip


@stop("exact", drawn=True)
def samples(device: torch.device, dtype: torch.dtype) -> Found:
    """Sequences and noise from a generator of the CPU: the numbers of the CPU, on the device."""
    x = decaying_process(N, D).to(device).sample(5, seeded(1), dtype)
    long = GaussianProcess(POWER, torch.eye(D), seq_len=800).to(device)
    v, noise = schedule.perturb(x, steps(5), seeded(2))
    like = draws.normal_like(x, seeded(3))
    return {"x": x, "v": v, "noise": noise, "like": like, "long": long.sample(1, seeded(4), dtype)}


@stop("exact")
def symmetric_roots(device: torch.device, dtype: torch.dtype) -> Found:
    """Roots and bases of matrices on the device."""
    matrix = law(device).spatial
    values, vectors = torch.linalg.eigh(matrix)
    tall = normal(1, 5, 2, device=device, dtype=torch.float64)
    return {
        "root": spectra.symmetric_root(values, vectors),
        "orthonormal": spectra.orthonormal(tall.to(dtype)),
        "oriented": spectra.oriented(tall),
    }


@stop("exact")
def noise_levels(device: torch.device, dtype: torch.dtype) -> Found:
    """The forward process at steps that lie on either device, or are numbers."""
    t, v = steps(3, device).to(dtype), sequences(1, 3, device, dtype)
    signal, noise = schedule.levels(steps(3), v)
    snr = schedule.half_log_snr(t)
    return {
        "alpha": schedule.alpha(t), "sigma": schedule.sigma(t), "snr": snr,
        "step": schedule.step_at(snr), "integer": schedule.floating_step(torch.tensor([1, 2])),
        "signal": signal, "noise": noise, "number": schedule.alpha(0.3) + schedule.sigma(0.3),
        "stratified": schedule.stratified_steps(4, 0.01, 2.0, seeded(1)),
    }  # fmt: skip


@stop("exact")
def distances_of_gaussians(device: torch.device, dtype: torch.dtype) -> Found:
    """Divergences of covariances on the device."""
    p, q = (covariance.random_covariance(3, generator=seeded(k)).to(device) for k in (1, 2))
    mean = normal(3, 3, device=device, dtype=torch.float64)
    low, high = gaussians.gaussian_tv_bounds(p, q, mean)
    return {
        "kl": gaussians.gaussian_kl(p, q, mean),
        "w2": gaussians.gaussian_w2(p, q, mean),
        "tv": gaussians.gaussian_tv(p, q, mean), "tv low": low, "tv high": high,
        "tv dense": overlap.dense_tv(*(each.cpu().numpy() for each in (p, mean, q, 2 * mean))),
    }  # fmt: skip


@stop("exact")
def budget_of_a_generator(device: torch.device, dtype: torch.dtype) -> Found:
    """Three terms for a law that lies on the device, and what each is alone."""
    own = law(device)
    found = stopping.budget(own, 30, draws=1)
    return {
        "path": found.path, "whole": found.whole, "ceiling": found.ceiling, "t_max": found.t_max,
        "stopping": stopping.stopping_tv(own, 0.01), "horizon": stopping.horizon_tv(own, 3.0),
    }  # fmt: skip


@stop("exact")
def densities(device: torch.device, dtype: torch.dtype) -> Found:
    """Of noised sequences, by laws on either side, with levels as numbers and as tensors."""
    v = sequences(1, 3, device, dtype)
    levels = schedule.levels(steps(3), v)
    return {
        "number": law(device).noised_log_prob(v, 0.9, 0.4),
        "law of the CPU": law().noised_log_prob(v, *levels),
        "diagonal": laws_of.diagonal_log_density(v.flatten(1), 2.0),
    }


@stop("exact")
def estimated_laws(device: torch.device, dtype: torch.dtype) -> Found:
    """Covariances from sequences on the device, and the scores that they make."""
    x, v = sequences(1, 40, device, dtype), sequences(2, 3, device, dtype)
    kronecker, stationary = estimate.kronecker_mle(x), estimate.toeplitz_moments(x)
    wiener = diffusion_exact.WienerScore(x)
    return {
        "kronecker": kronecker.covariance(),
        "stationary": stationary.covariance(),
        "kronecker score": ExactScore(kronecker)(v, 0.1),
        "wiener": wiener(v, 0.1),
        "wiener, steps of the CPU": wiener(v, steps(3)),
    }


@stop("exact")
def moments(device: torch.device, dtype: torch.dtype) -> Found:
    """Covariances of sequences on the device beside a truth on the CPU."""
    x = sequences(1, 50, device, dtype)
    temporal = covariances.temporal_covariance(x, torch.zeros(D))
    error = covariances.relative_error(temporal, law().gram())
    floor = covariances.sampling_floor(law(device), 50)
    return {
        "temporal": temporal, "spatial": covariances.spatial_covariance(x),
        "frame": covariances.spatial_covariance(x, frame=1), "error": error, "floor": floor,
        "debiased": covariances.debiased_error(2 * error, floor),
        "lags": covariances.lag_correlations(temporal),
    }  # fmt: skip


@stop("exact")
def checks_of_the_input(device: torch.device, dtype: torch.dtype) -> Found:
    """What every public function asks of its arguments, asked of tensors on the device."""
    x, t = sequences(1, 2, device, dtype), steps(2, device)
    validation.require_sequences("x", x, N, D)
    validation.require_finite("x", x)
    for step in (0.5, t, t[0]):
        validation.require_step(step)
    validation.require_positive("scale", 0.5)
    validation.require_nonnegative("noise", 0.0)
    validation.require_range(0.01, 1.0)
    validation.require_count("n", 3)
    return {"symmetric": validation.require_symmetric("spatial", law(device).spatial)}
