r"""Gaussian-process sequences with covariance :math:`\Gamma \otimes \Sigma`.

Frames i and j of a sequence have :math:`\operatorname{Cov}[x_i, x_j] = \Gamma_{ij}\,\Sigma`, so
the sequence, frames one after the other, is :math:`N(\mu, \Gamma \otimes \Sigma)`. Everything here
works with the two factors; the Nd × Nd matrix is never formed except by
:meth:`GaussianProcess.covariance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from .kernels import PowerExponential, gram, toeplitz
from .precision import full_precision
from .spectra import symmetric_root
from .validation import (
    NotPSDError,
    require_count,
    require_finite,
    require_real,
    require_sequences,
    require_symmetric,
)
from .wrappers import lasting

PSD_TOLERANCE = 1e-10  # eigenvalues below -tolerance * largest are refused, tinier ones are clipped
SINGULAR_TOLERANCE = 1e-14  # a density needs eigenvalues above this, relative to the largest
EMBEDDING_TOLERANCE = 1e-12  # the same for the spectrum of a circulant embedding
EMBEDDING_GROWTH = 64  # largest circulant embedding, in multiples of the smallest one
CIRCULANT_FROM = 768  # frames from which the FFT beats the dense factor (measured, one thread)
DENSE_CHUNK = 2**17  # numbers drawn at a time, so that a chunk stays in cache
CIRCULANT_CHUNK = 2**19  # the same for transforms, which gain from coming in batches
DENSE_LIMIT = 8192  # rows of the largest dense covariance


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

    Attributes:
        temporal: the matrix (float64) or the kernel, as given.
        spatial: (d, d) float64.
        mean: (N, d) float64.
        seq_len: N.
        dim: d.

    Raises:
        NotPSDError: if a factor has an eigenvalue below −1e-10 times its largest. A kernel is not
            factorised before it is needed: :meth:`sample` or a score refuses it then.
        ValueError: for factors that are not square, symmetric and finite, or shapes that disagree.

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
    ) -> None:
        self._kernel = None if isinstance(temporal, Tensor) else temporal
        if self._kernel is None:
            temporal = require_symmetric("temporal", temporal)
            if seq_len not in (None, len(temporal)):
                raise ValueError(f"temporal has {len(temporal)} frames, but seq_len={seq_len}")
            self.seq_len = len(temporal)
        else:
            self.seq_len = _length_for(temporal, seq_len)
        self.spatial = require_symmetric("spatial", spatial)
        self.temporal = temporal if self._kernel is not None else temporal.to(self.spatial.device)
        self.dim = len(self.spatial)
        self.mean = self._frame_means(mean)
        self.spatial_spectrum  # noqa: B018  a covariance that is none is refused here, not later
        if self._kernel is None:
            self.temporal_spectrum  # noqa: B018

    def __repr__(self) -> str:
        temporal = self._kernel or f"({self.seq_len}, {self.seq_len}) matrix"
        return f"GaussianProcess(temporal={temporal}, seq_len={self.seq_len}, dim={self.dim})"

    def to(self, device: torch.device | str) -> GaussianProcess:
        """The same process, with its factors on a device."""
        temporal = self.temporal if self._kernel is not None else self.temporal.to(device)
        return GaussianProcess(
            temporal, self.spatial.to(device), self.mean.to(device), self.seq_len
        )

    def gram(self) -> Tensor:
        """Γ as an (N, N) float64 matrix."""
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
        """Eigenvalues (N,), ascending and clipped at 0, and eigenvectors (N, N) of Γ, float64."""
        return _spectrum(f"temporal covariance {self._temporal_name()}", self.gram())

    @cached_property
    @lasting
    def spatial_spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,), ascending and clipped at 0, and eigenvectors (d, d) of Σ, float64."""
        return _spectrum("spatial covariance", self.spatial)

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
        device = self.spatial.device
        out = torch.empty(n, self.seq_len, self.dim, dtype=dtype, device=device)
        spatial_root, mean = symmetric_root(*self.spatial_spectrum).to(dtype), self.mean.to(dtype)
        temporal_noise = self._circulant_noise if self._is_long() else self._dense_noise
        for rows, noise in temporal_noise(n, generator, dtype):  # (N, rows, d)
            frames = (noise @ spatial_root).transpose(0, 1)
            torch.add(frames, mean, out=out[rows])
        return out

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density :math:`-\tfrac12 (\|r\|^2 + \log\det(2\pi\,\Gamma\otimes\Sigma))`.

        Here r is the whitened sequence, :math:`(\Gamma\otimes\Sigma)^{-1/2}(x - \mu)`.

        Args:
            x: sequences (batch, N, d).

        Returns:
            (batch,), dtype and device of x; computed in float64.

        Raises:
            ValueError: for a wrong shape or non-finite values.
            NotPSDError: if Γ or Σ is singular to float64 precision, so that no density exists.
        """
        require_sequences("x", x, self.seq_len, self.dim)
        require_finite("x", x)
        (temporal_values, u), (spatial_values, w) = self.temporal_spectrum, self.spatial_spectrum
        for name, values in (("temporal", temporal_values), ("spatial", spatial_values)):
            _require_regular(name, values)
        variances = torch.outer(temporal_values, spatial_values)  # (N, d)
        rotated = u.T @ (x.to(u) - self.mean) @ w
        log_det = variances.log().sum() + variances.numel() * math.log(2 * math.pi)
        return (-0.5 * ((rotated**2 / variances).sum(dim=(1, 2)) + log_det)).to(x)

    def _is_long(self) -> bool:
        return self._kernel is not None and self.seq_len >= CIRCULANT_FROM

    def _temporal_name(self) -> str:
        return "given as a matrix" if self._kernel is None else f"of {self._kernel!r}"

    def _frame_means(self, mean: Tensor | None) -> Tensor:
        if mean is None:
            return self.spatial.new_zeros(self.seq_len, self.dim)
        mean = torch.as_tensor(mean, device=self.spatial.device)
        require_real("mean", mean)
        mean = mean.to(self.spatial)
        expected = (self.seq_len, self.dim)
        if mean.shape not in ((self.dim,), expected):
            raise ValueError(
                f"mean must have shape {expected} or ({self.dim},), got {tuple(mean.shape)}"
            )
        require_finite("mean", mean)
        return mean.expand(expected).clone()

    @cached_property
    @lasting
    def _kernel_gram(self) -> Tensor:
        return gram(self._kernel, self.seq_len).to(self.spatial)

    def _dense_noise(
        self, n: int, generator: torch.Generator | None, dtype: torch.dtype
    ) -> Iterator[tuple[slice, Tensor]]:
        """Chunks (N, rows, d) with covariance Γ along frames, white along the rest."""
        root = symmetric_root(*self.temporal_spectrum).to(dtype)
        for rows in _chunks(n, DENSE_CHUNK // (self.seq_len * self.dim)):
            shape = (self.seq_len, (rows.stop - rows.start) * self.dim)
            white = _normal(shape, generator, dtype, root.device)
            # one large product: every sequence and coordinate is a column
            yield rows, (root @ white).reshape(self.seq_len, -1, self.dim)

    def _circulant_noise(
        self, n: int, generator: torch.Generator | None, dtype: torch.dtype
    ) -> Iterator[tuple[slice, Tensor]]:
        """The same by FFT: each complex transform gives two independent real sequences."""
        amplitude = self._circulant_amplitude.to(dtype)
        for rows in _chunks(n, CIRCULANT_CHUNK // (len(amplitude) * self.dim)):
            columns = (rows.stop - rows.start) * self.dim
            pairs = -(-columns // 2)
            white = _normal((2, pairs, len(amplitude)), generator, dtype, amplitude.device)
            path = torch.fft.fft(torch.complex(white[0], white[1]) * amplitude)
            path = path[:, : self.seq_len]
            noise = torch.cat([path.real, path.imag])[:columns]  # (rows * d, N)
            yield rows, noise.T.reshape(self.seq_len, -1, self.dim)

    @cached_property
    @lasting
    def _circulant_amplitude(self) -> Tensor:
        """√(eigenvalue / M) of the smallest power-of-two circulant that is a covariance."""
        half = 2 ** math.ceil(math.log2(max(self.seq_len - 1, 1)))
        for _ in range(int(math.log2(EMBEDDING_GROWTH)) + 1):
            values = self._kernel(torch.arange(half + 1, dtype=torch.float64, device="cpu"))
            require_finite("the kernel's values", values)
            eigenvalues = torch.fft.hfft(torch.complex(values, torch.zeros_like(values)))
            if eigenvalues.min() > -EMBEDDING_TOLERANCE * eigenvalues.max():
                break
            half *= 2
        else:
            raise NotPSDError(
                f"no circulant embedding of {self._kernel!r} up to {half} frames is positive"
                f" semidefinite for seq_len={self.seq_len} (smallest eigenvalue"
                f" {eigenvalues.min():.3g}); the correlation does not decay: pass"
                " gram(kernel, seq_len) as the temporal covariance instead"
            )
        amplitude = (eigenvalues.clamp(min=0) / len(eigenvalues)).sqrt()
        return amplitude.to(self.spatial.device)


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
        lengthscale, exponent: ℓ and ν of :class:`gptheory.kernels.PowerExponential`.
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


def _spectrum(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    if values[0] < -PSD_TOLERANCE * values[-1].abs():
        raise NotPSDError(
            f"the {name} is not positive semidefinite: its smallest eigenvalue is"
            f" {values[0]:.3g}, its largest {values[-1]:.3g}; taper a truncated covariance"
            " (kernels.taper) or add a multiple of the identity above that eigenvalue"
        )
    return values.clamp(min=0), vectors


def _require_regular(name: str, values: Tensor) -> None:
    if values[0] <= SINGULAR_TOLERANCE * values[-1]:
        raise NotPSDError(
            f"the {name} covariance is singular to float64 precision (smallest eigenvalue"
            f" {values[0]:.3g}, largest {values[-1]:.3g}), so it has no density; add a small"
            " multiple of the identity, or ask for the density of the noised sequence"
        )


def _chunks(n: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _normal(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    source = device if generator is None else generator.device
    draw = _box_muller if dtype == torch.float64 and source.type == "cpu" else torch.randn
    return draw(shape, generator=generator, dtype=dtype, device=source).to(device)


def _box_muller(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Standard normal numbers, twice as fast as torch.randn, which in float64 is not vectorised."""
    half = -(-math.prod(shape) // 2)
    uniform = torch.rand(2, half, generator=generator, dtype=dtype, device=device)
    radius = uniform[0].neg_().log1p_().mul_(-2).sqrt_()  # 1 - u lies in (0, 1]
    angle = uniform[1].mul_(2 * math.pi)
    pairs = torch.empty_like(uniform)
    torch.cos(angle, out=pairs[0])
    torch.sin(angle, out=pairs[1])
    return pairs.mul_(radius).flatten()[: math.prod(shape)].view(shape)
