"""Draw the map of the chapters: what each needs, and how long it runs.

Chapters stand one below the other; an arc leads from a chapter to one that builds on it, dashed
where only some sections do. Arcs that others imply are left out. The times are those that the
chapters tell their readers, the rest is in book/chapters.toml. The drawing is SVG that takes its
colours from the page, so that one file serves light, dark and print.

    python tools/chapter_map.py            # rewrite book/_static/chapter-map.svg
    python tools/chapter_map.py --check    # only tell, exit 1 when it is stale
"""

from __future__ import annotations

import argparse
import re
import sys
from html import escape
from pathlib import Path

from normalise_notebooks import BOOK
from status import Chapter, read_chapters

WIDTH, ROW, TOP = 440, 40, 34
NODE, RADIUS = 112, 7  # where the column of dots stands
PARTS = {
    1: "Part I: Gaussian-process data",
    9: "Part II: latent diffusion transformers",
    12: "Part III: missing frames",
}
PART_ROW = 34
TOLD = re.compile(r"session\.opening\(seconds=(\d+)")

HEAD = """\
<svg class="chapter-map" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" \
role="group" aria-label="Map of the chapters. {words}">
<style>
.chapter-map {{ display: block; width: 100%; max-width: 540px; margin: 0 auto 1rem; }}
.chapter-map text {{ fill: currentColor; font-size: 14px; }}
.chapter-map .small {{ font-size: 12px; }}
.chapter-map .part {{ font-weight: bold; }}
.chapter-map .dot {{ fill: var(--pst-color-link, #0a4f94); }}
.chapter-map .number {{ fill: var(--pst-color-background, #fff); font-size: 10px; }}
.chapter-map .arc {{ fill: none; stroke: currentColor; stroke-opacity: 0.65; stroke-width: 1.6; }}
.chapter-map .some {{ stroke-dasharray: 3 4; }}
.chapter-map .unwritten {{ opacity: 0.75; }}
</style>
"""


# ---- what is drawn --------------------------------------------------------------------------


def ancestors(number: int, chapters: dict[int, Chapter]) -> set[int]:
    """Every chapter that a chapter needs, directly or not."""
    found: set[int] = set()
    for need in chapters[number].needs:
        found |= {need} | ancestors(need, chapters)
    return found


def implied(edge: int, others: list[int], chapters: dict[int, Chapter]) -> bool:
    """Whether one of the other prerequisites already needs this one."""
    return any(edge in ancestors(other, chapters) for other in others if other != edge)


def arcs(chapters: dict[int, Chapter]) -> list[tuple[int, int, bool]]:
    """(from, to, whether all sections need it), without those that others imply."""
    found = []
    for number, chapter in chapters.items():
        everything = [*chapter.needs, *chapter.helps]
        found += [
            (a, number, True) for a in chapter.needs if not implied(a, chapter.needs, chapters)
        ]
        found += [(a, number, False) for a in chapter.helps if not implied(a, everything, chapters)]
    return found


def written(chapter: Chapter) -> bool:
    """Whether the book has the chapter."""
    return (BOOK / f"{chapter.file}.ipynb").exists()


def time_of(chapter: Chapter) -> str:
    """How long a chapter says that it runs on a CPU."""
    if not written(chapter):
        return "to come"
    told = TOLD.search((BOOK / f"{chapter.file}.ipynb").read_text("utf-8"))
    return f"{told[1]} s" if told else "not said"


def in_words(chapters: dict[int, Chapter]) -> str:
    """The arcs, for readers who do not see them."""
    sentences = []
    for number, chapter in chapters.items():
        needs = " and ".join(map(str, chapter.needs)) or "no other"
        some = f", some sections {' and '.join(map(str, chapter.helps))}" if chapter.helps else ""
        sentences.append(f"Chapter {number} needs {needs}{some}.")
    return " ".join(sentences)


# ---- drawing --------------------------------------------------------------------------------


def heights(chapters: dict[int, Chapter]) -> tuple[dict[int, int], dict[int, int], int]:
    """Heights of the chapters' rows, of the parts' headings, and of the whole."""
    rows, parts, y = {}, {}, 0
    for number in chapters:
        if number in PARTS:
            parts[number] = y + 20
            y += PART_ROW
        rows[number] = y + ROW // 2
        y += ROW
    return rows, parts, y + TOP


def arc(start: int, end: int, whole: bool) -> str:
    """One arc to the left of the dots, wider the further it reaches."""
    reach = NODE - RADIUS - 6 - min(92, 14 + 0.33 * (end - start))
    y, z = start + 4, end - 3
    curve = f"M{NODE - RADIUS} {y} C{reach:.0f} {y} {reach:.0f} {z} {NODE - RADIUS - 2} {z}"
    head = f"M{NODE - RADIUS - 7} {z - 4} l6 4 l-6 4"
    dashes = "" if whole else " some"
    return f'<path class="arc{dashes}" d="{curve}"/><path class="arc" d="{head}"/>'


def label(x: int, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    """One piece of text."""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def entry(chapter: Chapter, y: int) -> str:
    """Dot, title and time of one chapter, a link where the chapter is written."""
    dot = f'<circle class="dot" cx="{NODE}" cy="{y}" r="{RADIUS + 2}"/>'
    number = label(NODE, y + 3.5, str(chapter.number), "number", "middle")
    title = label(NODE + 20, y + 5, chapter.title)
    time = label(WIDTH - 4, y + 5, time_of(chapter), "small", "end")
    if not written(chapter):
        return f'<g class="unwritten">{dot}{number}{title}{time}</g>'
    return f'<a href="{chapter.file}.html">{dot}{number}{title}</a>{time}'


def key(y: int) -> str:
    """What the two kinds of line mean."""
    drawn = [
        f'<path class="arc {style}" d="M{x} {y - 4} h26"/>{label(x + 32, y, words, "small")}'
        for x, words, style in ((0, "needed", ""), (110, "for some sections", "some"))
    ]
    return "".join([*drawn, label(WIDTH - 4, y, "one CPU core", "small", "end")])


def render() -> str:
    """The drawing."""
    chapters = {chapter.number: chapter for chapter in read_chapters()}
    rows, parts, height = heights(chapters)
    lines = [HEAD.format(width=WIDTH, height=height, words=escape(in_words(chapters)))]
    lines += [label(NODE + 20, y, PARTS[first], "part") for first, y in parts.items()]
    lines += [arc(rows[a], rows[b], whole) for a, b, whole in arcs(chapters)]
    lines += [entry(chapter, rows[number]) for number, chapter in chapters.items()]
    return "\n".join([*lines, key(height - 6), "</svg>"]) + "\n"


def drawing() -> Path:
    """Where it lies."""
    return BOOK / "_static" / "chapter-map.svg"


def write() -> None:
    """Draw the map."""
    drawing().write_text(render(), encoding="utf-8")


def main() -> int:
    """Draw the map, or check that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    if not parser.parse_args().check:
        write()
    elif not drawing().exists() or drawing().read_text("utf-8") != render():
        print("chapter map: stale, run `python tools/chapter_map.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
