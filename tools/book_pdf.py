"""Print the built book into one PDF with headless Chromium.

The articles of all pages, in the order of `_toc.yml`, become one document: links between them lead
to pages of the PDF, formulas are typeset, a table of contents with page numbers comes first.
Solutions are printed open. Left out are the code of plots that the pages fold away, listings of
source code, and the controls of animations, which show their last frame.

    python tools/book_pdf.py                    # _build/html -> _build/book.pdf
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import yaml
from browser import CHROMIUM_FLAGS, find_chromium, serve
from bs4 import BeautifulSoup, Tag
from playwright.async_api import Page, async_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
HTML, PDF = ROOT / "_build" / "html", ROOT / "_build" / "book.pdf"
STYLE = Path(__file__).with_name("book_pdf.css")
MAX_BYTES = 40_000_000
ADDRESS = "book/print.html"  # beside the pages, so that their pictures are found
PATIENCE = 600_000  # milliseconds

# What a page has for its screen alone.
SCREEN_ONLY = (
    "script, button, input, output, a.headerlink, a.viewcode-link, .only-dark, details.hide, "
    ".prev-next-footer"
)
FOOTER = (
    '<div style="width:100%;font:8px sans-serif;text-align:center"><span class="pageNumber">'
    "</span></div>"
)
TYPESET = """async () => {
  await MathJax.startup.promise;
  const pictures = [...document.images];
  await Promise.all(pictures.map((picture) => picture.decode().catch(() => null)));
  return {
    formulas: document.querySelectorAll(".math").length,
    typeset: document.querySelectorAll(".math mjx-container").length,
    errors: document.querySelectorAll("mjx-merror").length,
    missing: pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src),
  };
}"""
NUMBER_CONTENTS = """(numbers) => {
  for (const [anchor, number] of Object.entries(numbers))
    document.querySelector(`nav.overview a[href="#${CSS.escape(anchor)}"] .page`).textContent =
      number;
}"""


@dataclass(frozen=True)
class Heading:
    """A line of the table of contents."""

    level: int  # 0 a part, 1 a page, 2 a section
    text: str
    anchor: str = ""


# ---- one document out of many pages ---------------------------------------------------------


def read_contents() -> list[tuple[str, list[str]]]:
    """Parts of the book and their pages, as `_toc.yml` has them; the first has no caption."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    parts = [
        (part.get("caption", ""), [entry["file"] for entry in part["chapters"]])
        for part in contents["parts"]
    ]
    return [("", [contents["root"]]), *parts]


def anchor_of(page: str, name: str = "") -> str:
    """The name that a place has in the one document."""
    return f"{Path(page).name}--{name}" if name else Path(page).name


def link_inside(tag: Tag, page: str, pages: set[str]) -> None:
    """Point a link at its place in the document; one that leaves it for the site becomes text."""
    target, name = urldefrag(urljoin(f"http://book/{page}.html", str(tag["href"])))
    if not target.startswith("http://book/"):
        return
    target = unquote(target.removeprefix("http://book/")).removesuffix(".html")
    if target in pages:
        tag["href"] = "#" + anchor_of(target, unquote(name))
    else:
        del tag["href"]


def article(html: Path, page: str, pages: set[str]) -> Tag:
    """What a page says, with names that are its own."""
    soup = BeautifulSoup((html / f"{page}.html").read_text("utf-8"), "html.parser")
    found = soup.find("article")
    for tag in found.select(SCREEN_ONLY):
        tag.decompose()
    for tag in found.find_all(id=True):
        tag["id"] = anchor_of(page, tag["id"])
    for tag in found.find_all("a", href=True):
        link_inside(tag, page, pages)
    found.name, found["id"], found["class"] = "section", anchor_of(page), "sheet"
    return found


def headings(found: Tag) -> list[Heading]:
    """The title and the sections of a page."""
    lines = []
    for tag in found.find_all(["h1", "h2"]):
        holder = found if tag.name == "h1" else tag.find_parent(id=True)
        lines.append(Heading(int(tag.name[1]), tag.get_text(" ", strip=True), holder["id"]))
    return lines


def contents_page(lines: list[Heading]) -> str:
    """The table of contents; its page numbers are filled in when they are known."""
    items = [
        f'<p class="level{line.level}">'
        + (
            f'<a href="#{escape(line.anchor)}"><span class="words">{escape(line.text)}</span>'
            '<span class="page">000</span></a>'
            if line.anchor
            else escape(line.text)
        )
        + "</p>"
        for line in lines
    ]
    return f'<nav class="overview"><h1>Contents</h1>{"".join(items)}</nav>'


