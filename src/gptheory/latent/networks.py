"""Networks with an encoder, and without one, for data on a subspace."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..diffusion.exact import Score
from ..diffusion.schedule import levels
from ..networks.score_network import ScoreNetwork
from ..support.draws import normal_like
from ..support.precision import full_precision
from ..support.spectra import orthonormal
from ..support.validation import require_nonnegative, require_sequences
from .subspace import require_orthonormal, require_sizes, smoothed

# Size of an entry of the encoder's weights. Their scale changes nothing but how far a step of
# Adam turns the encoder: a step moves every entry by the learning rate, whatever its size.
ENCODER_SCALE = 0.03


class LatentScore(nn.Module):
    r"""A score network with an encoder, :math:`\hat s(v, t) = (W f(W^\top v, t) - v)/\sigma_t^2`.

    W (D × d_0) has orthonormal columns at all times: it is the Q of the QR factorisation of a free
    matrix. The latent network is any score network, on the latent read as L tokens of size d; with
    :math:`f(h, t) = h + \sigma_t^2\,\hat s^h(h, t)`, the posterior mean of :math:`\alpha_t h`, this
    is :math:`W\hat s^h(W^\top v, t) - (I - WW^\top)v/\sigma_t^2`.
    Source: HWLSL Definition 3.3; HWLSL Definition 3.1; HWLSL Fig. 1.

    Trained by :func:`.fit` with the weight ``"noise"``, the loss is the error of
    predicting x: :math:`E\|Wf - \alpha_t x\|^2/\sigma_t^2`.

    Args:
        ambient_dim: D.
        latent_dim: d_0.
        network: score of the latent, made for L tokens of size d with L·d = d_0.
        generator: source of the first encoder, uniform among all subspaces.
        encoder_scale: size of the free matrix's entries; a smaller one turns faster.
        noise: τ of the data where it is known, see :func:`.smoothed`.

    Attributes:
        network: as given.
        dim, seq_len: D and 1.
        config: the settings besides the network's, for checkpoints.

    Raises:
        ValueError: for d_0 > D, a network of another size, or a negative noise.
    """

    seq_len = 1

    def __init__(
        self,
        ambient_dim: int,
        latent_dim: int,
        network: ScoreNetwork,
        generator: torch.Generator | None = None,
        encoder_scale: float = ENCODER_SCALE,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        require_sizes(ambient_dim, latent_dim)
        _require_tokens(network, latent_dim)
        require_nonnegative("noise", noise)
        self.dim, self.latent_dim, self.network = ambient_dim, latent_dim, network
        self.noise = noise
        self.config = {"ambient_dim": ambient_dim, "latent_dim": latent_dim, "noise": noise}
        free = normal_like(torch.empty(ambient_dim, latent_dim), generator)
        self.free = nn.Parameter(encoder_scale * free)

    @property
    def encoder(self) -> Tensor:
        """W, (D, d_0)."""
        return orthonormal(self.free)

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score: (batch, 1, D) and t, a number or (batch,), to (batch, 1, D).

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        require_sequences("v", v, 1, self.dim)
        return smoothed(self._clean_score, self.noise)(v, t)

    def _clean_score(self, v: Tensor, t: float | Tensor) -> Tensor:
        encoder = self.encoder.to(v)
        latent = v @ encoder  # (batch, 1, d_0)
        tokens = latent.reshape(len(v), self.network.seq_len, self.network.dim)
        inside = self.network(tokens, t).reshape_as(latent)
        pull = (latent @ encoder.T - v) / levels(t, v)[1] ** 2
        return inside @ encoder.T + pull


def aligned_score(model: LatentScore, basis: Tensor) -> Score:
    r"""The score of what a network generates in its latent space, in the coordinates of a basis.

    With :math:`\hat s(v, t)` of :class:`LatentScore` the flow of :math:`W^\top v` is that of
    :math:`\hat s^h` alone: what is generated, encoded by W, has the law of the latent network,
    wherever W points. W knows the latent up to a rotation only, so it is held against the truth as
    :math:`R\,\hat s^h(R^\top h, t)`, R the rotation nearest to :math:`B^\top W` (Procrustes; its
    polar factor). That is a score of latents, for :func:`.total_variation`, say.
    Source: HWLSL Corollary 3.2.1; HWLSL Lemma F.8.

    Args:
        model: a network with an encoder. If it was told the noise τ of the data, the score is that
            of :math:`h + \tau\varepsilon`.
        basis: B, (D, d_0) with orthonormal columns.

    Returns:
        A score (h, t) of latents in any shape (batch, L, d) with L·d = d_0, differentiable in h.

    Raises:
        ValueError: for a basis of another shape, or not orthonormal.
    """
    basis = require_orthonormal("basis", basis)
    if basis.shape != (model.dim, model.latent_dim):
        raise ValueError(
            f"basis must be {model.dim} x {model.latent_dim}, as the network's encoder, got"
            f" {tuple(basis.shape)}"
        )
    with full_precision():
        left, _, right = torch.linalg.svd(basis.T @ model.encoder.detach().to(basis))
        rotation = left @ right

    def clean(h: Tensor, t: float | Tensor) -> Tensor:
        turn, network = rotation.to(h), model.network
        with full_precision():
            tokens = (h.flatten(1) @ turn).view(len(h), network.seq_len, network.dim)
        inside = network(tokens, t).flatten(1).to(h)  # as precise as the caller has it
        with full_precision():
            return (inside @ turn.T).view_as(h)

    return smoothed(clean, model.noise)


class FullScore(nn.Module):
    r"""The rival without an encoder: a network on all D coordinates, read as tokens.

    Args:
        network: made for L tokens of size D/L, predicting F.
        skip: whether it has the skip connection of :class:`LatentScore`, :math:`\hat s =
            (\alpha_t F - v)/\sigma_t^2`, in which F predicts x and the pull towards every subspace
            is given; else it is the network itself, :math:`-v + (\alpha_t/\sigma_t)F`.

    Attributes:
        dim, seq_len: D and 1.
        config: the settings besides the network's, for checkpoints.

    Raises:
        ValueError: for a network that is not made for a fixed number of tokens.
    """

    seq_len = 1

    def __init__(self, network: ScoreNetwork, skip: bool = True) -> None:
        super().__init__()
        _require_length(network)
        self.network, self.skip, self.config = network, skip, {"skip": skip}
        self.dim = network.seq_len * network.dim

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score: (batch, 1, D) and t, a number or (batch,), to (batch, 1, D)."""
        require_sequences("v", v, 1, self.dim)
        tokens = v.reshape(len(v), self.network.seq_len, self.network.dim)
        score = self.network(tokens, t).reshape_as(v)
        if not self.skip:
            return score
        noise = levels(t, v)[1]
        return (score + v) / noise - v / noise**2  # the network's score is −v + (α/σ)F


def _require_length(network: ScoreNetwork) -> None:
    if network.seq_len is None:
        raise ValueError(
            "the network must be made for a fixed number of tokens, got one with seq_len=None"
        )


def _require_tokens(network: ScoreNetwork, latent_dim: int) -> None:
    _require_length(network)
    if latent_dim % network.dim:
        raise ValueError(
            f"a latent of {latent_dim} coordinates cannot be divided into tokens of {network.dim}"
        )
    if network.seq_len * network.dim != latent_dim:
        raise ValueError(
            f"the network is for {network.seq_len} tokens of {network.dim}, the latent has"
            f" {latent_dim} coordinates: it needs {latent_dim // network.dim} tokens"
        )
