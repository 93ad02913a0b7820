"""How time and memory of attention grow with the length of the sequence: measured, and counted.

Times depend on the machine; what is allocated, and what is multiplied, does not.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .polyattention import (
    attention_gradient,
    exact_attention_gradient,
    poly_attention,
    require_attention,
)
from .precision import full_precision
from .run import Run
from .threads import one_thread

FITTED = (2**11, 2**16)  # lengths from which exponents are fitted
RADIUS = 1.0  # entries are uniform in [−1, 1] and the scale is 1/d


class MemoryMeter(TorchDispatchMode):
    """Counts, inside a ``with`` block, what torch allocates: deterministic, on every device.

    What an operation uses internally and gives back before it returns is not seen.

    Attributes:
        largest: numbers in the largest single tensor.
        peak: bytes of the tensors that were alive together, inputs not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._live = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and note the storages that it made."""
        result = func(*args, **(kwargs or {}))
        known = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _address(x) not in known:
                known.add(_address(x))
                storage = x.untyped_storage()
                self.largest = max(self.largest, storage.nbytes() // x.element_size())
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self._live -= size


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost against log size, by least squares: 1 is linear, 2 quadratic."""
    return float(np.polyfit(np.log(np.asarray(sizes)), np.log(np.asarray(costs)), 1)[0])


def peak_resident_bytes() -> int:
    """The most memory this process has had, libraries included.

    Linux tells it in /proc; elsewhere ``getrusage`` does, which counts a parent's pages too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


@full_precision()
def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention by its L × M map, the textbook way."""
    require_attention(q, k, v)
    return (scale * q @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def uniform_inputs(
    seq_len: int, dim: int, count: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Matrices (L, d) with entries uniform in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, seq_len, dim, generator=generator, dtype=torch.float64)
    return list((2 * draws - 1).to(dtype))


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
    Takes and returns what :func:`gptheory.experiments.figure1` does.
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


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
