"""Attention by name."""

from __future__ import annotations

from ..support.validation import require_one_of
from .certified import DEGREE, RADIUS, CertifiedAttention, NormalisedAttention
from .layer import ATTENTIONS, Attention
from .window import WindowAttention

# kind -> its layer and what else decides it, with defaults (None: has to be given)
KINDS: dict[str, tuple[type[Attention], dict[str, float | int | None]]] = {
    "certified": (CertifiedAttention, {"radius": RADIUS, "degree": DEGREE}),
    "normalised": (NormalisedAttention, {"radius": RADIUS}),
    "window": (WindowAttention, {"window": None}),
}
ALL = (*ATTENTIONS, *KINDS)


def attention_options(kind: str, **given: float | int | None) -> dict[str, float | int]:
    """What decides a kind of attention besides its name: what was given, else the defaults.

    Raises:
        ValueError: for an unknown kind, an argument that does not belong to it, or one that it
            needs and that is missing.
    """
    require_one_of("attention", kind, ALL)
    own = KINDS[kind][1] if kind in KINDS else {}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in own:
            kinds = " or ".join(repr(k) for k, (_, options) in KINDS.items() if name in options)
            raise ValueError(
                f"{name}={value!r} belongs to attention={kinds}, not to attention={kind!r}"
            )
    options = {
        name: default if given.get(name) is None else given[name] for name, default in own.items()
    }
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise ValueError(f"attention={kind!r} needs {missing[0]}, got None")
    return options


def attention_layer(
    kind: str, width: int, heads: int, fused: bool, **options: float | int
) -> Attention:
    """The layer of this name; see :class:`.layer.Attention` and ``KINDS``."""
    if kind in KINDS:
        return KINDS[kind][0](width, heads, fused, **options)
    return Attention(width, heads, kind, fused)
