"""The Wiener filter, and the iteration whose step sizes are learned."""

from __future__ import annotations

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_float32, assert_identity

from gptheory.diffusion import alpha, sigma
from gptheory.kernels import PowerExponential, random_covariance
from gptheory.metrics import path_kl
from gptheory.process import GaussianProcess
from gptheory.score import ExactScore
from gptheory.structured import LearnedSteps, WienerScore
from gptheory.train import TrainConfig, fit
from gptheory.unroll import UnrolledScore

STEPS = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)


def dense(law: GaussianProcess, t: float, temporal: torch.Tensor | None = None) -> torch.Tensor:
    temporal = law.gram() if temporal is None else temporal
    size = law.mean.numel()
    clean = torch.kron(temporal, law.spatial)
    return alpha(t) ** 2 * clean + sigma(t) ** 2 * torch.eye(size, dtype=torch.float64)


# ---- the Wiener filter --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 40])  # fewer than coordinates, and more
def test_wiener_filter_solves_with_the_sample_covariance(n):
    x = process(4, 2).sample(n, seeded(0), torch.float64)
    v = torch.randn(3, 4, 2, generator=seeded(1), dtype=torch.float64)
    flat = x.flatten(1)
    centred = flat - flat.mean(0)
    covariance = centred.T @ centred / n
    scores = WienerScore(x)(v, STEPS)
    for row, t in enumerate(STEPS.tolist()):
        matrix = alpha(t) ** 2 * covariance + sigma(t) ** 2 * torch.eye(8, dtype=torch.float64)
        expected = -torch.linalg.solve(matrix, v[row].flatten() - alpha(t) * flat.mean(0))
        assert_identity(scores[row].flatten(), expected, condition=1e3)
    assert WienerScore(x)(v.float(), 0.1).dtype == torch.float32


def test_wiener_filter_tends_to_the_exact_score():
    law = process(3, 2)
    x = law.sample(40_000, seeded(0))
    errors = [path_kl(WienerScore(x[:n]), law, generator=seeded(1)) for n in (400, 4000, 40_000)]
    print(errors)
    # D(D + 3) / 4n per D coordinates is the divergence of the estimated Gaussian
    for error, n in zip(errors, (400, 4000, 40_000), strict=True):
        assert 0.2 < error / ((6 + 3) / (4 * n)) < 3
    assert errors[2] < errors[1] / 4 < errors[0] / 16


def test_wiener_filter_refuses_bad_data():
    with pytest.raises(ValueError, match="at least 2 sequences, got 1"):
        WienerScore(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="finite"):
        WienerScore(torch.full((3, 4, 2), torch.nan))
    score = WienerScore(torch.randn(5, 4, 2, generator=seeded(0)))
    with pytest.raises(ValueError, match="shape"):
        score(torch.zeros(2, 8, 1), 0.1)


# ---- learned step sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("bandwidth", [None, 2])
def test_learned_iteration_is_the_loop_it_claims_to_be(momentum, bandwidth):
    law = process(4, 2, low=0.5)
    taper = None if bandwidth is None else "bohman"
    model = LearnedSteps(law, 3, bandwidth, taper, momentum, seeded(0)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=seeded(1), dtype=torch.float64))
    v = torch.randn(3, 4, 2, generator=seeded(2), dtype=torch.float64)
    scores = model(v, STEPS)
    coefficients = model.coefficients(STEPS)
    assert len(coefficients) == 3
    for row, t in enumerate(STEPS.tolist()):
        matrix = dense(law, t, model.base.banded)
        residual = v[row].flatten() - alpha(t) * law.mean.flatten()
        s = before = torch.zeros(8, dtype=torch.float64)
        for sizes, momenta in coefficients:
            gradient = matrix @ s + residual
            s, before = s - sizes[row] * gradient + momenta[row] * (s - before), s
        assert_identity(scores[row].flatten(), s, condition=1e2)
        assert_identity(model(v[[row]], t)[0].flatten(), s, condition=1e2)
        assert (momenta[row] != 0) == momentum


def test_equal_steps_are_gradient_descent():
    law = process(4, 2)
    model = LearnedSteps(law, 5, generator=seeded(0))
    with torch.no_grad():
        model.readout.bias.zero_()
    v = torch.randn(3, 4, 2, generator=seeded(2), dtype=torch.float64)
    assert_float32(model(v, STEPS), UnrolledScore(law, 5)(v, STEPS))


def test_learned_steps_beat_gradient_descent():
    """The bar at K = 8 is .004 after 800 steps; here K = 4 and 200 steps."""
    law = GaussianProcess(PowerExponential(2.0), random_covariance(2), seq_len=8)
    model = LearnedSteps(law, 4, generator=seeded(0))
    config = TrainConfig(steps=200, batch_size=64, learning_rate=1e-2)
    model = fit(model, law, config).model
    learned, descent, chebyshev = (
        path_kl(score, law, generator=seeded(1))
        for score in (model, UnrolledScore(law, 4), UnrolledScore(law, 4, method="chebyshev"))
    )
    print(f"learned {learned:.4f}, gradient descent {descent:.4f}, Chebyshev {chebyshev:.4f}")
    assert learned < descent / 4 and learned < chebyshev
    assert path_kl(ExactScore(law), law) < learned


def test_learned_steps_refuse_what_the_iteration_refuses():
    with pytest.raises(ValueError, match="steps"):
        LearnedSteps(process(4, 2), 0)
    with pytest.raises(ValueError, match="bandwidth"):
        LearnedSteps(process(4, 2), 2, bandwidth=5)
    with pytest.raises(ValueError, match="shape"):
        LearnedSteps(process(4, 2), 2)(torch.zeros(1, 5, 2), 0.1)
