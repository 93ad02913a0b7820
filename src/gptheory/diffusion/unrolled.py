r"""The score by unrolled optimisation: gradient descent, heavy ball and Chebyshev on a quadratic.

The score :math:`s^* = -A_t^{-1}(v - \alpha_t\mu)` is the minimiser of

.. math:: L_t(s) = \tfrac12 s^\top A_t s + s^\top(v - \alpha_t\mu), \qquad
          A_t = \alpha_t^2\,\Gamma\otimes\Sigma + \sigma_t^2 I,

so an iteration that only multiplies by Γ and Σ computes it, and a band :math:`\bar\Gamma` of Γ is
often enough. Each iterate is a polynomial in :math:`\bar A_t`, hence also a filter on its spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..data.covariance import band, truncate
from ..data.process import GaussianProcess
from ..support.precision import full_precision
from ..support.spectra import along_frames, clipped_eigh, frames_first, on_spectrum
from ..support.validation import NotPSDError, require_count, require_sequences, require_step
from ..support.wrappers import lasting
from .methods import METHODS, Number, least_count
from .schedule import alpha, levels, sigma

Response = Callable[[Tensor, Tensor, Tensor], Tensor]


class UnrolledScore:
    r"""The K-th iterate from :math:`s^{(0)} = 0` of an optimiser of :math:`L_t`, with banded Γ.

    .. math:: s^{(k+1)} = s^{(k)} - \eta_k\left(\alpha_t^2(\bar\Gamma\otimes\Sigma)s^{(k)}
              + \sigma_t^2 s^{(k)} + v - \alpha_t\mu\right) + \beta_k(s^{(k)} - s^{(k-1)}).

    Source: FDGWC Score objective; FDGWC Lemma 1.

    :math:`\eta_k` and :math:`\beta_k` are those of the method, gradient descent, heavy ball or
    Chebyshev (:mod:`gptheory.diffusion.methods`), for the extreme eigenvalues of :math:`\bar A_t`.

    A call uses the spectrum: its cost does not depend on K. :meth:`iterates` runs the loop.

    Args:
        process: the law of the clean sequences; a kernel's Gram matrix is formed.
        steps: K >= 1.
        bandwidth: J in 1..N, keeps lags below J; all of them if absent.
        taper: name of a window of :func:`.taper`; a hard band if absent.
        method: its name, ``"gradient-descent"``, ``"heavy-ball"`` or ``"chebyshev"``.

    Attributes:
        method: the :class:`.Method` of that name.
        banded: :math:`\bar\Gamma`, (N, N) float64.
        spectrum: extreme eigenvalues of :math:`\bar\Gamma \otimes \Sigma`, two numbers.
        converges_from: diffusion step above which :math:`\bar A_t` is positive definite, 0 when
            :math:`\bar\Gamma` is positive semidefinite, else
            :math:`\log(1 + |\lambda_{\min}(\bar\Gamma)|\,\lambda_{\max}(\Sigma))`.

    Raises:
        ValueError: for K < 1, a bandwidth outside 1..N, an unknown method or window, or a window
            without a bandwidth.

    Accuracy: the shortcut agrees with the loop to 1e-12 relative in float64, 1e-5 in float32, in
    every context (see :mod:`gptheory.support.precision`).
    """

    @lasting
    def __init__(
        self,
        process: GaussianProcess,
        steps: int,
        bandwidth: int | None = None,
        taper: str | None = None,
        method: str = "gradient-descent",
    ) -> None:
        require_count("steps", steps)
        if method not in METHODS:
            raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
        self.process, self.steps, self.method = process, int(steps), METHODS[method]
        self.bandwidth, self.taper = bandwidth, taper
        self.banded = band(process.gram(), bandwidth, taper)
        spectrum = process.temporal_spectrum
        if bandwidth is not None:  # of a band eigenvalues may be negative
            spectrum = clipped_eigh(self.banded, process.temporal_dtype)
        (self._temporal, self._u), (self._spatial, self._w) = spectrum, process.spatial_spectrum
        self._variances = torch.outer(self._temporal, self._spatial)  # (N, d)
        self.spectrum = (self._variances.min().item(), self._variances.max().item())
        self.converges_from = math.log1p(max(0.0, -self.spectrum[0]))

    @property
    def device(self) -> torch.device:
        """Where the law is."""
        return self.process.device

    def __call__(self, v: Tensor, t: Number) -> Tensor:
        """The K-th iterate.

        Args:
            v: noised sequences (batch, N, d).
            t: diffusion step > 0, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), dtype and device of v.

        Raises:
            NotPSDError: for a step at which the iteration diverges.
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        return self.filtered(v, t, partial(self.method.response, steps=self.steps))

    def limit(self, v: Tensor, t: Number) -> Tensor:
        r"""Where the iteration leads, :math:`\bar s^* = -\bar A_t^{-1}(v - \alpha_t\mu)`.

        Takes, returns and raises what a call does.
        """
        return self.filtered(v, t, _inverse)

    @full_precision()
    def filtered(self, v: Tensor, t: Number, response: Response) -> Tensor:
        r""":math:`-q(\bar A_t)(v - \alpha_t\mu)`, for a function q of the spectrum.

        Args:
            v, t: as in a call.
            response: q, of the eigenvalues of :math:`\bar A_t`, (N, batch or 1, d), and the two
                extreme ones.

        Returns and raises what a call does.
        """
        residual, signal, noise = self._prepared(v, t)
        q = response(*self._noised(signal, noise, self._variances.to(v)[:, None]))
        return -on_spectrum(self._u.to(v), self._w.to(v), residual, lambda x: x * q)

    @full_precision()
    def iterates(self, v: Tensor, t: Number) -> Iterator[Tensor]:
        """The loop itself: yields :math:`s^{(0)} = 0, s^{(1)}, …, s^{(K)}`, never forming Γ ⊗ Σ.

        Takes and raises what a call does; each iterate is (batch, N, d).
        """
        residual, signal, noise = self._prepared(v, t)
        banded, spatial = self.banded.to(v), self.process.spatial.to(v)
        s = before = torch.zeros_like(residual)  # (N, batch, d)
        yield s.transpose(0, 1)
        for step_size, momentum in self.coefficients(t):
            step_size, momentum = as_level(step_size, v), as_level(momentum, v)
            product = along_frames(banded, s @ spatial)
            gradient = signal**2 * product + noise**2 * s + residual
            s, before = s - step_size * gradient + momentum * (s - before), s
            yield s.transpose(0, 1)

    def coefficients(self, t: Number) -> list[tuple[Number, Number]]:
        r"""Step sizes and momenta :math:`(\eta_k, \beta_k)`, k = 0..K−1, of the iteration.

        They depend on t only through the two extreme eigenvalues of :math:`\bar A_t`.
        """
        return self.method.coefficients(*self.extremes(t), self.steps)

    def extremes(self, t: Number) -> tuple[Number, Number]:
        r"""Extreme eigenvalues of :math:`\bar A_t`.

        Raises:
            NotPSDError: if the smaller is not positive, so that no step size converges.
        """
        require_step(t)
        signal, noise = alpha(t) ** 2, sigma(t) ** 2
        low, high = (noise + signal * extreme for extreme in self.spectrum)
        if self.converges_from > 0:
            self._require_convergence(t, low)
        return low, high

    def condition_number(self, t: Number) -> Number:
        r""":math:`\kappa_t`, the ratio of the extreme eigenvalues of :math:`\bar A_t`.

        Raises:
            NotPSDError: at a step where the iteration diverges.
        """
        low, high = self.extremes(t)
        return high / low

    def convergence_bound(self, t: float, steps: int | None = None) -> float:
        r"""Bound on :math:`\|s^{(K)} - \bar s^*\| / \|\bar s^*\|`, for every v.

        That of the method, see :mod:`gptheory.diffusion.methods`. Source: FDGWC Lemma 1.

        Args:
            t: diffusion step > 0.
            steps: K; by default the score's own.

        Raises:
            NotPSDError: at a step where the iteration diverges.
        """
        k = self.steps if steps is None else steps
        return self.method.bound(*self.extremes(float(t)), k)

    def steps_for(self, tolerance: float, t: float) -> int:
        """The least K >= 1 whose :meth:`convergence_bound` is at most ``tolerance``.

        Raises:
            ValueError: for a tolerance outside (0, 1).
            NotPSDError: at a step where the iteration diverges.
        """
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must lie in (0, 1), got {tolerance!r}")
        # the bound falls with K
        return least_count(lambda k: self.convergence_bound(t, k) <= tolerance)

    def truncation_bound(self, t: float) -> float:
        r"""Bound on :math:`\|\bar s^* - s^*\| / \|\bar s^*\|`, the price of the band,

        .. math:: \alpha_t^2\,\|\Gamma - \bar\Gamma\|\,\|\Sigma\| / \lambda_{\min}(A_t),

        spectral norms, because :math:`\bar s^* - s^* = A_t^{-1}(A_t - \bar A_t)\bar s^*`.
        Source: FDGWC Lemma 1.

        Raises:
            NotPSDError: at a step where the iteration diverges.
        """
        self.extremes(float(t))
        signal, noise = alpha(float(t)) ** 2, sigma(float(t)) ** 2
        temporal, spatial = self.process.temporal_spectrum[0], self.process.spatial_spectrum[0]
        smallest = noise + signal * (temporal[0] * spatial[0]).item()
        dropped = torch.linalg.matrix_norm(self.process.gram() - self.banded, 2)
        return signal * (dropped * spatial[-1]).item() / smallest

    def truncation_error(self, t: float) -> float:
        r"""What the band costs on average (:meth:`truncation_bound` is for the worst v),

        .. math:: \left(E\|\bar s^* - s^*\|^2 / E\|s^*\|^2\right)^{1/2}, \qquad v \sim p_t,

        exact, without Monte Carlo. How the least J for a given error grows with the lengthscale is
        Corollary 1. Source: FDGWC Corollary 1.

        Raises:
            NotPSDError: at a step where the iteration diverges.
        """
        return self._l2_error(float(t), _inverse)

    def score_error(self, t: float, steps: int | None = None) -> float:
        r"""Relative error of the K-th iterate, band included; exact, as :meth:`truncation_error`,

        .. math:: \left(E\|s^{(K)} - s^*\|^2 / E\|s^*\|^2\right)^{1/2}, \qquad v \sim p_t.

        Args:
            t: diffusion step > 0.
            steps: K; by default the score's own.

        Raises:
            NotPSDError: at a step where the iteration diverges.
        """
        k = self.steps if steps is None else steps
        return self._l2_error(float(t), partial(self.method.response, steps=k))

    def _l2_error(self, t: float, response: Response) -> float:
        self.extremes(t)
        signal, noise = (
            torch.tensor(f(t), dtype=torch.float64, device="cpu") for f in (alpha, sigma)
        )
        values, vectors = self.process.temporal_spectrum
        exact = signal**2 * torch.outer(self._spatial, values) + noise**2  # (d, N), of A_t
        filtered = response(*self._noised(signal, noise, self._variances)).T  # in the basis of Γ̄
        basis = self._u.to(vectors).T @ vectors
        # for each eigenvalue of Σ: (q(Ā) − A⁻¹) A^{1/2}, rotated on both sides
        error = (filtered[:, :, None] - 1 / exact[:, None]) * basis * exact[:, None].sqrt()
        return (error.square().sum() / (1 / exact).sum()).sqrt().item()

    def _noised(self, signal: Tensor, noise: Tensor, variances: Tensor) -> tuple[Tensor, ...]:
        r"""Eigenvalues of :math:`\bar A_t`, and the two extreme ones."""
        return tuple(noise**2 + signal**2 * clean for clean in (variances, *self.spectrum))

    def _prepared(self, v: Tensor, t: Number) -> tuple[Tensor, Tensor, Tensor]:
        """v − α_t μ as (N, batch, d), and α_t, σ_t in a shape that multiplies it."""
        require_sequences("v", v, self.process.seq_len, self.process.dim)
        self.extremes(t)
        signal, noise = (  # made where v is: a number that is copied there would wait for the host
            frames_first(x) if isinstance(x, Tensor) else v.new_full((), x) for x in levels(t, v)
        )
        mean = self.process.mean.to(v)[:, None]
        return v.transpose(0, 1) - signal * mean, signal, noise

    def _require_convergence(self, t: Number, low: Number) -> None:
        if isinstance(low, Tensor):
            if torch.compiler.is_compiling() or bool((low > 0).all()):
                return
            t = t[low <= 0].min().item() if t.ndim else t.item()
        elif low > 0:
            return
        raise NotPSDError(
            f"the band of {self.bandwidth} frames is not positive semidefinite: the iteration"
            f" diverges at t={t:.4g} and converges for t > {self.converges_from:.4g} only; for"
            f" smaller t use {self._remedy(t)}"
        )

    def _remedy(self, t: float) -> str:
        """A window and a bandwidth that do converge at t."""
        gram, size = self.process.gram(), self.process.seq_len
        largest, wider = self.process.spatial_spectrum[0][-1].item(), self.bandwidth
        while wider < size:
            wider = min(size, max(wider + 1, math.ceil(1.1 * wider)))
            smallest = torch.linalg.eigvalsh(truncate(gram, wider))[0].item()
            if sigma(t) ** 2 + alpha(t) ** 2 * smallest * largest > 0:
                break
        return f"taper='bohman' (positive semidefinite at every bandwidth) or bandwidth={wider}"


def _inverse(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return 1 / values


def as_level(value: Number, v: Tensor) -> Number:
    """A number for a number, (1, batch, 1) for one value per sequence."""
    return value.to(v).reshape(1, -1, 1) if isinstance(value, Tensor) else value
