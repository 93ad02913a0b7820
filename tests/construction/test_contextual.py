"""Theorem 3.1 as weights: the lemmas of its proof, on every sequence of a grid."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from strategies import seeded
from tolerances import assert_statistical
from torch import nn

from gptheory.construction import build_contextual_transformer
from gptheory.construction.contextual import ContextualTransformer, outlier
from gptheory.construction.ridge_layers import RidgeFeedForward, SizeOneAttention
from gptheory.data import random_mixture
from gptheory.diffusion import ExactScore, perturb, sigma

GRIDS = [(2, 1, 4), (2, 2, 4), (2, 1, 2), (2, 1, 8), (3, 1, 4), (2, 4, 2)]  # L, d, 1/δ
SMALL = GRIDS[:2]


def table(seed=0):
    """A function with no structure: a number for each coordinate of each cube."""
    return lambda x: torch.rand(x.shape, generator=seeded(seed), dtype=torch.float64) - 0.5


def points(seq_len, dim, ticks):
    return torch.tensor(list(product(ticks, repeat=seq_len * dim))).double().view(-1, seq_len, dim)


def grid(seq_len, dim, cells):
    """A point of every cube: 0.3 of a cell above its lower end."""
    return points(seq_len, dim, [(k + 0.3) / cells for k in range(cells)])


def beyond(seq_len, dim, cells):
    """Sequences with a coordinate on either side of the cube, and any others."""
    x = points(seq_len, dim, [-0.7, *((k + 0.3) / cells for k in range(cells)), 1.0])
    x = x[((x < 0) | (x >= 1)).flatten(1).any(dim=1)]
    return x[torch.randperm(len(x), generator=seeded(1))[:3000]]  # all of them, but for d = 4


@pytest.fixture(scope="module", params=GRIDS, ids=str)
def built(request):
    return request.param, build_contextual_transformer(table(), *request.param)


def properties(network, inside, outside, bounds=None):
    """The four of Lemma E.4, of the ids as they come out."""
    ids, others = network.ids(inside), network.ids(outside)
    low, high = bounds or network.id_range
    return (
        all(len(set(row.tolist())) == len(row) for row in ids),
        len(ids.unique()) == sum(len(row.unique()) for row in ids),
        bool(((ids >= low) & (ids <= high)).all()),
        not ((others >= low) & (others <= high)).any(),
    )


# ---- the printed definitions, in fractions ------------------------------------------------------


def zeta_1(x, floor):
    return -x - floor if x < 0 or x >= 1 else 0


def zeta_2(x, delta):
    return -x if 0 <= x < delta else 0


def shift(ids, threshold):
    """ξ(X; b): the hard maximum of (uᵀX)ᵀ(uᵀX − b) in each column, as it picks from uᵀX."""
    return [max(ids) if g > threshold else min(ids) for g in ids]


def printed_context(x, cells):
    """Definitions E.5 and E.6, (E.4), (E.11) and (E.12) on one sequence, a list of columns."""
    seq_len, dim, delta = len(x), len(x[0]), Fraction(1, cells)
    floor = outlier(seq_len, dim, cells)
    x = [[g + zeta_1(g, floor) for g in column] for column in x]
    for k in range(cells):
        x = [[g + zeta_2(g - k * delta, delta) for g in column] for column in x]
    x = [[g + j for g in column] for j, column in enumerate(x)]

    def ids():
        return [sum(g * cells**i for i, g in enumerate(column)) for column in x]

    for j, k in product(range(seq_len), range(cells**dim)):
        at = j * sum(cells**i for i in range(dim)) + k * delta
        pairs = zip(shift(ids(), at - delta / 2), shift(ids(), at + delta / 2), strict=True)
        for column, (up, down) in zip(x, pairs, strict=True):
            column[0] += cells**dim * (up - down)
    for column, up in zip(x, shift(ids(), 0), strict=True):
        column[0] += seq_len * cells ** ((seq_len + 1) * dim + 1) * up
    return x


def fractions(x):
    return [[[Fraction(g) for g in column] for column in sequence] for sequence in x.tolist()]


@pytest.mark.statement("HWLSL Lemma E.7")
@pytest.mark.statement("HWLSL Lemma E.3")
@pytest.mark.parametrize("size", SMALL)
def test_softmax_and_relus_are_the_hard_maximum_and_steps_of_the_proof(size):
    network = build_contextual_transformer(table(), *size)
    inside, outside = grid(*size), beyond(*size)
    few = torch.randperm(len(outside), generator=seeded(1))[:60]
    # dyadic points, so that what leaves the cube is −J to the last bit
    x = (torch.cat([inside, outside[few]]) * 2**20).round() / 2**20
    tokens = network.context(x)
    for sequence, exact in zip(
        tokens.tolist(), map(printed_context, fractions(x), [size[2]] * len(x)), strict=True
    ):
        assert sequence == exact


# ---- Lemma E.4 and what its proof uses ----------------------------------------------------------


@pytest.mark.statement("HWLSL Lemma E.4")
def test_four_properties_of_the_contextual_mapping(built):
    size, network = built
    assert properties(network, grid(*size), beyond(*size)) == (True,) * 4


@pytest.mark.statement("HWLSL Lemma E.4")
def test_ids_are_exact(built):
    (_, _, cells), network = built
    in_cells = network.ids(grid(*built[0])) * cells
    assert torch.equal(in_cells, in_cells.round()) and in_cells.max() < 2**53
    assert in_cells.flatten().sort().values.diff().min() >= 1


@pytest.mark.statement("HWLSL Lemma E.4")
def test_printed_lower_end_is_above_ids(built):
    (seq_len, dim, cells), network = built
    printed = seq_len * cells ** (2 * (seq_len + 1) * dim) * (cells**dim - 1)
    ids = network.ids(grid(seq_len, dim, cells))
    assert printed > ids.min()
    assert (printed > ids.max()) == (built[0] != (2, 1, 2))
    assert (printed > network.id_range[1]) == (dim > 1)  # an interval with nothing in it


@pytest.mark.statement("HWLSL Lemma E.8")
def test_largest_shifted_id_is_within_its_bounds_and_tells_the_sequence(built):
    (seq_len, dim, cells), network = built
    before = network.contextual[:-1]
    y = start(network, grid(seq_len, dim, cells))
    for layer in before:
        y = layer(y)
    shifted = y @ network.direction
    last = shifted[:, -1]
    assert last.min() >= cells ** ((seq_len - 1) * dim - 1) * (cells**dim - 1)
    assert last.max() <= seq_len * cells ** ((seq_len + 1) * dim)
    assert len(last.unique()) == len(last)
    # "each token is shifted once": not the sequence of neighbours 1 − δ and 1, for d = 1 and L = 2
    out_of_order = (shifted.diff(dim=1) <= 0).any(dim=1).sum().item()
    assert out_of_order == (1 if (seq_len, dim) == (2, 1) else 0)


def start(network, x):
    """Tokens that enter the second part."""
    states = list(network.states(x))
    return states[len(network.quantiser) + 1]


@pytest.mark.statement("HWLSL Lemma E.4")
def test_one_sequence_is_shifted_twice():
    network = build_contextual_transformer(table(), 2, 1, 4)
    y = torch.tensor([[[0.75], [1.0]]]).double()
    seen = [y.flatten().tolist()]
    for layer in network.contextual[:-1]:
        y = layer(y)
        seen += [y.flatten().tolist()] * (y.flatten().tolist() != seen[-1])
    assert seen == [[0.75, 1.0], [1.75, 1.0], [1.75, 4.0], [10.75, 4.0]]


@pytest.mark.statement("HWLSL Lemma E.4")
@pytest.mark.parametrize("size", [(2, 1, 4), (2, 2, 4), (2, 1, 8), (2, 2, 2)])
def test_the_stated_number_of_layers_is_enough_for_two_tokens(size):
    """δ^{-d} + 1, where the proof has Lδ^{-d} + 1: shift the second token only."""
    network = build_contextual_transformer(table(), *size)
    count = size[2] ** size[1]
    network.contextual = network.contextual[count:]
    assert len(network.contextual) == count + 1
    ids = network.ids(grid(*size))
    bounds = ids.min().item(), ids.max().item()
    assert properties(network, grid(*size), beyond(*size), bounds) == (True,) * 4


LARGEST = [(2, 1, 64), (2, 2, 8), (2, 6, 2), (3, 2, 4), (3, 4, 2), (4, 1, 8), (5, 1, 4), (10, 1, 2)]


@pytest.mark.parametrize("size", LARGEST)
def test_ids_of_the_largest_grids_fit_into_float64(size):
    """The largest are of sequences whose first token left the cube, and of the last one only."""
    seq_len, dim, cells = size
    network = ContextualTransformer(*size, 0.0, 1.0)
    x = torch.full((1, seq_len, dim), 1 - 0.5 / cells).double()
    x[0, 0] = 2.0
    assert network.context(x).abs().max() * cells < 2**52
    with pytest.raises(ValueError, match="at most 16384"):
        build_contextual_transformer(table(), seq_len, dim, 2 * cells)


# ---- what is left out is missed -----------------------------------------------------------------


def broken(size, change):
    network = build_contextual_transformer(table(), *size)
    change(network)
    return properties(network, grid(*size), beyond(*size))


def keep(*parts):
    def change(network):
        count = round(network.spacing**-network.dim)
        layers = list(network.contextual)
        named = {"0": layers[:count], "1": layers[count : 2 * count], "all": layers[-1:]}
        network.contextual = nn.ModuleList([each for part in parts for each in named[part]])

    return change


@pytest.mark.statement("HWLSL Lemma E.4")
@pytest.mark.parametrize("size", SMALL)
def test_without_a_part_a_property_fails(size):
    assert broken(size, keep("0", "1", "all")) == (True,) * 4
    assert broken(size, keep("all"))[1] is False  # no shifts
    assert broken(size, keep("1", "all"))[2] is False
    assert broken(size, keep("0", "all"))[2] is False
    assert broken(size, keep("0", "1"))[2] is False  # no global shift
    assert broken(size, lambda network: network.position.zero_())[0] is False
    assert broken(size, lambda network: network.quantiser.__setitem__(0, nn.Identity()))[3] is False


@pytest.mark.statement("HWLSL Lemma E.4")
def test_most_single_layers_are_needed():
    def without(k):
        return lambda network: network.contextual.__setitem__(k, nn.Identity())

    kept = [all(broken((2, 1, 4), without(k))) for k in range(9)]
    assert sum(kept) == 3 and not kept[-1]


# ---- Lemmas E.5 and E.6: the values -------------------------------------------------------------


@pytest.mark.statement("HWLSL Lemma E.5")
@pytest.mark.statement("HWLSL Theorem 3.1")
def test_any_table_is_looked_up(built):
    (seq_len, dim, cells), network = built
    x = grid(seq_len, dim, cells)
    scale = 2.0 ** (52 - math.ceil(math.log2(network.id_range[1])))
    expected = (table()(x) * scale).round() / scale
    assert torch.equal(network(x), expected)
    shaken = x + (0.6 * torch.rand(x.shape, generator=seeded(2)).double() - 0.25) / cells
    assert torch.equal(network(shaken), expected)


@pytest.mark.statement("HWLSL Lemma E.5")
def test_outside_of_the_cube_the_answer_is_zero(built):
    assert not built[1](beyond(*built[0])).any()


@pytest.mark.statement("HWLSL Lemma E.6")
def test_layers_are_counted(built):
    (seq_len, dim, cells), network = built
    counts = len(network.quantiser), len(network.contextual), len(network.values)
    assert counts == (
        dim * cells + dim,
        seq_len * cells**dim + 1,
        1 + dim + seq_len * cells ** (dim * seq_len),
    )
    assert len({layer.label for layer in network.layers()}) == sum(counts)


@pytest.mark.statement("HWLSL Theorem 3.1")
def test_layers_are_of_the_class(built):
    (_, dim, _), network = built
    for layer in network.layers():
        if isinstance(layer, SizeOneAttention):
            assert layer.query.shape[0] <= 2 and layer.query.shape[1] == dim
        else:
            assert isinstance(layer, RidgeFeedForward) and len(layer.up) <= 4
            assert torch.linalg.matrix_rank(layer.up) == 1
    assert not any(weight.requires_grad for weight in network.parameters())


# ---- Lemma E.2 and the theorem ------------------------------------------------------------------


@pytest.mark.statement("HWLSL Lemma E.2")
@pytest.mark.parametrize(("dim", "cells"), [(1, 16), (2, 4), (4, 2)])
def test_the_identity_is_missed_by_the_width_of_a_cell(dim, cells):
    """All three have 256 cubes: with δ = ε^{2/d}, ε = 1/4 each."""
    network = build_contextual_transformer(lambda x: x, 2, dim, cells)
    x = torch.rand(2000, 2, dim, generator=seeded(3), dtype=torch.float64)
    square = (network(x) - x).square().flatten(1).sum(dim=1)
    expected = 2 * dim / 12 / cells**2
    assert_statistical(square.mean(), expected, square.std() / 2000**0.5, 2000)
    assert (math.sqrt(expected) > 0.25) == (dim > 2)


@pytest.mark.statement("HWLSL Theorem 3.1")
def test_the_error_of_a_denoiser_falls_with_the_width():
    law, t = random_mixture(2, 1, generator=seeded(1)), 0.5
    v, _ = perturb(law.sample(1000, seeded(2), torch.float64), t, seeded(3))

    def denoised(h):
        return h + sigma(t) ** 2 * ExactScore(law)(h, t)

    errors = []
    for cells in (4, 8, 16):
        network = build_contextual_transformer(denoised, 2, 1, cells, -4.0, 4.0)
        errors.append((network(v) - denoised(v)).square().sum(dim=(1, 2)).mean().sqrt().item())
    first, second, third = errors
    assert 1.6 < first / second < 2.2 and 1.6 < second / third < 2.2


@pytest.mark.statement("HWLSL Lemma E.7")
@pytest.mark.parametrize("size", SMALL)
def test_on_a_ramp_the_answer_is_as_large_as_an_id(size):
    """So neither the bound C_T nor the Lipschitz constant of the theorem is the network's."""
    network = build_contextual_transformer(lambda x: x, *size)
    x = torch.full((1, *size[:2]), 0.5 / size[2]).double()
    x[..., 0] = (1 - 2.0**-21) / size[2]
    assert network(x).abs().max() > network.id_range[0]


