"""Certificates hold, are sharp, and refuse; rank exponents have their values and their limits."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from gptheory.attention import degree_for, exp_polynomial, rank_exponent
from gptheory.support.rounding import gamma


def measured_error(polynomial, points=40_001):
    s = torch.linspace(-polynomial.radius, polynomial.radius, points, dtype=torch.float64)
    return (polynomial(s) / s.exp() - 1).abs().max().item()


@given(
    degree=st.integers(0, 25),
    radius=st.floats(0.01, 8),
    kind=st.sampled_from(["minimax", "taylor"]),
)
def test_certificate_is_never_violated_and_not_wasteful(degree, radius, kind):
    try:
        polynomial = exp_polynomial(degree, radius, kind)
    except ValueError:
        return
    measured = measured_error(polynomial, 4001)
    assert measured <= polynomial.relative_error
    rounding = polynomial.rounding(torch.float64)
    assert polynomial.relative_error - rounding <= measured * 1.02 + rounding
    assert 0 < polynomial.relative_error < 1
    assert polynomial.degree == degree


@pytest.mark.parametrize(("degree", "radius"), [(0, 1.0), (1, 0.5), (3, 1.0), (6, 2.0), (9, 4.0)])
def test_minimax_is_the_best_polynomial(degree, radius):
    """A linear program over a fine grid finds none better; the error alternates g + 2 times."""
    s = np.linspace(-radius, radius, 801)
    rows = np.vander(s / radius, degree + 1, increasing=True) * np.exp(-s)[:, None]
    ones = np.ones((len(s), 1))
    program = optimize.linprog(
        [0.0] * (degree + 1) + [1.0],
        A_ub=np.block([[rows, -ones], [-rows, -ones]]),
        b_ub=np.concatenate([ones[:, 0], -ones[:, 0]]),
        bounds=[(None, None)] * (degree + 1) + [(0, None)],
    )
    polynomial = exp_polynomial(degree, radius)
    assert program.fun <= polynomial.relative_error * (1 + 1e-6)
    assert polynomial.relative_error <= program.fun * 1.01
    grid = torch.from_numpy(s)
    error = polynomial(grid) / grid.exp() - 1
    extreme = error[error.abs() > 0.95 * polynomial.relative_error].sign()
    assert 1 + (extreme.diff() != 0).sum() == degree + 2


def test_degree_zero_in_closed_form():
    for radius in (0.1, 1.0, 3.0):
        polynomial = exp_polynomial(0, radius)
        assert polynomial.coefficients[0] == pytest.approx(1 / math.cosh(radius), rel=1e-9)
        assert polynomial.relative_error == pytest.approx(math.tanh(radius), rel=1e-9)


def test_taylor_is_the_series():
    polynomial = exp_polynomial(5, 1.0, "taylor")
    series = [1 / math.factorial(m) for m in range(6)]
    assert polynomial.coefficients == pytest.approx(series, rel=1e-12)


def test_error_falls_as_predicted():
    for degree in range(1, 10):
        predicted = 1 / (2**degree * math.factorial(degree + 1))
        assert 0.8 < exp_polynomial(degree, 1.0).relative_error / predicted < 1.05
        if degree > 1:
            taylor = exp_polynomial(degree, 1.0, "taylor").relative_error
            assert taylor > 0.5 * 2**degree * predicted


def test_degree_three_on_radius_four_has_no_certificate():
    with pytest.raises(ValueError, match=r"relative error of 310 on \[-4, 4\].*below 1"):
        exp_polynomial(3, 4.0, "taylor")
    assert exp_polynomial(3, 4.0).relative_error > 0.6  # the best there is: positive, and poor


def test_rounding_ends_what_can_be_certified():
    assert exp_polynomial(20, 12.0).relative_error < 1e-3
    with pytest.raises(ValueError, match="most of it is rounding"):
        exp_polynomial(30, 17.0)
    for radius in (21.0, 1e3, 1e9):
        with pytest.raises(ValueError, match=r"below 1 .* scale queries and keys down"):
            exp_polynomial(4, radius)
    polynomial = exp_polynomial(12, 4.0)
    s = torch.linspace(-4, 4, 4001)
    error = (polynomial(s).double() / s.double().exp() - 1).abs().max().item()
    assert 1e-6 < error <= polynomial.relative_error + polynomial.rounding(torch.float32)


def test_least_degree():
    for error, radius in ((0.5, 2.0), (1e-3, 1.0), (1e-6, 4.0)):
        degree = degree_for(error, radius)
        assert exp_polynomial(degree, radius).relative_error <= error
        assert exp_polynomial(degree - 1, radius).relative_error > error
    assert degree_for(0.5, 4.0, "taylor") > degree_for(0.5, 4.0)
    with pytest.raises(ValueError, match="beyond double precision"):
        degree_for(1e-3, 16.0)
    for radius in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="radius must be a finite number > 0"):
            degree_for(0.1, radius)
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'chebyshev'"):
        degree_for(0.1, 1.0, "chebyshev")
    with pytest.raises(ValueError, match="error must lie"):
        degree_for(1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((-1, 1.0), "degree"),
        ((1.5, 1.0), "degree"),
        ((2, -1.0), "radius"),
        ((2, math.nan), "radius"),
        ((2, 1.0, "pade"), "kind"),
    ],
)
def test_bad_polynomials_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        exp_polynomial(*arguments)


# ---- rank exponents -------------------------------------------------------------------------


@pytest.mark.statement("HWLSL Proposition 4.2")
def test_rank_exponents_at_the_bar():
    assert rank_exponent(0.5, 1000, 1e-3) == pytest.approx(1.01, abs=0.05)
    assert rank_exponent(0.5, 1000) == pytest.approx(1.44, abs=0.05)
    assert rank_exponent(0.5, 300, math.exp(-300)) == pytest.approx(rank_exponent(0.5, 300))


@pytest.mark.parametrize("b", [0.2, 0.5])
@pytest.mark.parametrize("eps", [1e-3, None])
@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_rank_exponent_by_brute_force(b, eps, delta):
    """At log L = 20 the series, the least degree and the binomial from scipy itself."""
    log_length = 20
    radius = b * b * log_length
    tolerance = (math.exp(-log_length) if eps is None else eps) * math.exp(-radius)
    series = 2 * special.iv(np.arange(400), radius)
    degree = next(g for g in range(300) if series[g + 1 :].sum() <= tolerance)
    s = np.linspace(-radius, radius, 2001)
    weights = np.where(np.arange(degree + 1) == 0, 0.5, 1.0) * series[: degree + 1]
    values = np.polynomial.chebyshev.chebval(s / radius, weights)
    # Clenshaw's recurrence: 3 operations a degree on terms whose sizes add up to e^radius; a term,
    # a Bessel function, is taken to be off by 8 u
    rounding = gamma(3 * degree + 8) * math.exp(radius)
    assert np.abs(values - np.exp(s)).max() <= tolerance + rounding
    rank = special.comb(int(delta * log_length) + degree, degree, exact=True)
    found = rank_exponent(b, log_length, eps, delta)
    assert found == pytest.approx(math.log(rank) / log_length)


@pytest.mark.statement("HWLSL Proposition 4.2")
def test_rank_exponent_vanishes_below_the_threshold():
    """Falls with b, to 0; is below the bound of the proof (Taylor's remainder) at every b."""
    values = [rank_exponent(b, 1e5) for b in (1.0, 0.5, 0.1, 1e-2, 1e-4, 1e-8, 1e-16)]
    assert all(low < high for high, low in pairwise(values))
    assert values[-1] < 0.12
    for b in (1e-2, 1e-4, 1e-8):

        def excess(gamma, b=b):
            return gamma * math.log(gamma / (math.e * b * b)) - 1 - 2 * b * b

        gamma = optimize.brentq(excess, math.e * b * b, 10)
        bound = (1 + gamma) * math.log(1 + gamma) - gamma * math.log(gamma)
        assert rank_exponent(b, 1e5) <= bound * 1.001


@pytest.mark.statement("HWLSL Remark 4.5")
def test_rank_exponent_depends_on_the_head_dimension():
    """At b = 0.2 and ε = 1/L the exponent is on either side of 1, by δ = d / log L."""
    found = [rank_exponent(0.2, 1000, delta=delta) for delta in (0.5, 1.0, 2.0)]
    assert found == pytest.approx([0.67, 0.93, 1.21], abs=0.01)
    assert found[1] == rank_exponent(0.2, 1000)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0.0, 10), "b must"),
        ((0.5, 0), "log_length"),
        ((0.5, 10, 0.0), "eps"),
        ((0.5, 10, 1), "eps"),
        ((0.5, 10, None, 0.0), "delta"),
    ],
)
def test_bad_exponents_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        rank_exponent(*arguments)
