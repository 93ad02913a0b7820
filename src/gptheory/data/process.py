r"""Gaussian-process sequences with covariance :math:`\Gamma \otimes \Sigma`.

Frames i and j of a sequence have :math:`\operatorname{Cov}[x_i, x_j] = \Gamma_{ij}\,\Sigma`, so
the sequence, frames one after the other, is :math:`N(\mu, \Gamma \otimes \Sigma)`. Everything here
works with the two factors; the Nd × Nd matrix is never formed except by
:meth:`GaussianProcess.covariance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..support.precision import full_precision
from ..support.rounding import spectrum_rounding, unit_roundoff
from ..support.spectra import (
    covariance_spectrum,
    frames_first,
    nearest_covariance,
    on_spectrum,
    symmetric_root,
)
from ..support.validation import (
    NotPSDError,
    as_real,
    require_count,
    require_finite,
    require_nonnegative,
    require_one_of,
    require_sequences,
    require_symmetric,
)
from ..support.wrappers import lasting
from .conditional import ConditionalProcess
from .covariance import gram, kernel_values, toeplitz
from .entries import ConditionalEntries, by_frames
from .framewise import framewise_scores
from .kernels import PowerExponential
from .law import diagonal_log_density, moved
from .noise import circulant_amplitude, circulant_noise, dense_noise
from .stationary import ToeplitzSolver

CIRCULANT_FROM = 768  # frames from which the FFT beats the dense factor (measured, one thread)
# frames from which conjugate gradients solve: eigenvectors take 2 s there, once, as long as 50 to
# 200 scores of 8 sequences; a score then costs the two about the same (measured, one thread)
SOLVER_FROM = 2048
DENSE_LIMIT = 8192  # rows of the largest dense covariance
INVERTED_TO = 1e8  # condition number up to which Γ is inverted
FRAMEWISE_VALUES = 2**24  # numbers in the matrices that are factorised together
SCORE_METHODS = ("auto", "eigenvectors", "conjugate-gradients")


class GaussianProcess:
    r"""Law of sequences X, :math:`\operatorname{vec} X \sim N(\mu, \Gamma \otimes \Sigma)`.

    X has the shape (N, d), and vec puts its frames one after the other.
    Source: FDGWC Data model.

    Args:
        temporal: Γ as an (N, N) positive semidefinite matrix, stationary or not, or a kernel
            (function of the lag) together with ``seq_len``; a kernel on a long sequence is sampled
            without ever forming Γ.
        spatial: Σ, (d, d) positive semidefinite.
        mean: μ, one vector (d,) for every frame or one per frame (N, d); zero if absent.
        seq_len: N, needed for a kernel.
        method: how the score and the density are computed: ``"eigenvectors"`` of Γ, O(N³) once
            and O(N²) a sequence; ``"conjugate-gradients"`` for a kernel or a Toeplitz Γ,
            O(N log N) and never a matrix (:class:`.ToeplitzSolver`). ``"auto"`` takes the second
            for kernels from 2048 frames on, if they have the circulant embedding that
            :meth:`sample` needs too, which proves that Γ is positive semidefinite; a kernel that
            has none is factorised up to 8192 frames, and refused beyond.

    Attributes:
        temporal: the matrix (float64) or the kernel, as given.
        spatial: (d, d) float64. A factor of fewer digits that is positive semidefinite up to their
            rounding is the nearest that is one, so that it can be handed on in float64.
        mean: (N, d) float64.
        seq_len: N.
        dim: d.
        temporal_dtype, spatial_dtype: in which the factors arrived; a kernel's Γ is float64.

    Raises:
        NotPSDError: if a factor has a negative eigenvalue that the rounding of its dtype does not
            explain (:func:`.clipped_eigh`); tinier ones count as 0. A kernel is not
            factorised before it is needed: :meth:`sample` or a score refuses it then.
        ValueError: for factors that are not square, symmetric and finite, shapes that disagree, an
            unknown method, or one that the factors do not allow: conjugate gradients for a Γ that
            is not Toeplitz, eigenvectors of a kernel on more than 8192 frames.

    Accuracy: factorised in float64; tensors of another dtype are cast, Γ and the mean go to the
    device of Σ.
    """

    @lasting
    def __init__(
        self,
        temporal: Tensor | Callable[[Tensor], Tensor],
        spatial: Tensor,
        mean: Tensor | None = None,
        seq_len: int | None = None,
        method: str = "auto",
    ) -> None:
        require_one_of("method", method, SCORE_METHODS)
        self._kernel = None if isinstance(temporal, Tensor) else temporal
        if self._kernel is None:
            self.temporal_dtype = temporal.dtype
            temporal = require_symmetric("temporal", temporal)
            if seq_len not in (None, len(temporal)):
                raise ValueError(f"temporal has {len(temporal)} frames, but seq_len={seq_len}")
            self.seq_len = len(temporal)
        else:
            self.temporal_dtype = torch.float64
            self.seq_len = _length_for(temporal, seq_len)
        spatial = as_real("spatial", spatial)
        self.spatial_dtype = spatial.dtype
        self.spatial = require_symmetric("spatial", spatial)
        self.temporal = temporal if self._kernel is not None else temporal.to(self.spatial.device)
        self.dim = len(self.spatial)
        self.mean = self._frame_means(mean)
        # a covariance that is none is refused here, not later
        self.spatial = nearest_covariance(self.spatial, self.spatial_spectrum, self.spatial_dtype)
        if self._kernel is None:
            self.temporal = nearest_covariance(
                self.temporal, self.temporal_spectrum, self.temporal_dtype
            )
        self._factors: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}
        self._require_method(method)
        self._asked = method

    def __repr__(self) -> str:
        temporal = self._kernel or f"({self.seq_len}, {self.seq_len}) matrix"
        return f"GaussianProcess(temporal={temporal}, seq_len={self.seq_len}, dim={self.dim})"

    def to(self, device: torch.device | str) -> GaussianProcess:
        """The same process, with its factors, and what was derived from them, on a device."""
        other = moved(self, device)
        other._factors = {}
        return other

    @property
    def device(self) -> torch.device:
        """Where the factors are, and where it draws."""
        return self.spatial.device

    @property
    def parts(self) -> tuple[object, ...]:
        """Γ or the kernel's name, Σ and μ."""
        temporal = self.temporal if self._kernel is None else repr(self._kernel)
        return temporal, self.spatial, self.mean

    @property
    def method(self) -> str:
        """By which the score is computed, ``"eigenvectors"`` or ``"conjugate-gradients"``."""
        return "eigenvectors" if self._solver is None else "conjugate-gradients"

    def autocovariance(self) -> Tensor:
        """γ(0), …, γ(N - 1) of a stationary process, (N,) float64; no matrix for a kernel.

        Raises:
            ValueError: where Γ does not depend on the lag alone.
        """
        if self._kernel is not None:
            return kernel_values(self._kernel, self.seq_len).to(self.device)
        self._require_stationary("an autocovariance is that of")
        return self.temporal[0].clone()

    def gram(self) -> Tensor:
        """Γ as an (N, N) float64 matrix.

        Raises:
            ValueError: of a kernel on more than 8192 frames; ``gram(kernel, seq_len)`` makes it.
        """
        return self.temporal if self._kernel is None else self._kernel_gram

    def covariance(self) -> Tensor:
        """Γ ⊗ Σ as a dense (N·d, N·d) float64 matrix, for small sizes.

        Raises:
            ValueError: above 8192 rows; work with ``gram()`` and ``spatial`` instead.
        """
        rows = self.seq_len * self.dim
        if rows > DENSE_LIMIT:
            raise ValueError(
                f"a dense covariance of {rows} rows is above the limit of {DENSE_LIMIT};"
                " use the factors gram() and spatial"
            )
        return torch.kron(self.gram(), self.spatial)

    @cached_property
    @lasting
    def temporal_spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (N,), ascending and clipped at 0, and eigenvectors (N, N) of Γ, float64.

        Raises:
            ValueError: of a kernel on more than 8192 frames.
        """
        name = "given as a matrix" if self._kernel is None else f"of {self._kernel!r}"
        return covariance_spectrum(f"temporal covariance {name}", self.gram(), self.temporal_dtype)

    @cached_property
    @lasting
    def spatial_spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,), ascending and clipped at 0, and eigenvectors (d, d) of Σ, float64."""
        return covariance_spectrum("spatial covariance", self.spatial, self.spatial_dtype)

    @property
    def smallest_variance(self) -> float:
        """λ_min of Γ ⊗ Σ, the variance of the faintest mode.

        Without eigenvectors a bound from below: Γ is the corner of the circulant that it was
        embedded in, so its eigenvalues lie between those of the circulant (Cauchy). The two differ
        by O(N⁻²) for a kernel whose embedding did not have to grow.
        """
        return (self._temporal_values[0] * self.spatial_spectrum[0][0]).item()

    @full_precision()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        r"""Draw n independent sequences.

        Dense factors: :math:`X = \mu + \Gamma^{1/2} Z\,\Sigma^{1/2}`, two matrix products a chunk;
        the roots are symmetric, so that a seed gives the same sequences whichever eigenvectors
        LAPACK finds. A kernel on a long sequence: circulant embedding, O(N log N) a sequence (Wood
        and Chan 1994).

        Args:
            n: number of sequences, 0 or more.
            generator: source of randomness; noise is drawn on its device, then moved.
            dtype: of the result.

        Returns:
            (n, N, d) on the device of ``spatial``.

        Raises:
            ValueError: for n < 0.
            NotPSDError: if no circulant embedding of the kernel is positive semidefinite.
        """
        require_count("n", n, minimum=0)
        out = torch.empty(n, self.seq_len, self.dim, dtype=dtype, device=self.device)
        spatial_root, mean = symmetric_root(*self.spatial_spectrum).to(dtype), self.mean.to(dtype)
        if self._kernel is not None and self.seq_len >= CIRCULANT_FROM:
            amplitude = self._amplitude.to(dtype)
            chunks = circulant_noise(amplitude, self.seq_len, n, self.dim, generator)
        else:
            root = symmetric_root(*self.temporal_spectrum).to(dtype)
            chunks = dense_noise(root, n, self.dim, generator)
        for rows, noise in chunks:  # (N, rows, d)
            frames = (noise @ spatial_root).transpose(0, 1)
            torch.add(frames, mean, out=out[rows])
        return out

    def noised_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Score of :math:`v = a x + s z`,

        .. math:: -(a^2\,\Gamma\otimes\Sigma + s^2 I)^{-1}(v - a\mu).

        With :math:`\Gamma = U\Lambda U^\top` and :math:`\Sigma = W M W^\top` the solve is a
        rotation, a division by :math:`a^2\lambda_i m_k + s^2`, and the rotation back, for any
        mixture of levels in a batch, after one factorisation. On long sequences each coordinate of
        Σ's eigenvectors is a Toeplitz system for :class:`.ToeplitzSolver`, in float64.

        Args and returns: see :meth:`.KnownLaw.noised_score`; with conjugate gradients the score can
        be differentiated to any order in v and in the levels.

        Raises:
            NotConvergedError: if conjugate gradients do not reach a relative residual of 1e-10.
        """
        if self._solver is not None:
            return self._solved_score(v, signal, noise)
        key = (v.dtype, v.device)
        if key not in self._factors:
            self._factors[key] = self._factors_as(*key)
        u, w, variances, mean = self._factors[key]
        signal, noise = frames_first(signal), frames_first(noise)
        frames = v.transpose(0, 1) - signal * mean  # (N, batch, d)
        return -on_spectrum(u, w, frames, lambda x: x / (signal**2 * variances + noise**2))

    def noised_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Log-density of :math:`N(a\mu, a^2\,\Gamma\otimes\Sigma + s^2 I)`, diagonal as the score.

        On long sequences the determinants are exact too, by Durbin's recursion: O(N²) time for each
        of the d coordinates and each pair of levels, 0.3 s at N = 8192 and 5 s at 65,536.

        Args and returns: see :meth:`.KnownLaw.noised_log_prob`.
        """
        if self._solver is not None:
            return self._solved_log_prob(v, signal, noise)
        (temporal, u), (spatial, w) = self.temporal_spectrum, self.spatial_spectrum
        signal, noise = (x.to(u) if isinstance(x, Tensor) else x for x in (signal, noise))
        rotated = u.T @ (v.to(u) - signal * self.mean) @ w
        variances = signal**2 * torch.outer(temporal, spatial) + noise**2  # (N, d), or of a batch
        return diagonal_log_density(rotated.flatten(1), variances.flatten(-2)).to(v)

    @cached_property
    @lasting
    def precision(self) -> Tensor | None:
        r""":math:`\Gamma^{-1}`, (N, N) float64; None where κ(Γ) may be above 1e8.

        There an inverse has too few digits to be computed with.
        """
        values = self._temporal_values
        regular = values[0] > spectrum_rounding(values, self.temporal_dtype)
        if not regular or values[-1] > INVERTED_TO * values[0]:
            return None
        return torch.cholesky_inverse(torch.linalg.cholesky(self.gram()))

    def condition(
        self, x: Tensor, observed: Tensor, noise: float = 0.0
    ) -> ConditionalProcess | ConditionalEntries:
        r"""The law of what is missing given what was seen, one for each sequence.

        Whole frames missing: :class:`.ConditionalProcess`, one small factorisation a pattern,
        after which everything is a few products. Single entries missing, or noise on what was
        seen: :class:`.ConditionalEntries`, by conjugate gradients, for then nothing factorises.
        Source: YC Conditional law.

        Args:
            x: sequences (batch, N, d) or one (N, d); anything, NaN too, where nothing was seen.
            observed: boolean, True where seen: frames (batch, N) or, one for all, (N,); entries
                (batch, N, d) or (N, d). Where x holds NaN at what is missing,
                ``observed = ~x.isnan().any(-1)``.
            noise: variance of white noise on what was seen. Above 0 the law is that of all frames,
                of seen ones too.

        Raises:
            ValueError: for nothing missing or everything missing, a mask of another shape or dtype,
                values that were seen but are not finite, or a kernel on more than 8192 frames.
                (Nothing missing is no error where there is noise: what was seen is smoothed.)
            NotPSDError: for a process too smooth to be conditioned in float64: covariances of what
                was seen that are singular to rounding.
        """
        require_nonnegative("noise", noise)
        if self._kernel is not None:
            self._require_dense("conditioning needs it, so that is the longest process")
        frames = by_frames(self, x, observed) if noise == 0 else None
        if frames is not None:
            return ConditionalProcess(self, x, frames)
        return ConditionalEntries(self, x, observed, float(noise))

    @full_precision()
    def framewise_score(self, v: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        r"""Score of frames noised each in its own measure, :math:`v_i = a_i x_i + s_i z_i`,

        .. math:: -C^{-1}(v - D\mu), \qquad C = D(\Gamma\otimes\Sigma)D + V, \quad
                  D = \operatorname{diag}(a_i), \quad V = \operatorname{diag}(s_i^2).

        In the eigenbasis of Σ these are d systems of N frames, :math:`m_k D\Gamma D + V`, for D
        and V are the same for all coordinates of a frame. Cholesky's factorisation of each,
        O(dN³) a sequence, once for sequences of the same steps; in float64.

        Args:
            v: (batch, N, d), checked by the caller.
            signal, noise: a and s >= 0, (batch, N, 1).

        Returns:
            (batch, N, d), dtype and device of v; differentiable.

        Raises:
            NotPSDError: if a C is singular to rounding: frames without noise of a process that is
                too smooth.

        Accuracy: 1e-15 κ(C), relative.
        """
        rows = max(1, FRAMEWISE_VALUES // (self.dim * self.seq_len**2))
        chunks = zip(*(each.split(rows) for each in (v, signal, noise)), strict=True)
        return torch.cat([framewise_scores(self, *chunk) for chunk in chunks])

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density :math:`-\tfrac12 (\|r\|^2 + \log\det(2\pi\,\Gamma\otimes\Sigma))`.

        Here r is the whitened sequence, :math:`(\Gamma\otimes\Sigma)^{-1/2}(x - \mu)`.

        Args:
            x: sequences (batch, N, d).

        Returns:
            (batch,), dtype and device of x; computed in float64.

        Raises:
            ValueError: for a wrong shape or non-finite values.
            NotPSDError: if Γ or Σ is singular to the precision in which it was given, so that no
                density exists.
            NotConvergedError: as :meth:`noised_score`.
        """
        require_sequences("x", x, self.seq_len, self.dim)
        require_finite("x", x)
        _require_regular("temporal", self._temporal_values, self.temporal_dtype)
        _require_regular("spatial", self.spatial_spectrum[0], self.spatial_dtype)
        if self._solver is not None:
            return self._solved_log_prob(x, 1.0, 0.0)
        (temporal_values, u), (spatial_values, w) = self.temporal_spectrum, self.spatial_spectrum
        variances = torch.outer(temporal_values, spatial_values)  # (N, d)
        rotated = u.T @ (x.to(u) - self.mean) @ w
        log_det = variances.log().sum() + variances.numel() * math.log(2 * math.pi)
        return (-0.5 * ((rotated**2 / variances).sum(dim=(1, 2)) + log_det)).to(x)

    def _solved_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        """The score by conjugate gradients."""
        rows, w, scale, shift = self._systems(v, signal, noise)
        solved = self._solver.solve(rows, scale, shift)
        return -(solved.transpose(1, 2) @ w.T).to(v)

    def _solved_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        rows, _w, scale, shift = self._systems(v, signal, noise)
        squares = (rows * self._solver.solve(rows, scale, shift)).sum(dim=(1, 2))
        log_det = self._solver.log_det(scale, shift).sum(dim=-1)
        return (-0.5 * (squares + log_det + rows[0].numel() * math.log(2 * math.pi))).to(v)

    @full_precision()
    def _systems(
        self, v: Tensor, signal: float | Tensor, noise: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""One a sequence and coordinate of Σ's eigenvectors: v − a μ, W, a² m_k and s².

        Shapes (batch, d, N), (d, d) and twice (batch or 1, d), float64, on the device of v.
        """
        key = (torch.float64, v.device)
        if key not in self._factors:
            self._factors[key] = self._solver_factors(v.device)
        w, variances, mean = self._factors[key]
        signal, noise = (_as_row(level, mean) for level in (signal, noise))
        rows = (v.double() - signal[..., None] * mean) @ w
        return rows.transpose(1, 2), w, signal**2 * variances, (noise**2).expand(-1, self.dim)

    @lasting
    def _solver_factors(self, device: torch.device) -> tuple[Tensor, ...]:
        variances, w = self.spatial_spectrum
        return tuple(factor.to(device) for factor in (w, variances, self.mean))

    @lasting
    def _factors_as(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Eigenvectors, variances (N, 1, d) and means (N, 1, d)."""
        (temporal, u), (spatial, w) = self.temporal_spectrum, self.spatial_spectrum
        factors = u, w, torch.outer(temporal, spatial)[:, None], self.mean[:, None]
        return tuple(factor.to(device, dtype) for factor in factors)

    def _frame_means(self, mean: Tensor | None) -> Tensor:
        if mean is None:
            return self.spatial.new_zeros(self.seq_len, self.dim)
        mean = as_real("mean", mean)
        expected = (self.seq_len, self.dim)
        if mean.shape not in ((self.dim,), expected):
            raise ValueError(
                f"mean must have shape {expected} or ({self.dim},), got {tuple(mean.shape)}"
            )
        require_finite("mean", mean)
        return mean.to(self.spatial).expand(expected).clone()

    def _require_method(self, method: str) -> None:
        """Raise unless the factors allow what was asked for."""
        if method == "eigenvectors" and self._kernel is not None:
            self._require_dense("method='auto' needs none")
        if method == "conjugate-gradients" and self._kernel is None:
            self._require_stationary("conjugate gradients need", "; use method='eigenvectors'")

    def _require_stationary(self, what: str, remedy: str = "") -> None:
        defect = (self.temporal - toeplitz(self.temporal[0])).abs().max().item()
        largest = self.temporal.abs().max().item()
        if defect > self.seq_len * unit_roundoff(self.temporal_dtype) * largest:
            raise ValueError(
                f"{what} a stationary process: the entries of temporal must depend on the lag"
                f" alone, but differ by up to {defect:.3g} along a diagonal{remedy}"
            )

    def _require_dense(self, remedy: str) -> None:
        if self._kernel is not None and self.seq_len > DENSE_LIMIT:
            raise ValueError(
                f"a matrix of {self.seq_len} frames ({self.seq_len**2 * 8 / 1e9:.3g} GB) is above"
                f" the limit of {DENSE_LIMIT} for a kernel; {remedy}"
            )

    @cached_property
    @lasting
    def _solver(self) -> ToeplitzSolver | None:
        """Conjugate gradients; None where eigenvectors solve."""
        if self._kernel is None:
            asked = self._asked == "conjugate-gradients"
            return ToeplitzSolver(self.temporal[0]) if asked else None
        short = self._asked == "auto" and self.seq_len < SOLVER_FROM
        if short or self._asked == "eigenvectors":
            return None
        try:
            _ = self._amplitude  # the proof that Γ is positive semidefinite
        except NotPSDError:
            if self._asked == "auto" and self.seq_len <= DENSE_LIMIT:
                return None
            raise
        return ToeplitzSolver(kernel_values(self._kernel, self.seq_len))

    @property
    def _temporal_values(self) -> Tensor:
        """Eigenvalues of Γ, ascending; without eigenvectors those of the circulant around it."""
        if self._solver is None or self._kernel is None:
            return self.temporal_spectrum[0]
        return (len(self._amplitude) * self._amplitude**2).sort().values

    @cached_property
    @lasting
    def _kernel_gram(self) -> Tensor:
        self._require_dense(
            "scores with one step for each sequence, densities and samples need none"
            " (method='auto'), and gram(kernel, seq_len) makes one that can be passed as temporal"
        )
        return gram(self._kernel, self.seq_len).to(self.spatial)

    @cached_property
    @lasting
    def _amplitude(self) -> Tensor:
        return circulant_amplitude(self._kernel, self.seq_len).to(self.device)


def decaying_process(
    seq_len: int,
    dim: int,
    lengthscale: float = 8.0,
    exponent: float = 1.0,
    correlation: float = 0.5,
) -> GaussianProcess:
    r"""The laws of the experiments: γ power-exponential, :math:`\Sigma_{ij} = \rho^{|i-j|}`, μ = 0.

    Every coordinate has variance 1. Source: FDGWC Data model.

    Args:
        seq_len, dim: N and d.
        lengthscale, exponent: ℓ and ν of :class:`.PowerExponential`.
        correlation: ρ in (−1, 1), of neighbouring coordinates.

    Raises:
        ValueError: for numbers out of range.
    """
    require_count("dim", dim)
    if not -1 < correlation < 1:
        raise ValueError(f"correlation must lie in (-1, 1), got {correlation!r}")
    spatial = toeplitz(correlation ** torch.arange(dim, dtype=torch.float64, device="cpu"))
    return GaussianProcess(gram(PowerExponential(lengthscale, exponent), seq_len), spatial)


def _length_for(temporal: object, seq_len: int | None) -> int:
    if not callable(temporal):
        raise ValueError(f"temporal must be a tensor or a kernel, got {type(temporal).__name__}")
    if seq_len is None:
        raise ValueError(f"a kernel needs seq_len, the number of frames; got {temporal!r} alone")
    require_count("seq_len", seq_len)
    return int(seq_len)


def _as_row(level: float | Tensor, like: Tensor) -> Tensor:
    """A level (batch, 1), or (1, 1) of one for all, in float64."""
    if not isinstance(level, Tensor):
        return like.new_full((1, 1), level)
    return level.to(like).reshape(-1, 1)


def _require_process(name: str, law: object) -> None:
    """Raise unless a law is one Γ ⊗ Σ and a mean, as closed forms need it."""
    if isinstance(law, GaussianProcess):
        return
    hint = ""
    if isinstance(law, ConditionalProcess):
        hint = "; pass law.process(k), of sequence k, and draws at its missing frames only"
    raise ValueError(f"{name} must be a GaussianProcess, got a {type(law).__name__}{hint}")


def _require_regular(name: str, values: Tensor, dtype: torch.dtype) -> None:
    if values[0] <= spectrum_rounding(values, dtype):
        raise NotPSDError(
            f"the {name} covariance is singular to {dtype} precision (smallest eigenvalue"
            f" {values[0]:.3g}, largest {values[-1]:.3g}), so it has no density; add a small"
            " multiple of the identity, or ask for the density of the noised sequence"
        )
