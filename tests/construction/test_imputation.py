"""Networks for missing frames: one set of weights for every mask and t, and no hidden maths."""

import math

import numpy as np
import pytest
import torch
from strategies import covariance, seeded
from tolerances import assert_float32, assert_identity, relative_norm

from gptheory.construction import build_imputation_transformer, build_nested_transformer
from gptheory.construction.builders import AttentionBuilder
from gptheory.construction.lag_heads import VARIANTS, lag_function
from gptheory.construction.layers import Attention, Block, FeedForward
from gptheory.construction.masked_network import (
    FlagLift,
    FrameLevels,
    FrameStepLift,
    ImputationTransformer,
)
from gptheory.construction.network import StepFeatures
from gptheory.construction.scaled_heads import Scores, add_scaled_heads
from gptheory.construction.subspaces import Subspaces
from gptheory.data import PATTERNS, GaussianProcess, PowerExponential, pattern, random_covariance
from gptheory.diffusion import ExactScore, NestedScore, OneLoopScore, alpha, sigma
from gptheory.diffusion.methods import STATIONARY
from gptheory.support.validation import NotPSDError

F64 = torch.float64
T = 0.1
MASK = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1]).bool()
BUILDERS = {
    "one loop": lambda law, **options: build_imputation_transformer(law, 6, **options),
    "nested": lambda law, **options: build_nested_transformer(law, 3, 4, **options),
}
builders = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def process(seq_len=8, dim=2, lengthscale=1.0, mean=True, seed=0):
    generator = seeded(seed)
    spatial = random_covariance(dim, 0.6, 1.0, generator)
    means = torch.randn(seq_len, dim, generator=generator, dtype=F64) if mean else None
    return GaussianProcess(PowerExponential(lengthscale), spatial, means, seq_len=seq_len)


def noised(law, observed, t=T, n=3, seed=0):
    """Whole sequences, noised where they are missing."""
    generator = seeded(seed)
    x = law.sample(n, generator, F64)
    noise = torch.randn(x.shape, generator=generator, dtype=F64)
    return torch.where(observed[..., None], x, alpha(t) * x + sigma(t) * noise)


# ---- the bars -----------------------------------------------------------------------------------


@pytest.mark.statement("YC Theorem 1")
def test_one_set_of_weights_for_four_masks_and_three_steps():
    """N = 32, d = 4, lengthscale 8: 120 steps, 140 blocks, 34 heads, 1e-3."""
    lags = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    law = GaussianProcess(PowerExponential(8.0), 0.5 ** lags.double(), seq_len=32)
    network = build_imputation_transformer(law, 120)
    size = network.size()
    assert (size.blocks, size.heads, size.width) == (140, 34, 29)
    worst = 0.0
    for name in PATTERNS:
        observed = pattern(name, 32, 8)
        loop = OneLoopScore(law, observed, 120, "heavy-ball", every_mask=True)
        for t in (0.01, 0.1, 1.0):
            v = noised(law, observed, t, n=4, seed=3)
            found, exact = network(v, t, observed), ExactScore(law.condition(v, observed))(v, t)
            error = relative_norm(found, exact)
            assert loop.score_error(t) <= loop.convergence_bound(t)
            assert error <= min(1e-3, loop.convergence_bound(t))
            assert relative_norm(found, loop(v, t)) <= 1e-9
            worst = max(worst, error)
    print(f"largest error {worst:.1e}")


# ---- they are the iterations --------------------------------------------------------------------


@pytest.mark.statement("YC Theorem 1", "YC Lemma 6")
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("method", STATIONARY)
@pytest.mark.parametrize("heads", VARIANTS)
def test_one_loop_is_the_iteration_for_any_mask(heads, method, mean):
    law, generator = process(mean=mean), seeded(7)
    network = build_imputation_transformer(law, 9, method, heads)
    for t in (1e-6, 0.02, 0.5, 30.0):
        observed = torch.rand(8, generator=generator) < 0.6
        observed[:2] = torch.tensor([True, False])
        v = noised(law, observed, t)
        assert_identity(network(v, t, observed), OneLoopScore(law, observed, 9, method, True)(v, t))


