"""The page on other libraries' samplers says what was measured, and nothing that was not."""

from __future__ import annotations

import copy
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import peers_page
import pytest
import torch

from gptheory.data import GaussianProcess, PowerExponential
from gptheory.diffusion import from_epsilon, mode_variances, step_grid, stop_for

RESULT = peers_page.read_result()
TEMPLATE = peers_page.TEMPLATE.read_text("utf-8")
RUNS = RESULT.stored["runs"]
F64 = torch.float64


# ---- the page and the measurement agree ---------------------------------------------------------


@pytest.mark.parametrize("path", peers_page.files(), ids=lambda path: path.name)
def test_page_and_picture_are_up_to_date(path):
    found = path.read_text("utf-8")
    assert found == peers_page.files()[path], "run `python tools/peers_page.py`"


def test_every_number_of_the_sentences_is_measured():
    """What stands in the template are settings, line numbers and formulas; the rest are holes."""
    names = set(peers_page.HOLE.findall(TEMPLATE))
    known = set(peers_page.facts(RESULT)) | {f"table-{name}" for name in peers_page.TABLES}
    assert names == known
    assert "<<" not in peers_page.render(RESULT, TEMPLATE)
    # a ratio or a deviation that is typed: two decimals, or a number of per cent
    prose = re.sub(r"```.*?```|\$[^$]*\$|`[^`]*`|^\|.*$", "", TEMPLATE, flags=re.DOTALL | re.M)
    typed = set(re.findall(r"\d+(?:\.\d+)? ?%|\b0?\.\d{2}\b", prose))
    assert typed == set()


def test_a_measurement_that_changes_changes_the_page():
    stored = copy.deepcopy(RESULT.stored)
    for row in stored["runs"]:
        if (row["sampler"], row["setting"], row["asked"]) == ("UniPC", "as it comes", 20):
            row["smooth"][0] = 0.4321
    page = peers_page.render(peers_page.Result(stored), TEMPLATE)
    assert page.count("0.43") == 2 + peers_page.render(RESULT, TEMPLATE).count(
        "0.43"
    )  # and a table
    assert peers_page.picture(peers_page.Result(stored)) != peers_page.picture(RESULT)


def test_check_fails_on_a_stale_page(tmp_path, monkeypatch, capsys):
    page = peers_page.ROOT / "book/samplers-elsewhere.md"
    monkeypatch.setattr(peers_page, "files", lambda: {page: "new"})
    monkeypatch.setattr("sys.argv", ["peers_page.py", "--check"])
    assert peers_page.main() == 1
    assert "samplers-elsewhere.md: stale" in capsys.readouterr().out
    monkeypatch.setattr(peers_page, "files", lambda: {tmp_path / "a": "new"})
    monkeypatch.setattr("sys.argv", ["peers_page.py"])
    assert peers_page.main() == 0 and (tmp_path / "a").read_text() == "new"


def test_picture_is_well_formed_and_says_what_it_shows():
    space = "{http://www.w3.org/2000/svg}"
    (tree,) = ElementTree.fromstring(peers_page.picture(RESULT)).iter(f"{space}svg")
    panels = tree.findall(f"{space}g")
    names = [panel.find(f"{space}text[@class='name']").text for panel in panels]
    assert names == [*RESULT.names, "this package"]
    assert all(panel.findall(f"{space}path[@class='best']") for panel in panels)
    low, high = (f"{peers_page.place(1, edge)[1]:.1f}" for edge in peers_page.RANGE)
    heights = re.findall(r'class="(?:plain|many|best)" d="M([^"]*)"', peers_page.picture(RESULT))
    ups = [float(point.split()[1]) for line in heights for point in line.split(" L")
           if not point.endswith("h30")]  # fmt: skip
    assert float(high) <= min(ups) and max(ups) <= float(low)
    assert "At 0.011 they make: DDPM" in tree.get("aria-label")


def test_numbers_are_written_as_a_reader_needs_them():
    assert [peers_page.ratio(x) for x in (None, 0.0309, 1.0, 31.4)] == ["NaN", "0.03", "1.00", "31"]
    assert [peers_page.percent(x) for x in (math.nan, 0.0317, 0.968, 4.69)] == [
        "NaN", "3.2\u00a0%", "97\u00a0%", "469\u00a0%"
    ]  # fmt: skip
    assert peers_page.options({"a": True, "b": "c"}) == "`a=True`, `b='c'`"
    assert peers_page.options({}) == "none"


# ---- the measurement itself ---------------------------------------------------------------------


