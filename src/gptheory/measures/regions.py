r"""Regions that are said to hold what is missing: balls, ellipsoids, and how often they do.

A region is :math:`\{x : \|A(x - c)\| \le r\}`, a ball where A = I. Its *coverage* by a Gaussian law
is the distribution function of a weighted sum of noncentral :math:`\chi^2` (:mod:`.quadratic`):
computed, not sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts where they are used
import torch
from torch import Tensor

from ..data.conditional import Conditional
from ..data.process import GaussianProcess, _require_process, _require_regular
from ..support.precision import full_precision
from ..support.quadratic import squared_norm_cdf, squared_norm_quantile
from ..support.rounding import spectrum_rounding, unit_roundoff
from ..support.validation import (
    NotPSDError,
    require_count,
    require_finite,
    require_level,
    require_nonnegative,
    require_sequences,
)


@dataclass(frozen=True)
class Region:
    r"""The sequences x with :math:`\|A(x - c)\| \le r`.

    Attributes:
        centre: c, (N, d).
        radius: r >= 0.
        whitening: A, (N·d, N·d), frames one after the other; None is the identity, of a ball.

    Raises:
        ValueError: for a radius that is negative or not finite.
    """

    centre: Tensor
    radius: float
    whitening: Tensor | None = None

    def __post_init__(self) -> None:
        require_nonnegative("radius", self.radius)

    @full_precision()
    def distance(self, x: Tensor) -> Tensor:
        """‖A(x − c)‖ of sequences (n, N, d), as (n,)."""
        require_sequences("x", x, *self.centre.shape)
        gaps = (x - self.centre.to(x)).flatten(1)
        return (gaps if self.whitening is None else gaps @ self.whitening.to(x).T).norm(dim=1)

    def contains(self, x: Tensor) -> Tensor:
        """Whether sequences (n, N, d) lie in the region, (n,) boolean."""
        return self.distance(x) <= self.radius

    @property
    def log_volume(self) -> float:
        r"""Logarithm of the volume, :math:`\pi^{D/2} r^D / (\Gamma(D/2 + 1)\,|\det A|)`.

        That of a single point is −∞.
        """
        if not self.radius:
            return -math.inf
        size = self.centre.numel()
        ball = size * math.log(self.radius) + size / 2 * math.log(math.pi)
        stretch = 0.0 if self.whitening is None else self.whitening.slogdet().logabsdet.item()
        return ball - math.lgamma(size / 2 + 1) - stretch

    def coverage(self, law: GaussianProcess) -> float:
        """The probability that a draw of the law lies in the region.

        Raises:
            ValueError: for a law of other sequences, or of another kind: of a conditional law
                ``law.process(k)`` is meant.

        Accuracy: 1e-10 (:func:`.squared_norm_cdf`), for factors as they stand.
        """
        _require_process("law", law)
        if (law.seq_len, law.dim) != tuple(self.centre.shape):
            raise ValueError(
                f"expected a law of sequences {tuple(self.centre.shape)}, got"
                f" {(law.seq_len, law.dim)}"
            )
        return squared_norm_cdf(self.radius**2, *_whitened(self, law))


def ball_region(
    source: Tensor | GaussianProcess, level: float = 0.95, corrected: bool = False
) -> Region:
    r"""The ball around the mean that holds a share of what is drawn.

    Of draws: centre is their mean, radius the ``level`` quantile of their distances to it. Few
    draws make the ball too small, for they are closer to their own mean than a fresh draw is: in
    squares by :math:`(Z - 1)/(Z + 1)`. **Corrected**, distances are as much longer, and the radius
    is the :math:`\lceil (Z + 1)\,\text{level} \rceil`-th of them. Of a law: centre and radius for
    infinitely many draws. Source: YC Algorithm 1.

    Args:
        source: draws (Z, N, d), Z >= 2, of one sequence; or the law that they come from. Of a
            conditional law ``law.process(k)``, and draws of the missing frames only: seen frames
            do not vary.
        level: 1 − α.
        corrected: see above; a law needs none.

    Raises:
        ValueError: for a level outside (0, 1), draws that are not finite, or fewer corrected ones
            than the level needs, level / (1 − level).

    Accuracy: of a law, that of :func:`.squared_norm_quantile`.
    """
    level = require_level(level)
    if isinstance(source, GaussianProcess):
        variances = _variances(source)
        square = squared_norm_quantile(level, variances, 0 * variances)
        return Region(source.mean, math.sqrt(square))
    draws = _draws(source)
    centre, count = draws.mean(dim=0), len(draws)
    distances = (draws - centre).flatten(1).norm(dim=1)
    if not corrected:
        return Region(centre, distances.quantile(level).item())
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        needed = math.ceil(level / (1 - level) - 1e-9)
        raise ValueError(f"level {level} needs {needed} or more draws, got {count}")
    longer = math.sqrt((count + 1) / (count - 1))
    return Region(centre, longer * distances.sort().values[rank - 1].item())


def ellipsoid_region(source: Tensor | GaussianProcess, level: float = 0.95) -> Region:
    r"""The ellipsoid of equal density that holds a share of what is drawn: the smallest region.

    Of a law, :math:`(x - \mu)^\top C^{-1}(x - \mu) \le \chi^2_{D, \text{level}}`. Of draws, with
    their mean and covariance S, Hotelling's prediction ellipsoid for one draw more,

    .. math:: (x - \bar x)^\top S^{-1} (x - \bar x) \le
              \frac{(Z + 1)(Z - 1)\,D}{Z\,(Z - D)}\,F_{D,\,Z - D,\,\text{level}},

    whose coverage, of Gaussian draws, is ``level`` on average for every Z.

    Args:
        source, level: as in :func:`ball_region`; more than D = N·d draws.

    Raises:
        NotPSDError: for a singular law, or draws that do not vary in every direction.
        ValueError: as :func:`ball_region`, or for too few draws: with structure,
            ``ellipsoid_region(kronecker_mle(draws))`` does with fewer.
    """
    level = require_level(level)
    if isinstance(source, GaussianProcess):
        square = scipy.special.chdtri(source.mean.numel(), 1 - level)
        return Region(source.mean, math.sqrt(square), _inverse_root(source))
    draws = _draws(source).flatten(1)
    count, size = draws.shape
    if count <= size:
        raise ValueError(
            f"an ellipsoid in {size} dimensions needs more than {size} draws, got {count}; take a"
            " ball, or the ellipsoid of a law with structure, as of kronecker_mle(draws)"
        )
    whitening = _whitening(draws, source.dtype)
    factor = (count + 1) * (count - 1) * size / (count * (count - size))
    square = factor * scipy.special.fdtri(size, count - size, level)
    return Region(draws.mean(dim=0).view(source.shape[1:]), math.sqrt(square), whitening)


def _whitening(draws: Tensor, given: torch.dtype) -> Tensor:
    """L⁻¹ of the covariance L Lᵀ of draws (Z, D), which were given in a dtype."""
    covariance = draws.T.cov().view(draws.shape[1], -1)
    values = torch.linalg.eigvalsh(covariance)
    # entries were rounded to u of the largest at most: along a direction a variance of D u² of it
    rounded = len(values) * (draws.abs().max() * unit_roundoff(given)) ** 2
    varied = int((values > spectrum_rounding(values) + rounded).sum())
    if varied < len(values):
        raise NotPSDError(
            f"the draws vary in {varied} of {len(values)} dimensions, to rounding, so that no"
            " ellipsoid has a volume; take a ball, or leave out frames that were seen"
        )
    root = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False)


def _variances(law: GaussianProcess) -> np.ndarray:
    return torch.outer(law.temporal_spectrum[0], law.spatial_spectrum[0]).flatten().cpu().numpy()


@full_precision()
def _whitened(region: Region, law: GaussianProcess) -> tuple[np.ndarray, np.ndarray]:
    """Variances and means of A(x − c) along its principal axes, (D,) each."""
    gap = law.mean - region.centre.to(law.mean)
    if region.whitening is None:
        (_, u), (_, w) = law.temporal_spectrum, law.spatial_spectrum
        return _variances(law), (u.T @ gap @ w).flatten().cpu().numpy()
    a = region.whitening.to(law.mean)
    values, axes = torch.linalg.eigh(a @ law.covariance() @ a.T)
    return values.clamp(min=0).cpu().numpy(), (axes.T @ a @ gap.flatten()).cpu().numpy()


def _inverse_root(law: GaussianProcess) -> Tensor:
    r"""Symmetric root of the inverse of Γ ⊗ Σ, dense."""
    roots = []
    for name in ("temporal", "spatial"):
        values, vectors = getattr(law, f"{name}_spectrum")
        _require_regular(name, values, getattr(law, f"{name}_dtype"))
        roots.append(vectors * values.rsqrt() @ vectors.T)
    return torch.kron(*roots)


def _draws(x: Tensor) -> Tensor:
    if isinstance(x, Conditional):
        _require_process("a law", x)
    require_sequences("draws", x)
    require_finite("draws", x)
    require_count("the number of draws", len(x), minimum=2)
    return x.double()
