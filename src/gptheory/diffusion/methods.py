"""Methods of first order for a quadratic: their coefficients, their bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

METHODS = ("gradient-descent", "heavy-ball", "chebyshev")
Number = float | Tensor


def _root_momentum(low: Number, high: Number) -> Number:
    return (high**0.5 - low**0.5) / (high**0.5 + low**0.5)


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
