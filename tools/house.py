"""The plan of the package: rooms in order, what each imports, and the pages that say so.

The table of rooms in CONTRIBUTING.md is the plan; its first column is the order, in which imports
between rooms may only run up the table. This tool fills in the rest from the code: what a room is
for (its docstring), its files, and the rooms that these import. It also writes the part of
book/api.md that documents the rooms.

    python tools/house.py            # rewrite both
    python tools/house.py --check    # only tell, exit 1 when one is stale
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "src/gptheory"
PLAN, PAGE = ROOT / "CONTRIBUTING.md", ROOT / "book/api.md"
HEAD = "| room | what is in it | files | imports from |\n|---|---|---|---|\n"
ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", re.M)
BEGIN = "<!-- rooms: written by tools/house.py -->\n"
# public names that are not to be read about, or constants that autodoc has no words for
MEMBERS = {
    "support.precision": "full_precision, without_autocast",
}


@dataclass(frozen=True)
class Room:
    """A folder of the package.

    Attributes:
        name: of the folder.
        about: its docstring.
        files: its modules, without the table of contents.
        exports: public name -> file.
        imports: the other rooms that any of its files imports.
    """

    name: str
    about: str
    files: tuple[str, ...]
    exports: dict[str, str]
    imports: frozenset[str]


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"))


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Every import inside the package as (room, file or name), from anywhere in a file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
            room, _, file = node.module.partition(".")
            yield from ((room, file or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 2:
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptheory."):
            yield (node.module.split(".")[1], "")


def order() -> list[str]:
    """Names of the rooms, as the plan lists them."""
    return [row[1] for row in ROW.finditer(PLAN.read_text("utf-8"))]


def room(name: str) -> Room:
    """A room as its folder shows it."""
    contents = parsed(HOUSE / name / "__init__.py")
    files = sorted(path for path in (HOUSE / name).glob("*.py") if path.stem != "__init__")
    exports = {
        alias.name: node.module
        for node in contents.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    others = frozenset(other for path in files for other, _ in imported(path)) - {name}
    about = ast.get_docstring(contents) or ""
    return Room(name, about, tuple(path.stem for path in files), exports, others)


# ---- pages --------------------------------------------------------------------------------------


def table(rooms: list[Room]) -> str:
    """The rows of the plan."""
    names = [each.name for each in rooms]
    rows = []
    for each in rooms:
        files = " ".join(f"`{file}`" for file in each.files)
        below = [name for name in names if name in each.imports]
        rows.append(f"| `{each.name}` | {each.about.split(chr(10))[0]} | {files}"
                    f" | {', '.join(below) or 'nothing'} |")  # fmt: skip
    return HEAD + "\n".join(rows) + "\n"


def reference(rooms: list[Room]) -> str:
    """The part of the API page that documents the rooms."""
    lines = []
    for each in rooms:
        lines += [f"\n## `gptheory.{each.name}`\n", each.about]
        if each.exports:
            names = ", ".join(f"`{name}`" for name in sorted(each.exports, key=str.lower))
            lines.append(f"\n`from gptheory.{each.name} import` {names}")
        for file in each.files:
            chosen = MEMBERS.get(f"{each.name}.{file}", "")
            lines += [
                f"\n### `{each.name}.{file}`\n",
                "```{eval-rst}",
                f".. automodule:: gptheory.{each.name}.{file}",
                f"   :members: {chosen}".rstrip(),
                "   :show-inheritance:",
                "```",
            ]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Both pages as they should be."""
    rooms = [room(name) for name in order()]
    plan, page = PLAN.read_text("utf-8"), PAGE.read_text("utf-8")
    rows = re.compile(re.escape(HEAD) + r"(?:\|.*\n)+")
    head, _, _ = page.partition(BEGIN)
    return {
        PLAN: rows.sub(lambda _: table(rooms), plan),
        PAGE: head + BEGIN + reference(rooms),
    }


def main() -> int:
    """Write the pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    check, stale = parser.parse_args().check, 0
    for path, text in pages().items():
        if path.read_text("utf-8") == text:
            continue
        if check:
            stale = 1
            print(f"{path.relative_to(ROOT)}: stale, run `python tools/house.py`")
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
