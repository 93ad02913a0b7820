"""Temporal kernels: how the correlation of two frames falls with their lag.

A temporal kernel is a function of the lag between two frames, ``kernel(lag) -> values`` with
``kernel(0) == 1``; its Gram matrix :math:`\\Gamma_{ij} = \\gamma(|i-j|)` is the temporal factor of
the covariance :math:`\\Gamma \\otimes \\Sigma`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts where they are used
import torch
from torch import Tensor

from ..support.validation import as_floating, require_positive


class Kernel(ABC):
    """A stationary temporal kernel: an immutable function of the lag, 1 at lag 0."""

    def __call__(self, lag: Tensor | float) -> Tensor:
        """Evaluate the kernel.

        Args:
            lag: distance in frames, any shape; its sign is ignored.

        Returns:
            Values of the same shape, device and floating dtype (float64 for integers and floats).
        """
        return self._values(as_floating("a lag", lag).abs())

    @abstractmethod
    def _values(self, lag: Tensor) -> Tensor:
        """The kernel at a non-negative floating-point lag."""


@dataclass(frozen=True)
class PowerExponential(Kernel):
    r""":math:`\gamma(r) = \exp(-(r/\ell)^\nu)`, the kernel of the experiments.

    ``exponent`` 1 is the Ornstein-Uhlenbeck process, 2 the squared exponential, whose Gram matrix
    is singular to working precision from a lengthscale of a few frames on. A smaller lengthscale
    decays faster at every lag. A larger exponent does so beyond the lengthscale only, and is
    *slower* at shorter lags; in the other parametrisation, :meth:`of_power`, it is faster at every
    lag above one. Which of the two the paper's experiments have is not known to us.
    Source: FDGWC Data model.

    Args:
        lengthscale: :math:`\ell > 0`, in frames.
        exponent: :math:`\nu \in (0, 2]`; above 2 the function is no covariance.

    Raises:
        ValueError: for a lengthscale or exponent out of range.
    """

    lengthscale: float
    exponent: float = 1.0

    def __post_init__(self) -> None:
        require_positive("lengthscale", self.lengthscale)
        if not 0 < self.exponent <= 2:
            raise ValueError(f"exponent must lie in (0, 2], got {self.exponent!r}")

    @classmethod
    def of_power(cls, scale: float, exponent: float) -> PowerExponential:
        r"""The kernel :math:`\gamma(r) = \exp(-r^\nu/s)`, which has :math:`\ell = s^{1/\nu}`.

        All exponents agree at lag 1, and larger ones decay faster from there on.

        Args:
            scale: :math:`s > 0`, in frames to the power ν.
            exponent: :math:`\nu \in (0, 2]`.

        Raises:
            ValueError: for a scale or exponent out of range.
        """
        require_positive("scale", scale)
        cls(1.0, exponent)  # refuses an exponent that cannot be divided by
        return cls(scale ** (1 / exponent), exponent)

    def _values(self, lag: Tensor) -> Tensor:
        return torch.exp(-((lag / self.lengthscale) ** self.exponent))


@dataclass(frozen=True)
class Matern(Kernel):
    r"""Matérn kernel of any smoothness, with :math:`x = \sqrt{2\nu}\, r/\ell`,

    .. math:: \gamma(r) = m_\nu(x) = \frac{2^{1-\nu}}{\Gamma(\nu)}\, x^\nu K_\nu(x).

    Smoothness 1/2, 3/2, 5/2, … are closed forms :math:`e^{-x}`, :math:`(1+x)e^{-x}`,
    :math:`(1+x+x^2/3)e^{-x}`, …; ``math.inf`` is the squared exponential
    :math:`e^{-r^2/2\ell^2}`. Source: Rasmussen and Williams 2006, Section 4.2.

    Every order follows from two orders in (0, 2] by the upward Bessel recurrence, which in this
    normalisation has only positive terms and cannot overflow:
    :math:`m_{\nu+1} = m_\nu + \frac{x^2}{4\nu(\nu-1)} m_{\nu-1}`.

    Args:
        lengthscale: :math:`\ell > 0`, in frames.
        smoothness: :math:`\nu > 0`; sample paths have derivatives of every order below it.

    Raises:
        ValueError: for a parameter that is not positive; or lags that require a gradient, unless
            the kernel is one of the closed forms: Bessel functions are evaluated outside torch.

    Accuracy: 1e-13 relative to the value at lag 0, in float64.
    """

    lengthscale: float
    smoothness: float

    def __post_init__(self) -> None:
        require_positive("lengthscale", self.lengthscale)
        if self.smoothness != math.inf:
            require_positive("smoothness", self.smoothness)

    def _values(self, lag: Tensor) -> Tensor:
        r = lag / self.lengthscale
        if self.smoothness == math.inf:
            return torch.exp(-(r**2) / 2)
        x = math.sqrt(2 * self.smoothness) * r
        if x.requires_grad and self.smoothness % 1 != 0.5:
            raise ValueError(
                "only Matérn kernels of smoothness 1/2, 3/2, 5/2, … or inf can be differentiated,"
                f" got smoothness={self.smoothness!r}; detach the lag"
            )
        order = self.smoothness - math.ceil(self.smoothness) + 1  # in (0, 1]
        log_value = _log_matern(order, x)
        if self.smoothness > 1:
            ratio = torch.exp(log_value - _log_matern(order + 1, x))  # m_(nu - 1) / m_nu
            log_value, order = _log_matern(order + 1, x), order + 1
        while order < self.smoothness - 0.5:
            growth = 1 + x**2 / (4 * order * (order - 1)) * ratio
            log_value, ratio, order = log_value + growth.log(), 1 / growth, order + 1
        return log_value.exp()


def _log_matern(order: float, x: Tensor) -> Tensor:
    """log m_order(x) for an order in (0, 2], in logarithms so that large lags do not underflow."""
    if order == 0.5:
        return -x
    if order == 1.5:
        return torch.log1p(x) - x
    z = x.detach().cpu().double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        log_bessel = np.log(scipy.special.kve(order, z)) - z
        log_value = (1 - order) * math.log(2) - scipy.special.gammaln(order) + order * np.log(z)
        log_value = np.where(z < 1e-150, 0.0, log_value + log_bessel)
    return torch.as_tensor(log_value, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class RationalQuadratic(Kernel):
    r""":math:`\gamma(r) = (1 + r^2 / (2 a \ell^2))^{-a}`: a mixture of lengthscales, heavy tailed.

    Source: Rasmussen and Williams 2006, Section 4.2.

    Args:
        lengthscale: :math:`\ell > 0`, in frames.
        mixture: :math:`a > 0`; the tail decays as :math:`r^{-2a}`.

    Raises:
        ValueError: for a parameter that is not positive.
    """

    lengthscale: float
    mixture: float

    def __post_init__(self) -> None:
        require_positive("lengthscale", self.lengthscale)
        require_positive("mixture", self.mixture)

    def _values(self, lag: Tensor) -> Tensor:
        scaled = lag**2 / (2 * self.mixture * self.lengthscale**2)
        return torch.exp(-self.mixture * torch.log1p(scaled))


@dataclass(frozen=True)
class Periodic(Kernel):
    r""":math:`\gamma(r) = \exp(-2 \sin^2(\pi r / p) / \ell^2)`: it returns every period.

    It does not decay, so no band of frames is ever enough: the counterexample to truncation.
    Source: MacKay 1998.

    Args:
        lengthscale: :math:`\ell > 0`, relative to the period (no unit).
        period: :math:`p > 0`, in frames.

    Raises:
        ValueError: for a parameter that is not positive.
    """

    lengthscale: float
    period: float

    def __post_init__(self) -> None:
        require_positive("lengthscale", self.lengthscale)
        require_positive("period", self.period)

    def _values(self, lag: Tensor) -> Tensor:
        return torch.exp(-2 * (torch.sin(math.pi * lag / self.period) / self.lengthscale) ** 2)


@dataclass(frozen=True)
class WhiteNoise(Kernel):
    r""":math:`\gamma(r) = 1\{r = 0\}`: independent frames, the null model of every chapter."""

    def _values(self, lag: Tensor) -> Tensor:
        return (lag == 0).to(lag.dtype)
