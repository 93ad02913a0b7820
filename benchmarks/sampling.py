"""Drawing sequences: Kronecker factors and circulant embedding against dense samplers."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gptheory.data import GaussianProcess, PowerExponential, random_covariance
from gptheory.measures import (
    relative_error,
    sampling_floor,
    spatial_covariance,
    temporal_covariance,
)

from .compare import Comparison, Limit, Row

SEQ_LEN, DIM, N = 128, 8, 10_000
LONG, LONG_N = 65_536, 32
KERNEL = PowerExponential(8.0)
SPATIAL = random_covariance(DIM, generator=torch.Generator().manual_seed(0))


def rows() -> list[Row]:
    """Three peers for one batch of sequences, and the length that none of them reaches."""
    single, double = torch.float32, torch.float64
    size = f"N={SEQ_LEN}, d={DIM}, n={N}"
    given = "from the dense covariance"
    return [
        against(
            f"sample {size}, f32, with set-up", f"scipy rvs, {given}", single, scipy_rvs, 10, 3
        ),
        against(f"sample {size}, f64, with set-up", f"scipy rvs, {given}", double, scipy_rvs, 5, 3),
        against(
            f"sample {size}, f32, with set-up", "numpy cholesky f64, same", single, numpy_cholesky
        ),
        against(
            f"sample {size}, f32, with set-up",
            "torch MultivariateNormal f32, same",
            single,
            torch_mvn,
            30,
            0,
        ),
        Limit(
            task=f"sample N={LONG}, d=1, with set-up, a sequence",
            peer="none: a dense factor has 34 GB",
            ours=lambda: GaussianProcess(KERNEL, torch.ones(1, 1), seq_len=LONG).sample(LONG_N),
            check=check_lags,
            units=LONG_N,
            bar=5,
        ),
    ]


def against(task, peer, dtype, theirs, bar=None, rounds=5) -> Comparison:
    """Ours starts from a kernel and includes the factorisations; peers get Γ ⊗ Σ ready made."""
    return Comparison(
        task, peer, lambda: new_process().sample(N, dtype=dtype), theirs(), agree, bar, rounds
    )


def new_process() -> GaussianProcess:
    """Nothing factorised yet, except Σ."""
    return GaussianProcess(KERNEL, SPATIAL, seq_len=SEQ_LEN)


def scipy_rvs():
    """What scipy offers."""
    mean, dense, seed = np.zeros(SEQ_LEN * DIM), new_process().covariance().numpy(), iter(range(99))
    return lambda: stats.multivariate_normal.rvs(mean, dense, size=N, random_state=next(seed))


def numpy_cholesky():
    """What one writes by hand."""
    dense, generator = new_process().covariance().numpy(), np.random.default_rng(0)
    size = (N, len(dense))
    return lambda: generator.standard_normal(size) @ np.linalg.cholesky(dense).T


def torch_mvn():
    """What torch offers."""
    dense = new_process().covariance().float()
    law = torch.distributions.MultivariateNormal
    return lambda: law(torch.zeros(len(dense)), dense).sample((N,))


def agree(ours: Tensor, theirs: np.ndarray | Tensor) -> None:
    """Both have the covariance of the process, as far as n samples can tell."""
    law = new_process()
    for x in (ours, torch.as_tensor(theirs).float().view(N, SEQ_LEN, DIM)):
        assert x.shape == (N, SEQ_LEN, DIM)
        error = relative_error(temporal_covariance(x), law.gram())
        assert error < 1.5 * sampling_floor(law, N), f"temporal covariance off by {error:.3f}"
        error = relative_error(spatial_covariance(x), law.spatial)
        assert error < 3 * sampling_floor(law, N, "spatial"), (
            f"spatial covariance off by {error:.3f}"
        )


def check_lags(x: Tensor) -> None:
    """Covariance at four lags within five standard errors, sequences being independent."""
    assert x.shape == (LONG_N, LONG, 1)
    for lag in (1, 2, 10, 1000):
        averages = (x[:, : LONG - lag, 0] * x[:, lag:, 0]).mean(1)
        deviation = (averages.mean() - KERNEL(lag)).abs() / (averages.std() / math.sqrt(LONG_N))
        assert deviation < 5, f"lag {lag}: {deviation:.1f} standard errors"
