r"""How often a Gaussian vector is no longer than a radius, by one integral that converges.

The squared length of :math:`y \sim N(\delta, \operatorname{diag}\lambda)` is a weighted sum of
noncentral :math:`\chi^2`. Its Laplace transform

.. math:: M(s) = E e^{-s\|y\|^2}
          = \prod_i (1 + 2\lambda_i s)^{-1/2} \exp\frac{-s\,\delta_i^2}{1 + 2\lambda_i s}

is singular on the negative axis only, so its inverse,

.. math:: P(\|y\|^2 \le x) = \frac{1}{2\pi i}\int e^{sx} M(s)\,\frac{ds}{s},

may be taken along a path that bends to the left around that axis: through the saddle point, with
the curvature of steepest descent there (Rice 1980), and far out along two straight lines. There
:math:`e^{sx}` falls, and so does what a direction with a mean and hardly any variance contributes,
which grows along a parabola. In :math:`\tau`, with Im s a multiple of sinh τ, the integrand is a
bump whatever the spread of the λ, and the trapezoidal rule converges geometrically. (Imhof 1961
stays on the imaginary axis, where few directions leave an integrand that oscillates as it decays.)
Right of the pole at 0 the path gives the probability, left of it, with
the sign turned, that of the rest: so the smaller one is found with all its digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy  # loads its parts where they are used

NODES = 32  # of the first trapezoidal rule
DOUBLINGS = 8
STEEPEST = 0.5  # the path's slope far out: below 1, so that e^{s²} falls along it
LONGEST = 60.0  # in τ, where the path is e^60 widths long
CONVERGED = 1e-8  # relative change: halving the step squares the error, so what is left is 1e-16
NEGLIGIBLE = 40.0  # of the exponent below its value at the saddle: e^-40 is nothing
FAINTEST_LOG = -690.0  # of the integrand at its saddle point: P is below 1e-290
FAINTEST, FARTHEST = 1e-70, 1e4  # of the mean: P is below 1e-34, 1 - P below e^-4990


def squared_norm_cdf(x: float, variances: np.ndarray, offsets: np.ndarray) -> float:
    r"""P(‖y‖² ≤ x) for :math:`y \sim N(\delta, \operatorname{diag}\lambda)`.

    Args:
        x: squared radius.
        variances: λ >= 0, (D,).
        offsets: δ, (D,).

    Accuracy: 1e-11 of the smaller of P and 1 − P, or 1e-16 of P where 1 − P is the smaller; below
    1e-34 it may be 0.
    """
    squares = offsets**2
    mean = (variances + squares).sum()
    if not variances.any():
        return float(x >= mean)
    if x <= max(squares[variances == 0].sum(), FAINTEST * mean):
        return 0.0
    if x > FARTHEST * mean:
        return 1.0
    below = x < mean
    part = _tail(x / mean, variances / mean, squares / mean, below)
    return part if below else 1 - part


def squared_norm_quantile(level: float, variances: np.ndarray, offsets: np.ndarray) -> float:
    """The x below which ‖y‖² lies with probability ``level``, as accurate as the cdf is."""
    if not variances.any():
        return float((offsets**2).sum())
    mean = (variances + offsets**2).sum()
    high = mean
    while squared_norm_cdf(high, variances, offsets) < level:
        high *= 2

    def excess(x: float) -> float:
        return squared_norm_cdf(x, variances, offsets) - level

    return scipy.optimize.brentq(excess, 0.0, high, xtol=1e-14 * mean, rtol=1e-14)


def _tail(x: float, variances: np.ndarray, squares: np.ndarray, below: bool) -> float:
    """P(‖y‖² <= x) from the path right of the pole, P(‖y‖² > x) from the one left of it."""
    saddle = _saddle(x, variances, squares, below)
    z = 1 + 2 * variances * saddle
    second = (2 * variances**2 / z**2 + 4 * variances * squares / z**3).sum()  # of log M
    third = -(8 * variances**3 / z**3 + 24 * variances**2 * squares / z**4).sum()
    bend, width = -third / (6 * second), 1 / math.sqrt(second + saddle**-2)

    def log_height(tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of e^{sx} M(s) / |s|, and ds/dτ / i, along the path, (n,) complex."""
        y = width * np.sinh(tau)
        root = np.sqrt(1 + (bend * y / STEEPEST) ** 2)
        s = (saddle + 1j * y - bend * y**2 / root)[:, None]
        turn = 1 + 1j * bend * y * (1 + root**2) / root**3
        z = 1 + 2 * variances * s
        logs = np.log(z) / 2 + s * squares / z
        logs = (s * x - np.log(s if below else -s))[:, 0] - logs.sum(axis=1)
        return logs, turn * width * np.cosh(tau)

    top = log_height(np.zeros(1))[0][0].real
    if top < FAINTEST_LOG:
        return 0.0

    def heights(tau: np.ndarray) -> np.ndarray:
        logs, speed = log_height(tau)
        return (np.exp(logs - top) * speed).real

    coarse = np.arange(0, LONGEST, 0.5)
    logs, speed = log_height(coarse)
    seen = logs.real - top + np.log(np.abs(speed) / width) > -NEGLIGIBLE
    return math.exp(top) / math.pi * _half_line(heights, coarse[np.nonzero(seen)[0][-1] + 1])


def _half_line(heights: Callable[[np.ndarray], np.ndarray], end: float) -> float:
    """Integral of an even function from 0 to where it ends, by the trapezoidal rule."""
    step = end / NODES
    total = step * (heights(step * np.arange(NODES + 1)).sum() - heights(np.zeros(1))[0] / 2)
    for _ in range(DOUBLINGS):
        between = step * heights(step * (np.arange(round(end / step)) + 0.5)).sum()
        total, last, step = (total + between) / 2, total, step / 2
        if abs(total - last) <= CONVERGED * abs(total):
            break
    return float(total)


def _saddle(x: float, variances: np.ndarray, squares: np.ndarray, below: bool) -> float:
    """Where e^{sx} M(s) / |s| is least on the real axis: it is log-convex on each side of 0."""
    edge = -0.5 / variances.max()

    def slope(s: float) -> float:
        z = 1 + 2 * variances * s
        return x - (variances / z + squares / z**2).sum() - 1 / s

    low = high = 1 / x if below else edge / 2
    while slope(low) > 0:
        low = low / 2 if below else (low + edge) / 2
    while slope(high) < 0:
        high = 2 * high if below else high / 2
    return low if low == high else scipy.optimize.brentq(slope, low, high, rtol=1e-10)
