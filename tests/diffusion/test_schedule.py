"""The forward process: levels, noising, and the stochastic equation they solve."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, diffusion_steps, process, seeded
from tolerances import (
    assert_float32,
    assert_identity,
    assert_statistical,
    covariance_standard_error,
)

from gptheory.data import GaussianTwin, decaying_process, random_mixture
from gptheory.diffusion import alpha, perturb, sigma
from gptheory.diffusion.schedule import half_log_snr, levels
from gptheory.latent import LatentScore, SubspaceData, random_basis
from gptheory.networks import DiT
from gptheory.studies.finetune import randomise, shake

steps = st.floats(1e-6, 50.0)


def as_tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.statement("FDGWC Forward process")
@given(steps)
def test_levels_are_variance_preserving(t):
    assert_identity(alpha(t) ** 2 + sigma(t) ** 2, 1.0)
    assert_identity(alpha(t), math.exp(-t / 2))


@given(steps)
def test_numbers_and_tensors_agree(t):
    for level in (alpha, sigma, half_log_snr):
        assert isinstance(level(t), float)
        assert_identity(level(as_tensor(t)), level(t))
    assert_identity(half_log_snr(t), math.log(alpha(t)) - math.log(sigma(t)), condition=1e2)


@pytest.mark.statement("FDGWC Forward process")
@given(diffusion_steps)
def test_levels_solve_the_moment_equations_of_the_forward_process(t):
    """dx = −x/2 dt + dw has d mean/dt = −mean/2 and d variance/dt = 1 − variance."""
    step = as_tensor(t).requires_grad_()
    (slope,) = torch.autograd.grad(alpha(step), step)
    assert_identity(slope, -alpha(t) / 2)
    (slope,) = torch.autograd.grad(sigma(step) ** 2, step)
    assert_identity(slope, 1 - sigma(t) ** 2)


@pytest.mark.statement("FDGWC Forward process")
@given(diffusion_steps, diffusion_steps)
def test_noising_twice_is_noising_longer(s, t):
    assert_identity(alpha(s) * alpha(t), alpha(s + t))
    assert_identity((alpha(t) * sigma(s)) ** 2 + sigma(t) ** 2, sigma(s + t) ** 2)


def test_small_steps_do_not_cancel():
    assert sigma(1e-18) == pytest.approx(1e-9, rel=1e-12)
    assert sigma(as_tensor(1e-18)).item() == pytest.approx(1e-9, rel=1e-12)
    assert half_log_snr(1e-18) == pytest.approx(9 * math.log(10), rel=1e-12)


def test_float64_steps_keep_their_accuracy_beside_float32_sequences():
    t = torch.logspace(-9, 1, 200, dtype=torch.float64)
    signal, noise = levels(t, torch.zeros(200, 3, 4))
    assert (signal.shape, signal.dtype) == ((200, 1, 1), torch.float32)
    assert torch.equal(signal.flatten(), alpha(t).float())  # rounded once, at the end
    assert torch.equal(noise.flatten(), sigma(t).float())


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.full((4,), 0.3)])
def test_every_form_of_one_step_means_the_same(t):
    x = process().sample(4, seeded(0))
    v, noise = perturb(x, t, seeded(1))
    assert_float32(v, alpha(0.3) * x.double() + sigma(0.3) * noise.double())


@pytest.mark.statement("FDGWC Forward process")
def test_perturbed_sequences_have_the_moments_of_the_forward_process():
    law, n = process(seq_len=3, dim=2, seed=4), 40_000
    t = torch.tensor([0.05, 2.0]).repeat(n // 2)  # one step a sequence
    generator = seeded(0)
    v, noise = perturb(law.sample(n, generator, torch.float64), t, generator)
    assert_statistical(noise.mean(0), torch.zeros(3, 2), n**-0.5, n)
    for which, step in enumerate((0.05, 2.0)):
        group = v[which::2].flatten(1) - alpha(step) * law.mean.flatten()
        truth = alpha(step) ** 2 * law.covariance() + sigma(step) ** 2 * torch.eye(6)
        half = n // 2
        assert_statistical(group.mean(0), torch.zeros(6), (truth.diagonal() / half).sqrt(), half)
        error = covariance_standard_error(truth, half)
        assert_statistical(group.T @ group / half, truth, error, half)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 3])
def test_perturb_keeps_shape_dtype_and_device(device, dtype, n):
    x = torch.zeros(n, 4, 2, dtype=dtype, device=device)
    for t in (0.5, torch.full((n,), 0.5, device=device)):
        for result in perturb(x, t, seeded(0)):
            assert (result.shape, result.dtype, result.device) == (x.shape, dtype, x.device)


def test_perturb_is_reproducible_and_leaves_global_randomness_alone():
    x, state = torch.zeros(2, 3, 4), torch.random.get_rng_state()
    draws = [perturb(x, 0.5, seeded(seed))[1] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.random.get_rng_state(), state)


class Foreign:
    """Stands for a generator on a device that is not the CPU."""

    device = torch.device("meta")


DRAWS = {
    "perturb": lambda g: perturb(torch.zeros(2, 3, 1), 0.5, g),
    "subspace": lambda g: SubspaceData(torch.eye(3), decaying_process(1, 3), 0.1).sample(2, g),
    "encoder": lambda g: LatentScore(4, 2, DiT(2, 1, 8, 1), g),
    "basis": lambda g: random_basis(4, 2, g),
    "mixture": lambda g: random_mixture(1, 2, generator=g),
    "random weights": lambda g: randomise(torch.nn.Linear(2, 2), g),
    "shaken weights": lambda g: shake(torch.nn.Linear(2, 2), ("weight",), 0.1, g),
    "twin": lambda g: GaussianTwin(torch.eye(3)[..., None]).sample(2, g),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_noise_is_drawn_on_the_device_of_the_generator(draw, monkeypatch):
    """torch refuses a generator of another device than the one that it is told to draw on."""
    devices, randn = [], torch.randn

    def spy(*shape, generator=None, device=None, **options):
        devices.append(device)
        return randn(*shape, **options)

    monkeypatch.setattr(torch, "randn", spy)
    draw(Foreign())
    assert devices and all(device == Foreign.device for device in devices)


X = torch.zeros(3, 4, 2)
BAD_INPUT = {
    "zero": (X, 0.0, "must be finite and > 0, got 0.0"),
    "negative": (X, -0.1, "must be finite and > 0, got -0.1"),
    "nan": (X, math.nan, "must be finite and > 0, got nan"),
    "infinite": (X, math.inf, "must be finite and > 0, got inf"),
    "one of several": (X, torch.tensor([0.1, 0.0, 1.0]), "must be finite and > 0, got 0.0"),
    "too few": (X, torch.ones(2), r"t must be a number or have shape \(3,\), got \(2,\)"),
    "a column": (X, torch.ones(3, 1), r"t must be a number or have shape \(3,\), got \(3, 1\)"),
    "no batch": (X[0], 0.5, r"x must have shape \(batch, seq_len, dim\), got \(4, 2\)"),
    "integers": (X.long(), 0.5, "floating-point tensor.*got a tensor of torch.int64"),
}


@pytest.mark.parametrize(("x", "t", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(x, t, message):
    with pytest.raises(ValueError, match=message):
        perturb(x, t)
