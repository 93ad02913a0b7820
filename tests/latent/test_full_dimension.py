"""A latent as large as the space around it, and one that is larger."""

from __future__ import annotations

import pytest
import torch
from strategies import seeded
from tolerances import assert_identity

from gptheory.data import random_mixture
from gptheory.diffusion import ExactScore
from gptheory.latent import SubspaceData, random_basis


@pytest.mark.statement("HWLSL Appendix A")
@pytest.mark.parametrize("rotated", [False, True])
def test_without_a_subspace_the_score_is_the_latents(rotated):
    """d_0 = D: nothing is off the support, and B = I (or any rotation) changes coordinates only."""
    latent = random_mixture(2, 2, 3, generator=seeded(1))
    basis = random_basis(4, 4, seeded(2)) if rotated else torch.eye(4, dtype=torch.float64)
    data, t = SubspaceData(basis, latent), 0.3
    v = torch.randn(5, 1, 4, generator=seeded(3), dtype=torch.float64)
    score = ExactScore(data)(v, t)
    assert_identity(score, data.decode(ExactScore(latent)(data.encode(v), t)))
    _, off = data.split(score)
    assert_identity(score + off, score)


@pytest.mark.statement("HWLSL Appendix A")
def test_a_latent_larger_than_the_space_has_no_orthonormal_columns():
    wide = torch.randn(3, 4, generator=seeded(0), dtype=torch.float64)
    gram = wide.T @ wide
    assert torch.linalg.matrix_rank(gram) == 3  # never the identity of size 4
    for make in (lambda: random_basis(3, 4, seeded(0)), lambda: SubspaceData(wide, None)):
        with pytest.raises(ValueError, match="4"):
            make()
