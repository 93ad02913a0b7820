"""Data on a subspace: the decomposition of their score, the network with an encoder, geometry."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import covariance, diffusion_steps, seeded, seeds
from tolerances import assert_float32, assert_identity, assert_statistical, relative_norm

from gptheory.data import GaussianProcess, decaying_process, random_mixture
from gptheory.diffusion import ExactScore, alpha, perturb, sigma
from gptheory.latent import (
    LatentScore,
    SubspaceData,
    expected_pca_error,
    principal_angles,
    principal_subspace,
    random_basis,
    subspace_error,
    support_errors,
)
from gptheory.latent.networks import FullScore
from gptheory.latent.subspace import smoothed
from gptheory.networks import DiT
from gptheory.networks.baselines import FrameMLP
from gptheory.support.rounding import gamma
from gptheory.training import TrainConfig, fit, matching_loss
from gptheory.training.loop import Training

LAWS = {
    "gaussian": lambda: GaussianProcess(torch.eye(1), covariance(4), torch.ones(4)),
    "mixture": lambda: random_mixture(2, 2, 3, generator=seeded(1)),
    "sequence": lambda: decaying_process(2, 2),
}


def data(law: str = "mixture", ambient_dim: int = 9, seed: int = 0, noise: float = 0.0):
    """Four latent dimensions in nine."""
    return SubspaceData(random_basis(ambient_dim, 4, seeded(seed)), LAWS[law](), noise)


def log_density(own: SubspaceData, v: torch.Tensor, t: float) -> torch.Tensor:
    """Of v_t in the ambient space, by torch.distributions, no subspace in sight."""
    law, eye = own.latent, torch.eye(own.dim, dtype=torch.float64)
    if isinstance(law, GaussianProcess):
        means, covariances = law.mean.reshape(1, -1), law.covariance()[None]
        weights = torch.ones(1, dtype=torch.float64)
    else:
        means, weights = law.means, law.weights
        covariances = (law._axes * law._variances[:, None]) @ law._axes.mT
    b = own.basis
    noised = alpha(t) ** 2 * (b @ covariances @ b.T + own.noise**2 * eye) + sigma(t) ** 2 * eye
    normal = torch.distributions.MultivariateNormal(alpha(t) * means @ b.T, noised)
    mixture = torch.distributions.Categorical(weights)
    return torch.distributions.MixtureSameFamily(mixture, normal).log_prob(v.flatten(1))


# ---- the decomposition --------------------------------------------------------------------------


@pytest.mark.statement("HWLSL Lemma 2.1")
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("law", LAWS)
@given(st.floats(0.02, 4.0), seeds)
def test_score_is_the_gradient_of_the_ambient_log_density(law, noise, t, seed):
    own = data(law, seed=seed, noise=noise)
    x = own.sample(4, seeded(seed), torch.float64)
    v = perturb(x, t, seeded(seed + 1))[0].requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(own, v, t).sum(), v)
    assert relative_norm(ExactScore(own)(v.detach(), t), gradient) <= 1e-11


@pytest.mark.statement("HWLSL Lemma 2.1")
@given(diffusion_steps, seeds)
def test_parts_of_the_score(t, seed):
    """Bᵀs is the score of the latent; the rest is −(I − BBᵀ)v/σ², whatever the law."""
    own = data(seed=seed)
    v = torch.randn(3, 1, 9, generator=seeded(seed), dtype=torch.float64)
    score = ExactScore(own)(v, t)
    assert_identity(own.encode(score), ExactScore(own.latent)(own.encode(v), t))
    assert_identity(own.split(score)[1], -own.split(v)[1] / sigma(t) ** 2)


@pytest.mark.statement("HWLSL Assumption 2.1")
@pytest.mark.parametrize("law", LAWS)
def test_samples_lie_on_the_subspace(law):
    own = data(law)
    x = own.sample(50, seeded(0), torch.float64)
    on, off = own.split(x)
    assert x.shape == (50, 1, 9) and off.abs().max() < 1e-14
    assert_identity(own.decode(own.encode(x)), x)
    assert_identity(own.encode(on), own.latent.sample(50, seeded(0), torch.float64))


def test_noise_fills_the_space():
    own, n = data(noise=0.5), 20_000
    off = own.split(own.sample(n, seeded(0), torch.float64))[1]
    energy = off.square().sum() / (5 * n)
    assert_statistical(energy, 0.25, 0.25 * math.sqrt(2 / (5 * n)), n)


@given(diffusion_steps, st.floats(0.05, 2.0), seeds)
def test_smoothed_score_of_a_gaussian(t, noise, seed):
    """Gaussian plus white noise is a Gaussian with a larger covariance."""
    spatial = covariance(3, seed)
    clean = GaussianProcess(torch.eye(1), spatial, torch.ones(3))
    noisy = GaussianProcess(torch.eye(1), spatial + noise**2 * torch.eye(3).double(), torch.ones(3))
    v = torch.randn(4, 1, 3, generator=seeded(seed), dtype=torch.float64)
    steps = torch.full((4,), t, dtype=torch.float64)
    for step in (t, steps, torch.tensor(2)):
        found = smoothed(ExactScore(clean), noise)(v, step)
        assert_identity(found, ExactScore(noisy)(v, step), condition=10)


def test_parts_keep_the_dtype_of_the_input():
    v = torch.randn(3, 1, 9, generator=seeded(0))
    assert {part.dtype for part in data().split(v)} == {torch.float32}


# ---- the network --------------------------------------------------------------------------------


class Exact(torch.nn.Module):
    """The exact latent score in the shape of a network with other tokens."""

    def __init__(self, own: SubspaceData, tokens: int) -> None:
        super().__init__()
        self.own, self.dim, self.seq_len = own, own.latent_dim // tokens, tokens

    def forward(self, v, t):
        latent = v.reshape(len(v), self.own.latent.seq_len, self.own.latent.dim)
        return ExactScore(self.own.latent)(latent, t).reshape_as(v)


def network(tokens: int = 2, dim: int = 2, seed: int = 0, **options) -> DiT:
    return DiT(dim, tokens, 16, 2, 1, generator=seeded(seed), **options)


@pytest.mark.statement("HWLSL Definition 3.3", "HWLSL Definition 3.1", "HWLSL Fig. 1")
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_with_the_true_encoder_and_latent_score_it_is_exact(tokens):
    own = data()
    model = LatentScore(9, 4, Exact(own, tokens)).double()
    with torch.no_grad():
        model.free.copy_(own.basis)
    v = torch.randn(6, 1, 9, generator=seeded(0), dtype=torch.float64)
    t = torch.linspace(0.02, 4, 6, dtype=torch.float64)
    # the encoder is the basis up to signs; its span and the exact inside are what counts
    assert subspace_error(model.encoder.detach(), own.basis) < 1e-20
    signs = (model.encoder.T @ own.basis).diagonal()
    assert (signs > 0.5).all()
    assert_identity(model(v, t).detach(), ExactScore(own)(v, t))


@pytest.mark.statement("HWLSL Definition 3.3")
def test_the_form_of_the_paper_and_its_loss():
    """s = (W f(Wᵀv) − v)/σ², and with weight σ² the loss is that of predicting α x."""
    model = LatentScore(9, 4, network(), seeded(1)).double()
    with torch.no_grad():
        model.network.readout.weight.normal_(generator=seeded(2))
    own = data()
    x = own.sample(16, seeded(3), torch.float64)
    t = torch.linspace(0.02, 4, 16, dtype=torch.float64)
    v, _ = perturb(x, t, seeded(4))
    variance = (sigma(t) ** 2)[:, None, None]
    encoder, latent = model.encoder, (v @ model.encoder).view(16, 2, 2)
    f = (latent + variance * model.network(latent, t)).reshape(16, 1, 4)
    assert_identity(model(v, t).detach(), ((f @ encoder.T - v) / variance).detach())
    residual = f @ encoder.T - alpha(t)[:, None, None] * x
    expected = (residual.square() / variance).mean()
    assert_identity(matching_loss(model, x, t, seeded(4), "noise").item(), expected.item())


def test_untrained_it_is_the_score_of_noise_on_the_subspace():
    model = LatentScore(9, 4, network(), seeded(1))
    v = torch.randn(5, 1, 9, generator=seeded(0))
    white = GaussianProcess(torch.eye(1), torch.eye(4))
    expected = ExactScore(SubspaceData(model.encoder.detach(), white))(v, 0.3)
    assert_float32(model(v, 0.3).detach(), expected)


def test_encoder_is_orthonormal_throughout_training():
    own = data()
    config = TrainConfig(steps=30, batch_size=16, learning_rate=1e-2, t_min=0.02, t_max=4.0)
    model = LatentScore(9, 4, network(), seeded(1))
    start = model.encoder.detach()
    training = Training(model, own.sample(100, seeded(0)), config)
    for _ in training:
        for each in (model, training.average):
            defect = each.encoder.T @ each.encoder - torch.eye(4)
            assert defect.abs().max() <= 1e-5
    assert subspace_error(model.encoder.detach(), start) > 0.1  # and it turns


def test_encoder_is_continuous_where_lapack_changes_signs():
    model = LatentScore(4, 2, network(1), seeded(0)).double()
    encoders = []
    for corner in (-1e-9, 1e-9):  # Householder's reflection turns with the sign of this entry
        with torch.no_grad():
            model.free[0, 0] = corner
        encoders.append(model.encoder.detach())
    # ‖ΔQ‖ <= √2 ‖ΔA‖ ‖A⁺‖ to first order (Stewart 1977); then rounding, γ_8n as of a spectrum
    smallest = torch.linalg.svdvals(model.free.detach())[-1].item()
    allowed = math.sqrt(2) * 2e-9 / smallest + gamma(8 * 4) / smallest
    assert (encoders[0] - encoders[1]).norm() <= allowed
    bare = [torch.linalg.qr(e).Q for e in encoders]
    assert (bare[0] - bare[1]).abs().max() > 0.1  # the test would notice


def test_encoder_ignores_the_scale_of_its_weights():
    small, large = (LatentScore(9, 4, network(), seeded(1), scale) for scale in (1e-3, 10.0))
    assert_float32(small.encoder.detach(), large.encoder.detach())


@pytest.mark.statement("HWLSL Theorem 3.2")
def test_training_at_the_bar():
    """D = 64, d_0 = 8, 400 steps: total error at most .2, subspace error at most .02."""
    generator = seeded(3)
    own = SubspaceData(random_basis(64, 8, generator), random_mixture(4, 2, generator=generator))
    model = LatentScore(64, 8, DiT(2, 4, 32, 2, 1, generator=generator), generator)
    assert subspace_error(model.encoder.detach(), own.basis) > 10
    config = TrainConfig(steps=400, batch_size=64, learning_rate=1e-2, t_min=0.02, t_max=4.0)
    trained = fit(model, own.sample(2**14, generator), config).model
    errors = support_errors(trained, own, generator=seeded(0))
    print(errors)
    assert errors["on"] + errors["off"] <= 0.2
    encoder = trained.encoder.detach()
    assert subspace_error(encoder, own.basis) <= 0.02
    permuted = own.basis[torch.randperm(64, generator=generator)]
    assert subspace_error(encoder, permuted) > 10


def test_known_noise_of_the_data():
    own = data(noise=0.4)
    clean = LatentScore(9, 4, Exact(data(), 2)).double()
    model = LatentScore(9, 4, Exact(data(), 2), noise=0.4).double()
    for each in (clean, model):
        with torch.no_grad():
            each.free.copy_(own.basis)
    v = torch.randn(6, 1, 9, generator=seeded(0), dtype=torch.float64)
    t = torch.linspace(0.02, 4, 6, dtype=torch.float64)
    assert_identity(model(v, t).detach(), ExactScore(own)(v, t))
    assert relative_norm(clean(v, t).detach(), ExactScore(own)(v, t)) > 0.1


def test_rival_without_an_encoder():
    v = torch.randn(5, 1, 12, generator=seeded(0), dtype=torch.float64)
    inside = network(3, 4).double()
    skip, plain = FullScore(inside), FullScore(inside, skip=False)
    assert_identity(skip(v, 0.3).detach(), -v / sigma(0.3) ** 2)  # untrained: F = 0
    assert_identity(plain(v, 0.3).detach(), -v)
    with torch.no_grad():
        inside.readout.weight.normal_(generator=seeded(2))
    # the two read the same F: α F = σ² s + v, and (α/σ) F = s + v
    from_skip = (sigma(0.3) ** 2 * skip(v, 0.3) + v) / alpha(0.3)
    from_plain = (plain(v, 0.3) + v) * sigma(0.3) / alpha(0.3)
    assert_identity(from_skip.detach(), from_plain.detach(), condition=10)
    assert from_plain.abs().max() > 0.1


# ---- geometry -----------------------------------------------------------------------------------


@pytest.mark.statement("HWLSL Corollary 3.2.1")
@given(st.integers(1, 5), seeds)
def test_subspace_error_is_the_distance_of_projections(latent_dim, seed):
    a, b = (random_basis(7, latent_dim, seeded(seed + k)) for k in (0, 1))
    distance = (a @ a.T - b @ b.T).square().sum()
    assert_identity(subspace_error(a, b), distance)
    turned = random_basis(latent_dim, latent_dim, seeded(seed + 2))
    assert_identity(subspace_error(a @ turned, b), distance)
    assert_identity(2 * principal_angles(a, b).sin().square().sum(), distance)


def test_angles_of_a_known_rotation():
    angles = torch.tensor([1.5, 0.4, 1e-9], dtype=torch.float64)
    a = torch.eye(6, 3, dtype=torch.float64)
    b = torch.cat([angles.cos().diag(), angles.sin().diag()])
    assert_identity(principal_angles(a, b), angles)
    assert abs(principal_angles(a, b)[2] / 1e-9 - 1) < 1e-6  # a cosine would have lost it
    assert_identity(principal_angles(a[:, :1], b), angles[:1])


def test_random_subspaces_have_nothing_in_common():
    errors = [
        subspace_error(random_basis(20, 5, seeded(2 * k)), random_basis(20, 5, seeded(2 * k + 1)))
        for k in range(200)
    ]
    errors = torch.tensor(errors)
    assert_statistical(errors.mean(), 2 * 5 * (1 - 5 / 20), errors.std() / math.sqrt(200), 200)


@pytest.mark.statement("HWLSL Corollary 3.2.1")
def test_pca_recovers_an_exact_subspace_from_d0_samples():
    own = data()
    assert subspace_error(principal_subspace(own.sample(4, seeded(0)), 4), own.basis) < 1e-8
    with pytest.warns(UserWarning, match="3 samples span at most 3 of the 4 latent"):
        few = principal_subspace(own.sample(3, seeded(0)), 4)
    assert few.shape == (9, 4) and subspace_error(few, own.basis) > 0.01


def test_pca_error_of_noisy_samples():
    """The first-order formula against simulation."""
    spatial, n, tau = covariance(3, low=0.5), 2000, 0.3
    own = SubspaceData(random_basis(12, 3, seeded(0)), GaussianProcess(torch.eye(1), spatial), tau)
    errors = torch.tensor(
        [
            subspace_error(principal_subspace(own.sample(n, seeded(k)), 3), own.basis)
            for k in range(200)
        ]
    )
    expected = expected_pca_error(torch.linalg.eigvalsh(spatial), tau, 12, n)
    assert_statistical(errors.mean(), expected, errors.std() / math.sqrt(200), 200)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_basis(3, 4, None), "at most the ambient one, got 4 > 3"),
        (lambda: LatentScore(9, 4, network(), noise=math.nan), "noise must be finite and >= 0"),
        (lambda: FullScore(FrameMLP(2)), "fixed number of tokens, got one with seq_len=None"),
        (lambda: LatentScore(3, 4, network()), "at most the ambient one, got 4 > 3"),
        (lambda: SubspaceData(torch.eye(3, 4), LAWS["mixture"]()), "got 4 > 3"),
        (lambda: SubspaceData(2 * torch.eye(9, 4), LAWS["mixture"]()), "must be orthonormal.*by 3"),
        (lambda: SubspaceData(torch.eye(9, 3), LAWS["mixture"]()), "has 3 columns.* 2 x 2"),
        (lambda: SubspaceData(torch.eye(9, 4), LAWS["mixture"](), -1.0), "noise must be finite"),
        (lambda: SubspaceData(torch.ones(9), LAWS["mixture"]()), r"basis must be a matrix.*\(9,\)"),
        (lambda: LatentScore(9, 5, network()), "5 coordinates cannot be divided into tokens of 2"),
        (lambda: LatentScore(9, 6, network()), "2 tokens of 2.*needs 3 tokens"),
        (lambda: subspace_error(torch.eye(5, 2), torch.eye(6, 2)), "5 and 6 dimensions"),
        (lambda: subspace_error(torch.ones(5, 2), torch.eye(5, 2)), "columns of a must be"),
        (lambda: principal_subspace(torch.zeros(3, 2, 4), 2), "x must have shape"),
        (lambda: data().decode(torch.zeros(2, 4, 1)), "h must have shape"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_density_of_a_gaussian_on_a_subspace_is_that_of_its_covariance(noise):
    """In all D directions: B C Bᵀ and the noise in them, against torch."""
    latent, basis = (
        GaussianProcess(torch.eye(1), covariance(4), torch.ones(4)),
        random_basis(7, 4, seeded(1)),
    )
    law, (a, s) = SubspaceData(basis, latent, noise), (alpha(0.05), sigma(0.05))
    white = (s**2 + (a * noise) ** 2) * torch.eye(7, dtype=torch.float64)
    dense = a**2 * basis @ latent.covariance() @ basis.T + white
    oracle = torch.distributions.MultivariateNormal(a * basis.sum(dim=1), dense)
    v = torch.randn(5, 1, 7, generator=seeded(2), dtype=torch.float64)
    assert_identity(law.noised_log_prob(v, a, s), oracle.log_prob(v[:, 0]), condition=100)
