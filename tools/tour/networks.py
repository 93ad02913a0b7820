"""Stops among trainable networks: evaluated, trained, probed; many at once; in latent space."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from gptheory.attention import positions
from gptheory.construction import build_score_transformer
from gptheory.data import Blocks, MaskMixture, decaying_process, mixture
from gptheory.diffusion import ConditionalScore, ExactScore, denoiser, impute, sample
from gptheory.latent import LatentScore, aligned_score, rates, recovery, subspace
from gptheory.latent import errors as latent_errors
from gptheory.latent.networks import FullScore
from gptheory.measures import imputer_error
from gptheory.networks import ConditionalDiT, baselines, dit, learned, score_network
from gptheory.probing import Edited, batch_mean, maps, nulls, only, recording, uniform, without
from gptheory.studies import finetune
from gptheory.studies.run import in_half_precision
from gptheory.support import draws
from gptheory.training import config, fit_ensemble, objective, resume
from gptheory.training import loop as training_loop
from gptheory.training.ensemble import Member

from .stop import D, Found, N, law, normal, seeded, sequences, shaken, steps, stop


def transformer(seed: int = 0, **options: object) -> dit.DiT:
    """A small diffusion transformer."""
    return dit.DiT(D, N, 8, 2, 2, generator=seeded(seed), **options)


NETWORKS = {
    "DiT": transformer,
    "ReLU": lambda: transformer(attention="relu-rows", position="none", fused=False),
    "UNet": lambda: baselines.UNet1d(D, N, 8, generator=seeded(1)),
    "MLP": lambda: baselines.FrameMLP(D, hidden=8, depth=2, generator=seeded(2)),
    "steps": lambda: learned.LearnedSteps(law(), 3, 4, momentum=True, generator=seeded(3)),
    "covariance": lambda: learned.LearnedCovariance(D, N, 2, generator=seeded(4)),
    "root": lambda: learned.LearnedCovariance(D, N, 2, False, generator=seeded(4)),
}


@stop("network")
def evaluated_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """Every network, moved; t a number or one per sequence on either side; the gradient."""
    v, found = sequences(1, 3, device, dtype), {}
    for name, make in NETWORKS.items():
        network = shaken(make(), device, dtype)
        found[f"{name}, number"] = network(v, 0.1)
        found[f"{name}, steps"] = network(v, steps(3, device))
        found[f"{name}, steps of the CPU"] = network(v, steps(3))
        network(v, 0.3).square().mean().backward()
        gradients = [weight.grad.flatten() for weight in network.parameters()]
        found[f"{name}, gradient"] = torch.cat(gradients)
    return found


@stop("network")
def parts_of_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """Layers by themselves, their first weights drawn on the CPU."""
    with draws.weights_from(seeded(1)):
        block = dit.DiTBlock(8, 2, "softmax", 2, False)
        linear, modulation = nn.Linear(8, 8), score_network.Modulation(baselines.CLOCK_WIDTH, 8, 2)
        convolution, clock = (
            baselines.ResidualConvolution(8, 8),
            score_network.Clock(baselines.CLOCK_WIDTH),
        )
    parts = [shaken(part, device, dtype) for part in (block, modulation, convolution, clock)]
    y = normal(2, 3, N, 8, device=device, dtype=dtype)
    clocked = parts[3](steps(3, device))
    shift, scale = parts[1](clocked)
    layer = parts[0].attention
    query, key, _value = layer.query_key_value(y)
    own = learned.LearnedCovariance(D, N, 2).to(device, dtype)
    return {
        "block": parts[0](y, clocked[:, :8]), "norm": score_network.modulated_norm(y, shift, scale),
        "convolution": parts[2](y.mT, clocked),
        "attended": layer.attend(layer.maps(y), y),
        "attention": layer(y), "weighed": layer.weigh(layer.logits(query, key)),
        "zero": score_network.zero_init(linear).weight.detach(),
        "frames": positions.frame_embedding("sinusoidal", N, 4),
        "temporal": own.temporal(), "spatial": own.spatial(),
        "unrolled": torch.stack(NETWORKS["steps"]().to(device).coefficients(steps(2, device))[0]),
    }  # fmt: skip


@stop("network", drawn=True)
def samples_of_networks(device: torch.device, dtype: torch.dtype) -> Found:
    """Generation from a network on the device, where the network says where."""
    network = shaken(transformer(), device, dtype)
    x = sample(
        network, 2, N, D, "sde", steps=4, generator=seeded(1), dtype=dtype, show_progress=False
    )
    assert x.device.type == device.type
    return {"x": x}


def imputer(seed: int = 0, **options: object) -> ConditionalDiT:
    """A small transformer that is told which frames are seen."""
    return ConditionalDiT(D, N, 8, 2, 2, generator=seeded(seed), **options)


SEEN = torch.tensor([True, False, True, True, False, True])


@stop("network")
def imputers(device: torch.device, dtype: torch.dtype) -> Found:
    """A mask for all and one for each; the score given frames on either side."""
    network, v = shaken(imputer(), device, dtype), sequences(1, 4, device, dtype)
    x, seen = sequences(2, 2, device, dtype), torch.stack([SEEN, ~SEEN])
    own, there = ConditionalScore(network, x, seen), ConditionalScore(network, x.cpu(), seen)
    assert own.t_range is None and own.device.type == device.type
    noise = normal(4, 4, N, D, device=device, dtype=dtype)
    every = seen.repeat(2, 1).to(device)
    errors = objective.matching_error(network(v, 0.1, every), noise, 0.1, "noise").square()
    return {
        "mask": network(v, 0.1, SEEN), "masks": network(v, steps(4, device), every),
        "tokens": network.tokens(v, every[..., None]), "given": own(v, steps(4)),
        "sequences of the CPU": there(v, 0.3), "whole": own.completed(v),
        "missing": own.of_missing(1)(v[:, :4], steps(4)),
        "loss": objective.missing_mean(errors, every),
    }  # fmt: skip


@stop("network", compare=False)
def imputations(device: torch.device, dtype: torch.dtype) -> Found:
    """An imputer that was trained, alone and with others; what it draws, and how good that is."""
    law_of_masks = MaskMixture([Blocks(N, 1, 1), Blocks(N, 1, 2)])
    model, quiet = imputer(fused=False).to(device, dtype), {"steps": 4, "show_progress": False}
    whole = resume.fit(model, law(), CONFIG, show_progress=False, masks=law_of_masks).model
    table = training_loop.masks_at_home(law_of_masks.draw(4, seeded(1)), model, law(), device)
    members = [Member(imputer(k, fused=False).to(device, dtype), law(), k, table) for k in (1, 2)]
    together = fit_ensemble(members, CONFIG)
    x = sequences(2, 3, device, dtype)
    drawn = impute(whole, x, SEEN, 5, seeded(3), **quiet)
    assert drawn.device.type == device.type and torch.equal(drawn[0][:, SEEN], x[:, SEEN])
    report = imputer_error(
        whole, law(device), SEEN.to(device), 2, 5, 8, generator=seeded(4), dtype=dtype, **quiet
    )
    return {
        **_weights(whole), **{f"member, {n}": w for n, w in _weights(together[0]).items()},
        "drawn": drawn, "path": report.path_kl, "ball": report.average.ball,
        "error": report.standard_error.crps,
    }  # fmt: skip


@stop("network", drawn=True)
def losses(device: torch.device, dtype: torch.dtype) -> Found:
    """Score matching at every weight and law of the step."""
    network, x = shaken(transformer(), device, dtype), sequences(1, 4, device, dtype)
    found: dict[str, Tensor | float] = {}
    for weight, times in itertools.product(objective.WEIGHTS, objective.TIMES):
        t = objective.matching_steps(4, times, 0.01, 4.0, seeded(2))
        loss = objective.matching_loss(network, x, t, seeded(3), weight)
        found[f"{weight}, {times}"] = loss
    noise = normal(4, 4, N, D, device=device, dtype=dtype)
    found["error"] = objective.matching_error(network(x, 0.1), noise, 0.1, "noise")
    t, every = steps(4), SEEN.expand(4, -1).to(device)
    told = shaken(imputer(), device, dtype)
    found["missing"] = objective.matching_loss(told, x, t, seeded(3), "noise", every)
    return found


CONFIG = config.TrainConfig(
    steps=6, batch_size=4, log_every=2, evaluate_n=8, evaluate_at=(0.1,), evaluate_every=3
)


def _weights(model: nn.Module) -> Found:
    return {name: value.detach() for name, value in model.state_dict().items()}


@stop("network", compare=False)
def training_and_resuming(device: torch.device, dtype: torch.dtype) -> Found:
    """A run that is interrupted ends where one ends that is not, bit for bit."""
    whole = resume.fit(transformer().to(device, dtype), law(), CONFIG, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        begun = training_loop.Training(transformer().to(device, dtype), law(), CONFIG)
        for step in begun:
            if step == 3:
                resume.save_checkpoint(path, begun)
                break
        again = training_loop.Training(transformer(1).to(device, dtype), law(), CONFIG)
        resume.load_checkpoint(path, again)
        assert len(again) == 3
        resumed = resume.fit(
            transformer(2).to(device, dtype), law(), CONFIG, None, path, show_progress=False
        )
    pairs = zip(_weights(whole.model).values(), _weights(resumed.model).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    return {"rows": len(whole.history), **_weights(resumed.model)}


@stop("network", compare=False)
def training_on_sequences(device: torch.device, dtype: torch.dtype) -> Found:
    """Data on the CPU, networks on the device; one at a time and many at once."""
    x = law().sample(20, seeded(1), dtype)
    found = resume.fit(transformer().to(device, dtype), x, CONFIG, law(), show_progress=False)
    unfused = [transformer(k, fused=False).to(device, dtype) for k in range(3)]
    members = [Member(unfused[0], x, 0), Member(unfused[1], x[:7], 1), Member(unfused[2], law(), 2)]
    together = fit_ensemble(members, CONFIG)
    at_home = training_loop.at_home(x, dtype, device)
    training_loop.require_fitting(unfused[0], at_home)
    batch = training_loop.draw_batch(at_home, 3, torch.Generator(device).manual_seed(1), dtype)
    kinds = training_loop.architecture(unfused[0])
    return {
        **_weights(found.model), "batch": batch, "kinds": len(kinds),
        **{f"member {k}, {n}": w for k, m in enumerate(together) for n, w in _weights(m).items()},
    }  # fmt: skip


@stop("network")
def probed_attention(device: torch.device, dtype: torch.dtype) -> Found:
    """Maps of a network on the device, what they are made of, and what edits do."""
    network, v = shaken(transformer(), device, dtype), sequences(1, 3, device, dtype)
    seen = recording.record(network, v, 0.1)[-1]
    recording.require_positions(recording.content_coordinates(network))
    edits = {
        "only": only("ee"), "without": without("xx", split="batch"),
        "uniform": uniform, "mean": batch_mean,
    }  # fmt: skip
    twins = (nulls.untrained(network, seeded(2)), nulls.permuted_positions(network, seeded(3)))
    return {
        "maps": seen.maps, "logits": seen.logits, **seen.blocks(),
        "norms": recording.block_norms(network),
        "products": recording.query_key_products(recording.attention_layers(network)[0]),
        **{f"share {name}": share for name, share in recording.logit_shares(seen).items()},
        **{name: Edited(network, edit)(v, 0.1) for name, edit in edits.items()},
        "untrained": twins[0](v, 0.1), "permuted": twins[1](v, 0.1),
    }  # fmt: skip


@stop("exact")
def probed_construction(device: torch.device, dtype: torch.dtype) -> Found:
    """Heads that were built, seen on the device."""
    network = build_score_transformer(
        law(), 2, form="position-once", heads="shared-knots", multiplication="attention"
    ).to(device)
    v, spaces = sequences(1, 2, device, torch.float64), network.spaces
    seen = recording.record(network, v, 0.1)[-1]
    frame, score = spaces["score"], spaces["score"]
    scores = seen.maps[0]
    return {
        "moved": recording.contributions(seen, frame, score), "scores": scores,
        "defect": finetune.toeplitz_defect(scores),
    }  # fmt: skip


@stop("exact")
def maps_beside_kernels(device: torch.device, dtype: torch.dtype) -> Found:
    """Measures of maps on the device beside operators of a law on either side."""
    own = normal(1, 2, N, N, device=device, dtype=torch.float64).softmax(dim=-1)
    operator = denoiser.denoising_operator(law().gram(), 0.1)
    return {
        "operator": denoiser.denoising_operator(law(device).gram(), 0.1),
        "correlation": maps.off_diagonal_correlation(own, operator.to(device)),
        "explained": maps.explained(operator.to(device), own),
        "lag": maps.mean_lag(own), "contrast": maps.contrast(own), "profile": maps.lag_profile(own),
        "exact": denoiser.exact_jacobian(law(device), 0.1),
    }  # fmt: skip


@stop("network")
def jacobians(device: torch.device, dtype: torch.dtype) -> Found:
    """The Jacobian of a network's denoiser on the device."""
    network, v = shaken(transformer(), device, dtype), sequences(1, 2, device, dtype)
    return {"jacobian": denoiser.denoiser_jacobian(network, v, 0.1)}


