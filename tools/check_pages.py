"""Open every page of the built book in headless Chromium, and judge it as readers see it.

Checked, on desktops and phones, in light and dark: no console error, no failed request, no request
that leaves this machine, at most 3 MB a page, every formula rendered, no WCAG 2.1 A/AA violation
(axe), no page wider than its window, no broken internal link or anchor; and that the front page can
be read without JavaScript.

    python tools/check_pages.py                       # desktop and phone
    python tools/check_pages.py --matrix              # tablets and all source listings too
    python tools/check_pages.py --screenshots DIR     # keep a picture of each page
    python tools/check_pages.py index status          # only pages with such a name
    python tools/check_pages.py --no-axe              # all but accessibility: a quarter of the time
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gzip
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from axe_playwright_python.async_playwright import Axe
from browser import CHROMIUM_FLAGS, find_chromium, serve
from page_links import broken_links, site_pages
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    async_playwright,
)
from playwright.async_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
DESKTOP, PHONE, TABLET = 1280, 390, 820
SCHEMES = ("light", "dark")
MAX_BYTES = 3_000_000  # of a page with all that it loads, as a host that compresses text sends it
COMPRESSED = {".css", ".html", ".js", ".json", ".svg"}
# Rules on colours are slow and the same for all that is alike (see ALIKE); those on structure are
# quick, look at everything, and need no second scheme.
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
STRUCTURE = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
PARALLEL = 2
PATIENCE = 180_000  # milliseconds for any one step, on a busy machine
SETTLES = 400  # milliseconds: the theme measures what scrolls 300 after the window has changed
SOURCES, A_SOURCE = "_modules/", "_modules/gptheory/data/process.html"
SEARCH_PAGE, SEARCHED = "search.html", "score"
FRONT_PAGE = "book/index.html"

FORMULAS = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  return {
    written: document.querySelectorAll(".math").length,
    rendered: document.querySelectorAll(".math mjx-container").length,
    errors: document.querySelectorAll("mjx-merror").length,
  };
}"""
# A formula that is wider than its column is clipped, or scrolls without a visible bar.
CLIPPED_FORMULAS = """() => {
  const column = (formula) => formula.closest("td, p, li, dd, div").getBoundingClientRect();
  return [...document.querySelectorAll(".math mjx-container")]
    .filter((formula) => formula.offsetParent && formula.getClientRects().length)
    .filter((formula) => formula.getBoundingClientRect().right > column(formula).right + 2)
    .map((formula) => formula.closest(".math").previousSibling?.textContent?.slice(-40) ?? "start");
}"""
# Solutions and hidden input are unfolded, so that what they hide is judged too.
UNFOLD = """async () => {
  document.querySelectorAll("details:not([open]) > summary").forEach((fold) => fold.click());
  document.querySelectorAll("button.toggle-button-hidden").forEach((fold) => fold.click());
  await new Promise((done) => setTimeout(done, 400));  // the theme reacts after 300 ms
}"""
# Code and formulas are thousands of pieces in a few colours: all but the first of each colour, on
# each ground, are marked, for the rules on colours to pass over.
ALIKE = """() => {
  const seen = new Set();
  for (const piece of document.querySelectorAll(".highlight span, mjx-container")) {
    const ground = piece.closest("pre, td, th, figcaption, .admonition, .proof, details, main");
    const look = [piece, ground].map((part) => part && getComputedStyle(part));
    const colours = [look[0].color, look[1]?.backgroundColor];
    const name = [piece.className, ground?.className, ...colours].join();
    piece.toggleAttribute("data-alike", seen.has(name));
    seen.add(name);
  }
}"""
# A colour half-way through a transition is nobody's contrast.
NO_MOTION = "*, ::before, ::after { transition: none !important; animation: none !important; }"
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
WEARS_SCHEME = "(scheme) => document.documentElement.dataset.theme === scheme"
# What a reader without scripts sees of the article: text that shows, pictures that show.
WITHOUT_SCRIPTS = """() => {
  const shows = (part) => part.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const parts = [...document.querySelectorAll("article :is(h1, h2, p, li, td, figcaption)")]
    .filter((part) => part.textContent.trim() && !part.closest("thead"));
  const pictures = [...document.querySelectorAll("article img")].filter(shows);
  return {
    hidden: parts.filter((part) => !shows(part)).map((part) => part.textContent.slice(0, 40)),
    words: parts.filter(shows).map((part) => part.textContent).join(" ").split(/\\s+/).length,
    pictures: pictures.filter((picture) => picture.naturalWidth).length,
  };
}"""


