"""Reverse-time solvers: exactness, orders of convergence, laws of samples, bad input."""

from __future__ import annotations

import math
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DEVICES, process, seeded
from tolerances import assert_identity, assert_statistical, covariance_standard_error

from gptheory.data import GaussianMixture, GaussianProcess, PowerExponential
from gptheory.diffusion import (
    SOLVERS,
    SPACINGS,
    ExactScore,
    alpha,
    mode_variances,
    restart,
    sample,
    sigma,
    step_grid,
    stop_for,
    trajectory,
)
from gptheory.diffusion.sampler import stop_of
from gptheory.diffusion.schedule import half_log_snr
from gptheory.diffusion.solvers import adams_weights
from gptheory.latent import SubspaceData
from gptheory.measures import relative_error, sampling_error

ALL_SOLVERS = [(method, solver) for method, solvers in SOLVERS.items() for solver in solvers]
EVALUATIONS = {"heun": 2}  # score evaluations a step, where it is not one


def last(path):
    """The final state of a trajectory."""
    return list(path)[-1][1]


def point_score(clean):
    """The score of data that are all one point: its denoiser is constant."""
    return lambda v, t: (alpha(t) * clean - v) / sigma(t) ** 2


# ---- the grid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@given(st.integers(1, 300), st.floats(1e-6, 0.5), st.floats(1.0, 20.0))
def test_grid_is_uniform_in_its_own_clock(spacing, steps, t_min, t_max):
    grid = np.array(step_grid(steps, t_min, t_max, spacing))
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (t_max, t_min)
    clock = np.sqrt(grid) if spacing == "quadratic" else [-half_log_snr(t) for t in grid]
    spacings = np.diff(clock)
    assert (spacings < 0).all()
    assert_identity(spacings, np.full(steps, spacings.mean()), condition=1e4)


def test_stop_is_where_the_faintest_mode_loses_its_tolerance():
    law = GaussianProcess(PowerExponential(8.0, 1.5), torch.eye(2) / 4, seq_len=16)
    smallest = torch.linalg.eigvalsh(law.covariance().double())[0].item()
    assert_identity(law.smallest_variance, smallest, condition=1e3)
    for tolerance in (0.1, 0.01):
        t = stop_for(law, tolerance)
        assert stop_for(smallest, tolerance) == pytest.approx(t, rel=1e-9)
        values = torch.tensor([smallest, 1.0])
        grid = step_grid(400, t, 12.0)
        ratio = mode_variances(values, grid, final_denoise=True) / values
        expected = values / (values + tolerance * smallest)
        assert ratio.tolist() == pytest.approx(expected.tolist(), abs=1e-4)  # of the steps


def test_stop_is_found_from_laws_and_from_sequences():
    mixture = GaussianMixture(torch.zeros(2, 3, 1), torch.diag(torch.tensor([0.5, 0.02, 1.0])))
    assert stop_for(mixture) == pytest.approx(math.log1p(2e-4))
    basis = torch.eye(5)[:, :3]
    assert stop_for(SubspaceData(basis, mixture)) == stop_for(mixture)
    assert stop_for(SubspaceData(basis, mixture, 0.1)) == pytest.approx(math.log1p(1e-4))
    law = GaussianProcess(PowerExponential(4.0), torch.eye(2), seq_len=8)
    assert stop_for(law.sample(4000, seeded(0))) == pytest.approx(stop_for(law), rel=0.1)
    assert stop_for(0.0) == stop_for(1e-9) == 1e-6


# ---- exactness for a constant denoiser --------------------------------------------------------


@pytest.mark.parametrize("solver", [s for s in SOLVERS["ode"] if s != "heun"])
@given(steps=st.integers(1, 12))
@settings(max_examples=12)
def test_ode_of_a_constant_denoiser_is_solved_exactly(solver, steps):
    clean, start = torch.full((2, 3, 2), 0.7).double(), torch.full((2, 3, 2), -1.5).double()
    grid = step_grid(steps, 0.01, 5.0)
    path = list(trajectory(point_score(clean), start, grid, "ode", solver))
    assert [t for t, _ in path] == [*grid[1:], 0.0]
    for t, v in path[:-1]:  # the straight line through clean and noise
        noise = (start - alpha(5.0) * clean) / sigma(5.0)
        assert_identity(v, alpha(t) * clean + sigma(t) * noise)
    assert_identity(path[-1][1], clean)


