"""Covariance estimates, their sampling floor, score error, and what solvers sample."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import DEVICES, covariance, diffusion_steps, process, processes, seeded
from tolerances import (
    assert_float32,
    assert_identity,
    assert_statistical,
    covariance_standard_error,
)

from gptheory.data import GaussianProcess, Matern, PowerExponential
from gptheory.diffusion import ExactScore, alpha, sigma
from gptheory.measures import (
    relative_error,
    sampling_floor,
    score_error,
    spatial_covariance,
    temporal_covariance,
)

# ---- covariances of samples -------------------------------------------------------------------


def block_averages(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Temporal and spatial factors from the dense covariance of numpy, by averaging its blocks."""
    _, seq_len, dim = x.shape
    dense = np.cov(x.double().flatten(1).numpy(), rowvar=False)
    dense = dense.reshape(seq_len, dim, seq_len, dim)
    temporal = np.einsum("iaja->ij", dense)
    spatial = np.einsum("iaib->ab", dense) / seq_len
    return temporal / np.diag(temporal).mean(), spatial


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_agree_with_numpy_across_chunks(dtype, device):
    law = process(16, 4)
    x = law.sample(3000, seeded(0), dtype)  # 192,000 numbers: two chunks
    close = assert_float32 if dtype == torch.float32 else assert_identity
    temporal, spatial = temporal_covariance(x.to(device)), spatial_covariance(x.to(device))
    for estimate, expected in zip((temporal, spatial), block_averages(x), strict=True):
        close(estimate, expected)
        assert (estimate.dtype, estimate.device.type) == (dtype, device)


def test_temporal_estimate_has_mean_diagonal_one_whatever_the_scale():
    x = process(4, 2).sample(50, seeded(0), torch.float64)
    estimate = temporal_covariance(x)
    assert_identity(estimate.diagonal().mean(), 1.0)
    assert_identity(temporal_covariance(3 * x), estimate)
    assert_identity(spatial_covariance(3 * x), 9 * spatial_covariance(x))
    assert_identity(temporal_covariance(x + 5), estimate, condition=1e2)


def test_product_of_the_estimates_is_the_covariance_itself():
    """Γ of mean diagonal 4 and Σ / 4 are the same process; the estimates do not care."""
    law, n = GaussianProcess(4 * covariance(3), covariance(2, seed=1) / 4), 40_000
    x = law.sample(n, seeded(0), torch.float64)
    scale = law.gram().diagonal().mean()
    temporal, spatial = temporal_covariance(x), spatial_covariance(x)
    # averaging over the other factor only narrows the error of one entry
    assert_statistical(
        temporal, law.gram() / scale, covariance_standard_error(law.gram() / scale, n), n
    )
    truth = law.spatial * scale
    assert_statistical(spatial, truth, covariance_standard_error(truth, n), n)


def test_known_means_are_used_in_place_of_sample_means():
    law = process(4, 2)
    x = law.sample(5, seeded(0), torch.float64)
    centred = x - law.mean
    by_frame = torch.einsum("nia,nib->ab", centred, centred) / (5 * 4)
    assert_identity(spatial_covariance(x, law.mean), by_frame)
    assert_identity(spatial_covariance(x - law.mean + 1, torch.ones(2)), by_frame)
    gram = torch.einsum("nia,nja->ij", centred, centred)
    assert_identity(temporal_covariance(x, law.mean), gram / gram.diagonal().mean())


def test_spatial_estimate_is_unbiased_with_an_estimated_mean():
    law, repeats = process(3, 2), 4000
    x = law.sample(2 * repeats, seeded(0), torch.float64).unflatten(0, (repeats, 2))
    estimates = torch.stack([spatial_covariance(pair) for pair in x])
    truth = law.spatial * law.gram().diagonal().mean()
    assert_statistical(estimates.mean(0), truth, estimates.std(0) / repeats**0.5, repeats)


@pytest.mark.parametrize("mean", [None, torch.zeros(2), torch.arange(8.0).reshape(4, 2)])
def test_spatial_estimate_of_one_frame(mean):
    x = process(4, 2).sample(30, seeded(0), torch.float64)
    if mean is None:
        expected = np.cov(x[:, 2].numpy(), rowvar=False)
    else:
        centred = x[:, 2] - mean.expand(4, 2)[2]
        expected = centred.T @ centred / 30
    assert_identity(spatial_covariance(x, mean, frame=2), expected)


def test_relative_error_is_a_ratio_of_frobenius_norms():
    truth = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(truth, truth) == 0
    assert relative_error(torch.zeros(2, 2), truth) == 1
    assert relative_error(truth + torch.tensor([[0.0, 3.0], [4.0, 0.0]]), truth) == 1
    assert relative_error(truth.float() * 1.25, truth.double()) == 0.25


@pytest.mark.parametrize(
    "law",
    [
        process(5, 3, seed=7, mean=False),
        GaussianProcess(3 * covariance(4), covariance(2), mean=torch.ones(2)),
        GaussianProcess(PowerExponential(8.0), covariance(2), seq_len=12),
    ],
    ids=repr,
)
@pytest.mark.parametrize("factor", ["temporal", "spatial"])
def test_sampling_floor_is_the_root_mean_square_error_of_true_samples(law, factor):
    n, repeats = 500, 1000
    x = law.sample(n * repeats, seeded(0)).unflatten(0, (repeats, n))
    scale = law.gram().diagonal().mean()
    estimate, truth = {
        "temporal": (temporal_covariance, law.gram() / scale),
        "spatial": (spatial_covariance, law.spatial * scale),
    }[factor]
    squares = torch.tensor([relative_error(estimate(batch, law.mean), truth) ** 2 for batch in x])
    floor = sampling_floor(law, n, factor) ** 2
    assert_statistical(squares.mean(), floor, squares.std() / repeats**0.5, repeats)


