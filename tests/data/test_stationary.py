"""Toeplitz products, systems and determinants beside dense ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from settings import default_device
from strategies import kernels, seeded, seeds
from tolerances import assert_float32, assert_identity, relative_norm

from gptheory.data import PowerExponential, ToeplitzSolver, WhiteNoise
from gptheory.data.covariance import kernel_values, toeplitz
from gptheory.data.stationary import _mirrored
from gptheory.diffusion import alpha, sigma
from gptheory.measures.cost import MemoryMeter
from gptheory.support.conjugate import NotConvergedError
from gptheory.support.validation import NotPSDError

F64 = torch.float64
BARS = [PowerExponential(8.0), PowerExponential(8.0, 2.0), PowerExponential(64.0)]
sizes, levels = st.integers(1, 40), st.floats(0.05, 2.0)


def solver(kernel, size: int, *options: object, **named: object) -> ToeplitzSolver:
    return ToeplitzSolver(kernel_values(kernel, size), *options, **named)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def noised(own: ToeplitzSolver, scale: float, shift: float) -> torch.Tensor:
    return scale * toeplitz(own.column) + shift * torch.eye(len(own), dtype=F64)


# ---- products and circulants --------------------------------------------------------------------


@given(sizes, seeds)
def test_product_is_that_of_the_matrix(size, seed):
    column, x = numbers(size, seed=seed), numbers(2, 3, size, seed=seed + 1)
    assert_identity(ToeplitzSolver(column).product(x), x @ toeplitz(column))


@given(sizes, seeds)
def test_chans_circulant_is_the_nearest(size, seed):
    """Its eigenvalues are the diagonal of F* Γ F; they are the ones that precondition."""
    own = ToeplitzSolver(numbers(size, seed=seed), "chan")
    fourier = torch.fft.fft(torch.eye(size, dtype=F64)) / math.sqrt(size)
    quotients = (
        (fourier.conj() @ toeplitz(own.column).to(fourier.dtype) @ fourier.T).diagonal().real
    )
    _, found = own._symbols_on(torch.device("cpu"))
    assert_identity(found, quotients[: size // 2 + 1].clamp(min=0), condition=1e2)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_strangs_circulant_has_the_middle_lags(size):
    own = solver(PowerExponential(2.0), size, "strang")
    row = [own.column[min(j, size - j)] for j in range(size)]
    assert_identity(own._symbols_on(torch.device("cpu"))[1], torch.fft.rfft(torch.stack(row)).real)


# ---- systems ------------------------------------------------------------------------------------


@given(kernels, sizes, levels, levels, seeds)
def test_solve_agrees_with_a_dense_solve(kernel, size, scale, shift, seed):
    own, b = solver(kernel, size), numbers(2, 3, size, seed=seed)
    matrix = noised(own, scale, shift)
    expected = torch.linalg.solve(matrix, b[..., None])[..., 0]
    condition = np.linalg.cond(matrix.numpy())
    assert_identity(own.solve(b, scale, shift), expected, condition=max(condition, 1.0))


@pytest.mark.parametrize("t", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("kernel", BARS, ids=repr)
def test_the_issues_bars_of_accuracy(kernel, t):
    """Beside eigenvectors at N = 512 and beside scipy's Levinson recursion at N = 2048: 1e-9."""
    q, w = alpha(t) ** 2, sigma(t) ** 2
    own, b = solver(kernel, 512), numbers(3, 512)
    values, vectors = torch.linalg.eigh(toeplitz(own.column))
    expected = (b @ vectors / (q * values + w)) @ vectors.T
    assert relative_norm(own.solve(b, q, w), expected) <= 1e-9
    own, b = solver(kernel, 2048), numbers(2, 2048)
    first = q * own.column.numpy()
    first[0] += w
    assert (
        relative_norm(own.solve(b, q, w), scipy.linalg.solve_toeplitz(first, b.numpy().T).T) <= 1e-9
    )


