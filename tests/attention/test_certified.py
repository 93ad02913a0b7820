"""Attention that is certified by construction: its map, its gradients, its bounds, its memory."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import seeded
from tolerances import assert_at_most, assert_identity

from gptheory.attention.certified import CertifiedAttention, NormalisedAttention
from gptheory.attention.exponential import exp_polynomial
from gptheory.attention.lowrank import low_rank_attention
from gptheory.networks import DiT
from gptheory.support.draws import weights_from

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).to(dtype)


def on_sphere(*shape, radius, seed):
    """Columns of length √R: (…, h, N)."""
    x = normal(*shape, seed=seed)
    return x / x.norm(dim=-2, keepdim=True) * math.sqrt(radius)


def dense(q, k, v, polynomial):
    """The N × N map, forward and backward by autograd."""
    maps = polynomial(q.mT @ k)
    return (maps / maps.sum(-1, keepdim=True) @ v.mT).mT


@pytest.mark.parametrize(("dim", "degree", "width"), [(1, 5, 2), (2, 3, 2), (4, 4, 4), (3, 6, 1)])
@pytest.mark.parametrize("length", [1, 40, 1100])
def test_low_rank_attention_and_its_gradients_are_those_of_the_dense_map(
    dim, degree, width, length
):
    polynomial = exp_polynomial(degree, 2.0)
    q, k = (on_sphere(2, 3, dim, length, radius=2.0, seed=s) for s in (1, 2))
    v, slope = normal(2, 3, width, length, seed=3), normal(2, 3, width, length, seed=4)
    results = []
    for call in (
        lambda *x: low_rank_attention(*x, polynomial.coefficients),
        lambda *x: dense(*x, polynomial),
    ):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        output = call(*inputs)
        results.append((output, *torch.autograd.grad(output, inputs, slope)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * max(1.0, theirs.abs().max().item())


def layer(kind=CertifiedAttention, width=12, heads=3, **options):
    with weights_from(seeded(0)):
        return kind(width, heads, **options)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("radius", [0.5, 2.0, 5.0])
def test_no_weights_move_a_logit_out_of_the_range(size, dtype, radius):
    own = layer(NormalisedAttention, radius=radius).to(dtype)
    with torch.no_grad():
        for weight in own.parameters():
            weight.mul_(size)
    y = normal(4, 30, 12, dtype=dtype)
    query, key, _ = own.query_key_value(y)
    for other in (key, query, -query):  # parallel ones reach it
        logits = own.logits(query, other)
        assert torch.isfinite(logits).all()
        assert logits.abs().max().item() <= radius
    if size >= 1:
        assert own.logits(query, query).max().item() > radius * (1 - 1e-3)
    assert own.largest_logit(y) <= radius


def test_output_is_within_the_certificate_of_normalised_softmax():
    y = 10 * normal(3, 50, 12)
    for radius, degree in ((1.0, 2), (2.0, 4), (3.0, 6), (4.0, 4)):
        own = layer(radius=radius, degree=degree).double()
        exact = layer(NormalisedAttention, radius=radius).double()
        exact.load_state_dict(own.state_dict())
        certificate = own.certificate()
        gap = (own.maps(y) - exact.maps(y)).abs().sum(-1).max()
        assert_at_most(gap.item(), certificate.error_bound)
        value = own.query_key_value(y)[2]
        moved = (own.mix(*own.query_key_value(y)) - exact.mix(*exact.query_key_value(y))).abs()
        assert_at_most(moved.max().item(), certificate.error_bound * value.abs().max().item())


def test_maps_are_those_of_the_layer():
    own, y = layer().double(), normal(2, 20, 12)
    assert_identity(own.attend(own.maps(y), y), own(y))
    assert own.maps(y).min() > 0


def test_every_argument_is_kept():
    model = DiT(3, 6, 16, 4, 1, attention="certified", radius=3.0, degree=6)
    assert (model.config["radius"], model.config["degree"]) == (3.0, 6)
    again = DiT(**model.config)
    assert again.blocks[0].attention.certificate() == model.blocks[0].attention.certificate()
