"""Gaussian mixtures: their score against automatic differentiation, their draws against moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import covariance, diffusion_steps, seeded, seeds
from tolerances import (
    assert_identity,
    assert_statistical,
    covariance_standard_error,
    relative_norm,
)

from gptheory.data import GaussianMixture, GaussianProcess, random_mixture
from gptheory.diffusion import ExactScore, alpha, sigma
from gptheory.support.validation import NotPSDError


def mixture(components: int = 3, seq_len: int = 2, dim: int = 2, seed: int = 0) -> GaussianMixture:
    """Unequal weights, means far apart, a covariance of its own for each component."""
    draw = {"generator": seeded(seed), "dtype": torch.float64}
    means = 2 * torch.randn(components, seq_len, dim, **draw)
    covariances = torch.stack([covariance(seq_len * dim, seed + k) for k in range(components)])
    return GaussianMixture(means, covariances, torch.rand(components, **draw) + 0.2)


def log_density(law: GaussianMixture, v: torch.Tensor, t: float) -> torch.Tensor:
    """Of v_t, by torch.distributions: the oracle."""
    size = law.means.shape[1]
    roots = (law._axes * law._variances[:, None]) @ law._axes.mT
    noised = alpha(t) ** 2 * roots + sigma(t) ** 2 * torch.eye(size, dtype=torch.float64)
    components = torch.distributions.MultivariateNormal(alpha(t) * law.means, noised)
    weights = torch.distributions.Categorical(law.weights)
    return torch.distributions.MixtureSameFamily(weights, components).log_prob(v.flatten(1))


@given(st.integers(1, 4), diffusion_steps, seeds)
def test_score_is_the_gradient_of_the_log_density(components, t, seed):
    law = mixture(components, seed=seed % 1000)
    v = torch.randn(5, 2, 2, generator=seeded(seed), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(law, v, t).sum(), v)
    assert relative_norm(ExactScore(law)(v.detach(), t), gradient) < 1e-11


@given(st.integers(1, 4), diffusion_steps, seeds)
def test_density_agrees_with_torch(components, t, seed):
    law = mixture(components, seed=seed % 1000)
    v = torch.randn(5, 2, 2, generator=seeded(seed), dtype=torch.float64)
    assert_identity(law.noised_log_prob(v, alpha(t), sigma(t)), log_density(law, v, t), 10)


def test_one_component_is_a_gaussian_process():
    process = GaussianProcess(covariance(3), covariance(2, 1), torch.ones(2))
    law = GaussianMixture(process.mean[None], process.covariance())
    v = torch.randn(6, 3, 2, generator=seeded(0), dtype=torch.float64)
    t = torch.linspace(0.02, 4, 6, dtype=torch.float64)
    assert_identity(ExactScore(law)(v, t), ExactScore(process)(v, t))
    assert_identity(law.covariance(), process.covariance())


def test_draws_have_the_moments_of_the_law():
    law, n = mixture(), 200_000
    x = law.sample(n, seeded(3), torch.float64).flatten(1)
    mean, truth = law.weights @ law.means, law.covariance()
    assert_statistical(x.mean(0), mean, (truth.diagonal() / n).sqrt(), n)
    spread = (x - mean).T @ (x - mean) / n
    # the kurtosis of these mixtures is below a Gaussian's, so its error bounds theirs
    assert_statistical(spread, truth, 2 * covariance_standard_error(truth, n), n)


def test_weights_are_frequencies():
    law = GaussianMixture(
        torch.tensor([[[-9.0]], [[0.0]], [[9.0]]]), torch.eye(1), torch.tensor([1.0, 0.0, 3.0])
    )
    x = law.sample(4000, seeded(0)).flatten()
    assert not (x.abs() < 3).any()
    assert_statistical((x > 0).double().mean(), 0.75, (0.75 * 0.25 / 4000) ** 0.5, 4000)


def test_random_mixtures_have_unit_coordinates_on_average():
    law = random_mixture(4, 2, generator=seeded(0))
    second = law.covariance() + torch.outer(law.weights @ law.means, law.weights @ law.means)
    assert_identity(second.trace(), 8.0)
    assert torch.linalg.eigvalsh(law.covariance())[0] >= 0.25 - 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.eye(3)), "means must have shape"),
        ((torch.zeros(0, 1, 2), torch.eye(2)), "number of means"),
        ((torch.full((1, 1, 2), torch.nan), torch.eye(2)), "means must be finite"),
        ((torch.zeros(2, 1, 2), torch.eye(3)), r"covariance must have shape \(2, 2\) or \(2, 2, 2"),
        ((torch.zeros(2, 1, 2), torch.eye(2), torch.ones(3)), "weights must be 2 numbers"),
        ((torch.zeros(2, 1, 2), torch.eye(2), torch.zeros(2)), "not all zero"),
        ((torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_bad_numbers_are_refused():
    with pytest.raises(NotPSDError, match="not positive semidefinite"):
        GaussianMixture(torch.zeros(1, 1, 2), torch.diag(torch.tensor([1.0, -0.5])))
    with pytest.raises(ValueError, match="spread must lie"):
        random_mixture(2, 2, spread=1.0)
