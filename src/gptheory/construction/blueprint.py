r"""The blocks of Theorem 1: which subspace each reads, what it multiplies, where it writes.

The residual stream has named subspaces. From f_in come ``frame`` (v, later v − α_t μ), ``position``
(e_i), ``one``, ``mean`` (μ_i), and of t: ``step`` (η), ``signal`` (α), ``noise_var`` (σ²),
``signal_var`` (α²), for momentum ``first_step`` and ``friction``. Work space, zero at the start,
are ``signal_step`` (a = ηα²), ``noise_step`` (b = ησ²), ``score`` (s), ``momentum`` (the last
change of s), ``offset`` (c = η(v − αμ)), ``product`` (a s) and ``teeth``. A step

.. math:: s \leftarrow s - a\,(\bar\Gamma\otimes\Sigma)s - b\,s - c

needs products of a scalar and a vector that both live in the token. There are two ways:

- ``"plain"``, the paper's: every step multiplies a s and b s, then attention, whose scores depend
  on positions only, sums :math:`\gamma_{|i-j|}\Sigma\, a s_j` over j.
- ``"position-once"``, ours: a e_i and b e_i are multiplied once. A head that scores
  relu(⟨a e_i, e_j⟩ − a c_k) = a relu(⟨e_i, e_j⟩ − c_k) has the scalar in its score, so that a step
  is one block, and the network is affine in v.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data.process import GaussianProcess
from .builders import AttentionBuilder, FeedForwardBuilder
from .lag_heads import LagFunction
from .layers import Block
from .multiplication import TEETH, Product, attention_multiplication, multiplication_blocks
from .network import Lift, StepFeatures
from .subspaces import Subspaces

FEATURES = ("step", "signal", "noise_var", "signal_var", "first_step", "friction")
FORMS = ("plain", "position-once")


@dataclass(frozen=True)
class Blueprint:
    """Everything that the blocks of one network are made from.

    Attributes:
        process: the law of the clean sequences.
        form: one of ``FORMS``, see above.
        heavy_ball: whether a step has momentum.
        depth: of a multiplication; None where attention multiplies.
        lags: the band as a function of the lag; :func:`.lag_function`.
        same: the indicator of lag 0; :func:`.same_frame`.
        ranges: largest magnitude of what is multiplied, by subspace.
    """

    process: GaussianProcess
    form: str
    heavy_ball: bool
    depth: int | None
    lags: LagFunction
    same: LagFunction
    ranges: dict[str, float]

    @cached_property
    def spaces(self) -> Subspaces:
        """The residual stream."""
        sizes = self._sizes()
        if self.depth is None:
            return Subspaces(sizes)
        stages = self._preparations()
        if self.form == "plain":
            stages = [*stages, self._step_products()]
        teeth = [sum(2 * sizes[p.vector] for p in products) for products in stages]
        return Subspaces({**sizes, TEETH: max(teeth)})

    def lift(self, embedding: Tensor, features: StepFeatures) -> Lift:
        """f_in, with positions (N, 2)."""
        process, spaces, names = self.process, self.spaces, self._features
        n = process.seq_len
        position = {"position": embedding.T, "one": torch.ones(1, n, dtype=torch.float64)}
        if self._has_mean:
            position["mean"] = process.mean.T
        of_t = {name: row[None] for name, row in zip(names, _identity(len(names)), strict=True)}
        frame = spaces.write({"frame": _identity(process.dim)}, process.dim)
        return Lift(frame, spaces.write(position, n).T, spaces.write(of_t, len(names)), features)

    def readout(self) -> Tensor:
        """f_out, (d, D)."""
        return self.spaces.read({"score": _identity(self.process.dim)}, self.process.dim)

    def prepare(self) -> list[Block]:
        """The blocks before the first step: scalars of t, and the offset."""
        stages = self._preparations()
        blocks = [block for products in stages for block in self._multiply(products)]
        return blocks if self.form == "plain" else [*blocks, self._offset_block()]

    def step(self) -> list[Block]:
        """The blocks of one step."""
        attention, layer = AttentionBuilder(self.spaces), FeedForwardBuilder(self.spaces)
        identity = _identity(self.process.dim)
        if self.form == "plain":
            self._add_lags(attention, None, "product")
            layer.linear("clear product", {"product": identity}, {"product": -identity})
            self._add_offset(layer)
            last = Block(attention.build(), layer.build(), "sum over lags, add offset")
            return [*self._multiply(self._step_products()), last]
        self._add_lags(attention, "signal_step", "score")
        self._add_same_frame(attention, "noise_step", "score", self._moved, -1.0)
        if self.heavy_ball:
            self._add_same_frame(attention, "friction", "momentum", "momentum", -1.0)
        self._add_offset(layer)
        return [Block(attention.build(), layer.build(), "one step")]

    # ---- what there is ----------------------------------------------------------------------

    @property
    def _features(self) -> tuple[str, ...]:
        return FEATURES if self.heavy_ball else FEATURES[:4]

    @property
    def _has_mean(self) -> bool:
        return bool(self.process.mean.any())

    @property
    def _moved(self) -> str:
        """The subspace that a step changes: s itself, or its momentum."""
        return "momentum" if self.heavy_ball else "score"

    @property
    def _position_scalars(self) -> list[str]:
        of_momentum = ["first_step", "friction"] if self.heavy_ball else []
        return ["signal_step", "noise_step", "step", *of_momentum]

    def _sizes(self) -> dict[str, int]:
        d = self.process.dim
        sizes = {"frame": d, "position": 2, "one": 1, **dict.fromkeys(self._features, 1)}
        if self._has_mean:
            sizes["mean"] = d
        sizes |= {"signal_step": 1, "noise_step": 1, "score": d}
        if self.heavy_ball:
            sizes["momentum"] = d
        sizes["offset"] = d
        if self.form == "plain":
            return {**sizes, "product": d}
        return sizes | {f"{name}_position": 2 for name in self._position_scalars}

    # ---- what is multiplied -----------------------------------------------------------------

    def _preparations(self) -> list[list[Product]]:
        """Products before the first step, in stages: those of one can be formed together."""
        scalars = [
            self._product("step", "signal_var", "signal_step"),
            self._product("step", "noise_var", "noise_step"),
        ]
        if self._has_mean:
            scalars.append(self._product("signal", "mean", "frame", -1.0))  # v becomes v − α μ
        if self.form == "position-once":
            names = self._position_scalars
            return [scalars, [self._product(x, "position", f"{x}_position") for x in names]]
        of_frame = [self._product("step", "frame", "offset")]
        if self.heavy_ball:
            # the first step has size η / (1 + β): as if s had moved by that much before it
            of_frame.append(self._product("first_step", "frame", "momentum"))
        return [scalars, of_frame] if self._has_mean else [scalars + of_frame]

    def _step_products(self) -> list[Product]:
        products = [
            self._product("signal_step", "score", "product"),
            self._product("noise_step", "score", self._moved, -1.0),
        ]
        if self.heavy_ball:
            products.append(self._product("friction", "momentum", "momentum", -1.0))
        return products

    def _product(self, scalar: str, vector: str, target: str, coefficient: float = 1.0) -> Product:
        ranges = self.ranges[scalar], self.ranges[vector]
        return Product(scalar, vector, target, *ranges, coefficient)

    def _multiply(self, products: list[Product]) -> list[Block]:
        if self.depth is None:
            return attention_multiplication(self.spaces, products, self.process.seq_len)
        return multiplication_blocks(self.spaces, products, self.depth)

    # ---- what is attended to, and what is added ---------------------------------------------

    def _offset_block(self) -> Block:
        attention = AttentionBuilder(self.spaces)
        self._add_same_frame(attention, "step", "frame", "offset", 1.0)
        if self.heavy_ball:
            self._add_same_frame(attention, "first_step", "frame", "momentum", 1.0)
        nothing = FeedForwardBuilder(self.spaces).build()
        return Block(attention.build(), nothing, "offset = step * frame")

    def _add_lags(self, attention: AttentionBuilder, scalar: str | None, source: str) -> None:
        """−(Γ̄ ⊗ Σ) source, with the scalar in the scores."""
        self._add(attention, self.lags, scalar, source, self._moved, -self.process.spatial)

    def _add_same_frame(
        self, attention: AttentionBuilder, scalar: str, source: str, target: str, sign: float
    ) -> None:
        """± scalar · source, exact but for the product in the scores."""
        identity = sign * _identity(self.process.dim)
        self._add(attention, self.same, scalar, source, target, identity)

    def _add(
        self,
        attention: AttentionBuilder,
        function: LagFunction,
        scalar: str | None,
        source: str,
        target: str,
        matrix: Tensor,
    ) -> None:
        """Heads whose scores relu(z (e_i^T G e_j − c_k)) add up to z f(lag), z the scalar or 1."""
        position, threshold, prefix = "position", "one", ""
        if scalar is not None:
            position, threshold, prefix = f"{scalar}_position", scalar, f"{scalar}: "
        axes = _identity(3)  # head coordinates: two of the embedding, one of the threshold
        heads = zip(function.knots, function.weights, function.labels, strict=True)
        for knot, weight, label in heads:
            attention.add(
                prefix + label,
                query={position: axes[:, :2], threshold: -knot * axes[:, 2:]},
                key={"position": axes[:, :2] @ function.form.T, "one": axes[:, 2:]},
                value={source: _identity(len(matrix))},
                write={target: weight * matrix},
            )

    def _add_offset(self, layer: FeedForwardBuilder) -> None:
        """s −= c; with momentum p −= c and s += p."""
        identity = _identity(self.process.dim)
        if self.heavy_ball:
            layer.linear("move score", {"momentum": identity}, {"score": identity})
        targets = ("score", "momentum") if self.heavy_ball else ("score",)
        layer.linear("add offset", {"offset": identity}, dict.fromkeys(targets, -identity))


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
