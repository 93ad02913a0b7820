"""A training run that kills itself, for the tests of resuming."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from gptheory.data import GaussianProcess, PowerExponential
from gptheory.networks import DiT
from gptheory.training import TrainConfig, fit
from gptheory.training.config import TrainResult

CONFIG = TrainConfig(
    steps=12, batch_size=4, log_every=5, evaluate_every=4, evaluate_at=(0.1,), evaluate_n=8
)
CHECKPOINT_EVERY = 4
LAW = GaussianProcess(PowerExponential(2.0), torch.eye(2), seq_len=4)
KILL_POINTS = {  # -> steps that the checkpoint keeps
    "before the first checkpoint": 0,
    "between two checkpoints": 4,
    "half of a file written": 4,
    "before the file takes its place": 4,
    "after the file took its place": 8,
}


def train(path: Path | None) -> tuple[torch.nn.Module, TrainResult]:
    """Twelve steps, three checkpoints."""
    model = DiT(2, 4, 8, 1, 1, generator=torch.Generator().manual_seed(1))
    result = fit(model, LAW, CONFIG, checkpoint=path, checkpoint_every=CHECKPOINT_EVERY)
    return model, result


def run_and_die(kill_point: str, path: Path, threads: int) -> None:
    """What the child process does: train, and be killed at that point."""
    torch.set_num_threads(threads)
    if kill_point == "before the first checkpoint":
        torch.optim.AdamW.step = fatal_at_call(2, torch.optim.AdamW.step)
    elif kill_point == "between two checkpoints":
        torch.optim.AdamW.step = fatal_at_call(7, torch.optim.AdamW.step)
    elif kill_point == "half of a file written":
        os.fdopen = fatal_at_call(2, os.fdopen, instead=HalfWriter)
    elif kill_point == "before the file takes its place":
        os.replace = fatal_at_call(2, os.replace)
    elif kill_point == "after the file took its place":
        os.replace = fatal_at_call(2, os.replace, then=die)
    train(path)


def die(*_args: object, **_kwargs: object) -> None:
    """End this process as ``kill -9`` does: nothing is flushed, closed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def fatal_at_call(
    number: int, function: Callable, instead: Callable | None = None, then: Callable | None = None
) -> Callable:
    """``function``, but its call of this number dies: at once, or in ``instead`` or ``then``."""
    calls = count(1)

    def mortal(*args: object, **kwargs: object) -> object:
        if next(calls) != number:
            return function(*args, **kwargs)
        if then is not None:
            function(*args, **kwargs)
            then()
        return (instead or die)(*args, **kwargs)

    return mortal


class HalfWriter:
    """A file that dies when half of the content is on the disk."""

    def __init__(self, handle: int, _mode: str) -> None:
        self.handle = handle

    def __enter__(self) -> HalfWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        raise AssertionError("nothing was written")

    def write(self, content: bytes) -> None:
        """Write half of it, really."""
        os.write(self.handle, content[: len(content) // 2])
        os.fsync(self.handle)
        die()
