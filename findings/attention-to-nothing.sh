#!/usr/bin/env bash
# A query that may look at nothing: attention gives 0 or NaN, and torch.no_grad() decides which.
#
# Versions: Python 3.11, torch 2.13.0 (CPU).
# Expected: what a layer computes does not depend on whether gradients are recorded. For a row whose
#   keys are all masked either convention will do (NaN as softmax has it, or 0), but only one.
# Seen (2026-11-27): scaled_dot_product_attention gives 0, for masks of booleans as of -inf, but the
#   mean of all values for a mask of the smallest finite number (a common way to write -inf).
#   nn.MultiheadAttention, the same weights and input:
#                          need_weights=True    need_weights=False
#     train, eval                 nan                   0
#     train, no_grad              nan                   0
#     eval,  no_grad              nan                  nan
#   nn.TransformerEncoderLayer on a batch with one wholly padded sequence: finite in train() and in
#   eval(), NaN in eval() under no_grad, the way in which networks are evaluated.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
export OMP_NUM_THREADS=1
"$tmp/venv/bin/python" -I - <<'EOF'
from contextlib import nullcontext

import torch
from torch.nn.functional import scaled_dot_product_attention

BLIND = 2  # the query that may look at nothing
MODES = [(m, g) for m in ("train", "eval") for g in (nullcontext, torch.no_grad)]


def said(x):
    """"nan", "0" or "finite"."""
    return "nan" if x.isnan().all() else "0" if (x == 0).all() else "finite" if x.isfinite().all() else "?"


torch.manual_seed(0)
allowed = torch.ones(5, 5, dtype=torch.bool)
allowed[BLIND] = False
query, key, value = torch.randn(3, 1, 2, 5, 4)
zeros = torch.zeros(5, 5)
rows = {}
for name, mask in {
    "booleans": allowed,
    "-inf": zeros.masked_fill(~allowed, -torch.inf),
    "finfo.min": zeros.masked_fill(~allowed, torch.finfo(torch.float32).min),
}.items():
    rows[name] = scaled_dot_product_attention(query, key, value, attn_mask=mask)[..., BLIND, :]
    print(f"scaled_dot_product_attention, {name:9}:", said(rows[name]))
assert said(rows["booleans"]) == said(rows["-inf"]) == "0"
torch.testing.assert_close(rows["finfo.min"], value.mean(dim=-2))

attention, x = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
found = {}
for mode, gradients in MODES:
    getattr(attention, mode)()
    for weights in (True, False):
        with gradients():
            y, _ = attention(x, x, x, attn_mask=~allowed, need_weights=weights)
        found[mode, gradients.__name__, weights] = said(y[:, BLIND])
for case, outcome in found.items():
    print("MultiheadAttention: %s, %s, need_weights=%s:" % case, outcome)
for (mode, gradients, weights), outcome in found.items():
    fast = mode == "eval" and gradients == "no_grad"
    assert outcome == ("nan" if weights or fast else "0")

layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
padding = torch.zeros(2, 5, dtype=torch.bool)
padding[1] = True  # the second sequence is padding throughout
for mode, gradients in MODES:
    getattr(layer, mode)()
    with gradients():
        y = layer(x, src_key_padding_mask=padding)
    print(f"TransformerEncoderLayer: {mode}, {gradients.__name__}:", said(y[1]))
    fast = mode == "eval" and gradients is torch.no_grad
    assert said(y[0]) == "finite" and said(y[1]) == ("nan" if fast else "finite")
EOF
