"""Checks made once, at public entry points: what was given, and what is expected.

*Sequences* are floating-point tensors. A covariance, a mean, a basis, a map or a lag may hold
integers, which are exact; complex numbers and truth values are refused. Whatever is read anyway (a
law, a measurement, training data) refuses NaN; what stands inside a sampler does not look, because
looking stalls an accelerator, and NaN in is NaN out. Laws, scores and metrics follow the device of
their argument; tensors that stand side by side, as queries, keys and values, must be on one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from .rounding import unit_roundoff

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


def require_level(level: float | Tensor) -> float:
    """Return a level as a number of Python; raise unless it is one probability between 0 and 1."""
    tensor = isinstance(level, Tensor) and level.is_floating_point() and level.numel() == 1
    if not (tensor or isinstance(level, Real)) or not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}")
    return float(level)


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


def require_one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of the names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_values(name: str, values: Tensor) -> None:
    """Raise for a tensor on the device meta, which has a shape and nothing else."""
    if values.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on the device meta: a shape only")


def require_finite(name: str, values: Tensor) -> None:
    """Raise if any entry is NaN or infinite, or if there are no entries to look at (meta)."""
    require_values(name, values)
    finite = torch.isfinite(values)
    if not finite.all():
        bad = values.numel() - int(finite.sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries")


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


def as_real(name: str, values: object) -> Tensor:
    """A tensor as it is, numbers of Python and numpy as one; raise unless they are real.

    Integers are; truth values are not.
    """
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{name} must be real numbers, got {_kind(values)} of {array.dtype}")
        values = torch.as_tensor(array, device="cpu")  # torch's default device may be any
    if values.dtype == torch.bool:
        raise ValueError(f"{name} must be real numbers, got {_kind(values)}")
    if values.is_complex():  # torch would drop the imaginary part, or compute with it
        raise ValueError(
            f"{name} must be real, got {_kind(values)}; where the imaginary part is rounding, take"
            " its .real"
        )
    return values


def as_floating(name: str, values: object) -> Tensor:
    """As :func:`as_real`, and integers and numbers of Python in float64, where they are exact."""
    given = as_real(name, values)
    kept = isinstance(values, Tensor) and given.is_floating_point()
    return given if kept else given.double()


def require_symmetric(name: str, matrix: Tensor) -> Tensor:
    """Return ``matrix`` as an exactly symmetric float64 matrix; raise if it was not nearly so.

    It may be of any real dtype, or a nested list of numbers; integers are exact.
    """
    matrix = as_real(name, matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
    allowed = max(SYMMETRY_TOLERANCE, 2 * unit_roundoff(matrix.dtype))  # each of two is rounded
    matrix = matrix.double()
    require_finite(name, matrix)
    defect = (matrix - matrix.T).abs().max().item()
    if defect > allowed * matrix.abs().max().item():
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


def require_mask(observed: Tensor, batch: int, seq_len: int) -> None:
    """Raise unless ``observed`` holds truth values of frames, (N,) or one row per sequence."""
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        given = observed.dtype if isinstance(observed, Tensor) else type(observed).__name__
        raise ValueError(f"observed must be a boolean tensor, True where seen, got {given}")
    shapes = ((seq_len,), (batch, seq_len))
    if observed.shape not in shapes:
        given = tuple(observed.shape)
        raise ValueError(f"observed must have shape {shapes[0]} or {shapes[1]}, got {given}")


def require_score(value: object, v: Tensor) -> Tensor:
    """Return what a score made of v; raise unless it is a tensor of its shape."""
    if not isinstance(value, Tensor) or value.shape != v.shape:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        expected = tuple(v.shape)
        raise ValueError(f"the score must return a tensor of shape {expected}, got {given}")
    return value


def require_step(t: float | Tensor, zero: bool = False) -> None:
    """Raise unless every diffusion step is real, finite and > 0, or >= 0 where ``zero`` is allowed.

    Values on an accelerator are left alone (reading them would stall it), and so are those that
    ``torch.compile`` or ``vmap`` hides; there a negative step turns into NaN, because the noise
    level is a square root.
    """
    if isinstance(t, Tensor):
        as_real("the diffusion step t", t)
        if t.device.type != "cpu" or torch.compiler.is_compiling() or is_batchedtensor(t):
            return
        bad = t[~(torch.isfinite(t) & ((t >= 0) if zero else (t > 0)))]
        if bad.numel():
            least = ">= 0" if zero else "> 0"
            raise ValueError(
                f"every diffusion step t must be finite and {least}, got {bad[0].item()}"
            )
    elif not isinstance(t, Real) or not (math.isfinite(t) and t > 0):
        raise ValueError(f"the diffusion step t must be finite and > 0, got {t!r}")


def _kind(x: object) -> str:
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
