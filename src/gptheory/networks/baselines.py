"""Baselines for the diffusion transformer: a convolutional UNet over time, and a map per frame.

Both take the diffusion step, are preconditioned and are trained exactly as
:class:`.DiT`; they differ in how frames are mixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..support.draws import weights_from
from ..support.validation import require_count
from .score_network import Modulation, ScoreNetwork, mlp, modulated_norm, zero_init

CLOCK_WIDTH = 64
KERNEL = 3  # frames
GROUPS = 4  # of a normalisation


class ResidualConvolution(nn.Module):
    r"""Two convolutions over time with a shortcut; the clock shifts and scales what is between.

    .. math:: y \mapsto S y + \mathrm{conv}(\mathrm{SiLU}((1 + a)\,\mathrm{GN}(
              \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(y)))) + b)).

    Args:
        inputs, outputs: channels, multiples of 4.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv_1, self.conv_2 = _convolution(inputs, outputs), _convolution(outputs, outputs)
        self.modulation = Modulation(CLOCK_WIDTH, outputs, 2)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, y: Tensor, clock: Tensor) -> Tensor:
        """(batch, inputs, N) and (batch or 1, width) -> (batch, outputs, N)."""
        shift, scale = (x.transpose(1, 2) for x in self.modulation(clock))
        inner = self.conv_1(nn.functional.silu(self.norm_1(y)))
        inner = torch.addcmul(shift, self.norm_2(inner), 1 + scale)
        return self.shortcut(y) + self.conv_2(nn.functional.silu(inner))


class UNet1d(ScoreNetwork):
    """UNet over time: convolutions at every frame, every second and every fourth, a score (v, t).

    It sees no positions: all it knows of them is that sequences end. Source: FDGWC UNet comparison
    (whose network is not specified; this is the usual one, of Ho et al. 2020, in one dimension).

    Args:
        dim: d.
        seq_len: N; lengths that are no multiple of 4 are padded with zeros inside.
        channels: at full length, a multiple of 4; twice as many at the coarser ones.
        generator: source of the initial weights.

    Raises:
        ValueError: for sizes out of range.

    Accuracy: chapter 5 measures it; 267k parameters at the defaults.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        channels: int = 36,
        generator: torch.Generator | None = None,
    ) -> None:
        require_count("channels", channels)
        if channels % GROUPS:
            raise ValueError(f"channels must be a multiple of {GROUPS}, got {channels}")
        fine, coarse = channels, 2 * channels
        with weights_from(generator):
            super().__init__(dim, seq_len, CLOCK_WIDTH, {"channels": channels})
            self.lift = _convolution(dim, fine)
            self.down_1 = ResidualConvolution(fine, fine)
            self.shrink_1 = _convolution(fine, fine, stride=2)
            self.down_2 = ResidualConvolution(fine, coarse)
            self.shrink_2 = _convolution(coarse, coarse, stride=2)
            self.middle_1 = ResidualConvolution(coarse, coarse)
            self.middle_2 = ResidualConvolution(coarse, coarse)
            self.grow_2 = _convolution(coarse, coarse)
            self.up_2 = ResidualConvolution(2 * coarse, coarse)
            self.grow_1 = _convolution(coarse, fine)
            self.up_1 = ResidualConvolution(2 * fine, fine)
            self.norm = nn.GroupNorm(GROUPS, fine)
            self.readout = zero_init(_convolution(fine, dim))

    def velocity(self, v: Tensor, clock: Tensor) -> Tensor:
        """F; see :class:`.ScoreNetwork`."""
        y = nn.functional.pad(v.transpose(1, 2), (0, -v.shape[1] % 4))  # (batch, d, N')
        fine = self.down_1(self.lift(y), clock)
        middle = self.down_2(self.shrink_1(fine), clock)
        coarse = self.middle_2(self.middle_1(self.shrink_2(middle), clock), clock)
        middle = self.up_2(torch.cat([middle, self.grow_2(_doubled(coarse))], dim=1), clock)
        fine = self.up_1(torch.cat([fine, self.grow_1(_doubled(middle))], dim=1), clock)
        y = self.readout(nn.functional.silu(self.norm(fine)))
        return y[:, :, : v.shape[1]].transpose(1, 2)


class FrameMLP(ScoreNetwork):
    r"""A residual network that treats every frame alone: the score without temporal mixing.

    The best such score sees only the variances of Γ; what it lacks is the price of ignoring memory.

    Args:
        dim: d.
        seq_len: N, or None to take any length.
        hidden: width.
        depth: residual blocks.
        generator: source of the initial weights.

    Raises:
        ValueError: for sizes out of range.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int | None = None,
        hidden: int = 96,
        depth: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        require_count("hidden", hidden)
        require_count("depth", depth)
        with weights_from(generator):
            super().__init__(dim, seq_len, CLOCK_WIDTH, {"hidden": hidden, "depth": depth})
            self.lift = nn.Linear(dim, hidden)
            self.modulations = nn.ModuleList(
                Modulation(CLOCK_WIDTH, hidden, 3) for _ in range(depth)
            )
            self.blocks = nn.ModuleList(mlp(hidden, 2) for _ in range(depth))
            self.readout = zero_init(nn.Linear(hidden, dim))

    def velocity(self, v: Tensor, clock: Tensor) -> Tensor:
        """F; see :class:`.ScoreNetwork`."""
        y = self.lift(v)
        for modulation, block in zip(self.modulations, self.blocks, strict=True):
            shift, scale, gate = modulation(clock)
            y = torch.addcmul(y, gate, block(modulated_norm(y, shift, scale)))
        return self.readout(y)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, KERNEL, stride, padding=KERNEL // 2)


def _doubled(y: Tensor) -> Tensor:
    """Every column twice: (batch, channels, N) -> (batch, channels, 2N)."""
    return y.repeat_interleave(2, dim=2)
