r"""Scores that know the structure: estimated covariances, and unrolled iterations that are trained.

From least to most structure: the Wiener filter knows that data are Gaussian, the Kronecker
estimators that their covariance is Γ ⊗ Σ, the Toeplitz ones that Γ depends on the lag only. The
unrolled iterations are the algorithm of Theorem 1 with some of its constants learned.
"""

from __future__ import annotations

import itertools
import math
import warnings

import torch
from torch import Tensor, nn

from .diffusion import levels
from .kernels import toeplitz
from .precision import full_precision
from .precondition import Clock, weights_from, zero_init
from .process import GaussianProcess
from .rounding import SUMMED, spectrum_rounding, unit_roundoff
from .score import ExactScore
from .spectra import along_frames, frames_first
from .store import digest
from .unroll import UnrolledScore, as_level
from .validation import require_count, require_finite, require_sequences, require_step

CLOCK_WIDTH = 32
FLIP_FLOPS = 2000  # most iterations of the maximum likelihood
FLIP_FLOP_TOLERANCE = 1e-8  # relative change of Γ at which they end


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
        flat = _sample(x).flatten(1)
        mean = flat.mean(dim=0)
        centred = flat - mean
        # one long sequence of N·d frames with one coordinate each
        one = flat.new_ones(1, 1)
        covariance = centred.T @ centred / len(x)
        self._exact = ExactScore(GaussianProcess(covariance, one, mean[:, None]))
        self.seq_len, self.dim = x.shape[1:]

    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score; takes, returns and raises what :class:`ExactScore` does."""
        require_sequences("v", v, self.seq_len, self.dim)
        return self._exact(v.flatten(1)[..., None], t).view_as(v)


def kronecker_mle(x: Tensor) -> GaussianProcess:
    r"""Maximum likelihood of :math:`N(\mu, \Gamma \otimes \Sigma)` (Dutilleul 1999).

    The flip-flop: each factor is the covariance of the data whitened by the other,

    .. math:: \hat\Gamma = \frac{1}{nd}\sum_k X_k\hat\Sigma^{-1}X_k^\top, \qquad
              \hat\Sigma = \frac{1}{nN}\sum_k X_k^\top\hat\Gamma^{-1}X_k,

    in turn until nothing changes. The mean is that of each frame. There is one maximum and no
    other, with probability 1, iff :math:`N^2 + d^2 - (n-1)Nd` is negative, or at most 1 where N and
    d have no common divisor (Derksen and Makam 2021); for d = 1 that is n > N.

    Args:
        x: sequences (n, N, d).

    Returns:
        The law; Γ has mean diagonal 1. Use it through :class:`gptheory.score.ExactScore`.

    Raises:
        ValueError: for a wrong shape, non-finite values, too few sequences for one maximum to
            exist, or frames or coordinates that are linear combinations of the others, to rounding
            (as those of a very smooth process are).

    Warns:
        RuntimeWarning: if Γ still changes, relatively by more than 1e-8, after 2000 turns.
    """
    flat = _sample(x)
    n, seq_len, dim = flat.shape
    if not _one_maximum(n, seq_len, dim):
        needed = next(k for k in itertools.count(n) if _one_maximum(k, seq_len, dim))
        raise ValueError(
            f"a Kronecker maximum likelihood of shape ({seq_len}, {dim}) needs {needed} sequences,"
            f" got {n}"
        )
    mean, flat = _centred(flat, 0)
    rounding = _stored_rounding(x)
    _require_full_rank("frames", flat.transpose(1, 2), rounding)
    _require_full_rank("coordinates", flat, rounding)
    temporal, spatial = (
        torch.eye(size, dtype=flat.dtype, device=flat.device) for size in (seq_len, dim)
    )
    for _ in range(FLIP_FLOPS):
        before = temporal
        temporal = _whitened_moment(flat, spatial)
        temporal = temporal * (seq_len / temporal.trace())
        spatial = _whitened_moment(flat.transpose(1, 2), temporal)
        change = ((temporal - before).norm() / before.norm()).item()
        if change < FLIP_FLOP_TOLERANCE:
            break
    else:
        warnings.warn(
            f"the maximum likelihood has not converged: its last turn of {FLIP_FLOPS} changed Γ by"
            f" {change:.2g}, relatively; more than {n} sequences would help",
            RuntimeWarning,
            stacklevel=2,
        )
    return GaussianProcess(temporal, spatial, mean)


def toeplitz_moments(x: Tensor) -> GaussianProcess:
    r"""A stationary :math:`\Gamma \otimes \Sigma` by moments: averages along diagonals.

    :math:`\hat\Sigma` is the covariance of all frames, :math:`\hat\gamma(m)` the average of
    :math:`\langle x_i, \hat\Sigma^{-1}x_{i+m}\rangle / d` over i and over the sequences. An average
    along diagonals may have negative eigenvalues; they are set to 0. The mean is one vector for all
    frames.

    Args:
        x: sequences (n, N, d).

    Returns:
        The law, :math:`\hat\gamma(0) = 1` before the clipping. Use it through
        :class:`gptheory.score.ExactScore`.

    Raises:
        ValueError: for a wrong shape, non-finite values, fewer than two sequences, or frames that
            do not vary in every direction, as nN < d + 1 of them cannot.

    Accuracy: the whitening is estimated from the same frames, so nN must be many times d.
    """
    mean, flat = _centred(_sample(x), (0, 1))
    _require_full_rank("coordinates", flat, _stored_rounding(x))
    spatial = torch.einsum("nid,nie->de", flat, flat) / flat[..., 0].numel()
    moment = _whitened_moment(flat, spatial)
    lags = torch.stack([moment.diagonal(m).mean() for m in range(len(moment))])
    values, vectors = torch.linalg.eigh(toeplitz(lags / lags[0]))
    return GaussianProcess((vectors * values.clamp(min=0)) @ vectors.T, spatial, mean)


def _sample(x: Tensor) -> Tensor:
    """Sequences that covariances can be estimated from, in float64."""
    require_sequences("x", x)
    if len(x) < 2:
        raise ValueError(f"x must hold at least 2 sequences, got {len(x)}")
    require_finite("x", x)
    return x.double()


def _centred(x: Tensor, dims: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The mean over sequences, or over frames too, and what it leaves of x (n, N, d)."""
    first = x[:1, : 1 if dims == (0, 1) else None]
    rest = x - first  # exactly zero where nothing varies, however the mean is rounded
    mean = rest.mean(dim=dims)
    return first.reshape(mean.shape) + mean, rest - mean