@pytest.mark.parametrize("solver", [s for s in SOLVERS["sde"] if s != "euler-maruyama"])
def test_sde_of_a_constant_denoiser_takes_the_exact_posterior_steps(solver):
    """Given the clean point, v_s | v_t is Gaussian with the posterior moments of DDPM."""
    clean = torch.full((2, 3, 2), 0.7).double()
    grid = step_grid(6, 0.01, 5.0)
    noises = torch.randn(6, 2, 3, 2, generator=seeded(0), dtype=torch.float64)
    v_t = torch.full_like(clean, -1.5)
    path = trajectory(
        point_score(clean), v_t, grid, "sde", solver, lambda k: noises[k], final_denoise=False
    )
    for k, (s, v_s) in enumerate(path):
        t = grid[k]
        ratio = alpha(t) / alpha(s)
        mean = alpha(s) * clean + ratio * (sigma(s) / sigma(t)) ** 2 * (v_t - alpha(t) * clean)
        variance = sigma(s) ** 2 * (1 - (ratio * sigma(s) / sigma(t)) ** 2)
        assert_identity(v_s, mean + math.sqrt(variance) * noises[k], condition=1e2)
        v_t = v_s


@pytest.mark.parametrize("method", ["ode", "sde"])
def test_multistep_extrapolates_the_denoiser_to_the_middle_of_the_step(method):
    """A denoiser linear in log(α/σ) counts with its value half-way, however uneven the grid."""
    grid = [3.0, 1.7, 1.4, 0.2]
    middles = [
        half_log_snr(grid[0]),  # nothing to extrapolate from yet
        *((half_log_snr(t) + half_log_snr(s)) / 2 for t, s in pairwise(grid[1:])),
    ]
    start = torch.full((1, 2, 1), -1.5, dtype=torch.float64)
    path = trajectory(
        lambda v, t: (alpha(t) * (0.4 + 0.3 * half_log_snr(t)) - v) / sigma(t) ** 2,
        start, grid, method, "dpmpp-2m", lambda _k: torch.zeros_like(start), final_denoise=False,
    )  # fmt: skip
    v_t, shrink = start, {"ode": 1, "sde": 2}[method]
    for t, middle, (s, v_s) in zip(grid, middles, path, strict=False):
        # ODE: noise scales as σ; SDE: it is also forgotten, as in the posterior of DDPM
        kept = sigma(s) / sigma(t) * (alpha(t) * sigma(s) / alpha(s) / sigma(t)) ** (shrink - 1)
        clean = 0.4 + 0.3 * middle
        assert_identity(v_s, kept * v_t + (alpha(s) - kept * alpha(t)) * clean)
        v_t = v_s


# ---- weights ----------------------------------------------------------------------------------


@given(
    st.floats(1e-6, 3.0),
    st.lists(st.floats(0.3, 3.0), max_size=3),
    st.sampled_from([1.0, 2.0]),
    st.booleans(),
)
def test_adams_weights_integrate_polynomials_exactly(h, ratios, rate, known_ahead):
    """∫ c e^(−c(h−τ)) p(τ) dτ for every p of the degree that the known values determine."""
    steps = (h, *(h * ratio for ratio in ratios))
    weights = np.array(adams_weights(steps, rate, known_ahead))
    times = np.concatenate([[h] * known_ahead, -np.cumsum([0.0, *steps[1:]])])
    points, share = np.polynomial.legendre.leggauss(40)
    tau, share = h * (points + 1) / 2, h / 2 * share
    span = h + sum(steps)
    for degree in range(len(weights)):
        exact = (share * rate * np.exp(-rate * (h - tau)) * (tau / span) ** degree).sum()
        terms = weights * (times / span) ** degree
        assert_identity(terms.sum(), exact, condition=1e2)


# ---- order of convergence ---------------------------------------------------------------------

EIGENVALUES = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
SPREAD = GaussianProcess(EIGENVALUES.diag(), torch.ones(1, 1))
START, STOP, GRIDS = 10.0, 0.1, (128, 256, 512)


