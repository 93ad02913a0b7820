"""Covariances of sequences: Gram and Toeplitz matrices, bands and tapers; spatial covariances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..support.draws import drawn
from ..support.validation import (
    as_real,
    require_count,
    require_finite,
    require_one_of,
    require_positive,
    require_symmetric,
)


def gram(
    kernel: Callable[[Tensor], Tensor], seq_len: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    r"""Gram matrix :math:`\Gamma_{ij} = \gamma(|i - j|)`, i, j = 1..N.

    Args:
        kernel: function of the lag.
        seq_len: number of frames N.
        dtype: of the result; the kernel is evaluated in float64.

    Returns:
        (N, N), symmetric Toeplitz with unit diagonal.

    Raises:
        ValueError: for a sequence length below 1 or a kernel that is not finite.
    """
    return toeplitz(kernel_values(kernel, seq_len)).to(dtype)


def kernel_values(kernel: Callable[[Tensor], Tensor], seq_len: int) -> Tensor:
    r"""The correlations :math:`\gamma(0), …, \gamma(N-1)`, (N,) float64, on the CPU.

    Raises:
        ValueError: for a sequence length below 1 or a kernel that is not finite.
    """
    require_count("seq_len", seq_len)
    values = kernel(torch.arange(seq_len, dtype=torch.float64, device="cpu"))
    require_finite("the kernel's values", values)
    return values


def lags(seq_len: int, device: torch.device | str = "cpu") -> Tensor:
    r"""The lag :math:`|i - j|` of every pair of frames, (N, N)."""
    index = torch.arange(seq_len, device=device)
    return (index[:, None] - index[None, :]).abs()


def toeplitz(values: Tensor) -> Tensor:
    """The symmetric Toeplitz matrix whose entry (i, j) is the value of the lag of i and j.

    Args:
        values: (N,), one a lag.

    Returns:
        (N, N), dtype and device of the values; differentiable.

    Raises:
        ValueError: for values that are not real.
    """
    values = as_real("values", values)
    return values[lags(len(values), values.device)]


def diagonal_means(matrix: Tensor, lags: Iterable[int]) -> Tensor:
    """Averages along diagonals: of the entries (i, i + m), for every lag m.

    Args:
        matrix: (…, N, N).
        lags: −N < m < N.

    Returns:
        (…, number of lags). Of a matrix that :func:`toeplitz` made, for m = 0..N−1, its values.
    """
    return torch.stack([matrix.diagonal(m, -2, -1).mean(dim=-1) for m in lags], dim=-1)


def truncate(gram: Tensor, bandwidth: int) -> Tensor:
    r"""Hard band :math:`\bar\Gamma_{ij} = \Gamma_{ij}\, 1\{|i-j| < J\}`. Source: FDGWC Lemma 1.

    The result is often *not* positive semidefinite; :func:`taper` keeps it so.

    Args:
        gram: (N, N) temporal covariance.
        bandwidth: J >= 1, frames that interact, counted from the diagonal.

    Returns:
        (N, N) with zeros at lags of J and more.

    Raises:
        ValueError: for a bandwidth below 1 or a matrix that is not square and symmetric.
    """
    return gram * (_lag_over_bandwidth(gram, bandwidth) < 1)


def taper(gram: Tensor, bandwidth: int, window: str = "bohman") -> Tensor:
    r"""Smooth band :math:`\Gamma_{ij}\, w(|i-j|/J)` that stays positive semidefinite.

    Every window w is itself a covariance supported on [0, 1), so the entrywise product with a
    positive semidefinite matrix is positive semidefinite (Schur). With u = lag / J:
    ``"bartlett"`` 1 − u; ``"wendland"`` (1 − u)⁴(4u + 1); ``"bohman"``
    (1 − u) cos πu + sin(πu)/π.

    Args:
        gram: (N, N) temporal covariance.
        bandwidth: J >= 1; entries at lags of J and more become zero.
        window: name of the window.

    Returns:
        (N, N) with the diagonal of ``gram`` and zeros at lags of J and more.

    Raises:
        ValueError: for an unknown window, a bandwidth below 1, a matrix that is not symmetric.
    """
    require_one_of("window", window, sorted(TAPERS))
    u = _lag_over_bandwidth(gram, bandwidth)
    return gram * torch.where(u < 1, TAPERS[window](u), torch.zeros_like(u))


TAPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "bartlett": lambda u: 1 - u,
    "wendland": lambda u: (1 - u) ** 4 * (4 * u + 1),
    "bohman": lambda u: (1 - u) * torch.cos(math.pi * u) + torch.sin(math.pi * u) / math.pi,
}


def conditioned(gram: Tensor, condition: float) -> Tensor:
    r"""A nugget that leaves a given condition number: :math:`(\Gamma + \eta I)/(1 + \eta)`.

    White noise of variance :math:`\eta = (\lambda_{\max} - \kappa\lambda_{\min})/(\kappa - 1)`
    is added to every frame. Correlations at all lags shrink by one factor, so the shape of the
    decay stays, and a unit diagonal as well.

    Args:
        gram: (N, N) temporal covariance.
        condition: κ > 1 of the result, at most that of Γ.

    Returns:
        (N, N) in float64.

    Raises:
        ValueError: for a matrix that is not square and symmetric, or a condition number out of
            range: a nugget can only lower it.

    Accuracy: κ to 1e-12 relative where it is below 1e4; 1e-16 κ beyond.
    """
    gram = require_symmetric("the Gram matrix", gram)
    values = torch.linalg.eigvalsh(gram)
    low, high = values[0].item(), values[-1].item()
    # eigenvalues are known to rounding: the condition number of the matrix itself is no error
    if not 1 < condition < math.inf or condition * low > high * (1 + 1e-12):
        raise ValueError(
            "condition must lie above 1 and be at most that of the Gram matrix,"
            f" {high / low if low > 0 else math.inf:.3g}, got {condition!r}"
        )
    nugget = max(high - condition * low, 0.0) / (condition - 1)
    return (gram + nugget * torch.eye(len(gram)).to(gram)) / (1 + nugget)


def random_covariance(
    dim: int, low: float = 0.2, high: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""Random spatial covariance :math:`W \operatorname{diag}(m) W^\top` with W uniform.

    The extreme eigenvalues are exactly ``low`` and ``high`` (so the condition number is
    ``high / low``), the others uniform between them.

    Args:
        dim: size d; for d = 1 the result is the matrix ``high``.
        low, high: smallest and largest eigenvalue, 0 < low <= high.
        generator: source of randomness; its device is the result's.

    Returns:
        (d, d) in float64.

    Raises:
        ValueError: for a size below 1 or bounds out of order.
    """
    require_count("dim", dim)
    require_positive("low", low)
    if not low <= high < math.inf:
        raise ValueError(f"expected low <= high < inf, got low={low!r}, high={high!r}")
    eigenvalues = low + (high - low) * drawn(torch.rand, dim, generator=generator)
    eigenvalues[0], eigenvalues[-1] = low, high
    # uniform up to signs, which cancel below
    q, _ = torch.linalg.qr(drawn(torch.randn, dim, dim, generator=generator))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


def _lag_over_bandwidth(gram: Tensor, bandwidth: int) -> Tensor:
    require_count("bandwidth", bandwidth)
    require_symmetric("the Gram matrix", gram)
    return lags(len(gram)).to(gram) / bandwidth


def band(gram: Tensor, bandwidth: int | None, window: str | None = None) -> Tensor:
    r""":math:`\bar\Gamma`: Γ itself, its hard band, or its taper.

    Raises:
        ValueError: for a bandwidth outside 1..N, or a window without one.
    """
    if bandwidth is None:
        if window is not None:
            raise ValueError(f"taper={window!r} needs a bandwidth, the reach of its window")
        return gram
    require_count("bandwidth", bandwidth)
    if bandwidth > len(gram):
        raise ValueError(
            f"bandwidth must lie in 1..{len(gram)}, the number of frames, got {bandwidth}"
        )
    return truncate(gram, bandwidth) if window is None else taper(gram, bandwidth, window)
