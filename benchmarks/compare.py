"""What a row of the table is, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

COLUMNS = "{task:<46} | {peer:<36} | {ours:>10} | {theirs:>10} | {ratio:>7} | {bar:>9} | {verdict}"
HEADER = COLUMNS.format(
    task="task (what is timed)", peer="peer (what is timed)", ours="ours", theirs="peer",
    ratio="ratio", bar="bar", verdict="met",
)  # fmt: skip
HEADER = f"{HEADER}\n{'-' * (len(HEADER) + 2)}"


class Row(Protocol):
    """A line of the table that can be measured."""

    task: str
    peer: str

    def measure(self) -> str: ...


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer: the ratio of their times.

    Args:
        task: what is computed, with its sizes and what the timing of ours includes.
        peer: what it is compared with, and what that timing includes.
        ours, theirs: the two computations, from the same inputs to their results.
        agree: raises AssertionError unless the two results agree.
        bar: smallest acceptable ratio, None where there is none.
        rounds: how often both are timed, in turn, after a first round that is checked and warms
            up; 0 for a peer so slow that the first round has to count.
        calls: how often ours runs in a round, where once is too short to time.
    """

    task: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    agree: Callable[[Any, Any], None]
    bar: float | None
    rounds: int = 5
    calls: int = 1

    def measure(self) -> str:
        """Check, time, and format."""
        (first_ours, result), (first_theirs, peer_result) = timed(self.ours), timed(self.theirs)
        self.agree(result, peer_result)
        pairs = [(self._each(), timed(self.theirs)[0]) for _ in range(self.rounds)]
        pairs = pairs or [(first_ours, first_theirs)]
        ours, theirs = (median(times) for times in zip(*pairs, strict=True))
        ratio = theirs / ours
        return COLUMNS.format(
            task=self.task,
            peer=self.peer,
            ours=f"{ours * 1e3:.1f} ms",
            theirs=f"{theirs * 1e3:.0f} ms",
            ratio=f"{ratio:.1f} x",
            bar="" if self.bar is None else f">= {self.bar:g} x",
            verdict="" if self.bar is None else verdict(ratio >= self.bar),
        )

    def _each(self) -> float:
        return timed(lambda: [self.ours() for _ in range(self.calls)])[0] / self.calls


@dataclass(frozen=True)
class Limit:
    """Ours alone, where no peer can do it: milliseconds a unit.

    Args:
        task: what is computed, with its sizes and what the timing includes.
        peer: why there is none.
        ours: the computation.
        check: raises AssertionError unless the result is right; called before timing.
        units: how many units one call makes.
        bar: largest acceptable time a unit, in milliseconds.
        rounds: how often it is timed.
    """

    task: str
    peer: str
    ours: Callable[[], Any]
    check: Callable[[Any], None]
    units: int
    bar: float
    rounds: int = 5

    def measure(self) -> str:
        """Check, time, and format."""
        self.check(self.ours())
        each = median(timed(self.ours)[0] for _ in range(self.rounds)) * 1e3 / self.units
        return COLUMNS.format(
            task=self.task,
            peer=self.peer,
            ours=f"{each:.2f} ms",
            theirs="",
            ratio="",
            bar=f"<= {self.bar:g} ms",
            verdict=verdict(each <= self.bar),
        )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, all threads of the process together, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def verdict(met: bool) -> str:
    """The last column."""
    return "yes" if met else "NO"
