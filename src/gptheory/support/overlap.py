r"""Total variation of two Gaussians, by one integral that converges.

The overlap of two laws is the smaller of their densities, integrated. With the log-ratio
:math:`L = \log p/q` it is :math:`E_p \min(1, e^{-L})`, and since :math:`\min(1, e^{-x}) =
\tfrac1{2\pi}\int e^{-(1/2 - iu)x}\,du / (u^2 + \tfrac14)`,

.. math:: 1 - \TV(p, q) = \frac1\pi\int_0^\infty
          \frac{\operatorname{Re} M(\tfrac12 + iu)}{u^2 + \tfrac14}\,du,
          \qquad M(s) = \int p^{1-s} q^s.

M is a product over directions in which both are diagonal, it is the Bhattacharyya coefficient at
s = ½, and nowhere on the path larger. (Imhof 1961 inverts the characteristic function of L; his
integrand decays more slowly, and needs two integrals.)
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # loads its parts where they are used

FARTHEST = 40.0  # of u = sinh(x) / 2: beyond, 1 / cosh x has integrated to below 1e-17


def relative_tv(variances: np.ndarray, means: np.ndarray) -> float:
    r"""TV of :math:`N(m, \operatorname{diag} r)` and :math:`N(0, I)`.

    With :math:`z = 1 - s + s r` a direction contributes to log M

    .. math:: \tfrac s2\log r - \tfrac12\log z - \frac{s(1 - s)\,m^2}{2z}.

    Args:
        variances: r >= 0, (D,).
        means: m, (D,).

    Returns:
        In [0, 1]; 1 where a variance is 0, because then the laws have disjoint supports.

    Accuracy: 1e-8 where four or more directions differ; where others hardly do beside one or two,
    the integrand oscillates as it decays, and 1e-5 is left. In one dimension, rounding.
    """
    if min(variances) <= 0:
        return 1.0
    if len(variances) == 1:
        return line_tv(float(means[0]), float(variances[0]))
    half_log = np.log(variances) / 2
    squares = means**2

    def missing(x: float) -> float:
        """What 1 − Re M at u = sinh(x) / 2 contributes: precise where the laws are close."""
        u = math.sinh(x) / 2
        s = 0.5 + 1j * u
        z = 1 - s + s * variances
        log = (s * half_log - np.log(z) / 2 - (0.25 + u**2) * squares / (2 * z)).sum()
        real = -math.expm1(log.real) * math.cos(log.imag) + 2 * math.sin(log.imag / 2) ** 2
        return real / math.cosh(x)

    # full_output: that it is not yet at 1e-10 is no warning
    value = scipy.integrate.quad(missing, 0, FARTHEST, epsabs=1e-10, limit=500, full_output=1)[0]
    return min(max(2 / math.pi * value, 0.0), 1.0)


def dense_tv(cov_p: np.ndarray, mean_p: np.ndarray, cov_q: np.ndarray, mean_q: np.ndarray) -> float:
    """TV of two Gaussians with positive definite covariances (D, D) and means (D,)."""
    variances, basis = scipy.linalg.eigh(cov_p, cov_q)
    return relative_tv(variances.clip(min=0), basis.T @ (mean_p - mean_q))


def line_tv(mean: float, variance: float) -> float:
    """TV of N(mean, variance) and N(0, 1), exactly: its sign turns where the densities cross."""
    a, b = 1 - 1 / variance, mean / variance
    c = -(mean**2) / variance - math.log(variance)  # log ratio of densities: (a x² + 2 b x + c) / 2
    crossings = np.roots([a, 2 * b, c]) if abs(a) > 1e-12 else np.array([-c / (2 * b)] if b else [])
    edges = np.sort(np.real(crossings[np.isreal(crossings)]))
    edges = np.concatenate([[-np.inf], edges, [np.inf]])
    p = np.diff(scipy.special.ndtr((edges - mean) / variance**0.5))
    q = np.diff(scipy.special.ndtr(edges))
    return float(np.abs(p - q).sum() / 2)
