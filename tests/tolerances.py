"""The three tolerance classes of the whole test suite, and what is exact.

- *identity*: two float64 computations of one number. 1e-9 of the largest entry, times the condition
  number of the problem where there is one.
- *float32*: a float32 result beside its float64 truth. Ten times torch's default for float32.
- *statistical*: an average of n random numbers beside its expectation. Five standard errors.

A bound that a theorem gives has a floor of rounding instead, ``support.rounding.gamma`` of the
number of operations times a magnitude, derived where it stands.

*Bit for bit* is claimed of the same code on the same shapes in one process only: a call repeated, a
copy, a checkpoint, sums whose other terms are zeros, values that are moved or multiplied by one.
torch places every tensor at a multiple of 64 bytes, so that a copy takes the same instructions. A
row of a product may round otherwise in another place, in a batch of another size, on other threads.
"""

from __future__ import annotations

import numpy as np
import torch

IDENTITY = 1e-9
FLOAT32_RTOL, FLOAT32_ATOL = 1.3e-5, 1e-4  # 10 x torch.testing's, the second relative to the scale
STANDARD_ERRORS = 5
LARGEST_CONDITION = 1e5  # beyond it the identity class would accept nearly anything


def assert_identity(actual, expected, condition: float = 1.0) -> None:
    """Equal up to float64 rounding: within 1e-9 * condition of the largest expected entry."""
    assert condition <= LARGEST_CONDITION, f"condition {condition:.2g} makes the test vacuous"
    actual, expected = _float64(actual), _float64(expected)
    _assert_within(actual, expected, IDENTITY * condition * np.abs(expected).max(initial=0.0))


def assert_at_most(smaller, larger) -> None:
    """An inequality between two float64 numbers, up to the rounding of either."""
    assert smaller <= larger + IDENTITY * abs(larger) + 1e-12, f"{smaller} is above {larger}"


def assert_float32(actual, expected) -> None:
    """Equal up to float32 rounding, entry by entry and relative to the largest one."""
    actual, expected = _float64(actual), _float64(expected)
    scale = min(np.abs(expected).max(initial=0.0), 1.0)
    _assert_within(actual, expected, FLOAT32_RTOL * np.abs(expected) + FLOAT32_ATOL * scale)


def assert_statistical(average, expectation, standard_error, n: int) -> None:
    """An average of n draws lies within five standard errors of its expectation, entrywise."""
    average, expectation = _float64(average), _float64(expectation)
    errors = np.abs(average - expectation) / _float64(standard_error)
    worst = errors.max()
    print(f"n = {n}: largest deviation {worst:.2f} standard errors")
    assert average.shape == expectation.shape
    assert np.all(errors <= STANDARD_ERRORS), f"{worst:.2f} standard errors off, n = {n}"


def covariance_standard_error(covariance: torch.Tensor, n: int) -> torch.Tensor:
    """Standard error of each entry of a Gaussian sample covariance with known mean (Isserlis)."""
    variances = covariance.diagonal()
    return ((torch.outer(variances, variances) + covariance**2) / n).sqrt()


def relative_norm(actual, expected) -> float:
    """Norm of the difference over the norm of the expected value, for the bars that name it."""
    actual, expected = _float64(actual), _float64(expected)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _float64(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)


def _assert_within(actual: np.ndarray, expected: np.ndarray, allowed) -> None:
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape}, {expected.shape}"
    error = np.abs(actual - expected)
    assert np.all(error <= allowed), f"off by up to {np.nanmax(error):.3g}, allowed {allowed}"
