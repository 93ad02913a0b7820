"""Regions for what is missing, and their coverage, which is computed and not sampled."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from strategies import process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import GaussianProcess
from gptheory.measures import Region, ball_region, ellipsoid_region
from gptheory.support.quadratic import squared_norm_cdf, squared_norm_quantile

# scipy's own noncentral distribution agrees with itself to about 1e-10 at these sizes
SCIPY = 1e-9


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 128, 1000])
def test_equal_variances_make_chi_squared(size, scale):
    for level in (1e-12, 1e-6, 0.01, 0.5, 0.95, 1 - 1e-6):
        x = stats.chi2.ppf(level, size)
        found = squared_norm_cdf(x * scale, np.full(size, scale), np.zeros(size))
        assert found == pytest.approx(stats.chi2.cdf(x, size), rel=1e-11)


@pytest.mark.parametrize("noncentrality", [0.1, 3.0, 50.0, 2000.0])
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_offsets_make_it_noncentral(size, noncentrality):
    direction = np.arange(1.0, size + 1)
    offsets = direction * math.sqrt(noncentrality) / np.linalg.norm(direction)
    for level in (1e-6, 0.05, 0.5, 0.95, 0.9999):
        x = stats.ncx2.ppf(level, size, noncentrality)
        found = squared_norm_cdf(x, np.ones(size), offsets)
        assert found == pytest.approx(stats.ncx2.cdf(x, size, noncentrality), rel=SCIPY)


def test_pairs_of_equal_variances_are_sums_of_exponentials():
    draw = np.random.default_rng(0)
    for _ in range(100):
        w = np.exp(draw.uniform(-6, 3, draw.integers(2, 6)))
        x = 2 * w.sum() * np.exp(draw.uniform(-3, 3))
        factors = [np.prod([a / (a - b) for b in w if b != a]) for a in w]
        rest = sum(f * math.exp(-x / (2 * a)) for f, a in zip(factors, w, strict=True))
        # the closed form adds terms of both signs: what that rounds
        rounding = 1e-12 + 1e-15 * np.abs(factors).max()
        found = squared_norm_cdf(x, np.repeat(w, 2), np.zeros(2 * len(w)))
        assert abs(1 - rest - found) <= rounding


@pytest.mark.parametrize("variance", [0.1, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("x", [0.1, 0.33, 3.0])
def test_a_mean_with_hardly_any_variance_beside_a_wide_direction(x, variance):
    """Where a path that bends too far meets what grows; beside an integral over that direction."""

    def inside(z):
        return stats.norm.pdf(z) * stats.chi2.cdf((x - (0.5 + math.sqrt(variance) * z) ** 2) / 4, 1)

    kinks = [(sign * math.sqrt(x) - 0.5) / math.sqrt(variance) for sign in (-1, 1)]
    edges = sorted([-10.0, 10.0, *(min(max(k, -10.0), 10.0) for k in kinks)])
    expected = sum(quad(inside, *pair, epsabs=1e-13, limit=200)[0] for pair in pairwise(edges))
    found = squared_norm_cdf(x, np.array([4.0, variance]), np.array([0.0, 0.5]))
    assert found == pytest.approx(expected, abs=1e-10)


def test_the_tail_beyond_has_all_its_digits_near_one():
    """P(‖y‖² > x) = e^{-x/2} in two dimensions; below 1e-16 the probability is 1."""
    for x in (10.0, 30.0, 60.0):
        assert 1 - squared_norm_cdf(x, np.ones(2), np.zeros(2)) == pytest.approx(
            math.exp(-x / 2), abs=2e-16
        )
    assert squared_norm_cdf(1e6, np.ones(2), np.zeros(2)) == 1.0


def test_directions_without_variance_only_shift():
    one, offsets = np.array([1.0, 0.0]), np.array([0.0, 0.9])
    assert squared_norm_cdf(1.0, one, offsets) == pytest.approx(stats.chi2.cdf(0.19, 1), rel=1e-11)
    nearly = squared_norm_cdf(1.0, np.array([1.0, 1e-8]), offsets)
    assert nearly == pytest.approx(squared_norm_cdf(1.0, one, offsets), rel=1e-6)
    assert squared_norm_cdf(0.8, one, offsets) == 0.0
    still = np.zeros(2), np.array([3.0, 4.0])
    assert [squared_norm_cdf(x, *still) for x in (24.9, 25.0)] == [0.0, 1.0]
    assert squared_norm_quantile(0.5, *still) == 25.0
    assert squared_norm_cdf(0.0, one, 0 * one) == squared_norm_cdf(1e-75, one, 0 * one) == 0.0


@pytest.mark.parametrize("level", [1e-4, 0.3, 0.95, 0.9999])
def test_the_quantile_inverts(level):
    variances = np.geomspace(1e-3, 4.0, 40)
    offsets = np.linspace(-1, 1, 40) ** 3
    x = squared_norm_quantile(level, variances, offsets)
    assert squared_norm_cdf(x, variances, offsets) == pytest.approx(level, rel=1e-10)


REGIONS = {"ball": ball_region, "ellipsoid": ellipsoid_region}


@pytest.mark.statement("YC Algorithm 1")
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_the_region_of_a_law_covers_what_it_says(region):
    law = process(4, 2, seed=3)
    for level in (0.5, 0.95):
        assert region(law, level).coverage(law) == pytest.approx(level, rel=1e-9)


@pytest.mark.statement("YC Algorithm 1")
def test_a_ball_around_equal_variances_is_that_of_chi_squared():
    white, chi = GaussianProcess(4 * torch.eye(6), torch.eye(2)), stats.chi2(12)
    for level in (0.5, 0.95):
        ball = ball_region(white, level)
        assert ball.radius**2 / 4 == pytest.approx(chi.ppf(level), rel=SCIPY)
        smaller = GaussianProcess(torch.eye(6), torch.eye(2))
        assert ball.coverage(smaller) == pytest.approx(chi.cdf(4 * chi.ppf(level)), rel=SCIPY)


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_coverage_by_another_law_is_the_share_of_its_draws(region):
    made, true, n = process(4, 2, seed=3), process(4, 2, seed=8), 40_000
    made = GaussianProcess(made.temporal, made.spatial, true.mean + 0.5)
    found = region(made)
    inside = found.contains(true.sample(n, seeded(0), torch.float64)).double()
    exact = found.coverage(true)
    assert 0.02 < exact < 0.94
    assert_statistical(inside.mean(), exact, math.sqrt(exact * (1 - exact) / n), n)


def test_a_ball_of_many_draws_is_that_of_the_law():
    law, n = process(4, 2, seed=3), 40_000
    of_draws, exact = ball_region(law.sample(n, seeded(1))), ball_region(law)
    error = (torch.outer(law.temporal.diagonal(), law.spatial.diagonal()) / n).sqrt()
    assert_statistical(of_draws.centre, exact.centre, error, n)
    share = of_draws.coverage(law)
    assert_statistical(share, 0.95, math.sqrt(0.95 * 0.05 / n), n)


def test_a_ball_of_draws_is_algorithm_1_to_the_letter():
    draws = torch.randn(21, 3, 2, generator=seeded(0), dtype=torch.float64)
    found = ball_region(draws, 0.8)
    centre = sum(draws) / 21
    distances = sorted((x - centre).norm().item() for x in draws)
    assert_identity(found.centre, centre)
    assert found.radius == pytest.approx(distances[16], rel=1e-12)  # 80 % of the way from 0 to 20


def average_coverage(region, law, count, balls=400):
    """With its standard error: each region's own coverage is exact."""
    drawn = law.sample(balls * count, seeded(0), torch.float64).split(count)
    found = torch.tensor([region(x).coverage(law) for x in drawn], dtype=torch.float64)
    return found.mean().item(), found.std().item() / math.sqrt(balls)


