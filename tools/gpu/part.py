"""What a part of the check is, how long it may take, and how time is measured on a device."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

Numbers = dict[str, Any]


class OutOfTime(Exception):
    """A part has used up its time."""


@dataclass
class Session:
    """Where the parts run.

    Args:
        device: what is checked.
        rehearse: whether to run everything tiny, to see that it runs.
        out: folder of the results.
        root: of the repository.
        truths: what the tour found on the CPU, by stop and dtype.
    """

    device: torch.device
    rehearse: bool
    out: Path
    root: Path
    truths: dict[tuple[str, torch.dtype], Numbers] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether the device is CUDA's."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Part:
    """One line of the table.

    Args:
        name: of the part.
        run: called with the session and a dictionary, into which it puts numbers as it finds them.
        limit: seconds.
        needs: what must be there: ``""`` or ``"cuda"``.
    """

    name: str
    run: Callable[[Session, Numbers], None]
    limit: float
    needs: str = ""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` inside when the time is up; may be nested."""

    def stop(_signal: int, _frame: object) -> None:
        raise OutOfTime(f"out of time after {seconds:.0f} s")

    start, before = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    try:
        yield
    finally:
        left = max(outer - (time.monotonic() - start), 1e-3) if outer else 0
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def attempt(call: Callable[[], Any], seconds: float = 0.0) -> Any:
    """What a call returns, or its error in words: one that fails must not end the others."""
    try:
        if not seconds:
            return call()
        with within(seconds):
            return call()
    except OutOfTime as error:
        if not seconds:  # the limit of the whole part
            raise
        return {"error": str(error)}
    except Exception as error:
        return {"error": said(error)}


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def milliseconds(call: Callable[[], Any], session: Session, repeats: int = 30) -> float:
    """Median time of a call: by CUDA's events, elsewhere by the clock."""
    repeats = 2 if session.rehearse else repeats
    for _ in range(max(1, repeats // 5)):
        call()
    synchronise(session.device)
    if not session.cuda:
        return round(median(_clocked(call, session.device) for _ in range(repeats)), 4)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return round(median(start.elapsed_time(end) for start, end in pairs), 4)


def _clocked(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    synchronise(device)
    return 1e3 * (time.perf_counter() - start)
