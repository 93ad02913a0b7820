"""What callers wrap around this package: inference mode, default devices, ``torch.compile``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

COMPILED = "_orig_mod"  # the name under which a compiled module keeps the one it was made from


def lasting(function: Callable) -> Callable:
    """Decorator of functions whose tensors are computed once and kept.

    Under ``torch.inference_mode()`` torch makes tensors that no gradient can pass later. What is
    kept outlives the mode in which it happened to be asked for first, so it is computed outside.
    Tensors that are kept as they were given must be copied. One case is left: what a function that
    ``torch.compile`` made asks for first in inference mode stays of that mode.
    """

    return torch.inference_mode(False)(function)


def on_the_cpu(function: Callable) -> Callable:
    """Decorator of functions that make tensors from numbers: on the CPU, whatever torch's default.

    For construction only: while a default device is set, every call of torch is slower.
    """

    @functools.wraps(function)
    def made(*args: object, **kwargs: object) -> object:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return made


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` was given; any other module itself."""
    return getattr(model, COMPILED, model)


def plain_name(name: str) -> str:
    """The name of a weight or a part, as it is without ``torch.compile``."""
    return ".".join(part for part in name.split(".") if part != COMPILED)
