"""Stops among the scores: exact, unrolled, constructed; sampling with them, measuring them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from gptheory.attention import time_embedding
from gptheory.construction import (
    build_contextual_transformer,
    build_preconditioned_transformer,
    build_score_transformer,
    builders,
    contextual,
    covering_cost,
    lag_heads,
    multiplication,
    ranges,
    ridge_layers,
)
from gptheory.construction.blueprint import Blueprint
from gptheory.construction.layers import Attention, Block, FeedForward
from gptheory.construction.network import ScoreTransformer, StepFeatures
from gptheory.construction.preconditioner import PreconditionedFeatures
from gptheory.construction.subspaces import Subspaces
from gptheory.data import GaussianProcess, covariance, decaying_process
from gptheory.diffusion import ExactScore, conventions, denoiser, grids, solvers, unrolled
from gptheory.diffusion import sampler as generation
from gptheory.figures import networks
from gptheory.measures import imputation, likelihood, regions, sampling, spectrum
from gptheory.measures import scores as measure
from gptheory.support import spectra

from .stop import D, Found, N, law, normal, seeded, sequences, steps, stop


@stop("exact")
def exact_score(device: torch.device, dtype: torch.dtype) -> Found:
    """The law on either side, t a number or one per sequence on either side."""
    v = sequences(1, 3, device, dtype)
    here, there = ExactScore(law(device)), ExactScore(law())
    assert here.device.type == here.law.mean.device.type == device.type
    return {
        "number": here(v, 0.1),
        "steps": here(v, steps(3, device)),
        "steps of the CPU": here(v, steps(3)),
        "law of the CPU": there(v, steps(3, device).to(dtype)),
        "denoised": denoiser.denoise(here, v, 0.1),
        "rotated": spectra.along_frames(
            normal(2, N, N, device=device, dtype=dtype), v.transpose(0, 1)
        ),
        "frames": spectra.frames_first(steps(3, device)[:, None, None]),
    }


@stop("exact")
def unrolled_score(device: torch.device, dtype: torch.dtype) -> Found:
    """Every method, its iterates and its bound; their limit."""
    v, found = sequences(1, 3, device, dtype), {}
    for method in ("gradient-descent", "heavy-ball", "chebyshev"):
        own = unrolled.UnrolledScore(law(device), 3, method=method)
        assert own.device.type == device.type
        found |= {f"{method}, number": own(v, 0.1), f"{method}, steps": own(v, steps(3, device))}
        found |= {f"{method}, {k}": s for k, s in enumerate(own.iterates(v, 0.2))}
        found[f"{method}, bound"] = own.convergence_bound(0.2)
    there = unrolled.UnrolledScore(law(), 3, bandwidth=4, taper="bohman")
    return {**found, "limit": there.limit(v, steps(3)), "law of the CPU": there(v, 0.1)}


@stop("exact")
def predictions_of_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """What a network on a discrete schedule would say of a law on the device, and back."""
    v, found = sequences(1, 3, device, dtype), {}
    kept = torch.exp(-torch.linspace(0.01, 4.0, 30, dtype=torch.float64)).to(device)
    for kind in conventions.PREDICTIONS:
        model = conventions.to_epsilon(ExactScore(law(device)), kept, kind)
        own = conventions.from_epsilon(model, kept, kind)
        found |= {kind: model(v, 7), f"{kind}, timesteps": model(v, torch.arange(3, device=device))}
        found |= {f"{kind}, number": own(v, 0.1), f"{kind}, steps": own(v, steps(3, device))}
    whole = conventions.PredictedScore(model, kept, kind, rounded=True)
    schedule = conventions.TrainingSchedule(kept)
    found |= {"rounded": whole(v, steps(3)), "at": schedule.step(2.5), "of": schedule.timestep(0.1)}
    return {**found, "timesteps": schedule.timestep(steps(3, device))}


@stop("exact")
def bounds_of_the_iteration(device: torch.device, dtype: torch.dtype) -> Found:
    """What the theorems say about an iteration whose law lies on the device."""
    own = unrolled.UnrolledScore(law(device), 3, bandwidth=5, taper="bohman")
    low, high = own.extremes(steps(3, device))
    sizes = torch.tensor([size for size, _ in own.coefficients(0.1)], dtype=torch.float64)
    level = unrolled.as_level(steps(3), sequences(1, 3, device, dtype))
    return {
        "condition": own.condition_number(steps(3)), "low": low, "high": high, "sizes": sizes,
        "convergence": own.convergence_bound(0.1), "steps": own.steps_for(1e-3, 0.1),
        "truncation": own.truncation_bound(0.1), "dropped": own.truncation_error(0.1),
        "error": own.score_error(0.1), "banded": covariance.band(law(device).gram(), 3),
        "level": level,
    }  # fmt: skip


FORMS = {
    "plain": {"form": "plain"},
    "once": {"form": "position-once", "heads": "shared-knots"},
    "sine": {"form": "position-once", "heads": "sine", "multiplication": "attention"},
    "momentum": {"form": "position-once", "method": "heavy-ball", "multiplication": "attention"},
}


@stop("exact")
def constructed_transformer(device: torch.device, dtype: torch.dtype) -> Found:
    """Theorem 1 as weights in float64, moved; the law stays where it was."""
    v, found = sequences(1, 3, device, dtype), {}
    for name, options in FORMS.items():
        network = build_score_transformer(law(), 2, bandwidth=4, **options).to(device)
        found |= {f"{name}, number": network(v, 0.1), f"{name}, steps": network(v, steps(3))}
    size, *_, last = network.size(), *network.states(v, 0.1)
    norms = dict(network.weight_norms())
    return {**found, "width": size.width, "norm": max(norms.values()), "state": last}


@stop("exact")
def preconditioned_transformer(device: torch.device, dtype: torch.dtype) -> Found:
    """A preconditioner made on the CPU, and the network that applies it on the device."""
    v, own = sequences(1, 3, device, dtype), law(device)
    network = build_preconditioned_transformer(own, 2, reach=4, t_min=0.05).to(device)
    inverse = network.preconditioner
    features = PreconditionedFeatures(tuple(inverse.features.nodes.tolist())).to(device)
    return {
        "number": network(v, 0.1), "steps": network(v, steps(3)), "M": inverse.matrix(0.1),
        "sizes": sum(inverse.step_sizes(3)), "bound": inverse.convergence_bound(3),
        "features": features(steps(3, device)),
    }  # fmt: skip


@stop("network")
def layers_of_the_class(device: torch.device, dtype: torch.dtype) -> Found:
    """One block of the paper's class, by itself."""
    width, whole = 5, slice(0, 5)
    weights = (normal(k, 2, 3, width, device=device, dtype=dtype) for k in range(3))
    layer = Attention(*weights, normal(3, 2, width, 3, device=device, dtype=dtype)).to(device)
    y = normal(4, 2, N, width, device=device, dtype=dtype)
    query, key, _value = layer.query_key_value(y)
    up, down = (
        normal(5 + k, *s, device=device, dtype=dtype) for k, s in enumerate([(4, 5), (5, 4)])
    )
    feed = FeedForward(up, up[:, 0], down, down[:, 0])
    none = Attention.without_heads(width).to(device, dtype)
    return {
        "attention": layer(y), "scores": layer.scores(y), "maps": layer.maps(y),
        "attended": layer.attend(layer.maps(y), y), "operator": layer.operator(y, whole, whole),
        "weighed": layer.weigh(layer.logits(query, key)), "feed": feed(y),
        "block": Block(none, feed)(y),
        "rotated": spectra.along_frames(layer.maps(y)[0, 0], y.transpose(0, 1)),
    }  # fmt: skip


