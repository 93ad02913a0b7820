r"""The paper's class of transformers, T(D, L, M, B, R): plain weights, entrywise-ReLU attention.

With tokens as the columns of :math:`Y \in R^{D\times N}`, a block is

.. math:: \mathrm{Attn}(Y) = Y + \sum_m V_m Y\,\mathrm{relu}\left((Q_m Y)^\top K_m Y\right), \qquad
          \mathrm{FFN}(Y) = Y + W_2\,\mathrm{relu}(W_1 Y + b_1 1^\top) + b_2 1^\top.

D is the width, L the number of blocks, M of heads, B bounds the norms of the weights, and the
output is clipped to a ball of radius :math:`R_t`. Nothing here knows what the weights are for: see
:mod:`gptheory.construction.build`. In the code tokens are rows, (batch, N, D).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion.schedule import alpha, levels, sigma, step_tensor
from ..support.precision import full_precision
from ..support.validation import require_sequences, require_step
from .layers import Block
from .subspaces import Subspaces

STEP_MARGIN = 1e-6  # relative: the ends of a grid of diffusion steps are rounded


class StepFeatures(nn.Module):
    r""":math:`\varphi(t) = (\eta_t, \alpha_t, \sigma_t^2, \alpha_t^2)`, all a token knows of t.

    Source: FDGWC Transformer class.

    :math:`\eta_t = 2/(\lambda_- + \lambda_+)`, with
    :math:`\lambda_\pm = \sigma_t^2 + \alpha_t^2 l_\pm` the extreme eigenvalues, depends on t
    through the two numbers :math:`l_\pm` only. With momentum, η is
    :math:`4/(\sqrt{\lambda_-}+\sqrt{\lambda_+})^2` and two entries follow: the first step size
    :math:`2/(\lambda_-+\lambda_+)` and the friction 1 − β.

    Args:
        spectrum: :math:`(l_-, l_+)`.
        momentum: whether to add the entries of the heavy ball.
    """

    def __init__(self, spectrum: tuple[float, float], momentum: bool = False) -> None:
        super().__init__()
        self.register_buffer("spectrum", torch.tensor(spectrum, dtype=torch.float64))
        self.momentum = momentum

    def forward(self, t: Tensor) -> Tensor:
        """Diffusion steps (…,) to features (…, 4) or (…, 6)."""
        signal, noise = alpha(t) ** 2, sigma(t) ** 2
        low, high = (noise + signal * extreme for extreme in self.spectrum.to(signal))
        step = 2 / (low + high)
        if not self.momentum:
            return torch.stack([step, alpha(t), noise, signal], dim=-1)
        roots = low.sqrt() + high.sqrt()
        # 1 − β without cancellation: β is the square of (√λ₊ − √λ₋) / (√λ₊ + √λ₋)
        friction = 4 * (low * high).sqrt() / roots**2
        return torch.stack([4 / roots**2, alpha(t), noise, signal, step, friction], dim=-1)


class Lift(nn.Module):
    r"""f_in: a frame, its position and the features of t become a token.

    :math:`y_i = E_x v_i + P_i + E_\varphi\,\varphi(t)`.

    Args:
        frame: E_x, (D, d).
        position: P, (N, D).
        step: E_φ, (D, features).
        features: φ.
    """

    def __init__(
        self, frame: Tensor, position: Tensor, step: Tensor, features: StepFeatures
    ) -> None:
        super().__init__()
        self.frame, self.position = nn.Parameter(frame), nn.Parameter(position)
        self.step, self.features = nn.Parameter(step), features

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        """(batch, N, d) and (1,) or (batch,) -> (batch, N, D), dtype of the weights."""
        features = self.features(t).to(self.step) @ self.step.T
        return v.to(self.frame) @ self.frame.T + self.position + features[:, None]


@dataclass(frozen=True)
class NetworkSize:
    """The letters of T(D, L, M, B, R), and how many numbers they cost.

    Attributes:
        width: D.
        blocks: L.
        heads: M, the most in any block.
        hidden: the most hidden units of any feed-forward layer.
        parameters: numbers stored, a block shared by several steps counted once.
        parameters_untied: numbers if every block had its own.
        largest_norm: B, the largest Frobenius norm of a weight matrix or bias (of V_m, Q_m, K_m for
            each head).
    """

    width: int
    blocks: int
    heads: int
    hidden: int
    parameters: int
    parameters_untied: int
    largest_norm: float


class ScoreTransformer(nn.Module):
    r"""A score network of the class T(D, L, M, B, R), called as (v, t).

    Source: FDGWC Transformer class.

    It lifts frames to tokens, applies L blocks, reads the score and clips it to the ball
    :math:`\|s\| \le R_t = R/\sigma_t` (projecting on a ball that holds the true score can only
    help). It computes in the dtype of its weights and returns the dtype of its input, and keeps its
    accuracy in every context (see :mod:`gptheory.support.precision`): its weights are not learned.

    Args:
        lift: f_in.
        blocks: the L blocks; one that occurs several times is stored once.
        readout: f_out, (d, D).
        radius: R.
        t_range: diffusion steps that the weights are for.
        spaces: named subspaces of the residual stream (:class:`.Subspaces`).

    Attributes:
        check_ranges: whether a call verifies the limits of its blocks; turn it off under
            ``torch.func`` transforms (``torch.compile`` turns it off itself).
    """

    def __init__(
        self,
        lift: Lift,
        blocks: list[Block],
        readout: Tensor,
        radius: float = math.inf,
        t_range: tuple[float, float] = (0.0, math.inf),
        spaces: Subspaces | None = None,
    ) -> None:
        super().__init__()
        self.lift, self.blocks = lift, nn.ModuleList(blocks)
        self.readout = nn.Parameter(readout)
        self.radius, self.t_range, self.spaces = radius, t_range, spaces
        self.dim, self.seq_len = len(readout), len(lift.position)
        self.check_ranges = True

    @full_precision()
    def forward(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            v: noised sequences (batch, N, d).
            t: diffusion step, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), dtype and device of v.

        Raises:
            ValueError: for a wrong shape, a step outside ``t_range``, or a value that leaves the
                range of a multiplication. Steps on an accelerator and compiled graphs are not
                checked.
        """
        y = self._through(self._states(v, t))
        return self._clipped(y @ self.readout.T, levels(t, y)[1]).to(v)

    @full_precision()
    def states(self, v: Tensor, t: float | Tensor) -> Iterator[Tensor]:
        """The residual stream (batch, N, D): after f_in, and after every block.

        Takes what a call does; raises for a wrong shape or step.
        """
        yield from self._states(v, t)

    def _states(self, v: Tensor, t: float | Tensor, *flags: Tensor) -> Iterator[Tensor]:
        require_sequences("v", v, self.seq_len, self.dim)
        y = self.lift(v, self._steps(v, t), *flags)
        yield y
        for block in self.blocks:
            y = block(y)
            yield y

    def size(self) -> NetworkSize:
        """Width, blocks, heads, parameters and the largest weight norm."""
        outside = sum(p.numel() for p in [*self.lift.parameters(), self.readout])
        inside = sum(p.numel() for block in self.blocks for p in block.parameters())
        return NetworkSize(
            width=self.readout.shape[1],
            blocks=len(self.blocks),
            heads=max(len(block.attention.query) for block in self.blocks),
            hidden=max(len(block.feed_forward.up) for block in self.blocks),
            parameters=sum(p.numel() for p in self.parameters()),
            parameters_untied=outside + inside,
            largest_norm=max(norm for _, norm in self.weight_norms()),
        )

    @full_precision()
    def weight_norms(self) -> Iterator[tuple[str, float]]:
        """Frobenius norm of each distinct weight, by name; of V_m, Q_m, K_m the largest head's."""
        for name, weight in self.named_parameters():
            if weight.numel() and not name.endswith((".value", ".output")):
                rows = weight.flatten(1) if weight.ndim == 3 else weight.flatten()[None]
                yield name, rows.norm(dim=1).max().item()
        for block in dict.fromkeys(self.blocks):
            attention = block.attention
            if len(attention.value):
                maps = attention.output @ attention.value  # (heads, D, D)
                yield f"V of {block.label}", maps.flatten(1).norm(dim=1).max().item()

    def _steps(self, v: Tensor, t: float | Tensor) -> Tensor:
        """t as (1,) or (batch,), checked."""
        require_step(t)
        levels(t, v)  # its shape
        steps = step_tensor(t, v.device)
        low, high = self.t_range
        if steps.device.type == "cpu" and not torch.compiler.is_compiling():
            margin = 1 + STEP_MARGIN
            outside = steps[(steps < low / margin) | (steps > high * margin)]
            if outside.numel():
                raise ValueError(
                    f"these weights are for t in [{low:.4g}, {high:.4g}], got {outside[0]:.6g};"
                    " build the network with another t_min or t_max"
                )
        return steps

    def _through(self, states: Iterator[Tensor]) -> Tensor:
        """The last state; the others are compared with the limits of the blocks after them."""
        worst, look = None, self.check_ranges and not torch.compiler.is_compiling()
        # y is the stream before the block; what comes after the last one is left for below
        for block, y in zip([*self.blocks, None], states, strict=True):
            if block is not None and block.limits is not None and look and len(y):
                excess = (y.detach().abs() / block.limits).amax(dim=(0, 1))
                worst = excess if worst is None else torch.maximum(worst, excess)
        if worst is not None:
            self._require_in_range(worst)
        return y

    def _clipped(self, score: Tensor, noise: float | Tensor) -> Tensor:
        """Projected on the ball of radius R/σ_t."""
        norm = score.flatten(1).norm(dim=1)[:, None, None]
        allowed = self.radius / noise
        return score * torch.clamp(allowed / norm.clamp(min=1e-30), max=1)

    def _require_in_range(self, worst: Tensor) -> None:
        if worst.max() <= 1:
            return
        if worst.isnan().any():
            raise ValueError("v must be finite, got NaN or infinite entries")
        names = [n for n in self.spaces.names if worst[self.spaces[n]].max() > 1]
        raise ValueError(
            f"the values of {', '.join(names)} left the range of the multiplications by a factor of"
            f" {worst.max():.3g}: v is too large; build the network with a larger norm_bound"
        )
