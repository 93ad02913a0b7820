r"""Mixtures of Gaussians: the simplest law whose score is not linear, and still known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..support.draws import drawn
from ..support.precision import full_precision
from ..support.spectra import covariance_spectrum, symmetric_root
from ..support.validation import (
    as_real,
    require_count,
    require_finite,
    require_sequences,
    require_symmetric,
    require_values,
)
from ..support.wrappers import lasting
from .law import diagonal_log_density, moved


class GaussianMixture:
    r"""Law :math:`\sum_k w_k\,N(m_k, C_k)` of short sequences (L, d), flattened to L·d numbers.

    Args:
        means: m_k, (K, L, d).
        covariance: one C for all components or one each, (L·d, L·d) or (K, L·d, L·d), positive
            semidefinite, moved to the device of the means.
        weights: w_k >= 0, normalised here; equal if absent.

    Attributes:
        means: (K, L·d) float64.
        weights: (K,) float64, with sum 1.
        parts: means, covariances and weights.
        seq_len, dim: L and d.

    Raises:
        NotPSDError: if a covariance has a negative eigenvalue that the rounding of its dtype does
            not explain (:func:`.clipped_eigh`).
        ValueError: for shapes that disagree, matrices not symmetric and finite, or weights that are
            negative or all zero.

    Accuracy of the score: factorised in float64, then cast to the dtype of the input.
    """

    @lasting
    def __init__(self, means: Tensor, covariance: Tensor, weights: Tensor | None = None) -> None:
        require_sequences("means", means)
        require_count("the number of means", len(means))
        require_finite("means", means)
        count, self.seq_len, self.dim = means.shape
        self.means = means.double().flatten(1).clone()
        size = self.means.shape[1]
        covariance = as_real("covariance", covariance).to(self.means.device)
        covariances = covariance.expand(count, -1, -1) if covariance.ndim == 2 else covariance
        if covariances.shape != (count, size, size):
            raise ValueError(
                f"covariance must have shape ({size}, {size}) or ({count}, {size}, {size}),"
                f" got {tuple(covariance.shape)}"
            )
        whole = torch.stack([require_symmetric("covariance", each) for each in covariances])
        self._variances, self._axes = covariance_spectrum(  # (K, L·d)
            "covariance of a component", whole, covariance.dtype
        )
        self.weights = _normalised(weights, count, self.means)
        self.parts = (self.means, whole, self.weights)

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(components={len(self.means)}, seq_len={self.seq_len}, dim={self.dim})"
        )

    def to(self, device: torch.device | str) -> GaussianMixture:
        """The same mixture on a device: there it draws, without a generator of another one."""
        return moved(self, device)

    @property
    def device(self) -> torch.device:
        """Where the means are, and where it draws."""
        return self.means.device

    @property
    def smallest_variance(self) -> float:
        """The smallest eigenvalue of the covariance of any component."""
        return self._variances.min().item()

    def covariance(self) -> Tensor:
        """Of the mixture about its mean: within components plus between them, (L·d, L·d)."""
        within = (self._axes * self._variances[:, None]) @ self._axes.mT
        centred = self.means - self.weights @ self.means
        between = (self.weights[:, None] * centred).T @ centred
        return torch.einsum("k,kij->ij", self.weights, within) + between

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw n independent sequences, (n, L, d), on the device of the means.

        Args:
            n: 0 or more.
            generator: source of randomness; drawn on its device, then moved.
            dtype: of the result.

        Raises:
            ValueError: for n < 0.
        """
        require_count("n", n, minimum=0)
        level = drawn(torch.rand, n, generator=generator, device=self.device)
        # rounding may leave the last edge below 1
        which = torch.searchsorted(self.weights.cumsum(0), level).clamp(max=len(self.means) - 1)
        noise = drawn(torch.randn, n, self.means.shape[1], generator=generator, device=self.device)
        roots = symmetric_root(self._variances, self._axes)
        flat = self.means[which] + torch.einsum("nij,nj->ni", roots[which], noise)
        return flat.unflatten(1, (self.seq_len, self.dim)).to(dtype)

    @full_precision()
    def noised_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Score of :math:`v = a h + s z`,

        .. math:: -\sum_k r_k(v)\,(a^2 C_k + s^2 I)^{-1} (v - a\,m_k),

        with r_k(v) the probability of component k given v.

        Args and returns: see :meth:`.KnownLaw.noised_score`.
        """
        means, axes, variances, weights = (
            x.to(v) for x in (self.means, self._axes, self._variances, self.weights)
        )
        residuals = v.flatten(1)[:, None] - signal * means  # (batch, K, L·d)
        along = torch.einsum("kij,bki->bkj", axes, residuals)
        noised = signal**2 * variances + noise**2
        exponents = -0.5 * (along**2 / noised + noised.log()).sum(dim=2)
        shares = (weights.log() + exponents).softmax(dim=1)
        pulls = torch.einsum("kij,bkj->bki", axes, along / noised)
        return -torch.einsum("bk,bki->bi", shares, pulls).view_as(v)

    def noised_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r""":math:`\log\sum_k w_k\,N(v;\, a\,m_k,\, a^2 C_k + s^2 I)`.

        Args and returns: see :meth:`.KnownLaw.noised_log_prob`.
        """
        signal, noise = (x.to(self.means) if isinstance(x, Tensor) else x for x in (signal, noise))
        residuals = v.to(self.means).flatten(1)[:, None] - signal * self.means  # (batch, K, L·d)
        along = torch.einsum("kij,bki->bkj", self._axes, residuals)
        each = diagonal_log_density(along, signal**2 * self._variances + noise**2)
        return (self.weights.log() + each).logsumexp(dim=1).to(v)


def random_mixture(
    seq_len: int,
    dim: int,
    components: int = 4,
    spread: float = 0.25,
    generator: torch.Generator | None = None,
) -> GaussianMixture:
    r"""Equal components N(m_k, s I) with means of squared norm (1 − s) L d, so that E‖h‖² = L d.

    Args:
        seq_len, dim: L and d.
        components: K.
        spread: s in (0, 1), variance of a coordinate within a component.
        generator: source of the directions of the means, which are uniform; its device is the
            mixture's.

    Raises:
        ValueError: for counts below 1 or a spread outside (0, 1).
    """
    for name, count in (("seq_len", seq_len), ("dim", dim), ("components", components)):
        require_count(name, count)
    if not 0 < spread < 1:
        raise ValueError(f"spread must lie in (0, 1), got {spread!r}")
    size = seq_len * dim
    means = drawn(torch.randn, components, size, generator=generator)
    means = means / means.norm(dim=1, keepdim=True) * math.sqrt((1 - spread) * size)
    covariance = spread * torch.eye(size, dtype=means.dtype, device=means.device)
    return GaussianMixture(means.view(components, seq_len, dim), covariance)


def _normalised(weights: Tensor | None, count: int, like: Tensor) -> Tensor:
    weights = as_real("weights", like.new_ones(count) if weights is None else weights)
    require_values("weights", weights)
    if weights.shape != (count,) or not (weights >= 0).all() or not 0 < weights.sum() < math.inf:
        raise ValueError(f"weights must be {count} numbers >= 0, not all zero, got {weights}")
    return weights.to(like) / weights.to(like).sum()
