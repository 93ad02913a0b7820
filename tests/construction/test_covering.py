"""What a class of transformers costs: the formula, and what it says of two constructions."""

import math
from dataclasses import replace

import pytest
from tolerances import assert_identity

from gptheory.construction import covering_cost
from gptheory.construction.network import NetworkSize

PAPER = NetworkSize(73, 2300, 148, 128, 453765, 64441640, 20293.0)
SHORT = NetworkSize(73, 79, 41, 80, 239166, 2852217, 28173.0)
BOUNDS = {"seq_len": 128, "dim": 8, "radius": 230.0, "data_bound": 32.0, "accuracy": 1e-3}


@pytest.mark.statement("FDGWC Lemma 23")
def test_formula():
    depth = math.log(20293) + math.log(148) + math.log(128) + math.log(230) + math.log(32)
    cover = math.log(20293 * 148 * 2300 * 128 * 8 * 32 / 1e-3)
    assert_identity(covering_cost(PAPER, **BOUNDS), 73**2 * 148 * (2300**2 * depth + cover))


@pytest.mark.statement("FDGWC Lemma 23")
def test_the_short_construction_is_thousands_of_times_cheaper():
    costs = [covering_cost(size, **BOUNDS) for size in (PAPER, SHORT)]
    assert 1e14 < costs[0] < 2e14 and 3e10 < costs[1] < 5e10
    without_logarithms = 148 * 2300**2 / (41 * 79**2)
    assert 3000 < without_logarithms < costs[0] / costs[1] < 3500


@pytest.mark.statement("FDGWC Lemma 23")
def test_the_accuracy_is_a_matter_of_the_second_term():
    coarse, fine = (covering_cost(PAPER, **BOUNDS | {"accuracy": a}) for a in (1e-3, 1e-6))
    assert_identity(fine - coarse, 73**2 * 148 * math.log(1000), condition=1e5)
    assert (fine - coarse) / coarse < 1e-6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ({"dim": 1.5}, r"dim must be an integer >= 1, got 1\.5"),
        ({"radius": math.inf}, "radius must be a finite number > 0, got inf"),
        ({"data_bound": 0.0}, r"data_bound must be a finite number > 0, got 0\.0"),
        ({"accuracy": -1.0}, r"accuracy must be a finite number > 0, got -1\.0"),
    ],
)
def test_bad_numbers_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        covering_cost(PAPER, **BOUNDS | changed)


def test_a_network_without_heads_is_refused():
    with pytest.raises(ValueError, match="heads must be an integer >= 1, got 0"):
        covering_cost(replace(PAPER, heads=0), **BOUNDS)
