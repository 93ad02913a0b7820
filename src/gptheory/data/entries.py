r"""The law of single entries that are missing, and of frames that were seen through noise.

Neither factorises: what was seen of Γ ⊗ Σ is no Kronecker product. Everything here solves systems

.. math:: (D(\Gamma\otimes\Sigma)D + V)\,x = b, \qquad D, V \text{ diagonal},

by conjugate gradients, which need products with Γ ⊗ Σ only, O(N²d + Nd²) each. The score is of this
kind too. An entry that was seen through noise of variance r, and is noised to :math:`v = ax + sz`
besides, was seen once through the noise :math:`e = s^2 r/(a^2 r + s^2)`, at the weighted mean of
:math:`v/a` and y; one that was not seen through :math:`e = s^2/a^2`. So

.. math:: x \mid v, y: \quad \mu + C(C + E)^{-1}(\bar y - \mu), \qquad C = \Gamma\otimes\Sigma,

and Tweedie's formula makes a score of it, here without its cancellation.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..support.conjugate import System, conjugate_gradients
from ..support.draws import drawn
from ..support.precision import full_precision
from ..support.rounding import gamma, spectrum_rounding
from ..support.spectra import covariance_spectrum
from ..support.validation import require_count
from ..support.wrappers import lasting
from .conditional import Conditional, _too_smooth
from .law import diagonal_log_density

if TYPE_CHECKING:
    from typing import Any as GaussianProcess  # which imports this file

TOLERANCE = 1e-12  # relative residual
MAX_STEPS = 4000
ROWS = 2048  # entries whose covariance is made
LEAST_SIGNAL = 1e-3  # in the preconditioner: below it nothing of the law is left to solve for


class ConditionalEntries(Conditional):
    r"""The law of what is missing given single entries, or given entries seen through noise.

    .. math:: x \mid y \sim N\left(\mu + C_{\cdot o}(C_{oo} + rI)^{-1}(y - \mu_o),\
              C - C_{\cdot o}(C_{oo} + rI)^{-1}C_{o\cdot}\right), \qquad C = \Gamma\otimes\Sigma.

    :meth:`.GaussianProcess.condition` makes it. Of noise-free entries it is the law of the missing
    ones, and what was seen stays as it is; of noisy ones the law of all entries.

    Cost: mean, score and a draw are one run of conjugate gradients a sequence, O(N²d + Nd²) a step.
    N = 96, d = 8, :math:`\gamma = e^{-r/128}`, 30 % of the entries missing at random: the mean
    takes 51 steps and 4 ms a sequence on one core, the score 13 (t = 0.001) to 65 (t = 5) and 1 to
    5 ms; 90 % missing, 160, 10 and 200 steps. Long gaps of smooth processes take longest: 16 frames
    in a row, seen through noise of variance 1e-6, 200 steps, and 1500 for a Matérn-5/2 kernel.
    Densities, variances, condition numbers and effective dimensions need :meth:`covariance`, a run
    for every missing entry and O((Nd)³) for each sequence: small sizes only.

    Args:
        process, x: as there.
        observed: (batch, N, d), (N, d), (batch, N) or (N,), boolean, True where an entry was seen.
        noise: r >= 0, the variance of the noise on what was seen.

    Attributes:
        seq_len, dim: N and d.
        noise: as given.

    Raises:
        ValueError, NotPSDError: as there.

    Accuracy: relative residuals of 1e-12, or what rounding allows; found against dense linear
    algebra 2e-11 for the mean and 2e-12 for the score, κ(Γ ⊗ Σ) up to 1e6. Gradients pass through
    v once, none through x, and levels that ask for one are refused.
    """

    _by_entries = True

    @full_precision()
    def __init__(
        self, process: GaussianProcess, x: Tensor, observed: Tensor, noise: float = 0.0
    ) -> None:
        self.noise = noise  # before what is missing is looked at: with noise nothing need be
        super().__init__(process, x, observed)
        self._free = ~self._seen if noise == 0 else torch.ones_like(self._seen)
        values = process.temporal_spectrum[0]
        if noise == 0 and values[0] <= spectrum_rounding(values, process.temporal_dtype):
            raise _too_smooth(f"Γ has the smallest eigenvalue {values[0]:.3g}")
        self._covariances: dict[int, tuple[Tensor, ...]] = {}

    def to(self, device: torch.device | str) -> ConditionalEntries:
        """The same law on a device."""
        other = super().to(device)
        other._covariances = {}
        return other

    @property
    def parts(self) -> tuple[object, ...]:
        """Those of the law of whole sequences, what was seen, where, and the noise on it."""
        return *super().parts, self.noise

    @property
    def mean(self) -> Tensor:
        """E[x | y], (batch, N, d) float64; what was seen without noise as it is."""
        return self._alone(self._mean)

    @cached_property
    @lasting
    def _mean(self) -> Tensor:
        offset = self._x - self._joint.mean
        return torch.where(self._free, self._joint.mean + self._explained(offset), self._x)

    @property
    def variance(self) -> Tensor:
        """Of every entry given y, (batch, N, d) float64; zero where it was seen without noise.

        Raises:
            ValueError: as :meth:`covariance`, of which these are the diagonals.
        """
        out = torch.zeros_like(self._x)
        for k in range(len(out)):
            out[k, self._free[k]] = self._covariance_of(k)[0].diagonal()
        return self._alone(out)

    def covariance(self, k: int = 0) -> Tensor:
        r"""Of the missing entries of sequence k, or of all where there is noise, float64, dense.

        Raises:
            ValueError: above 2048 rows, each of which is a run of conjugate gradients.
        """
        return self._covariance_of(k)[0]

    @property
    def condition_number(self) -> Tensor:
        """κ of the covariance of every sequence, (batch,) float64."""
        spectra = [self._covariance_of(k)[1] for k in range(len(self._x))]
        return self._alone(torch.stack([values[-1] / values[0] for values in spectra]))

    @property
    def effective_dimension(self) -> Tensor:
        r""":math:`(\operatorname{tr}C)^2/\operatorname{tr}C^2` of every sequence, (batch,)."""
        spectra = [self._covariance_of(k)[1] for k in range(len(self._x))]
        return self._alone(torch.stack([x.sum() ** 2 / (x**2).sum() for x in spectra]))

    @property
    def smallest_variance(self) -> float:
        """A bound from below on all variances, λ r/(λ + r) with Γ ⊗ Σ's least λ, or λ itself."""
        clean = self._joint.smallest_variance
        return clean * self.noise / (clean + self.noise) if self.noise else clean

    @full_precision()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        r"""Draw n sequences for each, by Matheron's rule.

        A draw z of the process, corrected by what it got wrong: :math:`z + C_{\cdot o}(C_{oo} + r
        I)^{-1}(y - z_o - \sqrt r\,\epsilon)` (Journel and Huijbregts 1978).

        Args:
            n: 0 or more.
            generator: source of randomness; drawn on its device, then moved.
            dtype: of the result; drawn and solved in float64.

        Returns:
            (n, batch, N, d), or (n, N, d) where one sequence was given.

        Raises:
            ValueError: for n < 0.
        """
        require_count("n", n, minimum=0)
        z = self._joint.sample(n * len(self._x), generator, torch.float64)
        noise = drawn(torch.randn, *z.shape, generator=generator, device=self.device)
        wrong = self._by_draw(z + math.sqrt(self.noise) * noise)
        draws = self._by_draw(z) + self._by_draw(self._explained((self._x - wrong).flatten(0, 1)))
        draws = torch.where(self._free, draws, self._x).to(dtype)
        return draws[:, 0] if self._single else draws

    @full_precision()
    def noised_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Score of :math:`v = a x + s z` given y, and zero at what was seen without noise.

        Args and returns: see :meth:`.KnownLaw.noised_score`; n sequences for each of the batch.

        Raises:
            ValueError: for levels that ask for a gradient.
            NotConvergedError: if 4000 steps do not reach the tolerance.
        """
        if any(isinstance(x, Tensor) and x.requires_grad for x in (signal, noise)):
            raise ValueError("this score has no gradient with respect to its levels; detach them")
        a, s = (_column(x, v) for x in (signal, noise))
        free, seen, y = (self._for_draws(x, v) for x in (self._free, self._seen, self._x))
        v = torch.where(free, v, 0.0)  # elsewhere it may be anything
        mean, r, total = self._joint.mean.to(v.device), self.noise, a**2 * self.noise + s**2
        both = s**2 * r / total  # e of what was seen
        fresh = a / (a**2 + s**2).sqrt(), s**2 / (a**2 + s**2)  # D and V of what was not seen
        scale = torch.where(seen, (1 + both).rsqrt(), fresh[0])
        shift = torch.where(seen, both / (1 + both), fresh[1])
        known = scale * ((r * a * v + s**2 * y) / total - mean)
        unseen = (v - a * mean) / (a**2 + s**2).sqrt()
        usual = both if _mostly(seen) else s**2 / a.clamp(min=LEAST_SIGNAL) ** 2
        system = _Masked(self._joint, scale, shift, usual)
        solved = _Solve.apply(system, torch.where(seen, known, unseen))
        own = ((v - a * y) + a * r * scale * solved) / total
        pulled = torch.where(seen, own, solved / (a**2 + s**2).sqrt())
        return -torch.where(free, pulled, 0.0).to(v)

    def noised_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Log-density of the same v; dense, O((Nd)³) once for each sequence.

        Args and returns: see :meth:`.KnownLaw.noised_log_prob`; n sequences for each of the batch.
        """
        a, s = (self._level_by_draw(x, v) for x in (signal, noise))
        found = [
            self._log_density(k, self._by_draw(v)[:, k], _of_sequence(a, k), _of_sequence(s, k))
            for k in range(len(self._x))
        ]
        return torch.stack(found, dim=1).flatten().to(v)

    def _is_singular(self) -> bool:
        spectra = [self._covariance_of(k)[1] for k in range(len(self._x))]
        return any(bool(values[0] <= spectrum_rounding(values)) for values in spectra)

    def _log_density(
        self, k: int, v: Tensor, signal: float | Tensor, noise: float | Tensor
    ) -> Tensor:
        """(n,), of n sequences (n, N, d)."""
        _covariance, values, vectors = (x.to(v.device) for x in self._covariance_of(k))
        free, mean = self._free[k].to(v.device), self._mean[k].to(v.device)
        signal, noise = (x.double() if isinstance(x, Tensor) else x for x in (signal, noise))
        residual = (v.double() - _spread(signal) * mean)[:, free]
        return diagonal_log_density(residual @ vectors, signal**2 * values + noise**2)

    def _covariance_of(self, k: int) -> tuple[Tensor, ...]:
        """It, its eigenvalues and its eigenvectors."""
        if not 0 <= k < len(self._x):
            raise ValueError(f"k must lie in 0..{len(self._x) - 1}, the sequences, got {k!r}")
        if k not in self._covariances:
            self._covariances[k] = self._covariance_made(k)
        return self._covariances[k]

    @lasting
    @full_precision()
    def _covariance_made(self, k: int) -> tuple[Tensor, ...]:
        free, seen = self._free[k], self._seen[k]
        count = int(free.sum())
        if count > ROWS:
            raise ValueError(
                f"a covariance of {count} entries is above the limit of {ROWS}: each row is a run"
                " of conjugate gradients; means, scores and draws need none"
            )
        unit = self._x.new_ones(free.numel()).diag()[free.flatten()].view(count, *free.shape)
        rows = _product(self._joint, unit)
        known = self._explained(rows, seen.expand_as(rows))
        own = (rows - known)[:, free]
        own = (own + own.T) / 2
        return own, *covariance_spectrum("conditional covariance", own)

    def _explained(self, offset: Tensor, seen: Tensor | None = None) -> Tensor:
        r""":math:`C_{.o}(C_{oo} + rI)^{-1}` of offsets (rows, N, d), not looked at elsewhere.

        Where little is missing it is filled in first, with the z that make :math:`(C + rI)^{-1}` of
        all zero there; the rest is a filter, and without noise nothing at all.
        """
        seen = self._for_draws(self._seen, offset) if seen is None else seen
        known = offset * seen
        if not _mostly(seen):
            shift = torch.where(seen, offset.new_full((), self.noise), 1.0)
            system = _Masked(self._joint, seen.to(offset), shift, _column(self.noise, offset))
            return _product(self._joint, system.solved(known) * seen)
        system = _Missing(self._joint, self.noise, ~seen)
        filled = known - system.solved(system.precision(known) * ~seen)
        return filled if self.noise == 0 else filled - self.noise * system.precision(filled)

    def _for_draws(self, own: Tensor, v: Tensor) -> Tensor:
        """What each sequence has, (batch, ...), for each of (n · batch, ...)."""
        return own.to(v.device).expand(self._by_draw(v).shape[0], *own.shape).flatten(0, 1)


