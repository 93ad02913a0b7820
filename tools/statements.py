"""The statements of the papers: rows, the markers that name them, and whether both are true.

The rows stand in book/statements.toml; their links are found by markers, so that the ledger
cannot drift away from the code:

- a docstring in src/gptheory says ``Source: FDGWC Lemma 1`` (several: separated by ``;``);
- a test is decorated with ``@pytest.mark.statement("FDGWC Lemma 1")``;
- a notebook's cell has the metadata ``{"gptheory": {"statements": ["FDGWC Lemma 1"]}}``.

tools/ledger.py turns them into a page.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATES = {
    "proved": "derived in the book; a test checks the identity or the inequality",
    "measured": "a number, which a test compares",
    "built": "a definition or a diagram, as code that runs; a test holds it to its form",
    "quoted": "stated with its source, not checked here",
    "planned": "for a chapter that is not written yet",
    "out of scope": "not treated, with the reason",
}
NEEDS_TEST = ("proved", "measured", "built")
NEEDS_CODE = ("proved", "built")
NEEDS_REASON = ("quoted", "out of scope")
# What somebody who wrote in this book has read of a statement's wording.
SEEN = {"print": "", "restated": "as restated elsewhere", "no": "wording not seen by us"}
# A section is a place in a paper, not a statement of it.
NOT_A_STATEMENT = re.compile(r"(Section|Appendix)\b")
# "Lemma E.4", "Fig. 4a", "Assumption 2.1": what a paper numbers.
NUMBERED = re.compile(r"(?P<kind>[A-Z][a-z]+\.?) (?P<number>(?:[A-Z]\.)?\d[\d.]*)[a-z]?$")


@dataclass(frozen=True)
class Section:
    """Rows that stand together, from `first` to the next section; appendices are compact."""

    title: str
    first: str
    compact: bool = False
    reason: str = ""  # of its rows that are quoted or out of scope and give none themselves


@dataclass(frozen=True)
class Paper:
    """A paper: how much of it was read, and what it numbers."""

    key: str
    cite: str
    heading: str
    seen: str = "print"  # of rows that do not say
    read: str = ""  # a sentence: which version, and how much of it
    sections: tuple[Section, ...] = ()
    numbers: dict[str, list[str]] = field(default_factory=dict)  # "Lemma": ["2.1", "E.1-E.8"]
    counts: dict[str, int] = field(default_factory=dict)  # "figures": 13, where they are not listed


@dataclass(frozen=True)
class Statement:
    """One row of the ledger."""

    id: str
    text: str
    state: str
    chapter: int | None = None
    reason: str = ""
    found: str = ""
    differs: str = ""  # how print differs from what the book proves, measures or builds
    seen: str = ""  # a key of SEEN; by default that of the paper

    @property
    def paper(self) -> str:
        """Key of the paper, the first word of the id."""
        return self.id.split()[0]

    @property
    def name(self) -> str:
        """The id without the paper."""
        return self.id.removeprefix(f"{self.paper} ")


@dataclass(frozen=True)
class Marker:
    """A place that names a statement: `link` is how the ledger shows it, in MyST."""

    statement: str
    kind: str  # "code", "test" or "cell"
    place: str
    link: str


@dataclass(frozen=True)
class Book:
    """Everything that the ledger is made from."""

    papers: list[Paper]
    statements: list[Statement]
    markers: list[Marker]
    chapters: dict[int, str]

    def rows(self, paper: Paper) -> list[Statement]:
        """The rows of a paper, in its order."""
        return [row for row in self.statements if row.paper == paper.key]

    def sections(self, paper: Paper) -> Iterator[tuple[Section, list[Statement]]]:
        """The sections of a paper with their rows; one without a title where it names none."""
        rows = self.rows(paper)
        ids = [row.id for row in rows]
        sections = [section for section in paper.sections if section.first in ids]
        sections = sections or [Section("", ids[0])] if ids else []
        starts = [ids.index(section.first) for section in sections]
        for section, start, end in zip(sections, starts, [*starts[1:], len(rows)], strict=True):
            yield section, rows[start:end]


# ---- markers in the package -----------------------------------------------------------------


def cited_statements(docstring: str, paper_keys: list[str]) -> Iterator[str]:
    """What a docstring cites from the papers after `Source:`, to the end of its paragraph.

    Sources are separated by `;`. Those that are no paper of the ledger are left alone.
    """
    for sources in re.findall(r"Source:\s+(.+?)(?:\n\s*\n|\Z)", docstring, re.DOTALL):
        for source in re.sub(r"\s+", " ", sources).split(";"):
            key, _, name = source.strip().partition(" ")
            if key in paper_keys and not NOT_A_STATEMENT.match(name):
                yield f"{key} {name}"


def resolve(cited: str, known: list[str]) -> str:
    """The statement that a citation starts with; one that is no row stays as it is written."""
    # "Lemma 1" is not the start of "Lemma 10", nor "Corollary 3.2" of "Corollary 3.2.1".
    matches = [name for name in known if re.match(rf"{re.escape(name)}(?!\w|\.\w)", cited)]
    return max(matches, key=len, default=cited[:40])


def documented_objects(tree: ast.Module, module: str) -> Iterator[tuple[str, str, str]]:
    """(docstring, Sphinx role, dotted name) of a module, its functions, classes and methods."""
    yield ast.get_docstring(tree) or "", "mod", module
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield ast.get_docstring(node) or "", "func", f"{module}.{node.name}"
        elif isinstance(node, ast.ClassDef):
            yield ast.get_docstring(node) or "", "class", f"{module}.{node.name}"
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    name = f"{module}.{node.name}.{method.name}"
                    yield ast.get_docstring(method) or "", "meth", name


def code_markers(root: Path, papers: list[str], known: list[str]) -> Iterator[Marker]:
    """Statements named in the package's docstrings."""
    for path in sorted((root / "src/gptheory").rglob("*.py")):
        module = ".".join(path.relative_to(root / "src").with_suffix("").parts)
        module = module.removesuffix(".__init__")
        for docstring, role, name in documented_objects(ast.parse(path.read_text("utf-8")), module):
            private = any(part.startswith("_") for part in name.split("."))
            # The API page has no entry for private names.
            link = f"`{name.removeprefix('gptheory.')}`"
            link = link if private else f"{{py:{role}}}`~{name}`"
            for cited in cited_statements(docstring, papers):
                yield Marker(resolve(cited, known), "code", name, link)


