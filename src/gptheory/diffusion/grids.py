r"""Where a solver asks for the score: grids of diffusion steps, and where they end.

The error of a solver in an eigenmode of variance λ depends on its steps where σ_t / α_t is about
√λ. On a grid that is uniform in the log signal-to-noise ratio every mode meets the same steps,
whatever its size.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..data.estimate import kronecker_mle
from ..data.law import Law
from ..support.validation import require_count, require_one_of, require_positive, require_range
from .schedule import half_log_snr, step_at

T_MIN = 0.005  # where generation stops if nothing is known of the law
T_MAX = 10.0  # where it begins
SPACINGS = ("log-snr", "quadratic")
FLOOR = 1e-6  # no stop is earlier: steps spent on modes that nobody sees are missing elsewhere
TOLERANCE = 0.01


def step_grid(
    steps: int, t_min: float = T_MIN, t_max: float = T_MAX, spacing: str = "log-snr"
) -> list[float]:
    r"""Diffusion steps from t_max down to t_min, k = 0..K.

    Args:
        steps: K.
        t_min, t_max: their ends.
        spacing: ``"log-snr"``, uniform in :math:`\log(\alpha_t/\sigma_t)`; or ``"quadratic"``,
            uniform in :math:`\sqrt t`, coarse where the faintest modes are decided.

    Raises:
        ValueError: unless steps >= 1 and 0 < t_min < t_max, or for an unknown spacing.
    """
    require_count("steps", steps)
    require_range(t_min, t_max)
    require_one_of("spacing", spacing, SPACINGS)
    forth, back = (half_log_snr, step_at) if spacing == "log-snr" else (math.sqrt, _square)
    first, last = forth(t_max), forth(t_min)
    inner = [back(first + k / steps * (last - first)) for k in range(1, steps)]
    return [t_max, *inner, t_min]


def stop_for(source: Law | Tensor | float, tolerance: float = TOLERANCE) -> float:
    r"""The diffusion step at which generation may stop, from the faintest mode of the data.

    A last denoising step from t returns the variance of a mode λ short by the factor
    :math:`\lambda / (\lambda + s^2)`, :math:`s = \sigma_t / \alpha_t`. So

    .. math:: s^2 = \text{tolerance} \cdot \lambda_{min}, \qquad t = \log(1 + s^2).

    Args:
        source: λ_min itself; or a law that knows its ``smallest_variance``; or sequences
            (n, N, d), n >= 2, of which λ_min is estimated as that of :func:`.kronecker_mle`.
        tolerance: relative loss of variance of the faintest mode.

    Returns:
        t, at least 1e-6: of modes fainter than 1e-4 more is lost, so that not all steps go there.

    Raises:
        ValueError: for a tolerance or variance out of range, or a law that knows none.
    """
    require_positive("tolerance", tolerance)
    return max(FLOOR, math.log1p(tolerance * _smallest_variance(source)))


def _smallest_variance(source: Law | Tensor | float) -> float:
    if isinstance(source, Tensor) and source.ndim:
        source = kronecker_mle(source)
    if isinstance(source, Law):
        source = getattr(source, "smallest_variance", None)
        if source is None:
            raise ValueError(
                "expected a law with a smallest_variance, sequences, or that variance as a number"
            )
    value = float(source)
    if not 0 <= value < math.inf:
        raise ValueError(f"the smallest variance must be finite and >= 0, got {value!r}")
    return value


def _square(root: float) -> float:
    return root**2
