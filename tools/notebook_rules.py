"""What every chapter keeps to. Each rule takes a notebook and returns its complaints.

tests/book/test_book.py holds every notebook of the book against every rule, and every rule against
a notebook that breaks it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from statistics import median

from nbformat import NotebookNode as Notebook
from normalise_notebooks import Cell, first_cell, is_first_cell, repository_url

MAX_CELL_LINES = 30
MAX_MEDIAN_LINES = 8
MIN_WORDS_PER_LINE = 4  # the book aims at 6 to 10
EXERCISES = range(3, 6)
MAX_NOTEBOOK_BYTES = 600_000
UNCOMPARED_TAGS = {"nbval-ignore-output", "nbval-skip"}
UNCOMPARED_SHARE, UNCOMPARED_SHARE_TRAINING = 0.05, 0.20
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|work|Users|tmp|opt|mnt)/\w|[A-Z]:\\\\?Users")
# The opening says what the reader gains and what it takes.
OPENING = ("able to", "running time", "prerequisites")

RULES: list[Callable[[Notebook], list[str]]] = []


def rule(check: Callable[[Notebook], Iterator[str]]) -> Callable[[Notebook], list[str]]:
    """Register a generator of complaints as a rule that returns a list of them."""

    def complaints(notebook: Notebook) -> list[str]:
        return list(check(notebook))

    complaints.__name__, complaints.__doc__ = check.__name__, check.__doc__
    RULES.append(complaints)
    return complaints


# ---- reading a notebook ---------------------------------------------------------------------


def code_cells(notebook: Notebook) -> list[Cell]:
    """The code cells, without the hidden first one."""
    return [c for c in notebook.cells if c.cell_type == "code" and not is_first_cell(c)]


def code_lines(cell: Cell) -> int:
    """Lines of a cell that are not blank."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def title(cell: Cell) -> str:
    """How a complaint names a cell: its first line."""
    return f"cell {cell.source.strip().splitlines()[0][:60]!r}"


def markdown(notebook: Notebook) -> str:
    """All the text of a notebook."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def prose_words(notebook: Notebook) -> int:
    """Words a reader reads: no code, no directives, no formulas, no mark-up."""
    text = re.sub(r"^```python.*?^```", " ", markdown(notebook), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\s*(```|:{3,}|:\w+:).*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " ", text, flags=re.DOTALL)
    return len(re.findall(r"[^\W\d_]{2,}|\b[aI]\b", text))


def output_text(cell: Cell) -> str:
    """What the outputs of a cell print, without the reprs of figures."""
    printed = []
    for output in cell.outputs:
        printed.append(output.get("text", ""))
        printed.append(output.get("data", {}).get("text/plain", ""))
    return re.sub(r"<[^>]*>", "", "\n".join(printed))


def figures(cell: Cell) -> list[dict[str, str]]:
    """Outputs of a cell that show a picture: images, and HTML with one inside (animations)."""
    bundles = [output.get("data", {}) for output in cell.outputs]
    return [
        bundle
        for bundle in bundles
        if any(mime.startswith("image/") for mime in bundle)
        or re.search(r"data:image/|<svg|<video|<canvas", bundle.get("text/html", ""))
    ]


def carries_number(cell: Cell) -> bool:
    """Whether a cell asserts something, or prints a number for nbval to compare."""
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
    compared = not UNCOMPARED_TAGS & set(cell.metadata.get("tags", []))
    return asserts or (compared and re.search(r"\d", output_text(cell)) is not None)


# ---- rules ----------------------------------------------------------------------------------


@rule
def executed_in_order(notebook: Notebook) -> Iterator[str]:
    """Every code cell ran, once, from top to bottom, without an error or a warning."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: run it with `make notebooks`"
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{title(cell)} shows an error or a warning"


@rule
def first_cell_installs_the_package(notebook: Notebook) -> Iterator[str]:
    """The hidden first cell is the canonical one."""
    cell, canonical = notebook.cells[0], first_cell(repository_url())
    if cell.source != canonical.source or cell.metadata != canonical.metadata:
        yield "the first cell is not the one of tools/normalise_notebooks.py"
    elif cell.outputs:
        yield "the first cell has outputs"


@rule
def outputs_are_compared(notebook: Notebook) -> Iterator[str]:
    """Few cells are exempt from comparison: 5 %, or 20 % where the metadata says `trains`."""
    trains = notebook.metadata.get("gptheory", {}).get("trains", False)
    share = UNCOMPARED_SHARE_TRAINING if trains else UNCOMPARED_SHARE
    cells = code_cells(notebook)
    exempt = sum(bool(UNCOMPARED_TAGS & set(cell.metadata.get("tags", []))) for cell in cells)
    if exempt > share * len(cells):
        yield f"{exempt} of {len(cells)} code cells are not compared, at most {share:.0%} may be"


