r"""Which frames are seen: patterns of missing frames, as they recur in experiments.

A mask is a boolean vector (N,), True where a frame is seen. The four patterns here are those that
imputations are *tested* on (P1 to P4 of the paper); the mixtures of masks that networks are
*trained* on are something else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.validation import require_count


def tail(seq_len: int, missing: int) -> Tensor:
    """P1, a forecast: the last frames are missing. Source: YC Table 2.

    Args:
        seq_len: N.
        missing: how many frames, 1..N−1.

    Returns:
        (N,) boolean, True where a frame is seen; so do the other patterns.

    Raises:
        ValueError: for counts out of range; so do the other patterns.
    """
    require_count("missing", missing)
    return _seen(seq_len, missing, torch.arange(seq_len - missing, seq_len))


def middle(seq_len: int, missing: int) -> Tensor:
    """P2, an outage: one block of missing frames in the middle. Source: YC Table 2."""
    return blocks(seq_len, missing, 1)


def blocks(seq_len: int, missing: int, count: int = 4) -> Tensor:
    """P3: blocks of equal length, each in the middle of its share of the sequence.

    Source: YC Table 2.

    Args:
        seq_len, missing: as in :func:`tail`.
        count: number of blocks; divides ``missing``.
    """
    require_count("missing", missing)
    require_count("count", count)
    if missing % count:
        raise ValueError(f"missing={missing} frames do not make {count} blocks of equal length")
    starts = _starts(seq_len, missing // count, count)
    return _seen(seq_len, missing, (starts[:, None] + torch.arange(missing // count)).flatten())


def spread(seq_len: int, missing: int, pairs: int = 0) -> Tensor:
    """P4: single frames, evenly spread. Source: YC Table 2.

    Args:
        seq_len, missing: as in :func:`tail`.
        pairs: so many gaps, from the first on, have two frames. Frames drawn at random leave a
            pair or two: with one, the condition number is the 3.00 that the paper states.
    """
    require_count("missing", missing)
    require_count("pairs", pairs, minimum=0)
    if 2 * pairs > missing:
        raise ValueError(f"{missing} missing frames do not make {pairs} pairs")
    frames = _starts(seq_len, 1, missing - pairs)
    return _seen(seq_len, missing, torch.cat([frames, frames[:pairs] + 1]))


def _starts(seq_len: int, length: int, count: int) -> Tensor:
    """Where blocks begin, each in the middle of its share."""
    return (((torch.arange(count) + 0.5) * seq_len / count) - length / 2).floor().long()


def _seen(seq_len: int, missing: int, frames: Tensor) -> Tensor:
    """All frames but some, of which there must be as many as were asked for, and one more seen."""
    require_count("seq_len", seq_len)
    observed = torch.ones(seq_len, dtype=torch.bool, device="cpu")
    observed[frames[(frames >= 0) & (frames < seq_len)]] = False
    if missing >= seq_len or int((~observed).sum()) != missing:
        raise ValueError(f"{missing} missing frames of this pattern do not fit into {seq_len}")
    return observed
