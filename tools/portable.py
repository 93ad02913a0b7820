"""The checks that rounding could fail, computed as other processors do, in random order.

    python tools/portable.py [SETTING ...]        (`make test-portable`)

Numerical libraries choose their instructions by the processor that they find; environment variables
make them choose those of another one, so a setting is a different machine and not a looser test.
Every setting runs the tests that sit nearest to rounding, in an order of its own, and compares the
chapters that print what sits there with their committed outputs. What no setting can be is a
machine without MKL: tests/house/test_seeds.py holds what such a machine must draw. tools/emulate.sh
runs the sharpest tests as other processors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNIT = ["-p", "no:cacheprovider", "-q", "--random-order", "--random-order-bucket=module"]
NOTEBOOKS = [
    "-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "loadfile", "--nbval",
    "--nbval-current-env", "--nbval-cell-timeout=600",
    "--nbval-sanitize-with", "tools/nbval_sanitise.cfg",
]  # fmt: skip
# the tests that sit nearest to rounding: whatever failed elsewhere, and what is of its kind
SHARP = {
    "support": ("rounding",),
    "data": ("kernels", "process", "mixture"),
    "diffusion": ("exact", "methods", "unrolled"),
    "attention": ("exponential", "polynomial"),
    "construction": ("multiplication", "network"),
    "networks": ("learned",),
    "measures": ("gaussians", "scores", "path_divergence"),
    "training": ("ensemble",),
    "probing": ("maps",),
    "latent": ("subspace", "errors"),
    "studies": ("fig4a",),
    "house": ("seeds",),
}
# those in which threads share a sum or a run is repeated bit for bit
THREADED = {
    "diffusion": ("exact", "sampler"),
    "attention": ("polynomial",),
    "networks": ("learned",),
    "training": ("ensemble", "loop"),
    "house": ("seeds",),
}
CHAPTERS = ("04-constructing-the-transformer", "09-latent-diffusion-transformers")


@dataclass(frozen=True)
class Setting:
    """A machine to be.

    Args:
        name: of the setting.
        seed: of the order of the tests.
        environment: what makes the libraries take it for this one.
        tests: names of test files, by room.
        chapters: that are compared.
        workers: processes of the tests; the threads of each share the cores.
    """

    name: str
    seed: int
    environment: dict[str, str]
    tests: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SHARP)
    chapters: tuple[str, ...] = CHAPTERS
    workers: int = 2


SETTINGS = (
    # On Intel MKL_CBWR=AVX2 is the path of a Haswell, bit for bit; on AMD it is one of its own.
    Setting(
        "avx2",
        1,
        {
            "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
        },
    ),
    Setting(
        "oldest",
        2,
        {
            "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem",
            "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
        },
    ),
    Setting("two-threads", 3, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, THREADED, (), 1),
)  # fmt: skip


def run(setting: Setting) -> bool:
    """Run a setting; whether everything passed."""
    environment = {**os.environ, **setting.environment}
    pytest = [sys.executable, "-m", "pytest"]
    order, workers = f"--random-order-seed={setting.seed}", f"-n{setting.workers}"
    tests = [(room, name) for room, names in setting.tests.items() for name in names]
    files = [f"tests/{room}/test_{name}.py" for room, name in tests]
    calls = [[*pytest, *UNIT, order, workers, *files]]
    if setting.chapters:
        calls.append([*pytest, *NOTEBOOKS, *(f"book/{name}.ipynb" for name in setting.chapters)])
    passed = True
    for call in calls:
        passed &= subprocess.run(call, cwd=ROOT, env=environment).returncode == 0
    return passed


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    known = {setting.name: setting for setting in SETTINGS}
    if unknown := [name for name in arguments if name not in known]:
        print(f"settings are {', '.join(known)}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    outcomes = {}
    for name in arguments or known:
        start = time.monotonic()
        shown = " ".join(f"{k}={x}" for k, x in known[name].environment.items())
        print(f"\n--- {name}: {shown}", flush=True)
        outcomes[name] = run(known[name])
        word = "passed" if outcomes[name] else "FAILED"
        print(f"--- {name}: {word} after {time.monotonic() - start:.0f} s", flush=True)
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