def test_few_draws_make_the_ball_too_small_and_the_correction_does_not():
    law = process(6, 4, seed=2, low=0.5)
    plain, error = average_coverage(ball_region, law, 40)
    assert plain < 0.95 - 10 * error
    fair, error = average_coverage(lambda x: ball_region(x, corrected=True), law, 40)
    # the rank promises ceil(0.95 * 41) / 41 = 0.951 for exchangeable distances; the distances of
    # draws to their own mean are alike in law, and not quite exchangeable with the fresh one
    assert_statistical(fair, 39 / 41, error, 400)


def test_the_ellipsoid_of_draws_of_one_number_is_the_prediction_interval():
    """Student's: the mean ± t s sqrt(1 + 1/Z)."""
    draws = torch.randn(5, 1, 1, generator=seeded(0), dtype=torch.float64)
    found = ellipsoid_region(draws)
    half = stats.t.ppf(0.975, 4) * draws.std().item() * math.sqrt(1 + 1 / 5)
    assert found.radius / found.whitening.item() == pytest.approx(half, rel=1e-9)


def test_the_ellipsoid_of_draws_covers_on_average_at_every_count():
    law = process(3, 2, seed=2)
    for count in (8, 30):
        found, error = average_coverage(ellipsoid_region, law, count)
        assert_statistical(found, 0.95, error, 400)


