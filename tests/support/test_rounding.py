"""Limits on eigenvalues follow the precision in which a matrix arrived."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeded, seeds, semidefinite_matrices

from gptheory.data import (
    GaussianMixture,
    GaussianProcess,
    GaussianTwin,
    PowerExponential,
    kronecker_mle,
    toeplitz_moments,
)
from gptheory.diffusion import UnrolledScore
from gptheory.measures import gaussian_kl, gaussian_w2, temporal_covariance
from gptheory.measures.gaussians import gaussian_tv_bounds
from gptheory.support.rounding import SUMMED, gamma, spectrum_rounding, unit_roundoff
from gptheory.support.spectra import PSD_TOLERANCE, clipped_eigh, covariance_spectrum
from gptheory.support.validation import NotPSDError

NARROW = [torch.float32, torch.float16, torch.bfloat16]
ONE = torch.eye(1, dtype=torch.float64)


def consumers(matrix):
    """Everything that takes a covariance and looks at its spectrum."""
    size = len(matrix)
    GaussianProcess(matrix, ONE)
    GaussianProcess(ONE, matrix)
    GaussianMixture(torch.zeros(2, 1, size), matrix)
    gaussian_w2(matrix, torch.eye(size))
    gaussian_kl(matrix, torch.eye(size))


def test_unit_roundoff_and_its_multiples():
    assert [unit_roundoff(dtype) for dtype in NARROW] == [2**-24, 2**-11, 2**-8]
    assert unit_roundoff(torch.float64) == unit_roundoff(torch.int64) == 2**-53
    assert gamma(10, torch.float32) == pytest.approx(10 * 2**-24, rel=1e-6)
    assert gamma(128, torch.bfloat16) == 1.0
    with pytest.raises(ValueError, match=r"256 operations in torch\.bfloat16 may lose everything"):
        gamma(256, torch.bfloat16)


@given(semidefinite_matrices(), st.sampled_from([*NARROW, torch.float64]))
def test_rounded_covariances_are_accepted_everywhere(matrix, dtype):
    rounded = matrix.to(dtype)
    moved = (
        torch.linalg.eigvalsh(rounded.double()) - torch.linalg.eigvalsh(matrix)
    ).abs()  # Weyl, for the bound itself
    assert moved.max() <= spectrum_rounding(torch.linalg.eigvalsh(matrix), dtype)
    consumers(rounded)
    values, vectors = clipped_eigh(rounded.double(), dtype)
    assert values.min() >= 0
    # clipping changes the matrix by no more than it was rounded, in the spectral norm
    rebuilt = (vectors * values) @ vectors.T
    change = torch.linalg.matrix_norm(rebuilt - rounded.double(), 2)
    assert change <= 2 * spectrum_rounding(values, dtype, SUMMED)


@given(st.integers(2, 12), st.integers(2, 5000), seeds, st.sampled_from([*NARROW, torch.float64]))
def test_covariances_computed_in_few_digits_are_accepted(size, n, seed, dtype):
    """Of sequences that lie in half the directions, so that the rest is rounding."""
    x = torch.randn(n, size // 2, generator=seeded(seed))
    x = (x @ torch.randn(size // 2, size, generator=seeded(seed + 1))).to(dtype)
    moment = x.T @ x / n
    consumers((moment + moment.T) / 2)


@given(st.integers(2, 12), seeds, st.sampled_from([torch.float64, torch.float32, torch.float16]))
def test_a_negative_eigenvalue_beyond_rounding_is_refused_everywhere(size, seed, dtype):
    """A hundred times what rounding the entries could have done, or the limit of float64."""
    values = torch.linspace(1, 0.5, size, dtype=torch.float64)
    values[-1] = 0
    rounding = 100 * max(spectrum_rounding(values, dtype, SUMMED).item(), PSD_TOLERANCE)
    values[-1] = -rounding
    axes = random_axes(size, seed)
    matrix = ((axes * values) @ axes.T).to(dtype)
    matrix = (matrix + matrix.T) / 2
    for call in (
        lambda: GaussianProcess(matrix, ONE),
        lambda: GaussianProcess(ONE, matrix),
        lambda: GaussianMixture(torch.zeros(2, 1, size), matrix),
        lambda: gaussian_w2(matrix, torch.eye(size)),
        lambda: gaussian_w2(torch.eye(size), matrix),
        lambda: gaussian_kl(matrix, torch.eye(size)),
        lambda: gaussian_tv_bounds(torch.eye(size), matrix),
    ):
        with pytest.raises(NotPSDError, match=f"more than rounding in {dtype} explains"):
            call()
    assert clipped_eigh(matrix.double(), dtype)[0][0] == pytest.approx(-rounding, rel=0.05)


def random_axes(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)).Q


def test_bfloat16_does_not_excuse_everything():
    """Ten per cent of the largest eigenvalue is more than three digits lose in this size."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, -0.1])).bfloat16()
    with pytest.raises(NotPSDError, match=r"rounding in torch\.bfloat16"):
        covariance_spectrum("matrix", matrix.double(), torch.bfloat16)
    assert covariance_spectrum("m", matrix.double().clamp(min=-5e-3), torch.bfloat16)[0][0] == 0


def test_float64_is_held_to_its_own_precision():
    matrix = torch.diag(torch.tensor([1.0, -1e-6], dtype=torch.float64))
    with pytest.raises(NotPSDError, match=r"temporal covariance given as a matrix.*float64"):
        GaussianProcess(matrix, ONE)
    assert GaussianProcess(matrix.float(), ONE).temporal_spectrum[0].tolist() == [0, 1]


