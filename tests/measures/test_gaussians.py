"""Distances between Gaussians: oracles, laws, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, linalg, stats
from strategies import DEVICES, covariance, seeded, seeds
from tolerances import assert_at_most, assert_statistical

from gptheory.data import random_covariance
from gptheory.measures import gaussian_kl, gaussian_tv, gaussian_w2
from gptheory.measures.gaussians import gaussian_tv_bounds
from gptheory.support.overlap import line_tv
from gptheory.support.rounding import gamma
from gptheory.support.validation import NotPSDError

# ---- oracles ----------------------------------------------------------------------------------


@st.composite
def gaussian_pairs(draw, max_dim: int = 5):
    """Two Gaussians, (cov_p, cov_q, mean_p, mean_q), from nearly equal to far apart."""
    dim, generator = draw(st.integers(1, max_dim)), seeded(draw(seeds))
    closeness = draw(st.sampled_from([1.0, 0.1, 1e-3]))
    cov_p, other = (random_covariance(dim, 0.1, 2.0, generator) for _ in range(2))
    cov_q = (1 - closeness) * cov_p + closeness * other
    shift = draw(st.sampled_from([0.0, 0.1, 2.0]))
    means = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    return cov_p, cov_q, means[0], means[0] + shift * closeness * (means[1] - means[0])


@given(gaussian_pairs())
def test_kl_agrees_with_torch(pair):
    cov_p, cov_q, mean_p, mean_q = pair
    p = torch.distributions.MultivariateNormal(mean_p, cov_p)
    q = torch.distributions.MultivariateNormal(mean_q, cov_q)
    expected = torch.distributions.kl_divergence(p, q).item()
    assert gaussian_kl(*pair) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@given(gaussian_pairs())
def test_w2_agrees_with_matrix_square_roots(pair):
    cov_p, cov_q, mean_p, mean_q = (part.numpy() for part in pair)
    root = np.real(linalg.sqrtm(cov_p))
    cross = np.real(linalg.sqrtm(root @ cov_q @ root))
    square = np.sum((mean_p - mean_q) ** 2) + np.trace(cov_p + cov_q - 2 * cross)
    assert gaussian_w2(*pair) ** 2 == pytest.approx(square, rel=1e-6, abs=1e-12)


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=6), seeds)
def test_w2_of_commuting_covariances_is_the_distance_of_their_roots(variances, seed):
    first = torch.tensor(variances, dtype=torch.float64)
    second = 5 * torch.rand(len(first), generator=seeded(seed), dtype=torch.float64)
    expected = (first.sqrt() - second.sqrt()).norm().item()
    assert gaussian_w2(first.diag(), second.diag()) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0), st.floats(-5.0, 5.0))
@settings(max_examples=60)
def test_tv_on_the_line_agrees_with_numerical_integration(variance_p, variance_q, mean):
    laws = [(mean, variance_p**0.5), (0.0, variance_q**0.5)]
    nodes = [center + width * k for center, width in laws for k in np.linspace(-8, 8, 2001)]
    nodes = np.sort(nodes)
    p, q = (stats.norm.pdf(nodes, *law) for law in laws)
    integral = integrate.trapezoid(np.minimum(p, q), nodes)
    one = torch.ones(1, 1).double()
    lower, upper = gaussian_tv_bounds(variance_p * one, variance_q * one, mean * one[0], 0 * one[0])
    assert lower == upper == pytest.approx(1 - integral, abs=1e-4)
    exact = gaussian_tv(variance_p * one, variance_q * one, mean * one[0], 0 * one[0])
    assert exact == pytest.approx(lower, abs=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("high", [1.1, 3.0])
def test_tv_bounds_contain_the_monte_carlo_value(dim, shift, high):
    cov_p = random_covariance(dim, 0.9, high, seeded(dim))
    cov_q = random_covariance(dim, 0.9, high, seeded(dim + 10))
    mean_p, mean_q, n = torch.zeros(dim).double(), torch.full((dim,), shift).double(), 40_000
    p = torch.distributions.MultivariateNormal(mean_p, cov_p)
    q = torch.distributions.MultivariateNormal(mean_q, cov_q)
    white = torch.randn(n, dim, generator=seeded(1), dtype=torch.float64)
    x = white @ torch.linalg.cholesky(cov_p).T
    excess = (1 - (q.log_prob(x) - p.log_prob(x)).exp()).clamp(min=0)  # TV = E_p (1 − q/p)_+
    margin = 5 * excess.std().item() / n**0.5
    lower, upper = gaussian_tv_bounds(cov_p, cov_q, mean_p, mean_q)
    assert lower - margin <= excess.mean() <= upper + margin
    assert upper < 4 * lower  # the bounds say something
    exact = gaussian_tv(cov_p, cov_q, mean_p, mean_q)
    assert_statistical(excess.mean(), exact, margin / 5, n)


def test_tv_of_shifted_gaussians_is_known_exactly():
    """Equal covariances: TV = 2 Φ(δ/2) − 1, δ the Mahalanobis distance; the lower bound has it."""
    cov, shift = covariance(4), torch.tensor([0.3, -0.2, 0.5, 0.1]).double()
    distance = math.sqrt(shift @ torch.linalg.solve(cov, shift))
    lower, upper = gaussian_tv_bounds(cov, cov, shift)
    assert lower == pytest.approx(2 * stats.norm.cdf(distance / 2) - 1, rel=1e-9)
    assert lower <= upper
    assert gaussian_tv(cov, cov, shift) == pytest.approx(lower, abs=1e-9)


def test_tv_of_white_gaussians_is_a_difference_of_gamma_functions():
    """N(0, cI) and N(0, I) differ in ‖x‖ only: densities cross at ‖x‖² = D log c / (1 − 1/c)."""
    for dim, scale in ((4, 3.0), (32, 1.1), (32, 4.0), (200, 1.01)):
        edge = dim * math.log(scale) / (1 - 1 / scale)
        expected = stats.chi2.cdf(edge, dim) - stats.chi2.cdf(edge / scale, dim)
        eye = torch.eye(dim, dtype=torch.float64)
        assert gaussian_tv(scale * eye, eye) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("variance", [0.01, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("mean", [0.3, 2.0])
def test_tv_where_only_one_direction_differs_is_that_of_a_line(mean, variance):
    """The integral's worst case: nothing but the one direction makes its integrand decay."""
    p = torch.tensor([variance, 1.0, 1.0]).double().diag()
    found = gaussian_tv(p, torch.eye(3).double(), torch.tensor([mean, 0.0, 0.0]).double())
    assert found == pytest.approx(line_tv(mean, variance), abs=1e-5)