@pytest.mark.statement("YC Theorem 1", "YC Lemma 6")
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("multiplication", ["feed-forward", "attention"])
@pytest.mark.parametrize("heads", VARIANTS)
def test_nested_network_is_algorithm_two_for_any_mask(heads, multiplication, mean):
    law, generator = process(mean=mean), seeded(7)
    network = build_nested_transformer(law, 5, 25, heads, multiplication)
    for t in (1e-6, 0.02, 0.5, 30.0):
        observed = torch.rand(8, generator=generator) < 0.6
        observed[:2] = torch.tensor([True, False])
        v = noised(law, observed, t)
        loops = NestedScore(law, observed, 5, 25, every_mask=True)
        *_, expected = loops.iterates(v, t)
        assert_identity(network(v, t, observed), expected)


@pytest.mark.statement("YC Theorem 1")
def test_nested_network_counts_what_the_theorem_counts():
    """T_obs, T_cor, T_cort and T_miss, by name; L, M and D."""
    law, k, k_aux, m = process(mean=False), 5, 7, 11
    network = build_nested_transformer(law, k, k_aux, multiplication_depth=m)
    labels = [block.label for block in network.blocks]
    assert labels.count("T_obs") == k * (k_aux - 1)
    assert labels.count("T_cor") == labels.count("T_cort") == labels.count("T_miss") == k - 1
    size = network.size()
    assert size.blocks == len(labels) == 2 * m + k_aux + 1 + (k - 1) * (k_aux + 2)
    assert size.blocks <= k * (k_aux * (1 + m) + 3 + m)  # the theorem's, which multiplies in a step
    heads = {block.label: len(block.attention.query) for block in network.blocks}
    assert {heads[name] for name in ("T_obs", "T_cor", "T_cort")} == {4 * 8}
    assert heads["T_miss"] == size.heads == 4 * 8 + 2  # of lag 0, for σ² s
    stream = sum(size for name, size in network.spaces.sizes.items() if name != "teeth")
    assert stream == 5 * law.dim + 20


@pytest.mark.parametrize("scale", [0.02, 30.0])
def test_processes_of_another_scale(scale):
    """Where the spectrum of C_t is that of the noise at one end, for the noise has variance 1."""
    law = GaussianProcess(process().temporal, scale * process().spatial, seq_len=8)
    network, v = build_imputation_transformer(law, 150), noised(law, MASK)
    assert_identity(network(v, T, MASK), ExactScore(law.condition(v, MASK))(v, T), condition=100.0)


def test_sequences_of_a_batch_have_masks_and_steps_of_their_own():
    law, t = process(), torch.tensor([0.01, 0.3, 2.0], dtype=F64)
    masks = torch.stack([MASK, ~MASK, MASK.roll(1)])
    v = noised(law, masks)
    for build in BUILDERS.values():
        network = build(law)
        rows = [network(v[k : k + 1], t[k].item(), masks[k]) for k in range(3)]
        assert_identity(network(v, t, masks), torch.cat(rows))
        assert not network(v, t, masks)[masks].any()
        assert network(v[:0], 0.1, MASK).shape == (0, 8, 2)


@builders
def test_what_stands_in_seen_frames_matters_and_infinite_steps_do_not_mix(build):
    """Affine in v, whatever its size: no multiplication has a range that depends on data."""
    network = build(process())
    network.radius = math.inf
    v, zero = noised(process(), MASK), torch.zeros(1, 8, 2, dtype=F64)
    base = network(zero, T, MASK)
    assert_identity(network(1e6 * v, T, MASK) - base, 1e6 * (network(v, T, MASK) - base))
    assert not torch.equal(network(v + MASK[:, None], T, MASK), network(v, T, MASK))


# ---- they compute with their weights and with nothing else --------------------------------------

SOLVERS = ("solve", "inv", "pinv", "eig", "eigh", "eigvalsh", "cholesky", "svd", "qr", "lstsq",
           "cholesky_ex", "solve_triangular", "ldl_solve", "lu_factor", "matrix_exp")  # fmt: skip


def without_linear_algebra(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a solver or a decomposition was called")

    for name in SOLVERS:
        monkeypatch.setattr(torch.linalg, name, refuse)
        if hasattr(np.linalg, name):
            monkeypatch.setattr(np.linalg, name, refuse)
    for name in ("cholesky", "cholesky_solve", "inverse", "pinverse", "svd", "qr", "lu_solve"):
        for owner in (torch, torch.Tensor):
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, refuse)


