"""The tour of the API calls all of it, and its numbers do not depend on the dtype."""

from __future__ import annotations

import api_tour
import pytest
import torch
from tour.stop import Stop

from gptheory.data import kernels

CPU = torch.device("cpu")
STOPS = api_tour.stops()


@pytest.fixture(scope="module")
def toured():
    """What every stop finds in single precision, and the code that ran."""
    with api_tour.traced() as seen:
        found = {stop.name: stop.visit(CPU, torch.float32) for stop in STOPS}
    return found, seen


def test_every_public_function_and_method_is_called(toured):
    _found, seen = toured
    names = api_tour.documented()
    print(f"{len(names)} public functions, methods and properties, {len(STOPS)} stops")
    assert len(names) > 400
    assert api_tour.uncalled(seen) == []


def test_a_new_function_without_a_stop_is_noticed(toured, monkeypatch):
    def half(lag: float) -> float:
        return lag / 2

    half.__module__ = "gptheory.data.kernels"
    monkeypatch.setattr(kernels, "half", half, raising=False)
    monkeypatch.setattr(kernels.Matern, "half", half, raising=False)
    _found, seen = toured
    names = ["gptheory.data.kernels.Matern.half", "gptheory.data.kernels.half"]
    assert api_tour.uncalled(seen) == names


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_results_are_numbers(toured, stop: Stop):
    found, _seen = toured
    assert found[stop.name]
    for name, value in found[stop.name].items():
        assert torch.isfinite(torch.as_tensor(value)).all(), name


ALIKE = [stop for stop in STOPS if api_tour.compared(stop, torch.float32, torch.float64)]


@pytest.mark.parametrize("stop", ALIKE, ids=lambda stop: stop.name)
def test_single_precision_finds_what_double_precision_does(toured, stop: Stop):
    found, _seen = toured
    truth = stop.visit(CPU, torch.float64)
    errors = {name: api_tour.difference(x, truth[name]) for name, x in found[stop.name].items()}
    worst = max(errors, key=errors.get)
    print(f"{worst}: {errors[worst]:.1e}")
    assert errors[worst] < api_tour.FLOAT32, worst
