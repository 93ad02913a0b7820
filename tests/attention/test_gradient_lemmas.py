"""The printed steps to the low-rank gradient, one by one: definitions and lemmas of an appendix.

Rows are tokens, as everywhere here: A_1, A_2, H and Y are A_1ᵀ, A_2ᵀ, h and Yᵀ of the paper. The
definitions are taken to the letter, with loops; the lemmas have bounds of our own, whose constants
the proof of the book's theorem on training adds up.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from strategies import seeded
from tolerances import assert_identity

from gptheory.attention import exact_attention_gradient, exp_polynomial

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", range(3))
DIM, WIDTH = 2, 3


def problem(seed, n=16, m=14):
    """A_1, A_2, X whose columns sum to at most 1 (logits stay in [−1, 1] after 1/d), H and Y."""
    shapes = ((n, DIM), (m, DIM), (DIM, DIM), (m, WIDTH), (n, WIDTH))
    draws = [2 * torch.rand(shape, generator=seeded(seed), dtype=F64) - 1 for shape in shapes]
    draws[2] = draws[2] / draws[2].abs().sum(0)
    return draws


def chain(left, right, weight, values, target, f):
    """Everything that the definitions make of a map f."""
    c = f @ values - target
    q = c @ values.T
    p1, p2 = f * q, (f * q).sum(1, keepdim=True) * f
    return SimpleNamespace(f=f, c=c, q=q, p1=p1, p2=p2)


def both(seed, degree):
    """The exact chain and that of a polynomial's map, with the numbers that bounds need."""
    own = problem(seed)
    left, right, weight, values, _ = own
    logits = left @ weight @ right.T / DIM
    polynomial = exp_polynomial(degree, 1.0)
    raw = sum(c * logits**m for m, c in enumerate(polynomial.coefficients))
    exact = chain(*own, logits.softmax(1))
    close = chain(*own, raw / raw.sum(1, keepdim=True))
    size = SimpleNamespace(
        beta=polynomial.error_bound,
        h=values.abs().max(),
        gamma=exact.c.abs().sum(1).max(),
        rank=math.comb(DIM + degree, degree),
    )
    return exact, close, size


def largest(difference):
    return difference.abs().max().item()


def rank(matrix):
    return torch.linalg.matrix_rank(matrix, rtol=1e-12).item()


# ---- definitions, to the letter -----------------------------------------------------------------


@pytest.mark.statement("HWLSL Lemma D.1")
@SEEDS
def test_tensor_trick(seed):
    """vec(AᵀXB) = (Aᵀ ⊗ Bᵀ) vec(X), row by row; column by column the factors change places."""
    shapes = ((4, 3), (5, 2), (4, 5))
    a, b, x = (torch.randn(shape, generator=seeded(seed), dtype=F64) for shape in shapes)
    product = a.T @ x @ b
    assert_identity(product.flatten(), torch.kron(a.T, b.T) @ x.flatten())
    assert_identity(product.T.flatten(), torch.kron(b.T, a.T) @ x.T.flatten())


def letters(left, right, weight, values, target):
    """u, α, f, h, c, q and p of Definitions G.1 to G.7, query by query, with no scale."""
    whole, vector = torch.kron(left, right), weight.flatten()
    blocks = whole.view(len(left), len(right), -1)
    u = [(block @ vector).exp() for block in blocks]  # G.1
    alpha = [each.sum() for each in u]  # G.2
    f = torch.stack([each / total for each, total in zip(u, alpha, strict=True)])  # G.3
    h = torch.stack([values[:, k] for k in range(values.shape[1])], dim=1)  # G.4
    c = torch.stack([torch.stack([a @ b for b in h.T]) for a in f]) - target  # G.5
    q = c @ h.T  # G.6
    jacobians = [torch.diag(a) - torch.outer(a, a) for a in f]
    p = torch.stack([jacobian @ b for jacobian, b in zip(jacobians, q, strict=True)])  # G.7
    return SimpleNamespace(blocks=blocks, f=f, h=h, c=c, q=q, p=p, jacobians=jacobians)


