"""Exact scores: a batch in which every sequence has its own diffusion step; long sequences."""

from __future__ import annotations

import functools
import importlib.util

import scipy.linalg
import torch
from torch import Tensor

from gptheory.data import (
    GaussianProcess,
    PowerExponential,
    ToeplitzSolver,
    gram,
    random_covariance,
)
from gptheory.data.covariance import kernel_values
from gptheory.diffusion import ExactScore, alpha, perturb, sigma

from .compare import Comparison, Limit, Row

SEQ_LEN, DIM, BATCH = 128, 8, 256
LONG, LONG_BATCH, LONG_BAR = 8192, 8, 25
LONGEST = 131_072
REFINEMENTS = 3  # of linear_operator's solutions
ONE = torch.ones(1, 1, dtype=torch.float64)
LONG_KERNELS = (PowerExponential(8.0), PowerExponential(8.0, 2.0), PowerExponential(64.0))


def rows() -> list[Row]:
    """One rotation for all steps, against one factorisation a step; long sequences and peers."""
    solved = [long_row(kernel, t) for kernel in LONG_KERNELS for t in (0.01, 0.1, 1.0)]
    return [*short_rows(), *solved, *optional_rows(), *longest_rows()]


def short_rows() -> list[Row]:
    """A batch of mixed steps."""
    generator = torch.Generator().manual_seed(0)
    temporal = gram(PowerExponential(8.0), SEQ_LEN)
    spatial = random_covariance(DIM, generator=generator)
    law = GaussianProcess(temporal, spatial)
    t = torch.linspace(0.01, 5.0, BATCH, dtype=torch.float64)
    v, _ = perturb(law.sample(BATCH, generator, torch.float64), t, generator)
    dense = law.covariance()
    return [
        Comparison(
            task=f"score N={SEQ_LEN}, d={DIM}, {BATCH} steps, f64, with set-up",
            peer="torch cholesky a step, f64",
            ours=lambda: ExactScore(GaussianProcess(temporal, spatial))(v, t),
            theirs=lambda: dense_scores(dense, v, t),
            agree=agree,
            bar=500,
            rounds=3,
            calls=20,
        )
    ]


def long_row(kernel: PowerExponential, t: float) -> Comparison:
    """Conjugate gradients, with their set-up, against scipy's Levinson recursion."""
    v = long_sequences(kernel, t, LONG, LONG_BATCH)
    column = alpha(t) ** 2 * kernel_values(kernel, LONG).numpy()
    column[0] += sigma(t) ** 2
    return Comparison(
        task=f"score N={LONG}, {name(kernel)}, t={t}, f64, set-up",
        peer="scipy solve_toeplitz, f64",
        ours=lambda: ExactScore(GaussianProcess(kernel, ONE, seq_len=LONG))(v, t),
        theirs=lambda: -torch.from_numpy(scipy.linalg.solve_toeplitz(column, v[..., 0].numpy().T)),
        agree=lambda ours, theirs: agree(ours[..., 0], theirs.T),
        bar=LONG_BAR,
        rounds=1,
        calls=10,
    )


def optional_rows() -> list[Row]:
    """Peers that are compared where they are installed."""
    kernel, t = LONG_KERNELS[0], 0.1
    peers = {"linear_operator": linear_operator_scores, "celerite2": celerite_scores}
    v = long_sequences(kernel, t, LONG, LONG_BATCH)
    return [
        Comparison(
            task=f"score N={LONG}, {name(kernel)}, t={t}, f64, set-up",
            peer=f"{peer}, f64",
            ours=lambda: ExactScore(GaussianProcess(kernel, ONE, seq_len=LONG))(v, t),
            theirs=lambda scores=scores: scores(kernel, v, t),
            agree=agree,
            bar=None,
            rounds=3,
            calls=10,
        )
        for peer, scores in peers.items()
        if importlib.util.find_spec(peer)
    ]


