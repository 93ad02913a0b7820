"""Errors on and off the subspace, orthogonal energy, sliced distance, the rate of Theorem 3.2."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeded
from tolerances import assert_at_most, assert_identity, assert_statistical

from gptheory.data import GaussianProcess, decaying_process, random_mixture
from gptheory.diffusion import ExactScore, sample, sigma, step_grid
from gptheory.diffusion.schedule import half_log_snr
from gptheory.latent import (
    SubspaceData,
    error_scale,
    log_rate,
    orthogonal_energy,
    random_basis,
    support_errors,
)
from gptheory.latent.errors import sliced_distance
from gptheory.measures import gaussian_w2, path_kl, sampling_error
from gptheory.support.rounding import gamma


@pytest.fixture(scope="module")
def data():
    generator = seeded(0)
    return SubspaceData(random_basis(12, 4, generator), random_mixture(2, 2, generator=generator))


# ---- score errors -------------------------------------------------------------------------------


def test_the_exact_score_has_no_error(data):
    errors = support_errors(ExactScore(data), data, 256, generator=seeded(0))
    assert errors == {"on": 0.0, "off": 0.0}


def test_errors_of_a_known_size(data):
    """a/σ_t added on the subspace and b/σ_t off it give 4a² and 8b², for every law of t."""

    def wrong(v, t):
        ones = torch.ones_like(v[..., :4])
        on = ones @ data.basis.to(v).T
        rest = torch.linalg.qr(data.basis, mode="complete").Q[:, 4:].to(v)
        off = torch.ones_like(v[..., :8]) @ rest.T
        return ExactScore(data)(v, t) + (0.3 * on + 0.2 * off) / sigma(t).to(v)[:, None, None]

    errors = support_errors(wrong, data, 128, generator=seeded(0))
    assert errors["on"] == pytest.approx(4 * 0.09, rel=1e-4)
    assert errors["off"] == pytest.approx(8 * 0.04, rel=1e-4)


def test_the_pull_that_is_missing(data):
    """Without its pull the score is off by σ²‖(I − BBᵀ)v‖²/σ⁴, D − d_0 on average."""
    errors = support_errors(
        lambda v, t: ExactScore(data)(v, t) - data.split(ExactScore(data)(v, t))[1], data, 4096,
        generator=seeded(1),
    )  # fmt: skip
    assert errors["on"] < 1e-6  # rounding of float32
    assert_statistical(errors["off"], 8.0, math.sqrt(2 * 8 / 4096), 4096)


def test_the_total_error_is_a_path_divergence():
    """For a Gaussian latent and d_0 = D, beside the metric of chapter 5."""
    law = decaying_process(1, 4)
    own = SubspaceData(torch.eye(4), law)

    def wrong(v, t):
        return 0.9 * ExactScore(own)(v, t)

    total = sum(support_errors(wrong, own, 8192, generator=seeded(0)).values())
    divergence = 4 * path_kl(wrong, law, 0.02, 4.0, 8192, seeded(1))
    assert error_scale() * total / 2 == pytest.approx(divergence, rel=0.02)
    assert error_scale() == pytest.approx(2 * (half_log_snr(0.02) - half_log_snr(4.0)))


def test_scores_of_a_wrong_shape_are_refused(data):
    with pytest.raises(ValueError, match="the score must return"):
        support_errors(lambda v, _t: v[..., :3], data, 8)


# ---- what is generated --------------------------------------------------------------------------


@pytest.mark.statement("HWLSL Corollary 3.2.1")
@pytest.mark.parametrize("t_min", [0.02, 0.005])
def test_the_exact_reverse_process_leaves_its_noise_off_the_subspace(data, t_min):
    n = 2000
    x = sample(
        ExactScore(data), n, 1, 12, method="sde", steps=200, t_min=t_min, t_max=8.0,
        generator=seeded(0), final_denoise=False,
    )  # fmt: skip
    exact = sigma(t_min) ** 2
    deviation = exact * math.sqrt(2 / (8 * n))
    assert_statistical(orthogonal_energy(x, data), exact, deviation, n)
    assert exact <= t_min  # the corollary's bound, a = 1


@pytest.mark.statement("HWLSL Corollary 3.2.1")
@pytest.mark.parametrize(
    ("method", "solver", "steps"),
    [("ode", "heun", 40), ("ode", "dpmpp-2m", 5), ("sde", "euler-maruyama", 400)],
)
def test_orthogonal_variance_needs_no_sampling(data, method, solver, steps):
    """Off the subspace a solver sees data that are zero: its variance is known in closed form."""
    nothing = GaussianProcess(torch.eye(1), torch.zeros(1, 1))
    grid = step_grid(steps, 0.02, 8.0)
    predicted = sampling_error(nothing, solver, grid=grid, method=method, final_denoise=False)
    n = 2000
    x = sample(
        ExactScore(data), n, 1, 12, method=method, solver=solver, steps=steps, t_min=0.02,
        t_max=8.0, generator=seeded(0), final_denoise=False,
    )  # fmt: skip
    predicted = predicted.sampled.item()
    assert_statistical(orthogonal_energy(x, data), predicted, predicted * math.sqrt(2 / (8 * n)), n)
    if solver == "dpmpp-2m":  # exact for a constant denoiser, at any number of steps
        assert_identity(predicted, (sigma(0.02) / sigma(8.0)) ** 2)


def test_sliced_distance_of_shifted_samples():
    """A shift by m costs (uᵀm)², ‖m‖²/p on average."""
    x = torch.randn(300, 2, 3, generator=seeded(0), dtype=torch.float64)
    # uᵀx is a sum of 6 products, and a row may round otherwise in another place: γ_6 ‖x‖ each;
    # sorting moves no pair further apart than the largest of these
    rounding = 2 * gamma(6) * x.flatten(1).norm(dim=1).max().item()
    assert sliced_distance(x, x.flip(0)) <= rounding
    m = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    found = sliced_distance(x, x + m, 20_000, seeded(2)) ** 2
    expected = (m.square().sum() / 6).item()
    # (uᵀm)² has a standard deviation below √2 times its mean
    assert_statistical(found, expected, expected * math.sqrt(2 / 20_000), 20_000)


def test_sliced_distance_is_at_most_the_distance_itself():
    cov = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    x = torch.randn(50_000, 1, 2, generator=seeded(0), dtype=torch.float64)
    y = torch.randn(50_000, 1, 2, generator=seeded(1), dtype=torch.float64) @ cov.sqrt()
    found = sliced_distance(x, y, generator=seeded(2))
    # √2 times: a projection on a random direction keeps half of a plane's square
    assert_at_most(math.sqrt(2) * found, 1.05 * gaussian_w2(torch.eye(2).double(), cov))


# ---- the rate -----------------------------------------------------------------------------------


@pytest.mark.statement("HWLSL Definition 3.4")
@given(st.floats(1, 1e9), st.floats(0.6, 3.0), st.integers(1, 3))
def test_rate_is_the_formula(n, epsilon, length):
    plain = n ** (-1 / 3) * 2 ** ((1 / epsilon) ** (2 * length)) + n ** (-1 / 3) + epsilon**2
    assert_identity(log_rate(n, epsilon, length), math.log(plain), condition=10)


def test_rate_beyond_every_number():
    assert log_rate(1e3, 0.01, 80) == math.inf
    assert log_rate(1e3, 0.01, 70) == pytest.approx(math.log(2) * 1e280)


@pytest.mark.statement("HWLSL Remark 3.4")
@given(st.floats(8, 1e300), st.floats(0.02, 3.0), st.integers(1, 16))
def test_the_rate_at_its_best_accuracy(n, epsilon, length):
    """Between (3/log2 n)^(1/L), whatever ε, and (6/log2 n)^(1/L) + 2 n^(−1/6), for one ε < 1."""
    bits = math.log2(n)
    assert_at_most(math.log(3 / bits) / length, log_rate(n, epsilon, length))
    good = (6 / bits) ** (1 / (2 * length))
    assert good < 1 or n < 65  # below 1 for all n > 64; rounding decides next to it
    bound = (6 / bits) ** (1 / length) + 2 * n ** (-1 / 6)
    assert_at_most(log_rate(n, good, length), math.log(bound))


def test_for_few_samples_no_accuracy_below_one_is_as_good():
    """At n = 8, L = 9 the rate falls all the way to ε = 1, where it is 2.5: above the bound."""
    rates = [log_rate(8, k / 1000, 9) for k in range(300, 1001)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(math.log(2.5))
    assert 2.5 > 2 ** (1 / 9) + 2 * 8 ** (-1 / 6) > math.exp(log_rate(8, 1.1, 9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_rate(0, 0.5, 1), "n must be at least 1"),
        (lambda: log_rate(10, 0.0, 1), "epsilon must be a finite number > 0"),
        (lambda: log_rate(10, 0.5, 0), "length must be an integer"),
        (lambda: sliced_distance(torch.zeros(3, 1, 2), torch.zeros(4, 1, 2)), "one shape"),
        (lambda: sliced_distance(torch.zeros(3, 1, 2), torch.zeros(3, 1, 2), 0), "directions"),
        (
            lambda: orthogonal_energy(
                torch.zeros(3, 1, 2), SubspaceData(torch.eye(2), decaying_process(1, 2))
            ),
            "no direction is orthogonal",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