@stop("network")
def changed_weights(device: torch.device, dtype: torch.dtype) -> Found:
    """Weights shaken, made anew or kept at zero, with noise of the CPU."""
    network = transformer().to(device)
    finetune.randomise(network, seeded(1))
    finetune.shake(network, ("weight",), 0.1, seeded(2))
    finetune.keep_zeros(network)
    shuffled = nulls.shuffled_frames(sequences(1, 3, device, dtype), seeded(3))
    rounded = in_half_precision(network)
    return {"shuffled": shuffled, "rounded": rounded(sequences(2, 2, device, torch.float32), 0.1)}


@stop("exact")
def data_on_a_subspace(device: torch.device, dtype: torch.dtype) -> Found:
    """Laws in a subspace, on the CPU, asked about sequences on the device."""
    basis, found = subspace.random_basis(9, 4, seeded(1)), {}
    subspace.require_sizes(9, 4)
    subspace.warn_if_few(9, 4)
    of_gaussians = mixture.random_mixture(2, 2, 3, generator=seeded(2))
    for name, inside in {"mixture": of_gaussians, "process": decaying_process(2, 2)}.items():
        data = subspace.SubspaceData(basis, inside, 0.2)
        x = data.sample(5, seeded(3), torch.float64).to(device, dtype)
        on, off = data.split(x)
        code = data.encode(x)
        found |= {
            f"{name} on": on, f"{name} off": off, f"{name} code": code,
            f"{name} decoded": data.decode(code), f"{name} score": ExactScore(data)(x, 0.1),
            f"{name} score, steps": ExactScore(data)(x, steps(5)),
            f"{name} energy": latent_errors.orthogonal_energy(x, data),
            f"{name} density": data.noised_log_prob(x, 0.9, 0.4),
            f"{name} faintest": [data.smallest_variance, inside.smallest_variance],
        }  # fmt: skip
    moved = data.to(device)
    assert {each.device.type for each in (moved, moved.latent)} == {device.type}
    found["moved"] = ExactScore(moved)(x, 0.1)
    found["parts"] = len(data.parts)
    drawn = (
        subspace.SubspaceData(basis, of_gaussians).to(device).sample(2, seeded(4), torch.float64)
    )
    found["drawn"] = drawn
    other = subspace.principal_subspace(x, 4)
    found["covariance"] = of_gaussians.covariance()
    found["mixture score"] = ExactScore(of_gaussians)(code, 0.2)
    found["angles"] = subspace.principal_angles(other, data.basis.to(other))
    found["basis"] = subspace.require_orthonormal("basis", basis.to(device))
    found["error"] = subspace.subspace_error(other, data.basis.to(other))
    return found


