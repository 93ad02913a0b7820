r"""The nested loops for missing frames as weights, with the paper's flags.

Heads are for four kinds of pairs, told by the flags of the two tokens: seen to seen (``T_obs``),
missing to seen (``T_cor``), seen to missing (``T_cort``), missing to missing (``T_miss``). An outer
step of :class:`.NestedScore` is

- ``T_cor``: :math:`b = \Sigma_{om}s` at seen tokens, and the first inner step :math:`u = \theta b`;
- ``T_obs``, K_aux − 1 times: :math:`u \leftarrow u - \theta(\Sigma_{oo}u - b)`;
- ``T_miss``: :math:`s \leftarrow s - \eta\alpha_t^2\Sigma_{mm}s - \eta\sigma_t^2 s`;
- ``T_cort``: :math:`s \leftarrow s + \eta\alpha_t^2\Sigma_{mo}u - c`.

:math:`c = \eta(v_m - \alpha_t\tilde\mu)` is made before, by the same inner loop from
:math:`b = x_o - \mu_o`. As in the position-once form of :class:`.Blueprint` the scalars of t are
multiplied into the positions, once, and stand in the scores; the paper multiplies in every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..attention.positions import time_embedding
from ..data.process import GaussianProcess
from ..support.validation import require_count, require_one_of
from ..support.wrappers import lasting, on_the_cpu
from .build import DEFAULT_DEPTH, MULTIPLICATIONS, stationary_values
from .builders import AttentionBuilder, FeedForwardBuilder
from .imputation import extreme_variances, score_radius
from .lag_heads import (
    VARIANTS,
    LagFunction,
    default_period,
    lag_function,
    require_separated_lags,
    same_frame,
)
from .layers import Block, FeedForward
from .masked_network import FlagLift, ImputationTransformer
from .multiplication import TEETH, Product, attention_multiplication, multiplication_blocks
from .network import StepFeatures
from .scaled_heads import Scores, add_scaled_heads
from .subspaces import Subspaces

FEATURES = ("step", "signal", "noise_var", "signal_var")  # η, α, σ², α²
PRODUCTS = {"signal_step": "signal_var", "noise_step": "noise_var", "mean_step": "signal"}
FLAGS = ("seen", "missing")
MARGIN = 1.01  # for the rounding and the error of products
WORK = ("score", "inner", "rhs", "offset")  # s, u, b, c


@lasting
@on_the_cpu
def build_nested_transformer(
    process: GaussianProcess,
    steps: int,
    inner_steps: int,
    heads: str = "trapezoid",
    multiplication: str = "feed-forward",
    multiplication_depth: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> ImputationTransformer:
    r"""Weights with which a transformer runs two nested loops for the score of missing frames.

    Source: YC Theorem 1; YC Lemma 6.

    One fixed set of weights serves every mask, all t > 0 and all v, in which the network is affine
    up to the clip of f_out, as that of :func:`.build_imputation_transformer`. It is
    ``NestedScore(process, observed, steps, inner_steps, every_mask=True)``.

    Args:
        process: the law of the clean sequences; its temporal covariance must be stationary.
        steps, inner_steps: K and K_aux; the network has about K (K_aux + 2) blocks.
        heads: as in :func:`.build_score_transformer`; ``"trapezoid"`` is the paper's.
        multiplication: ``"feed-forward"`` or ``"attention"``, as there.
        multiplication_depth: m, blocks of a feed-forward multiplication, 20 by default.
        dtype: of the weights.

    Returns:
        The network, called as (v, t, observed), its weights frozen.

    Raises:
        NotPSDError: if Γ ⊗ Σ is singular up to rounding.
        ValueError: for arguments out of range, or a process that is not stationary.

    Accuracy (float64, N = 8, against the iterate): 1e-9 relative; 1e-12 where attention multiplies.
    """
    require_count("steps", steps)
    require_count("inner_steps", inner_steps)
    require_one_of("heads", heads, VARIANTS)
    require_one_of("multiplication", multiplication, MULTIPLICATIONS)
    depth = DEFAULT_DEPTH["position-once"] if multiplication_depth is None else multiplication_depth
    require_count("multiplication_depth", depth)
    process, period = process.to("cpu"), default_period(heads, process.seq_len)
    require_separated_lags(heads, process.seq_len, period, dtype)
    plan = _Plan(
        process=process,
        spectrum=extreme_variances(process),
        lags=lag_function(heads, stationary_values(process.gram()), period),
        same=same_frame(heads, period),
        embedding=time_embedding(process.seq_len, period),
        depth=depth if multiplication == "feed-forward" else None,
    )
    blocks, radius = plan.blocks(steps, inner_steps), score_radius(process)
    network = ImputationTransformer(plan.lift(), blocks, plan.readout(), radius, spaces=plan.spaces)
    return network.to(dtype).requires_grad_(False)


@dataclass(frozen=True)
class _Plan:
    """Everything that the blocks are made from."""

    process: GaussianProcess
    spectrum: tuple[float, float]
    lags: LagFunction
    same: LagFunction
    embedding: Tensor
    depth: int | None

    # ---- the residual stream ----------------------------------------------------------------

    @cached_property
    def spaces(self) -> Subspaces:
        d = self.process.dim
        sizes = {"frame": d, "position": 2, **dict.fromkeys(("one", *FLAGS, *FEATURES), 1)}
        if self._has_mean:
            sizes["mean"] = d
        sizes |= dict.fromkeys(PRODUCTS, 1)
        sizes |= {f"{name}_position": 2 for name in self._scalars}
        sizes |= dict.fromkeys(WORK, d)
        if self.depth is not None:
            sizes[TEETH] = max(sum(2 * sizes[p.vector] for p in ps) for ps in self._products())
        return Subspaces(sizes)

    def lift(self) -> FlagLift:
        n, d, spaces = self.process.seq_len, self.process.dim, self.spaces
        position = {"position": self.embedding.T, "one": torch.ones(1, n, dtype=torch.float64)}
        if self._has_mean:
            position["mean"] = self.process.mean.T
        return FlagLift(
            spaces.write({"frame": _identity(d)}, d),
            spaces.write(position, n).T,
            self._of_names(FEATURES),
            StepFeatures(self.spectrum),
            self._of_names(FLAGS),
        )

    def readout(self) -> Tensor:
        return self.spaces.read({"score": _identity(self.process.dim)}, self.process.dim)

    @property
    def _has_mean(self) -> bool:
        return bool(self.process.mean.any())

    @property
    def _scalars(self) -> tuple[str, ...]:
        return "step", *PRODUCTS

    def _of_names(self, names: tuple[str, ...]) -> Tensor:
        rows = zip(names, _identity(len(names)), strict=True)
        return self.spaces.write({name: row[None] for name, row in rows}, len(names))

    # ---- the blocks -------------------------------------------------------------------------

    def blocks(self, steps: int, inner_steps: int) -> list[Block]:
        t_obs = [self._inner_step()] * (inner_steps - 1)
        outer = [self._t_cor(), *t_obs, self._t_miss(), self._t_cort()]
        offset = [self._centred(), *t_obs, self._offset()]
        return [*self._multiply(), *offset, *outer * (steps - 1)]

    def _centred(self) -> Block:
        """b = x − μ at seen frames, and the first inner step."""
        attention, seen = AttentionBuilder(self.spaces), self._scores("seen", "seen")
        self._add_same(attention, seen, "frame", "rhs", 1.0)
        if self._has_mean:
            self._add_same(attention, seen, "mean", "rhs", -1.0)
        return Block(attention.build(), self._after(inner=True), "right-hand side: x − μ")

    def _offset(self) -> Block:
        """c, and the first outer step, −c."""
        attention, own = AttentionBuilder(self.spaces), ("missing", "missing")
        self._add_same(attention, self._scores(*own, "step"), "frame", "offset", 1.0)
        if self._has_mean:
            self._add_same(attention, self._scores(*own, "mean_step"), "mean", "offset", -1.0)
        cort = self._scores("seen", "missing", "mean_step")
        self._add_lags(attention, cort, "inner", "offset", -1.0)
        return Block(attention.build(), self._after(inner=False), "offset, first step")

    def _t_cor(self) -> Block:
        attention = AttentionBuilder(self.spaces)
        self._add_lags(attention, self._scores("missing", "seen"), "score", "rhs", 1.0)
        return Block(attention.build(), self._after(inner=True), "T_cor")

    def _inner_step(self) -> Block:
        attention = AttentionBuilder(self.spaces)
        seen = self._scores("seen", "seen")
        self._add_lags(attention, seen, "inner", "inner", -self._inner_size)
        return Block(attention.build(), self._after(inner=True), "T_obs")

    def _t_miss(self) -> Block:
        attention, own = AttentionBuilder(self.spaces), ("missing", "missing")
        self._add_lags(attention, self._scores(*own, "signal_step"), "score", "score", -1.0)
        self._add_same(attention, self._scores(*own, "noise_step"), "score", "score", -1.0)
        return Block(attention.build(), FeedForwardBuilder(self.spaces).build(), "T_miss")

    def _t_cort(self) -> Block:
        attention = AttentionBuilder(self.spaces)
        cort = self._scores("seen", "missing", "signal_step")
        self._add_lags(attention, cort, "inner", "score", 1.0)
        return Block(attention.build(), self._after(inner=False), "T_cort")

    # ---- their parts ------------------------------------------------------------------------

    @property
    def _inner_size(self) -> float:
        """θ."""
        return 2 / sum(self.spectrum)

    @property
    def _largest_step(self) -> float:
        """Bound on η, which goes from 2/(λ₋ + λ₊) to 1 with t, and on its products."""
        return max(1.0, self._inner_size)

    def _scores(self, sender: str, receiver: str, scalar: str | None = None) -> Scores:
        """Gated; |x − c| is at most 1 + |c|, and it is multiplied by the scalar."""
        knots = torch.cat([self.lags.knots, self.same.knots])
        height = MARGIN * self._largest_step * (1 + knots.abs().max().item())
        return Scores(scalar, None, (sender, receiver), height)

    def _add_lags(
        self, attention: AttentionBuilder, scores: Scores, source: str, target: str, factor: float
    ) -> None:
        matrix = factor * self.process.spatial
        add_scaled_heads(attention, self.lags, scores, source, target, matrix)

    def _add_same(
        self, attention: AttentionBuilder, scores: Scores, source: str, target: str, factor: float
    ) -> None:
        matrix = factor * _identity(self.process.dim)
        add_scaled_heads(attention, self.same, scores, source, target, matrix)

    def _after(self, inner: bool) -> FeedForward:
        """u += θ b after a half step of the inner loop; s −= c after one of the outer."""
        layer, identity = FeedForwardBuilder(self.spaces), _identity(self.process.dim)
        if inner:
            layer.linear("add b", {"rhs": identity}, {"inner": self._inner_size * identity})
        else:
            layer.linear("add c", {"offset": identity}, {"score": -identity})
            for name in ("inner", "rhs"):
                layer.linear(f"clear {name}", {name: identity}, {name: -identity})
        return layer.build()

    def _products(self) -> list[list[Product]]:
        largest = MARGIN * self._largest_step
        scalars = [Product("step", x, name, largest, 1.0) for name, x in PRODUCTS.items()]
        names = self._scalars
        of_position = [Product(x, "position", f"{x}_position", largest, 1.0) for x in names]
        return [scalars, of_position]

    def _multiply(self) -> list[Block]:
        return [block for products in self._products() for block in self._multiplied(products)]

    def _multiplied(self, products: list[Product]) -> list[Block]:
        if self.depth is None:
            return attention_multiplication(self.spaces, products, self.process.seq_len)
        return multiplication_blocks(self.spaces, products, self.depth)


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
