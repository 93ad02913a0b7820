"""Run the notebooks as Colab would: torch and the scientific stack are there, the package is not.

A fresh environment gets everything that Colab ships, at our versions, but not gptheory. Each
notebook's own first cell then has to install the package, from a clone of this repository instead
of the network, and to leave torch and numpy as they are. It is run twice.

    python tools/check_colab.py [book/01-gaussian-process-data.ipynb ...]

The clone holds what is committed; `--working-tree` adds the changes that are not. `--lowest` takes
the oldest versions that pyproject.toml allows, `--newest` the newest there are, and
`--versions numpy==1.26 ...` replaces single ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What Colab has, and what it takes to run a notebook without a browser.
KEPT = ("torch", "numpy")
SHIPPED = (*KEPT, "scipy", "matplotlib", "pandas", "seaborn", "tqdm")
RUNNERS = ("ipykernel", "nbclient", "nbformat")

# Runs inside the environment: the first cell twice, then the rest, in one kernel.
RUNNER = """
import copy, sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.insert(1, copy.deepcopy(notebook.cells[0]))
NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
printed = notebook.cells[0].outputs + notebook.cells[1].outputs
assert not printed, f"the first cell prints {printed}"
"""


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return what it prints; fail loudly."""
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def pinned(names: tuple[str, ...]) -> list[str]:
    """The pins of some packages in requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line.split("==")[0] in names]


def lowest(names: tuple[str, ...]) -> list[str]:
    """The oldest versions of some packages that pyproject.toml allows, as pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ranges = [dependency.split(">=") for dependency in project["dependencies"]]
    return [f"{name}=={floor}" for name, floor in ranges if name in names]


def requirements(which: str, replaced: list[str]) -> list[str]:
    """What Colab ships, at the `pinned`, `lowest` or `newest` versions, some replaced."""
    choose = {"pinned": pinned, "lowest": lowest, "newest": list}[which]
    own = {requirement.split("==")[0]: requirement for requirement in choose(SHIPPED)}
    own |= {requirement.split("==")[0]: requirement for requirement in replaced}
    return [*own.values(), *pinned(RUNNERS)]


def installed(python: Path) -> dict[str, str]:
    """Names and versions of the packages in an environment."""
    packages = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    return {package["name"].lower(): package["version"] for package in packages}


def make_environment(folder: Path, packages: list[str]) -> Path:
    """An environment with these packages, and its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
    return python


def clone(folder: Path, working_tree: bool) -> Path:
    """A clone of this repository, with the uncommitted files on top if asked."""
    run("git", "clone", "-q", ROOT, folder)
    if working_tree:
        changed = run("git", "ls-files", "-mo", "--exclude-standard", "-z", cwd=ROOT)
        for name in changed.rstrip("\0").split("\0"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
        run("git", "add", "-A", cwd=folder)
        identity = ("-c", "user.name=check", "-c", "user.email=check@localhost")
        run("git", *identity, "commit", "-q", "-m", "working tree", cwd=folder)
    return folder


def check(python: Path, notebook: Path, source: str) -> float:
    """Run one notebook where the package is missing; return the seconds it took."""
    run(python, "-m", "pip", "uninstall", "-q", "-y", "gptheory")
    before = installed(python)
    assert "gptheory" not in before
    environment = os.environ | {"GPTHEORY_SOURCE": source, "PYTHONPATH": ""}
    started = time.perf_counter()
    run(python, "-c", RUNNER, notebook, cwd=notebook.parent, env=environment)
    after = installed(python)
    assert "gptheory" in after, "the first cell did not install the package"
    for name in KEPT:
        assert before[name] == after[name], f"{name}: {before[name]} became {after[name]}"
    return time.perf_counter() - started


def main() -> int:
    """Check the notebooks named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: book/*.ipynb")
    parser.add_argument("--working-tree", action="store_true", help="with uncommitted changes")
    parser.add_argument("--lowest", dest="which", action="store_const", const="lowest")
    parser.add_argument("--newest", dest="which", action="store_const", const="newest")
    parser.add_argument("--versions", nargs="+", default=[], metavar="NAME==VERSION")
    parser.set_defaults(which="pinned")
    arguments = parser.parse_args()
    packages = requirements(arguments.which, arguments.versions)
    with tempfile.TemporaryDirectory() as scratch:
        copy = clone(Path(scratch) / "clone", arguments.working_tree)
        python = make_environment(Path(scratch) / "environment", packages)
        named = [copy / "book" / path.name for path in arguments.notebooks]
        for notebook in named or sorted((copy / "book").glob("*.ipynb")):
            seconds = check(python, notebook, f"git+{copy.as_uri()}")
            versions = ", ".join(f"{name} {installed(python)[name]}" for name in KEPT)
            print(f"{notebook.name}: ok in {seconds:.0f} s, kept {versions}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
