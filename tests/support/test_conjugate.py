"""Conjugate gradients on dense matrices: what they find, when they stop, what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, covariance, seeded, seeds
from tolerances import assert_identity

from gptheory.support.conjugate import NotConvergedError, System, conjugate_gradients
from gptheory.support.validation import NotPSDError

F64 = torch.float64


def dense(*matrices: torch.Tensor) -> System:
    """One matrix a row, without a preconditioner."""
    stacked = torch.stack(matrices)
    return System(
        lambda x: (stacked.to(x) @ x[..., None])[..., 0],
        lambda r: r.clone(),
        lambda x, b: 1e-14 * (stacked.to(x).abs().amax((1, 2)) * len(x) * x + b),
    )


def right_sides(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=seeded(seed), dtype=F64)


@given(st.integers(1, 8), st.integers(1, 4), seeds)
def test_every_row_has_its_own_matrix(size, rows, seed):
    matrices = [covariance(size, seed + k) for k in range(rows)]
    b = right_sides(rows, size, seed)
    found = conjugate_gradients(dense(*matrices), b, 1e-12, 100)
    expected = torch.linalg.solve(torch.stack(matrices), b[..., None])[..., 0]
    assert_identity(found.values, expected)
    assert (found.residuals <= 1e-12).all() and (found.steps <= found.history.shape[0]).all()


def test_as_many_steps_as_there_are_eigenvalues():
    values = torch.tensor([1.0, 1.0, 3.0, 3.0, 9.0, 9.0], dtype=F64)
    found = conjugate_gradients(dense(values.diag()), right_sides(1, 6), 1e-12, 10)
    assert found.steps.tolist() == [3]
    assert found.history.shape == (4, 1) and found.history[0] == 1
    assert (found.history[3] <= 1e-12).all() and (found.history[2] > 1e-3).all()


def test_a_row_that_has_ended_stays_as_it_is():
    """Its values and its steps are those that it has alone, but for the rounding of products.

    Carried on it would fall from a residual above 1e-6 to one of the others' steps.
    """
    easy, hard = covariance(6, 0, 0.5), covariance(6, 1, 0.001)
    b = right_sides(2, 6)
    alone = [
        conjugate_gradients(dense(m), b[k : k + 1], 1e-2, 100) for k, m in enumerate((easy, hard))
    ]
    together = conjugate_gradients(dense(easy, hard), b, 1e-2, 100)
    assert together.steps.tolist() == [one.steps.item() for one in alone]
    assert together.steps[0] < together.steps[1] and together.residuals[0] > 1e-6
    for k, one in enumerate(alone):
        assert_identity(together.values[k], one.values[0])
        assert_identity(together.residuals[k], one.residuals[0])


def test_zero_has_the_solution_zero_and_what_is_not_finite_none():
    b = right_sides(4, 5)
    b[0], b[1, 2], b[2, 3] = 0, torch.nan, torch.inf
    matrix = covariance(5)
    found = conjugate_gradients(dense(*[matrix] * 4), b, 1e-12, 100)
    assert (found.values[0] == 0).all() and found.steps[:3].tolist() == [0, 0, 0]
    assert found.values[1:3].isnan().all()
    assert_identity(matrix @ found.values[3], b[3])
    alone = conjugate_gradients(dense(matrix), b[1:2], 1e-12, 100)  # without a step
    assert alone.values.isnan().all()


def test_no_rows_are_no_work():
    found = conjugate_gradients(dense(torch.eye(3, dtype=F64)), torch.zeros(0, 3, dtype=F64), 1, 9)
    assert found.values.shape == (0, 3) and found.history.shape == (1, 0)


def test_too_few_steps_are_an_error_that_says_the_residual():
    system, b = dense(covariance(8, 0, 0.001)), right_sides(1, 8)
    message = (
        r"1 of 1 systems have not converged after 2 steps: relative residual [\d.]+.*max_steps"
    )
    with pytest.raises(NotConvergedError, match=message):
        conjugate_gradients(system, b, 1e-10, 2)
    assert issubclass(NotConvergedError, ArithmeticError)


def test_negative_curvature_is_refused():
    matrix = torch.tensor([1.0, 1.0, -0.5], dtype=F64).diag()
    with pytest.raises(NotPSDError, match=r"direction p with pᵀA p <= 0 \(-"):
        conjugate_gradients(dense(matrix), right_sides(1, 3), 1e-10, 50)


def test_a_drifting_recursion_begins_again():
    """The first product of each step is wrong by a part in a thousand, the residual's is not."""
    matrix, calls = covariance(8), []

    def product(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return (1 + 1e-3 * (len(calls) < 4)) * (x @ matrix)

    system = System(product, lambda r: r.clone(), lambda x, b: 0 * b)
    b = right_sides(1, 8)
    found = conjugate_gradients(system, b, 1e-10, 100)
    assert_identity(found.values @ matrix, b)
    assert found.residuals <= 1e-10


@pytest.mark.parametrize("device", DEVICES)
def test_devices_look_seldom_and_find_the_same(device):
    b = right_sides(3, 6)
    matrices = [covariance(6, k) for k in range(3)]
    found = conjugate_gradients(dense(*matrices), b.to(device), 1e-12, 100)
    assert found.values.device.type == found.steps.device.type == device
    assert_identity(found.values, conjugate_gradients(dense(*matrices), b, 1e-12, 100).values)
