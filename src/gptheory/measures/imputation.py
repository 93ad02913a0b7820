r"""What to report of an imputation: coverage never alone.

An interval that is too wide around a mean that is wrong covers as often as it should. So beside the
coverage of regions and intervals stand the error of the mean, the ratio of variances, the width,
and proper scores, which are best for the true law only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.process import GaussianProcess
from ..support.precision import full_precision
from ..support.validation import as_floating, require_finite, require_level
from .gaussians import gaussian_kl
from .regions import _draws, ball_region


@dataclass(frozen=True)
class ImputationError:
    r"""An imputation beside the true law of what is missing; in brackets, what the truth gets.

    Attributes:
        mean_error: ‖mean − true mean‖² / tr C [0]; of Z draws less the tr S / Z that chance leaves,
            so that it may fall below 0.
        variance_ratio: tr S / tr C [1], with the unbiased S of draws.
        ball: coverage of the ball of :func:`.ball_region` by the true law [level].
        pointwise: average coverage of each entry's interval [level].
        width: average width of these intervals over that of the true ones [1].
        crps: expected :func:`crps` of the truth, over that of the true law [1, and never less].
        kl: KL(imputed ‖ true) in nats an entry [0]; None of draws, whose density is not known.
    """

    mean_error: float
    variance_ratio: float
    ball: float
    pointwise: float
    width: float
    crps: float
    kl: float | None


@full_precision()
def imputation_error(
    made: Tensor | GaussianProcess, law: GaussianProcess, level: float = 0.95
) -> ImputationError:
    r"""How far an imputation of one sequence is from the true law of its missing frames.

    Coverage, width and expected CRPS are integrals over the true law, in closed form: nothing is
    drawn from it.

    Args:
        made: draws (Z, N, d) of the N missing frames, Z >= 2; or the law of what is drawn.
        law: the true one, with its mean.
        level: of regions and intervals.

    Raises:
        ValueError: for a level outside (0, 1), shapes that disagree, or draws that are not finite.
        NotPSDError: for a singular true law.
    """
    require_level(level)
    ball = ball_region(made, level).coverage(law)  # which looks at the draws and at the shapes
    scale = _deviations(law)
    view = _view_of_law if isinstance(made, GaussianProcess) else _view_of_draws
    seen = view(made, law, scale, level)
    total = scale.square().sum()
    above, below = ((edge - law.mean) / scale for edge in (seen.upper, seen.lower))
    inside = torch.special.ndtr(above) - torch.special.ndtr(below)
    true_width = (2 * _normal_quantile(level, scale) * scale).sum()
    return ImputationError(
        mean_error=((seen.mean - law.mean).square().sum() - seen.chance).item() / total.item(),
        variance_ratio=(seen.variances.sum() / total).item(),
        ball=ball,
        pointwise=inside.mean().item(),
        width=((seen.upper - seen.lower).sum() / true_width).item(),
        crps=(seen.scores.sum() * math.sqrt(math.pi) / scale.sum()).item(),
        kl=seen.kl,
    )


def intervals(draws: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """For each entry the two quantiles between which a share of the draws lies.

    Args:
        draws: (Z, ...).
        level: of the share; as much is left out below as above.

    Returns:
        Lower and upper ends, (...) each.

    Raises:
        ValueError: for a level outside (0, 1), or draws that are none, or not finite.
    """
    require_level(level)
    draws = _ensemble(draws, 1)
    lower, upper = (draws.quantile(q, dim=0) for q in ((1 - level) / 2, (1 + level) / 2))
    return lower, upper


@full_precision()
def crps(draws: Tensor, truth: Tensor, fair: bool = True) -> Tensor:
    r"""Continuous ranked probability score of draws, entry by entry; lower is better.

    .. math:: \frac1Z\sum_i |x_i - y| - \frac{1}{2Z(Z-1)}\sum_{i,j} |x_i - x_j|.

    That is the *fair* form (Ferro 2014): on average over draws that of their law. With
    :math:`1/(2Z^2)` it is that of the draws as a law of their own (Gneiting and Raftery 2007),
    which punishes few draws, for the true law by the factor :math:`1 + 1/Z`.

    Args:
        draws: x, (Z, ...), Z >= 2.
        truth: y, (...).
        fair: which form.

    Returns:
        (...), one score an entry.

    Raises:
        ValueError: for shapes that do not fit, fewer than 2 draws, or values that are not finite.
    """
    draws, truth = _ensemble(draws, 2), as_floating("truth", truth).to(draws)
    if truth.shape != draws.shape[1:]:
        raise ValueError(
            f"truth must have shape {tuple(draws.shape[1:])}, got {tuple(truth.shape)}"
        )
    require_finite("truth", truth)
    return (draws - truth).abs().mean(dim=0) - _half_difference(draws, fair)


def gaussian_crps(mean: Tensor, deviation: Tensor, truth: Tensor) -> Tensor:
    r"""Continuous ranked probability score of :math:`N(m, s^2)` at y, in closed form,

    .. math:: s\,\Big[z\,(2\Phi(z) - 1) + 2\varphi(z) - \frac{1}{\sqrt\pi}\Big],
              \qquad z = (y - m)/s

    (Gneiting and Raftery 2007); on average :math:`s/\sqrt\pi` where y is a draw of that law.

    Args:
        mean, deviation, truth: m, s > 0 and y, of shapes that broadcast.

    Raises:
        ValueError: for values that are not finite, or a deviation that is not > 0.
    """
    named = {"mean": mean, "deviation": deviation, "truth": truth}
    for name, values in named.items():
        named[name] = as_floating(name, values)
        require_finite(name, named[name])
    if (named["deviation"] <= 0).any():
        raise ValueError(f"deviation must be > 0, got {named['deviation'].min().item()}")
    distance = _mean_distance(named["truth"] - named["mean"], named["deviation"])
    return distance - named["deviation"] / math.sqrt(math.pi)


@dataclass(frozen=True)
class _View:
    """What the report reads of an imputation, entry by entry (N, d)."""

    mean: Tensor
    variances: Tensor
    lower: Tensor
    upper: Tensor
    scores: Tensor  # expected CRPS
    chance: float | Tensor = 0.0  # of the squared error of the mean
    kl: float | None = None


def _view_of_law(made: GaussianProcess, law: GaussianProcess, scale: Tensor, level: float) -> _View:
    mean, spread = made.mean.to(scale), _deviations(made).to(scale)
    half = _normal_quantile(level, scale) * spread
    scores = _mean_distance(mean - law.mean, (scale**2 + spread**2).sqrt())
    means = made.mean.flatten(), law.mean.flatten()
    kl = gaussian_kl(made.covariance(), law.covariance(), *means) / scale.numel()
    scores = scores - spread / math.sqrt(math.pi)
    return _View(mean, spread**2, mean - half, mean + half, scores, kl=kl)


def _view_of_draws(made: Tensor, law: GaussianProcess, scale: Tensor, level: float) -> _View:
    draws = _draws(made).to(scale)
    variances = draws.var(dim=0)
    scores = _mean_distance(draws - law.mean, scale).mean(dim=0) - _half_difference(draws, True)
    chance = variances.sum() / len(draws)
    return _View(draws.mean(dim=0), variances, *intervals(draws, level), scores, chance)


def _mean_distance(gap: Tensor, deviation: Tensor) -> Tensor:
    """E|gap + s z|: the mean of a folded normal."""
    z = gap / deviation
    density = (-(z**2) / 2).exp() * math.sqrt(2 / math.pi)
    return deviation * (z * torch.erf(z / math.sqrt(2)) + density)


def _half_difference(draws: Tensor, fair: bool) -> Tensor:
    """Half the mean of |x_i − x_j|, by sorting: Z log Z and not Z²."""
    count = len(draws)
    rank = torch.arange(1 - count, count, 2).to(draws)  # above less below, of the sorted
    total = torch.tensordot(rank, draws.sort(dim=0).values, dims=1)
    return total / (count * (count - 1 if fair else count))


def _deviations(law: GaussianProcess) -> Tensor:
    """Standard deviation of each entry, (N, d)."""
    return torch.outer(law.gram().diagonal(), law.spatial.diagonal()).sqrt()


def _normal_quantile(level: float, like: Tensor) -> Tensor:
    """The z with P(|N(0, 1)| <= z) = level."""
    return math.sqrt(2) * torch.erfinv(like.new_tensor(level))


def _ensemble(draws: Tensor, least: int) -> Tensor:
    draws = as_floating("draws", draws)
    if not draws.ndim or len(draws) < least:
        raise ValueError(f"expected {least} or more draws (Z, ...), got {tuple(draws.shape)}")
    require_finite("draws", draws)
    return draws