class _Missing:
    r"""Systems with the missing block of :math:`G = (C + rI)^{-1}`: C_cond's inverse for r = 0.

    Args:
        process: C = Γ ⊗ Σ.
        noise: r.
        mask: (rows, N, d), True where an entry is missing.
    """

    def __init__(self, process: GaussianProcess, noise: float, mask: Tensor) -> None:
        self.mask, self.terms = mask, process.seq_len + process.dim + 4
        (temporal, self.u), (spatial, self.w) = (
            tuple(x.to(mask.device) for x in spectrum)
            for spectrum in (process.temporal_spectrum, process.spatial_spectrum)
        )
        self.variances = torch.outer(temporal, spatial) + noise
        self.size = 1 / self.variances.min().item()

    def precision(self, x: Tensor) -> Tensor:
        """G of x, (rows, N, d)."""
        return self.u @ ((self.u.mT @ x @ self.w) / self.variances) @ self.w.mT

    def product(self, x: Tensor) -> Tensor:
        """(rows, N · d)."""
        return (self.precision(x.view(self.mask.shape) * self.mask) * self.mask).flatten(1)

    def rounding(self, x: Tensor, rhs: Tensor) -> Tensor:
        """What it may do to a residual."""
        return gamma(2 * self.terms) * self.size * x + gamma(4) * rhs

    def solved(self, rhs: Tensor) -> Tensor:
        """(rows, N, d)."""
        system = System(self.product, torch.clone, self.rounding)
        return conjugate_gradients(system, rhs.flatten(1), TOLERANCE, MAX_STEPS).values.view_as(rhs)


