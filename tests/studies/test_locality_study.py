"""What bounded logits cost: the cells, what counts as near, what is committed."""

from __future__ import annotations

import pytest
import torch
from tolerances import assert_identity

from gptheory.studies import load_result
from gptheory.studies.locality import BATCHES, KINDS, LOCALITY, NEAR, LocalityCell, _near_share


def test_near_weight_counts_both_sides_and_all_sequences():
    frames = torch.arange(64)
    uniform = torch.full((3, 2, 64, 64), 1 / 64)
    inside = ((frames[:, None] - frames).abs() <= NEAR).sum() / 64**2
    assert_identity(_near_share(uniform), inside.expand(2))
    shifted = torch.zeros(1, 64, 64)
    for distance, share in ((0, 1.0), (NEAR, 1.0), (NEAR + 1, 0.0)):
        shifted[0] = 0
        shifted[0, frames, (frames + distance).clamp(max=63)] = 1
        assert _near_share(shifted)[0] == pytest.approx(share, abs=(NEAR + 1) / 64)


def test_heads_are_told_apart_and_sequences_averaged():
    maps = torch.zeros(2, 2, 32, 32)
    maps[:, 0] = torch.eye(32)
    maps[0, 1], maps[1, 1] = torch.eye(32), torch.eye(32).flip(0)
    own, half = _near_share(maps)
    assert own == 1 and 0.5 < half < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_cells_make_the_attention_they_name(kind):
    cell = LocalityCell(seq_len=16, steps=2, hidden=8, **KINDS[kind])
    network = cell.member().model
    assert network.config["attention"] == KINDS[kind]["attention"]
    for name, value in KINDS[kind].items():
        assert network.config[name] == value
    assert network.blocks[0].attention.heads == 2
    found = cell.assess(network.eval())
    assert 0 < found["reach"] < 1 and found["near"] > found["reach"] / 2
    assert found["path_kl"] > 0


def test_all_kinds_start_from_the_same_weights():
    first, *others = (
        LocalityCell(seq_len=16, steps=2, hidden=8, **own).member().model for own in KINDS.values()
    )
    for other in others:
        for name, value in other.state_dict().items():
            assert torch.equal(value, first.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attention": "sparse"}, "attention must be one of"),
        ({"attention": "softmax", "radius": 2.0}, "belongs to attention="),
        ({"attention": "window"}, "needs window, got None"),
    ],
)
def test_cells_refuse_what_their_attention_does_not_have(options, match):
    with pytest.raises(ValueError, match=match):
        LocalityCell(seq_len=16, **options).member()


def test_every_length_shows_a_network_the_same_number_of_frames():
    assert {n * batch for n, batch in BATCHES.items()} == {1024}


@pytest.fixture(scope="module")
def committed():
    return load_result("locality-quick")


@pytest.mark.statement("HWLSL Practical guidance")
def test_committed_sweep_is_the_whole_grid(committed):
    cells = LOCALITY["quick"].cells()
    assert committed.numbers["sweep"] == {"cells": len(cells), "failed": 0}
    assert committed.record["settings"]["format"] == LocalityCell.FORMAT
    table = committed.table("cells")
    assert table["part"].tolist() == list(cells.values())
    for name in ("lengthscale", "seq_len", "seed"):
        assert table[name].tolist() == [getattr(cell, name) for cell in cells]
