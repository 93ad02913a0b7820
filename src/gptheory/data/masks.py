"""Which frames are seen: patterns, gaps at random places, and laws of masks to train with.

A mask says True where a frame is seen. Ye and Chen *test* on four patterns, P1 to P4, and *train*
with four strategies, S1 to S4, mixtures of blocks at random places.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..support.draws import drawn
from ..support.validation import require_count, require_one_of

PATTERNS = ("tail", "middle", "four", "spread")
STRATEGIES = ("S1", "S2", "S3", "S4")


@runtime_checkable
class MaskLaw(Protocol):
    """A law of masks, one for each sequence of a batch.

    Attributes:
        seq_len: N.
    """

    seq_len: int

    @property
    @abstractmethod
    def parts(self) -> tuple[object, ...]:
        """Tensors and JSON values that decide it."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n masks, (n, N), boolean, True where a frame is seen.

        Drawn on the device of the generator, where they stay; without one on the CPU.
        """


@dataclass(frozen=True)
class Blocks:
    """Blocks of one size at random places, none touching another; see :func:`random_gaps`.

    Args:
        seq_len: N.
        count: how many.
        size: frames of each.

    Raises:
        ValueError: for counts below 1, or blocks that do not fit.
    """

    seq_len: int
    count: int
    size: int

    def __post_init__(self) -> None:
        _seen_beside(self.seq_len, self.count, self.size)

    @property
    def parts(self) -> tuple[object, ...]:
        """The three numbers."""
        return self.seq_len, self.count, self.size

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n masks; see :class:`MaskLaw`."""
        return random_gaps(n, self.seq_len, self.count, self.size, generator)