def test_float64_may_lose_what_a_calculation_loses():
    matrix = torch.diag(torch.tensor([1.0, -1e-11], dtype=torch.float64))  # a Schur complement's
    assert GaussianProcess(matrix, ONE).temporal_spectrum[0].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", NARROW)
def test_symmetry_is_asked_for_up_to_rounding(dtype):
    matrix = torch.eye(2, dtype=dtype)
    matrix[0, 1] = 0.75
    matrix[1, 0] = 0.75 * (1 + 2 * unit_roundoff(dtype))
    assert matrix[0, 1] != matrix[1, 0]
    GaussianProcess(matrix, ONE)
    with pytest.raises(ValueError, match="temporal must be symmetric"):
        GaussianProcess(matrix + torch.tensor([[0, 0.05], [0, 0]], dtype=dtype), ONE)


def test_measured_covariances_of_smooth_sequences():
    """The gap between Γ and its estimate, though both have eigenvalues of rounding only."""
    law = GaussianProcess(PowerExponential(8, 2), torch.eye(2), seq_len=64)
    measured = temporal_covariance(law.sample(2000, seeded(0)), law.mean)
    smallest = torch.linalg.eigvalsh(measured.double())[0]
    assert measured.dtype == torch.float32 and smallest < -PSD_TOLERANCE * 64
    assert 0.1 < gaussian_w2(measured, law.gram()) < 1
    assert GaussianProcess(law.gram().float(), torch.eye(2)).temporal_spectrum[0].min() == 0


def test_a_process_remembers_the_precision_of_its_factors():
    law = GaussianProcess(PowerExponential(8, 2), torch.eye(2), seq_len=64)
    coarse = GaussianProcess(law.gram().float(), torch.eye(2).half()).to("cpu")
    assert (coarse.temporal_dtype, coarse.spatial_dtype) == (torch.float32, torch.half)
    assert coarse.temporal_spectrum[0].min() == 0
    away = coarse.to("meta")
    assert away.temporal.is_meta and away.spatial.is_meta and away.mean.is_meta
    assert all(part.is_meta for part in away.temporal_spectrum + away.spatial_spectrum)
    assert not coarse.spatial_spectrum[0].is_meta and away.temporal_dtype == torch.float32
    # the whole band of a covariance has no eigenvalue that stops the iteration
    assert UnrolledScore(coarse, 4, bandwidth=64).converges_from == 0
    assert UnrolledScore(law, 4, bandwidth=12).converges_from > 0.01


@given(semidefinite_matrices(), st.sampled_from(NARROW))
def test_factors_that_arrived_in_few_digits_can_be_handed_on(matrix, dtype):
    """In float64 they are covariances to its precision, as near to what was given as rounding."""
    given_ = matrix.to(dtype).double()
    limit = spectrum_rounding(torch.linalg.eigvalsh(given_), dtype, SUMMED)
    first, second = GaussianProcess(matrix.to(dtype), ONE), GaussianProcess(ONE, matrix.to(dtype))
    for factor in (first.gram(), second.spatial, first.to("cpu").gram()):
        consumers(factor)
        assert torch.linalg.matrix_norm(factor - given_, 2) <= limit
    assert UnrolledScore(first, 2, len(matrix), "bohman").converges_from == 0


def test_factors_stay_as_they_are_given_where_they_can():
    below = torch.ones(4, 4, dtype=torch.float64) - 1e-12 * torch.eye(4)
    assert torch.equal(GaussianProcess(below, below).gram(), below)
    regular = torch.tensor([[1.0, 0.3], [0.3, 2.0]])
    assert torch.equal(GaussianProcess(regular, regular).spatial, regular.double())


def test_singular_is_what_the_precision_cannot_tell_from_singular():
    values = torch.tensor([1.0, 1.0, 2**-25])
    assert math.isfinite(gaussian_kl(values.double().diag(), torch.eye(3)))
    assert gaussian_kl(values.diag(), torch.eye(3)) == math.inf
    for matrix, fails in ((values.diag(), True), (values.double().diag(), False)):
        law, x = GaussianProcess(matrix, ONE), torch.zeros(1, 3, 1)
        if fails:
            with pytest.raises(NotPSDError, match=r"singular to torch\.float32 precision"):
                law.log_prob(x)
        else:
            assert torch.isfinite(law.log_prob(x)).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_what_varies_by_rounding_only_is_no_dimension(dtype):
    """The third coordinate is the sum of the others, rounded: rank 3 in float64, 2 in truth."""
    x = torch.randn(200, 4, 2, generator=seeded(0), dtype=torch.float64)
    x = torch.cat([x, x.sum(dim=2, keepdim=True)], dim=2)
    for estimate in (kronecker_mle, toeplitz_moments):
        with pytest.raises(ValueError, match=r"3 coordinates of x must vary.*rank 2 up to round"):
            estimate(x.to(dtype))
        free = x + 0.3 * torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
        assert estimate(free.to(dtype)).dim == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_twin_of_sequences_in_few_directions(dtype):
    x = torch.randn(5000, 3, generator=seeded(0), dtype=dtype)
    x = (x @ torch.randn(3, 12, generator=seeded(1), dtype=dtype)).view(-1, 6, 2)
    twin = GaussianTwin(x)
    assert torch.isfinite(twin.sample(4, seeded(2))).all()
    consumers(twin.covariance)


@given(st.integers(2, 20), seeds)
def test_the_solver_stays_within_its_part(size, seed):
    """Eigenvalues that are known: of a covariance made of them, in a random position."""
    values = torch.linspace(0, 1, size, dtype=torch.float64)
    axes = random_axes(size, seed)
    found = torch.linalg.eigvalsh((axes * values) @ axes.T)
    # the product and the axes were rounded too, each a sum of n terms
    assert (found - values).abs().max() <= spectrum_rounding(values, terms=size)
