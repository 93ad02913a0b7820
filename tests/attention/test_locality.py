"""Shares of the weight under bounded logits, beside rows of softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeded
from tolerances import assert_identity

from gptheory.attention import (
    bounded_share,
    cancelling_gain,
    exp_polynomial,
    largest_share,
    low_rank_share,
    radius_for_share,
)

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


def own_share(maps, window):
    """Mean over the queries of the weight on their own block."""
    blocks = torch.arange(len(maps)) // window
    return (maps * (blocks[:, None] == blocks)).sum().item() / len(maps)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_maps_of_low_rank_are_not_local(rank, window, seed):
    keys, blocks = 30, torch.arange(30) // window
    # each block looks where one of r summaries does, which are as local as they can be
    summaries = torch.rand(rank, keys, generator=seeded(seed), dtype=F64) ** 8
    choice = torch.rand(keys, rank, generator=seeded(seed + 1), dtype=F64) ** 8
    for k in range(rank):
        summaries[k] += 50 * (blocks == k * (blocks.max() + 1) // rank)
        choice[:, k] += 50 * (blocks == k * (blocks.max() + 1) // rank)
    maps = choice @ summaries
    maps = maps / maps.sum(dim=1, keepdim=True)
    assert own_share(maps, window) <= low_rank_share(rank, keys, window) * (1 + 1e-12)


@pytest.mark.parametrize(("rank", "window"), [(4, 8), (8, 4), (32, 1), (1, 32)])
def test_blocks_attain_the_share_of_their_rank(rank, window):
    maps = torch.block_diag(*[torch.full((window, window), 1 / window, dtype=F64)] * rank)
    assert own_share(maps, window) == low_rank_share(rank, 32, window) == 1.0


def test_windows_have_at_most_four_times_the_share_of_blocks():
    # of any map at all: here a map of rank 4 that is as local as it can be, and a band
    frames = torch.arange(64)
    for reach in (2, 4, 8):
        near = ((frames[:, None] - frames).abs() <= reach).double()
        for maps in (torch.block_diag(*[torch.full((16, 16), 1 / 16, dtype=F64)] * 4), near):
            maps = maps / maps.sum(dim=1, keepdim=True)
            rank = int(torch.linalg.matrix_rank(maps))
            assert (maps * near).sum() / 64 <= 4 * rank * reach / 64


def local_maps(keys, window, head_dim, radius, steps=150):
    """Softmax of logits in [-R, R], queries and keys chosen by gradient ascent to be local."""
    generator = seeded(0)
    q, k = (
        torch.randn(keys // window, head_dim, generator=generator, dtype=F64).requires_grad_()
        for _ in range(2)
    )
    optimiser = torch.optim.Adam([q, k], lr=0.05)
    for _ in range(steps):
        unit = [torch.nn.functional.normalize(x, dim=1) for x in (q, k)]
        maps = (radius * unit[0] @ unit[1].T).softmax(dim=1)
        optimiser.zero_grad()
        (-maps.diagonal().mean().log()).backward()
        optimiser.step()
    # every frame of a block like every other
    return maps.detach().repeat_interleave(window, 0).repeat_interleave(window, 1) / window


@pytest.mark.parametrize("radius", [1.0, 3.0, 6.0])
def test_no_queries_and_keys_are_more_local_than_the_bound(radius):
    maps = local_maps(256, 8, 3, radius)
    bound = bounded_share(radius, 256, 8, head_dim=3)
    assert 0.2 * bound < own_share(maps, 8) <= bound <= largest_share(radius, 256, 8)


def test_the_bound_is_that_of_the_best_polynomial():
    found = bounded_share(4.0, 2**16, 8, head_dim=4)
    each = [
        math.comb(4 + g, g) * 8 / 2**16 + exp_polynomial(g, 4.0).error_bound / 2
        for g in range(5, 16)
    ]
    assert found == min(each) < largest_share(4.0, 2**16, 8) / 5


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
        (lambda: low_rank_share(0, 8), "rank"),
        (lambda: low_rank_share(2, 8, 9), "at most the number of keys 8, got 9"),
        (lambda: bounded_share(1.0, 8, 2, 0), "head_dim"),
        (lambda: bounded_share(0.0, 8, 2, 4), "radius"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
