r"""Scores that know the structure: the Wiener filter, and the iteration with learned step sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .precondition import Clock, weights_from, zero_init
from .process import GaussianProcess
from .score import ExactScore, along_frames
from .unroll import UnrolledScore, as_level
from .validation import require_finite, require_sequences

CLOCK_WIDTH = 32


class WienerScore:
    r"""The exact score of the Gaussian that has the mean and the covariance of n sequences,

    .. math:: \hat s(v, t) = -(\alpha_t^2 \hat C + \sigma_t^2 I)^{-1}(v - \alpha_t\hat\mu).

    The best *linear* denoiser there is, as far as n sequences tell (Wiener 1949); for a Gaussian
    process and n → ∞ it is the exact score. :math:`\hat C` is the plain (Nd, Nd) sample covariance
    (divided by n), without any structure or shrinkage.

    Args:
        x: sequences (n, N, d).

    Raises:
        ValueError: for a wrong shape, fewer than two sequences or non-finite values.
    """

    def __init__(self, x: Tensor) -> None:
        require_sequences("x", x)
        if len(x) < 2:
            raise ValueError(f"x must hold at least 2 sequences, got {len(x)}")
        require_finite("x", x)
        flat = x.double().flatten(1)
        mean = flat.mean(dim=0)
        centred = flat - mean
        # one long sequence of N·d frames with one coordinate each
        one = torch.ones(1, 1).to(flat)
        covariance = centred.T @ centred / len(x)
        self._exact = ExactScore(GaussianProcess(covariance, one, mean[:, None]))
        self.seq_len, self.dim = x.shape[1:]

    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score; takes, returns and raises what :class:`ExactScore` does."""
        require_sequences("v", v, self.seq_len, self.dim)
        return self._exact(v.flatten(1)[..., None], t).view_as(v)


class LearnedSteps(nn.Module):
    r"""The unrolled iteration with step sizes that are trained instead of derived.

    .. math:: s^{(k+1)} = s^{(k)} - \eta_k(t)\left(\bar A_t s^{(k)} + v - \alpha_t\mu\right)
              + \beta_k(t)(s^{(k)} - s^{(k-1)}), \qquad
              \eta_k(t) = \frac{2}{\lambda_- + \lambda_+}\,e^{f_k(t)},

    with f (and the logit of β) a small network of logSNR. Γ and Σ are known; only K (or 2K)
    functions of t are learned, by :func:`gptheory.train.fit` like any score. Gradient descent is
    f = 0 (Source: FDGWC Lemma 1); learned iterations: Gregor and LeCun 2010.

    Before training the step sizes spread evenly over a factor e^{±1/2} of gradient descent's:
    equal ones would have equal gradients and stay equal.

    Args:
        process, steps, bandwidth, taper: as in :class:`gptheory.unroll.UnrolledScore`.
        momentum: whether to learn :math:`\beta_k(t)` too; 0 otherwise.
        generator: source of the initial weights.

    Attributes:
        base: gradient descent, the :class:`gptheory.unroll.UnrolledScore` with the same band.

    Raises:
        ValueError: as :class:`gptheory.unroll.UnrolledScore`.
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
        }  # fmt: skip
        with weights_from(generator):
            self.clock = Clock(CLOCK_WIDTH)
        self.readout = zero_init(nn.Linear(CLOCK_WIDTH, (1 + momentum) * steps))
        with torch.no_grad():
            self.readout.bias[:steps] = torch.linspace(-0.5, 0.5, steps)
            self.readout.bias[steps:] = -3.0  # momenta of 0.05

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the K-th iterate, as :class:`gptheory.unroll.UnrolledScore` does."""
        base = self.base
        residual, signal, noise = base._prepared(v, t)
        u, w = base._u.to(v), base._w.to(v)
        eigenvalues = signal**2 * base._variances.to(v)[:, None] + noise**2  # (N, batch or 1, d)
        # on the spectrum the iterate is −q (v − α μ), and gradient descent brings a q towards 1
        q = before = torch.zeros_like(eigenvalues)
        for step_size, beta in self.coefficients(t):
            step_size, beta = (as_level(c, v) for c in (step_size, beta))
            q, before = q - step_size * (eigenvalues * q - 1) + beta * (q - before), q
        rotated = along_frames(u.T, residual @ w) * q
        return -(along_frames(u, rotated) @ w.T).transpose(0, 1)

    def coefficients(self, t: float | Tensor) -> list[tuple[Tensor, Tensor]]:
        r""":math:`(\eta_k(t), \beta_k(t))`, k = 0..K−1, each of shape (batch or 1,)."""
        steps = self.base.steps
        t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64).reshape(-1)
        low, high = self.base.extremes(t)
        values = self.readout(self.clock(t))  # (batch, K or 2K)
        sizes = values[:, :steps].exp() * (2 / (low + high)).to(values)[:, None]
        momenta = values[:, steps:].sigmoid() if self.momentum else torch.zeros_like(sizes)
        return list(zip(sizes.T, momenta.T, strict=True))