@given(gaussian_pairs())
@settings(max_examples=40)
def test_tv_is_a_distance_between_its_bounds(pair):
    cov_p, cov_q, mean_p, mean_q = pair
    lower, upper = gaussian_tv_bounds(*pair)
    found = gaussian_tv(*pair)
    assert lower - 1e-5 <= found <= upper + 1e-5
    assert gaussian_tv(cov_q, cov_p, mean_q, mean_p) == pytest.approx(found, abs=1e-5)
    assert gaussian_tv(cov_p, cov_p, mean_p, mean_p) == pytest.approx(0, abs=1e-9)


def test_tv_from_a_law_without_a_density_is_one():
    flat = torch.tensor([1.0, 0.0]).double().diag()
    assert gaussian_tv(flat, torch.eye(2)) == 1
    with pytest.raises(NotPSDError, match="cov_q must be positive definite"):
        gaussian_tv(torch.eye(2), flat)


# ---- laws -------------------------------------------------------------------------------------


@given(gaussian_pairs())
def test_distances_are_positive_and_zero_only_between_equals(pair):
    cov_p, cov_q, mean_p, mean_q = pair
    same, equal = (cov_p, cov_p, mean_p, mean_p), torch.equal(mean_p, mean_q)
    assert gaussian_kl(*same) == pytest.approx(0, abs=1e-14)
    assert gaussian_w2(*same) == pytest.approx(0, abs=1e-12)
    assert gaussian_tv_bounds(*same) == pytest.approx((0, 0), abs=1e-6)
    if not (equal and torch.equal(cov_p, cov_q)):
        assert gaussian_kl(*pair) > 0
        assert gaussian_w2(*pair) > 0
        assert gaussian_tv_bounds(*pair)[0] > 0


