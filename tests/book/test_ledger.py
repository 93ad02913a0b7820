"""The ledger is true: rows that claim a check have one, and markers name rows that exist."""

from __future__ import annotations

import json

import ledger
import pytest

STATEMENTS = """
[[paper]]
key = "FDGWC"
cite = "fu2024diffusion"
heading = "Part I"

[[statement]]
id = "FDGWC Lemma 1"
text = "Gradient descent converges."
state = "proved"
chapter = 1
found = "the bound is sharp."

[[statement]]
id = "FDGWC Fig. 4a"
text = "Errors fall."
state = "planned"
chapter = 6
"""
MODULE = '''
def descend():
    """Descend. Source: FDGWC Lemma 1, first part; Bubeck 2015; FDGWC Section 3."""

class Sweep:
    """Sweep.

    Source: our own derivation; FDGWC Fig. 4a. It draws
    the figure.
    """
'''
TESTS = """
import pytest

@pytest.mark.statement("FDGWC Lemma 1")
def test_descends_to_the_score():
    pass
"""


@pytest.fixture
def root(tmp_path):
    """A small repository whose ledger is true."""
    for folder in ("book", "src/gptheory/diffusion", "tests/diffusion"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "book/statements.toml").write_text(STATEMENTS)
    (tmp_path / "src/gptheory/diffusion/unroll.py").write_text(MODULE)
    (tmp_path / "tests/diffusion/test_unroll.py").write_text(TESTS)
    metadata = {
        "gptheory": {"statements": ["FDGWC Lemma 1"]},
        "mystnb": {"figure": {"name": "fig-rate"}},
    }
    notebook = {"cells": [{"id": "a", "cell_type": "code", "metadata": metadata}]}
    (tmp_path / "book/01-descent.ipynb").write_text(json.dumps(notebook))
    return tmp_path


def problems(root):
    return ledger.find_problems(ledger.read_book(root))


def test_the_books_ledger_is_true():
    assert problems(ledger.ROOT) == []


def test_every_proved_row_of_the_book_keeps_its_code():
    """A tool that looked in the wrong folder would find no marker, and no marker that is wrong."""
    book = ledger.read_book(ledger.ROOT)
    coded = [marker.statement for marker in book.markers if marker.kind == "code"]
    assert len(coded) >= 57
    assert {row.id for row in book.statements if row.state == "proved"} <= set(coded)


def test_the_books_ledger_page_is_up_to_date():
    page = (ledger.ROOT / "book/ledger.md").read_text(encoding="utf-8")
    assert page == ledger.render(ledger.read_book(ledger.ROOT)), "run `make ledger`"


def test_page_links_code_tests_and_figures(root):
    assert problems(root) == []
    page = ledger.render(ledger.read_book(root))
    assert "Code: {py:func}`~gptheory.diffusion.unroll.descend`" in page
    assert "Code: {py:class}`~gptheory.diffusion.unroll.Sweep`" in page
    assert "Tests: `diffusion/test_unroll`: *descends to the score*" in page
    assert "*Found:* the bound is sharp." in page
    assert "**proved** (1: 1 FDGWC)" in page
    assert "Shown in: {numref}`fig-rate`" in page
    assert "[chapter 1](01-descent.ipynb)" in page


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("tests/diffusion/test_unroll.py", "@pytest.mark.statement", "# ", "no test has"),
        ("tests/diffusion/test_unroll.py", "Lemma 1", "Lemma 7", "names 'FDGWC Lemma 7'"),
        ("src/gptheory/diffusion/unroll.py", "Lemma 1,", "Lemma 10,", "names 'FDGWC Lemma 10"),
        ("src/gptheory/diffusion/unroll.py", "Source: FDGWC Lemma 1", "See", "no code names"),
        ("src/gptheory/diffusion/unroll.py", "Fig. 4a", "Fig. 4", "names 'FDGWC Fig. 4."),
        ("book/01-descent.ipynb", "Lemma 1", "Lemma 2", "names 'FDGWC Lemma 2'"),
        ("book/statements.toml", '"proved"', '"obvious"', "state 'obvious' is none of"),
        ("book/statements.toml", '"planned"', '"quoted"', "gives no reason"),
        ("book/statements.toml", "chapter = 6", "chapter = 1", "chapter 1 is written"),
        ("book/statements.toml", "chapter = 6", "", "for no chapter"),
        ("book/statements.toml", "FDGWC Fig. 4a", "FDGWC Lemma 1", "stands twice"),
    ],
)
def test_untruth_is_noticed(root, file, old, new, complaint):
    path = root / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert any(complaint in problem for problem in problems(root))


def test_check_fails_on_a_stale_page(root, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ledger.py", "--root", str(root)])
    assert ledger.main() == 0
    monkeypatch.setattr("sys.argv", ["ledger.py", "--check", "--root", str(root)])
    assert ledger.main() == 0
    (root / "book/ledger.md").write_text("old")
    assert ledger.main() == 1
    assert "stale" in capsys.readouterr().out