def test_measurement_says_where_it_comes_from_and_not_whose_machine_it_was():
    made = RESULT.stored["provenance"]
    text = peers_page.RESULT.read_text("utf-8")
    pins = (peers_page.ROOT / "tools/peers/requirements.txt").read_text("utf-8")
    for package in ("torch", "numpy", "scipy", "diffusers", "torchdiffeq"):
        assert f"{package}=={made[package].partition('+')[0]}" in pins
    assert re.fullmatch(r"\w+ \w+, one thread", made["machine"])
    assert re.fullmatch(r"[0-9a-f]{7,}", made["commit"]) and len(text) < 300_000
    assert not re.search(r"/home|/root|/tmp|://", text)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_laws_are_those_that_the_page_names():
    laws = RESULT.stored["laws"]
    assert laws["white"] == [1.0]
    for name, exponent in (("exponential", 1.0), ("smooth", 1.5)):
        law = GaussianProcess(PowerExponential(8.0, exponent), torch.eye(1), seq_len=32)
        exact = law.temporal_spectrum[0]
        # four significant digits are stored
        assert (torch.tensor(laws[name], dtype=F64) / exact - 1).abs().max() < 5.1e-4


@pytest.mark.parametrize("row", [r for r in RUNS if "error" not in r], ids=lambda r: r["sampler"])
def test_runs_have_a_ratio_for_every_mode(row):
    for law, values in RESULT.stored["laws"].items():
        if law == "sizes" and row["asked"] not in (0, 20, 100):  # only what is drawn
            continue
        assert len(row[law]) == len(values)
        assert all(value is None or value >= 0 for value in row[law])


@pytest.mark.parametrize("calls", [20, 50])
def test_our_rows_are_what_this_package_does_today(calls):
    """Both, from the package alone: the exact score, and the network at whole timesteps."""
    laws = {k: torch.tensor(v, dtype=F64) for k, v in RESULT.stored["laws"].items()}
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    exact = RESULT.run("gptheory", "exact score", calls)
    for law in peers_page.LAWS:
        grid = step_grid(calls - 1, stop_for(laws[law][0]))
        made = mode_variances(laws[law], grid, final_denoise=True) / laws[law]
        # of four digits, and of a grid that ends at a rounded variance
        assert (made - torch.tensor(exact[law], dtype=F64)).abs().max() < 2e-3
    score = from_epsilon(lambda x, _k: x, kept)
    whole = RESULT.run("gptheory", "whole timesteps", calls)
    assert whole["last"] == pytest.approx(score.t_range[0], rel=1e-6)


def test_first_order_without_clip_is_our_first_order_on_its_timesteps():
    """DDIM as diffusers has it is `ddim` of this package at the steps that it goes through."""
    found = RESULT.run("DDIM", "without clip", 20)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    steps = from_epsilon(lambda x, _k: x, kept).schedule.steps
    grid = steps[torch.arange(950, -1, -50)].tolist()
    assert (found["calls"], found["first"], found["last"]) == (20, 950, 0)
    values = torch.tensor(RESULT.stored["laws"]["smooth"], dtype=F64)
    # at timestep 0 it is asked once more, and returns its guess of the data: ours ends so, too
    made = mode_variances(values, grid, solver="ddim", final_denoise=True) / values
    expected = torch.tensor(found["smooth"], dtype=F64)
    assert (made / expected - 1).abs().max() < 2e-3


def test_claims_of_the_sentences_hold():
    """The words between the numbers: order does not help, one option does, the floor, the clip."""
    run, worst = RESULT.run, peers_page.worst
    two, three = (run(f"DPM-Solver++ {order}", "as it comes", 20) for order in ("2M", "3M"))
    assert abs(two["smooth"][0] - three["smooth"][0]) < 0.02 and worst(two) > 0.5
    assert run("DPM-Solver++ 3M", "best", 20)["options"] == {
        "solver_order": 3, "use_lu_lambdas": True
    }  # fmt: skip
    assert run("DPM-Solver++ 2M", "best", 20)["options"] == {"use_lu_lambdas": True}
    for name in ("DDPM", "DDIM", "Euler"):
        assert worst(run(name, "best", 50)) > 0.05
    for name in ("UniPC", "DEIS"):
        assert run(name, "best", 20)["options"]["use_exponential_sigmas"]
        assert run(name, "best", 20)["options"]["solver_order"] == 3
        assert worst(run(name, "best", 20)) < 0.01
    ours = run("gptheory", "exact score", 10)
    assert all(worst(run(n, "best", 10)) < worst(ours) for n in ("DEIS", "DPM-Solver++ 2M"))
    smooth = torch.tensor(RESULT.stored["laws"]["smooth"], dtype=F64)
    grid = step_grid(9, stop_for(smooth[0]))
    second = mode_variances(smooth, grid, solver="dpmpp-2m", final_denoise=True) / smooth
    assert (second - 1).abs().max() < worst(ours) / 2  # what to take with ten calls
    for row in RESULT.adaptive("t")[1:] + RESULT.adaptive("log-snr")[1:]:
        assert worst(row) < 0.0101
    for name, steps in (("DDPM", 1000), ("DDIM", 50)):
        assert run(name, "as it comes", steps)["white"][0] < 0.55
    assert run("PNDM", "as it comes", 20)["calls"] == 29
    before, last = RESULT.stored["terminal"][1]["alphas_cumprod"][-2:]
    assert last > before and RESULT.stored["terminal"][0]["alphas_cumprod"][-1] == 0
    assert RESULT.stored["overshot"]["t"] < 0
    assert 0 < RESULT.stored["overshot"]["log-snr"] < RESULT.stored["overshot"]["end"]
