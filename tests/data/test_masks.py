"""Laws of masks to train with: blocks that do not touch, mixtures, the strategies S1 to S4."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from settings import default_device, default_dtype
from strategies import seeded
from tolerances import assert_statistical

from gptheory.data import STRATEGIES, Blocks, MaskMixture, random_gaps, strategy
from gptheory.data.masks import MaskLaw, draw_masks, require_masks

TABLE = torch.tensor([[True, False, True], [False, True, True]])


def gap_sizes(observed: torch.Tensor) -> tuple[int, ...]:
    return tuple(len(run) for run in re.findall("0+", "".join(str(int(x)) for x in observed)))


def gaps_by_loops(slots: list[int], seq_len: int, size: int) -> torch.Tensor:
    """The mask whose k-th gap is behind that many of the frames that are seen, one frame a time."""
    observed, place = [], sorted(slots)
    for frame in range(seq_len - len(slots) * size + 1):
        observed += [False] * size * place.count(frame) + [True]
    return torch.tensor(observed[:seq_len])


@pytest.mark.parametrize(("seq_len", "gaps", "size"), [(10, 2, 3), (9, 4, 1), (7, 1, 6), (5, 3, 1)])
def test_gaps_are_where_their_slots_say(seq_len, gaps, size):
    """Another way from the same random numbers to the masks."""
    observed = random_gaps(50, seq_len, gaps, size, seeded(3))
    order = torch.rand(50, seq_len - gaps * size + 1, generator=seeded(3)).argsort(dim=1)
    for row, slots in zip(observed, order[:, :gaps].tolist(), strict=True):
        assert torch.equal(row, gaps_by_loops(slots, seq_len, size))
        assert gap_sizes(row) == (size,) * gaps


def test_blocks_are_random_gaps():
    law = Blocks(12, 3, 2)
    assert torch.equal(law.draw(7, seeded(1)), random_gaps(7, 12, 3, 2, seeded(1)))
    assert law.parts == (12, 3, 2) and law == Blocks(12, 3, 2) != Blocks(12, 2, 3)


@pytest.mark.parametrize("shares", [None, (1.0, 3.0, 4.0)])
def test_every_mask_of_a_mixture_is_of_one_law_as_often_as_its_share(shares):
    kinds = [Blocks(12, 4, 1), Blocks(12, 2, 2), Blocks(12, 1, 4)]
    n, mixture = 4000, MaskMixture(kinds, shares)
    found = Counter(gap_sizes(row) for row in mixture.draw(n, seeded(2)))
    assert set(found) == {(1,) * 4, (2, 2), (4,)}
    expected = torch.tensor(shares or (1.0,) * 3, dtype=torch.float64)
    expected = expected / expected.sum()
    average = torch.tensor([found[own] for own in ((1,) * 4, (2, 2), (4,))]) / n
    assert_statistical(average, expected, (expected * (1 - expected) / n).sqrt(), n)


def test_masks_of_a_mixture_are_drawn_as_their_law_draws_them():
    """Within a kind all placements are equally likely, whatever else is in the mixture."""
    n = 6000
    masks = MaskMixture([Blocks(4, 1, 1), Blocks(4, 1, 2)]).draw(n, seeded(4))
    kinds, counts = masks.int().unique(dim=0, return_counts=True)
    expected = torch.where(kinds.sum(dim=1) == 3, 1 / 8, 1 / 6).double()
    assert len(kinds) == 4 + 3
    assert_statistical(counts / n, expected, (expected * (1 - expected) / n).sqrt(), n)


@pytest.mark.parametrize(("seq_len", "missing"), [(96, 16), (32, 8)])
def test_strategies_are_those_of_print(seq_len, missing):
    """At 16 frames: 16 × 1, 8 × 2, 4 × 4, 1 × 16, in equal shares."""
    counts = [(missing, 1), (missing // 2, 2), (missing // 4, 4), (1, missing)]
    for number, name in enumerate(STRATEGIES, start=1):
        own = strategy(name, seq_len, missing)
        assert own.laws == tuple(Blocks(seq_len, *each) for each in counts[:number])
        assert own.shares == (1.0,) * number and own.seq_len == seq_len
        masks = own.draw(20, seeded(1))
        assert isinstance(own, MaskLaw) and (masks.sum(dim=1) == seq_len - missing).all()


def test_laws_of_masks_say_what_decides_them():
    mixtures = [
        strategy("S2", 12, 4), strategy("S1", 12, 4), strategy("S2", 12, 2),
        MaskMixture(strategy("S2", 12, 4).laws, (1, 2)),
    ]  # fmt: skip
    assert len({own.parts for own in mixtures}) == len(mixtures)
    assert strategy("S2", 12, 4).parts == mixtures[0].parts
    assert eval(repr(mixtures[0])) == mixtures[0]


@pytest.mark.parametrize("context", [default_device("meta"), default_dtype(torch.float64)])
def test_contexts_change_no_mask(context):
    own = strategy("S4", 12, 4)
    plain, rows = own.draw(9, seeded(5)), draw_masks(TABLE, 9, seeded(5))
    with context:
        assert torch.equal(own.draw(9, seeded(5)), plain)
        assert torch.equal(draw_masks(TABLE, 9, seeded(5)), rows)
        assert strategy("S4", 12, 4).draw(2).device.type == "cpu"


def test_rows_of_a_table_are_drawn_with_replacement():
    n = 4000
    masks = draw_masks(TABLE, n, seeded(6))
    first = (masks == TABLE[0]).all(dim=1)
    assert (first | (masks == TABLE[1]).all(dim=1)).all()
    assert_statistical(first.double().mean(), 0.5, (0.25 / n) ** 0.5, n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Blocks(9, 3, 3), "3 gaps of 3 frames do not fit into 9 frames"),
        (lambda: Blocks(9, 0, 3), "gaps must be an integer >= 1, got 0"),
        (lambda: Blocks(9, 1, 2).draw(0), "n must be an integer >= 1, got 0"),
        (lambda: MaskMixture([]), r"one law of masks or more.*got laws of \[\] frames"),
        (lambda: MaskMixture([Blocks(9, 1, 2), Blocks(8, 1, 2)]), r"got laws of \[8, 9\] frames"),
        (lambda: MaskMixture([Blocks(9, 1, 2)], [1, 2]), "shares must be 1 finite numbers > 0"),
        (lambda: MaskMixture([Blocks(9, 1, 2)] * 2, [1, 0]), r"> 0.* got \[1, 0\]"),
        (lambda: MaskMixture([Blocks(9, 1, 2)]).draw(0), "n must be an integer >= 1, got 0"),
        (lambda: strategy("P1", 9, 4), "name must be one of S1, S2, S3, S4, got 'P1'"),
        (lambda: strategy("S3", 96, 6), r"blocks of \(1, 2, 4\) frames, into which missing=6"),
        (lambda: strategy("S1", 9, 0), "missing must be an integer >= 1, got 0"),
        (lambda: strategy("S1", 9, 6), "6 gaps of 1 frames do not fit into 9 frames"),
        (lambda: require_masks(Blocks(9, 1, 2), 8), "masks are for seq_len=9, .* seq_len=8"),
        (lambda: require_masks(TABLE.int(), 3), r"boolean tensor \(m, 3\).* got torch.int32"),
        (lambda: require_masks([True], 3), "a law of masks or a boolean tensor.* got list"),
        (lambda: require_masks(TABLE, 4), r"masks must have shape \(m, 4\), got \(2, 3\)"),
        (lambda: require_masks(TABLE[0], 3), r"masks must have shape \(m, 3\), got \(3,\)"),
        (lambda: require_masks(TABLE[:0], 3), r"masks must have shape \(m, 3\), got \(0, 3\)"),
        (lambda: require_masks(TABLE | TABLE[:1], 3), "True of some .* got 3 of 3 in row 1"),
        (lambda: require_masks(TABLE & False, 3), "True of some .* got 0 of 3 in row 0"),
    ],
)
def test_masks_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
