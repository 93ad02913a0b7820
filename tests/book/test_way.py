"""The way of a sequence is drawn as it is, and shows what the page says that it shows."""

from __future__ import annotations

import house
import pytest
import way


@pytest.fixture(scope="module")
def rows():
    return way.steps()


def entered(rows, *words):
    return set().union(*(rooms for line, _, rooms in rows if any(word in line for word in words)))


def test_drawing_and_program_are_up_to_date(rows, monkeypatch):
    monkeypatch.setattr(way, "steps", lambda: rows)
    assert way.DRAWING.read_text("utf-8") == way.render(), "run `python tools/way.py`"
    assert way.PAGE.read_text("utf-8") == way.page(), "run `python tools/way.py`"


def test_the_exact_score_needs_laws_and_the_forward_process_only(rows):
    assert entered(rows, "ExactScore(law)") == {"support", "data", "diffusion"}


def test_the_built_transformer_is_not_trained(rows):
    assert "construction" in entered(rows, "built")
    assert not entered(rows, "built") & {"networks", "training"}


def test_rooms_at_work_stand_before_the_room_that_is_called(rows):
    names, later = house.order(), []
    for i, (line, called, rooms) in enumerate(rows, 1):
        assert called, line
        if max(map(names.index, rooms)) > max(map(names.index, called)):
            later.append(i)
    assert later == [12]
