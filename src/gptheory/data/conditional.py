r"""What is known of missing frames when the others are seen: the law of x given some of x.

For x of :math:`N(\mu, \Gamma\otimes\Sigma)` and whole frames missing, m, beside those that are
seen, o,

.. math:: x_m \mid x_o \sim N\left(\mu_m + W(x_o - \mu_o),\ \Gamma_{cond}\otimes\Sigma\right),
          \qquad W = \Gamma_{mo}\Gamma_{oo}^{-1}, \quad
          \Gamma_{cond} = \Gamma_{mm} - \Gamma_{mo}\Gamma_{oo}^{-1}\Gamma_{om} .

:math:`\Sigma` is not in W (geostatistics knows this as *autokrigeability*), and the law is that of
a Gaussian process again. Neither holds where single entries are missing or what is seen is noisy:
:mod:`gptheory.data.entries`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..support.draws import drawn
from ..support.precision import full_precision
from ..support.rounding import spectrum_rounding
from ..support.spectra import PSD_TOLERANCE, symmetric_root
from ..support.validation import (
    NotPSDError,
    require_count,
    require_finite,
    require_floating,
    require_sequences,
    require_step,
)
from ..support.wrappers import lasting
from .law import diagonal_log_density, moved

if TYPE_CHECKING:
    from typing import Any as GaussianProcess  # which imports this file


class Conditional:
    """What conditional laws of a batch of sequences share: shapes, checks, what is seen.

    Args:
        process: the law of whole sequences.
        x: sequences (batch, N, d) or one (N, d), anything where they are not seen.
        observed: (batch, N) or (batch, N, d), or one for all without the batch.

    Raises:
        ValueError: as :meth:`.GaussianProcess.condition`.
    """

    noise = 0.0  # variance of that on what was seen

    @lasting
    def __init__(self, process: GaussianProcess, x: Tensor, observed: Tensor) -> None:
        self._joint = process
        self.seq_len, self.dim = process.seq_len, process.dim
        require_floating("x", x, f"(batch, {self.seq_len}, {self.dim})")
        self._single = x.ndim == 2
        x = x[None] if self._single else x
        require_sequences("x", x, self.seq_len, self.dim)
        require_count("the number of sequences in x", len(x))
        whole = (len(x), self.seq_len, self.dim)
        observed = _as_mask(observed, whole).to(process.device)
        seen = observed if observed.ndim == 3 else observed[..., None]
        _require_some(seen, self.noise > 0)
        self._seen = seen.expand(whole).clone()
        x = x.detach().to(process.device, torch.float64)
        self._x = torch.where(self._seen, x, process.mean)
        require_finite("x where it was observed", self._x)

    def __repr__(self) -> str:
        sizes = f"sequences={len(self._x)}, seq_len={self.seq_len}, dim={self.dim}"
        return f"{type(self).__name__}({sizes})"

    @property
    def device(self) -> torch.device:
        """Where the law is, and where it draws."""
        return self._joint.device

    @property
    def parts(self) -> tuple[object, ...]:
        """Those of the law of whole sequences, what was seen, and where."""
        return *self._joint.parts, self._x, self._seen

    def to(self, device: torch.device | str) -> Conditional:
        """The same law on a device."""
        other = moved(self, device)
        other._joint = self._joint.to(device)
        return other

    @property
    def batch(self) -> int:
        """How many sequences it is the law of, each given its own."""
        return len(self._x)

    @property
    def open_share(self) -> float:
        """Unknown entries as a share of all; 1 where there is noise."""
        return self._free.expand(self._seen.shape).double().mean().item()

    @property
    def observed(self) -> Tensor:
        """What was seen, boolean, as it was given but one for each sequence."""
        return self._alone(self._seen if self._by_entries else self._seen[..., 0])

    def completed(self, v: Tensor) -> Tensor:
        """v where nothing was seen, and what was seen elsewhere.

        Args:
            v: (n · batch, N, d): n sequences for each, draw by draw.

        Returns:
            (n · batch, N, d), dtype and device of v.
        """
        self._require_own("v", v)
        free = self._free.to(v.device)
        return torch.where(free, self._by_draw(v), self._x.to(v)).view_as(v)

    def score(self, v: Tensor, t: float | Tensor) -> Tensor:
        r"""Score of what is missing, noised, given what is seen, :math:`\nabla\log p_t(v | x_o)`.

        :class:`.ExactScore` of this law says the same, and is what samplers take.

        Args:
            v: noised sequences (n · batch, N, d), n for each, draw by draw; where they were seen
                v is not looked at.
            t: diffusion step > 0, a number or one per sequence (n · batch,).

        Returns:
            (n · batch, N, d), dtype and device of v; zero at what was seen.

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        self._require_own("v", v)
        require_step(t)
        return self.noised_score(v, *_levels(t, v))

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density of what is missing in x given what was seen.

        Args:
            x: (n · batch, N, d), n for each, draw by draw; what was seen is not looked at.

        Returns:
            (n · batch,), dtype and device of x; computed in float64.

        Raises:
            ValueError: for a wrong shape, or values of what is missing that are not finite.
            NotPSDError: if the conditional covariance is singular to rounding, so that no density
                exists.
        """
        self._require_own("x", x)
        require_finite("x where it is missing", self._by_draw(x)[:, self._free.to(x.device)])
        if self._is_singular():
            raise NotPSDError(
                "the conditional covariance is singular to float64 precision, so it has no"
                " density; ask for the density of the noised sequence"
            )
        return self.noised_log_prob(x, 1.0, 0.0)

    def _alone(self, values: Tensor) -> Tensor:
        """Without the batch, where one sequence was given without."""
        return values[0] if self._single else values

    def _require_own(self, name: str, v: Tensor) -> None:
        """Raise unless v is (n · batch, N, d)."""
        if isinstance(v, Tensor) and v.shape[1:] == self._x.shape and v.is_floating_point():
            raise ValueError(
                f"{name} must have shape (n · batch, {self.seq_len}, {self.dim}), draw by draw, got"
                f" {tuple(v.shape)}; draws of sample(n) pass as {name}.flatten(0, 1)"
            )
        require_sequences(name, v, self.seq_len, self.dim)

    def _by_draw(self, v: Tensor) -> Tensor:
        """(n · batch, ...) as (n, batch, ...)."""
        if len(v) % len(self._x):
            raise ValueError(
                f"v must have as many sequences as the law, {len(self._x)}, or a multiple of that"
                f" (n draws for each, as sample(n).flatten(0, 1)), got {len(v)}"
            )
        return v.unflatten(0, (len(v) // len(self._x), len(self._x)))

    def _level_by_draw(self, level: float | Tensor, v: Tensor) -> float | Tensor:
        """A level (n · batch, 1, 1) of v as (n, batch, 1, 1); one for all as it is."""
        own = isinstance(level, Tensor) and level.ndim and len(level) == len(v)
        return self._by_draw(level) if own else level


class ConditionalProcess(Conditional):
    r"""The law of missing frames given the others, one for each sequence of a batch.

    :math:`N(\mu_m + W(x_o - \mu_o), \Gamma_{cond}\otimes\Sigma)` at the frames that are missing;
    what was seen stays as it is. :meth:`.GaussianProcess.condition` makes it. Sequences that miss
    the same frames share a factorisation: with :math:`\Gamma^{-1}`, made once for the process,
    O(M³ + M²N) for each pattern and O(MN) a sequence and coordinate, M frames missing.

    Made from one sequence without a batch, (N, d), it is a law like any other. Of a batch, what
    takes or returns sequences takes or returns n for each, draw by draw: (n · batch, N, d). A
    sampler moves seen frames as it moves noise, so ``law.completed(sample(ExactScore(law), n *
    batch, N, d))`` puts them back.

    Source: YC Conditional law.

    Args:
        process, x: as there.
        observed: (batch, N) or (N,), boolean, True where a frame was seen.

    Attributes:
        seq_len, dim: N and d.

    Raises:
        ValueError, NotPSDError: as there.

    Accuracy: against dense linear algebra 1e-15 κ(Γ_oo), relative. Gradients pass through v, none
        through x, which is a constant.
    """

    _by_entries = False

    @full_precision()
    def __init__(self, process: GaussianProcess, x: Tensor, observed: Tensor) -> None:
        super().__init__(process, x, observed)
        self._free = ~self._seen
        self._condition()
        self._factors: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def to(self, device: torch.device | str) -> ConditionalProcess:
        """The same law on a device."""
        other = super().to(device)
        other._factors = {}
        return other

    @lasting
    def _condition(self) -> None:
        """W and Γ_cond of every pattern, (P, M, N) and (P, M, M), and the mean.

        Patterns with fewer than M missing frames are padded with some that were seen.
        """
        seen, self._which = _kinds(self._seen[..., 0])
        self._counts = (~seen).sum(dim=1)
        # missing frames first, in their order
        order = seen.int().argsort(dim=1, stable=True)[:, : int(self._counts.max())]
        self._missing = ~seen.gather(1, order)  # (P, M), False where padded
        self._padded = not bool(self._missing.all())
        self._frames = order[self._which]  # (batch, M)
        solve = _by_covariance if self._joint.precision is None else _by_precision
        self._weights, self._temporal = solve(self._joint, seen, order, self._missing)
        offset = self._x - self._joint.mean  # 0 at missing frames
        shared = len(seen) == 1  # then one large product
        pulled = (
            torch.einsum("mn,bnd->bmd", self._weights[0], offset)
            if shared
            else self._own(self._weights) @ offset
        )
        self._mean = self._x + self._put(pulled)

    @property
    def mean(self) -> Tensor:
        """E[x | x_o], (batch, N, d) float64; seen frames as they are."""
        return self._alone(self._mean)

    @property
    def variance(self) -> Tensor:
        """Of every coordinate given x_o, (batch, N, d) float64; zero where a frame was seen."""
        frames = self._own(self._temporal.diagonal(dim1=-2, dim2=-1))[..., None]
        return self._alone(self._put(frames * self._joint.spatial.diagonal()))

    def weights(self, k: int = 0) -> Tensor:
        r"""Kriging weights :math:`W = \Gamma_{mo}\Gamma_{oo}^{-1}` of sequence k, (M, N − M)."""
        which, count = self._of(k)
        return self._weights[which, :count][:, self._seen[k, :, 0]]

    def temporal(self, k: int = 0) -> Tensor:
        r""":math:`\Gamma_{cond}` of sequence k, (M, M) float64, missing frames in their order."""
        which, count = self._of(k)
        return self._temporal[which, :count, :count]

    def process(self, k: int = 0) -> GaussianProcess:
        r"""The missing frames of sequence k as a :class:`.GaussianProcess` of M frames.

        With :math:`\Gamma_{cond}`, Σ and the conditional mean; all that is known of processes
        (samplers' exact laws, distances, budgets) applies to it.
        """
        temporal = self.temporal(k)
        mean = self._mean[k][self._free[k, :, 0]]
        return type(self._joint)(temporal, self._joint.spatial, mean)

    def covariance(self, k: int = 0) -> Tensor:
        r""":math:`\Gamma_{cond}\otimes\Sigma` of sequence k, (M·d, M·d) float64, dense.

        Raises:
            ValueError: above 8192 rows.
        """
        return self.process(k).covariance()

    @property
    def condition_number(self) -> Tensor:
        r""":math:`\kappa(\Gamma_{cond})\,\kappa(\Sigma)` of every sequence, (batch,) float64.

        Source: YC Condition number of Theorem 1.
        """
        values, spatial = self._spectrum[0], self._joint.spatial_spectrum[0]
        smallest = torch.where(self._own_values, values, torch.inf).amin(dim=1)
        ratio = values.amax(dim=1) / smallest * spatial[-1] / spatial[0]
        return self._alone(ratio[self._which])

    @property
    def effective_dimension(self) -> Tensor:
        r""":math:`(\operatorname{tr}C)^2/\operatorname{tr}C^2`, C = Γ_cond ⊗ Σ, (batch,)."""
        pairs = (self._temporal, self._joint.spatial)
        ratios = [
            each.diagonal(dim1=-2, dim2=-1).sum(-1) ** 2 / (each**2).sum((-2, -1)) for each in pairs
        ]
        return self._alone((ratios[0] * ratios[1])[self._which])

    @property
    def smallest_variance(self) -> float:
        """λ_min of Γ_cond ⊗ Σ, the least of all sequences."""
        smallest = torch.where(self._own_values, self._spectrum[0], torch.inf).min()
        return (smallest * self._joint.spatial_spectrum[0][0]).item()

    @full_precision()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        r"""Draw n sequences for each: :math:`\mu_{cond} + \Gamma_{cond}^{1/2} Z\,\Sigma^{1/2}`.

        Args:
            n: 0 or more.
            generator: source of randomness; drawn on its device, then moved.
            dtype: of the result.

        Returns:
            (n, batch, N, d), or (n, N, d) where one sequence was given; seen frames as they are.

        Raises:
            ValueError: for n < 0.
        """
        require_count("n", n, minimum=0)
        shape = n, *self._frames.shape, self.dim
        noise = drawn(torch.randn, *shape, generator=generator, dtype=dtype, device=self.device)
        root = self._own(symmetric_root(*self._spectrum).to(dtype))
        spatial = symmetric_root(*self._joint.spatial_spectrum).to(dtype)
        draws = self._mean.to(dtype) + self._put(root @ noise @ spatial)
        draws = torch.where(self._free, draws, self._x.to(dtype))
        return draws[:, 0] if self._single else draws

    @full_precision()
    def noised_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Score of :math:`v = a x_m + s z` given x_o, at the missing frames

        .. math:: -(a^2\,\Gamma_{cond}\otimes\Sigma + s^2 I)^{-1}(v - a\,\mu_{cond}),

        and zero at the others. Source: YC Score (6).

        Args and returns: see :meth:`.KnownLaw.noised_score`; n sequences for each of the batch.
        """
        u, w, variances, _own, _logs = self._factors_for(v)
        rotated, signal, noise = self._rotated(v, signal, noise)
        pulled = u @ (rotated / (signal**2 * variances + noise**2)) @ w.T
        return -self._put(pulled).view_as(v)

    @full_precision()
    def noised_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Log-density of the same v at the missing frames.

        That of :math:`N(a\mu_{cond}, a^2\,\Gamma_{cond}\otimes\Sigma + s^2 I)`.

        Args and returns: see :meth:`.KnownLaw.noised_log_prob`; n sequences for each of the batch.
        """
        signal, noise = (x.double() if isinstance(x, Tensor) else x for x in (signal, noise))
        _u, _w, variances, own, _ = self._factors_for(v.double())
        rotated, signal, noise = self._rotated(v.double(), signal, noise)
        noised = torch.where(own, signal**2 * variances + noise**2, 1 / (2 * math.pi))
        return diagonal_log_density(rotated.flatten(-2), noised.flatten(-2)).flatten().to(v)

    def _is_singular(self) -> bool:
        values = torch.where(self._own_values, self._spectrum[0], torch.inf).amin(dim=1)
        spatial = self._joint.spatial_spectrum[0]
        own = (values <= spectrum_rounding(self._spectrum[0])[:, 0]).any()
        return bool(own) or bool(spatial[0] <= spectrum_rounding(spatial))

    def _of(self, k: int) -> tuple[int, int]:
        """The pattern of sequence k, and how many frames it misses."""
        if not 0 <= k < len(self._x):
            raise ValueError(f"k must lie in 0..{len(self._x) - 1}, the sequences, got {k!r}")
        which = int(self._which[k])
        return which, int(self._counts[which])

    @cached_property
    @lasting
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Of every Γ_cond, (P, M) ascending and (P, M, M); padding comes first, as 0."""
        values, vectors = torch.linalg.eigh(
            self._temporal - (~self._missing).to(self._temporal).diag_embed()
        )
        values = torch.where(self._own_values, values, 0.0)
        limit = PSD_TOLERANCE * self._joint.gram().diagonal().max()
        if (values < -limit).any():
            raise _too_smooth(f"Γ_cond has the eigenvalue {values.min():.3g}")
        return values.clamp(min=0), vectors

    @property
    def _own_values(self) -> Tensor:
        """Which eigenvalues are those of missing frames, (P, M): padding is -1, hence first."""
        count = self._missing.shape[1]
        return torch.arange(count, device=self.device) >= count - self._counts[:, None]

    def _factors_for(self, v: Tensor) -> tuple[Tensor, ...]:
        key = (v.dtype, v.device)
        if key not in self._factors:
            self._factors[key] = self._factors_as(*key)
        return self._factors[key]

    @lasting
    def _factors_as(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """U and W, variances (batch, M, d), which of them count, and means (batch, M, d)."""
        (values, u), (spatial, w) = self._spectrum, self._joint.spatial_spectrum
        variances = self._own(values[..., None] * spatial)
        mean = self._take(self._mean)
        own = self._own(self._own_values)[..., None].expand(variances.shape)
        made = (part.to(device, dtype) for part in (self._own(u), w, variances))
        return *made, own.to(device), mean.to(device, dtype)

    def _rotated(
        self, v: Tensor, signal: float | Tensor, noise: float | Tensor
    ) -> tuple[Tensor, float | Tensor, float | Tensor]:
        """(v − a μ_cond) of missing frames in the eigenbasis, (n, batch, M, d), and the levels."""
        u, w, _variances, _own, mean = self._factors_for(v)
        signal, noise = self._level_by_draw(signal, v), self._level_by_draw(noise, v)
        residual = self._take(self._by_draw(v)) - signal * mean
        if self._padded:
            residual = residual.masked_fill(~self._own(self._missing)[..., None].to(v.device), 0.0)
        return u.mT @ residual @ w, signal, noise

    def _own(self, of_patterns: Tensor) -> Tensor:
        """(P, ...) as (batch, ...), or (1, ...) where all are the same."""
        return of_patterns if len(of_patterns) == 1 else of_patterns[self._which]

    def _take(self, frames: Tensor) -> Tensor:
        """(..., batch, N, d) at the missing frames, (..., batch, M, d)."""
        index = self._frames.to(frames.device)[..., None].expand(*frames.shape[:-2], -1, self.dim)
        return frames.gather(-2, index)

    def _put(self, values: Tensor) -> Tensor:
        """(..., batch, M, d) at the missing frames of zeros, (..., batch, N, d)."""
        if self._padded:
            kept = self._own(self._missing)[..., None].to(values.device)
            values = values.masked_fill(~kept, 0.0)
        values = values.expand(*values.shape[:-3], len(self._x), -1, -1)
        index = self._frames.to(values.device)[..., None].expand(values.shape)
        out = values.new_zeros(*values.shape[:-2], self.seq_len, self.dim)
        return out.scatter(-2, index, values)


def _as_mask(observed: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The mask, one for each sequence: (batch, N) or (batch, N, d).

    One for all may come without the batch; (N, d) that is also (batch, N) is one for each.
    """
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        raise ValueError(_wrong_kind(observed))
    batch, seq_len, dim = shape
    if observed.shape in ((batch, seq_len), (batch, seq_len, dim)):
        return observed
    if observed.shape in ((seq_len,), (seq_len, dim)):
        return observed.expand(batch, *observed.shape)
    raise ValueError(
        f"observed must have shape ({seq_len},), ({batch}, {seq_len}) or, where single entries are"
        f" missing, ({batch}, {seq_len}, {dim}); got {tuple(observed.shape)}"
    )


def _wrong_kind(observed: object) -> str:
    given = (
        f"a tensor of {observed.dtype}" if isinstance(observed, Tensor) else type(observed).__name__
    )
    message = f"observed must be a boolean tensor, True where a frame was seen, got {given}"
    if not isinstance(observed, Tensor):
        return message
    if observed.is_floating_point() and observed.isnan().any():
        return message + " with NaN; where NaN marks what is missing, observed = ~x.isnan().any(-1)"
    return message + "; of zeros and ones, pass observed.bool()"


def _require_some(seen: Tensor, noisy: bool = False) -> None:
    """Raise unless each sequence has something that was seen and something that is not known."""
    for kind, every, hint in (
        ("nothing is missing", seen.all(dim=2).all(dim=1), "there is nothing to condition"),
        ("everything is missing", ~seen.any(dim=2).any(dim=1), "its law is the process itself"),
    ):
        if every.any() and not (noisy and kind == "nothing is missing"):
            raise ValueError(
                f"{kind} in sequence {int(every.int().argmax())}: {hint}; expected at least one"
                " frame that was seen and one that was not"
            )


def _kinds(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The patterns among masks (batch, N), (P, N), and which one each is, (batch,)."""
    numbers: dict[bytes, int] = {}  # ten times faster than torch.unique
    rows = seen.cpu().numpy()
    which = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    firsts = {number: k for k, number in reversed(list(enumerate(which)))}
    rows = [firsts[number] for number in range(len(numbers))]
    return seen[rows], torch.tensor(which, device=seen.device)


def _by_precision(
    process: GaussianProcess, seen: Tensor, order: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor]:
    r"""W and Γ_cond from :math:`P = \Gamma^{-1}`: :math:`-P_{mm}^{-1}P_{mo}` and its first factor.

    P is made once for a process, so that a pattern costs O(M³ + M²N).

    Args:
        process: with a precision.
        seen: patterns (P, N).
        order, missing: frames (P, M), and whether they are missing or padding.
    """
    rows = process.precision[order]
    both = missing[:, :, None] & missing[:, None]
    own = rows.gather(2, order[:, None].expand(both.shape)).masked_fill(~both, 0.0)
    factor = torch.linalg.cholesky(own + (~missing).to(own).diag_embed())
    temporal = torch.cholesky_inverse(factor).masked_fill(~both, 0.0)
    return -temporal @ rows.masked_fill(~seen[:, None], 0.0), temporal


def _by_covariance(
    process: GaussianProcess, seen: Tensor, order: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor]:
    """The same from a factorisation of Γ_oo, which may be regular where Γ is not: O(N³) each."""
    _require_regular(process, seen)
    gram = process.gram()
    inside = gram.masked_fill(~(seen[:, :, None] & seen[:, None]), 0.0)
    factor, failed = torch.linalg.cholesky_ex(inside + (~seen).to(gram).diag_embed())
    if failed.any():
        raise _too_smooth("Cholesky's factorisation of Γ_oo fails")
    cross = gram[order] * (seen[:, None] & missing[..., None])
    half = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
    weights = torch.linalg.solve_triangular(factor.mT, half, upper=True).mT
    own = gram[order[:, :, None], order[:, None]] - half.mT @ half
    return weights, (own + own.mT) / 2 * (missing[:, :, None] & missing[:, None])


def _require_regular(process: GaussianProcess, seen: Tensor) -> None:
    """Raise if Γ_oo of any pattern (P, N) is singular to the precision in which Γ was given."""
    for each in seen:
        own = torch.linalg.eigvalsh(process.gram()[each][:, each])
        if own[0] <= spectrum_rounding(own, process.temporal_dtype):
            raise _too_smooth(
                f"Γ_oo has the smallest eigenvalue {own[0]:.3g} and the largest {own[-1]:.3g}"
            )


def _too_smooth(what: str) -> NotPSDError:
    """The error for a process that cannot be conditioned, and why."""
    return NotPSDError(
        f"the process is too smooth to be conditioned in float64: {what}, singular to rounding;"
        " add a nugget (covariance.conditioned), say how noisy the observations are (noise=...),"
        " or see fewer frames"
    )


def _levels(t: float | Tensor, v: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """α_t and σ_t, as diffusion.schedule has them, which this room cannot see."""
    if not isinstance(t, Tensor):
        return math.exp(-t / 2), math.sqrt(-math.expm1(-t))
    if t.shape not in ((), (1,), (len(v),)):
        raise ValueError(f"t must be a number or have shape ({len(v)},), got {tuple(t.shape)}")
    t = t if t.is_floating_point() else t.double()
    shape = (-1, 1, 1) if t.ndim else ()
    return tuple(x.to(v).reshape(shape) for x in ((-t / 2).exp(), (-torch.expm1(-t)).sqrt()))
