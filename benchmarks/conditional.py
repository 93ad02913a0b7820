"""Missing frames: the law of a batch given what was seen, against a state-space smoother."""

from __future__ import annotations

import importlib.util
import math
import warnings

import torch
from torch import Tensor

from gptheory.data import GaussianProcess, decaying_process, pattern, random_gaps

from .compare import Comparison, Row

SEQ_LEN, DIM, BATCH, MISSING, LENGTHSCALE = 96, 8, 24, 16, 128.0


def rows() -> list[Row]:
    """All sequences with one mask, and each with its own; means and variances of all frames.

    VARMAX is told the true law, as the vector autoregression that the exponential kernel is, and
    works through one sequence at a time.
    """
    if importlib.util.find_spec("statsmodels") is None:
        return []
    law = decaying_process(SEQ_LEN, DIM, LENGTHSCALE)
    x = law.sample(BATCH, torch.Generator().manual_seed(0), torch.float64)
    one = pattern("tail", SEQ_LEN, MISSING).expand(BATCH, SEQ_LEN)
    each = random_gaps(BATCH, SEQ_LEN, 4, MISSING // 4, torch.Generator().manual_seed(1))
    return [
        Comparison(
            task=f"{BATCH} laws given frames, N={SEQ_LEN}, d={DIM}, {words}",
            peer="statsmodels VARMAX, true law, smoothed",
            ours=lambda observed=observed: conditioned(law, x, observed),
            theirs=lambda observed=observed: smoothed(law, x, observed),
            agree=agree,
            bar=bar,
            rounds=1,
            calls=20,
        )
        for words, observed, bar in (("one mask", one, 1000), ("own masks", each, 500))
    ]


def conditioned(law: GaussianProcess, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, zero where frames were seen: (batch, N, d)."""
    given = law.condition(x, observed)
    return given.mean, given.variance.sqrt()


def smoothed(law: GaussianProcess, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The same by Kalman's filter and a smoother."""
    from statsmodels.tsa.statespace.varmax import VARMAX

    rate = math.exp(-1 / LENGTHSCALE)
    root = torch.linalg.cholesky((1 - rate**2) * law.spatial)
    lower = root[tuple(torch.tril_indices(DIM, DIM))]
    parameters = torch.cat([rate * torch.eye(DIM, dtype=torch.float64).flatten(), lower]).numpy()
    means, deviations = torch.empty_like(x), torch.empty_like(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, (sequence, seen) in enumerate(zip(x, observed, strict=True)):
            data = sequence.masked_fill(~seen[:, None], math.nan).numpy()
            found = VARMAX(data, order=(1, 0), trend="n").smooth(parameters)
            means[k] = torch.from_numpy(found.smoothed_state[:DIM].T.copy())
            variances = found.smoothed_state_cov.diagonal(axis1=0, axis2=1)[:, :DIM]
            deviations[k] = torch.from_numpy(variances.clip(0) ** 0.5)
    return means, deviations


def agree(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Within 1e-8; variances of frames that were seen are rounding there, whose root is 1e-8."""
    for found, expected, allowed in zip(ours, theirs, (1e-8, 1e-7), strict=True):
        error = (found - expected).abs().max()
        assert error <= allowed, f"differ by {error:.1e}"
    missing = ours[1] > 0
    error = (ours[1] / theirs[1] - 1)[missing].abs().max()
    assert error <= 1e-8, f"deviations differ by {error:.1e}, relatively"
