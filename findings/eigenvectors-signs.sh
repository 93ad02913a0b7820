#!/usr/bin/env bash
# One covariance, one seed, three libraries of one process: three samples.
#
# Versions: Python 3.11, torch 2.13.0 (its x86-64 wheel, with MKL), numpy 2.4.6, scipy 1.17.1.
# Expected: numpy and scipy, with one and the same LAPACK (OpenBLAS) in their wheels, agree on
#   eigenvectors, signs too; torch, with another (MKL), need not.
# Seen (2026-11-27), for exp(-|i - j| / 4), whose eigenvalues are all different: numpy and scipy
#   disagree at every size, for they ask LAPACK for other drivers (syevd, syevr). torch agrees with
#   numpy in every sign from 26 rows on; with 25 rows and fewer it need not.
#     rows              :   4   8  16  25  26  32  64
#     signs torch/numpy :   0   2  12  14   0   0   0
#     signs scipy/numpy :   2   2   7  12  15  13  30
#   So numbers from U sqrt(L) z with the same z are other sequences of the same law:
#     first value, 16 rows: numpy 1.8173, scipy 0.0229, torch 0.4683
#   and agree to rounding through the symmetric root U sqrt(L) U' z (0.2125).
#   (With OpenBLAS kernels for other processors scipy flips other columns, as many; the rest stays.)
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1
export OMP_NUM_THREADS=1
"$tmp/venv/bin/python" -I - <<'EOF'
import numpy as np
import scipy.linalg
import torch


def decompositions(rows):
    lags = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows)))
    covariance = np.exp(-lags / 4)
    return {
        "numpy": np.linalg.eigh(covariance),
        "scipy": scipy.linalg.eigh(covariance),
        "torch": tuple(part.numpy() for part in torch.linalg.eigh(torch.from_numpy(covariance))),
    }


def flipped(one, other):
    """How many columns have opposite signs; apart from signs the bases are the same."""
    cosines = (one[1] * other[1]).sum(axis=0)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=0, atol=1e-9)
    return int((cosines < 0).sum())


sizes = [4, 8, 16, 25, 26, 32, 64]
found = {rows: decompositions(rows) for rows in sizes}
against = {
    name: [flipped(found[rows][name], found[rows]["numpy"]) for rows in sizes]
    for name in ("torch", "scipy")
}
print("rows              :", *(f"{rows:3}" for rows in sizes))
for name, counts in against.items():
    print(f"signs {name}/numpy :", *(f"{count:3}" for count in counts))
assert all(against["scipy"])
for rows, count in zip(sizes, against["torch"]):
    if rows >= 26:
        assert count == 0
assert any(against["torch"][:4])

noise = np.random.default_rng(0).standard_normal(16)
plain = {name: (u * np.sqrt(w)) @ noise for name, (w, u) in found[16].items()}
symmetric = {name: (u * np.sqrt(w)) @ (u.T @ noise) for name, (w, u) in found[16].items()}
for kind, draws in {"U sqrt(L) z": plain, "U sqrt(L) U' z": symmetric}.items():
    print(f"first value of {kind}:", {name: round(float(draw[0]), 4) for name, draw in draws.items()})
for name in ("scipy", "torch"):
    assert np.abs(plain[name] - plain["numpy"]).max() > 0.1
    assert np.abs(symmetric[name] - symmetric["numpy"]).max() < 1e-12
EOF
