"""Motion in videos, as it is and as it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.covariance import gram
from ..data.video import uniform_correlation, uniform_paths
from ..support.validation import require_count, require_sequences
from .covariances import lag_correlations, temporal_covariance


@dataclass(frozen=True)
class Motion:
    """What paths do, and how exact a measurement from n paths can be.

    Attributes:
        lag_one: correlation of neighbouring frames.
        jump: root mean square distance between neighbouring frames, in pixels.
        error: relative Frobenius error of the temporal correlation; for the truth, its floor.
    """

    lag_one: float
    jump: float
    error: float


def true_motion(kernel: Callable[[Tensor], Tensor], seq_len: int, reach: float) -> Motion:
    r"""Exact values for :func:`.uniform_paths`: the jump is :math:`2R\sqrt{(1-\rho)/3}`.

    Raises:
        ValueError: for fewer than two frames.
    """
    require_count("seq_len", seq_len, minimum=2)
    rho = uniform_correlation(gram(kernel, seq_len))[0, 1].item()
    return Motion(rho, 2 * reach * math.sqrt((1 - rho) / 3), 0.0)


def measured_motion(paths: Tensor, kernel: Callable[[Tensor], Tensor]) -> Motion:
    """Motion of paths (n, N, 2) about the middle of the frame, beside the kernel of their law.

    Raises:
        ValueError: for a wrong shape, fewer than two frames, or values that are not finite.
    """
    require_sequences("paths", paths, dim=2)
    require_count("the number of frames", paths.shape[1], minimum=2)
    temporal = temporal_covariance(paths, paths.new_zeros(2)).double()
    truth = uniform_correlation(gram(kernel, paths.shape[1])).to(temporal)
    jump = paths.double().diff(dim=1).square().sum(dim=2).mean().sqrt()
    error = ((temporal - truth).norm() / truth.norm()).item()
    return Motion(lag_correlations(temporal)[1].item(), jump.item(), error)


def motion_floor(
    kernel: Callable[[Tensor], Tensor], n: int, seq_len: int, draws: int = 20, seed: int = 0
) -> Motion:
    """Root mean square errors of :func:`measured_motion` over draws of n true paths.

    The jump's is relative. Paths are not Gaussian, so this floor is drawn, not computed.
    """
    generator, truth = torch.Generator().manual_seed(seed), true_motion(kernel, seq_len, 1.0)
    found = [
        measured_motion(uniform_paths(kernel, n, seq_len, 1.0, generator), kernel)
        for _ in range(draws)
    ]
    errors = [(m.lag_one - truth.lag_one, m.jump / truth.jump - 1, m.error) for m in found]
    squares = torch.tensor(errors, dtype=torch.float32, device="cpu").square()
    return Motion(*squares.mean(dim=0).sqrt().tolist())
