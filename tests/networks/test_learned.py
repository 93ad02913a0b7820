"""The Wiener filter, and the iteration whose step sizes are learned."""

from __future__ import annotations

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_float32, assert_identity

from gptheory.data import (
    GaussianProcess,
    PowerExponential,
    decaying_process,
    gram,
    kronecker_mle,
    random_covariance,
    toeplitz_moments,
)
from gptheory.data import estimate as data_estimate
from gptheory.diffusion import ExactScore, UnrolledScore, WienerScore, alpha, sigma
from gptheory.measures import path_kl, relative_error
from gptheory.networks import LearnedSteps
from gptheory.networks.learned import LearnedCovariance
from gptheory.training import TrainConfig, fit

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


# ---- estimators that know the structure ---------------------------------------------------------


def test_kronecker_estimate_is_a_maximum_of_the_likelihood():
    """No small change of either factor, nor of the mean, is more likely."""
    x = process(4, 3).sample(20, seeded(0), torch.float64)
    law = kronecker_mle(x)
    best = law.log_prob(x).sum()
    for seed in range(20):
        noise = torch.randn(4, 4, generator=seeded(seed), dtype=torch.float64)
        temporal = law.gram() + 0.01 * (noise + noise.T)
        assert GaussianProcess(temporal, law.spatial, law.mean).log_prob(x).sum() < best
        noise = torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64)
        spatial = law.spatial + 0.01 * (noise + noise.T)
        assert GaussianProcess(law.gram(), spatial, law.mean).log_prob(x).sum() < best
        shifted = law.mean + 0.05 * torch.randn(4, 3, generator=seeded(seed), dtype=torch.float64)
        assert GaussianProcess(law.gram(), law.spatial, shifted).log_prob(x).sum() < best
    assert_identity(law.gram().trace(), 4.0)


@pytest.mark.parametrize(
    ("seq_len", "dim", "needed"),
    [(8, 2, 6), (2, 2, 4), (4, 2, 4), (2, 3, 3), (3, 8, 4), (3, 1, 4), (1, 3, 4), (1, 1, 2)],
)
def test_kronecker_estimate_needs_enough_sequences(seq_len, dim, needed):
    """From as many as are needed on, the flip-flop ends at the same law from either side."""
    x = torch.randn(needed, seq_len, dim, generator=seeded(0), dtype=torch.float64)
    if needed > 2:
        with pytest.raises(ValueError, match=rf"needs {needed} sequences, got {needed - 1}"):
            kronecker_mle(x[1:])
    law, mirrored = kronecker_mle(x), kronecker_mle(x.transpose(1, 2))
    other = torch.kron(mirrored.spatial, mirrored.gram())
    assert relative_error(other, law.covariance()) < 1e-5


def test_kronecker_estimate_of_one_coordinate_is_the_sample_covariance():
    x = torch.randn(4, 3, 1, generator=seeded(0), dtype=torch.float64)
    assert_identity(kronecker_mle(x).covariance(), x[..., 0].T.cov(correction=0), condition=1e3)


def test_kronecker_estimate_goes_on_until_it_converges(monkeypatch):
    """Few sequences make the flip-flop slow: here 100 turns were 1.5 % off."""
    x = torch.randn(6, 8, 2, generator=seeded(6), dtype=torch.float64)
    law, centred = kronecker_mle(x), x - x.mean(dim=0)
    own = torch.einsum("nid,de,nje->ij", centred, law.spatial.inverse(), centred) / (6 * 2)
    assert relative_error(own, law.gram()) < 1e-7  # a fixed point
    monkeypatch.setattr(data_estimate, "FLIP_FLOPS", 100)
    with pytest.warns(RuntimeWarning, match=r"not converged: its last turn of 100 changed"):
        assert relative_error(kronecker_mle(x).gram(), law.gram()) > 5e-3


FLAT = torch.randn(9, 4, 3, generator=seeded(0)) * torch.tensor([1.0, 1.0, 0.0]) + 0.1
EQUAL = torch.full((1000, 1, 1), 0.1, dtype=torch.float64)  # whose mean is rounded
BAD_SAMPLES = {
    "too few frames": (toeplitz_moments, torch.randn(2, 3, 8), "8 coordinates of x.* has rank 5"),
    "fewer still": (toeplitz_moments, torch.randn(2, 1, 4), "4 coordinates of x.* has rank 1"),
    "constant": (toeplitz_moments, torch.full((10, 3, 2), 0.1), "2 coordinates of x.* has rank 0"),
    "constant, d = 1": (toeplitz_moments, EQUAL, "rank 0"),
    "a constant coordinate": (toeplitz_moments, FLAT, "3 coordinates of x.* has rank 2"),
    "for Kronecker too": (kronecker_mle, FLAT, "3 coordinates of x.* has rank 2"),
    "a constant frame": (kronecker_mle, FLAT.transpose(1, 2), "3 frames of x.* has rank 2"),
    "all equal": (kronecker_mle, torch.ones(6, 2, 2), "2 frames of x.* has rank 0"),
    "all equal, d = 1": (kronecker_mle, EQUAL, "rank 0"),
}


