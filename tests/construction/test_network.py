"""The network class against the formulas of the paper, and the subspaces of its weights."""

import math

import pytest
import torch
from strategies import seeded
from tolerances import assert_float32, assert_identity

from gptheory.construction import layers
from gptheory.construction.builders import AttentionBuilder, FeedForwardBuilder
from gptheory.construction.layers import Attention, Block, FeedForward
from gptheory.construction.network import Lift, ScoreTransformer, StepFeatures
from gptheory.construction.subspaces import Subspaces
from gptheory.data import GaussianProcess, PowerExponential, random_covariance
from gptheory.diffusion import UnrolledScore

WIDTH, SEQ_LEN, DIM = 7, 5, 2


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed + sum(shape)), dtype=torch.float64)


def attention(heads=3, seed=0):
    shapes = [(heads, 2, WIDTH), (heads, 2, WIDTH), (heads, 4, WIDTH), (heads, WIDTH, 4)]
    return Attention(*(normal(*shape, seed=seed + k) for k, shape in enumerate(shapes)))


def feed_forward(seed=0):
    shapes = [(6, WIDTH), (6,), (WIDTH, 6), (WIDTH,)]
    return FeedForward(*(normal(*shape, seed=seed + k) for k, shape in enumerate(shapes)))


def network(radius=math.inf, limits=None, shared=False, scale=0.1):
    blocks = [Block(attention(seed=k), feed_forward(k), f"block {k}", limits) for k in range(2)]
    blocks += [blocks[1]] if shared else []
    lift = Lift(
        normal(WIDTH, DIM), normal(SEQ_LEN, WIDTH), normal(WIDTH, 4), StepFeatures((0.1, 2.0))
    )
    spaces = Subspaces({"first": 3, "second": WIDTH - 3})
    model = ScoreTransformer(lift, blocks, normal(DIM, WIDTH), radius, (0.01, 6.0), spaces)
    for weight in model.parameters():
        weight.requires_grad_(False).mul_(scale)
    return model


def column_attention(layer, y):
    """Y + Σ V_m Y relu((Q_m Y)ᵀ (K_m Y)) as it is printed, for one Y with tokens as columns."""
    update = torch.zeros_like(y)
    for q, k, v, o in zip(layer.query, layer.key, layer.value, layer.output, strict=True):
        update = update + (o @ v) @ y @ torch.relu((q @ y).T @ (k @ y))
    return y + update


# ---- layers ---------------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Transformer class")
@pytest.mark.parametrize("chunk", [1, 2 * SEQ_LEN**2 * 4, 10**6])
def test_attention_is_the_printed_formula(chunk, monkeypatch):
    monkeypatch.setattr(layers, "CHUNK_SCORES", chunk)
    layer, y = attention(), normal(4, SEQ_LEN, WIDTH)
    expected = torch.stack([column_attention(layer, one.T).T for one in y])
    assert_identity(layer(y), expected)


@pytest.mark.statement("FDGWC Transformer class")
def test_feed_forward_is_the_printed_formula():
    layer, y = feed_forward(), normal(4, SEQ_LEN, WIDTH)
    for one, out in zip(y, layer(y), strict=True):
        columns = one.T
        ones = torch.ones(1, SEQ_LEN, dtype=torch.float64)
        hidden = torch.relu(layer.up @ columns + layer.up_bias[:, None] @ ones)
        expected = columns + layer.down @ hidden + layer.down_bias[:, None] @ ones
        assert_identity(out.T, expected)


def test_attention_without_heads_is_the_identity():
    y = normal(2, SEQ_LEN, WIDTH)
    assert torch.equal(Attention.without_heads(WIDTH)(y), y)


def test_gradients_of_both_layers():
    y = normal(2, 3, WIDTH).requires_grad_()
    assert torch.autograd.gradcheck(Block(attention(), feed_forward()), (y,))


def test_operator_is_what_attention_does_at_fixed_scores():
    layer, y = attention(), normal(1, SEQ_LEN, WIDTH)
    write, read = slice(1, 3), slice(2, 6)
    operator = layer.operator(y, write, read)
    assert operator.shape == (SEQ_LEN * 2, SEQ_LEN * 4)
    everything = layer.operator(y, slice(0, WIDTH), slice(0, WIDTH))
    assert_identity((everything @ y.flatten()).view_as(y) + y, layer(y))
    other = torch.zeros_like(y)
    other[..., read] = normal(1, SEQ_LEN, 4)
    mixed = torch.einsum("bmij,mac,bic->bja", layer.scores(y), layer.output @ layer.value, other)[
        ..., write
    ]
    assert_identity((operator @ other[..., read].flatten()).view_as(mixed), mixed)


