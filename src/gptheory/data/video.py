r"""Semi-synthetic video: a sprite that moves along a Gaussian-process path, on small frames.

A path is a Gaussian process pushed through the error function, so that positions are uniform over
the frame and their correlation is still known exactly. A renderer turns positions into frames, a
fixed linear map turns frames into latent vectors and back, and a detector reads positions from
pixels again. Video is *not* Gaussian, only its paths are nearly so; :class:`.GaussianTwin` is the
Gaussian law that has the same mean and covariance.

Positions are (horizontal, vertical), in pixels from the middle of the frame. **A sprite never
leaves its frame**: positions whose sprite would not fit are refused, not clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..support.precision import full_precision
from ..support.spectra import principal_axes
from ..support.validation import (
    as_real,
    require_count,
    require_finite,
    require_floating,
    require_positive,
)
from ..support.wrappers import lasting
from .process import GaussianProcess

CHUNK_FRAMES = 2048  # rendered or searched at a time
# Two half balls three pixels apart already fail, sharp frames pass with room to spare.
FULL_AMPLITUDE = (0.9, 1.1)
STRAY_ENERGY = 0.03  # of a ball's; what a latent map of 16 coordinates loses is 0.003


def uniform_paths(
    kernel: Callable[[Tensor], Tensor],
    n: int,
    seq_len: int,
    reach: float,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Paths :math:`c_i = R\,\mathrm{erf}(u_i/\sqrt2)` in the plane, u two independent processes.

    Every position is uniform on (−R, R)², where a Gaussian path scaled to stay inside would hardly
    move. Source: FDGWC Semi-synthetic video.

    Args:
        kernel: γ, of the processes u.
        n: number of paths.
        seq_len: N.
        reach: R, in pixels.
        generator: source of randomness.
        dtype: of the result.

    Returns:
        (n, N, 2), with correlation :func:`uniform_correlation` of γ in time.

    Raises:
        ValueError: for sizes out of range.
    """
    require_positive("reach", reach)
    u = GaussianProcess(kernel, torch.eye(2, device="cpu"), seq_len=seq_len).sample(
        n, generator, dtype
    )
    return reach * torch.erf(u / math.sqrt(2))


def uniform_correlation(gamma: Tensor) -> Tensor:
    r"""Correlation :math:`\frac6\pi\arcsin\frac\gamma2` of erf(u/√2), where u has correlation γ.

    Source: Pearson 1907 (the grade correlation of a normal pair).

    Args:
        gamma: correlations in [−1, 1], any shape.

    Returns:
        The same shape; at most γ where γ ≥ 0, and within 0.018 of it.

    Raises:
        ValueError: for values outside [−1, 1].
    """
    gamma = as_real("gamma", gamma)
    if not (gamma.abs() <= 1 + 1e-12).all():
        raise ValueError(f"correlations lie in [-1, 1], got up to {gamma.abs().max():.3g}")
    return 6 / math.pi * torch.asin(gamma.clamp(-1, 1) / 2)


@dataclass(frozen=True)
class Found:
    """What a detector saw in frames; every field has one entry a frame.

    Attributes:
        centres: (..., 2).
        amplitude: brightness of the best ball there, 1 for a true one.
        stray: energy of what that ball leaves unexplained, in energies of a true ball.
    """

    centres: Tensor
    amplitude: Tensor
    stray: Tensor

    @property
    def single(self) -> Tensor:
        """Whether a frame shows exactly one ball, of full brightness, and nothing else."""
        low, high = FULL_AMPLITUDE
        bright = (self.amplitude >= low) & (self.amplitude <= high)
        return bright & (self.stray <= STRAY_ENERGY)


@dataclass(frozen=True)
class Ball:
    r"""A soft disc: pixel p of a frame with centre c has brightness
    :math:`1 / (1 + e^{(\|p - c\| - R)/w})`.

    Source: FDGWC Semi-synthetic video.

    Args:
        size: pixels along a side of the frame.
        radius: R.
        edge: w, the softness of its rim; with a hard rim pixels no longer change smoothly with c,
            and no few linear coordinates hold a frame.

    Raises:
        ValueError: if the ball has no room to move in the frame.
    """

    size: int = 16
    radius: float = 3.0
    edge: float = 0.8

    def __post_init__(self) -> None:
        require_count("size", self.size)
        for name in ("radius", "edge"):
            require_positive(name, getattr(self, name))
        if self.reach <= 0:
            raise ValueError(
                f"a ball of radius {self.radius:g} needs frames of more than"
                f" {2 * self.radius + 1:g} pixels a side to move in, got size={self.size}"
            )

    @property
    def reach(self) -> float:
        """Largest coordinate of a centre, where the rim touches the outermost pixels."""
        return (self.size - 1) / 2 - self.radius

    def render(self, centres: Tensor) -> Tensor:
        """Centres (..., 2) to frames (..., size, size): rows top to bottom, then columns.

        Raises:
            ValueError: for a wrong shape, or a ball that would leave the frame.
        """
        _require_inside(centres, self.reach)
        pixel = _pixels(self.size).to(centres)
        across = (pixel - centres[..., :1]).square()
        down = (pixel - centres[..., 1:]).square()
        distance = (down[..., :, None] + across[..., None, :]).sqrt()
        return torch.sigmoid((self.radius - distance) / self.edge)

    def locate(self, frames: Tensor, spacing: float = 0.25) -> Found:
        """Find the ball by a matched filter: the amplitude and position of least squared error.

        Moments of brightness would be cheaper, and are fooled by smears.

        Args:
            frames: (..., size, size).
            spacing: of the grid of positions tried, in pixels.

        Returns:
            See :class:`Found`. The position is exact up to the grid: the nearest grid point or one
            beside it.

        Raises:
            ValueError: for frames of another size.
        """
        _require_frames(frames, self.size)
        require_positive("spacing", spacing)
        count = 2 * math.ceil(self.reach / spacing) + 1
        line = torch.linspace(
            -self.reach, self.reach, count, dtype=torch.float32, device=frames.device
        )
        line = line.to(frames)
        grid = torch.cartesian_prod(line, line)
        bank = self.render(grid).flatten(1)  # (positions, pixels)
        norm = bank.norm(dim=1)
        unit = bank / norm[:, None]

        @full_precision()
        def search(chunk: Tensor) -> tuple[Tensor, ...]:
            match, best = (chunk.flatten(1) @ unit.T).max(dim=1)
            rest = chunk.flatten(1) - match[:, None] * unit[best]
            return grid[best], match / norm[best], rest.square().sum(dim=1) / norm[best] ** 2

        return Found(*_frame_by_frame(search, frames))


