"""How large the values inside a constructed transformer become: what its multiplications cover."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..diffusion.schedule import alpha, sigma
from ..diffusion.unrolled import UnrolledScore
from ..support.validation import require_positive
from .blueprint import FEATURES
from .network import StepFeatures

TAIL = 1e-6  # probability that a sequence of the process leaves the default ranges
RANGE_MARGIN = 1.01  # for what happens between the steps of the grid below


def value_ranges(
    reference: UnrolledScore, norm_bound: float | None, t_min: float, t_max: float
) -> tuple[dict[str, float], float]:
    r"""Largest magnitude of everything that a constructed transformer multiplies, and R.

    Features of t: their maximum over [t_min, t_max]. Coordinates of v and of the iterates: their
    largest standard deviation under :math:`p_t`, over t, times the number of deviations that a
    sequence stays within but for a probability of 1e-6, by the union bound over coordinates and
    steps; a given ``norm_bound`` fixes that number instead.

    Args:
        reference: the iteration, by a stationary method.
        norm_bound: largest coordinate of v − α_t μ, or None.
        t_min, t_max: range of diffusion steps.

    Returns:
        Ranges by subspace, and R: the output is clipped at :math:`R/\sigma_t`.

    Raises:
        ValueError: for a norm bound below what a typical sequence reaches.
    """
    process = reference.process
    t = torch.logspace(math.log10(t_min), math.log10(t_max), 200, dtype=torch.float64)
    features = StepFeatures(reference.spectrum, reference.method.has_momentum)(t)
    peaks = dict(zip(FEATURES, features.T, strict=False))  # four names, or six with momentum
    peaks["signal_step"] = peaks["step"] * peaks["signal_var"]
    peaks["noise_step"] = peaks["step"] * peaks["noise_var"]
    ranges = {name: RANGE_MARGIN * peak.max().item() for name, peak in peaks.items()}
    ranges |= {"position": 1.0, "mean": max(process.mean.abs().max().item(), 1e-30)}
    frame_scale, score_scale = _coordinate_scales(reference, t)
    entries = process.seq_len * process.dim
    deviations = math.sqrt(2 * math.log(2 * entries * reference.steps / TAIL))
    typical = frame_scale * math.sqrt(2 * math.log(2 * entries))
    if norm_bound is not None:
        require_positive("norm_bound", norm_bound)
        if norm_bound < typical:
            raise ValueError(
                f"norm_bound={norm_bound:g} is too small for the data: the largest coordinate of a"
                f" typical noised sequence is {typical:.3g}; a safe bound is"
                f" {deviations * frame_scale:.3g}"
            )
        deviations = norm_bound / frame_scale
    ranges["frame"] = deviations * frame_scale
    ranges["score"] = deviations * score_scale
    ranges["momentum"] = 2 * ranges["score"]
    return ranges, deviations * math.sqrt(entries)


def _coordinate_scales(reference: UnrolledScore, t: Tensor) -> tuple[float, float]:
    """Largest standard deviation, over t, of a coordinate of v − α_t μ and of every iterate."""
    process = reference.process
    values, vectors = torch.linalg.eigh(reference.banded)
    spatial, rotation = process.spatial_spectrum
    signal, noise = (level(t)[:, None, None] ** 2 for level in (alpha, sigma))
    banded = signal * torch.outer(values, spatial) + noise  # (t, N, d)
    # v has covariance A_t, which is at most Ā_t plus the norm of what the band dropped
    dropped = torch.linalg.matrix_norm(process.gram() - reference.banded, 2) * spatial[-1]
    low, high = banded.amin(dim=(1, 2), keepdim=True), banded.amax(dim=(1, 2), keepdim=True)
    response = reference.method.largest_response(banded, low, high)
    spread = vectors.square() @ (response**2 * (banded + signal * dropped)) @ rotation.square().T
    variance = torch.outer(process.gram().diagonal(), process.spatial.diagonal()).max()
    frame = (signal * variance + noise).max().sqrt().item()
    return frame, spread.max().sqrt().item()
