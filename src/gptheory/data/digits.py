"""Handwritten digits that move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..support.precision import full_precision
from ..support.validation import require_finite, require_floating, require_sequences
from .video import _frame_by_frame, _pixels, _require_frames, _require_inside


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