def bare_network(state):
    """Modules filled from the tensors of a state dict, by name, and nothing else."""
    blocks = []
    for k in range(1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))):
        prefix = f"blocks.{k}."
        layer = {n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)}
        of = [layer.pop(f"attention.{n}") for n in ("query", "key", "value", "output")]
        ff = [layer.pop(f"feed_forward.{n}") for n in ("up", "up_bias", "down", "down_bias")]
        assert not layer
        blocks.append(Block(Attention(*of), FeedForward(*ff)))
    weights = [state[f"lift.{name}"] for name in ("frame", "position", "step")]
    if "lift.flag" in state:
        features = StepFeatures(state["lift.features.spectrum"].tolist())
        lift = FlagLift(*weights, features, state["lift.flag"])
    else:
        lift = FrameStepLift(*weights, FrameLevels())
    return ImputationTransformer(lift, blocks, state["readout"])


@pytest.mark.statement("YC Theorem 1")
@builders
def test_rebuilt_from_its_state_dict_without_linear_algebra(build, monkeypatch):
    law = process()
    network, v = build(law), noised(process(), MASK)
    expected = network(v, T, MASK)
    other = noised(law, ~MASK)
    also = network(other, 2.0, ~MASK)
    state = {name: weight.clone() for name, weight in network.state_dict().items()}
    without_linear_algebra(monkeypatch)
    with pytest.raises(AssertionError, match="a solver or a decomposition"):
        OneLoopScore(process(), MASK, 3)
    bare = bare_network(state)
    with torch.no_grad():
        # bit for bit: the same class computes with copies of the same weights
        assert torch.equal(bare(v, T, MASK), expected)
        assert torch.equal(bare(other, 2.0, ~MASK), also)
    assert set(bare.state_dict()) == set(state)


@pytest.mark.parametrize("heads", ["shared-knots", "sine"])
@builders
def test_every_weight_matters(build, heads):
    """Its growth by 1 % is seen (the flat tops of trapezoids would forgive it)."""
    law = process(6)
    network = build(law, heads=heads, multiplication_depth=8)
    network.check_ranges = False
    t = torch.logspace(-3, 1, 24, dtype=F64)
    observed = torch.rand(24, 6, generator=seeded(1)) < 0.5
    observed[:, 0], observed[:, 1] = True, False
    v = noised(law, observed, n=24)
    expected, idle = network(v, t, observed), []
    filled = [(name, weight) for name, weight in network.named_parameters() if weight.any()]
    for name, weight in filled:
        original = weight.clone()
        weight.mul_(1.01)
        if not relative_norm(network(v, t, observed), expected) > 1e-9:
            idle.append(name)
        weight.copy_(original)
    assert torch.equal(network(v, t, observed), expected)
    assert len(filled) > 20 and idle == []


# ---- their heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", VARIANTS)
def test_scaled_heads_are_the_function_between_two_scalars_behind_a_gate(heads):
    n, generator = 7, seeded(3)
    period = {"sine": 8 * n}.get(heads, 2 * n)
    values = torch.rand(n, generator=generator, dtype=F64)
    function = lag_function(heads, values, period)
    angles = 2 * math.pi * torch.arange(n, dtype=F64) / period
    position = torch.stack([angles.cos(), angles.sin()], dim=1)
    z, w = torch.rand(2, n, 1, generator=generator, dtype=F64) + 0.1
    f, g = (torch.rand(2, n, 1, generator=generator, dtype=F64) < 0.5).double()
    x = torch.randn(n, 2, generator=generator, dtype=F64)
    matrix = torch.randn(2, 2, generator=generator, dtype=F64)
    sizes = {"position": 2, "one": 1, "z": 1, "w": 1, "z_position": 2, "w_position": 2}
    spaces = Subspaces(sizes | {"f": 1, "g": 1, "x": 2, "out": 2})
    parts = (
        position,
        torch.ones(n, 1),
        z,
        w,
        z * position,
        w * position,
        f,
        g,
        x,
        torch.zeros(n, 2),
    )
    y = torch.cat([part.double() for part in parts], dim=1)[None]
    clean = function.of(position)
    for sender, receiver, gate in (
        (None, None, None), ("z", None, None), (None, "w", None), ("z", "w", None),
        ("z", None, ("f", "g")), (None, None, ("f", "g")),
    ):  # fmt: skip
        attention = AttentionBuilder(spaces)
        scores = Scores(sender, receiver, gate, 4.0)
        add_scaled_heads(attention, function, scores, "x", "out", matrix)
        weights = clean * (z if sender else 1) * (w.T if receiver else 1)
        if gate:
            weights = weights * (f * g.T)
        found = attention.build()(y)[0, :, spaces["out"]]
        assert_identity(found, weights.T @ x @ matrix.T, condition=10.0)
        if gate:  # closed is closed: not small, zero
            assert not found[g[:, 0] == 0].any()


