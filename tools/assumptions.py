"""Write book/assumptions.md: what the papers assume, and what fails without it.

The rows stand in book/assumptions.toml. What fails is told with numbers, in bold, and every number
in bold stands in a line that a cell of the book prints: the row quotes the line. A row without
such a line is one that the book does not show, and the page says so.

tools/ledger.py writes the page, and judges the rows.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statements import SEEN, Book

NOT_SHOWN = (
    "Not shown in this book. A later chapter, on laws that break one assumption each, is planned."
)
HEADER = """\
# What is assumed, and what fails without it

Theorems hold under assumptions, and a reader has to know which, where they are used, and what they
are worth. Here are those of both papers in one place, hidden ones included: conditions that a proof
needs and its theorem does not say. Numbers in **bold** are printed by a cell of the chapter that is
named, where the assumption is broken; `make test` compares. Where nothing in this book breaks an
assumption, its row says that.

Of {total} assumptions {shown} are broken here: {counts}. The statements that need them are in
{{doc}}`the ledger <ledger>`.
"""


@dataclass(frozen=True)
class Assumption:
    """One row: what is assumed, and what fails without it."""

    paper: str
    name: str
    says: str  # in our own words
    printed: str  # where it is printed, or that it is not
    used: str  # where in the book
    fails: str = ""  # with numbers in bold, or why it is not shown
    notebook: str = ""  # of the cell that prints the numbers
    at: str = ""  # a label there, as MyST links to it
    prints: tuple[str, ...] = ()  # lines of the cells' output, as they stand there
    seen: str = ""  # as for a statement


def read_assumptions(root: Path) -> list[Assumption]:
    """The rows of book/assumptions.toml; none where there is no such file."""
    path = root / "book/assumptions.toml"
    rows: list[dict[str, Any]] = []
    if path.exists():
        rows = tomllib.loads(path.read_text("utf-8"))["assumption"]
    return [Assumption(**row | {"prints": tuple(row.get("prints", ()))}) for row in rows]


# ---- judging --------------------------------------------------------------------------------


def outputs(notebook: Path) -> str:
    """All text that the cells of a notebook print or show, with single spaces."""
    texts = []
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return spaced(" ".join("".join(text) for text in texts))


def spaced(text: str) -> str:
    """Text with single spaces, so that a table that grows wider is still the same."""
    return " ".join(text.split())


def bold_numbers(text: str) -> list[str]:
    """Numbers in bold."""
    return re.findall(r"\*\*([\d.,e+-]+)\*\*", text)


def row_problems(row: Assumption, book: Book, root: Path) -> Iterator[str]:
    """What is wrong with one row."""
    if row.paper not in [paper.key for paper in book.papers]:
        yield f"{row.name}: no paper has the key {row.paper!r}"
    if row.seen and row.seen not in SEEN:
        yield f"{row.name}: seen {row.seen!r} is none of {', '.join(SEEN)}"
    told = bold_numbers(row.fails)
    if bool(row.notebook) != bool(row.prints) or bool(told) != bool(row.prints):
        yield f"{row.name}: numbers in bold, lines that hold them and a notebook go together"
        return
    if not row.notebook:
        return
    text = outputs(root / "book" / row.notebook)
    for line in row.prints:
        if spaced(line) not in text:
            yield f"{row.name}: no cell of {row.notebook} prints {line!r}"
    lines = " ".join(row.prints)
    for number in told:
        if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", lines):
            yield f"{row.name}: {number} is in bold, but in none of its lines"


def find_problems(rows: list[Assumption], book: Book, root: Path) -> list[str]:
    """Everything that makes the page untrue."""
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{name}: stands twice among the assumptions" for name in twice]
    for row in rows:
        problems += row_problems(row, book, root)
    return problems


# ---- writing --------------------------------------------------------------------------------


def place(row: Assumption) -> str:
    """Where the numbers are printed."""
    if not row.notebook:
        return ""
    chapter = f"[chapter {int(row.notebook[:2])}]({row.notebook})"
    return f" ({chapter}, {row.at})" if row.at else f" ({chapter})"


def entry(row: Assumption) -> str:
    """One assumption, as a definition with four lines."""
    fails = f"{row.fails}{place(row)}." if row.fails else NOT_SHOWN
    seen = f"; {SEEN[row.seen]}" if row.seen and SEEN[row.seen] else ""
    return "\n".join(
        [
            f"### {row.name}",
            "",
            row.says,
            "",
            f"- **Printed:** {row.printed}{seen}.",
            f"- **Used:** {row.used}.",
            f"- **Without it:** {fails}",
            "",
        ]
    )


def render(rows: list[Assumption], book: Book) -> str:
    """The page, as MyST."""
    shown = [row for row in rows if row.notebook]
    counts = [
        f"{sum(row.paper == p.key for row in shown)} of"
        f" {sum(row.paper == p.key for row in rows)} in {p.heading.partition(':')[0]}"
        for p in book.papers
    ]
    parts = [HEADER.format(total=len(rows), shown=len(shown), counts=", ".join(counts))]
    for paper in book.papers:
        parts.append(f"## {paper.heading}\n")
        parts += [entry(row) for row in rows if row.paper == paper.key]
    return "\n".join(parts)