def marginal_variance(t: float) -> torch.Tensor:
    return alpha(t) ** 2 * EIGENVALUES + sigma(t) ** 2


def fitted_order(errors: list[float]) -> float:
    return -np.polyfit(np.log(GRIDS), np.log(errors), 1)[0]


ODE_ORDERS = {"ddim": 1, "exp-ab2": 2, "exp-ab3": 3, "exp-ab4": 4, "heun": 2, "dpmpp-2m": 2}
# the noise makes D rough: beyond order 2 nothing is gained in the limit, only in the constant
SDE_ORDERS = {
    "ddpm": 1, "euler-maruyama": 1, "exp-ab2": 2, "dpmpp-2m": 2, "exp-ab3": 2, "exp-ab4": 2,
}  # fmt: skip


def test_every_solver_has_an_order():
    assert (set(ODE_ORDERS), set(SDE_ORDERS)) == (set(SOLVERS["ode"]), set(SOLVERS["sde"]))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("solver", "order"), ODE_ORDERS.items())
def test_order_of_convergence_of_the_ode_solvers(solver, order, spacing):
    """The flow keeps every eigen-direction at its quantile, so it scales standard deviations."""
    exact = (marginal_variance(STOP) / marginal_variance(START)).sqrt()
    start, score = torch.ones(1, 4, 1, dtype=torch.float64), ExactScore(SPREAD)
    errors = []
    for steps in GRIDS:
        grid = step_grid(steps, STOP, START, spacing)
        path = trajectory(score, start, grid, "ode", solver, final_denoise=False)
        errors.append((last(path)[0, :, 0] - exact).norm().item())
    assert fitted_order(errors) == pytest.approx(order, abs=0.2)
    assert errors[-1] < 1e-2


@pytest.mark.parametrize(("solver", "order"), [("exp-ab2", 2), ("exp-ab3", 3)])
def test_order_survives_a_start_where_the_denoiser_moves(solver, order):
    """The first steps are of lower order; uncorrected, they would leave order 2 to both."""
    exact, errors = (marginal_variance(STOP) / marginal_variance(0.7)).sqrt(), []
    for steps in GRIDS:
        variances = mode_variances(EIGENVALUES, step_grid(steps, STOP, 0.7), "ode", solver)
        errors.append((variances.sqrt() - exact).norm().item())
    assert fitted_order(errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("solver", "order"), SDE_ORDERS.items())
def test_order_of_convergence_of_the_sde_solvers(solver, order):
    """The SDE forgets its start with the factor r = exp ∫ (1/2 − 1/variance) dt, in closed form."""
    excess = EIGENVALUES - 1
    forget = math.exp((START - STOP) / 2) * (math.exp(STOP) + excess) / (math.exp(START) + excess)
    exact = marginal_variance(STOP) + forget**2 * (1 - marginal_variance(START))
    errors = []
    for steps in GRIDS:
        variances = mode_variances(EIGENVALUES, step_grid(steps, STOP, START), "sde", solver)
        errors.append((variances - exact).norm().item())
    assert fitted_order(errors) == pytest.approx(order, abs=0.2)
    assert errors[-1] < 5e-2


# Variance of a mode within a per cent of the truth, from 0.001 to 14: what twenty-four evaluations
# are asked for. Today's default of version 0.1 (second order, quadratic grid, t_0 = 0.005) beside.
SPECTRUM = torch.logspace(-3, math.log10(14), 60, dtype=torch.float64)


def largest_deviation(solver, steps, t_min, spacing="log-snr"):
    variances = mode_variances(
        SPECTRUM, step_grid(steps, t_min, spacing=spacing), "ode", solver, final_denoise=True
    )
    return (variances / SPECTRUM - 1).abs().max().item()


@pytest.mark.statement("FDGWC Backward process")
def test_every_mode_is_within_its_bar():
    stop = stop_for(1e-3)
    assert largest_deviation("exp-ab3", 23, stop) <= 0.01
    assert largest_deviation("exp-ab4", 11, stop) <= 0.15
    assert largest_deviation("dpmpp-2m", 11, stop) <= 0.15
    before = largest_deviation("dpmpp-2m", 19, 0.005, "quadratic")
    assert before >= 40 * largest_deviation("exp-ab3", 19, stop)


