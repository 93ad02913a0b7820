r"""A transformer that solves for the score with a preconditioner, in few steps.

The iteration is :math:`s \leftarrow s - \eta_k M_t (A_t s + v - \alpha_t\mu)` with the sum over
lags M of :class:`.LagPreconditioner` and step sizes that depend on nothing but k. Two blocks are a
step:

- **residual**: heads add :math:`\alpha_t^2(\bar\Gamma\otimes\Sigma)s` and :math:`\sigma_t^2 s` to
  ``residual``, which holds :math:`v - \alpha_t\mu`;
- **precondition**: heads subtract :math:`\eta_k M_t` times ``residual`` from ``score``, and the
  feed-forward layer puts :math:`v - \alpha_t\mu` back.

As in the position-once form of :class:`.Blueprint` a scalar of t, here α², σ² and φ_1 … φ_r, is
multiplied into the position once, and from there on into every score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..attention.positions import time_embedding
from ..data.process import GaussianProcess
from ..support.validation import require_count, require_one_of
from ..support.wrappers import lasting, on_the_cpu
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
from .multiplication import TEETH, Product, attention_multiplication, multiplication_blocks
from .network import Lift, ScoreTransformer
from .preconditioner import LagPreconditioner, PreconditionedFeatures
from .ranges import TAIL
from .subspaces import Subspaces


@lasting
@on_the_cpu
def build_preconditioned_transformer(
    process: GaussianProcess,
    steps: int,
    bandwidth: int | None = None,
    taper: str | None = None,
    reach: int | None = None,
    terms: int = 4,
    heads: str = "shared-knots",
    multiplication_depth: int | None = None,
    t_min: float = 0.005,
    t_max: float = 10.0,
    dtype: torch.dtype = torch.float64,
) -> ScoreTransformer:
    r"""Weights with which a transformer takes K preconditioned steps towards the score.

    One fixed set of weights serves all t in [t_min, t_max] and all v, to which the network is
    affine. It has 2K blocks: one that multiplies, then 2K − 1.

    Args:
        process: the law of the clean sequences; its temporal covariance must be stationary.
        steps: K.
        bandwidth, taper: as in :class:`.UnrolledScore`.
        reach, terms: lags and fractions of the preconditioner, :class:`.LagPreconditioner`.
        heads: as in :func:`.build_score_transformer`, for the lags of Γ̄ and those of each term.
        multiplication_depth: of feed-forward multiplications (2K − 1 + m blocks); by default
            attention multiplies, which is exact.
        t_min, t_max: range of diffusion steps.
        dtype: of the weights.

    Returns:
        The network, called as (v, t), its weights frozen; ``preconditioner`` is what it was made
        from, which tells the error to expect.

    Raises:
        NotPSDError: where there is no preconditioner, see there.
        ValueError: for arguments out of range, or a process that is not stationary.

    Accuracy (float64): 1e-12 relative to the iteration where attention multiplies, and the
    iteration is within :meth:`.LagPreconditioner.convergence_bound` of the score (of the band).
    """
    require_count("steps", steps)
    require_one_of("heads", heads, VARIANTS)
    if multiplication_depth is not None:
        require_count("multiplication_depth", multiplication_depth)
    process = process.to("cpu")
    inverse = LagPreconditioner(process, bandwidth, taper, reach, terms, t_min, t_max)
    period = default_period(heads, process.seq_len)
    require_separated_lags(heads, process.seq_len, period, dtype)
    plan = _Plan(process, inverse, heads, period, multiplication_depth, bandwidth)
    entries = process.seq_len * process.dim
    radius = math.sqrt(2 * math.log(2 * entries / TAIL) * entries)
    network = ScoreTransformer(
        plan.lift(), plan.blocks(steps), plan.readout(), radius, (t_min, t_max), plan.spaces
    )
    network = network.to(dtype).requires_grad_(False)
    network.preconditioner = inverse
    return network


@dataclass(frozen=True)
class _Plan:
    """Everything that the blocks are made from."""

    process: GaussianProcess
    inverse: LagPreconditioner
    heads: str
    period: float
    depth: int | None
    bandwidth: int | None

    @cached_property
    def spaces(self) -> Subspaces:
        d = self.process.dim
        sizes = {"frame": d, "position": 2, "one": 1, "signal": 1}
        sizes |= dict.fromkeys(self._scalars, 1)
        if self._has_mean:
            sizes["mean"] = d
        sizes |= {f"{name}_position": 2 for name in self._scalars}
        sizes |= {"residual": d, "score": d}
        if self.depth is not None:
            sizes[TEETH] = sum(2 * sizes[product.vector] for product in self._products())
        return Subspaces(sizes)

    def lift(self) -> Lift:
        n, d, spaces = self.process.seq_len, self.process.dim, self.spaces
        position = {
            "position": time_embedding(n, self.period).T,
            "one": torch.ones(1, n, dtype=torch.float64),
        }
        if self._has_mean:
            position["mean"] = self.process.mean.T
        names = ("signal", *self._scalars)
        of_t = {name: row[None] for name, row in zip(names, _identity(len(names)), strict=True)}
        return Lift(
            spaces.write({"frame": _identity(d)}, d),
            spaces.write(position, n).T,
            spaces.write(of_t, len(names)),
            PreconditionedFeatures(tuple(self.inverse.features.nodes.tolist())),
        )

    def readout(self) -> Tensor:
        return self.spaces.read({"score": _identity(self.process.dim)}, self.process.dim)

    def blocks(self, steps: int) -> list[Block]:
        first, *others = self.inverse.step_sizes(steps)
        blocks = [*self._multiply(), self._precondition(first, "frame")]
        residual = self._residual()
        for size in others:
            blocks += [residual, self._precondition(size, "residual")]
        return blocks

    @property
    def _scalars(self) -> list[str]:
        terms = range(1, 1 + len(self.inverse.lags))
        return ["noise_var", "signal_var", *(f"fraction_{q}" for q in terms)]

    @property
    def _has_mean(self) -> bool:
        return bool(self.process.mean.any())

    def _products(self) -> list[Product]:
        bounds = [1.0, 1.0, *(max(1.0, 1 / x) for x in self.inverse.features.nodes.tolist())]
        products = [
            Product(name, "position", f"{name}_position", bound, 1.0)
            for name, bound in zip(self._scalars, bounds, strict=True)
        ]
        if self._has_mean:
            bound = self.process.mean.abs().max().item()
            products.append(Product("signal", "mean", "frame", 1.0, bound, -1.0))
        return products

    def _multiply(self) -> list[Block]:
        if self.depth is None:
            return attention_multiplication(self.spaces, self._products(), self.process.seq_len)
        return multiplication_blocks(self.spaces, self._products(), self.depth)

    def _precondition(self, step_size: float, source: str) -> Block:
        attention, layer = AttentionBuilder(self.spaces), FeedForwardBuilder(self.spaces)
        for name, of_lag in zip(self._scalars[2:], self.inverse.lags, strict=True):
            self._add(attention, name, -step_size * of_lag, source, "score")
        identity = _identity(self.process.dim)
        both = {"frame": identity, "residual": -identity}
        layer.linear("residual = frame", both, {"residual": identity})
        return Block(attention.build(), layer.build(), f"precondition, step size {step_size:.3g}")

    def _residual(self) -> Block:
        attention = AttentionBuilder(self.spaces)
        values = self.inverse.values[: self.bandwidth]
        of_lag = values[:, None, None] * self.process.spatial
        self._add(attention, "signal_var", of_lag, "score", "residual")
        function = same_frame(self.heads, self.period)
        weights = function.weights[:, None, None] * _identity(self.process.dim)
        self._add_heads(attention, "noise_var", function, weights, "score", "residual")
        nothing = FeedForwardBuilder(self.spaces).build()
        return Block(attention.build(), nothing, "residual")

    def _add(
        self, attention: AttentionBuilder, scalar: str, of_lag: Tensor, source: str, target: str
    ) -> None:
        """Heads that add up to the scalar times a matrix (J, d, d) for each lag."""
        units = torch.eye(len(of_lag), dtype=torch.float64)
        functions = [lag_function(self.heads, unit, self.period) for unit in units]
        # knots do not depend on the values, and weights are linear in them
        weights = torch.stack([function.weights for function in functions])  # (J, heads)
        matrices = torch.einsum("mh,mab->hab", weights, of_lag)
        self._add_heads(attention, scalar, functions[0], matrices, source, target)

    def _add_heads(
        self,
        attention: AttentionBuilder,
        scalar: str,
        function: LagFunction,
        matrices: Tensor,
        source: str,
        target: str,
    ) -> None:
        """Heads whose scores are z relu(e_i^T G e_j − c_k), with a matrix each."""
        axes = _identity(3)  # head coordinates: two of the embedding, one of the threshold
        heads = zip(function.knots, matrices, function.labels, strict=True)
        for knot, matrix, label in heads:
            attention.add(
                f"{scalar}: {label}",
                query={f"{scalar}_position": axes[:, :2], scalar: -knot * axes[:, 2:]},
                key={"position": axes[:, :2] @ function.form.T, "one": axes[:, 2:]},
                value={source: _identity(len(matrix))},
                write={target: matrix},
            )


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
