"""The status page and the map of the chapters say what was measured, and notice when it is old."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import chapter_map
import nbformat
import pytest
import status

CHAPTERS = """
[[chapter]]
file = "01-dots"
title = "Dots"
needs = []
budget = 20

[[chapter]]
file = "02-lines"
title = "Lines & more"
needs = [1]
budget = 30

[[chapter]]
file = "03-planes"
title = "Planes"
needs = [1, 2]
budget = 30
"""
PROVENANCE = {
    "device": "cpu",
    "machine": "a machine",
    **dict.fromkeys(status.VERSIONS, "1.0"),
}


def write_notebook(path, source):
    first = nbformat.v4.new_code_cell("import os\nos.environ['GPTHEORY_SOURCE']")
    first.metadata["tags"] = ["remove-cell"]
    cells = [first, nbformat.v4.new_markdown_cell("# Dots"), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def book(tmp_path):
    """A book of two written chapters, both measured, and one to come."""
    (tmp_path / "chapters.toml").write_text(CHAPTERS)
    for name, seconds in (("01-dots", 12.34), ("02-lines", 7.0)):
        write_notebook(tmp_path / f"{name}.ipynb", f"session.opening(seconds={seconds:.0f})")
        status.add_run(tmp_path / f"{name}.ipynb", PROVENANCE, seconds, 1.2 * seconds)
    return tmp_path


def test_the_books_status_is_true():
    problems = status.find_problems()
    assert not problems, f"{problems}: run `make notebooks`"
    assert (status.BOOK / "status.md").read_text("utf-8") == status.render()


def test_measured_chapters_raise_no_complaint(book):
    assert status.find_problems(book) == []
    page = status.render(book)
    assert "{doc}`1 <01-dots>`\n  - " in page and "\n  - 12\n  - 20\n  - 15\n" in page
    assert "No chapter has been measured on a GPU" in page


def test_text_may_change_and_code_may_not(book):
    path = book / "01-dots.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "  # another address"
    notebook.cells[1].source = "# Spots"
    nbformat.write(notebook, path)
    assert status.find_problems(book) == []
    notebook.cells[2].source = "1 + 2"
    nbformat.write(notebook, path)
    assert "code has changed" in " ".join(status.find_problems(book))


def test_new_code_forgets_measurements_of_the_old(book):
    path = book / "01-dots.ipynb"
    gpu = PROVENANCE | {"device": "A GPU"}
    status.add_run(path, gpu, 3.0, 3.0)
    assert set(status.read_status(book)["01-dots"]) == {"cpu", "A GPU"}
    assert "A GPU (a machine)" in status.render(book)
    assert "No chapter" not in status.render(book)
    write_notebook(path, "2 + 2")
    status.add_run(path, PROVENANCE, 5.0, 5.0)
    assert set(status.read_status(book)["01-dots"]) == {"cpu"}


def test_a_busy_machine_is_named_and_not_judged(book):
    status.add_run(book / "01-dots.ipynb", PROVENANCE, 21.0, 40.0)
    assert status.find_problems(book) == []
    assert "  - 21 (busy)\n" in status.render(book)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda book: (book / "status.json").unlink(), "no measurement"),
        (lambda book: (book / "02-lines.ipynb").unlink(), "there is no such notebook"),
        (lambda book: write_notebook(book / "04-new.ipynb", "1"), "not in book/chapters.toml"),
        (
            lambda book: status.add_run(book / "01-dots.ipynb", PROVENANCE, 20.1, 20.2),
            "took 20.1 CPU-s on cpu, its budget is 20",
        ),
    ],
)
def test_untruth_is_noticed(book, damage, complaint):
    damage(book)
    assert complaint in " ".join(status.find_problems(book))


def test_check_fails_on_a_stale_page(book, monkeypatch, capsys):
    monkeypatch.setattr(status, "BOOK", book)
    monkeypatch.setattr("sys.argv", ["status.py"])
    monkeypatch.setattr(status, "find_problems", list)
    monkeypatch.setattr(status, "render", lambda: "new")
    assert status.main() == 0
    monkeypatch.setattr("sys.argv", ["status.py", "--check"])
    assert status.main() == 0
    (book / "status.md").write_text("old")
    assert status.main() == 1
    assert "stale" in capsys.readouterr().out


# ---- the map --------------------------------------------------------------------------------


@pytest.fixture
def mapped(book, monkeypatch):
    """The map of that book."""
    monkeypatch.setattr(chapter_map, "BOOK", book)
    monkeypatch.setattr(chapter_map, "read_chapters", lambda: status.read_chapters(book))
    return chapter_map.render()


def test_the_books_map_is_up_to_date():
    assert chapter_map.drawing().read_text("utf-8") == chapter_map.render()


def test_map_leaves_out_what_is_implied(book):
    chapters = {c.number: c for c in status.read_chapters(book)}
    assert chapter_map.arcs(chapters) == [(1, 2, True), (2, 3, True)]


def test_help_does_not_replace_need():
    def chapter(file, **given):
        return status.Chapter(file, "", 1, **given)

    chapters = {
        1: chapter("01"),
        2: chapter("02", needs=[1]),
        3: chapter("03", needs=[1], helps=[1, 2]),
    }
    assert set(chapter_map.arcs(chapters)) == {(1, 2, True), (1, 3, True), (2, 3, False)}


def test_map_is_well_formed_and_links_to_written_chapters(mapped):
    tree = ElementTree.fromstring(mapped)
    space = "{http://www.w3.org/2000/svg}"
    assert [link.get("href") for link in tree.iter(f"{space}a")] == [
        "01-dots.html",
        "02-lines.html",
    ]
    words = [text.text for text in tree.iter(f"{space}text")]
    assert {"12 s", "7 s", "to come", "Lines & more"} <= set(words)
    assert "Chapter 3 needs 1 and 2." in tree.get("aria-label")


def test_measurements_are_json_with_sorted_keys(book):
    text = (book / "status.json").read_text("utf-8")
    assert list(json.loads(text)) == ["01-dots", "02-lines"]
