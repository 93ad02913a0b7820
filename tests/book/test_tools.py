"""The tools that judge and print the built pages, as far as they need no browser."""

from __future__ import annotations

import base64
import os
import subprocess

import cover
import execute_notebooks
import nbformat
import normalise_notebooks
import numpy as np
import page_links
import pytest


@pytest.fixture
def site(tmp_path):
    """A site of two pages whose links are sound."""
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/template.html").write_text('<a href="nowhere.html">no page</a>')
    (tmp_path / "a.html").write_text('<h1 id="top-of-a">A</h1><a href="b.html#end">b</a>')
    (tmp_path / "b.html").write_text('<p id="end"></p><a href="a.html#top-of-a">a</a>')
    return tmp_path


def test_sound_links_pass(site):
    assert [page.name for page in page_links.site_pages(site)] == ["a.html", "b.html"]
    assert page_links.broken_links(site) == []


@pytest.mark.parametrize("link", ["c.html", "b.html#start", "#nowhere", "_static/missing.png"])
def test_broken_links_are_found(site, link):
    page = site / "a.html"
    page.write_text(page.read_text() + f'<a href="{link}">a link</a>')
    assert page_links.broken_links(site) == [f"a.html: broken link {link}"]


def test_links_elsewhere_are_not_followed(site):
    page = site / "a.html"
    page.write_text(page.read_text() + '<a href="https://example.org/nowhere#x">far</a>')
    assert page_links.broken_links(site) == []


@pytest.fixture
def untidy(tmp_path):
    """A notebook that is not in normal form."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    path = tmp_path / "untidy.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("tool", [normalise_notebooks, execute_notebooks])
def test_a_notebook_that_cannot_be_written_is_left_whole(tool, untidy, monkeypatch):
    def full(*_args):
        raise OSError("no space left on device")

    done = execute_notebooks.Execution(nbformat.read(untidy, as_version=4), 0.0, 0.0)
    monkeypatch.setattr(execute_notebooks, "execute", lambda *_: done)
    monkeypatch.setattr("sys.argv", ["tool.py", str(untidy)])
    before = untidy.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            tool.main()
    assert untidy.read_bytes() == before and list(untidy.parent.iterdir()) == [untidy]


def test_untidy_notebooks_are_put_in_normal_form(untidy, monkeypatch):
    monkeypatch.setattr("sys.argv", ["normalise_notebooks.py", str(untidy)])
    assert normalise_notebooks.main() == 0
    text = untidy.read_text(encoding="utf-8")
    assert text == normalise_notebooks.normal_text(untidy, normalise_notebooks.repository_url())


@pytest.mark.skipif(not (normalise_notebooks.ROOT / ".git").exists(), reason="no checkout")
def test_no_file_has_marks_of_a_merge():
    """Neither side may be left over: `git grep` reads what is tracked, text only."""
    marks = ["git", "grep", "-I", "-l", "-E", r"^(<{7}|>{7}) "]
    found = subprocess.run(
        marks, cwd=normalise_notebooks.ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1 and not found.stderr, found.stdout + found.stderr


def test_cover_shows_noise_that_becomes_data():
    steps, lines = cover.states()
    assert lines.shape == (cover.LINES, cover.FRAMES) and len(steps) == cover.LINES
    assert steps[0] == cover.NOISE_STEP and steps[-1] == 0
    rough = np.diff(lines, axis=1).std(axis=1) / lines.std(axis=1)
    assert rough[0] > 1.2 and rough[-1] < 0.15
    assert (np.diff(rough[:-1]) < 0.02).all()


def test_committed_covers_look_as_they_are_drawn(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cover.py", "--check"])
    assert cover.main() == 0


def test_another_picture_is_stale():
    other = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    assert cover.stale("light", other)
