"""What a solver does to every mode of a Gaussian law: computed, not sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.process import GaussianProcess, _require_process
from ..diffusion.exact import ExactScore
from ..diffusion.grids import T_MAX, step_grid, stop_for
from ..diffusion.schedule import alpha, sigma
from ..diffusion.solvers import mode_variances, trajectory
from ..support.overlap import relative_tv
from ..support.quadratic import squared_norm_cdf, squared_norm_quantile
from ..support.validation import require_level
from .covariances import relative_error


@dataclass(frozen=True)
class SamplingError:
    r"""What is generated, mode by mode, in the eigenbasis of Γ ⊗ Σ; and how far from the truth.

    Attributes:
        sampled, true: variances, (N, d) each.
        offset: mean of what is generated less the true one, (N, d).
    """

    sampled: Tensor
    true: Tensor
    offset: Tensor

    @property
    def ratio(self) -> Tensor:
        """Generated variance over the true one, (N, d); 1 where both are 0."""
        return torch.where(self.true > 0, self.sampled / self.true, 1 + self.sampled)

    @property
    def covariance(self) -> float:
        """Relative Frobenius error of the covariance; both laws share their eigenvectors."""
        return relative_error(self.sampled, self.true)

    @property
    def kl(self) -> float:
        """KL(generated ‖ true), in nats; infinite where a variance is 0 on one side only."""
        r, m = self._relative()
        return float((r - 1 - np.log(r) + m**2).sum() / 2)

    @property
    def mean_error(self) -> float:
        """Squared error of the mean over the total variance."""
        return (self.offset.square().sum() / self.true.sum()).item()

    def coverage(self, level: float = 0.95) -> float:
        """Of the ball that infinitely many generated sequences make: the share of true ones inside.

        Source: YC Algorithm 1. Accuracy: 1e-10 (:func:`.squared_norm_cdf`).

        Raises:
            ValueError: for a level outside (0, 1).
        """
        level = require_level(level)
        sampled, true, offset = (
            x.flatten().cpu().numpy() for x in (self.sampled, self.true, self.offset)
        )
        square = squared_norm_quantile(level, sampled, 0 * sampled)
        return squared_norm_cdf(square, true, offset)

    @property
    def w2(self) -> float:
        """Wasserstein-2 distance of the two laws."""
        gap = (self.sampled.sqrt() - self.true.sqrt()).square() + self.offset.square()
        return gap.sum().sqrt().item()

    @property
    def tv(self) -> float:
        """Total variation, as accurate as :func:`.relative_tv` is."""
        return relative_tv(*self._relative())

    def _relative(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances and means where the true law is N(0, I)."""
        scaled = self.offset / self.true.sqrt()
        return self.ratio.flatten().cpu().numpy(), scaled.flatten().cpu().numpy()


@torch.no_grad()
def sampling_error(
    process: GaussianProcess,
    solver: str = "exp-ab3",
    steps: int = 50,
    grid: str | list[float] = "log-snr",
    method: str = "ode",
    t_min: float | None = None,
    t_max: float = T_MAX,
    final_denoise: bool = True,
) -> SamplingError:
    r"""The law that a solver samples with the exact score of a Gaussian process.

    The score is linear, so is the solver, and each eigen-direction of Γ ⊗ Σ evolves alone: its
    responses to unit impulses, squared and added, are its variance (:func:`.mode_variances`), and
    what it makes of no noise at all is its mean.

    Args:
        process: the truth; of a conditional law ``law.process(k)``.
        solver, method, t_max, final_denoise: as in :func:`.sample`.
        steps: as in :func:`.sample`; not used when the grid is a list.
        grid: spacing of a :func:`.step_grid`, or diffusion steps themselves, decreasing.
        t_min: by default :func:`.stop_for` the process; not used when the grid is a list.

    Returns:
        A :class:`SamplingError`, against the clean law, or against p at the end of the grid
        without a final denoising.

    Raises:
        ValueError: for names, steps or grids out of range, or for another kind of law.

    Accuracy: float64 rounding.
    """
    _require_process("process", process)
    if isinstance(grid, str):
        t_min = stop_for(process) if t_min is None else t_min
        grid = step_grid(steps, t_min, t_max, grid)
    (temporal, u), (spatial, w) = process.temporal_spectrum, process.spatial_spectrum
    clean, mean = torch.outer(temporal, spatial), u.T @ process.mean @ w
    sampled = mode_variances(clean.flatten(), grid, method, solver, final_denoise).view_as(clean)
    centred = GaussianProcess(temporal.diag(), spatial.diag(), mean)
    end = 0.0 if final_denoise else grid[-1]
    true = alpha(end) ** 2 * clean + sigma(end) ** 2
    still = torch.zeros_like(clean)[None]
    path = trajectory(
        ExactScore(centred), still, grid, method, solver, lambda _k: still, final_denoise
    )
    *_, (_t, made) = path
    return SamplingError(sampled, true, made[0] - alpha(end) * mean)
