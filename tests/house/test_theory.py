"""Theorems as inequalities over random Γ, Σ, μ and t: what the paper's argument stands on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import diffusion_steps, process, processes, seeded, seeds
from tolerances import assert_at_most, assert_identity, assert_statistical

from gptheory.data import GaussianProcess
from gptheory.diffusion import ExactScore, alpha, perturb, sigma
from gptheory.measures import gaussian_kl, gaussian_w2
from gptheory.measures.gaussians import gaussian_tv_bounds


def noised(law: GaussianProcess, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of v_t."""
    eye = torch.eye(law.mean.numel(), dtype=torch.float64)
    covariance = alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * eye
    return alpha(t) * law.mean.flatten(), covariance


@st.composite
def pairs_of_processes(draw) -> tuple[GaussianProcess, GaussianProcess]:
    sizes = {"seq_len": draw(st.integers(1, 4)), "dim": draw(st.integers(1, 3))}
    return tuple(process(**sizes, seed=draw(seeds)) for _ in range(2))


def between(distance, p: GaussianProcess, q: GaussianProcess, t: float):
    (mean_p, cov_p), (mean_q, cov_q) = noised(p, t), noised(q, t)
    return distance(cov_p, cov_q, mean_p, mean_q)


# ---- the score --------------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Score formula")
@given(processes, diffusion_steps, seeds)
def test_score_solves_a_strictly_convex_problem(law, t, seed):
    """L(s) = sᵀAs/2 + sᵀ(v − αμ) exceeds its minimum by exactly the energy of the deviation."""
    mean, matrix = noised(law, t)
    v, move = torch.randn(2, law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)
    best = ExactScore(law)(v[None], t).flatten()

    def objective(s):
        return s @ matrix @ s / 2 + s @ (v.flatten() - mean)

    excess = objective(best + move.flatten()) - objective(best)
    energy = move.flatten() @ matrix @ move.flatten() / 2
    scale = energy + objective(best).abs()
    assert_identity((excess - energy) / scale + 1, 1.0)
    assert energy > 0


@pytest.mark.statement("FDGWC Score formula")
@pytest.mark.parametrize("t", [0.1, 1.0])
def test_score_averages_to_zero_and_satisfies_steins_identity(t):
    """E s(v) = 0 and E s(v) (v − α μ)ᵀ = −I for the score of any density."""
    law, n = process(3, 2, seed=1), 20_000
    generator = seeded(0)
    v, _ = perturb(law.sample(n, generator, torch.float64), t, generator)
    scores = ExactScore(law)(v, t).flatten(1)
    products = scores[:, :, None] * (v - alpha(t) * law.mean).flatten(1)[:, None]
    assert_statistical(scores.mean(0), torch.zeros(6), scores.std(0) / n**0.5, n)
    assert_statistical(products.mean(0), -torch.eye(6), products.std(0) / n**0.5, n)


@pytest.mark.statement("FDGWC Score formula")
@given(processes, diffusion_steps, seeds)
def test_score_of_the_noised_density_solves_the_heat_equation(law, t, seed):
    """Fokker-Planck of the forward process: ∂_t log p = (d + v·s + div s + ‖s‖²) / 2."""
    v = torch.randn(law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)
    s = ExactScore(law)(v[None], t)[0]
    divergence = -torch.linalg.inv(noised(law, t)[1]).trace()
    flow = (v.numel() + (v * s).sum() + divergence + (s**2).sum()) / 2
    step = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(v.numel(), dtype=torch.float64)
    density = torch.distributions.MultivariateNormal(
        alpha(step) * law.mean.flatten(),
        alpha(step) ** 2 * law.covariance() + sigma(step) ** 2 * eye,
    )
    (slope,) = torch.autograd.grad(density.log_prob(v.flatten()), step)
    scale = 1 + (s**2).sum() + divergence.abs()
    assert_identity((slope - flow) / scale + 1, 1.0)


# ---- the forward process ----------------------------------------------------------------------


@pytest.mark.statement("FDGWC Forward process")
@given(pairs_of_processes(), diffusion_steps, diffusion_steps)
def test_noise_brings_two_laws_together(pair, s, t):
    """No map of the data can increase KL; the drift contracts W2 by α."""
    p, q = pair
    for distance in (gaussian_kl, gaussian_w2):
        assert_at_most(between(distance, p, q, s + t), between(distance, p, q, s))
    assert_at_most(between(gaussian_w2, p, q, t), alpha(t) * between(gaussian_w2, p, q, 0.0))
    lower, _ = between(gaussian_tv_bounds, p, q, s + t)
    _, upper = between(gaussian_tv_bounds, p, q, s)
    assert_at_most(lower, upper)


@pytest.mark.statement("FDGWC Forward process")
@given(processes, diffusion_steps)
def test_what_the_horizon_costs(law, t):
    """KL(p_T ‖ N(0, I)) <= e^{−T} KL(p_0 ‖ N(0, I)): the logarithmic Sobolev inequality."""
    size = law.mean.numel()
    white = GaussianProcess(torch.eye(size), torch.eye(1))
    flat = GaussianProcess(law.covariance(), torch.eye(1), law.mean.reshape(size, 1))
    start, end = between(gaussian_kl, flat, white, 0.0), between(gaussian_kl, flat, white, t)
    assert_at_most(end, math.exp(-t) * start)


@pytest.mark.statement("FDGWC Forward process")
@given(processes, st.floats(1e-4, 1.0))
def test_what_early_stopping_costs(law, t):
    """W2(p_{t0}, p_0)² <= (1 − α)² E‖x‖² + σ² N d, the cost of coupling v with its own x."""
    (mean, clean), (shrunk, dirty) = noised(law, 0.0), noised(law, t)
    second_moment = clean.trace() + mean @ mean
    bound = (1 - alpha(t)) ** 2 * second_moment + sigma(t) ** 2 * len(mean)
    assert_at_most(gaussian_w2(clean, dirty, mean, shrunk) ** 2, bound)


@given(pairs_of_processes())
def test_transport_inequality_for_a_gaussian_target(pair):
    """Talagrand: W2(p, q)² <= 2 λ_max(C_q) KL(p ‖ q)."""
    p, q = pair
    largest = torch.linalg.eigvalsh(q.covariance())[-1].item()
    bound = 2 * largest * between(gaussian_kl, p, q, 0.0)
    assert_at_most(between(gaussian_w2, p, q, 0.0) ** 2, bound)


# ---- the structure of the covariance ----------------------------------------------------------


@pytest.mark.statement("FDGWC Data model")
@given(processes, seeds)
def test_kronecker_identities(law, seed):
    """(Γ ⊗ Σ) vec X = vec(Γ X Σ), det = det(Γ)^d det(Σ)^N, inverse = Γ^{-1} ⊗ Σ^{-1}."""
    x = torch.randn(law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)
    dense, gram, spatial = law.covariance(), law.gram(), law.spatial
    assert_identity(dense @ x.flatten(), (gram @ x @ spatial).flatten())
    determinants = law.dim * torch.logdet(gram) + law.seq_len * torch.logdet(spatial)
    assert torch.logdet(dense).item() == pytest.approx(determinants.item(), rel=1e-9, abs=1e-9)
    inverse = torch.kron(torch.linalg.inv(gram), torch.linalg.inv(spatial))
    assert_identity(inverse, torch.linalg.inv(dense), condition=1e4)
