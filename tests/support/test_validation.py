"""The checks at the entrance, and the tolerances that every other test relies on."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import covariance
from tolerances import (
    assert_float32,
    assert_identity,
    assert_statistical,
    covariance_standard_error,
    relative_norm,
)

from gptheory.support.validation import (
    NotPSDError,
    require_count,
    require_finite,
    require_nonnegative,
    require_positive,
    require_range,
    require_sequences,
    require_step,
    require_symmetric,
)

# ---- the tolerances themselves ----------------------------------------------------------------


def test_identity_tolerance_scales_with_the_condition_number():
    truth = torch.tensor([1.0, 100.0], dtype=torch.float64)
    assert_identity(truth + 9e-8, truth)
    with pytest.raises(AssertionError, match="off by up to"):
        assert_identity(truth + 1.1e-7, truth)
    assert_identity(truth + 1.1e-7, truth, condition=2)
    with pytest.raises(AssertionError, match="vacuous"):
        assert_identity(truth, truth, condition=1e6)


def test_float32_tolerance_accepts_rounding_only():
    truth = torch.linspace(1, 100, 50, dtype=torch.float64)
    assert_float32(truth.float(), truth)
    with pytest.raises(AssertionError, match="off by up to"):
        assert_float32(truth * 1.001, truth)
    with pytest.raises(AssertionError, match="off by up to"):
        assert_float32(truth / 1e6 * 1.001, truth / 1e6)


def test_statistical_tolerance_is_five_standard_errors():
    zero = torch.zeros(2)
    assert_statistical(zero + 4.9, zero, 1.0, n=1)
    with pytest.raises(AssertionError, match=r"5\.10 standard errors off, n = 7"):
        assert_statistical(zero + 5.1, zero, 1.0, n=7)


@pytest.mark.parametrize("check", [assert_identity, assert_float32])
def test_tolerances_refuse_nan_and_other_shapes(check):
    with pytest.raises(AssertionError, match="off by up to"):
        check(torch.tensor([1.0, math.nan]), torch.ones(2))
    with pytest.raises(AssertionError, match="shapes differ"):
        check(torch.ones(1), torch.ones(2))


def test_covariance_standard_error_matches_simulation():
    truth, n, repeats = covariance(3), 50, 4000
    root = torch.linalg.cholesky(truth)
    draws = torch.randn(repeats, n, 3, generator=torch.Generator().manual_seed(0)).double() @ root.T
    spread = (draws.transpose(1, 2) @ draws / n).var(dim=0)
    expected = covariance_standard_error(truth, n) ** 2
    # a variance of nearly normal numbers has the relative standard error √(2 / repeats)
    assert_statistical(spread, expected, 1.3 * math.sqrt(2 / repeats) * expected, repeats)
    assert relative_norm(spread, expected) < 0.1


# ---- the checks -------------------------------------------------------------------------------


def test_symmetric_matrices_come_back_exactly_symmetric_in_float64():
    rough = covariance(5).float()
    rough[0, 1] *= 1 + 1e-6  # the rounding of a float32 computation
    clean = require_symmetric("matrix", rough)
    assert clean.dtype == torch.float64
    assert torch.equal(clean, clean.T)
    assert_float32(clean, rough)
    assert require_symmetric("matrix", [[2.0, 1.0], [1.0, 2.0]]).tolist() == [[2, 1], [1, 2]]


def test_not_psd_error_is_a_value_error():
    assert issubclass(NotPSDError, ValueError)


def test_good_values_pass():
    require_positive("x", 1e-300)
    require_nonnegative("x", 0)
    require_range(1e-300, 1e300)
    require_count("n", 0, minimum=0)
    require_finite("x", torch.zeros(0))
    require_sequences("x", torch.zeros(0, 4, 2), seq_len=4, dim=2)
    require_step(1e-300)
    require_step(torch.tensor([1e-30, 1e3]))


def test_steps_hidden_by_vmap_are_left_alone():
    def step(t):
        require_step(t)
        return t

    assert torch.equal(torch.func.vmap(step)(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


BAD_INPUT = {
    "positive": (lambda: require_positive("x", -1), "x must be a finite number > 0, got -1"),
    "negative": (lambda: require_nonnegative("x", -1), "x must be finite and >= 0, got -1"),
    "neither": (lambda: require_nonnegative("x", math.nan), "x must be finite and >= 0, got nan"),
    "no limit": (lambda: require_nonnegative("x", math.inf), "x must be finite and >= 0, got inf"),
    "range from 0": (lambda: require_range(0.0, 1.0), "t_min must be a finite number > 0, got 0.0"),
    "range without end": (lambda: require_range(0.1, math.inf), "t_max must be a finite.*got inf"),
    "empty range": (lambda: require_range(2, 2), "expected t_min < t_max, got t_min=2, t_max=2"),
    "count negative": (lambda: require_count("n", -1), "n must be an integer >= 1, got -1"),
    "count fraction": (lambda: require_count("n", 1.5), "n must be an integer >= 1, got 1.5"),
    "count float": (lambda: require_count("n", 3.0), "n must be an integer >= 1, got 3.0"),
    "count nan": (lambda: require_count("n", math.nan), "n must be an integer >= 1, got nan"),
    "count infinite": (lambda: require_count("n", math.inf), "n must be an integer >= 1, got inf"),
    "count bool": (lambda: require_count("n", True), "n must be an integer >= 1, got True"),
    "finite": (
        lambda: require_finite("x", torch.tensor([1.0, math.nan, -math.inf])),
        "x must be finite, got 2 NaN or infinite entries",
    ),
    "square": (lambda: require_symmetric("A", torch.ones(2, 3)), r"A must be a square.*\(2, 3\)"),
    "vector": (lambda: require_symmetric("A", torch.ones(2)), r"A must be a square.*\(2,\)"),
    "empty": (lambda: require_symmetric("A", torch.ones(0, 0)), r"A must be a square.*\(0, 0\)"),
    "asymmetric": (
        lambda: require_symmetric("A", torch.tensor([[1.0, 0.5], [0.4, 1.0]])),
        r"A must be symmetric.*differ by up to 0.1.*\(A \+ A.T\) / 2",
    ),
    "symmetric nan": (
        lambda: require_symmetric("A", torch.full((2, 2), math.nan)),
        "A must be finite, got 4 NaN",
    ),
    "two axes": (
        lambda: require_sequences("x", torch.ones(2, 3), seq_len=3),
        r"x must have shape \(batch, 3, dim\), got \(2, 3\)",
    ),
    "wrong length": (
        lambda: require_sequences("x", torch.ones(1, 2, 3), seq_len=4, dim=3),
        r"x must have shape \(batch, 4, 3\), got \(1, 2, 3\)",
    ),
    "wrong dim": (
        lambda: require_sequences("x", torch.ones(1, 2, 3), dim=2),
        r"x must have shape \(batch, seq_len, 2\), got \(1, 2, 3\)",
    ),
    "no frames": (
        lambda: require_sequences("x", torch.ones(1, 0, 3)),
        r"x must have shape \(batch, seq_len, dim\), got \(1, 0, 3\)",
    ),
    "integers": (
        lambda: require_sequences("x", torch.ones(1, 2, 3, dtype=torch.int64)),
        "x must be a floating-point tensor.*got a tensor of torch.int64",
    ),
    "a list": (lambda: require_sequences("x", [[[1.0]]]), "floating-point tensor.*got list"),
    "step zero": (lambda: require_step(0.0), "step t must be finite and > 0, got 0.0"),
    "step negative": (lambda: require_step(-1), "step t must be finite and > 0, got -1"),
    "step nan": (lambda: require_step(math.nan), "step t must be finite and > 0, got nan"),
    "one bad step": (
        lambda: require_step(torch.tensor([1.0, -2.0])),
        "every diffusion step t must be finite and > 0, got -2.0",
    ),
    "step infinite": (lambda: require_step(torch.tensor(math.inf)), "t must be finite.*got inf"),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
