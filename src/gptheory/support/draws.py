"""Random numbers: drawn where their generator is, then moved; and torch's own generators, borrowed.

A seed gives the same numbers wherever they are used: a generator draws on its own device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from .files import digest
from .validation import require_floating

GLOBAL_STATE = RLock()  # torch's generator is borrowed by one thread at a time


def drawn(
    draw: Callable[..., Tensor],
    *shape: int,
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Random numbers of any kind.

    Args:
        draw: torch.randn, torch.rand, or what takes the same.
        shape: of the result.
        generator: drawn on its device; without one on that of the result, from torch's own.
        dtype: of the result.
        device: of the result; by default the generator's, else the CPU.
    """
    source = device or torch.device("cpu") if generator is None else generator.device
    numbers = draw(*shape, generator=generator, dtype=dtype, device=source)
    return numbers if device is None else numbers.to(device)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, shape, dtype and device of x, drawn on the generator's device."""
    require_floating("x", x)
    return drawn(torch.randn, *x.shape, generator=generator, dtype=x.dtype, device=x.device)


def box_muller(*shape: int, dtype: torch.dtype, device: torch.device, **source: Any) -> Tensor:
    """As torch.randn, other numbers: twice as fast on the CPU in float64.

    There torch.randn is not vectorised; elsewhere it is, and draws here too.
    """
    if dtype != torch.float64 or device.type != "cpu":
        return torch.randn(*shape, dtype=dtype, device=device, **source)
    size = math.prod(shape)
    uniform = torch.rand(2, -(-size // 2), dtype=dtype, device=device, **source)
    radius = uniform[0].neg_().log1p_().mul_(-2).sqrt_()  # 1 - u lies in (0, 1]
    angle = uniform[1].mul_(2 * math.pi)
    pairs = torch.empty_like(uniform)
    torch.cos(angle, out=pairs[0])
    torch.sin(angle, out=pairs[1])
    return pairs.mul_(radius).flatten()[:size].view(shape)


@contextmanager
def weights_from(generator: torch.Generator | None) -> Iterator[None]:
    """Modules built inside draw their weights from ``generator``; the global state is untouched.

    Without a generator they draw from the global state, as usual.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    with GLOBAL_STATE, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class TorchDraws:
    """A stream of draws from torch's own generators, continued from one ``with`` to the next.

    For what networks draw, as dropout does: seeded, kept, and given back.

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
