#!/usr/bin/env bash
# Saving the same tensors with the same metadata gives other bytes at every call.
#
# Versions: Python 3.11, safetensors 0.8.0, numpy 2.4.6.
# Expected: a file without time stamps is a function of its contents: equal arrays and an equal
#   dict, twice in one process, are equal bytes, so a checksum of the file names its contents.
# Seen (2026-11-27): entries of `metadata` are written in an order drawn anew for each call (tensors
#   have a fixed order, though not the caller's). PYTHONHASHSEED has no say in it.
#     0 entries: 1 content in 300 files
#     1 entry  : 1
#     2 entries: 2
#     3 entries: 6
#     8 entries: 300
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$tmp/venv/bin/python" -I - <<'EOF'
import numpy as np
from safetensors.numpy import load, save

arrays = {name: np.arange(3.0) for name in "hgfedcba"}
seen = {}
for entries in (0, 1, 2, 3, 8):
    metadata = {name: "the same" for name in "abcdefgh"[:entries]}
    files = [save(arrays, metadata) for _ in range(300)]
    seen[entries] = len(set(files))
    print(f"{entries} entries: {seen[entries]} contents in {len(files)} files of {len(files[0])} bytes")
    assert all(sorted(load(file)) == sorted(arrays) for file in files[:10])
# 3! = 6 orders; of 8! = 40320 orders 300 draws repeat one or two at most
assert seen[0] == seen[1] == 1 and seen[2] == 2 and seen[3] == 6 and seen[8] > 250, seen
EOF