@pytest.mark.parametrize(("estimate", "x", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_samples_without_a_covariance_are_refused(estimate, x, message):
    with pytest.raises(ValueError, match=message):
        estimate(x)


def test_toeplitz_moments_by_hand():
    x = process(5, 2).sample(30, seeded(0), torch.float64)
    law = toeplitz_moments(x)
    mean = x.mean(dim=(0, 1))
    frames = (x - mean).reshape(-1, 2)
    spatial = frames.T @ frames / len(frames)
    lags = []
    for m in range(5):
        pairs = [(x[:, i] - mean, x[:, i + m] - mean) for i in range(5 - m)]
        products = [(a @ torch.linalg.inv(spatial) * b).sum(dim=1) for a, b in pairs]
        lags.append(torch.stack(products).mean() / 2)
    expected = torch.stack([torch.stack([lags[abs(i - j)] for j in range(5)]) for i in range(5)])
    assert torch.linalg.eigvalsh(expected)[0] > 0  # nothing to clip here
    assert_identity(law.gram(), expected / lags[0])
    assert_identity(law.spatial, spatial)
    assert_identity(law.mean, mean.expand(5, 2))


def test_toeplitz_moments_clip_negative_eigenvalues():
    """Averages along diagonals need not be a covariance: here lag 2 has a correlation of 1.5."""
    path = torch.tensor([[1.0], [0.0], [1.0]])
    gamma = toeplitz_moments(torch.stack([path, -path])).gram()
    raw = torch.tensor([[1, 0, 1.5], [0, 1, 0], [1.5, 0, 1]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(raw)
    assert values[0] < 0
    assert_identity(gamma, (vectors * values.clamp(min=0)) @ vectors.T)


def test_the_more_structure_the_better():
    """The order of chapter 6: what an estimator knows, it need not learn."""
    law = decaying_process(8, 2, 2.0)
    divergences = []
    for estimate in (WienerScore, kronecker_mle, toeplitz_moments):
        runs = [estimate(law.sample(64, seeded(seed))) for seed in range(4)]
        scores = [run if isinstance(run, WienerScore) else ExactScore(run) for run in runs]
        errors = [path_kl(score, law, generator=seeded(9)) for score in scores]
        divergences.append(sum(errors) / len(errors))
    print(divergences)
    assert divergences[0] > 2 * divergences[1] > 4 * divergences[2]


@pytest.mark.parametrize("estimate", [kronecker_mle, toeplitz_moments])
def test_estimators_are_consistent(estimate):
    law = decaying_process(6, 2, 3.0)
    errors = []
    for n in (200, 20_000):
        found = estimate(law.sample(n, seeded(1), torch.float64))
        errors.append(relative_error(found.covariance(), law.covariance()))
    assert errors[1] < errors[0] / 3 and errors[1] < 0.02


# ---- the iteration with everything learned ------------------------------------------------------


@pytest.mark.parametrize("stationary", [True, False])
def test_learned_covariance_is_the_iteration_it_says(stationary):
    model = LearnedCovariance(2, 4, 3, stationary, generator=seeded(0)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=seeded(1), dtype=torch.float64))
    v = torch.randn(3, 4, 2, generator=seeded(2), dtype=torch.float64)
    scores = model(v, STEPS)
    temporal, spatial = model.temporal(), model.spatial()
    assert_identity(temporal.trace(), 4.0)
    assert torch.linalg.eigvalsh(temporal)[0] > -1e-12
    for row, t in enumerate(STEPS.tolist()):
        matrix = dense(GaussianProcess(temporal, spatial), t)
        residual = v[row].flatten() - alpha(t) * model.mean.expand(4, 2).flatten()
        scale = alpha(t) ** 2 * temporal.norm() * spatial.norm() + 2 * sigma(t) ** 2
        values = model.readout(model.clock(torch.tensor([t], dtype=torch.float64)))[0]
        s = before = torch.zeros(8, dtype=torch.float64)
        for size, momentum in zip(values[:3], values[3:], strict=True):
            step = 2 * size.exp() / scale * (matrix @ s + residual)
            s, before = s - step + momentum.sigmoid() * (s - before), s
        assert_identity(scores[row].flatten(), s, condition=1e2)
        assert_identity(model(v[[row]], t)[0].flatten(), s, condition=1e2)


def test_stationary_means_toeplitz():
    model = LearnedCovariance(2, 5, generator=seeded(0))
    with torch.no_grad():
        model.spectrum.copy_(torch.randn(11, generator=seeded(1)))
    gamma = model.temporal()
    for m in range(5):
        assert_float32(gamma.diagonal(m), gamma[0, m].expand(5 - m))
    assert_float32(gamma.diagonal(), torch.ones(5))


def test_every_weight_of_the_learned_covariance_matters():
    for stationary in (True, False):
        model = LearnedCovariance(2, 4, 3, stationary, generator=seeded(0))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(1)))
        model(torch.randn(3, 4, 2, generator=seeded(2)), STEPS).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_learned_covariance_finds_the_covariance():
    """From 256 sequences; the bar at its full budget (N = 16, n = 128) is measured in chapter 6."""
    law = decaying_process(8, 2, 2.0)
    config = TrainConfig(steps=250, batch_size=64, learning_rate=3e-2, evaluate_at=())
    model = fit(LearnedCovariance(2, 8, generator=seeded(0)), law.sample(256, seeded(1)), config)
    divergence = path_kl(model.model, law, generator=seeded(2))
    gap = relative_error(model.model.temporal(), gram(PowerExponential(2.0), 8))
    print(f"path KL {divergence:.4f}, Γ off by {gap:.3f}")
    assert divergence < 0.012 and gap < 0.2


def test_learned_covariance_refuses_bad_input():
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        LearnedCovariance(2, 4, 0)
