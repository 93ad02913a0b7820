"""Rates in the latent dimension."""

from __future__ import annotations

import math

from torch import Tensor

from ..support.validation import require_count, require_finite, require_floating, require_positive


def expected_pca_error(variances: Tensor, noise: float, ambient_dim: int, n: int) -> float:
    r"""What PCA of n noisy samples misses, to first order in 1/n,

    .. math:: E\,\|\hat B\hat B^\top - BB^\top\|_F^2 \approx \frac{2(D - d_0)}{n}
              \sum_i \frac{\tau^2(\lambda_i + \tau^2)}{\lambda_i^2}.

    For :math:`x = Bh + \tau\varepsilon` with Gaussian h of mean zero.

    Args:
        variances: λ_i, eigenvalues of Cov(h), (d_0,).
        noise: τ.
        ambient_dim: D.
        n: samples.
    """
    require_count("n", n)
    require_floating("variances", variances)
    require_finite("variances", variances)
    terms = noise**2 * (variances + noise**2) / variances**2
    return (2 * (ambient_dim - len(variances)) / n * terms.sum()).item()


def log_rate(n: float, epsilon: float, length: int) -> float:
    r"""Natural logarithm of the rate of Theorem 3.2,

    .. math:: \xi(n, \varepsilon, L) = n^{-1/3}\,2^{(1/\varepsilon)^{2L}} + n^{-1/3}
              + \varepsilon^2,

    which overflows without it. Even at the best ε it vanishes only as a power of 1/log n:
    :math:`(3/\log_2 n)^{1/L} \le \inf_{0 < \varepsilon < 1} \xi \le (6/\log_2 n)^{1/L} +
    2n^{-1/6}` for n > 64 (chapter 9 has the proof; at n = 8, L = 9 the upper bound fails). It
    bounds the square of the error: so the proof has it, the theorem is printed without the square.
    Source: HWLSL Definition 3.4; HWLSL Remark 3.4.

    Args:
        n: samples, >= 1.
        epsilon: ε > 0, accuracy of the approximation; the theorem has ε < 1.
        length: L, tokens of the latent.

    Returns:
        The logarithm; infinite where it, too, overflows.

    Raises:
        ValueError: for numbers out of range.
    """
    require_positive("epsilon", epsilon)
    require_count("length", length)
    if not n >= 1:
        raise ValueError(f"n must be at least 1, got {n!r}")
    try:
        power = float(epsilon) ** (-2 * length)
    except OverflowError:
        return math.inf
    base = -math.log(n) / 3
    terms = (base + math.log(2) * power, base, 2 * math.log(epsilon))
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))
