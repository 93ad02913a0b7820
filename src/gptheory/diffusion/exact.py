"""The exact score of a noised law: known, or estimated from sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.estimate import _sample
from ..data.law import KnownLaw
from ..data.process import GaussianProcess
from ..support.validation import require_sequences, require_step
from .schedule import alpha, floating_step, levels, sigma

Score = Callable[[Tensor, "float | Tensor"], Tensor]


class ExactScore:
    r"""Score :math:`\nabla\log p_t(v)` of :math:`v_t = \alpha_t x + \sigma_t z`, x of a known law.

    The law knows the formula (:meth:`.KnownLaw.noised_score`), the forward process the
    levels. For a Gaussian process :math:`-A_t^{-1}(v - \alpha_t\mu)`, :math:`A_t =
    \alpha_t^2\,\Gamma\otimes\Sigma + \sigma_t^2 I`. Source: FDGWC Score formula.

    Args:
        law: of the clean sequences: a :class:`.GaussianProcess`, a
            :class:`.GaussianMixture`, a :class:`.SubspaceData`, or
            any other that knows its score.

    Attributes:
        law: as given.

    Raises:
        ValueError: for a law that does not know it.

    Accuracy: factorisations are float64, then cast to the input's dtype: about 1e-13 relative in
    float64 for σ_t² ≥ 1e-4, and 1e-5 in float32, also under autocast and with a lower precision of
    products (see :mod:`gptheory.support.precision`, also for gradients).
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
            t: diffusion step > 0, a number or one per sequence (batch,). Of a
                :class:`.GaussianProcess` also one per frame, (batch, N), and 0 for frames without
                noise: at the others the score is then that of these frames *given* those without,
                as :meth:`.GaussianProcess.condition` has it. O(dN³) for each row of steps.

        Returns:
            (batch, N, d), dtype and device of v.

        Raises:
            ValueError: for a wrong shape or a step that is not finite and > 0 (of frames: >= 0), or
                for steps of frames with a law that knows none.
            NotPSDError: for frames without noise of a process too smooth for them.
        """
        require_sequences("v", v, self.law.seq_len, self.law.dim)
        if isinstance(t, Tensor) and t.ndim == 2 and t.shape == v.shape[:2]:
            return self._framewise(v, t)
        require_step(t)
        return self.law.noised_score(v, *levels(t, v))

    def _framewise(self, v: Tensor, t: Tensor) -> Tensor:
        if not hasattr(self.law, "framewise_score"):
            raise ValueError(
                f"t must be a number or have shape ({len(v)},), got {tuple(t.shape)}: one step per"
                f" frame needs the law of a GaussianProcess, not a {type(self.law).__name__}"
            )
        require_step(t, zero=True)
        t = floating_step(t).to(v.device)[..., None]
        return self.law.framewise_score(v, alpha(t), sigma(t))


class WienerScore:
    r"""The exact score of the Gaussian that has the mean and the covariance of n sequences,

    .. math:: \hat s(v, t) = -(\alpha_t^2 \hat C + \sigma_t^2 I)^{-1}(v - \alpha_t\hat\mu).

    The best *linear* denoiser there is, as far as n sequences tell (Wiener 1949); for a Gaussian
    process and n → ∞ it is the exact score. :math:`\hat C` is the plain (Nd, Nd) sample covariance
    (divided by n), without any structure or shrinkage.

    Args:
        x: sequences (n, N, d).

    Raises:
        ValueError: for a wrong shape, fewer than two sequences or non-finite values.
    """

    def __init__(self, x: Tensor) -> None:
        flat = _sample(x).flatten(1)
        mean = flat.mean(dim=0)
        centred = flat - mean
        # one long sequence of N·d frames with one coordinate each
        one = flat.new_ones(1, 1)
        covariance = centred.T @ centred / len(x)
        self._exact = ExactScore(GaussianProcess(covariance, one, mean[:, None]))
        self.seq_len, self.dim = x.shape[1:]

    def __call__(self, v: Tensor, t: float | Tensor) -> Tensor:
        """Evaluate the score; takes, returns and raises what :class:`ExactScore` does."""
        require_sequences("v", v, self.seq_len, self.dim)
        return self._exact(v.flatten(1)[..., None], t).view_as(v)
