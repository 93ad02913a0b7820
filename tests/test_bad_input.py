"""Integers, complex numbers, NaN, two devices: one error each, which says what was given.

The rules. *Sequences* are floating point; a *covariance*, a mean, a basis, a map or a lag may be of
integers, which are exact. Complex numbers and truth values are refused. What is read anyway (a
measurement, a law, training data) refuses NaN; what stands inside a sampler does not look, and NaN
in is NaN out. A law, a score or a metric follows the device of its argument; tensors that stand
side by side (queries, keys and values) must be on one. The device meta stands for the other one.
"""

from __future__ import annotations

import math

import pytest
import torch
from strategies import seeded

from gptheory.diffusion import perturb
from gptheory.gaussians import gaussian_kl, gaussian_tv_bounds, gaussian_w2
from gptheory.kernels import Matern, PowerExponential, taper, toeplitz, truncate
from gptheory.latent import SubspaceData, subspace_error
from gptheory.latent_metrics import sliced_distance
from gptheory.maps import contrast, denoising_operator, explained, lag_profile, mean_lag
from gptheory.maps import off_diagonal_correlation as off_diagonal
from gptheory.matching import matching_loss
from gptheory.metrics import relative_error, spatial_covariance, temporal_covariance
from gptheory.mixture import GaussianMixture, random_mixture
from gptheory.polyattention import (
    attention_gradient,
    exact_attention_gradient,
    poly_attention,
)
from gptheory.process import GaussianProcess
from gptheory.score import ExactScore, denoise
from gptheory.structured import WienerScore, kronecker_mle, toeplitz_moments
from gptheory.train import TrainConfig, fit
from gptheory.unet import FrameMLP
from gptheory.unroll import UnrolledScore
from gptheory.video import GaussianTwin

EYE = torch.eye(2, dtype=torch.float64)
X = torch.randn(40, 4, 2, generator=seeded(0))
LAW = GaussianProcess(torch.eye(4), EYE)
SCORE = ExactScore(LAW)
UNREAL = {"complex": torch.complex64, "bool": torch.bool}


def network():
    return FrameMLP(2, 4, generator=seeded(0))


IN_A_SAMPLER = {
    "score": lambda x: SCORE(x, 0.5),
    "unrolled": lambda x: UnrolledScore(LAW, 3)(x, 0.5),
    "mixture's score": lambda x: random_mixture(4, 2, generator=seeded(0)).score(x, 0.5),
    "denoise": lambda x: denoise(SCORE, x, 0.5),
    "perturb": lambda x: perturb(x, 0.5)[0],
    "network": lambda x: network()(x, 0.5),
    "matching loss": lambda x: matching_loss(SCORE, x, torch.full((40,), 0.5)),
}
MEASURED = {
    "log_prob": LAW.log_prob,
    "wiener": WienerScore,
    "kronecker": kronecker_mle,
    "toeplitz": toeplitz_moments,
    "temporal": temporal_covariance,
    "spatial": spatial_covariance,
    "sliced, x": lambda x: sliced_distance(x, X),
    "sliced, y": lambda x: sliced_distance(X, x),
    "means": lambda x: GaussianMixture(x, torch.eye(8)),
    "twin": GaussianTwin,
    "fit": lambda x: fit(network(), x, TrainConfig(steps=1)),
}
SEQUENCES = IN_A_SAMPLER | MEASURED
REAL = {
    "temporal": lambda c: GaussianProcess(c, EYE),
    "spatial": lambda c: GaussianProcess(EYE, c),
    "mean": lambda c: GaussianProcess(EYE, EYE, c),
    "mean of metrics": lambda c: temporal_covariance(X[:, :2], c),
    "cov_p": lambda c: gaussian_kl(c, EYE),
    "cov_q": lambda c: gaussian_w2(EYE, c),
    "cov_q of bounds": lambda c: gaussian_tv_bounds(EYE, c),
    "mean_q": lambda c: gaussian_kl(EYE, EYE, None, c[0]),
    "component": lambda c: GaussianMixture(torch.zeros(2, 1, 2), c),
    "weights": lambda c: GaussianMixture(torch.zeros(2, 1, 2), EYE, c[0]),
    "truncate": lambda c: truncate(c, 1),
    "taper": lambda c: taper(c, 1),
    "basis": lambda c: SubspaceData(c, GaussianProcess(torch.eye(1), EYE)),
    "subspaces": lambda c: subspace_error(c, EYE),
    "estimate": lambda c: relative_error(c, EYE),
    "truth": lambda c: relative_error(EYE, c),
}
NEVER_READ = {
    "toeplitz": lambda c: toeplitz(c[0]),
    "lag": PowerExponential(3.0, 1.0),
    "lag of Matern": Matern(3.0, 1.5),
    "mean lag": mean_lag,
    "contrast": contrast,
    "profile": lag_profile,
    "off the diagonal": lambda c: off_diagonal(c, torch.eye(2)),
    "explained": lambda c: explained(torch.tensor([[1.0, 2], [3, 5]]), c[None]),
    "operator": lambda c: denoising_operator(c, 0.5),
}


