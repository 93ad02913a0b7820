r"""Attention whose logits cannot leave [−R, R], and what that is good for: a certificate for ever.

Queries and keys are scaled to a length of :math:`(R\sqrt h)^{1/2}`, h the head dimension, so that
:math:`|\langle q_i, k_j\rangle| / \sqrt h \le R` by Cauchy-Schwarz, whatever is learned. What is
certified of a polynomial on [−R, R] then holds for ever, and attention takes a time linear in N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..support.precision import full_precision
from ..support.rounding import gamma
from ..support.validation import require_count, require_positive
from .exponential import LARGEST_RADIUS, ExpPolynomial, exp_polynomial
from .layer import Attention
from .lowrank import low_rank_attention

RADIUS, DEGREE = 2.0, 4
LARGEST_DEGREE = 24  # that an error proposes
SHORT = 1e-6  # mean square of a query's entries, below which its length is less than the others'


class NormalisedAttention(Attention):
    r"""Softmax attention with queries and keys of one length, and so with logits in [−R, R],

    .. math:: l_{ij} = R\,\langle \hat q_i, \hat k_j\rangle, \qquad
              \hat q = \frac{q}{\sqrt{\|q\|^2 + h\,10^{-6}}} .

    (Henry et al. 2020 normalise so, with R learned.) The number under the root keeps the gradient
    finite where a query is zero. So that rounding leads no logit out either, R is taken smaller by
    :math:`\gamma_{2h+24}`, relatively. For of a computed square of a length, (h + 1) u come from
    the sum of squares, twice 8 u from the root (4 u on a GPU), the factor and the product; h u more
    from the product of a query and a key.

    No key has more than :math:`e^{2R}/(N - 1 + e^{2R})` of a row.

    Args:
        width, heads, fused: see :class:`.layer.Attention`.
        radius: R > 0.

    Raises:
        ValueError: for a radius that is not finite and > 0.
    """

    def __init__(
        self, width: int, heads: int, fused: bool = True, radius: float = RADIUS,
        kind: str = "normalised",
    ) -> None:  # fmt: skip
        super().__init__(width, heads, "softmax", fused)
        require_positive("radius", radius)
        self.kind, self.radius = kind, float(radius)

    def extra_repr(self) -> str:
        """What is printed of a layer, and what checkpoints compare."""
        return f"radius={self.radius:g}"

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Σ_j A_ij v_j, (batch, heads, N, h)."""
        if not self.fused:
            return super().mix(query, key, value)
        query, key = self.normalised(query), self.normalised(key)
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """l_ij, (batch, heads, N, N)."""
        return self.products(self.normalised(query), self.normalised(key))

    def products(self, query: Tensor, key: Tensor) -> Tensor:
        """⟨q_i, k_j⟩ of queries and keys that are scaled already, or of parts of them."""
        return query @ key.transpose(-1, -2)

    def normalised(self, x: Tensor) -> Tensor:
        """Queries or keys (…, N, h), scaled so that their products are the logits."""
        return (x * self.stretch(x)).to(x)

    def stretch(self, x: Tensor) -> Tensor:
        """By how much: the factors, (…, N, 1)."""
        size = x.shape[-1]
        x = x.to(computed_in(x.dtype))
        length = math.sqrt(self.radius * (1 - gamma(2 * size + 24, x.dtype)))
        return length * (x.square().sum(dim=-1, keepdim=True) + size * SHORT).rsqrt()

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape."""
        return logits.softmax(dim=-1)

    @torch.no_grad()
    @full_precision()
    def largest_logit(self, y: Tensor) -> float:
        """A bound on the logits for inputs y, max ‖q‖ max ‖k‖ of what is multiplied; O(N)."""
        query, key, _ = self.query_key_value(y)
        lengths = [self.normalised(x).norm(dim=-1).amax() for x in (query, key)]
        return math.prod(torch.stack(lengths).tolist())


@dataclass(frozen=True)
class Certificate:
    r"""What is known of a layer before it has seen anything.

    Attributes:
        radius: R, which no logit exceeds.
        polynomial: P on [−R, R].
        rank: r of its map.
        relative_error: of P against the exponential, with what rounding adds in the dtype at hand.
    """

    radius: float
    polynomial: ExpPolynomial
    rank: int
    relative_error: float

    @property
    def error_bound(self) -> float:
        """How far a row may be from that of softmax in the sum of absolute values."""
        return 2 * self.relative_error / (1 + math.sqrt(1 - self.relative_error**2))


class CertifiedAttention(NormalisedAttention):
    r"""Normalised attention with a polynomial for the exponential, in time and memory linear in N,

    .. math:: A_{ij} = \frac{P(l_{ij})}{\sum_{j'} P(l_{ij'})},

    P the minimax polynomial of degree g on [−R, R]. Never forms a map, forward or backward; its
    cost is :math:`O(N r h)` a head, :math:`r = \binom{h + g}{g}`, so heads should be small.

    Args:
        width, heads: see :class:`.layer.Attention`.
        radius: R > 0.
        degree: g.

    Raises:
        ValueError: for R and g of which there is no certificate in the dtype of the weights.
    """

    def __init__(
        self, width: int, heads: int, fused: bool = True, radius: float = RADIUS,
        degree: int = DEGREE,
    ) -> None:  # fmt: skip
        super().__init__(width, heads, fused, radius, "certified")
        require_count("degree", degree, minimum=0)
        self.degree = degree
        self.certificate()

    def extra_repr(self) -> str:
        """What is printed of a layer, and what checkpoints compare."""
        return f"{super().extra_repr()}, degree={self.degree}"

    def certificate(self) -> Certificate:
        """What holds for all inputs.

        Raises:
            ValueError: if nothing does in the present dtype of the weights.
        """
        dtype = computed_in(self.project.weight.dtype)
        polynomial = certified_polynomial(self.radius, self.degree, dtype)
        size = self.project.in_features // self.heads
        return Certificate(
            self.radius,
            polynomial,
            math.comb(size + self.degree, size),
            polynomial.relative_error + polynomial.rounding(dtype),
        )

    @torch.compiler.disable  # its loop over chunks would be unrolled; what is around it is compiled
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Σ_j A_ij v_j, (batch, heads, N, h); computed in full precision."""
        dtype = computed_in(query.dtype)
        polynomial = certified_polynomial(self.radius, self.degree, dtype)
        with full_precision():
            rows = [x.to(dtype).transpose(-1, -2).contiguous() for x in (query, key, value)]
            query, key = (self.normalised(x.mT).mT for x in rows[:2])
            mixed = low_rank_attention(query, key, rows[2], polynomial.coefficients)
        return mixed.transpose(-1, -2).to(value)

    def weigh(self, logits: Tensor) -> Tensor:
        """Logits to maps, same shape.

        Raises:
            ValueError: for logits beyond the radius, as edits make them.
        """
        largest = logits.detach().abs().max().item() if logits.numel() else 0.0
        rounded = torch.finfo(logits.dtype).eps ** 0.5  # of sums of blocks that cancel; clamped
        if largest > self.radius * (1 + rounded):
            raise ValueError(
                f"logits reach {largest:.4g}, the polynomial is certified up to {self.radius:g}:"
                " edit a network with attention='normalised', or its maps"
            )
        dtype = computed_in(logits.dtype)
        polynomial = certified_polynomial(self.radius, self.degree, dtype)
        weights = polynomial(logits.to(dtype).clamp(-self.radius, self.radius))
        return (weights / weights.sum(dim=-1, keepdim=True)).to(logits)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; all else is computed in float32."""
    return dtype if dtype == torch.float64 else torch.float32


def certified_polynomial(radius: float, degree: int, dtype: torch.dtype) -> ExpPolynomial:
    """The polynomial of degree g on [−R, R].

    Raises:
        ValueError: if its error, rounding in ``dtype`` included, is not below 1; says which radius,
            degree or dtype would do. (Without rounding all have one, if a poor one: degree 0 errs
            by tanh R.)
    """
    error = _error(radius, degree, dtype)
    if error < 1:
        return exp_polynomial(degree, radius)
    remedies = [f"with this degree a radius of {_largest_radius(degree, dtype):.2f} would do"]
    least, other = min((_error(radius, g, dtype), g) for g in range(LARGEST_DEGREE))
    if least < 1:
        remedies.append(f"on this radius degree {other}, with an error of {least:.3g}")
    if _error(radius, degree, torch.float64) < 1:
        remedies.append("weights in float64 (torch.set_default_dtype before the layer is made)")
    raise ValueError(
        f"degree {degree} has no certificate on [-{radius:g}, {radius:g}] in {dtype}, its relative"
        f" error with rounding is {error:.3g}, expected below 1: {', or '.join(remedies)}"
    )


def _error(radius: float, degree: int, dtype: torch.dtype) -> float:
    """Of the polynomial with what rounding adds; infinite where there is none."""
    try:
        polynomial = exp_polynomial(degree, radius)
    except ValueError:
        return math.inf
    return polynomial.relative_error + polynomial.rounding(dtype)


def _largest_radius(degree: int, dtype: torch.dtype) -> float:
    """The largest R on which this degree is certified, rounded down to two digits."""
    low, high = 1e-2, LARGEST_RADIUS
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _error(middle, degree, dtype) < 1 else (low, middle)
    return math.floor(low * 100) / 100
