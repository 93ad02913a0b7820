r"""Semi-synthetic video: a sprite that moves along a Gaussian-process path, on small frames.

A path is a Gaussian process pushed through the error function, so that positions are uniform over
the frame and their correlation is still known exactly. A renderer turns positions into frames, a
fixed linear map turns frames into latent vectors and back, and a detector reads positions from
pixels again. Video is *not* Gaussian, only its paths are nearly so; :class:`GaussianTwin` is the
Gaussian law that has the same mean and covariance.

Positions are (horizontal, vertical), in pixels from the middle of the frame. **A sprite never
leaves its frame**: positions whose sprite would not fit are refused, not clipped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .diffusion import normal_like
from .kernels import gram
from .metrics import lag_correlations, temporal_covariance
from .precision import full_precision
from .process import GaussianProcess
from .spectra import covariance_spectrum, nearest_covariance, oriented, symmetric_root
from .validation import (
    require_count,
    require_finite,
    require_floating,
    require_positive,
    require_real,
    require_sequences,
)
from .wrappers import lasting

CHUNK_FRAMES = 2048  # rendered or searched at a time
# Two half balls three pixels apart already fail, sharp frames pass with room to spare.
FULL_AMPLITUDE = (0.9, 1.1)
STRAY_ENERGY = 0.03  # of a ball's; what a latent map of 16 coordinates loses is 0.003


# ---- paths --------------------------------------------------------------------------------------


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
    require_real("gamma", gamma)
    if not (gamma.abs() <= 1 + 1e-12).all():
        raise ValueError(f"correlations lie in [-1, 1], got up to {gamma.abs().max():.3g}")
    return 6 / math.pi * torch.asin(gamma.clamp(-1, 1) / 2)


@dataclass(frozen=True)
class Motion:
    """What paths do, and how exact a measurement from n paths can be.

    Attributes:
        lag_one: correlation of neighbouring frames.
        jump: root mean square distance between neighbouring frames, in pixels.
        error: relative Frobenius error of the temporal correlation; for the truth, its floor.
    """

    lag_one: float
    jump: float
    error: float


def true_motion(kernel: Callable[[Tensor], Tensor], seq_len: int, reach: float) -> Motion:
    r"""Exact values for :func:`uniform_paths`: the jump is :math:`2R\sqrt{(1-\rho)/3}`.

    Raises:
        ValueError: for fewer than two frames.
    """
    require_count("seq_len", seq_len, minimum=2)
    rho = uniform_correlation(gram(kernel, seq_len))[0, 1].item()
    return Motion(rho, 2 * reach * math.sqrt((1 - rho) / 3), 0.0)


def measured_motion(paths: Tensor, kernel: Callable[[Tensor], Tensor]) -> Motion:
    """Motion of paths (n, N, 2) about the middle of the frame, beside the kernel of their law.

    Raises:
        ValueError: for a wrong shape, fewer than two frames, or values that are not finite.
    """
    require_sequences("paths", paths, dim=2)
    require_count("the number of frames", paths.shape[1], minimum=2)
    temporal = temporal_covariance(paths, paths.new_zeros(2)).double()
    truth = uniform_correlation(gram(kernel, paths.shape[1])).to(temporal)
    jump = paths.double().diff(dim=1).square().sum(dim=2).mean().sqrt()
    error = ((temporal - truth).norm() / truth.norm()).item()
    return Motion(lag_correlations(temporal)[1].item(), jump.item(), error)


def motion_floor(
    kernel: Callable[[Tensor], Tensor], n: int, seq_len: int, draws: int = 20, seed: int = 0
) -> Motion:
    """Root mean square errors of :func:`measured_motion` over draws of n true paths.

    The jump's is relative. Paths are not Gaussian, so this floor is drawn, not computed.
    """
    generator, truth = torch.Generator().manual_seed(seed), true_motion(kernel, seq_len, 1.0)
    found = [
        measured_motion(uniform_paths(kernel, n, seq_len, 1.0, generator), kernel)
        for _ in range(draws)
    ]
    errors = [(m.lag_one - truth.lag_one, m.jump / truth.jump - 1, m.error) for m in found]
    return Motion(
        *torch.tensor(errors, dtype=torch.float32, device="cpu")
        .square()
        .mean(dim=0)
        .sqrt()
        .tolist()
    )


# ---- the ball -----------------------------------------------------------------------------------


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


# ---- handwritten digits -------------------------------------------------------------------------


class Digits:
    """Real handwritten digits, 8 × 8 pixels, as moving sprites.

    A sprite at position c is spread over the pixels by cubic B-splines,
    :math:`f_p = \\sum_s \\beta(p - s - c)\\, x_s`, in both directions. Splines reproduce constants
    and lines: whatever c is, the total brightness stays, and the centroid of the frame is c.

    Args:
        images: (K, h, h), brightness from 0 to 1; see :func:`handwritten`.
        labels: (K,), their classes.
        size: pixels along a side of the frame.

    Attributes:
        reach: largest coordinate of a centroid for which every sprite is inside.

    Raises:
        ValueError: for shapes that do not belong together, an empty image, or frames that are too
            small.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int = 20) -> None:
        require_sequences("images", images)
        require_finite("images", images)
        if images.shape[1] != images.shape[2] or len(labels) != len(images):
            raise ValueError(
                f"expected images (K, h, h) and labels (K,), got {tuple(images.shape)} and"
                f" {tuple(labels.shape)}"
            )
        if not (images.sum(dim=(1, 2)) > 0).all():
            raise ValueError("every image must have some brightness")
        self.images, self.labels, self.size = images, labels, size
        self._offsets = _centroids(images)  # of the drawn digit from the middle of its image
        self.reach = (size - images.shape[1]) / 2 - 1 - self._offsets.abs().max().item()
        if self.reach <= 0:
            needed = size - 2 * self.reach
            raise ValueError(f"these digits need frames of more than {needed:.0f} pixels a side,"
                             f" got size={size}")  # fmt: skip

    def to(self, device: torch.device | str) -> Digits:
        """The same sprites on a device."""
        return Digits(self.images.to(device), self.labels.to(device), self.size)

    @full_precision()
    def render(self, centres: Tensor, which: Tensor) -> Tensor:
        """Frames of digits.

        Args:
            centres: of their centroids, (batch, N, 2).
            which: the sprite of each video, (batch,).

        Returns:
            (batch, N, size, size).

        Raises:
            ValueError: for a wrong shape, or a digit that would leave the frame.
        """
        require_sequences("centres", centres, dim=2)
        _require_inside(centres, self.reach)
        which = which.to(self.images.device)
        corners = centres - self._offsets[which][:, None].to(centres)
        across, down = (
            _spread(corners[..., k], self.images.shape[1], self.size) for k in (0, 1)
        )  # (batch, N, size, h)
        return down @ self.images[which][:, None].to(centres) @ across.transpose(-1, -2)

    @full_precision()
    def recentred(self, frames: Tensor, centres: Tensor) -> Tensor:
        """Frames shifted so that ``centres`` (..., 2) come to the middle, with the same energy.

        The adjoint of ``render`` shifts back and blurs as much again; the inverse root of both
        blurs, which hardly depends on the shift, takes that away.
        """
        require_floating("frames", frames, "(..., size, size)")
        require_floating("centres", centres, "(..., 2)")
        spread = _spread(torch.zeros((), dtype=torch.float64, device="cpu"), self.size, self.size)
        values, vectors = torch.linalg.eigh(spread.T @ spread)
        sharpen = (vectors / values.sqrt() @ vectors.T).to(frames)
        across, down = (_spread(centres[..., k], self.size, self.size) @ sharpen for k in (0, 1))
        return down.transpose(-1, -2) @ frames @ across

    def locate(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Where a digit is, how far from a real one, and which.

        Args:
            frames: (..., size, size).

        Returns:
            Centroids (..., 2); the relative squared distance (...) of the recentred frame from the
            nearest recentred real digit; and the class (...) of that digit.

        Raises:
            ValueError: for frames of another size.
        """
        _require_frames(frames, self.size)
        rest = frames.new_zeros(len(self.images), 1, 2)
        bank = self.recentred(
            self.render(rest, torch.arange(len(rest), device=frames.device))[:, 0], rest[:, 0]
        )
        bank = bank.flatten(1)

        @full_precision()
        def search(chunk: Tensor) -> tuple[Tensor, ...]:
            centres = _centroids(chunk)
            distance, nearest = torch.cdist(self.recentred(chunk, centres).flatten(1), bank).min(1)
            relative = distance.square() / bank[nearest].square().sum(dim=1)
            return centres, relative, self.labels.to(nearest)[nearest]

        return _frame_by_frame(search, frames)


def handwritten(classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits of some classes: images (K, 8, 8) from 0 to 1, labels (K,).

    Raises:
        ModuleNotFoundError: if scikit-learn is missing; says how to get it.
        ValueError: for a class that is no digit.
    """
    if not classes or not set(classes) <= set(range(10)):
        raise ValueError(f"classes must be digits from 0 to 9, got {classes!r}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the handwritten digits come with scikit-learn: pip install 'gptheory[digits]'"
        ) from None
    data = load_digits()
    images, labels = torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)
    chosen = torch.isin(labels, torch.tensor(list(classes), device="cpu"))
    return images[chosen], labels[chosen]