@stop("exact", drawn=True)
def errors_on_a_subspace(device: torch.device, dtype: torch.dtype) -> Found:
    """Distances and errors of scores beside a law on the CPU."""
    data = subspace.SubspaceData(subspace.random_basis(9, 4, seeded(1)), decaying_process(2, 2))
    white = subspace.smoothed(lambda v, t: -v, 0.1)
    x, y = (data.sample(30, seeded(k), dtype).to(device) for k in (2, 3))
    found = latent_errors.support_errors(white, data, 32, generator=seeded(4))
    return {
        **found, "scale": latent_errors.error_scale(),
        "sliced": latent_errors.sliced_distance(x, y, 8, seeded(5)),
        "pca": rates.expected_pca_error(torch.ones(4).double(), 0.1, 9, 50),
        "rate": rates.log_rate(100.0, 0.1, 4),
    }  # fmt: skip


@stop("exact")
def recovery_of_a_subspace(device: torch.device, dtype: torch.dtype) -> Found:
    """What an encoder costs, what an error allows, and what steps leave."""
    basis, encoder = (subspace.random_basis(9, 4, seeded(k)).to(device) for k in (1, 2))
    covariance = decaying_process(2, 2).covariance().to(device)
    return {
        "encoder": recovery.encoder_error(basis, encoder, covariance),
        "bound": recovery.recovery_bound(1.0, 0.25, 0.02),
        "euler": recovery.orthogonal_variance(0.1, 8.0, 20),
        "frozen": recovery.orthogonal_variance(0.1, 8.0, 20, exponential=True),
    }


@stop("network")
def networks_on_a_subspace(device: torch.device, dtype: torch.dtype) -> Found:
    """A network with an encoder, and one without."""
    basis = subspace.random_basis(8, 4, seeded(1))
    data = subspace.SubspaceData(basis, mixture.random_mixture(2, 2, generator=seeded(2)))
    inside = dit.DiT(2, 2, 8, 2, 1, generator=seeded(3))
    outside = dit.DiT(4, 2, 8, 2, 1, generator=seeded(4))
    made = {
        "latent": LatentScore(8, 4, inside, seeded(5)),
        "full": FullScore(outside),
    }
    v = data.sample(3, seeded(6), torch.float64).to(device, dtype)
    networks = {name: shaken(network, device, dtype) for name, network in made.items()}
    encoder = networks["latent"].encoder
    found = {name: network(v, steps(3, device)) for name, network in networks.items()}
    aligned = aligned_score(networks["latent"], basis)
    h = data.encode(v)
    found |= {"aligned": aligned(h, 0.1), "aligned, steps": aligned(h, steps(3, device))}
    return {**found, "encoder": encoder @ encoder.T}
