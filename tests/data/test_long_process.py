"""Laws whose score needs no eigenvectors: beside eigenvectors, at a distance from any matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from strategies import DEVICES, covariance, seeded
from tolerances import assert_identity, assert_statistical, relative_norm

from gptheory.data import GaussianProcess, Matern, Periodic, PowerExponential, gram
from gptheory.data.process import DENSE_LIMIT, SOLVER_FROM
from gptheory.diffusion import ExactScore, alpha, denoise, perturb, restart, sample, sigma, stop_for
from gptheory.diffusion.schedule import levels
from gptheory.measures.cost import MemoryMeter
from gptheory.measures.likelihood import log_likelihood
from gptheory.support.conjugate import NotConvergedError
from gptheory.support.validation import NotPSDError

F64 = torch.float64
ONE = torch.ones(1, 1, dtype=F64)
KERNELS = [PowerExponential(8.0), PowerExponential(8.0, 2.0), Matern(5.0, 1.5)]
T = torch.tensor([0.001, 0.05, 0.3, 1.0, 8.0], dtype=F64)


def pair(kernel, seq_len: int = 96, dim: int = 3) -> list[GaussianProcess]:
    """One law twice, by eigenvectors and by conjugate gradients."""
    mean = torch.randn(seq_len, dim, generator=seeded(1), dtype=F64)
    methods = ("eigenvectors", "conjugate-gradients")
    return [GaussianProcess(kernel, covariance(dim), mean, seq_len, each) for each in methods]


# ---- one law, two ways --------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("t", [0.01, 1.0, T])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_scores_and_densities_agree_with_eigenvectors(kernel, t, device):
    dense, long = (law.to(device) for law in pair(kernel))
    assert (dense.method, long.method) == ("eigenvectors", "conjugate-gradients")
    v, _ = perturb(dense.sample(len(T), seeded(2), F64), t, seeded(3))
    assert relative_norm(ExactScore(long)(v, t), ExactScore(dense)(v, t)) <= 1e-9
    assert relative_norm(denoise(ExactScore(long), v, t), denoise(ExactScore(dense), v, t)) <= 1e-9
    pairs = zip(*(law.noised_log_prob(v, *levels(t, v)) for law in (long, dense)), strict=True)
    assert all(abs(a - b) <= 1e-9 * v[0].numel() for a, b in pairs)


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[2]], ids=repr)
def test_density_of_clean_sequences_agrees_with_eigenvectors(kernel):
    dense, long = pair(kernel)
    x = dense.sample(4, seeded(2), F64)
    assert_identity(long.log_prob(x), dense.log_prob(x))
    single = long.log_prob(x.float())
    assert single.dtype == torch.float32


def test_a_toeplitz_matrix_may_be_given():
    matrix, mean = gram(KERNELS[0], 20), torch.randn(20, 2, generator=seeded(1), dtype=F64)
    laws = [
        GaussianProcess(matrix.to(dtype), covariance(2), mean, method=method)
        for dtype, method in ((F64, "auto"), (F64, "conjugate-gradients"))
    ]
    assert [law.method for law in laws] == ["eigenvectors", "conjugate-gradients"]
    v = laws[0].sample(3, seeded(2), F64)
    assert_identity(*(ExactScore(law)(v, 0.1) for law in laws))
    assert laws[0].smallest_variance == laws[1].smallest_variance
    single = GaussianProcess(matrix.float(), covariance(2), method="conjugate-gradients")
    assert single.method == "conjugate-gradients"


def test_a_singular_spatial_covariance_leaves_noise():
    """Along its kernel the law is a point, and the score that of the noise."""
    spatial = torch.ones(2, 2, dtype=F64)
    dense, long = (
        GaussianProcess(KERNELS[0], spatial, None, 30, method)
        for method in ("eigenvectors", "conjugate-gradients")
    )
    v = torch.randn(3, 30, 2, generator=seeded(1), dtype=F64)
    assert_identity(ExactScore(long)(v, 0.1), ExactScore(dense)(v, 0.1))
    with pytest.raises(NotPSDError, match="spatial covariance is singular"):
        long.log_prob(v)


# ---- the faintest mode --------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("seq_len", [16, 96, 400])
def test_the_faintest_mode_is_bounded_from_below(kernel, seq_len):
    dense, long = (law.smallest_variance for law in pair(kernel, seq_len))
    print(f"{long:.6g} of {dense:.6g}")
    assert 0 <= long <= dense * (1 + 1e-9) + 1e-15
    if kernel == KERNELS[0]:
        # the symbol grows by the factor 1 + δ²/4 at most at a distance δ from its minimum, and the
        # faintest mode lies within 2π/N of it; what is left of the kernel at lag N is wrapped
        assert dense / long - 1 <= (math.pi / seq_len) ** 2 + 2 * kernel(seq_len)


# ---- which way ----------------------------------------------------------------------------------


def test_auto_goes_by_length():
    laws = {n: GaussianProcess(KERNELS[0], ONE, None, n) for n in (SOLVER_FROM - 1, SOLVER_FROM)}
    assert [law.method for law in laws.values()] == ["eigenvectors", "conjugate-gradients"]
    forced = GaussianProcess(KERNELS[0], ONE, None, SOLVER_FROM, "eigenvectors")
    assert forced.method == forced.to("cpu").method == "eigenvectors"


def test_a_kernel_without_an_embedding_goes_by_eigenvectors_up_to_a_limit():
    kernel = Periodic(1.0, 37.3)
    assert GaussianProcess(kernel, ONE, None, SOLVER_FROM).method == "eigenvectors"
    with pytest.raises(NotPSDError, match="no circulant embedding of Periodic"):
        ExactScore(GaussianProcess(kernel, ONE, None, DENSE_LIMIT + 1))(
            torch.zeros(1, DENSE_LIMIT + 1, 1), 0.1
        )
    with pytest.raises(NotPSDError, match="no circulant embedding of Periodic"):
        _ = GaussianProcess(kernel, ONE, None, 50, "conjugate-gradients").method


def test_a_function_that_is_no_covariance_is_refused_whatever_the_noise():
    """Also at a step where conjugate gradients would converge."""

    def neighbours(lag: torch.Tensor) -> torch.Tensor:
        return (lag < 2).double()

    law = GaussianProcess(neighbours, ONE, None, 50, "conjugate-gradients")
    with pytest.raises(NotPSDError, match="no circulant embedding"):
        ExactScore(law)(torch.zeros(1, 50, 1), 5.0)


# ---- long sequences -----------------------------------------------------------------------------

LONG = 65_536


def test_nothing_of_a_long_law_is_a_matrix():
    law = GaussianProcess(KERNELS[0], ONE, None, LONG)
    with MemoryMeter() as meter:
        v = law.sample(1, seeded(0))
        score = ExactScore(law)(v, 0.1)
        faintest, stop = law.smallest_variance, stop_for(law)
    print(f"{meter.peak / 1e6:.0f} MB, largest tensor {meter.largest / LONG:.1f} N")
    assert torch.isfinite(score).all() and meter.largest < 10 * LONG
    # of the symbol of exp(-r/ℓ) at π, (1 - φ)/(1 + φ)
    assert_identity(faintest, math.tanh(1 / 16))
    assert stop == pytest.approx(math.log1p(0.01 * faintest))


def test_the_score_of_a_long_autoregression_is_its_local_formula():
    r"""Of clean sequences, nearly: at t → 0 the score of exp(-r/ℓ) is that of an AR(1) process."""
    n, t = 20_000, 1e-8
    law = GaussianProcess(KERNELS[0], ONE, None, n)
    x = law.sample(1, seeded(0), F64)
    phi = math.exp(-1 / 8)
    inner = (1 + phi**2) * x[:, 1:-1] - phi * (x[:, :-2] + x[:, 2:])
    found = ExactScore(law)(alpha(t) * x, t)[:, 1:-1]
    # the noise changes A by σ², relative to its smallest eigenvalue
    assert relative_norm(found, -inner / (1 - phi**2)) <= 2 * sigma(t) ** 2 / math.tanh(1 / 16)


def test_generated_sequences_have_the_spectrum_and_the_lags_of_the_law():
    n, seq_len, kernel = 16, 4096, KERNELS[0]
    law = GaussianProcess(kernel, covariance(2, low=0.5), None, seq_len)
    assert law.method == "conjugate-gradients"
    x = sample(
        ExactScore(law), n, seq_len, 2, steps=24, generator=seeded(0), show_progress=False
    ).double()
    lags = (0, 1, 5, 20)
    for k in range(2):
        own = x[..., k]
        for lag in lags:
            averages = (own[:, : seq_len - lag] * own[:, lag:]).mean(dim=1)
            truth = law.spatial[k, k] * kernel(lag)
            # every mode's variance is within 1 % with this grid
            error = averages.std() / n**0.5 + 0.01 * law.spatial[k, k] / 5
            assert_statistical(averages.mean(), truth, error, n)
    # periodograms, averaged in bands, against their expectation
    power = torch.fft.rfft(x[..., 0], dim=1).abs().square() / seq_len
    weights = 1 - torch.arange(seq_len, dtype=F64) / seq_len
    row = weights * kernel(torch.arange(seq_len, dtype=F64))
    expected = law.spatial[0, 0] * (2 * torch.fft.rfft(row).real - row[0])
    for band in np.array_split(np.arange(1, seq_len // 2), 8):
        ratio = (power[:, band] / expected[band]).mean()
        assert_statistical(ratio, 1.0, 1 / math.sqrt(n * len(band)) + 0.01 / 5, n * len(band))


def test_restarting_leaves_long_sequences_as_smooth_as_they_were():
    law = GaussianProcess(KERNELS[1], ONE, None, SOLVER_FROM)
    x = law.sample(2, seeded(0), F64)
    again = restart(ExactScore(law), x, 0.05, generator=seeded(1))
    truth = 2 - 2 * KERNELS[1](1)
    roughness = (again.diff(dim=1) ** 2).mean().item()
    assert 0.8 * truth < roughness < 1.2 * truth


# ---- derivatives --------------------------------------------------------------------------------


def test_derivatives_in_the_sequence_and_the_levels():
    _, law = pair(KERNELS[0], 5, 2)
    v = torch.randn(2, 5, 2, generator=seeded(1), dtype=F64, requires_grad=True)
    signal, noise = (
        torch.tensor(x, dtype=F64).view(2, 1, 1).requires_grad_() for x in ([0.9, 0.5], [0.3, 0.8])
    )
    law._solver.tolerance = 1e-15
    assert torch.autograd.gradcheck(law.noised_score, (v, signal, noise))
    assert torch.autograd.gradgradcheck(law.noised_score, (v, signal, noise))
    assert torch.autograd.gradcheck(law.noised_log_prob, (v, signal, noise))
    density = law.noised_log_prob(v, signal, noise)
    (found,) = torch.autograd.grad(density.sum(), v)
    assert_identity(found, law.noised_score(v, signal, noise).detach())


def test_likelihood_follows_the_flow_of_a_solved_score():
    """With random signs in place of the divergence, as long sequences need it."""
    dense, long = pair(KERNELS[0], 12, 1)
    v, _ = perturb(dense.sample(2, seeded(2), F64), 0.01, seeded(3))
    found = [
        log_likelihood(ExactScore(law), v, 0.01, steps=4, probes=2, generator=seeded(4))
        for law in (dense, long)
    ]
    assert_identity(found[1], found[0])


# ---- bad input ----------------------------------------------------------------------------------

BAD_INPUT = {
    "method": (
        lambda: GaussianProcess(KERNELS[0], ONE, None, 5, "cholesky"),
        "method must be one of auto, eigenvectors, conjugate-gradients, got 'cholesky'",
    ),
    "not stationary": (
        lambda: GaussianProcess(covariance(5), ONE, method="conjugate-gradients"),
        "depend on the lag alone, but differ by up to .* use method='eigenvectors'",
    ),
    "eigenvectors of too much": (
        lambda: GaussianProcess(KERNELS[0], ONE, None, LONG, "eigenvectors"),
        r"a matrix of 65536 frames \(34.4 GB\) is above the limit of 8192.*method='auto'",
    ),
    "spectrum": (
        lambda: GaussianProcess(KERNELS[0], ONE, None, LONG).temporal_spectrum,
        r"a matrix of 65536 frames \(34.4 GB\).*gram\(kernel, seq_len\)",
    ),
    "gram": (
        lambda: GaussianProcess(KERNELS[0], ONE, None, LONG).gram(),
        r"a matrix of 65536 frames \(34.4 GB\).*scores with one step for each sequence.* need none",
    ),
    "singular": (
        lambda: pair(KERNELS[1])[1].log_prob(torch.zeros(1, 96, 3)),
        "temporal covariance is singular",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_does_not_converge_is_an_error():
    _, law = pair(KERNELS[1], 200, 1)
    law._solver.max_steps = 3
    with pytest.raises(NotConvergedError, match="have not converged after 3 steps"):
        ExactScore(law)(torch.randn(2, 200, 1, generator=seeded(0)), 0.001)
