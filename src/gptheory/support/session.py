"""What a notebook runs on: its scale and its device, decided in one place.

Two environment variables decide, so that a notebook is the same file everywhere:

* ``GPTHEORY_SCALE``: ``quick`` (the default) reads full-size results from the package, ``paper``
  computes them again on this machine;
* ``GPTHEORY_DEVICE``: a device as torch names it; by default a GPU where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from .validation import require_one_of

SCALES = ("quick", "paper")


def scale() -> str:
    """The scale of this session, ``"quick"`` or ``"paper"``.

    Raises:
        ValueError: if ``GPTHEORY_SCALE`` is anything else.
    """
    name = os.environ.get("GPTHEORY_SCALE", "quick")
    require_one_of("GPTHEORY_SCALE", name, SCALES)
    return name


def choose_device(name: str = "auto") -> torch.device:
    """A device that works.

    Args:
        name: as torch names it. ``"auto"`` is ``GPTHEORY_DEVICE``, else a GPU where there is one.

    Raises:
        ValueError: if the device cannot be used here.
    """
    if name == "auto":
        name = os.environ.get("GPTHEORY_DEVICE", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {error}") from None


def opening(seconds: float, full_size: Sequence[str] = (), on: str = "cpu") -> None:
    """Say at which scale a chapter runs, on what and for how long.

    Args:
        seconds: what its live computations take on two CPU cores.
        on: what they run on, see :func:`choose_device`: the CPU for a chapter that uses nothing
            else, ``"auto"`` for one that asks :func:`choose_device` where to compute.
        full_size: the experiments that it reads, or runs at the scale ``paper``; names that
            ``python -m gptheory reproduce --list`` explains.

    Raises:
        ValueError: see :func:`scale` and :func:`choose_device`.
    """
    size, names = scale(), ", ".join(full_size)
    words = f"{size} scale on {choose_device(on).type}: about {seconds:g} s"
    if full_size and size == "paper":
        words += f", and first {names} at full size: minutes on a GPU, up to hours on a CPU; "
        words += "what is interrupted goes on where it was"
    elif full_size:
        words += f"; {names} at full size from the package"
    print(words)
