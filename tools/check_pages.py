"""Open every page of the built book in headless Chromium, in light and dark, and judge it.

Checked: no console error, no failed request, no request that leaves this machine, every formula
rendered, no WCAG 2.1 A/AA violation (axe), no page wider than its window, no broken internal
link or anchor.

    python tools/check_pages.py                       # the pages at desktop width
    python tools/check_pages.py --matrix              # at phone and tablet width too
    python tools/check_pages.py --screenshots DIR     # keep a picture of each page
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import (
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
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP = 1280
WIDTHS = (390, 820, DESKTOP)
SCHEMES = ("light", "dark")
# The two schemes differ in colours alone, so the rules on structure are run once.
AXE_RULES = {
    "light": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]},
    "dark": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
}
PARALLEL = 2
SOURCES, A_SOURCE = "_modules/", "_modules/gptheory/process.html"
SEARCH_PAGE, SEARCHED = "search.html", "score"

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
# A colour half-way through a transition is nobody's contrast.
NO_MOTION = "*, ::before, ::after { transition: none !important; animation: none !important; }"
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass(frozen=True)
class Visit:
    """One page at one width and in one colour scheme."""

    path: str
    width: int
    scheme: str

    @property
    def name(self) -> str:
        """File name for this visit's picture."""
        return f"{self.path.removesuffix('.html').replace('/', '-')}-{self.width}-{self.scheme}"


@dataclass
class Verdict:
    """What was found on a visit; `failures` is empty when the page is good."""

    visit: Visit
    formulas: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


# ---- links, without a browser ---------------------------------------------------------------


class Links(HTMLParser):
    """Collects what a page links to and the anchors that it offers."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes of one element."""
        attributes = dict(attrs)
        self.anchors |= {attributes[key] or "" for key in ("id", "name") if key in attributes}
        for key in ("href", "src"):
            if attributes.get(key) and not (tag == "link" and attributes.get("rel") == "preload"):
                self.targets.append(attributes[key] or "")


def site_pages(html: Path) -> list[Path]:
    """The pages of the site; what lies under _static are the theme's templates."""
    return [page for page in sorted(html.rglob("*.html")) if html / "_static" not in page.parents]


def broken_links(html: Path) -> list[str]:
    """Internal links of the site under `html` whose file or anchor does not exist."""
    pages = {path: Links(path.read_text("utf-8")) for path in site_pages(html)}
    broken = []
    for page, links in pages.items():
        for target in sorted(set(links.targets)):
            url, anchor = urldefrag(urljoin(page.as_uri(), target))
            if urlsplit(url).scheme != "file":
                continue
            path = Path(unquote(urlsplit(url).path))
            path = path / "index.html" if path.is_dir() else path
            known = pages[path].anchors if path in pages else {"", unquote(anchor)}
            if not path.exists() or unquote(anchor) not in known:
                broken.append(f"{page.relative_to(html)}: broken link {target}")
    return broken


# ---- pages, in a browser --------------------------------------------------------------------


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without writing a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


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


async def layout_failures(page: Page, width: int) -> list[str]:
    """A page is no wider than its window, and at desktop width every formula fits its column."""
    overflow, failures = await page.evaluate(OVERFLOW), []
    if overflow > 1:
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


async def axe_failures(page: Page, scheme: str) -> list[str]:
    """Violations of WCAG 2.1 A and AA."""
    options = {"runOnly": AXE_RULES[scheme], "resultTypes": ["violations"]}
    result = await Axe().run(page, options=options)
    return [
        f"axe {found['id']}: {found['help']} ({len(found['nodes'])}x, "
        f"first {' '.join(map(str, found['nodes'][0]['target']))})"
        for found in result.response["violations"]
    ]