# ---- what they are asked ------------------------------------------------------------------------


def test_multiplication_by_attention_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match=r"one scalar for all tokens.*multiplication='feed-forward'"
    ):
        build_imputation_transformer(process(), 3, multiplication="attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"method": "chebyshev"}, "method must be one of .*heavy-ball.*got 'chebyshev'"),
        ({"heads": "spline"}, "heads must be one of .*trapezoid.*got 'spline'"),
        ({"multiplication": "long"}, "multiplication must be one of .*got 'long'"),
        ({"multiplication_depth": 0}, "multiplication_depth must be an integer >= 1, got 0"),
        ({"embedding_period": 3.0}, "embedding_period=3 is too small to separate lags"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_imputation_transformer(process(), **{"steps": 3, **arguments})
    if "method" not in arguments and "embedding_period" not in arguments:
        with pytest.raises(ValueError, match=message):
            build_nested_transformer(process(), **{"steps": 3, "inner_steps": 3, **arguments})


def test_bad_processes():
    with pytest.raises(ValueError, match="inner_steps must be an integer >= 1, got 0"):
        build_nested_transformer(process(), 3, 0)
    for build in BUILDERS.values():
        with pytest.raises(ValueError, match=r"must be stationary .*differ by up to"):
            build(GaussianProcess(covariance(6), covariance(2)))
        with pytest.raises(NotPSDError, match=r"singular up to rounding.*serves every mask"):
            build(GaussianProcess(PowerExponential(9.0, 2.0), covariance(2), seq_len=16))


@builders
def test_bad_masks_and_steps(build):
    network, v = build(process()), noised(process(), MASK)
    with pytest.raises(ValueError, match=r"must be a boolean tensor.*got torch\.float32"):
        network(v, T, MASK.float())
    with pytest.raises(ValueError, match=r"must be a boolean tensor.*got list"):
        network(v, T, MASK.tolist())
    with pytest.raises(ValueError, match=r"shape \(8,\) or \(3, 8\), got \(2, 8\)"):
        network(v, T, MASK.expand(2, 8))
    with pytest.raises(ValueError, match=r"must be finite and > 0, got 0\.0"):
        network(v, 0.0, MASK)
    with pytest.raises(ValueError, match=r"v must have shape \(batch, 8, 2\)"):
        network(v[:, 1:], T, MASK)


@builders
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_entries_that_are_not_finite(build, bad):
    """As in what :meth:`condition` takes, where missing frames may hold anything."""
    law, t = process(), torch.tensor([T, 1.0, 2.0], dtype=F64)
    network, v = build(law), noised(law, MASK)
    v[1, ~MASK] = bad
    with pytest.raises(ValueError, match=r"^v must be finite, got 6 NaN or infinite entries$"):
        network(v, t, MASK)
    network.check_ranges = False  # as under transforms: nothing looks, and NaN in is NaN out
    found = network(v, t, MASK)
    assert found[1].isnan().any() and torch.isfinite(found[[0, 2]]).all()


def test_shallow_products_warn_and_say_how_deep():
    with pytest.warns(UserWarning, match=r"leak into each other .*use at least \d+") as caught:
        build_imputation_transformer(process(), 3, multiplication_depth=2)
    needed = int(str(caught[0].message).split("use at least ")[1])
    network = build_imputation_transformer(process(), 3, multiplication_depth=needed)
    v = noised(process(), MASK)
    expected = OneLoopScore(process(), MASK, 3, "heavy-ball", True)(v, T)
    assert relative_norm(network(v, T, MASK), expected) < 5e-2


@builders
def test_single_precision_and_the_ball(build):
    law, v = process(), noised(process(), MASK)
    network = build(law)
    found = network(v.float(), T, MASK)
    assert found.dtype == torch.float32
    assert_float32(found, network(v, T, MASK))
    far = network(1e4 * v, T, MASK).flatten(1).norm(dim=1)
    assert_identity(far, torch.full((3,), network.radius / sigma(T), dtype=F64))
