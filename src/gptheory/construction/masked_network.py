r"""Score transformers of sequences of which some frames are seen: they are told which.

Two ways to tell a token. **Its own diffusion step** (ours): a seen frame is one whose step is 0, so
the features of t differ from token to token, :math:`\varphi(t_i)` with :math:`t_i \in \{0, t\}`.
**Flags** (the paper's): every token has the same features of t, and two numbers that say whether it
is seen or missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..diffusion.schedule import alpha, levels, sigma
from ..support.precision import full_precision
from ..support.validation import require_finite, require_mask
from .network import Lift, ScoreTransformer


class FrameLevels(nn.Module):
    r""":math:`\varphi(t) = (\alpha_t, \sigma_t^2)`, (1, 0) at t = 0; no parameters."""

    def forward(self, t: Tensor) -> Tensor:
        """Diffusion steps (…,) to features (…, 2)."""
        return torch.stack([alpha(t), sigma(t) ** 2], dim=-1)


class FrameStepLift(Lift):
    r"""f_in with a step for each frame, :math:`y_i = E_x v_i + P_i + E_\varphi\varphi(t_i)`.

    The step of a seen frame is 0. Takes the arguments of :class:`.Lift`.
    """

    def forward(self, v: Tensor, t: Tensor, observed: Tensor) -> Tensor:
        """(batch, N, d), (1,) or (batch,), and (1 or batch, N) -> (batch, N, D)."""
        steps = torch.where(observed, torch.zeros_like(t)[:, None], t[:, None])
        features = self.features(steps).to(self.step)
        return v.to(self.frame) @ self.frame.T + self.position + features @ self.step.T


class FlagLift(Lift):
    r"""f_in with flags, :math:`y_i = E_x v_i + P_i + E_\varphi\varphi(t) + E_o (o_i, 1 - o_i)`.

    Source: YC Theorem 1.

    Args:
        frame, position, step, features: as in :class:`.Lift`.
        flag: E_o, (D, 2): what a seen and what a missing frame adds.
    """

    def __init__(
        self, frame: Tensor, position: Tensor, step: Tensor, features: nn.Module, flag: Tensor
    ) -> None:
        super().__init__(frame, position, step, features)
        self.flag = nn.Parameter(flag)

    def forward(self, v: Tensor, t: Tensor, observed: Tensor) -> Tensor:
        """(batch, N, d), (1,) or (batch,), and (1 or batch, N) -> (batch, N, D)."""
        flags = torch.stack([observed, ~observed], dim=-1).to(self.flag)
        return super().forward(v, t) + flags @ self.flag.T


class ImputationTransformer(ScoreTransformer):
    r"""A transformer for the score of missing frames, called as (v, t, observed).

    It is a :class:`.ScoreTransformer` in all but two places: f_in is told which frames are seen,
    and f_out reads the others.

    Takes the arguments of that class; ``lift`` is a :class:`FrameStepLift` or a :class:`FlagLift`.
    """

    @full_precision()
    def forward(self, v: Tensor, t: float | Tensor, observed: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            v: (batch, N, d), noised where frames are missing, as they are where they are seen.
            t: diffusion step of the missing frames, a number or one per sequence (batch,).
            observed: truth values, True where a frame is seen, (N,) or (batch, N).

        Returns:
            (batch, N, d), 0 where frames are seen; dtype and device of v.

        Raises:
            ValueError: as :meth:`.ScoreTransformer.forward`, for a mask of another kind, and, while
                ranges are checked, for NaN or infinite entries of v: a missing frame holds its
                noised values.
        """
        y = self._through(self.states(v, t, observed))
        seen = observed.to(y.device)[..., None]
        score = (y @ self.readout.T).masked_fill(seen, 0)
        return self._clipped(score, levels(t, y)[1]).to(v)

    @full_precision()
    def states(self, v: Tensor, t: float | Tensor, observed: Tensor) -> Iterator[Tensor]:
        """The residual stream (batch, N, D): after f_in, and after every block."""
        require_mask(observed, len(v), self.seq_len)
        seen = observed.to(v.device).reshape(-1, self.seq_len)
        if self.check_ranges and not torch.compiler.is_compiling():
            require_finite("v", v)
        yield from self._states(v, t, seen)
