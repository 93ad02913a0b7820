"""The exact score of a batch in which every sequence has its own diffusion step."""

from __future__ import annotations

import torch
from torch import Tensor

from gptheory.data import GaussianProcess, PowerExponential, gram, random_covariance
from gptheory.diffusion import ExactScore, alpha, perturb, sigma

from .compare import Comparison, Row

SEQ_LEN, DIM, BATCH = 128, 8, 256


def rows() -> list[Row]:
    """One rotation for all steps, against one factorisation a step."""
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
