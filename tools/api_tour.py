"""A tour of the whole public API: every documented function and method, in situations users meet.

Each stop (tools/tour) takes a device and a dtype and returns named numbers, the same on every
device. tests/house/test_devices_tour.py takes the tour on the CPU and measures what was called;
tests/house/test_pretend_device.py and tools/check_gpu.py compare another device with the CPU.

    python tools/api_tour.py --device cuda --dtype float32
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, ModuleType

import matplotlib

matplotlib.use("agg")

import torch
from torch import Tensor
from tour import attention, contexts, laws, missing, networks, scores, studies  # noqa: F401
from tour.stop import STOPS, Stop

# Largest relative difference of two computations of one number: three hundred roundings, all in one
# direction. Nothing on the tour sums more products, or divides by less than 1/20.
FLOAT32, FLOAT64 = (300 * torch.finfo(dtype).eps / 2 for dtype in (torch.float32, torch.float64))
PAGE = Path(__file__).resolve().parents[1] / "book/api.md"


def stops() -> list[Stop]:
    """All stops, in order."""
    return list(STOPS)


# ---- what there is ------------------------------------------------------------------------------


def documented() -> dict[str, CodeType]:
    """Every public function, method and property that the page book/api.md shows, by its name.

    A class is called when it is made; one that only names an error or a warning has no code.
    """
    found: dict[str, CodeType] = {}
    page = PAGE.read_text()
    for name, options in re.findall(r"automodule:: (\S+)\n((?:   :.*\n)*)", page):
        module = importlib.import_module(name)
        chosen = re.search(r":members: (.+)", options)
        names = chosen[1].split(", ") if chosen else _public(module)
        for each in names:
            found |= _codes(f"{name}.{each}", getattr(module, each))
    return found


def _public(module: ModuleType) -> list[str]:
    public = {name: found for name, found in vars(module).items() if not name.startswith("_")}
    own = {k: x for k, x in public.items() if getattr(x, "__module__", "") == module.__name__}
    return [name for name, found in own.items() if callable(found)]


def _codes(name: str, found: object) -> dict[str, CodeType]:
    if not inspect.isclass(found):
        code = _code(found)
        return {name: code} if code else {}
    if getattr(found, "_is_protocol", False):  # only says what others have
        return {}
    members = {k: _code(x) for k, x in vars(found).items() if _is_public(k)}
    return {f"{name}.{k}": code for k, code in members.items() if code}


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__", "__iter__", "__getitem__")


def _code(found: object) -> CodeType | None:
    """The code of a function, method or property, beneath what decorates it; None for others."""
    for inner in ("__func__", "fget", "func"):
        found = getattr(found, inner, None) or found
    found = inspect.unwrap(found) if callable(found) else found
    abstract = getattr(found, "__isabstractmethod__", False)
    return None if abstract else getattr(found, "__code__", None)


# ---- what is called -----------------------------------------------------------------------------


@contextmanager
def traced() -> Iterator[dict[int, CodeType]]:
    """Collects the code of every Python function that is entered inside, in this thread, by id.

    Generated functions of two classes may be equal, and still two.
    """
    seen: dict[int, CodeType] = {}

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        seen[id(frame.f_code)] = frame.f_code  # nothing is returned: its lines go untraced

    before = sys.gettrace()
    sys.settrace(note)
    try:
        yield seen
    finally:
        sys.settrace(before)


def uncalled(seen: dict[int, CodeType]) -> list[str]:
    """Documented names whose code was not seen."""
    return [name for name, code in documented().items() if id(code) not in seen]


def compared(stop: Stop, dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether two devices, or two dtypes, must find the same numbers at a stop."""
    return stop.compare and (dtype == other or not stop.drawn)


def difference(found: Tensor | float, truth: Tensor | float) -> float:
    """Norm of the difference over the norm of the truth, or over one if that is smaller."""
    found, truth = (torch.as_tensor(x).detach().cpu().double() for x in (found, truth))
    assert found.shape == truth.shape, f"shapes {tuple(found.shape)} and {tuple(truth.shape)}"
    return ((found - truth).norm() / truth.norm().clamp(min=1.0)).item()


def main() -> None:
    """Take the tour and say how long each stop took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    given = parser.parse_args()
    for each in stops():
        start = time.perf_counter()
        found = each.visit(torch.device(given.device), getattr(torch, given.dtype))
        print(f"{time.perf_counter() - start:6.2f} s  {each.name} ({len(found)} results)")


if __name__ == "__main__":
    main()