def linear_operator_scores(kernel: PowerExponential, v: Tensor, t: float) -> Tensor:
    """Made as accurate as ours: at its defaults it is 19 % off.

    Its conjugate gradients leave a relative residual of 3.5e-6 in float64, whatever tolerance they
    are given (findings/linear-operator-residual.sh), so solutions are refined.
    """
    from linear_operator import settings
    from linear_operator.operators import ToeplitzLinearOperator

    matrix = ToeplitzLinearOperator(alpha(t) ** 2 * kernel_values(kernel, LONG))
    matrix = matrix.add_diagonal(torch.tensor(sigma(t) ** 2, dtype=torch.float64))
    rhs = v[..., 0].T
    solution = torch.zeros_like(rhs)
    with settings.cg_tolerance(1e-5), settings.max_preconditioner_size(0):
        for _ in range(REFINEMENTS):
            solution += matrix.solve(rhs - matrix @ solution)
    return -solution.T[..., None]


def celerite_scores(kernel: PowerExponential, v: Tensor, t: float) -> Tensor:
    """O(N), for exponentials."""
    import celerite2
    import numpy as np

    term = celerite2.terms.RealTerm(a=alpha(t) ** 2, c=1 / kernel.lengthscale)
    process = celerite2.GaussianProcess(term)
    process.compute(np.arange(LONG, dtype=float), diag=np.full(LONG, sigma(t) ** 2))
    return -torch.from_numpy(process.apply_inverse(v[..., 0].numpy().T)).T[..., None]


def longest_rows() -> list[Row]:
    """A length at which a matrix would have 137 GB."""
    return [
        Limit(
            task=f"score N={LONGEST}, {name(kernel)}, t=0.01, f64, a sequence",
            peer="none: a matrix has 137 GB",
            ours=lambda kernel=kernel: (kernel, longest_score(kernel)),
            check=check_residual,
            units=LONG_BATCH,
            bar=100,
            rounds=3,
        )
        for kernel in LONG_KERNELS
    ]


def longest_score(kernel: PowerExponential) -> Tensor:
    """Of eight sequences, law and set-up included."""
    law = GaussianProcess(kernel, ONE, seq_len=LONGEST)
    return ExactScore(law)(long_sequences(kernel, 0.01, LONGEST, LONG_BATCH), 0.01)


def check_residual(found: tuple[PowerExponential, Tensor]) -> None:
    """A times the score is minus the sequence."""
    kernel, score = found
    x, v = score[..., 0], long_sequences(kernel, 0.01, LONGEST, LONG_BATCH)[..., 0]
    product = ToeplitzSolver(kernel_values(kernel, LONGEST)).product(x)
    residual = alpha(0.01) ** 2 * product + sigma(0.01) ** 2 * x + v
    assert residual.norm() < 1e-9 * v.norm()


@functools.cache
def long_sequences(kernel: PowerExponential, t: float, seq_len: int, n: int) -> Tensor:
    """Noised sequences, drawn once."""
    generator = torch.Generator().manual_seed(0)
    law = GaussianProcess(kernel, ONE, seq_len=seq_len)
    return perturb(law.sample(n, generator, torch.float64), t, generator)[0]


def name(kernel: PowerExponential) -> str:
    """As a formula."""
    scaled = f"r/{kernel.lengthscale:g}"
    return f"exp(-{scaled})" if kernel.exponent == 1 else f"exp(-({scaled})^{kernel.exponent:g})"


def dense_scores(dense: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """−A_t^{-1} v by one Cholesky factorisation a step; Γ ⊗ Σ is ready made."""
    scores = torch.empty_like(v)
    for k, step in enumerate(t.tolist()):
        matrix = dense * alpha(step) ** 2
        matrix.diagonal().add_(sigma(step) ** 2)
        factor = torch.linalg.cholesky(matrix)
        scores[k] = -torch.cholesky_solve(v[k].reshape(-1, 1), factor).view_as(v[k])
    return scores


def agree(ours: Tensor, theirs: Tensor) -> None:
    """The same numbers."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error < 1e-9, f"scores differ by {error:.1e}"