@pytest.mark.statement("FDGWC Backward process")
@pytest.mark.parametrize(("solver", "spacing"), [("heun", "quadratic"), ("dpmpp-2m", "quadratic")])
def test_covariance_of_the_ode_meets_its_bar(solver, spacing):
    """N = 32, ℓ = 8, T = 10, no Monte Carlo: 2 % off after 20 score evaluations, 0.3 % after 50."""
    law = GaussianProcess(PowerExponential(8.0), torch.eye(1), seq_len=32)
    for evaluations, bar in ((20, 0.02), (50, 0.003)):
        steps = evaluations // EVALUATIONS.get(solver, 1)
        found = sampling_error(law, solver, steps, spacing, t_min=0.005, final_denoise=False)
        assert found.covariance <= bar


# ---- laws of samples --------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Backward process")
@pytest.mark.parametrize("final_denoise", [False, True])
@pytest.mark.parametrize(("method", "solver"), ALL_SOLVERS)
def test_samples_have_the_covariance_that_propagation_predicts(method, solver, final_denoise):
    law, n, settings_ = process(4, 2, seed=2, mean=False), 8000, {"steps": 12, "t_max": 6.0}
    x = sample(
        ExactScore(law), n, 4, 2, method, solver, generator=seeded(0), dtype=torch.float64,
        final_denoise=final_denoise, **settings_,
    )  # fmt: skip
    (_, u), (_, w) = law.temporal_spectrum, law.spatial_spectrum
    rotated = (u.T @ x @ w).flatten(1)
    found = sampling_error(
        law, method=method, solver=solver, final_denoise=final_denoise, **settings_
    )
    truth = found.sampled.flatten().diag()
    assert_statistical(rotated.T @ rotated / n, truth, covariance_standard_error(truth, n), n)


@pytest.mark.statement("FDGWC Backward process")
@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_samples_have_the_mean_of_the_process(method):
    law, n = process(4, 2, seed=5), 20_000
    x = sample(ExactScore(law), n, 4, 2, method, steps=60, generator=seeded(1), dtype=torch.float64)
    # what the horizon costs, e^(−T/2) = 7e-3 of the mean, is one standard error here
    error = (law.covariance().diagonal() / n).sqrt()
    assert_statistical((x - law.mean).mean(0).flatten(), torch.zeros(8), error, n)


@pytest.mark.parametrize(("method", "solver"), ALL_SOLVERS)
def test_mean_of_the_path_is_that_of_the_forward_process(method, solver):
    """Without noise and started at α_T μ, the exact score keeps v at α_t μ up to the step error."""
    law = GaussianProcess(torch.eye(2), torch.eye(1), mean=torch.tensor([2.0]))
    grid = step_grid(800, 0.05, 4.0)
    start = alpha(4.0) * law.mean[None]
    path = trajectory(
        ExactScore(law), start, grid, method, solver, lambda _k: torch.zeros_like(start)
    )
    final = last(path)
    # x ~ N(μ, I): the score is −(v − α μ), so v' = (v/2 − (v − αμ)) keeps v = α_t μ exactly
    assert final.flatten().tolist() == pytest.approx([2.0, 2.0], rel=5e-3)


# ---- how the score is called ------------------------------------------------------------------


@pytest.mark.parametrize("final_denoise", [False, True])
@pytest.mark.parametrize(("method", "solver"), ALL_SOLVERS)
def test_score_is_evaluated_as_often_as_documented(method, solver, final_denoise):
    called = []

    def score(v, t):
        called.append(t)
        return -v

    sample(score, 2, 3, 1, method, solver, steps=7, final_denoise=final_denoise)
    assert len(called) == 7 * EVALUATIONS.get(solver, 1) + final_denoise
    assert all(isinstance(t, float) for t in called)
    assert called == sorted(called, reverse=True)
    assert called[0] == pytest.approx(10.0)


def test_trajectory_yields_every_state_and_ends_where_sample_does():
    score, generator = ExactScore(process()), seeded(0)
    start = torch.randn(2, 5, 3, generator=generator)
    path = list(trajectory(score, start, step_grid(9, stop_of(score))))
    assert len(path) == 10
    assert path[-1][0] == 0.0
    assert torch.equal(path[-1][1], sample(score, 2, 5, 3, steps=9, generator=seeded(0)))


