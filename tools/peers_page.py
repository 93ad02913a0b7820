"""Write book/samplers-elsewhere.md and its picture: other libraries' samplers, mode by mode.

The measurement stands in book/samplers-elsewhere.json, which tools/peers/measure.py writes outside
CI, in an environment of its own; the sentences stand in tools/peers/page.md, where <<name>> is a
number of the measurement. Nothing on the page is typed.

    python tools/peers_page.py            # rewrite both
    python tools/peers_page.py --check    # only tell, exit 1 when one is stale
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT, PAGE = ROOT / "book/samplers-elsewhere.json", ROOT / "book/samplers-elsewhere.md"
PICTURE, TEMPLATE = ROOT / "book/_static/samplers-elsewhere.html", ROOT / "tools/peers/page.md"
LAWS = ("white", "exponential", "smooth")
PLAIN, FREE, BEST = "as it comes", "without clip", "best"
HOLE = re.compile(r"<<([a-z0-9-]+)>>")
AT = (10, 20, 50)  # calls in the second table
SCHEDULE = ("beta_start", "beta_end")  # no option that was tried
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The measurement, and what the page asks of it."""

    stored: dict[str, Any]

    @cached_property
    def names(self) -> list[str]:
        """Schedulers of diffusers, in order."""
        return list(dict.fromkeys(row["sampler"] for row in self.stored["tried"]))

    def run(self, sampler: str, setting: str, steps: int) -> Row:
        """The one run with these steps, or with the calls of these steps at its best."""
        (found,) = (
            row for row in self.stored["runs"]
            if row["sampler"] == sampler and row["setting"] == setting and row["asked"] == steps
        )  # fmt: skip
        return found

    def adaptive(self, clock: str) -> list[Row]:
        """Runs of dopri5 by falling tolerance."""
        return [r for r in self.stored["runs"] if (r["sampler"], r["setting"]) == ("dopri5", clock)]


def read_result(path: Path = RESULT) -> Result:
    """The measurement."""
    return Result(json.loads(path.read_text("utf-8")))


def worst(row: Row, laws: tuple[str, ...] = LAWS) -> float:
    """The largest deviation of a variance from the true one, among the modes of laws."""
    values = [value for law in laws for value in row[law]]
    return math.nan if None in values else max(abs(value - 1) for value in values)


# ---- numbers in words ---------------------------------------------------------------------------


def ratio(value: float | None) -> str:
    """A variance over the true one."""
    if value is None:
        return "NaN"
    return f"{value:.2f}" if value < 9.995 else f"{value:.2g}"


def percent(value: float) -> str:
    """A deviation, two digits."""
    if math.isnan(value):
        return "NaN"
    digits = 1 if value < 0.0995 else 0
    return f"{100 * value:.{digits}f}\u00a0%"  # a number and its unit stay on a line


def step(value: float) -> str:
    """A timestep: a whole one, or two decimals."""
    return f"{round(value, 2):g}".replace("-", "−")


def options(given: Row) -> str:
    """Options as they are typed."""
    return ", ".join(f"`{name}={value!r}`" for name, value in given.items()) or "none"


def facts(result: Result) -> dict[str, str]:
    """Every number that the sentences use, by name."""
    made, laws, run = result.stored["provenance"], result.stored["laws"], result.run
    found = {name: str(made[name]) for name in ("diffusers", "torchdiffeq", "torch", "date",
             "commit", "python", "machine", "seed")}  # fmt: skip
    for law in LAWS[1:]:
        found |= {f"{law}-low": f"{laws[law][0]:.2g}", f"{law}-high": f"{laws[law][-1]:.3g}"}
    found["samples"] = f"{made['samples']:,}"
    found["floor"] = percent(math.sqrt(2 / made["samples"]))
    last = int(run("DPM-Solver++ 2M", PLAIN, 20)["last"])
    found |= {"last-noise": f"{result.stored['noise'][last]:.2g}",
              "first-noise": f"{result.stored['noise'][0]:.1g}"}  # fmt: skip
    return found | clipping(run) | faint(run) | settings(result) | traps(result)


def clipping(run: Any) -> dict[str, str]:
    """DDPM and DDIM with and without their clip."""
    free = {"ddpm": ("DDPM", 1000), "ddim": ("DDIM", 50)}
    found = {}
    for name, (sampler, steps) in free.items():
        found[f"{name}-clipped"] = ratio(run(sampler, PLAIN, steps)["white"][0])
        found[f"{name}-free"] = ratio(run(sampler, FREE, steps)["white"][0])
    return found


