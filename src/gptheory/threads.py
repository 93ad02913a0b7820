"""On how many threads torch computes: one here, and elsewhere what it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

_SETTING = threading.Lock()  # while the number for new threads is not what it should be


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside, so that sums do not depend on the machine.

    torch (2.13, with OpenMP) has two kinds of numbers. Every thread has its own, which decides how
    many threads share its operations. The process has one, which a thread takes over when it first
    computes or asks, whatever was set in it before. ``torch.set_num_threads`` sets both,
    ``torch.get_num_threads`` reads the thread's. To set and restore therefore gives threads that
    start in between the wrong number for their lifetime, and of two threads that overlap the
    second finds a 1 and leaves it to all that start later.

    Here only the calling thread computes on one, and afterwards on as many as before. The number
    of the process is put back at once, by a thread that lives no longer than that; threads which
    start inside get it as well. Contexts may be nested, and entered by several threads at a time.
    """
    before = torch.get_num_threads()  # asks first, so that the 1 stays
    _set_here(1)
    try:
        yield
    finally:
        _set_here(before)


def _set_here(count: int) -> None:
    """Set the number of this thread, and leave that of the process alone."""
    with _SETTING:
        shared = _in_a_new_thread(torch.get_num_threads)
        torch.set_num_threads(count)
        _in_a_new_thread(torch.set_num_threads, shared)


def _in_a_new_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()
