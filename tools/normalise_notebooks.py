"""Put notebooks in their normal form, the only form that is committed.

A notebook in normal form says the same thing in the same bytes: no time stamps, no editor's
metadata, cell ids made from the cells' text, execution counts 1, 2, 3, ..., and the canonical
hidden first cell. A cell whose text and printed outputs are those of the committed version keeps
its committed outputs, so that running a notebook again does not rewrite every picture in git.
Problem sets (coursework/) are committed without outputs.

    python tools/normalise_notebooks.py            # rewrite book/*.ipynb, coursework/*.ipynb
    python tools/normalise_notebooks.py --check    # only tell, exit 1 when one is not normal
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
COURSEWORK = ROOT / "coursework"

Cell = nbformat.NotebookNode
Notebook = nbformat.NotebookNode

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_NOTEBOOK_KEYS = ("gptheory",)
KEPT_CELL_KEYS = ("tags", "mystnb", "gptheory")

# The hidden first cell of every notebook. The tag is that of the release the notebook belongs to,
# so that an old copy meets the package that it was written for. -qq: pip's warnings would be
# outputs to compare; naming the installed torch and numpy with their versions makes pip keep them
# or fail, never replace them.
FIRST_CELL = """\
# Where the package is missing (Colab): install it, leaving torch and numpy as they are.
import importlib
import os
import subprocess
import sys
from importlib import metadata, util

if util.find_spec("gptheory") is None:
    address = "git+{url}@v{version}"
    source = os.environ.get("GPTHEORY_SOURCE", address)
    present = [name for name in ("torch", "numpy") if util.find_spec(name)]
    kept = [f"{{name}}=={{metadata.version(name)}}" for name in present]
    pip = [sys.executable, "-m", "pip", "install", "-qq"]
    subprocess.check_call([*pip, source, *kept])
    importlib.invalidate_caches()"""

EMBEDDED_PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\\\s]+)")
PICTURE_TOLERANCE = 2.0  # root mean square, of 255: anti-aliasing differs between machines


def repository_url() -> str:
    """Address of the repository, from its single place in `_config.yml`."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"]


def package_version() -> str:
    """Version of the package, from its single place in `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["version"]


def first_cell(url: str) -> Cell:
    """The canonical hidden first cell for a repository at `url`."""
    cell = nbformat.v4.new_code_cell(FIRST_CELL.format(url=url, version=package_version()))
    cell.metadata["tags"] = ["remove-cell"]
    cell.execution_count = 1
    return cell


def is_first_cell(cell: Cell) -> bool:
    """Whether a cell is some version of the hidden first cell."""
    return (
        cell.cell_type == "code"
        and "remove-cell" in cell.metadata.get("tags", [])
        and "GPTHEORY_SOURCE" in cell.source
    )


# ---- outputs --------------------------------------------------------------------------------


def merge_streams(outputs: list[Any]) -> list[Any]:
    """Join neighbouring chunks of the same stream: where they break is an accident of timing."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def split_pictures(outputs: list[Any]) -> tuple[list[Any], list[str]]:
    """Separate what outputs say from the base64 pictures that they show."""
    said: list[Any] = []
    pictures: list[str] = []
    for output in outputs:
        data = dict(output.get("data", {}))
        if "image/png" in data:
            pictures.append(data.pop("image/png"))
        if "text/html" in data:
            pictures += EMBEDDED_PNG.findall(data["text/html"])
            data["text/html"] = EMBEDDED_PNG.sub("PICTURE", data["text/html"])
        rest = {key: output[key] for key in output if key not in ("data", "execution_count")}
        said.append((rest, data))
    return said, pictures


def decode_picture(encoded: str) -> np.ndarray:
    """Pixels of a base64 PNG (embedded ones continue lines with a backslash), as floats."""
    raw = base64.b64decode(re.sub(r"[\\\s]", "", encoded))
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGBA"), dtype=float)


def look_alike(one: str, other: str) -> bool:
    """Whether two base64 PNGs show the same picture to a reader."""
    if one == other:
        return True
    a, b = decode_picture(one), decode_picture(other)
    return a.shape == b.shape and float(np.sqrt(np.mean((a - b) ** 2))) <= PICTURE_TOLERANCE


