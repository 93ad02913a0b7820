r"""Theorem 1 as weights: a transformer that *is* the iteration of :class:`.UnrolledScore`.

What its blocks do, and the names of its subspaces, is said at :class:`.Blueprint`.
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor

from ..attention.positions import time_embedding
from ..data.covariance import toeplitz
from ..data.process import GaussianProcess
from ..diffusion.methods import STATIONARY
from ..diffusion.unrolled import UnrolledScore
from ..support.validation import require_count, require_one_of, require_range
from ..support.wrappers import lasting, on_the_cpu
from .blueprint import FORMS, Blueprint
from .lag_heads import VARIANTS, default_period, lag_function, require_separated_lags, same_frame
from .network import ScoreTransformer, StepFeatures
from .ranges import value_ranges

MULTIPLICATIONS = ("feed-forward", "attention")
DEFAULT_DEPTH = {"plain": 12, "position-once": 20}
STATIONARY_TOLERANCE = 1e-12
LEAK_WARNING = 1e-2


@lasting
@on_the_cpu
def build_score_transformer(
    process: GaussianProcess,
    steps: int,
    bandwidth: int | None = None,
    multiplication_depth: int | None = None,
    heads: str = "trapezoid",
    method: str = "gradient-descent",
    form: str = "plain",
    tied: bool = True,
    embedding_period: float | None = None,
    norm_bound: float | None = None,
    t_min: float = 0.005,
    t_max: float = 10.0,
    taper: str | None = None,
    multiplication: str = "feed-forward",
    dtype: torch.dtype = torch.float64,
) -> ScoreTransformer:
    r"""Weights with which a transformer computes K steps of gradient descent or heavy ball.

    Source: FDGWC Theorem 1.

    One fixed set of weights serves all t in [t_min, t_max] and all v; it approximates
    ``UnrolledScore(process, steps, bandwidth, taper, method)``, and through Lemma 1 the score.

    Args:
        process: the law of the clean sequences; its temporal covariance must be stationary.
        steps: K.
        bandwidth, taper, method: as in :class:`.UnrolledScore` (no Chebyshev, whose
            step sizes change from step to step).
        multiplication_depth: m, blocks of a multiplication, whose error is 4^−(m+1) of its ranges;
            12 for ``"plain"``, 20 for ``"position-once"``.
        heads: ``"trapezoid"`` (4J heads), ``"shared-knots"`` (J), ``"sine"`` (2J + 1); see
            :func:`.lag_function`.
        form: ``"plain"`` or ``"position-once"``.
        tied: whether all steps share one set of weights.
        embedding_period: C; 2N by default, 8N for sine heads.
        norm_bound: largest :math:`|v - \alpha_t\mu|` of any coordinate for which multiplications
            are in range; by default a sequence of the process exceeds it with probability below
            1e-6. The range of the score, and R, follow in proportion.
        t_min, t_max: range of diffusion steps.
        multiplication: ``"feed-forward"``, the paper's, or ``"attention"``, ours, which is exact in
            one block and has neither depth nor ranges; see
            :mod:`gptheory.construction.multiplication`.
        dtype: of the weights.

    Returns:
        The network, called as (v, t); its weights are frozen, until ``requires_grad_()``.

    Raises:
        NotPSDError: if the iteration diverges somewhere in [t_min, t_max].
        ValueError: for arguments out of range, a process that is not stationary, a period too
            small to separate lags (or, with a warning before that, too large for the dtype), or a
            norm bound that the process itself exceeds.

    Accuracy (float64, N = 128, d = 8, t = 0.1, against the iterate): 2e-6 relative for ``"plain"``
    with m = 12, 1e-9 for ``"position-once"`` with m = 20, 1e-11 where attention multiplies.
    """
    _require_known(heads=heads, method=method, form=form, multiplication=multiplication)
    depth = DEFAULT_DEPTH[form] if multiplication_depth is None else multiplication_depth
    require_count("multiplication_depth", depth)
    require_range(t_min, t_max)
    process = process.to("cpu")  # where weights are built
    reference = UnrolledScore(process, steps, bandwidth, taper, method)
    reference.extremes(t_min)  # the step at which the iteration is hardest
    seq_len = process.seq_len
    period = default_period(heads, seq_len) if embedding_period is None else embedding_period
    require_separated_lags(heads, seq_len, period, dtype)
    ranges, radius = value_ranges(reference, norm_bound, t_min, t_max)
    values = stationary_values(reference.banded)
    plan = Blueprint(
        process=process,
        form=form,
        heavy_ball=reference.method.has_momentum,
        depth=depth if multiplication == "feed-forward" else None,
        lags=lag_function(heads, values[: bandwidth or seq_len], period),
        same=same_frame(heads, period),
        ranges=ranges,
    )
    _warn_of_leaks(plan)
    features = StepFeatures(reference.spectrum, plan.heavy_ball)
    lift = plan.lift(time_embedding(seq_len, period), features)
    step = plan.step()
    blocks = [b for _ in range(steps) for b in (step if tied else copy.deepcopy(step))]
    network = ScoreTransformer(
        lift, plan.prepare() + blocks, plan.readout(), radius, (t_min, t_max), plan.spaces
    )
    return network.to(dtype).requires_grad_(False)


def _require_known(heads: str, method: str, form: str, multiplication: str) -> None:
    require_one_of("heads", heads, VARIANTS)
    require_one_of("method", method, STATIONARY)
    require_one_of("form", form, FORMS)
    require_one_of("multiplication", multiplication, MULTIPLICATIONS)


def stationary_values(banded: Tensor) -> Tensor:
    """γ_0..γ_{N−1} of the (banded) covariance; raises unless it depends on the lag alone."""
    row = banded[0]
    defect = (banded - toeplitz(row)).abs().max().item()
    if defect > STATIONARY_TOLERANCE * row.abs().max().item():
        raise ValueError(
            "the temporal covariance must be stationary (constant along diagonals), because heads"
            f" see the lag only; entries of one lag differ by up to {defect:.3g}"
        )
    return row


def _warn_of_leaks(plan: Blueprint) -> None:
    """Scores of the position-once form carry the product's error times the slope of the heads."""
    if plan.form == "plain" or plan.depth is None:
        return
    slope = max(plan.lags.steepness, plan.same.steepness)
    leak = 2 * slope * 4.0 ** -(plan.depth + 1)
    if leak > LEAK_WARNING:
        needed = math.ceil(math.log(2 * slope / LEAK_WARNING, 4)) - 1
        warnings.warn(
            f"multiplication_depth={plan.depth} lets lags leak into each other (up to {leak:.2g} of"
            f" the largest score): use at least {needed}, or form='plain'",
            stacklevel=5,  # past the two decorators
        )