@pytest.mark.statement("HWLSL Definition G.1", "HWLSL Definition G.2", "HWLSL Definition G.3")
@pytest.mark.statement("HWLSL Definition G.4", "HWLSL Definition G.5", "HWLSL Definition G.6")
@pytest.mark.statement("HWLSL Definition G.7", "HWLSL Lemma G.1", "HWLSL Lemma G.2")
@SEEDS
def test_the_definitions_lead_to_the_gradient(seed):
    """The sum over entries (G.2) and A_1ᵀ p A_2 (G.3) are the gradient of the loss as printed."""
    own = problem(seed)
    left, right, weight, values, target = own
    x = letters(*own)
    entries = [
        x.c[j, i] * x.blocks[j].T @ x.jacobians[j] @ x.h[:, i]
        for j in range(len(left))
        for i in range(WIDTH)
    ]
    gradient = exact_attention_gradient(*own, scale=1.0)
    assert_identity(torch.stack(entries).sum(0).view(DIM, DIM), gradient)
    assert_identity(left.T @ x.p @ right, gradient)
    unknown = weight.clone().requires_grad_()
    residual = (left @ unknown @ right.T).softmax(1) @ values - target
    (found,) = torch.autograd.grad(residual.square().sum() / 2, unknown)
    assert_identity(gradient, found)


# ---- low-rank approximations, with the scale 1/d ------------------------------------------------

DEGREES = pytest.mark.parametrize("degree", [2, 3])
FLOOR = 1e-12  # sums of at most 20 numbers of size one: 20 u is 4e-15


@pytest.mark.statement("HWLSL Lemma G.3")
@DEGREES
@SEEDS
def test_the_map_has_a_low_rank_and_a_small_error(seed, degree):
    exact, close, size = both(seed, degree)
    assert rank(close.f) <= size.rank < min(close.f.shape) == rank(exact.f)
    assert (close.f - exact.f).abs().sum(1).max() <= size.beta + FLOOR


@pytest.mark.statement("HWLSL Lemma G.4")
@DEGREES
@SEEDS
def test_the_residual_has_a_small_error(seed, degree):
    exact, close, size = both(seed, degree)
    assert 0 < largest(close.c - exact.c) <= size.beta * size.h + FLOOR


@pytest.mark.statement("HWLSL Lemma G.5")
@DEGREES
@SEEDS
def test_residual_times_values_has_the_rank_of_the_values(seed, degree):
    exact, close, size = both(seed, degree)
    assert rank(close.q) == rank(exact.q) == WIDTH
    assert largest(close.q - exact.q) <= WIDTH * size.beta * size.h**2 + FLOOR


@pytest.mark.statement("HWLSL Lemma G.6")
@DEGREES
@SEEDS
def test_the_first_part_has_the_product_of_the_ranks(seed, degree):
    """|f̃q̃ − fq| ≤ |q̃ − q| + |f̃ − f||q|, with rows of f̃ between 0 and 1 and |q| ≤ γ h."""
    exact, close, size = both(seed, degree)
    moved = WIDTH * size.beta * size.h**2 + size.beta * size.gamma * size.h
    assert largest(close.p1 - exact.p1) <= moved + FLOOR
    v = torch.linalg.svd(close.f)[2][: size.rank].T  # the map is U V^T
    u = close.f @ v
    values, residual = problem(seed)[3], close.c
    pairs = (u[:, :, None] * residual[:, None]).flatten(1)  # row-wise Khatri-Rao products
    others = (v[:, :, None] * values[:, None]).flatten(1)
    assert pairs.shape[1] == size.rank * WIDTH
    assert_identity(pairs @ others.T, close.p1)


@pytest.mark.statement("HWLSL Lemma G.7")
@DEGREES
@SEEDS
def test_the_second_part_scales_rows_and_keeps_the_rank(seed, degree):
    """As Definition G.7 has it. With ρ on the columns, as its lemma, it is another matrix."""
    exact, close, size = both(seed, degree)
    rows = [torch.outer(f, f) @ q for f, q in zip(exact.f, exact.q, strict=True)]
    assert_identity(torch.stack(rows), exact.p2)
    moved = WIDTH * size.beta * size.h**2 + 2 * size.beta * size.gamma * size.h
    assert largest(close.p2 - exact.p2) <= moved + FLOOR
    assert rank(close.p2) <= size.rank
    square = exact.f[: len(exact.f.T)]
    rho = (square * exact.q[: len(square)]).sum(1)
    printed, right = square * rho, rho[:, None] * square
    assert (printed - right).norm() > 0.1 * right.norm()