@pytest.mark.parametrize("call", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_sequences_are_floating_point(call, dtype):
    with pytest.raises(ValueError, match=rf"(floating|real).* got a tensor of {dtype}"):
        call(torch.ones(40, 4, 2).to(dtype))


@pytest.mark.parametrize("call", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_are_tensors(call):
    with pytest.raises(ValueError, match=r"must be .*tensor.* got (list|ndarray)"):
        call(X.numpy())


@pytest.mark.parametrize("call", MEASURED.values(), ids=MEASURED)
def test_what_is_measured_is_finite_and_there(call):
    with pytest.raises(ValueError, match=r"must be finite, got 1 NaN"):
        call(X.masked_fill(torch.arange(320).view(X.shape) == 7, math.nan))
    with pytest.raises(ValueError, match="must have values, got a tensor on the device meta"):
        call(X.to("meta"))


@pytest.mark.parametrize("call", IN_A_SAMPLER.values(), ids=IN_A_SAMPLER)
def test_nan_in_a_sampler_is_nan_afterwards(call):
    assert call(X * math.nan).isnan().any()


@pytest.mark.parametrize("call", (REAL | NEVER_READ).values(), ids=REAL | NEVER_READ)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
def test_matrices_are_real(call, dtype):
    with pytest.raises(ValueError, match=rf"must be .*real numbers, got a tensor of {dtype}"):
        call(EYE.to(dtype))


@pytest.mark.parametrize("call", (REAL | NEVER_READ).values(), ids=REAL | NEVER_READ)
def test_matrices_of_integers_are_exact(call):
    call(EYE.long())


@pytest.mark.parametrize("call", REAL.values(), ids=REAL)
def test_matrices_have_values(call):
    with pytest.raises(ValueError, match="must have values, got a tensor on the device meta"):
        call(EYE.to("meta"))


@pytest.mark.parametrize("given", ["a word", [["a"]], [[True]], [[1j]], None])
def test_numbers_of_python_are_real(given):
    for call in (lambda: GaussianProcess(EYE, given), lambda: gaussian_kl(given, EYE)):
        with pytest.raises(ValueError, match=r"must be real numbers, got (str|list|NoneType)"):
            call()
    assert GaussianProcess(torch.eye(1), [[1.0, 0.1], [0.1, 1]]).spatial[0, 1].item() == 0.1


@pytest.mark.parametrize("step", [math.nan, -1.0, "soon", 1j, None, torch.tensor(1j)])
def test_steps_are_numbers_above_zero(step):
    for call in (lambda: perturb(X, step), lambda: SCORE(X, step)):
        with pytest.raises(ValueError, match="diffusion step t must be"):
            call()
    with pytest.raises(ValueError, match="every diffusion step t must be finite and > 0, got nan"):
        perturb(X, torch.tensor([0.5] * 39 + [math.nan]))


# ---- tensors that stand side by side ------------------------------------------------------------


def attention_inputs():
    return {name: torch.rand(60, 2, generator=seeded(k)) for k, name in enumerate("qkv")}


def gradient_inputs():
    names = {"left": 60, "right": 60, "weight": 2, "values": 60, "target": 60}
    return {name: torch.rand(n, 2, generator=seeded(n)) for name, n in names.items()}


SIDE_BY_SIDE = {
    "poly_attention": (lambda **x: poly_attention(**x, degree=2, radius=4.0), attention_inputs),
    "gradient": (lambda **x: attention_gradient(*x.values(), degree=2), gradient_inputs),
    "exact gradient": (lambda **x: exact_attention_gradient(*x.values()), gradient_inputs),
}


@pytest.mark.parametrize(("call", "inputs"), SIDE_BY_SIDE.values(), ids=SIDE_BY_SIDE)
def test_attention_names_both_sides(call, inputs):
    for name, good in inputs().items():
        for other, said in (
            (good.to("meta"), r"must have one device, got .*meta"),
            (good.double(), r"must have one dtype, got .*float64"),
            (good.long(), r"must be floating-point tensors, got .*int64"),
            (good.to(torch.complex64), r"must be floating-point tensors, got .*complex64"),
            (good.tolist(), r"must be floating-point tensors, got .*list"),
        ):
            with pytest.raises(ValueError, match=said) as raised:
                call(**{**inputs(), name: other})
            assert all(each in str(raised.value) for each in inputs())


def test_laws_follow_their_argument():
    half = X.to(torch.bfloat16)
    assert SCORE(half, 0.5).dtype == torch.bfloat16 and SCORE(X.to("meta"), 0.5).is_meta
    # numbers of one law may come from two devices; the law is where Σ is
    assert GaussianProcess(torch.eye(4), EYE, torch.zeros(2)).mean.device == EYE.device