@dataclass(frozen=True)
class Look:
    """How a page is looked at: the width of the window and the colour scheme."""

    width: int
    scheme: str


@dataclass(frozen=True)
class Plan:
    """What is looked at, and how."""

    html: Path
    paths: list[str]
    looks: list[Look]
    axe: bool = True
    screenshots: Path | None = None


@dataclass
class Verdict:
    """What was found on a page in one look; `failures` is empty when it is good."""

    path: str
    look: Look
    formulas: int = 0
    kilobytes: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """File name for a picture."""
        page = self.path.removesuffix(".html").replace("/", "-")
        return f"{page}-{self.look.width}-{self.look.scheme}"


# ---- pages, in a browser --------------------------------------------------------------------


def listen(page: Page, origin: str) -> list[str]:
    """A list that fills with console errors and with requests that fail or leave this machine."""
    events: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            events.append(f"console: {message.text}")

    def on_request(request: Request) -> None:
        if not request.url.startswith((origin, "data:", "blob:")):
            events.append(f"external request: {request.url}")

    def on_response(response: Response) -> None:
        if response.status >= 400:
            events.append(f"status {response.status}: {response.url}")

    page.on("console", on_console)
    page.on("request", on_request)
    page.on("response", on_response)
    page.on("pageerror", lambda error: events.append(f"exception: {error}"))
    page.on("requestfailed", lambda request: events.append(f"request failed: {request.url}"))
    return events


async def formula_failures(page: Page, verdict: Verdict) -> list[str]:
    """Compare the number of formulas written with the number rendered."""
    count = await page.evaluate(FORMULAS)
    verdict.formulas = count["written"]
    failures = []
    if count["rendered"] != count["written"]:
        failures.append(f"{count['rendered']} of {count['written']} formulas rendered")
    if count["errors"]:
        failures.append(f"{count['errors']} formulas with an error")
    return failures


@functools.cache
def transfer_size(file: Path) -> int:
    """Bytes that a host like GitHub Pages sends for a file: text is compressed on the way."""
    content = file.read_bytes()
    return len(gzip.compress(content, 6) if file.suffix in COMPRESSED else content)


def weight_failures(requested: set[str], origin: str, html: Path, verdict: Verdict) -> list[str]:
    """The size of all files that a page asked for: what a first visit transfers."""
    names = {unquote(urlsplit(url).path) for url in requested if url.startswith(origin)}
    files = [html / name.lstrip("/") for name in names]
    size = sum(transfer_size(file) for file in files if file.is_file())
    verdict.kilobytes = size / 1000
    return [f"transfers {size / 1e6:.1f} MB"] if size > MAX_BYTES else []


async def layout_failures(page: Page, width: int) -> list[str]:
    """A page is no wider than its window, and at desktop width every formula fits its column."""
    overflow, failures = await page.evaluate(OVERFLOW), []
    if overflow > 0:
        failures.append(f"{overflow} px wider than the window")
    if width >= DESKTOP:
        clipped = await page.evaluate(CLIPPED_FORMULAS)
        failures += [f"formula cut off after: {words!r}" for words in clipped]
    return failures


async def search_failures(page: Page) -> list[str]:
    """The search page was opened with a query that every chapter answers."""
    try:
        await page.wait_for_selector("ul.search li a", timeout=10_000)
    except PlaywrightTimeout:
        return [f"a search for {SEARCHED!r} finds nothing"]
    return []


