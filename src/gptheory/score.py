r"""The exact score of a noised Gaussian process, and the denoiser of any score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion import levels
from .precision import full_precision
from .process import GaussianProcess
from .validation import require_sequences, require_step
from .wrappers import lasting

Score = Callable[[Tensor, "float | Tensor"], Tensor]


class ExactScore:
    r"""Score of :math:`v_t`, :math:`\nabla\log p_t(v) = -A_t^{-1}(v - \alpha_t\mu)`,
    :math:`A_t = \alpha_t^2\,\Gamma\otimes\Sigma + \sigma_t^2 I`.

    Source: FDGWC Score formula.

    With :math:`\Gamma = U\Lambda U^\top` and :math:`\Sigma = W M W^\top` the solve is a rotation, a
    division by :math:`\alpha_t^2\lambda_i m_k + \sigma_t^2`, and the rotation back: O(N²d + Nd²) a
    sequence, for any mixture of diffusion steps in a batch, after one factorisation.

    Args:
        process: the law of the clean sequences.

    Accuracy: the factorisation is float64, then cast to the input's dtype: about 1e-13 relative in
    float64 for σ_t² ≥ 1e-4, and 1e-5 in float32, also under autocast and with a lower precision of
    products (see :mod:`gptheory.precision`, also for gradients).
    """

    def __init__(self, process: GaussianProcess) -> None:
        self.process = process
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    @full_precision()
    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score.

        Args:
            v: noised sequences (batch, N, d), float32 or float64.
            t: diffusion step > 0, a number or one per sequence (batch,).

        Returns:
            (batch, N, d), dtype and device of v.

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0.
        """
        require_sequences("v", v, self.process.seq_len, self.process.dim)
        require_step(t)
        u, w, variances, mean = self._factors(v)
        signal_level, noise_level = (frames_first(level) for level in levels(t, v))
        frames = v.transpose(0, 1) - signal_level * mean  # (N, batch, d)
        rotated = along_frames(u.T, frames @ w)
        rotated = rotated / (signal_level**2 * variances + noise_level**2)
        return -(along_frames(u, rotated) @ w.T).transpose(0, 1)

    def _factors(self, v: Tensor) -> tuple[Tensor, ...]:
        key = (v.dtype, v.device)
        if key not in self._cast:
            self._cast[key] = self._cast_to(*key)
        return self._cast[key]

    @lasting
    def _cast_to(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        process = self.process
        (temporal, u), (spatial, w) = process.temporal_spectrum, process.spatial_spectrum
        variances = torch.outer(temporal, spatial)[:, None]  # (N, 1, d)
        return tuple(f.to(device, dtype) for f in (u, w, variances, process.mean[:, None]))


def denoise(score: Score, v: Tensor, t: float | Tensor) -> Tensor:
    r"""Posterior mean :math:`E[x \mid v_t] = (v_t + \sigma_t^2\, s(v_t, t)) / \alpha_t` (Tweedie).

    With the exact score this is the best denoiser there is.

    Args:
        score: any score, called as (v, t).
        v: noised sequences (batch, seq_len, dim).
        t: diffusion step > 0, a number or one per sequence (batch,).

    Returns:
        Estimates of the clean sequences, shape of v.

    Raises:
        ValueError: for a wrong shape or a step that is not finite and > 0.

    Accuracy: where hardly any signal is left the two terms cancel, and the rounding u of v and of
    the score grows to about :math:`u\,e^{t/2}`: 1e-5 at t = 10 in float32, 3e-3 at t = 20.
    """
    require_sequences("v", v)
    require_step(t)
    signal_level, noise_level = levels(t, v)
    return (v + noise_level**2 * score(v, t)) / signal_level


def frames_first(level: float | Tensor) -> float | Tensor:
    """A level (batch, 1, 1) as (1, batch, 1); numbers stay numbers."""
    return level.transpose(0, 1) if isinstance(level, Tensor) and level.ndim else level


@full_precision()
def along_frames(matrix: Tensor, frames: Tensor) -> Tensor:
    """Apply an (N, N) matrix to (N, batch, d) as one large product."""
    return (matrix @ frames.flatten(1)).view_as(frames)
