"""Path divergence and coupled-ODE error against closed forms; lags; steps uniform in logSNR."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import covariance, process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import GaussianProcess, PowerExponential, gram
from gptheory.diffusion import ExactScore, alpha, sigma, stratified_steps
from gptheory.diffusion.schedule import half_log_snr, step_at
from gptheory.measures import (
    coupled_ode_error,
    debiased_error,
    gaussian_kl,
    lag_correlations,
    path_kl,
)


def noised(law: GaussianProcess, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    eye = torch.eye(law.mean.numel(), dtype=torch.float64)
    return alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * eye, alpha(t) * law.mean.flatten()


# ---- diffusion steps ----------------------------------------------------------------------------


@given(st.floats(1e-6, 50.0))
def test_step_at_inverts_the_log_signal_to_noise_ratio(t):
    h = half_log_snr(t)
    assert_identity(step_at(h), t, condition=10)
    tensor = step_at(torch.tensor(h, dtype=torch.float64))
    assert_identity(tensor, t, condition=10)


def test_step_at_the_ends_of_the_clock():
    for h in (-800.0, -1e-3, 0.0, 1e-3, 300.0):
        assert_identity(step_at(h), step_at(torch.tensor(h, dtype=torch.float64)))
    assert step_at(-1e4) == 2e4 and step_at(half_log_snr(800.0)) == 800.0


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_stratified_steps_have_one_in_every_stratum(n):
    t = stratified_steps(n, 0.005, 8.0, seeded(0))
    low, high = half_log_snr(8.0), half_log_snr(0.005)
    place = (half_log_snr(t) - low) / (high - low) * n
    assert t.shape == (n,) and t.dtype == torch.float64
    within = place - torch.arange(n)
    assert (within > -1e-9).all() and (within < 1 + 1e-9).all()
    if n == 1000:
        assert_statistical(within.mean(), 0.5, 1 / math.sqrt(12 * n), n)
        assert within.std() > 0.25  # random within its stratum, not always the middle


@pytest.mark.parametrize("bad", [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 1.0, 0.1), (3, 0.1, math.inf)])
def test_bad_ranges_of_steps_are_refused(bad):
    with pytest.raises(ValueError, match=r"n must|t_min|t_max"):
        stratified_steps(*bad)


# ---- path divergence ----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1), (4, 2)])
@pytest.mark.parametrize("ends", [(0.005, 8.0), (0.1, 1.0)])
def test_path_divergence_of_another_law_is_the_fall_of_their_divergence(sizes, ends):
    """d/dt KL(p_t || q_t) = −½ E_p ‖∇log p_t − ∇log q_t‖², so the path KL telescopes."""
    p, q = process(*sizes, seed=1), process(*sizes, seed=2)
    at = [gaussian_kl(*(law[0] for law in (noised(p, t), noised(q, t))),
                      *(law[1] for law in (noised(p, t), noised(q, t)))) for t in ends]  # fmt: skip
    expected = (at[0] - at[1]) / (sizes[0] * sizes[1])
    repeats = torch.tensor(
        [
            path_kl(ExactScore(q), p, *ends, n=4000, generator=seeded(s), dtype=torch.float64)
            for s in range(8)
        ]
    )
    assert_statistical(repeats.mean(), expected, repeats.std() / 8**0.5, 8 * 4000)
    assert repeats.std() < 0.05 * expected  # the accuracy that the docstring promises


def test_path_divergence_of_the_exact_score_is_zero():
    law = process(4, 2)
    assert path_kl(ExactScore(law), law, n=100, generator=seeded(0)) == 0


def test_path_divergence_does_not_depend_on_the_size_of_its_chunks(monkeypatch):
    law, values, sizes = process(4, 2), [], set()

    def wrong(v, t):
        sizes.add(len(v))
        return -v

    for chunk in (2**17, 80):
        monkeypatch.setattr("gptheory.measures.scores.CHUNK_VALUES", chunk)
        values.append(path_kl(wrong, law, n=5005, generator=seeded(0), dtype=torch.float64))
    assert sizes == {5005, 10, 5}
    assert abs(values[0] / values[1] - 1) < 0.05  # the same steps, other sequences


def test_path_divergence_refuses_scores_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(10, 4, 2\), got \(10, 4\)"):
        path_kl(lambda v, t: v[..., 0], process(4, 2), n=10)
    with pytest.raises(ValueError, match="n must"):
        path_kl(lambda v, t: v, process(4, 2), n=0)


# ---- coupled-ODE error --------------------------------------------------------------------------


def test_coupled_error_of_another_law_is_that_of_their_maps():
    """For Gaussians the ODE is linear: √(variance ratio) along each direction, then a denoiser."""
    p = GaussianProcess(torch.tensor([1.0, 0.5]).diag(), torch.eye(1))
    q = GaussianProcess(torch.tensor([1.5, 0.2]).diag(), torch.eye(1))
    ends, n = (0.05, 6.0), 4000

    def response(law):
        clean = law.temporal.diagonal()
        low, high = (alpha(t) ** 2 * clean + sigma(t) ** 2 for t in ends)
        return (low / high).sqrt() * alpha(ends[0]) * clean / low

    true, other = response(p), response(q)
    expected = ((other - true).square().sum() / true.square().sum()).sqrt().item()
    errors = torch.tensor(
        [
            coupled_ode_error(ExactScore(q), p, n, 200, *ends, seeded(s), torch.float64)
            for s in range(4)
        ]
    )
    assert_statistical(errors.mean(), expected, errors.std() / 2 + 1e-3 * expected, n)


def test_coupled_error_uses_the_same_noise_for_both():
    law = process(4, 2)
    assert coupled_ode_error(ExactScore(law), law, n=3, steps=4) == 0
    wrong = ExactScore(process(4, 2, seed=3))
    first, second = (coupled_ode_error(wrong, law, n=5, steps=5) for _ in range(2))
    assert first == second  # without a generator: a fixed one
    assert first != coupled_ode_error(wrong, law, n=5, steps=5, generator=seeded(1))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    coupled_ode_error(wrong, law, n=2, steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_coupled_error_refuses_bad_sizes():
    with pytest.raises(ValueError, match="n must"):
        coupled_ode_error(ExactScore(process(4, 2)), process(4, 2), n=0)


# ---- lags ---------------------------------------------------------------------------------------


def test_lag_correlations_of_a_gram_matrix_are_its_kernel():
    kernel = PowerExponential(3.0)
    truth = kernel(torch.arange(9.0, dtype=torch.float64))
    assert_identity(lag_correlations(gram(kernel, 9)), truth)
    assert_identity(lag_correlations(4 * gram(kernel, 9)), truth)


def test_lag_correlations_average_along_diagonals():
    matrix = covariance(4)
    expected = [sum(matrix[i, i + m] for i in range(4 - m)) / (4 - m) for m in range(4)]
    expected = torch.stack(expected)
    assert_identity(lag_correlations(matrix), expected / expected[0])
    with pytest.raises(ValueError, match="square"):
        lag_correlations(torch.zeros(2, 3))


def test_debiased_errors_add_up_in_squares():
    assert_identity(debiased_error(0.5, 0.3), 0.4)
    assert debiased_error(0.2, 0.3) == 0


def test_both_scores_stop_where_the_one_under_test_does():
    law = process(4, 2)

    class Early(ExactScore):
        t_range = (0.05, 8.0)

    assert coupled_ode_error(Early(law), law, n=3, steps=4) == 0
