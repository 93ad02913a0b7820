"""Lemma 1 and Corollary 1 as inequalities, the spectral shortcut against the loop, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import covariance, process, processes, seeded
from tolerances import assert_float32, assert_identity, relative_norm

from gptheory.data import GaussianProcess, Matern, PowerExponential, random_covariance
from gptheory.data.kernels import RationalQuadratic
from gptheory.diffusion import METHODS, ExactScore, UnrolledScore, alpha, perturb, sigma
from gptheory.diffusion.methods import _leja_chebyshev
from gptheory.support.validation import NotPSDError

methods = pytest.mark.parametrize("method", METHODS)
decaying = st.one_of(
    st.builds(PowerExponential, st.floats(0.5, 12.0), st.floats(0.5, 2.0)),
    st.builds(Matern, st.floats(0.5, 12.0), st.sampled_from([0.5, 1.5, 2.5])),
    st.builds(RationalQuadratic, st.floats(0.5, 6.0), st.floats(0.5, 4.0)),
)


def example(seq_len=24, dim=3, lengthscale=4.0, exponent=1.0, seed=0):
    generator = seeded(seed)
    spatial = random_covariance(dim, generator=generator)
    law = GaussianProcess(PowerExponential(lengthscale, exponent), spatial, seq_len=seq_len)
    return law, perturb(law.sample(6, generator, torch.float64), 0.1, generator)[0]


def dense(law, banded, t):
    size = law.seq_len * law.dim
    return alpha(t) ** 2 * torch.kron(banded, law.spatial) + sigma(t) ** 2 * torch.eye(
        size, dtype=torch.float64
    )


def attains(errors, tolerance):
    return next(k for k, error in enumerate(errors) if error <= tolerance)


# ---- the iteration --------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Score objective")
@settings(max_examples=40)
@given(law=processes, t=st.floats(0.01, 6.0), seed=st.integers(0, 99))
def test_the_score_minimises_the_objective(law, t, seed):
    v = torch.randn(1, law.seq_len, law.dim, generator=seeded(seed), dtype=torch.float64)
    residual = (v - alpha(t) * law.mean).flatten()
    matrix = dense(law, law.gram(), t)
    s = ExactScore(law)(v, t).flatten().requires_grad_()
    objective = s @ matrix @ s / 2 + s @ residual
    (gradient,) = torch.autograd.grad(objective, s)
    assert_identity(gradient + residual, residual, condition=1e2 / sigma(t) ** 2)
    assert (torch.linalg.eigvalsh(matrix) > 0).all()  # strictly convex: the only minimiser


@methods
def test_loop_is_the_recursion_written_out(method):
    law = process(seq_len=6, dim=2, seed=4)
    score, t = UnrolledScore(law, 5, 4, "bohman", method), 0.3
    v = torch.randn(1, 6, 2, generator=seeded(1), dtype=torch.float64)
    matrix, residual = dense(law, score.banded, t), (v - alpha(t) * law.mean).flatten()
    s = before = torch.zeros_like(residual)
    for loop, (step, momentum) in zip(
        list(score.iterates(v, t))[1:], score.coefficients(t), strict=True
    ):
        s, before = s - step * (matrix @ s + residual) + momentum * (s - before), s
        assert_identity(loop.flatten(), s)


@pytest.mark.statement("FDGWC Lemma 1")
@methods
@settings(max_examples=40)
@given(law=processes, steps=st.integers(1, 60), t=st.floats(0.02, 6.0), data=st.data())
def test_shortcut_equals_loop(method, law, steps, t, data):
    bandwidth = data.draw(st.integers(1, law.seq_len))
    score = UnrolledScore(law, steps, bandwidth, "bohman", method)
    v = torch.randn(3, law.seq_len, law.dim, generator=seeded(steps), dtype=torch.float64)
    *_, last = score.iterates(v, t)
    assert_identity(score(v, t), last, condition=score.condition_number(t))


@methods
def test_mixed_diffusion_steps_and_float32(method):
    law = process(seq_len=7, dim=3, seed=1)
    score = UnrolledScore(law, 12, 5, "bartlett", method)
    v = torch.randn(4, 7, 3, generator=seeded(2), dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
    expected = torch.cat([score(v[i : i + 1], t[i].item()) for i in range(4)])
    assert_identity(score(v, t), expected)
    *_, last = score.iterates(v, t)
    assert_identity(last, expected)
    assert score(v.float(), t.float()).dtype == torch.float32
    assert_float32(score(v.float(), t.float()), expected)
    assert_identity(score.condition_number(t)[1], score.condition_number(0.3))


@methods
def test_equal_eigenvalues_are_solved_in_one_step(method):
    law = GaussianProcess(torch.eye(4, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    v = torch.randn(2, 4, 2, generator=seeded(0), dtype=torch.float64)
    score = UnrolledScore(law, 1, method=method)
    assert_identity(score(v, 0.2), -v)
    assert_identity(list(score.iterates(v, 0.2))[-1], -v)
    assert score.steps_for(1e-6, 0.2) <= 1 + (method == "gradient-descent") * 14


# ---- Lemma 1 --------------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Lemma 1")
@settings(max_examples=200)
@given(
    kernel=decaying,
    seq_len=st.integers(2, 40),
    dim=st.integers(1, 4),
    t=st.floats(0.01, 4.0),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_convergence_bound_is_never_violated(kernel, seq_len, dim, t, seed, data):
    bandwidth = data.draw(st.integers(1, seq_len))
    window = data.draw(st.sampled_from([None, "bartlett", "wendland", "bohman"]))
    law = GaussianProcess(kernel, covariance(dim, seed, 0.2), seq_len=seq_len)
    generator = seeded(seed)
    v, _ = perturb(law.sample(2, generator, torch.float64), t, generator)
    for method in METHODS:
        score = UnrolledScore(law, 1, bandwidth, window, method)
        if t <= score.converges_from:
            with pytest.raises(NotPSDError):
                score.condition_number(t)
            continue
        limit = score.limit(v, t)
        for k in (1, 2, 5, 20, 100):
            iterate = UnrolledScore(law, k, bandwidth, window, method)
            error = (iterate(v, t) - limit).norm() / limit.norm()
            assert error <= iterate.convergence_bound(t) * (1 + 1e-6) + 1e-12


@pytest.mark.statement("FDGWC Lemma 1")
def test_steps_needed_are_at_least_half_of_those_promised():
    ratios, generator = [], seeded(0)
    for lengthscale, exponent in ((1.0, 1.0), (3.0, 0.7), (4.0, 1.0), (8.0, 1.5)):
        for t in (0.02, 0.1, 0.3):
            for seq_len, dim in ((16, 1), (32, 4), (64, 2)):
                spatial = covariance(dim, seq_len, 0.2)
                kernel = PowerExponential(lengthscale, exponent)
                law = GaussianProcess(kernel, spatial, seq_len=seq_len)
                score = UnrolledScore(law, 1, seq_len // 2, "bohman")
                kappa = score.condition_number(t)
                if kappa < 10:
                    continue
                v, _ = perturb(law.sample(16, generator, torch.float64), t, generator)
                limit = score.limit(v, t)
                longest = UnrolledScore(law, math.ceil(6 * kappa), seq_len // 2, "bohman")
                errors = [relative_norm(s, limit) for s in longest.iterates(v, t)]
                ratios += [
                    attains(errors, tolerance) / score.steps_for(tolerance, t)
                    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4)
                ]
    print(f"{len(ratios)} cases, needed / promised from {min(ratios):.2f} to {max(ratios):.2f}")
    assert len(ratios) >= 80
    assert min(ratios) >= 0.5
    assert max(ratios) <= 1.0


@pytest.mark.statement("FDGWC Lemma 1")
@methods
def test_rate_is_attained_along_the_worst_direction(method):
    law, _ = example()
    t = 0.1
    scores = [UnrolledScore(law, k, method=method) for k in (10, 20, 30, 40)]
    low, high = scores[0].extremes(t)
    (_, u), (_, w) = law.temporal_spectrum, law.spatial_spectrum
    for index in (0, -1):  # both ends of the spectrum
        v = torch.outer(u[:, index], w[:, index])[None]
        limit = scores[0].limit(v, t)
        errors = [relative_norm(score(v, t), limit) for score in scores]
        rate = (high - low) / (high + low)
        if method == "gradient-descent":
            expected = [rate**score.steps for score in scores]
        else:
            expected = [score.convergence_bound(t) for score in scores]
        assert_identity(errors, expected, condition=high / low)


def test_known_condition_numbers_and_steps():
    spatial = covariance(8, 0, 0.2)
    law = GaussianProcess(PowerExponential(4.0), spatial, seq_len=128)
    score = UnrolledScore(law, 1, 37)
    kappas = [score.condition_number(t) for t in (0.01, 0.1, 1.0)]
    assert kappas == pytest.approx([228.5, 62.1, 5.56], rel=2e-3)
    assert [score.steps_for(1e-3, t) for t in (0.01, 0.1, 1.0)] == [793, 218, 23]
    matrix = dense(GaussianProcess(law.gram()[:16, :16], spatial), law.gram()[:16, :16], 0.1)
    small = UnrolledScore(GaussianProcess(PowerExponential(4.0), spatial, seq_len=16), 1)
    values = torch.linalg.eigvalsh(matrix)
    assert_identity(small.condition_number(0.1), (values[-1] / values[0]).item(), condition=100)


@methods
def test_steps_for_is_the_least_that_is_enough(method):
    law, _ = example()
    score = UnrolledScore(law, 1, 10, "bohman", method)
    for t, tolerance in ((0.05, 1e-3), (1.0, 1e-6), (8.0, 0.5)):
        steps = score.steps_for(tolerance, t)
        assert score.convergence_bound(t, steps) <= tolerance
        assert steps == 1 or score.convergence_bound(t, steps - 1) > tolerance
    bounds = [score.convergence_bound(0.1, k) for k in range(1, 200)]
    assert all(a >= b for a, b in itertools.pairwise(bounds))


def test_acceleration_takes_the_square_root_of_the_condition_number():
    law, _ = example(seq_len=64, lengthscale=8.0)
    t = 0.01
    steps = {m: UnrolledScore(law, 1, method=m).steps_for(1e-6, t) for m in METHODS}
    kappa = UnrolledScore(law, 1).condition_number(t)
    assert kappa > 300
    assert steps["gradient-descent"] / steps["heavy-ball"] > math.sqrt(kappa) / 2
    assert steps["chebyshev"] <= steps["heavy-ball"] <= 1.5 * steps["chebyshev"]


def test_leja_order_keeps_long_chebyshev_runs_stable():
    law, v = example()
    score = UnrolledScore(law, 200, method="chebyshev")
    iterates = list(score.iterates(v, 0.02))
    assert relative_norm(iterates[-1], score.limit(v, 0.02)) < 1e-9
    assert max(s.abs().max() for s in iterates) < 100 * score.limit(v, 0.02).abs().max()
    nodes = sorted(_leja_chebyshev(64))
    expected = torch.cos((torch.arange(64).double() + 0.5) * math.pi / 64).flip(0)
    assert_identity(nodes, expected)


# ---- truncation -----------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Lemma 1")
@settings(max_examples=60)
@given(kernel=decaying, bandwidth=st.integers(1, 16), t=st.floats(0.01, 4.0))
def test_truncation_bound_is_never_violated(kernel, bandwidth, t):
    law = GaussianProcess(kernel, covariance(2, bandwidth, 0.2), seq_len=16)
    v = torch.randn(8, 16, 2, generator=seeded(bandwidth), dtype=torch.float64)
    exact = ExactScore(law)(v, t)
    for window in (None, "bohman"):
        score = UnrolledScore(law, 1, bandwidth, window)
        if t <= score.converges_from:
            continue
        limit = score.limit(v, t)
        errors = (limit - exact).flatten(1).norm(dim=1) / limit.flatten(1).norm(dim=1)
        assert errors.max() <= score.truncation_bound(t) * (1 + 1e-9) + 1e-12


def test_full_band_has_no_truncation_error():
    law, v = example()
    for score in (UnrolledScore(law, 3), UnrolledScore(law, 3, 24)):
        assert score.truncation_bound(0.1) == 0
        assert score.truncation_error(0.1) < 1e-12
        assert_identity(score.limit(v, 0.1), ExactScore(law)(v, 0.1), condition=1e2)


@methods
def test_average_errors_are_those_of_a_dense_computation(method):
    law = GaussianProcess(PowerExponential(3.0), covariance(2, 0, 0.2), seq_len=9)
    score, t = UnrolledScore(law, 4, 5, "bohman", method), 0.2
    truth, banded = dense(law, law.gram(), t), dense(law, score.banded, t)
    impulses = torch.eye(18, dtype=torch.float64).reshape(18, 9, 2)
    inverse = torch.linalg.inv(truth)
    for operator, reported in (
        (-score(impulses, t).flatten(1), score.score_error(t)),
        (torch.linalg.inv(banded), score.truncation_error(t)),
    ):
        gap = operator - inverse
        expected = ((gap @ truth @ gap.T).trace() / inverse.trace()).sqrt()
        assert_identity(reported, expected)
    longer = UnrolledScore(law, 9, 5, "bohman", method)
    assert_identity(longer.score_error(t, steps=4), score.score_error(t))


@pytest.mark.statement("FDGWC Corollary 1")
@pytest.mark.parametrize(("exponent", "tolerance"), [(0.5, 0.1), (1.0, 1e-2), (1.5, 1e-3)])
def test_band_grows_with_the_lengthscale_and_the_log_of_the_accuracy(exponent, tolerance):
    spatial = torch.eye(1, dtype=torch.float64)

    def needed(lengthscale, tolerance, t=0.1):
        kernel = PowerExponential(lengthscale, exponent)
        law = GaussianProcess(kernel, spatial, seq_len=160)
        for bandwidth in range(1, 161):
            score = UnrolledScore(law, 1, bandwidth)
            if t > score.converges_from and score.truncation_error(t) <= tolerance:
                return bandwidth
        raise AssertionError("no band was enough")

    short, long = needed(2.0, tolerance), needed(4.0, tolerance)
    assert long / short == pytest.approx(2, rel=0.2)  # J is proportional to the lengthscale
    offsets = [
        (needed(3.0, eps) / 3.0) ** exponent - math.log(1 / eps)
        for eps in (tolerance, tolerance / 3, tolerance / 9)
    ]
    assert max(offsets) - min(offsets) < 1.0  # (J/ℓ)^ν = log(1/ε) + c: c does not move with ε
    assert 0 < min(offsets) < max(offsets) < 4


@pytest.mark.statement("FDGWC Corollary 1")
@pytest.mark.parametrize(("exponent", "lengthscale"), [(1.0, 4.0), (1.5, 4.0), (2.0, 5.0)])
def test_the_offset_of_the_band_moves_with_the_conditioning(exponent, lengthscale):
    law = GaussianProcess(PowerExponential(lengthscale, exponent), torch.eye(1), seq_len=96)

    def offset(t, tolerance=1e-2):  # c of (J/ℓ)^ν = log(1/ε) + c, and log(α² / λ_min(A_t))
        scores = (UnrolledScore(law, 1, bandwidth) for bandwidth in range(1, 97))
        J = next(
            score.bandwidth
            for score in scores
            if t > score.converges_from and score.truncation_error(t) <= tolerance
        )
        smallest, _ = UnrolledScore(law, 1).extremes(t)
        c = (J / lengthscale) ** exponent - math.log(1 / tolerance)
        return c, math.log(alpha(t) ** 2 / smallest)

    (early, conditioning), (late, conditioning_late) = offset(0.01), offset(1.0)
    fall, explained = early - late, conditioning - conditioning_late
    print(f"c falls by {fall:.2f} from t = 0.01 to 1, the logarithm by {explained:.2f}")
    assert fall > 1.5  # no constant of the kernel
    assert abs(fall - explained) < fall / 3


# ---- where the hypothesis fails -------------------------------------------------------------


def indefinite(bandwidth=5):
    spatial = 1.6 * covariance(2, 0, 0.2)  # its largest eigenvalue enters the condition
    law = GaussianProcess(Matern(8.0, 2.5), spatial, seq_len=32)
    return law, UnrolledScore(law, 400, bandwidth)


@pytest.mark.statement("FDGWC Lemma 1")
def test_convergence_is_decided_by_the_exact_condition():
    law, score = indefinite()
    smallest = torch.linalg.eigvalsh(score.banded)[0]
    largest = torch.linalg.eigvalsh(law.spatial)[-1]
    edge = score.converges_from
    assert smallest < -0.1
    assert_identity(edge, math.log(1 + abs(smallest) * largest))
    assert_identity(sigma(edge) ** 2 + alpha(edge) ** 2 * smallest * largest + 1, 1.0)
    v = torch.randn(2, 32, 2, generator=seeded(0), dtype=torch.float64)
    with pytest.raises(NotPSDError, match="converges for t >"):
        score(v, edge * (1 - 1e-6))
    assert score.condition_number(edge * (1 + 1e-6)) > 1e5
    assert relative_norm(score(v, 3 * edge), score.limit(v, 3 * edge)) < 1e-9


@pytest.mark.statement("FDGWC Lemma 1")
def test_below_the_condition_the_plain_iteration_really_diverges():
    law, score = indefinite()
    v = torch.randn(1, 32, 2, generator=seeded(0), dtype=torch.float64).flatten()

    def last_growth(t):
        matrix = dense(law, score.banded, t)
        step = 1 / torch.linalg.eigvalsh(matrix)[-1]
        norms, s = [], torch.zeros_like(v)
        for _ in range(400):
            s = s - step * (matrix @ s + v)
            norms.append(s.norm())
        return (norms[-1] / norms[-2]).item()

    assert last_growth(score.converges_from * 0.8) > 1.01
    assert last_growth(score.converges_from * 1.2) < 1.001


def test_remedies_named_in_the_error_work():
    law, score = indefinite()
    t = 0.1
    with pytest.raises(NotPSDError) as error:
        score.convergence_bound(t)
    bandwidth = int(str(error.value).rsplit("bandwidth=", 1)[1])
    assert 5 < bandwidth < 32
    assert UnrolledScore(law, 1, bandwidth).condition_number(t) > 1
    assert UnrolledScore(law, 1, 5, "bohman").converges_from == 0
    with pytest.raises(NotPSDError):
        score(torch.zeros(2, 32, 2), torch.tensor([5.0, 0.1]))
    assert score(torch.zeros(2, 32, 2), torch.tensor([5.0, 4.0])).abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"bandwidth": 25}, "bandwidth must lie in 1..24"),
        ({"bandwidth": 0}, "bandwidth must be an integer >= 1"),
        ({"method": "newton"}, "method must be one of"),
        ({"taper": "bohman"}, "needs a bandwidth"),
        ({"bandwidth": 4, "taper": "hann"}, "window must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnrolledScore(example()[0], **{"steps": 3, **arguments})


def test_bad_calls():
    law, v = example()
    score = UnrolledScore(law, 3)
    with pytest.raises(ValueError, match="must have shape"):
        score(v[:, :5], 0.1)
    with pytest.raises(ValueError, match="finite and > 0"):
        score(v, 0.0)
    with pytest.raises(ValueError, match="finite and > 0"):
        list(score.iterates(v, float("nan")))
    with pytest.raises(ValueError, match="tolerance"):
        score.steps_for(0.0, 0.1)
