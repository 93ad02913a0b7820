"""Functions of the lag as ReLU heads: exact at every lag, counted, and well enough conditioned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeded
from tolerances import assert_identity

from gptheory.attention import time_embedding
from gptheory.construction import cosines, lag_function
from gptheory.construction.lag_heads import (
    VARIANTS,
    default_period,
    require_separated_lags,
    same_frame,
)
from gptheory.data import PowerExponential, gram, truncate

variants = pytest.mark.parametrize("variant", VARIANTS)
COUNT = {
    "trapezoid": lambda j: 4 * j,
    "shared-knots": lambda j: j,
    "sine": lambda j: 2 * j + 1,
}


@pytest.mark.statement("FDGWC Theorem 1")
@variants
@settings(max_examples=60)
@given(seq_len=st.integers(1, 40), data=st.data(), seed=st.integers(0, 99))
def test_heads_reproduce_any_banded_toeplitz_matrix(variant, seq_len, data, seed):
    bandwidth = data.draw(st.integers(1, seq_len))
    values = torch.randn(bandwidth, generator=seeded(seed), dtype=torch.float64)
    least = (4 if variant == "sine" else 2) * (seq_len - 1)
    period = max(4, data.draw(st.sampled_from([least, least + 1, least + 2, 2 * least + 3])))
    radius = data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    function = lag_function(variant, values, period, radius)
    matrix = function.of(time_embedding(seq_len, period, radius))
    lags = (torch.arange(seq_len)[:, None] - torch.arange(seq_len)).abs()
    padded = torch.cat([values, torch.zeros(seq_len).double()])
    expected = padded[lags]
    assert_identity(matrix, expected, condition=1e3)
    assert len(function.knots) == len(function.weights) == len(function.labels)
    assert len(function.knots) == COUNT[variant](bandwidth)
    if variant != "sine":
        assert (matrix[lags >= bandwidth] == 0).all()  # not by cancellation: every score is 0


@variants
def test_lags_of_a_long_sequence_are_exact_to_ten_digits(variant):
    temporal = truncate(gram(PowerExponential(4.0), 128), 37)
    period = default_period(variant, 128)
    function = lag_function(variant, temporal[0, :37], period)
    assert (function.of(time_embedding(128, period)) - temporal).abs().max() < 1e-11


@variants
def test_same_frame_is_the_identity_with_a_flat_top(variant):
    period = default_period(variant, 20)
    function, embedding = same_frame(variant, period), time_embedding(20, period)
    assert_identity(function.of(embedding), torch.eye(20))
    x = embedding @ function.form @ embedding.T
    gap = (x[0, 0] - x[0, 1]).abs()
    for shift in (-0.3 * gap, 0.3 * gap):
        assert_identity(function(x + shift), torch.eye(20))
    assert len(function.knots) == (4 if variant == "sine" else 2)


@pytest.mark.statement("FDGWC Theorem 1")
def test_trapezoids_forgive_a_third_of_the_gap_and_one_lag_uses_four_heads():
    values = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    function = lag_function("trapezoid", values, 20)
    x, gaps = cosines(8, 20, 1.0)
    expected = torch.cat([values, torch.zeros(5).double()])
    nearest = torch.minimum(gaps, torch.cat([gaps[:1], gaps[:-1]]))
    for share in (-0.33, 0.33):
        assert_identity(function(x + share * nearest), expected)
    for m in range(3):
        heads = slice(4 * m, 4 * m + 4)
        assert all(label.startswith(f"lag {m},") for label in function.labels[heads])
        scores = torch.relu(x[:, None] - function.knots[heads])
        alone = (scores * function.weights[heads]).sum(dim=1)
        assert_identity(alone, torch.where(torch.arange(8) == m, values[m], 0.0).double())


@variants
def test_steepness_is_the_largest_slope(variant):
    values = torch.tensor([1.0, 0.2, 0.7, 0.1], dtype=torch.float64)
    function = lag_function(variant, values, 40)
    x = torch.linspace(-1.2, 1.2, 200001, dtype=torch.float64)
    slopes = function(x).diff() / x.diff()
    assert function.steepness == pytest.approx(slopes.abs().max().item(), rel=1e-6)


def test_gaps_are_differences_of_cosines_without_cancellation():
    x, gaps = cosines(10, 30, 2.0)
    assert_identity(gaps[:-1], x[:-1] - x[1:])
    tiny = cosines(1, 1e6, 1.0)[1].item()
    assert tiny == pytest.approx(2 * 3.141592653589793**2 / 1e12, rel=1e-9)


@variants
def test_periods_that_fold_lags_onto_each_other_are_refused(variant):
    least = (4 if variant == "sine" else 2) * 15
    require_separated_lags(variant, 16, least)
    require_separated_lags(variant, 16, default_period(variant, 16))
    with pytest.raises(ValueError, match=f"too small to separate lags up to 15.*at least {least}"):
        require_separated_lags(variant, 16, least - 1)
    with pytest.raises(ValueError, match="embedding_period must be a finite number > 0"):
        require_separated_lags(variant, 16, -1.0)


def test_periods_beyond_the_resolution_of_the_dtype():
    require_separated_lags("shared-knots", 128, 256, torch.float32)
    with pytest.warns(UserWarning, match=r"use\s+float64, heads='sine', or a period nearer"):
        require_separated_lags("shared-knots", 128, 1024, torch.float32)
    with pytest.raises(ValueError, match="resolves 1e-07"):
        require_separated_lags("trapezoid", 128, 8192, torch.float32)
    require_separated_lags("trapezoid", 128, 8192, torch.float64)
    require_separated_lags("sine", 128, 8192, torch.float32)
    # the sine is flat where lags reach a quarter of the circle
    with pytest.warns(UserWarning, match=r"use float64, a period nearer to 1024"):
        require_separated_lags("sine", 128, 4 * 127, torch.float32)


def test_unknown_variants():
    with pytest.raises(ValueError, match="heads must be one of"):
        lag_function("spline", torch.ones(3), 20)