def title_page(html: Path) -> str:
    """Title, picture, version and licence."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return (
        f'<header class="title"><h1>{escape(config["title"])}</h1><p>{escape(config["author"])}</p>'
        '<img src="_static/cover-light.png" alt="Noise that becomes a smooth curve.">'
        f"<p>Version {escape(project['version'])}. Text and figures CC BY 4.0, code MIT.<br>"
        "Solutions are printed open; the code of the plots is in the notebooks.</p></header>"
    ).replace("_static/", "../_static/")


def head(html: Path) -> str:
    """Style sheets and the typesetting of formulas as the pages have them, and our own style."""
    soup = BeautifulSoup((html / "book/index.html").read_text("utf-8"), "html.parser")
    kept = soup.head.find_all("link", rel="stylesheet")
    kept += [
        tag
        for tag in soup.head.find_all("script")
        if "mathjax" in str(tag.get("src", "")).lower() or "window.MathJax" in (tag.string or "")
    ]
    title = soup.head.title.string if soup.head.title else ""
    style = f"<style>{STYLE.read_text('utf-8')}</style>"
    return f'<meta charset="utf-8"><title>{escape(title)}</title>{"".join(map(str, kept))}{style}'


def assemble(html: Path) -> str:
    """The whole book as one document."""
    parts = read_contents()
    pages = {page for _, entries in parts for page in entries}
    lines, sheets = [], []
    for caption, entries in parts:
        if caption:
            lines.append(Heading(0, caption))
        for page in entries:
            found = article(html, page, pages)
            lines += headings(found)
            sheets.append(str(found))
    body = title_page(html) + contents_page(lines) + "".join(sheets)
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head>{head(html)}</head>'
        f"<body><main>{body}</main></body></html>"
    )


# ---- printing -------------------------------------------------------------------------------


def page_numbers(pdf: bytes, document: str) -> dict[str, int]:
    """Number of the page on which each line of the contents is found."""
    reader = PdfReader(io.BytesIO(pdf))
    places = {name.removeprefix("/"): place for name, place in reader.named_destinations.items()}
    lines = BeautifulSoup(document, "html.parser").select("nav.overview a")
    anchors = [str(line["href"])[1:] for line in lines]
    lost = [anchor for anchor in anchors if anchor not in places]
    if lost:
        sys.exit(f"The contents name places that the PDF does not have: {lost}")
    return {a: reader.get_destination_page_number(places[a]) + 1 for a in anchors}


async def typeset(page: Page) -> None:
    """Wait for formulas and pictures, and give up when one of them is missing."""
    found = await page.evaluate(TYPESET)
    print(f"{found['typeset']} formulas")
    if found["typeset"] != found["formulas"] or found["errors"] or found["missing"]:
        sys.exit(f"The document is not whole: {found}")


async def print_document(executable: str, origin: str, document: str) -> bytes:
    """Print twice: the first time to learn the numbers of the pages."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        page = await browser.new_page(viewport={"width": 690, "height": 1000})
        page.set_default_timeout(PATIENCE)
        await page.route(
            f"**/{ADDRESS}",
            lambda route: route.fulfill(body=document, content_type="text/html; charset=utf-8"),
        )
        await page.goto(origin + ADDRESS, wait_until="load")
        await typeset(page)
        options = {
            "prefer_css_page_size": True,
            "display_header_footer": True,
            "header_template": "<span></span>",
            "footer_template": FOOTER,
            "outline": True,
            "tagged": True,
            "print_background": True,
        }
        numbers = page_numbers(await page.pdf(**options), document)
        await page.evaluate(NUMBER_CONTENTS, numbers)
        pdf = await page.pdf(**options)
        await browser.close()
    if page_numbers(pdf, document) != numbers:
        sys.exit("The page numbers in the table of contents moved the pages.")
    return pdf


def main() -> int:
    """Print the book."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HTML, help="folder of the built book")
    parser.add_argument("--out", type=Path, default=PDF, help="the PDF")
    parser.add_argument("--chromium", help="name or path of the browser")
    arguments = parser.parse_args()
    if not (arguments.html / "index.html").exists():
        sys.exit(f"No book in {arguments.html}: run `make book` first.")
    document = assemble(arguments.html)
    with serve(arguments.html) as origin:
        pdf = asyncio.run(print_document(find_chromium(arguments.chromium), origin, document))
    if len(pdf) > MAX_BYTES:
        sys.exit(f"The PDF has {len(pdf) / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f} are allowed.")
    arguments.out.write_bytes(pdf)
    pages = len(PdfReader(io.BytesIO(pdf)).pages)
    print(f"{arguments.out}: {pages} pages, {len(pdf) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