@stop("exact")
def parts_of_the_construction(device: torch.device, dtype: torch.dtype) -> Found:
    """Weights written down on the CPU, where all of them are, and applied on the device."""
    spaces = Subspaces({"one": 1, "z": 1, "x": 2, "zx": 2, multiplication.TEETH: 4})
    product = multiplication.Product("z", "x", "zx", 1.0, 2.0)
    y = normal(1, 2, N, spaces.width, device=device, dtype=torch.float64).clamp(-0.9, 0.9)
    y[..., spaces["one"]], y[..., spaces[multiplication.TEETH]] = 1.0, 0.0
    blocks = multiplication.multiplication_blocks(spaces, [product], 3)
    blocks += multiplication.attention_multiplication(spaces, [product], N)
    out, unit = y, torch.ones(1, 1, dtype=torch.float64)
    for block in blocks:
        out = block.to(device)(out)
    builder, layer = builders.AttentionBuilder(spaces), builders.FeedForwardBuilder(spaces)
    builder.add("copy", {"one": unit}, {"one": unit}, {"z": unit}, {"one": unit})
    layer.add("shift", {"z": unit}, torch.ones(1), {"one": unit})
    layer.linear("move", {"z": unit}, {"one": unit})
    assert product.label and "z" in spaces and spaces.touched(torch.eye(spaces.width))
    return {
        "products": out,
        "copied": builder.build().to(device)(y), "fed": layer.build().to(device)(y),
        "width": spaces.width, "names": len(spaces.names), "starts": sum(spaces.boundaries()),
        "read": spaces.read({"z": unit}, 1), "written": spaces.write({"z": unit}, 1),
    }  # fmt: skip


