"""The law that a network generates in its latent space, in the coordinates of the truth."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import covariance, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import GaussianProcess, random_mixture
from gptheory.diffusion import ExactScore, perturb, sigma
from gptheory.latent import LatentScore, SubspaceData, aligned_score, random_basis
from gptheory.measures import gaussian_tv, log_likelihood, total_variation
from gptheory.networks import DiT

F64 = torch.float64
MIXTURE = random_mixture(2, 2, 3, generator=seeded(1))


class Exact(torch.nn.Module):
    """The exact score of a law in rotated coordinates: h ↦ Qᵀs(Qh)."""

    def __init__(self, law, rotation: torch.Tensor, tokens: int = 2) -> None:
        super().__init__()
        self.law, self.rotation = law, rotation
        self.seq_len, self.dim = tokens, len(rotation) // tokens

    def forward(self, v, t):
        turned = (v.flatten(1) @ self.rotation.to(v).T).view(-1, self.law.seq_len, self.law.dim)
        return (ExactScore(self.law)(turned, t).flatten(1) @ self.rotation.to(v)).view_as(v)


def rotated(law, ambient_dim: int = 7, tokens: int = 2, noise: float = 0.0):
    """Data, and a network whose encoder is the basis times a rotation, exact inside."""
    own = SubspaceData(random_basis(ambient_dim, 4, seeded(0)), law, noise)
    model = LatentScore(
        ambient_dim, 4, Exact(law, random_basis(4, 4, seeded(5)), tokens), noise=noise
    ).double()
    with torch.no_grad():
        model.free.copy_(own.basis @ model.network.rotation)
    # the encoder is the Q of a QR with positive diagonal: of orthonormal columns, themselves
    return own, model


@pytest.mark.statement("HWLSL Corollary 3.2.1", "HWLSL Lemma F.8")
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_rotated_encoder_is_turned_back(tokens):
    own, model = rotated(MIXTURE, tokens=tokens)
    h = torch.randn(5, 2, 2, generator=seeded(2), dtype=F64)
    t = torch.linspace(0.02, 4, 5, dtype=F64)
    assert_identity(model(own.decode(h), t).detach(), ExactScore(own)(own.decode(h), t))
    for step in (0.3, t):
        assert_identity(aligned_score(model, own.basis)(h, step), ExactScore(MIXTURE)(h, step))
    bare = model.network(h.view(5, tokens, -1), t).view_as(h)
    assert (bare - ExactScore(MIXTURE)(h, t)).norm() > 1  # the rotation matters


def test_the_shape_of_the_latent_is_its_callers():
    own, model = rotated(MIXTURE)
    h, score = torch.randn(3, 2, 2, generator=seeded(2), dtype=F64), aligned_score(model, own.basis)
    assert torch.equal(score(h.view(3, 1, 4), 0.2), score(h, 0.2).view(3, 1, 4))


def test_known_noise_of_the_data_is_in_it():
    law = GaussianProcess(torch.eye(1), covariance(4))
    own, model = rotated(law, noise=0.4)
    noisy = GaussianProcess(torch.eye(1), covariance(4) + 0.16 * torch.eye(4))
    h = torch.randn(5, 1, 4, generator=seeded(2), dtype=F64)
    assert_identity(aligned_score(model, own.basis)(h, 0.2), ExactScore(noisy)(h, 0.2), 10)


@pytest.mark.statement("HWLSL Corollary 3.2.1", "HWLSL Lemma F.8")
def test_generated_density_is_the_latent_networks_times_the_flow_off_the_subspace():
    """For a network of any weights and an encoder that points anywhere: Wᵀv obeys its own flow."""
    model = LatentScore(6, 4, DiT(2, 2, 8, 2, 1, generator=seeded(3)), seeded(4)).double()
    with torch.no_grad():
        model.network.readout.weight.normal_(0, 0.5, generator=seeded(2))
    encoder = model.encoder.detach()
    v = torch.randn(8, 1, 6, generator=seeded(6), dtype=F64)
    options = {"t_min": 0.1, "t_max": 4.0, "steps": 48}
    inside = log_likelihood(model.network, (v @ encoder).view(8, 2, 2), **options)
    off = (v - v @ encoder @ encoder.T).square().sum(dim=(1, 2))
    # the pull is −v/σ²: the flow multiplies by σ_t0/σ_T, so it leaves that squared
    variance = (sigma(0.1) / sigma(4.0)) ** 2
    outside = -(off / variance + 2 * math.log(2 * math.pi * variance)) / 2
    found = log_likelihood(model, v, **options)
    # two flows of one network, each with the solver's error: 1e-5 at 48 steps, 16 times more at 24
    assert (found - inside - outside).abs().max() < 1e-4
    aligned = aligned_score(model, encoder)  # with its own encoder there is nothing to turn
    assert_identity(log_likelihood(aligned, (v @ encoder).view(8, 2, 2), **options), inside)


@pytest.mark.statement("HWLSL Corollary 3.2.1", "HWLSL Lemma F.8")
def test_total_variation_of_a_linear_latent_network_is_gaussian():
    """A Gaussian estimate inside, rotated: flow beside closed form."""
    truth, estimate = (GaussianProcess(torch.eye(1), covariance(4, seed)) for seed in (0, 3))
    own, model = rotated(estimate)
    found = total_variation(
        aligned_score(model, own.basis), truth, 1024, 0.02, 12.0, 24, seeded(7), F64
    )
    signal, noise, eye = math.exp(-0.02), sigma(0.02) ** 2, torch.eye(4, dtype=F64)
    closed = gaussian_tv(*(signal * law.spatial + noise * eye for law in (truth, estimate)))
    assert closed > 0.1
    assert_statistical(found.value, closed, found.standard_error, 1024)


@pytest.mark.statement("HWLSL Corollary 3.2.1")
def test_control_of_total_variation():
    own, model = rotated(MIXTURE)
    found = total_variation(
        aligned_score(model, own.basis), MIXTURE, 256, 0.02, 10.0, 12, seeded(7), F64
    )
    assert found.value <= 0.01


def test_it_can_be_differentiated_and_leaves_the_encoder_alone():
    own, model = rotated(MIXTURE)
    h, _ = perturb(MIXTURE.sample(3, seeded(1), F64), 0.1, seeded(2))
    h.requires_grad_()
    aligned_score(model, own.basis)(h, 0.1).sum().backward()
    assert h.grad.abs().max() > 0 and model.free.grad is None


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.eye(7, 3), r"basis must be 7 x 4.*got \(7, 3\)"),
        (torch.eye(6, 4), r"basis must be 7 x 4.*got \(6, 4\)"),
        (2 * torch.eye(7, 4), "columns of basis must be orthonormal"),
    ],
)
def test_bad_input_is_refused(basis, message):
    with pytest.raises(ValueError, match=message):
        aligned_score(rotated(MIXTURE)[1], basis)
