r"""The score of missing frames by one loop on all frames, whichever are missing.

Gradient descent, or a method with momentum, on
:math:`\tfrac12 s^\top C_t s + s^\top r`, see :mod:`gptheory.diffusion.missing` for C and r:
the seen frames are not solved for first, they take part, with a noise level of their own, 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..support.precision import full_precision
from ..support.spectra import along_frames
from .methods import Number, least_count
from .missing import MissingFrames, descended, last
from .schedule import alpha, sigma
from .unrolled import as_level


class OneLoopScore(MissingFrames):
    r"""The missing frames of the K-th iterate, from :math:`s^{(0)} = 0`, of one loop on all frames.

    .. math:: s^{(k+1)} = s^{(k)} - \eta_k\left(D(\Gamma\otimes\Sigma)D\,s^{(k)} + V s^{(k)}
              + v - D\mu\right) + \beta_k(s^{(k)} - s^{(k-1)}).

    **Theorem.** For every mask and every t, with κ of :math:`C_t`,

    .. math:: \left(E\|s^{(K)}_m - s^*\|^2 / E\|s^*\|^2\right)^{1/2}
              \le \max_{[\lambda_-, \lambda_+]} |p_K|,

    the ordinary factor of the method. *Proof.* r has the covariance :math:`C_t`, and all frames of
    the error are :math:`p_K(C_t)C_t^{-1}r`; so its block at missing frames has the second moment
    :math:`[C_t^{-1/2}p_K(C_t)^2C_t^{-1/2}]_{mm} \preceq \max p_K^2\,[C_t^{-1}]_{mm}`, and the last
    block is that of :math:`s^*`. Since :math:`D^2 + V = I`, the spectrum of :math:`C_t` is between
    :math:`\min(1, \lambda_{\min}(\Gamma\otimes\Sigma))` and
    :math:`\max(1, \lambda_{\max}(\Gamma\otimes\Sigma))` for every mask and every t.

    Args:
        process: the law of the clean sequences.
        observed: (N,) truth values, True where a frame is seen.
        steps: K >= 1.
        method: its name, ``"gradient-descent"``, ``"heavy-ball"`` or ``"chebyshev"``.
        every_mask: take that interval, the same for all masks and t, instead of the extreme
            eigenvalues of :math:`C_t`.

    Raises:
        NotPSDError: if the covariance of the observed frames is singular up to rounding.
        ValueError: for a mask of the wrong kind, or one that hides nothing or everything; for
            K < 1 or an unknown method.

    Accuracy: 1e-12 relative to exact arithmetic in float64, 1e-5 in float32.
    """

    @full_precision()
    def __call__(self, v: Tensor, t: Number) -> Tensor:
        """The K-th iterate, by K products with Γ and Σ.

        Args:
            v: (batch, N, d), noised where frames are missing, as they are where they are seen.
            t: diffusion step > 0 of the missing frames, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), 0 where frames are seen; dtype and device of v.

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        return last(self.iterates(v, t))

    @full_precision()
    def iterates(self, v: Tensor, t: Number) -> Iterator[Tensor]:
        """Yields :math:`s^{(0)} = 0, …, s^{(K)}`. Takes, and each is, what a call does."""
        residual, signal, noise = self._prepared(v, t)
        gram, spatial = self.process.gram().to(v), self.process.spatial.to(v)
        sizes = [(as_level(step, v), as_level(m, v)) for step, m in self.coefficients(t)]

        def product(s: Tensor) -> Tensor:
            return signal * along_frames(gram, (signal * s) @ spatial) + noise**2 * s

        for s in descended(product, -residual, sizes):
            yield s.masked_fill(self._seen(v), 0).transpose(0, 1)

    def coefficients(self, t: Number) -> list[tuple[Number, Number]]:
        r"""Step sizes and momenta :math:`(\eta_k, \beta_k)`, k = 0..K−1."""
        return self.method.coefficients(*self.extremes(t), self.steps)

    def extremes(self, t: Number) -> tuple[Number, Number]:
        r"""The interval that the step sizes are for: extreme eigenvalues of :math:`C_t`.

        With ``every_mask`` the one that holds them for all masks and t.
        """
        if self.every_mask:
            self._at_home(t)
            return min(1.0, self.spectrum[0]), max(1.0, self.spectrum[1])
        # the smallest belongs to the smallest eigenvalue of Σ, the largest to the largest
        low, high = (
            torch.linalg.eigvalsh(self._system(t, self._spatial[end]))[..., end] for end in (0, -1)
        )
        return (low, high) if isinstance(t, Tensor) else (low.item(), high.item())

    def condition_number(self, t: Number) -> Number:
        """The ratio of the :meth:`extremes`."""
        low, high = self.extremes(t)
        return high / low

    def _system(self, t: Number, variance: Tensor) -> Tensor:
        r""":math:`C_t` for a Σ that is a number, (..., N, N) float64 for t of shape (...)."""
        steps = self._at_home(t)[..., None] * self.missing  # 0 where a frame is seen
        signal, noise = alpha(steps), sigma(steps)
        clean = variance * signal[..., None] * self.process.gram() * signal[..., None, :]
        return clean + torch.diag_embed(noise**2)

    def convergence_bound(self, t: float, steps: int | None = None) -> float:
        r"""Bound on :meth:`score_error`: that of the method, for the :meth:`extremes`.

        Args:
            t: diffusion step > 0.
            steps: K >= 0; by default the score's own.

        Raises:
            ValueError: for a step that is not finite and > 0, or a count below 0.
        """
        return self.method.bound(*self.extremes(float(t)), self._count(steps))

    def steps_for(self, tolerance: float, t: float) -> int:
        """The least K >= 1 whose :meth:`convergence_bound` is at most ``tolerance``.

        Raises:
            ValueError: for a tolerance outside (0, 1).
        """
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must lie in (0, 1), got {tolerance!r}")
        extremes = self.extremes(float(t))
        return least_count(lambda k: self.method.bound(*extremes, k) <= tolerance)

    def score_error(self, t: float, steps: int | None = None) -> float:
        r"""Relative error over all noised sequences, exact, without Monte Carlo,

        .. math:: \left(E\|s^{(K)}_m - s^*\|^2 / E\|s^*\|^2\right)^{1/2}.

        Args:
            t: diffusion step > 0.
            steps: K >= 0; by default the score's own.

        Raises:
            ValueError: for a step that is not finite and > 0, or a count below 0.
        """
        k = self._count(steps)
        low, high = (torch.as_tensor(x, dtype=torch.float64) for x in self.extremes(float(t)))
        systems = self._system(float(t), self._spatial[:, None, None])  # (d, N, N)
        values, vectors = torch.linalg.eigh(systems)
        values = values.clamp(min=low.item())  # below it by rounding alone
        weights = vectors[:, self.missing].square().sum(dim=1) / values  # (d, N)
        left = self.method.error_polynomial(values, low.to(values), high.to(values), k)
        return math.sqrt((weights * left**2).sum().item() / weights.sum().item())