def same_outputs(new: list[Any], old: list[Any]) -> bool:
    """Whether outputs say the same and their pictures look the same."""
    new_said, new_pictures = split_pictures(new)
    old_said, old_pictures = split_pictures(old)
    return (
        new_said == old_said
        and len(new_pictures) == len(old_pictures)
        and all(map(look_alike, new_pictures, old_pictures))
    )


# ---- the normal form ------------------------------------------------------------------------


def assign_ids(cells: list[Cell]) -> None:
    """Name each cell by its text, so that ids survive re-execution and insertions elsewhere."""
    seen: Counter[str] = Counter()
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def normalise_cell(cell: Cell) -> None:
    """Drop accidents from one cell: stamps, editors' metadata, how streams were cut."""
    cell.source = cell.source.rstrip()
    cell.metadata = {key: cell.metadata[key] for key in KEPT_CELL_KEYS if cell.metadata.get(key)}
    cell.pop("attachments", None)
    if cell.cell_type == "code":
        cell.outputs = merge_streams(cell.outputs)


def renumber(cells: list[Cell]) -> None:
    """Execution counts 1, 2, 3, ... for the cells that ran; a cell that did not run keeps none."""
    count = 0
    for cell in cells:
        if cell.cell_type != "code" or cell.execution_count is None:
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count


def keep_outputs(cells: list[Cell], committed: Notebook) -> None:
    """Put committed outputs back where text and printed outputs are unchanged."""
    old = {cell.id: cell for cell in committed.cells if cell.cell_type == "code"}
    for cell in cells:
        if cell.cell_type == "code" and cell.id in old:
            outputs = merge_streams(old[cell.id].outputs)
            if same_outputs(cell.outputs, outputs):
                cell.outputs = outputs


def normalise(notebook: Notebook, url: str, committed: Notebook | None = None) -> Notebook:
    """Return the normal form of a notebook; `committed` is its version in git, if it has one."""
    cells = [cell for cell in notebook.cells if cell.source.strip() and not is_first_cell(cell)]
    cells = [first_cell(url), *cells]
    for cell in cells:
        normalise_cell(cell)
    assign_ids(cells)
    if committed is not None:
        keep_outputs(cells, committed)
    renumber(cells)
    kept = {key: notebook.metadata[key] for key in KEPT_NOTEBOOK_KEYS if key in notebook.metadata}
    return nbformat.from_dict(
        {"cells": cells, "metadata": NOTEBOOK_METADATA | kept, "nbformat": 4, "nbformat_minor": 5}
    )


def normalise_master(notebook: Notebook, url: str) -> Notebook:
    """Return the normal form of a problem set: that of a chapter which has not been run."""
    notebook = normalise(notebook, url)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def to_text(notebook: Notebook) -> str:
    """The bytes of a notebook: valid, sorted keys, one trailing newline."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def committed_version(path: Path) -> Notebook | None:
    """The notebook as HEAD has it, or None when it is new (or there is no git)."""
    try:
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return nbformat.reads(shown.stdout.decode(), as_version=4)


def normal_text(path: Path, url: str) -> str:
    """What the file at `path` should hold."""
    notebook = nbformat.read(path, as_version=4)
    if path.resolve().parent == COURSEWORK:
        return to_text(normalise_master(notebook, url))
    return to_text(normalise(notebook, url, committed_version(path)))


def main() -> int:
    """Rewrite the notebooks that are not in normal form, or only name them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if needed")
    arguments = parser.parse_args()
    url = repository_url()
    changed = []
    for path in arguments.notebooks or sorted([*BOOK.glob("*.ipynb"), *COURSEWORK.glob("*.ipynb")]):
        text = normal_text(path, url)
        if text != path.read_text(encoding="utf-8"):
            changed.append(path)
            if not arguments.check:
                from gptheory.support.files import write_atomically

                write_atomically(path, text.encode())
    for path in changed:
        print(f"{'not in normal form' if arguments.check else 'rewritten'}: {path.name}")
    if arguments.check and changed:
        print("Run `make format` (or `make notebooks` to execute them again).")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
