"""First what is right: the tour of the API beside the CPU, training that repeats itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import api_tour
import torch
from torch import Tensor, nn
from tour.networks import CONFIG, law, transformer
from tour.stop import Stop

from gptheory.diffusion import sample
from gptheory.training import fit
from gptheory.training.loop import Training
from gptheory.training.resume import save_checkpoint

from .part import Numbers, OutOfTime, Part, Session, said

F32, F64 = torch.float32, torch.float64
BARS = {F32: 1e-4, F64: 1e-12}
CHEAP = 1e-2  # of networks whose products have ten bits, and whose layers are a few
REHEARSED = ("kernel_values", "samples", "exact_score", "evaluated_networks", "every_sampler")


def tour_in(dtype: torch.dtype, truth: torch.dtype, cheap: bool = False) -> object:
    """A part: the tour in a dtype beside the CPU's in another, products cheap or not."""

    def run(session: Session, numbers: Numbers) -> None:
        with products("high" if cheap else "highest"):
            _take(session, numbers, dtype, truth, cheap)

    return run


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Inside, float32 products have this precision; ``"high"`` is TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _take(
    session: Session, numbers: Numbers, dtype: torch.dtype, truth: torch.dtype, cheap: bool
) -> None:
    stops = [s for s in api_tour.stops() if not session.rehearse or s.name in REHEARSED]
    same = dtype == truth and not cheap  # a tour that also visits what cannot be compared
    stops = [s for s in stops if same or api_tour.compared(s, dtype, truth)]
    failures: dict[str, str] = {}
    numbers |= {"stops": 0, "failures": failures}
    for stop in stops:
        try:
            _visit(stop, session, numbers, dtype, truth, cheap)
        except OutOfTime:
            raise
        except Exception as error:
            failures[stop.name] = said(error)
    assert not failures, f"{len(failures)} of {len(stops)} stops: {'; '.join(failures)}"


def _visit(
    stop: Stop, session: Session, numbers: Numbers, dtype: torch.dtype, truth: torch.dtype,
    cheap: bool,
) -> None:  # fmt: skip
    found = stop.visit(session.device, dtype)
    numbers["stops"] += 1
    if not api_tour.compared(stop, dtype, truth):
        return
    key = (stop.name, truth)
    if key not in session.truths:
        with products("highest"):
            session.truths[key] = stop.visit(torch.device("cpu"), truth)
    errors = {n: api_tour.difference(x, session.truths[key][n]) for n, x in found.items()}
    worst = max(errors, key=errors.get)
    if not errors[worst] <= numbers.get(f"worst {stop.kind}", 0.0):
        numbers[f"worst {stop.kind}"] = errors[worst]
        numbers[f"worst {stop.kind} at"] = f"{stop.name}: {worst}"
    bar = CHEAP if cheap and stop.kind == "network" else BARS[dtype]
    assert errors[worst] <= bar, f"{worst} is {errors[worst]:.1e} off"


# ---- training -----------------------------------------------------------------------------------


class Dropping(nn.Module):
    """A network that draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.dropout = transformer(), nn.Dropout(0.2)

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """The network's score, a fifth of it dropped."""
        return self.dropout(self.network(v, t))


def resumed(make: object) -> object:
    """A part: a run that is interrupted ends where one ends that is not, bit for bit."""

    def run(session: Session, numbers: Numbers) -> None:
        path = session.out / "resumed.checkpoint"
        path.unlink(missing_ok=True)
        torch.manual_seed(1)
        whole = fit(make().to(session.device), law(), CONFIG, show_progress=False)
        torch.manual_seed(1)
        begun = Training(make().to(session.device), law(), CONFIG)
        for step in begun:
            if step == CONFIG.steps // 2:
                save_checkpoint(path, begun)
                break
        torch.manual_seed(2)
        again = fit(make().to(session.device), law(), CONFIG, None, path, show_progress=False)
        path.unlink()
        numbers["weights"] = _require_equal(whole.model, again.model)

    return run


def repeated(session: Session, numbers: Numbers) -> None:
    """The same seed gives the same weights and the same sequences, twice."""
    runs = [
        fit(transformer().to(session.device), law(), CONFIG, show_progress=False).model
        for _ in range(2)
    ]
    numbers["weights"] = _require_equal(*runs)
    draws = [
        sample(runs[0], 4, 6, 2, "sde", steps=4, show_progress=False,
               generator=torch.Generator(session.device).manual_seed(1))
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*draws), "two samples of one seed differ"


def _require_equal(one: nn.Module, other: nn.Module) -> int:
    pairs = list(zip(one.state_dict().items(), other.state_dict().values(), strict=True))
    differ = [name for (name, a), b in pairs if not torch.equal(a, b)]
    assert not differ, f"{len(differ)} of {len(pairs)} weights differ, {differ[0]} among them"
    return len(pairs)


# ---- the tests ----------------------------------------------------------------------------------


def device_cases(session: Session, numbers: Numbers) -> None:
    """The device cases of the tests, in a process of their own, with no settings of theirs."""
    absent = [name for name in ("pytest", "hypothesis") if not importlib.util.find_spec(name)]
    if absent:
        numbers["skipped"] = f"needs {', '.join(absent)}"
        return
    tests = sorted(p for p in (session.root / "tests").glob("test_*.py") if _has_cases(p))
    settings = session.out / "pytest.ini"
    settings.write_text("[pytest]\nmarkers =\n    statement: of a paper\n")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider",
               "-c", str(settings), "--rootdir", str(session.root), *map(str, tests)]  # fmt: skip
    folders = [str(session.root / name) for name in ("src", "tools", "tests")]
    done = subprocess.run(
        command, cwd=session.root, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )  # fmt: skip
    settings.unlink()
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing"]
    numbers["said"] = lines[-1]
    assert done.returncode == 0, "; ".join(x for x in lines if x.startswith(("FAILED", "ERROR")))


def _has_cases(path: Path) -> bool:
    return "DEVICES" in path.read_text()


PARTS = (
    Part("tour float64", tour_in(F64, F64), 90),
    Part("tour float32", tour_in(F32, F32), 90),
    Part("tour float32 against float64", tour_in(F32, F64), 60),
    Part("tour with TF32 products", tour_in(F32, F64, cheap=True), 60),
    Part("resume, bit for bit", resumed(transformer), 20),
    Part("resume with dropout", resumed(Dropping), 20),
    Part("one seed, twice", repeated, 20),
    Part("device cases of the tests", device_cases, 120, needs="cuda"),
)
