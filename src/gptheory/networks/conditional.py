"""The diffusion transformer that is told which frames are seen: an imputer that is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.validation import require_mask
from .dit import DiT


class ConditionalDiT(DiT):
    r"""Diffusion transformer for the score of missing frames, called as (v, t, observed).

    A :class:`.DiT` but for its tokens,

    .. math:: y_i = [\,W (v_i, m_i) + b,\ e_i\,],

    where frame i comes with a flag :math:`m_i`, 1 where it is missing and 0 where it is seen. It is
    noised where it is missing, and as it is where it is seen. All masks share the weights. Where a
    frame is seen the score is 0.

    Beyond the horizon F is continued as :math:`F(v, t) = F(v, T)` and does not fade: what is seen
    gives missing frames a mean, :math:`F \to E[x_m | x_o]`, whatever the mean of the data. Exact to
    first order in :math:`\alpha_t`. Source: YC Algorithm 1, which trains such a network.

    Takes the arguments of :class:`.DiT`, and has its attributes.
    """

    fades = False
    flags = 1

    def forward(self, v: Tensor, t: float | Tensor, observed: Tensor) -> Tensor:
        """Evaluate the score.

        Args:
            v: (batch, N, d), noised where frames are missing, as they are where they are seen.
            t: diffusion step > 0 of the missing frames, a number or one per sequence (batch,).
            observed: truth values, True where a frame is seen, (N,) or (batch, N).

        Returns:
            (batch, N, d), 0 where frames are seen; dtype, device and precision as
            :class:`.ScoreNetwork` has them.

        Raises:
            ValueError: for a wrong shape, a mask of another kind, or a step that is not finite
                and > 0.
        """
        require_mask(observed, len(v), self.seq_len)
        seen = observed.to(v.device).expand(len(v), -1)[..., None]
        return self._score(v, t, seen).masked_fill(seen, 0.0)

    def tokens(self, v: Tensor, seen: Tensor) -> Tensor:
        """[lifted frame and flag, position]: (batch, N, d) and (batch, N, 1) to tokens."""
        return super().tokens(torch.cat([v, (~seen).to(v)], dim=-1))
