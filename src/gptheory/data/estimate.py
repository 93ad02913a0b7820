"""Laws estimated from sequences.

The more structure an estimator knows, the fewer sequences it needs. From least to most: a Gaussian
of any covariance (:class:`GaussianTwin`; :class:`.WienerScore` is the score of one), a covariance
Γ ⊗ Σ (:func:`kronecker_mle`), and one whose Γ depends on the lag only (:func:`toeplitz_moments`).
"""

from __future__ import annotations

import itertools
import math
import warnings

import torch
from torch import Tensor

from ..support.draws import normal_like
from ..support.precision import full_precision
from ..support.rounding import SUMMED, spectrum_rounding, unit_roundoff
from ..support.spectra import covariance_spectrum, nearest_covariance, symmetric_root
from ..support.validation import require_count, require_finite, require_sequences
from ..support.wrappers import lasting
from .covariance import diagonal_means, toeplitz
from .law import moved
from .process import GaussianProcess

FLIP_FLOPS = 2000  # most iterations of the maximum likelihood
FLIP_FLOP_TOLERANCE = 1e-8  # relative change of Γ at which they end


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
        The law; Γ has mean diagonal 1. Use it through :class:`.ExactScore`.

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
        :class:`.ExactScore`.

    Raises:
        ValueError: for a wrong shape, non-finite values, fewer than two sequences, or frames that
            do not vary in every direction, as nN < d + 1 of them cannot.

    Accuracy: the whitening is estimated from the same frames, so nN must be many times d.
    """
    mean, flat = _centred(_sample(x), (0, 1))
    _require_full_rank("coordinates", flat, _stored_rounding(x))
    spatial = torch.einsum("nid,nie->de", flat, flat) / flat[..., 0].numel()
    moment = _whitened_moment(flat, spatial)
    lags = diagonal_means(moment, range(len(moment)))
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


class GaussianTwin:
    """The Gaussian law with the mean and the covariance of given sequences, all Nd × Nd of it.

    What a model of second moments, however good, can make of the data.

    Args:
        x: sequences (n, N, d).

    Attributes:
        covariance: (Nd, Nd), float64, frame-major.
        seq_len, dim: N and d.

    Raises:
        ValueError: for a wrong shape, non-finite values or fewer than two sequences.
    """

    @lasting
    @full_precision()
    def __init__(self, x: Tensor) -> None:
        require_sequences("x", x)
        require_count("the number of sequences", len(x), minimum=2)
        require_finite("x", x)
        (self.seq_len, self.dim), rows = x.shape[1:], x.flatten(1)
        self._mean = rows.mean(dim=0)
        moments = torch.cov((rows - self._mean).T).double()
        spectrum = covariance_spectrum("covariance of x", moments, x.dtype)
        self.covariance = nearest_covariance(moments, spectrum, x.dtype)
        self._root = symmetric_root(*spectrum).to(x)

    def __repr__(self) -> str:
        return f"GaussianTwin(seq_len={self.seq_len}, dim={self.dim})"

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self._mean.device

    @property
    def parts(self) -> tuple[object, ...]:
        """Mean and covariance."""
        return self._mean, self.covariance

    @full_precision()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """(n, N, d), on the device of the sequences that were given, by default in their dtype.

        Raises:
            ValueError: for n < 0.
        """
        require_count("n", n, minimum=0)
        mean = self._mean if dtype is None else self._mean.to(dtype)
        white = normal_like(mean.expand(n, -1), generator)
        rows = mean + white @ self._root.to(mean)
        return rows.unflatten(1, (self.seq_len, self.dim))

    def to(self, device: torch.device | str) -> GaussianTwin:
        """The same law on a device: there it draws."""
        return moved(self, device)

    def kronecker_share(self) -> float:
        r"""Share of :math:`\|\mathrm{Cov}\|_F^2` that the nearest Γ ⊗ Σ explains (Van Loan 1993).

        Rearranged so that Γ ⊗ Σ is the outer product of its factors, the nearest product is the
        first term of a singular value decomposition.
        """
        seq_len, dim = self.seq_len, self.dim
        blocks = self.covariance.view(seq_len, dim, seq_len, dim).transpose(1, 2)
        values = torch.linalg.svdvals(blocks.reshape(seq_len**2, dim**2))
        return (values[0] ** 2 / values.square().sum()).item()
