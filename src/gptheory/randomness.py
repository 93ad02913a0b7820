"""What networks draw from torch's own generators, as dropout does: seeded, kept, and given back."""

from __future__ import annotations

import torch
from torch import Tensor

from .precondition import GLOBAL_STATE
from .store import digest


class TorchDraws:
    """A stream of draws from torch's own generators, continued from one ``with`` to the next.

    Inside, the generator of the CPU and that of one device are where the stream was left; outside,
    they are where their owner left them. They belong to the process: one thread is inside at a
    time, and what *other* threads draw from them meanwhile comes out of the stream.

    Args:
        seed: of the stream; not of the numbers that a ``torch.Generator`` of this seed would draw,
            which the data may be made of.
        device: of the network.

    Attributes:
        states: of the generators, by kind of device: all that is needed to go on.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        own = int(digest("torch", seed)[:15], 16)
        sources = {"cpu": torch.device("cpu")}
        if hasattr(getattr(torch, device.type, None), "get_rng_state"):
            sources[device.type] = device
        self.states = {
            kind: torch.Generator(source).manual_seed(own).get_state()
            for kind, source in sources.items()
        }

    def __enter__(self) -> None:
        GLOBAL_STATE.acquire()
        self._theirs = self._read()
        self._write(self.states)

    def __exit__(self, *_error: object) -> None:
        self.states = self._read()
        self._write(self._theirs)
        GLOBAL_STATE.release()

    def _read(self) -> dict[str, Tensor]:
        return {kind: _get(kind, self.device) for kind in self.states}

    def _write(self, states: dict[str, Tensor]) -> None:
        for kind, state in states.items():
            _set(kind, self.device, state)


def _get(kind: str, device: torch.device) -> Tensor:
    if kind == "cpu":
        return torch.default_generator.get_state()
    return getattr(torch, kind).get_rng_state(*_which(device))


def _set(kind: str, device: torch.device, state: Tensor) -> None:
    if kind == "cpu":
        torch.default_generator.set_state(state)
    else:
        getattr(torch, kind).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is one
