#!/usr/bin/env bash
# torchdiffeq: an adaptive solver on [10, 0.01] asks for the slope at t = -9990.
#
# Versions: Python 3.11, torch 2.13.0, torchdiffeq 0.2.5.
# Expected: odeint(f, y, [a, b]) evaluates f between a and b, as scipy's solve_ivp does: f may be
#   undefined elsewhere, or a network that was trained there only.
# Seen (2026-11-28): its trial for a first step (misc.py, _select_initial_step) is as long as the slope
#   is small, whatever the interval; and the last step goes over b and is interpolated back. With
#   options={"first_step": ..., "step_t": b} f is asked inside only.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchdiffeq==0.2.5
export OMP_NUM_THREADS=1
"$tmp/venv/bin/python" -I - <<'EOF'
import numpy as np
import torch
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

START, END = 10.0, 0.01
tolerance = {"rtol": 1e-5, "atol": 1e-5}


def recorded(asked):
    """dy/dt = 1e-7 t y: hardly anything happens."""

    def slope(t, y):
        asked.append(float(t))
        return 1e-7 * t * y

    return slope


def range_of(**options):
    asked = []
    times = torch.tensor([START, END], dtype=torch.float64)
    odeint(recorded(asked), torch.ones(1, dtype=torch.float64), times, method="dopri5",
           options=options, **tolerance)
    return min(asked), max(asked)


asked = []
solve_ivp(recorded(asked), (START, END), np.ones(1), method="RK45", **tolerance)
found = {
    "scipy, RK45": (min(asked), max(asked)),
    "torchdiffeq, dopri5": range_of(),
    "with first_step": range_of(first_step=0.1),
    "with first_step, step_t": range_of(first_step=0.1, step_t=torch.tensor([END])),
}
for name, (low, high) in found.items():
    print(f"{name:26} asks from {low:.6g} to {high:.6g}, of [{END}, {START}]")
lows = {name: low for name, (low, _) in found.items()}
assert min(lows["scipy, RK45"], lows["with first_step, step_t"]) >= END - 1e-6
assert lows["torchdiffeq, dopri5"] < -1000 and lows["with first_step"] < 0
EOF
