"""The three terms of a budget, each beside another way to the same number."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from strategies import covariance, process, seeded
from tolerances import assert_at_most

from gptheory.data import GaussianProcess, decaying_process, kronecker_mle, toeplitz_moments
from gptheory.diffusion import WienerScore, alpha, budget, horizon_tv, sigma, stopping_tv
from gptheory.measures import gaussian_tv, total_variation
from gptheory.support.validation import NotPSDError

N_MANY = 4096
EYE = torch.eye(15, dtype=torch.float64)


def noised(law: GaussianProcess, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    eye = torch.eye(law.mean.numel(), dtype=torch.float64)
    return alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * eye, alpha(t) * law.mean.flatten()


@pytest.mark.parametrize("t", [0.003, 0.3, 2.0])
@pytest.mark.parametrize("mean", [False, True])
def test_terms_are_distances_of_dense_gaussians(mean, t):
    law = process(5, 3, mean=mean)
    (cov, middle), (later, moved) = (law.covariance(), law.mean.flatten()), noised(law, t)
    expected = gaussian_tv(cov, later, middle, moved)
    assert stopping_tv(law, t) == pytest.approx(expected, abs=1e-8)
    assert horizon_tv(law, t) == pytest.approx(gaussian_tv(later, EYE, moved), abs=1e-8)


# an independent reading of the theorem (issue 18), by Monte Carlo: two digits, for ν = 1/2 ... 1.9
@pytest.mark.statement("FDGWC Theorem 2")
@pytest.mark.parametrize(
    ("exponent", "without", "with_it"),
    [(0.5, 0.084, 0.011), (1.0, 0.27, 0.010), (1.5, 0.77, 0.010), (1.9, 1.00, 0.009)],
)
def test_early_stopping_needs_the_smallest_eigenvalue(exponent, without, with_it):
    law = decaying_process(16, 2, 8.0, exponent)
    smallest = (law.temporal_spectrum[0][0] * law.spatial_spectrum[0][0]).item()
    assert stopping_tv(law, N_MANY**-0.5) == pytest.approx(without, abs=0.006)
    chosen = budget(law, N_MANY, draws=1)
    assert chosen.t_min == pytest.approx(smallest * N_MANY**-0.5)
    assert chosen.stopping == pytest.approx(with_it, abs=0.0007)
    assert chosen.stopping < math.sqrt(32 / 8 / N_MANY)  # the docstring's


def test_without_the_eigenvalue_the_rate_survives_where_n_is_above_its_inverse_square():
    law = decaying_process(16, 2, 8.0, 1.9)
    smallest = (law.temporal_spectrum[0][0] * law.spatial_spectrum[0][0]).item()
    assert stopping_tv(law, smallest) > 0.3
    costs = [stopping_tv(law, smallest * share) for share in (1e-3, 1e-4)]
    assert costs[0] / costs[1] == pytest.approx(10, rel=0.01)


def test_the_horizon_costs_one_nth():
    law = decaying_process(16, 2, 8.0)
    for t, expected in ((2.0, 0.33), (6.0, 0.009), (10.0, 0.0002)):
        assert horizon_tv(law, t) == pytest.approx(expected, rel=0.2)
    horizons = [budget(law, n, draws=1) for n in (64, 512, N_MANY)]
    for each in horizons:
        assert each.horizon == pytest.approx(1 / each.n, rel=1e-4)
    gaps = [b.t_max - a.t_max for a, b in pairwise(horizons)]
    assert gaps == pytest.approx([math.log(8)] * 2, rel=0.01)  # of order log n
    white = GaussianProcess(torch.eye(3), torch.eye(2))
    assert budget(white, 9).t_max == 1.0 and budget(white, 9).horizon < 1e-9


@pytest.mark.statement("FDGWC Theorem 2")
def test_the_terms_add_up_to_more_than_the_whole_and_fall_as_the_theorem_says():
    law = decaying_process(16, 2, 8.0)
    found = [budget(law, n) for n in (1024, 2048, N_MANY)]
    for each in found:
        assert_at_most(each.whole, each.ceiling)
        assert_at_most(each.path, each.whole + each.stopping + each.horizon)
    slope = math.log(found[2].whole / found[0].whole) / math.log(4)
    assert slope == pytest.approx(-0.5, abs=0.03)


def test_structure_makes_the_path_shorter():
    law = decaying_process(6, 2, 3.0)
    paths = [
        budget(law, 256, estimator=each).path for each in (toeplitz_moments, kronecker_mle, None)
    ]
    assert paths == sorted(paths) and paths[0] < 0.5 * paths[2]


@pytest.mark.parametrize("t_max", [1.0, 8.0])
def test_whole_is_what_the_flow_of_the_score_measures(t_max):
    """With t_0 so small that stopping is nothing, and the very training set of the budget."""
    law, t_min = process(3, 2, seed=1), 1e-6
    one = budget(law, 64, t_min, t_max, draws=1, generator=seeded(5))
    score = WienerScore(law.sample(64, seeded(5), torch.float64))
    flow = total_variation(score, law, 2000, t_min, t_max, 32, seeded(6), torch.float64)
    assert one.stopping < 1e-4
    assert abs(flow.value - one.whole) <= 2 * flow.standard_error + one.stopping


def test_path_and_whole_differ_by_the_horizon():
    """The exact flow carries TV(p_T, N(0, I)) down unchanged, here with p_T far from white."""
    law = process(3, 2, seed=1)
    many = budget(law, 200_000, 1e-6, 1.0, draws=1)
    assert many.path < 0.02 < 0.2 < many.horizon
    assert many.whole == pytest.approx(many.horizon, abs=0.02)


def test_a_seed_decides_the_training_sets():
    law = process(3, 2)
    first, again = (budget(law, 32) for _ in range(2))
    assert first == again and first.n == 32
    assert budget(law, 32, generator=seeded(1)).path != first.path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be an integer >= 1, got 0"),
        ({"draws": 0}, "draws must be an integer >= 1, got 0"),
        ({"t_min": 0.0}, "t_min must be a finite number > 0, got 0.0"),
        ({"t_min": 0.5, "t_max": 0.5}, "expected t_min < t_max, got t_min=0.5, t_max=0.5"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        budget(process(3, 2), **{"n": 9} | arguments)


@pytest.mark.parametrize("term", [stopping_tv, horizon_tv])
def test_bad_steps_are_refused(term):
    with pytest.raises(ValueError, match="the diffusion step t must be a finite number > 0"):
        term(process(3, 2), 0.0)


def test_a_law_without_a_density_is_refused_and_cannot_be_stopped_for():
    flat = GaussianProcess(torch.ones(3, 3), covariance(2))
    assert stopping_tv(flat, 1e-9) == 1
    with pytest.raises(NotPSDError, match="the temporal covariance is singular"):
        budget(flat, 9)
