r"""The one loop for missing frames as weights: one network for every mask and every t.

The iteration of :class:`.OneLoopScore` is that of chapter 4, with the scalars of t made those of a
frame: :math:`(\alpha_i, \sigma_i^2)` is :math:`(\alpha_t, \sigma_t^2)` where a frame is missing and
(1, 0) where it is seen. They are multiplied into the positions once, and a step is one block:

- heads that score :math:`\operatorname{relu}(\alpha_i\alpha_j(e_i^\top e_j - c_k))`, with one α on
  the query's side and one on the key's, add up to :math:`D(\Gamma\otimes\Sigma)D\,s`;
- heads that score :math:`\operatorname{relu}(\sigma_i^2(e_i^\top e_j - c_k))` add :math:`V s`;
- the feed-forward layer adds the residual, and momentum.

Step sizes and momentum are those that serve all masks and all t, so they are numbers in the
weights. No product has a factor that depends on the data: there are no ranges but 1.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..attention.positions import time_embedding
from ..data.process import GaussianProcess
from ..diffusion.methods import METHODS, STATIONARY
from ..support.rounding import unit_roundoff
from ..support.validation import NotPSDError, require_count, require_one_of
from ..support.wrappers import lasting, on_the_cpu
from .build import DEFAULT_DEPTH, LEAK_WARNING, MULTIPLICATIONS, stationary_values
from .builders import AttentionBuilder, FeedForwardBuilder
from .lag_heads import (
    VARIANTS,
    LagFunction,
    default_period,
    lag_function,
    require_separated_lags,
    same_frame,
)
from .layers import Block
from .masked_network import FrameLevels, FrameStepLift, ImputationTransformer
from .multiplication import TEETH, Product, multiplication_blocks
from .ranges import TAIL
from .scaled_heads import Scores, add_scaled_heads
from .subspaces import Subspaces

SCALARS = ("signal", "noise_var")  # α_i and σ_i²


@lasting
@on_the_cpu
def build_imputation_transformer(
    process: GaussianProcess,
    steps: int,
    method: str = "heavy-ball",
    heads: str = "shared-knots",
    multiplication: str = "feed-forward",
    multiplication_depth: int | None = None,
    embedding_period: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> ImputationTransformer:
    r"""Weights with which a transformer computes the score of missing frames, whichever they are.

    One fixed set of weights serves every mask, all t > 0 and all v, in which the network is affine
    up to the clip of f_out, to :math:`\|s\| \le R/\sigma_t`; the score itself is outside that ball
    with a probability of at most 1e-6. It approximates
    ``OneLoopScore(process, observed, steps, method, every_mask=True)``, and through that the score.

    Args:
        process: the law of the clean sequences; its temporal covariance must be stationary.
        steps: K; the network has m + K blocks.
        method: ``"heavy-ball"`` or ``"gradient-descent"``.
        heads: as in :func:`.build_score_transformer`.
        multiplication: ``"feed-forward"``; not ``"attention"``, which multiplies by the average of
            a scalar over all tokens, and here a scalar is that of a token.
        multiplication_depth: m, blocks of a multiplication, 20 by default.
        embedding_period: C; 2N by default, 8N for sine heads.
        dtype: of the weights.

    Returns:
        The network, called as (v, t, observed), its weights frozen.

    Raises:
        NotPSDError: if Γ ⊗ Σ is singular up to rounding.
        ValueError: for arguments out of range, multiplication by attention, a process that is not
            stationary, or a period that does not separate lags.

    Accuracy (float64, N = 32, against the iterate): 1e-8 relative.
    """
    require_count("steps", steps)
    require_one_of("method", method, STATIONARY)
    require_one_of("heads", heads, VARIANTS)
    _require_feed_forward(multiplication)
    depth = DEFAULT_DEPTH["position-once"] if multiplication_depth is None else multiplication_depth
    require_count("multiplication_depth", depth)
    process = process.to("cpu")
    period = (
        default_period(heads, process.seq_len) if embedding_period is None else embedding_period
    )
    require_separated_lags(heads, process.seq_len, period, dtype)
    plan = _Plan(
        process=process,
        lags=lag_function(heads, stationary_values(process.gram()), period),
        same=same_frame(heads, period),
        embedding=time_embedding(process.seq_len, period),
        coefficients=METHODS[method].coefficients(*step_interval(process), 2),
        depth=depth,
    )
    _warn_of_leaks(plan)
    network = ImputationTransformer(
        plan.lift(), plan.blocks(steps), plan.readout(), score_radius(process), spaces=plan.spaces
    )
    return network.to(dtype).requires_grad_(False)


@dataclass(frozen=True)
class _Plan:
    """Everything that the blocks are made from."""

    process: GaussianProcess
    lags: LagFunction
    same: LagFunction
    embedding: Tensor
    coefficients: list[tuple[float, float]]  # of the first step, and of all others
    depth: int

    @cached_property
    def spaces(self) -> Subspaces:
        d = self.process.dim
        sizes = {"frame": d, "position": 2, "one": 1, **dict.fromkeys(SCALARS, 1)}
        if self._has_mean:
            sizes["mean"] = d
        sizes |= {f"{name}_position": 2 for name in SCALARS}
        sizes |= {"score": d, "momentum": d} if self._momentum else {"score": d}
        return Subspaces(sizes | {TEETH: sum(2 * sizes[p.vector] for p in self._products())})

    def lift(self) -> FrameStepLift:
        n, d, spaces = self.process.seq_len, self.process.dim, self.spaces
        position = {"position": self.embedding.T, "one": torch.ones(1, n, dtype=torch.float64)}
        if self._has_mean:
            position["mean"] = self.process.mean.T
        of_t = {name: row[None] for name, row in zip(SCALARS, _identity(2), strict=True)}
        frame = spaces.write({"frame": _identity(d)}, d)
        return FrameStepLift(
            frame, spaces.write(position, n).T, spaces.write(of_t, 2), FrameLevels()
        )

    def readout(self) -> Tensor:
        return self.spaces.read({"score": _identity(self.process.dim)}, self.process.dim)

    def blocks(self, steps: int) -> list[Block]:
        multiply = multiplication_blocks(self.spaces, self._products(), self.depth)
        return [*multiply, self._first(), *[self._step()] * (steps - 1)]

    @property
    def _has_mean(self) -> bool:
        return bool(self.process.mean.any())

    @property
    def _momentum(self) -> float:
        return self.coefficients[1][1]

    def _products(self) -> list[Product]:
        products = [Product(name, "position", f"{name}_position", 1.0, 1.0) for name in SCALARS]
        if self._has_mean:
            bound = self.process.mean.abs().max().item()
            products.append(Product("signal", "mean", "frame", 1.0, bound, -1.0))
        return products

    def _first(self) -> Block:
        """s = −η r, and the momentum it hands on."""
        layer = FeedForwardBuilder(self.spaces)
        self._add_residual(layer, self.coefficients[0][0])
        nothing = AttentionBuilder(self.spaces).build()
        return Block(nothing, layer.build(), "first step")

    def _step(self) -> Block:
        """Momentum (or s itself) −= η C s in attention; s += momentum − η r after it."""
        size, momentum = self.coefficients[1]
        attention, layer = AttentionBuilder(self.spaces), FeedForwardBuilder(self.spaces)
        identity, target = _identity(self.process.dim), "momentum" if momentum else "score"
        both = Scores("signal", "signal")
        change = -size * self.process.spatial
        add_scaled_heads(attention, self.lags, both, "score", target, change)
        own = Scores("noise_var")
        add_scaled_heads(attention, self.same, own, "score", target, -size * identity)
        if momentum:
            moved = {"score": identity, "momentum": (momentum - 1) * identity}
            layer.linear("move, and slow down", {"momentum": identity}, moved)
        self._add_residual(layer, size)
        return Block(attention.build(), layer.build(), "one step")

    def _add_residual(self, layer: FeedForwardBuilder, size: float) -> None:
        identity = _identity(self.process.dim)
        write = {"score": -size * identity}
        if self._momentum:
            write["momentum"] = -self._momentum * size * identity
        layer.linear("add residual", {"frame": identity}, write)


def score_radius(process: GaussianProcess) -> float:
    r"""R such that :math:`\|s^*\| \le R/\sigma_t` but for a probability of 1e-6.

    For every mask and t, by the union bound over N·d coordinates: the covariance of
    :math:`\sigma_t s^*` is at most the identity.
    """
    entries = process.seq_len * process.dim
    return math.sqrt(2 * math.log(2 * entries / TAIL) * entries)


def step_interval(process: GaussianProcess) -> tuple[float, float]:
    """The interval that holds the spectrum of C_t for every mask and every t.

    Raises:
        NotPSDError: if Γ ⊗ Σ is singular up to rounding.
    """
    low, high = extreme_variances(process)
    return min(1.0, low), max(1.0, high)


def extreme_variances(process: GaussianProcess) -> tuple[float, float]:
    """Extreme eigenvalues of Γ ⊗ Σ.

    Raises:
        NotPSDError: if the smaller is 0 up to rounding.
    """
    temporal, spatial = process.temporal_spectrum[0], process.spatial_spectrum[0]
    low, high = ((temporal[k] * spatial[k]).item() for k in (0, -1))
    if not low > process.seq_len * process.dim * unit_roundoff(torch.float64) * high:
        raise NotPSDError(
            f"the covariance is singular up to rounding, eigenvalues from {low:.3g} to {high:.3g}:"
            " no iteration serves every mask; add a multiple of the identity"
        )
    return low, high


def _require_feed_forward(multiplication: str) -> None:
    require_one_of("multiplication", multiplication, MULTIPLICATIONS)
    if multiplication == "attention":
        raise ValueError(
            "multiplication='attention' needs one scalar for all tokens, it averages; here seen and"
            " missing frames have different ones: use multiplication='feed-forward'"
        )


def _warn_of_leaks(plan: _Plan) -> None:
    """A score carries the errors of two products, each 4^−(m+1) an axis, times a slope."""
    slope = max(plan.lags.steepness, plan.same.steepness)
    leak = 2 * math.sqrt(2) * slope * 4.0 ** -(plan.depth + 1)
    if leak > LEAK_WARNING:
        needed = math.ceil(math.log(2 * math.sqrt(2) * slope / LEAK_WARNING, 4)) - 1
        warnings.warn(
            f"multiplication_depth={plan.depth} lets lags leak into each other (by up to"
            f" {leak:.2g}): use at least {needed}",
            stacklevel=5,  # past the two decorators
        )


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
