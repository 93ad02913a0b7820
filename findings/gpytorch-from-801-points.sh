#!/usr/bin/env bash
# From 801 points on GPyTorch's solves, samples and likelihoods are other numbers, without a word.
#
# Versions: Python 3.11, torch 2.13.0, gpytorch 1.15.2, linear_operator 0.6.1, all at defaults.
# Expected: above max_cholesky_size = 800 iterations replace Cholesky's factorisation, at a small
#   error, or with a warning where they stop short.
# Seen (2026-11-27): no warning. Conjugate gradients may stop at a relative residual of 1 (the
#   default of cg_tolerance), samples come from a root of rank 100 whatever the size, and log_prob is
#   a random estimate.
#     rows                                       800        801       2000
#     error of a solve, exp(-r/8) + .01 I      3e-14       .19        .19
#     residual of it                           2e-14       .63        .66
#     variance of samples, exp(-(r/8)^2) + .01 I, of 1.01
#                                                1.0        .89        .35
#     spread of log_prob, 8 calls, nats            0         39         30
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1 gpytorch==1.15.2 linear_operator==0.6.1
export OMP_NUM_THREADS=1
"$tmp/venv/bin/python" -I - <<'EOF'
import warnings

import torch
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import ToeplitzLinearOperator

warnings.simplefilter("error")  # nothing below warns
torch.set_default_dtype(torch.float64)


def column(rows, kernel):
    """The first column of a stationary covariance with a nugget of .01."""
    first = kernel(torch.arange(rows) / 8)
    first[0] += 0.01
    return first


def dense(first):
    rows = torch.arange(len(first))
    return first[(rows[:, None] - rows).abs()]


def solve(rows):
    first, right = column(rows, lambda r: torch.exp(-r)), torch.randn(rows, 1)
    matrix = dense(first)
    exact, x = torch.linalg.solve(matrix, right), ToeplitzLinearOperator(first).solve(right)
    return ((x - exact).norm() / exact.norm()).item(), (
        (matrix @ x - right).norm() / right.norm()
    ).item()


def law(rows):
    return MultivariateNormal(
        torch.zeros(rows), dense(column(rows, lambda r: torch.exp(-r.square())))
    )


def variance(rows):
    return law(rows).rsample(torch.Size([256])).var().item()


def spread(rows):
    x = torch.linalg.cholesky(law(rows).covariance_matrix) @ torch.randn(rows)
    values = [law(rows).log_prob(x).item() for _ in range(8)]
    return max(values) - min(values)


torch.manual_seed(0)
found = {}
for rows in (800, 801, 2000):
    found[rows] = *solve(rows), variance(rows), spread(rows)
    print(
        "{} rows: solve off by {:.2g}, residual {:.2g}; variance {:.2f} of 1.01;"
        " log_prob spreads over {:.2g} nats".format(rows, *found[rows])
    )
error, residual, var, nats = found[800]
assert error < 1e-10 and residual < 1e-10 and 0.9 < var < 1.1 and nats < 1e-6
for rows, high in ((801, 0.95), (2000, 0.45)):
    error, residual, var, nats = found[rows]
    assert error > 0.1 and residual > 0.3 and var < high and nats > 1
EOF