@pytest.mark.parametrize("size", [64, 512, 4096, 16_384])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
def test_the_number_of_steps_does_not_grow_with_the_length(exponent, size):
    for lengthscale in (2.0, 8.0):
        own = solver(PowerExponential(lengthscale, exponent), size)
        for t in (0.01, 0.1, 1.0):
            found = own.solution(numbers(2, size), alpha(t) ** 2, sigma(t) ** 2)
            print(lengthscale, t, found.steps.tolist())
            assert (found.steps <= 20).all() and (found.residuals <= 1e-10).all()


def test_preconditioners_find_the_same_and_none_takes_many_more_steps():
    kernel, b, steps = PowerExponential(8.0, 2.0), numbers(1, 512), {}
    for name in ("embedding", "chan", "strang", "none"):
        found = solver(kernel, 512, name).solution(b, 0.99, 0.01)
        steps[name] = found.steps.item()
        assert found.history[-1] <= 1e-10 and len(found.history) == steps[name] + 1
        assert relative_norm(found.values, solver(kernel, 512).solve(b, 0.99, 0.01)) < 1e-8
    print(steps)
    assert steps["none"] > 10 * max(steps["chan"], steps["strang"])
    assert steps["embedding"] < min(steps["chan"], steps["strang"])


def test_the_embedding_is_the_covariance_given_the_frames_across_a_circle():
    own, (q, w) = solver(PowerExponential(3.0), 9), (0.7, 0.2)
    size = own._padded
    circle = q * torch.stack([_mirrored(own.column, size).roll(k) for k in range(size)])
    circle = circle + w * torch.eye(size, dtype=F64)
    near, across = circle[:9, :9], circle[:9, 9:]
    assert_identity(near, noised(own, q, w))
    given = near - across @ torch.linalg.solve(circle[9:, 9:], across.T)
    levels = (torch.full((9,), level, dtype=F64) for level in (q, w))
    precondition = own._system(*levels).precondition
    assert_identity(precondition(torch.eye(9, dtype=F64)), torch.linalg.inv(given))


def test_rows_do_not_see_each_other():
    """One with little noise beside others: as alone, whatever else is in the batch."""
    own, b = solver(PowerExponential(8.0, 2.0), 300), numbers(6, 300)
    scale, shift = torch.linspace(1, 0, 6, dtype=F64), torch.linspace(1e-3, 1, 6, dtype=F64)
    together = own.solution(b, scale, shift)
    assert len(set(together.steps.tolist())) > 3
    for k in range(6):
        alone = own.solution(b[k : k + 1], scale[k], shift[k])
        assert abs(alone.steps.item() - together.steps[k].item()) <= 1  # a transform may round
        # either has a residual of 1e-10 at most
        allowed = 2e-10 * b[k].norm() / shift[k]
        assert (alone.values[0] - together.values[k]).norm() <= allowed


def test_chunks_change_nothing(monkeypatch):
    own, b = solver(PowerExponential(3.0), 32), numbers(11, 32)
    shift = torch.linspace(0.01, 1, 11, dtype=F64)
    whole = own.solution(b, 1.0, shift)
    monkeypatch.setattr("gptheory.data.stationary.CHUNK_VALUES", 1)
    parts = own.solution(b, 1.0, shift)
    # transforms of fewer rows may round otherwise, and a row end one step earlier or later
    assert (parts.steps - whole.steps).abs().max() <= 1
    known = min(len(parts.history), len(whole.history)) - 1
    assert_identity(parts.history[:known], whole.history[:known])
    # either has a residual of 1e-10 at most
    allowed = 2e-10 * b.norm(dim=1) / shift
    assert ((parts.values - whole.values).norm(dim=1) <= allowed).all()


def test_float32_is_the_rounding_of_float64():
    own, b = solver(PowerExponential(8.0, 2.0), 100), numbers(3, 100).float()
    single = own.solve(b, 1.0, 1e-6)
    assert single.dtype == torch.float32
    # bit for bit: both are one call in float64, of the same numbers and shapes
    assert torch.equal(single, own.solve(b.double(), 1.0, 1e-6).float())
    assert_float32(own.product(b), b.double() @ toeplitz(own.column))


