"""Prove that the problem sets grade as planned (`make check-coursework`).

    python tools/check_coursework.py [1-gaussian-process-and-score ...]

For every set that tools/build_coursework.py made:

- the student version holds no solution, no rubric and no hidden test;
- graded by `otter run`, the reference solution earns every point and the blank version none;
- every wrong answer of NAME.toml earns exactly the points that are planned for it.

Wrong answers run in this process, with otter's own test files. Questions do not use each other's
code (tests/test_coursework.py sees to it), so it is enough to run the question that was changed.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from otter.api import grade_submission
from otter.test_files.ok_test import OKTestFile
from problem_sets import BUILT, ProblemSet, Question, leaks, masters, read_set

MAX_CPU_SECONDS = 40  # for grading one solved notebook


# ---- grading --------------------------------------------------------------------------------


def grade(problem_set: ProblemSet, version: str) -> dict[str, float]:
    """Points of each autograded question, from `otter run` on the version that was built."""
    folder = BUILT / problem_set.path.stem
    notebook, archive = folder / version / problem_set.path.name, folder / "autograder.zip"
    results = grade_submission(str(notebook), str(archive), quiet=True)
    return {name: file.score for name, file in results.results.items()}


def run_question(setup: dict[str, Any], question: Question, code: str, tests: Path) -> float:
    """Points of one answer, given as code: otter's test file in a fresh copy of the set-up."""
    environment = dict(setup)
    with redirect_stdout(io.StringIO()):
        with suppress(Exception):  # as in a notebook: a failing cell does not stop the grading
            exec(compile(code, question.name, "exec"), environment)
        file = OKTestFile.from_file(str(tests / f"{question.name}.py"))
        file.run(environment)
    return file.score


def set_up(problem_set: ProblemSet) -> dict[str, Any]:
    """The names that a set defines before its first question."""
    environment: dict[str, Any] = {"__name__": "__main__"}
    for cell in problem_set.setup:
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, "set-up", "exec"), environment)
    return environment


def wrong_answers(problem_set: ProblemSet) -> list[str]:
    """Wrong answers that do not earn what is planned, one complaint each."""
    questions = {question.name: question for question in problem_set.questions}
    tests = BUILT / problem_set.path.stem / "autograder" / "tests"
    setup, complaints = set_up(problem_set), []
    for wrong in problem_set.wrong:
        question = questions[wrong.question]
        earned = run_question(setup, question, wrong.answer(question.code), tests)
        if earned != wrong.earns:
            complaints.append(
                f"{question.name}: {earned:g} of {question.points} points, planned"
                f" {wrong.earns:g}, for: {wrong.misconception}"
            )
    return complaints


def check(path: Path) -> tuple[str, list[str]]:
    """Everything that must hold of one problem set: a line about it, and the complaints."""
    problem_set, started = read_set(path), time.perf_counter()
    complaints = leaks(problem_set, BUILT / path.stem / "student")
    planned = {question.name: question.points for question in problem_set.autograded}
    solved = grade(problem_set, "autograder")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    blank = grade(problem_set, "student")
    if solved != planned:
        complaints.append(f"the reference solution earns {solved}, not {planned}")
    if blank != dict.fromkeys(planned, 0):
        complaints.append(f"the blank version earns {blank}")
    if cpu > MAX_CPU_SECONDS:
        complaints.append(f"grading takes {cpu:.0f} CPU-seconds, at most {MAX_CPU_SECONDS}")
    complaints += wrong_answers(problem_set)
    line = (
        f"{path.stem}: solution {sum(solved.values()):g} of {sum(planned.values()):g}, blank"
        f" {sum(blank.values()):g}, {len(problem_set.wrong)} wrong answers; grading"
        f" {cpu:.0f} CPU-s, all {time.perf_counter() - started:.0f} s"
    )
    return line, complaints


def main() -> int:
    """Check the sets named, or all of them, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help="names without .ipynb; default: all")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "agg")
    paths = [p for p in masters() if not arguments.sets or p.stem in arguments.sets]
    failed = False
    with ProcessPoolExecutor(arguments.workers, max_tasks_per_child=1) as pool:
        for line, complaints in pool.map(check, paths):
            print(line, flush=True)
            for complaint in complaints:
                print(f"  {complaint}", flush=True)
            failed |= bool(complaints)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
