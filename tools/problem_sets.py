"""Read the problem sets: questions, tests and wrong answers, from coursework/.

A master notebook is in the format of `otter assign`: raw cells mark where questions, solutions and
tests begin and end. Beside NAME.ipynb, NAME.toml lists wrong answers, each a small change of the
reference solution. This module needs nothing of otter.
"""

from __future__ import annotations

import ast
import base64
import io
import re
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
COURSEWORK = ROOT / "coursework"
BUILT = ROOT / "_build" / "coursework"
HEADING = re.compile(
    r"^## Question (?P<number>\d+) · (?P<kind>derivation|code|experiment)[^·\n]*"
    r" · (?P<points>\d+) points: (?P<title>.+)$",
    re.MULTILINE,
)
TEST_CONFIG = re.compile(
    r'^"""\s*# BEGIN TEST CONFIG\n(.*?)^"""\s*# END TEST CONFIG\n', re.M | re.S
)

Cell = nbformat.NotebookNode


@dataclass(frozen=True)
class Test:
    """One test cell: what it runs, what it is worth, whether students see it."""

    source: str
    points: float
    hidden: bool
    message: str


@dataclass
class Question:
    """Everything between BEGIN QUESTION and END QUESTION."""

    name: str
    points: float
    manual: bool
    prompt: str = ""
    solution: list[Cell] = field(default_factory=list)
    tests: list[Test] = field(default_factory=list)

    @property
    def heading(self) -> dict[str, str]:
        """Number, kind, points and title, as the prompt's heading says them."""
        found = HEADING.search(self.prompt)
        if found is None:
            raise ValueError(f"{self.name} has no heading '## Question 1 · code · 6 points: ...'")
        return found.groupdict()

    @property
    def kind(self) -> str:
        """``"derivation"``, ``"code"`` or ``"experiment"``."""
        return self.heading["kind"]

    @property
    def code(self) -> str:
        """The code of the reference solution."""
        cells = [cell.source for cell in self.solution if cell.cell_type == "code"]
        return "\n\n\n".join(cells)

    @property
    def text(self) -> str:
        """The text of the reference solution, with its rubric."""
        return "\n\n".join(c.source for c in self.solution if c.cell_type == "markdown")


@dataclass(frozen=True)
class Wrong:
    """A typical wrong answer: the reference solution with one change."""

    question: str
    misconception: str
    earns: float
    change: str
    into: str

    def answer(self, solution: str) -> str:
        """The wrong answer in full.

        Raises:
            ValueError: if the text to change does not stand in the solution.
        """
        if self.change not in solution:
            raise ValueError(f"{self.question}: the solution does not contain {self.change!r}")
        return solution.replace(self.change, self.into)


@dataclass(frozen=True)
class ProblemSet:
    """A master notebook and its wrong answers."""

    path: Path
    title: str
    setup: list[Cell]
    questions: list[Question]
    wrong: list[Wrong]

    @property
    def autograded(self) -> list[Question]:
        """The questions that tests grade."""
        return [question for question in self.questions if not question.manual]

    def points(self, manual: bool) -> float:
        """All points that are given by hand, or by tests."""
        return sum(q.points for q in self.questions if q.manual == manual)


def masters() -> list[Path]:
    """The master notebooks, in order."""
    return sorted(COURSEWORK.glob("*.ipynb"))


def read_set(path: Path) -> ProblemSet:
    """Read a master notebook, and the wrong answers beside it."""
    setup: list[Cell] = []
    questions: list[Question] = []
    part = "outside"  # of a question, or in its "prompt", "solution" or "tests"
    for cell in nbformat.read(path, as_version=4).cells:
        marker = re.match(r"# (BEGIN|END) (QUESTION|SOLUTION|TESTS)", cell.source)
        if cell.cell_type == "raw" and marker is None:
            continue  # the settings of the assignment
        if cell.cell_type == "raw":
            begins, block = marker[1] == "BEGIN", marker[2].lower()
            if block == "question":
                part = "prompt" if begins else "outside"
                if begins:
                    questions.append(_question(yaml.safe_load(cell.source)))
            else:
                part = block if begins else "prompt"
        elif part == "outside":
            setup.append(cell)
        elif part == "prompt":
            questions[-1].prompt += cell.source
        elif part == "solution":
            questions[-1].solution.append(cell)
        else:
            questions[-1].tests.append(_test(cell.source))
    title = next(c.source.splitlines()[0] for c in setup if c.cell_type == "markdown")
    return ProblemSet(path, title.removeprefix("# "), setup, questions, read_wrong(path))


def read_wrong(path: Path) -> list[Wrong]:
    """The wrong answers that belong to a master notebook."""
    entries = tomllib.loads(path.with_suffix(".toml").read_text(encoding="utf-8"))["wrong"]
    return [Wrong(**entry) for entry in entries]


def _question(settings: dict[str, Any]) -> Question:
    return Question(settings["name"], settings["points"], settings.get("manual", False))


def _test(source: str) -> Test:
    config = TEST_CONFIG.match(source)
    if config is None:
        raise ValueError(f"a test cell does not begin with its settings:\n{source}")
    settings = yaml.safe_load(config[1])
    code = source[config.end() :]
    hidden, message = settings.get("hidden", False), settings.get("failure_message", "")
    return Test(code, settings["points"], hidden, message)


# ---- what students get ----------------------------------------------------------------------


def given_to_students(folder: Path) -> str:
    """All the text in a student folder, that of packed archives included."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            texts += [cell.source for cell in cells]
        elif path.is_file():
            texts.append(path.read_text(encoding="utf-8"))
    for packed in re.findall(r'archive = "([\w+/=]+)"', "\n".join(texts)):
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))) as archive:
            texts += [archive.read(name).decode() for name in archive.namelist()]
    return "\n".join(texts)


def secrets(question: Question) -> list[str]:
    """Lines that only hidden tests or the solution contain."""
    hidden = [test for test in question.tests if test.hidden]
    public = "\n".join(_as_written(test.source) for test in question.tests if not test.hidden)
    lines = [line for test in hidden for line in _as_written(test.source).splitlines()]
    kept = [line for line in lines if line not in public] + [test.message for test in hidden]
    inside = re.findall(r"# BEGIN SOLUTION\n(.*?)# END SOLUTION", question.code, re.DOTALL)
    kept += [line.strip() for block in inside for line in block.splitlines()]
    kept += [line.strip() for line in question.text.splitlines()]
    return [line for line in kept if len(line) > 12 and line not in question.prompt]


def leaks(problem_set: ProblemSet, folder: Path) -> list[str]:
    """Secrets that are found in a student folder, one complaint each."""
    given = given_to_students(folder)
    flat = re.sub(r"'\s*\n\s*'", "", given)  # pprint breaks long strings
    return [
        f"{question.name}: the student version contains {secret!r}"
        for question in problem_set.questions
        for secret in secrets(question)
        if secret in given or secret in flat
    ]


def _as_written(source: str) -> str:
    """Code in the form in which otter writes it into a test file."""
    return ast.unparse(ast.parse(source))
