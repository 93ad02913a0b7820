"""Both covariance estimates of a sample, without the dense covariance."""

from __future__ import annotations

import numpy as np
import torch

from gptheory.data import GaussianProcess, PowerExponential, random_covariance
from gptheory.measures import spatial_covariance, temporal_covariance

from .compare import Comparison, Row

SEQ_LEN, DIM, N = 128, 8, 10_000


def rows() -> list[Row]:
    """Against the dense covariance in float64, numpy's default, and in float32."""
    generator = torch.Generator().manual_seed(0)
    law = GaussianProcess(PowerExponential(8.0), random_covariance(DIM), seq_len=SEQ_LEN)
    x = law.sample(N, generator)
    array = x.numpy()
    return [
        Comparison(
            task=f"temporal + spatial covariance, n={N}, f32",
            peer=f"np.cov ({dtype.__name__}) and block averages",
            ours=lambda: (temporal_covariance(x), spatial_covariance(x)),
            theirs=lambda dtype=dtype: block_averages(array, dtype),
            agree=agree,
            bar=bar,
        )
        for dtype, bar in ((np.float64, 2.5), (np.float32, None))
    ]


def block_averages(x: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Average the blocks of the dense covariance over coordinates, then over frames."""
    dense = np.cov(x.reshape(len(x), -1), rowvar=False, dtype=dtype)
    dense = dense.reshape(SEQ_LEN, DIM, SEQ_LEN, DIM)
    temporal = np.einsum("iaja->ij", dense)
    spatial = np.einsum("iaib->ab", dense) / SEQ_LEN
    return temporal / np.diag(temporal).mean(), spatial


def agree(ours: tuple, theirs: tuple) -> None:
    """The same numbers, up to float32."""
    for mine, other in zip(ours, theirs, strict=True):
        error = np.abs(mine.numpy() - other).max() / np.abs(other).max()
        assert error < 1e-4, f"covariances differ by {error:.1e}"
