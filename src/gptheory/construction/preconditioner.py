r"""A sum over lags that nearly inverts :math:`A_t`: what a network can precondition with.

Close N frames to a circle of 2N − 1 by frames that nobody sees. The covariance there,
:math:`\Gamma^\circ`, has the Fourier modes as eigenvectors, so its inverse is a function of the
lag, and cut back to the N frames it is a sum over lags, as :math:`\bar\Gamma` is:

.. math:: M_t = P\left(\alpha_t^2\,\Gamma^\circ\otimes\Sigma + \sigma_t^2 I\right)^{-1} P^\top .

A block of an inverse is the inverse of a conditional covariance. So :math:`M_t^{-1}` is the
covariance of the noised frames *given the hidden ones*, at most :math:`A_t`: all eigenvalues of
:math:`M_t A_t` are at least 1, they are :math:`1/(1 - \rho^2)` for the canonical correlations ρ
between the frames and the hidden ones, and only directions near the two ends have a large one.

M depends on t, weights do not. But of :math:`1/(\alpha_t^2 x + \sigma_t^2)`, a function of t and of
the eigenvalue x, a few values of x tell the others:

.. math:: \frac{1}{\alpha_t^2 x + \sigma_t^2} \approx
          \sum_{q=1}^r \frac{c_q(x)}{\alpha_t^2 x_q + \sigma_t^2} .

The r fractions are features of t, of the same kind as the step size η_t; the coefficients become
weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..data.covariance import band, lags
from ..data.process import GaussianProcess
from ..diffusion.methods import METHODS
from ..diffusion.schedule import alpha, sigma
from ..support.validation import NotPSDError, require_count, require_range
from ..support.wrappers import lasting, on_the_cpu
from .build import stationary_values

GRID = 24  # diffusion steps, uniform in the logarithm, at which the extremes are looked for
MARGIN = 0.01  # for what happens between them
FIT_GRID = 60  # diffusion steps that the fractions are fitted at


class PreconditionedFeatures(nn.Module):
    r""":math:`\varphi(t) = (\alpha_t, \sigma_t^2, \alpha_t^2, \varphi_1(t), …, \varphi_r(t))`.

    Args:
        nodes: :math:`x_q` of :math:`\varphi_q(t) = 1/(\alpha_t^2 x_q + \sigma_t^2)`.
    """

    def __init__(self, nodes: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("nodes", torch.tensor(nodes, dtype=torch.float64))

    def forward(self, t: Tensor) -> Tensor:
        """Diffusion steps (…,) to features (…, 3 + r)."""
        levels = torch.stack([alpha(t), sigma(t) ** 2, alpha(t) ** 2], dim=-1)
        _, noise, signal = levels.split(1, dim=-1)
        return torch.cat([levels, 1 / (signal * self.nodes.to(levels) + noise)], dim=-1)


class LagPreconditioner:
    r"""The matrices :math:`M_t = \sum_q \varphi_q(t) \sum_m H_q(m)\, 1\{|i - j| = m\}`.

    Args:
        process: the law of the clean sequences; its temporal covariance must be stationary.
        bandwidth, taper: as in :class:`.UnrolledScore`.
        reach: lags below it are kept in M; all N if absent.
        terms: r.
        t_min, t_max: range of diffusion steps.

    Attributes:
        values: :math:`\bar\gamma_0, …, \bar\gamma_{N-1}`, (N,).
        features: :class:`PreconditionedFeatures`, with the nodes :math:`x_1 < … < x_r`.
        lags: :math:`H_q(m)`, (r, reach, d, d).
        extremes: two numbers between which all eigenvalues of :math:`M_t A_t` lie for t in the
            range; looked for at 24 steps, with a hundredth of margin.

    Raises:
        NotPSDError: where the circle has no covariance at t_min, or M is not positive definite
            because too few lags or terms are kept.
        ValueError: for numbers out of range, or a process that is not stationary.
    """

    @lasting
    @on_the_cpu
    def __init__(
        self,
        process: GaussianProcess,
        bandwidth: int | None = None,
        taper: str | None = None,
        reach: int | None = None,
        terms: int = 4,
        t_min: float = 0.005,
        t_max: float = 10.0,
    ) -> None:
        require_count("terms", terms)
        require_range(t_min, t_max)
        process = process.to("cpu")
        self.values = stationary_values(band(process.gram(), bandwidth, taper))
        self.reach = process.seq_len if reach is None else reach
        require_count("reach", self.reach)
        if self.reach > process.seq_len:
            raise ValueError(
                f"reach must lie in 1..{process.seq_len}, the number of frames, got {reach}"
            )
        self.t_range = float(t_min), float(t_max)
        self._spatial, rotation = process.spatial_spectrum
        nodes, coefficients = self._fractions(terms)
        self.features = PreconditionedFeatures(tuple(nodes.tolist()))
        # the even function of the lag with these Fourier coefficients, for every term and mode
        of_mode = torch.fft.irfft(coefficients, n=2 * process.seq_len - 1)[..., : self.reach]
        self.lags = torch.einsum("ak,qkm,bk->qmab", rotation, of_mode, rotation)
        self.extremes = self._extremes(of_mode)

    def step_sizes(self, steps: int) -> list[float]:
        """Chebyshev's, best for eigenvalues of which only the extremes are known; for every t."""
        return [size for size, _ in METHODS["chebyshev"].coefficients(*self.extremes, steps)]

    def convergence_bound(self, steps: int) -> float:
        r"""On :math:`\|s^{(K)} - s^*\|_A / \|s^*\|_A`, :math:`\|s\|_A^2 = s^\top A_t s`, all t."""
        return METHODS["chebyshev"].bound(*self.extremes, steps)

    def matrix(self, t: float) -> Tensor:
        """M_t in full, (Nd, Nd), frame-major; for small sizes."""
        size, dim = len(self.values), self.lags.shape[-1]
        of_lag = self.lags.new_zeros(size, dim, dim)
        of_lag[: self.reach] = torch.einsum("q,qmab->mab", self._of_step(t), self.lags)
        return of_lag[lags(size)].transpose(1, 2).reshape(size * dim, size * dim)

    def _of_step(self, t: float) -> Tensor:
        return self.features(torch.tensor(t, dtype=torch.float64, device="cpu"))[3:]

    def _fractions(self, terms: int) -> tuple[Tensor, Tensor]:
        """Nodes, and c_q of every eigenvalue on the circle, (r, d, N)."""
        around = torch.cat([self.values, self.values[1:].flip(0)])
        # of 2N − 1 eigenvalues the last N − 1 are those before
        x = torch.outer(self._spatial, torch.fft.rfft(around).real)  # (d, N)
        ratios = torch.logspace(*self._decades(), FIT_GRID, dtype=torch.float64).expm1()
        self._require_covariance(x.min().item(), ratios[0].item())
        # eigenvalues well below the noise at t_min cannot be told apart
        first = max(x.min().item(), ratios[0].item() / 3)
        last = max(x.max().item(), first)
        nodes = _spread(first, last, terms)
        # least squares of the relative error, for each eigenvalue by itself; not by lstsq, whose
        # last bit depends on where its workspace lies
        relative = (x.flatten()[:, None, None] + ratios[:, None]) / (nodes + ratios[:, None])
        q, upper = torch.linalg.qr(relative)
        found = torch.linalg.solve_triangular(upper, q.sum(dim=1)[..., None], upper=True)[..., 0]
        return nodes, found.T.reshape(terms, *x.shape)

    def _extremes(self, of_mode: Tensor) -> tuple[float, float]:
        low, high = 1.0, 1.0
        for t in torch.logspace(*self._decades(), GRID, dtype=torch.float64).tolist():
            values = self._eigenvalues(of_mode, t)
            low, high = min(low, values.min().item()), max(high, values.max().item())
        if low <= 0:
            raise NotPSDError(
                f"the sum over {self.reach} lags is no preconditioner (smallest eigenvalue"
                f" {low:.2g}): use a larger reach than {self.reach}, more terms than"
                f" {len(self.features.nodes)}, or a larger t_min than {self.t_range[0]:g}"
            )
        return low * (1 - MARGIN), high * (1 + MARGIN)

    def _eigenvalues(self, of_mode: Tensor, t: float) -> Tensor:
        """Of M_t A_t, for each mode of Σ: those of Lᵀ M L with A = L Lᵀ."""
        size, index = len(self.values), lags(len(self.values))
        inverse = of_mode.new_zeros(len(self._spatial), size)
        inverse[:, : self.reach] = torch.einsum("q,qkm->km", self._of_step(t), of_mode)
        noised = alpha(t) ** 2 * self._spatial[:, None, None] * self.values[index]
        root = torch.linalg.cholesky(noised + sigma(t) ** 2 * torch.eye(size).double())
        return torch.linalg.eigvalsh(root.mT @ inverse[:, index] @ root)

    def _decades(self) -> list[float]:
        return [math.log10(t) for t in self.t_range]

    def _require_covariance(self, smallest: float, noise: float) -> None:
        if smallest + noise > 0:
            return
        raise NotPSDError(
            f"on a circle of {2 * len(self.values) - 1} frames the covariance has an eigenvalue"
            f" of {smallest:.3g}, more than the noise at t_min={self.t_range[0]:g} makes up for:"
            f" use t_min above {math.log1p(-smallest):.3g}, or taper='bohman' and a bandwidth"
        )


def _spread(first: float, last: float, count: int) -> Tensor:
    """Uniform in the logarithm from end to end; one alone stands in the middle."""
    if count == 1:
        first = last = math.sqrt(first * last)
    return torch.logspace(math.log10(first), math.log10(last), count, dtype=torch.float64)
