"""Densities by the flow beside densities in closed form; total variation beside what it is."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from strategies import covariance, process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import (
    GaussianMixture,
    GaussianProcess,
    GaussianTwin,
    decaying_process,
    random_mixture,
)
from gptheory.diffusion import ExactScore, WienerScore, alpha, perturb, sigma
from gptheory.latent import SubspaceData, random_basis
from gptheory.measures import (
    TotalVariation,
    gaussian_kl,
    gaussian_tv,
    log_likelihood,
    total_variation,
)
from gptheory.networks import DiT

F32, F64 = torch.float32, torch.float64
T0 = 0.005
MIXTURE = random_mixture(2, 2, 3, generator=seeded(1))
LAWS = {
    "process": process(4, 2),
    "mixture": MIXTURE,
    "on a subspace": SubspaceData(random_basis(6, 4, seeded(2)), MIXTURE),
    "near a subspace": SubspaceData(random_basis(6, 4, seeded(2)), MIXTURE, 0.3),
    "without memory": GaussianProcess(torch.eye(3), torch.eye(2)),
    "singular": GaussianProcess(torch.ones(3, 3), covariance(2)),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def noised_draws(law, n: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return perturb(law.sample(n, seeded(seed), dtype), T0, seeded(seed + 1))[0]


def density(law, v: torch.Tensor) -> torch.Tensor:
    return law.noised_log_prob(v.double(), alpha(T0), sigma(T0))


# ---- the flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
@every_law
def test_flow_of_the_exact_score_has_the_density_of_the_law(law, dtype):
    """The docstring's accuracy, where the flow begins with the law's own noised law."""
    v = noised_draws(law, 64, dtype=dtype)
    found = log_likelihood(ExactScore(law), v, start=law)
    assert found.shape == (64,) and found.dtype == F64
    assert (found - density(law, v)).abs().max() < 3e-3
    finer = log_likelihood(ExactScore(law), v, steps=48, start=law)
    assert (finer - density(law, v)).abs().max() < 2e-4
    assert log_likelihood(ExactScore(law), v[:0], steps=1).shape == (0,)


def test_flow_is_of_order_four():
    law = process(4, 2)
    v = noised_draws(law, 32)
    errors = [
        (log_likelihood(ExactScore(law), v, steps=steps, start=law) - density(law, v)).norm()
        for steps in (24, 48, 96)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([4, 4], abs=0.4)


def test_flow_has_the_density_of_its_score_not_of_the_data():
    law, other = process(4, 2, seed=1), process(4, 2, seed=2)
    v = noised_draws(law, 32)
    found = log_likelihood(ExactScore(other), v, steps=96, start=other)
    assert_identity(found, density(other, v), condition=1e4)


@pytest.mark.parametrize("t_max", [1.0, 3.0])
def test_flow_begins_with_white_noise(t_max):
    """A short horizon, so that it matters: the flow is linear and its law Gaussian."""
    law = GaussianProcess(torch.tensor([2.0, 0.3]).diag(), torch.eye(1), torch.ones(1))
    v = noised_draws(law, 16)
    c, mean = law.temporal.diagonal()[:, None], law.mean
    low, high = (alpha(t) ** 2 * c + sigma(t) ** 2 for t in (T0, t_max))
    stretch = (low / high).sqrt()
    normal = torch.distributions.Normal(alpha(T0) * mean - stretch * alpha(t_max) * mean, stretch)
    found = log_likelihood(ExactScore(law), v, t_max=t_max, steps=96)
    assert_identity(found, normal.log_prob(v).sum(dim=(1, 2)), condition=1e3)


# ---- Hutchinson ---------------------------------------------------------------------------------


def test_random_signs_estimate_the_divergence():
    law = process(3, 2)
    v, score = noised_draws(law, 1), ExactScore(law)
    exact, n = log_likelihood(score, v), 400
    many = log_likelihood(score, v.expand(n, -1, -1), probes=1, generator=seeded(3))
    assert many.std() > 0.1  # it is random
    assert_statistical(many.mean(), exact[0], many.std() / n**0.5, n)
    fewer = log_likelihood(score, v.expand(n, -1, -1), probes=16, generator=seeded(3))
    assert 3 < many.std() / fewer.std() < 5  # as the root of their number
    repeated = log_likelihood(score, v.expand(n, -1, -1), probes=1, generator=seeded(3))
    assert torch.equal(many, repeated)


def test_random_signs_are_exact_where_coordinates_do_not_mix():
    law = GaussianProcess(torch.tensor([2.0, 0.5]).diag(), torch.eye(2))
    v, score = noised_draws(law, 8), ExactScore(law)
    one = log_likelihood(score, v, probes=1, generator=seeded(0))
    assert_identity(one, log_likelihood(score, v))


# ---- memory, contexts, networks -----------------------------------------------------------------


@pytest.mark.parametrize("probes", [None, 2])
def test_density_does_not_depend_on_the_size_of_chunks(monkeypatch, probes):
    law, sizes, values = process(4, 2), set(), []
    v = noised_draws(law, 25)

    def seen(v, t):
        sizes.add(len(v))
        return ExactScore(law)(v, t)

    for chunk in (2**17, 80):
        monkeypatch.setattr("gptheory.measures.likelihood.CHUNK_VALUES", chunk)
        values.append(log_likelihood(seen, v, steps=6, probes=probes, generator=seeded(1)))
    assert sizes == {25, 10, 5}
    assert_identity(*values)


@pytest.mark.parametrize("inside", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_contexts_of_gradients_change_nothing(inside):
    """Bit for bit: the flow sets the mode of gradients itself, whatever holds around it."""
    law, network = process(4, 2), DiT(2, 4, 8, 2, 1, generator=seeded(0)).double()
    v = noised_draws(law, 5)
    plain = [log_likelihood(score, v, steps=3) for score in (ExactScore(law), network)]
    with inside():
        again = noised_draws(law, 5)
        found = [log_likelihood(score, again, steps=3) for score in (ExactScore(law), network)]
    assert all(torch.equal(*pair) for pair in zip(plain, found, strict=True))
    assert not any(each.requires_grad for each in found)
    assert all(p.grad is None for p in network.parameters())


def test_a_network_keeps_its_precision():
    law, network = process(4, 2), DiT(2, 4, 8, 2, 1, generator=seeded(0))
    found = total_variation(network, law, 8, steps=3, generator=seeded(1))
    assert 0 <= found.value <= 1 and found.kl > 0 and found.n == 8


# ---- total variation ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
@every_law
def test_control_the_exact_score_has_nearly_no_distance(law, dtype):
    found = total_variation(ExactScore(law), law, 256, generator=seeded(3), dtype=dtype)
    assert found.value <= 0.01 and abs(found.kl) <= 0.01


@pytest.mark.statement("FDGWC Theorem 2")
def test_control_at_the_size_of_the_chapter():
    law = decaying_process(16, 2, 8.0)
    found = total_variation(ExactScore(law), law, 256, generator=seeded(3))
    assert isinstance(found, TotalVariation) and found.value <= 5e-4 and found.n == 256


@pytest.mark.statement("FDGWC Theorem 2")
@pytest.mark.parametrize(("n", "stated"), [(128, 0.710), (1024, 0.271)])
def test_wiener_filter_is_as_far_as_two_gaussians(n, stated):
    """By the flow, and by the integral of two Gaussians; stated: another training set (issue)."""
    law = decaying_process(16, 2, 8.0)
    score = WienerScore(law.sample(n, seeded(0), F64))
    found = total_variation(score, law, 768, generator=seeded(1), dtype=F64)
    estimate, eye = score._exact.law, torch.eye(32, dtype=F64)
    p, q = (alpha(T0) ** 2 * each.covariance() + sigma(T0) ** 2 * eye for each in (law, estimate))
    shift = -alpha(T0) * estimate.mean.flatten()
    exact = gaussian_tv(p, q, shift)
    assert exact == pytest.approx(stated, abs=0.05)
    assert abs(found.value - exact) <= 2 * found.standard_error
    assert abs(found.kl - gaussian_kl(p, q, shift)) <= 2 * found.kl_error
    assert 0.005 < found.standard_error < 0.5 * 768**-0.5


OTHERS = {
    "mixture": (MIXTURE, random_mixture(2, 2, 3, generator=seeded(5))),
    "mixture of other weights": (
        MIXTURE,
        GaussianMixture(MIXTURE.means.view(3, 2, 2), 0.3 * torch.eye(4), torch.tensor([1, 2, 3])),
    ),
    "on a subspace": (
        LAWS["on a subspace"],
        SubspaceData(LAWS["on a subspace"].basis, random_mixture(2, 2, 3, generator=seeded(5))),
    ),
    "near a subspace": (
        LAWS["near a subspace"],
        SubspaceData(LAWS["near a subspace"].basis, MIXTURE, 0.4),
    ),
}


@pytest.mark.statement("HWLSL Corollary 3.2.1")
@pytest.mark.parametrize("pair", OTHERS.values(), ids=OTHERS)
def test_distance_of_two_known_laws(pair):
    """By the flow of q's score, and by 20 000 other draws with both densities in closed form."""
    p, q = pair
    found = total_variation(ExactScore(q), p, 768, generator=seeded(2), dtype=F64)
    v = noised_draws(p, 20_000, seed=7)
    missing = (1 - (density(q, v) - density(p, v)).exp()).clamp(min=0)
    error = math.hypot(found.standard_error, missing.std().item() / len(v) ** 0.5)
    assert found.value > 0.05
    assert abs(found.value - missing.mean().item()) <= 2 * error


