"""The law that a solver makes of a Gaussian process, mode by mode."""

from __future__ import annotations

import math
import re

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_identity, assert_statistical, covariance_standard_error

from gptheory.data import GaussianProcess, PowerExponential
from gptheory.diffusion import SOLVERS, ExactScore, alpha, sample, sigma, step_grid, stop_for
from gptheory.measures import gaussian_kl, gaussian_tv, gaussian_w2, relative_error, sampling_error

LAW = GaussianProcess(PowerExponential(8.0, 1.5), torch.diag(torch.tensor([1.0, 0.2])), seq_len=6)


@pytest.mark.statement("FDGWC Backward process")
@pytest.mark.parametrize("method", sorted(SOLVERS))
@pytest.mark.parametrize("final_denoise", [False, True])
def test_sampling_error_tends_to_the_truth(method, final_denoise):
    coarse, fine = (
        sampling_error(LAW, steps=k, method=method, t_min=1e-5, final_denoise=final_denoise)
        for k in (8, 640)
    )
    clean = torch.outer(LAW.temporal_spectrum[0], LAW.spatial_spectrum[0])
    noised = clean if final_denoise else alpha(1e-5) ** 2 * clean + sigma(1e-5) ** 2
    assert_identity(fine.true, noised)
    assert_identity(fine.ratio * fine.true, fine.sampled)
    for distance in ("covariance", "kl", "tv", "w2"):
        assert getattr(fine, distance) < 0.2 * getattr(coarse, distance)
    assert fine.covariance < 0.01 and fine.sampled.dtype == torch.float64


def test_distances_are_those_of_the_two_gaussians():
    law = process(3, 2, seed=4)
    found = sampling_error(law, steps=7, t_max=4.0)
    (_, u), (_, w) = law.temporal_spectrum, law.spatial_spectrum
    axes = torch.kron(u, w)
    covariance = axes * found.sampled.flatten() @ axes.T
    mean = law.mean + u @ found.offset @ w.T
    laws = covariance, law.covariance(), mean.flatten(), law.mean.flatten()
    assert found.offset.abs().max() > 1e-3
    assert found.kl == pytest.approx(gaussian_kl(*laws), rel=1e-6)
    assert found.tv == pytest.approx(gaussian_tv(*laws), rel=1e-5)
    assert found.w2 == pytest.approx(gaussian_w2(*laws), rel=1e-6)
    assert found.covariance == pytest.approx(relative_error(*laws[:2]), rel=1e-6)


@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_mean_and_covariance_are_those_of_samples(method):
    law, n = process(4, 2, seed=2), 8000
    settings = {"steps": 6, "t_max": 3.0, "t_min": 0.01, "method": method}
    found = sampling_error(law, **settings)
    x = sample(ExactScore(law), n, 4, 2, generator=seeded(0), dtype=torch.float64, **settings)
    (_, u), (_, w) = law.temporal_spectrum, law.spatial_spectrum
    rotated = (u.T @ (x - law.mean) @ w - found.offset).flatten(1)
    truth = found.sampled.flatten().diag()
    assert_statistical(rotated.T @ rotated / n, truth, covariance_standard_error(truth, n), n)
    error = (found.sampled.flatten() / n).sqrt()
    assert_statistical(rotated.mean(0), torch.zeros(8).double(), error, n)


def test_a_grid_may_be_given_step_by_step():
    grid = step_grid(9, stop_for(LAW))
    assert_identity(sampling_error(LAW, grid=grid).sampled, sampling_error(LAW, steps=9).sampled)


def test_a_mode_without_variance_keeps_none():
    law = GaussianProcess(torch.eye(3), torch.diag(torch.tensor([1.0, 0.0])))
    found = sampling_error(law, steps=30)
    assert (found.ratio[:, 0] == 1).all() and (found.sampled[:, 0] == 0).all()
    noised = sampling_error(law, steps=30, final_denoise=False)
    assert math.isfinite(noised.kl) and noised.covariance < 0.01


BAD_INPUT = {
    "solver": (lambda: sampling_error(LAW, "rk4"), "got 'ode', 'rk4'"),
    "steps": (lambda: sampling_error(LAW, steps=0), "steps must be an integer.*got 0"),
    "spacing": (lambda: sampling_error(LAW, grid="cosine"), "spacing must be one of.*'cosine'"),
    "grid": (lambda: sampling_error(LAW, grid=[0.1, 1.0]), r"decreasing steps > 0, got \[0.1, 1"),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()
