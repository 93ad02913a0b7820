"""Stops at certified attention: polynomials, summaries, gradients, what they cost."""

from __future__ import annotations

import torch

from gptheory.attention import (
    certified,
    choice,
    exponential,
    gradient,
    locality,
    lowrank,
    polynomial,
    softmax,
)
from gptheory.measures import cost
from gptheory.networks import polynomial as polynomial_networks
from gptheory.probing import recording
from gptheory.studies import growth, statistics
from gptheory.support import memory as free

from .networks import transformer
from .stop import Found, law, normal, seeded, sequences, shaken, stop

RADIUS = 1.37  # of polynomials that nobody else has asked for


@stop("exact")
def polynomials(device: torch.device, dtype: torch.dtype) -> Found:
    """The exponential on an interval."""
    own = exponential.exp_polynomial(5, RADIUS)
    s = torch.linspace(-RADIUS, RADIUS, 9, dtype=torch.float64).to(device, dtype)
    assert own.degree == 5
    return {
        "values": own(s), "bound": own.error_bound,
        "rounding": own.rounding(torch.float64),
        "degree": exponential.degree_for(1e-3, RADIUS),
        "rank": exponential.rank_exponent(1.0, 10.0),
        "taylor": exponential.exp_polynomial(5, RADIUS, "taylor")(s),
        "share": locality.largest_share(RADIUS, 9, 2),
        "radius": locality.radius_for_share(0.5, 9, 2),
        "gain": locality.cancelling_gain(RADIUS, 9, 2),
        "of rank": locality.low_rank_share(2, 9, 2),
        "of all rows": locality.bounded_share(RADIUS, 900, 2, 3),
    }  # fmt: skip


@stop("exact")
def certified_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """Attention and its gradient by a polynomial, in chunks, beside the dense ones."""
    q, k, v, target = (
        x.to(device, dtype) for x in softmax.uniform_inputs(300, 3, 4, torch.float64)
    )
    weight = torch.eye(3, device=device, dtype=dtype) / 2
    return {
        "polynomial": polynomial.poly_attention(q, k, v, 5),
        "chunks": polynomial.poly_attention(q, k, v, 5, radius=1.0, chunk=64),
        "gradient": gradient.attention_gradient(q, k, weight, v, target, 5),
        "exact gradient": gradient.exact_attention_gradient(q, k, weight, v, target),
        "monomials": polynomial.monomials(q, 3),
        "bound": polynomial.logit_bound(q, k, 1 / 3),
    }  # fmt: skip


@stop("network")
def dense_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """The textbook's attention, which obeys the precision of products as torch's own does."""
    q, k, v = (x.to(device, dtype) for x in softmax.uniform_inputs(50, 3, dtype=torch.float64))
    return {"softmax": softmax.softmax_attention(q, k, v, 1 / 3)}


@stop("network")
def polynomials_for_a_softmax(device: torch.device, dtype: torch.dtype) -> Found:
    """A trained network on the device with polynomials in its attention."""
    network, v = shaken(transformer(fused=False), device, dtype), sequences(1, 2, device, dtype)
    swapped = polynomial_networks.with_polynomial_attention(network, 6)
    layer = polynomial_networks.PolynomialAttention(network.blocks[0].attention, 6, radius=4.0)
    y = network.tokens(v)
    query, key, _value = layer.query_key_value(y)
    return {"swapped": swapped(v, 0.1), "weighed": layer.weigh(layer.logits(query, key))}


@stop("network")
def normalised_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """Networks whose logits cannot leave their range, their certificate, and a window."""
    kinds = {"certified": {"radius": 1.5, "degree": 3}, "normalised": {}, "window": {"window": 2}}
    v, found = sequences(1, 3, device, dtype), {}
    for kind, options in kinds.items():
        assert set(choice.attention_options(kind, **options)) >= set(options)
        network = shaken(transformer(attention=kind, fused=False, **options), device, dtype)
        found[kind] = network(v, 0.1)
        found[kind].square().mean().backward()
        found[f"{kind}, gradient"] = network.blocks[0].attention.project.weight.grad
        layer, y = network.blocks[0].attention, network.tokens(v)
        query, key, value = layer.query_key_value(y)
        found[f"{kind}, maps"] = layer.weigh(layer.logits(query, key))
        found[f"{kind}, mixed"] = layer.mix(query, key, value)
        assert layer.extra_repr() in repr(network)
        if kind == "certified":
            found["largest"] = layer.largest_logit(y)
            found["scaled"] = layer.products(layer.normalised(query), key * layer.stretch(key))
            assert layer.certificate().error_bound < 1  # rounding included, so of the dtype
    layer = choice.attention_layer("normalised", 8, 2, True, radius=1.0).to(device, dtype)
    layer.require_room(y)
    free.require_memory("nothing", 0, device, "nothing helps")
    return found


@stop("exact")
def low_rank_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """What certified attention is made of."""
    q, k, v = (normal(seed, 2, 2, 700, device=device, dtype=dtype) / 8 for seed in range(3))
    coefficients = certified.certified_polynomial(RADIUS, 4, dtype).coefficients
    mixed = lowrank.low_rank_attention(q, k, v, coefficients)
    return {"mixed": mixed, "ones": lowrank.with_ones(v)}


@stop("network", compare=False)
def ranges_of_logits(device: torch.device, dtype: torch.dtype) -> Found:
    """How large logits get on noised sequences of a law on the device."""
    network = shaken(transformer(), device, dtype)
    rows = recording.logit_ranges(network, law(device), (0.1, 1.0), 4, seeded(1))
    return {"rows": len(rows)}


@stop("exact")
def memory(device: torch.device, dtype: torch.dtype) -> Found:
    """What torch allocates on the device, counted."""
    settings = growth.Growth(dim=2, gradient_degree=4, lengths=(64, 128), rounds=1)
    peaks = {}
    for method, call in growth.candidates(settings, 64, device).items():
        with cost.MemoryMeter() as meter:
            call()
        peaks[method] = meter.largest
    return {
        "exponent": statistics.growth_exponent([1, 2, 4], [3, 6, 12]),
        "softmax": peaks["softmax"],
    }
