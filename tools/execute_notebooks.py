"""Execute notebooks in place, each in the folder it lives in, and put them in normal form.

    python tools/execute_notebooks.py book/02-gaussian-score.ipynb

Nothing is written when a cell fails: the committed outputs stay what they were.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from normalise_notebooks import BOOK, committed_version, normalise, repository_url, to_text


def execute(path: Path, timeout: int) -> float:
    """Run one notebook and write its normal form; return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=40"],  # no word about transports on the terminal
    )
    client.execute()
    seconds = time.perf_counter() - started
    text = to_text(normalise(notebook, repository_url(), committed_version(path)))
    path.write_text(text, encoding="utf-8")
    return seconds


def main() -> int:
    """Execute the notebooks named on the command line, or all of the book's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: book/*.ipynb")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    arguments = parser.parse_args()
    os.environ.setdefault("GPTHEORY_SCALE", "quick")  # committed outputs are the quick ones,
    os.environ.setdefault("GPTHEORY_DEVICE", "cpu")  # made on a CPU
    failed = False
    for path in arguments.notebooks or sorted(BOOK.glob("*.ipynb")):
        try:
            print(f"{path.name}: {execute(path, arguments.timeout):.1f} s", flush=True)
        except CellExecutionError as error:
            failed = True
            print(f"{path.name}: FAILED, not written\n{error}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
