#!/usr/bin/env bash
# Workers of Dask compute on one thread although OMP_NUM_THREADS says otherwise, also to the worker.
#
# Versions: Python 3.11, torch 2.13.0 (its x86-64 wheel, with MKL), distributed 2026.8.0.
# Expected: Dask gives its worker processes OMP_NUM_THREADS=1 unless the user has set it; then the
#   user's number is the number of torch's threads.
# Seen (2026-11-27): Dask obeys and passes OMP_NUM_THREADS=2 on, but sets MKL_NUM_THREADS=1 beside
#   it, and torch takes the number of all of its threads, not only of MKL's, from there.
#     OMP_NUM_THREADS=2                     : 2 threads; in a worker 1 (its OMP_NUM_THREADS is 2)
#     OMP_NUM_THREADS=2, MKL_NUM_THREADS=2  : 2 threads; in a worker 2
#     OMP_NUM_THREADS=2, MKL_NUM_THREADS=1  : 1 thread, without Dask
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 distributed==2026.8.0 dask==2026.8.0
cat > "$tmp/workers.py" <<'EOF'
import os
import sys

import torch
from distributed import Client, LocalCluster

NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads():
    return torch.get_num_threads(), *(os.environ.get(name) for name in NAMES)


def in_worker(folder):
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None,
            local_directory=folder,
        ) as cluster,
        Client(cluster) as client,
    ):
        return client.submit(threads, pure=False).result()


if __name__ == "__main__":
    here, there = threads(), in_worker(sys.argv[1])
    print("threads, OMP_NUM_THREADS, MKL_NUM_THREADS: here", here, "in a worker", there)
    expected = {
        ("2", None): (2, (1, "2", "1")),
        ("2", "2"): (2, (2, "2", "2")),
        ("2", "1"): (1, (1, "2", "1")),
    }
    assert (here[0], there) == expected[here[1:]], (here, there)
EOF
unset OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS
export MKL_DYNAMIC=FALSE  # otherwise MKL caps the number at that of the cores
OMP_NUM_THREADS=2 "$tmp/venv/bin/python" -I "$tmp/workers.py" "$tmp"
OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 "$tmp/venv/bin/python" -I "$tmp/workers.py" "$tmp"
OMP_NUM_THREADS=2 MKL_NUM_THREADS=1 "$tmp/venv/bin/python" -I "$tmp/workers.py" "$tmp"
