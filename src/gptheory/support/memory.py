"""How much memory there is, asked before it is used up."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def require_memory(what: str, size: int, device: torch.device, remedy: str) -> None:
    """Raise unless so many bytes are free on a device; without an answer there is no error.

    Raises:
        ValueError: says how much there is, and what to do.
    """
    free = free_memory(device)
    if free is not None and size > free:
        raise ValueError(
            f"{what} take {size / 1e9:.3g} GB, {device} has {free / 1e9:.3g} GB left: {remedy}"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had there; None where nobody tells (all of the machine's on a Mac)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    told = Path("/proc/meminfo")
    if told.exists():
        line = next((x for x in told.read_text().splitlines() if x.startswith("MemAvail")), "")
        return 1024 * int(line.split()[1]) if line else None
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