@given(st.integers(1, 30), seeds, st.sampled_from([0.0, 1e-15, 1e-12, 1e-9, 1e-7, 1e-4]))
def test_distances_between_nearly_equal_gaussians_do_not_round_below_zero(dim, seed, scale):
    cov = covariance(dim, seed, low=1e-3)
    close = cov * (1 + scale)
    lower, upper = gaussian_tv_bounds(cov, close)
    divergence = gaussian_kl(cov, close)
    assert divergence >= 0
    assert 0 <= lower <= upper <= 1
    # to first order in a tiny scale: KL = D scale² / 4, and TV is below its root by Pinsker
    assert math.sqrt(divergence) == pytest.approx(scale * math.sqrt(dim) / 2, rel=1e-3, abs=1e-7)
    assert upper <= scale * math.sqrt(dim) / 2 + 1e-6


def overlap(cov_p, cov_q, mean_p, mean_q) -> float:
    """Bhattacharyya coefficient ∫ √(pq), by its textbook formula in determinants."""
    middle, delta = (cov_p + cov_q) / 2, mean_p - mean_q
    exponent = delta @ torch.linalg.solve(middle, delta) / 8 + torch.logdet(middle) / 2
    return math.exp(-exponent + (torch.logdet(cov_p) + torch.logdet(cov_q)) / 4)


@given(gaussian_pairs(max_dim=8))
def test_tv_bounds_are_at_least_those_of_the_overlap(pair):
    lower, upper = gaussian_tv_bounds(*pair)
    coefficient = overlap(*pair)
    assert_at_most(1 - coefficient, lower)
    assert_at_most(upper**2, 1 - coefficient**2)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_tv_bounds_in_many_dimensions_are_those_of_the_overlap(shift):
    """Where many directions differ a little, no projection and no divergence does as well."""
    pair = (torch.eye(30), 2.0 * torch.eye(30), torch.zeros(30), torch.full((30,), shift))
    coefficient = overlap(*(part.double() for part in pair))
    expected = (1 - coefficient, math.sqrt(1 - coefficient**2))
    assert gaussian_tv_bounds(*pair) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("dim", [2, 20])
def test_distances_between_nearly_equal_gaussians_keep_their_digits(scale, dim):
    """To first order in the scale ε: KL = D ε² / 4, upper bound ε √(D/8), lower at least D = 1."""
    cov = torch.eye(dim, dtype=torch.float64)
    close = cov * (1 + scale)
    lower, upper = gaussian_tv_bounds(cov, close)
    assert gaussian_kl(cov, close) == pytest.approx(dim * scale**2 / 4, rel=2e-3, abs=0)
    assert gaussian_w2(cov, close) == pytest.approx(math.sqrt(dim) * scale / 2, rel=2e-3, abs=0)
    assert upper == pytest.approx(scale * math.sqrt(dim / 8), rel=2e-3, abs=0)
    one_dimension = scale * math.exp(-1 / 2) / math.sqrt(2 * math.pi)  # ½ E|x² − 1| ε / 2
    assert lower == pytest.approx(one_dimension, rel=2e-3, abs=0)


