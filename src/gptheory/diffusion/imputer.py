"""Drawing what is missing from a network that is told what is seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.conditional import _as_mask, _require_some
from ..support.validation import (
    require_count,
    require_finite,
    require_floating,
    require_score,
    require_sequences,
)
from .exact import Score
from .sampler import sample

Imputer = Callable[[Tensor, "float | Tensor", Tensor], Tensor]


class ConditionalScore:
    r"""The score of missing frames, :math:`\hat s(v, t | x_o)`, by a network that is told x_o.

    Seen frames enter the network as they are, whatever v holds there, and the score is zero at
    them. So a sampler moves them as it moves noise, and :meth:`completed` puts them back: as with
    the exact law, :meth:`.GaussianProcess.condition`, beside which
    ``ExactScore(process.condition(x, observed))`` this stands. Source: YC Algorithm 1.

    Args:
        network: called as (v, t, observed): a :class:`.ConditionalDiT`, or an
            :class:`.ImputationTransformer`.
        x: sequences (batch, N, d) or one (N, d), anything (NaN, say) where they are not seen.
        observed: (batch, N), or (N,) for all, boolean, True where a frame was seen.

    Attributes:
        seq_len, dim: N and d.

    Raises:
        ValueError: for shapes that do not fit, a mask of another kind, one that shows or hides
            everything, or values that were seen and are not finite.
    """

    def __init__(self, network: Imputer, x: Tensor, observed: Tensor) -> None:
        require_floating("x", x, "(batch, N, d)")
        self._single = x.ndim == 2
        x = x[None] if self._single else x
        require_sequences("x", x)
        require_count("the number of sequences in x", len(x))
        observed = _as_mask(observed, tuple(x.shape))
        if observed.ndim == 3:
            raise ValueError(
                f"observed must have shape ({x.shape[1]},) or {tuple(x.shape[:2])}: networks are"
                f" told of whole frames; got {tuple(observed.shape)}"
            )
        _require_some(observed[..., None])
        self.network, (self.seq_len, self.dim) = network, x.shape[1:]
        self._seen = observed.to(x.device)
        self._x = torch.where(self._seen[..., None], x.detach(), 0.0)
        require_finite("x where it was observed", self._x)

    @property
    def device(self) -> torch.device:
        """Where the sequences are."""
        return self._x.device

    @property
    def t_range(self) -> tuple[float, float] | None:
        """Diffusion steps on which the network was trained, where it says so."""
        return getattr(self.network, "t_range", None)

    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score.

        Args:
            v: noised sequences (n · batch, N, d), n for each, draw by draw; where frames were seen
                v is not looked at.
            t: diffusion step > 0, a number or one per sequence (n · batch,).

        Returns:
            (n · batch, N, d), dtype and device of v; zero at seen frames.

        Raises:
            ValueError: for a wrong shape, and what the network refuses.
        """
        seen = self._seen_in(v)
        score = self.network(torch.where(seen, self._x_in(v), v), t, seen[..., 0])
        return require_score(score, v).masked_fill(seen, 0.0)

    def completed(self, v: Tensor) -> Tensor:
        """v at missing frames, and what was seen at the others.

        Args:
            v: (n · batch, N, d): n sequences for each, draw by draw.

        Returns:
            (n · batch, N, d), dtype and device of v.
        """
        return torch.where(self._seen_in(v), self._x_in(v), v)

    def of_missing(self, k: int = 0) -> Score:
        """The score of the missing frames of sequence k alone: of (batch, M, d), called as (v, t).

        As ``law.process(k)`` is the law of these frames; for measures of densities, such as
        :func:`.total_variation`.

        Raises:
            ValueError: unless k is one of the sequences.
        """
        if not 0 <= k < len(self._x):
            raise ValueError(f"k must lie in 0..{len(self._x) - 1}, the sequences, got {k!r}")
        return _MissingScore(ConditionalScore(self.network, self._x[k], self._seen[k]))

    def _seen_in(self, v: Tensor) -> Tensor:
        """The masks of v, (n · batch, N, 1)."""
        require_sequences("v", v, self.seq_len, self.dim)
        if len(v) % len(self._x):
            raise ValueError(
                f"v must have as many sequences as x, {len(self._x)}, or a multiple of that, got"
                f" {len(v)}"
            )
        return self._seen.to(v.device).repeat(len(v) // len(self._x), 1)[..., None]

    def _x_in(self, v: Tensor) -> Tensor:
        return self._x.to(v).repeat(len(v) // len(self._x), 1, 1)


class _MissingScore:
    """Of one sequence: without the frames that are seen."""

    def __init__(self, whole: ConditionalScore) -> None:
        self.whole = whole
        self.device, self.t_range = whole.device, whole.t_range
        self.frames = (~whole._seen[0]).nonzero()[:, 0]

    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        require_sequences("v", v, len(self.frames), self.whole.dim)
        frames = self.frames.to(v.device)
        full = self.whole._x.to(v).repeat(len(v), 1, 1).index_copy(1, frames, v)
        return self.whole(full, t).index_select(1, frames)


def impute(
    network: Imputer,
    x: Tensor,
    observed: Tensor,
    n: int = 1,
    generator: torch.Generator | None = None,
    **options: object,
) -> Tensor:
    """Draw what is missing, n times for each sequence: :func:`.sample` with what is seen put back.

    Source: YC Algorithm 1.

    Args:
        network, x, observed: as in :class:`ConditionalScore`.
        n: draws for each, 0 or more.
        generator: source of randomness.
        options: of :func:`.sample`: ``solver``, ``steps``, ``t_min``, ``spacing`` and the like.

    Returns:
        (n, batch, N, d), or (n, N, d) of one sequence; dtype and device of x. Seen frames are those
        of x, bit for bit.

    Raises:
        ValueError, FloatingPointError: as those two.

    Warns:
        UserWarning: as :func:`.sample`.
    """
    score = ConditionalScore(network, x, observed)
    require_count("n", n, minimum=0)
    batch = 1 if x.ndim == 2 else len(x)
    chosen = {"generator": generator, "dtype": x.dtype, "device": x.device, **options}
    v = sample(score, n * batch, score.seq_len, score.dim, **chosen)
    return score.completed(v).view(n, *x.shape)
