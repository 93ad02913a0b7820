"""Draw the way of a sequence through the rooms: which rooms each line of a program enters.

The program below is run, and every function of the package that it calls is noted. A full dot is
the room whose function the line calls; an open one is a room that works beneath it. The thick line
follows the full dots, which is the way of the sequences. The drawing is SVG that takes its colours
from the page, as the map of the chapters does.

    python tools/way.py            # rewrite book/_static/way.svg and the program in book/house.md
    python tools/way.py --check    # only tell, exit 1 when one is stale
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import FrameType

import matplotlib
from house import HOUSE, ROOT, order

matplotlib.use("agg")

PROGRAM = """\
kernel = PowerExponential(lengthscale=4.0)
Sigma = random_covariance(2, generator=seeded)
law = GaussianProcess(kernel, Sigma, seq_len=8)
x = law.sample(4, seeded)
v, _ = perturb(x, 0.5, seeded)
score = ExactScore(law)(v, 0.5)
built = build_score_transformer(law, steps=3)
built_score = built(v, 0.5)
network = DiT(dim=2, seq_len=8, hidden=8, depth=1, heads=2, generator=seeded)
trained = fit(network, law, TrainConfig(steps=2, log_every=1)).model
seen = record(trained, v, 0.5)
y = sample(trained, 4, 8, 2, generator=seeded)
divergence = path_kl(trained, law, n=16, generator=seeded)
picture = heatmap(plt.figure().gca(), seen[0].maps[0, 0])
"""
IMPORTS = """\
import matplotlib.pyplot as plt
import torch

from gptheory.construction import build_score_transformer
from gptheory.data import GaussianProcess, PowerExponential, random_covariance
from gptheory.diffusion import ExactScore, perturb, sample
from gptheory.figures import heatmap
from gptheory.measures import path_kl
from gptheory.networks import DiT
from gptheory.probing import record
from gptheory.training import TrainConfig, fit

seeded = torch.Generator().manual_seed(0)
"""


# ---- what is run --------------------------------------------------------------------------------


def room_of(frame: FrameType) -> str | None:
    """The room whose function this is, if it is one of the package's."""
    path = Path(frame.f_code.co_filename)
    return path.parent.name if path.is_relative_to(HOUSE) and path.parent != HOUSE else None


def is_called(frame: FrameType) -> bool:
    """Whether the program calls this function itself, at most through a decorator of support."""
    caller = frame.f_back
    while caller and caller.f_code.co_filename != "<program>":
        if room_of(caller) not in (None, "support"):
            return False
        caller = caller.f_back
    return caller is not None


@contextlib.contextmanager
def watched() -> Iterator[tuple[set[str], set[str]]]:
    """The rooms that the program calls, and all rooms that are entered."""
    called: set[str] = set()
    entered: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        room = room_of(frame) if event == "call" else None
        if room:
            entered.add(room)
            if room != "support" and room not in called and is_called(frame):
                called.add(room)

    sys.setprofile(note)
    try:
        yield called, entered
    finally:
        sys.setprofile(None)


def steps() -> list[tuple[str, set[str], set[str]]]:
    """The lines of the program, the rooms that each calls, and those that it enters."""
    names: dict[str, object] = {}
    exec(IMPORTS, names)
    found = []
    for line in PROGRAM.splitlines():
        code = compile(line, "<program>", "exec")
        with contextlib.redirect_stdout(io.StringIO()), watched() as (called, entered):
            exec(code, names)
        found.append((line, set(called), set(entered)))
    return found


# ---- drawing ------------------------------------------------------------------------------------

LEFT, COLUMN, TOP, ROW = 34, 40, 96, 26
HEAD = """\
<svg class="way" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" \
role="img" aria-label="{words}">
<style>
.way {{ display: block; width: 100%; max-width: {width}px; margin: 0 auto 1rem; }}
.way text {{ fill: currentColor; font-size: 13px; }}
.way .grid {{ stroke: currentColor; stroke-opacity: 0.18; }}
.way .sequence {{ fill: none; stroke: var(--pst-color-link, #0a4f94); stroke-width: 3; \
stroke-linejoin: round; }}
.way .called {{ fill: var(--pst-color-link, #0a4f94); }}
.way .entered {{ fill: var(--pst-color-background, #fff); stroke: currentColor; \
stroke-width: 1.4; }}
</style>
"""


def in_words(rows: list[tuple[str, set[str], set[str]]]) -> str:
    """The picture, for readers who do not see it."""
    names = order()
    return " ".join(
        f"Line {i} calls {', '.join(r for r in names if r in called)}; beneath it work"
        f" {', '.join(r for r in names if r in entered - called) or 'no other'}."
        for i, (_, called, entered) in enumerate(rows, 1)
    )


def render() -> str:
    """The drawing."""
    rows, names = steps(), order()
    across = {name: LEFT + COLUMN * (i + 0.5) for i, name in enumerate(names)}
    down = [TOP + ROW * (i + 0.5) for i in range(len(rows))]
    width, height = LEFT + COLUMN * len(names) + 30, TOP + ROW * len(rows) + 6
    lines = [HEAD.format(width=width, height=height, words=escape(in_words(rows)))]
    for name, x in across.items():
        lines.append(f'<path class="grid" d="M{x} {TOP} V{height - 6}"/>')
        lines.append(f'<text transform="translate({x + 4} {TOP - 8}) rotate(-50)">{name}</text>')
    for i, y in enumerate(down, 1):
        lines.append(f'<path class="grid" d="M{LEFT} {y} H{width - 30}"/>')
        lines.append(f'<text x="{LEFT - 10}" y="{y + 4.5}" text-anchor="end">{i}</text>')
    way = [
        f"{across[name]} {y}"
        for (_, called, _), y in zip(rows, down, strict=True)
        for name in names
        if name in called
    ]
    lines.append(f'<path class="sequence" d="M{" L".join(way)}"/>')
    for (_, called, entered), y in zip(rows, down, strict=True):
        for name in names:
            if name in entered:
                kind, radius = ("called", 7) if name in called else ("entered", 4)
                lines.append(f'<circle class="{kind}" cx="{across[name]}" cy="{y}" r="{radius}"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


# ---- files --------------------------------------------------------------------------------------

DRAWING, PAGE = ROOT / "book/_static/way.svg", ROOT / "book/house.md"
BEGIN, END = "<!-- program: written by tools/way.py -->\n", "<!-- end of the program -->\n"


def page() -> str:
    """The page with the program in its place."""
    head, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    block = f"```python\n{IMPORTS}```\n\n```{{code-block}} python\n:linenos:\n\n{PROGRAM}```\n"
    return head + BEGIN + block + END + tail


def main() -> int:
    """Write drawing and page, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    check, stale = parser.parse_args().check, 0
    for path, text in ((DRAWING, render()), (PAGE, page())):
        if path.exists() and path.read_text("utf-8") == text:
            continue
        if check:
            stale = 1
            print(f"{path.relative_to(ROOT)}: stale, run `python tools/way.py`")
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
