r"""Functions of the lag as ReLU attention: which scores make a head read lag m.

Positions lie on a circle, so a bilinear form of two embeddings is a function of their lag,
:math:`x_{ij} = e_i^\top G e_j`: the inner product :math:`r^2\cos(2\pi(i-j)/C)`, or the sine of the
same angle. A head scores relu(x − knot); heads with the right knots and weights add up to any
piecewise-linear function of x, and one with the values :math:`\gamma_m` at lag m is all that
attention needs. Source: FDGWC Theorem 1.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.validation import require_one_of, require_positive
from ..support.wrappers import on_the_cpu

CORNERS = ("rise", "top", "fall", "foot")  # of a bump: a knot and a head for each
WARN_ABOVE, REFUSE_ABOVE = 1e-3, 5e-2  # resolution of the dtype relative to the smallest gap


@dataclass(frozen=True)
class LagFunction:
    r""":math:`f(x) = \sum_k w_k\,\mathrm{relu}(x - c_k)` at :math:`x_{ij} = e_i^\top G e_j`.

    Attributes:
        form: G, (2, 2).
        knots, weights: c and w, (heads,).
        labels: what each head is for.
    """

    form: Tensor
    knots: Tensor
    weights: Tensor
    labels: tuple[str, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """f at values of the bilinear form, any shape."""
        return (torch.relu(x[..., None] - self.knots) * self.weights).sum(dim=-1)

    def of(self, embedding: Tensor) -> Tensor:
        """The (N, N) matrix :math:`f(e_i^\top G e_j)`."""
        return self(embedding @ self.form @ embedding.T)

    @property
    def steepness(self) -> float:
        """Largest slope of f, by which an error in x is amplified."""
        return self.weights[self.knots.argsort()].cumsum(0).abs().max().item()


@on_the_cpu
def lag_function(variant: str, values: Tensor, period: float, radius: float = 1.0) -> LagFunction:
    r"""A function that equals ``values[m]`` at lag m < J, and 0 at longer lags.

    - ``"trapezoid"``: one flat-topped bump for each lag, four ReLUs, 4J heads; an error of a third
      of the gap to the neighbouring lag changes nothing. Source: FDGWC Theorem 1.
    - ``"shared-knots"``: one piecewise-linear function through all values, J heads.
    - ``"sine"``: the same on the sine, which tells i − j from j − i and whose gaps are of first
      order in 1/C instead of second, 2J + 1 heads.

    Args:
        variant: one of the three.
        values: γ_0..γ_{J−1}.
        period: C, checked by :func:`require_separated_lags`.
        radius: r of the embedding.

    Raises:
        ValueError: for an unknown variant.
    """
    require_one_of("heads", variant, VARIANTS)
    return VARIANTS[variant](values, period, radius)


@on_the_cpu
def same_frame(variant: str, period: float, radius: float = 1.0) -> LagFunction:
    """1 at lag 0, else 0, flat for a third of the gap around lag 0: 2 heads (4 for the sine)."""
    one = torch.ones(1, dtype=torch.float64)
    if variant == "sine":
        gap = radius**2 * math.sin(2 * math.pi / period) * one
        return LagFunction(_rotation(), *_bumps(0 * one, gap, one), CORNERS)
    # no lag is beyond lag 0: where the bump falls again there is nothing
    knots, weights = _bumps(*cosines(1, period, radius), one)
    return LagFunction(_inner_product(), knots[:2], weights[:2], CORNERS[:2])


@on_the_cpu
def cosines(lags: int, period: float, radius: float) -> tuple[Tensor, Tensor]:
    r""":math:`x_m = r^2\cos(2\pi m/C)` and the gaps :math:`x_m - x_{m+1}`, m = 0..lags−1.

    The gaps come from :math:`2\sin\frac{\pi(2m+1)}{C}\sin\frac{\pi}{C}`, without cancellation. The
    smallest is the first, :math:`2r^2\sin^2(\pi/C)`; it stands in for the last one where lags reach
    half a period and the circle turns back, so that no lag is beyond.
    """
    m = torch.arange(lags, dtype=torch.float64)
    x = radius**2 * torch.cos(2 * math.pi * m / period)
    gaps = 2 * radius**2 * torch.sin(math.pi * (2 * m + 1) / period) * math.sin(math.pi / period)
    return x, torch.maximum(gaps, gaps[:1])


def default_period(variant: str, seq_len: int) -> int:
    """C = 2N for inner products; 8N for sines, where a quarter of the circle would just do."""
    return max(4, 2 * seq_len) if variant != "sine" else 8 * seq_len


def require_separated_lags(
    variant: str, seq_len: int, period: float, dtype: torch.dtype = torch.float64
) -> None:
    r"""Raise unless every lag up to N − 1 has a value of its own that the dtype can tell apart.

    The smallest gap between neighbouring lags is the first one of the cosine,
    :math:`2r^2\sin^2(\pi/C)`, and the last one of the sine,
    :math:`2r^2\cos\frac{\pi(2N-3)}{C}\sin\frac{\pi}{C}`. A larger radius scales gap and rounding
    alike, so only a wider dtype, the sine or a better period helps.

    Raises:
        ValueError: for a period below 2(N − 1), below 4(N − 1) for the sine, or one so long that
            rounding exceeds 5% of the smallest gap (a warning from 0.1%).
    """
    require_positive("embedding_period", period)
    if variant == "sine":
        least, angle = 4 * (seq_len - 1), math.pi / period
        gap = 2 * math.cos(angle * max(2 * seq_len - 3, 1)) * math.sin(angle)
        remedy = f"a period nearer to {default_period(variant, seq_len)}"
    else:
        least, gap = 2 * (seq_len - 1), cosines(1, period, 1)[1].item()
        remedy = f"heads='sine', or a period nearer to {least}"
    if period < least:
        raise ValueError(
            f"embedding_period={period:g} is too small to separate lags up to {seq_len - 1} with"
            f" {variant} heads: it must be at least {least}"
        )
    resolution = torch.finfo(dtype).eps / gap
    message = (
        f"embedding_period={period:g} leaves a gap of {gap:.3g} between neighbouring lags, where"
        f" {dtype} resolves {torch.finfo(dtype).eps:.1g}: scores would be off by {resolution:.1%};"
        f" use float64, {remedy}"
    )
    if resolution > REFUSE_ABOVE:
        raise ValueError(message)
    if resolution > WARN_ABOVE:
        warnings.warn(message, stacklevel=3)


def _trapezoids(values: Tensor, period: float, radius: float) -> LagFunction:
    x, below = cosines(len(values), period, radius)
    above = torch.cat([below[:1], below[:-1]])
    labels = tuple(f"lag {m}, {c}" for m in range(len(values)) for c in CORNERS)
    return LagFunction(_inner_product(), *_bumps(x, torch.minimum(above, below), values), labels)


def _shared_knots(values: Tensor, period: float, radius: float) -> LagFunction:
    x, gaps = cosines(len(values), period, radius)
    # the lowest knot is half a gap outside the band, so that rounding cannot leak from there
    places = torch.cat([x[-1:] - gaps[-1] / 2, x.flip(0)])
    weights = _kinks(places, torch.cat([torch.zeros(1).to(values), values.flip(0)]))
    labels = tuple(f"knot below lag {m}" for m in reversed(range(len(values))))
    # nothing lies beyond the highest place, lag 0: its head would never see anything
    return LagFunction(_inner_product(), places[:-1], weights[:-1], labels)


def _sines(values: Tensor, period: float, radius: float) -> LagFunction:
    lags = torch.arange(len(values), dtype=torch.float64)
    x = radius**2 * torch.sin(2 * math.pi * lags / period)
    beyond = radius**2 * torch.sin(2 * math.pi * (lags[-1:] + 1) / period)
    # where the circle turns back no lag is beyond, and a gap below the smallest one is rounding
    turned = beyond - x[-1] < radius**2 * math.sin(math.pi / period) ** 2
    outer = torch.where(turned, x[-1] + radius**2 / period, (x[-1] + beyond) / 2)
    places = torch.cat([-outer, -x[1:].flip(0), x, outer])
    zero = torch.zeros(1).to(values)
    heights = torch.cat([zero, values.flip(0), values[1:], zero])
    labels = tuple(f"knot at lag {m:+d}" for m in range(-len(values), len(values) + 1))
    return LagFunction(_rotation(), places, _kinks(places, heights), labels)


VARIANTS = {"trapezoid": _trapezoids, "shared-knots": _shared_knots, "sine": _sines}


def _bumps(x: Tensor, gaps: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Knots and weights, (4 lags,), of bumps that are values[m] within a third of a gap of x[m]."""
    third = gaps[:, None] / 3  # half width of the flat top, and width of each ramp
    knots = x[:, None] + third * torch.tensor([-2, -1, 1, 2], dtype=torch.float64)
    weights = values[:, None] / third * torch.tensor([1, -1, -1, 1], dtype=torch.float64)
    return knots.flatten(), weights.flatten()


def _kinks(places: Tensor, heights: Tensor) -> Tensor:
    """Changes of slope of the line through (places, heights), flat before and after it."""
    level = torch.zeros(1).to(heights)
    return torch.cat([level, heights.diff() / places.diff(), level]).diff()


def _inner_product() -> Tensor:
    """G for which the bilinear form of two embeddings is r² cos(θ_i − θ_j)."""
    return torch.eye(2, dtype=torch.float64)


def _rotation() -> Tensor:
    """G for which the bilinear form of two embeddings is r² sin(θ_i − θ_j)."""
    return torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
