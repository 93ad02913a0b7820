r"""Polynomials in place of the exponential: their certificates, and the rank that they cost.

The polynomial method replaces :math:`e^s` by P(s) on the range of the logits, :math:`|s| \le R`.
Softmax divides by a sum, so what counts is the *relative* error

.. math:: \varepsilon = \max_{|s| \le R} |P(s)\,e^{-s} - 1|.

Below 1 it keeps every P(s) positive, and with it every denominator.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import gammaln, i0e
from torch import Tensor

from ..support.validation import require_count, require_floating, require_one_of, require_positive

KINDS = ("minimax", "taylor")
EXCHANGES = 30  # of Remez's algorithm; four or five are enough far from rounding
LARGEST_RADIUS = 20.0  # rounding, of order u e^{2R}, is far above 1 there in double precision
LEVEL = 1e-3  # it stops when the largest error exceeds the levelled one by less, relatively


@dataclass(frozen=True)
class ExpPolynomial:
    r"""A polynomial :math:`P(s) = \sum_m c_m s^m` close to :math:`e^s` for :math:`|s| \le R`.

    Args:
        coefficients: :math:`c_0, \dots, c_g`.
        radius: R.
        relative_error: the certified ε above.
    """

    coefficients: tuple[float, ...]
    radius: float
    relative_error: float

    @property
    def degree(self) -> int:
        """The degree g."""
        return len(self.coefficients) - 1

    @property
    def error_bound(self) -> float:
        r"""How far attention moves, at most, for values in [−1, 1],

        .. math:: \beta = \frac{2\,(1 - \sqrt{1-\varepsilon^2})}{\varepsilon}
                  = \frac{2\varepsilon}{1 + \sqrt{1-\varepsilon^2}}
                  \le \frac{\varepsilon}{1-\varepsilon}.

        Attained: chapter 10 derives it. It is also the largest change of a row of the attention
        map in the sum of absolute values.
        """
        return 2 * self.relative_error / (1 + math.sqrt(1 - self.relative_error**2))

    def __call__(self, s: Tensor) -> Tensor:
        """P(s), entry by entry, dtype and device of s; certified where |s| <= radius only."""
        require_floating("s", s)
        value = torch.full_like(s, self.coefficients[-1])
        for coefficient in self.coefficients[-2::-1]:
            value = value * s + coefficient
        return value

    def rounding(self, dtype: torch.dtype) -> float:
        r"""What floating point adds to ε: :math:`4 (g+1)\,u\,e^R \sum_m |c_m| R^m`.

        Of the order of :math:`u\,e^{2R}`, because powers as large as :math:`e^R` cancel to leave
        :math:`e^{-R}`: single precision ends near R = 6, double precision near R = 16. An estimate
        from the standard model of rounding, with the unit roundoff u = eps / 2.
        """
        size = sum(abs(c) * self.radius**m for m, c in enumerate(self.coefficients))
        return 2 * (self.degree + 1) * torch.finfo(dtype).eps * math.exp(self.radius) * size


@lru_cache(maxsize=1024)
def exp_polynomial(degree: int, radius: float, kind: str = "minimax") -> ExpPolynomial:
    r"""The polynomial for the exponential on [−R, R], with its certificate.

    ``"minimax"`` has the least relative error of all polynomials of its degree, by Remez's
    exchange. The error :math:`P e^{-s} - 1` is stationary where :math:`P' = P`, at no more than g
    points; with the two ends these are the g + 2 points at which the best error has to alternate,
    so an exchange takes them all. ``"taylor"`` is :math:`\sum_{m \le g} s^m / m!`.

    The certificate is the largest error over the stationary points and the ends, so exact up to the
    rounding of double precision, which is added.

    Source: HWLSL Problem 2; Remez 1934.

    Args:
        degree: g >= 0.
        radius: R > 0, of the logits *after* scaling.
        kind: ``"minimax"`` or ``"taylor"``.

    Returns:
        The polynomial. About :math:`\varepsilon \approx R^{g+1} / (2^g (g+1)!)` for minimax and
        small R, :math:`2^g` times that for Taylor.

    Raises:
        ValueError: where the certified error is not below 1, for a degree that is no integer >= 0
            or a radius that is not > 0.
    """
    require_count("degree", degree, minimum=0)
    _require_interval(radius, kind)
    if radius > LARGEST_RADIUS:
        raise ValueError(
            f"no polynomial has a relative error below 1 on [-{radius:.4g}, {radius:.4g}] in double"
            " precision: scale queries and keys down"
        )
    candidate = _taylor(degree, radius) if kind == "taylor" else _minimax(degree, radius)
    coefficients = tuple(candidate.convert(kind=Polynomial).coef.tolist())
    coefficients += (0.0,) * (degree + 1 - len(coefficients))  # a last coefficient that underflowed
    exact = ExpPolynomial(coefficients, float(radius), 0.0)
    points = _stationary_and_ends(candidate)
    values = exact(torch.as_tensor(points, device="cpu")).numpy()
    rounding = exact.rounding(torch.float64)
    error = float(np.abs(values * np.exp(-points) - 1).max()) + rounding
    if not error < 1:
        remedy = "raise the degree, or " if rounding < 0.5 else "most of it is rounding: "
        raise ValueError(
            f"the {kind} polynomial of degree {degree} has a relative error of {error:.3g} on"
            f" [-{radius:.4g}, {radius:.4g}]: attention needs an error below 1, where denominators"
            f" stay positive; {remedy}scale queries and keys down"
        )
    return ExpPolynomial(coefficients, float(radius), error)


def degree_for(error: float, radius: float, kind: str = "minimax") -> int:
    """The least degree whose certified relative error is at most ``error``.

    Raises:
        ValueError: for an error outside (0, 1), or one that double precision cannot certify; for
            a radius that is not > 0, or an unknown kind.
    """
    if not 0 < error < 1:
        raise ValueError(f"error must lie in (0, 1), got {error!r}")
    _require_interval(radius, kind)
    for degree in range(int(2 * radius + 20)):
        try:
            if exp_polynomial(degree, radius, kind).relative_error <= error:
                return degree
        except ValueError:  # not below 1 yet: more terms are needed
            continue
    raise ValueError(
        f"a relative error of {error:.3g} on [-{radius:.4g}, {radius:.4g}] is beyond double"
        " precision"
    )


def rank_exponent(
    b: float, log_length: float, eps: float | None = None, delta: float = 1.0
) -> float:
    r"""The exponent :math:`\log r / \log L` of the polynomial method where d grows as log L.

    Entries are bounded by :math:`B = b\sqrt{\log L}`, the head dimension is :math:`d = \delta
    \log L`, the scale 1/d, so logits reach :math:`R = b^2 \log L` whatever δ is. (The paper prints
    no scale: logits reach :math:`d B^2`, and :math:`\sqrt\delta\,B` stands for b.) With g the least
    degree whose Chebyshev series satisfies :math:`|P - e^s| \le \varepsilon e^{-R}` there,
    :math:`r = \binom{d+g}{g}` (by gamma functions where d is no integer). The cost is
    :math:`L^{1 + \text{exponent}}` up to logarithms: at 1 nothing is gained over dense attention.

    Source: HWLSL Proposition 4.2; HWLSL Remark 4.5.

    Args:
        b: entries in units of :math:`\sqrt{\log L}`, > 0.
        log_length: log L > 0; L itself may be far beyond floating point.
        eps: relative accuracy ε in (0, 1); by default 1/L.
        delta: δ = d / log L > 0, the constant C of Proposition 4.1.

    Returns:
        The exponent; it falls to 0 with b, but slowly: at accuracy 1/L only logarithmically.

    Raises:
        ValueError: for arguments out of range.
    """
    require_positive("b", b)
    require_positive("log_length", log_length)
    require_positive("delta", delta)
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"eps must lie in (0, 1), or be absent for 1/L; got {eps!r}")
    radius = b**2 * log_length
    log_tolerance = (-log_length if eps is None else math.log(eps)) - radius
    degree = int(np.argmax(_log_chebyshev_tails(radius, log_tolerance) <= log_tolerance))
    dim = delta * log_length
    log_rank = gammaln(dim + degree + 1) - gammaln(dim + 1) - gammaln(degree + 1)
    return float(log_rank / log_length)


def _require_interval(radius: float, kind: str) -> None:
    require_positive("radius", radius)
    require_one_of("kind", kind, KINDS)


def _log_chebyshev_tails(radius: float, log_tolerance: float) -> np.ndarray:
    r"""Logarithm of :math:`\max_s |P_g - e^s| = 2 \sum_{k>g} I_k(R)`, for g = 0, 1, ...

    The ratios of modified Bessel functions come from their recurrence run downwards, where it is
    stable, and from :math:`I_k(R) \le (eR/2k)^k` the number that is enough.
    """
    count = 60 + int(math.e * radius + 2 * abs(log_tolerance))
    ratios, ratio = np.empty(count), 0.0
    for k in range(count, 0, -1):
        ratio = 1 / (2 * k / radius + ratio)
        ratios[k - 1] = ratio  # I_k / I_{k-1}
    logs = math.log(2 * i0e(radius)) + radius + np.cumsum(np.log(ratios))  # of 2 I_k, k = 1, 2, ...
    return np.logaddexp.accumulate(logs[::-1])[::-1]


def _taylor(degree: int, radius: float) -> Chebyshev:
    coefficients = [1 / math.factorial(m) for m in range(degree + 1)]
    return Polynomial(coefficients).convert(kind=Chebyshev, domain=[-radius, radius])


def _minimax(degree: int, radius: float) -> Chebyshev:
    """Remez's exchange for the weight e^{-s}; the best candidate, should rounding end it early."""
    points = -radius * np.cos(np.pi * np.arange(degree + 2) / (degree + 1))
    signs = (-1.0) ** np.arange(degree + 2)
    best, least = None, math.inf
    for _ in range(EXCHANGES):
        # P(s_i) - (±h) e^{s_i} = e^{s_i}: the error at the points is h with alternating signs
        rows = np.polynomial.chebyshev.chebvander(points / radius, degree)
        system = np.hstack([rows, -(signs * np.exp(points))[:, None]])
        *solution, level = np.linalg.solve(system, np.exp(points))
        candidate = Chebyshev(solution, domain=[-radius, radius])
        points = _stationary_and_ends(candidate)
        largest = np.abs(candidate(points) * np.exp(-points) - 1).max()
        if largest < least:
            best, least = candidate, largest
        if len(points) != degree + 2 or largest <= abs(level) * (1 + LEVEL):
            break
    return best


def _stationary_and_ends(candidate: Chebyshev) -> np.ndarray:
    """Real roots of P' = P in the interval, with the ends of the interval, in order.

    Of a pair of complex roots the real part is taken: it may be a double root, and a point more
    does a maximum no harm.
    """
    low, high = candidate.domain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a leading coefficient that is nearly 0
        roots = (candidate.deriv() - candidate).roots() if candidate.degree() else np.empty(0)
    inside = np.unique(roots.real[np.abs(roots.real) < high])
    return np.concatenate([[low], inside, [high]])
