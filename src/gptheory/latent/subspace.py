r"""Data on a linear subspace, the angles between subspaces, and PCA.

Data :math:`x = Bh` with orthonormal columns in B (D × d_0) have the score

.. math:: \nabla\log p_t(v) = B\,\nabla\log p^h_t(B^\top v) - (I - BB^\top)\,v/\sigma_t^2:

that of the latent h on the subspace, and a pull towards the subspace. Vectors of the ambient space
are sequences of one frame here, (batch, 1, D), so that all samplers and trainers take them.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ..data.law import KnownLaw
from ..diffusion.exact import Score
from ..diffusion.schedule import alpha, elementary, floating_step, levels
from ..support.draws import drawn, normal_like
from ..support.precision import full_precision
from ..support.spectra import orthonormal, principal_axes
from ..support.validation import (
    require_count,
    require_finite,
    require_floating,
    require_nonnegative,
    require_sequences,
    require_step,
)
from ..support.wrappers import lasting

ORTHONORMAL_TOLERANCE = 1e-5


class SubspaceData:
    r"""Law of :math:`x = Bh + \tau\varepsilon`, on a subspace (τ = 0) or near one.

    Source: HWLSL Assumption 2.1; the noise is ours.

    Args:
        basis: B, (D, d_0) with orthonormal columns.
        latent: law of h, with L·d = d_0, whose score is known: a
            :class:`.GaussianProcess` (one frame for a Gaussian vector), say, or a
            :class:`.GaussianMixture`; frames are laid one after the other.
        noise: τ >= 0, standard deviation of white noise in all D directions.

    Attributes:
        basis: (D, d_0) float64.
        latent, noise: as given.
        dim, latent_dim: D and d_0.
        seq_len: 1.

    Raises:
        ValueError: for d_0 > D, columns that are not orthonormal to 1e-5, a latent law of another
            size, or a negative noise.
    """

    seq_len = 1

    @lasting
    def __init__(self, basis: Tensor, latent: KnownLaw, noise: float = 0.0) -> None:
        self.basis = require_orthonormal("basis", basis).clone()
        self.dim, self.latent_dim = basis.shape
        if latent.seq_len * latent.dim != self.latent_dim:
            raise ValueError(
                f"basis has {self.latent_dim} columns, the latent law {latent.seq_len} x"
                f" {latent.dim} coordinates: the two must agree"
            )
        require_nonnegative("noise", noise)
        self.latent, self.noise = latent, noise

    def __repr__(self) -> str:
        return f"SubspaceData(dim={self.dim}, latent={self.latent}, noise={self.noise})"

    @property
    def device(self) -> torch.device:
        """Where the latent law is, and where it draws."""
        return self.latent.device

    @property
    def parts(self) -> tuple[object, ...]:
        """B, τ and what decides the latent law."""
        return self.basis, self.noise, *self.latent.parts

    @property
    def smallest_variance(self) -> float | None:
        """Of the noise where there is some; else of the latent law, if it knows its own."""
        if self.noise:
            return self.noise**2
        return getattr(self.latent, "smallest_variance", None)

    def to(self, device: torch.device | str) -> SubspaceData:
        """The same law, with basis and latent law on a device: there it draws."""
        return SubspaceData(self.basis.to(device), self.latent.to(device), self.noise)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw n vectors, (n, 1, D); arguments and errors as for the latent law."""
        x = self.decode(self.latent.sample(n, generator, dtype))
        if self.noise:
            x = x + self.noise * normal_like(x, generator)
        return x

    @full_precision()
    def encode(self, v: Tensor) -> Tensor:
        """Bᵀv as latent sequences: (batch, 1, D) -> (batch, L, d)."""
        require_sequences("v", v, 1, self.dim)
        return (v @ self.basis.to(v)).view(len(v), self.latent.seq_len, self.latent.dim)

    @full_precision()
    def decode(self, h: Tensor) -> Tensor:
        """Bh: latent sequences (batch, L, d) -> (batch, 1, D)."""
        require_sequences("h", h, self.latent.seq_len, self.latent.dim)
        return h.flatten(1)[:, None] @ self.basis.to(h).T

    def split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """BBᵀv and (I − BBᵀ)v, both (batch, 1, D)."""
        on = self.decode(self.encode(v))
        return on, v - on

    def noised_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Score of :math:`v = a x + s z`, from the decomposition; τ counts as noise.

        :math:`a(Bh + \tau\varepsilon) + s z` is :math:`a Bh` with noise of size
        :math:`\sqrt{s^2 + a^2\tau^2}`. Source: HWLSL Lemma 2.1.

        Args and returns: see :meth:`.KnownLaw.noised_score`; against automatic
        differentiation of the log-density 1e-11 relative in float64.
        """
        if self.noise:
            noise = (noise**2 + (self.noise * signal) ** 2) ** 0.5
        latent = self.encode(v)
        off = v - self.decode(latent)
        return self.decode(self.latent.noised_score(latent, signal, noise)) - off / noise**2

    def noised_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Log-density of the latent, noised, plus that of white noise in D − d_0 directions.

        Args and returns: see :meth:`.KnownLaw.noised_log_prob`.
        """
        if self.noise:
            noise = (noise**2 + (self.noise * signal) ** 2) ** 0.5
        wide = v.double()
        latent = self.encode(wide)
        off = wide - self.decode(latent)
        variance = noise.to(wide).flatten() ** 2 if isinstance(noise, Tensor) else noise**2
        log = torch.as_tensor(2 * math.pi * variance, dtype=wide.dtype, device=wide.device).log()
        outside = off.square().sum(dim=(1, 2)) / variance + (self.dim - self.latent_dim) * log
        on = self.latent.noised_log_prob(latent, signal, noise)
        return (on - outside / 2).to(v)


