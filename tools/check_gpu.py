"""On a machine with a GPU, in ten minutes: is it right, how fast is it, and Figure 1.

    python tools/check_gpu.py --out FOLDER [--device cuda] [--stages correctness timings figure]

Nothing has to be installed but torch, numpy, scipy, pandas, matplotlib, seaborn, safetensors, tqdm
and joblib; the package comes from src/. Every part prints a line and is written to
FOLDER/check.json as it ends; a second call adds to that file, and goes on with Figure 1 where the
first one stopped. What is not right ends the run with status 1: a timing of it would be worth
nothing. ``--rehearse`` runs everything tiny; with ``--device gpu``, on the pretend device of the
tests (tests/pretend_device.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools"), str(ROOT)]

import torch  # noqa: E402

STAGES = ("correctness", "timings", "figure")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; returns the exit status."""
    given = parsed(arguments)
    if given.device == "gpu":
        sys.path.insert(0, str(ROOT / "tests"))
        import pretend_device

        pretend_device.enter()  # before the package is imported
        torch.set_num_threads(1)  # it computes on the CPU, on which others compute too
    from gpu.part import Session

    given.out.mkdir(parents=True, exist_ok=True)
    session = Session(torch.empty(0, device=given.device).device, given.rehearse, given.out, ROOT)
    record = Record(given.out / "check.json", surroundings(session), vars(given))
    ends = time.monotonic() + given.limit
    right = True
    for stage in given.stages:
        for part in parts(stage):
            status = record.run(stage, part, session, ends - time.monotonic())
            right &= stage != "correctness" or status in ("passed", "skipped")
        if not right and not given.go_on:
            print("not right: nothing else is run (--go-on runs it)")
            return 1
    return 0 if right else 1


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", help="cuda (default), cpu, or gpu: see above")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="which")
    parser.add_argument("--limit", type=float, default=600, help="seconds in all (default 600)")
    parser.add_argument("--rehearse", action="store_true", help="run everything tiny")
    parser.add_argument("--go-on", action="store_true", help="also after what is not right")
    return parser.parse_args(arguments)


def parts(stage: str) -> tuple[Any, ...]:
    """The parts of a stage; they import the package."""
    if stage == "correctness":
        from gpu.correctness import PARTS
    elif stage == "timings":
        from gpu.timings import PARTS
    else:
        from gpu.figure import PARTS
    return PARTS


def surroundings(session: Any) -> dict[str, Any]:
    """What the numbers depend on, beside the settings."""
    from gptheory.support.files import provenance

    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **provenance(session.device),
        "platform": platform.platform(),
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "HEAD"),
    }
    if session.cuda:
        record["driver"] = _said(
            "nvidia-smi", "--query-gpu=name,driver_version,power.limit,memory.total",
            "--format=csv,noheader",
        )  # fmt: skip
        record["cuda"] = torch.version.cuda
    print(", ".join(f"{key} {value}" for key, value in record.items()), flush=True)
    return record


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


class Record:
    """The file that keeps what every part found.

    Args:
        path: of the file; parts that it has stay, until they are run again.
        provenance, settings: of this call.
    """

    def __init__(self, path: Path, provenance: dict, settings: dict) -> None:
        self.path, self.provenance = path, provenance
        self.settings = {k: str(x) if isinstance(x, Path) else x for k, x in settings.items()}
        self.parts = json.loads(path.read_text())["parts"] if path.exists() else {}

    def run(self, stage: str, part: Any, session: Any, left: float) -> str:
        """Run a part, print its line, write it; returns its status."""
        start, found = time.monotonic(), {}
        status, error = self._outcome(part, session, left, found)
        seconds = round(time.monotonic() - start, 2)
        self.parts[f"{stage}: {part.name}"] = {
            "status": status, "error": error, "seconds": seconds, "numbers": found,
            "settings": self.settings, "provenance": self.provenance,
        }  # fmt: skip
        self._write()
        words = error or shown(found)
        print(f"{stage:11} {part.name:32} {status:11} {seconds:6.1f} s  {words}", flush=True)
        return status

    def _outcome(self, part: Any, session: Any, left: float, found: dict) -> tuple[str, str]:
        from gpu.part import OutOfTime, said, within

        if part.needs and part.needs != session.device.type:
            return "skipped", f"needs {part.needs}"
        if left <= 0:
            return "out of time", "of the whole run; see --stages and --limit"
        try:
            with within(min(left, part.limit)):
                part.run(session, found)
        except OutOfTime as error:
            return "out of time", str(error)
        except Exception as error:
            return "failed", said(error)
        return ("skipped", found["skipped"]) if "skipped" in found else ("passed", "")

    def _write(self) -> None:
        from gptheory.support.files import to_json, write_atomically

        text = to_json({"parts": self.parts}, indent=1)
        write_atomically(self.path, f"{text}\n".encode())


def shown(numbers: dict[str, Any]) -> str:
    """Numbers in one line."""
    found = ", ".join(f"{k}: {_short(x)}" for k, x in numbers.items() if x != {})
    return found if len(found) < 300 else f"{found[:300]} ..."


def _short(x: Any) -> str:
    if isinstance(x, dict):
        return "(" + shown(x) + ")"
    return f"{x:.3g}" if isinstance(x, float) else str(x)


if __name__ == "__main__":
    sys.exit(main())