class _Masked:
    r"""Systems :math:`D C D + V`, preconditioned with :math:`D^{-1}(C + fI)^{-1}D^{-1}`.

    With f the noise :math:`V/D^2` of most entries the preconditioned matrix differs from 1 in the
    others only: by a matrix of small rank. Where D = 0 it is the identity, as the system is.

    Args:
        process: C = Γ ⊗ Σ.
        scale, shift: D and V, (rows, N, d).
        usual: f >= 0, (rows, 1, 1) or (1, 1, 1).
    """

    def __init__(
        self, process: GaussianProcess, scale: Tensor, shift: Tensor, usual: Tensor
    ) -> None:
        self.process, self.scale, self.shift = process, scale, shift
        self.inverse = torch.where(scale > 0, 1 / scale, 0.0)
        (temporal, self.u), (spatial, self.w) = (
            tuple(x.to(scale.device) for x in spectrum)
            for spectrum in (process.temporal_spectrum, process.spatial_spectrum)
        )
        self.variances = torch.outer(temporal, spatial) + usual
        self.size = (temporal[-1] * spatial[-1]).item() + 1  # V <= 1, D <= 1

    def product(self, x: Tensor) -> Tensor:
        """(rows, N · d)."""
        x = x.view(self.scale.shape)
        moved = _product(self.process, self.scale * x)
        return (self.scale * moved + self.shift * x).flatten(1)

    def precondition(self, x: Tensor) -> Tensor:
        """(rows, N · d)."""
        x = x.view(self.scale.shape)
        rotated = self.u.mT @ (self.inverse * x) @ self.w
        solved = self.inverse * (self.u @ (rotated / self.variances) @ self.w.mT)
        return torch.where(self.scale > 0, solved, x).flatten(1)

    def rounding(self, x: Tensor, rhs: Tensor) -> Tensor:
        """What it may do to a residual."""
        terms = self.process.seq_len + self.process.dim + 4
        return gamma(terms) * self.size * x + gamma(4) * rhs

    def solved(self, rhs: Tensor) -> Tensor:
        """(rows, N, d)."""
        system = System(self.product, self.precondition, self.rounding)
        return conjugate_gradients(system, rhs.flatten(1), TOLERANCE, MAX_STEPS).values.view_as(rhs)


