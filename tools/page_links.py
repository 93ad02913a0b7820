"""The pages of a built site and what they link to, without a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit


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
