"""What networks draw from torch's own generators, as dropout does: seeded, kept, and given back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor

from .files import digest
from .validation import require_floating


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


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, shape, dtype and device of x, drawn on the generator's device."""
    require_floating("x", x)
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


GLOBAL_STATE = RLock()  # torch's generator is borrowed by one thread at a time


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


def _normal(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    source = device if generator is None else generator.device
    draw = _box_muller if dtype == torch.float64 and source.type == "cpu" else torch.randn
    return draw(shape, generator=generator, dtype=dtype, device=source).to(device)


def _box_muller(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Standard normal numbers, twice as fast as torch.randn, which in float64 is not vectorised."""
    half = -(-math.prod(shape) // 2)
    uniform = torch.rand(2, half, generator=generator, dtype=dtype, device=device)
    radius = uniform[0].neg_().log1p_().mul_(-2).sqrt_()  # 1 - u lies in (0, 1]
    angle = uniform[1].mul_(2 * math.pi)
    pairs = torch.empty_like(uniform)
    torch.cos(angle, out=pairs[0])
    torch.sin(angle, out=pairs[1])
    return pairs.mul_(radius).flatten()[: math.prod(shape)].view(shape)
