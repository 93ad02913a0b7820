"""One thread, where it is asked for and nowhere else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from joblib import Parallel, delayed

from gptheory.studies import growth as growing
from gptheory.studies import sweeps as sweeping
from gptheory.studies.run import Run
from gptheory.support.threads import one_thread


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_a_new_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def inside():
    with one_thread():
        return torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)


def test_one_thread_inside_and_the_callers_number_afterwards():
    assert inside() == (1, 3)
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 3


def test_inside_a_thread_that_has_another_number():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
        torch.set_num_threads(2)  # the pool's thread keeps its own
        assert pool.submit(inside).result() == (1, 2)
        assert pool.submit(torch.get_num_threads).result() == 3
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 2


def test_two_threads_that_overlap_leave_nothing_behind():
    """The second comes in while the first is inside, and goes after it: 1 stayed behind once."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    told = []

    def first():
        with one_thread():
            first_in.set()
            second_in.wait()
            told.append(torch.get_num_threads())
        told.append(torch.get_num_threads())
        first_out.set()

    def second():
        first_in.wait()
        with one_thread():
            second_in.set()
            first_out.wait()
            told.append(torch.get_num_threads())
        told.append(torch.get_num_threads())

    threads = [threading.Thread(target=each) for each in (first, second)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert told == [1, 3, 1, 3]
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_of_joblib(backend):
    found = Parallel(n_jobs=2, backend=backend)(delayed(inside)() for _ in range(4))
    assert {own for own, _ in found} == {1}
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3


def test_sweeps_and_measurements_give_the_number_back(tmp_path, monkeypatch):
    seen, attempt, candidates = [], sweeping._attempt, growing.candidates

    def watched(call):
        return lambda *args: seen.append(torch.get_num_threads()) or call(*args)

    monkeypatch.setattr(sweeping, "_attempt", watched(attempt))
    monkeypatch.setattr(growing, "candidates", watched(candidates))

    def work():
        cells = sweeping.grid(estimator="wiener", n=8, seq_len=4, dim=2, seed=len(seen))
        sweeping.sweep(cells, tmp_path, show_progress=False)
        small = growing.Growth(dim=1, degree=2, gradient_degree=2, lengths=(8,), rounds=1)
        growing.attention_growth(small, Run("growth", torch.device("cpu"), tmp_path))
        return torch.get_num_threads()

    assert work() == in_a_new_thread(work) == 3
    assert seen == [1, 1, 1, 1]
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3
