"""Write book/ledger.md: every statement of the papers, and where the book deals with it.

The rows stand in book/statements.toml; their links are found by markers, so that the ledger
cannot drift away from the code:

- a docstring in src/gptheory says ``Source: FDGWC Lemma 1`` (several: separated by ``;``);
- a test is decorated with ``@pytest.mark.statement("FDGWC Lemma 1")``;
- a notebook's cell has the metadata ``{"gptheory": {"statements": ["FDGWC Lemma 1"]}}``.

    python tools/ledger.py            # rewrite book/ledger.md
    python tools/ledger.py --check    # only tell, exit 1 when something is wrong
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATES = {
    "proved": "derived in the book; a test checks the identity or the inequality",
    "measured": "a number, which a test compares",
    "quoted": "stated with its source, not checked here",
    "planned": "for a chapter that is not written yet",
    "out of scope": "not treated, with the reason",
}
NEEDS_TEST = ("proved", "measured")
NEEDS_CODE = {"proved"}
NEEDS_REASON = ("quoted", "out of scope")
# A section is a place in a paper, not a statement of it.
NOT_A_STATEMENT = re.compile(r"(Section|Appendix)\b")


@dataclass(frozen=True)
class Statement:
    """One row of the ledger."""

    id: str
    text: str
    state: str
    chapter: int | None = None
    reason: str = ""
    found: str = ""

    @property
    def paper(self) -> str:
        """Key of the paper, the first word of the id."""
        return self.id.split()[0]


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

    papers: list[dict[str, str]]
    statements: list[Statement]
    markers: list[Marker]
    chapters: dict[int, str]


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


def read_book(root: Path) -> Book:
    """Collect the rows and the markers under a repository's root."""
    data: dict[str, Any] = tomllib.loads((root / "book/statements.toml").read_text("utf-8"))
    statements = [Statement(**row) for row in data["statement"]]
    keys, known = [paper["key"] for paper in data["paper"]], [row.id for row in statements]
    markers = [*code_markers(root, keys, known), *test_markers(root), *cell_markers(root)]
    chapters = {
        int(path.name[:2]): path.name for path in (root / "book").glob("[0-9][0-9]-*.ipynb")
    }
    return Book(data["paper"], statements, markers, chapters)


def row_problems(row: Statement, book: Book) -> Iterator[str]:
    """What is wrong with one row."""
    kinds = {marker.kind for marker in book.markers if marker.statement == row.id}
    if row.state not in STATES:
        yield f"{row.id}: state {row.state!r} is none of {', '.join(STATES)}"
    if row.paper not in [paper["key"] for paper in book.papers]:
        yield f"{row.id}: no paper has the key {row.paper!r}"
    if row.state in NEEDS_TEST and "test" not in kinds:
        yield f'{row.id}: {row.state}, but no test has @pytest.mark.statement("{row.id}")'
    if row.state in NEEDS_CODE and "code" not in kinds:
        yield f"{row.id}: {row.state}, but no code names it as its source"
    if row.state in NEEDS_REASON and not row.reason:
        yield f"{row.id}: {row.state}, but gives no reason"
    if row.state == "planned" and row.chapter in book.chapters:
        yield f"{row.id}: planned, but chapter {row.chapter} is written"
    if row.state == "planned" and row.chapter is None:
        yield f"{row.id}: planned, but for no chapter"


def find_problems(book: Book) -> list[str]:
    """Everything that makes the ledger untrue."""
    known = [row.id for row in book.statements]
    problems = [
        f"{name}: stands twice" for name in sorted({n for n in known if known.count(n) > 1})
    ]
    for row in book.statements:
        problems += row_problems(row, book)
    for marker in book.markers:
        if marker.statement not in known:
            problems.append(f"{marker.place} names {marker.statement!r}, which is no row")
    return problems


# ---- writing --------------------------------------------------------------------------------

