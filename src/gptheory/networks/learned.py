"""Unrolled iterations that are trained: the algorithm of Theorem 1, with constants learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.covariance import toeplitz
from ..data.process import GaussianProcess
from ..diffusion.schedule import levels, step_tensor
from ..diffusion.unrolled import UnrolledScore, as_level
from ..support.draws import weights_from
from ..support.files import digest
from ..support.precision import full_precision
from ..support.spectra import along_frames, frames_first
from ..support.validation import require_count, require_sequences, require_step
from .score_network import Clock, zero_init

CLOCK_WIDTH = 32


class LearnedSteps(nn.Module):
    r"""The unrolled iteration with step sizes that are trained instead of derived.

    .. math:: s^{(k+1)} = s^{(k)} - \eta_k(t)\left(\bar A_t s^{(k)} + v - \alpha_t\mu\right)
              + \beta_k(t)(s^{(k)} - s^{(k-1)}), \qquad
              \eta_k(t) = \frac{2}{\lambda_- + \lambda_+}\,e^{f_k(t)},

    with f (and the logit of β) a small network of logSNR. Γ and Σ are known; only K (or 2K)
    functions of t are learned, by :func:`.fit` like any score. Gradient descent is
    f = 0 (Source: FDGWC Lemma 1); learned iterations: Gregor and LeCun 2010.

    Before training the step sizes spread evenly over a factor e^{±1/2} of gradient descent's:
    equal ones would have equal gradients and stay equal.

    Args:
        process, steps, bandwidth, taper: as in :class:`.UnrolledScore`.
        momentum: whether to learn :math:`\beta_k(t)` too; 0 otherwise.
        generator: source of the initial weights.

    Attributes:
        base: gradient descent, the :class:`.UnrolledScore` with the same band.

    Raises:
        ValueError: as :class:`.UnrolledScore`.
    """

    def __init__(
        self,
        process: GaussianProcess,
        steps: int,
        bandwidth: int | None = None,
        taper: str | None = None,
        momentum: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base = UnrolledScore(process, steps, bandwidth, taper)
        self.seq_len, self.dim, self.momentum = process.seq_len, process.dim, momentum
        self.config = {
            "steps": steps, "bandwidth": bandwidth, "taper": taper, "momentum": momentum,
            "process": digest(self.base.banded, process.spatial, process.mean)[:12],
        }  # fmt: skip
        with weights_from(generator):
            self.clock = Clock(CLOCK_WIDTH)
        self.readout = _readout(steps, (1 + momentum) * steps)

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the K-th iterate, as :class:`.UnrolledScore` does."""
        require_sequences("v", v, self.seq_len, self.dim)
        # the clock obeys the caller, the law does not
        coefficients = [[as_level(c, v) for c in pair] for pair in self.coefficients(t)]

        def response(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
            # on the spectrum the iterate is −q (v − α μ), and gradient descent brings λ q towards 1
            q = before = torch.zeros_like(values)
            for step_size, beta in coefficients:
                q, before = q - step_size * (values * q - 1) + beta * (q - before), q
            return q

        return self.base.filtered(v, t, response)

    def coefficients(self, t: float | Tensor) -> list[tuple[Tensor, Tensor]]:
        r""":math:`(\eta_k(t), \beta_k(t))`, k = 0..K−1, each of shape (batch or 1,)."""
        steps = self.base.steps
        low, high = self.base.extremes(t)
        clock = self.clock(step_tensor(t, self.readout.weight.device))
        values = self.readout(clock)  # (batch or 1, K or 2K)
        first = 2 / (low + high)
        if isinstance(first, Tensor):
            first = first.to(values).reshape(-1, 1)
        sizes = values[:, :steps].exp() * first
        momenta = values[:, steps:].sigmoid() if self.momentum else torch.zeros_like(sizes)
        return list(zip(sizes.T, momenta.T, strict=True))


class LearnedCovariance(nn.Module):
    r"""The unrolled iteration with everything learned: Γ, Σ, μ and the step sizes.

    .. math:: s^{(k+1)} = s^{(k)} - \eta_k(t)\left(\alpha_t^2\,\hat\Gamma s^{(k)}\hat\Sigma
              + \sigma_t^2 s^{(k)} + v - \alpha_t\hat\mu\right) + \beta_k(t)(s^{(k)} - s^{(k-1)}),
              \qquad s^{(0)} = 0.

    What Theorem 1 builds (Source: FDGWC Theorem 1), as a network with fewer weights than any other
    here: the structure is given, the numbers are trained by :func:`.fit`.

    :math:`\hat\Gamma` is positive semidefinite with trace N by its parametrisation: either L Lᵀ, or
    Toeplitz with a non-negative spectrum, :math:`\hat\gamma(m) = \sum_f w_f\cos(\pi f m/2N)`,
    w the softmax of 2N + 1 weights. :math:`\eta_k(t) = 2 e^{f_k(t)}/(2\sigma_t^2 + \alpha_t^2
    \|\hat\Gamma\|_F\|\hat\Sigma\|_F)`, f and the logit of β as in :class:`LearnedSteps`.

    Args:
        dim, seq_len: d and N.
        steps: K.
        stationary: whether :math:`\hat\Gamma` is Toeplitz.
        generator: source of the initial weights; before training Γ and Σ are the identity.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        steps: int = 8,
        stationary: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("seq_len", seq_len), ("steps", steps)):
            require_count(name, size)
        self.dim, self.seq_len, self.steps, self.stationary = dim, seq_len, steps, stationary
        self.config = {
            "dim": dim, "seq_len": seq_len, "steps": steps, "stationary": stationary,
        }  # fmt: skip
        if stationary:
            self.spectrum = nn.Parameter(torch.zeros(2 * seq_len + 1))
        else:
            self.root = nn.Parameter(torch.eye(seq_len))
        self.spatial_root = nn.Parameter(torch.eye(dim))
        self.mean = nn.Parameter(torch.zeros(dim))
        with weights_from(generator):
            self.clock = Clock(CLOCK_WIDTH)
        self.readout = _readout(steps, 2 * steps)

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the K-th iterate.

        Args:
            v: noised sequences (batch, N, d).
            t: diffusion step > 0, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), dtype and device of v.

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        require_sequences("v", v, self.seq_len, self.dim)
        require_step(t)
        clock = self.clock(step_tensor(t, v.device))
        sizes, momenta = self.readout(clock).to(v).chunk(2, dim=1)
        return self._iterate(v, t, sizes, momenta)

    @full_precision()  # the clock obeys the caller, the iteration does not
    def _iterate(self, v: Tensor, t: float | Tensor, sizes: Tensor, momenta: Tensor) -> Tensor:
        signal, noise = (frames_first(level) for level in levels(t, v))
        temporal, spatial = self.temporal().to(v), self.spatial().to(v)
        scale = signal**2 * temporal.norm() * spatial.norm() + 2 * noise**2
        residual = v.transpose(0, 1) - signal * self.mean.to(v)  # (N, batch, d)
        s = before = torch.zeros_like(residual)
        for size, momentum in zip(sizes.T, momenta.T, strict=True):  # (batch or 1,) each
            product = along_frames(temporal, s @ spatial)
            gradient = signal**2 * product + noise**2 * s + residual
            step = 2 * size.exp().reshape(1, -1, 1) / scale * gradient
            s, before = s - step + momentum.sigmoid().reshape(1, -1, 1) * (s - before), s
        return s.transpose(0, 1)

    @full_precision()
    def temporal(self) -> Tensor:
        r""":math:`\hat\Gamma`, (N, N)."""
        if not self.stationary:
            gamma = self.root @ self.root.T
            return gamma * (self.seq_len / gamma.trace())
        frequencies = torch.arange(2 * self.seq_len + 1, device=self.spectrum.device)
        lags = torch.arange(self.seq_len, device=self.spectrum.device)
        waves = torch.cos(torch.outer(lags, frequencies) * (torch.pi / (2 * self.seq_len)))
        # a sum and no product of matrices: where networks are trained together, vmap makes their
        # number the columns of such a product, and MKL's order of summation depends on it
        return toeplitz((waves.to(self.spectrum) * self.spectrum.softmax(dim=0)).sum(dim=1))

    @full_precision()
    def spatial(self) -> Tensor:
        r""":math:`\hat\Sigma`, (d, d)."""
        return self.spatial_root @ self.spatial_root.T


def _readout(steps: int, outputs: int) -> nn.Linear:
    """Of the clock: logarithms of K step sizes, spread evenly, and logits of momenta of 0.05."""
    layer = zero_init(nn.Linear(CLOCK_WIDTH, outputs))
    with torch.no_grad():
        layer.bias[:steps] = torch.linspace(-0.5, 0.5, steps)
        layer.bias[steps:] = -3.0
    return layer