class _Solve(torch.autograd.Function):
    """x of A x = b; A is symmetric, so the gradient is another system with it."""

    @staticmethod
    def forward(ctx: Any, system: _Masked, rhs: Tensor) -> Tensor:
        ctx.system = system
        return system.solved(rhs)

    @staticmethod
    @once_differentiable
    @full_precision()
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.system.solved(gradient)


def by_frames(process: GaussianProcess, x: Tensor, observed: Tensor) -> Tensor | None:
    """A mask of whole frames, (..., N); None if single entries are missing.

    Args:
        process, x, observed: as :meth:`.GaussianProcess.condition` takes them; what is no mask
            comes back as it is, to be refused.
    """
    batch = len(x) if isinstance(x, Tensor) and x.ndim == 3 else 1
    whole = (process.seq_len, process.dim)
    if not isinstance(observed, Tensor) or observed.shape == (batch, process.seq_len):
        return observed
    if observed.dtype != torch.bool or observed.shape not in (whole, (batch, *whole)):
        return observed
    each = observed.any(dim=-1)
    return each if torch.equal(each, observed.all(dim=-1)) else None


def _mostly(mask: Tensor) -> bool:
    """Whether at least half of it is True."""
    return bool(mask.sum() * 2 >= mask.numel())


def _product(process: GaussianProcess, x: Tensor) -> Tensor:
    """(Γ ⊗ Σ) x of (..., N, d)."""
    return process.gram().to(x.device) @ x @ process.spatial.to(x.device)


def _column(level: float | Tensor, like: Tensor) -> Tensor:
    """A level as (rows, 1, 1) or (1, 1, 1), float64."""
    return torch.as_tensor(level, dtype=torch.float64, device=like.device).reshape(-1, 1, 1)


def _of_sequence(level: float | Tensor, k: int) -> float | Tensor:
    """The level of sequence k, (n, 1)."""
    return level[:, k, 0] if isinstance(level, Tensor) and level.ndim == 4 else level


def _spread(level: float | Tensor) -> float | Tensor:
    """(n, 1) as (n, 1, 1)."""
    return level[..., None] if isinstance(level, Tensor) and level.ndim else level
