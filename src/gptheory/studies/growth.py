"""How time and memory of attention grow with the length of the sequence: measured, and counted.

Times depend on the machine; what is allocated, and what is multiplied, does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import Tensor

from ..attention.gradient import attention_gradient, exact_attention_gradient
from ..attention.polynomial import poly_attention
from ..attention.softmax import softmax_attention, uniform_inputs
from ..measures.cost import MemoryMeter
from ..support.threads import one_thread
from .run import Run
from .statistics import growth_exponent

FITTED = (2**11, 2**16)  # lengths from which exponents are fitted
RADIUS = 1.0  # entries are uniform in [−1, 1] and the scale is 1/d


@dataclass(frozen=True)
class Growth:
    """Settings of :func:`attention_growth`.

    Args:
        dim: d, also the width of the values.
        degree: g of the forward pass.
        gradient_degree: g of the gradient.
        lengths: L of the polynomial method.
        dense_limits: the largest L of what is quadratic, by method.
        rounds: timings of each, in turn; their median counts.
    """

    dim: int = 4
    degree: int = 4
    gradient_degree: int = 6
    lengths: tuple[int, ...] = tuple(2**e for e in range(8, 18))
    dense_limits: tuple[tuple[str, int], ...] = (
        ("softmax", 2**13), ("torch SDPA", 2**15), ("exact gradient", 2**13),
    )  # fmt: skip
    rounds: int = 5


GROWTH = {"quick": Growth()}


def attention_growth(settings: Growth, run: Run) -> Path:
    """Time and memory against L: polynomial attention and its gradient beside the dense ones.

    Table ``growth``: method, L, milliseconds (CPU time of one thread; elapsed time on an
    accelerator), bytes alive at the peak and numbers in the largest tensor.
    Takes and returns what :func:`.figure1` does.
    """
    with one_thread():
        rows = [
            {"method": method, "L": n, **row}
            for n in settings.lengths
            for method, row in _measured(settings, n, run.device).items()
        ]
    table = pd.DataFrame(rows)
    numbers = {
        method: {
            "time exponent": growth_exponent(own["L"], own["ms"]),
            "largest tensor exponent": growth_exponent(own["L"], own["largest tensor"]),
        }
        for method, own in table[table["L"].between(*FITTED)].groupby("method")
        if len(own) > 1
    }
    return run.save(asdict(settings), numbers, {"growth": table})


def candidates(settings: Growth, seq_len: int, device: torch.device | str = "cpu") -> dict:
    """What is compared at one length: method -> a function without arguments."""
    q, k, v, target = (x.to(device) for x in uniform_inputs(seq_len, settings.dim, 4))
    weight = torch.eye(settings.dim, dtype=v.dtype, device=device) + v[: settings.dim] / 4
    weight = weight / weight.abs().sum(dim=0).max()  # keeps the entries of A_1 X in [−1, 1]
    scale, degrees = 1 / settings.dim, (settings.degree, settings.gradient_degree)
    methods: dict[str, Callable[[], Tensor]] = {
        "polynomial": lambda: poly_attention(q, k, v, degrees[0], radius=RADIUS),
        "softmax": lambda: softmax_attention(q, k, v, scale),
        "torch SDPA": lambda: torch.nn.functional.scaled_dot_product_attention(
            q[None, None], k[None, None], v[None, None], scale=scale
        )[0, 0],
        "gradient": lambda: attention_gradient(q, k, weight, v, target, degrees[1], radius=RADIUS),
        "exact gradient": lambda: exact_attention_gradient(q, k, weight, v, target),
    }
    limits = dict(settings.dense_limits)
    return {m: call for m, call in methods.items() if seq_len <= limits.get(m, math.inf)}


def _measured(settings: Growth, seq_len: int, device: torch.device) -> dict[str, dict]:
    calls = candidates(settings, seq_len, device)
    rank = math.comb(settings.dim + settings.gradient_degree, settings.gradient_degree)
    if seq_len <= rank:
        raise ValueError(f"lengths must exceed the rank {rank}, got {seq_len}")
    rows = {}
    for method, call in calls.items():
        with MemoryMeter() as meter:
            call()
        rows[method] = {"bytes": meter.peak, "largest tensor": meter.largest}
    times = [{m: _timed(call, device) for m, call in calls.items()} for _ in range(settings.rounds)]
    for method, row in rows.items():
        row["ms"] = 1e3 * median(each[method] for each in times)
    return rows


def _timed(call: Callable[[], Tensor], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait_for(device)
    start = clock()
    call()
    _wait_for(device)
    return clock() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":  # torch.cuda; torch.accelerator, for all kinds, came with torch 2.6
        getattr(torch, device.type).synchronize()
