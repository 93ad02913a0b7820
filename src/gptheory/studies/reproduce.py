"""The command line: ``python -m gptheory reproduce fig1 --scale quick --out results``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from ..support import session
from .comparison import COMPARISON, comparison
from .decay import DECAY
from .fig1 import FIGURE1, figure1
from .fig4a import COMPLEXITY
from .fig5 import PROBING, probing
from .finetune import FINE_TUNING, fine_tuning
from .growth import GROWTH, attention_growth
from .latent import LATENT
from .locality import LOCALITY
from .long import LONG, long_sequences
from .results import Result, load_result, move_result, stored_results
from .run import Run
from .samplers import SAMPLERS, samplers
from .swap import SWAP, swap
from .sweeps import sweep_study
from .variation import VARIATION
from .video import VIDEO, video_study


@dataclass(frozen=True)
class Experiment:
    """Something that can be reproduced.

    Args:
        summary: one line.
        study: called with settings and a :class:`.Run`; stores the run's result and
            returns the path of its record.
        settings: by scale.
    """

    summary: str
    study: Callable[[Any, Run], Path]
    settings: Mapping[str, Any]


EXPERIMENTS = {
    "fig1": Experiment("DiT and UNet beside the truth (chapter 5, Figure 1)", figure1, FIGURE1),
    "samplers": Experiment(
        "the networks of Figure 1 sampled in several ways, mode by mode (chapter 5)",
        samplers, SAMPLERS,
    ),
    "comparison": Experiment(
        "networks, laws of t and kinds of attention on one budget (chapter 5)",
        comparison, COMPARISON,
    ),
    "fig4a": Experiment(
        "error against the number of sequences, a sweep (chapter 6, Figure 4a)",
        sweep_study, COMPLEXITY,
    ),
    "decay": Experiment(
        "memory and conditioning apart, a sweep (chapter 6, Figure 4a; paper scale never run)",
        sweep_study, DECAY,
    ),
    "variation": Experiment(
        "total variation of trained networks, a sweep (chapter 6; paper scale never run)",
        sweep_study, VARIATION,
    ),
    "finetune": Experiment(
        "training on from the constructed transformer (chapter 5)", fine_tuning, FINE_TUNING
    ),
    "attention": Experiment(
        "time and memory of polynomial attention against the length (chapter 10)",
        attention_growth, GROWTH,
    ),
    "latent": Experiment(
        "subspace data: error against d_0, D and n, a sweep (chapter 9)", sweep_study, LATENT
    ),
    "locality": Experiment(
        "radius, length and memory: what bounded logits cost, a sweep (chapter 11)",
        sweep_study, LOCALITY,
    ),
    "long": Experiment(
        "certified attention and a window trained on 4096 frames (chapter 11)",
        long_sequences, LONG,
    ),
    "swap": Experiment("polynomials for the softmax of the trained DiT (chapter 10)", swap, SWAP),
    "fig5": Experiment(
        "attention maps beside their nulls (chapter 7, Figures 4b and 5)", probing, PROBING
    ),
    "video": Experiment(
        "balls and digits that move, and Gaussian controls (chapter 8)", video_study, VIDEO
    ),
}  # fmt: skip


def reproduce(
    name: str,
    scale: str = "quick",
    device: str = "auto",
    out: str | Path = "results",
    show_progress: bool | None = None,
) -> Result:
    """Run an experiment, or finish one that was interrupted.

    Args:
        name: key of ``EXPERIMENTS``.
        scale: ``"quick"`` or ``"paper"``.
        device: see :func:`.choose_device`.
        out: folder of the result; checkpoints lie in ``out/work``.
        show_progress: see :func:`.progress`.

    Returns:
        The result, called after experiment and scale (``fig1`` at paper scale is ``fig1-paper``).

    Raises:
        ValueError: for an unknown name, scale or device.
    """
    settings = _settings(name, scale)
    chosen = session.choose_device(device)
    run = Run(f"{name}-{scale}", chosen, Path(out) / "work", show_progress)
    record = EXPERIMENTS[name].study(settings, run)
    return load_result(move_result(record, out).stem, out)


def full_size(name: str, out: str | Path = "gptheory-results") -> Result:
    """The result of an experiment at the scale ``paper``: from the package, or made here.

    Args:
        name: key of ``EXPERIMENTS``.
        out: folder of the result, where the session's scale is ``paper``: then the experiment is
            run, or finished, see :func:`reproduce`.

    Returns:
        The result.

    Raises:
        ValueError: for an unknown name, one without the scale ``paper``, or where
            :func:`.scale` raises.
    """
    _settings(name, "paper")
    if session.scale() == "paper":
        return reproduce(name, "paper", out=out)
    return load_result(f"{name}-paper")


def _settings(name: str, scale: str) -> Any:
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    known = EXPERIMENTS[name].settings
    if scale not in known:
        raise ValueError(f"{name} has the scales {', '.join(known)}, got {scale!r}")
    return known[scale]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gptheory", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "reproduce", help="run an experiment, or finish one that was interrupted"
    )
    command.add_argument("name", nargs="?", help="see --list")
    command.add_argument("--list", action="store_true", help="list experiments and stored results")
    command.add_argument("--scale", default="quick", help="quick (default) or paper")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    command.add_argument("--out", default="results", help="folder of the result")
    command.add_argument("--jobs", type=int, default=1, help="processes of a sweep (default 1)")
    given = parser.parse_args(arguments)
    if given.list or given.name is None:
        print(_listing())
        return 0
    try:
        with joblib.parallel_config(n_jobs=given.jobs):
            result = reproduce(given.name, given.scale, given.device, given.out)
    except (ValueError, FloatingPointError, ModuleNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result.name}: {result.record['seconds']} s, stored in {given.out}")
    for name, values in result.numbers.items():
        print(f"  {name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in values.items()))
    return 0


def _listing() -> str:
    lines = ["experiments:"]
    for name, experiment in EXPERIMENTS.items():
        lines.append(f"  {name:12} {experiment.summary}; scales: {', '.join(experiment.settings)}")
    lines.append("results inside the package:")
    for name in stored_results():
        record = load_result(name).record
        lines.append(f"  {name:20} {record['seconds']} s on {record['provenance']['device']}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
