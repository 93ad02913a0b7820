"""Maps between frames: measures beside loops and numpy, Jacobians beside the exact one."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, covariance, diffusion_steps, process, processes, seeded, seeds
from tolerances import assert_float32, assert_identity

from gptheory.data import PowerExponential, gram
from gptheory.diffusion import ExactScore, alpha, denoise, denoiser, sigma
from gptheory.networks import DiT
from gptheory.probing import maps


def random_maps(heads: int = 3, n: int = 7, seed: int = 0) -> torch.Tensor:
    """Row-stochastic, float64."""
    logits = torch.randn(heads, n, n, generator=seeded(seed), dtype=torch.float64)
    return (2 * logits).softmax(dim=-1)


# ---- the denoising operator -----------------------------------------------------------------


@given(seeds, diffusion_steps)
def test_denoising_operator_is_the_posterior_mean_of_a_gaussian(seed, t):
    """E[x | v] = Cov(x, v) Cov(v)^-1 v, with the covariances of v = α x + σ z."""
    temporal = covariance(5, seed)
    noised = alpha(t) ** 2 * temporal + sigma(t) ** 2 * torch.eye(5)
    expected = alpha(t) * temporal @ torch.linalg.inv(noised)
    assert_identity(alpha(t) * denoiser.denoising_operator(temporal, t), expected, condition=100)


def test_denoising_operator_goes_from_the_kernel_to_the_identity():
    temporal = gram(PowerExponential(4.0), 16)
    assert (denoiser.denoising_operator(temporal, 20.0) - temporal).abs().max() < 1e-6
    assert (denoiser.denoising_operator(temporal, 1e-6) - torch.eye(16)).abs().max() < 1e-3
    reach = [maps.mean_lag(denoiser.denoising_operator(temporal, t)) for t in (2.0, 0.5, 0.1, 0.01)]
    assert all(later < earlier for earlier, later in pairwise(reach))


@pytest.mark.parametrize("t", [0.0, -1.0, math.nan])
def test_denoising_operator_refuses_steps_that_are_none(t):
    with pytest.raises(ValueError, match="diffusion step"):
        denoiser.denoising_operator(torch.eye(3), t)


def test_denoising_operator_refuses_what_is_no_covariance():
    with pytest.raises(ValueError, match=r"square covariance, got shape \(3, 4\)"):
        denoiser.denoising_operator(torch.zeros(3, 4), 0.1)


# ---- likeness -------------------------------------------------------------------------------


def test_correlation_is_that_of_numpy_off_the_diagonal():
    found, target = random_maps(), covariance(7)
    off = ~np.eye(7, dtype=bool)
    expected = [np.corrcoef(a.numpy()[off], target.numpy()[off])[0, 1] for a in found]
    assert_identity(maps.off_diagonal_correlation(found, target), expected, condition=10)
    changed = found + torch.diag(torch.arange(7.0))
    assert_identity(maps.off_diagonal_correlation(changed, target), expected, condition=10)


def test_correlation_with_a_uniform_map_is_zero():
    """Also where rounding leaves it nearly uniform only: exactly 0, by the floor inside."""
    uniform = torch.full((7, 7), 1 / 7, dtype=torch.float64)
    nearly = uniform * (1 + 1e-16 * torch.arange(7))
    single = uniform.float() * (1 + 2**-24 * torch.arange(7))
    for flat in (uniform, nearly, single):
        assert maps.off_diagonal_correlation(flat, covariance(7)) == 0
        assert maps.off_diagonal_correlation(covariance(7), flat) == 0
    both = torch.stack([covariance(7), uniform])
    assert (maps.off_diagonal_correlation(both, torch.eye(7)) == 0).all()


def test_explained_is_the_r2_of_least_squares():
    found, target = random_maps(), covariance(7)
    for diagonal in (True, False):
        keep = np.ones((7, 7), bool) if diagonal else ~np.eye(7, dtype=bool)
        design = np.stack([np.ones(keep.sum()), *(a.numpy()[keep] for a in found)], axis=1)
        w = target.numpy()[keep]
        rest = w - design @ np.linalg.lstsq(design, w, rcond=None)[0]
        expected = 1 - rest @ rest / ((w - w.mean()) @ (w - w.mean()))
        assert_identity(maps.explained(target, found, diagonal), expected, condition=100)


def test_explained_is_one_for_a_combination_of_heads_even_of_equal_ones():
    found = random_maps()
    target = 2 + 3 * found[0] - found[2]
    twice = torch.cat([found, found[:1]])
    assert abs(maps.explained(target, twice) - 1) < 1e-9
    lifted = target + torch.diag(torch.arange(7.0))
    assert abs(maps.explained(lifted, twice, diagonal=False) - 1) < 1e-9
    assert maps.explained(lifted, twice) < 0.9


# ---- reach and contrast ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 7, 32])
def test_uniform_attention_reaches_a_third_and_has_no_contrast(n):
    uniform = torch.full((2, n, n), 1 / n, dtype=torch.float64)
    assert_identity(maps.mean_lag(uniform), [(n * n - 1) / (3 * n)] * 2)
    assert maps.contrast(uniform).abs().max() < 1e-12
    assert_identity(maps.contrast(torch.eye(n).double()), 1.0)
    assert maps.mean_lag(torch.eye(n)) == 0


def test_mean_lag_and_contrast_are_their_formulas():
    found = random_maps()
    for a, lag, clear in zip(found, maps.mean_lag(found), maps.contrast(found), strict=True):
        rows = a.numpy()
        expected = sum(rows[i, j] * abs(i - j) for i in range(7) for j in range(7)) / rows.sum()
        assert_identity(lag, expected)
        entropies = [-sum(p * math.log(p) for p in row) for row in rows]
        assert_identity(clear, np.mean([1 - h / math.log(7) for h in entropies]))


def test_contrast_does_not_depend_on_the_scale_of_rows():
    found = random_maps()
    scaled = found * torch.arange(1.0, 8.0)[:, None]
    assert_identity(maps.contrast(scaled), maps.contrast(found))


def test_lag_profile_is_an_average_along_diagonals():
    a = torch.arange(9.0).reshape(3, 3)
    assert maps.lag_profile(a).tolist() == [6, (3 + 7) / 2, 4, (1 + 5) / 2, 2]
    ahead = torch.zeros(5, 5).diagonal_scatter(torch.ones(3), 2)  # frame i reads frame i + 2
    assert maps.lag_profile(ahead)[None].nonzero()[:, 1].tolist() == [5 - 1 + 2]


# ---- Jacobians ------------------------------------------------------------------------------


@given(processes, st.sampled_from([0.05, 0.5, 2.0]))
def test_jacobian_of_the_exact_score_is_exact(law, t):
    v = torch.randn(2, law.seq_len, law.dim, generator=seeded(0), dtype=torch.float64)
    found = denoiser.denoiser_jacobian(ExactScore(law), v, t)
    expected = denoiser.exact_jacobian(law, t)
    assert_identity(found, expected.expand_as(found), condition=100)


def test_exact_jacobian_moves_the_denoiser():
    """x̂(v) − x̂(v') = J (v − v'), for a process with a mean."""
    law, t = process(), 0.3
    v = torch.randn(2, 5, 3, generator=seeded(0), dtype=torch.float64)
    clean = denoise(ExactScore(law), v, t)
    moved = denoiser.exact_jacobian(law, t) @ (v[0] - v[1]).flatten()
    assert_identity(clean[0] - clean[1], moved.view(5, 3), condition=10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jacobian_of_a_network_in_pieces_is_that_of_autograd(monkeypatch, dtype, device):
    model = DiT(2, 4, hidden=16, heads=2, depth=1, generator=seeded(0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(1)))
    model = model.to(device, dtype)
    v = torch.randn(2, 4, 2, generator=seeded(2)).to(device, dtype)
    monkeypatch.setattr(denoiser, "JACOBIAN_TOKENS", 3 * 4)  # eight rows, three at a time
    found = denoiser.denoiser_jacobian(model, v, 0.2)
    assert (found.dtype, found.device.type) == (dtype, device) and not found.requires_grad
    close = assert_identity if dtype == torch.float64 else assert_float32
    for point, jacobian in zip(v, found, strict=True):
        expected = torch.autograd.functional.jacobian(
            lambda x: denoise(model, x[None], 0.2)[0].flatten(), point
        )
        close(jacobian, expected.flatten(1))


def test_jacobian_needs_no_gradients_around_it():
    law, v = process(4, 2), torch.randn(2, 4, 2, generator=seeded(0), dtype=torch.float64)
    with torch.no_grad():
        found = denoiser.denoiser_jacobian(ExactScore(law), v, 0.2)
    assert_identity(found[0], denoiser.exact_jacobian(law, 0.2))


def test_jacobian_refuses_what_is_no_sequence():
    with pytest.raises(ValueError, match="v must have shape"):
        denoiser.denoiser_jacobian(ExactScore(process()), torch.zeros(5, 3), 0.1)
