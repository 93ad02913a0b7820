"""Checks made once, at public entry points: what was given, and what is expected."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

# relative to the largest entry: float32 covariances pass, real asymmetry does not
SYMMETRY_TOLERANCE = 1e-5


class NotPSDError(ValueError):
    """A matrix that must be a covariance has a negative eigenvalue."""


def require_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def require_nonnegative(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number of at least zero."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")


def require_range(t_min: float, t_max: float) -> None:
    """Raise unless diffusion steps t_min < t_max are finite and above zero."""
    require_positive("t_min", t_min)
    require_positive("t_max", t_max)
    if t_min >= t_max:
        raise ValueError(f"expected t_min < t_max, got t_min={t_min!r}, t_max={t_max!r}")


def require_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def require_finite(name: str, values: Tensor) -> None:
    """Raise if any entry is NaN or infinite."""
    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries")


def require_real(name: str, values: Tensor) -> None:
    """Raise for complex numbers: torch would drop their imaginary part, or compute with it."""
    if values.is_complex():
        raise ValueError(
            f"{name} must be real, got {_kind(values)}; where the imaginary part is rounding, take"
            " its .real"
        )


def require_floating(name: str, x: Tensor, shape: str = "") -> None:
    """Raise unless ``x`` is a tensor of floating point.

    Args:
        name: what the caller knows it by.
        x: the tensor.
        shape: the shape that is expected, in words.
    """
    if isinstance(x, Tensor) and x.is_floating_point():
        return
    hint = ""
    if isinstance(x, Tensor):
        hint = "; take its .real" if x.is_complex() else f"; pass {name}.float() or .double()"
    expected = f"a floating-point tensor {shape}".rstrip()
    raise ValueError(f"{name} must be {expected}, got {_kind(x)}{hint}")


def require_one_device(**tensors: Tensor) -> None:
    """Raise unless all tensors, given by name, are on one device."""
    if len({x.device for x in tensors.values()}) > 1:
        given = ", ".join(f"{name} on {x.device}" for name, x in tensors.items())
        raise ValueError(f"{', '.join(tensors)} must be on one device, got {given}")


def require_symmetric(name: str, matrix: Tensor) -> Tensor:
    """Return ``matrix`` as an exactly symmetric float64 matrix; raise if it was not nearly so.

    Integers convert exactly, and so do nested lists of numbers.
    """
    if not isinstance(matrix, Tensor):  # torch's default device may be any
        matrix = torch.as_tensor(matrix, dtype=torch.float64, device="cpu")
    require_real(name, matrix)
    matrix = matrix.double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
    require_finite(name, matrix)
    defect = (matrix - matrix.T).abs().max().item()
    if defect > SYMMETRY_TOLERANCE * matrix.abs().max().item():
        raise ValueError(
            f"{name} must be symmetric, got entries (i, j) and (j, i) that differ by up to"
            f" {defect:.3g}; symmetrise it first with (A + A.T) / 2"
        )
    return (matrix + matrix.T) / 2


def require_sequences(
    name: str, x: Tensor, seq_len: int | None = None, dim: int | None = None
) -> None:
    """Raise unless ``x`` is floating point of shape (batch, seq_len, dim)."""
    expected = f"(batch, {seq_len or 'seq_len'}, {dim or 'dim'})"
    require_floating(name, x, expected)
    fits = x.ndim == 3 and seq_len in (None, x.shape[1]) and dim in (None, x.shape[2])
    if not fits or 0 in x.shape[1:]:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}")


def require_step(t: float | Tensor) -> None:
    """Raise unless every diffusion step is finite and > 0.

    Values on an accelerator are left alone (reading them would stall it), and so are those that
    ``torch.compile`` or ``vmap`` hides; there a negative step turns into NaN, because the noise
    level is a square root.
    """
    if isinstance(t, Tensor):
        require_real("the diffusion step t", t)
        if t.device.type != "cpu" or torch.compiler.is_compiling() or is_batchedtensor(t):
            return
        bad = t[~(torch.isfinite(t) & (t > 0))]
        if bad.numel():
            raise ValueError(f"every diffusion step t must be finite and > 0, got {bad[0].item()}")
    elif not (math.isfinite(t) and t > 0):
        raise ValueError(f"the diffusion step t must be finite and > 0, got {t!r}")


def _kind(x: object) -> str:
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
