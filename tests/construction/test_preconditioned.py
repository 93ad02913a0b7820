"""The preconditioned transformer is the iteration it says; its preconditioner keeps its word."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, seeded, seeds
from tolerances import assert_at_most, assert_float32, assert_identity, relative_norm

from gptheory.construction import build_preconditioned_transformer, build_score_transformer
from gptheory.construction.lag_heads import VARIANTS
from gptheory.construction.layers import Attention, Block, FeedForward
from gptheory.construction.network import Lift, ScoreTransformer
from gptheory.construction.preconditioner import LagPreconditioner, PreconditionedFeatures
from gptheory.data import GaussianProcess, PowerExponential, random_covariance
from gptheory.data.covariance import toeplitz
from gptheory.diffusion import ExactScore, alpha, perturb, sigma
from gptheory.support.validation import NotPSDError

T = 0.3
RANGE = {"t_min": 0.05, "t_max": 8.0}


def process(seq_len=12, dim=2, kernel=None, mean=False, seed=0):
    generator = seeded(seed)
    spatial = random_covariance(dim, generator=generator)
    means = torch.randn(seq_len, dim, generator=generator, dtype=torch.float64) if mean else None
    return GaussianProcess(kernel or PowerExponential(4.0), spatial, means, seq_len=seq_len)


def noised(law, t=T, n=3, seed=0):
    generator = seeded(seed)
    return perturb(law.sample(n, generator, torch.float64), t, generator)[0]


def system(law, preconditioner, t):
    """A_t of the band, in full."""
    eye = torch.eye(law.seq_len * law.dim, dtype=torch.float64)
    banded = torch.kron(toeplitz(preconditioner.values), law.spatial)
    return alpha(t) ** 2 * banded + sigma(t) ** 2 * eye


def iterated(law, preconditioner, steps, v, t):
    """The iteration by matrices, of which the network is one of weights."""
    inverse, a = preconditioner.matrix(t), system(law, preconditioner, t)
    b = (v - alpha(t) * law.mean).flatten(1).T
    s = torch.zeros_like(b)
    for size in preconditioner.step_sizes(steps):
        s = s - size * inverse @ (a @ s + b)
    return s.T.reshape(v.shape)


# ---- the network is the iteration ---------------------------------------------------------------


@pytest.mark.parametrize("heads", VARIANTS)
@pytest.mark.parametrize("mean", [False, True])
def test_network_is_the_iteration(heads, mean):
    law = process(mean=mean)
    network = build_preconditioned_transformer(law, 4, 9, "bohman", 5, heads=heads, **RANGE)
    for t in (0.05, T, 8.0):
        v = noised(law, t)
        assert_identity(network(v, t), iterated(law, network.preconditioner, 4, v, t))
    assert len(network.blocks) == 2 * 4
    t = torch.tensor([0.06, 1.0, 5.0], dtype=torch.float64)
    rows = [network(row[None], level) for row, level in zip(v, t.tolist(), strict=True)]
    assert_identity(network(v, t), torch.cat(rows))


def test_feed_forward_multiplications():
    """Their error is 4^−m of the product, times the slope of the heads."""
    law = process(mean=True)
    v, errors = noised(law), []
    for depth in (12, 16, 20):
        network = build_preconditioned_transformer(law, 3, multiplication_depth=depth, **RANGE)
        assert len(network.blocks) == depth + 2 * 3 - 1
        expected = iterated(law, network.preconditioner, 3, v, T)
        errors.append(relative_norm(network(v, T), expected))
    assert errors[-1] < 1e-9 and errors[1] < errors[0] / 50 and errors[2] < errors[1] / 50


def test_rebuilt_from_its_state_dict_without_a_solver(monkeypatch):
    law = process(mean=True)
    network = build_preconditioned_transformer(law, 4, **RANGE)
    v = noised(law)
    expected, state = network(v, T), {k: w.clone() for k, w in network.state_dict().items()}

    def refuse(*args, **kwargs):
        raise AssertionError("a solver or a transform was called")

    for owner, names in (
        (torch.linalg, ("solve", "inv", "cholesky", "eigh", "eigvalsh", "lstsq", "qr", "svd")),
        (torch.fft, ("fft", "ifft", "rfft", "irfft")),
        (torch, ("cholesky_solve", "inverse", "cholesky", "lu_solve")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(AssertionError, match="a solver or a transform"):
        LagPreconditioner(law)
    blocks = []
    for k in range(8):
        layers = [
            kind(*(state[f"blocks.{k}.{layer}.{name}"] for name in names))
            for kind, layer, names in (
                (Attention, "attention", ("query", "key", "value", "output")),
                (FeedForward, "feed_forward", ("up", "up_bias", "down", "down_bias")),
            )
        ]
        blocks.append(Block(*layers))
    features = PreconditionedFeatures(tuple(state["lift.features.nodes"].tolist()))
    lift = Lift(*(state[f"lift.{name}"] for name in ("frame", "position", "step")), features)
    bare = ScoreTransformer(lift, blocks, state["readout"])
    # bit for bit: the same class computes with copies of the same weights
    assert torch.equal(bare(v, T), expected)
    assert set(bare.state_dict()) == set(state)


def test_it_reaches_as_far_as_its_lags():
    """A step preconditions, then multiplies by the band, but for the last."""
    law = process(40, 1)
    network = build_preconditioned_transformer(law, 3, 4, "bohman", 5, heads="trapezoid", t_min=0.5)
    v = noised(law, 0.5, 1).requires_grad_()
    network(v, 0.5)[0, 19].sum().backward()
    reached = (v.grad[0, :, 0].abs() > 1e-12).nonzero().flatten() - 19
    assert reached.max() == -reached.min() == 3 * (5 - 1) + 2 * (4 - 1)


@pytest.mark.parametrize("device", DEVICES)
def test_precision_follows_the_weights(device):
    law = process()
    double = build_preconditioned_transformer(law, 4, **RANGE)
    single = build_preconditioned_transformer(law, 4, heads="sine", dtype=torch.float32, **RANGE)
    assert single.preconditioner.features.nodes.dtype == torch.float64  # a network has its own
    v = noised(law).float().to(device)
    assert_float32(single.to(device)(v, T), double(v.double().cpu(), T))
    assert single(v, T).dtype == torch.float32


# ---- it is the score -----------------------------------------------------------------------------


@given(
    st.floats(0.5, 1.0), st.floats(1.0, 4.0), st.integers(2, 16), st.integers(1, 3),
    st.floats(0.05, 8.0), st.integers(1, 8), seeds,
)  # fmt: skip
def test_error_is_within_its_bound(exponent, lengthscale, seq_len, dim, t, steps, seed):
    law = process(seq_len, dim, PowerExponential(lengthscale, exponent), seed=seed)
    preconditioner = LagPreconditioner(law, **RANGE)  # convex kernels are covariances on circles
    v = noised(law, t, seed=seed)
    a = system(law, preconditioner, t)
    off = (iterated(law, preconditioner, steps, v, t) - ExactScore(law)(v, t)).flatten(1)
    exact = ExactScore(law)(v, t).flatten(1)
    sizes = [torch.einsum("bi,ij,bj->b", x, a, x).sqrt() for x in (off, exact)]
    assert_at_most((sizes[0] / sizes[1]).max(), preconditioner.convergence_bound(steps))


@given(st.floats(0.5, 1.0), st.floats(1.0, 6.0), st.floats(0.05, 8.0), seeds)
def test_extremes_hold_all_eigenvalues(exponent, lengthscale, t, seed):
    law = process(10, 2, PowerExponential(lengthscale, exponent), seed=seed)
    preconditioner = LagPreconditioner(law, reach=8, **RANGE)
    root = torch.linalg.cholesky(system(law, preconditioner, t))
    values = torch.linalg.eigvalsh(root.T @ preconditioner.matrix(t) @ root)
    low, high = preconditioner.extremes
    assert_at_most(low, values[0])
    assert_at_most(values[-1], high)


# ---- the preconditioner --------------------------------------------------------------------------


def conditional(law, t):
    """Covariance of the noised frames given those that close the circle."""
    size, dim = law.seq_len, law.dim
    values = law.gram()[0]
    index = torch.arange(2 * size - 1)
    around = torch.minimum(index, 2 * size - 1 - index)
    circle = values[around][(index[:, None] - index).abs()]
    eye = torch.eye((2 * size - 1) * dim, dtype=torch.float64)
    whole = alpha(t) ** 2 * torch.kron(circle, law.spatial) + sigma(t) ** 2 * eye
    own, cross, hidden = (
        whole[: size * dim, : size * dim], whole[: size * dim, size * dim :],
        whole[size * dim :, size * dim :],
    )  # fmt: skip
    return own, own - cross @ torch.linalg.solve(hidden, cross.T)


def test_inverse_is_the_covariance_given_the_hidden_frames():
    law = process(9, 2)
    own, given_hidden = conditional(law, T)
    eye = torch.eye(18, dtype=torch.float64)
    assert_identity(own, law.covariance() * alpha(T) ** 2 + sigma(T) ** 2 * eye)
    found = (LagPreconditioner(law, terms=r, **RANGE).matrix(T) for r in (2, 4, 6, 8))
    errors = [relative_norm(inverse @ given_hidden, eye) for inverse in found]
    # each fraction more divides the error by a number: rational approximation
    assert all(later < earlier / 4 for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-3


def test_eigenvalues_are_those_of_canonical_correlations():
    law = process(9, 1)
    own, given_hidden = conditional(law, T)
    preconditioner = LagPreconditioner(law, terms=10, **RANGE)
    root = torch.linalg.cholesky(own)
    values = torch.linalg.eigvalsh(root.T @ preconditioner.matrix(T) @ root)
    # 1 − ρ² are the eigenvalues of A⁻¹ Cov(v | hidden)
    unexplained = torch.linalg.eigvalsh(torch.linalg.solve(root, given_hidden) @ root.inverse().T)
    assert relative_norm(values, (1 / unexplained).flip(0)) < 1e-4
    assert unexplained.max() <= 1 + 1e-12


def test_what_it_leaves_does_not_grow_with_the_length():
    """Only the ends are left: at their canonical correlation, e^{-1/ℓ} for a Markov kernel."""
    ranges = {"t_min": 1e-4, "t_max": 1.0, "terms": 12}
    highs = []
    for size in (32, 64, 128):
        law = GaussianProcess(PowerExponential(4.0), torch.eye(1), seq_len=size)
        highs.append(LagPreconditioner(law, **ranges).extremes[1])
    limit = 1 / (1 - torch.tensor(-2 / 4.0).exp().item())
    assert max(highs) / min(highs) < 1.01 and abs(highs[-1] / limit - 1) < 0.02


def test_blocks_beside_momentum():
    """The network of chapter 4 to the same error: 79 blocks, or 41 where attention multiplies."""
    law = process(32, 2)
    options = {"bandwidth": 20, "taper": "bohman", "t_min": 0.1}
    network = build_preconditioned_transformer(law, 6, reach=8, **options)
    momentum = build_score_transformer(
        law, 38, form="position-once", method="heavy-ball", multiplication="attention",
        heads="shared-knots", **options,
    )  # fmt: skip
    assert len(network.blocks) == 12 and len(momentum.blocks) == 41
    assert network.preconditioner.convergence_bound(6) < 3e-4


# ---- refusals ------------------------------------------------------------------------------------


def test_refusals():
    law = process()
    with pytest.raises(ValueError, match=r"reach must lie in 1\.\.12.*got 13"):
        LagPreconditioner(law, reach=13)
    with pytest.raises(ValueError, match="terms must be"):
        LagPreconditioner(law, terms=0)
    with pytest.raises(ValueError, match="t_min"):
        LagPreconditioner(law, t_min=2.0, t_max=1.0)
    with pytest.raises(ValueError, match="multiplication_depth"):
        build_preconditioned_transformer(law, 2, multiplication_depth=0)
    with pytest.raises(ValueError, match="heads must be one of"):
        build_preconditioned_transformer(law, 2, heads="cosine")
    with pytest.raises(ValueError, match="steps must be"):
        build_preconditioned_transformer(law, 0)
    drifting = GaussianProcess(random_covariance(12, generator=seeded(1)), torch.eye(2))
    with pytest.raises(ValueError, match="must be stationary"):
        build_preconditioned_transformer(drifting, 2)


def test_what_is_no_preconditioner_is_refused():
    smooth = process(64, 1, PowerExponential(4.0, 2.0))
    with pytest.raises(NotPSDError, match=r"sum over 6 lags is no preconditioner.*larger reach"):
        LagPreconditioner(smooth, reach=6, t_min=0.01)
    assert LagPreconditioner(smooth, t_min=0.01).extremes[0] > 0.5
    # a smooth kernel that has not decayed half way round is no covariance there
    slow = process(12, 1, PowerExponential(8.0, 2.0))
    with pytest.raises(NotPSDError, match=r"circle of 23 frames.*t_min above (\d\.\d+)") as found:
        LagPreconditioner(slow, t_min=0.01)
    enough = float(str(found.value).split("t_min above ")[1].split(",")[0])
    assert LagPreconditioner(slow, t_min=1.1 * enough, terms=8).extremes[0] > 0
    with pytest.raises(NotPSDError):
        LagPreconditioner(slow, t_min=0.9 * enough, terms=8)


def test_one_fraction_alone_stands_in_the_middle():
    law = process()
    one, four = (LagPreconditioner(law, terms=r, **RANGE).features.nodes for r in (1, 4))
    assert_identity(one[0], (four[0] * four[-1]).sqrt())
