#!/usr/bin/env bash
# torch.as_tensor(tensor) moves a tensor to the default device, although its documentation says not.
#
# Versions: Python 3.11, torch 2.13.0, numpy 2.4.6.
# Expected: as its documentation has it, "If None and data is a tensor then the device of data is
#   used": a default device concerns tensors that are made, not those that exist. as_tensor of a
#   tensor is that tensor.
# Seen (2026-11-27), under `with torch.device("meta")` as under torch.set_default_device("meta"):
#     moved to meta: as_tensor(tensor), as_tensor(array), asarray(tensor), asarray(array),
#                    randn(generator on the CPU)
#     stay on cpu  : from_numpy, frombuffer, from_dlpack, Tensor([...]), zeros_like, stack, new_zeros
#   and the reverse: as_tensor(meta tensor) with the default device "cpu" is an attempt to copy it,
#   NotImplementedError: Cannot copy out of meta tensor; no data!
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$tmp/venv/bin/python" -I - <<'EOF'
import numpy as np
import torch

promise = " ".join(torch.as_tensor.__doc__.split())
assert "If None and data is a tensor then the device of data is used" in promise

tensor, array = torch.arange(3.0), np.arange(3.0)
generator = torch.Generator("cpu")
calls = {
    "as_tensor(tensor)": lambda: torch.as_tensor(tensor),
    "as_tensor(array)": lambda: torch.as_tensor(array),
    "asarray(tensor)": lambda: torch.asarray(tensor),
    "asarray(array)": lambda: torch.asarray(array),
    "randn(generator on the CPU)": lambda: torch.randn(2, generator=generator),
    "from_numpy": lambda: torch.from_numpy(array),
    "frombuffer": lambda: torch.frombuffer(bytearray(8), dtype=torch.float32),
    "from_dlpack": lambda: torch.from_dlpack(array),
    "Tensor([...])": lambda: torch.Tensor([1.0, 2.0]),
    "zeros_like": lambda: torch.zeros_like(tensor),
    "stack": lambda: torch.stack([tensor, tensor]),
    "new_zeros": lambda: tensor.new_zeros(2),
}
assert torch.as_tensor(tensor) is tensor
with torch.device("meta"):
    inside = {name: call().device.type for name, call in calls.items()}
torch.set_default_device("meta")
default = {name: call().device.type for name, call in calls.items()}
torch.set_default_device(None)
for device in ("meta", "cpu"):
    print(f"{device}:", ", ".join(name for name in calls if inside[name] == device))
assert inside == default
assert list(inside.values()) == ["meta"] * 5 + ["cpu"] * 7, inside

there = torch.zeros(2, device="meta")
with torch.device("cpu"):
    try:
        error = None
        torch.as_tensor(there)
    except NotImplementedError as raised:
        error = raised
print(f"as_tensor(meta tensor), default device cpu: {type(error).__name__}: {error}")
assert error is not None
EOF