def test_network_scores_run_without_gradients_on_their_device():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, v, t):
            return -self.scale * v

    for device in DEVICES:
        x = sample(Network().to(device), 2, 3, 1, steps=3)
        assert not x.requires_grad
        assert x.device.type == device
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", sorted(SOLVERS))
def test_sampling_is_reproducible_and_leaves_global_randomness_alone(method):
    score, state = ExactScore(process()), torch.random.get_rng_state()
    first, again, other = (
        sample(score, 2, 5, 3, method, steps=4, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sde_draws_fresh_noise_at_every_step():
    draws = []

    def score(v, t):
        draws.append(v)
        return -v  # with this score the backward SDE is stationary, and v stays standard normal

    with pytest.warns(UserWarning, match="times their variance"):  # two steps are too few
        sample(
            score, 4000, 2, 1, "sde", "euler-maruyama", 2, 1.0, generator=seeded(0),
            spacing="quadratic",
        )  # fmt: skip
    step = (math.sqrt(10) - 1) / 2 + 1  # middle of the grid in √t
    interval = 10 - step**2
    noise = (draws[1] - (1 - interval / 2) * draws[0]) / math.sqrt(interval)
    product = (noise * draws[0]).flatten()
    assert_statistical(product.mean(), torch.tensor(0.0), 8000**-0.5, 8000)
    assert_statistical((noise**2).mean(), torch.tensor(1.0), (2 / 8000) ** 0.5, 8000)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "solver"), ALL_SOLVERS)
def test_sample_shape_dtype_and_device(device, dtype, method, solver):
    for n in (0, 3):
        x = sample(
            ExactScore(process()), n, 5, 3, method, solver, 15, generator=seeded(0), dtype=dtype,
            device=device,
        )  # fmt: skip
        assert (x.shape, x.dtype, x.device.type) == ((n, 5, 3), dtype, device)


def test_early_stopping_without_denoising_returns_the_noised_state():
    law = GaussianProcess(torch.zeros(2, 2), torch.eye(1))  # every sequence is zero
    score = ExactScore(law)
    noisy = sample(score, 4000, 2, 1, t_min=0.1, generator=seeded(0), final_denoise=False)
    assert_statistical(
        (noisy**2).mean(), torch.tensor(sigma(0.1) ** 2), sigma(0.1) ** 2 * (2 / 8000) ** 0.5, 8000
    )
    clean = sample(score, 5, 2, 1, t_min=0.1, generator=seeded(0))
    assert clean.abs().max() < 1e-6


# ---- what a user is warned of -----------------------------------------------------------------

WILD = [("ode", "heun", "quadratic", 20), ("sde", "euler-maruyama", "log-snr", 3)]


@pytest.mark.parametrize(("method", "solver", "spacing", "steps"), WILD)
def test_a_solver_that_inflates_a_mode_is_reported(method, solver, spacing, steps):
    settings_ = {"method": method, "solver": solver, "spacing": spacing, "t_min": 1e-4}
    expected = rf"'{solver}' on this grid of {steps} steps gives modes of variance .* times"
    with pytest.warns(UserWarning, match=expected):
        sample(zero, 2, 3, 1, steps=steps, **settings_)
    sample(zero, 2, 3, 1, steps=20 * steps, **settings_)  # warnings are errors here


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("method", "solver"), ALL_SOLVERS)
def test_no_mode_of_a_known_law_is_inflated_without_a_warning(method, solver, spacing):
    """Any step count from 2, any stop: the warning comes if and only if a mode is inflated."""
    for steps in (2, 3, 4, 5, 7, 10, 15, 25, 60):
        for t_min in (0.005, 1e-4, 1e-6):
            grid = step_grid(steps, t_min, spacing=spacing)
            values = torch.logspace(-6, 2, 300, dtype=torch.float64)
            made = mode_variances(values, grid, method, solver)
            excess = made / (alpha(t_min) ** 2 * values + sigma(t_min) ** 2)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                sample(zero, 1, 2, 1, method, solver, steps, t_min, spacing=spacing)
            assert torch.isfinite(excess).all()
            if abs(excess.max() / 10 - 1) > 0.1:  # the warning looks at fewer modes
                assert bool(told) == bool(excess.max() > 10), (steps, t_min, excess.max())


