r"""What a misplaced encoder costs, and what solvers leave off the subspace, with constants.

A time integral of a squared score error bounds the subspace error
:math:`\|WW^\top - BB^\top\|_F^2` whatever the law of the latent, and the variance that a reverse
process with equal steps leaves in an orthogonal direction is a recursion of numbers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..diffusion.schedule import half_log_snr
from ..support.precision import full_precision
from ..support.validation import require_count, require_positive, require_range, require_symmetric
from .subspace import require_orthonormal

NODES = 64  # of the quadrature in log σ²/α²; twice as many change 1e-12, from t = 1e-4 to 8


@full_precision()
def encoder_error(
    basis: Tensor, encoder: Tensor, covariance: Tensor, t_min: float = 0.02, t_max: float = 8.0
) -> float:
    r"""The smallest score error that an encoder allows, integrated over time,

    .. math:: \min_f \int_{t_{min}}^{t_{max}} E\|\hat s(v_t, t) - s(v_t, t)\|^2\,dt,
              \qquad \hat s = (W f(W^\top v, t) - v)/\sigma_t^2,

    for a Gaussian latent of mean zero, for which the best f is linear. Where W is off by angles
    θ_i and the latent is white, it is :math:`\sum_i\sin^2\theta_i\,e^{-t}/(e^t - 1)` at t_min to
    first order, with the horizon at infinity. Source: HWLSL Lemma F.7.

    Args:
        basis, encoder: B and W, (D, d_0), orthonormal.
        covariance: of the latent, (d_0, d_0), positive semidefinite.
        t_min, t_max: range of diffusion steps, T_0 and T.

    Returns:
        The integral: a sum over coordinates, not an average over time.

    Raises:
        ValueError: for bases that are not orthonormal or of different shapes, a covariance of
            another size or not symmetric, or steps out of order.

    Accuracy: a difference in float64; five digits for an encoder that is off by 1e-5.
    """
    basis, encoder = (
        require_orthonormal(*each) for each in (("basis", basis), ("encoder", encoder))
    )
    if basis.shape != encoder.shape:
        raise ValueError(
            f"basis and encoder must have one shape, got {tuple(basis.shape)} and"
            f" {tuple(encoder.shape)}"
        )
    covariance = require_symmetric("covariance", covariance)
    if len(covariance) != basis.shape[1]:
        raise ValueError(
            f"covariance must be {basis.shape[1]} x {basis.shape[1]}, one row for each column of"
            f" the bases, got {tuple(covariance.shape)}"
        )
    require_range(t_min, t_max)
    variances, axes = torch.linalg.eigh(covariance.to(basis))
    seen = encoder.to(basis).T @ basis @ axes  # Wᵀ(principal directions of the data)
    nodes, weights = _log_steps(t_min, t_max)
    errors = [_missed(seen, variances, ratio) for ratio in nodes]
    return float(weights @ errors)


def _log_steps(t_min: float, t_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss's nodes and weights in log σ²/α²: values of σ²/α², and of a piece of that logarithm."""
    low, high = (-2 * half_log_snr(t) for t in (t_min, t_max))
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return np.exp((low + high + (high - low) * nodes) / 2), (high - low) / 2 * weights


def _missed(seen: Tensor, variances: Tensor, ratio: float) -> float:
    r"""The least :math:`\sigma^2 E\|\hat s - s\|^2` at one σ²/α²; dt is σ² times a piece of log.

    The target of f is :math:`g = B K B^\top v`, :math:`K = α²M(α²M + σ²)^{-1}`; f predicts
    :math:`W^\top g` from :math:`u = W^\top v`.
    """
    noise, signal = ratio / (1 + ratio), 1 / (1 + ratio)  # σ², α²
    noised = signal * variances + noise
    shared = signal * variances  # K times the noised variances: what g has in common with v
    of_u = signal * (seen * variances) @ seen.T
    of_u.diagonal().add_(noise)
    common = (seen * shared) @ seen.T  # covariance of u and Wᵀg
    explained = (common * torch.linalg.solve(of_u, common)).sum()
    return ((shared**2 / noised).sum() - explained).item() / noise


def recovery_bound(error: float, smallest: float, t_min: float) -> float:
    r"""What a score error allows the subspace error to be, for every law of the latent,

    .. math:: \|WW^\top - BB^\top\|_F^2 \le \frac{2\,\varepsilon}{r - 1 - \log r}, \qquad
              r = \frac{c_0}{e^{T_0} - 1} > 1,

    with the integral :math:`\varepsilon = \int_{T_0}^T E\|\hat s - s\|^2\,dt` up to any
    :math:`T \ge \log(1 + c_0)`. For small T_0 it is :math:`2\,\varepsilon\,T_0/c_0`. The proof is
    in chapter 9, and ours. Source: HWLSL Lemma F.7; HWLSL Corollary 3.2.1.

    Args:
        error: ε, integrated over time, not averaged.
        smallest: c_0, the smallest eigenvalue of :math:`E\,hh^\top`.
        t_min: early stopping T_0, below log(1 + c_0).

    Raises:
        ValueError: for numbers that are not positive, or a t_min that is too large.
    """
    for name, value in (("error", error), ("smallest", smallest), ("t_min", t_min)):
        require_positive(name, value)
    ratio = smallest / math.expm1(t_min)
    if ratio <= 1:
        raise ValueError(
            f"t_min must be below log(1 + c0) = {math.log1p(smallest):.3g}, got {t_min:.3g}: at"
            " larger noise the bound says nothing"
        )
    return 2 * error / (ratio - 1 - math.log(ratio))


def orthogonal_variance(t_min: float, t_max: float, steps: int, exponential: bool = False) -> float:
    r"""Variance that equal steps μ of the reverse SDE leave in an orthogonal direction,

    .. math:: V \leftarrow \left(1 + \tfrac{\mu}{2} - \tfrac{\mu}{\sigma_t^2}\right)^2 V + \mu,

    from V = 1 at t_max, with the exact score :math:`-v/\sigma_t^2` (Euler-Maruyama). It is at least
    μ, and at most :math:`T_0 + \mu` if :math:`\mu\,(T_0 + \mu)^2 \le 24\,T_0` and
    :math:`T \ge 1` (proof in chapter 9). Source: HWLSL Lemma F.9; HWLSL Corollary 3.2.1.

    Args:
        t_min, t_max: T_0 and T.
        steps: their number, K; μ = (T − T_0)/K.
        exponential: whether the score alone is frozen during a step and the rest of the equation
            solved; then the noise of a step is :math:`e^\mu - 1`.

    Raises:
        ValueError: for steps out of order, or none.
    """
    require_range(t_min, t_max)
    require_count("steps", steps)
    length, variance = (t_max - t_min) / steps, 1.0
    growth, pull, noise = 1 + length / 2, length, length
    if exponential:
        growth, noise = math.exp(length / 2), math.expm1(length)
        pull = 2 * math.expm1(length / 2)
    for k in range(steps, 0, -1):
        variance *= (growth + pull / math.expm1(-(t_min + k * length))) ** 2
        variance += noise
    return variance
