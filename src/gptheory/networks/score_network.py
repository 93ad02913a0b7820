r"""What every trainable network shares: its clock, its preconditioning, its first weights.

A network predicts the velocity :math:`F = \sigma_t x - \alpha_t z` of :math:`v_t = \alpha_t x +
\sigma_t z`, whose size is the same at every noise level (Salimans and Ho 2022), and is read as

.. math:: \hat s(v, t) = -v + \frac{\alpha_t}{\sigma_t}\,F(v, t),

because :math:`\sigma_t v - \alpha_t F = z`. With F = 0, as every network here starts, this is the
score of white noise.

Samplers start where hardly any signal is left, and training there would be wasted; but a network
asked about diffusion steps that it has never seen may answer anything. So above T = 8 it is not
asked: :math:`F(v, t) = (\alpha_t/\alpha_T)\,F(v, T)`, exact to first order in :math:`\alpha_t` for
data with mean zero, because :math:`E[x \mid v_t] = \alpha_t\,\mathrm{Cov}(x)\,v_t + O(\alpha_t^2)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..diffusion.schedule import alpha, half_log_snr, levels, step_tensor
from ..support.validation import require_count, require_sequences, require_step

HORIZON = 8.0  # diffusion step beyond which a network is continued by its asymptote
CLOCK_PAIRS = 16  # sines and cosines of the half log signal-to-noise ratio
CLOCK_FREQUENCIES = (0.25, 8.0)  # it spans about seven units, from t = 0.005 to t = 8


class Clock(nn.Module):
    """Embedding of the diffusion step: sines and cosines of logSNR / 2 through one hidden layer.

    Args:
        width: size of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        low, high = (math.log(f) for f in CLOCK_FREQUENCIES)
        frequencies = torch.linspace(low, high, CLOCK_PAIRS, dtype=torch.float64).exp()
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * CLOCK_PAIRS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, t: Tensor) -> Tensor:
        """Diffusion steps (batch,) -> (batch, width), dtype of the weights."""
        weight = self.mlp[0].weight
        half = half_log_snr(t)[:, None]
        angle = half * self.frequencies.to(half)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1).to(weight))


class ScoreNetwork(nn.Module, ABC):
    r"""A trainable score :math:`\hat s(v, t) = -v + (\alpha_t/\sigma_t) F(v, t)`.

    Subclasses define :meth:`velocity`, the network F itself.

    Args:
        dim: d.
        seq_len: N, or None for a network that takes any length.
        width: size of the embedding of t.
        config: the other arguments that make this network, for checkpoints and results.

    Attributes:
        dim, seq_len: as given.
        config: all arguments that make this network.
    """

    fades = True  # beyond the horizon, as the velocity does where data have mean zero

    def __init__(self, dim: int, seq_len: int | None, width: int, config: dict) -> None:
        super().__init__()
        require_count("dim", dim)
        if seq_len is not None:
            require_count("seq_len", seq_len)
        self.dim, self.seq_len = dim, seq_len
        self.config = {"dim": dim, "seq_len": seq_len, **config}
        self.clock = Clock(width)

    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score.

        Args:
            v: noised sequences (batch, N, d).
            t: diffusion step > 0, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), dtype and device of v; computed in the dtype of the weights, and where
            they are: a network left on the CPU computes there, whatever the device of v.

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        return self._score(v, t)

    def _score(self, v: Tensor, t: float | Tensor, *given: Tensor) -> Tensor:
        """The score, with what else the velocity is given."""
        require_sequences("v", v, self.seq_len, self.dim)
        require_step(t)
        signal, noise = levels(t, v)
        t = step_tensor(t, v.device)
        seen = t.clamp(max=HORIZON)
        velocity = self.velocity(v.to(self.clock.mlp[0].weight), self.clock(seen), *given).to(v)
        # 1 up to the horizon
        fading = (alpha(t) / alpha(seen)).to(v)[:, None, None] if self.fades else 1.0
        return -v + signal / noise * fading * velocity

    @abstractmethod
    def velocity(self, v: Tensor, clock: Tensor) -> Tensor:
        """F: (batch, N, d) and an embedding of t, (batch or 1, width), to (batch, N, d)."""


class Modulation(nn.Module):
    """Linear map of the clock to vectors that shift, scale or gate tokens; zero at the start.

    Args:
        width: size of the clock.
        size: size of a vector.
        count: how many vectors.
    """

    def __init__(self, width: int, size: int, count: int) -> None:
        super().__init__()
        self.linear = zero_init(nn.Linear(width, count * size))
        self.count = count

    def forward(self, clock: Tensor) -> tuple[Tensor, ...]:
        """(batch, width) -> ``count`` tensors (batch, 1, size)."""
        return self.linear(clock)[:, None].chunk(self.count, dim=-1)


def modulated_norm(y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer normalisation of tokens (batch, N, size), then y (1 + scale) + shift."""
    return torch.addcmul(shift, nn.functional.layer_norm(y, y.shape[-1:]), 1 + scale)


def mlp(width: int, expansion: int) -> nn.Sequential:
    """One hidden layer of ``expansion`` times the width, with GELU: (…, width) -> (…, width)."""
    hidden = expansion * width
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def zero_init(layer: nn.Module) -> nn.Module:
    """Set all weights of a layer to zero and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
