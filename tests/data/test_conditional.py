"""Laws of what is missing, against dense linear algebra, a Kalman smoother and the joint score."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import process, seeded, seeds
from tolerances import IDENTITY, assert_identity, assert_statistical, covariance_standard_error

from gptheory.attention.positions import embedding_distance
from gptheory.data import (
    PATTERNS,
    ConditionalEntries,
    ConditionalProcess,
    GaussianProcess,
    Matern,
    PowerExponential,
    conditioned,
    decaying_process,
    entries,
    gram,
    pattern,
    random_gaps,
    random_mixture,
)
from gptheory.data.conditional import _levels
from gptheory.diffusion import ExactScore, sample, stop_for
from gptheory.diffusion.schedule import levels
from gptheory.measures import sampling_error
from gptheory.support.validation import NotPSDError

F32, F64 = torch.float32, torch.float64
BAR = 1e-10  # of the issue, relative to the largest entry


def masks(batch: int, *shape: int, seed: int = 0, share: float = 0.4) -> torch.Tensor:
    """Random masks in which something is seen and something is not."""
    observed = torch.rand(batch, *shape, generator=seeded(seed)) > share
    flat = observed.view(batch, -1)
    flat[:, 0], flat[:, -1] = True, False
    return observed


def dense(law, x, observed, noise=0.0):
    """Mean (D,) and covariance (D, D) of the free entries of one sequence, by the textbook."""
    covariance, mean = law.covariance(), law.mean.flatten()
    seen = (observed if observed.ndim == 2 else observed[:, None]).expand(x.shape).flatten()
    free = ~seen if noise == 0 else torch.ones_like(seen)
    own = covariance[seen][:, seen] + noise * torch.eye(int(seen.sum()), dtype=F64)
    gain = torch.linalg.solve(own, covariance[seen][:, free]).T
    found = mean[free] + gain @ (x.flatten()[seen] - mean[seen])
    return free, found, covariance[free][:, free] - gain @ covariance[seen][:, free]


def assert_within(found, expected, bar=BAR):
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= bar * scale, (found - expected).abs().max() / scale


# ---- against dense linear algebra ---------------------------------------------------------------


@pytest.mark.statement("YC Conditional law", "YC Score (6)")
@given(
    seed=seeds, batch=st.integers(1, 5), seq_len=st.integers(2, 9), dim=st.integers(1, 4),
    t=st.floats(0.001, 6.0), same=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_frames_given_frames_are_those_of_dense_linear_algebra(seed, batch, seq_len, dim, t, same):
    own = process(seq_len, dim, seed)
    observed = masks(1 if same else batch, seq_len, seed=seed).expand(batch, seq_len)
    x = own.sample(batch, seeded(seed), F64)
    law = own.condition(x.masked_fill(~observed[..., None], math.nan), observed)
    v = torch.randn(2 * batch, seq_len, dim, generator=seeded(seed + 1), dtype=F64)
    score, density, (a, s) = law.score(v, t), law.log_prob(v), _levels(t, v)
    for k in range(batch):
        free, mean, covariance = dense(own, x[k], observed[k])
        assert_within(law.mean[k].flatten()[free], mean)
        assert torch.equal(law.mean[k][observed[k]], x[k][observed[k]])
        assert_within(law.covariance(k), covariance)
        assert_within(law.variance[k].flatten()[free], covariance.diagonal())
        assert (law.variance[k][observed[k]] == 0).all()
        assert torch.equal(law.covariance(k), torch.kron(law.temporal(k), own.spatial))
        noised = a**2 * covariance + s**2 * torch.eye(len(mean), dtype=F64)
        for row in (k, batch + k):
            flat = v[row].flatten()[free]
            expected = -torch.linalg.solve(noised, flat - a * mean)
            assert_within(score[row].flatten()[free], expected)
            assert (score[row].flatten()[~free] == 0).all()
            normal = torch.distributions.MultivariateNormal(mean, covariance)
            assert abs(density[row] - normal.log_prob(flat)) <= BAR * abs(density[row]) + 1e-9
        values = torch.linalg.eigvalsh(covariance)
        assert_identity(law.condition_number[k], values[-1] / values[0], condition=100)
        assert_identity(law.effective_dimension[k], values.sum() ** 2 / (values**2).sum())
    assert torch.equal(score, ExactScore(law)(v, t))


@given(
    seed=seeds, noise=st.sampled_from([0.0, 1e-3, 0.5]), t=st.floats(0.001, 6.0),
    share=st.sampled_from([0.2, 0.8]),
)  # fmt: skip
@settings(max_examples=60)
def test_entries_and_noise_are_those_of_dense_linear_algebra(seed, noise, t, share):
    own, batch = process(6, 3, seed), 3
    observed = masks(batch, 6, 3, seed=seed, share=share)
    x = own.sample(batch, seeded(seed), F64)
    law = own.condition(x.masked_fill(~observed, math.nan), observed, noise)
    v = torch.randn(2 * batch, 6, 3, generator=seeded(seed + 1), dtype=F64)
    score, (a, s) = law.score(v, t), _levels(t, v)
    density = law.noised_log_prob(v, a, s)
    for k in range(batch):
        free, mean, covariance = dense(own, x[k], observed[k], noise)
        assert_within(law.mean[k].flatten()[free], mean)
        assert_within(law.covariance(k), covariance)
        assert_identity(law.variance[k].flatten()[free], law.covariance(k).diagonal())
        assert (law.variance[k].flatten()[~free] == 0).all()
        noised = a**2 * covariance + s**2 * torch.eye(len(mean), dtype=F64)
        for row in (k, batch + k):
            flat = v[row].flatten()[free]
            assert_within(score[row].flatten()[free], -torch.linalg.solve(noised, flat - a * mean))
            assert (score[row].flatten()[~free] == 0).all()
            normal = torch.distributions.MultivariateNormal(a * mean, noised)
            assert abs(density[row] - normal.log_prob(flat)) <= 1e-9 * abs(density[row]) + 1e-9
            clean = torch.distributions.MultivariateNormal(mean, covariance).log_prob(flat)
            assert abs(law.log_prob(v)[row] - clean) <= 1e-9 * abs(clean) + 1e-9
        values = torch.linalg.eigvalsh(covariance)
        assert_identity(law.condition_number[k], values[-1] / values[0], condition=100)
        assert_identity(law.effective_dimension[k], values.sum() ** 2 / (values**2).sum())
        assert law.smallest_variance <= values[0] * (1 + IDENTITY)


def test_the_setting_of_the_paper_to_ten_digits():
    own, observed = decaying_process(96, 8, 128.0), pattern("four", 96, 16)
    x = own.sample(2, seeded(0), F64)
    law = own.condition(x, observed)
    for k in (0, 1):
        _free, mean, covariance = dense(own, x[k], observed)
        assert_within(law.mean[k][~observed].flatten(), mean)
        assert_within(law.covariance(k), covariance)


def test_the_inverse_of_gamma_and_a_factor_of_what_was_seen_agree(monkeypatch):
    """Up to κ(Γ) = 1e8 the inverse serves; beyond, and where Γ is singular, Γ_oo is factorised."""
    own, observed = process(8, 2), masks(3, 8, seed=2)
    x = own.sample(3, seeded(1), F64)
    law = own.condition(x, observed)
    monkeypatch.setattr("gptheory.data.process.INVERTED_TO", 1.0)
    same = process(8, 2).condition(x, observed)
    assert own.precision is not None and process(8, 2).precision is None
    assert_within(same.mean, law.mean)
    for k in range(3):
        assert_within(same.covariance(k), law.covariance(k))
        assert_within(same.weights(k), law.weights(k))


@pytest.mark.statement("YC Conditional law")
def test_the_mean_does_not_see_the_spatial_factor():
    """Autokrigeability: W is that of one coordinate, and so it is of any Σ, a singular one too."""
    temporal, observed = process(8, 1, 3).temporal, masks(1, 8, seed=4)[0]
    x = torch.randn(2, 8, 3, generator=seeded(5), dtype=F64)
    laws = [
        GaussianProcess(temporal, spatial).condition(x, observed)
        for spatial in (torch.eye(3), process(8, 3, 6).spatial, torch.ones(3, 3))
    ]
    for law in laws:
        assert_identity(law.mean, laws[0].mean)
        assert_identity(law.weights(1), laws[0].weights(0))
        by_hand = law.weights() @ x[0][observed]
        assert_identity(law.mean[0][~observed], by_hand)


def test_single_entries_do_not_factorise():
    """Their mean sees Σ, and their covariance is no Kronecker product."""
    x = torch.randn(1, 5, 2, generator=seeded(1), dtype=F64)
    observed = torch.ones(1, 5, 2, dtype=torch.bool)
    observed[0, 2, 0] = observed[0, 3, 0] = False
    temporal = decaying_process(5, 1, 4.0).temporal
    means = [
        GaussianProcess(temporal, torch.tensor([[1, rho], [rho, 1]])).condition(x, observed).mean
        for rho in (0.0, 0.8)
    ]
    assert (means[0] - means[1]).abs().max() > 0.1


def test_masks_of_entries_that_are_frames_are_taken_as_such():
    own, frames = process(6, 2), torch.tensor([[True, False, True, True, False, True]] * 2)
    x = own.sample(2, seeded(1), F64)
    entries = frames[..., None].expand(2, 6, 2)
    for observed in (entries, entries[0], frames, frames[0]):
        law = own.condition(x, observed)
        assert isinstance(law, ConditionalProcess)
        assert torch.equal(law.mean, own.condition(x, frames).mean)
    noisy = own.condition(x, frames, 1e-9)
    assert isinstance(noisy, ConditionalEntries)
    assert (noisy.mean - law.mean).abs().max() < 1e-6


def test_conjugate_gradients_find_what_the_factorisation_does():
    own, observed = process(6, 2), masks(3, 6, seed=2)
    x = own.sample(3, seeded(1), F64)
    law = own.condition(x, observed)
    same = ConditionalEntries(own, x, observed)
    v = torch.randn(3, 6, 2, generator=seeded(3), dtype=F64)
    assert_identity(same.mean, law.mean)
    for t in (0.01, 0.5, 4.0):
        assert_identity(same.score(v, t), law.score(v, t), condition=10)
    assert_identity(same.covariance(1), law.covariance(1))


def test_the_preconditioners_keep_steps_few(monkeypatch):
    """In the setting of the docstring, which says what they are: the bounds leave a sixth."""
    taken, solve = [], entries.conjugate_gradients

    def counted(*arguments):
        found = solve(*arguments)
        taken.append(int(found.steps.max()))
        return found

    monkeypatch.setattr(entries, "conjugate_gradients", counted)
    own = decaying_process(96, 8, 128.0)
    x, v = own.sample(2, seeded(1), F64), torch.randn(2, 96, 8, generator=seeded(3), dtype=F64)
    for share, most in ((0.3, (60, 20, 80)), (0.9, (190, 20, 230))):
        law = own.condition(x, masks(2, 96, 8, seed=2, share=share))
        taken.clear()
        _ = law.mean, law.score(v, 0.001), law.score(v, 5.0)
        assert all(steps <= bound for steps, bound in zip(taken, most, strict=True))


# ---- against a state-space smoother -------------------------------------------------------------


def smoothed(x, observed, rate):
    """Kalman's filter and the smoother of Rauch, Tung and Striebel for one AR(1) coordinate.

    x_1 ~ N(0, 1), x_{i+1} = ρ x_i + √(1 − ρ²) noise; it knows nothing of covariance matrices.
    """
    means, variances, ahead = [], [], []
    mean, variance = 0.0, 1.0
    for value, seen in zip(x.tolist(), observed.tolist(), strict=True):
        ahead.append((mean, variance))
        if seen:
            mean, variance = value, 0.0
        means.append(mean)
        variances.append(variance)
        mean, variance = rate * mean, rate**2 * variance + 1 - rate**2
    for i in range(len(means) - 2, -1, -1):
        gain = variances[i] * rate / ahead[i + 1][1]
        means[i] += gain * (means[i + 1] - ahead[i + 1][0])
        variances[i] += gain**2 * (variances[i + 1] - ahead[i + 1][1])
    return torch.tensor(means, dtype=F64), torch.tensor(variances, dtype=F64)


@given(seed=seeds, lengthscale=st.floats(0.5, 200.0))
@settings(max_examples=30)
def test_a_kalman_smoother_finds_the_same(seed, lengthscale):
    own, observed = decaying_process(40, 1, lengthscale), masks(1, 40, seed=seed)[0]
    x = own.sample(1, seeded(seed), F64)
    law = own.condition(x, observed)
    mean, variance = smoothed(x[0, :, 0], observed, math.exp(-1 / lengthscale))
    assert_within(law.mean[0, :, 0], mean, 1e-9)
    assert_within(law.temporal().diagonal(), variance[~observed], 1e-9)


# ---- Markov kernels, and the others -------------------------------------------------------------


def gap(kernel, size, seq_len=64):
    """One gap in the middle: its mask, and the conditional law of one coordinate."""
    observed = pattern("middle", seq_len, size)
    own = GaussianProcess(kernel, torch.eye(1), seq_len=seq_len)
    return observed, own.condition(own.sample(1, seeded(1), F64), observed)


@pytest.mark.statement("YC Condition numbers")
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_a_gap_of_a_markov_process_has_the_condition_number_of_a_brownian_bridge(size):
    """κ → cot²(π/(2(M+1))) as ℓ grows: precision tridiag(−ρ, 1 + ρ², −ρ), see chapter 12."""
    limit = 1 / math.tan(math.pi / (2 * (size + 1))) ** 2
    for lengthscale in (8.0, 128.0, 1e4):
        _observed, law = gap(PowerExponential(lengthscale), size)
        rate = math.exp(-1 / lengthscale)
        angle = math.pi / (size + 1)
        ends = [1 + rate**2 - 2 * rate * math.cos(k * angle) for k in (size, 1)]
        assert_identity(law.condition_number.item(), ends[0] / ends[1])
        assert law.condition_number.item() <= limit * (1 + IDENTITY)
    assert abs(law.condition_number.item() / limit - 1) < 1e-3
    precision = torch.linalg.inv(law.temporal()) * (1 - rate**2)
    bridge = torch.diag_embed(torch.full((size,), 1 + rate**2, dtype=F64))
    for k in range(size - 1):
        bridge[k, k + 1] = bridge[k + 1, k] = -rate
    assert_identity(precision, bridge, condition=1e4)


@pytest.mark.statement(
    "YC Condition numbers", "YC Condition number of Theorem 1", "YC Assumption 1"
)
def test_condition_numbers_of_the_four_patterns():
    own = decaying_process(96, 8, 128.0)
    x, spatial = own.sample(1, seeded(0), F64), own.spatial_spectrum[0]
    found = {}
    for name in PATTERNS:
        law = own.condition(x, pattern(name, 96, 16))
        found[name] = (law.condition_number * spatial[0] / spatial[-1]).item()
    expected = {"tail": 394.91, "middle": 116.25, "four": 9.47, "spread": 1.00}
    assert {name: round(value, 2) for name, value in found.items()} == expected
    # the factors of κ(Σ_cond) are κ(Σ) and κ(Γ_cond), not κ(Γ_oo)
    observed = pattern("tail", 96, 16)
    values = torch.linalg.eigvalsh(own.gram()[observed][:, observed])
    assert 40 < values[-1] / values[0] / found["tail"] < 45
    assert_identity(own.condition(x, observed).condition_number, condition_of_dense(own, observed))
    # print has 415.40: a kernel of distances on a circle of radius 1 with 2N positions
    circle = GaussianProcess(
        lambda lag: torch.exp(-embedding_distance(lag, 192.0) / 128), torch.eye(1), seq_len=96
    )
    law = circle.condition(x[..., :1], observed)
    assert abs(law.condition_number.item() / 415.40 - 1) < 0.002


def condition_of_dense(own, observed):
    _free, _mean, covariance = dense(own, torch.zeros(96, 8, dtype=F64), observed)
    values = torch.linalg.eigvalsh(covariance)
    return (values[-1] / values[0])[None]


def test_interpolation_is_the_mean_of_the_papers_kernel_and_of_no_smooth_one():
    def interpolated(x, observed):
        first, last = [int(i) for i in (~observed).nonzero()[[0, -1], 0]]
        share = torch.linspace(0, 1, last - first + 3, dtype=F64)[1:-1]
        return x[first - 1] * (1 - share) + x[last + 1] * share

    observed, law = gap(PowerExponential(1e4), 8)
    mean, line = law.mean[0, ~observed, 0], interpolated(law.mean[0, :, 0], observed)
    # the weights are sinh's of (distance / ℓ), linear to (8/ℓ)² / 6
    assert (mean - line).abs().max() < 1e-6
    observed, law = gap(Matern(8.0, 2.5), 8)
    mean, line = law.mean[0, ~observed, 0], interpolated(law.mean[0, :, 0], observed)
    assert (mean - line).abs().max() > 0.1


# ---- one step per frame -------------------------------------------------------------------------


@pytest.mark.statement("YC Score (6)")
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_conditional_score_is_the_missing_block_of_the_joint_score(dtype):
    own, observed = process(7, 3), masks(5, 7, seed=3)
    x = own.sample(5, seeded(1), F64)
    law = own.condition(x, observed)
    v = torch.randn(5, 7, 3, generator=seeded(2), dtype=F64)
    t = torch.linspace(0.01, 2.0, 5, dtype=F64)
    steps = torch.where(observed, torch.zeros((), dtype=F64), t[:, None])
    joint = ExactScore(own)(torch.where(observed[..., None], x, v).to(dtype), steps)
    assert joint.dtype == dtype
    found = torch.where(observed[..., None], torch.zeros((), dtype=dtype), joint)
    bar = BAR if dtype == F64 else 1e-4
    assert_within(found.double(), law.score(v, t), bar)


@given(seed=seeds, batch=st.integers(1, 4), same=st.booleans())
@settings(max_examples=30)
def test_steps_of_frames_are_those_of_dense_linear_algebra(seed, batch, same):
    own = process(5, 2, seed)
    t = torch.rand(1 if same else batch, 5, generator=seeded(seed), dtype=F64).expand(batch, 5) * 3
    v = torch.randn(batch, 5, 2, generator=seeded(seed + 1), dtype=F64)
    found = ExactScore(own)(v, t)
    for k in range(batch):
        scale = (-t[k] / 2).exp().repeat_interleave(2)
        noise = -torch.expm1(-t[k]).repeat_interleave(2)
        matrix = scale[:, None] * own.covariance() * scale + noise.diag()
        residual = v[k].flatten() - scale * own.mean.flatten()
        assert_within(found[k].flatten(), -torch.linalg.solve(matrix, residual))


def test_equal_steps_of_frames_are_one_step_and_chunks_change_nothing(monkeypatch):
    own, v = process(5, 2), torch.randn(4, 5, 2, generator=seeded(1), dtype=F64)
    t = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=F64)
    whole = ExactScore(own)(v, t[:, None].expand(4, 5))
    assert_identity(whole, ExactScore(own)(v, t))
    monkeypatch.setattr("gptheory.data.process.FRAMEWISE_VALUES", 1)
    assert_identity(ExactScore(own)(v, t[:, None].expand(4, 5)), whole)


def test_gradients_through_steps_of_frames():
    own, v = process(4, 2), torch.randn(2, 4, 2, generator=seeded(1), dtype=F64)
    t = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.5, 0.2, 0.1]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(ExactScore(own), (v.requires_grad_(), t))


def test_bad_steps_of_frames_are_refused():
    own, v = process(5, 2), torch.zeros(3, 5, 2, dtype=F64)
    steps = torch.full((3, 5), 0.1)
    for bad in (-0.1, math.nan, math.inf):
        steps[1, 2] = bad
        with pytest.raises(ValueError, match=r"must be finite and >= 0, got"):
            ExactScore(own)(v, steps)
    mixture = random_mixture(5, 2, generator=seeded(1))
    with pytest.raises(
        ValueError, match=r"got \(3, 5\): one step per frame needs .* not a GaussianMixture"
    ):
        ExactScore(mixture)(v, torch.full((3, 5), 0.1))
    smooth = decaying_process(24, 2, 8.0, 2.0)
    clean = torch.zeros(1, 24, 2)
    steps = torch.zeros(1, 24)
    steps[0, 3] = 0.1
    with pytest.raises(NotPSDError, match="too smooth for steps of 0"):
        ExactScore(smooth)(clean, steps)
    twins = torch.eye(8, dtype=F64)
    twins[0, 1] = twins[1, 0] = 1 - 2.0**-52  # a pivot of 4e-16, which is rounding
    with pytest.raises(NotPSDError, match="too smooth for steps of 0"):
        ExactScore(GaussianProcess(twins, torch.eye(1)))(torch.zeros(1, 8, 1), torch.zeros(1, 8))


# ---- draws, batches, devices --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["frames", "entries", "noisy"])
def test_draws_have_the_moments_and_keep_what_was_seen(kind):
    own, n = process(5, 2), 20_000
    observed = masks(2, 5, seed=1) if kind != "entries" else masks(2, 5, 2, seed=1)
    x = own.sample(2, seeded(1), F64)
    noise = 0.2 if kind == "noisy" else 0.0
    law = own.condition(x, observed, noise)
    draws = law.sample(n, seeded(2), F64)
    assert draws.shape == (n, 2, 5, 2)
    for k in (0, 1):
        free, mean, covariance = dense(own, x[k], observed[k], noise)
        flat = draws[:, k].flatten(1)
        assert (flat[:, ~free] == x[k].flatten()[~free]).all()
        error = covariance.diagonal().sqrt() / n**0.5
        assert_statistical(flat[:, free].mean(0), mean, error, n)
        found = torch.cov(flat[:, free].T)
        assert_statistical(found, covariance, covariance_standard_error(covariance, n), n)
    across = torch.corrcoef(torch.stack([draws[:, k].flatten(1)[:, -1] for k in (0, 1)]))
    assert abs(across[0, 1]) < 5 / n**0.5  # sequences are drawn independently


@pytest.mark.parametrize("entries", [False, True])
def test_one_sequence_without_a_batch_is_a_law_of_sequences(entries):
    own = process(5, 2)
    x = own.sample(1, seeded(1), F64)
    observed = masks(1, 5, 2, seed=1) if entries else masks(1, 5, seed=1)
    one, batch = own.condition(x[0], observed[0]), own.condition(x, observed)
    assert one.sample(3, seeded(2)).shape == (3, 5, 2)
    assert torch.equal(one.sample(3, seeded(2)), batch.sample(3, seeded(2))[:, 0])
    assert torch.equal(one.mean, batch.mean[0]) and torch.equal(one.observed, observed[0])
    assert one.condition_number.shape == one.effective_dimension.shape == ()
    v = torch.randn(4, 5, 2, generator=seeded(3), dtype=F64)
    assert torch.equal(one.score(v, 0.3), batch.score(v, 0.3))


def test_sequences_of_a_batch_do_not_see_each_other():
    """Patterns with few missing frames are padded beside those with many."""
    own = process(8, 2)
    observed = torch.ones(3, 8, dtype=torch.bool)
    observed[0, 3] = observed[1, 2:7] = observed[2, 7] = False
    x = own.sample(3, seeded(1), F64)
    law = own.condition(x, observed)
    v = torch.randn(6, 8, 2, generator=seeded(2), dtype=F64)
    t = torch.linspace(0.01, 2.0, 6, dtype=F64)
    score, density = law.score(v, t), law.log_prob(v)
    assert (score.shape, density.shape) == ((6, 8, 2), (6,))
    least = []
    for k in range(3):
        alone = own.condition(x[k], observed[k])
        assert_identity(alone.mean, law.mean[k])
        assert_identity(alone.score(v[k::3], t[k::3]), score[k::3])
        assert_identity(alone.log_prob(v[k::3]), density[k::3])
        assert_identity(alone.condition_number, law.condition_number[k])
        assert_identity(alone.temporal(), law.temporal(k))
        assert law.weights(k).shape == (int((~observed[k]).sum()), int(observed[k].sum()))
        least.append(alone.smallest_variance)
    assert_identity(law.smallest_variance, min(least))


@pytest.mark.parametrize("kind", ["frames", "entries", "noisy"])
def test_what_is_missing_may_hold_anything(kind):
    own, noise = process(6, 2), 0.1 if kind == "noisy" else 0.0
    observed = masks(2, 6, 2, seed=1) if kind == "entries" else masks(2, 6, seed=1)
    seen = observed.view(2, 6, -1)
    x = own.sample(2, seeded(1), F64)
    laws = [own.condition(x.masked_fill(~seen, fill), observed, noise)
            for fill in (0.0, math.nan, math.inf)]  # fmt: skip
    v = torch.randn(2, 6, 2, generator=seeded(2), dtype=F64)
    odd = v.masked_fill(seen, math.nan) if noise == 0 else v
    for law in laws:
        assert torch.equal(law.mean, laws[0].mean)
        assert torch.equal(law.score(odd, 0.2), laws[0].score(v, 0.2))
        assert torch.isfinite(law.score(odd, 0.2)).all()
        whole = v if noise else torch.where(seen, x, v)
        assert torch.equal(law.completed(odd), whole)
        assert torch.equal(law.log_prob(odd), laws[0].log_prob(v))


def test_the_law_keeps_its_own_copy():
    own, observed = process(6, 2), masks(1, 6, seed=1)[0]
    x = own.sample(1, seeded(1), F64)
    law = own.condition(x, observed)
    mean, v = law.mean.clone(), torch.ones(1, 6, 2, dtype=F64)
    score = law.score(v, 0.1)
    x.zero_()
    observed.fill_(True)
    assert torch.equal(law.mean, mean) and torch.equal(law.score(v, 0.1), score)
    assert torch.equal(law.completed(v), torch.where(law.observed[..., None], mean, v))


def test_levels_are_those_of_the_forward_process():
    """This room cannot see the schedule and has the two formulas again."""
    v = torch.zeros(3, 2, 1)
    for t in (0.3, torch.tensor(0.3), torch.tensor([0.1, 1.0, 5.0], dtype=F64), torch.tensor(2)):
        for found, expected in zip(_levels(t, v), levels(t, v), strict=True):
            same = torch.equal if isinstance(found, torch.Tensor) else float.__eq__
            assert same(found, expected)


# ---- samplers and measures ----------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_the_sampler_draws_missing_frames_as_it_draws_those_of_the_process_that_they_are():
    own, observed = decaying_process(12, 2, 20.0), pattern("middle", 12, 4)
    law = own.condition(own.sample(1, seeded(1), F64), observed)
    assert stop_for(law) == stop_for(law.process())

    class Missing:
        """The score of the missing frames, told of all."""

        law = None

        def __call__(self, v, t):
            out = torch.zeros_like(v)
            out[:, ~observed] = ExactScore(alone)(v[:, ~observed], t)
            return out

    alone, options = law.process(), {"steps": 20, "t_min": stop_for(law), "dtype": F64}
    first = sample(ExactScore(law), 6, 12, 2, generator=seeded(3), **options)
    second = sample(Missing(), 6, 12, 2, generator=seeded(3), **options)
    assert_identity(law.completed(first), law.completed(second), condition=100)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("name", PATTERNS)
def test_measures_of_processes_measure_conditional_ones(name):
    own = decaying_process(96, 8, 128.0)
    law = own.condition(own.sample(1, seeded(1), F64), pattern(name, 96, 16))
    found = sampling_error(law.process(), steps=24)
    assert found.kl <= 1e-3 * 16 * 8


# ---- masks --------------------------------------------------------------------------------------


@pytest.mark.statement("YC Patterns")
@pytest.mark.parametrize(("seq_len", "missing"), [(96, 16), (32, 8), (9, 4)])
def test_patterns_miss_what_they_say(seq_len, missing):
    sizes = {"tail": [missing], "middle": [missing], "four": [missing // 4] * 4}
    sizes["spread"] = [1] * missing
    for name in PATTERNS:
        observed = pattern(name, seq_len, missing)
        assert (observed.shape, observed.dtype) == ((seq_len,), torch.bool)
        assert gap_sizes(observed) == sizes[name]
        assert bool(observed[0]) and bool(observed[-1]) == (name != "tail")


@pytest.mark.parametrize("name", PATTERNS[1:])
def test_gaps_of_patterns_never_touch(name):
    for seq_len in range(3, 61):
        for missing in range(1, seq_len):
            try:
                observed = pattern(name, seq_len, missing)
            except ValueError:
                continue
            gaps = {"middle": [missing], "four": [missing // 4] * 4, "spread": [1] * missing}[name]
            assert gap_sizes(observed) == gaps
            assert name != "middle" or bool(observed[0] and observed[-1])


def gap_sizes(observed: torch.Tensor) -> list[int]:
    return [len(run) for run in re.findall("0+", "".join(str(int(x)) for x in observed))]


def test_random_gaps_do_not_touch_and_are_everywhere():
    observed = random_gaps(4000, 10, 2, 3, seeded(1))
    assert {tuple(gap_sizes(row)) for row in observed} == {(3, 3)}
    kinds, counts = observed.int().unique(dim=0, return_counts=True)
    assert len(kinds) == 10  # 5 slots about the 4 frames that are seen, two of them taken
    # each kind has probability 1/10: five standard errors of a count
    assert (counts - 400).abs().max() < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert gap_sizes(random_gaps(1, 5, 3, 1, seeded(0))[0]) == [1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pattern("P1", 9, 4), "name must be one of tail, middle, four, spread"),
        (lambda: pattern("four", 9, 3), "'four' needs gaps of equal size"),
        (lambda: pattern("spread", 9, 5), "'spread' needs gaps of equal size"),
        (lambda: pattern("middle", 9, 8), "'middle' needs gaps of equal size"),
        (lambda: pattern("tail", 9, 9), "'tail' needs gaps of equal size"),
        (lambda: pattern("tail", 9, 0), "missing must be an integer >= 1"),
        (lambda: random_gaps(1, 9, 5, 1, None), None),
        (lambda: random_gaps(1, 9, 3, 3), "3 gaps of 3 frames do not fit into 9 frames"),
        (lambda: random_gaps(0, 9, 1, 1), "n must be an integer >= 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(call, message):
    if message is None:
        assert call().shape == (1, 9)
        return
    with pytest.raises(ValueError, match=message):
        call()


# ---- bad input ----------------------------------------------------------------------------------

SEEN = torch.tensor([True, False, True, True, False])
MASKS = {
    "nothing missing": (torch.ones(5, dtype=torch.bool), "nothing is missing in sequence 0"),
    "everything missing": (torch.zeros(5, dtype=torch.bool), "everything is missing in sequence 0"),
    "nothing missing in one": (
        torch.stack([SEEN, torch.ones(5, dtype=torch.bool)]), "nothing is missing in sequence 1"
    ),
    "no entry missing": (torch.ones(2, 5, 3, dtype=torch.bool), "nothing is missing in sequence 0"),
    "other frames": (SEEN[:4], r"observed must have shape \(5,\), \(2, 5\) or.*got \(4,\)"),
    "other batch": (SEEN.expand(3, 5), r"observed must have shape .*got \(3, 5\)"),
    "other entries": (SEEN[:, None].expand(2, 5, 2), r"observed must have shape .*got \(2, 5, 2\)"),
    "numbers": (SEEN.long(), r"boolean tensor, .*got a tensor of torch.int64; .*observed.bool\(\)"),
    "floats": (SEEN.float(), r"boolean tensor, .*got a tensor of torch.float32; .*\.bool\(\)"),
    "NaN": (
        SEEN.float().masked_fill(~SEEN, math.nan),
        r"with NaN; where NaN marks what is missing, observed = ~x.isnan\(\).any\(-1\)",
    ),
    "no tensor": ([True] * 5, "boolean tensor, True where a frame was seen, got list"),
}  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("observed", "message"), MASKS.values(), ids=MASKS)
def test_bad_masks_are_refused(observed, message, noise):
    own = process(5, 3)
    if noise and message.startswith("nothing is missing"):
        return  # then what was seen is smoothed
    with pytest.raises(ValueError, match=message):
        own.condition(own.sample(2, seeded(1)), observed, noise)


def test_noise_alone_is_smoothed():
    own, noise = process(5, 3), 0.3
    y = own.sample(2, seeded(1), F64)
    law = own.condition(y, torch.ones(5, dtype=torch.bool), noise)
    clean = own.covariance()
    noisy = clean + noise * torch.eye(15, dtype=F64)
    gain = torch.linalg.solve(noisy, clean).T
    flat = own.mean.flatten() + (y - own.mean).flatten(1) @ gain.T
    assert_within(law.mean.flatten(1), flat, 1e-8)
    assert_within(law.covariance(1), clean - gain @ clean, 1e-8)


def test_conditioning_says_how_long_a_process_may_be():
    law = GaussianProcess(PowerExponential(8.0), torch.eye(1), seq_len=8193)
    with pytest.raises(ValueError, match=r"8193 frames .* limit of 8192 .* conditioning needs it"):
        law.condition(torch.zeros(8193, 1), torch.arange(8193) > 3)


def test_bad_sequences_are_refused():
    own = process(5, 3)
    x = own.sample(2, seeded(1))
    for bad, message in (
        (x[:, :4], r"x must have shape \(batch, 5, 3\), got \(2, 4, 3\)"),
        (x[0, 0], r"x must have shape \(batch, 5, 3\), got \(3,\)"),
        (x.long(), "x must be a floating-point tensor"),
        (x[:0], "the number of sequences in x must be an integer >= 1, got 0"),
        (x.masked_fill(SEEN[:, None], math.nan), "x where it was observed must be finite, got 18"),
        (x.masked_fill(SEEN[:, None], math.inf), "x where it was observed must be finite, got 18"),
    ):
        with pytest.raises(ValueError, match=message):
            own.condition(bad, SEEN)
    for noise in (-1.0, math.nan):
        with pytest.raises(ValueError, match="noise must be finite and >= 0"):
            own.condition(x, SEEN, noise)


def test_bad_questions_are_refused():
    own = process(5, 3)
    frames = own.condition(own.sample(2, seeded(1)), SEEN)
    entries = ConditionalEntries(own, own.sample(2, seeded(1)), SEEN)
    v = torch.zeros(3, 5, 3)
    for law in (frames, entries):
        for ask in (lambda v, law=law: law.score(v, 0.1), law.completed):
            with pytest.raises(ValueError, match=r"as many sequences as the law, 2, .*got 3"):
                ask(v)
        for ask in (law.completed, law.log_prob, lambda v, law=law: law.score(v, 0.1)):
            with pytest.raises(ValueError, match=r"got \(4, 2, 5, 3\); .* as [vx].flatten\(0, 1\)"):
                ask(law.sample(4))
        for k in (-1, 2):
            with pytest.raises(ValueError, match=r"k must lie in 0\.\.1, the sequences, got"):
                law.covariance(k)
        with pytest.raises(ValueError, match="step t must be finite and > 0"):
            law.score(v[:2], 0.0)
        with pytest.raises(ValueError, match=r"t must be a number or have shape \(2,\)"):
            law.score(v[:2], torch.ones(3))
    t = torch.tensor([0.1, 0.2], requires_grad=True)
    with pytest.raises(ValueError, match="no gradient with respect to its levels"):
        entries.score(v[:2], t)
    with pytest.raises(ValueError, match=r"per frame needs .* not a ConditionalProcess"):
        frames_of = ExactScore(frames)
        frames_of(v[:2], torch.ones(2, 5))


def test_a_process_too_smooth_is_refused_and_told_the_way_out():
    smooth = decaying_process(32, 2, 8.0, 2.0)
    x, observed = smooth.sample(1, seeded(1), F64), pattern("middle", 32, 4)
    with pytest.raises(NotPSDError, match="too smooth to be conditioned in float64: Γ_oo"):
        smooth.condition(x, observed)
    with pytest.raises(NotPSDError, match="too smooth to be conditioned in float64: Γ has"):
        smooth.condition(x, masks(1, 32, 2))
    assert smooth.condition(x, observed, 1e-6).mean.shape == x.shape
    few = torch.zeros(32, dtype=torch.bool)
    few[::8] = True  # Γ is singular, what was seen of it is not
    assert smooth.condition(x, few).mean.shape == x.shape
    eased = GaussianProcess(conditioned(smooth.gram(), 1e6), smooth.spatial)
    assert eased.condition(x, observed).mean.shape == x.shape


def test_single_precision_says_what_it_can_carry():
    """A Γ that came in float32 has eigenvalues that are rounding below 1e-6 of the largest."""
    rough = GaussianProcess(gram(PowerExponential(8.0), 16, F32), torch.eye(2))
    x, observed = rough.sample(1, seeded(1)), pattern("middle", 16, 4)
    assert rough.condition(x, observed).mean.dtype == F64
    smooth = GaussianProcess(gram(Matern(8.0, 3.5), 64, F32), torch.eye(2))
    with pytest.raises(NotPSDError, match="too smooth"):
        smooth.condition(smooth.sample(1, seeded(1)), pattern("middle", 64, 4))


def test_a_density_needs_a_regular_law():
    temporal, observed = process(5, 1, 3).temporal, SEEN
    flat = GaussianProcess(temporal, torch.ones(2, 2))
    law = flat.condition(flat.sample(1, seeded(1), F64), observed)
    v = torch.zeros(1, 5, 2, dtype=F64)
    with pytest.raises(NotPSDError, match="singular to float64 precision"):
        law.log_prob(v)
    with pytest.raises(ValueError, match="x where it is missing must be finite, got 4 NaN"):
        law.log_prob(v * math.nan)
    with pytest.raises(NotPSDError, match="singular to float64 precision"):
        ConditionalEntries(flat, v, observed, 0.1).log_prob(v)
    assert torch.isfinite(law.noised_log_prob(v, 0.9, 0.4)).all()


def test_covariances_of_too_many_entries_are_refused():
    own = decaying_process(300, 8, 4.0)
    observed = masks(1, 300, 8, share=0.9)
    law = own.condition(own.sample(1, seeded(1), F64), observed)
    with pytest.raises(ValueError, match=r"a covariance of \d+ entries is above the limit of 2048"):
        law.covariance()
