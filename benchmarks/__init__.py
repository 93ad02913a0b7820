"""Side-by-side timings of the package and of what a reader would have used instead.

    python -m benchmarks            # every row
    python -m benchmarks sampling   # the rows of rooms or tasks that contain a word

One thread, CPU time of the process, the two sides in turn, medians. Every pair is first checked to
compute the same thing. Ratios repeat within 20 % on a quiet machine; no test depends on them.

To add a row, write a `Comparison` (ours against a named peer) or a `Limit` (milliseconds a unit)
into the `rows()` of the file of its room.
"""

import os

for _library in ("OMP", "MKL", "OPENBLAS"):  # read once, when numpy or torch is first imported
    os.environ[f"{_library}_NUM_THREADS"] = "1"
