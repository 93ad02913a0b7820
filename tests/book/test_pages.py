"""Pages of text: the code that they show runs and prints what they say."""

from __future__ import annotations

import doctest
import re

import pytest
from normalise_notebooks import BOOK

PAGES = sorted(path for path in BOOK.glob("*.md") if "```pycon" in path.read_text("utf-8"))


def session(text: str) -> str:
    """All that a page shows as typed into Python, one session from top to bottom."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def failures(text: str, name: str) -> int:
    """How many examples of a page do not print what stands below them."""
    examples = doctest.DocTestParser().get_doctest(session(text), {}, name, name, 0)
    assert examples.examples
    return doctest.DocTestRunner(verbose=False).run(examples).failed


def test_pages_show_code():
    assert {path.stem for path in PAGES} >= {"prerequisites", "outside-the-band"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page_prints_what_it_says(path):
    assert failures(path.read_text("utf-8"), path.name) == 0


def test_a_page_that_lies_is_noticed(capsys):
    page = "Count.\n\n```pycon\n>>> 1 + 1\n2\n```\n\n```pycon\n>>> 2 + 2\n5\n```\n"
    assert failures(page, "lie") == 1
    assert "Expected" in capsys.readouterr().out