def test_default_never_warns_however_few_the_steps():
    for method in SOLVERS:
        for steps in range(1, 40):
            sample(zero, 1, 2, 1, method, steps=steps, t_min=1e-6)


def test_a_restart_begins_with_the_law_at_its_step_and_not_with_white_noise():
    """From white noise sixteen steps from t = 0.1 would give faint modes ten times too much."""
    grid, faint = step_grid(16, 0.005, 0.1), torch.tensor([1e-6])
    true = [alpha(t) ** 2 * faint + sigma(t) ** 2 for t in (grid[0], grid[-1])]
    assert mode_variances(faint, grid) > 10 * true[1]
    made = mode_variances(faint, grid, initial=true[0])
    assert made.item() == pytest.approx(true[1].item(), rel=1e-2)
    restart(lambda v, t: -v / sigma(t) ** 2, torch.zeros(1, 2, 1), 0.1, steps=16)  # no warning


def test_a_law_without_faint_modes_is_spared_a_warning_about_them():
    settings_ = {"solver": "heun", "spacing": "quadratic", "steps": 20, "t_min": 5e-4}
    white = GaussianProcess(torch.eye(3), torch.eye(1))
    sample(ExactScore(white), 2, 3, 1, **settings_)
    with pytest.warns(UserWarning, match="times their variance"):
        sample(lambda v, t: -v, 2, 3, 1, **settings_)


class Trained(torch.nn.Module):
    t_range = (0.01, 8.0)

    def forward(self, v, t):
        return -v


def test_a_score_is_asked_where_it_was_trained_or_a_user_is_told():
    asked = []

    def listening(v, t):
        asked.append(t)
        return -v

    listening.t_range = Trained.t_range
    sample(listening, 1, 2, 1)
    assert asked[-1] == 0.01 == stop_of(Trained())
    message = r"t_min=0.001 asks the score below.*t >= 0.01: leave t_min out, or train with"
    with pytest.warns(UserWarning, match=message):
        sample(Trained(), 1, 2, 1, t_min=0.001)
    with pytest.warns(UserWarning, match=message):
        restart(Trained(), torch.zeros(1, 2, 1), 0.5, t_min=0.001)


def test_generation_stops_by_the_law_where_nothing_else_is_said():
    law = GaussianProcess(PowerExponential(8.0, 1.5), torch.eye(1), seq_len=8)
    assert stop_of(ExactScore(law)) == stop_for(law) < 0.001
    assert stop_of(lambda v, t: -v) == 0.005


# ---- bad input --------------------------------------------------------------------------------


def zero(v, t):
    return torch.zeros_like(v)


