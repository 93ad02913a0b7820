"""The problem sets keep to their form: what can be said without running the grader."""

from __future__ import annotations

import ast
import itertools
import json
import re

import nbformat
import normalise_notebooks as form
import notebook_rules as rules
import problem_sets
import pytest
import yaml

SETS = [problem_sets.read_set(path) for path in problem_sets.masters()]
QUESTIONS = [(s, q) for s in SETS for q in s.questions]
AUTOGRADED = [(s, q) for s, q in QUESTIONS if not q.manual]
MANUAL = [(s, q) for s, q in QUESTIONS if q.manual]
EXERCISE = r"\{exercise(?:-start)?\}\s*\n:label: (\S+)(.*?)\{solution"
SHARED_WORDS = 9  # a run of so many equal words means that a text was copied


def each(pairs):
    ids = [f"{s.path.stem[0]}-{q.name}" for s, q in pairs]
    return pytest.mark.parametrize(("problem_set", "question"), pairs, ids=ids)


each_set = pytest.mark.parametrize("problem_set", SETS, ids=lambda s: s.path.stem)


# ---- the sets -------------------------------------------------------------------------------


def test_there_are_four():
    assert [s.path.stem[0] for s in SETS] == ["1", "2", "3", "4"]


@each_set
def test_set_mixes_kinds(problem_set):
    kinds = [question.kind for question in problem_set.questions]
    assert len(kinds) >= 5
    assert set(kinds) == {"derivation", "code", "experiment"}
    assert all(q.manual == (q.kind == "derivation") for q in problem_set.questions[:5])
    assert {q.manual for q in problem_set.questions if q.kind == "experiment"} == {True, False}


@each_set
def test_points_add_up(problem_set):
    tested, by_hand = problem_set.points(manual=False), problem_set.points(manual=True)
    opening = next(c.source for c in problem_set.setup if c.cell_type == "markdown")
    promise = rf"{tested + by_hand} points, of which {tested} .* computer and {by_hand} by hand"
    assert re.search(promise, opening)
    row = rf"^\| {problem_set.path.stem[0]}\. .* \| {tested} \| {by_hand} \| {tested + by_hand} \|$"
    guide = (form.BOOK / "teaching.md").read_text(encoding="utf-8")
    assert re.search(row, guide, re.MULTILINE), "the table in book/teaching.md says otherwise"


@each_set
def test_guide_names_the_set(problem_set):
    guide = (form.BOOK / "teaching.md").read_text(encoding="utf-8")
    number, title = re.fullmatch(r"Problem set (\d): (.*)", problem_set.title).groups()
    assert f"| {number}. {title} |" in guide