@given(gaussian_pairs())
def test_tv_bounds_are_ordered_symmetric_and_below_pinsker(pair):
    cov_p, cov_q, mean_p, mean_q = pair
    lower, upper = gaussian_tv_bounds(*pair)
    assert 0 <= lower <= upper <= 1
    swapped = gaussian_tv_bounds(cov_q, cov_p, mean_q, mean_p)
    assert swapped == pytest.approx((lower, upper), rel=1e-6, abs=1e-9)
    for divergence in (gaussian_kl(*pair), gaussian_kl(cov_q, cov_p, mean_q, mean_p)):
        assert upper <= math.sqrt(divergence / 2) + 1e-12  # Pinsker
        assert upper <= math.sqrt(-math.expm1(-divergence)) + 1e-12  # Bretagnolle-Huber


@given(gaussian_pairs(), seeds)
def test_w2_is_a_metric(pair, seed):
    cov_p, cov_q, mean_p, mean_q = pair
    cov_r = covariance(len(cov_p), seed)
    mean_r = torch.zeros_like(mean_p)
    distance = gaussian_w2(*pair)
    assert gaussian_w2(cov_q, cov_p, mean_q, mean_p) == pytest.approx(distance, rel=1e-9)
    detour = gaussian_w2(cov_p, cov_r, mean_p, mean_r) + gaussian_w2(cov_r, cov_q, mean_r, mean_q)
    assert distance <= detour * (1 + 1e-9)


@given(gaussian_pairs(), seeds)
def test_kl_and_tv_do_not_depend_on_coordinates(pair, seed):
    cov_p, cov_q, mean_p, mean_q = pair
    change = covariance(len(cov_p), seed)  # any invertible map
    moved = (change @ cov_p @ change, change @ cov_q @ change, change @ mean_p, change @ mean_q)
    assert gaussian_kl(*moved) == pytest.approx(gaussian_kl(*pair), rel=1e-7, abs=1e-12)
    expected = gaussian_tv_bounds(*pair)
    assert gaussian_tv_bounds(*moved) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(gaussian_pairs(max_dim=3), gaussian_pairs(max_dim=3))
def test_independent_coordinates_add_up(first, second):
    both = [torch.block_diag(a, b) for a, b in zip(first[:2], second[:2], strict=True)]
    both += [torch.cat([a, b]) for a, b in zip(first[2:], second[2:], strict=True)]
    total = gaussian_kl(*first) + gaussian_kl(*second)
    assert gaussian_kl(*both) == pytest.approx(total, rel=1e-9, abs=1e-13)
    total = math.hypot(gaussian_w2(*first), gaussian_w2(*second))
    assert gaussian_w2(*both) == pytest.approx(total, rel=1e-9)


def test_means_default_to_zero():
    cov_p, cov_q, shift = covariance(3), covariance(3, seed=1), torch.tensor([1.0, 2.0, -1.0])
    zero = torch.zeros(3)
    for distance in (gaussian_kl, gaussian_w2, gaussian_tv_bounds):
        # bit for bit: the covariances go the same way, and the means are 0 or negated, exactly
        assert distance(cov_p, cov_q) == distance(cov_p, cov_q, zero, zero)
        assert distance(cov_p, cov_q, shift) == distance(cov_p, cov_q, zero, -shift)
        assert distance(cov_p, cov_q, mean_q=shift) != distance(cov_p, cov_q)


def test_singular_gaussians():
    flat, full = torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2)
    assert gaussian_kl(flat, full) == math.inf
    assert gaussian_w2(flat, full) == pytest.approx(1.0)
    # the rotation is off by that of the singular vectors, γ_8n, and two products of n terms; both
    # roots have norm 1
    assert gaussian_w2(flat, flat) <= gamma((8 + 2) * 2)
    for call in (gaussian_kl, gaussian_tv_bounds):
        with pytest.raises(NotPSDError, match=r"cov_q must be positive definite.*eigenvalue is 0"):
            call(full, flat)
    with pytest.raises(
        NotPSDError, match=r"cov_p must be positive definite.*relative to cov_q is 0"
    ):
        gaussian_tv_bounds(flat, full)


