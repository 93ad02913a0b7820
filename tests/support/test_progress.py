"""Progress bars: seen by people, never by tests, logs or committed notebooks."""

from __future__ import annotations

import sys

import pytest

from gptheory.diffusion import sample
from gptheory.support import progress as support_progress
from gptheory.support.progress import progress


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Bars appear at once; the environment says nothing."""
    monkeypatch.setattr(support_progress, "PATIENCE_SECONDS", 0)
    monkeypatch.delenv("GPTHEORY_PROGRESS", raising=False)
    monkeypatch.delenv("CI", raising=False)


@pytest.mark.parametrize("show", [True, False, None])
def test_items_pass_through_in_order(show):
    assert list(progress(iter(range(5)), total=5, show=show)) == [0, 1, 2, 3, 4]


def test_a_wish_decides(capsys):
    list(progress(range(3), describe="counting", show=False))
    assert capsys.readouterr().err == ""
    list(progress(range(3), describe="counting", show=True))
    assert "counting" in capsys.readouterr().err


def test_logs_get_no_bar_and_terminals_do(capsys, monkeypatch):
    list(progress(range(3)))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress(range(3)))
    assert "/3" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    list(progress(range(3)))
    assert capsys.readouterr().err == ""


def test_the_variable_overrides_the_default(capsys, monkeypatch):
    monkeypatch.setenv("GPTHEORY_PROGRESS", "1")
    list(progress(range(3)))
    assert "/3" in capsys.readouterr().err
    monkeypatch.setenv("GPTHEORY_PROGRESS", "0")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress(range(3)))
    assert capsys.readouterr().err == ""


def test_sampling_shows_its_progress_on_demand(capsys):
    sample(lambda v, t: -v, 1, 2, 1, steps=4, show_progress=True)
    assert "sampling" in capsys.readouterr().err
    sample(lambda v, t: -v, 1, 2, 1, steps=4, show_progress=False)
    assert capsys.readouterr().err == ""
