"""Polynomial attention and its gradient against the dense ones, and how each grows with L."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor

from gptheory.studies import growth_exponent
from gptheory.studies.growth import Growth, candidates

from .compare import COLUMNS, Comparison, Row, timed, verdict

SETTINGS = Growth()  # d = 4, g = 4, the gradient with g = 6
LENGTHS = tuple(2**e for e in range(11, 17))
DENSE_LENGTHS = (2**11, 2**12, 2**13)
MEGABYTES = """
import torch
from benchmarks.memory import peak_resident_bytes
from gptheory.attention import poly_attention
q, k, v = (2 * torch.rand(3, {length}, 4) - 1).unbind()
poly_attention(q, k, v, 4)
print(peak_resident_bytes() / 1e6)
"""


@dataclass(frozen=True)
class Bounded:
    """Something measured that is not a ratio of times: a value, beside its bar."""

    task: str
    peer: str
    value: Callable[[], float]
    bar: float
    at_most: bool = True
    unit: str = ""

    def measure(self) -> str:
        """Measure and format."""
        value = self.value()
        met = value <= self.bar if self.at_most else value >= self.bar
        return COLUMNS.format(
            task=self.task, peer=self.peer, ours=f"{value:.3g}{self.unit}", theirs="", ratio="",
            bar=f"{'<=' if self.at_most else '>='} {self.bar:g}{self.unit}", verdict=verdict(met),
        )  # fmt: skip


def rows() -> list[Row]:
    """Ratios at one length, exponents over many, memory at the longest."""
    forward, backward = candidates(SETTINGS, 2**14), candidates(SETTINGS, 2**12)
    return [
        Comparison(
            task="attention L=2^14, d=4, g=4, f32",
            peer="torch SDPA, f32",
            ours=forward["polynomial"],
            theirs=forward["torch SDPA"],
            agree=agree(1e-3),
            bar=5,
            calls=5,
        ),
        Comparison(
            task="attention L=2^12, d=4, g=4, f32",
            peer="softmax of the L x L map, f32",
            ours=backward["polynomial"],
            theirs=backward["softmax"],
            agree=agree(1e-3),
            bar=None,
            calls=5,
        ),
        Comparison(
            task="gradient L=2^12, d=4, g=6, f32",
            peer="dense gradient, f32",
            ours=backward["gradient"],
            theirs=backward["exact gradient"],
            agree=agree(1e-3),
            bar=None,
        ),
        exponent("polynomial", LENGTHS, 1.2),
        exponent("gradient", LENGTHS, 1.2),
        exponent("exact gradient", DENSE_LENGTHS, 1.8, at_most=False),
        Bounded(
            task="attention L=2^17, d=4, g=4: process, torch too",
            peer="the map alone takes 69 GB",
            value=resident,
            bar=2000,
            unit=" MB",
        ),
    ]


def exponent(method: str, lengths: tuple[int, ...], bar: float, at_most: bool = True) -> Bounded:
    """Slope of log CPU time against log L, medians of five rounds."""

    def value() -> float:
        calls = [candidates(SETTINGS, n)[method] for n in lengths]
        for call in calls:  # warms up
            call()
        rounds = [[timed(call)[0] for call in calls] for _ in range(5)]
        return growth_exponent(lengths, [median(times) for times in zip(*rounds, strict=True)])

    span = f"L=2^{lengths[0].bit_length() - 1}..2^{lengths[-1].bit_length() - 1}"
    return Bounded(f"exponent of {method}, {span}", "2 for dense attention", value, bar, at_most)


def resident() -> float:
    """Megabytes of a process that does nothing else."""
    code = MEGABYTES.format(length=2**17)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


def agree(tolerance: float) -> Callable[[Any, Any], None]:
    """The same numbers, up to the polynomial's error."""

    def check(ours: Tensor, theirs: Tensor) -> None:
        error = ((ours - theirs).norm() / theirs.norm()).item()
        assert error < tolerance, f"results differ by {error:.1e}"

    return check
