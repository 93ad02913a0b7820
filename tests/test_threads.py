"""One thread where it is asked for, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from joblib import parallel_config

from gptheory import growth, sweep
from gptheory.threads import one_thread


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    """A number that is neither one nor, most likely, the machine's."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def later(function: Callable[..., Any] = torch.get_num_threads) -> Any:
    """What a thread returns that starts now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def numbers() -> tuple[int, int]:
    """Of the calling thread and of one that starts now."""
    return torch.get_num_threads(), later()


def test_one_inside_and_afterwards_what_it_was():
    with one_thread():
        assert numbers() == (1, 3)
        with one_thread():
            assert numbers() == (1, 3)
        assert numbers() == (1, 3)
    assert numbers() == (3, 3)


def test_an_error_inside_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert numbers() == (3, 3)


def test_the_libraries_that_multiply_compute_on_one():
    def told(inside: str) -> set[str]:
        return set(re.findall(r"(?:omp|mkl)_get_max_threads\(\) : (\d+)", inside))

    with one_thread():
        assert told(torch.__config__.parallel_info()) <= {"1"}
    assert told(torch.__config__.parallel_info()) <= {"3"}


def test_threads_that_overlap_leave_nothing_behind():
    """Enter A, enter B, leave A, leave B: B found A's number if the process had it."""
    with ThreadPoolExecutor(1) as a, ThreadPoolExecutor(1) as b:
        contexts = {a: one_thread(), b: one_thread()}
        for pool in (a, b):
            pool.submit(contexts[pool].__enter__).result()
            assert pool.submit(numbers).result() == (1, 3)
        assert numbers() == (3, 3)
        for pool in (a, b):
            pool.submit(contexts[pool].__exit__, None, None, None).result()
            assert pool.submit(numbers).result() == (3, 3)
    assert numbers() == (3, 3)


def test_a_thread_with_a_number_of_its_own_keeps_it_and_gives_it_to_nobody():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.get_num_threads).result()  # else its first use takes the process's
        pool.submit(torch.set_num_threads, 2).result()
        torch.set_num_threads(3)

        def enter_and_leave() -> None:
            with one_thread():
                pass

        pool.submit(enter_and_leave).result()
        assert pool.submit(torch.get_num_threads).result() == 2
    assert numbers() == (3, 3)


def test_what_the_caller_sets_meanwhile_stays():
    with ThreadPoolExecutor(1) as pool:
        context = one_thread()
        pool.submit(context.__enter__).result()
        torch.set_num_threads(2)
        pool.submit(context.__exit__, None, None, None).result()
        assert pool.submit(torch.get_num_threads).result() == 3
    assert numbers() == (2, 2)


def test_many_threads_at_once_leave_nothing_behind():
    def enter_and_leave(_k: int) -> tuple[int, int]:
        with one_thread():
            return numbers()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(enter_and_leave, range(64))) == {(1, 3)}
    assert numbers() == (3, 3)


def test_sweeps_compute_on_one(tmp_path, monkeypatch):
    """Also where joblib runs their groups in threads, which overlap."""
    both, seen = Barrier(2), []

    def attempt(*_: Any) -> tuple[dict[str, float], None]:
        both.wait(60)
        seen.append(numbers())
        return {}, None

    monkeypatch.setattr(sweep, "_attempt", attempt)
    cells = sweep.grid(n=4, lengthscale=[2.0, 3.0], seq_len=[4, 5], dim=2, estimator="kronecker")
    with parallel_config(backend="threading"):
        sweep.sweep(cells[:1] + cells[3:], tmp_path, n_jobs=2, show_progress=False)
    assert seen == [(1, 3), (1, 3)] and numbers() == (3, 3)


def test_growth_is_measured_on_one(tmp_path, monkeypatch):
    seen = []

    def measured(*_: Any) -> dict[str, dict]:
        seen.append(numbers())
        return {"polynomial": {"ms": 1.0, "largest tensor": 1, "bytes": 1}}

    monkeypatch.setattr(growth, "_measured", measured)
    settings, cpu = growth.Growth(lengths=(2048,)), torch.device("cpu")
    growth.attention_growth(settings, "growth", cpu, tmp_path)
    assert seen == [(1, 3)] and numbers() == (3, 3)