@rule
def cells_are_short(notebook: Notebook) -> Iterator[str]:
    """No cell has more than 30 lines, and half of them have at most 8."""
    cells = code_cells(notebook)
    for cell in cells:
        if (lines := code_lines(cell)) > MAX_CELL_LINES:
            yield f"{title(cell)} has {lines} lines, at most {MAX_CELL_LINES} are allowed"
    typical = median(map(code_lines, cells)) if cells else 0
    if typical > MAX_MEDIAN_LINES:
        yield f"the median code cell has {typical} lines, at most {MAX_MEDIAN_LINES} are allowed"


@rule
def figures_are_described(notebook: Notebook) -> Iterator[str]:
    """One figure a cell, with a caption, a name and a text for readers who do not see it."""
    for cell in filter(figures, code_cells(notebook)):
        settings = cell.metadata.get("mystnb", {})
        figure, html = settings.get("figure", {}), figures(cell)[0].get("text/html", "")
        if len(figures(cell)) > 1:
            yield f"{title(cell)} shows {len(figures(cell))} figures under one caption"
        if not figure.get("caption"):
            yield f"{title(cell)} shows a figure without mystnb.figure.caption"
        if not figure.get("name", "").startswith("fig-"):
            yield f"{title(cell)} shows a figure without a mystnb.figure.name fig-..."
        if not (settings.get("image", {}).get("alt") or re.search(r'alt="[^"]', html)):
            yield f"{title(cell)} shows a figure without mystnb.image.alt"


@rule
def figures_come_with_a_number(notebook: Notebook) -> Iterator[str]:
    """Pictures are not compared, so each has a printed number or an assert close by."""
    cells = [cell for cell in code_cells(notebook) if "session.opening(" not in cell.source]
    for index, cell in enumerate(cells):
        near = cells[max(index - 1, 0) : index + 3]
        if figures(cell) and not any(map(carries_number, near)):
            yield f"{title(cell)} shows a figure, and no number near it is compared"


@rule
def prose_outweighs_code(notebook: Notebook) -> Iterator[str]:
    """The chapters explain: 6 to 10 words of prose a line of code, never below 4."""
    lines, words = sum(map(code_lines, code_cells(notebook))), prose_words(notebook)
    if words < MIN_WORDS_PER_LINE * lines:
        yield f"{words} words of prose for {lines} lines of code: fewer than 4 words a line"


@rule
def no_machine_paths(notebook: Notebook) -> Iterator[str]:
    """Nothing tells on whose machine the notebook was run."""
    for cell in notebook.cells:
        found = MACHINE_PATH.search(cell.source) or MACHINE_PATH.search(
            re.sub(r"base64,[\w+/=]+", "", json.dumps(cell.get("outputs", [])))
        )
        if found:
            yield f"{title(cell)} names a path of one machine: {found[0]}"


@rule
def opens_with_a_promise(notebook: Notebook) -> Iterator[str]:
    """A title, what the reader will be able to say, the running time, the prerequisites."""
    opening = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"][:2]
    if not opening or not opening[0].startswith("# "):
        yield "the first text cell does not start with the title, '# ...'"
    for phrase in OPENING:
        if phrase not in " ".join(opening).lower():
            yield f"the opening does not say {phrase!r}"


@rule
def says_where_it_runs(notebook: Notebook) -> Iterator[str]:
    """The first code cell prints the scale, the device and the time that the chapter takes."""
    first = code_cells(notebook)[0] if code_cells(notebook) else None
    if first is None or "session.opening(seconds=" not in first.source:
        yield "the first code cell does not call session.opening(seconds=...)"


@rule
def closes_with_advice_and_exercises(notebook: Notebook) -> Iterator[str]:
    """Take-home advice, then 3 to 5 exercises, each followed by its folded solution."""
    text = markdown(notebook)
    if not re.search(r"^#+ .*take-home", text, re.IGNORECASE | re.MULTILINE):
        yield "no heading says 'take-home'"
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", text)
    if len(exercises) not in EXERCISES:
        yield f"{len(exercises)} exercises, 3 to 5 are wanted"
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\n(?::label:.*\n)?:class: dropdown", text)
    for label in sorted(set(exercises) ^ set(solutions)):
        yield f"exercise {label} and its solution (with :class: dropdown) do not pair up"
