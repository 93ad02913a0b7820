#!/usr/bin/env bash
# torchsde: numpy's global seed makes the noise, and a finer step makes another path of it.
#
# Versions: Python 3.11, torch 2.13.0, torchsde 0.2.6, numpy 2.4.6.
# Expected: torch.manual_seed makes sdeint reproducible. A BrownianInterval of given entropy is one
#   path W, so halving the step of Euler's scheme on it shows the strong order (1: noise is additive).
# Seen (2026-11-27): torch's seed is ignored and its generator untouched; one number is drawn from
#   numpy's global generator. The path depends on the places and the order in which it is read (so
#   its docstring says, under halfway_tree): only W(1) is the same for each step, W(1/2) is not.
#     torch seed 0, 1 with numpy seed 0: equal; torch seed 0 with numpy seed 0, 1: different
#     root mean square of X(1; h) - X(1; h/2), h = 1/4 ... 1/128
#       a path of the same entropy for each h: .132 .111 .105 .102 .099 .100
#       one path object for all h            : .058 .026 .013 .006 .003 .002
#       the same entropy, halfway_tree       : .058 .027 .013 .006 .003 .002
#     and the default method calls the drift 81 times for 8 steps, "euler" 9 times.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 torchsde==0.2.6
export OMP_NUM_THREADS=1
"$tmp/venv/bin/python" -I - <<'EOF'
import numpy as np
import torch
import torchsde

SAMPLES, ENTROPY = 2000, 3


class Langevin(torch.nn.Module):
    """dX = -X dt + dW."""

    sde_type, noise_type = "ito", "diagonal"
    drifts = 0

    def f(self, t, x):
        self.drifts += 1
        return -x

    def g(self, t, x):
        return torch.ones_like(x)


def end(samples=SAMPLES, step=1 / 8, sde=None, **options):
    start = torch.zeros(samples, 1, dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torchsde.sdeint(sde or Langevin(), start, times, dt=step, **options)[-1]


def path(**options):
    return torchsde.BrownianInterval(
        0.0, 1.0, size=(SAMPLES, 1), dtype=torch.float64, entropy=ENTROPY, **options
    )


def distance(x, y):
    return (x - y).square().mean().sqrt().item()


def seeded(torch_seed, numpy_seed):
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    before = torch.get_rng_state()
    x = end(4, method="euler")
    assert torch.equal(before, torch.get_rng_state())
    return x


same, other = torch.equal(seeded(0, 0), seeded(1, 0)), torch.equal(seeded(0, 0), seeded(0, 1))
print(f"equal with another torch seed: {same}; with another numpy seed: {other}")
assert same and not other

one = path()
steps = [2.0**-k for k in range(2, 9)]
ways = {
    "a path of the same entropy for each h": path,
    "one path object for all h": lambda: one,
    "the same entropy, halfway_tree": lambda: path(halfway_tree=True, tol=1e-6),
}
gaps = {}
for name, noise in ways.items():
    ends = [end(step=h, bm=noise(), method="euler") for h in steps]
    gaps[name] = [distance(x, y) for x, y in zip(ends, ends[1:])]
    print(f"{name:38}", *(f"{gap:.3f}" for gap in gaps[name]))
restarted, continued, dyadic = gaps.values()
# order 1: five halvings shrink the gap 32 times; a gap that stays is another path
assert restarted[-1] > restarted[0] / 2
assert continued[-1] < continued[0] / 20 and dyadic[-1] < dyadic[0] / 20

fresh, read = path(), path()
read(0.0, 0.25)
middle, whole = distance(fresh(0.0, 0.5), read(0.0, 0.5)), distance(fresh(0.0, 1.0), read(0.0, 1.0))
print(f"after one look at W(1/4): W(1/2) differs by {middle:.2f}, W(1) by {whole:.1g}")
assert middle > 0.3 and whole < 1e-12

counts = {}
for method in (None, "euler"):
    sde = Langevin()
    end(4, step=1 / 8, sde=sde, method=method)
    counts[method] = sde.drifts
print("calls of the drift in 8 steps:", counts)
assert counts == {None: 81, "euler": 9}
EOF
