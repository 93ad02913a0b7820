"""The ledger is true: rows that claim a check have one, and markers name rows that exist."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import ledger
import pytest
import statements

STATEMENTS = """
[[paper]]
key = "FDGWC"
cite = "fu2024diffusion"
heading = "Part I"

[paper.numbers]
Lemma = ["1"]
"Fig." = ["4-5"]

[[paper.section]]
title = "Steps"
first = "FDGWC Lemma 1"

[[paper.section]]
title = "Pictures"
first = "FDGWC Fig. 5"
compact = true
reason = "only looked at"

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

[[statement]]
id = "FDGWC Fig. 5"
text = "A map."
state = "quoted"
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
        (
            "book/statements.toml",
            "chapter = 6",
            'chapter = 6\nseen = "once"',
            "seen 'once' is none of",
        ),
        ("book/statements.toml", '["1"]', '["1-2"]', "FDGWC Lemma 2: the paper has it"),
        ("book/statements.toml", "Lemma = ", "Remark = ", "FDGWC Lemma 1: not among the numbers"),
        ("book/statements.toml", 'first = "FDGWC Fig. 5"', 'first = "FDGWC Fig. 6"', "is no row"),
        (
            "book/statements.toml",
            'first = "FDGWC Lemma 1"',
            'first = "FDGWC Fig. 4a"',
            "out of order",
        ),
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


@pytest.mark.parametrize("missing", ["test", "code"])
def test_what_is_built_runs_and_is_held_to_its_form(root, missing):
    """A definition as code: without the code, or without a test of it, the row is untrue."""
    rows = root / "book/statements.toml"
    rows.write_text(rows.read_text().replace('"proved"', '"built"'))
    assert problems(root) == []
    if missing == "test":
        (root / "tests/diffusion/test_unroll.py").write_text("")
        assert any("built, but no test has" in problem for problem in problems(root))
    else:
        (root / "src/gptheory/diffusion/unroll.py").write_text("")
        assert any("built, but no code names" in problem for problem in problems(root))


def test_sections_stand_in_order_and_compact_ones_share_a_reason(root):
    page = ledger.render(ledger.read_book(root))
    steps, pictures = page.index("### Steps"), page.index("### Pictures")
    assert steps < page.index("**Lemma 1**") < pictures < page.index("**Fig. 5**, quoted\n")
    assert page.count("only looked at") == 1
    assert "* - **Fig. 4a**\n\n    planned, chapter 6\n" in page


# ---- what the book says of its ledger -----------------------------------------------------------

# Every lemma of the appendices of the second paper, and the rest of what it numbers there, listed
# here by hand from the printed text: the ledger has a list of its own.
APPENDICES = {
    "Lemma": {"D": 1, "E": 8, "F": 10, "G": 7},
    "Definition": {"D": 4, "E": 10, "F": 1, "G": 7},
    "Remark": {"E": 3, "F": 2},
    "Assumption": {"E": 1},
    "Proposition": {"D": 1},
}
MAIN_TEXT = {
    "Assumption": ["2.1", "2.2", "2.3"],
    "Corollary": ["3.2.1"],
    "Definition": ["3.1", "3.2", "3.3", "3.4", "4.1"],
    "Fig.": ["1"],
    "Hypothesis": ["1"],
    "Lemma": ["2.1"],
    "Problem": ["1", "2"],
    "Proposition": ["4.1", "4.2"],
    "Remark": ["2.1", *(f"3.{k}" for k in range(1, 7)), *(f"4.{k}" for k in range(1, 6))],
    "Table": ["1"],
    "Theorem": ["3.1", "3.2", "4.1"],
}


def numbered_in_the_second_paper():
    letters = [
        f"{kind} {letter}.{k}"
        for kind, counts in APPENDICES.items()
        for letter, count in counts.items()
        for k in range(1, count + 1)
    ]
    return letters + [f"{kind} {n}" for kind, numbers in MAIN_TEXT.items() for n in numbers]


@pytest.fixture(scope="module")
def book():
    return ledger.read_book(ledger.ROOT)


