"""The diffusion transformer: a score from the start, blocks that start as the identity, maps."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_float32, assert_identity

from gptheory.attention import time_embedding
from gptheory.attention.layer import ATTENTIONS, Attention
from gptheory.attention.positions import POSITIONS, frame_embedding
from gptheory.diffusion import ExactScore, alpha, denoise, sigma
from gptheory.networks import DiT, UNet1d
from gptheory.networks.baselines import FrameMLP
from gptheory.networks.dit import DiTBlock
from gptheory.networks.score_network import Clock, ScoreNetwork
from gptheory.support.draws import weights_from

N, DIM = 6, 3


def disturbed(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with all weights random, zero ones included: nothing hides behind a zero gate."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(seed)).to(p))
    return model


def small(**options) -> DiT:
    sizes = {"hidden": 16, "heads": 2, "depth": 2, "generator": seeded(0)}
    return DiT(DIM, N, **{**sizes, **options})


def sequences(batch: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, N, DIM, generator=seeded(1), dtype=dtype)


NETWORKS = [
    lambda: small(),
    lambda: UNet1d(DIM, N, 8, generator=seeded(0)),
    lambda: FrameMLP(DIM, hidden=16, depth=2, generator=seeded(0)),
]

# ---- what every network shares ------------------------------------------------------------------


@pytest.mark.parametrize("build", NETWORKS)
def test_untrained_network_is_the_score_of_white_noise(build):
    v = sequences(dtype=torch.float32)
    for t in (0.005, torch.tensor(0.3), torch.linspace(0.01, 5, 4)):
        assert torch.equal(build()(v, t), -v)


@pytest.mark.parametrize("build", NETWORKS)
def test_predicted_velocity_and_noise_agree_with_the_score(build):
    """s = −ẑ/σ where ẑ = σ v − α F̂, and x̂ = α v + σ F̂ is what Tweedie's formula gives."""
    model, v, t = disturbed(build()).double(), sequences(), 0.3
    clock = model.clock(torch.tensor([t], dtype=torch.float64))
    velocity = model.velocity(v, clock)
    noise = sigma(t) * v - alpha(t) * velocity
    assert_identity(model(v, t), -noise / sigma(t), condition=10)
    clean = alpha(t) * v + sigma(t) * velocity
    assert_identity((v + sigma(t) ** 2 * model(v, t)) / alpha(t), clean, condition=10)


@pytest.mark.parametrize("build", NETWORKS)
def test_true_velocity_gives_the_true_noise(build):
    model, x, z, t = build(), sequences(), sequences().flip(0), 0.3
    v = alpha(t) * x + sigma(t) * z
    model.velocity = lambda v, clock: (sigma(t) * x - alpha(t) * z).to(v)
    assert_float32(model(v, t), -z / sigma(t))


@pytest.mark.parametrize("build", NETWORKS)
def test_network_is_never_asked_about_steps_beyond_the_horizon(build):
    """There it fades with the signal, continuously, whatever its clock would make of such t."""
    model, v = disturbed(build()).double(), sequences()
    at = {t: (model(v, t) + v) * sigma(t) / alpha(t) for t in (7.9, 8.0, 8.1, 10.0)}
    assert_identity(at[8.1], at[8.0] * math.exp(-0.05), condition=1e3)
    assert_identity(at[10.0], at[8.0] * math.exp(-1), condition=1e3)
    assert (at[7.9] - at[8.0]).abs().max() > 1e-6 * at[8.0].abs().max()
    mixed = torch.tensor([0.1, 8.0, 9.0, 20.0], dtype=torch.float64)
    for row, t in enumerate(mixed.tolist()):
        assert_identity(model(v, mixed)[row], model(v[[row]], t)[0], condition=10)


def test_the_asymptote_beyond_the_horizon_is_that_of_the_exact_score():
    """A network that is exact at t = 8 stays so: its denoiser within the first neglected order."""
    law = process(4, 2, mean=False)
    exact, v = ExactScore(law), torch.randn(200, 4, 2, generator=seeded(1), dtype=torch.float64)
    model = FrameMLP(2).double()
    model.velocity = lambda v, clock: (exact(v, 8.0) + v) * sigma(8.0) / alpha(8.0)
    for t in (8.0, 9.0, 10.0, 14.0):
        clean, other = (denoise(score, v, t) for score in (exact, model))
        assert (clean - other).norm() < 2 * alpha(8.0) ** 2 * clean.norm()


@pytest.mark.parametrize("build", NETWORKS)
def test_weights_come_from_the_generator_alone(build):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    for (name, p), q in zip(first.named_parameters(), build().parameters(), strict=True):
        assert torch.equal(p, q), name


def test_without_a_generator_weights_come_from_the_global_state():
    def draw():
        with weights_from(None):
            return torch.nn.Linear(3, 3).weight

    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert torch.equal(draw(), first) and not torch.equal(first, second)


