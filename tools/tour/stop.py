"""What a stop of the tour is, and the numbers that stops begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gptheory.data import GaussianProcess, decaying_process

Found = dict[str, "Tensor | float"]
Visit = Callable[[torch.device, torch.dtype], Found]
KINDS = ("exact", "network")
N, D = 6, 2  # sizes of nearly everything


@dataclass(frozen=True)
class Stop:
    """One situation that users meet.

    Args:
        name: of the stop.
        visit: called with a device and a dtype, returns named results.
        kind: ``"exact"`` for what is exact, certified or a measurement, and keeps its accuracy
            in every context; ``"network"`` for trainable networks, which obey autocast.
        compare: whether another device must find the same numbers; not so where they come from
            training, or from random numbers of the device.
        drawn: whether random numbers were drawn in the dtype, so that another dtype finds others.
    """

    name: str
    visit: Visit
    kind: str
    compare: bool = True
    drawn: bool = False


STOPS: list[Stop] = []


def stop(kind: str, compare: bool = True, drawn: bool = False) -> Callable[[Visit], Visit]:
    """Put a function on the tour, under its own name."""
    assert kind in KINDS

    def keep(visit: Visit) -> Visit:
        STOPS.append(Stop(visit.__name__, visit, kind, compare, drawn))
        return visit

    return keep


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal numbers, the same on every device and, rounded, in every dtype."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(device, dtype)


def sequences(seed: int, n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sequences (n, N, D) of the law, the same on every device and in every dtype."""
    return law().sample(n, seeded(seed), torch.float64).to(device, dtype)


def steps(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Diffusion steps (n,) from 0.05 to 2, in float64."""
    return torch.linspace(0.05, 2.0, n, dtype=torch.float64).to(device)


def law(device: torch.device | str = "cpu") -> GaussianProcess:
    """The law of nearly all sequences."""
    return decaying_process(N, D, lengthscale=2.0).to(device)


def shaken(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The network with weights that are not those of a beginning, moved."""
    draw = seeded(99)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
            weight.add_(0.1 * noise.to(weight))
    return model.to(device, dtype)