@pytest.mark.parametrize("name", numbered_in_the_second_paper())
def test_every_number_of_the_second_paper_has_a_row(book, name):
    (row,) = [row for row in book.statements if row.id == f"HWLSL {name}"]
    assert row.text and row.state in statements.STATES


def test_the_ledgers_list_of_numbers_is_this_one(book):
    (paper,) = [paper for paper in book.papers if paper.key == "HWLSL"]
    expected = [f"HWLSL {name}" for name in numbered_in_the_second_paper()]
    assert sorted(statements.printed(paper)) == sorted(expected)


def test_no_definition_or_diagram_flatters(book):
    """The definitions and diagrams that were once called measured or proved."""
    built = {row.id for row in book.statements if row.state == "built"}
    definitions = ("Fig. 2", "Fig. 3", "Transformer class", "Data model", "Assumption 1")
    assert {f"FDGWC {name}" for name in definitions} <= built
    definitions = ("Assumption 2.1", "Fig. 1", *(f"Definition {n}" for n in ("3.1", "3.3", "3.4")))
    assert {f"HWLSL {name}" for name in definitions} <= built


def test_rows_say_where_print_differs(book):
    differs = {row.id for row in book.statements if row.differs}
    expected = ("Theorem 3.1", "Theorem 4.1", "Proposition 4.2", "Definition 4.1", "Lemma G.7")
    assert {f"HWLSL {name}" for name in expected} <= differs


def test_what_was_not_read_is_named_and_says_so(book):
    (paper,) = [paper for paper in book.papers if paper.key == "FDGWC"]
    rows = {row.name: row for row in book.rows(paper)}
    assert not any(row.seen == "print" for row in rows.values())
    restated = {name for name, row in rows.items() if row.seen == "restated"}
    assert {"Assumption 1", "Corollary 3", "Lemma 23", "Lemma 24"} <= restated
    for name in ("Proposition 1", "Figures 6-13", "Tables 1-4", "Other theorems"):
        assert rows[name].state == "out of scope" and rows[name].reason
    page = ledger.render(book)
    lines = [line for line in page.splitlines() if line.endswith("wording not seen by us")]
    assert len(lines) == sum(row.seen == "no" for row in book.statements)


def test_numbers_in_the_ledgers_sentences_are_counted_and_not_typed(book):
    """A row less, and every sentence that counts it has another number."""
    page = ledger.render(book)
    assert f"numbers {len(numbered_in_the_second_paper())} things: 27 definitions" in page
    kept = [row for row in book.statements if row.id != "HWLSL Table 1"]
    papers = [
        replace(paper, numbers={kind: n for kind, n in paper.numbers.items() if kind != "Table"})
        for paper in book.papers
    ]
    less = ledger.render(replace(book, statements=kept, papers=papers))
    totals = re.compile(r"numbers (\d+) things.*there are (\d+)\.|\*\*quoted\*\* \((\d+):")
    before, after = (
        [int(n) for match in totals.findall(text) for n in match if n] for text in (page, less)
    )
    assert after == [n - 1 for n in before] and len(before) == 3
    assert "1 table" in page and "1 table" not in less
    figures = r"rows for (\d+) of 34 theorems, (\d+) of 13 figures and 0 of 4 tables"
    gone = [row for row in book.statements if row.id not in ("FDGWC Lemma 24", "FDGWC Fig. 5")]
    (before,) = re.findall(figures, page)
    (after,) = re.findall(figures, ledger.render(replace(book, statements=gone)))
    assert [int(n) - 1 for n in before] == [int(n) for n in after]


@pytest.mark.parametrize("page", ["README.md", "book/index.md", "book/ledger.md"])
def test_the_claim_is_the_same_everywhere_and_has_no_typed_number(page):
    text = " ".join((ledger.ROOT / page).read_text(encoding="utf-8").split())
    assert ledger.CLAIM in text or ledger.CLAIM[0].upper() + ledger.CLAIM[1:] in text
    assert not re.search(
        r"every statement of the(ir|m| two| papers)|every statement of theirs", text
    )
    if page != "book/ledger.md":
        assert not re.search(r"\d+ (rows|statements|lemmas|definitions)", text)