def faint(run: Any) -> dict[str, str]:
    """The faintest mode of the smooth law, as schedulers come."""
    names = {"dpm": "DPM-Solver++ 2M", "dpm3": "DPM-Solver++ 3M", "unipc": "UniPC"}
    few = {f"{k}-20": ratio(run(name, PLAIN, 20)["smooth"][0]) for k, name in names.items()}
    many = {f"{k}-100": ratio(run(names[k], PLAIN, 100)["smooth"][0]) for k in ("dpm", "unipc")}
    last = run("DPM-Solver++ 2M", PLAIN, 20)["last"]
    return few | many | {"last-step": f"{last:.0f}"}


def settings(result: Result) -> dict[str, str]:
    """What options mend, and this package beside."""
    run, found = result.run, {}
    for name, sampler in (("dpm", "DPM-Solver++ 2M"), ("deis", "DEIS")):
        found[f"{name}-best-10"] = percent(worst(run(sampler, BEST, 10)))
    for name, setting, calls in (("exact-20", "exact score", 20), ("exact-10", "exact score", 10),
                                 ("whole-20", "whole timesteps", 20)):  # fmt: skip
        found[f"ours-{name}"] = percent(worst(run("gptheory", setting, calls)))
    for name, clock in (("t", "t"), ("log", "log-snr")):
        found[f"dopri-{name}"] = str(result.adaptive(clock)[1]["calls"]["smooth"])
    found["tried"] = str(len(result.stored["tried"]))
    return found


def traps(result: Result) -> dict[str, str]:
    """Numbers of the traps."""
    run, stored = result.run, result.stored
    broken = [n for n in result.names if math.isnan(worst(run(n, PLAIN, 1000)))]
    failed = [row for row in stored["tried"] if row["worst"] is None]
    before, last = stored["terminal"][1]["alphas_cumprod"][-2:]
    return {
        "broken": listed([f"{name}" for name in broken]), "failed": str(len(failed)),
        "terminal-before": f"{before:.1e}", "terminal-last": f"{last:.1e}",
        "crowd-alone": ratio(stored["crowd"]["alone"]["ratio"]),
        "crowd-among": ratio(stored["crowd"]["among"]["ratio"]),
        "probe": f"{stored['overshot']['t']:.0f}".replace("-", "−"),
        "first-ddim": f"{run('DDIM', PLAIN, 20)['first']:.0f}",
        "calls-heun": str(run("Heun", PLAIN, 20)["calls"]),
        "calls-pndm": str(run("PNDM", PLAIN, 20)["calls"]),
        "calls-flow-heun": str(run("Flow matching, Heun", PLAIN, 20)["calls"]),
        "edm-first": f"{run('EDM Euler', PLAIN, 20)['first']:.2f}",
    }  # fmt: skip


