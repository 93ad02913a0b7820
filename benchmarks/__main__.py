"""Print the table of all comparisons."""

from __future__ import annotations

import sys
import time

import numpy
import scipy
import torch

from . import attention, certified, conditional, covariance, sampling, score, training, unroll
from .compare import HEADER, Row

ROOMS = {
    "sampling": sampling,
    "score": score,
    "unroll": unroll,
    "covariance": covariance,
    "training": training,
    "attention": attention,
    "certified": certified,
    "conditional": conditional,
}


def chosen(words: list[str]) -> list[Row]:
    """The rows whose room or task contains one of the words; all of them without words."""
    labelled = [
        (f"{name} {row.task} {row.peer}", row) for name in ROOMS for row in ROOMS[name].rows()
    ]
    return [row for label, row in labelled if not words or any(word in label for word in words)]


def main() -> None:
    """Measure and print, a line at a time."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    print(
        f"torch {torch.__version__}, numpy {numpy.__version__}, scipy {scipy.__version__};", end=""
    )
    print(" one thread, CPU time of the process, medians of interleaved rounds\n")
    print(HEADER, flush=True)
    for row in chosen(sys.argv[1:]):
        print(row.measure(), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
