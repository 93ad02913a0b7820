"""The exact score against densities, dense solves and conditional expectations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, covariance, diffusion_steps, process, processes, seeded, seeds
from tolerances import assert_identity, assert_statistical, relative_norm

from gptheory.data import GaussianProcess, PowerExponential
from gptheory.diffusion import ExactScore, alpha, denoise, perturb, sigma
from gptheory.support.rounding import gamma

SCORE_BAR = 1e-8  # the bar against automatic differentiation, relative


def noised_covariance(law: GaussianProcess, t: float) -> torch.Tensor:
    dense = torch.kron(law.gram(), law.spatial)
    return alpha(t) ** 2 * dense + sigma(t) ** 2 * torch.eye(len(dense), dtype=torch.float64)


def points(law: GaussianProcess, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Score formula")
@given(processes, diffusion_steps, seeds)
def test_score_is_the_gradient_of_the_log_density(law, t, seed):
    v = points(law, 4, seed).requires_grad_()
    density = torch.distributions.MultivariateNormal(
        alpha(t) * law.mean.flatten(), noised_covariance(law, t)
    )
    (expected,) = torch.autograd.grad(density.log_prob(v.flatten(1)).sum(), v)
    assert relative_norm(ExactScore(law)(v, t), expected) <= SCORE_BAR


@pytest.mark.statement("FDGWC Score formula")
@given(processes, st.lists(diffusion_steps, min_size=1, max_size=5), seeds)
def test_score_with_one_step_a_sequence_agrees_with_dense_solves(law, ts, seed):
    v = points(law, len(ts), seed)
    scores = ExactScore(law)(v, torch.tensor(ts, dtype=torch.float64))
    for one, t, value in zip(v, ts, scores, strict=True):
        matrix = noised_covariance(law, t)
        solved = np.linalg.solve(matrix.numpy(), (one - alpha(t) * law.mean).flatten().numpy())
        assert_identity(value.flatten(), -solved, condition=np.linalg.cond(matrix.numpy()))


@given(processes, diffusion_steps, seeds)
def test_score_is_linear_in_the_centred_sequence(law, t, seed):
    score, (a, b) = ExactScore(law), points(law, 2, seed).split(1)
    centre = alpha(t) * law.mean
    assert_identity(score(centre[None], t) + 1, torch.ones(1, law.seq_len, law.dim))
    combined = score(centre + 2 * (a - centre) - 3 * (b - centre), t)
    assert_identity(combined, 2 * score(a, t) - 3 * score(b, t), condition=1e2)


@given(processes, diffusion_steps)
def test_jacobian_of_the_score_is_the_negative_inverse(law, t):
    zero, size = torch.zeros(law.seq_len, law.dim, dtype=torch.float64), law.seq_len * law.dim
    jacobian = torch.func.jacrev(lambda v: ExactScore(law)(v[None], t)[0])(zero)
    product = jacobian.reshape(size, size) @ noised_covariance(law, t)
    assert_identity(product, -torch.eye(size), condition=1e2)


def test_score_far_from_the_data_is_that_of_noise():
    law = process()
    v = points(law, 3)
    assert_identity(ExactScore(law)(v, 60.0), -v)


# ---- forms of the step, dtype, device ---------------------------------------------------------


@pytest.mark.parametrize(
    "t", [torch.tensor(0.3), torch.tensor([0.3]), torch.full((4,), 0.3).double()]
)
def test_every_form_of_one_step_means_the_same_to_the_denoiser(t):
    law = process()
    v, score = points(law, 4), ExactScore(law)
    # 0.3 rounds differently in float32
    assert relative_norm(denoise(score, v, t), denoise(score, v, 0.3)) < 1e-6


def test_float32_score_of_a_nearly_singular_process_meets_its_bar():
    """Squared exponential, σ_t² = 1e-4: the condition number of A_t must not show in float32."""
    t = -math.log1p(-1e-4)
    law = GaussianProcess(PowerExponential(8.0, 2.0), covariance(8, low=0.2), seq_len=128)
    generator = seeded(0)
    v, _ = perturb(law.sample(64, generator), t, generator)
    score = ExactScore(law)
    for steps in (t, torch.full((64,), t, dtype=torch.float64)):
        single = score(v, steps)
        assert single.dtype == torch.float32
        # v − α μ and two rotations are rounded, u relative to coordinates of size 1, and the modes
        # of variance σ² divide it by σ² where the score has 1/σ: 3 u/σ
        rounding = gamma(3, torch.float32) / sigma(t)
        assert relative_norm(single, score(v.double(), steps)) <= rounding


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_denoiser_keeps_shape_dtype_and_device(device, dtype, n):
    law = process()
    v = points(law, n).to(device, dtype)
    for t in (0.5, torch.full((n,), 0.5)):
        value = denoise(ExactScore(law), v, t)
        assert (value.shape, value.dtype, value.device) == (v.shape, dtype, v.device)


def test_one_score_serves_both_dtypes_in_turn():
    law, v = process(), points(process(), 2)
    score = ExactScore(law)
    first = score(v, 0.5)
    assert score(v.float(), 0.5).dtype == torch.float32
    assert torch.equal(score(v, 0.5), first)


def test_score_maps_over_steps_with_vmap():
    law = process()
    v, t, score = points(law, 4), torch.tensor([0.1, 0.5, 1.0, 3.0]).double(), ExactScore(law)
    mapped = torch.func.vmap(lambda one, step: score(one[None], step)[0])(v, t)
    assert_identity(mapped, score(v, t))


# ---- the denoiser -----------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Score formula")
@given(processes, diffusion_steps, seeds)
def test_denoiser_is_the_conditional_expectation(law, t, seed):
    """E[x | v] = μ + α C A^{-1} (v − α μ), by conditioning the joint Gaussian of x and v."""
    v = points(law, 3, seed)
    matrix = noised_covariance(law, t)
    gain = alpha(t) * np.linalg.solve(matrix.numpy(), law.covariance().numpy())
    shift = (v - alpha(t) * law.mean).flatten(1).numpy() @ gain
    expected = law.mean + torch.as_tensor(shift).view_as(v)
    condition = np.linalg.cond(matrix.numpy())
    assert_identity(denoise(ExactScore(law), v, t), expected, condition=condition)


@given(diffusion_steps, seeds)
def test_denoiser_of_any_score_is_tweedies_formula(t, seed):
    v, value = points(process(), 2, seed), points(process(), 2, seed + 1)
    recovered = alpha(t) * denoise(lambda *_: value, v, t)
    assert_identity(recovered, v + sigma(t) ** 2 * value)


@pytest.mark.parametrize("t", [10.0, 20.0])
def test_rounding_of_the_denoiser_grows_with_t(t):
    """As its docstring says: single precision loses about u e^{t/2}."""
    law = process(6, 2)
    v = points(law, 20)
    error = (denoise(ExactScore(law), v.float(), t) - denoise(ExactScore(law), v, t)).abs().max()
    size = torch.finfo(torch.float32).eps / 2 * math.exp(t / 2)
    assert size / 10 < error < 10 * size


def test_no_denoiser_does_better_than_the_exact_one():
    """Mean square error = tr Cov[x | v]; residuals are uncorrelated with the observation."""
    law, t, n = process(seq_len=4, dim=2, seed=3), 0.7, 20_000
    generator = seeded(0)
    x = law.sample(n, generator, torch.float64)
    v, _ = perturb(x, t, generator)
    residual = (denoise(ExactScore(law), v, t) - x).flatten(1)
    posterior = torch.linalg.inv(
        torch.linalg.inv(law.covariance()) + (alpha(t) / sigma(t)) ** 2 * torch.eye(8)
    )
    squares = (residual**2).sum(1)
    assert_statistical(squares.mean(), posterior.trace(), squares.std() / n**0.5, n)
    products = residual[:, :, None] * (v - alpha(t) * law.mean).flatten(1)[:, None]
    assert_statistical(products.mean(0), torch.zeros(8, 8), products.std(0) / n**0.5, n)


# ---- bad input --------------------------------------------------------------------------------

V = torch.zeros(3, 5, 3)
BAD_INPUT = {
    "zero": (V, 0.0, "must be finite and > 0, got 0.0"),
    "negative": (V, -1.0, "must be finite and > 0, got -1.0"),
    "nan": (V, math.nan, "must be finite and > 0, got nan"),
    "infinite": (V, torch.tensor([0.1, math.inf, 1.0]), "must be finite and > 0, got inf"),
    "too few": (V, torch.ones(2), r"t must be a number or have shape \(3,\), got \(2,\)"),
    "no batch": (V[0], 0.5, r"v must have shape \(batch, .*got \(5, 3\)"),
    "integers": (V.long(), 0.5, "floating-point tensor.*got a tensor of torch.int64"),
}


@pytest.mark.parametrize(("v", "t", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_of_the_denoiser_says_what_was_given_and_what_is_expected(v, t, message):
    with pytest.raises(ValueError, match=message):
        denoise(lambda *_: V, v, t)
