"""Methods of a quadratic: what their coefficients do is their polynomial, and their bound holds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeded
from tolerances import assert_identity

from gptheory.diffusion import METHODS
from gptheory.diffusion.methods import STATIONARY, Chebyshev, Stationary

methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
stationary = pytest.mark.parametrize(
    "method", [METHODS[name] for name in STATIONARY], ids=STATIONARY
)
lows, kappas, steps = st.floats(0.01, 10.0), st.floats(1.0, 1e4), st.integers(1, 60)


def spectrum(low, kappa, n=50):
    """Random eigenvalues, both ends included, and the ends, in float64."""
    ends = torch.tensor([low, low * kappa], dtype=torch.float64)
    inside = torch.rand(n, generator=seeded(n), dtype=torch.float64)
    return torch.cat([ends, ends[0] + inside * (ends[1] - ends[0])]), *ends


def errors_of_the_loop(values, coefficients):
    """p_0, p_1, ..., p_K on the spectrum, by the recursion."""
    p = before = torch.ones_like(values)
    yield p
    for step_size, momentum in coefficients:
        p, before = (1 - step_size * values) * p + momentum * (p - before), p
        yield p


@methods
@settings(max_examples=80)
@given(low=lows, kappa=kappas, steps=steps)
def test_coefficients_reproduce_the_error_polynomial(method, low, kappa, steps):
    values, low, high = spectrum(low, kappa)
    *_, loop = errors_of_the_loop(values, method.coefficients(low, high, steps))
    # beside 1, since that is what the loop starts from and rounds
    assert_identity(1 - loop, 1 - method.error_polynomial(values, low, high, steps))
    assert_identity(values * method.response(values, low, high, steps), 1 - loop)


@methods
@settings(max_examples=80)
@given(low=lows, kappa=kappas, steps=steps)
def test_no_error_exceeds_the_bound(method, low, kappa, steps):
    values, low, high = spectrum(low, kappa)
    bound = method.bound(low.item(), high.item(), steps)
    error = method.error_polynomial(values, low, high, steps).abs()
    assert error.max() <= bound * (1 + 1e-9)
    assert bound <= method.bound(low.item(), high.item(), max(1, steps - 1))


@pytest.mark.parametrize("name", ["heavy-ball", "chebyshev"])
@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_accelerated_bounds_are_attained_at_both_ends(name, steps):
    values, low, high = spectrum(0.3, 80.0)
    ends = METHODS[name].error_polynomial(values[:2], low, high, steps).abs()
    assert_identity(ends, [METHODS[name].bound(low.item(), high.item(), steps)] * 2)


@pytest.mark.statement("FDGWC Lemma 1")
def test_the_bound_of_gradient_descent_is_the_rate_for_large_condition_numbers():
    for kappa in (10.0, 100.0, 1000.0):
        rate = ((kappa - 1) / (kappa + 1)) ** math.ceil(kappa)
        bound = METHODS["gradient-descent"].bound(1.0, kappa, math.ceil(kappa))
        # log((κ − 1) / (κ + 1)) = −2/(κ + 1) − 2/(κ + 1)² − ..., of which the bound keeps the first
        # term; κ times the second is below 2/κ
        assert rate < bound < rate * math.exp(3 / kappa)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 21])
def test_chebyshev_alternates_between_its_bounds_and_so_no_polynomial_is_below(steps):
    low, high = torch.tensor([0.2, 7.0], dtype=torch.float64)
    x = torch.cos(torch.arange(steps + 1, dtype=torch.float64) * (math.pi / steps))
    values = (low + high - (high - low) * x) / 2
    *_, loop = errors_of_the_loop(values, Chebyshev().coefficients(low, high, steps))
    signs = torch.tensor([(-1.0) ** k for k in range(steps + 1)], dtype=torch.float64)
    assert_identity(loop, signs * Chebyshev().bound(low.item(), high.item(), steps))


@stationary
@settings(max_examples=60)
@given(low=lows, kappa=kappas, steps=steps)
def test_no_response_exceeds_the_largest(method, low, kappa, steps):
    values, low, high = spectrum(low, kappa)
    largest = method.largest_response(values, low, high)
    for p in errors_of_the_loop(values, method.coefficients(low, high, steps)):
        assert ((1 - p).abs() <= values * largest * (1 + 1e-9)).all()


@methods
def test_stationary_methods_begin_alike_whatever_follows(method):
    short, long = method.coefficients(0.5, 9.0, 4), method.coefficients(0.5, 9.0, 7)
    is_stationary = isinstance(method, Stationary)
    assert (short == long[:4]) == is_stationary
    assert (len(set(long[1:])) == 1) == is_stationary
    if is_stationary:
        assert any(momentum != 0 for _, momentum in long) == method.has_momentum


@methods
def test_intervals_of_several_sequences_are_taken_one_by_one(method):
    low, high = torch.tensor([[0.1, 1.0, 2.0], [5.0, 1.0, 90.0]], dtype=torch.float64)
    together = method.coefficients(low, high, 6)
    for k in range(3):
        alone = method.coefficients(low[k].item(), high[k].item(), 6)
        for (size, momentum), expected in zip(together, alone, strict=True):
            momentum = torch.as_tensor(momentum, dtype=torch.float64).expand(3)
            assert_identity(torch.stack([size[k], momentum[k]]), expected)


@methods
def test_one_eigenvalue_is_solved_in_one_step(method):
    one = torch.tensor(3.0, dtype=torch.float64)
    for steps in (1, 2, 7):
        assert method.error_polynomial(one, one, one, steps) == 0
        assert_identity(method.response(one, one, one, steps), 1 / 3)
