"""Shares of the weight under bounded logits, beside rows of softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeded
from tolerances import assert_identity

from gptheory.attention import cancelling_gain, largest_share, radius_for_share

F64 = torch.float64
SIZES = st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))


def most_local(radius, keys, window):
    logits = torch.full((keys,), -radius, dtype=F64)
    logits[:window] = radius
    return logits.softmax(dim=0)


@given(SIZES, st.floats(0.01, 12))
def test_share_is_that_of_the_most_local_row(sizes, radius):
    keys, window = sizes
    row = most_local(radius, keys, window)
    assert largest_share(radius, keys, window) == pytest.approx(
        row[:window].sum().item(), rel=1e-12
    )


@given(SIZES, st.floats(0.01, 6), st.integers(0, 10**6))
def test_no_row_has_more(sizes, radius, seed):
    keys, window = sizes
    logits = (2 * torch.rand(keys, generator=seeded(seed), dtype=F64) - 1) * radius
    top = logits.softmax(dim=0).sort(descending=True).values[:window].sum().item()
    assert top <= largest_share(radius, keys, window) * (1 + 1e-12)


@given(SIZES, st.floats(0.001, 0.999))
def test_radius_is_the_least_that_reaches_the_share(sizes, share):
    keys, window = sizes
    radius = radius_for_share(share, keys, window)
    if radius == 0:
        assert window / keys >= share * (1 - 1e-12)
    elif radius > 1e-6:
        assert largest_share(radius, keys, window) == pytest.approx(share, rel=1e-9)
        assert largest_share(radius * 0.99, keys, window) < share


@given(SIZES, st.floats(0.05, 8))
def test_two_heads_with_the_gain_are_a_window(sizes, radius):
    keys, window = sizes
    row = most_local(radius, keys, window)
    gain = cancelling_gain(radius, keys, window)
    difference = gain * (row - row.min())
    expected = torch.zeros(keys, dtype=F64)
    expected[:window] = 1 / window
    assert_identity(difference, expected, max(1.0, gain / 1e3))


def test_half_the_weight_on_eight_of_many_keys():
    # R >= log(N / w) / 2, up to the keys of the window itself
    for keys in (2**10, 2**16):
        assert radius_for_share(0.5, keys, 8) == pytest.approx(
            0.5 * math.log(keys / 8 - 1), rel=1e-12
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_share(0.0, 8), "radius"),
        (lambda: largest_share(math.nan, 8), "radius"),
        (lambda: largest_share(1.0, 0), "keys"),
        (lambda: largest_share(1.0, 8, 9), "at most the number of keys 8, got 9"),
        (lambda: radius_for_share(1.0, 8), "share"),
        (lambda: radius_for_share(0.5, 8, 0), "window"),
        (lambda: cancelling_gain(-1.0, 8), "radius"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