def listed(words: list[str]) -> str:
    """Words as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# ---- tables -------------------------------------------------------------------------------------


def table(caption: str, name: str, titles: list[str], rows: list[list[str]], widths: str) -> str:
    """A MyST list table."""
    head = [f":::{{list-table}} {caption}", f":name: {name}", ":header-rows: 1",
            ":class: table peers", f":widths: {widths}", ""]  # fmt: skip
    lines = []
    for cells in [titles, *rows]:
        lines += [f"{'* -' if not k else '  -'} {cell}" for k, cell in enumerate(cells)]
    return "\n".join([*head, *lines, ":::"])


def what_to_set(result: Result) -> str:
    """The schedulers that one option mends."""
    rows = []
    for name in ("DPM-Solver++ 2M", "DPM-Solver++ 3M", "UniPC", "DEIS"):
        plain, best = (result.run(name, setting, 20) for setting in (PLAIN, BEST))
        rows.append([name, percent(worst(plain)), percent(worst(best)), options(best["options"])])
    titles = ["Scheduler", "As it comes", "Mended", "With"]
    caption = "Twenty calls: by how much the variance of the worst mode of three laws is off."
    return table(caption, "tab-what-to-set", titles, rows, "24 14 12 50")


def as_they_come(result: Result) -> str:
    """Ratios in the faintest modes, without any option."""
    rows = []
    for name in result.names:
        few, many = (result.run(name, PLAIN, steps) for steps in (20, 100))
        cells = [ratio(few[law][0]) for law in LAWS] + [ratio(many["smooth"][0])]
        rows.append(
            [
                name,
                f"{few['calls']}",
                f"{step(few['first'])} → {step(few['last'])}",
                *cells,
            ]
        )
    titles = ["Scheduler", "Calls", "Timesteps", "White", "Exponential", "Smooth", "Smooth, 100"]
    caption = (
        "As they come, at `set_timesteps(20)`: calls of the network, first and last timestep, and"
        " the variance made over the true one in the faintest mode of each law; at last with 100"
        " steps."
    )
    return table(caption, "tab-as-they-come", titles, rows, "24 8 18 10 14 12 14")


def at_their_best(result: Result) -> str:
    """The worst mode of all three laws, with the best options."""
    rows = []
    for name in result.names:
        found = [result.run(name, BEST, calls) for calls in AT]
        given = {k: v for k, v in found[0]["options"].items() if k not in SCHEDULE}
        plain = percent(worst(result.run(name, PLAIN, 20)))
        rows.append([name, plain, *(percent(worst(row)) for row in found), options(given)])
    for setting in ("exact score", "whole timesteps"):
        found = [result.run("gptheory", setting, calls) for calls in AT]
        made = [percent(worst(row)) for row in found]
        rows.append([f"**this package**, {setting}", "", *made, "none"])
    titles = ["Scheduler", "As it comes, 20", *(f"{calls} calls" for calls in AT), "Options"]
    caption = (
        "The largest deviation of a variance among all modes of the three laws: as it comes with 20"
        " steps, and with the options that were best at 20 calls, at 10, 20 and 50 calls (one fewer"
        " where a step asks twice)."
    )
    return table(caption, "tab-at-their-best", titles, rows, "20 12 10 10 10 38")


def adaptive(result: Result) -> str:
    """Calls and deviations of dopri5."""
    rows = []
    for at, row in enumerate(result.adaptive("t")):
        other = result.adaptive("log-snr")[at]
        given = row["options"]
        name = f"`rtol={given['rtol']:g}, atol={given['atol']:g}`" if given else "its defaults"
        rows.append([name, *(f"{each['calls'][law]}: {percent(worst(each, (law,)))}"
                             for each in (row, other) for law in LAWS[1:])])  # fmt: skip
    titles = ["Tolerances", "Exponential, in t", "Smooth, in t", "Exponential, in logSNR",
              "Smooth, in logSNR"]  # fmt: skip
    caption = (
        "dopri5 of torchdiffeq on the probability flow: calls of the score, and the largest"
        " deviation of a variance (1.0 % of it is early stopping, by choice)."
    )
    return table(caption, "tab-adaptive", titles, rows, "28 18 18 18 18")


TABLES = {
    "what-to-set": what_to_set,
    "as-they-come": as_they_come,
    "at-their-best": at_their_best,
    "adaptive": adaptive,
}


def render(result: Result, template: str) -> str:
    """The page, as MyST."""
    known = facts(result) | {f"table-{name}": made(result) for name, made in TABLES.items()}
    return HOLE.sub(lambda hole: known[hole[1]], template)


# ---- the picture --------------------------------------------------------------------------------

COLUMNS, WIDE, HIGH = 4, 180, 132  # panels in a row, and their size
LEFT, TOP, RIGHT, BOTTOM = 34, 24, 8, 22  # of a panel's frame
RANGE = (0.02, 5.0)  # of the ratios; what is beyond lies on the edge
STYLE = """<style>
.peers-scrolls { overflow-x: auto; }
.peers { display: block; width: 100%; min-width: 640px; max-width: 740px; margin: 0 auto; }
.peers text { fill: currentColor; font-size: 11px; }
.peers .name { font-size: 12px; font-weight: bold; }
.peers path { fill: none; stroke: currentColor; }
.peers .frame, .peers .true { stroke-opacity: 0.5; }
.peers .plain { stroke-width: 1.6; stroke-dasharray: 5 3; }
.peers .many { stroke-width: 1.6; stroke-dasharray: 1 3; stroke-linecap: round; }
.peers .best { stroke: var(--pst-color-link, #0a4f94); stroke-width: 2.2; }
</style>"""


def place(size: float, value: float) -> tuple[float, float]:
    """Where a mode and its ratio stand in a panel."""
    low, high = RANGE
    across = (math.log10(size) + 4) / 5
    up = math.log(min(max(value, low), high) / low) / math.log(high / low)
    x = LEFT + across * (WIDE - LEFT - RIGHT)
    return x, HIGH - BOTTOM - up * (HIGH - TOP - BOTTOM)


def curve(sizes: list[float], row: Row, style: str) -> str:
    """Ratios against modes: of every size, or of the modes of the exponential law if it clips."""
    law = "sizes" if row.get("sizes") and row["sizes"][0] is not None else "exponential"
    values, axis = row[law], sizes[law]
    if None in values:
        return ""
    points = (place(*pair) for pair in zip(axis, values, strict=True) if pair[0] <= 10)
    return f'<path class="{style}" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def frame(first: bool, bottom: bool) -> str:
    """Axes of a panel, with numbers at the edge of the picture."""
    (x, y), (right, top) = place(1e-4, RANGE[0]), place(10, RANGE[1])
    parts = [f'<path class="frame" d="M{x:.1f} {top:.1f} V{y:.1f} H{right:.1f}"/>']
    _, one = place(1, 1.0)
    parts.append(f'<path class="true" d="M{x:.1f} {one:.1f} H{right:.1f}"/>')
    for value in (0.1, 1):
        _, at = place(1, value)
        parts.append(f'<path class="frame" d="M{x - 3:.1f} {at:.1f} h3"/>')
        if first:
            parts.append(label(x - 6, at + 4, f"{value:g}", anchor="end"))
    for value, words in ((1e-4, "10⁻⁴"), (1e-2, "0.01"), (1, "1")):
        at, _ = place(value, 1)
        parts.append(f'<path class="frame" d="M{at:.1f} {y:.1f} v3"/>')
        if bottom:
            parts.append(label(at, y + 15, words, anchor="middle"))
    return "".join(parts)


def label(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    """One piece of text."""
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{escape(words)}</text>'


def panel(result: Result, name: str, at: int, count: int) -> str:
    """One sampler: as it comes with 20 and 100 steps, and its best with 20 calls."""
    sizes, row, column = result.stored["laws"], *divmod(at, COLUMNS)
    if name == "gptheory":
        title, curves = "this package", [("exact score", 20, "best")]
    else:
        title = name
        curves = [(PLAIN, 20, "plain"), (PLAIN, 100, "many"), (BEST, 20, "best")]
    drawn = "".join(curve(sizes, result.run(name, s, n), style) for s, n, style in curves)
    inside = frame(column == 0, at + COLUMNS >= count) + label(LEFT, 14, title, "name") + drawn
    return f'<g transform="translate({column * WIDE} {row * HIGH})">{inside}</g>'


def picture(result: Result) -> str:
    """All panels, with a key below."""
    names = [*result.names, "gptheory"]
    rows = math.ceil(len(names) / COLUMNS)
    width, height = COLUMNS * WIDE, rows * HIGH + 40
    words = "; ".join(
        f"{name} {ratio(result.run(name, PLAIN, 20)['smooth'][0])}" for name in result.names
    )
    about = (
        f"{len(names)} small panels: the variance that a sampler makes over the true one, against"
        " the variance of the mode. As they come, with 20 steps, most fall far below one for faint"
        f" modes. At 0.011 they make: {words}. With their best options most stay near one."
    )
    parts = [panel(result, name, at, len(names)) for at, name in enumerate(names)]
    y = height - 14
    for x, style, text in ((40, "plain", "as it comes, 20 steps"), (240, "many",
            "as it comes, 100 steps"), (450, "best", "best options, 20 calls")):  # fmt: skip
        parts.append(f'<path class="{style}" d="M{x} {y - 4} h30"/>{label(x + 36, y, text)}')
    scrolls = (
        '<div class="peers-scrolls" tabindex="0" role="group" aria-label="Panels, one a sampler">'
    )
    head = f'{scrolls}<svg class="peers" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"'
    head += f' role="img" aria-label="{escape(about)}">'
    return "\n".join([head, STYLE, *parts, "</svg></div>", ""])


# ---- the files ----------------------------------------------------------------------------------


def files() -> dict[Path, str]:
    """What the page and its picture should be."""
    result = read_result()
    return {PAGE: render(result, TEMPLATE.read_text("utf-8")), PICTURE: picture(result)}


def main() -> int:
    """Write the page, or check that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    check, stale = parser.parse_args().check, 0
    for path, text in files().items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        if check:
            stale = 1
            print(f"{path.relative_to(ROOT)}: stale, run `python tools/peers_page.py`")
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
