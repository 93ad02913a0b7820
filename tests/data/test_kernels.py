"""Kernels, Gram matrices, truncation and tapers, time embeddings, random covariances."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from strategies import (
    DEVICES,
    covariance,
    kernels,
    lengthscales,
    seeded,
    seeds,
    semidefinite_matrices,
)
from tolerances import assert_identity, assert_statistical

from gptheory.attention import embedding_distance, time_embedding
from gptheory.data import (
    Matern,
    Periodic,
    PowerExponential,
    WhiteNoise,
    conditioned,
    gram,
    random_covariance,
    taper,
    truncate,
)
from gptheory.data.covariance import TAPERS
from gptheory.data.kernels import RationalQuadratic
from gptheory.support.rounding import gamma

LAGS = torch.arange(60, dtype=torch.float64)
KERNELS = [
    PowerExponential(4.0, 1.3),
    Matern(5.0, 1.5),
    Matern(5.0, 0.8),
    RationalQuadratic(3.0, 0.7),
    Periodic(1.0, 9.0),
    WhiteNoise(),
]


def lags_of(matrix: torch.Tensor) -> torch.Tensor:
    index = torch.arange(len(matrix))
    return (index[:, None] - index).abs()


def smallest_eigenvalue(matrix: torch.Tensor) -> float:
    """Relative to the largest."""
    values = np.linalg.eigvalsh(matrix.numpy())
    return values[0] / values[-1]


def psd_rounding(size: int) -> float:
    """Of an eigenvalue relative to the largest: entries are off by 8 u, so ‖E‖_F <= 8 u √n ‖A‖."""
    return gamma(8) * math.sqrt(size) + gamma(8 * size)


# ---- laws of every kernel ---------------------------------------------------------------------


@given(kernels)
def test_kernel_is_one_at_lag_zero_and_never_larger(kernel):
    values = kernel(LAGS)
    assert values[0] == 1
    assert torch.isfinite(values).all()
    assert values.abs().max() <= 1 + 1e-12
    assert torch.equal(values, kernel(-LAGS))


@pytest.mark.statement("FDGWC Data model")
@given(kernels, st.integers(1, 40))
def test_gram_is_a_stationary_covariance(kernel, seq_len):
    matrix = gram(kernel, seq_len)
    values = kernel(torch.arange(seq_len))
    assert matrix.shape == (seq_len, seq_len)
    assert matrix.dtype == torch.float64
    assert all(
        matrix[i, j] == values[abs(i - j)]
        for i, j in [(0, 0), (0, seq_len - 1), (seq_len - 1, 0), (seq_len // 2, 0)]
    )
    assert torch.equal(matrix[1:, 1:], matrix[:-1, :-1])  # Toeplitz
    assert torch.equal(matrix, matrix.T)
    assert smallest_eigenvalue(matrix) >= -psd_rounding(seq_len)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("device", DEVICES)
def test_kernel_keeps_shape_dtype_and_device(kernel, device):
    for dtype in (torch.float32, torch.float64):
        lag = torch.ones(2, 3, dtype=dtype, device=device)
        values = kernel(lag)
        assert (values.shape, values.dtype, values.device) == (lag.shape, dtype, lag.device)
    assert kernel(torch.arange(3)).dtype == torch.float64
    assert kernel(2).dtype == kernel(2.0).dtype == torch.float64
    assert kernel(2).shape == ()


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_kernel_is_immutable_and_named_by_its_parameters(kernel):
    assert kernel == dataclasses.replace(kernel)
    for name in dataclasses.asdict(kernel):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kernel, name, 1.0)


def test_gram_casts_only_at_the_end():
    kernel = PowerExponential(7.0, 2.0)
    assert torch.equal(gram(kernel, 9, torch.float32), gram(kernel, 9).float())


# ---- formulas ---------------------------------------------------------------------------------


@given(lengthscales, st.floats(0.1, 2.0))
def test_power_exponential_formula(lengthscale, exponent):
    expected = np.exp(-((LAGS.numpy() / lengthscale) ** exponent))
    assert_identity(PowerExponential(lengthscale, exponent)(LAGS), expected)


@given(lengthscales, st.floats(0.05, 8.0))
def test_matern_agrees_with_scipy_bessel_function(lengthscale, smoothness):
    r = np.linspace(0.01, 4.0, 80) * lengthscale
    x = math.sqrt(2 * smoothness) * r / lengthscale
    expected = 2 ** (1 - smoothness) / special.gamma(smoothness) * x**smoothness
    expected = expected * special.kv(smoothness, x)
    assert_identity(Matern(lengthscale, smoothness)(torch.as_tensor(r)), expected)


@pytest.mark.parametrize(
    ("smoothness", "closed_form"),
    [
        (0.5, lambda x: np.exp(-x)),
        (1.5, lambda x: (1 + x) * np.exp(-x)),
        (2.5, lambda x: (1 + x + x**2 / 3) * np.exp(-x)),
        (3.5, lambda x: (1 + x + 2 * x**2 / 5 + x**3 / 15) * np.exp(-x)),
    ],
)
def test_matern_closed_forms(smoothness, closed_form):
    x = math.sqrt(2 * smoothness) * LAGS.numpy() / 6.0
    assert_identity(Matern(6.0, smoothness)(LAGS), closed_form(x))


def test_matern_tends_to_the_squared_exponential():
    limit = Matern(6.0, math.inf)(LAGS)
    assert_identity(limit, PowerExponential(6.0 * math.sqrt(2), 2.0)(LAGS))
    gaps = [(Matern(6.0, nu)(LAGS) - limit).abs().max() for nu in (10.0, 20.0, 40.0)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)  # the gap is of order 1/ν
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5, 7.5, math.inf])
def test_closed_forms_of_matern_are_differentiable(smoothness):
    lag = torch.linspace(0.1, 20, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Matern(6.0, smoothness), lag)


@pytest.mark.parametrize("smoothness", [0.3, 1.0, 1.2, 2.0, 2.7])
def test_other_matern_kernels_refuse_a_gradient_instead_of_a_wrong_one(smoothness):
    lag, kernel = torch.linspace(0, 20, 50, dtype=torch.float64), Matern(6.0, smoothness)
    with pytest.raises(ValueError, match=rf"1/2, 3/2.* got smoothness={smoothness}; detach"):
        kernel(lag.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(kernel(lag.clone().requires_grad_()), kernel(lag))


@pytest.mark.parametrize("smoothness", [0.3, 0.5, 2.0, 7.7, 30.2])
def test_matern_decays_to_zero_without_nan(smoothness):
    values = Matern(3.0, smoothness)(torch.logspace(0, 8, 50, dtype=torch.float64))
    assert torch.isfinite(values).all()
    assert (values.diff() <= 0).all()
    assert values[-1] == 0


@given(lengthscales, st.floats(0.1, 10.0))
def test_rational_quadratic_formula(lengthscale, mixture):
    expected = (1 + LAGS.numpy() ** 2 / (2 * mixture * lengthscale**2)) ** -mixture
    assert_identity(RationalQuadratic(lengthscale, mixture)(LAGS), expected)


@given(st.floats(0.2, 5.0), st.integers(2, 30))
def test_periodic_formula_and_period(lengthscale, period):
    kernel = Periodic(lengthscale, float(period))
    cosine = np.cos(2 * math.pi * LAGS.numpy() / period)  # 2 sin² x = 1 − cos 2x
    assert_identity(kernel(LAGS), np.exp((cosine - 1) / lengthscale**2), condition=1e2)
    assert_identity(kernel(LAGS + period), kernel(LAGS), condition=1e2)


def test_white_noise_has_independent_frames():
    assert torch.equal(gram(WhiteNoise(), 5), torch.eye(5, dtype=torch.float64))


def test_power_of_the_lag_over_a_scale():
    """exp(-r^ν/s), from its formula; all exponents agree at lag 1, larger ones are lower beyond."""
    exponents = (0.5, 1.0, 1.5, 2.0)
    values = torch.stack([PowerExponential.of_power(8.0, nu)(LAGS) for nu in exponents])
    for nu, own in zip(exponents, values, strict=True):
        assert_identity(own, np.exp(-(LAGS.numpy() ** nu) / 8))
    assert_identity(values[:, 1], np.full(4, math.exp(-1 / 8)))
    assert (values.diff(dim=0)[:, 2:] < 0).all()
    fixed = torch.stack([PowerExponential(8.0, nu)(LAGS) for nu in exponents]).diff(dim=0)
    assert (fixed[:, 1:8] > 0).all() and (fixed[:, 9:] < 0).all()  # as the docstring says


@pytest.mark.parametrize(
    ("scale", "exponent", "message"),
    [(0.0, 1.0, "scale must be"), (math.nan, 1.0, "scale must be"), (8.0, 0.0, "exponent must lie"),
     (8.0, 2.5, "exponent must lie")],
)  # fmt: skip
def test_power_of_the_lag_refuses_bad_numbers(scale, exponent, message):
    with pytest.raises(ValueError, match=message):
        PowerExponential.of_power(scale, exponent)


# ---- nuggets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.9, 2.0])
@pytest.mark.parametrize("condition", [1.5, 30.0])
def test_nugget_leaves_the_condition_number_asked_for(exponent, condition):
    matrix = gram(PowerExponential(8.0, exponent), 16)
    result = conditioned(matrix, condition)
    values = np.linalg.eigvalsh(result.numpy())
    assert_identity(values[-1] / values[0], condition, condition)
    assert_identity(result.diagonal(), np.ones(16))
    off = lags_of(matrix) > 0  # one factor for every lag, so the shape of the decay stays
    shrunk = result[off] / matrix[off]
    assert_identity(shrunk, np.full(len(shrunk), shrunk[0].item()))
    assert shrunk[0] < 1


def test_no_nugget_where_the_condition_number_is_that_of_the_matrix():
    matrix = PowerExponential(3.0)(torch.arange(6)[:, None] - torch.arange(6)).double()
    for condition in (
        torch.linalg.cond(matrix).item(),
        (1 + 1e-13) * torch.linalg.cond(matrix).item(),
    ):
        assert_identity(conditioned(matrix, condition), matrix)


@pytest.mark.parametrize("condition", [1.0, 0.0, -2.0, math.nan, math.inf, 4.1])
def test_nuggets_cannot_raise_a_condition_number(condition):
    matrix = torch.diag(torch.tensor([1.0, 4.0]))
    with pytest.raises(ValueError, match=r"condition must lie above 1 and be at most .*, 4, got"):
        conditioned(matrix, condition)


# ---- truncation and tapers --------------------------------------------------------------------


@given(semidefinite_matrices(), st.integers(1, 15))
def test_truncate_keeps_exactly_the_band(matrix, bandwidth):
    band = lags_of(matrix) < bandwidth
    result = truncate(matrix, bandwidth)
    assert torch.equal(result[band], matrix[band])
    assert (result[~band] == 0).all()


def test_hard_truncation_breaks_positivity_and_tapers_do_not():
    matrix = gram(PowerExponential(4.0, 2.0), 32)
    assert smallest_eigenvalue(truncate(matrix, 6)) < -0.01
    for window in TAPERS:
        assert smallest_eigenvalue(taper(matrix, 6, window)) >= -psd_rounding(32)


@given(semidefinite_matrices(), st.integers(1, 15), st.sampled_from(sorted(TAPERS)))
def test_taper_keeps_positivity_and_the_diagonal(matrix, bandwidth, window):
    result = taper(matrix, bandwidth, window)
    assert smallest_eigenvalue(result) >= -psd_rounding(len(result))
    assert_identity(result.diagonal(), matrix.diagonal())
    assert (result[lags_of(matrix) >= bandwidth] == 0).all()
    assert (result.abs() <= matrix.abs() * (1 + 1e-12)).all()


@given(st.integers(2, 64), st.sampled_from(sorted(TAPERS)))
def test_taper_window_is_itself_a_covariance(bandwidth, window):
    ones = torch.ones(80, 80, dtype=torch.float64)
    assert smallest_eigenvalue(taper(ones, bandwidth, window)) >= -psd_rounding(len(ones))


@pytest.mark.parametrize(
    ("window", "quarter", "half"),
    [
        ("bartlett", 0.75, 0.5),
        ("wendland", 0.75**4 * 2, 0.5**4 * 3),
        ("bohman", 0.75 * math.sqrt(0.5) + math.sqrt(0.5) / math.pi, 1 / math.pi),
    ],
)
def test_taper_windows_at_a_quarter_and_a_half(window, quarter, half):
    row = taper(torch.ones(8, 8, dtype=torch.float64), 4, window)[0]
    assert_identity(row[[0, 1, 2, 4]], [1, quarter, half, 0])


def test_default_taper_is_bohman():
    matrix = gram(Matern(4.0, 1.5), 9)
    assert torch.equal(taper(matrix, 5), taper(matrix, 5, "bohman"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bands_keep_dtype_and_device(dtype, device):
    matrix = gram(Matern(4.0, 1.5), 9).to(device, dtype)
    for result in (truncate(matrix, 3), taper(matrix, 3)):
        assert (result.dtype, result.device) == (dtype, matrix.device)


# ---- time embedding ---------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Time embedding", "FDGWC Assumption 1")
@given(st.integers(1, 30), st.floats(1.0, 100.0), st.floats(0.1, 10.0))
def test_embedding_distance_is_the_distance_of_the_embeddings(seq_len, period, radius):
    points = time_embedding(seq_len, period, radius)
    assert_identity(points.norm(dim=1), np.full(seq_len, radius))
    distances = (points[:, None] - points).norm(dim=2)
    scale = torch.tensor(2 * radius)  # lags of a whole period have distance 0, with rounding of r
    named = embedding_distance(lags_of(points), period, radius)
    assert_identity(named + scale, distances + scale)


@pytest.mark.statement("FDGWC Time embedding", "FDGWC Assumption 1")
@given(st.integers(2, 200), st.floats(0.0, 50.0))
def test_embedding_distance_names_the_lag_on_a_long_circle(seq_len, extra):
    distances = embedding_distance(torch.arange(seq_len), 2 * (seq_len - 1) + extra)
    assert distances.dtype == torch.float64
    assert (distances.diff() > 0).all()


def test_embedding_distance_is_ambiguous_on_a_short_circle():
    assert_identity(embedding_distance(1, 10), embedding_distance(9, 10))


def test_embedding_starts_at_frame_one():
    angle = 2 * math.pi / 8
    assert_identity(time_embedding(3, 8)[0], [math.sin(angle), math.cos(angle)])


# ---- random covariances -----------------------------------------------------------------------


@given(st.integers(2, 12), st.floats(1e-3, 1.0), st.floats(1.0, 50.0), seeds)
def test_random_covariance_has_the_spectrum_it_promises(dim, low, high, seed):
    matrix = random_covariance(dim, low, high, seeded(seed))
    values = np.linalg.eigvalsh(matrix.numpy())
    assert torch.equal(matrix, matrix.T)
    assert_identity(values[[0, -1]], [low, high])


def test_random_covariance_of_one_number_is_high():
    assert random_covariance(1, 0.3, 0.7).tolist() == [[0.7]]


def test_random_covariance_has_no_preferred_direction():
    n, generator = 2000, seeded(0)
    draws = torch.stack([random_covariance(3, 0.2, 1.0, generator) for _ in range(n)])
    expected = 0.6 * torch.eye(3, dtype=torch.float64)  # every eigenvalue has mean 0.6
    assert_statistical(draws.mean(0), expected, draws.std(0) / math.sqrt(n), n)


def test_random_covariance_is_reproducible_and_leaves_global_randomness_alone():
    state = torch.random.get_rng_state()
    assert torch.equal(covariance(4, seed=3), covariance(4, seed=3))
    assert not torch.equal(covariance(4, seed=3), covariance(4, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- bad input --------------------------------------------------------------------------------

EYE = torch.eye(4, dtype=torch.float64)
BAD_INPUT = {
    "lengthscale zero": (lambda: PowerExponential(0.0), "lengthscale must be.* > 0, got 0.0"),
    "lengthscale negative": (lambda: Matern(-2.0, 1.5), "lengthscale must be.* > 0, got -2.0"),
    "lengthscale nan": (lambda: RationalQuadratic(math.nan, 1.0), "lengthscale.*got nan"),
    "lengthscale infinite": (lambda: Periodic(math.inf, 5.0), "lengthscale.*finite.*got inf"),
    "exponent zero": (lambda: PowerExponential(1.0, 0.0), r"exponent.*\(0, 2\], got 0.0"),
    "exponent above two": (lambda: PowerExponential(1.0, 2.1), r"exponent.*\(0, 2\], got 2.1"),
    "exponent nan": (lambda: PowerExponential(1.0, math.nan), r"exponent.*\(0, 2\], got nan"),
    "smoothness": (lambda: Matern(1.0, 0.0), "smoothness must be.* > 0, got 0.0"),
    "mixture": (lambda: RationalQuadratic(1.0, -1.0), "mixture must be.* > 0, got -1.0"),
    "period": (lambda: Periodic(1.0, 0.0), "period must be.* > 0, got 0.0"),
    "seq_len": (lambda: gram(WhiteNoise(), 0), "seq_len must be an integer >= 1, got 0"),
    "seq_len fraction": (lambda: gram(WhiteNoise(), 2.5), "seq_len must be an integer.*got 2.5"),
    "kernel nan": (lambda: gram(lambda r: r / r, 4), "kernel's values must be finite, got 1"),
    "bandwidth zero": (lambda: truncate(EYE, 0), "bandwidth must be an integer >= 1, got 0"),
    "bandwidth taper": (lambda: taper(EYE, -3), "bandwidth must be an integer >= 1, got -3"),
    "bandwidth nan": (lambda: truncate(EYE, math.nan), "bandwidth must be an integer.*got nan"),
    "not square": (lambda: truncate(torch.ones(2, 3), 1), r"Gram matrix.*square.*\(2, 3\)"),
    "not symmetric": (
        lambda: taper(EYE.cumsum(0), 2),
        r"Gram matrix must be symmetric.*by up to 1",
    ),
    "window": (lambda: taper(EYE, 2, "hann"), "one of.*bartlett.*bohman.*wendland.*got 'hann'"),
    "embedding length": (lambda: time_embedding(0, 5), "seq_len must be an integer >= 1, got 0"),
    "embedding period": (lambda: time_embedding(4, 0), "period must be.* > 0, got 0"),
    "embedding radius": (lambda: time_embedding(4, 5, -1), "radius must be.* > 0, got -1"),
    "distance period": (lambda: embedding_distance(1, -5), "period must be.* > 0, got -5"),
    "distance radius": (lambda: embedding_distance(1, 5, 0), "radius must be.* > 0, got 0"),
    "dim": (lambda: random_covariance(0), "dim must be an integer >= 1, got 0"),
    "low": (lambda: random_covariance(3, 0.0), "low must be.* > 0, got 0.0"),
    "high": (lambda: random_covariance(3, 1.0, 0.5), "low <= high.*low=1.0, high=0.5"),
    "high nan": (lambda: random_covariance(3, 1.0, math.nan), "low <= high.*high=nan"),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()


@settings(max_examples=20)
@given(st.integers(1, 6))
def test_band_of_one_frame_is_the_diagonal(seq_len):
    matrix = gram(Matern(3.0, 0.5), seq_len)
    assert torch.equal(truncate(matrix, 1), torch.eye(seq_len, dtype=torch.float64))
    assert_identity(taper(matrix, 1), torch.eye(seq_len))
