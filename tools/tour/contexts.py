"""A stop at what callers wrap around things."""

from __future__ import annotations

import torch

from gptheory.support import draws, precision, wrappers

from .networks import transformer
from .stop import Found, sequences, shaken, stop


@stop("exact")
def wrapped(device: torch.device, dtype: torch.dtype) -> Found:
    """Guards and wrappers by themselves, and the draws of a device."""
    x = sequences(1, 2, device, dtype)
    square = precision.full_precision()(lambda: x @ x.mT)
    kept = wrappers.lasting(lambda: x.clone())
    made = wrappers.on_the_cpu(lambda: torch.zeros(1))()
    with precision.without_autocast(), draws.TorchDraws(1, device):
        drawn = torch.rand(3, dtype=torch.float64)
    network = shaken(transformer(), device, dtype)
    assert wrappers.uncompiled(network) is network and made.device.type == "cpu"
    assert wrappers.plain_name("_orig_mod.lift.weight") == "lift.weight"
    return {"square": square(), "kept": kept(), "drawn": drawn}