# ---- frames and latent vectors ------------------------------------------------------------------


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
        values, vectors = (x.flip(-1) for x in torch.linalg.eigh(covariance))
        if values[0] <= 0:
            raise ValueError("the frames are all equal: there is nothing to learn")
        kept = values[:dim].sum().item()
        basis = oriented(vectors[:, :dim]).to(frames)
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


# ---- the control --------------------------------------------------------------------------------


class GaussianTwin:
    """The Gaussian law with the mean and the covariance of given sequences, all Nd × Nd of it.

    What a model of second moments, however good, can make of the data.

    Args:
        x: sequences (n, N, d).

    Attributes:
        covariance: (Nd, Nd), float64, frame-major.
        seq_len, dim: N and d.

    Raises:
        ValueError: for a wrong shape, non-finite values or fewer than two sequences.
    """

    @lasting
    @full_precision()
    def __init__(self, x: Tensor) -> None:
        require_sequences("x", x)
        require_count("the number of sequences", len(x), minimum=2)
        require_finite("x", x)
        (self.seq_len, self.dim), rows = x.shape[1:], x.flatten(1)
        self._mean = rows.mean(dim=0)
        moments = torch.cov((rows - self._mean).T).double()
        spectrum = covariance_spectrum("covariance of x", moments, x.dtype)
        self.covariance = nearest_covariance(moments, spectrum, x.dtype)
        self._root = symmetric_root(*spectrum).to(x)

    def __repr__(self) -> str:
        return f"GaussianTwin(seq_len={self.seq_len}, dim={self.dim})"

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self._mean.device

    @property
    def parts(self) -> tuple[object, ...]:
        """Mean and covariance."""
        return self._mean, self.covariance

    @full_precision()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """(n, N, d), on the device of the sequences that were given, by default in their dtype.

        Raises:
            ValueError: for n < 0.
        """
        require_count("n", n, minimum=0)
        mean = self._mean if dtype is None else self._mean.to(dtype)
        white = normal_like(mean.expand(n, -1), generator)
        rows = mean + white @ self._root.to(mean)
        return rows.unflatten(1, (self.seq_len, self.dim))

    def to(self, device: torch.device | str) -> GaussianTwin:
        """The same law on a device: there it draws."""
        moved = copy.copy(self)
        moved.covariance = self.covariance.to(device)
        moved._mean, moved._root = self._mean.to(device), self._root.to(device)
        return moved

    def kronecker_share(self) -> float:
        r"""Share of :math:`\|\mathrm{Cov}\|_F^2` that the nearest Γ ⊗ Σ explains (Van Loan 1993).

        Rearranged so that Γ ⊗ Σ is the outer product of its factors, the nearest product is the
        first term of a singular value decomposition.
        """
        seq_len, dim = self.seq_len, self.dim
        blocks = self.covariance.view(seq_len, dim, seq_len, dim).transpose(1, 2)
        values = torch.linalg.svdvals(blocks.reshape(seq_len**2, dim**2))
        return (values[0] ** 2 / values.square().sum()).item()


# ---- pixels -------------------------------------------------------------------------------------


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


def _spread(centres: Tensor, length: int, size: int) -> Tensor:
    """Cubic B-splines β(p − s − c): centres (...) to matrices (..., size (p), length (s))."""
    x = (_pixels(size)[:, None] - _pixels(length)).to(centres) - centres[..., None, None]
    x = x.abs()
    outer = (2 - x).clamp(min=0) ** 3
    inner = (1 - x).clamp(min=0) ** 3
    return (outer - 4 * inner) / 6


@full_precision()
def _centroids(frames: Tensor) -> Tensor:
    """Centre of brightness of frames (..., size, size): (..., 2)."""
    pixel = _pixels(frames.shape[-1]).to(frames)
    moments = torch.stack([frames.sum(dim=-2) @ pixel, frames.sum(dim=-1) @ pixel], dim=-1)
    return moments / frames.sum(dim=(-2, -1))[..., None]


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