V = torch.zeros(2, 3, 1)
BAD_INPUT = {
    "score shape": (
        lambda: sample(lambda v, t: v[..., :1].sum(0), 2, 3, 1),
        r"score must return a tensor of shape \(2, 3, 1\), got \(3, 1\)",
    ),
    "score broadcasts": (
        lambda: sample(lambda v, t: v[:1], 2, 3, 1),
        r"score must return a tensor of shape \(2, 3, 1\), got \(1, 3, 1\)",
    ),
    "score type": (
        lambda: sample(lambda v, t: None, 2, 3, 1, solver="heun"),
        r"score must return a tensor of shape \(2, 3, 1\), got NoneType",
    ),
    "n": (lambda: sample(zero, -1, 3, 1), "n must be an integer >= 0, got -1"),
    "seq_len": (lambda: sample(zero, 1, 0, 1), "seq_len must be an integer >= 1, got 0"),
    "dim": (lambda: sample(zero, 1, 3, 0), "dim must be an integer >= 1, got 0"),
    "steps": (lambda: sample(zero, 1, 3, 1, steps=0), "steps must be an integer >= 1, got 0"),
    "t_min": (lambda: sample(zero, 1, 3, 1, t_min=0.0), "t_min must be.* > 0, got 0.0"),
    "t_max": (lambda: sample(zero, 1, 3, 1, t_max=math.inf), "t_max must be a finite.*got inf"),
    "spacing": (
        lambda: sample(zero, 1, 3, 1, spacing="cosine"),
        "spacing must be one of log-snr, quadratic, got 'cosine'",
    ),
    "tolerance": (lambda: stop_for(0.1, 0.0), "tolerance must be a finite.*got 0.0"),
    "variance": (lambda: stop_for(-0.1), "smallest variance must be finite and >= 0, got -0.1"),
    "sequences": (
        lambda: stop_for(V[0]),
        r"x must have shape \(batch, seq_len, dim\), got \(3, 1\)",
    ),
    "order": (
        lambda: sample(zero, 1, 3, 1, t_min=2.0, t_max=1.0),
        "t_min < t_max, got t_min=2.0, t_max=1.0",
    ),
    "method": (
        lambda: sample(zero, 1, 3, 1, method="langevin"),
        "ode: exp-ab3, exp-ab2, exp-ab4, ddim, dpmpp-2m, heun; sde: .*; got 'langevin'",
    ),
    "solver": (
        lambda: sample(zero, 1, 3, 1, method="sde", solver="heun"),
        "got 'sde', 'heun'",
    ),
    "no noise": (
        lambda: last(trajectory(zero, V, step_grid(3), "sde")),
        "the SDE needs noise",
    ),
    "state": (
        lambda: last(trajectory(zero, V[0], step_grid(3))),
        r"v must have shape \(batch, seq_len, dim\), got \(3, 1\)",
    ),
    "rising grid": (
        lambda: last(trajectory(zero, V, [0.5, 1.0])),
        r"decreasing steps > 0, got \[0.5, 1.0\]",
    ),
    "grid to zero": (
        lambda: last(trajectory(zero, V, [1.0, 0.0])),
        r"decreasing steps > 0, got \[1.0, 0.0\]",
    ),
    "one step": (lambda: last(trajectory(zero, V, [1.0])), r"two or more.*got \[1.0\]"),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()


def test_a_score_that_is_not_finite_is_reported():
    with pytest.raises(FloatingPointError, match="NaN or infinite values: check the score"):
        sample(lambda v, t: v * math.nan, 2, 3, 1, steps=2)


# ---- restart ------------------------------------------------------------------------------------


def test_restart_with_the_exact_score_keeps_the_law_and_draws_others_to_it():
    law = process(5, 2, seed=3, mean=False)
    n, score, t = 6000, ExactScore(law), 0.7
    truth = law.covariance()
    x = law.sample(n, seeded(0), torch.float64)
    kept = restart(score, x, t, 2, steps=60, t_min=1e-4, generator=seeded(1)).flatten(1)
    assert not torch.equal(kept, x.flatten(1))
    error = covariance_standard_error(truth, n)
    assert_statistical(kept.T @ kept / n, truth, error, n)
    errors, y = [], 2 * torch.randn(n, 5, 2, generator=seeded(2), dtype=torch.float64)
    for _ in range(4):
        rows = y.flatten(1)
        errors.append(relative_error(rows.T @ rows / n, truth))
        y = restart(score, y, 1.5, steps=20, generator=seeded(len(errors)))
    assert errors[1] < 0.5 * errors[0] and errors[-1] < 0.1 * errors[0]


def test_restart_is_reproducible_and_keeps_dtype():
    x = torch.randn(2, 4, 3, generator=seeded(0))
    score = ExactScore(GaussianProcess(PowerExponential(2.0), torch.eye(3), seq_len=4))
    once = [restart(score, x, 0.5, 2, generator=seeded(1)) for _ in range(2)]
    assert torch.equal(*once) and once[0].dtype == x.dtype and once[0].shape == x.shape
    twice = restart(score, x, 0.5, 1, generator=(g := seeded(1)))
    assert torch.equal(restart(score, twice, 0.5, 1, generator=g), once[0])
    assert torch.equal(restart(score, x, 0.5, 0), x)
    with pytest.raises(ValueError, match="rounds must be an integer >= 0"):
        restart(score, x, 0.5, -1)
    with pytest.raises(ValueError, match="expected t_min < t_max"):
        restart(score, x, 0.001)
    with pytest.raises(ValueError, match="must have shape"):
        restart(score, x[0], 0.5)
