r"""Denoising score matching: the loss, and the law of the diffusion steps it is averaged over.

.. math:: \min_{\hat s}\; E\left[w(t)\,\|\hat s(v_t, t) + z/\sigma_t\|^2\right], \qquad
          v_t = \alpha_t x + \sigma_t z.

Given v_t, the mean of :math:`-z/\sigma_t` is the score; so the score is the minimiser, whatever the
weight w > 0 and the law of t (Vincent 2011). They decide how fast one gets there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.exact import Score
from ..diffusion.schedule import half_log_snr, levels, perturb, step_at, strata, stratified_steps
from ..support.draws import drawn
from ..support.validation import require_count, require_one_of, require_range

TIMES = ("logsnr", "uniform", "normal")
WEIGHTS = ("velocity", "noise")
NORMAL_TIMES = (1.0, 2.0)  # mean and standard deviation of logSNR


def matching_loss(
    score: Score,
    x: Tensor,
    t: float | Tensor,
    generator: torch.Generator | None = None,
    weight: str = "velocity",
    observed: Tensor | None = None,
) -> Tensor:
    r"""Monte Carlo estimate of the loss, :math:`w(t)\,\|\hat s(v_t, t) + z/\sigma_t\|^2 / (Nd)`.

    Of an imputer, called as (v, t, observed), only missing frames are noised, and the loss is that
    of missing frames: M in place of N. Source: YC Algorithm 1.

    Args:
        score: the score to be trained, called as (v, t), or (v, t, observed).
        x: clean sequences (batch, N, d).
        t: diffusion step, a number or one per sequence (batch,).
        generator: source of the noise z.
        weight: w(t), ``"velocity"``, :math:`\sigma_t^2/\alpha_t^2`, for which the loss is the
            squared error of :math:`\sigma_t x - \alpha_t z`; or ``"noise"``, :math:`\sigma_t^2`,
            for which it is that of z (and, averaged uniformly over logSNR, the likelihood's).
        observed: for an imputer, masks (batch, N), True where a frame is seen.

    Returns:
        A number, differentiable in the weights of the score. Its minimum is not 0: z cannot be
        known from v_t.

    Raises:
        ValueError: for a wrong shape, a step that is not finite and > 0, or an unknown weight.
    """
    v, noise = perturb(x, t, generator)
    if observed is None:
        return matching_error(score(v, t), noise, t, weight).square().mean()
    v = torch.where(observed[..., None], x, v)
    error = matching_error(score(v, t, observed), noise, t, weight)
    return missing_mean(error.square(), observed)


def missing_mean(values: Tensor, observed: Tensor) -> Tensor:
    """The average over entries of missing frames, without looking at the others.

    Args:
        values: (..., batch, N, d).
        observed: (..., batch, N), True where a frame is seen.

    Returns:
        (...).
    """
    missing = (~observed).sum(dim=(-2, -1))
    kept = values.masked_fill(observed[..., None], 0.0).sum(dim=(-3, -2, -1))
    return kept / (missing * values.shape[-1])


def matching_error(score: Tensor, noise: Tensor, t: float | Tensor, weight: str) -> Tensor:
    r"""The residual whose mean square is the loss, :math:`\sqrt{w(t)}\,(\hat s + z/\sigma_t)`.

    Args:
        score, noise: :math:`\hat s(v_t, t)` and z, (batch, N, d).
        t, weight: as in :func:`matching_loss`.

    Raises:
        ValueError: for an unknown weight.
    """
    require_one_of("weight", weight, WEIGHTS)
    signal_level, noise_level = levels(t, score)
    error = noise_level * score + noise
    return error / signal_level if weight == "velocity" else error


def matching_steps(
    n: int,
    law: str,
    t_min: float,
    t_max: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Diffusion steps of a batch.

    Args:
        n: how many.
        law: ``"logsnr"``, uniform in logSNR; ``"uniform"``, uniform in t; both stratified over the
            batch; or ``"normal"``, logSNR ~ N(1, 2²), clipped to the range.
        t_min, t_max: their range.
        generator: source of randomness; its device is the result's.

    Returns:
        (n,) in float64.

    Raises:
        ValueError: for n < 1, an unknown law, or unless 0 < t_min < t_max.
    """
    require_one_of("law", law, TIMES)
    require_count("n", n)
    require_range(t_min, t_max)
    if law == "logsnr":
        return stratified_steps(n, t_min, t_max, generator)
    if law == "uniform":
        return t_min + (t_max - t_min) * strata(n, generator)
    mean, deviation = NORMAL_TIMES
    log_snr = mean + deviation * drawn(torch.randn, n, generator=generator)
    return step_at((log_snr / 2).clamp(half_log_snr(t_max), half_log_snr(t_min)))