@dataclass(frozen=True)
class LatentMap:
    r"""A fixed linear map of frames to latent vectors, :math:`z = B^\top(x - \mu)/s`, and back.

    Principal components: B has orthonormal columns, the directions of largest variance. One scale
    s, the same for all, makes the average variance of a latent coordinate 1 and keeps the shape of
    the data; whitening would blow up the smallest.

    Attributes:
        mean: μ, (pixels,).
        basis: B, (pixels, d).
        scale: s.
        lost: share of the variance of the frames it was fitted to that is outside the span of B.
    """

    mean: Tensor
    basis: Tensor
    scale: float
    lost: float = math.nan

    @classmethod
    @lasting
    @full_precision()
    def fit(cls, frames: Tensor, dim: int) -> LatentMap:
        """Principal components of frames (..., size, size), ``dim`` of them.

        Raises:
            ValueError: for a wrong shape, more components than pixels, or frames that never change.
        """
        _require_frames(frames)
        pixels = frames.flatten(-2).flatten(0, -2)
        require_count("dim", dim)
        if dim > pixels.shape[1]:
            raise ValueError(f"a frame has {pixels.shape[1]} pixels, so dim cannot be {dim}")
        covariance = torch.cov(pixels.T, correction=0).double()
        values, basis = principal_axes(covariance, dim)
        if values[0] <= 0:
            raise ValueError("the frames are all equal: there is nothing to learn")
        kept = values[:dim].sum().item()
        basis = basis.to(frames)
        return cls(pixels.mean(dim=0), basis, math.sqrt(kept / dim), 1 - kept / values.sum().item())

    @full_precision()
    def encode(self, frames: Tensor) -> Tensor:
        """(..., size, size) -> (..., d)."""
        _require_frames(frames, math.isqrt(len(self.mean)))
        mean, basis = self.mean.to(frames), self.basis.to(frames)
        return (frames.flatten(-2) - mean) @ basis / self.scale

    @full_precision()
    def decode(self, latents: Tensor) -> Tensor:
        """(..., d) -> (..., size, size)."""
        require_floating("latents", latents, "(..., d)")
        frames = latents @ self.basis.to(latents).T * self.scale + self.mean.to(latents)
        return frames.unflatten(-1, (math.isqrt(len(self.mean)), -1))

    def to(self, device: torch.device | str) -> LatentMap:
        """The same map on a device, where it need not be copied for frames that are there."""
        return replace(self, mean=self.mean.to(device), basis=self.basis.to(device))

    @full_precision()
    def pixel_covariance(self, covariance: Tensor) -> Tensor:
        """Covariance (pixels, pixels) of frames whose latent vectors have this one, (d, d)."""
        require_floating("covariance", covariance, "(d, d)")
        basis = self.basis.to(covariance)
        return self.scale**2 * basis @ covariance @ basis.T


def _pixels(size: int) -> Tensor:
    """Coordinates of pixels along a line, the middle at 0."""
    return torch.arange(size, dtype=torch.float32, device="cpu") - (size - 1) / 2


def _frame_by_frame(
    search: Callable[[Tensor], tuple[Tensor, ...]], frames: Tensor
) -> tuple[Tensor, ...]:
    """Apply ``search`` to chunks of frames (..., size, size), results back in their shape."""
    flat = frames.reshape(-1, *frames.shape[-2:])
    parts = zip(*(search(chunk) for chunk in flat.split(CHUNK_FRAMES)), strict=True)
    return tuple(torch.cat(p).reshape(frames.shape[:-2] + p[0].shape[1:]) for p in parts)


def _require_frames(frames: Tensor, size: int | None = None) -> None:
    expected = f"(..., {size or 'size'}, {size or 'size'})"
    require_floating("frames", frames, expected)
    shape = tuple(frames.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or size not in (None, shape[-1]):
        raise ValueError(f"frames must have shape {expected}, got {shape}")
    require_finite("frames", frames)


def _require_inside(centres: Tensor, reach: float) -> None:
    require_floating("centres", centres, "(..., 2)")
    if centres.shape[-1:] != (2,):
        raise ValueError(
            "centres must have shape (..., 2), horizontal and vertical position, got"
            f" {tuple(centres.shape)}"
        )
    require_finite("centres", centres)
    outside = (centres.abs() > reach * (1 + 1e-6)).any(dim=-1)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {outside.numel()} positions leave the frame: coordinates must"
            f" lie within {reach:g} pixels of its middle, got up to {centres.abs().max():.3g};"
            " scale the path, or use larger frames"
        )
