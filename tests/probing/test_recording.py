"""Probing: what hooks see is what the network does, and what they change is what was asked for."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from strategies import DEVICES, process, seeded
from tolerances import assert_identity, relative_norm

from gptheory.attention.layer import ATTENTIONS
from gptheory.construction import build_score_transformer
from gptheory.construction.blueprint import FORMS
from gptheory.construction.build import MULTIPLICATIONS
from gptheory.construction.lag_heads import VARIANTS
from gptheory.construction.network import ScoreTransformer
from gptheory.data import GaussianProcess, covariance, kernels
from gptheory.diffusion import perturb
from gptheory.diffusion.methods import STATIONARY
from gptheory.measures import score_error
from gptheory.networks import DiT, UNet1d, with_polynomial_attention
from gptheory.networks.baselines import FrameMLP
from gptheory.networks.score_network import modulated_norm
from gptheory.probing import (
    Edited,
    batch_mean,
    lag_profile,
    nulls,
    off_diagonal_correlation,
    only,
    recording,
    uniform,
    without,
)
from gptheory.training import TrainConfig, fit

N, DIM, T = 6, 3, 0.3


def network(**options) -> DiT:
    """A small DiT in which every weight counts, in float64."""
    model = DiT(DIM, N, **{"hidden": 16, "heads": 2, "depth": 3, **options}, generator=seeded(0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(1)))
    return model.double()


def constructed(**options) -> ScoreTransformer:
    law = GaussianProcess(kernels.PowerExponential(2.0), process(3, DIM).spatial, seq_len=N)
    sizes = {"steps": 2, "bandwidth": 3, "taper": "bohman", "multiplication_depth": 3}
    return build_score_transformer(law, **{**sizes, **options})


def sequences(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, N, DIM, generator=seeded(2), dtype=torch.float64)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


MODELS = {
    f"{kind}, fused={fused}": partial(network, attention=kind, fused=fused)
    for kind, fused in itertools.product(ATTENTIONS, (True, False))
}
NORMALISED = {
    "certified": {"radius": 1.5, "degree": 3},
    "normalised": {"radius": 1.5},
    "window": {"window": 2},
}
for kind, options in NORMALISED.items():
    MODELS[kind] = partial(network, attention=kind, **options)
for form in FORMS:
    MODELS[f"constructed, {form}"] = partial(constructed, form=form, multiplication_depth=12)
MODELS["constructed, attention"] = partial(constructed, multiplication="attention")
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())


def test_compiled_networks_are_looked_at_as_they_were_before():
    torch.compiler.reset()
    plain, v = network(), sequences()
    graphs = []
    wrapped = torch.compile(plain, backend=lambda graph, _: graphs.append(graph) or graph)
    wrapped(v, T)
    count = len(graphs)
    for one, other in zip(
        recording.record(plain, v, T), recording.record(wrapped, v, T), strict=True
    ):
        assert torch.equal(one.maps, other.maps)
    assert len(graphs) == count
    edits = [Edited(model, only("ee")) for model in (plain, wrapped)]
    assert torch.equal(*(edited(v, T) for edited in edits))
    assert torch.equal(*(recording.block_norms(model) for model in (plain, wrapped)))
    for null in (nulls.untrained, nulls.permuted_positions):
        assert type(null(wrapped, seeded(3))) is DiT
        assert torch.equal(*(null(model, seeded(3))(v, T) for model in (plain, wrapped)))
    assert torch.equal(*(with_polynomial_attention(m, 6)(v, T) for m in (plain, wrapped)))


# ---- recording ------------------------------------------------------------------------------


@every_model
def test_a_recorded_call_returns_the_same_bits(build):
    model, v, outputs = build(), sequences(), []
    plain = model(v, T)
    handle = model.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    seen = recording.record(model, v, T)
    handle.remove()
    assert torch.equal(outputs[0], plain) and torch.equal(model(v, T), plain)
    assert [s.index for s in seen] == list(range(len(model.blocks))) and hooks(model) == 0


@every_model
def test_maps_that_are_seen_are_the_maps_that_act(build):
    """Handing back the recorded maps changes nothing, although fused attention never forms them."""
    model, v = build(), sequences()
    same = Edited(model, lambda seen: seen.maps)
    assert_identity(same(v, T), model(v, T))
    steps = torch.tensor([0.2, 0.3, 1.0, 2.0], dtype=torch.float64)
    assert_identity(same(v, steps), model(v, steps))


def test_layers_of_a_dit_see_their_modulated_tokens():
    model, v = network(), sequences()
    clock, y = model.clock(torch.tensor([T], dtype=torch.float64)), model.tokens(v)
    for seen, block in zip(recording.record(model, v, T), model.blocks, strict=True):
        shift, scale = block.modulation(clock)[:2]
        assert_identity(seen.inputs, modulated_norm(y, shift, scale))
        assert seen.layer is block.attention
        y = block(y, clock)


def test_shared_layers_of_a_constructed_network_are_seen_at_every_step():
    model, v = constructed(steps=3, form="position-once", multiplication="attention"), sequences()
    states, seen = list(model.states(v, T)), recording.record(model, v, T)
    assert len(seen) == len(model.blocks) and seen[-1].layer is seen[-2].layer
    for state, s in zip(states, seen, strict=False):
        assert_identity(s.inputs, state)
        receives = s.layer.scores(state).transpose(-1, -2)
        assert_identity(s.maps, receives)


def test_layers_can_be_chosen():
    model, v = network(), sequences()
    assert [s.index for s in recording.record(model, v, T, layers=[2, 0])] == [0, 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(dtype, device):
    for build in (network, constructed):
        model, v = build().to(device, dtype), sequences().to(device, dtype)
        seen = recording.record(model, v, T)[-1]
        for found in (seen.maps, seen.logits, *seen.blocks().values()):
            assert (found.dtype, found.device.type) == (dtype, device)
        for edit in (uniform, batch_mean, only("ee")):
            score = Edited(model, edit)(v, T)
            assert (score.dtype, score.device.type) == (dtype, device)


# ---- blocks of queries and keys -------------------------------------------------------------


@every_model
@pytest.mark.parametrize("split", recording.SPLITS)
def test_blocks_add_up_to_the_logits_and_these_to_the_maps(build, split):
    for seen in recording.record(build(), sequences(), T):
        assert_identity(sum(seen.blocks(split).values()), seen.logits, condition=10)
        assert_identity(seen.layer.weigh(seen.logits), seen.maps)


def test_blocks_are_products_of_their_weights():
    """By hand: ⟨Q_a y_a, K_b y_b⟩ / √h, head by head, with the biases counted as e."""
    model = network()
    for seen in recording.record(model, sequences(), T):
        weight, bias = seen.layer.project.weight, seen.layer.project.bias
        x, e = slice(0, model.lift_dim), slice(model.lift_dim, None)
        for head in range(2):
            rows = {"q": slice(8 * head, 8 * head + 8), "k": slice(16 + 8 * head, 24 + 8 * head)}
            part = {(s, "x"): seen.inputs[..., x] @ weight[r, x].T for s, r in rows.items()}
            for s, r in rows.items():
                part[s, "e"] = seen.inputs[..., e] @ weight[r, e].T + bias[r]
            for name, found in seen.blocks().items():
                expected = part["q", name[0]] @ part["k", name[1]].mT / math.sqrt(8)
                assert_identity(found[:, head], expected, condition=10)


def test_blocks_by_batch_split_what_does_not_depend_on_the_sequence():
    seen = recording.record(network(), sequences(), T)[1]
    blocks = seen.blocks("batch")
    assert_identity(blocks["ee"], blocks["ee"][:1].expand_as(blocks["ee"]))
    for name in ("xe", "ex"):  # linear in the deviation, which averages to zero
        assert blocks[name].mean(dim=0).abs().max() < 1e-12 * blocks["ee"].abs().max()
    assert blocks["xx"].abs().max() > 0.01


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_block_norms_are_norms_of_products_of_weights(attention):
    model = network(attention=attention)
    found = recording.block_norms(model)
    assert found.shape == (3, 2, 4)
    x, e = slice(0, model.lift_dim), slice(model.lift_dim, None)
    part = {"x": x, "e": e}
    for layer, block in enumerate(model.blocks):
        q, k, _ = block.attention.project.weight.unflatten(0, (3, 2, 8))
        for head, (b, name) in itertools.product(range(2), enumerate(recording.BLOCKS)):
            product = q[head][:, part[name[0]]].T @ k[head][:, part[name[1]]]
            assert_identity(found[layer, head, b], product.square().sum().sqrt())


def crafted(query_x: float, key_x: float, query_e: float, key_e: float) -> DiT:
    """Queries and keys that read content and position with these strengths."""
    model = network(depth=1)
    scale = torch.ones(16, dtype=torch.float64)
    with torch.no_grad():
        for part, sizes in enumerate([(query_x, query_e), (key_x, key_e)]):
            scale[:8], scale[8:] = sizes
            model.blocks[0].attention.project.weight[16 * part : 16 * part + 16] *= scale
        model.blocks[0].attention.project.bias.mul_(query_e)
    return model


@pytest.mark.parametrize(
    ("strengths", "expected"),
    [((0, 0, 1, 1), "ee"), ((1, 1, 0, 0), "xx"), ((1, 0, 0, 1), "xe"), ((0, 1, 1, 0), "ex")],
)
def test_shares_find_the_one_block_there_is(strengths, expected):
    shares = recording.logit_shares(recording.record(crafted(*strengths), sequences(), T)[0])
    assert shares[expected] > 1 - 1e-9 and abs(sum(shares.values()) - 1) < 1e-9


def test_shares_are_those_of_the_formula_and_ignore_what_softmax_ignores():
    model, v = network(), sequences()
    seen = recording.record(model, v, T)[0]
    shares = recording.logit_shares(seen)
    energy = {}
    for name, logits in seen.blocks().items():
        logits = logits.detach().numpy()
        centred = logits - logits.mean(axis=-1, keepdims=True)
        energy[name] = (centred**2).sum()
    for name, share in shares.items():
        assert abs(share - energy[name] / sum(energy.values())) < 1e-12
    with torch.no_grad():
        model.blocks[0].attention.project.bias[16:32] += 5  # b_k: the same for every key
    again = recording.logit_shares(recording.record(model, v, T)[0])
    assert again == pytest.approx(shares, rel=1e-9)


# ---- changing the maps ----------------------------------------------------------------------


@every_model
def test_keeping_all_blocks_or_dropping_none_changes_nothing(build):
    model, v = build(), sequences()
    for split in recording.SPLITS:
        kept = Edited(model, only(*recording.BLOCKS, split=split))
        assert_identity(kept(v, T), model(v, T), condition=1e3)
        assert_identity(Edited(model, without(split=split))(v, T), kept(v, T))


def test_without_is_only_the_others():
    model, v = network(), sequences()
    for name in recording.BLOCKS:
        others = [other for other in recording.BLOCKS if other != name]
        dropped = Edited(model, without(name))(v, T)
        assert_identity(dropped, Edited(model, only(*others))(v, T))
        assert relative_norm(dropped, model(v, T)) > 1e-3


def test_an_edit_is_what_surgery_on_the_weights_does():
    """Keys and queries that are blind to x are what `only("ee")` makes of them."""
    model, v = network(), sequences()
    blind = network()
    with torch.no_grad():
        for block in blind.blocks:
            block.attention.project.weight[:32, : blind.lift_dim] = 0
    assert_identity(Edited(model, only("ee"))(v, T), blind(v, T))
    assert relative_norm(blind(v, T), model(v, T)) > 1e-2


@pytest.mark.parametrize("attention", ["certified", "normalised"])
@pytest.mark.parametrize("split", recording.SPLITS)
def test_blocks_of_normalised_queries_and_keys_are_scaled_as_their_sum_is(attention, split):
    """q^x / ‖q‖ and q^e / ‖q‖, not parts of length 1; to keep all four changes nothing."""
    model, v = network(attention=attention, radius=1.5), sequences()
    for seen in recording.record(model, v, T):
        assert_identity(sum(seen.blocks(split).values()), seen.logits)
        query, key, _ = seen.layer.query_key_value(seen.inputs)
        position = (
            seen.inputs.masked_fill(seen.content, 0)
            if split == "coordinate"
            else seen.inputs.mean(dim=0, keepdim=True).expand_as(seen.inputs)
        )
        part = seen.layer.query_key_value(position)[:2]
        lengths = [(x.square().sum(-1, keepdim=True) + 8e-6).sqrt() for x in (query, key)]
        unit = [x / length for x, length in zip(part, lengths, strict=True)]
        assert_identity(seen.blocks(split)["ee"], 1.5 * unit[0] @ unit[1].mT, condition=1e2)
    assert_identity(Edited(model, only(*recording.BLOCKS, split=split))(v, T), model(v, T))


def test_edits_that_leave_the_range_of_a_polynomial_are_refused():
    """Without the blocks that cancel it, a block may be longer than the whole."""
    v, layer = sequences(), network(attention="certified", radius=1.5).blocks[0].attention
    with pytest.raises(ValueError, match=r"certified up to 1.5: edit a network with .*normalised"):
        layer.weigh(torch.full((1, 2, N, N), 1.6, dtype=torch.float64))
    exact = network(attention="normalised", radius=1.5)
    assert torch.isfinite(Edited(exact, without("ee"))(v, T)).all()


def test_maps_that_do_not_fit_are_refused_before_they_are_made():
    model = DiT(1, 2**17, 8, 2, 1, attention="certified", generator=seeded(0))
    (seen,) = recording.record(model, torch.randn(1, 2**17, 1, generator=seeded(1)), T)
    layer = seen.layer
    for call in (
        lambda: seen.maps,
        lambda: seen.logits,
        seen.blocks,
        lambda: layer.maps(seen.inputs),
    ):
        with pytest.raises(
            ValueError, match=r"x 1 x 2 maps of 131072 x 131072 take .* GB, .*fewer"
        ):
            call()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_uniform_maps_keep_the_sums_of_rows(attention):
    model, v = network(attention=attention), sequences()
    seen = recording.record(model, v, T)[0]
    flat = uniform(seen)
    assert_identity(flat.sum(dim=-1), seen.maps.sum(dim=-1))
    assert_identity(flat, flat[..., :1].expand_as(flat))
    if attention == "softmax":
        assert_identity(flat, torch.full_like(flat, 1 / N))


def test_uniform_softmax_is_a_network_whose_queries_are_zero():
    model, v, blind = network(), sequences(), network()
    with torch.no_grad():
        for block in blind.blocks:
            block.attention.project.weight[:16] = 0
            block.attention.project.bias[:16] = 0
    assert_identity(Edited(model, uniform)(v, T), blind(v, T))


def test_mean_maps_of_one_sequence_are_its_own():
    model, v = network(), sequences()
    mean = Edited(model, batch_mean)
    assert_identity(mean(v[:1], T), model(v[:1], T))
    assert relative_norm(mean(v, T), model(v, T)) > 1e-3


def test_edits_of_one_layer_leave_the_layers_before_alone():
    """The first layer after the edit sees another input, those before it the same."""
    model, v, inputs = network(), sequences(), []
    plain = [seen.inputs for seen in recording.record(model, v, T)]
    handles = [
        block.attention.register_forward_hook(lambda _m, args, _o: inputs.append(args[0]))
        for block in model.blocks
    ]
    Edited(model, uniform, layers=[1])(v, T)
    for handle in handles:
        handle.remove()
    same = [torch.equal(a, b) for a, b in zip(inputs, plain, strict=True)]
    assert same == [True, True, False]


def test_hooks_are_taken_away_even_after_an_error():
    model = network()

    def fail(_seen):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        Edited(model, fail)(sequences(), T)
    with pytest.raises(ValueError, match="v must have shape"):
        recording.record(model, torch.zeros(1, N, DIM + 1), T)
    assert hooks(model) == 0


def test_an_edited_network_can_be_differentiated():
    v = sequences().requires_grad_()
    Edited(network(), only("ee"))(v, T).square().sum().backward()
    assert v.grad.abs().min() > 0


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [UNet1d(DIM, N, 8), FrameMLP(DIM), torch.nn.Linear(3, 3)])
def test_models_without_attention_are_refused(model):
    name = type(model).__name__
    for look in (
        lambda: recording.record(model, sequences(), T),
        lambda: recording.block_norms(model),
        lambda: Edited(model, uniform),
    ):
        with pytest.raises(ValueError, match=f"a {name} has no attention.*give a DiT"):
            look()


@pytest.mark.parametrize("layer", [-1, 3, 17])
def test_layers_out_of_range_are_refused(layer):
    with pytest.raises(ValueError, match=rf"layers must lie in 0\.\.2, got {layer}"):
        recording.record(network(), sequences(), T, layers=[0, layer])
    with pytest.raises(ValueError, match=rf"layers must lie in 0\.\.2, got {layer}"):
        Edited(network(), uniform, layers=[layer])


def test_a_model_without_positions_has_no_block_e():
    model, v = network(position="none"), sequences()
    rebuilt = constructed()
    rebuilt.spaces = None  # a network of the class whose weights nobody has named
    for each in (model, rebuilt):
        seen = recording.record(each, v, T)[0]
        with pytest.raises(ValueError, match="no coordinates for the position"):
            seen.blocks()
        assert_identity(sum(seen.blocks("batch").values()), seen.logits, condition=10)
        with pytest.raises(ValueError, match="no block e"):
            recording.block_norms(each)
    with pytest.raises(ValueError, match="no coordinates for the position"):
        Edited(model, only("ee"))(v, T)
    with pytest.raises(ValueError, match="no coordinates for the position"):
        nulls.permuted_positions(model)


def test_unknown_names_are_refused():
    seen = recording.record(network(), sequences(), T)[0]
    with pytest.raises(ValueError, match=r"split must be one of .*got 'time'"):
        seen.blocks("time")
    with pytest.raises(ValueError, match=r"block must be one of .*got 'ey'"):
        only("ey")
    with pytest.raises(ValueError, match=r"block must be one of .*got 'e'"):
        without("e")
    with pytest.raises(ValueError, match=r"split must be one of .*got 'time'"):
        only("ee", split="time")
    with pytest.raises(ValueError, match="at least one block"):
        without(*recording.BLOCKS)


# ---- null models ----------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["sinusoidal", "circle", "learned"])
def test_an_untrained_twin_has_the_same_positions_and_no_knowledge(position):
    model = network(position=position)
    twin, v = nulls.untrained(model, seeded(3)), sequences()
    assert torch.equal(twin.embedding, model.embedding) and twin.config == model.config
    assert torch.equal(twin(v, T), -v)
    assert not any(p.requires_grad for p in twin.parameters())
    assert not torch.equal(twin.lift.weight, model.lift.weight)
    same = nulls.untrained(model, seeded(3))
    assert torch.equal(twin.lift.weight, same.lift.weight)


@pytest.mark.parametrize("position", ["sinusoidal", "learned"])
def test_permuting_positions_is_permuting_frames(position):
    model, v = network(position=position), sequences()
    before = model(v, T)
    permuted = nulls.permuted_positions(model, seeded(4))
    order = torch.cdist(permuted.embedding, model.embedding).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(N)) and order.tolist() != list(range(N))
    assert torch.equal(model(v, T), before)  # the model itself is left alone
    moved = torch.empty_like(v)
    moved[:, order] = v  # frame i stands where its embedding says
    assert_identity(permuted(v, T), model(moved, T)[:, order])


# ---- heads that were built ------------------------------------------------------------------


def lag_heads(model: ScoreTransformer, form: str, method: str) -> torch.Tensor:
    """What the heads of the last block that read lags do, (heads, N, N)."""
    spaces = model.spaces
    read = spaces["product" if form == "plain" else "score"]
    write = spaces["score" if method == "gradient-descent" else "momentum"]
    queried = None if form == "plain" else spaces["signal_step_position"]
    v = torch.randn(1, model.seq_len, model.dim, generator=seeded(0), dtype=torch.float64)
    last = recording.record(model, v, T)[-1]
    return recording.contributions(last, read, write, queried)[0]


@pytest.mark.statement("FDGWC Theorem 1")
@pytest.mark.parametrize("multiplication", MULTIPLICATIONS)
@pytest.mark.parametrize("method", STATIONARY)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", VARIANTS)
def test_the_probe_recovers_the_band_from_the_heads(heads, form, method, multiplication):
    law = GaussianProcess(kernels.PowerExponential(3.0), process(3, 2).spatial, seq_len=12)
    model = build_score_transformer(
        law, 2, 5, heads=heads, form=form, method=method, taper="bohman",
        multiplication=multiplication,
    )  # fmt: skip
    total = lag_heads(model, form, method).sum(dim=0)
    recovered = total / total.diagonal().mean()
    assert (recovered - covariance.taper(law.gram(), 5)).abs().max() <= 1e-6
    assert total.diagonal().max() < 0  # a step goes against the gradient


@pytest.mark.statement("FDGWC Theorem 1")
@pytest.mark.parametrize("seq_len", [12, 40])
@pytest.mark.parametrize("form", FORMS)
def test_every_trapezoid_reads_one_lag_and_the_probe_finds_it(form, seq_len):
    """Four ReLUs a trapezoid; their sum reads frames at lags −m and m, and no others at all."""
    band = 7
    law = GaussianProcess(kernels.PowerExponential(3.0), process(3, 2).spatial, seq_len=seq_len)
    model = build_score_transformer(law, 2, band, form=form, taper="bohman")
    heads = lag_heads(model, form, "gradient-descent")
    trapezoids = heads.unflatten(0, (-1, 4)).sum(dim=1)
    profiles = lag_profile(trapezoids).abs()
    for lag, profile in enumerate(profiles):
        read = (profile > 1e-6 * profile.max()).nonzero().flatten() - (seq_len - 1)
        assert read.tolist() == sorted({-lag, lag})
    assert len(profiles) == band


def test_constructed_attention_reads_positions_only():
    """All of its logits are e–e, so that dropping e–e stops it and dropping x–x does nothing."""
    for form in FORMS:
        model, v = constructed(form=form, multiplication_depth=12), sequences()
        attending = [s for s in recording.record(model, v, T) if len(s.layer.query)]
        assert attending and all(recording.logit_shares(s)["ee"] == 1 for s in attending)
        # logits summed by blocks, and not at once: the same up to rounding only
        assert_identity(Edited(model, without("xx"))(v, T), model(v, T))
        stopped = Edited(model, without("ee"))(v, T)
        assert relative_norm(stopped, model(v, T)) > 0.1
    bare = next(s for s in recording.record(constructed(), v, T) if not len(s.layer.query))
    assert sum(recording.logit_shares(bare).values()) == 0 and bare.maps.shape == (4, 0, N, N)


# ---- a trained network, and its null --------------------------------------------------------


@pytest.mark.statement("FDGWC Fig. 4b", "FDGWC Fig. 5")
def test_a_trained_network_attends_by_position_and_an_untrained_one_does_not():
    """A quarter of the size of the chapter's, a few seconds of training."""
    law = GaussianProcess(kernels.PowerExponential(4.0), torch.eye(2), seq_len=16)
    model = DiT(2, 16, hidden=32, heads=4, depth=2, generator=seeded(0))
    trained = fit(model, law, TrainConfig(steps=400), show_progress=False).model
    v, _ = perturb(law.sample(64, seeded(5)), 0.5, seeded(6))

    def best(model, measure):
        return max(measure(seen) for seen in recording.record(model, v, 0.5))

    def share(seen):
        return recording.logit_shares(seen)["ee"]

    def likeness(seen):
        return off_diagonal_correlation(seen.maps.mean(dim=(0, 1)), law.gram()).item()

    null = nulls.untrained(trained, seeded(7))
    assert best(trained, share) > 0.8 and best(null, share) < 0.6
    assert best(trained, likeness) > 0.7 and best(null, likeness) < 0.4
    errors = {
        name: score_error(score, law, 0.1, 128, seeded(8))
        for name, score in {
            "full": trained,
            "only": Edited(trained, only("ee")),
            "without": Edited(trained, without("ee")),
            "mean": Edited(trained, batch_mean),
        }.items()
    }
    print(errors)
    assert errors["without"] > 20 * errors["full"]
    assert errors["only"] < 2 * errors["full"] and errors["mean"] < 1.5 * errors["full"]