# ---- input and refusals -------------------------------------------------------------------------


def test_other_cubes_and_dtypes():
    network = build_contextual_transformer(lambda x: 2 * x, 2, 1, 4, -2.0, 2.0)
    x = torch.tensor([[[-1.75], [1.2]], [[0.1], [2.5]]])
    assert torch.equal(network(x), torch.tensor([[[-3.0], [3.0]], [[0.0], [0.0]]]))
    assert network(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 1}, "seq_len must be an integer >= 2, got 1"),
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"cells": 1}, "cells must be an integer >= 2, got 1"),
        ({"cells": 6}, "cells must be a power of two, got 6"),
        ({"low": 1.0}, r"expected finite low < high, got low=1.0, high=1.0"),
        ({"high": math.inf}, r"expected finite low < high, got low=0.0, high=inf"),
        ({"dim": 4, "cells": 4}, r"131072 layers .* at most 16384"),
        ({"function": lambda x: x[:, :1]}, r"must return \(16, 2, 1\), got \(16, 1, 1\)"),
        ({"function": lambda _: None}, r"must return \(16, 2, 1\), got None"),
        ({"function": lambda x: x / 0}, "values of the function must be finite"),
        ({"function": lambda x: 2000 + x}, r"values must be below 1536 .* got 2000"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, message):
    settings = {"function": lambda x: x, "seq_len": 2, "dim": 1, "cells": 4} | settings
    with pytest.raises(ValueError, match=message):
        build_contextual_transformer(**settings)


def test_other_shapes_are_refused():
    network = build_contextual_transformer(lambda x: x, 2, 1, 4)
    with pytest.raises(ValueError, match=r"\(1, 3, 1\)"):
        network(torch.zeros(1, 3, 1))
