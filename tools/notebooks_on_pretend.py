"""Run the cells of notebooks with the pretend device chosen, asserts and all: minutes a chapter.

    python tools/notebooks_on_pretend.py book/05-*.ipynb

It says which cell fails, and how many operations each notebook ran on the device: none means that
the chapter computes on the CPU whatever the device is.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import pretend_device  # noqa: E402


def run(path: Path) -> int:
    """Run the cells of a notebook in order; returns how many failed."""
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    shell, failed, start = InteractiveShell.instance(), 0, time.perf_counter()
    pretend_device.counts.clear()
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    for k, cell in enumerate(cells, start=1):
        result = shell.run_cell(cell.source)
        if not result.success:
            failed += 1
            error = result.error_before_exec or result.error_in_exec
            print(f"{path.name}, code cell {k}:", file=sys.stderr)
            traceback.print_exception(error, limit=-3)
    counts = ", ".join(f"{name} {n}" for name, n in sorted(pretend_device.counts.items()))
    print(f"{path.name}: {len(cells)} cells, {failed} failed, "
          f"{time.perf_counter() - start:.0f} s; {counts}", flush=True)  # fmt: skip
    return failed


def main() -> int:
    """Run the notebooks that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", type=Path, nargs="+")
    given = parser.parse_args()
    if pretend_device.missing():
        print(f"skipped: {pretend_device.missing()}", file=sys.stderr)
        return 0
    os.environ["GPTHEORY_DEVICE"] = pretend_device.NAME
    os.environ["MPLBACKEND"] = "agg"
    pretend_device.enter()
    return int(sum(run(path) for path in given.notebooks) > 0)


if __name__ == "__main__":
    sys.exit(main())