def test_sequence_length_is_checked_where_the_network_has_one():
    for model in (small(), UNet1d(DIM, N, 8)):
        with pytest.raises(ValueError, match=f"{N}, {DIM}"):
            model(torch.zeros(2, N + 1, DIM), 0.1)
    assert FrameMLP(DIM)(torch.zeros(2, N + 1, DIM), 0.1).shape == (2, N + 1, DIM)


def test_clock_tells_diffusion_steps_apart():
    """Neighbouring steps of a 50-step sampler differ; the features are those of logSNR / 2."""
    clock = Clock(8)
    t = torch.tensor([0.005, 0.006, 0.1, 0.12, 1.0, 1.2, 7.0, 8.0], dtype=torch.float64)
    seen = []
    clock.mlp[0].register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    clock(t)
    assert (torch.cdist(seen[0], seen[0]) + torch.eye(8)).min() > 0.1
    half = torch.log(torch.exp(-t / 2) / torch.sqrt(1 - torch.exp(-t)))
    angle = half[:, None] * clock.frequencies
    assert_float32(seen[0], torch.cat([angle.sin(), angle.cos()], dim=1))


def test_a_score_network_needs_a_velocity():
    """It is refused where it is made, not after a training has begun."""
    with pytest.raises(TypeError, match=r"abstract.*velocity"):
        ScoreNetwork(DIM, N, 8, {})


# ---- blocks and tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_block_is_the_identity_before_training(attention):
    model = small(attention=attention, depth=3)
    y, clock = torch.randn(2, 5, N, 16, generator=seeded(2)), torch.randn(5, 16)
    for block in model.blocks:
        assert torch.equal(block(y[0], clock), y[0])
        assert (block.attention(y[0]) != 0).all() and (block.mlp(y[0]) != 0).all()


def test_gates_receive_gradients_at_the_start():
    """Zero gates must not be dead: the second update moves every weight."""
    model = small()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.parameters()]
    for _ in range(4):
        loss = (model(sequences(dtype=torch.float32), 0.3) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = [not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)]
    names = [name for name, _ in model.named_parameters()]
    assert all(moved), [name for name, yes in zip(names, moved, strict=True) if not yes]


def test_a_block_is_its_formula():
    with weights_from(seeded(0)):
        block = disturbed(DiTBlock(8, 2, "softmax", 2, fused=True)).double()
    y = torch.randn(3, N, 8, generator=seeded(2), dtype=torch.float64)
    clock = torch.randn(3, 8, generator=seeded(3), dtype=torch.float64)
    modulation = block.modulation.linear(clock)[:, None]
    b1, a1, g1, b2, a2, g2 = modulation.split(8, dim=-1)

    def norm(y):
        centred = y - y.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    expected = y + g1 * block.attention(norm(y) * (1 + a1) + b1)
    expected = expected + g2 * block.mlp(norm(expected) * (1 + a2) + b2)
    assert_identity(block(y, clock), expected)


def test_tokens_are_lifted_frames_beside_positions():
    """Queries and keys of the first layer split into what reads the frame and what the position."""
    model, v = small(), sequences(dtype=torch.float32)
    tokens = model.tokens(v)
    assert model.lift_dim == 8 and tokens.shape == (4, N, 16)
    assert torch.equal(tokens[..., :8], model.lift(v))
    assert torch.equal(tokens[..., 8:], model.embedding.expand(4, -1, -1))


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_are_told_apart(position):
    model = disturbed(small(position=position)).double()
    v, order = sequences(), torch.tensor([3, 1, 2, 0, 4, 5])
    same = torch.allclose(model(v[:, order], 0.1), model(v, 0.1)[:, order], atol=1e-8)
    assert same == (position == "none")  # without positions attention cannot see the order
    assert ("embedding" in dict(model.named_parameters())) == (position == "learned")


def test_embeddings_have_their_periods():
    embedding = frame_embedding("sinusoidal", 32, 8).double()
    for column, period in enumerate([4, 4 * 32 ** (1 / 3), 4 * 32 ** (2 / 3), 4 * 32]):
        pair = embedding[:, 2 * column : 2 * column + 2]
        assert_float32(pair, time_embedding(32, period))
    circle = frame_embedding("circle", 9, 8)
    gaps = torch.cdist(circle[:1], circle)[0]
    assert (gaps.diff() > 0).all() and circle.shape == (9, 2)
    assert frame_embedding("none", 5, 8).shape == (5, 0)


@pytest.mark.parametrize("depth", [1, 3])
def test_sizes_are_what_was_asked_for(depth):
    model = small(depth=depth, hidden=24, heads=3, expansion=4)
    assert len(model.blocks) == depth
    attention = model.blocks[0].attention
    assert attention.maps(torch.randn(1, N, 24)).shape == (1, 3, N, N)
    assert attention.query_key_value(torch.randn(1, N, 24))[0].shape == (1, 3, N, 8)
    assert model.blocks[0].mlp[0].out_features == 96
    assert model.config == {
        "dim": DIM, "seq_len": N, "hidden": 24, "heads": 3, "depth": depth, "expansion": 4,
        "attention": "softmax", "position": "sinusoidal",
    }  # fmt: skip
    again = DiT(**model.config)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden": 20, "heads": 8}, {"hidden": 6, "heads": 2}, {"depth": 0}, {"heads": 0},
        {"attention": "linear"}, {"position": "rotary"}, {"expansion": 1.5},
        {"hidden": 2, "heads": 1},
    ],
)  # fmt: skip
def test_bad_sizes_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        small(**bad)
    for build in (lambda d, n: DiT(d, n), UNet1d, FrameMLP):
        with pytest.raises(ValueError, match="dim must be"):
            build(0, 4)
        with pytest.raises(ValueError, match="seq_len must be"):
            build(2, 0)