async def judge(page: Page, origin: str, visit: Visit, screenshots: Path | None) -> Verdict:
    """Visit one page and say what is wrong with it."""
    verdict, started = Verdict(visit), time.perf_counter()
    events = listen(page, origin)
    query = f"?q={SEARCHED}" if visit.path == SEARCH_PAGE else ""
    await page.goto(origin + visit.path + query, wait_until="load")
    verdict.failures += await formula_failures(page, verdict)
    verdict.failures += await layout_failures(page, visit.width)
    if visit.path == SEARCH_PAGE:
        verdict.failures += await search_failures(page)
    await page.add_style_tag(content=NO_MOTION)
    await page.evaluate(UNFOLD)
    if screenshots:
        await page.screenshot(path=screenshots / f"{visit.name}.png", full_page=True)
    # Before axe: it reads files of its own accord, for which the page is not to blame.
    verdict.failures += dict.fromkeys(events)
    verdict.failures += await axe_failures(page, visit.scheme)
    verdict.seconds = time.perf_counter() - started
    return verdict


async def visit_all(
    executable: str, origin: str, visits: list[Visit], screenshots: Path | None
) -> list[Verdict]:
    """Judge all visits, a few at a time; those that look alike share a browser cache."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(context: BrowserContext, visit: Visit) -> Verdict:
        async with gate:
            page = await context.new_page()
            verdict = await judge(page, origin, visit, screenshots)
            await page.close()
            return verdict

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        contexts = {
            look: await browser.new_context(
                color_scheme=look[1], viewport={"width": look[0], "height": 900}
            )
            for look in {(visit.width, visit.scheme) for visit in visits}
        }
        verdicts = await asyncio.gather(
            *(one(contexts[visit.width, visit.scheme], visit) for visit in visits)
        )
        await browser.close()
    return verdicts


# ---- the command ----------------------------------------------------------------------------


def plan(html: Path, widths: tuple[int, ...], listings: bool) -> list[Visit]:
    """Every page of the site in both schemes, at each width.

    Listings of source code are all made alike: one stands for them unless ``listings``.
    """
    paths = [page.relative_to(html).as_posix() for page in site_pages(html)]
    paths.remove("index.html")  # it only forwards to the book's
    if not listings:
        paths = [path for path in paths if not path.startswith(SOURCES) or path == A_SOURCE]
    return [Visit(path, width, scheme) for path in paths for width in widths for scheme in SCHEMES]


def report(verdicts: list[Verdict], broken: list[str], seconds: float) -> bool:
    """Print a table of the visits, then the failures; say whether all is well."""
    print(f"{'page':44} {'width':>5} {'scheme':6} {'formulas':>8} {'s':>5}  verdict")
    for verdict in verdicts:
        visit, failures = verdict.visit, verdict.failures
        word = f"{len(failures)} failures" if failures else "ok"
        print(
            f"{visit.path:44} {visit.width:5} {visit.scheme:6} "
            f"{verdict.formulas:8} {verdict.seconds:5.1f}  {word}"
        )
    failures = [
        f"{v.visit.path} ({v.visit.width}, {v.visit.scheme}): {f}"
        for v in verdicts
        for f in v.failures
    ] + broken
    for failure in failures:
        print(f"FAILED  {failure}")
    print(
        f"{len(verdicts)} visits in {seconds:.0f} s, {len(broken)} broken links, "
        f"{len(failures)} failures"
    )
    return not failures


def find_chromium(named: str | None) -> str:
    """Path of the browser, or an exit that says how to get one."""
    found = next(filter(None, map(shutil.which, [named] if named else CHROMIUM_NAMES)), None)
    if found is None:
        sys.exit("No Chromium found: pages NOT checked. On Debian: apt-get install chromium")
    return found


def main() -> int:
    """Check the built pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HTML, help="folder of the built book")
    parser.add_argument("--matrix", action="store_true", help="all widths, all source listings")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each visit")
    parser.add_argument("--chromium", help="name or path of the browser")
    arguments = parser.parse_args()
    if not (arguments.html / "index.html").exists():
        sys.exit(f"No book in {arguments.html}: run `make book` first.")
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    executable, started = find_chromium(arguments.chromium), time.perf_counter()
    widths = WIDTHS if arguments.matrix else (DESKTOP,)
    visits = plan(arguments.html, widths, listings=arguments.matrix)
    with serve(arguments.html) as origin:
        verdicts = asyncio.run(visit_all(executable, origin, visits, arguments.screenshots))
    broken = broken_links(arguments.html.resolve())
    return int(not report(verdicts, broken, time.perf_counter() - started))


if __name__ == "__main__":
    sys.exit(main())
