"""Make the student and the autograder version of every problem set, in _build/coursework/.

    python tools/build_coursework.py        # in the environment of `make coursework`

For each master: student/ (the notebook without solutions, and the public tests), autograder/ (the
solved notebook and all tests) and autograder.zip, which `otter run`, `otter grade` and Gradescope
take. The public tests also travel inside the student notebook: Colab opens a notebook alone.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import nbformat
import otter
import otter.assign
from normalise_notebooks import to_text
from problem_sets import BUILT, COURSEWORK, masters

# Second cell of both versions. Its last string is filled once the tests have been written.
GRADER_CELL = """\
# The grader, and the tests that you may see (Colab opens a notebook without files beside it).
import base64
import io
import zipfile
from pathlib import Path

if util.find_spec("otter") is None:
    present = [name for name in ("torch", "numpy") if util.find_spec(name)]
    kept = [f"{{name}}=={{metadata.version(name)}}" for name in present]
    wanted = ["otter-grader=={version}", *kept]
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-qq", *wanted])
    importlib.invalidate_caches()
if not Path("tests").exists():
    archive = "{archive}"
    zipfile.ZipFile(io.BytesIO(base64.b64decode(archive))).extractall("tests")

import otter

grader = otter.Notebook()"""
ARCHIVE = "PUBLIC_TESTS"


def grader_cell(archive: str) -> nbformat.NotebookNode:
    """The cell that makes `grader`."""
    source = GRADER_CELL.format(version=otter.__version__, archive=archive)
    return nbformat.v4.new_code_cell(source)


def pack(folder: Path) -> str:
    """The files of a folder as a zip archive in base64, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return base64.b64encode(buffer.getvalue()).decode()


def assign(master: Path, scratch: Path) -> Path:
    """Run `otter assign` on a master with the grader's cell; return the folder of its results."""
    notebook = nbformat.read(master, as_version=4)
    notebook.cells.insert(1, grader_cell(ARCHIVE))
    copy = scratch / master.name
    nbformat.write(notebook, copy)
    otter.assign.main(str(copy), str(scratch / master.stem), no_pdfs=True, no_run_tests=True)
    return scratch / master.stem


def finish(result: Path, name: str) -> None:
    """Put the public tests into both notebooks, and give the archive a name without a date."""
    archive = pack(result / "student" / "tests")
    for version in ("student", "autograder"):
        path = result / version / name
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = cell.source.replace(f'"{ARCHIVE}"', f'"{archive}"')
        path.write_text(to_text(notebook), encoding="utf-8")
    (stamped,) = (result / "autograder").glob("*.zip")
    stamped.rename(result / "autograder.zip")


def main() -> int:
    """Build every problem set."""
    shutil.rmtree(BUILT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        shutil.copy(COURSEWORK / "assignment.yml", scratch)
        for master in masters():
            result = assign(master, scratch)
            finish(result, master.name)
            shutil.copytree(result, BUILT / master.stem)
            print(f"{(BUILT / master.stem).relative_to(BUILT.parent.parent)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