def _require_full_rank(name: str, x: Tensor, rounding: float) -> None:
    """Raise unless centred x, (n, rows, columns), spans all its columns.

    ``rounding`` is what that of the sequences may do to a singular value of x; its square, an
    eigenvalue of the moment, counts as 0, and so does what summing the moment loses.
    """
    moment = torch.einsum("nij,nik->jk", x, x)
    values = torch.linalg.eigvalsh(moment)
    limit = rounding**2 + spectrum_rounding(values, terms=SUMMED).item()
    rank = int((values > limit).sum())
    if rank < len(moment):
        raise ValueError(
            f"the {len(moment)} {name} of x must vary independently, but their covariance has rank"
            f" {rank} up to rounding: give more sequences, leave out what does not vary, or add a"
            " little noise"
        )


def _stored_rounding(x: Tensor) -> float:
    """What rounding x to its dtype may do to a singular value of it, in any shape: u times ‖x‖."""
    return unit_roundoff(x.dtype) * x.double().norm().item()


def _one_maximum(n: int, seq_len: int, dim: int) -> bool:
    """Whether the Kronecker likelihood of n sequences has one maximum, with probability 1."""
    form = seq_len**2 + dim**2 - (n - 1) * seq_len * dim
    return form < 0 or (form <= 1 and math.gcd(seq_len, dim) == 1)


def _whitened_moment(x: Tensor, other: Tensor) -> Tensor:
    """Average of X C⁻¹ Xᵀ over sequences (n, rows, columns), divided by the columns."""
    return torch.einsum("nia,nja->ij", x @ torch.linalg.inv(other), x) / (len(x) * x.shape[2])


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
            "process": digest(self.base.banded, process.spatial, process.mean)[:12],
        }  # fmt: skip
        with weights_from(generator):
            self.clock = Clock(CLOCK_WIDTH)
        self.readout = zero_init(nn.Linear(CLOCK_WIDTH, (1 + momentum) * steps))
        with torch.no_grad():
            self.readout.bias[:steps] = torch.linspace(-0.5, 0.5, steps)
            self.readout.bias[steps:] = -3.0  # momenta of 0.05

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the K-th iterate, as :class:`gptheory.unroll.UnrolledScore` does."""
        # the clock obeys the caller, the law does not
        coefficients = [[as_level(c, v) for c in pair] for pair in self.coefficients(t)]

        def response(signal: Tensor, noise: Tensor, variances: Tensor) -> Tensor:
            eigenvalues = signal**2 * variances + noise**2  # (N, batch or 1, d)
            # the iterate is −q (v − α μ), and gradient descent brings a q towards 1
            q = before = torch.zeros_like(eigenvalues)
            for step_size, beta in coefficients:
                q, before = q - step_size * (eigenvalues * q - 1) + beta * (q - before), q
            return q

        return self.base.filtered(v, t, response)

    def coefficients(self, t: float | Tensor) -> list[tuple[Tensor, Tensor]]:
        r""":math:`(\eta_k(t), \beta_k(t))`, k = 0..K−1, each of shape (batch or 1,)."""
        steps = self.base.steps
        low, high = self.base.extremes(t)
        first = 2 / (low + high)
        if isinstance(t, Tensor):
            first = first.reshape(-1, 1)
        else:  # made where the weights are: a copy from the host would wait for it
            t = torch.full((), t, dtype=torch.float64, device=self.readout.weight.device)
        values = self.readout(self.clock(t.reshape(-1)))  # (batch, K or 2K)
        sizes = values[:, :steps].exp() * (first.to(values) if isinstance(first, Tensor) else first)
        momenta = values[:, steps:].sigmoid() if self.momentum else torch.zeros_like(sizes)
        return list(zip(sizes.T, momenta.T, strict=True))


class LearnedCovariance(nn.Module):
    r"""The unrolled iteration with everything learned: Γ, Σ, μ and the step sizes.

    .. math:: s^{(k+1)} = s^{(k)} - \eta_k(t)\left(\alpha_t^2\,\hat\Gamma s^{(k)}\hat\Sigma
              + \sigma_t^2 s^{(k)} + v - \alpha_t\hat\mu\right) + \beta_k(t)(s^{(k)} - s^{(k-1)}),
              \qquad s^{(0)} = 0.

    What Theorem 1 builds (Source: FDGWC Theorem 1), as a network with fewer weights than any other
    here: the structure is given, the numbers are trained by :func:`gptheory.train.fit`.

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
        self.readout = zero_init(nn.Linear(CLOCK_WIDTH, 2 * steps))
        with torch.no_grad():
            self.readout.bias[:steps] = torch.linspace(-0.5, 0.5, steps)
            self.readout.bias[steps:] = -3.0  # momenta of 0.05

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
        steps = (
            t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float64, device=v.device)
        )
        clock = self.clock(steps.to(v.device).reshape(-1))
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