@dataclass(frozen=True)
class MaskMixture:
    """A mixture: every mask is of one law, chosen at random.

    Args:
        laws: of masks of equally many frames, one or more.
        shares: how often each is chosen, > 0, in any unit; by default all equally often.

    Raises:
        ValueError: for no law, laws of different lengths, or shares that are not one for each, > 0.
    """

    laws: Sequence[MaskLaw]
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        lengths = {law.seq_len for law in self.laws}
        if len(lengths) != 1:
            raise ValueError(
                "a mixture needs one law of masks or more, all of equally many frames, got laws of"
                f" {sorted(lengths)} frames"
            )
        object.__setattr__(self, "laws", tuple(self.laws))
        shares = [1.0] * len(self.laws) if self.shares is None else [float(s) for s in self.shares]
        if len(shares) != len(self.laws) or not all(0 < share < torch.inf for share in shares):
            raise ValueError(
                f"shares must be {len(self.laws)} finite numbers > 0, one for each law, got"
                f" {self.shares!r}"
            )
        object.__setattr__(self, "shares", tuple(shares))

    @property
    def seq_len(self) -> int:
        """N."""
        return self.laws[0].seq_len

    @property
    def parts(self) -> tuple[object, ...]:
        """Kinds and parts of the laws, and the shares."""
        own = (part for law in self.laws for part in (type(law).__name__, *law.parts))
        return *own, *self.shares

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n masks; see :class:`MaskLaw`."""
        require_count("n", n)
        uniform = drawn(torch.rand, n, generator=generator)
        steps = torch.tensor(self.shares, dtype=uniform.dtype, device=uniform.device).cumsum(0)
        which = torch.searchsorted(steps[:-1], uniform * steps[-1], right=True)
        kinds = torch.stack([law.draw(n, generator) for law in self.laws])
        return kinds[which, torch.arange(n, device=which.device)]


def strategy(name: str, seq_len: int, missing: int) -> MaskMixture:
    r"""The masks of Ye and Chen for training: blocks of M, M/2, M/4 and 1 of equal size.

    S1 has single frames only; S2 also M/2 blocks of 2, S3 also M/4 of 4, S4 also one of M, all in
    equal shares. (At M = 16, where they are stated, 16×1, 8×2, 4×4 and 1×16.) Here no block touches
    another, which print does not say. Source: YC Table 2.

    Args:
        name: ``"S1"`` to ``"S4"``.
        seq_len: N.
        missing: M frames; a multiple of 2 for S2, of 4 for S3 and S4.

    Raises:
        ValueError: for another name, a number of frames that does not divide, or blocks that do
            not fit.
    """
    require_one_of("name", name, STRATEGIES)
    require_count("missing", missing)
    sizes = (1, 2, 4, missing)[: STRATEGIES.index(name) + 1]
    if any(missing % size for size in sizes):
        raise ValueError(
            f"{name} needs blocks of {sizes} frames, into which missing={missing} does not divide"
        )
    return MaskMixture([Blocks(seq_len, missing // size, size) for size in sizes])


def require_masks(masks: Tensor | MaskLaw, seq_len: int) -> Tensor | MaskLaw:
    """Return masks to train with; raise unless they are a law, or a table, of N frames.

    Args:
        masks: a :class:`MaskLaw`, or (m, N) truth values, True where a frame is seen.
        seq_len: N.

    Raises:
        ValueError: for another kind or another number of frames, or a row that shows or hides
            everything.
    """
    if isinstance(masks, MaskLaw):
        if masks.seq_len != seq_len:
            raise ValueError(
                f"masks are for seq_len={masks.seq_len}, the data have seq_len={seq_len}"
            )
        return masks
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        given = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(
            f"masks must be a law of masks or a boolean tensor (m, {seq_len}), True where a frame"
            f" is seen, got {given}"
        )
    if masks.ndim != 2 or masks.shape[1] != seq_len or not len(masks):
        raise ValueError(f"masks must have shape (m, {seq_len}), got {tuple(masks.shape)}")
    useless = masks.all(dim=1) | ~masks.any(dim=1)
    if useless.any():
        raise ValueError(
            "every mask must say True of some frames and False of others, got"
            f" {int(masks[useless][0].sum())} of {seq_len} in row {int(useless.int().argmax())}"
        )
    return masks


def draw_masks(masks: Tensor | MaskLaw, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Masks (n, N) for one update: rows with replacement, or from a law."""
    if not isinstance(masks, Tensor):
        return masks.draw(n, generator)
    rows = drawn(torch.randint, len(masks), (n,), generator=generator, dtype=torch.int64)
    return masks[rows.to(masks.device)]


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
        generator: source of randomness; its device is the result's, without one the CPU.

    Returns:
        observed: (n, N), boolean, True where a frame is seen.

    Raises:
        ValueError: for counts below 1, or gaps that do not fit.
    """
    require_count("n", n)
    seen = _seen_beside(seq_len, gaps, size)
    # a gap goes before the first, between two, or behind the last of the frames that are seen
    order = drawn(torch.rand, n, seen + 1, generator=generator, dtype=torch.float32)
    slots = order.argsort(dim=1)[:, :gaps].sort(dim=1).values
    starts = slots + size * torch.arange(gaps, device=slots.device)
    hidden = (starts[..., None] + torch.arange(size, device=slots.device)).flatten(1)
    observed = torch.ones(n, seq_len, dtype=torch.bool, device=slots.device)
    return observed.scatter(1, hidden, False)


def _seen_beside(seq_len: int, gaps: int, size: int) -> int:
    """How many frames are seen; raise unless so many gaps fit without touching."""
    for name, value in (("seq_len", seq_len), ("gaps", gaps), ("size", size)):
        require_count(name, value)
    seen = seq_len - gaps * size
    if seen < max(1, gaps - 1):
        raise ValueError(f"{gaps} gaps of {size} frames do not fit into {seq_len} frames")
    return seen


def _with_gaps(seq_len: int, size: int, starts: list[int]) -> Tensor:
    observed = torch.ones(seq_len, dtype=torch.bool, device="cpu")
    for start in starts:
        observed[start : start + size] = False
    return observed