def test_subspace_and_latent_law_are_as_far_apart():
    """What is off the subspace is alike: the distance is that of the latents."""
    p, q = OTHERS["on a subspace"]
    whole, latent = (
        total_variation(ExactScore(b), a, 512, generator=seeded(2), dtype=F64)
        for a, b in ((p, q), (p.latent, q.latent))
    )
    error = math.hypot(whole.standard_error, latent.standard_error)
    assert abs(whole.value - latent.value) <= 2 * error


# ---- what is refused ----------------------------------------------------------------------------


def test_bad_scores_are_refused():
    v = torch.zeros(3, 4, 2)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 2\), got \(3, 4\)"):
        log_likelihood(lambda v, t: v[..., 0], v)
    for constant in (lambda v, t: torch.ones_like(v), lambda v, t: v.detach()):
        with pytest.raises(ValueError, match="differentiable in v, got one without a gradient"):
            log_likelihood(constant, v)
    network = DiT(2, 4, 8, 2, 1, generator=seeded(0))
    with pytest.raises(ValueError, match="differentiable in v"):
        log_likelihood(lambda v, t: network(torch.zeros_like(v), t), v)
    with pytest.raises(FloatingPointError, match="check the score"):
        log_likelihood(lambda v, t: float("inf") * v, v)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"probes": 0}, "probes must be an integer >= 1, got 0"),
        ({"t_min": 2.0, "t_max": 1.0}, "expected t_min < t_max, got t_min=2.0, t_max=1.0"),
        ({"v": torch.zeros(4, 2)}, r"v must have shape \(batch, seq_len, dim\), got \(4, 2\)"),
    ],
)
def test_bad_arguments_of_a_likelihood_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(ExactScore(process(4, 2)), **{"v": torch.zeros(3, 4, 2)} | arguments)


def test_bad_arguments_of_a_distance_are_refused():
    law = process(4, 2)
    twin = GaussianTwin(law.sample(40, seeded(0)))
    with pytest.raises(ValueError, match="knows its noised_log_prob, got GaussianTwin"):
        total_variation(ExactScore(law), twin)
    with pytest.raises(ValueError, match="n must be an integer >= 2, got 1"):
        total_variation(ExactScore(law), law, 1)
    with pytest.raises(ValueError, match="expected t_min < t_max"):
        total_variation(ExactScore(law), law, 2, t_min=2.0, t_max=1.0)
