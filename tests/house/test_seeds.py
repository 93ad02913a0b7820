"""A seed decides the same numbers on every machine, up to rounding.

The reference numbers are those of torch 2.13.0 with MKL on an x86-64 processor, rounded to six
decimals. Other processors, other LAPACK libraries and other versions of torch must draw them too:
a seed that means something else elsewhere makes every seeded number of the book a local one.
"""

from __future__ import annotations

import math

import pytest
import torch

from gptheory.data import (
    GaussianMixture,
    GaussianProcess,
    GaussianTwin,
    LatentMap,
    Matern,
    Periodic,
    PowerExponential,
    random_covariance,
    uniform_paths,
)
from gptheory.data.kernels import RationalQuadratic
from gptheory.diffusion import ExactScore, perturb, sample
from gptheory.latent import LatentScore, SubspaceData, principal_subspace, random_basis
from gptheory.networks import DiT
from gptheory.training.loop import draw_batch
from gptheory.training.objective import matching_steps

LAPLACE = PowerExponential(8.0)
N, D, LARGEST = 16, 4, 6.0  # frames, coordinates, and a bound on every number that is drawn
ROUNDED = 0.5e-6  # the references have six decimals
# An eigenvalue that is zero up to rounding is N u λ_max at most, λ_max <= N; its root, N √u, meets
# noise below the bound.
IN_FLOAT64 = ROUNDED + N * math.sqrt(torch.finfo(torch.float64).eps) * LARGEST  # 1.9e-6
# N products in float32, each of which may be wrong by u times the bound.
IN_FLOAT32 = ROUNDED + N * torch.finfo(torch.float32).eps * LARGEST  # 1.2e-5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def process(kernel=LAPLACE, seq_len: int = N) -> GaussianProcess:
    return GaussianProcess(kernel, random_covariance(D, generator=seeded()), seq_len=seq_len)


def sequences(kernel=LAPLACE, seq_len=N, dtype=torch.float64) -> torch.Tensor:
    return process(kernel, seq_len).sample(2, seeded(), dtype)


def uneven_rows() -> torch.Tensor:
    """300 vectors of 9 independent coordinates with variances 2, 1, 1/2, …: no two alike."""
    scales = 2 ** -(torch.arange(9, dtype=torch.float64) / 2)
    return math.sqrt(2) * scales * torch.randn(300, 9, generator=seeded(), dtype=torch.float64)


def uneven_map() -> torch.Tensor:
    return LatentMap.fit(uneven_rows().view(300, 3, 3), D).basis


def noised() -> torch.Tensor:
    return perturb(torch.zeros(2, N, D, dtype=torch.float64), 0.5, seeded())[0]


def generated() -> torch.Tensor:
    law = process()
    return sample(ExactScore(law), 2, N, D, generator=seeded(), dtype=torch.float64)


def first_weights() -> torch.Tensor:
    network = DiT(D, N, hidden=16, heads=2, depth=1, generator=seeded())
    return torch.cat([p.detach().flatten() for p in network.parameters() if p.std() > 0])


def first_encoder() -> torch.Tensor:
    return LatentScore(9, D, DiT(D, 1, hidden=16, heads=2, depth=1), generator=seeded()).encoder


def one_path() -> torch.Tensor:
    return uniform_paths(LAPLACE, 3, N, 1.0, seeded())


def twin() -> torch.Tensor:
    return GaussianTwin(process().sample(200, seeded(), torch.float64)).sample(2, seeded(1))


def mixture() -> torch.Tensor:
    means = torch.tensor([[[-2.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 0.0, 0.0]]])
    law = GaussianMixture(means, random_covariance(D, generator=seeded()))
    return law.sample(4, seeded(), torch.float64)


def latent_data() -> torch.Tensor:
    law = GaussianProcess(torch.eye(1), random_covariance(D, generator=seeded()))
    return SubspaceData(random_basis(9, D, seeded()), law, 0.1).sample(3, seeded(), torch.float64)


# what is drawn, and its first number, the middle one, the last
FLOAT64 = {
    "dense, one length scale": (sequences, [-2.313306, 1.064963, -0.958585]),
    "dense, smooth: eigenvalues down to 1e-17": (
        lambda: sequences(PowerExponential(8.0, 2.0)),
        [-2.166369, 1.002551, -0.362015],
    ),
    "dense, Matern": (lambda: sequences(Matern(4.0, 1.5)), [-2.113212, 0.888757, -0.842217]),
    "dense, rational quadratic": (
        lambda: sequences(RationalQuadratic(4.0, 1.0)),
        [-2.1725, 0.977846, -0.643728],
    ),
    "dense, periodic: eigenvalues in pairs": (
        lambda: sequences(Periodic(1.0, 8.0)),
        [-1.871596, 1.47152, -1.990448],
    ),
    "circulant": (lambda: sequences(seq_len=1024), [0.003072, -1.747508, 0.251003]),
    "random covariance": (
        lambda: random_covariance(D, generator=seeded()),
        [0.65102, 0.090008, 0.556114],
    ),
    "random basis": (lambda: random_basis(9, D, seeded()), [-0.682953, -0.400175, 0.495117]),
    "mixture": (mixture, [1.438621, -0.888038, -0.279636]),
    "data near a subspace": (latent_data, [-0.322483, -1.118722, -0.015032]),
    "Gaussian twin": (twin, [-0.064256, -0.378219, -0.207585]),
    "latent map": (uneven_map, [0.995251, 0.013584, -0.018965]),
    "principal subspace": (
        lambda: principal_subspace(uneven_rows()[:, None], D),
        [0.994986, 0.013818, -0.018298],
    ),
    "noised": (noised, [-1.449255, -0.708063, -0.378674]),
    "times of a batch": (
        lambda: matching_steps(7, "normal", 0.01, 10.0, seeded()),
        [0.016733, 0.111563, 0.152031],
    ),
    "generated": (generated, [-1.926591, -0.557264, -0.387966]),
}
FLOAT32 = {
    "dense": (lambda: sequences(dtype=torch.float32), [-0.715656, 0.511686, 0.657093]),
    "circulant": (
        lambda: sequences(seq_len=1024, dtype=torch.float32),
        [0.044015, 0.060149, -0.678316],
    ),
    "first weights": (first_weights, [0.099752, 0.204017, -0.036394]),
    "first encoder": (first_encoder, [-0.463627, -0.042625, 0.226079]),
    "path of a ball": (one_path, [-0.526079, 0.70252, 0.979953]),
}


def assert_drawn(draw, expected: list[float], dtype: torch.dtype, allowed: float) -> None:
    drawn = draw().detach().flatten()
    assert drawn.dtype == dtype and drawn.abs().max() < LARGEST
    shown = drawn[[0, len(drawn) // 2, -1]].double()
    off = (shown - torch.tensor(expected, dtype=torch.float64)).abs().max().item()
    assert off <= allowed, f"drawn {shown.tolist()}, expected {expected}, allowed {allowed:.2g}"


@pytest.mark.parametrize("what", FLOAT64)
def test_seeds_are_the_same_everywhere(what):
    assert_drawn(*FLOAT64[what], torch.float64, IN_FLOAT64)


@pytest.mark.parametrize("what", FLOAT32)
def test_seeds_are_the_same_everywhere_in_float32(what):
    assert_drawn(*FLOAT32[what], torch.float32, IN_FLOAT32)


def test_batches_are_the_same_everywhere():
    rows = torch.arange(50.0)[:, None, None]
    drawn = draw_batch(rows, 8, seeded(), torch.float32).flatten().tolist()
    assert drawn == [44, 39, 33, 10, 13, 29, 27, 3]
