r"""Where to stop and where to begin: the three terms of a generator's total variation.

All laws here are Gaussian, and so are those that linear scores generate; so every term is an
integral in one dimension (:mod:`.overlap`), and none is bounded or sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts where they are used
import torch
from torch import Tensor

from ..data.estimate import _sample
from ..data.process import GaussianProcess, _require_regular
from ..support.overlap import dense_tv, relative_tv
from ..support.validation import require_count, require_positive, require_range
from .schedule import alpha, sigma

Moments = tuple[np.ndarray, np.ndarray]
LONGEST = 200.0  # horizon at which nothing is left of any law


@dataclass(frozen=True)
class Budget:
    r"""Total variation of a generator, by where it is lost.

    Attributes:
        n: sequences that the score was estimated from.
        t_min, t_max: early stopping t_0 and horizon T.
        stopping: TV(p, p_{t_0}).
        horizon: TV(p_T, N(0, I)), which the probability flow of the exact score, one to one,
            carries down to t_0 as it is.
        path: total variation between what the exact score and the estimated one generate.
        whole: that between p and what the estimated score generates.
    """

    n: int
    t_min: float
    t_max: float
    stopping: float
    horizon: float
    path: float
    whole: float

    @property
    def ceiling(self) -> float:
        """The sum of the three, which ``whole`` is at most: the triangle inequality."""
        return self.stopping + self.horizon + self.path


def budget(
    process: GaussianProcess,
    n: int,
    t_min: float | None = None,
    t_max: float | None = None,
    estimator: Callable[[Tensor], GaussianProcess] | None = None,
    draws: int = 4,
    generator: torch.Generator | None = None,
) -> Budget:
    r"""What early stopping, the estimated score and the horizon cost in total variation.

    By default :math:`t_0 = \lambda_{min}\,n^{-1/2}` with the smallest eigenvalue of the covariance,
    at which stopping costs about :math:`\sqrt{Nd/8n}` at most, whatever the kernel (for mean zero
    and an eigenvalue below 1 the variance ratios of p and p_{t_0} are within :math:`n^{-1/2}` of 1;
    Pinsker). At :math:`t_0 = n^{-1/2}` it costs up to :math:`1/\lambda_{min}` times as much: 0.085,
    0.27, 0.77 and 1.00 at n = 4096 for ν = 0.5, 1, 1.5, 1.9, against 0.011 to 0.009 (N = 16, d = 2,
    ℓ = 8). T is the least horizon >= 1 that costs at most 1/n, which is of order log n.
    Source: FDGWC Theorem 2.

    Args:
        process: law of the clean sequences.
        n: sequences of a training set.
        t_min, t_max: others than these.
        estimator: what makes a Gaussian law of sequences (n, N, d), such as
            :func:`.kronecker_mle`; by default their mean and full covariance, as
            :class:`.WienerScore` has.
        draws: training sets that ``path`` and ``whole`` are averages over.
        generator: source of the training sets; by default a fixed one.

    Returns:
        A :class:`Budget`.

    Raises:
        NotPSDError: for a process whose smallest eigenvalue is zero to the precision of its
            factors: it has no density, and stopping at any t_0 costs 1.
        ValueError: for counts or steps out of range, or what the estimator refuses.

    Accuracy: 1e-8 a term (:func:`.relative_tv`), for the training sets that were drawn.
    """
    require_count("n", n)
    require_count("draws", draws)
    smallest = _smallest_eigenvalue(process)
    t_min = smallest / math.sqrt(n) if t_min is None else t_min
    require_positive("t_min", t_min)
    t_max = _horizon_for(process, n, t_min) if t_max is None else t_max
    require_range(t_min, t_max)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    truth, estimated = _moments(process), estimator or _full_covariance
    exact, found = _generated(truth, t_min, t_max), []
    for _ in range(draws):
        x = process.sample(n, generator, torch.float64)
        other = _generated(_moments(estimated(x)), t_min, t_max)
        found.append((dense_tv(*exact, *other), dense_tv(*truth, *other)))
    path, whole = (float(each) for each in np.mean(found, axis=0))
    stopping, horizon = stopping_tv(process, t_min), horizon_tv(process, t_max)
    return Budget(n, t_min, t_max, stopping, horizon, path, whole)


def stopping_tv(process: GaussianProcess, t: float) -> float:
    r"""TV(p, p_t): what stopping at t costs, if nothing else does.

    Both laws are diagonal in the same directions; along that of variance λ the ratio of their
    variances is :math:`\lambda / (\alpha_t^2\lambda + \sigma_t^2)`.

    Raises:
        ValueError: unless t is finite and > 0.

    Accuracy: that of :func:`.relative_tv`; 1 where an eigenvalue is 0.
    """
    require_positive("the diffusion step t", t)
    variances, means = _spectrum(process)
    noised = alpha(t) ** 2 * variances + sigma(t) ** 2
    return relative_tv(variances / noised, (1 - alpha(t)) * means / np.sqrt(noised))


def horizon_tv(process: GaussianProcess, t: float) -> float:
    r"""TV(p_t, N(0, I)): what beginning at t from white noise costs, if nothing else does.

    It falls with t, for a process of mean zero as :math:`e^{-t}`, else as :math:`e^{-t/2}`.

    Raises:
        ValueError: unless t is finite and > 0.

    Accuracy: that of :func:`.relative_tv`.
    """
    require_positive("the diffusion step t", t)
    variances, means = _spectrum(process)
    return relative_tv(alpha(t) ** 2 * variances + sigma(t) ** 2, alpha(t) * means)


def _spectrum(process: GaussianProcess) -> Moments:
    """Variances and means along the eigenvectors of the covariance, (N·d,) each."""
    (temporal, u), (spatial, w) = process.temporal_spectrum, process.spatial_spectrum
    parts = torch.outer(temporal, spatial), u.T @ process.mean @ w
    variances, means = (part.flatten().cpu().numpy() for part in parts)
    return variances, means


def _smallest_eigenvalue(process: GaussianProcess) -> float:
    """Of Γ ⊗ Σ, where it is told from 0."""
    temporal, spatial = process.temporal_spectrum[0], process.spatial_spectrum[0]
    _require_regular("temporal", temporal, process.temporal_dtype)
    _require_regular("spatial", spatial, process.spatial_dtype)
    return (temporal[0] * spatial[0]).item()


def _horizon_for(process: GaussianProcess, n: int, t_min: float) -> float:
    """The least T >= 1, and above t_min, that costs at most 1 / n."""
    least = max(1.0, 2 * t_min)
    if horizon_tv(process, least) <= 1 / n:
        return least
    return scipy.optimize.brentq(
        lambda t: math.log(horizon_tv(process, t) * n + 1e-12), least, LONGEST, xtol=1e-6
    )


def _moments(law: GaussianProcess) -> Moments:
    return law.covariance().cpu().numpy(), law.mean.flatten().cpu().numpy()


def _full_covariance(x: Tensor) -> GaussianProcess:
    """Mean and covariance of sequences, as the law of one long sequence of one coordinate."""
    flat = _sample(x).flatten(1)
    mean = flat.mean(dim=0)
    covariance = (flat - mean).T @ (flat - mean) / len(x)
    return GaussianProcess(covariance, flat.new_ones(1, 1), mean[:, None])


def _generated(moments: Moments, t_min: float, t_max: float) -> Moments:
    r"""What the probability flow of a Gaussian's score makes of N(0, I) at t_max.

    It is linear: along an eigenvector it stretches by the ratio of the standard deviations.
    """
    covariance, mean = moments
    values, vectors = np.linalg.eigh(covariance)
    low, high = (alpha(t) ** 2 * values.clip(min=0) + sigma(t) ** 2 for t in (t_min, t_max))
    stretch = (vectors * np.sqrt(low / high)) @ vectors.T
    made = alpha(t_min) * mean - stretch @ (alpha(t_max) * mean)
    return (vectors * (low / high)) @ vectors.T, made