@stop("exact")
def looked_up(device: torch.device, dtype: torch.dtype) -> Found:
    """A table as weights: inside a cube of the grid, and outside of all; what a class costs."""
    network = build_contextual_transformer(torch.sin, 2, 1, 4).to(device)
    x = torch.tensor([[0.1, 0.6], [0.9, 0.4], [0.3, 1.2]], device=device, dtype=dtype)[..., None]
    unit = torch.ones(1, dtype=torch.float64)
    floor = ridge_layers.floored(0.25, 0.25, 2.0**-22)
    assert {layer.label for layer in network.layers()} and contextual.outlier(2, 1, 4) == 98
    assert all(
        len(units.knots) <= 4
        for units in (
            floor, ridge_layers.cleared(98, 2.0**-22), ridge_layers.outside(0, 1, 0.25),
            ridge_layers.negative_part(), ridge_layers.bump(1, 0.25),
        )
    )  # fmt: skip
    size = build_score_transformer(law(), 1).size()
    return {
        "answers": network(x), "ids": network.ids(x), "tokens": network.context(x),
        "states": torch.stack(list(network.states(x))),
        "floored": ridge_layers.RidgeFeedForward(unit, floor, unit, "").to(device)(x.double()),
        "shifted": network.contextual[0](x.double()),
        "cost": covering_cost(size, N, D, 10.0, 4.0, 0.1),
    }  # fmt: skip


@stop("exact")
def functions_of_the_lag(device: torch.device, dtype: torch.dtype) -> Found:
    """Heads as functions of the lag, and the plan of a network that they make."""
    values, embedding, found = law().gram()[0, :4], time_embedding(N, 2.0 * N), {}
    for variant in ("trapezoid", "shared-knots", "sine"):
        period = lag_heads.default_period(variant, N)
        lag_heads.require_separated_lags(variant, N, period)
        lags = lag_heads.lag_function(variant, values, period)
        found |= {variant: lags.of(time_embedding(N, period)), f"{variant} steep": lags.steepness}
        found[f"{variant} same"] = lag_heads.same_frame(variant, period).of(embedding)
    x, gaps = lag_heads.cosines(3, 2.0 * N, 1.0)
    reference = unrolled.UnrolledScore(law(), 2)
    largest, radius = ranges.value_ranges(reference, None, 0.01, 8.0)
    same = lag_heads.same_frame("trapezoid", 2 * N)
    plan = Blueprint(
        law(), "plain", False, 3, lag_heads.lag_function("trapezoid", values, 2 * N), same, largest
    )
    features = StepFeatures(reference.spectrum)
    lift = plan.lift(embedding, features).to(device)
    blocks = plan.prepare() + plan.step()
    network = ScoreTransformer(lift, blocks, plan.readout(), radius, (0.01, 8.0), plan.spaces)
    v = sequences(1, 2, device, torch.float64)
    return {
        **found, "x": x, "gaps": gaps, "radius": radius, "network": network.to(device)(v, 0.1),
        "features": features.to(device)(steps(3, device)), "at": same(x),
        "lifted": lift(v, steps(2, device)),
    }  # fmt: skip


@stop("exact")
def drawn_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """Pictures of weights that lie on the device."""
    network = build_score_transformer(law(), 1, bandwidth=3).to(device)
    figure, ax = plt.subplots()
    networks.draw_weight(ax, network.readout, columns=network.spaces)
    figures = [figure, networks.draw_block(network.blocks[-1], network.spaces)]
    figures.append(networks.draw_network(network))
    count = sum(len(each.axes) for each in figures)
    for each in figures:
        plt.close(each)
    return {"axes": count}


@stop("exact", drawn=True)
def every_sampler(device: torch.device, dtype: torch.dtype) -> Found:
    """All solvers with the exact score of a law on the device, noise from the CPU's generator."""
    own, found = ExactScore(law(device)), {}
    for method, names in solvers.SOLVERS.items():
        for solver in names:
            found[f"{method}, {solver}"] = generation.sample(
                own, 2, N, D, method, solver, steps=12, generator=seeded(1), dtype=dtype,
                device=device, show_progress=False,
            )  # fmt: skip
    x = found["ode, heun"]
    found["restarted"] = generation.restart(own, x, 0.5, 2, 3, generator=seeded(2))
    sources = (0.1, law(device), sequences(5, 20, device, dtype))
    found["stops"] = [grids.stop_for(source) for source in sources]
    values = law(device).temporal_spectrum[0]
    modes = solvers.mode_variances(values, grids.step_grid(6), initial=values + 1)
    return {**found, "modes": modes, "grid": sum(grids.step_grid(4)), **_path(own, x)}


