r"""Methods that minimise a quadratic of which the extreme eigenvalues are known.

For the minimiser :math:`s^* = -A^{-1}b` of :math:`\tfrac12 s^\top A s + s^\top b`, where the
eigenvalues of A lie in :math:`[\lambda_-, \lambda_+]`, each runs from :math:`s^{(0)} = 0`

.. math:: s^{(k+1)} = s^{(k)} - \eta_k(A s^{(k)} + b) + \beta_k(s^{(k)} - s^{(k-1)}).

Coefficients that do not depend on b make the error a polynomial,
:math:`s^{(K)} - s^* = -p_K(A)\,s^*` with :math:`p_K(0) = 1`, so a method is three formulas: its
coefficients, its p_K, and a bound on p_K over :math:`[\lambda_-, \lambda_+]`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

Number = float | Tensor


class Method(ABC):
    r"""Coefficients of an iteration, what they do to the error, and how much at most.

    Everywhere ``low`` and ``high`` are :math:`0 < \lambda_- \le \lambda_+`, and ``steps`` is K.
    """

    @abstractmethod
    def coefficients(self, low: Number, high: Number, steps: int) -> list[tuple[Number, Number]]:
        r"""Step sizes and momenta :math:`(\eta_k, \beta_k)`, k = 0..K−1.

        Args:
            low, high: numbers, or one per sequence (batch,).
            steps: K >= 1.
        """

    @abstractmethod
    def error_polynomial(self, values: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
        """p_K on the spectrum, without a loop.

        Args:
            values: eigenvalues of A, any shape.
            low, high: broadcast with them.
            steps: K >= 0.

        Returns:
            Shape of ``values``.
        """

    @abstractmethod
    def bound(self, low: float, high: float, steps: int) -> float:
        r"""Bound on :math:`|p_K|` over :math:`[\lambda_-, \lambda_+]`; falls with K."""

    def response(self, values: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
        r"""The filter q in :math:`s^{(K)} = -q(A)\,b`, :math:`q = (1 - p_K(\lambda))/\lambda`.

        Takes and returns what :meth:`error_polynomial` does.
        """
        return (1 - self.error_polynomial(values, low, high, steps)) / values


class Stationary(Method):
    r"""A method whose coefficients are the same at every step but the first.

    Its first K steps do not depend on how many follow, so that a network can share their weights.

    Attributes:
        has_momentum: whether :math:`\beta_k` is ever not 0.
    """

    has_momentum: bool

    @abstractmethod
    def largest_response(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        r"""Bound on :math:`|q|`, see :meth:`Method.response`, over all numbers of steps.

        Takes and returns what :meth:`Method.error_polynomial` does, but for ``steps``.
        """


class GradientDescent(Stationary):
    r"""Steps of constant size :math:`\eta = 2/(\lambda_- + \lambda_+)`.

    .. math:: p_K(\lambda) = (1 - \eta\lambda)^K, \qquad |p_K| \le e^{-2K/(\kappa + 1)}, \qquad
              \kappa = \lambda_+/\lambda_-.

    Source: FDGWC Lemma 1.
    """

    has_momentum = False

    def coefficients(self, low: Number, high: Number, steps: int) -> list[tuple[Number, Number]]:
        """All equal; see :meth:`Method.coefficients`."""
        return [(2 / (low + high), 0.0)] * steps

    def error_polynomial(self, values: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
        """A power; see :meth:`Method.error_polynomial`."""
        return (1 - 2 * values / (low + high)) ** steps

    def bound(self, low: float, high: float, steps: int) -> float:
        """Lemma 1's, nearly attained for large κ; see :meth:`Method.bound`."""
        return math.exp(-2 * steps / (high / low + 1))

    def largest_response(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        r"""1/λ where p_k stays positive, else η, that of the first step."""
        return torch.maximum(1 / values, 2 / (low + high))


class HeavyBall(Stationary):
    r"""Gradient descent with momentum (Polyak 1964).

    .. math:: \sqrt\beta = \frac{\sqrt\kappa - 1}{\sqrt\kappa + 1}, \qquad
              \eta = \frac{4}{(\sqrt{\lambda_-} + \sqrt{\lambda_+})^2},

    after a first gradient step of size :math:`\eta/(1 + \beta) = 2/(\lambda_- + \lambda_+)`. With
    :math:`b = (1-\beta)/(1+\beta)` and the Chebyshev polynomials of the eigenvalue mapped to
    [−1, 1], :math:`x = (\lambda_- + \lambda_+ - 2\lambda)/(\lambda_+ - \lambda_-)`,

    .. math:: p_K = \beta^{K/2}\left((1 - b)\,T_K(x) + b\,U_K(x)\right), \qquad
              |p_K| \le \beta^{K/2}(1 + bK),

    since :math:`|T_K| \le 1` and :math:`|U_K| \le K + 1`, attained at both ends: the asymptotic
    rate √β comes with a transient that grows with K.
    """

    has_momentum = True

    def coefficients(self, low: Number, high: Number, steps: int) -> list[tuple[Number, Number]]:
        """A gradient step, then all equal; see :meth:`Method.coefficients`."""
        rest = (4 / (low**0.5 + high**0.5) ** 2, _root_momentum(low, high) ** 2)
        return [(2 / (low + high), 0.0)] + [rest] * (steps - 1)

    def error_polynomial(self, values: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
        """Both kinds of Chebyshev's polynomials; see :meth:`Method.error_polynomial`."""
        angle, sign = _angle(values, low, high)
        first_kind = torch.cos(steps * angle)
        at_end = torch.full_like(angle, steps + 1.0)
        second_kind = torch.sin((steps + 1) * angle) / torch.sin(angle)
        second_kind = torch.where(angle > 0, second_kind, at_end)
        root = _root_momentum(low, high)
        share = (1 - root**2) / (1 + root**2)
        return sign**steps * root**steps * ((1 - share) * first_kind + share * second_kind)

    def bound(self, low: float, high: float, steps: int) -> float:
        """Attained at both ends of the spectrum; see :meth:`Method.bound`."""
        root = _root_momentum(low, high)
        return root**steps * (1 + steps * (1 - root**2) / (1 + root**2))

    def largest_response(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        r"""2/λ, since :math:`|p_k| \le 1`."""
        return 2 / values


class Chebyshev(Method):
    r"""The best K steps for a spectrum of which only :math:`\lambda_\pm` are known (Young 1953).

    1/η are the K Chebyshev nodes of :math:`[\lambda_-, \lambda_+]`, in Leja order (other orders
    overflow), β = 0. With √β and x of :class:`HeavyBall`

    .. math:: p_K = \frac{2\beta^{K/2}}{1 + \beta^K}\,T_K(x), \qquad
              |p_K| \le \frac{2\beta^{K/2}}{1 + \beta^K},

    the least that any polynomial with :math:`p_K(0) = 1` reaches.
    """

    def coefficients(self, low: Number, high: Number, steps: int) -> list[tuple[Number, Number]]:
        """All different, and others for another K; see :meth:`Method.coefficients`."""
        nodes = [(low + high) / 2 + (high - low) / 2 * x for x in _leja_chebyshev(steps)]
        return [(1 / node, 0.0) for node in nodes]

    def error_polynomial(self, values: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
        """A Chebyshev polynomial that is 1 at 0; see :meth:`Method.error_polynomial`."""
        angle, sign = _angle(values, low, high)
        root = _root_momentum(low, high)
        return sign**steps * torch.cos(steps * angle) * 2 * root**steps / (1 + root ** (2 * steps))

    def bound(self, low: float, high: float, steps: int) -> float:
        """Attained at K + 1 points of the interval; see :meth:`Method.bound`."""
        root = _root_momentum(low, high)
        return 2 * root**steps / (1 + root ** (2 * steps))


METHODS: dict[str, Method] = {
    "gradient-descent": GradientDescent(),
    "heavy-ball": HeavyBall(),
    "chebyshev": Chebyshev(),
}
STATIONARY = tuple(name for name, method in METHODS.items() if isinstance(method, Stationary))


def least_count(enough: Callable[[int], bool], most: int = 2**50) -> int:
    """The least n >= 1 that is enough, where all above it are; by doubling, then bisection.

    A comparison with NaN is False, so that a computation that broke down is not enough.

    Raises:
        ValueError: if none up to ``most`` is.
    """
    high = 1
    while not enough(high):
        if high >= most:
            raise ValueError(f"no number of steps up to {most} is enough")
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _root_momentum(low: Number, high: Number) -> Number:
    """√β of the heavy ball."""
    return (high**0.5 - low**0.5) / (high**0.5 + low**0.5)


def _angle(values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """θ in [0, π/2] and a sign, for the eigenvalues mapped to x = sign · cos θ in [−1, 1].

    sin((k + 1)θ) / sin θ is accurate there; near π it would not be.
    """
    span = torch.maximum(high - low, torch.finfo(values.dtype).tiny * high)
    x = ((low + high - 2 * values) / span).clamp(-1, 1)
    return torch.arccos(x.abs()), torch.copysign(torch.ones_like(x), x)


def _leja_chebyshev(k: int) -> list[float]:
    """Chebyshev nodes on [−1, 1] such that every prefix of their product stays bounded."""
    nodes = torch.cos((torch.arange(k, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / k))
    log_distance, order = nodes.abs(), []  # starts from the node of largest modulus
    for step in range(k):
        best = int(log_distance.argmax())
        order.append(nodes[best].item())
        gap = (nodes - nodes[best]).abs().log()  # −inf at the node itself: never chosen again
        log_distance = gap if step == 0 else log_distance + gap
    return order
