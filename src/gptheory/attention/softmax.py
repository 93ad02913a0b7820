"""The attention that polynomials replace, and inputs to compare both on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.precision import full_precision
from .polynomial import require_attention


@full_precision()
def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention by its L × M map, the textbook way."""
    require_attention(q, k, v)
    return (scale * q @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def uniform_inputs(
    seq_len: int, dim: int, count: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Matrices (L, d) with entries uniform in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, seq_len, dim, generator=generator, dtype=torch.float64)
    return list((2 * draws - 1).to(dtype))
