r"""What one long sequence says of its law: lags and frequencies, in time N log N.

Both are taken of whitened coordinates, :math:`y = x\,\Sigma^{-1/2}`: d independent sequences with
covariance Γ, if x has the law.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.process import GaussianProcess
from ..support.precision import full_precision
from ..support.validation import require_count, require_finite, require_sequences


@full_precision()
def lag_products(x: Tensor, process: GaussianProcess, lags: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""Mean products of frames that are m apart, an unbiased estimate of :math:`\gamma(m)`,

    .. math:: \hat\gamma(m) = \frac{1}{n d (N - m)} \sum y_i\, y_{i+m}, \qquad
        \operatorname{var}\hat\gamma(m) \approx \frac{1}{n d (N - m)}
        \sum_k \left(\gamma(k)^2 + \gamma(k + m)\,\gamma(k - m)\right),

    the second by Bartlett (1946), for sequences much longer than their memory.

    Args:
        x: sequences (n, N, d).
        process: the law, of a stationary Γ.
        lags: m, each in 0..N - 1.

    Returns:
        Estimates and their standard errors under the law, (len(lags),) each, in float64.

    Raises:
        ValueError: for sequences of another shape, or a lag out of range.
    """
    y, kernel = _whitened(x, process), process.autocovariance().to(x.device)
    seq_len = process.seq_len
    for lag in lags:
        if not 0 <= lag < seq_len:
            raise ValueError(f"lags must lie in 0..{seq_len - 1}, got {lag!r}")
    means = [(y[:, : seq_len - m] * y[:, m:]).mean() for m in lags]
    both = torch.cat([kernel.flip(0), kernel[1:]])  # lags 1 - N .. N - 1
    spreads = []
    for m in lags:
        apart = (both[2 * m :] * both[: len(both) - 2 * m]).sum()
        spreads.append((both.square().sum() + apart) / (len(y) * (seq_len - m)))
    return torch.stack(means), torch.stack(spreads).sqrt()


@full_precision()
def spectral_ratios(x: Tensor, process: GaussianProcess, bands: int = 8) -> tuple[Tensor, Tensor]:
    r"""Periodogram over its expectation, averaged in bands of equally many frequencies,

    .. math:: \frac{I(f)}{E I(f)}, \qquad I(f) = \frac1N \Big|\sum_j y_j e^{-2\pi i f j}\Big|^2,
        \qquad E I(f) = \sum_{|m| < N} \Big(1 - \frac{|m|}{N}\Big)\gamma(m)\, e^{-2\pi i f m}.

    Args:
        x: sequences (n, N, d).
        process: the law, of a stationary Γ.
        bands: their number; frequencies 0 and 1/2 belong to none.

    Returns:
        Ratios, (bands,), lowest frequencies first, and their standard errors under the law (of
        independent exponential ordinates, which the periodogram has for large N), in float64.

    Raises:
        ValueError: for sequences of another shape, or more bands than frequencies.
    """
    require_count("bands", bands)
    y = _whitened(x, process)
    seq_len = process.seq_len
    if bands > (seq_len - 1) // 2:
        raise ValueError(f"{seq_len} frames have fewer than {bands} frequencies, got bands={bands}")
    power = torch.fft.rfft(y).abs().square() / seq_len
    ratio = power / _expected(process.autocovariance().to(x.device))
    chunks = ratio[:, 1 : (seq_len + 1) // 2].tensor_split(bands, dim=1)
    errors = [each.numel() ** -0.5 for each in chunks]
    return torch.stack([each.mean() for each in chunks]), torch.tensor(errors, dtype=torch.float64)


def _expected(kernel: Tensor) -> Tensor:
    """E I(f) at the frequencies of a real transform, from γ(0..N - 1)."""
    lags = torch.arange(len(kernel), dtype=kernel.dtype, device=kernel.device)
    tapered = (1 - lags / len(kernel)) * kernel
    return 2 * torch.fft.rfft(tapered).real - tapered[0]


def _whitened(x: Tensor, process: GaussianProcess) -> Tensor:
    """Coordinates in Σ's eigenbasis, each over its standard deviation: (n d, N), in float64."""
    require_sequences("x", x, process.seq_len, process.dim)
    require_finite("x", x)
    values, vectors = (each.to(x.device) for each in process.spatial_spectrum)
    y = (x.double() - process.mean.to(x.device)) @ (vectors / values.sqrt())
    return y.transpose(1, 2).flatten(0, 1)
