"""What a class of transformers costs in the statistical bounds."""

from __future__ import annotations

import math

from ..support.validation import require_count, require_positive
from .network import NetworkSize


def covering_cost(
    size: NetworkSize, seq_len: int, dim: int, radius: float, data_bound: float, accuracy: float
) -> float:
    r"""Order of the log-covering number of T(D, L, M, B, R), **shape only**:

    .. math:: \log \mathcal{N} \lesssim D^2 M \Big( L^2 \log(B M N R\, C)
              + \log\frac{B M L N d\, C}{\delta} \Big).

    The constant hidden in :math:`\lesssim` is not known to us, and is taken to be one. It is about
    :math:`D^2 M L` weights, each of them free, times the depth, for a change of a weight may grow
    from layer to layer. A bound of the error needs n well above this number before it says
    anything. The formula is from the follow-up on imputation (Ye and Chen 2025, Appendix E.1.2),
    which says that it modifies the lemma; here without its factor for conditional data.
    Source: FDGWC Lemma 23.

    Args:
        size: D, L, M and B, of :meth:`.ScoreTransformer.size`.
        seq_len, dim: N and d.
        radius: R, to which the output is clipped.
        data_bound: C, largest norm of an input.
        accuracy: δ, of the cover.

    Returns:
        The right-hand side, in natural logarithms.

    Raises:
        ValueError: for numbers out of range, or no attention head.
    """
    require_count("seq_len", seq_len)
    require_count("dim", dim)
    require_count("heads", size.heads)
    for name, value in (("radius", radius), ("data_bound", data_bound), ("accuracy", accuracy)):
        require_positive(name, value)
    common = math.log(size.largest_norm * size.heads * seq_len * data_bound)
    depth = size.blocks**2 * (common + math.log(radius))
    cover = common + math.log(size.blocks * dim / accuracy)
    return size.width**2 * size.heads * (depth + cover)
