r"""Full precision for what is exact, whatever the caller's context takes away.

Two settings of torch, made for training, cost a float32 product three to four of its seven digits
without a word: ``torch.autocast`` and ``torch.set_float32_matmul_precision("high" | "medium")``
(TF32 on GPUs, bfloat16 on some CPUs). Everything in this package that is called exact, certified
or a measurement is computed inside :class:`full_precision`. Networks are not: a trainable network
obeys its caller, also where a metric or a sampler calls it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from threading import RLock

import torch

DEVICE_TYPES = tuple(
    kind
    for kind in ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "privateuseone")
    if torch.amp.is_autocast_available(kind)
)
# one question instead of one for each kind of device, where torch answers it
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


class without_autocast:
    """Inside, autocast is off in this thread; products keep the caller's precision.

    For backward passes: they compute in the dtypes of the forward pass, and torch advises against
    running them under autocast.
    """

    __slots__ = ("_kinds",)

    def __enter__(self) -> None:
        asked = DEVICE_TYPES if _any_autocast() else ()
        self._kinds = [kind for kind in asked if torch.is_autocast_enabled(kind)]
        for kind in self._kinds:
            torch.set_autocast_enabled(kind, False)

    def __exit__(self, *_error: object) -> None:
        for kind in self._kinds:
            torch.set_autocast_enabled(kind, True)


class full_precision(without_autocast):
    """Inside, autocast is off and products of float32 matrices have all their digits.

    A context manager, and a decorator of functions, methods and generators; ``with
    full_precision():`` and ``@full_precision()``. A generator is guarded while it runs, not while
    its consumer does. The caller's settings are back afterwards, also after an exception.

    Autocast belongs to a thread, the precision of products to the process. While any thread is
    inside, every thread multiplies in full precision; the last one out restores what the first one
    in found, unless somebody set another precision meanwhile, which then stays.

    **Gradients** are computed in ``backward()``, after the guarded call has ended, so by the
    settings that hold there: call ``backward()`` or ``torch.autograd.grad`` inside the guard too.

    **torch.compile**: a graph cannot change the setting of a process. Compiled functions turn
    autocast off by themselves; for the precision of products, call them inside the guard.

    Convolutions have a setting of their own, which the guard leaves alone: nothing exact here
    convolves. It costs about 3 µs where there is nothing to change.
    """

    __slots__ = ("_holds",)

    def __enter__(self) -> None:
        super().__enter__()
        self._holds = not torch.compiler.is_compiling()
        if self._holds:
            _PRODUCTS.hold()

    def __exit__(self, *error: object) -> None:
        if self._holds:
            _PRODUCTS.release()
        super().__exit__(*error)

    def __call__(self, function: Callable) -> Callable:
        """The function, guarded."""
        if inspect.isgeneratorfunction(function):
            return _guarded_generator(function)

        @functools.wraps(function)
        def guarded(*args: object, **kwargs: object) -> object:
            with full_precision():
                return function(*args, **kwargs)

        return guarded


def _guarded_generator(function: Callable[..., Iterator]) -> Callable[..., Iterator]:
    @functools.wraps(function)
    def guarded(*args: object, **kwargs: object) -> Iterator:
        items = function(*args, **kwargs)
        try:
            while True:
                with full_precision():
                    item = next(items, _END)
                if item is _END:
                    return
                yield item
        finally:
            with full_precision():
                items.close()

    return guarded


_END = object()


class _Products:
    """The precision of float32 products, a setting of the process that several threads may hold."""

    def __init__(self) -> None:
        self.lock = RLock()  # an abandoned generator may be closed at any allocation
        self.holders = 0
        self.found: tuple[str | None, dict[str, str]] | None = None

    def hold(self) -> None:
        with self.lock:
            self.holders += 1
            legacy = _setting()
            if legacy != "highest":
                self.found = legacy, _switches()
                torch.set_float32_matmul_precision("highest")

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders or self.found is None:
                return
            (legacy, switches), self.found = self.found, None
            if _setting() != "highest":
                return
            if legacy is not None:
                torch.set_float32_matmul_precision(legacy)
            for backend, value in switches.items():
                if getattr(_BACKENDS[backend], SWITCH) != value:
                    setattr(_BACKENDS[backend], SWITCH, value)


SWITCH = "fp32_precision"
_BACKENDS = {
    "cuda": torch.backends.cuda.matmul,
    "mkldnn": getattr(torch.backends.mkldnn, "matmul", None),
}


def _setting() -> str | None:
    """``"highest"``, ``"high"`` or ``"medium"``; None where only the switches of backends tell.

    torch refuses to answer where a switch says otherwise; where it answers ``"highest"``, no
    switch lowers the precision of products.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


with warnings.catch_warnings():
    # torch 2.9 says, once, that the question is an old one; here nobody hears it
    warnings.simplefilter("ignore")
    _setting()


def _switches() -> dict[str, str]:
    """The switches of backends, which torch has since version 2.9."""
    found = {name: getattr(backend, SWITCH, None) for name, backend in _BACKENDS.items()}
    return {name: value for name, value in found.items() if value is not None}


_PRODUCTS = _Products()
