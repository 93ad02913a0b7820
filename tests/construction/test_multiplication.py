"""Multiplication by feed-forward layers, to its bound, and by attention, exactly."""

import math

import pytest
import torch
from strategies import seeded
from tolerances import assert_identity

from gptheory.construction.multiplication import (
    TEETH,
    Product,
    attention_multiplication,
    multiplication_blocks,
)
from gptheory.construction.subspaces import Subspaces
from gptheory.support.rounding import gamma

SPACES = Subspaces({"one": 1, "z": 1, "w": 1, "x": 3, "y": 2, "zx": 3, "wy": 2, TEETH: 10})
PRODUCTS = [
    Product("z", "x", "zx", scalar_range=2.0, vector_range=5.0),
    Product("w", "y", "wy", scalar_range=0.5, vector_range=3.0, coefficient=-4.0),
]


def tokens(n=20000, seed=0, edges=True):
    """Random tokens (1, n, width) within the ranges, work space at zero."""
    y = torch.zeros(1, n, SPACES.width, dtype=torch.float64)
    uniform = 2 * torch.rand(1, n, 7, generator=seeded(seed), dtype=torch.float64) - 1
    ranges = torch.tensor([2.0, 0.5, 5, 5, 5, 3, 3], dtype=torch.float64)
    y[..., 1:8] = ranges * (uniform.sign() if edges else uniform)
    y[..., 0] = 1
    return y


def run(blocks, y):
    for block in blocks:
        y = block(y)
    return y


def rounding(blocks, largest):
    """Of numbers up to ``largest`` that pass all blocks: γ of the terms that are not zeros."""
    layers = [block.feed_forward for block in blocks]
    weights = [weight for layer in layers for weight in (layer.up, layer.down)]
    return gamma(sum(int((w != 0).sum(dim=-1).max()) + 1 for w in weights)) * largest


def errors(depth, y):
    out = run(multiplication_blocks(SPACES, PRODUCTS, depth), y)
    first = (out[..., SPACES["zx"]] - y[..., SPACES["z"]] * y[..., SPACES["x"]]).abs().max()
    second = (out[..., SPACES["wy"]] + 4 * y[..., SPACES["w"]] * y[..., SPACES["y"]]).abs().max()
    return first.item(), second.item(), out


@pytest.mark.statement("FDGWC Theorem 1", "FDGWC Corollary 3")
@pytest.mark.parametrize("depth", [1, 2, 5, 9, 14])
def test_error_is_bounded_and_nearly_attained(depth):
    y = tokens(edges=False)
    first, second, out = errors(depth, y)
    blocks = multiplication_blocks(SPACES, PRODUCTS, depth)
    for error, scale in ((first, 2.0 * 5.0), (second, 4.0 * 0.5 * 3.0)):
        bound = scale * 4.0 ** -(depth + 1)
        assert 0.7 * bound < error <= bound + rounding(blocks, scale)
    kept = [n for n in SPACES.names if n not in ("zx", "wy", TEETH)]
    # bit for bit: y plus sums of zeros
    assert all(torch.equal(out[..., SPACES[n]], y[..., SPACES[n]]) for n in kept)
    assert out[..., SPACES[TEETH]].abs().max() <= rounding(blocks, 1.0)  # teeth lie in [0, 1]


@pytest.mark.statement("FDGWC Theorem 1", "FDGWC Corollary 3")
def test_error_falls_by_four_a_layer():
    y = tokens(edges=False)
    depths = torch.arange(2, 12, dtype=torch.float64)
    logs = torch.tensor([math.log(errors(int(m), y)[0]) for m in depths], dtype=torch.float64)
    centred = depths - depths.mean()
    slope = (centred @ logs / (centred @ centred)).item()
    print(f"log error falls by {-slope:.4f} a layer, log 4 = {math.log(4):.4f}")
    assert slope == pytest.approx(-math.log(4), rel=0.02)


def test_each_depth_is_the_interpolant_of_the_parabola():
    depth, n = 3, 2**3
    spaces = Subspaces({"z": 1, "x": 1, "zx": 1, TEETH: 2})
    blocks = multiplication_blocks(spaces, [Product("z", "x", "zx", 1.0, 1.0)], depth)
    z = torch.linspace(-1, 1, 501, dtype=torch.float64)
    y = torch.zeros(1, 501, 5, dtype=torch.float64)
    y[0, :, 0], y[0, :, 1] = 1.0, z

    def interpolant(u):
        low = torch.floor(u * n).clamp(max=n - 1)
        return (low / n) ** 2 + (u * n - low) * ((2 * low + 1) / n**2)

    out = run(blocks, y)[0, :, 2]
    assert_identity(out, interpolant((1 + z) / 2) - interpolant((1 - z) / 2))


@pytest.mark.parametrize("zero", ["z", "x"])
def test_a_factor_of_zero_gives_zero(zero):
    """Up to rounding: two parabolas of the same numbers, added in the order of a product."""
    y = tokens(500, edges=False)
    y[..., SPACES[zero]] = 0
    blocks = multiplication_blocks(SPACES, PRODUCTS, 8)
    assert run(blocks, y)[..., SPACES["zx"]].abs().max() <= rounding(blocks, 2.0 * 5.0)


def test_products_at_the_ends_of_the_range_are_exact():
    first, second, _ = errors(3, tokens(500, edges=True))
    blocks = multiplication_blocks(SPACES, PRODUCTS, 3)
    assert first <= rounding(blocks, 2.0 * 5.0) and second <= rounding(blocks, 4.0 * 0.5 * 3.0)


def test_targets_accumulate_and_may_be_a_factor():
    spaces = Subspaces({"z": 1, "x": 2, TEETH: 4})
    y = torch.tensor([[[0.7, 0.4, -0.9, 0, 0, 0, 0]]], dtype=torch.float64)
    blocks = multiplication_blocks(spaces, [Product("z", "x", "x", 1.0, 1.0, -1.0)], 22)
    assert_identity(run(blocks, y)[0, 0, 1:3], [0.3 * 0.4, -0.3 * 0.9])


def test_limits_are_the_ranges_of_the_first_block():
    first, *rest = multiplication_blocks(SPACES, PRODUCTS, 3)
    assert all(block.limits is None for block in rest)
    assert first.limits[SPACES["z"]].item() == 2.0
    assert first.limits[SPACES["x"]].tolist() == [5.0] * 3
    assert first.limits[SPACES["wy"]].tolist() == [math.inf] * 2
    y = tokens(4, edges=False)
    y[..., SPACES["x"]] *= 2
    y[..., SPACES["z"]] *= 2  # both at the end of twice their range: no longer a product
    assert errors(12, y)[0] > 0.1


@pytest.mark.statement("FDGWC Theorem 1")
def test_attention_multiplies_exactly():
    y = tokens(9, edges=False)
    y[..., SPACES["z"]], y[..., SPACES["w"]] = 1.7, 0.0  # scalars of t: one value, not negative
    (block,) = attention_multiplication(SPACES, PRODUCTS, 9)
    out = block(y)
    assert_identity(out[..., SPACES["zx"]], 1.7 * y[..., SPACES["x"]])
    assert torch.equal(out[..., SPACES["wy"]], torch.zeros(1, 9, 2, dtype=torch.float64))
    assert len(block.attention.query) == 2 * (3 + 2)
    assert torch.equal(out[..., :8], y[..., :8])
