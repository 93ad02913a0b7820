"""What callers wrap around the package: inference mode, default devices, ``torch.compile``."""

from __future__ import annotations

import pytest
import torch
from settings import default_device, default_dtype
from strategies import seeded

from gptheory.attention import (
    attention_gradient,
    embedding_distance,
    poly_attention,
    rank_exponent,
    time_embedding,
    uniform_inputs,
)
from gptheory.construction import build_score_transformer
from gptheory.data import (
    Ball,
    GaussianMixture,
    GaussianProcess,
    GaussianTwin,
    LatentMap,
    PowerExponential,
    decaying_process,
    gram,
    kronecker_mle,
    random_covariance,
    random_mixture,
    taper,
    toeplitz_moments,
    truncate,
    uniform_paths,
)
from gptheory.data.digits import Digits
from gptheory.diffusion import (
    ExactScore,
    UnrolledScore,
    WienerScore,
    denoise,
    denoiser_jacobian,
    denoising_operator,
    exact_jacobian,
    sample,
    stratified_steps,
)
from gptheory.latent import SubspaceData, principal_angles, random_basis, support_errors
from gptheory.latent.errors import sliced_distance
from gptheory.measures import (
    coupled_ode_error,
    gaussian_kl,
    gaussian_w2,
    motion_floor,
    path_kl,
    sampling_error,
    sampling_floor,
    score_error,
    spatial_covariance,
    temporal_covariance,
)
from gptheory.measures.gaussians import gaussian_tv_bounds
from gptheory.networks import DiT, LearnedSteps, UNet1d
from gptheory.networks.baselines import FrameMLP
from gptheory.networks.learned import LearnedCovariance
from gptheory.probing.maps import explained
from gptheory.support.validation import require_symmetric
from gptheory.training import TrainConfig, fit
from gptheory.training.objective import matching_steps

CPU = torch.device("cpu")


# ---- inference mode first, a gradient afterwards ------------------------------------------------

KERNEL = PowerExponential(2.0)
TRAINING = TrainConfig(steps=4, batch_size=4, log_every=4, evaluate_n=8, evaluate_at=(0.1,))


def small_dit() -> DiT:
    return DiT(2, 6, 8, 2, 1, generator=seeded(0))


SEQUENCES = decaying_process(6, 2).sample(40, seeded(9), torch.float64)


def of_kernel(seq_len: int = 6) -> GaussianProcess:
    return GaussianProcess(KERNEL, torch.eye(2, dtype=torch.float64), seq_len=seq_len)


def given_mixture() -> GaussianMixture:
    """Of tensors that are kept as they are given, where nobody copies them."""
    means = torch.ones(2, 3, 4, dtype=torch.float64)
    return GaussianMixture(means, torch.eye(12, dtype=torch.float64))


def given_subspace() -> SubspaceData:
    basis = torch.eye(12, dtype=torch.float64)[:, :4]
    return SubspaceData(basis, random_mixture(2, 2, generator=seeded(1)))


def attention(x: torch.Tensor) -> torch.Tensor:
    return poly_attention(*[x.flatten(0, 1) / 4] * 3, 2)