async def run_axe(page: Page, rules: dict[str, object], **given: object) -> list[str]:
    """Violations of some rules."""
    options = {"runOnly": rules, "resultTypes": ["violations"], **given.pop("options", {})}
    result = await Axe().run(page, options=options, **given)
    return [
        f"axe {found['id']}: {found['help']} ({len(found['nodes'])}x, "
        f"first {' '.join(map(str, found['nodes'][0]['target']))})"
        for found in result.response["violations"]
    ]


async def axe_failures(page: Page, scheme: str) -> list[str]:
    """Violations of WCAG 2.1 A and AA."""
    await page.evaluate(ALIKE)
    failures = await run_axe(page, COLOURS, context={"exclude": [["[data-alike]"]]})
    if scheme == SCHEMES[0]:
        no_colours = {"rules": {rule: {"enabled": False} for rule in COLOURS["values"]}}
        failures += await run_axe(page, STRUCTURE, options=no_colours)
    return failures


async def open_page(page: Page, origin: str, html: Path, verdict: Verdict) -> None:
    """Load a page, judge what does not depend on the look, and unfold all that is folded."""
    events, requested = listen(page, origin), set()
    page.on("request", lambda request: requested.add(request.url))
    query = f"?q={SEARCHED}" if verdict.path == SEARCH_PAGE else ""
    await page.goto(origin + verdict.path + query, wait_until="load")
    verdict.failures += await formula_failures(page, verdict)
    verdict.failures += await layout_failures(page, verdict.look.width)
    if verdict.path == SEARCH_PAGE:
        verdict.failures += await search_failures(page)
    await page.add_style_tag(content=NO_MOTION)
    await page.evaluate(UNFOLD)
    # Before axe: it reads files of its own accord, for which the page is not to blame.
    verdict.failures += dict.fromkeys(events)
    verdict.failures += weight_failures(requested, origin, html, verdict)


async def put_on(page: Page, look: Look) -> list[str]:
    """Give the window another width and another colour scheme, as a reader would."""
    await page.set_viewport_size({"width": look.width, "height": 900})
    await page.emulate_media(color_scheme=look.scheme)
    try:
        await page.wait_for_function(WEARS_SCHEME, arg=look.scheme, timeout=10_000)
    except PlaywrightTimeout:
        return [f"does not turn {look.scheme} when the reader asks for it"]
    await page.wait_for_timeout(SETTLES)
    return []


async def judge(page: Page, origin: str, path: str, plan: Plan) -> list[Verdict]:
    """Load a page once, look at it in several ways, and say what is wrong with it."""
    verdicts = [Verdict(path, look) for look in plan.looks]
    for verdict in verdicts:
        started, look = time.perf_counter(), verdict.look
        if verdict is verdicts[0]:
            await open_page(page, origin, plan.html, verdict)
        verdict.failures += await put_on(page, look)
        verdict.failures += await layout_failures(page, look.width)
        if plan.screenshots:
            await page.screenshot(path=plan.screenshots / f"{verdict.name}.png", full_page=True)
        if plan.axe:
            verdict.failures += await axe_failures(page, look.scheme)
        verdict.seconds = time.perf_counter() - started
    return verdicts


async def judge_without_scripts(browser: Browser, origin: str, look: Look) -> Verdict:
    """The front page has to be readable where JavaScript is off, all but its formulas."""
    verdict = Verdict(f"{FRONT_PAGE}, no JavaScript", look)
    context = await browser.new_context(
        java_script_enabled=False,
        color_scheme=look.scheme,
        viewport={"width": look.width, "height": 900},
    )
    page = await context.new_page()
    await page.goto(origin + FRONT_PAGE, wait_until="load")
    seen = await page.evaluate(WITHOUT_SCRIPTS)
    verdict.failures += [f"hidden without JavaScript: {words!r}" for words in seen["hidden"]]
    if seen["words"] < 200 or seen["pictures"] != 1:
        verdict.failures.append(f"shows {seen['words']} words and {seen['pictures']} pictures")
    verdict.failures += await layout_failures(page, look.width)
    await context.close()
    return verdict