# ---- f_in and f_out -------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Transformer class")
@pytest.mark.parametrize("method", ["gradient-descent", "heavy-ball"])
def test_step_features_are_the_step_sizes(method):
    law = GaussianProcess(PowerExponential(3.0), random_covariance(2, generator=seeded(0)), None, 9)
    score = UnrolledScore(law, 3, method=method)
    t = torch.tensor([0.01, 0.4, 6.0], dtype=torch.float64)
    features = StepFeatures(score.spectrum, method == "heavy-ball")(t)
    for row, step in zip(features, t.tolist(), strict=True):
        coefficients = score.coefficients(step)
        expected = [coefficients[-1][0], math.exp(-step / 2), -math.expm1(-step), math.exp(-step)]
        if method == "heavy-ball":
            expected += [coefficients[0][0], 1 - coefficients[-1][1]]
        assert_identity(row, expected)


def test_network_is_its_blocks_between_lift_and_readout():
    model, v = network(), normal(3, SEQ_LEN, DIM)
    t = torch.tensor([0.02, 0.5, 3.0], dtype=torch.float64)
    y = v @ model.lift.frame.T + model.lift.position
    y = y + (model.lift.features(t) @ model.lift.step.T)[:, None]
    states = list(model.states(v, t))
    assert_identity(states[0], y)
    for block, state in zip(model.blocks, states[1:], strict=True):
        y = block.feed_forward(block.attention(y))
        assert_identity(state, y)
    assert_identity(model(v, t), y @ model.readout.T)
    assert_identity(model(v[1:2], 0.5), model(v, t)[1:2])


@pytest.mark.statement("FDGWC Transformer class")
def test_output_is_clipped_to_its_ball():
    v, t = normal(3, SEQ_LEN, DIM), 0.5
    free, noise = network()(v, t), math.sqrt(-math.expm1(-t))
    norms = free.flatten(1).norm(dim=1)
    radius = norms.median().item() * noise
    clipped = network(radius)(v, t)
    for one, other, norm in zip(free, clipped, norms, strict=True):
        allowed = min(1.0, radius / noise / norm.item())
        assert_identity(other, one * allowed)
    assert (clipped.flatten(1).norm(dim=1) <= radius / noise * (1 + 1e-12)).all()


def test_dtype_of_weights_computes_and_dtype_of_input_returns():
    v = normal(3, SEQ_LEN, DIM)
    expected = network()(v, 0.5)
    from_float32 = network()(v.float(), 0.5)
    assert from_float32.dtype == torch.float32
    assert_float32(from_float32, expected)
    assert_float32(network().float()(v, 0.5), expected)
    assert network().float()(v, 0.5).dtype == torch.float64


def test_vmap_and_jacobians_work_with_range_checks_off():
    model, v = network(), normal(3, SEQ_LEN, DIM)
    model.check_ranges = False
    jacobian = torch.func.jacrev(lambda x: model(x[None], 0.5)[0])(v[0])
    assert jacobian.shape == (SEQ_LEN, DIM, SEQ_LEN, DIM)
    assert_identity(torch.func.vmap(lambda x: model(x[None], 0.5)[0])(v), model(v, 0.5))


# ---- counts ---------------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Transformer class")
def test_size_counts_what_is_stored_and_what_is_used():
    for shared in (False, True):
        model = network(shared=shared)
        of_block = 3 * (2 + 2 + 4 + 4) * WIDTH + 6 * (2 * WIDTH + 1) + WIDTH
        outside = DIM * WIDTH + SEQ_LEN * WIDTH + 4 * WIDTH + DIM * WIDTH
        size = model.size()
        assert (size.width, size.heads, size.hidden) == (WIDTH, 3, 6)
        assert size.blocks == 2 + shared
        assert size.parameters == outside + 2 * of_block
        assert size.parameters_untied == outside + (2 + shared) * of_block


def test_largest_norm_is_over_matrices_of_the_formula():
    model = network(scale=1.0)
    norms = [model.readout.norm(), model.lift.position.norm()]
    for block in model.blocks:
        layer = block.attention
        norms += [(o @ v).norm() for o, v in zip(layer.output, layer.value, strict=True)]
        norms += [w.norm() for w in (*layer.query, *layer.key, block.feed_forward.up)]
    assert model.size().largest_norm == pytest.approx(max(norms).item())
    model.blocks[1].attention.value.mul_(100)
    assert model.size().largest_norm == pytest.approx(
        (model.blocks[1].attention.output @ model.blocks[1].attention.value).flatten(1).norm(dim=1)
        .max().item()
    )  # fmt: skip


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0099, 6.1, torch.tensor([0.5, 6.1, 1.0])])
def test_steps_outside_the_range_of_the_weights(t):
    with pytest.raises(ValueError, match=r"these weights are for t in \[0.01, 6\]"):
        network()(normal(3, SEQ_LEN, DIM), t)


