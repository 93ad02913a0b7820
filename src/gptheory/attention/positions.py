"""Embeddings of positions: the paper's, on the circle, and the trained networks'."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..support.validation import as_floating, require_count, require_one_of, require_positive

POSITIONS = ("sinusoidal", "circle", "learned", "none")
SHORTEST_PERIOD = 4.0  # frames; of the sinusoidal embedding, whose longest is 4N


def frame_embedding(kind: str, seq_len: int, size: int) -> Tensor:
    """Embeddings of the frames i = 1..N.

    Args:
        kind: ``"sinusoidal"``, ``"circle"``, ``"learned"`` (its random start) or ``"none"``.
        seq_len: N.
        size: columns of the sinusoidal and the learned embedding; of the sinusoidal one, which
            has pairs, one less where it is odd.

    Returns:
        (N, size), (N, 2) for the circle, (N, 0) for none; float32.

    Raises:
        ValueError: for an unknown kind, or a size that leaves no pair.
    """
    require_count("seq_len", seq_len)
    require_one_of("position", kind, POSITIONS)
    if kind == "sinusoidal":
        if size < 2:
            raise ValueError(
                "sinusoidal positions take two coordinates or more, half of a hidden width of at"
                f" least 4; got {size}"
            )
        ends = (math.log(SHORTEST_PERIOD), math.log(max(4.0 * seq_len, SHORTEST_PERIOD)))
        periods = torch.linspace(*ends, size // 2, dtype=torch.float32, device="cpu").exp()
        return torch.cat([time_embedding(seq_len, p.item()).float() for p in periods], dim=1)
    if kind == "circle":
        return time_embedding(seq_len, 2 * seq_len).float()
    if kind == "learned":
        return torch.randn(seq_len, size)
    return torch.empty(seq_len, 0)


def time_embedding(seq_len: int, period: float, radius: float = 1.0) -> Tensor:
    r"""Frames on a circle, :math:`e_i = r (\sin 2\pi i/C, \cos 2\pi i/C)`, i = 1..N.

    Source: FDGWC Time embedding. The distance of two embeddings depends on the lag only
    (:func:`embedding_distance`); it *names* the lag when the period C is at least 2(N − 1).

    Args:
        seq_len: number of frames N.
        period: C > 0, in frames.
        radius: r > 0.

    Returns:
        (N, 2) in float64.

    Raises:
        ValueError: for a length, period or radius that is not positive.
    """
    require_count("seq_len", seq_len)
    require_positive("period", period)
    require_positive("radius", radius)
    angle = 2 * math.pi * torch.arange(1, seq_len + 1, dtype=torch.float64, device="cpu") / period
    return radius * torch.stack([angle.sin(), angle.cos()], dim=1)


def embedding_distance(lag: Tensor | float, period: float, radius: float = 1.0) -> Tensor:
    r"""Distance of two time embeddings, :math:`\|e_i - e_j\| = 2 r\, |\sin(\pi |i-j| / C)|`.

    Source: FDGWC Time embedding; FDGWC Assumption 1; YC Assumption 1.

    Args:
        lag: distance in frames, any shape.
        period: C > 0, in frames.
        radius: r > 0.

    Returns:
        Values of the same shape, device and floating dtype (float64 for integers and floats).

    Raises:
        ValueError: for a period or radius that is not positive.
    """
    require_positive("period", period)
    require_positive("radius", radius)
    return 2 * radius * torch.sin(math.pi * as_floating("a lag", lag) / period).abs()
