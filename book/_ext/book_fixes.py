"""Small repairs to the rendered book that no setting reaches.

- The repository's address: GITHUB_REPOSITORY (set by GitHub Actions) overrides `_config.yml`,
  so that a fork's pages link to the fork.
- Scripts: each is loaded once, and thebe (live code, which we do not offer) not at all.
- Accessibility: an ARIA role that docutils writes and ARIA has deprecated is replaced.
- The page at the site's root forwards to the book and is a complete HTML document.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

REDIRECT = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>{title}</title>
    <link rel="icon" href="_static/favicon.svg">
    <meta http-equiv="refresh" content="0; url={target}">
  </head>
  <body><main><a href="{target}">{title}</a></main></body>
</html>
"""


def override_repository(app: Sphinx, config: Config) -> None:
    """Point the source, issue and Colab buttons at the repository that is being built."""
    repository = os.environ.get("GITHUB_REPOSITORY")
    if repository:
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        config.html_theme_options["repository_url"] = f"{server}/{repository}"
    release = os.environ.get("BOOK_RELEASE")
    if release:  # readers open the notebooks of the release whose package they install
        config.html_theme_options["repository_branch"] = release


def clean_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Drop thebe and repeated scripts: a constant declared twice is a console error."""
    kept, seen = [], set()
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body") or ""
        key = (str(getattr(script, "filename", None) or script), body)
        if key in seen or "thebe" in key[0] or "thebe" in body.lower():
            continue
        seen.add(key)
        kept.append(script)
    context["script_files"] = kept


def repair_roles(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give the bibliography's entries the role that their list expects, not a deprecated one."""
    if "body" in context:
        context["body"] = context["body"].replace(
            'role="doc-biblioentry"', 'role="listitem"'
        )


def drop_thebe_settings(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take thebe's settings out of the page: nothing reads them."""
    for node in list(doctree.findall(nodes.raw)):
        if "thebe" in node.astext():
            node.parent.remove(node)


def write_redirect(app: Sphinx, exception: Exception | None) -> None:
    """Write the root page; jupyter-book's own has neither a title nor a language."""
    root = app.config.root_doc
    if exception is None and app.builder.name == "html" and root != "index":
        page = REDIRECT.format(title=app.config.html_title, target=f"{root}.html")
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the repairs with Sphinx."""
    # Before the theme reads its options.
    app.connect("config-inited", override_repository, priority=100)
    # After the extensions that add the scripts.
    app.connect("html-page-context", clean_scripts, priority=900)
    app.connect("html-page-context", repair_roles)
    app.connect("doctree-resolved", drop_thebe_settings, priority=900)
    app.connect("build-finished", write_redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