def test_rounded_ends_of_a_grid_are_inside():
    model, v = network(), normal(1, SEQ_LEN, DIM)
    for t in (0.01 * (1 - 1e-9), 6.0 * (1 + 1e-9)):
        assert model(v, t).shape == v.shape


def test_values_beyond_a_limit_are_refused_by_name():
    v = normal(3, SEQ_LEN, DIM)
    peak = torch.stack(list(network().states(v, 0.5))[:2]).abs().amax(dim=(0, 1, 2))
    assert network(limits=1.01 * peak)(v, 0.5).shape == v.shape
    tight = 1.01 * peak
    tight[4] *= 0.5
    with pytest.raises(ValueError, match=r"values of second left .* factor of 1.98.*norm_bound"):
        network(limits=tight)(v, 0.5)
    model = network(limits=tight)
    model.check_ranges = False
    assert_identity(model(v, 0.5), network()(v, 0.5))


def test_limits_are_no_weights():
    model = network(limits=torch.ones(WIDTH, dtype=torch.float64))
    assert not [name for name in model.state_dict() if "limits" in name]


# ---- subspaces and builders -----------------------------------------------------------------

SPACES = Subspaces({"a": 2, "b": 1, "c": 3})
EYE = {size: torch.eye(size, dtype=torch.float64) for size in (1, 2, 3)}


def test_subspaces_are_consecutive():
    assert SPACES.width == 6
    assert [SPACES[name] for name in "abc"] == [slice(0, 2), slice(2, 3), slice(3, 6)]
    assert SPACES.boundaries() == [0, 2, 3, 6]
    assert "b" in SPACES
    assert "d" not in SPACES
    with pytest.raises(KeyError, match="no subspace 'd'; there are a, b, c"):
        SPACES["d"]
    with pytest.raises(ValueError, match="'x' must have at least 1 coordinate"):
        Subspaces({"x": 0})


def test_maps_are_placed_by_name_and_checked():
    block = normal(4, 3)
    read = SPACES.read({"c": block}, 4)
    assert torch.equal(read[:, 3:], block)
    assert read[:, :3].abs().max() == 0
    assert SPACES.touched(read) == ("c",)
    assert torch.equal(SPACES.write({"c": block.T}, 4), read.T)
    with pytest.raises(ValueError, match=r"map from 'a' must have shape \(4, 2\), got \(4, 3\)"):
        SPACES.read({"a": block}, 4)
    with pytest.raises(ValueError, match=r"map to 'a' must have shape \(2, 4\), got \(4, 3\)"):
        SPACES.write({"a": block}, 4)


def test_linear_groups_are_exact_and_leave_the_rest_alone():
    layer = FeedForwardBuilder(SPACES)
    layer.linear("move", {"a": EYE[2]}, {"c": normal(3, 2)})
    layer.linear("clear", {"a": EYE[2]}, {"a": -EYE[2]})
    built, y = layer.build(), normal(2, 4, 6)
    out = built(y)
    assert torch.equal(out[..., :2], torch.zeros(2, 4, 2, dtype=torch.float64))
    assert torch.equal(out[..., 2], y[..., 2])
    assert_identity(out[..., 3:], y[..., 3:] + y[..., :2] @ normal(3, 2).T)
    assert built.groups == {"move": 4, "clear": 4}


def test_heads_of_different_size_share_a_layer():
    builder = AttentionBuilder(SPACES)
    builder.add("small", {"b": EYE[1]}, {"b": EYE[1]}, {"b": EYE[1]}, {"c": normal(3, 1)})
    builder.add("large", {"a": EYE[2]}, {"a": EYE[2]}, {"c": EYE[3]}, {"a": normal(2, 3)})
    layer, y = builder.build(), normal(1, 4, 6)
    assert layer.labels == ("small", "large")
    small, large = (torch.relu(y[0, :, s] @ y[0, :, s].T) for s in (SPACES["b"], SPACES["a"]))
    expected = y[0].clone()
    expected[:, 3:] += small.T @ y[0, :, 2:3] @ normal(3, 1).T
    expected[:, :2] += large.T @ y[0, :, 3:] @ normal(2, 3).T
    assert_identity(layer(y)[0], expected)
