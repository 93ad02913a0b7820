"""Whole training steps with certified attention against fused softmax, and how they grow with N."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from gptheory.networks import DiT
from gptheory.studies import growth_exponent
from gptheory.training import matching_loss

from .attention import Bounded
from .compare import Comparison, Row, timed

SIZES = {"hidden": 64, "heads": 16, "depth": 4}  # heads of 4, 70 monomials of degree 4
CERTIFIED = {"attention": "certified", "radius": 2.0, "degree": 4}
SOFTMAX = {"attention": "normalised", "radius": 2.0}  # torch's, of the same queries and keys
LENGTHS = tuple(2**e for e in range(12, 16))
MEGABYTES = """
from benchmarks.certified import CERTIFIED, SOFTMAX, stepper
from benchmarks.memory import peak_resident_bytes
before = peak_resident_bytes()
stepper({length}, **{options})()
print((peak_resident_bytes() - before) / 1e6)
"""


def rows() -> list[Row]:
    """Ratios at two lengths, the exponent over four, memory at the longest, a window beside it."""
    return [
        against_softmax(2**13, 6.0, rounds=3),
        against_softmax(2**14, 15.0, rounds=0),
        Bounded("exponent of a step, certified, N=2^12..2^15", "2 for softmax", exponent, 1.15),
        Comparison(
            task="step N=2^13, certified g=4 R=2",
            peer="a window of 64 frames either side",
            ours=stepper(2**13, **CERTIFIED),
            theirs=stepper(2**13, attention="window", window=64),
            agree=lambda ours, theirs: None,  # other networks
            bar=None,
        ),
        Bounded(
            "memory of a step, certified, N=2^15", "one map of 16 heads: 69 GB",
            lambda: megabytes(2**15), 1000, unit=" MB",
        ),
    ]  # fmt: skip


def against_softmax(seq_len: int, bar: float, rounds: int) -> Row:
    """Loss, gradient and update of a batch of 1."""
    return Comparison(
        task=f"step N={seq_len}, batch 1, f32, certified g=4 R=2",
        peer="torch SDPA of the same q, k",
        ours=stepper(seq_len, **CERTIFIED),
        theirs=stepper(seq_len, **SOFTMAX),
        agree=agree,
        bar=bar,
        rounds=rounds,
    )


def stepper(seq_len: int, **options: object) -> Callable[[], Tensor]:
    """A call makes one update, too small to matter; it returns its gradient."""
    model = shaken(DiT(1, seq_len, **SIZES, **options, generator=torch.Generator().manual_seed(0)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    x = torch.randn(1, seq_len, 1, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.3], dtype=torch.float64)

    def step() -> Tensor:
        optimiser.zero_grad()
        matching_loss(model, x, t, torch.Generator().manual_seed(2)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    return step


def shaken(model: nn.Module) -> nn.Module:
    """All weights random, zero ones included, so that gradients compared depend on all."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def agree(ours: Tensor, theirs: Tensor) -> None:
    """Gradients alike up to a few times the polynomial's error of 1.5 %, through four layers."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error < 0.06, f"gradients differ by {error:.1e}"


def exponent() -> float:
    """Slope of log CPU time against log N, medians of five rounds."""
    calls = [stepper(n, **CERTIFIED) for n in LENGTHS]
    for call in calls:  # warms up
        call()
    times = [[timed(call)[0] for call in calls] for _ in range(5)]
    return growth_exponent(LENGTHS, [median(each) for each in zip(*times, strict=True)])


def megabytes(seq_len: int) -> float:
    """Of a process that makes one step, above what it had before."""
    code = MEGABYTES.format(length=seq_len, options="CERTIFIED")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)