@given(st.integers(2, 12), seeds, st.sampled_from([1e-9, 1.0, 1e9]))
def test_rank_is_not_left_to_rounding(dim, seed, scale):
    """Covariances of rank D/2 in a random position: no eigenvalue is exactly 0."""
    basis = torch.randn(dim, dim // 2, generator=seeded(seed), dtype=torch.float64)
    flat, full = scale * basis @ basis.T, random_covariance(dim, generator=seeded(seed))
    assert gaussian_kl(flat, full) == math.inf
    with pytest.raises(NotPSDError, match="cov_p must be positive definite"):
        gaussian_tv_bounds(flat, full)
    for call in (gaussian_kl, gaussian_tv_bounds):
        for cov_p in (full, flat):
            with pytest.raises(NotPSDError, match="cov_q must be positive definite"):
                call(cov_p, flat)


def test_a_regular_covariance_is_not_taken_for_a_singular_one():
    """A spread of 1e12 between directions is far from rounding, and far from a standard q."""
    cov = torch.tensor([1.0, 1e-12], dtype=torch.float64).diag()
    expected = 0.5 * (1e-12 - 1 + math.log(1e12))
    assert gaussian_kl(cov, torch.eye(2)) == pytest.approx(expected)
    # of a diagonal pencil each ratio is a root, two divisions and a square: off by δ = γ_4 at most,
    # whatever the spread; r − 1 − log r is δ²/2, and the logarithm is rounded, δ u
    u, delta = gamma(1), gamma(4)
    assert gaussian_kl(cov, cov) <= 0.5 * len(cov) * (delta**2 / 2 + delta * u)


def test_covariances_may_require_a_gradient():
    cov = random_covariance(3, generator=seeded(0))
    free = cov.clone().requires_grad_()
    for distance in (gaussian_kl, gaussian_w2, gaussian_tv_bounds):  # on copies: bit for bit
        assert distance(free, 2 * free) == distance(cov, 2 * cov)


@pytest.mark.parametrize("device", DEVICES)
def test_distances_take_any_dtype_and_device(device):
    cov_p, cov_q, mean = covariance(3), covariance(3, seed=1), torch.ones(3)
    for distance in (gaussian_kl, gaussian_w2, gaussian_tv_bounds):
        single = distance(*(part.to(device, torch.float32) for part in (cov_p, cov_q, mean)))
        assert single == pytest.approx(distance(cov_p, cov_q, mean), rel=1e-5)


# ---- bad input --------------------------------------------------------------------------------

EYE, INDEFINITE = torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
WITH_NAN = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
BAD_GAUSSIANS = {
    "shapes": ((EYE, torch.eye(3)), r"one shape, got \(2, 2\) and \(3, 3\)"),
    "p not square": ((torch.ones(2, 3), EYE), r"cov_p must be a square.*\(2, 3\)"),
    "q not symmetric": ((EYE, EYE.cumsum(0)), "cov_q must be symmetric"),
    "q nan": ((EYE, WITH_NAN), "cov_q must be finite, got 1"),
    "p indefinite": ((INDEFINITE, EYE), "cov_p is not positive semi.* eigenvalue is -1"),
    "q indefinite": ((EYE, INDEFINITE), "eigenvalue"),
    "mean shape": ((EYE, EYE, torch.ones(3)), r"mean_p must have shape \(2,\), got \(3,\)"),
    "mean nan": ((EYE, EYE, None, torch.tensor([math.nan, 0])), "mean_q must be finite, got 1"),
}


@pytest.mark.parametrize("distance", [gaussian_kl, gaussian_w2, gaussian_tv_bounds])
@pytest.mark.parametrize(("pair", "message"), BAD_GAUSSIANS.values(), ids=BAD_GAUSSIANS)
def test_bad_gaussians_are_refused_by_every_distance(distance, pair, message):
    with pytest.raises(ValueError, match=message):
        distance(*pair)
