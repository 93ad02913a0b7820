"""What a law of sequences is: something to draw from, and what is known about its score.

Training and metrics take any law. Nothing inherits from these protocols: a class that has their
members is a law.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..support.wrappers import lasting

Own = TypeVar("Own")


@runtime_checkable
class Law(Protocol):
    """A law of sequences (N, d).

    Attributes:
        seq_len, dim: N and d.
    """

    seq_len: int
    dim: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it draws."""

    @property
    @abstractmethod
    def parts(self) -> tuple[object, ...]:
        """Tensors and JSON values that decide it. Laws of one class that agree here are one."""

    @abstractmethod
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw n >= 0 independent sequences, (n, N, d), on :attr:`device`.

        Noise is drawn on the device of the generator, if there is one, then moved.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Law:
        """The same law on a device."""


@runtime_checkable
class KnownLaw(Law, Protocol):
    """A law whose score and density are known at every noise level: :class:`.ExactScore`."""

    @abstractmethod
    def noised_score(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Score of :math:`v = a x + s z`, :math:`\nabla\log p(v)`, x of this law and z white.

        Args:
            v: (batch, N, d), checked by the caller.
            signal, noise: a and s > 0, numbers or one per sequence, (batch, 1, 1), dtype and device
                of v.

        Returns:
            (batch, N, d), dtype and device of v.
        """

    @abstractmethod
    def noised_log_prob(self, v: Tensor, signal: float | Tensor, noise: float | Tensor) -> Tensor:
        r"""Log-density :math:`\log p(v)` of the same v, whose gradient :meth:`noised_score` is.

        Args:
            v, signal, noise: as in :meth:`noised_score`.

        Returns:
            (batch,), dtype and device of v; computed in float64.
        """


def diagonal_log_density(residuals: Tensor, variances: float | Tensor) -> Tensor:
    r"""Log-density of independent Gaussians, :math:`-\tfrac12\sum(r^2/c + \log 2\pi c)`.

    Args:
        residuals: r, (..., D).
        variances: c > 0, a number or what broadcasts to (..., D).

    Returns:
        (...).
    """
    variances = torch.as_tensor(variances, dtype=residuals.dtype, device=residuals.device)
    logs = (2 * math.pi * variances).log().expand_as(residuals)
    return -0.5 * (residuals**2 / variances + logs).sum(dim=-1)


@lasting
def moved(law: Own, device: torch.device | str) -> Own:
    """A copy of a law whose tensors, and tuples of tensors, are on a device."""
    other = copy.copy(law)
    vars(other).update({name: _on(value, device) for name, value in vars(law).items()})
    return other


def _on(value: object, device: torch.device | str) -> object:
    """A tensor, or each of several, on a device; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_on(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value
