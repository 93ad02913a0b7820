"""Lemmas F.7 and F.9 with constants: what an encoder costs, what steps leave off the subspace."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import covariance, seeded, seeds
from tolerances import assert_at_most, assert_identity, assert_statistical

from gptheory.data import random_mixture
from gptheory.diffusion import ExactScore, perturb, sigma, stratified_steps
from gptheory.latent import (
    SubspaceData,
    encoder_error,
    error_scale,
    orthogonal_variance,
    random_basis,
    recovery_bound,
    subspace_error,
)

WHITE = torch.eye(3, dtype=torch.float64)


def tilted(basis: torch.Tensor, angle: float, seed: int = 0) -> torch.Tensor:
    """The basis, its vectors rotated, each then turned by one angle out of the subspace."""
    ambient_dim, latent_dim = basis.shape
    turned = basis @ random_basis(latent_dim, latent_dim, seeded(seed))
    free = torch.randn(ambient_dim, latent_dim, generator=seeded(seed + 1), dtype=torch.float64)
    outside = torch.linalg.qr(free - basis @ (basis.T @ free)).Q
    return math.cos(angle) * turned + math.sin(angle) * outside


def simpson(values: torch.Tensor, length: float) -> torch.Tensor:
    """Integral of an odd number of values at equal distances."""
    ends, odd, even = values[0] + values[-1], values[1:-1:2].sum(), values[2:-1:2].sum()
    return (ends + 4 * odd + 2 * even) * length / (3 * (len(values) - 1))


# ---- Lemma F.7 ----------------------------------------------------------------------------------


@pytest.mark.statement("HWLSL Lemma F.7")
@pytest.mark.parametrize("t_min", [0.002, 0.02, 0.3])
def test_white_latents_decouple_into_planes(t_min):
    """In the plane of an angle the error is an integral of a rational function; here by Simpson."""
    basis = random_basis(9, 3, seeded(0))
    for angle in (0.02, 0.3, 1.2):
        s2, c2, t_max, n = math.sin(angle) ** 2, math.cos(angle) ** 2, 8.0, 20_000
        x = torch.linspace(math.log(t_min), math.log(t_max), n + 1, dtype=torch.float64).exp()
        noise = -torch.expm1(-x)
        signal = 1 - noise
        f = x * signal**2 * s2 * (c2 + noise) / ((c2 + s2 * noise) * noise**2)
        plane = simpson(f, math.log(t_max / t_min))
        found = encoder_error(basis, tilted(basis, angle), WHITE, t_min, t_max)
        assert_identity(found, 3 * plane)
        first_order = 3 * s2 * (math.exp(-t_min) / math.expm1(t_min) - math.exp(-2 * t_max))
        if angle == 0.02:  # the next order is relative s², 4e-4
            assert abs(found / first_order - 1) < 2 * s2


@pytest.mark.statement("HWLSL Lemma F.7")
def test_the_constant_of_white_latents():
    r"""‖WWᵀ − BBᵀ‖²/(ε T₀) is 2e^{T₀}(e^{T₀} − 1)/T₀: 2.006 and 2.061, whatever the angle."""
    basis = random_basis(12, 3, seeded(0))
    for (t_min, constant), angle in itertools.product([(0.002, 2.006), (0.02, 2.061)], [0.02, 0.3]):
        encoder = tilted(basis, angle)
        ratio = subspace_error(encoder, basis) / encoder_error(basis, encoder, WHITE, t_min)
        assert ratio / t_min == pytest.approx(constant, rel=2e-3)
        exact = 2 * math.exp(t_min) * math.expm1(t_min)
        assert abs(ratio / exact - 1) <= 1.1 * t_min * math.sin(angle) ** 2 + math.exp(-8.0)


@given(seeds, st.floats(0.003, 1.0), st.floats(0.05, 1.5))
def test_encoder_error_is_that_of_a_regression_in_the_ambient_space(seed, t_min, angle):
    """At every step the best f regresses Wᵀ(v + σ²s) on Wᵀv, with D x D covariances."""
    basis, latent = random_basis(7, 3, seeded(seed)), covariance(3, seed)
    encoder, eye = tilted(basis, angle, seed), torch.eye(7, dtype=torch.float64)
    nodes = torch.linspace(math.log(t_min), math.log(6.0), 2001, dtype=torch.float64).exp()
    noise = -torch.expm1(-nodes)[:, None, None]
    noised = (1 - noise) * basis @ latent @ basis.T + noise * eye
    target = eye - noise * torch.linalg.inv(noised)
    within = encoder.T @ noised @ encoder
    best = encoder.T @ target @ noised @ encoder @ torch.linalg.inv(within)
    wrong = (encoder @ best @ encoder.T - target) / noise
    squares = (wrong @ noised @ wrong.mT).diagonal(dim1=1, dim2=2).sum(dim=1)
    found = encoder_error(basis, encoder, latent, t_min, 6.0)
    assert_identity(found, simpson(nodes * squares, math.log(6.0 / t_min)), condition=100)


@pytest.mark.statement("HWLSL Lemma F.7", "HWLSL Corollary 3.2.1")
@given(seeds, st.floats(0.002, 0.5), st.floats(0.01, 1.5))
def test_no_encoder_beats_the_bound(seed, t_min, angle):
    latent, basis = covariance(3, seed), random_basis(8, 3, seeded(seed))
    smallest = torch.linalg.eigvalsh(latent)[0].item()
    assume(math.expm1(t_min) < 0.99 * smallest)
    encoder = tilted(basis, angle, seed)
    t_max = math.log1p(smallest) + 0.1  # the horizon that the proof asks for
    error = encoder_error(basis, encoder, latent, t_min, max(t_max, 2 * t_min))
    assert_at_most(subspace_error(encoder, basis), recovery_bound(error, smallest, t_min))


@pytest.mark.statement("HWLSL Lemma F.7")
@pytest.mark.parametrize("smallest", [0.04, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("t_min", [0.002, 0.02])
def test_the_bound_is_the_integral_of_its_proof(smallest, t_min):
    """Half of what 1 is divided by: (α²c₀ − σ²)/σ⁴ integrated while it is positive, by Simpson."""
    length = math.log(math.log1p(smallest) / t_min)
    t = t_min * torch.linspace(0, length, 20_001, dtype=torch.float64).exp()
    noise = -torch.expm1(-t)
    integral = simpson(t * ((1 - noise) * smallest - noise) / noise**2, length)
    assert_identity(recovery_bound(1.0, smallest, t_min), 2 / integral)


@pytest.mark.statement("HWLSL Lemma F.7")
def test_the_bound_is_sharp_for_a_tilt_of_the_flattest_direction():
    """As T₀ falls below c₀ the two meet, for a covariance that is not white, too."""
    latent = torch.tensor([0.05, 1.0, 2.0], dtype=torch.float64).diag()
    basis = torch.eye(8, 3, dtype=torch.float64)
    encoder = basis.clone()
    encoder[0, 0], encoder[7, 0] = math.cos(0.1), math.sin(0.1)
    over = []
    for t_min in (1e-3, 1e-4, 1e-5):
        bound = recovery_bound(encoder_error(basis, encoder, latent, t_min), 0.05, t_min)
        over.append(bound / subspace_error(encoder, basis))
    assert over == sorted(over, reverse=True) and 1 < over[-1] < 1.003 < 1.05 < over[0]


@pytest.mark.statement("HWLSL Lemma F.7")
def test_the_bound_holds_for_a_law_that_is_not_gaussian():
    """A mixture, the encoder tilted, inside it the exact latent score; an error by Monte Carlo."""
    law = random_mixture(2, 2, generator=seeded(1))
    own, n = SubspaceData(random_basis(9, 4, seeded(2)), law), 4096
    encoder = tilted(own.basis, 0.2)
    turn = torch.linalg.svd(own.basis.T @ encoder)
    turn = turn.U @ turn.Vh
    t = stratified_steps(n, 0.02, 4.0, seeded(3)).double()
    v, _ = perturb(own.sample(n, seeded(4), torch.float64), t, seeded(5))
    latent = v @ encoder @ turn.T
    inside = ExactScore(law)(latent.view(n, 2, 2), t).view(n, 1, 4)
    pull = (latent @ turn @ encoder.T - v) / (sigma(t) ** 2)[:, None, None]
    wrong = inside @ turn @ encoder.T + pull - ExactScore(own)(v, t)
    squares = (sigma(t) ** 2 * wrong.square().sum(dim=(1, 2))) * error_scale()
    low = (squares.mean() - 5 * squares.std() / math.sqrt(n)).item()
    moment = law.covariance() + torch.outer(*2 * [law.weights @ law.means])
    smallest = torch.linalg.eigvalsh(moment)[0].item()
    assert subspace_error(encoder, own.basis) < recovery_bound(low, smallest, 0.02)


# ---- Lemma F.9 ----------------------------------------------------------------------------------


SETTINGS = list(
    itertools.product((0.001, 0.005, 0.02, 0.1, 0.5), (0.001, 0.005, 0.02, 0.1, 0.5), (2, 4, 8))
)


def in_steps(t_min: float, length: float, t_max: float, **options) -> float:
    """With steps of a given length, as many as reach t_max."""
    steps = math.ceil((t_max - t_min) / length)
    return orthogonal_variance(t_min, t_min + steps * length, steps, **options)


@pytest.mark.statement("HWLSL Lemma F.9")
def test_the_bound_of_the_lemma_and_a_sharper_one():
    assert len(SETTINGS) == 75
    over = [in_steps(*each) / (each[0] + each[1]) for each in SETTINGS]
    assert 0.36 < max(over) / math.e < 0.37 and max(over) <= 1
    frozen = [in_steps(*each, exponential=True) / (each[0] + each[1]) for each in SETTINGS]
    assert 1 < max(frozen) < 0.5 * math.e


@pytest.mark.statement("HWLSL Lemma F.9", "HWLSL Corollary 3.2.1")
@given(st.floats(1e-4, 1.0), st.floats(0.003, 1.0), st.floats(1.0, 8.0))
def test_between_the_step_and_the_step_plus_the_stop(t_min, length, t_max):
    assume(length * (t_min + length) ** 2 <= 24 * t_min and t_min < 0.99 * t_max)
    found = in_steps(t_min, length, t_max)
    assert_at_most(length, found)
    assert_at_most(found, t_min + length)


@pytest.mark.statement("HWLSL Lemma F.9")
def test_a_stop_far_below_the_step_gains_nothing():
    ratios = [in_steps(t_min, 0.1, 8.0) / t_min for t_min in (0.02, 0.005, 0.001)]
    assert [round(each) for each in ratios] == [5, 20, 100]


@pytest.mark.parametrize("exponential", [False, True])
def test_many_small_steps_are_the_exact_process(exponential):
    """First order in the step: the error halves with it."""
    errors = [
        orthogonal_variance(0.1, 8.0, steps, exponential) - sigma(0.1) ** 2
        for steps in (4_000, 8_000, 16_000)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    assert 0 < errors[2] < 7.9 / 16_000  # below one step, as V <= T₀ + μ makes one expect


@pytest.mark.parametrize("exponential", [False, True])
def test_variance_of_simulated_chains(exponential):
    """Ten steps of 2e5 chains; with a frozen score, each step's linear equation solved exactly."""
    n, steps, generator = 200_000, 10, seeded(0)
    length, y = 0.2, torch.randn(n, generator=generator, dtype=torch.float64)
    for k in range(steps, 0, -1):
        score = -y / sigma(0.1 + k * length) ** 2
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        if exponential:  # dY = (Y/2 + score) dt + dB: mean Y + (e^{μ/2} − 1)(Y + 2 score)
            y = y + math.expm1(length / 2) * (y + 2 * score) + math.sqrt(math.expm1(length)) * z
        else:
            y = y + length * (y / 2 + score) + math.sqrt(length) * z
    found = orthogonal_variance(0.1, 2.1, steps, exponential)
    assert_statistical(y.square().mean(), found, found * math.sqrt(2 / n), n)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: encoder_error(torch.eye(4, 2), torch.eye(4, 3), torch.eye(2)), r"\(4, 2\) and"),
        (lambda: encoder_error(torch.eye(4, 2), 2 * torch.eye(4, 2), torch.eye(2)), "encoder must"),
        (lambda: encoder_error(torch.eye(4, 2), torch.eye(4, 2), torch.eye(3)), "must be 2 x 2"),
        (lambda: encoder_error(*2 * [torch.eye(4, 2)], torch.eye(2), 2.0, 1.0), "t_min"),
        (lambda: recovery_bound(0.0, 1.0, 0.1), "error must be"),
        (lambda: recovery_bound(1.0, -1.0, 0.1), "smallest must be"),
        (lambda: recovery_bound(1.0, 0.25, 0.3), r"below log\(1 \+ c0\) = 0.223, got 0.3"),
        (lambda: orthogonal_variance(0.1, 8.0, 0), "steps"),
        (lambda: orthogonal_variance(8.0, 0.1, 4), "t_min"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
