r"""The quadratic problems behind the score of missing frames, given the others.

Only missing frames are noised. With :math:`D = \operatorname{diag}(\alpha_i)` and
:math:`V = \operatorname{diag}(\sigma_i^2)`, where :math:`(\alpha_i, \sigma_i^2)` is
:math:`(\alpha_t, \sigma_t^2)` at a missing frame and (1, 0) at an observed one, the noised sequence
has the covariance and the residual

.. math:: C_t = D(\Gamma\otimes\Sigma)D + V, \qquad r = v - D\mu.

The block of :math:`C_t^{-1}` at missing frames (m) is :math:`A_t^{-1}`,
:math:`A_t = \alpha_t^2S_{cond} + \sigma_t^2 I`, and that of :math:`-C_t^{-1}r` is the score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data.process import GaussianProcess
from ..support.rounding import unit_roundoff
from ..support.spectra import frames_first
from ..support.validation import (
    NotPSDError,
    require_count,
    require_one_of,
    require_sequences,
    require_step,
)
from ..support.wrappers import lasting
from .methods import METHODS, Number
from .schedule import floating_step, levels


class MissingFrames:
    r"""A law, which frames are seen, and an iteration that computes the score of the others.

    Args:
        process: the law of the clean sequences.
        observed: (N,) truth values, True where a frame is seen.
        steps: K >= 1.
        method: its name, ``"gradient-descent"``, ``"heavy-ball"`` or ``"chebyshev"``.
        every_mask: whether the step sizes are those that serve every mask at once, from the
            eigenvalues of Γ ⊗ Σ, instead of the best for this mask.

    Attributes:
        method: the :class:`.Method` of that name.
        missing: (N,), the opposite of ``observed``.
        spectrum: extreme eigenvalues of Γ ⊗ Σ.

    Raises:
        NotPSDError: if the covariance of the observed frames is singular up to rounding.
        ValueError: for a mask of the wrong kind, or one that hides nothing or everything.
    """

    @lasting
    def __init__(
        self,
        process: GaussianProcess,
        observed: Tensor,
        steps: int,
        method: str = "gradient-descent",
        every_mask: bool = False,
    ) -> None:
        require_count("steps", steps)
        require_one_of("method", method, METHODS)
        self.process, self.steps, self.method = process, int(steps), METHODS[method]
        self.observed = require_observed(observed, process.seq_len).to(process.device)
        self.missing, self.every_mask = ~self.observed, every_mask
        temporal, self._spatial = process.temporal_spectrum[0], process.spatial_spectrum[0]
        self.spectrum = tuple((temporal[end] * self._spatial[end]).item() for end in (0, -1))
        seen = process.gram()[self.observed][:, self.observed]
        self._seen_values, self._seen_vectors = torch.linalg.eigh(seen)
        ends = ((self._seen_values[end] * self._spatial[end]).item() for end in (0, -1))
        self._seen_extremes = tuple(ends)
        self._require_invertible()

    @property
    def device(self) -> torch.device:
        """Where the law is."""
        return self.process.device

    def _count(self, steps: int | None) -> int:
        """K, the score's own or another one, 0 or more."""
        if steps is None:
            return self.steps
        require_count("steps", steps, minimum=0)
        return int(steps)

    def _seen(self, v: Tensor) -> Tensor:
        """The mask in a shape that multiplies (N, batch, d)."""
        return self.observed.to(v.device)[:, None, None]

    def _prepared(self, v: Tensor, t: Number) -> tuple[Tensor, Tensor, Tensor]:
        """The residual r as (N, batch, d), and α_i, σ_i, (N, batch or 1, 1)."""
        require_sequences("v", v, self.process.seq_len, self.process.dim)
        require_step(t)
        signal, noise = (
            frames_first(x) if isinstance(x, Tensor) else v.new_full((), x) for x in levels(t, v)
        )
        seen = self._seen(v)
        signal = torch.where(seen, torch.ones_like(signal), signal)
        noise = torch.where(seen, torch.zeros_like(noise), noise)
        return v.transpose(0, 1) - signal * self.process.mean.to(v)[:, None], signal, noise

    def _at_home(self, t: Number) -> Tensor:
        """Steps in float64 where the law is."""
        require_step(t)
        if not isinstance(t, Tensor):
            return torch.full((), t, dtype=torch.float64, device=self.device)
        return floating_step(t).to(self.device, torch.float64)

    def _require_invertible(self) -> None:
        low, high = self.spectrum if self.every_mask else self._seen_extremes
        rounding = self.process.seq_len * self.process.dim * unit_roundoff(torch.float64)
        if not low > rounding * high:
            raise NotPSDError(
                "the frames that are seen determine each other up to rounding (eigenvalues of"
                f" their covariance from {low:.3g} to {high:.3g}): no iteration inverts that; add"
                " a multiple of the identity, or take a rougher kernel"
            )


def require_observed(observed: Tensor, seq_len: int) -> Tensor:
    """Return a mask of frames; raise unless it says True of some and False of others.

    Args:
        observed: (N,) truth values.
        seq_len: N.
    """
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        given = observed.dtype if isinstance(observed, Tensor) else type(observed).__name__
        raise ValueError(
            f"observed must be a boolean tensor, True where a frame is seen, got {given}"
        )
    if observed.shape != (seq_len,):
        raise ValueError(f"observed must have shape ({seq_len},), got {tuple(observed.shape)}")
    seen = int(observed.sum())
    if not 0 < seen < seq_len:
        raise ValueError(
            f"observed must say True of some frames and False of others, got {seen} of {seq_len}"
        )
    return observed


def descended(
    product: Callable[[Tensor], Tensor], rhs: Tensor, coefficients: list[tuple[Number, Number]]
) -> Iterator[Tensor]:
    r"""The iterates :math:`x - \eta_k(Ax - b) + \beta_k(x - x_{-})` from 0, which lead to A⁻¹b.

    Args:
        product: x to Ax.
        rhs: b.
        coefficients: η_k and β_k; numbers, or tensors that multiply b.
    """
    x = before = torch.zeros_like(rhs)
    yield x
    for size, momentum in coefficients:
        x, before = x - size * (product(x) - rhs) + momentum * (x - before), x
        yield x


def last(iterates: Iterator[Tensor]) -> Tensor:
    """The last of the iterates; the others are not kept."""
    return deque(iterates, maxlen=1).pop()
