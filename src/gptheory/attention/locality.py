r"""How local softmax can be when its logits are bounded: shares of the weight, and radii for them.

With logits in [−R, R] the largest weight that w of N keys can have together is reached where those
have logit R and all others −R,

.. math:: p(R) = \frac{w\,e^{2R}}{w\,e^{2R} + N - w}, \qquad
          R(p) = \tfrac12 \log\frac{p\,(N - w)}{(1 - p)\,w}.

That is one row. The rows of a map of rank r cannot all be local: cut the frames into blocks of w at
most, and let :math:`B_{bc}` be the mean over the queries of block b of their weight on block c. B
is stochastic, so that no eigenvalue exceeds 1 in size, and has rank r at most, so that

.. math:: \operatorname{tr} B \le r, \qquad
          \text{mean weight on one's own block} \le \frac{r\,w}{N}.
"""

from __future__ import annotations

import math

from ..support.validation import require_count, require_positive
from .exponential import exp_polynomial

DEGREES = 64  # of the polynomials that are tried


def largest_share(radius: float, keys: int, window: int = 1) -> float:
    r"""The largest part of a row's weight that some of the keys can have, p(R).

    Args:
        radius: R > 0; all logits lie in [−R, R].
        keys: N.
        window: w in 1..N, the number of keys that share it.

    Raises:
        ValueError: for numbers out of range.
    """
    require_positive("radius", radius)
    _require_window(keys, window)
    return window / (window + (keys - window) * math.exp(-2 * radius))


def radius_for_share(share: float, keys: int, window: int = 1) -> float:
    r"""The least radius at which some of the keys can have a given part of the weight, R(p).

    Args:
        share: p in (0, 1).
        keys, window: N and w, as in :func:`largest_share`.

    Returns:
        R; 0 where uniform weights are enough.

    Raises:
        ValueError: for numbers out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share!r}")
    _require_window(keys, window)
    if share * keys <= window:
        return 0.0
    return 0.5 * math.log(share * (keys - window) / ((1 - share) * window))


def cancelling_gain(radius: float, keys: int, window: int = 1) -> float:
    r"""What the difference of two heads has to be multiplied by to be a window of weight 1,

    .. math:: G = \frac{w\,e^{2R} + N - w}{w\,(e^{2R} - 1)}.

    The most local row with logits in [−R, R], less its smallest weight at every key (a uniform
    head, scaled), is zero outside the window and 1/(G w) inside it: so two heads, one of them
    uniform, are as local as one likes at *any* radius. The price is G: whatever is wrong with the
    weights, a polynomial or rounding, is multiplied by it.

    Args:
        radius, keys, window: R, N and w, as in :func:`largest_share`.

    Raises:
        ValueError: for numbers out of range.
    """
    share = largest_share(radius, keys, window)
    return 1 / share / -math.expm1(-2 * radius)


def low_rank_share(rank: int, keys: int, window: int = 1) -> float:
    r"""The largest mean weight on one's own block that a map of rank r can have, :math:`r w / N`.

    For any map with entries >= 0 and rows that add up to 1: a polynomial's, a product of random
    features, a map through r summaries. Attained by r = N / w blocks. The weight on frames at most
    W away, the mean over queries, is at most four times that for w = W: of blocks of 2W frames,
    shifted at random, one holds both i and j with probability 1/2 or more.

    Args:
        rank: r of the map.
        keys, window: N and w, the largest block.

    Returns:
        The bound, at most 1.

    Raises:
        ValueError: for numbers out of range.
    """
    require_count("rank", rank)
    _require_window(keys, window)
    return min(1.0, rank * window / keys)


def bounded_share(radius: float, keys: int, window: int, head_dim: int) -> float:
    r"""The same for *softmax* whose logits are inner products of h numbers and lie in [−R, R],

    .. math:: \min_g \left(\binom{h + g}{g}\frac{w}{N} + \tfrac12\beta_g\right),

    because a map is within :math:`\beta_g` (:attr:`.ExpPolynomial.error_bound`) of that of the
    minimax polynomial of degree g on [−R, R], row by row in the sum of absolute values, so the
    weight on some of the keys is within half of that.

    Args:
        radius, keys, window: R, N and w, as in :func:`largest_share`.
        head_dim: h.

    Returns:
        The bound, at most :func:`largest_share`.

    Raises:
        ValueError: for numbers out of range.
    """
    require_count("head_dim", head_dim)
    best = largest_share(radius, keys, window)
    for degree in range(DEGREES):
        rank = math.comb(head_dim + degree, degree)
        if rank * window / keys >= best:
            break
        try:
            error = exp_polynomial(degree, radius).error_bound
        except ValueError:  # none yet, or none in floating point
            continue
        best = min(best, low_rank_share(rank, keys, window) + error / 2)
    return best


def _require_window(keys: int, window: int) -> None:
    require_count("keys", keys)
    require_count("window", window)
    if window > keys:
        raise ValueError(f"window must be at most the number of keys {keys}, got {window}")
