"""One thread, where sums must not depend on how many there are.

torch keeps the number twice: each thread of the program has its own, and a thread that asks for the
first time takes that of the process, the last one set by *any* thread. Set to 1 and back inside a
thread it is wrong for everybody else in between, and afterwards too where two do so at once or
where the two numbers differed before. Here the thread's own changes and the process's does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_SETTING = threading.Lock()  # between setting a number and putting back that of the process


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread where the calling thread computes, and nowhere else.

    The caller's number is back afterwards, also after an exception; threads that start meanwhile
    or later, and those that run beside, keep theirs.
    """
    before = torch.get_num_threads()
    _set_here(1)
    try:
        yield
    finally:
        _set_here(before)


def _set_here(count: int) -> None:
    with _SETTING:
        default = _elsewhere(torch.get_num_threads)
        torch.set_num_threads(count)
        _elsewhere(lambda: torch.set_num_threads(default))


def _elsewhere(ask: Callable[[], int | None]) -> int | None:
    """What it returns in a thread that is new, and has the number of the process."""
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(ask).result()
