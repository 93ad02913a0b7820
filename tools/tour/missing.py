"""Stops at missing frames: two loops, one loop, and both as networks."""

from __future__ import annotations

import torch

from gptheory.construction import build_imputation_transformer, build_nested_transformer
from gptheory.construction.imputation import extreme_variances, score_radius, step_interval
from gptheory.construction.masked_network import FrameLevels
from gptheory.construction.scaled_heads import Scores
from gptheory.diffusion import NestedScore, OneLoopScore, methods, missing

from .stop import Found, N, law, sequences, steps, stop

SEEN = torch.tensor([True, False, True, True, False, True])


@stop("exact")
def one_loop(device: torch.device, dtype: torch.dtype) -> Found:
    """Every method, its iterates, its error and its bound."""
    v, found = sequences(1, 3, device, dtype), {}
    seen = missing.require_observed(SEEN.to(device), N)
    for method in methods.METHODS:
        own = OneLoopScore(law(device), seen, 3, method)
        assert own.device.type == device.type
        found |= {f"{method}, number": own(v, 0.1), f"{method}, steps": own(v, steps(3, device))}
        found |= {f"{method}, error": own.score_error(0.1), "bound": own.convergence_bound(0.1)}
        found |= {f"{method}, {k}": s for k, s in enumerate(own.iterates(v, 0.2))}
    low, high = own.extremes(steps(3, device))
    there = OneLoopScore(law(), SEEN, 3, every_mask=True)
    return {
        **found, "low": low, "high": high, "condition": own.condition_number(steps(3)),
        "sizes": own.coefficients(0.1)[0][0],
        "steps": own.steps_for(1e-3, 0.1), "law of the CPU": there(v, 0.1),
    }  # fmt: skip


@stop("exact")
def two_loops(device: torch.device, dtype: torch.dtype) -> Found:
    """Both loops by eigenvectors and as they run; what is known of their errors."""
    v, found = sequences(1, 3, device, dtype), {}
    for method in methods.STATIONARY:
        own = NestedScore(law(device), SEEN.to(device), 3, 60, method)
        found |= {f"{method}, number": own(v, 0.1), f"{method}, steps": own(v, steps(3, device))}
        found |= {f"{method}, {k}": s for k, s in enumerate(own.iterates(v, 0.2))}
        found |= {f"{method}, error": own.score_error(0.1), "bound": own.convergence_bound(0.1)}
    low, high = own.extremes(steps(3, device))
    outer, inner = own.steps_for(1e-3, 0.1)
    there = NestedScore(law(), SEEN, 3, 60, every_mask=True)
    return {
        **found, "low": low, "high": high, "system": own.system(steps(3)), "K": outer,
        "K_aux": inner,
        "inner": sum(own.inner_extremes), "drift": own.drift(0.1), "growth": own.growth(0.1),
        "sizes": own.coefficients(0.1)[0][0], "law of the CPU": there(v, 0.1),
    }  # fmt: skip


@stop("exact")
def networks_for_missing_frames(device: torch.device, dtype: torch.dtype) -> Found:
    """Both constructions, moved; masks for all sequences and one for each."""
    v, found = sequences(1, 3, device, dtype), {}
    masks = torch.stack([SEEN, ~SEEN, SEEN.roll(1)])
    networks = {
        "one loop": build_imputation_transformer(law(), 3),
        "two loops": build_nested_transformer(law(), 2, 2, multiplication="attention"),
    }
    for name, network in networks.items():
        network = network.to(device)
        found |= {f"{name}, number": network(v, 0.1, SEEN.to(device))}
        found |= {f"{name}, masks": network(v, steps(3, device), masks)}
        *_, found[f"{name}, state"] = network.states(v, 0.1, SEEN)
        found[f"{name}, tokens"] = network.lift(v, steps(3, device).to(dtype), masks.to(device))
    low, high = step_interval(law(device))
    ends = extreme_variances(law(device))
    assert Scores("signal", "signal").label == "signal·signal"
    return {
        **found, "low": low, "high": high, "radius": score_radius(law(device)), "ends": sum(ends),
        "levels": FrameLevels()(steps(3, device)), "least": methods.least_count(lambda k: k > 4),
    }  # fmt: skip
