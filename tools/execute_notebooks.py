"""Execute notebooks in place, each in the folder it lives in, and put them in normal form.

    python tools/execute_notebooks.py book/02-gaussian-score.ipynb
    python tools/execute_notebooks.py --time      # only measure, and leave the notebooks alone

Nothing is written when a cell fails: the committed outputs stay what they were. What a notebook
took is noted in book/status.json, and the pages made from it are written again.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import chapter_map
import nbformat
import status
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from normalise_notebooks import (
    BOOK,
    Notebook,
    committed_version,
    normalise,
    repository_url,
    to_text,
)

from gptheory.support import session
from gptheory.support.files import provenance, write_atomically


@dataclass(frozen=True)
class Execution:
    """A notebook that ran, and what it took."""

    notebook: Notebook
    cpu_seconds: float
    seconds: float


def children_cpu_seconds() -> float:
    """CPU time of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def execute(path: Path, timeout: int) -> Execution:
    """Run one notebook in a kernel of its own, which has ended on return."""
    notebook = nbformat.read(path, as_version=4)
    started, used = time.perf_counter(), children_cpu_seconds()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=40"],  # no word about transports on the terminal
    )
    client.execute()
    return Execution(notebook, children_cpu_seconds() - used, time.perf_counter() - started)


def main() -> int:
    """Execute the notebooks named on the command line, or all of the book's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: book/*.ipynb")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    parser.add_argument("--time", action="store_true", help="measure only, keep the notebooks")
    arguments = parser.parse_args()
    os.environ.setdefault("GPTHEORY_SCALE", "quick")  # committed outputs are the quick ones,
    os.environ.setdefault("GPTHEORY_DEVICE", "cpu")  # made on a CPU,
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # measured as the Makefile runs them
    device, failed = session.choose_device(), False
    for path in arguments.notebooks or sorted(BOOK.glob("*.ipynb")):
        try:
            done = execute(path, arguments.timeout)
        except CellExecutionError as error:
            failed = True
            print(f"{path.name}: FAILED, not written\n{error}", file=sys.stderr, flush=True)
            continue
        if not arguments.time:
            notebook = normalise(done.notebook, repository_url(), committed_version(path))
            write_atomically(path, to_text(notebook).encode())
        status.add_run(path, provenance(device), done.cpu_seconds, done.seconds)
        print(f"{path.name}: {done.cpu_seconds:.1f} CPU-s, {done.seconds:.1f} s", flush=True)
    (BOOK / "status.md").write_text(status.render(), encoding="utf-8")
    chapter_map.write()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