def test_rounding_is_where_it_ends_if_the_tolerance_lies_below():
    """A tolerance of 1e-17 cannot be met; what is found is as good as a direct solver's."""
    own, b = solver(PowerExponential(8.0), 200, tolerance=1e-17), numbers(2, 200)
    matrix, found = noised(own, 1.0, 0.01), own.solution(b, 1.0, 0.01)
    exact = torch.linalg.solve(matrix, b.T).T
    direct = ((exact @ matrix - b).norm(dim=1) / b.norm(dim=1)).max()
    assert found.residuals.max() <= 100 * direct


def test_nothing_of_the_matrix_and_nothing_of_the_noise():
    own, b = solver(PowerExponential(2.0), 30), numbers(2, 30)
    assert_identity(own.solve(b, 0.0, 2.0), b / 2)
    assert_identity(own.solve(own.product(b)), b, condition=1e2)


def test_what_is_not_finite_stays_in_its_row():
    own, b = solver(PowerExponential(2.0), 30), numbers(3, 30)
    clean = own.solve(b, 1.0, 0.1)
    b[1, 4] = math.nan
    found = own.solve(b, 1.0, 0.1)
    assert found[1].isnan().all()
    assert_identity(found[[0, 2]], clean[[0, 2]])


def test_memory_is_linear():
    """Of eight right-hand sides: less than thirty numbers for each of theirs."""
    size = 4096
    own, b = solver(PowerExponential(8.0), size), numbers(8, size)
    with MemoryMeter() as meter:
        own.solve(b, 1.0, 0.01)
    print(f"{meter.peak / b.nbytes:.1f} times the right-hand sides")
    assert meter.peak < 30 * b.nbytes and meter.largest < 5 * b.numel()


def test_default_devices_and_inference_mode_leave_it_alone():
    # bit for bit: the same calls with the same shapes, whatever the context
    b = numbers(2, 20)
    plain = solver(PowerExponential(2.0), 20).solve(b, 1.0, 0.1)
    with default_device("meta"):
        assert torch.equal(solver(PowerExponential(2.0), 20).solve(b, 1.0, 0.1), plain)
    with torch.inference_mode():
        own = solver(PowerExponential(2.0), 20)
        assert torch.equal(own.solve(b, 1.0, 0.1), plain)
    leaf = b.clone().requires_grad_()
    own.solve(leaf, 1.0, 0.1).sum().backward()
    assert torch.isfinite(leaf.grad).all()


# ---- derivatives --------------------------------------------------------------------------------


def given_levels(rows: int) -> tuple[torch.Tensor, ...]:
    """Right-hand sides and levels that ask for derivatives."""
    shapes = numbers(rows, 6), numbers(rows, seed=1).exp(), numbers(rows, seed=2).exp()
    return tuple(x.requires_grad_() for x in shapes)


