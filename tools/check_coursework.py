"""Prove that the problem sets grade as planned (`make check-coursework`).

    python tools/check_coursework.py [1-gaussian-process-and-score ...]

For every set that tools/build_coursework.py made:

- the student version holds no solution, no rubric and no hidden test, and finds its public tests
  where Colab would open it, without the files beside it;
- graded by `otter run`, the reference solution earns every point and the blank version none;
- so do notebooks that are handed in with wrong answers: each of NAME.toml earns exactly the points
  that are planned for it. The k-th notebook has the k-th wrong answer to every question, which is
  fair because questions do not use each other's code (tests/book/test_coursework.py sees to it).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from otter.api import grade_submission
from problem_sets import BUILT, ProblemSet, Wrong, leaks, masters, read_set

MAX_CPU_SECONDS = 40  # for grading one solved notebook

# Runs the first two cells of a student notebook in an empty folder, then the public tests.
COLAB = """
import sys
import nbformat
from otter.check.utils import IPythonInterpreter

type(IPythonInterpreter.COLAB.value).running = lambda self: "Colab" in self.display_name
for cell in nbformat.read(sys.argv[1], as_version=4).cells[:2]:
    exec(cell.source, globals())
assert grader.interpreter is IPythonInterpreter.COLAB
for name in sys.argv[2:]:
    assert len(grader.check(name, {}).test_cases) >= 1
"""


def opens_alone(problem_set: ProblemSet) -> list[str]:
    """What goes wrong where there is only the notebook, and otter takes the place for Colab."""
    notebook = BUILT / problem_set.path.stem / "student" / problem_set.path.name
    names = [question.name for question in problem_set.autograded]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COLAB, notebook, *names]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return [f"on Colab: {done.stderr.strip()}"] if done.returncode else []


def grade(problem_set: ProblemSet, notebook: Path) -> dict[str, float]:
    """Points of each question with tests, from `otter run`."""
    archive = BUILT / problem_set.path.stem / "autograder.zip"
    results = grade_submission(str(notebook), str(archive), quiet=True)
    return {name: file.score for name, file in results.results.items()}


def hand_in(problem_set: ProblemSet, answers: dict[str, str], folder: Path) -> Path:
    """A student's notebook: the blank version, with answers above the cells that check them."""
    blank = BUILT / problem_set.path.stem / "student" / problem_set.path.name
    notebook = nbformat.read(blank, as_version=4)
    checks = {cell.source: index for index, cell in enumerate(notebook.cells)}
    for name, code in answers.items():
        notebook.cells[checks[f'grader.check("{name}")'] - 1].source = code
    nbformat.write(notebook, folder / problem_set.path.name)
    return folder / problem_set.path.name


def hands(problem_set: ProblemSet) -> list[list[Wrong]]:
    """The wrong answers as whole submissions: the first to every question, the second, ..."""
    names = [question.name for question in problem_set.autograded]
    piles = [[w for w in problem_set.wrong if w.question == name] for name in names]
    return [[p[k] for p in piles if k < len(p)] for k in range(max(map(len, piles)))]


def wrong_answers(problem_set: ProblemSet) -> list[str]:
    """Wrong answers that do not earn what is planned, one complaint each."""
    questions, complaints = {q.name: q for q in problem_set.autograded}, []
    for hand in hands(problem_set):
        answers = {wrong.question: wrong.answer(questions[wrong.question].code) for wrong in hand}
        with tempfile.TemporaryDirectory() as folder:
            earned = grade(problem_set, hand_in(problem_set, answers, Path(folder)))
        complaints += [
            f"{wrong.question}: {earned[wrong.question]:g} of"
            f" {questions[wrong.question].points} points, planned {wrong.earns:g}, for:"
            f" {wrong.misconception}"
            for wrong in hand
            if earned[wrong.question] != wrong.earns
        ]
    return complaints


def check(path: Path) -> tuple[str, list[str]]:
    """Everything that must hold of one problem set: a line about it, and the complaints."""
    problem_set, started = read_set(path), time.perf_counter()
    built, planned = BUILT / path.stem, {q.name: q.points for q in problem_set.autograded}
    complaints = leaks(problem_set, built / "student")
    solved = grade(problem_set, built / "autograder" / path.name)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    blank = grade(problem_set, built / "student" / path.name)
    if solved != planned:
        complaints.append(f"the reference solution earns {solved}, not {planned}")
    if blank != dict.fromkeys(planned, 0):
        complaints.append(f"the blank version earns {blank}")
    if cpu > MAX_CPU_SECONDS:
        complaints.append(f"grading takes {cpu:.0f} CPU-seconds, at most {MAX_CPU_SECONDS}")
    complaints += opens_alone(problem_set) + wrong_answers(problem_set)
    line = (
        f"{path.stem}: solution {sum(solved.values()):g} of {sum(planned.values()):g}, blank"
        f" {sum(blank.values()):g}, {len(problem_set.wrong)} wrong answers; grading"
        f" {cpu:.0f} CPU-s, all {time.perf_counter() - started:.0f} s"
    )
    return line, complaints


def quiet_kernels(folder: Path) -> None:
    """Give kernels settings of their own: no word about transports, nothing of the user's."""
    profile = folder / "profile_default"
    profile.mkdir()
    settings = '{"IPKernelApp": {"log_level": 40}}'
    (profile / "ipython_kernel_config.json").write_text(settings, encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(folder)


def main() -> int:
    """Check the sets named, or all of them, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help="names without .ipynb; default: all")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "agg")
    paths = [p for p in masters() if not arguments.sets or p.stem in arguments.sets]
    failed = False
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(arguments.workers, max_tasks_per_child=1) as pool,
    ):
        quiet_kernels(Path(folder))
        for line, complaints in pool.map(check, paths):
            print(line, flush=True)
            for complaint in complaints:
                print(f"  {complaint}", flush=True)
            failed |= bool(complaints)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
