"""Gaussian processes: density, moments of samples, long sequences, bad input."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from strategies import DEVICES, covariance, process, processes, seeded, seeds
from tolerances import (
    assert_float32,
    assert_identity,
    assert_statistical,
    covariance_standard_error,
)

from gptheory.data import (
    GaussianProcess,
    Matern,
    Periodic,
    PowerExponential,
    WhiteNoise,
    gram,
    truncate,
)
from gptheory.data.process import CIRCULANT_FROM
from gptheory.support.validation import NotPSDError

ONE = torch.ones(1, 1, dtype=torch.float64)  # the spatial covariance of one-dimensional frames


def kernel_process(kernel, seq_len: int, dim: int = 1) -> GaussianProcess:
    return GaussianProcess(kernel, covariance(dim) if dim > 1 else ONE, seq_len=seq_len)


# ---- density ----------------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Data model")
@given(processes, seeds)
def test_log_prob_agrees_with_scipy(law, seed):
    x = 2 * torch.randn(6, law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)
    dense = np.kron(law.gram().numpy(), law.spatial.numpy())
    oracle = stats.multivariate_normal(law.mean.flatten().numpy(), dense)
    expected = oracle.logpdf(x.flatten(1).numpy()).reshape(6)
    assert_identity(law.log_prob(x), expected, condition=np.linalg.cond(dense))


@given(processes, seeds, st.floats(0.0, 1.0), st.floats(0.05, 2.0))
def test_noised_log_prob_agrees_with_scipy(law, seed, signal, noise):
    v = 2 * torch.randn(6, law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)
    dense = signal**2 * np.kron(law.gram().numpy(), law.spatial.numpy())
    dense = dense + noise**2 * np.eye(len(dense))
    oracle = stats.multivariate_normal(signal * law.mean.flatten().numpy(), dense)
    expected = oracle.logpdf(v.flatten(1).numpy()).reshape(6)
    condition = np.linalg.cond(dense)
    assert_identity(law.noised_log_prob(v, signal, noise), expected, condition=condition)


@pytest.mark.statement("FDGWC Data model")
@given(processes)
def test_covariance_of_frames_i_and_j_is_gamma_times_sigma(law):
    dense = law.covariance().reshape(law.seq_len, law.dim, law.seq_len, law.dim)
    for i in range(law.seq_len):
        for j in range(law.seq_len):
            assert_identity(dense[i, :, j], law.gram()[i, j] * law.spatial)


@given(processes)
def test_spectrum_of_the_product_is_the_product_of_spectra(law):
    products = torch.outer(law.temporal_spectrum[0], law.spatial_spectrum[0]).flatten()
    assert_identity(products.sort()[0], np.linalg.eigvalsh(law.covariance().numpy()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_keeps_dtype_and_device_and_computes_in_float64(dtype, device):
    law = process()
    x = law.sample(5, seeded(0), torch.float64).to(dtype)
    values = law.log_prob(x.to(device))
    assert (values.dtype, values.device.type) == (dtype, device)
    assert_float32(values, law.log_prob(x.double()))
    assert law.log_prob(x[:0]).shape == (0,)


# ---- samples: dense factors -------------------------------------------------------------------


def assert_moments(x: torch.Tensor, law: GaussianProcess) -> None:
    """Mean and full covariance of sequences, entry by entry."""
    n, truth = len(x), law.covariance()
    centred = (x.double() - law.mean).flatten(1)
    assert_statistical(centred.mean(0), torch.zeros(len(truth)), (truth.diagonal() / n).sqrt(), n)
    estimate = centred.T @ centred / n
    assert_statistical(estimate, truth, covariance_standard_error(truth, n), n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 10])
def test_samples_of_a_non_stationary_process_have_its_moments(dtype, seed):
    law = process(seq_len=5, dim=3, seed=seed)
    assert_moments(law.sample(40_000, seeded(seed), dtype), law)


def test_samples_of_a_kernel_have_its_moments():
    law = kernel_process(Matern(3.0, 1.5), seq_len=6, dim=2)
    assert_moments(law.sample(40_000, seeded(1)), law)


def test_samples_of_a_numerically_singular_gram():
    law = kernel_process(PowerExponential(20.0, 2.0), seq_len=12)  # Cholesky fails here
    assert_moments(law.sample(20_000, seeded(2), torch.float64), law)


def test_samples_of_a_singular_covariance_stay_in_its_range():
    law = GaussianProcess(torch.ones(4, 4), covariance(2))  # every frame is the same
    x = law.sample(100, seeded(0), torch.float64)
    assert x.std() > 0.1
    assert_identity(x, x[:, :1].expand_as(x), condition=1e2)


def test_sequences_in_different_chunks_are_independent():
    law = kernel_process(WhiteNoise(), seq_len=512, dim=1)
    x = law.sample(600, seeded(0))[:, :, 0]  # 256 sequences a chunk
    products = (x[:300] * x[300:]).mean(1)
    assert_statistical(products.mean(), torch.tensor(0.0), (300 * 512) ** -0.5, 300 * 512)
    assert_statistical((x**2).mean(), torch.tensor(1.0), (2 / x.numel()) ** 0.5, x.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_normal_to_the_tails(dtype):
    x = kernel_process(WhiteNoise(), seq_len=511).sample(2001, seeded(0), dtype).flatten().double()
    n = len(x)
    for threshold in (-4.0, -3.0, -1.0, -0.1, 0.0, 0.5, 2.0, 3.5, 4.5):
        probability = stats.norm.cdf(threshold)
        spread = math.sqrt(probability * (1 - probability) / n)
        assert_statistical((x < threshold).double().mean(), probability, spread, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_white_frames_are_independent_not_only_uncorrelated(dtype):
    n = 60_000  # one chunk: in float64 the two frames are the two numbers of a Box-Muller pair
    first, second = kernel_process(WhiteNoise(), 2).sample(n, seeded(0), dtype)[:, :, 0].double().T
    assert_statistical((first * second).mean(), 0.0, n**-0.5, n)
    assert_statistical((first**2 * second**2).mean(), 1.0, (8 / n) ** 0.5, n)


@pytest.mark.parametrize("device", DEVICES)
def test_factors_follow_the_device_of_the_spatial_covariance(device):
    law = GaussianProcess(covariance(4), covariance(2).to(device), mean=torch.ones(2))
    assert {f.device.type for f in (law.temporal, law.spatial, law.mean, law.gram())} == {device}
    assert law.sample(2).device.type == device


# ---- means ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [4, CIRCULANT_FROM])
def test_mean_shifts_samples(seq_len):
    shift = torch.arange(2.0 * seq_len).reshape(seq_len, 2)
    centred = GaussianProcess(Matern(3.0, 0.5), covariance(2), seq_len=seq_len)
    shifted = GaussianProcess(Matern(3.0, 0.5), covariance(2), shift, seq_len)
    difference = shifted.sample(3, seeded(0), torch.float64)
    difference = difference - centred.sample(3, seeded(0), torch.float64)
    assert_identity(difference, shift.expand(3, -1, -1))


def test_one_mean_serves_every_frame():
    law = GaussianProcess(covariance(4), covariance(2), mean=[1.0, -2.0])
    assert law.mean.tolist() == [[1.0, -2.0]] * 4
    assert process(mean=False).mean.abs().max() == 0


def test_matrix_and_kernel_describe_the_same_process():
    kernel = Matern(3.0, 1.5)
    by_kernel = GaussianProcess(kernel, covariance(2), seq_len=7)
    by_matrix = GaussianProcess(gram(kernel, 7), covariance(2))
    assert torch.equal(by_kernel.gram(), by_matrix.gram())
    assert torch.equal(by_kernel.sample(3, seeded(0)), by_matrix.sample(3, seeded(0)))
    assert (by_kernel.seq_len, by_kernel.dim) == (by_matrix.seq_len, by_matrix.dim) == (7, 2)
    assert repr(by_kernel) == (
        "GaussianProcess(temporal=Matern(lengthscale=3.0, smoothness=1.5), seq_len=7, dim=2)"
    )
    assert "(7, 7) matrix" in repr(by_matrix)


# ---- samples: circulant embedding -------------------------------------------------------------


def assert_lag_covariances(x: torch.Tensor, kernel, lags: tuple[int, ...]) -> None:
    """Averages of x_i x_(i + lag) over each sequence, compared over independent sequences."""
    n, seq_len = x.shape
    for lag in lags:
        averages = (x[:, : seq_len - lag] * x[:, lag:]).mean(1, dtype=torch.float64)
        standard_error = averages.std() / math.sqrt(n)  # honest: sequences are independent
        assert_statistical(averages.mean(), kernel(lag), standard_error, n)


@pytest.mark.parametrize("kernel", [PowerExponential(20.0), Matern(300.0, 1.5)], ids=repr)
def test_long_sequences_have_the_covariance_of_their_kernel(kernel):
    x = kernel_process(kernel, seq_len=65_536).sample(64, seeded(0))[:, :, 0]
    assert_lag_covariances(x, kernel, (0, 1, 2, 10, 1000))
    increments = (x.diff(dim=1) ** 2).mean(1, dtype=torch.float64)  # low-rank shortcuts fail here
    expected = 2 - 2 * kernel(1)
    assert_statistical(increments.mean(), expected, increments.std() / 8, len(x))


def test_circulant_sequences_have_the_joint_covariance_of_frames_and_coordinates():
    kernel, frames = Matern(200.0, 0.5), [0, 1, 5, 300, CIRCULANT_FROM - 1]
    law = kernel_process(kernel, CIRCULANT_FROM, dim=2)
    n = 8000
    x = law.sample(n, seeded(3))[:, frames].double().flatten(1)
    truth = torch.kron(law.gram()[frames][:, frames], law.spatial)
    assert_statistical(x.T @ x / n, truth, covariance_standard_error(truth, n), n)


def test_the_two_halves_of_a_transform_are_independent_sequences():
    law = kernel_process(Matern(5.0, 0.5), CIRCULANT_FROM)
    n = 256  # one chunk: sequence k and k + 128 come from one transform
    x = law.sample(n, seeded(0))[:, :, 0].double()
    for lag in (0, 1, 20):
        products = (x[:128, lag:] * x[128:, : CIRCULANT_FROM - lag]).mean(1)
        assert_statistical(products.mean(), torch.tensor(0.0), products.std() / 128**0.5, 128)


def test_circulant_embedding_grows_until_it_is_a_covariance():
    """Wrapped too early the kernel has a kink, and smooth paths become far rougher (650 times)."""
    kernel = PowerExponential(1500.0, 2.0)
    law, frames, n = kernel_process(kernel, 1024), [0, 100, 512, 1023], 1000
    x = law.sample(n, seeded(0), torch.float64)[:, :, 0]
    truth = law.gram()[frames][:, frames]
    sampled = x[:, frames].T @ x[:, frames] / n
    assert_statistical(sampled, truth, covariance_standard_error(truth, n), n)
    for first in (0, 511, 1022):
        roughness = ((x[:, first + 1] - x[:, first]) ** 2).mean()
        expected = 2 - 2 * kernel(1)
        assert_statistical(roughness, expected, expected * math.sqrt(2 / n), n)


def test_periodic_kernel_with_a_period_that_does_not_fit_is_refused():
    law = kernel_process(Periodic(1.0, 37.3), 1024)
    with pytest.raises(NotPSDError, match=r"no circulant embedding of Periodic.*pass\s+gram\("):
        law.sample(1)


def test_periodic_kernel_with_a_period_that_fits_repeats_exactly():
    x = kernel_process(Periodic(1.0, 64.0), 1024).sample(4, seeded(0), torch.float64)
    assert x.std() > 0.1
    # eigenvalues that should be 0 round to 1e-16, their square roots to 1e-8
    assert_identity(x[:, 64:], x[:, :-64], condition=1e3)


# ---- bad input --------------------------------------------------------------------------------

EYE = torch.eye(3, dtype=torch.float64)
INDEFINITE = torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and −1
WITH_NAN = torch.full((3, 3), math.nan)
BAD_INPUT = {
    "temporal not psd": (
        lambda: GaussianProcess(INDEFINITE, EYE),
        "temporal covariance given as a matrix is not.*smallest eigenvalue is -1,"
        ".*largest 3.*taper.*identity",
    ),
    "truncated": (
        lambda: GaussianProcess(truncate(gram(PowerExponential(4.0, 2.0), 32), 6), EYE),
        "not positive semidefinite.*kernels.taper",
    ),
    "spatial not psd": (
        lambda: GaussianProcess(EYE, INDEFINITE),
        "spatial covariance is not.*smallest eigenvalue is -1",
    ),
    "kernel not psd": (
        lambda: GaussianProcess(lambda r: (r < 2).double(), EYE, seq_len=5).temporal_spectrum,
        "temporal covariance of <function.*smallest eigenvalue is -0.73",
    ),
    "temporal not symmetric": (
        lambda: GaussianProcess(EYE.cumsum(0), EYE),
        "temporal must be symmetric",
    ),
    "spatial not symmetric": (
        lambda: GaussianProcess(EYE, EYE.cumsum(0)),
        "spatial must be symmetric",
    ),
    "temporal nan": (lambda: GaussianProcess(WITH_NAN, EYE), "temporal must be finite, got 9"),
    "spatial nan": (lambda: GaussianProcess(EYE, WITH_NAN), "spatial must be finite, got 9"),
    "temporal shape": (
        lambda: GaussianProcess(torch.ones(2, 3), EYE),
        r"temporal must be a square.*\(2, 3\)",
    ),
    "temporal type": (
        lambda: GaussianProcess(np.eye(3), EYE),
        "temporal must be a tensor or a kernel, got ndarray",
    ),
    "no seq_len": (lambda: GaussianProcess(WhiteNoise(), EYE), "kernel needs seq_len"),
    "seq_len zero": (
        lambda: GaussianProcess(WhiteNoise(), EYE, seq_len=0),
        "seq_len must be an integer >= 1, got 0",
    ),
    "seq_len disagrees": (
        lambda: GaussianProcess(EYE, EYE, seq_len=4),
        "temporal has 3 frames, but seq_len=4",
    ),
    "mean shape": (
        lambda: GaussianProcess(EYE, torch.eye(2), mean=torch.ones(3)),
        r"mean must have shape \(3, 2\) or \(2,\), got \(3,\)",
    ),
    "mean infinite": (
        lambda: GaussianProcess(EYE, EYE, mean=torch.tensor([1.0, math.inf, 0.0])),
        "mean must be finite, got 1",
    ),
    "n negative": (lambda: process().sample(-1), "n must be an integer >= 0, got -1"),
    "n fraction": (lambda: process().sample(2.0), "n must be an integer >= 0, got 2.0"),
    "log_prob shape": (
        lambda: process(5, 3).log_prob(torch.ones(2, 3, 5)),
        r"x must have shape \(batch, 5, 3\), got \(2, 3, 5\)",
    ),
    "log_prob nan": (
        lambda: process(3, 3).log_prob(WITH_NAN[None]),
        "x must be finite, got 9",
    ),
    "log_prob singular": (
        lambda: GaussianProcess(torch.ones(3, 3), EYE).log_prob(torch.ones(1, 3, 3)),
        "temporal covariance is singular.*no density; add a small multiple of the identity",
    ),
    "long kernel nan": (
        lambda: GaussianProcess(lambda r: r / r, EYE, seq_len=1000).sample(1),
        "kernel's values must be finite, got 1 NaN",
    ),
    "dense too large": (
        lambda: GaussianProcess(WhiteNoise(), EYE, seq_len=3000).covariance(),
        "dense covariance of 9000 rows is above the limit of 8192; use the factors",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        call()


@settings(max_examples=20)
@given(seeds)
def test_rounding_below_zero_is_clipped_not_refused(seed):
    root = torch.randn(6, 2, generator=seeded(seed), dtype=torch.float64)
    law = GaussianProcess(root @ root.T - 1e-13 * torch.eye(6), ONE)
    assert law.temporal_spectrum[0].min() == 0
    assert torch.isfinite(law.sample(3)).all()