def _path(own: ExactScore, x: Tensor) -> Found:
    states = solvers.trajectory(own, x, grids.step_grid(3))
    return {f"at {t:.3g}": state for t, state in states}


@stop("exact", drawn=True)
def errors_of_scores(device: torch.device, dtype: torch.dtype) -> Found:
    """How far an iteration is from the exact score of a law on the device, and on the CPU."""
    own = unrolled.UnrolledScore(law(device), 2)
    made = sampling.sampling_error(law(device), steps=5)
    x = sequences(6, 3, device, dtype)
    common = {"generator": seeded(3), "dtype": dtype}
    return {
        "score": measure.score_error(own, law(device), 0.1, 16, **common),
        "score, law of the CPU": measure.score_error(own, law(), 0.1, 16, **common),
        "path": measure.path_kl(own, law(device), n=64, **common),
        "coupled": measure.coupled_ode_error(own, law(device), n=4, steps=5, **common),
        "variances": made.sampled, "spectrum": made.true, "ratios": made.ratio,
        "lags": spectrum.lag_products(x, law(device), (0, 2))[0],
        "frequencies": spectrum.spectral_ratios(x, law(), 2)[0],
        "autocovariance": law(device).autocovariance(),
        "distances": [made.covariance, made.kl, made.w2, made.tv],
        "ball": [made.coverage(), made.mean_error],
    }  # fmt: skip


@stop("exact")
def how_sure_to_be(device: torch.device, dtype: torch.dtype) -> Found:
    """Regions of draws on the device and of laws on either side; what is reported beside them."""
    own, x, found = law(device), sequences(7, 15, device, dtype), {}
    made = {
        "ball": regions.ball_region(x), "corrected": regions.ball_region(x, 0.9, corrected=True),
        "ellipsoid": regions.ellipsoid_region(x), "law": regions.ball_region(own),
        "shape of a law": regions.ellipsoid_region(own),
    }  # fmt: skip
    for name, region in made.items():
        found[name] = region.distance(x)
        found[f"{name} inside"] = region.contains(x).double()
        covered = region.coverage(own), region.coverage(law())
        found[f"{name} covers"] = [region.radius, region.log_volume, *covered]
    for name, each in {"draws": x, "other law": decaying_process(N, D).to(device)}.items():
        report = vars(imputation.imputation_error(each, own))
        found[f"report of {name}"] = [value for value in report.values() if value is not None]
    lower, upper = imputation.intervals(x)
    scale = (upper - lower) / 4
    return found | {
        "lower": lower, "upper": upper, "score": imputation.crps(x, x[0]),
        "normal": imputation.gaussian_crps(x.mean(dim=0), scale, x[0]),
    }  # fmt: skip


@stop("exact")
def densities_by_the_flow(device: torch.device, dtype: torch.dtype) -> Found:
    """Of sequences on the device, to a score whose law lies on either side."""
    v, here, there = sequences(4, 3, device, dtype), ExactScore(law(device)), ExactScore(law())
    return {
        "exact": likelihood.log_likelihood(here, v, steps=3, start=law(device)),
        "law of the CPU": likelihood.log_likelihood(there, v, steps=3, start=law()),
        "white start": likelihood.log_likelihood(here, v, steps=3),
        "signs": likelihood.log_likelihood(here, v, steps=3, probes=2, generator=seeded(5)),
    }


@stop("exact", drawn=True)
def distances_of_scores(device: torch.device, dtype: torch.dtype) -> Found:
    """Total variation of an iteration from laws on the device and on the CPU."""
    found, own = {}, unrolled.UnrolledScore(law(device), 2)
    for name, each in (("of the device", law(device)), ("of the CPU", law())):
        tv = likelihood.total_variation(own, each, 8, steps=3, generator=seeded(6), dtype=dtype)
        found |= {f"{name}, tv": tv.value, f"{name}, kl": tv.kl}
    return found


@stop("exact")
def law_of_many_frames(device: torch.device, dtype: torch.dtype) -> Found:
    """A mean for each frame, and a temporal covariance given as a matrix."""
    mean = normal(1, N, D, device=device, dtype=torch.float64)
    own = GaussianProcess(law(device).gram(), law(device).spatial, mean)
    v = sequences(2, 2, device, dtype)
    return {"score": ExactScore(own)(v, 0.3), "prob": own.log_prob(v)}