def test_odd_halves_leave_the_sinusoidal_position_an_even_size():
    assert DiT(2, 8, hidden=6, heads=3).embedding.shape == (8, 2)
    assert DiT(2, 8, hidden=6, heads=3, position="learned").embedding.shape == (8, 3)
    assert DiT(2, 8, hidden=2, heads=1, position="none").lift_dim == 2


# ---- attention ----------------------------------------------------------------------------------


def attention_by_loops(layer: Attention, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and output, one query, head and sequence at a time."""
    width = y.shape[-1]
    size = width // layer.heads
    weight, bias = layer.project.weight, layer.project.bias
    query, key, value = (
        y @ weight[k * width : (k + 1) * width].T + bias[k * width : (k + 1) * width]
        for k in range(3)
    )
    maps = y.new_zeros(len(y), layer.heads, y.shape[1], y.shape[1])
    mixed = torch.zeros_like(y)
    for b, h, i in itertools.product(range(len(y)), range(layer.heads), range(y.shape[1])):
        own = slice(h * size, (h + 1) * size)
        logits = torch.stack([query[b, i, own] @ k for k in key[b, :, own]]) / math.sqrt(size)
        if layer.kind == "softmax":
            row = logits.exp() / logits.exp().sum()
        else:
            row = logits.clamp(min=0)
            total = row.sum() if row.any() else 1
            row = row / {"relu": 1, "relu-mean": len(row), "relu-rows": total}[layer.kind]
        maps[b, h, i] = row
        mixed[b, i, own] = row @ value[b, :, own]
    return maps, mixed @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_its_formula(kind, fused):
    with weights_from(seeded(0)):
        layer = disturbed(Attention(12, 3, kind, fused)).double()
    y = torch.randn(2, N, 12, generator=seeded(4), dtype=torch.float64)
    maps, output = attention_by_loops(layer, y)
    assert_identity(layer(y), output)
    assert_identity(layer.maps(y), maps)


def test_relu_rows_without_a_positive_logit_stay_zero():
    layer = Attention(4, 1, "relu-rows")
    assert torch.equal(layer.weigh(torch.full((1, 1, 3, 3), -1.0)), torch.zeros(1, 1, 3, 3))


def test_fused_and_explicit_attention_give_the_same_numbers_and_gradients():
    v, results = sequences(dtype=torch.float32), []
    for fused in (True, False):
        model = disturbed(small(fused=fused))
        score = model(v, 0.2)
        score.square().sum().backward()
        results.append((score, [p.grad for p in model.parameters()]))
    (fused, gradients), (explicit, others) = results
    assert_float32(fused, explicit)
    for gradient, other in zip(gradients, others, strict=True):
        assert_float32(gradient / other.abs().max(), other / other.abs().max())


def test_a_hook_sees_maps_that_reproduce_the_layer():
    """What a probe needs: maps of the trained network without a second forward pass of its own."""
    model, seen = disturbed(small()), {}
    for k, block in enumerate(model.blocks):
        block.attention.register_forward_hook(
            lambda layer, args, output, k=k: seen.update({k: (layer.maps(args[0]), args, output)})
        )
    model(sequences(dtype=torch.float32), 0.2)
    assert set(seen) == {0, 1}
    for k, (maps, (y,), output) in seen.items():
        layer = model.blocks[k].attention
        value = layer.query_key_value(y)[2]
        assert_float32(layer.output((maps @ value).transpose(1, 2).flatten(2)), output)
        assert_float32(maps.sum(-1), torch.ones(4, 2, N))


def test_explicit_attention_works_under_vmap():
    models = [disturbed(small(fused=False), seed) for seed in range(3)]
    weights, buffers = torch.func.stack_module_state(models)
    v = sequences(dtype=torch.float32)

    def call(weights, buffers):
        return torch.func.functional_call(models[0], (weights, buffers), (v, 0.2))

    together = torch.vmap(call)(weights, buffers)
    for model, scores in zip(models, together, strict=True):
        assert_float32(scores, model(v, 0.2))


def test_networks_made_by_several_threads_get_the_weights_of_their_generators():
    """They draw from torch's one global generator, which a thread must not take from another."""
    expected = [DiT(2, 4, 16, 1, 1, generator=seeded(seed)).lift.weight for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda seed: DiT(2, 4, 16, 1, 1, generator=seeded(seed)), range(40)))
    for model, weight in zip(made, expected, strict=True):
        assert torch.equal(model.lift.weight, weight)