def smoothed(score: Score, noise: float) -> Score:
    r"""The score of noised :math:`x + \tau\varepsilon`, from that of noised x.

    :math:`\alpha_t(x + \tau\varepsilon) + \sigma_t z` is x with more noise: divided by
    :math:`c = \sqrt{\alpha_t^2 + \alpha_t^2\tau^2 + \sigma_t^2}` it is :math:`v_{t'}` of x, with
    :math:`\alpha_{t'} = \alpha_t/c`. So its score is :math:`s(v/c, t')/c`.

    Args:
        score: of x, called as (v, t).
        noise: τ.
    """
    if not noise:
        return score

    def shifted(v: Tensor, t: float | Tensor) -> Tensor:
        require_step(t)
        levels(t, v)  # raises for integers, and for steps that do not fit the batch
        t = floating_step(t)
        growth = elementary(t).log1p(noise**2 * alpha(t) ** 2)  # log c², as α² + σ² = 1
        size = elementary(t).exp(growth / 2)
        factor = size.to(v).view(-1, 1, 1) if isinstance(size, Tensor) and size.ndim else size
        return score(v / factor, t + growth) / factor

    return shifted


def random_basis(ambient_dim: int, latent_dim: int, generator: torch.Generator | None) -> Tensor:
    """A basis (D, d_0) of a uniformly random subspace, float64, on the generator's device.

    Raises:
        ValueError: unless 1 <= d_0 <= D.
    """
    require_sizes(ambient_dim, latent_dim)
    return orthonormal(drawn(torch.randn, ambient_dim, latent_dim, generator=generator))


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    r"""Angles :math:`\theta_1 \ge \theta_2 \ge \dots` between two subspaces, in [0, π/2].

    From sines as well as cosines, so that small angles keep their digits.

    Args:
        a, b: bases (D, p) and (D, q), orthonormal.

    Returns:
        (min(p, q),), float64.

    Raises:
        ValueError: for bases that are not orthonormal or of different D.
    """
    a, b = _pair(a, b)
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    cosines = torch.linalg.svdvals(a.T @ b).flip(0).clamp(max=1)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(max=1)
    return torch.where(cosines > sines, sines.asin(), cosines.acos())


def subspace_error(a: Tensor, b: Tensor) -> float:
    r""":math:`\|AA^\top - BB^\top\|_F^2 = 2\sum_i \sin^2\theta_i` for subspaces of one dimension.

    Source: HWLSL Corollary 3.2.1.

    Args:
        a, b: bases (D, p) and (D, q), orthonormal to 1e-5.

    Returns:
        Between 0 and 2 min(p, D − p) where p = q; about 2p(1 − p/D) for a random pair.

    Raises:
        ValueError: for bases that are not orthonormal or of different D.

    Accuracy: float64; computed from what is left of one basis outside the other, without
    cancellation.
    """
    a, b = _pair(a, b)
    outside = [(y - x @ (x.T @ y)).square().sum() for x, y in ((a, b), (b, a))]
    return sum(outside).item()


def principal_subspace(x: Tensor, latent_dim: int) -> Tensor:
    """The d_0 leading eigenvectors of the second moment of a sample: PCA about the origin.

    Args:
        x: (n, 1, D).
        latent_dim: d_0.

    Returns:
        (D, d_0) float64; where n < d_0 the missing directions are arbitrary.

    Raises:
        ValueError: for a wrong shape, values that are not finite, or d_0 > D.

    Warns:
        UserWarning: for n < d_0.
    """
    require_sequences("x", x, seq_len=1)
    require_finite("x", x)
    require_sizes(x.shape[2], latent_dim)
    warn_if_few(len(x), latent_dim)
    flat = x[:, 0].double()
    return principal_axes(flat.T @ flat, latent_dim)[1]


def warn_if_few(n: int, latent_dim: int) -> None:
    """Warn where n vectors cannot span a subspace of dimension d_0."""
    if n < latent_dim:
        warnings.warn(
            f"{n} samples span at most {n} of the {latent_dim} latent dimensions: the rest of the"
            " subspace cannot be recovered",
            stacklevel=3,
        )


def require_orthonormal(name: str, basis: Tensor) -> Tensor:
    """Return a (D, d_0) matrix in float64; raise unless its columns are orthonormal to 1e-5."""
    require_floating(name, basis, "(D, d_0)")
    if basis.ndim != 2:
        raise ValueError(f"{name} must be a matrix (D, d_0), got shape {tuple(basis.shape)}")
    require_sizes(*basis.shape)
    require_finite(name, basis)
    basis = basis.detach().double()
    one = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    defect = (basis.T @ basis - one).abs().max().item()
    if defect > ORTHONORMAL_TOLERANCE:
        raise ValueError(
            f"the columns of {name} must be orthonormal, got BᵀB off the identity by {defect:.3g};"
            " pass torch.linalg.qr(basis).Q"
        )
    return basis


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = require_orthonormal("a", a), require_orthonormal("b", b)
    if len(a) != len(b):
        raise ValueError(f"subspaces of different spaces: {len(a)} and {len(b)} dimensions")
    return a, b.to(a)


def require_sizes(ambient_dim: int, latent_dim: int) -> None:
    """Raise unless 1 <= d_0 <= D."""
    require_count("the ambient dimension", ambient_dim)
    require_count("the latent dimension", latent_dim)
    if latent_dim > ambient_dim:
        raise ValueError(
            "the latent dimension must be at most the ambient one, got"
            f" {latent_dim} > {ambient_dim}"
        )