async def visit_all(executable: str, origin: str, plan: Plan) -> list[Verdict]:
    """Judge all pages, a few at a time."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(context: BrowserContext, path: str) -> list[Verdict]:
        async with gate:
            page = await context.new_page()
            verdicts = await judge(page, origin, path, plan)
            await page.close()
            return verdicts

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        first = plan.looks[0]
        context = await browser.new_context(
            color_scheme=first.scheme, viewport={"width": first.width, "height": 900}
        )
        context.set_default_timeout(PATIENCE)
        found = await asyncio.gather(*(one(context, path) for path in plan.paths))
        verdicts = [verdict for page in found for verdict in page]
        verdicts += [await judge_without_scripts(browser, origin, look) for look in plan.looks]
        await browser.close()
    return verdicts


# ---- the command ----------------------------------------------------------------------------


def page_paths(html: Path, listings: bool) -> list[str]:
    """Every page of the site.

    Listings of source code are all made alike: one stands for them unless ``listings``.
    """
    paths = [page.relative_to(html).as_posix() for page in site_pages(html)]
    paths.remove("index.html")  # it only forwards to the book's
    if not listings:
        paths = [path for path in paths if not path.startswith(SOURCES) or path == A_SOURCE]
    return paths


def report(verdicts: list[Verdict], broken: list[str], seconds: float) -> bool:
    """Print a table of the visits, then the failures; say whether all is well."""
    print(f"{'page':44} {'width':>5} {'scheme':6} {'formulas':>8} {'kB':>5} {'s':>5}  verdict")
    for verdict in verdicts:
        look, failures = verdict.look, verdict.failures
        loaded = f"{verdict.formulas:8} {verdict.kilobytes:5.0f}" if verdict.kilobytes else " " * 14
        word = f"{len(failures)} failures" if failures else "ok"
        print(
            f"{verdict.path:44} {look.width:5} {look.scheme:6} "
            f"{loaded} {verdict.seconds:5.1f}  {word}"
        )
    failures = [
        f"{v.path} ({v.look.width}, {v.look.scheme}): {f}" for v in verdicts for f in v.failures
    ] + broken
    for failure in failures:
        print(f"FAILED  {failure}")
    print(
        f"{len(verdicts)} looks in {seconds:.0f} s, {len(broken)} broken links, "
        f"{len(failures)} failures"
    )
    return not failures


def main() -> int:
    """Check the built pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of pages' names; default: every page")
    parser.add_argument("--html", type=Path, default=HTML, help="folder of the built book")
    parser.add_argument("--matrix", action="store_true", help="all widths, all source listings")
    parser.add_argument("--no-axe", action="store_true", help="without accessibility")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each visit")
    parser.add_argument("--chromium", help="name or path of the browser")
    arguments = parser.parse_args()
    if not (arguments.html / "index.html").exists():
        sys.exit(f"No book in {arguments.html}: run `make book` first.")
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    executable, started = find_chromium(arguments.chromium), time.perf_counter()
    widths = (DESKTOP, PHONE, TABLET) if arguments.matrix else (DESKTOP, PHONE)
    looks = [Look(width, scheme) for width in widths for scheme in SCHEMES]
    paths = page_paths(arguments.html, listings=arguments.matrix)
    if arguments.names:
        paths = [path for path in paths if any(name in path for name in arguments.names)]
    plan = Plan(arguments.html, paths, looks, not arguments.no_axe, arguments.screenshots)
    with serve(arguments.html) as origin:
        verdicts = asyncio.run(visit_all(executable, origin, plan))
    broken = broken_links(arguments.html.resolve())
    return int(not report(verdicts, broken, time.perf_counter() - started))


if __name__ == "__main__":
    sys.exit(main())
