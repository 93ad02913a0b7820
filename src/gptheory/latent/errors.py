r"""How far a score is from that of data on a subspace: on the subspace and off it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..diffusion.exact import ExactScore, Score
from ..diffusion.schedule import half_log_snr, perturb, sigma, stratified_steps
from ..support.draws import drawn
from ..support.precision import full_precision
from ..support.validation import require_count, require_finite, require_score, require_sequences
from .subspace import SubspaceData

STEPS = (0.02, 4.0)  # diffusion steps of trainings and errors in chapter 9, T_0 and T


@torch.no_grad()
def support_errors(
    score: Score,
    data: SubspaceData,
    n: int = 2048,
    t_min: float = STEPS[0],
    t_max: float = STEPS[1],
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    r"""Score error on the subspace and off it, weighted by :math:`\sigma_t^2`,

    .. math:: E\,\sigma_t^2\|BB^\top(\hat s - s)\|^2, \qquad
              E\,\sigma_t^2\|(I - BB^\top)(\hat s - s)\|^2,

    with logSNR uniform over the range of diffusion steps. Both are **sums** over coordinates, not
    relative to anything; the error of the score −z/σ_t of pure noise would be D on this scale.
    Since :math:`dt = -\sigma_t^2\,d\,\text{logSNR}`, either is a time average:
    :math:`\int E\|\hat s - s\|^2 dt = c\,E\,\sigma_t^2\|\hat s - s\|^2` with c the length of the
    range in logSNR (:func:`error_scale`).

    Args:
        score: under test, called as (v, t) with one t per vector.
        data: the law.
        n: Monte Carlo vectors, each with a step in a stratum of its own.
        t_min, t_max: range of diffusion steps.
        generator: source of randomness.

    Returns:
        ``on`` and ``off``; their sum is the total error.

    Raises:
        ValueError: for n < 1, steps out of order, or a score of the wrong shape.

    Accuracy: a standard error of 3 to 5 % at the default n.
    """
    t = stratified_steps(n, t_min, t_max, generator)
    v, _ = perturb(data.sample(n, generator), t.to(data.device), generator)
    t = t.to(v.device)
    estimate, truth = score(v, t), ExactScore(data)(v, t)
    difference = require_score(estimate, v) - truth
    parts = data.split(sigma(t).to(v)[:, None, None] * difference)
    on, off = (part.double().square().sum(dim=(1, 2)).mean().item() for part in parts)
    return {"on": on, "off": off}


def error_scale(t_min: float = STEPS[0], t_max: float = STEPS[1]) -> float:
    r"""c of :func:`support_errors`: logSNR(t_min) − logSNR(t_max).

    Half of it times the total error bounds the Kullback-Leibler divergence of the sampled law from
    the true one at t_min, but for the start (see :func:`.path_kl`).
    """
    return 2 * (half_log_snr(t_min) - half_log_snr(t_max))


def orthogonal_energy(x: Tensor, data: SubspaceData) -> float:
    r"""Mean square of a coordinate off the subspace, :math:`\|(I - BB^\top)x\|^2/(D - d_0)`.

    The exact reverse process, stopped at t_0, leaves :math:`\sigma_{t_0}^2`.
    Source: HWLSL Corollary 3.2.1.

    Args:
        x: (n, 1, D).
        data: names the subspace, d_0 < D.

    Raises:
        ValueError: for a wrong shape, no vectors, or d_0 = D.
    """
    require_sequences("x", x, 1, data.dim)
    require_count("the number of vectors", len(x))
    if data.latent_dim == data.dim:
        raise ValueError("no direction is orthogonal to the whole space: d_0 = D")
    require_finite("x", x)
    off = data.split(x)[1].double()
    return off.square().sum().item() / (len(x) * (data.dim - data.latent_dim))


@full_precision()
def sliced_distance(
    x: Tensor, y: Tensor, directions: int = 128, generator: torch.Generator | None = None
) -> float:
    r"""Sliced Wasserstein-2 distance of two samples of one size,

    .. math:: \left(E_u\, W_2^2(u^\top x, u^\top y)\right)^{1/2},

    u uniform on the sphere; in one dimension W2 is the distance of sorted samples. It has little
    power: 256 samples in eight dimensions do not tell a mixture from the Gaussian with its moments,
    at a total variation of 0.6 (chapter 9; :func:`.total_variation` does).

    Args:
        x, y: (n, L, d), flattened here.
        directions: number of u.
        generator: source of u.

    Returns:
        The distance, in the unit of a coordinate. It is not 0 for two samples of one law, but
        of order :math:`n^{-1/2}`: print what true samples have beside it.

    Raises:
        ValueError: for shapes that differ, numbers that are not finite, or no directions.
    """
    for name, each in (("x", x), ("y", y)):
        require_sequences(name, each)
        require_finite(name, each)
    require_count("directions", directions)
    if x.shape != y.shape:
        raise ValueError(f"samples must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    shape = x[0].numel(), directions
    free = drawn(torch.randn, *shape, generator=generator, dtype=torch.float32, device=x.device)
    u = (free / free.norm(dim=0)).to(x)
    a, b = ((each.flatten(1) @ u).sort(dim=0).values for each in (x, y.to(x)))
    return math.sqrt((a - b).square().mean().item())
