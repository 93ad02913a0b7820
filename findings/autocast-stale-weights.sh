#!/usr/bin/env bash
# A training loop inside one `with torch.autocast(...)` trains on the weights of its first step.
#
# Versions: Python 3.11, torch 2.13.0.
# Expected: autocast changes precision only. Whether `with` stands around the loop or around each
#   step, the loss falls, and an evaluation under no_grad sees the weights as they are.
# Seen (2026-11-27): the bfloat16 copies that autocast made at the first step are kept until the
#   outermost context ends. The optimiser's updates in place do not renew them: the loss is the same
#   to the last digit in all 50 steps, while the gradient, equally constant, carries the weights
#   away. A later evaluation under no_grad still reads the old copy; one under inference_mode, in
#   the same context, reads the new weights.
#     loss, around each step: 5.23 -> 2.2e-05, norm of the weights 2.00
#     loss, around the loop : 5.23 -> 5.23, 1 different value, norm of the weights 21.85
#     weights set to zero: largest output 0.707 with gradients, 0.707 in no_grad, 0 in inference_mode
#     after torch.clear_autocast_cache(): 0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$tmp/venv/bin/python" -I - <<'EOF'
from contextlib import nullcontext

import torch


def reduced():
    return torch.autocast("cpu", torch.bfloat16)


def train(outer, inner):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(4, 1), torch.randn(64, 4)
    target = x.sum(dim=1, keepdim=True)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    losses = []
    with outer():
        for _ in range(50):
            with inner():
                loss = (net(x).float() - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses, net.weight.norm().item()


for name, contexts in {"each step": (nullcontext, reduced), "the loop": (reduced, nullcontext)}.items():
    losses, norm = train(*contexts)
    print(
        f"loss, around {name:9}: {losses[0]:.3g} -> {losses[-1]:.2g},"
        f" {len(set(losses))} different values, norm of the weights {norm:.2f}"
    )
    if name == "each step":
        assert losses[-1] < 1e-3
    else:
        assert len(set(losses)) == 1 and norm > 10

torch.manual_seed(0)
net, x = torch.nn.Linear(4, 1), torch.ones(8, 4)
with reduced():
    before = net(x).abs().max().item()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    gradients = net(x).abs().max().item()
    with torch.no_grad():
        frozen = net(x).abs().max().item()
    with torch.inference_mode():
        inference = net(x).abs().max().item()
    torch.clear_autocast_cache()
    cleared = net(x).abs().max().item()
print(
    f"weights set to zero: {before:.3g} became {gradients:.3g} with gradients, {frozen:.3g} in no_grad,"
    f" {inference:.3g} in inference_mode; after clear_autocast_cache() {cleared:.3g}"
)
assert before == gradients == frozen > 0 and inference == cleared == 0
EOF
