"""The page of assumptions is true: what fails is told with numbers that a cell prints."""

from __future__ import annotations

import json
from dataclasses import replace

import assumptions
import ledger
import pytest


@pytest.fixture(scope="module")
def book():
    return ledger.read_book(ledger.ROOT)


@pytest.fixture(scope="module")
def rows():
    return assumptions.read_assumptions(ledger.ROOT)


def test_every_number_is_printed_where_the_page_says(book, rows):
    assert assumptions.find_problems(rows, book, ledger.ROOT) == []


def test_page_is_up_to_date(book, rows):
    page = (ledger.ROOT / "book/assumptions.md").read_text(encoding="utf-8")
    assert page == assumptions.render(rows, book), "run `make ledger`"


def test_the_assumptions_that_the_papers_name_are_there(rows):
    """By the place where they are printed; those of the main texts, and the hypothesis."""
    places = " ".join(f"{row.paper} {row.printed}," for row in rows)
    for name in ("FDGWC Assumption 1", "HWLSL Hypothesis 1"):
        assert f"{name}," in places
    for number in ("2.1", "2.2", "2.3"):
        assert f"HWLSL Assumption {number}," in places


def test_an_assumption_is_broken_with_a_number_or_the_page_says_that_it_is_not(book, rows):
    page = assumptions.render(rows, book)
    entries = page.split("\n### ")[1:]
    assert len(entries) == len(rows)
    for entry, row in zip(entries, rows, strict=True):
        assert ("not shown in this book" in entry.lower()) == (not row.notebook)
        assert bool(assumptions.bold_numbers(entry)) == bool(row.notebook)
    shown = sum(bool(row.notebook) for row in rows)
    assert f"Of {len(rows)} assumptions {shown} are broken here" in page
    fewer = assumptions.render(rows[1:], book)
    assert f"Of {len(rows) - 1} assumptions {shown - bool(rows[0].notebook)} are broken" in fewer


@pytest.fixture
def own(tmp_path):
    """A repository with one notebook that prints one number."""
    (tmp_path / "book").mkdir()
    streams = [{"text": ["error  0.25\n", "of 12"]}, {"data": {"text/plain": ["a    7.5"]}}]
    (tmp_path / "book/01-a.ipynb").write_text(json.dumps({"cells": [{"outputs": streams}, {}]}))
    return tmp_path


GOOD = assumptions.Assumption(
    paper="FDGWC",
    name="A thing",
    says="It holds.",
    printed="somewhere",
    used="everywhere",
    fails="the error is **0.25**, and **7.5** in the table",
    notebook="01-a.ipynb",
    prints=("error 0.25 of 12", "a 7.5"),
)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"fails": "", "notebook": "", "prints": ()}, None),
        ({"paper": "NOBODY"}, "no paper has the key"),
        ({"seen": "once"}, "is none of"),
        ({"fails": "the error is **0.26**"}, "0.26 is in bold, but in none of its lines"),
        ({"fails": "the error is **0.2**"}, "0.2 is in bold, but in none of its lines"),
        ({"fails": "the error is **25**"}, "25 is in bold, but in none of its lines"),
        ({"fails": "it is large"}, "go together"),
        ({"notebook": ""}, "go together"),
        ({"prints": ()}, "go together"),
        (
            {"prints": ("error 0.25 of 13", "a 7.5")},
            "no cell of 01-a.ipynb prints 'error 0.25 of 13'",
        ),
    ],
)
def test_untruth_is_noticed(own, book, change, complaint):
    problems = assumptions.find_problems([replace(GOOD, **change)], book, own)
    assert problems == [] if complaint is None else any(complaint in each for each in problems)


def test_a_name_stands_once(own, book):
    (problem,) = assumptions.find_problems([GOOD, GOOD], book, own)
    assert "stands twice" in problem
