"""What is reported of an imputation beside its coverage."""

from __future__ import annotations

import math
import re

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import GaussianProcess
from gptheory.measures import (
    ball_region,
    crps,
    gaussian_crps,
    gaussian_kl,
    imputation_error,
    intervals,
)

LAW = process(4, 2, seed=3)


def changed(scale=1.0, shift=0.0):
    return GaussianProcess(scale * LAW.temporal, LAW.spatial, LAW.mean + shift)


def test_the_true_law_gets_what_the_truth_gets():
    found = imputation_error(LAW, LAW)
    assert found.mean_error == 0 and found.variance_ratio == 1
    for name, value in {"ball": 0.95, "pointwise": 0.95, "width": 1.0, "crps": 1.0}.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert found.kl == pytest.approx(0.0, abs=1e-12)


def test_numbers_of_a_law_are_those_of_two_normal_distributions():
    made = changed(1.44, 0.5)
    found = imputation_error(made, LAW, 0.9)
    scale = torch.outer(LAW.temporal.diagonal(), LAW.spatial.diagonal()).sqrt()
    normal = torch.distributions.Normal(LAW.mean, scale)
    half = 1.2 * scale * 1.6448536269514722
    inside = normal.cdf(made.mean + half) - normal.cdf(made.mean - half)
    assert found.mean_error == pytest.approx(8 * 0.25 / scale.square().sum().item())
    assert found.variance_ratio == pytest.approx(1.44)
    assert found.width == pytest.approx(1.2)
    assert found.pointwise == pytest.approx(inside.mean().item())
    assert found.ball == pytest.approx(ball_region(made, 0.9).coverage(LAW))
    means = made.mean.flatten(), LAW.mean.flatten()
    kl = gaussian_kl(made.covariance(), LAW.covariance(), *means)
    assert found.kl == pytest.approx(kl / 8)


@pytest.mark.parametrize("made", [changed(1.3), changed(0.7), changed(1.0, 0.2)])
def test_the_score_is_best_for_the_true_law(made):
    assert imputation_error(made, LAW).crps > 1.001


def test_a_wrong_mean_and_a_wide_interval_cover_as_they_should():
    """Why coverage is never reported alone."""
    law = GaussianProcess(torch.eye(4), torch.eye(1))
    made = GaussianProcess(1.9 * torch.eye(4), torch.eye(1), torch.full((1,), 1.057))
    found = imputation_error(made, law)
    assert found.pointwise == pytest.approx(0.95, abs=0.001)
    assert found.mean_error > 0.8 and found.kl > 0.3 and found.crps > 1.2


def test_numbers_of_draws_are_on_average_those_of_their_law():
    made, count, times = changed(1.3, 0.2), 60, 400
    exact = imputation_error(made, LAW)
    drawn = made.sample(times * count, seeded(0), torch.float64).split(count)
    found = [imputation_error(x, LAW) for x in drawn]
    for name in ("mean_error", "variance_ratio", "crps"):  # unbiased; quantiles are not
        values = torch.tensor([getattr(each, name) for each in found], dtype=torch.float64)
        error = values.std() / math.sqrt(times)
        assert_statistical(values.mean(), getattr(exact, name), error, times)
    many = imputation_error(made.sample(40_000, seeded(1), torch.float64), LAW)
    for name in ("ball", "pointwise", "width"):
        assert getattr(many, name) == pytest.approx(getattr(exact, name), abs=0.01), name
    assert many.kl is None and found[0].kl is None


def test_the_floor_of_the_mean_is_what_is_taken_away():
    count, times = 5, 500
    drawn = LAW.sample(times * count, seeded(0), torch.float64).split(count)
    scale = LAW.covariance().trace()
    raw = [(x.mean(dim=0) - LAW.mean).square().sum() / scale for x in drawn]
    raw = torch.stack(raw)
    assert_statistical(raw.mean(), 1 / count, raw.std() / math.sqrt(times), times)
    less = torch.tensor([imputation_error(x, LAW).mean_error for x in drawn], dtype=torch.float64)
    assert_statistical(less.mean(), 0.0, less.std() / math.sqrt(times), times)


@pytest.mark.parametrize("fair", [True, False])
def test_crps_is_the_double_sum(fair):
    draws = torch.randn(7, 3, 2, generator=seeded(0), dtype=torch.float64)
    truth = torch.randn(3, 2, generator=seeded(1), dtype=torch.float64)
    pairs = (draws[:, None] - draws).abs().sum(dim=(0, 1)) / (2 * 7 * (6 if fair else 7))
    assert_identity(crps(draws, truth, fair), (draws - truth).abs().mean(dim=0) - pairs)


def test_crps_of_few_draws_is_fair():
    draws = torch.randn(3, 200_000, generator=seeded(0), dtype=torch.float64)
    truth = torch.randn(200_000, generator=seeded(1), dtype=torch.float64)
    for fair, expected in ((True, 1.0), (False, 1 + 1 / 3)):
        found = crps(draws, truth, fair)
        error = found.std() / math.sqrt(200_000)
        assert_statistical(found.mean(), expected / math.sqrt(math.pi), error, 200_000)


def test_gaussian_crps_is_the_integral_that_defines_it():
    mean, deviation, truth = (torch.tensor(x).double() for x in (0.3, 1.7, -2.1))
    at = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    cdf = torch.special.ndtr((at - mean) / deviation)
    integral = torch.trapezoid((cdf - (at >= truth).double()).square(), at)
    # the step costs half a cell, 1e-4 / 2, at most
    assert gaussian_crps(mean, deviation, truth).item() == pytest.approx(integral.item(), abs=5e-5)


def test_intervals_are_quantiles():
    draws = torch.arange(101.0)[:, None].expand(101, 2)
    lower, upper = intervals(draws, 0.9)
    assert_identity(lower, torch.full((2,), 5.0))
    assert_identity(upper, torch.full((2,), 95.0))


DRAWS = LAW.sample(9, seeded(0))
BAD_INPUT = {
    "level": (lambda: imputation_error(DRAWS, LAW, 0.0), "level must lie in"),
    "another shape": (lambda: imputation_error(DRAWS[:, :3], LAW), r"\(3, 2\), got \(4, 2\)"),
    "another law": (lambda: imputation_error(process(3, 2), LAW), r"\(3, 2\), got \(4, 2\)"),
    "one draw": (lambda: crps(DRAWS[:1], DRAWS[0]), r"2 or more draws .*got \(1, 4, 2\)"),
    "truth": (lambda: crps(DRAWS, DRAWS[0, 0]), r"shape \(4, 2\), got \(2,\)"),
    "NaN": (lambda: crps(DRAWS, DRAWS[0] * math.nan), "truth must be finite, got 8"),
    "no deviation": (lambda: gaussian_crps(0.0, 0.0, 1.0), "deviation must be > 0, got 0.0"),
    "infinite": (lambda: gaussian_crps(0.0, 1.0, math.inf), "truth must be finite"),
    "no draws": (lambda: intervals(DRAWS[:0]), r"1 or more draws .*got \(0, 4, 2\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()
