"""The constructed transformer: it is what Theorem 1 says, to its bars, and it cannot cheat."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import covariance, seeded
from tolerances import assert_float32, assert_identity, relative_norm

from gptheory.construction import build_score_transformer
from gptheory.construction.lag_heads import VARIANTS
from gptheory.construction.layers import Attention, Block, FeedForward
from gptheory.construction.network import Lift, ScoreTransformer, StepFeatures
from gptheory.data import GaussianProcess, Matern, PowerExponential, gram, random_covariance
from gptheory.diffusion import (
    ExactScore,
    UnrolledScore,
    alpha,
    perturb,
    sigma,
    step_grid,
    trajectory,
)
from gptheory.diffusion.methods import STATIONARY
from gptheory.measures import gaussian_kl
from gptheory.support.validation import NotPSDError

FORMS = ("plain", "position-once")
methods = pytest.mark.parametrize("method", STATIONARY)
forms = pytest.mark.parametrize("form", FORMS)
variants = pytest.mark.parametrize("heads", VARIANTS)
T = 0.1


def process(seq_len=8, dim=2, lengthscale=4.0, mean=False, seed=0):
    generator = seeded(seed)
    spatial = random_covariance(dim, generator=generator)
    means = torch.randn(seq_len, dim, generator=generator, dtype=torch.float64) if mean else None
    return GaussianProcess(PowerExponential(lengthscale), spatial, means, seq_len=seq_len)


def noised(law, t=T, n=3, seed=0):
    generator = seeded(seed)
    return perturb(law.sample(n, generator, torch.float64), t, generator)[0]


def slope(x, y):
    x, y = (torch.tensor(list(values), dtype=torch.float64) for values in (x, y))
    centred = x - x.mean()
    return (centred @ y / (centred @ centred)).item()


# ---- it computes with its weights and with nothing else -------------------------------------

NOT_SOLVERS = {
    "norm", "vector_norm", "matrix_norm", "cross", "vecdot", "matmul", "multi_dot", "diagonal",
    "vander", "common_notes",
}  # fmt: skip
ELSEWHERE = (
    "cholesky", "cholesky_inverse", "cholesky_solve", "inverse", "lu", "lu_solve", "pinverse",
    "qr", "svd", "svd_lowrank", "pca_lowrank", "lobpcg", "triangular_solve", "logdet", "geqrf",
)  # fmt: skip


def without_linear_algebra(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a solver or a decomposition was called")

    for name in dir(torch.linalg):
        entry = getattr(torch.linalg, name)
        if callable(entry) and not name.startswith("_") and name not in NOT_SOLVERS:
            monkeypatch.setattr(torch.linalg, name, refuse)
    for owner in (torch, torch.Tensor):
        for name in ELSEWHERE:
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, refuse)
    for name in ("solve", "inv", "pinv", "eig", "eigh", "cholesky", "svd", "qr", "lstsq"):
        monkeypatch.setattr(np.linalg, name, refuse)


def bare_network(state):
    """Modules filled from the tensors of a state dict, by name, and nothing else."""
    blocks = []
    for k in range(1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))):
        layer, prefix = {}, f"blocks.{k}."
        layer |= {n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)}
        of = [layer.pop(f"attention.{n}") for n in ("query", "key", "value", "output")]
        ff = [layer.pop(f"feed_forward.{n}") for n in ("up", "up_bias", "down", "down_bias")]
        assert not layer
        blocks.append(Block(Attention(*of), FeedForward(*ff)))
    of_t = state["lift.step"]
    features = StepFeatures(state["lift.features.spectrum"].tolist(), of_t.shape[1] == 6)
    lift = Lift(state["lift.frame"], state["lift.position"], of_t, features)
    return ScoreTransformer(lift, blocks, state["readout"])


@pytest.mark.statement("FDGWC Theorem 1", "FDGWC Transformer class")
@pytest.mark.parametrize("multiplication", ["feed-forward", "attention"])
@forms
@methods
def test_rebuilt_from_its_state_dict_without_linear_algebra(
    method, form, multiplication, monkeypatch
):
    law = process(mean=True)
    network = build_score_transformer(
        law, 12, 5, method=method, form=form, taper="bohman", multiplication=multiplication
    )
    v = noised(law)
    expected = network(v, T)
    assert relative_norm(expected, UnrolledScore(law, 12, 5, "bohman", method)(v, T)) < 1e-5
    state = {name: weight.clone() for name, weight in network.state_dict().items()}
    without_linear_algebra(monkeypatch)
    with pytest.raises(AssertionError, match="a solver or a decomposition"):
        UnrolledScore(process(), 12)
    with pytest.raises(AssertionError, match="a solver or a decomposition"):
        torch.cholesky_solve(v[0], v[0])
    bare = bare_network(state)
    with torch.no_grad():
        # bit for bit: the same class computes with copies of the same weights
        assert torch.equal(bare(v, T), expected)
        several = torch.tensor([0.02, 0.5, 4.0], dtype=torch.float64)
        assert torch.equal(bare(v, several), network(v, several))
    assert set(bare.state_dict()) == set(state)


def idle_weights(network, v, t, weights):
    """Names of those whose growth by 1 % leaves the output where it was."""
    expected, idle = network(v, t), []
    for name, weight in weights:
        original = weight.clone()
        weight.mul_(1.01)
        if not relative_norm(network(v, t), expected) > 1e-9:
            idle.append(name)
        weight.copy_(original)
    assert torch.equal(network(v, t), expected)
    return idle


@pytest.mark.filterwarnings("ignore:multiplication_depth")
@variants
@forms
@methods
def test_every_weight_matters(method, form, heads):
    law = process(6, mean=True)
    network = build_score_transformer(
        law, 3, 4, 4, heads, method, form, taper="bohman", norm_bound=4.0
    )
    network.check_ranges = False
    t = torch.logspace(math.log10(0.005), 1, 24, dtype=torch.float64)
    v = noised(law, t, n=24)
    filled = [(n, w) for n, w in network.named_parameters() if w.any()]  # distinct blocks once
    assert len(filled) >= 3 + 3 * 4 * 2
    idle = idle_weights(network, v, t, filled)
    if heads == "trapezoid" and form == "position-once":
        # the flat tops forgive an error of a product with the position, and 1 % is one
        blocks = {n.split(".")[1] for n in idle}
        assert all("* position" in network.blocks[int(k)].label for k in blocks)
    else:
        assert idle == []


@forms
@variants
def test_every_head_matters_but_two_of_the_paper(heads, form):
    law = process(6)
    network = build_score_transformer(law, 3, 4, heads=heads, form=form, taper="bohman")
    layer = network.blocks[-1].attention
    single = [
        (label, getattr(layer, name)[k])
        for name in ("query", "key", "value", "output")
        for k, label in enumerate(layer.labels)
    ]
    prefix = "" if form == "plain" else "signal_step: "
    resting = {"trapezoid": {f"{prefix}lag 0, fall", f"{prefix}lag 0, foot"}}  # nothing is nearer
    assert set(idle_weights(network, noised(law), T, single)) == resting.get(heads, set())


# ---- its heads are the band -----------------------------------------------------------------


@pytest.mark.statement("FDGWC Theorem 1")
@variants
@settings(max_examples=15)
@given(
    seq_len=st.integers(2, 24),
    dim=st.integers(1, 3),
    kernel=st.builds(PowerExponential, st.floats(0.5, 8.0), st.floats(0.5, 2.0))
    | st.builds(Matern, st.floats(0.5, 8.0), st.sampled_from([0.5, 1.5])),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_effective_attention_is_the_band_times_sigma(heads, seq_len, dim, kernel, seed, data):
    law = GaussianProcess(kernel, covariance(dim, seed), seq_len=seq_len)
    bandwidth = data.draw(st.integers(1, seq_len))
    reference = UnrolledScore(law, 2, bandwidth, "bohman")
    expected = torch.kron(reference.banded, law.spatial)
    network = build_score_transformer(law, 2, bandwidth, 3, heads, taper="bohman")
    spaces, states = network.spaces, list(network.states(noised(law, n=1, seed=seed), T))
    operator = network.blocks[-1].attention.operator(states[-2], spaces["score"], spaces["product"])
    assert (operator + expected).abs().max() <= 1e-10
    once = build_score_transformer(
        law, 2, bandwidth, None, heads, form="position-once", taper="bohman",
        multiplication="attention",
    )  # fmt: skip
    stream = list(once.states(noised(law, n=1, seed=seed), T))[-2]
    operator = once.blocks[-1].attention.operator(stream, *[once.spaces["score"]] * 2)
    step = reference.coefficients(T)[0][0]
    identity = torch.eye(len(expected), dtype=torch.float64)
    whole = step * (alpha(T) ** 2 * expected + sigma(T) ** 2 * identity)
    assert (operator + whole).abs().max() <= 1e-10


@pytest.mark.statement("FDGWC Theorem 1", "FDGWC Corollary 1")
@pytest.mark.parametrize(
    ("heads", "form", "outside"),
    [
        ("trapezoid", "plain", 1e-12),
        ("shared-knots", "plain", 1e-12),
        ("sine", "plain", 1e-12),
        ("trapezoid", "position-once", 1e-12),
    ],
)
@pytest.mark.parametrize(("steps", "bandwidth"), [(1, 3), (2, 3), (4, 3), (3, 5), (5, 1)])
def test_receptive_field_grows_by_the_band_and_no_further(heads, form, outside, steps, bandwidth):
    law = process(20, 1, 1.0)
    network = build_score_transformer(law, steps, bandwidth, heads=heads, form=form)
    network.check_ranges = False
    v = noised(law, 0.5, n=1)
    jacobian = torch.func.jacrev(lambda x: network(x[None], 0.5)[0, :, 0])(v[0])[..., 0].abs()
    lags = (torch.arange(20)[:, None] - torch.arange(20)).abs()
    reach = (steps - 1) * (bandwidth - 1)
    assert jacobian[lags > reach].max() <= outside
    assert jacobian[lags == reach].min() >= 1e-6
    impulse = v.clone()
    impulse[0, 3] += 0.1
    moved = (network(impulse, 0.5) - network(v, 0.5))[0, :, 0].abs()
    assert moved[4 + reach :].max() <= outside
    assert moved[3 + reach] >= 1e-7


# ---- its errors are those of the proof ------------------------------------------------------


@pytest.mark.statement("FDGWC Theorem 1")
@forms
@methods
def test_error_in_steps_follows_the_rate(method, form):
    law = process(8, 2, 2.0)
    reference = UnrolledScore(law, 1, method=method)
    vectors = law.temporal_spectrum[1][:, 0], law.spatial_spectrum[1][:, 0]
    v = torch.outer(*vectors)[None]  # the slowest direction
    exact, counts = ExactScore(law)(v, T), range(5, 46, 5)
    errors = [
        relative_norm(
            build_score_transformer(law, k, None, 22, method=method, form=form)(v, T), exact
        )
        for k in counts
    ]
    kappa = reference.condition_number(T)
    if method == "gradient-descent":
        rate, transient = math.log((kappa - 1) / (kappa + 1)), [1.0] * len(errors)
    else:
        root = (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)
        share = (1 - root**2) / (1 + root**2)
        rate, transient = math.log(root), [1 + share * k for k in counts]
    logs = [math.log(e / c) for e, c in zip(errors, transient, strict=True)]
    print(f"errors {errors[0]:.1e} to {errors[-1]:.1e}: rate {slope(counts, logs):.5f}, {rate:.5f}")
    assert slope(counts, logs) == pytest.approx(rate, rel=1e-3)
    random = noised(law)  # any other direction: no slower
    truth = ExactScore(law)(random, T)
    for k in counts:
        network = build_score_transformer(law, k, None, 22, method=method, form=form)
        bound = reference.convergence_bound(T, k)
        assert relative_norm(network(random, T), truth) <= bound + 1e-9


@pytest.mark.statement("FDGWC Theorem 1")
@methods
def test_error_in_depth_falls_by_four_a_layer(method):
    law = process(10, 2)
    v, depths = noised(law, n=8), range(4, 15)
    iterate = UnrolledScore(law, 20, method=method)(v, T)
    errors = [
        relative_norm(build_score_transformer(law, 20, None, m, method=method)(v, T), iterate)
        for m in depths
    ]
    print([f"{error:.1e}" for error in errors])
    assert slope(depths, [math.log(e) for e in errors]) == pytest.approx(-math.log(4), rel=0.1)


@pytest.mark.statement("FDGWC Theorem 1")
@pytest.mark.parametrize("depth", [4, 8, 12])
@pytest.mark.parametrize("t", [0.01, 0.1, 1.0])
def test_one_unrolled_step_keeps_its_bound(depth, t):
    law = process(12, 3)
    network = build_score_transformer(law, 2, None, depth)
    spaces, step = network.spaces, network.blocks[-depth - 1 :]
    y = list(network.states(noised(law, t, n=200), t))[-depth - 2].clone()
    limits = step[0].limits
    value_range = limits[spaces["score"]].max().item()
    scalar_range = limits[[spaces["signal_step"].start, spaces["noise_step"].start]].max().item()
    uniform = torch.rand(y[..., spaces["score"]].shape, generator=seeded(3), dtype=torch.float64)
    y[..., spaces["score"]] = value_range * (2 * uniform - 1)
    s, a, b, c = (y[..., spaces[n]] for n in ("score", "signal_step", "noise_step", "offset"))
    assert y[..., spaces["product"]].abs().max() < 1e-12
    expected = s - a * (law.gram() @ s @ law.spatial) - b * s - c
    for block in step:
        y = block(y)
    error = (y[..., spaces["score"]] - expected).flatten(1).norm(dim=1).max().item()
    error /= math.sqrt(law.seq_len * law.dim)
    largest = UnrolledScore(law, 1).spectrum[1]
    bound = 4 * largest * scalar_range * value_range * 4.0 ** -(depth + 1)
    print(f"error {error:.2e}, bound {bound:.2e}")
    assert 1e-3 * bound < error <= bound
    worst = (y[..., spaces["score"]] - expected).abs().max().item()
    assert worst <= bound  # entry by entry too


@pytest.mark.statement("FDGWC Theorem 1")
@pytest.mark.parametrize("heads", VARIANTS)
@pytest.mark.parametrize("seq_len", [16, 32, 64])
@methods
def test_plain_network_is_the_iterate_and_nearly_the_score(method, seq_len, heads):
    law = process(seq_len)
    steps = UnrolledScore(law, 1, method=method).steps_for(1e-3, T)  # what Lemma 1 promises
    network = build_score_transformer(law, steps, None, 12, heads, method)
    v = noised(law)
    out = network(v, T)
    to_iterate = relative_norm(out, UnrolledScore(law, steps, method=method)(v, T))
    to_score = relative_norm(out, ExactScore(law)(v, T))
    print(f"N = {seq_len}, {method}, {heads}: {to_iterate:.1e} of the iterate, {to_score:.1e}")
    assert to_iterate <= 1e-5
    assert to_score <= 1e-3


@pytest.mark.statement("FDGWC Theorem 1")
def test_at_128_frames_eighty_blocks_are_enough():
    law = process(128, 8)
    network = build_score_transformer(law, 38, method="heavy-ball", form="position-once")
    v = noised(law, n=1)
    out = network(v, T)
    assert network.size().blocks <= 80
    assert relative_norm(out, UnrolledScore(law, 38, method="heavy-ball")(v, T)) <= 1e-5
    error = relative_norm(out, ExactScore(law)(v, T))
    print(f"{network.size().blocks} blocks, error {error:.1e}")
    assert error <= 1e-3


@pytest.mark.statement("FDGWC Theorem 1")
@forms
def test_one_set_of_weights_serves_all_diffusion_steps(form):
    law = process(32)
    network = build_score_transformer(
        law, 90, method="heavy-ball", form=form, t_min=0.01, t_max=6.0
    )
    grid = torch.logspace(-2, math.log10(6), 25, dtype=torch.float64)
    v = torch.cat([noised(law, t, n=1, seed=k) for k, t in enumerate(grid.tolist())])
    out, exact = network(v, grid), ExactScore(law)(v, grid)
    errors = (out - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    worst = (out - exact).abs().amax(dim=(1, 2)) / exact.abs().amax(dim=(1, 2))
    print(f"largest error over t {errors.max():.1e}, of any entry {worst.max():.1e}")
    assert max(errors.max(), worst.max()) <= 1e-3


@pytest.mark.statement("FDGWC Theorem 1")
def test_float32_weights_with_shared_knots():
    law = process(128, 4)
    network = build_score_transformer(
        law, 176, heads="shared-knots", embedding_period=256, dtype=torch.float32
    )
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    v = noised(law, n=1)
    out = network(v.float(), T)
    assert out.dtype == torch.float32
    error = relative_norm(out, UnrolledScore(law, 176)(v, T))
    print(f"float32 is {error:.1e} of gradient descent away")
    assert error <= 1e-3


def test_dtypes_of_weights_and_inputs():
    law = process()
    wide, narrow = (
        build_score_transformer(law, 5, dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    v = noised(law)
    for network in (wide, narrow):
        assert network(v, T).dtype == torch.float64
        assert network(v.float(), T).dtype == torch.float32
    assert_float32(wide(v.float(), T), wide(v, T))


# ---- what kind of function it is ------------------------------------------------------------


def nonlinearity(network, law):
    a, b = 0.5 * noised(law, n=16, seed=1), 0.5 * noised(law, n=16, seed=2)
    zero = torch.zeros_like(a)
    defect = network(a + b, T) - network(a, T) - network(b, T) + network(zero, T)
    return (defect.norm() / network(a + b, T).norm()).item()


@pytest.mark.statement("FDGWC Theorem 1")
@methods
def test_plain_form_leaves_its_trace(method):
    law = process(16, 2)
    coarse, fine = (
        nonlinearity(build_score_transformer(law, 40, None, m, method=method), law) for m in (6, 12)
    )
    print(f"non-linearity {coarse:.1e} at m = 6, {fine:.1e} at m = 12")
    assert 6e-3 / 5 < coarse < 6e-3 * 5
    assert 1e-6 / 10 < fine < 1e-6 * 10


@methods
@pytest.mark.parametrize("multiplication", ["feed-forward", "attention"])
def test_position_once_form_is_affine(method, multiplication):
    law = process(16, 2, mean=True)
    network = build_score_transformer(
        law, 40, method=method, form="position-once", multiplication=multiplication
    )
    assert nonlinearity(network, law) < 1e-12


@variants
@forms
@methods
def test_means_of_every_frame(method, form, heads):
    law = process(9, 3, mean=True, seed=4)
    network = build_score_transformer(law, 30, heads=heads, method=method, form=form)
    t = torch.tensor([0.02, 0.3, 3.0], dtype=torch.float64)
    v = noised(law, t)
    iterate = UnrolledScore(law, 30, method=method)(v, t)
    assert relative_norm(network(v, t), iterate) <= 1e-5
    centred = GaussianProcess(law.temporal, law.spatial, seq_len=9)
    assert relative_norm(UnrolledScore(centred, 30, method=method)(v, t), iterate) > 1e-2


# ---- what it costs --------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Transformer class")
@forms
@methods
def test_tied_and_untied_weights(method, form):
    law = process(mean=True)
    options = {"method": method, "form": form, "bandwidth": 4, "taper": "bohman"}
    tied, untied = (build_score_transformer(law, 6, tied=tied, **options) for tied in (True, False))
    v = noised(law)
    assert torch.equal(
        tied(v, T), untied(v, T)
    )  # the same products; only who owns a weight differs
    small, large = tied.size(), untied.size()
    of_one = {id(p): p.numel() for p in tied.parameters()}
    assert small.parameters == sum(of_one.values())
    stored = {name: p.numel() for name, p in untied.named_parameters()}
    assert large.parameters == small.parameters_untied == sum(stored.values())
    in_state = {n: w.numel() for n, w in tied.state_dict().items() if "spectrum" not in n}
    assert sum(in_state.values()) == large.parameters
    assert small.blocks == large.blocks == len(tied.blocks) == len({id(b) for b in untied.blocks})
    assert len({id(b) for b in tied.blocks}) < small.blocks
    storages = [b.feed_forward.down_bias.data_ptr() for b in untied.blocks]
    assert len(set(storages)) == len(storages)


@pytest.mark.statement("FDGWC Theorem 1", "FDGWC Transformer class")
def test_size_is_that_of_the_theorem():
    law, bandwidth, steps, depth = process(10, 2), 4, 5, 7
    for heads, count in (("trapezoid", 16), ("shared-knots", 4), ("sine", 9)):
        network = build_score_transformer(law, steps, bandwidth, depth, heads, taper="bohman")
        size = network.size()
        assert size.heads == count
        assert size.blocks == depth + steps * (depth + 1)
        assert size.width == network.readout.shape[1] == network.spaces.width
        assert all(p.norm() <= size.largest_norm * (1 + 1e-12) or p.ndim == 3
                   for p in network.parameters())  # fmt: skip
    once = build_score_transformer(law, steps, bandwidth, depth, form="position-once",
                                   taper="bohman", heads="shared-knots")  # fmt: skip
    assert once.size().blocks == 2 * depth + 1 + steps
    assert not any(p.requires_grad for p in once.parameters())


# ---- it denoises ----------------------------------------------------------------------------


@pytest.mark.statement("FDGWC Theorem 1")
def test_probability_flow_with_the_constructed_score():
    law = process(8, 2)
    network = build_score_transformer(law, 40, method="heavy-ball", form="position-once")
    entries = law.seq_len * law.dim
    basis = torch.eye(entries, dtype=torch.float64).view(entries, law.seq_len, law.dim)
    grid = step_grid(100)
    *_, (t, end) = trajectory(network, basis, grid, solver="heun", final_denoise=False)
    assert t == pytest.approx(0.005)
    columns = end.flatten(1)  # row k: where basis vector k is sent, the network being linear
    sampled = columns.T @ columns
    marginal = alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * torch.eye(entries).double()
    error = relative_norm(sampled, marginal)
    divergence = gaussian_kl(sampled, marginal)
    print(f"covariance off by {error:.1e}, KL {float(divergence):.1e}")
    assert error <= 1e-3
    assert divergence <= 1e-4


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidth": 9}, r"bandwidth must lie in 1\.\.8, the number of frames, got 9"),
        ({"bandwidth": 0}, "bandwidth"),
        ({"steps": 0}, "steps"),
        ({"multiplication_depth": 0}, "multiplication_depth"),
        ({"embedding_period": 13}, "too small to separate lags up to 7.*at least 14"),
        ({"embedding_period": 27, "heads": "sine"}, "too small to separate lags.*at least 28"),
        ({"embedding_period": math.nan}, "embedding_period must be a finite number > 0"),
        (
            {"embedding_period": 8192, "dtype": torch.float32},
            "float32 resolves.*float64, heads='sine', or a period nearer to 14",
        ),
        ({"norm_bound": 1.0}, "norm_bound=1 is too small for the data.*a safe bound is"),
        ({"norm_bound": -1.0}, "norm_bound must be a finite number > 0"),
        ({"heads": "spline"}, "heads must be one of .*trapezoid.*got 'spline'"),
        ({"method": "newton"}, "method must be one of .*heavy-ball.*got 'newton'"),
        ({"method": "chebyshev"}, "method must be one of .*got 'chebyshev'"),
        ({"form": "fancy"}, "form must be one of .*got 'fancy'"),
        ({"multiplication": "long"}, "multiplication must be one of .*got 'long'"),
        ({"taper": "triangle", "bandwidth": 3}, "triangle"),
        ({"taper": "bohman"}, "needs a bandwidth"),
        ({"t_min": 0.0}, "t_min must be a finite number > 0"),
        ({"t_max": math.inf}, "t_max must be a finite number > 0"),
        ({"t_min": 2.0, "t_max": 1.0}, "expected t_min < t_max, got t_min=2.0, t_max=1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_score_transformer(process(), **{"steps": 3, **arguments})


@pytest.mark.parametrize("t", [0.0099, 6.1, torch.tensor([0.1, 0.1, 7.0], dtype=torch.float64)])
def test_diffusion_steps_outside_the_range(t):
    law = process()
    network = build_score_transformer(law, 3, t_min=0.01, t_max=6.0)
    assert network(noised(law), 0.01).shape == (3, 8, 2)
    with pytest.raises(ValueError, match=r"these weights are for t in \[0.01, 6\].*t_min or t_max"):
        network(noised(law), t)


@forms
def test_values_outside_the_range_raise_instead_of_being_wrong(form):
    law = process()
    network = build_score_transformer(law, 3, form=form)
    wild = 50 * noised(law)
    if form == "plain":
        with pytest.raises(ValueError, match=r"frame.* left the range .*larger norm_bound"):
            network(wild, T)
        with pytest.raises(ValueError, match=r"^v must be finite, got NaN or infinite entries$"):
            network(math.nan * wild, T)
        wide = build_score_transformer(law, 3, None, 16, norm_bound=2 * wild.abs().max().item())
        assert relative_norm(wide(wild, T), UnrolledScore(law, 3)(wild, T)) <= 1e-5
        network.check_ranges = False
        assert relative_norm(network(wild, T), UnrolledScore(law, 3)(wild, T)) > 0.1
    else:  # linear in v: there is nothing to leave but the ball of the output
        free = build_score_transformer(law, 3, form=form, norm_bound=2 * wild.abs().max().item())
        assert relative_norm(free(wild, T), UnrolledScore(law, 3)(wild, T)) <= 1e-5


@pytest.mark.statement("FDGWC Theorem 1")
@methods
@pytest.mark.parametrize(("bandwidth", "taper"), [(None, None), (3, "bohman")])
def test_ranges_cover_every_guarded_value_but_for_one_in_a_million(method, bandwidth, taper):
    """By Gaussian tails, without a draw: a union bound over the frames and the iterates."""
    law, steps = process(8, 2, mean=True), 12
    network = build_score_transformer(law, steps, bandwidth, taper=taper, method=method)
    centred = GaussianProcess(law.temporal, law.spatial, seq_len=8)
    iteration = UnrolledScore(centred, steps, bandwidth, taper, method)
    guarded = {
        name: min(
            block.limits[network.spaces[name]].min().item()
            for block in network.blocks
            if block.limits is not None
        )
        for name in ("frame", "score")
    }
    chances = []
    for t in (0.005, 0.03, 0.3, 1.0, 10.0):
        size = 16
        noised_law = alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * torch.eye(size).double()
        root = torch.linalg.cholesky(noised_law).T.reshape(size, 8, 2)
        *iterates, _ = iteration.iterates(root, t)  # the last one is not multiplied
        values = [(root, "frame"), *((s, "score") for s in iterates[1:])]
        chances.append(
            sum(
                torch.erfc(guarded[name] / (s.norm(dim=0) * 2**0.5)).sum().item()
                for s, name in values
            )
        )
    print(f"refused with probability at most {max(chances):.1e}")
    assert max(chances) < 1e-6
    assert max(chances) > 1e-10  # nor are the ranges wider than the promise needs


def test_sequences_of_the_process_stay_inside():
    law = process(8, 2, mean=True)
    for method in STATIONARY:
        network = build_score_transformer(law, 25, method=method)
        for t in (0.005, 0.1, 10.0):
            v = noised(law, t, n=300)
            assert relative_norm(network(v, t), UnrolledScore(law, 25, method=method)(v, t)) < 1e-4


def test_a_process_that_is_not_stationary():
    law = GaussianProcess(covariance(6), covariance(2, 1))
    with pytest.raises(ValueError, match=r"must be stationary .*differ by up to"):
        build_score_transformer(law, 3)
    nearly = gram(PowerExponential(2.0), 6)
    nearly[2, 3] = nearly[3, 2] = nearly[3, 2] * (1 + 1e-6)
    with pytest.raises(ValueError, match="must be stationary"):
        build_score_transformer(GaussianProcess(nearly, covariance(2)), 3)
    rounded = gram(PowerExponential(2.0), 6)
    build_score_transformer(GaussianProcess(rounded, covariance(2)), 3)


def test_a_band_that_diverges_is_refused_with_a_remedy():
    law = GaussianProcess(PowerExponential(6.0, 2.0), covariance(2), seq_len=16)
    with pytest.raises(NotPSDError, match="taper='bohman'"):
        build_score_transformer(law, 3, 5)
    first = UnrolledScore(law, 3, 5).converges_from
    build_score_transformer(law, 3, 5, t_min=1.01 * first)
    build_score_transformer(law, 3, 5, taper="bohman")


def test_periods_near_the_resolution_warn():
    law = process(128, 1)
    with pytest.warns(UserWarning, match=r"float64, heads='sine', or a period nearer to 254"):
        build_score_transformer(
            law, 2, heads="shared-knots", embedding_period=1024, dtype=torch.float32
        )


def test_shallow_products_in_scores_warn_and_say_how_deep():
    law = process(16, 1)
    with pytest.warns(UserWarning, match=r"leak into each other .*use at least \d+") as caught:
        build_score_transformer(law, 2, None, 3, form="position-once")
    needed = int(str(caught[0].message).split("use at least ")[1].split(",")[0])
    deep = build_score_transformer(law, 2, None, needed, form="position-once")
    v = noised(law)
    assert relative_norm(deep(v, T), UnrolledScore(law, 2)(v, T)) < 5e-2


def test_weights_are_built_on_the_cpu_wherever_the_process_is(monkeypatch):
    law, devices, move = process(4, 2), [], GaussianProcess.to
    monkeypatch.setattr(
        GaussianProcess, "to", lambda self, device: devices.append(device) or move(self, device)
    )
    build_score_transformer(law, 2)
    assert devices == ["cpu"]


def test_one_frame_and_one_dimension():
    law = process(1, 1)
    v = noised(law)
    for form in FORMS:
        for heads in VARIANTS:
            network = build_score_transformer(law, 4, heads=heads, form=form)
            assert_identity(network(v, T), ExactScore(law)(v, T), condition=1e4)


def test_errors_fall_monotonically_with_steps_of_one_network():
    """The stream holds every iterate: the residual stream after step k is s^(k)."""
    law, steps, depth = process(8, 2), 6, 20
    network = build_score_transformer(law, steps, None, depth)
    v, spaces = noised(law), network.spaces
    states = list(network.states(v, T))[depth :: depth + 1]
    iterates = list(UnrolledScore(law, steps).iterates(v, T))
    assert len(states) == len(iterates) == steps + 1
    for state, iterate in zip(states, iterates, strict=True):
        assert_identity(state[..., spaces["score"]], iterate, condition=10.0)
    gaps = [relative_norm(s[..., spaces["score"]], ExactScore(law)(v, T)) for s in states]
    assert all(after < before for before, after in pairwise(gaps))