@each_set
def test_master_is_in_normal_form(problem_set):
    text = problem_set.path.read_text(encoding="utf-8")
    assert text == form.normal_text(problem_set.path, form.repository_url()), "run `make format`"
    notebook = nbformat.reads(text, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert not rules.no_machine_paths(notebook)


@each_set
def test_assignment_bears_the_name_of_its_file(problem_set):
    notebook = nbformat.read(problem_set.path, as_version=4)
    (settings,) = [c.source for c in notebook.cells if c.source.startswith("# ASSIGNMENT CONFIG")]
    expected = {"config_file": "assignment.yml", "name": problem_set.path.stem}
    assert yaml.safe_load(settings) == expected


def test_graders_container_installs_the_package_that_students_have():
    settings = yaml.safe_load((problem_sets.COURSEWORK / "assignment.yml").read_text("utf-8"))
    assert settings["requirements"] == [
        f"gptheory @ git+{form.repository_url()}@v{form.package_version()}"
    ]


# ---- the questions --------------------------------------------------------------------------


@each(QUESTIONS)
def test_heading_says_number_and_points(problem_set, question):
    position = problem_set.questions.index(question) + 1
    assert question.name == f"q{position}"
    assert int(question.heading["number"]) == position
    assert int(question.heading["points"]) == question.points
    assert (question.kind == "code") <= (not question.manual)


@each(AUTOGRADED)
def test_code_has_public_and_hidden_tests(problem_set, question):
    shown = sum(test.points for test in question.tests if not test.hidden)
    hidden = sum(test.points for test in question.tests if test.hidden)
    assert hidden > shown >= 1 and shown + hidden == question.points
    assert all(test.message for test in question.tests)
    assert all("assert " in test.source for test in question.tests)


@each(AUTOGRADED)
def test_code_shows_nothing_outside_its_solution(problem_set, question):
    outside = re.sub(r"# BEGIN SOLUTION\n.*?# END SOLUTION", "", question.code, flags=re.DOTALL)
    assert outside != question.code
    assert not re.search(r"\breturn\b|^\w+ = ", outside, re.MULTILINE)


@each(AUTOGRADED)
def test_three_wrong_answers(problem_set, question):
    wrong = [w for w in problem_set.wrong if w.question == question.name]
    assert len(wrong) >= 3 and len({w.misconception for w in wrong}) == len(wrong)
    worth = [test.points for test in question.tests]
    subsets = itertools.chain(*(itertools.combinations(worth, k) for k in range(len(worth) + 1)))
    possible = {sum(subset) for subset in subsets}
    for answer in wrong:
        assert answer.earns < question.points and answer.earns in possible
        assert answer.answer(question.code) != question.code
        ast.parse(answer.answer(question.code))


def test_wrong_answers_belong_to_a_question():
    for problem_set in SETS:
        assert {w.question for w in problem_set.wrong} == {q.name for q in problem_set.autograded}


def test_a_change_that_does_not_apply_is_refused():
    with pytest.raises(ValueError, match="does not contain 'x \\+ 1'"):
        problem_sets.Wrong("q2", "", 1, "x + 1", "x").answer("x - 1")


@each(AUTOGRADED)
def test_code_needs_no_other_question(problem_set, question):
    own = defined(question.code)
    assert own
    for other in problem_set.autograded:
        if other is not question:
            sources = [other.code, *(test.source for test in other.tests)]
            read = set().union(*(names(s, ast.Load) - names(s, ast.Store) for s in sources))
            assert not own & read, f"{other.name} uses names of {question.name}"


@each(MANUAL)
def test_rubric_adds_up(problem_set, question):
    solution, found, rubric = question.text.partition("**Rubric.**")
    assert solution.strip().startswith("**Solution.**") and found
    lines = re.findall(r"^\| (\d+) \| .+ \|$", rubric, re.MULTILINE)
    assert sum(map(int, lines)) == question.points


def test_questions_do_not_repeat_exercises():
    runs = {}
    for path in sorted(form.BOOK.glob("*.ipynb")):
        text = rules.markdown(nbformat.read(path, as_version=4))
        exercises = re.findall(
            r"\{exercise(?:-start)?\}\s*\n:label: (\S+)(.*?)\{solution", text, re.S
        )
        for label, exercise in exercises:
            runs |= dict.fromkeys(word_runs(exercise), label)
    assert len(set(runs.values())) > 20  # they were found
    for problem_set, question in QUESTIONS:
        repeated = {runs[run] for run in word_runs(question.prompt) & runs.keys()}
        assert not repeated, f"{problem_set.path.stem}, {question.name} repeats {repeated}"


# ---- what students get ----------------------------------------------------------------------


@each(QUESTIONS)
def test_every_question_has_something_to_hide(problem_set, question):
    assert len(problem_sets.secrets(question)) >= 3


def test_leaks_are_found_in_cells_and_in_test_files(tmp_path):
    problem_set = SETS[0]
    question = problem_set.autograded[0]
    cell = nbformat.v4.new_code_cell(question.code)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert problem_sets.leaks(problem_set, tmp_path)
    (tmp_path / "a.ipynb").unlink()
    hidden = next(test for test in question.tests if test.hidden)
    (tmp_path / "q2.py").write_text("test = " + json.dumps(ast.unparse(ast.parse(hidden.source))))
    assert problem_sets.leaks(problem_set, tmp_path)
    public = next(test for test in question.tests if not test.hidden)
    (tmp_path / "q2.py").write_text(ast.unparse(ast.parse(public.source)))
    assert not problem_sets.leaks(problem_set, tmp_path)


# ---- reading code and text ------------------------------------------------------------------


def names(source, context):
    """Names that some code reads (ast.Load) or writes (ast.Store)."""
    nodes = ast.walk(ast.parse(source))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def defined(source):
    """Functions and variables that some code leaves behind at its top level."""
    body = ast.parse(source).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    assigned = [node for node in body if isinstance(node, ast.Assign)]
    return functions | {target.id for node in assigned for target in node.targets}


def word_runs(text):
    """All runs of SHARED_WORDS words, formulas aside."""
    words = re.findall(r"[a-z]{2,}", re.sub(r"\$[^$]*\$", " ", text).lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}