def test_sampling_floor_falls_with_the_root_of_n():
    law = process()
    assert_identity(sampling_floor(law, 100), 10 * sampling_floor(law, 10_000))


# ---- scores -----------------------------------------------------------------------------------


@given(processes, diffusion_steps)
@settings(max_examples=20)
def test_score_error_is_a_relative_mean_square(law, t):
    exact = ExactScore(law)
    errors = [
        score_error(lambda v, t, c=c: c * exact(v, t), law, t, 16, seeded(0), torch.float64)
        for c in (1.0, 0.0, 1.5)
    ]
    assert errors[0] == 0
    assert_identity(errors[1:], [1.0, 0.25])


def test_score_error_takes_the_expectation_over_noised_sequences():
    """For v/σ² in place of the score of N(0, I): E‖v(1 − 1/σ²)‖² / E‖v‖² is one number."""
    law, t = GaussianProcess(torch.eye(3), torch.eye(2)), 0.8
    error = score_error(lambda v, t: -v / sigma(t) ** 2, law, t, 10, seeded(0), torch.float64)
    assert_identity(error, (1 - 1 / sigma(t) ** 2) ** 2)
    # an offset is compared with E‖s‖² = trace of the inverse covariance
    law, n = process(3, 2, mean=True), 20_000
    exact = ExactScore(law)
    error = score_error(lambda v, t: exact(v, t) + 1, law, t, n, seeded(0), torch.float64)
    noised = alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * torch.eye(6)
    energy = torch.linalg.inv(noised)
    spread = math.sqrt(2 * (energy**2).sum() / n)  # variance of ‖s‖², s ~ N(0, A^{-1})
    assert_statistical(6 / error, energy.trace(), spread, n)


def test_score_error_is_reproducible():
    law = process()
    errors = [score_error(lambda v, t: -v, law, 0.5, 64, seeded(seed)) for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


# ---- bad input --------------------------------------------------------------------------------

X = torch.ones(5, 4, 2).cumsum(0)
EYE = torch.eye(2)
LAW = process(4, 2)
BAD_INPUT = {
    "x shape": (lambda: temporal_covariance(X[0]), r"x must have shape.*got \(4, 2\)"),
    "x nan": (lambda: temporal_covariance(X / 0 * 0), "x must be finite, got 40 NaN"),
    "x infinite": (lambda: spatial_covariance(X / 0), "x must be finite, got 40 NaN or infinite"),
    "x too large": (lambda: spatial_covariance(X * 1e30), "x is too large.*rescale"),
    "one sequence": (lambda: temporal_covariance(X[:1]), "at least 2 sequences, got 1"),
    "no sequence": (
        lambda: temporal_covariance(X[:0], torch.zeros(2)),
        "at least 1 sequences, got 0",
    ),
    "no variance": (lambda: temporal_covariance(X * 0), "x has no variance"),
    "no variance but rounding": (
        lambda: temporal_covariance(torch.full((10, 3, 2), 0.1)),
        "x has no variance",
    ),
    "no variance, many": (
        lambda: temporal_covariance(torch.full((30_000, 3, 2), -7.7)),
        "x has no variance",
    ),
    "mean of more frames": (
        lambda: spatial_covariance(X, torch.zeros(100, 2), frame=1),
        r"got \(100, 2\)",
    ),
    "mean": (
        lambda: temporal_covariance(X, torch.zeros(4)),
        r"mean must have shape \(4, 2\) or \(2,\), got \(4,\)",
    ),
    "frame": (lambda: spatial_covariance(X, frame=4), "frame must lie in 0..3, got 4"),
    "frame negative": (lambda: spatial_covariance(X, frame=-1), "in 0..3, got -1"),
    "errors of shapes": (
        lambda: relative_error(EYE, torch.eye(3)),
        r"shapes differ: \(2, 2\) and \(3, 3\)",
    ),
    "error of zero": (lambda: relative_error(EYE, 0 * EYE), "truth that is not zero"),
    "floor n": (lambda: sampling_floor(LAW, 0), "n must be an integer >= 1, got 0"),
    "floor factor": (
        lambda: sampling_floor(LAW, 5, "both"),
        "factor must be one of temporal, spatial, got 'both'",
    ),
    "score n": (lambda: score_error(ExactScore(LAW), LAW, 0.5, 0), "integer >= 1, got 0"),
    "score t": (lambda: score_error(ExactScore(LAW), LAW, 0.0), "finite and > 0, got 0.0"),
    "score shape": (
        lambda: score_error(lambda v, t: v[:, :1], LAW, 0.5, 3),
        r"the score must return a tensor of shape \(3, 4, 2\), got \(3, 1, 2\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()


def test_estimates_recover_a_kernel():
    """The book's reading of the scale: for a kernel, the estimates are of Γ and Σ as they stand."""
    law, n = GaussianProcess(Matern(3.0, 1.5), covariance(2), seq_len=6), 20_000
    x = law.sample(n, seeded(0), torch.float64)
    error = covariance_standard_error(law.gram(), n)
    assert_statistical(temporal_covariance(x), law.gram(), error, n)
