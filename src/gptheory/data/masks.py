"""Which frames are seen: the patterns of Ye and Chen, and gaps at random places."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..support.validation import require_count, require_one_of

PATTERNS = ("tail", "middle", "four", "spread")


def pattern(name: str, seq_len: int, missing: int) -> Tensor:
    """Four patterns after those on which Ye and Chen test. Source: YC Patterns.

    Args:
        name: ``"tail"`` (P1) the last frames are missing, ``"middle"`` (P2) one gap in the middle,
            ``"four"`` (P3) four gaps of a quarter each, ``"spread"`` single frames, evenly spread
            (where P4 has them at random: ``random_gaps(1, N, M, 1)``, or with neighbours allowed).
        seq_len: N.
        missing: M frames, 0 < M < N; a multiple of 4 for ``"four"``, at most N/2 for ``"spread"``.
            Gaps have frames between them; where N hardly holds them, one may lie at an end, except
            for ``"middle"``.

    Returns:
        observed: (N,), boolean, True where a frame is seen.

    Raises:
        ValueError: for another name, or numbers out of range.
    """
    require_one_of("name", name, PATTERNS)
    require_count("missing", missing)
    gaps = {"tail": 1, "middle": 1, "four": 4, "spread": missing}[name]
    size = missing // gaps
    between = 2 if name == "middle" else gaps  # frames seen, at least
    if size * gaps != missing or seq_len < missing + between:
        raise ValueError(
            f"{name!r} needs gaps of equal size with frames between them, got missing={missing}"
            f" of seq_len={seq_len}"
        )
    if name == "tail":
        return torch.arange(seq_len, device="cpu") < seq_len - missing
    # the middle of each of as many parts; halves are all rounded down, so that no gaps touch
    places = ((k + 0.5) * seq_len / gaps - size / 2 for k in range(gaps))
    return _with_gaps(seq_len, size, [math.ceil(place - 0.5) for place in places])


def random_gaps(
    n: int, seq_len: int, gaps: int, size: int, generator: torch.Generator | None = None
) -> Tensor:
    """Gaps of one size at random places, all placements equally likely, none touching another.

    Args:
        n: number of masks.
        seq_len: N.
        gaps: how many in each.
        size: frames of a gap; gaps · (size + 1) <= N + 1, and something is seen.
        generator: source of randomness, on the CPU.

    Returns:
        observed: (n, N), boolean, True where a frame is seen.

    Raises:
        ValueError: for counts below 1, or gaps that do not fit.
    """
    for name, value in (("n", n), ("seq_len", seq_len), ("gaps", gaps), ("size", size)):
        require_count(name, value)
    seen = seq_len - gaps * size
    if seen < max(1, gaps - 1):
        raise ValueError(f"{gaps} gaps of {size} frames do not fit into {seq_len} frames")
    # a gap goes before the first, between two, or behind the last of the frames that are seen
    slots = torch.rand(n, seen + 1, generator=generator, device="cpu").argsort(dim=1)[:, :gaps]
    return torch.stack([_with_gaps(seq_len, size, _starts(each, size)) for each in slots])


def _starts(slots: Tensor, size: int) -> list[int]:
    return [slot + k * size for k, slot in enumerate(sorted(slots.tolist()))]


def _with_gaps(seq_len: int, size: int, starts: list[int]) -> Tensor:
    observed = torch.ones(seq_len, dtype=torch.bool, device="cpu")
    for start in starts:
        observed[start : start + size] = False
    return observed
