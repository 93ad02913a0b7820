"""Patterns of missing frames."""

from __future__ import annotations

import pytest
import torch

from gptheory.data import blocks, middle, spread, tail

PATTERNS = [tail, middle, blocks, spread]


def lengths(observed):
    """Of the runs of missing frames, in their order."""
    text = "".join(" x"[not seen] for seen in observed.tolist())
    return [len(run) for run in text.split()]


@pytest.mark.statement("YC Table 2")
@pytest.mark.parametrize(
    ("observed", "runs"),
    [
        (tail(96, 16), [16]),
        (middle(96, 16), [16]),
        (blocks(96, 16), [4] * 4),
        (spread(96, 16), [1] * 16),
        (spread(96, 16, pairs=1), [2] + [1] * 14),
    ],
    ids=["tail", "middle", "blocks", "spread", "with a pair"],
)
def test_runs_of_missing_frames(observed, runs):
    assert observed.dtype == torch.bool and observed.shape == (96,)
    assert lengths(observed) == runs


def test_where_they_lie():
    assert tail(5, 2).tolist() == [True, True, True, False, False]
    assert middle(6, 2).tolist() == [True, True, False, False, True, True]
    for observed in (middle(96, 16), blocks(96, 16), blocks(96, 24, 3)):
        assert torch.equal(observed, observed.flip(0))  # as much is seen before as after


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bad_input_says_what_was_given(pattern):
    for seq_len, missing in ((8, 8), (8, 12), (8, 0), (0, 4), (8, -4)):
        with pytest.raises(ValueError, match=f"{missing}|got {seq_len}"):
            pattern(seq_len, missing)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="missing=6 frames do not make 4 blocks"):
        blocks(20, 6)
    with pytest.raises(ValueError, match="3 missing frames do not make 2 pairs"):
        spread(20, 3, pairs=2)
    with pytest.raises(ValueError, match="6 missing frames of this pattern do not fit into 7"):
        spread(7, 6, pairs=1)
