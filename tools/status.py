"""Write book/status.md: when each chapter last ran from top to bottom, where, and for how long.

The measurements stand in book/status.json. tools/execute_notebooks.py adds one whenever a chapter
has run without an error; a measurement of code that has changed since is dropped, not shown.

    python tools/status.py            # rewrite book/status.md
    python tools/status.py --check    # only tell, exit 1 when it is untrue or over budget
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from normalise_notebooks import BOOK, Notebook, is_first_cell

# Clock over CPU time from which a machine was too busy for its CPU times to be compared: processes
# that take turns push each other's data out of the caches, and pay for it in CPU time.
BUSY = 1.5
VERSIONS = ("python", "gptheory", "torch", "numpy", "scipy")
# device -> what was measured there
Runs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Chapter:
    """One chapter of book/chapters.toml."""

    file: str
    title: str
    budget: int
    needs: list[int] = field(default_factory=list)
    helps: list[int] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Number of the chapter, the start of its file's name."""
        return int(self.file[:2])


def read_chapters(book: Path = BOOK) -> list[Chapter]:
    """The chapters, those not written yet included."""
    rows = tomllib.loads((book / "chapters.toml").read_text("utf-8"))["chapter"]
    return [Chapter(**row) for row in rows]


def read_status(book: Path = BOOK) -> dict[str, Runs]:
    """The measurements: chapter's file name without ending -> its runs."""
    path = book / "status.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def code_digest(notebook: Notebook) -> str:
    """Names what a notebook computes: the text of its code cells, the hidden first one aside."""
    cells = [c.source for c in notebook.cells if c.cell_type == "code" and not is_first_cell(c)]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:12]


def add_run(path: Path, provenance: dict[str, str], cpu_seconds: float, seconds: float) -> None:
    """Note that a notebook ran; its runs of other code are forgotten."""
    status = read_status(path.parent)
    code = code_digest(nbformat.read(path, as_version=4))
    runs = {k: run for k, run in status.get(path.stem, {}).items() if run["code"] == code}
    runs[provenance["device"]] = {
        "code": code,
        "date": datetime.date.today().isoformat(),
        "cpu_seconds": round(cpu_seconds, 1),
        "seconds": round(seconds, 1),
        "machine": provenance["machine"],
        **{name: provenance[name] for name in VERSIONS},
    }
    status[path.stem] = runs
    text = json.dumps(dict(sorted(status.items())), indent=1, sort_keys=True)
    (path.parent / "status.json").write_text(text + "\n", encoding="utf-8")


def was_busy(run: dict[str, Any]) -> bool:
    """Whether other work had so much of the machine that the CPU time says little."""
    return run["seconds"] > BUSY * run["cpu_seconds"]


# ---- judging --------------------------------------------------------------------------------


def chapter_problems(path: Path, chapter: Chapter, runs: Runs) -> list[str]:
    """What is wrong with the measurements of one chapter."""
    code, problems = code_digest(nbformat.read(path, as_version=4)), []
    if not runs:
        problems.append(f"{path.name} has no measurement")
    for device, run in runs.items():
        if run["code"] != code:
            problems.append(f"{path.name}: its code has changed since it was measured on {device}")
        if run["cpu_seconds"] > chapter.budget and not was_busy(run):
            taken = f"{run['cpu_seconds']} CPU-s on {device}"
            problems.append(f"{path.name} took {taken}, its budget is {chapter.budget}")
    return problems


def find_problems(book: Path = BOOK) -> list[str]:
    """Everything that makes the status page untrue."""
    chapters = {chapter.file: chapter for chapter in read_chapters(book)}
    written = {path.stem: path for path in sorted(book.glob("[0-9][0-9]-*.ipynb"))}
    status, problems = read_status(book), []
    for name, path in written.items():
        if name not in chapters:
            problems.append(f"{path.name} is not in book/chapters.toml")
        else:
            problems += chapter_problems(path, chapters[name], status.get(name, {}))
    unknown = sorted(set(status) - set(written))
    return problems + [f"{name}: measured, but there is no such notebook" for name in unknown]


# ---- writing --------------------------------------------------------------------------------

HEADER = """\
# Status of the chapters

When each chapter last ran from its first cell to its last without an error, every assertion in it
included, at the `quick` scale. *CPU* is the time that the notebook's process spent computing,
summed over cores, the start of Python and the import of torch included; *clock* is what passed
meanwhile. The budget is for CPU time. Where the clock ran more than half as long again, the machine
was busy with other work, and the CPU time is too high by an unknown amount: no verdict is passed.

This page is generated: `make notebooks` executes the chapters and measures them, and `make test`
fails when a chapter has no measurement, when its code has changed since, or when it is over its
budget. On a machine with a GPU, `python tools/execute_notebooks.py --time` adds rows for that
device and leaves the notebooks as they are.

```{list-table} The last complete run of each chapter.
:name: tab-status
:header-rows: 1
:widths: 12 16 12 12 12 36

* - Chapter
  - Date
  - CPU, s
  - Budget, s
  - Clock, s
  - Device and versions
"""


def row(chapter: Chapter, device: str, run: dict[str, Any]) -> str:
    """One measurement as a row of the table."""
    versions = ", ".join(f"{name} {run[name]}" for name in VERSIONS)
    shown = device.upper() if device == "cpu" else device
    cells = [
        f"{{doc}}`{chapter.number} <{chapter.file}>`",
        run["date"],
        f"{run['cpu_seconds']:.0f}" + (" (busy)" if was_busy(run) else ""),
        str(chapter.budget),
        f"{run['seconds']:.0f}",
        f"{shown} ({run['machine']}); {versions}",
    ]
    return "* - " + "\n  - ".join(cells) + "\n"


def missing_devices(status: dict[str, Runs]) -> str:
    """What the page says about GPUs: which device was never tried is part of the status."""
    devices = {device for runs in status.values() for device in runs}
    if devices <= {"cpu"}:
        return "\nNo chapter has been measured on a GPU yet.\n"
    return ""


def render(book: Path = BOOK) -> str:
    """The page, as MyST."""
    status = read_status(book)
    rows = [
        row(chapter, device, run)
        for chapter in read_chapters(book)
        for device, run in sorted(status.get(chapter.file, {}).items())
    ]
    return HEADER + "".join(rows) + "```\n" + missing_devices(status)


def main() -> int:
    """Write the page, or check that it is true and up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if wrong")
    arguments = parser.parse_args()
    page, problems = BOOK / "status.md", find_problems()
    if not arguments.check:
        page.write_text(render(), encoding="utf-8")
    elif not page.exists() or page.read_text("utf-8") != render():
        problems.append("book/status.md is stale: run `python tools/status.py`")
    for problem in problems:
        print(f"status: {problem}")
    if problems:
        print("`make notebooks` executes the chapters and measures them.")
    return int(arguments.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main())
