"""How much memory a process has had."""

from __future__ import annotations

from pathlib import Path


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
