r"""How local softmax can be when its logits are bounded: shares of the weight, and radii for them.

With logits in [−R, R] the largest weight that w of N keys can have together is reached where those
have logit R and all others −R,

.. math:: p(R) = \frac{w\,e^{2R}}{w\,e^{2R} + N - w}, \qquad
          R(p) = \tfrac12 \log\frac{p\,(N - w)}{(1 - p)\,w}.
"""

from __future__ import annotations

import math

from ..support.validation import require_count, require_positive


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


def _require_window(keys: int, window: int) -> None:
    require_count("keys", keys)
    require_count("window", window)
    if window > keys:
        raise ValueError(f"window must be at most the number of keys {keys}, got {window}")
