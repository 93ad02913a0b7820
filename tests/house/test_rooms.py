"""The house: rooms import downwards only, say what they are for, and hide nothing they export."""

from __future__ import annotations

import ast
import subprocess
import sys

import house
import pytest

ROOMS = house.order()
FILES = sorted(path for name in ROOMS for path in (house.HOUSE / name).glob("*.py"))
DRAWING = ("figures", "studies")
HEAVY = {"matplotlib", "seaborn", "pandas", "PIL", "joblib", "sklearn"}


def name_of(path):
    return path.relative_to(house.HOUSE).as_posix()


def test_plan_lists_every_room():
    folders = {path.parent.name for path in house.HOUSE.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS)) >= 12


def test_nothing_lives_outside_the_rooms():
    assert {path.name for path in house.HOUSE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_down(path):
    above = ROOMS[: ROOMS.index(path.parent.name)]
    for room, what in house.imported(path):
        assert room in above, f"{name_of(path)} imports {what} of {room}, which is not above it"


@pytest.mark.parametrize("name", ROOMS)
def test_files_of_a_room_import_each_other_in_no_circle(name):
    graph = {}
    for path in (house.HOUSE / name).glob("*.py"):
        nodes = [n for n in ast.walk(house.parsed(path)) if isinstance(n, ast.ImportFrom)]
        own = [n for n in nodes if n.level == 1]
        graph[path.stem] = {n.module or a.name for n in own for a in n.names}
    while graph:
        free = [file for file, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)} of {name}"
        for file in free:
            del graph[file]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_what_it_is_for_and_hides_none_of_its_names(name):
    room = house.room(name)
    assert room.about
    assert not set(room.files) & set(room.exports)


@pytest.mark.parametrize("name", ROOMS)
def test_a_contents_page_only_lists(name):
    body = house.parsed(house.HOUSE / name / "__init__.py").body
    assert all(isinstance(n, ast.ImportFrom) and n.level == 1 for n in body[1:])
    assert all(alias.asname is None for n in body[1:] for alias in n.names)


NUMERICS = [path for path in FILES if path.parent.name not in DRAWING]


@pytest.mark.parametrize("path", NUMERICS, ids=name_of)
def test_numerics_draw_nothing(path):
    for node in house.parsed(path).body:
        outside = isinstance(node, ast.Import) or getattr(node, "level", None) == 0
        if outside and isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or alias.name for alias in node.names]
            assert not HEAVY & {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("name", [room for room in ROOMS if room not in DRAWING])
def test_numerics_load_nothing_heavy(name):
    """Nothing that draws, not even through another library, and no slow part of scipy."""
    code = f"import sys, gptheory.{name}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    heavy = {"matplotlib", "seaborn", "pandas", "PIL"}
    heavy |= {f"scipy.{part}" for part in ("integrate", "optimize", "stats")}
    assert not heavy & set(loaded)


CONTRACT = """
data: GaussianProcess PowerExponential Matern random_covariance
diffusion: ExactScore UnrolledScore denoise sample trajectory step_grid alpha sigma perturb
attention: poly_attention exp_polynomial
construction: build_score_transformer
networks: DiT UNet1d
measures: score_error path_kl coupled_ode_error gaussian_kl temporal_covariance sampling_floor
training: TrainConfig fit fit_ensemble
probing: record
"""


@pytest.mark.parametrize("line", CONTRACT.split("\n")[1:-1], ids=lambda line: line.split(":")[0])
def test_rooms_export_what_was_promised(line):
    name, names = line.split(":")
    assert set(names.split()) <= set(house.room(name).exports)