# torch's rules of forward mode are scripts, and it warns of scripts
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@forward_mode
def test_derivatives_of_any_order_and_kind_are_implicit():
    own = solver(PowerExponential(2.0), 6, tolerance=1e-15)
    given = given_levels(2)
    assert torch.autograd.gradcheck(own.solve, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(own.solve, given)


def test_backward_keeps_no_iteration():
    b = numbers(2, 50).requires_grad_()
    x = solver(PowerExponential(2.0), 50).solve(b, 1.0, 0.1)
    names, node = [], x.grad_fn
    while node is not None:
        names.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    print(names)
    assert len(names) <= 6


@forward_mode
def test_maps_of_torch_func():
    own, b, shift = solver(PowerExponential(2.0), 8), numbers(3, 8), torch.tensor([0.1, 0.5, 2.0])
    expected = torch.stack([own.solve(x, 1.0, w.double()) for x, w in zip(b, shift, strict=True)])
    mapped = torch.func.vmap(lambda x, w: own.solve(x, 1.0, w))(b, shift)
    assert_identity(mapped, expected)
    of_one = torch.func.vmap(lambda w: own.solve(b, 1.0, w))(shift)
    assert_identity(of_one[1], own.solve(b, 1.0, 0.5))
    jacobian = torch.func.jacrev(lambda x: own.solve(x, 1.0, 0.5))(b[0])
    assert_identity(jacobian, torch.linalg.inv(noised(own, 1.0, 0.5)))
    forward = torch.func.jacfwd(lambda x: own.solve(x, 1.0, 0.5))(b[0])
    assert_identity(forward, jacobian)


# ---- determinants -------------------------------------------------------------------------------


@given(kernels, sizes, levels, levels)
def test_log_det_agrees_with_a_dense_one(kernel, size, scale, shift):
    own = solver(kernel, size)
    _, expected = np.linalg.slogdet(noised(own, scale, shift).numpy())
    assert abs(own.log_det(scale, shift).item() - expected) <= 1e-9 * max(1.0, abs(expected))


def test_log_det_takes_levels_of_any_shape_and_has_a_derivative():
    own = solver(PowerExponential(2.0), 6)
    scale, shift = numbers(2, 1).exp().requires_grad_(), numbers(3).exp().requires_grad_()
    found = own.log_det(scale, shift)
    assert found.shape == (2, 3)
    assert_identity(found[1, 2].detach(), own.log_det(scale[1, 0].item(), shift[2].item()))
    assert torch.autograd.gradcheck(own.log_det, (scale, shift))
    nothing = torch.zeros(2, dtype=F64).requires_grad_()
    own.log_det(nothing, 2.0).sum().backward()
    assert_identity(nothing.grad, [6 / 2.0] * 2)  # tr Γ / w


# ---- bad input ----------------------------------------------------------------------------------

OWN = ToeplitzSolver([1.0, 0.5, 0.2])
INDEFINITE = ToeplitzSolver([1.0, 0.9, -0.9])
BAD_INPUT = {
    "matrix": (lambda: ToeplitzSolver(torch.eye(3)), r"must have shape \(N,\), got \(3, 3\)"),
    "empty": (lambda: ToeplitzSolver([]), r"column must have shape \(N,\), got \(0,\)"),
    "nan": (lambda: ToeplitzSolver([1.0, math.nan]), "column must be finite, got 1 NaN"),
    "complex": (lambda: ToeplitzSolver(torch.ones(3) + 0j), "column must be real"),
    "name": (
        lambda: ToeplitzSolver([1.0], "jacobi"),
        "preconditioner must be one of embedding, chan, strang, none, got 'jacobi'",
    ),
    "tolerance": (lambda: ToeplitzSolver([1.0], tolerance=0.0), "must be a finite number > 0"),
    "steps": (lambda: ToeplitzSolver([1.0], max_steps=0), "max_steps must be an integer >= 1"),
    "shape": (lambda: OWN.solve(torch.ones(3, 4)), r"rhs must have shape \(..., 3\), got \(3, 4\)"),
    "no axis": (lambda: OWN.solve(torch.tensor(1.0)), r"rhs must have shape \(..., 3\), got \(\)"),
    "integers": (lambda: OWN.product(torch.ones(3).long()), "x must be a floating-point tensor"),
    "indefinite": (lambda: INDEFINITE.solve(torch.ones(3), 1.0, 0.1), r"pᵀA p <= 0"),
    "determinant": (lambda: INDEFINITE.log_det(), "determinant needs a positive definite matrix"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_says_what_was_given_and_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kinds_of_errors():
    with pytest.raises(NotPSDError):
        INDEFINITE.solve(torch.ones(3), 1.0, 0.1)
    own = solver(PowerExponential(8.0, 2.0), 100, "none", 1e-10, 5)
    with pytest.raises(NotConvergedError, match="1 of 1 systems have not converged after 5 steps"):
        own.solve(numbers(1, 100), 1.0, 0.01)
    assert len(solver(WhiteNoise(), 7)) == 7