# ---- markers in the tests -------------------------------------------------------------------


def marked_statements(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """Arguments of the `pytest.mark.statement` decorators of a test."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(
            "mark.statement"
        ):
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def test_markers(root: Path) -> Iterator[Marker]:
    """Statements that tests are marked with (a marked class stands for its tests)."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for statement in marked_statements(node):
                    # Tests are named by sentences; shown as such, they fit a column.
                    words = node.name.removeprefix("test_").replace("_", " ")
                    name = f"{path.relative_to(root).as_posix()}::{node.name}"
                    yield Marker(statement, "test", name, f"*{words}*")


# ---- markers in the notebooks ---------------------------------------------------------------


def cell_markers(root: Path) -> Iterator[Marker]:
    """Statements named in the metadata of notebooks' cells; a figure is linked by its number."""
    for path in sorted((root / "book").glob("[0-9][0-9]-*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            metadata = cell["metadata"]
            figure = metadata.get("mystnb", {}).get("figure", {}).get("name")
            chapter = f"[chapter {int(path.name[:2])}]({path.name})"
            link = f"{{numref}}`{figure}`" if figure else chapter
            for statement in metadata.get("gptheory", {}).get("statements", []):
                yield Marker(statement, "cell", f"{path.name}#{figure or cell['id']}", link)


# ---- reading and judging --------------------------------------------------------------------


def read_paper(row: dict[str, Any]) -> Paper:
    """A paper with its sections."""
    sections = tuple(Section(**section) for section in row.pop("section", ()))
    return Paper(**row, sections=sections)


def completed(rows: list[Statement], papers: list[Paper]) -> list[Statement]:
    """Rows with what they leave to their paper (`seen`) and to their section (`reason`)."""
    seen = {paper.key: paper.seen for paper in papers}
    begins = {section.first: section for paper in papers for section in paper.sections}
    reason, whole = "", []
    for row in rows:
        reason = begins[row.id].reason if row.id in begins else reason
        own = row.reason or (reason if row.state in NEEDS_REASON else "")
        whole.append(replace(row, reason=own, seen=row.seen or seen.get(row.paper, "")))
    return whole


def read_book(root: Path) -> Book:
    """Collect the rows and the markers under a repository's root."""
    data: dict[str, Any] = tomllib.loads((root / "book/statements.toml").read_text("utf-8"))
    papers = [read_paper(row) for row in data["paper"]]
    statements = completed([Statement(**row) for row in data["statement"]], papers)
    keys, known = [paper.key for paper in papers], [row.id for row in statements]
    markers = [*code_markers(root, keys, known), *test_markers(root), *cell_markers(root)]
    chapters = {
        int(path.name[:2]): path.name for path in (root / "book").glob("[0-9][0-9]-*.ipynb")
    }
    return Book(papers, statements, markers, chapters)


def row_problems(row: Statement, book: Book) -> Iterator[str]:
    """What is wrong with one row."""
    kinds = {marker.kind for marker in book.markers if marker.statement == row.id}
    if row.state not in STATES:
        yield f"{row.id}: state {row.state!r} is none of {', '.join(STATES)}"
    if row.paper not in [paper.key for paper in book.papers]:
        yield f"{row.id}: no paper has the key {row.paper!r}"
    if row.state in NEEDS_TEST and "test" not in kinds:
        yield f'{row.id}: {row.state}, but no test has @pytest.mark.statement("{row.id}")'
    if row.state in NEEDS_CODE and "code" not in kinds:
        yield f"{row.id}: {row.state}, but no code names it as its source"
    if row.seen not in SEEN:
        yield f"{row.id}: seen {row.seen!r} is none of {', '.join(SEEN)}"
    if row.state in NEEDS_REASON and not row.reason:
        yield f"{row.id}: {row.state}, but gives no reason"
    if row.state == "planned" and row.chapter in book.chapters:
        yield f"{row.id}: planned, but chapter {row.chapter} is written"
    if row.state == "planned" and row.chapter is None:
        yield f"{row.id}: planned, but for no chapter"


def numbers(spans: list[str]) -> Iterator[str]:
    """The numbers of spans: "E.1-E.3" stands for E.1, E.2 and E.3."""
    for span in spans:
        first, _, last = span.partition("-")
        stem, _, start = first.rpartition(".")
        end = last.rpartition(".")[2] or start
        yield from (f"{stem}.{k}".lstrip(".") for k in range(int(start), int(end) + 1))


def printed(paper: Paper) -> list[str]:
    """Ids of everything that a paper numbers."""
    kinds = paper.numbers.items()
    return [f"{paper.key} {kind} {number}" for kind, spans in kinds for number in numbers(spans)]


def number(row: Statement) -> str:
    """What a row is about, by number: Fig. 4 for Fig. 4a; empty for one without a number."""
    match = NUMBERED.match(row.name)
    return f"{row.paper} {match['kind']} {match['number']}" if match else ""


def paper_problems(paper: Paper, book: Book) -> Iterator[str]:
    """Numbers without a row, rows with a number that is none, sections that begin nowhere."""
    rows, listed = [row.id for row in book.rows(paper)], printed(paper)
    having = {row.id: number(row) for row in book.rows(paper) if number(row)}
    missing = [name for name in listed if name not in having.values()]
    yield from (f"{name}: the paper has it, the ledger no row" for name in missing)
    if paper.numbers:
        strange = [name for name, own in having.items() if own not in listed]
        yield from (f"{name}: not among the numbers of the paper" for name in strange)
    firsts = [section.first for section in paper.sections]
    yield from (f"{name}: begins a section, but is no row" for name in firsts if name not in rows)
    if firsts and (firsts[0] != rows[0] or firsts != [row for row in rows if row in firsts]):
        yield f"{paper.key}: the sections do not begin with its first row, or are out of order"


def find_problems(book: Book) -> list[str]:
    """Everything that makes the ledger untrue."""
    known = [row.id for row in book.statements]
    problems = [
        f"{name}: stands twice" for name in sorted({n for n in known if known.count(n) > 1})
    ]
    for paper in book.papers:
        problems += paper_problems(paper, book)
    for row in book.statements:
        problems += row_problems(row, book)
    for marker in book.markers:
        if marker.statement not in known:
            problems.append(f"{marker.place} names {marker.statement!r}, which is no row")
    return problems