# what is kept -> how it is made, and what is done with it, twice
CACHES = {
    "exact": (lambda: ExactScore(decaying_process(6, 2)), lambda s, x: s(x, 0.3)),
    "exact, of a kernel": (lambda: ExactScore(of_kernel()), lambda s, x: s(x, 0.3)),
    "density": (of_kernel, lambda law, x: law.log_prob(x)),
    "unrolled": (lambda: UnrolledScore(of_kernel(), 3), lambda s, x: s(x, 0.3)),
    "iterates": (lambda: UnrolledScore(of_kernel(), 3), lambda s, x: list(s.iterates(x, 0.3))[-1]),
    "limit": (lambda: UnrolledScore(of_kernel(), 3, 2), lambda s, x: s.limit(x, 0.3)),
    "wiener": (lambda: WienerScore(SEQUENCES), lambda s, x: s(x, 0.3)),
    "kronecker": (lambda: ExactScore(kronecker_mle(SEQUENCES)), lambda s, x: s(x, 0.3)),
    "stationary": (lambda: ExactScore(toeplitz_moments(SEQUENCES)), lambda s, x: s(x, 0.3)),
    "mixture": (given_mixture, lambda m, x: ExactScore(m)(x.view(-1, 3, 4), x.mean((1, 2)).exp())),
    "subspace": (given_subspace, lambda d, x: ExactScore(d)(x.view(-1, 1, 12), 0.3)),
    "constructed": (
        lambda: build_score_transformer(decaying_process(6, 2), 2),
        lambda network, x: network(x, 0.3),
    ),
    "samples": (of_kernel, lambda law, x: x * law.sample(len(x), seeded(1), x.dtype)),
    "long samples": (lambda: of_kernel(768), lambda law, x: x[0, 0, 0] * law.sample(1, seeded(1))),
    "attention": (lambda: None, lambda _, x: attention(x)),
    "latent map": (
        lambda: LatentMap.fit(SEQUENCES.view(-1, 2, 2), 3),
        lambda m, x: m.decode(m.encode(x.view(-1, 2, 2))),
    ),
    "twin": (lambda: GaussianTwin(SEQUENCES), lambda g, x: x[0, 0] * g.sample(1, seeded(1))),
    "digits": (
        lambda: Digits(torch.ones(2, 3, 3), torch.arange(2), 9),
        lambda d, x: d.render(x.clamp(-0.5, 0.5), torch.zeros(len(x), dtype=torch.int64)),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize(("make", "use"), CACHES.values(), ids=CACHES)
def test_what_inference_mode_asked_for_first_passes_gradients_later(make, use, made_inside, dtype):
    kept, x = make(), SEQUENCES[:3].to(dtype)
    with torch.inference_mode():
        kept = make() if made_inside else kept
        first = use(kept, x)
    assert first.is_inference()
    leaf = x.clone().requires_grad_()
    later = use(kept, leaf)
    later.square().sum().backward()
    assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0
    assert torch.equal(later.detach(), first)


def test_networks_asked_in_inference_mode_first_are_trained_later():
    network, v = small_dit(), SEQUENCES[:3].float()
    with torch.inference_mode():
        network(v, 0.3)
    network(v, 0.3).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


# ---- default devices ----------------------------------------------------------------------------


ELSEWHERE = {"with": lambda: torch.device("meta"), "default": lambda: default_device("meta")}

V, T = decaying_process(6, 2).sample(4, seeded(3)), torch.tensor([0.1, 0.2, 0.5, 1.0]).double()
LAW = decaying_process(6, 2)
Q, K, H = uniform_inputs(64, 3)
# functions of numbers, generators and tensors of the CPU: all that they make belongs there
LAWS = {
    "process of a kernel": lambda: of_kernel_with(LAW.spatial).sample(2, seeded(1)),
    "process of a matrix": lambda: GaussianProcess(LAW.gram(), LAW.spatial, [0.5, 1.0]).mean,
    "long process": lambda: GaussianProcess(KERNEL, LAW.spatial, seq_len=800).sample(1, seeded(1)),
    "decaying process": lambda: decaying_process(5, 3).sample(2, seeded(1)),
    "density": lambda: LAW.log_prob(V),
    "covariance": lambda: LAW.covariance(),
    "kernel of a number": lambda: KERNEL(3),
    "gram": lambda: gram(KERNEL, 4),
    "taper": lambda: taper(LAW.gram(), 3),
    "truncate": lambda: truncate(LAW.gram(), 3),
    "embedding": lambda: time_embedding(4, 8.0),
    "embedding distance": lambda: embedding_distance(2, 8.0),
    "random covariance": lambda: random_covariance(3, generator=seeded(1)),
    "symmetric": lambda: require_symmetric("list", [[1.0, 0.1], [0.1, 1.0]]),
    "stratified": lambda: stratified_steps(4, 0.1, 1.0, seeded(1)),
    "times": lambda: matching_steps(4, "normal", 0.1, 1.0, seeded(1)),
    "exact": lambda: ExactScore(LAW)(V, 0.3),
    "exact, steps": lambda: ExactScore(LAW)(V, T),
    "denoised": lambda: denoise(ExactScore(LAW), V, T),
    "unrolled": lambda: UnrolledScore(LAW, 3, 4, "bohman")(V, T),
    "iterates": lambda: list(UnrolledScore(LAW, 3, method="chebyshev").iterates(V, 0.3))[-1],
    "bounds": lambda: UnrolledScore(LAW, 3, 4, "bohman").truncation_error(0.5),
    "wiener": lambda: WienerScore(SEQUENCES)(V, 0.3),
    "kronecker": lambda: kronecker_mle(SEQUENCES).covariance(),
    "stationary": lambda: toeplitz_moments(SEQUENCES).covariance(),
    "mixture": lambda: random_mixture(2, 3, generator=seeded(1)).covariance(),
    "mixture's score": lambda: ExactScore(random_mixture(3, 4, generator=seeded(1)))(
        V.view(-1, 3, 4), 1
    ),
    "basis": lambda: random_basis(5, 2, seeded(1)),
    "subspace": lambda: principal_angles(
        random_basis(5, 2, seeded(1)), random_basis(5, 2, seeded(2))
    ),
    "subspace's score": lambda: ExactScore(SUBSPACE)(V.view(-1, 1, 12), 0.3),
    "support errors": lambda: support_errors(
        ExactScore(SUBSPACE), SUBSPACE, 8, generator=seeded(1)
    )["on"],
    "sliced": lambda: sliced_distance(V, V + 1, generator=seeded(1)),
    "samples": lambda: sample(ExactScore(LAW), 2, 6, 2, steps=3, generator=seeded(1)),
    "sde": lambda: sample(ExactScore(LAW), 2, 6, 2, "sde", steps=3, generator=seeded(1)),
    "temporal": lambda: temporal_covariance(V),
    "spatial": lambda: spatial_covariance(V, torch.zeros(2, device="cpu")),
    "score error": lambda: score_error(UnrolledScore(LAW, 2), LAW, 0.1, 8, seeded(1)),
    "path": lambda: path_kl(UnrolledScore(LAW, 2), LAW, n=8, generator=seeded(1)),
    "coupled": lambda: coupled_ode_error(UnrolledScore(LAW, 2), LAW, n=2, steps=3),
    "floor": lambda: sampling_floor(LAW, 8),
    "propagated": lambda: sampling_error(LAW, steps=3, method="sde").sampled,
    "kl": lambda: gaussian_kl(LAW.spatial, LAW.spatial * 2),
    "w2": lambda: gaussian_w2(LAW.spatial, LAW.spatial * 2),
    "tv": lambda: gaussian_tv_bounds(LAW.spatial, LAW.spatial * 2)[1],
    "attention": lambda: poly_attention(Q, K, H, 3, radius=1.25),
    "gradient": lambda: attention_gradient(Q, K, LAW.gram()[:3, :3].float(), H, Q, 3),
    "rank": lambda: rank_exponent(1.0, 10.0),
    "operator": lambda: denoising_operator(LAW.gram(), 0.3),
    "jacobian": lambda: denoiser_jacobian(ExactScore(LAW), V[:1], 0.3),
    "exact jacobian": lambda: exact_jacobian(LAW, 0.3),
    "explained": lambda: explained(LAW.gram(), LAW.gram()[None]),
    "constructed": lambda: build_score_transformer(LAW, 2)(V, 0.3),
    "constructed, sine": lambda: build_score_transformer(
        LAW, 2, heads="sine", form="position-once", multiplication="attention"
    )(V, T),
    "paths": lambda: uniform_paths(KERNEL, 2, 4, 1.0, seeded(1)),
    "ball": lambda: Ball().locate(Ball().render(V)).centres,
    "digits": lambda: DIGITS.locate(DIGITS.render(V.clamp(-0.5, 0.5), WHICH))[0],
    "motion": lambda: motion_floor(KERNEL, 4, 4, 2).jump,
}
DIGITS = Digits(torch.rand(2, 3, 3, generator=seeded(5)), torch.arange(2), 9)
WHICH = torch.zeros(4, dtype=torch.int64)
SUBSPACE = given_subspace()


def of_kernel_with(spatial: torch.Tensor) -> GaussianProcess:
    return GaussianProcess(KERNEL, spatial, seq_len=6)


@pytest.mark.parametrize("context", ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("function", LAWS.values(), ids=LAWS)
def test_laws_and_exact_objects_ignore_the_default_device(function, context):
    plain = function()
    with context():
        found = function()
    if not isinstance(plain, torch.Tensor):
        assert found == plain
        return
    assert found.device == CPU
    assert torch.equal(found.detach(), plain.detach())


NETWORKS_BUILT = {
    "DiT": small_dit,
    "UNet1d": lambda: UNet1d(2, 6, 8, generator=seeded(0)),
    "FrameMLP": lambda: FrameMLP(2, hidden=8, generator=seeded(0)),
    "LearnedCovariance": lambda: LearnedCovariance(2, 6, generator=seeded(0)),
    "LearnedSteps": lambda: LearnedSteps(LAW, 2, generator=seeded(0)),
}


@pytest.mark.parametrize("build", NETWORKS_BUILT.values(), ids=NETWORKS_BUILT)
def test_networks_follow_torchs_defaults_as_its_modules_do(build):
    with default_device("meta"):
        network = build()
    assert {weight.device.type for weight in network.parameters()} == {"meta"}
    with default_dtype(torch.float64):
        network = build()
        assert {weight.dtype for weight in network.parameters()} == {torch.float64}
    assert network(V, 0.3).dtype == V.dtype
    with default_device("meta"):  # and compute where they are
        assert network(V, 0.3).device == network(V, T).device == CPU


def test_training_and_checkpoints_ignore_the_default_device(tmp_path):
    def run(name: str) -> torch.nn.Module:
        return fit(small_dit(), LAW, TRAINING, checkpoint=tmp_path / name, checkpoint_every=2).model

    plain = run("plain")
    network = small_dit()
    with default_device("meta"):
        found = fit(network, LAW, TRAINING, checkpoint=tmp_path / "there").model
        loaded = fit(network, LAW, TRAINING, checkpoint=tmp_path / "there").model
    for each in (found, loaded):
        for a, b in zip(plain.parameters(), each.parameters(), strict=True):
            assert torch.equal(a, b)
