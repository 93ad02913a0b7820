"""The chapters keep to the house rules, and each rule notices when they do not."""

from __future__ import annotations

import base64
import copy
import io
import re
from pathlib import Path

import nbformat
import normalise_notebooks as form
import notebook_rules as rules
import pytest
import yaml
from PIL import Image

CHAPTERS = sorted(form.BOOK.glob("*.ipynb"))
MAX_BOOK_BYTES = 8_000_000


# ---- the chapters ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rule(path, rule):
    complaints = rule(nbformat.read(path, as_version=4))
    assert not complaints, f"{path.name}: {rule.__doc__}\n" + "\n".join(complaints)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_in_normal_form(path):
    text = path.read_text(encoding="utf-8")
    assert text == form.normal_text(path, form.repository_url()), "run `make format`"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_small(path):
    assert path.stat().st_size < rules.MAX_NOTEBOOK_BYTES, "draw at 100 dpi or less"


def test_book_is_small():
    assert sum(path.stat().st_size for path in CHAPTERS) < MAX_BOOK_BYTES


def test_contents_list_every_chapter_and_no_other():
    contents = yaml.safe_load((form.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    chapters = [file for file in files if Path(file).name[:2].isdigit()]
    assert chapters == [f"book/{path.stem}" for path in CHAPTERS]


def test_reference_documents_every_module_once():
    page = (form.BOOK / "api.md").read_text(encoding="utf-8")
    package = form.ROOT / "src/gptheory"
    modules = [path.relative_to(package) for path in package.rglob("[a-z]*.py")]
    names = [".".join(path.with_suffix("").parts) for path in modules]
    assert sorted(names) == sorted(re.findall(r"automodule:: gptheory\.(\S+)", page))


# ---- the rules ------------------------------------------------------------------------------


def code(source, outputs=(), **metadata):
    """A code cell that has been executed."""
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)
    cell.execution_count = 1
    return cell


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def encoded_square(shade):
    """A base64 PNG, 8 by 8 pixels of one shade."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def picture(shade=100):
    bundle = {"image/png": encoded_square(shade), "text/plain": "<Figure size 400x300 with 1 Axes>"}
    return nbformat.v4.new_output("display_data", bundle)


@pytest.fixture
def good():
    """A small chapter that keeps every rule."""
    exercise = (
        "```{{exercise-start}}\n:label: ex-{0}\n```\nWhy?\n```{{exercise-end}}\n```\n\n"
        "```{{solution-start}} ex-{0}\n:class: dropdown\n```\nSo.\n```{{solution-end}}\n```\n"
    )
    described = {"figure": {"caption": "A dot.", "name": "fig-dot"}, "image": {"alt": "One dot."}}
    cells = [
        "# Dots\n\nYou will be **able to** say what a dot is.",
        "Running time: one second. Prerequisites: none. " + "A dot is small. " * 10,
        code("session.opening(seconds=1)", [stream("quick scale on cpu: about 1 s\n")]),
        code("draw()", [picture()], mystnb=described),
        code("print(f'{size:.2f}')", [stream("0.25\n")]),
        "## Take-home\n\nKeep dots small.",
        "\n\n".join(exercise.format(k) for k in range(3)),
    ]
    cells = [nbformat.v4.new_markdown_cell(c) if isinstance(c, str) else c for c in cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    return form.normalise(notebook, form.repository_url())


def code_cell(notebook, index):
    return rules.code_cells(notebook)[index]


BREAKS = {
    "executed_in_order": [
        lambda nb: code_cell(nb, 1).update(execution_count=None),
        lambda nb: code_cell(nb, 2).outputs.append(stream("careful!", "stderr")),
    ],
    "first_cell_installs_the_package": [
        lambda nb: nb.cells.pop(0),
        lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("-qq", "-q")),
        lambda nb: nb.cells[0].outputs.append(stream("Collecting ...")),
    ],
    "outputs_are_compared": [
        lambda nb: code_cell(nb, 2).metadata.update(tags=["nbval-ignore-output"]),
    ],
    "cells_are_short": [
        lambda nb: code_cell(nb, 1).update(source="x = 1\n" * 31),
        lambda nb: [cell.update(source="x = 1\n" * 9) for cell in rules.code_cells(nb)],
    ],
    "figures_are_described": [
        lambda nb: code_cell(nb, 1).metadata.pop("mystnb"),
        lambda nb: code_cell(nb, 1).metadata.mystnb.figure.pop("caption"),
        lambda nb: code_cell(nb, 1).metadata.mystnb.figure.pop("name"),
        lambda nb: code_cell(nb, 1).metadata.mystnb.pop("image"),
        lambda nb: code_cell(nb, 1).outputs.append(picture()),
    ],
    "figures_come_with_a_number": [
        lambda nb: code_cell(nb, 2).update(outputs=[stream("small\n")]),
        lambda nb: code_cell(nb, 2).metadata.update(tags=["nbval-ignore-output"]),
    ],
    "prose_outweighs_code": [
        lambda nb: code_cell(nb, 1).update(source="draw()\n" * 25),
    ],
    "no_machine_paths": [
        lambda nb: nb.cells[1].update(source=nb.cells[1].source + " See /home/me/notes."),
        lambda nb: code_cell(nb, 2).outputs.append(stream("saved /tmp/dot.png\n")),
    ],
    "opens_with_a_promise": [
        lambda nb: nb.cells[1].update(source="Dots"),
        lambda nb: nb.cells[2].update(source="A dot is small."),
    ],
    "says_where_it_runs": [
        lambda nb: nb.cells.pop(3),
        lambda nb: code_cell(nb, 0).update(source="session.opening()"),
    ],
    "closes_with_advice_and_exercises": [
        lambda nb: nb.cells[-2].update(source="Keep dots small."),
        lambda nb: nb.cells[-1].update(source=nb.cells[-1].source.split("```{exercise", 2)[0]),
        lambda nb: nb.cells[-1].update(source=nb.cells[-1].source.replace("start} ex-1", "start}")),
    ],
}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_rule_accepts_a_good_chapter(rule, good):
    assert rule(good) == []


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_rule_notices_what_it_forbids(rule, good):
    for damage in BREAKS[rule.__name__]:
        broken = copy.deepcopy(good)
        damage(broken)
        assert rule(broken), f"{rule.__name__} did not notice"


# ---- the normal form ------------------------------------------------------------------------


def test_normal_form_is_stable(good):
    text = form.to_text(good)
    again = form.normalise(nbformat.reads(text, as_version=4), form.repository_url())
    assert form.to_text(again) == text
    assert text.endswith("}\n")


def test_normal_form_drops_accidents(good):
    messy = copy.deepcopy(good)
    messy.metadata["jupytext"] = {"text_representation": {}}
    for count, cell in enumerate(rules.code_cells(messy)):
        cell.id = f"random{count}"
        cell.execution_count = 40 + count
        cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    code_cell(messy, 2).outputs = [stream("0."), stream("25\n")]
    assert form.to_text(form.normalise(messy, form.repository_url())) == form.to_text(good)


def test_first_cell_is_put_back_with_the_address_of_the_configuration(good):
    del good.cells[0]
    notebook = form.normalise(good, "https://example.org/fork")
    assert f'"git+https://example.org/fork@v{form.package_version()}"' in notebook.cells[0].source
    assert sum(map(form.is_first_cell, notebook.cells)) == 1


@pytest.mark.parametrize(("shade", "kept"), [(101, True), (180, False)])
def test_committed_picture_stays_only_while_it_looks_the_same(good, shade, kept):
    rerun = copy.deepcopy(good)
    code_cell(rerun, 1).outputs = [picture(shade)]
    result = form.normalise(rerun, form.repository_url(), committed=good)
    shown = code_cell(result, 1).outputs[0].data["image/png"]
    assert shown == encoded_square(100 if kept else shade)


def test_committed_outputs_go_when_the_numbers_change(good):
    rerun = copy.deepcopy(good)
    code_cell(rerun, 2).outputs = [stream("0.26\n")]
    result = form.normalise(rerun, form.repository_url(), good)
    assert code_cell(result, 2).outputs[0].text == "0.26\n"


def test_check_names_the_notebook_and_changes_nothing(good, tmp_path, monkeypatch, capsys):
    path = tmp_path / "01-dots.ipynb"
    path.write_text(form.to_text(good).replace('"nbformat_minor": 5', '"nbformat_minor":  5'))
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["normalise_notebooks.py", "--check", str(path)])
    assert form.main() == 1
    assert "01-dots.ipynb" in capsys.readouterr().out
    assert path.read_bytes() == before
