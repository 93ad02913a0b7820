r"""The exact score of a noised law, and the denoiser of any score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion import levels
from .law import KnownLaw
from .validation import require_sequences, require_step

Score = Callable[[Tensor, "float | Tensor"], Tensor]


class ExactScore:
    r"""Score :math:`\nabla\log p_t(v)` of :math:`v_t = \alpha_t x + \sigma_t z`, x of a known law.

    The law knows the formula (:meth:`gptheory.law.KnownLaw.noised_score`), the forward process the
    levels. For a Gaussian process :math:`-A_t^{-1}(v - \alpha_t\mu)`, :math:`A_t =
    \alpha_t^2\,\Gamma\otimes\Sigma + \sigma_t^2 I`. Source: FDGWC Score formula.

    Args:
        law: of the clean sequences: a :class:`gptheory.process.GaussianProcess`, a
            :class:`gptheory.mixture.GaussianMixture`, a :class:`gptheory.latent.SubspaceData`, or
            any other that knows its score.

    Attributes:
        law: as given.

    Raises:
        ValueError: for a law that does not know it.

    Accuracy: factorisations are float64, then cast to the input's dtype: about 1e-13 relative in
    float64 for σ_t² ≥ 1e-4, and 1e-5 in float32, also under autocast and with a lower precision of
    products (see :mod:`gptheory.precision`, also for gradients).
    """

    def __init__(self, law: KnownLaw) -> None:
        if not isinstance(law, KnownLaw):
            raise ValueError(
                f"an exact score needs a law that knows its noised_score, got {type(law).__name__}"
            )
        self.law = law

    @property
    def device(self) -> torch.device:
        """Where the law is."""
        return self.law.device

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
        require_sequences("v", v, self.law.seq_len, self.law.dim)
        require_step(t)
        return self.law.noised_score(v, *levels(t, v))


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
