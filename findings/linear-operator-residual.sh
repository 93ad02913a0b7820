#!/usr/bin/env bash
# linear_operator's conjugate gradients end at a residual of 3e-6 or so, in double precision too.
#
# Versions: Python 3.11, torch 2.13.0, linear_operator 0.6.1.
# Expected: cg_tolerance(1e-11), and iterations enough, give a relative residual of 1e-11; or one
#   more iteration brings it nearer.
# Seen (2026-11-28): once the squared length of a direction, in the norm of the matrix, is below
#   1e-10, steps are set to 0: 300 iterations and 3000 give the same solution to the last bit. The
#   warning says to raise the number of iterations.
#     relative residual, exp(-r/8) + .01 I, 2000 rows, float64
#       cg_tolerance            1e-4       1e-8      1e-11
#       300 iterations          1e-4       3e-6       3e-6
#       3000 iterations         1e-4       3e-6       3e-6
#     the same for the residual, and added, four times (refinement):     9e-13
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1 linear_operator==0.6.1
export OMP_NUM_THREADS=1
"$tmp/venv/bin/python" -I - <<'EOF'
import warnings

import torch
from linear_operator import settings
from linear_operator.operators import ToeplitzLinearOperator

torch.set_default_dtype(torch.float64)
column = torch.exp(-torch.arange(2000) / 8)
column[0] += 0.01
matrix = ToeplitzLinearOperator(column)
right = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))


def solve(b, tolerance, iterations):
    with settings.cg_tolerance(tolerance), settings.max_cg_iterations(iterations):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            return matrix.solve(b), any("consider raising" in str(w.message) for w in said)


def residual(x):
    return ((matrix @ x - right).norm() / right.norm()).item()


found = {}
for tolerance in (1e-4, 1e-8, 1e-11):
    short, told = solve(right, tolerance, 300)
    long, _ = solve(right, tolerance, 3000)
    found[tolerance] = residual(short), residual(long), torch.equal(short, long), told
    print("tolerance {:g}: residuals {:.1g} and {:.1g}, equal: {}, warned: {}".format(
        tolerance, *found[tolerance]))
refined = torch.zeros_like(right)
for _ in range(4):
    refined = refined + solve(right - matrix @ refined, 1e-4, 300)[0]
print(f"refined four times: {residual(refined):.1g}")
for tolerance in (1e-8, 1e-11):
    short, long, same, told = found[tolerance]
    assert 1e-7 < short < 1e-4 and same and told
assert residual(refined) < 1e-11
EOF
