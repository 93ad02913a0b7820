r"""The score of missing frames by nested gradient descent, with a bound that has its constants.

With blocks of :math:`S = \Gamma\otimes\Sigma` at missing (m) and observed (o) frames, the score
is the minimiser of a quadratic of
:math:`A_t = \alpha_t^2(S_{mm} - S_{mo}S_{oo}^{-1}S_{om}) + \sigma_t^2 I`. The
inverse in it is the work of a second, inner loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.process import GaussianProcess
from ..support.precision import full_precision
from ..support.spectra import along_frames
from ..support.validation import require_count, require_one_of, require_step
from ..support.wrappers import lasting
from .inner_loop import InnerLoop
from .methods import STATIONARY, Number, least_count
from .missing import MissingFrames, descended, last
from .schedule import alpha, sigma
from .unrolled import as_level

SLACK = 1e-9  # of an eigenvalue, for rounding
SPLITS = (1.02, 1.05, 1.1, 1.3, 2.0, 4.0)  # how much of a tolerance the inner loop may take


class NestedScore(MissingFrames):
    r"""K outer steps, each with K_aux inner ones, from zero: Algorithm 2 with all frames in one v.

    .. math:: s \leftarrow s - \eta\left(\alpha_t^2(S_{mm}s - S_{mo}u(s)) + \sigma_t^2 s
              + v_m - \alpha_t\tilde\mu\right), \qquad
              u \leftarrow u - \theta(S_{oo}u - S_{om}s),

    and :math:`\tilde\mu = \mu_m + S_{mo}\,u(x_o - \mu_o)` by the same inner loop. Source: YC
    Algorithm 2; YC Lemma 1.

    **Bound.** The inner loop applies a polynomial Q of :math:`S_{oo}` with
    :math:`S_{oo}^{-1} - Q = S_{oo}^{-1}p(S_{oo})`, :math:`|p| \le \rho`. With
    :math:`E = S_{mo}S_{oo}^{-1}S_{om} = S_{mm} - S_{cond}` the outer loop
    therefore solves with an :math:`\tilde A_t` that is off by the *drift*
    :math:`e = \alpha_t^2\rho\|E\|` at most, towards a mean that is off by
    :math:`E\|\mu_{cond} - \tilde\mu\|^2 \le \rho^2\operatorname{tr}E`. While
    :math:`e < \lambda_-`, the smallest eigenvalue of :math:`A_t`,

    .. math:: \left(E\|s^{(K)} - s^*\|^2 / E\|s^*\|^2\right)^{1/2} \le q(1 + \delta) + \delta,
              \qquad \delta = \frac{\left(e^2
              + \alpha_t^2\rho^2\operatorname{tr}E/\operatorname{tr}A_t^{-1}\right)^{1/2}}
              {\lambda_- - e},

    q the method's factor over :math:`[\lambda_- - e, \lambda_+ + e]`. Else it is void: infinite.

    Args:
        process: the law of the clean sequences.
        observed: (N,) truth values, True where a frame is seen.
        steps, inner_steps: K and K_aux, both >= 1.
        method: of both loops, ``"gradient-descent"``, the paper's, or ``"heavy-ball"``.
        every_mask: take step sizes that serve all masks, from the eigenvalues of Γ ⊗ Σ, between
            which those of :math:`S_{oo}` and of :math:`S_{cond}` lie.

    Raises:
        NotPSDError: if the covariance of the observed frames is singular up to rounding.
        ValueError: for a mask of the wrong kind, or one that hides nothing or everything; for
            counts below 1 or an unknown method.

    Accuracy: 1e-12 relative to exact arithmetic in float64, 1e-5 in float32, times κ of
    :math:`S_{oo}` for the rounding of the inverse.
    """

    @lasting
    def __init__(
        self,
        process: GaussianProcess,
        observed: Tensor,
        steps: int,
        inner_steps: int,
        method: str = "gradient-descent",
        every_mask: bool = False,
    ) -> None:
        require_one_of("method", method, STATIONARY)
        require_count("inner_steps", inner_steps)
        super().__init__(process, observed, steps, method, every_mask)
        self.inner_steps, gram = int(inner_steps), process.gram()
        inner = self.spectrum if every_mask else self._seen_extremes
        cross = gram[self.missing][:, self.observed]
        seen = self._seen_values, self._seen_vectors
        self._inner = InnerLoop(cross, *seen, self._spatial, inner, self.method, self.inner_steps)
        root = self._inner.root
        self._left = gram[self.missing][:, self.missing] - root @ root.T
        self._left_values = torch.linalg.eigvalsh(self._left).clamp(min=0)

    # ---- the loop -------------------------------------------------------------------------------

    @full_precision()
    def __call__(self, v: Tensor, t: Number) -> Tensor:
        """The K-th iterate, by eigenvectors, so that its cost does not depend on K and K_aux.

        Args:
            v: (batch, N, d), noised where frames are missing, as they are where they are seen.
            t: diffusion step > 0 of the missing frames, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), 0 where frames are seen; dtype and device of v.

        Raises:
            ValueError: for a wrong shape, a step that is not finite and > 0, or one at which the
                loop diverges.
        """
        residual, _, _ = self._prepared(v, t)
        inverse = self._outer(t).to(v)  # (batch or 1, d, M, M)
        seen, rotation = self.observed.to(v.device), self.process.spatial_spectrum[1].to(v)
        frames = (residual @ rotation).permute(1, 2, 0)[..., None]  # (batch, d, N, 1)
        explained = self._inner.weights().to(v) @ frames[:, :, seen]
        noised = frames[:, :, ~seen] - alpha(self._column(t)).to(v) * explained
        score = torch.zeros_like(frames)
        score[:, :, ~seen] = -(inverse @ noised)
        return score[..., 0].transpose(1, 2) @ rotation.T

    @full_precision()
    def iterates(self, v: Tensor, t: Number) -> Iterator[Tensor]:
        """The two loops themselves, also where they diverge: yields :math:`s^{(0)}, …, s^{(K)}`.

        Takes, and each is, what a call does; of an error in the arguments it raises the same.
        """
        residual, signal, noise = self._prepared(v, t)
        seen, gram, spatial = self._seen(v), self.process.gram().to(v), self.process.spatial.to(v)

        def clean(x: Tensor) -> Tensor:
            return along_frames(gram, x @ spatial)

        def explained(rhs: Tensor) -> Tensor:  # S_mo u, with u of the inner loop
            u = last(descended(lambda u: seen * clean(u), seen * rhs, inner))
            return ~seen * clean(u)

        def product(s: Tensor) -> Tensor:
            rhs = clean(s)
            return signal**2 * (~seen * rhs - explained(rhs)) + noise**2 * s

        inner = self.method.coefficients(*self._inner.extremes, self.inner_steps)
        outer = [(as_level(step, v), as_level(m, v)) for step, m in self.coefficients(t)]
        for s in descended(product, signal * explained(residual) - ~seen * residual, outer):
            yield s.transpose(0, 1)

    def coefficients(self, t: Number) -> list[tuple[Number, Number]]:
        r"""Step sizes and momenta of the outer loop, k = 0..K−1."""
        return self.method.coefficients(*self.extremes(t), self.steps)

    # ---- what the two loops solve ---------------------------------------------------------------

    @property
    def inner_extremes(self) -> tuple[float, float]:
        """The interval of the inner step size, by default the extreme eigenvalues of S_oo."""
        return self._inner.extremes

    def extremes(self, t: Number) -> tuple[Number, Number]:
        r"""The interval for which the outer step size is: extreme eigenvalues of :math:`A_t`.

        Moved apart by the drift, where that leaves them positive. (Their sum, and with it the step
        size of gradient descent, is the same.)
        """
        (low, high), drift = self._noised(t), self.drift(t)
        if not isinstance(t, Tensor):
            return (low - drift, high + drift) if drift < low else (low, high)
        drift = torch.where(drift < low, drift, 0)
        return low - drift, high + drift

    def drift(self, t: Number, inner_steps: int | None = None) -> Number:
        r""":math:`e = \alpha_t^2\rho\|E\|`, how far :math:`\tilde A_t` is from A_t at most.

        Args:
            t: diffusion step > 0.
            inner_steps: K_aux >= 0; by default the score's own.

        Raises:
            ValueError: for a step that is not finite and > 0, or a count below 0.
        """
        require_step(t)
        return alpha(t) ** 2 * self._inner.factor(inner_steps) * self._inner.explained_norm

    def system(self, t: Number) -> Tensor:
        r""":math:`\tilde A_t` for each eigenvalue of Σ, (batch or 1, d, M, M) float64."""
        return self._noised_system(t) + alpha(self._column(t)) ** 2 * self._inner.unexplained()

    def growth(self, t: float) -> float:
        r"""The factor by which a step of gradient descent changes the worst mode of the outer loop.

        :math:`\max|1 - 2\lambda/(\lambda_- + \lambda_+)|` over the eigenvalues of
        :math:`\tilde A_t`. Above 1 the loop diverges, with momentum too. It is not monotone in
        K_aux: of gradient descent, even numbers leave :math:`\tilde A_t` too large, odd ones too
        small.
        """
        values = torch.linalg.eigvalsh(self.system(float(t)))
        return (1 - 2 * values / sum(self._noised(float(t)))).abs().max().item()

    # ---- its errors -----------------------------------------------------------------------------

    def convergence_bound(
        self, t: float, steps: int | None = None, inner_steps: int | None = None
    ) -> float:
        """Bound on :meth:`score_error`, with its constants; infinite where it is void.

        Source: YC Lemma 1; YC Lemma 2; YC Lemma 3; YC Lemma 5; YC Lemma 9.

        Args:
            t: diffusion step > 0.
            steps, inner_steps: K and K_aux >= 0; by default the score's own.

        Raises:
            ValueError: for a step that is not finite and > 0, or a count below 0.
        """
        return self._bound(float(t), self._count(steps), self._inner.factor(inner_steps))

    def steps_for(self, tolerance: float, t: float) -> tuple[int, int]:
        """K and K_aux with a :meth:`convergence_bound` within ``tolerance``, and K (K_aux + 3) low.

        The least of several ways to share the tolerance between the two loops.

        Raises:
            ValueError: for a tolerance outside (0, 1).
        """
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must lie in (0, 1), got {tolerance!r}")
        pairs = [self._pair(tolerance, split, float(t)) for split in SPLITS]
        return min(pairs, key=lambda pair: pair[0] * (pair[1] + 3))

    def score_error(self, t: float) -> float:
        r"""Relative error over all noised sequences, exact, without Monte Carlo,

        .. math:: \left(E\|s^{(K)} - s^*\|^2 / E\|s^*\|^2\right)^{1/2}.

        The two parts of the residual, :math:`v - \alpha_t\mu_{cond}` and
        :math:`\alpha_t(\mu_{cond} - \tilde\mu)`, are independent.

        Raises:
            ValueError: where the loop diverges.
        """
        found, exact = self._outer(float(t))[0], self._noised_system(float(t))[0]  # (d, M, M)
        of_noise = (torch.linalg.inv(exact) - found) @ torch.linalg.cholesky(exact)
        of_mean = alpha(float(t)) * found @ self._inner.lost()
        total = of_noise.square().sum() + of_mean.square().sum()
        return (total / self._score_energy(float(t))).sqrt().item()

    # ---- their parts ----------------------------------------------------------------------------

    def _outer(self, t: Number) -> Tensor:
        """What K outer steps make of the inverse of Ã, (batch or 1, d, M, M)."""
        values, vectors = torch.linalg.eigh(self.system(t))
        low, high = (end.reshape(-1, 1, 1) for end in self.extremes(self._at_home(t)))
        self._require_convergence(t, values, low, high)
        response = self.method.response(values, low, high, self.steps)
        return (vectors * response[..., None, :]) @ vectors.mT

    def _noised(self, t: Number) -> tuple[Number, Number]:
        """The interval for A_t, not moved."""
        ends = self.spectrum
        if not self.every_mask:
            ends = [(self._left_values[k] * self._spatial[k]).item() for k in (0, -1)]
        require_step(t)
        low, high = (sigma(t) ** 2 + alpha(t) ** 2 * end for end in ends)
        return low, high

    def _noised_system(self, t: Number) -> Tensor:
        """A_t for each eigenvalue of Σ, (batch or 1, d, M, M)."""
        steps, clean = self._column(t), self._spatial[:, None, None] * self._left
        eye = torch.eye(len(self._left), dtype=torch.float64, device=self.device)
        return alpha(steps) ** 2 * clean + sigma(steps) ** 2 * eye

    def _score_energy(self, t: float) -> float:
        """tr A_t⁻¹, the mean square of the score."""
        values = torch.outer(self._spatial, self._left_values)
        return (1 / (alpha(t) ** 2 * values + sigma(t) ** 2)).sum().item()

    def _bound(self, t: float, steps: int, factor: float) -> float:
        """The bound, for an inner loop with the factor ρ."""
        (low, high), signal = self._noised(t), alpha(t)
        drift = signal**2 * factor * self._inner.explained_norm
        if not drift < low:
            return math.inf
        mean = signal * factor * math.sqrt(self._inner.explained_trace / self._score_energy(t))
        delta = math.hypot(drift, mean) / (low - drift)
        return self.method.bound(low - drift, high + drift, steps) * (1 + delta) + delta

    def _pair(self, tolerance: float, split: float, t: float) -> tuple[int, int]:
        """K for a part of the tolerance, then K_aux for all of it."""
        outer = least_count(lambda k: self._bound(t, k, 0.0) <= tolerance / split)
        return outer, least_count(
            lambda k: self._bound(t, outer, self._inner.factor(k)) <= tolerance
        )

    def _column(self, t: Number) -> Tensor:
        """Steps as (batch or 1, 1, 1, 1) where the law is."""
        return self._at_home(t).reshape(-1, 1, 1, 1)

    def _require_convergence(self, t: Number, values: Tensor, low: Tensor, high: Tensor) -> None:
        inside = (values > 0) & (values < low + high)
        if self.method.has_momentum:  # whose p_K is known between the extremes only
            inside &= (values >= low * (1 - SLACK)) & (values <= high * (1 + SLACK))
        if bool(inside.all()):
            return
        t = torch.as_tensor(t).reshape(-1)[(~inside).flatten(1).any(dim=1).nonzero()[0]].item()
        low, high = self._noised(t)
        needed = least_count(lambda k: self.drift(t, k) < low)
        raise ValueError(
            f"the nested loop diverges at t={t:.4g}: after {self.inner_steps} inner steps the outer"
            f" loop has eigenvalues up to {values.max():.3g}, and its step size is for {low:.3g} to"
            f" {high:.3g}; it surely converges with inner_steps={needed}"
        )