HEADER = """\
# The ledger: claims and evidence

Every statement of the two papers, in our own words, with what we did about it: the code that
computes it, the tests that check it, the figures that show it, and what was found where the answer
is not simply "as claimed". The rows are the numbered statements, figures and experiments of the
main texts.
"""
FOR_REFEREES = """\
## For a referee

- **Whose proof?** A row that is *proved* is proved in the chapter, in our own way. A row that is
  *measured* is evidence for the settings of the chapter, and for no others. For a row that is
  *quoted* you have to trust the paper.
- **Which test?** The names in a row are test functions, without `test_` and with spaces for
  underscores, after the file that holds them:
  `pytest tests/diffusion/test_unrolled.py -k truncation_bound`.
- **Which code and which cell?** Names of code lead to their documentation and from there to their
  source. Everything that belongs to a row carries its name:
  `grep -rn "FDGWC Lemma 1" src tests book`.
- **Can a row be wrong unnoticed?** This page is generated by `make ledger` from
  `book/statements.toml` and from markers in the code, the tests and the notebooks. `make test`
  fails when a row that claims to be proved or measured has no test, when a proved one has no code,
  when a marker names no row, and when this page is not what the markers say. It cannot know
  whether a test is *good*; that is for you.
- **Where did we fail?** Aims that were missed are named, with the number reached, in the chapter
  concerned and in the changelog.
"""


KINDS = {"code": "Code", "test": "Tests", "cell": "Shown in"}


def status(row: Statement, chapters: dict[int, str]) -> str:
    """State of a row with its chapter and its reason."""
    chapter = ""
    if row.chapter is not None:
        chapter = f"chapter {row.chapter}"
        if row.chapter in chapters:
            chapter = f"[{chapter}]({chapters[row.chapter]})"
    return ", ".join(filter(None, [row.state, chapter, row.reason]))


def by_file(tests: list[Marker]) -> list[str]:
    """Tests after the file that holds them."""
    files: dict[str, list[str]] = {}
    for marker in tests:
        path = PurePosixPath(marker.place.partition("::")[0])
        name = "/".join(path.with_suffix("").parts[1:])
        files.setdefault(name, []).append(marker.link)
    return [f"`{name}`: {', '.join(links)}" for name, links in files.items()]


def places(row: Statement, book: Book) -> list[str]:
    """Where a statement is computed, tested and shown: a line for each kind of place."""
    lines = []
    for kind, label in KINDS.items():
        markers = [m for m in book.markers if (m.statement, m.kind) == (row.id, kind)]
        links = by_file(markers) if kind == "test" else dict.fromkeys(m.link for m in markers)
        if markers:
            lines.append(f"{label}: {(', ', '; ')[kind == 'test'].join(links)}")
    return lines or ["–"]


def list_item(bullet: str, paragraphs: list[str]) -> list[str]:
    """A list table's cell of several paragraphs."""
    first, *rest = paragraphs
    lines = [f"{bullet} {first}"]
    for paragraph in rest:
        lines += ["", f"    {paragraph}"]
    return lines


def table(rows: list[Statement], book: Book) -> str:
    """A MyST list table: unlike a pipe table it takes any formula."""
    lines = [":::{list-table}", ":header-rows: 1", ":widths: 22 44 34", ":class: ledger", ""]
    lines += ["* - Statement", "  - What it says", "  - Where"]
    for row in rows:
        name = row.id.removeprefix(f"{row.paper} ")
        lines += list_item("* -", [f"**{name}**", status(row, book.chapters)])
        lines += list_item("  -", [row.text, *([f"*Found:* {row.found}"] if row.found else [])])
        lines += list_item("  -", places(row, book))
    return "\n".join([*lines, ":::"])


def legend(book: Book) -> str:
    """What the states mean, and how many rows of each paper are in each."""
    lines = ["## The states", ""]
    for state, meaning in STATES.items():
        rows = [row for row in book.statements if row.state == state]
        counts = [f"{sum(row.paper == p['key'] for row in rows)} {p['key']}" for p in book.papers]
        lines.append(f"- **{state}** ({len(rows)}: {', '.join(counts)}): {meaning}.")
    return "\n".join(lines)


def render(book: Book) -> str:
    """The page, as MyST."""
    parts = [HEADER, legend(book) + "\n", FOR_REFEREES]
    for paper in book.papers:
        rows = [row for row in book.statements if row.paper == paper["key"]]
        parts.append(
            f"## {paper['heading']}\n\nStatements of {{cite:t}}`{paper['cite']}`, "
            f"written [{paper['key']}] in the code.\n\n{table(rows, book)}\n"
        )
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check that it is true and up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if wrong")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the repository")
    arguments = parser.parse_args()
    page = arguments.root / "book/ledger.md"
    book = read_book(arguments.root)
    problems = find_problems(book)
    if not arguments.check:
        page.write_text(render(book), encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != render(book):
        problems.append("book/ledger.md is stale: run `make ledger`")
    for problem in problems:
        print(f"ledger: {problem}")
    return int(arguments.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main())
