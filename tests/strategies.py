"""Random kernels, covariances and processes for the property-based tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from gptheory.data import (
    GaussianProcess,
    Matern,
    Periodic,
    PowerExponential,
    WhiteNoise,
    gram,
    random_covariance,
)
from gptheory.data.kernels import RationalQuadratic

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

seeds = st.integers(0, 2**31 - 1)
lengthscales = st.floats(0.2, 50.0)
smoothnesses = st.floats(0.1, 6.0) | st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5, 3.5, float("inf")])
kernels = st.one_of(
    st.builds(PowerExponential, lengthscales, st.floats(0.1, 2.0)),
    st.builds(Matern, lengthscales, smoothnesses),
    st.builds(RationalQuadratic, lengthscales, st.floats(0.1, 10.0)),
    st.builds(Periodic, st.floats(0.2, 5.0), st.floats(1.5, 40.0)),
    st.just(WhiteNoise()),
)
diffusion_steps = st.floats(0.01, 8.0)


def seeded(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def covariance(dim: int, seed: int = 0, low: float = 0.1) -> torch.Tensor:
    """A covariance with eigenvalues in [low, 1], without any structure."""
    return random_covariance(dim, low, 1.0, seeded(seed))


def process(
    seq_len: int = 5, dim: int = 3, seed: int = 0, mean: bool = True, low: float = 0.1
) -> GaussianProcess:
    """A process with non-stationary Γ, any Σ and, if asked for, one mean per frame."""
    means = torch.randn(seq_len, dim, generator=seeded(seed + 2), dtype=torch.float64)
    return GaussianProcess(
        covariance(seq_len, seed, low), covariance(dim, seed + 1, low), means if mean else None
    )


processes = st.builds(
    process,
    seq_len=st.integers(1, 7),
    dim=st.integers(1, 4),
    seed=seeds,
    mean=st.booleans(),
    low=st.sampled_from([0.01, 0.1, 0.5]),
)


@st.composite
def semidefinite_matrices(draw, max_size: int = 12) -> torch.Tensor:
    """Temporal covariances: of a kernel, or non-stationary and possibly of low rank."""
    size = draw(st.integers(2, max_size))
    if draw(st.booleans()):
        return gram(draw(kernels), size)
    rank = draw(st.integers(1, size))
    root = torch.randn(size, rank, generator=seeded(draw(seeds)), dtype=torch.float64)
    return root @ root.T