def test_the_ellipsoid_is_the_smaller_region():
    law = process(4, 2, seed=3, low=0.01)
    ball, ellipsoid = ball_region(law), ellipsoid_region(law)
    assert ellipsoid.log_volume < ball.log_volume - 1
    white = GaussianProcess(torch.eye(4), torch.eye(2))
    assert ball_region(white).log_volume == pytest.approx(ellipsoid_region(white).log_volume)


def test_volumes_are_those_of_balls_and_boxes():
    disc = Region(torch.zeros(2, 1), 3.0)
    assert math.exp(disc.log_volume) == pytest.approx(9 * math.pi)
    squeezed = Region(torch.zeros(2, 1), 3.0, torch.diag(torch.tensor([1.0, 4.0])))
    assert math.exp(squeezed.log_volume) == pytest.approx(9 * math.pi / 4)
    assert squeezed.contains(torch.tensor([[[2.9], [0.0]], [[0.0], [0.8]]])).tolist() == [1, 0]


def test_a_region_without_extent_has_no_volume():
    assert Region(torch.zeros(2, 1), 0.0).log_volume == -math.inf
    assert ball_region(torch.ones(20, 4, 2)).log_volume == -math.inf


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_a_level_may_be_a_tensor(region):
    level = torch.tensor(0.75)  # the same number in float32
    draws = process(3, 2).sample(9, seeded(0))
    assert region(draws, level).radius == region(draws, 0.75).radius
    assert type(region(draws, level).radius) is float


def on_a_line(dtype):
    """Draws around 300 that differ in one direction of eight, but for what rounding adds."""
    direction, along = (
        torch.randn(1, 4, 2, generator=seeded(1)),
        torch.randn(20, 1, 1, generator=seeded(0)),
    )
    return (300 + along.double() * direction.double()).to(dtype)


def test_a_faint_direction_that_float32_can_hold_is_one():
    draws = torch.randn(20, 4, 2, generator=seeded(0))
    draws[:, 0, 0] *= 1e-4
    assert ellipsoid_region(draws).log_volume < ellipsoid_region(draws * 10).log_volume - 8 * 2


LAW, DRAWS = process(3, 2), torch.randn(9, 3, 2, generator=seeded(0))
SEEN = process(5, 2).condition(torch.zeros(5, 2), torch.arange(5) < 2)
ENTRIES = process(5, 2).condition(torch.zeros(5, 2), torch.arange(10).view(5, 2) < 5)
PROCESS = r"must be a GaussianProcess, got a ConditionalProcess; pass law.process\(k\)"
BAD_INPUT = {
    "two levels": (lambda: ball_region(DRAWS, torch.tensor([0.8, 0.9])), r"level must lie in \(0"),
    "a level in words": (lambda: ellipsoid_region(DRAWS, "0.9"), "level must lie in .*got '0.9'"),
    "one point": (lambda: ellipsoid_region(torch.ones(20, 4, 2)), "vary in 0 of 8 dimensions"),
    "a line": (lambda: ellipsoid_region(on_a_line(torch.float64)), "vary in 1 of 8 dimensions"),
    "a line, rounded": (
        lambda: ellipsoid_region(on_a_line(torch.float32)),
        "vary in 1 of 8 dimensions",
    ),
    "radius": (lambda: Region(torch.zeros(2, 1), -1.0), "radius must be finite and >= 0, got -1.0"),
    "conditional ball": (lambda: ball_region(SEEN), "law " + PROCESS),
    "conditional ellipsoid": (lambda: ellipsoid_region(SEEN), "law " + PROCESS),
    "conditional coverage": (lambda: ball_region(LAW).coverage(SEEN), "law " + PROCESS),
    "entries": (
        lambda: ball_region(LAW).coverage(ENTRIES),
        "law must be a GaussianProcess, got a ConditionalEntries$",
    ),
    "level": (lambda: ball_region(LAW, 1.0), r"level must lie in \(0, 1\), got 1.0"),
    "one draw": (lambda: ball_region(DRAWS[:1]), "number of draws must be an integer >= 2, got 1"),
    "NaN": (lambda: ball_region(DRAWS * math.nan), "draws must be finite, got 54"),
    "too few for a rank": (lambda: ball_region(DRAWS, corrected=True), "needs 19 or more.*got 9"),
    "too few for a shape": (lambda: ellipsoid_region(DRAWS[:6]), "more than 6 draws, got 6"),
    "another law": (
        lambda: ball_region(LAW).coverage(process(3, 1)),
        r"sequences \(3, 2\), got \(3, 1\)",
    ),
    "other sequences": (lambda: ball_region(LAW).contains(DRAWS[:, :2]), r"\(batch, 3, 2\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()
