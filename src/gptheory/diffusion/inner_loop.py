r"""The inner loop of nested gradient descent: what it makes of :math:`S_{mo}S_{oo}^{-1}`.

K_aux steps from zero apply a polynomial Q of :math:`S_{oo}` instead of its inverse, with
:math:`S_{oo}^{-1} - Q = S_{oo}^{-1}p(S_{oo})`. All is diagonal in Σ, and with
:math:`\Gamma_{oo} = U\operatorname{diag}(l)U^\top` all that matters is made of
:math:`R = \Gamma_{mo}U\operatorname{diag}(l)^{-1/2}`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.validation import require_count
from .methods import Method


class InnerLoop:
    r"""Exactly what K_aux steps of a method do, for each eigenvalue of Σ.

    Args:
        cross: :math:`\Gamma_{mo}`, (M, O).
        values, vectors: l and U of :math:`\Gamma_{oo}`, ascending.
        spatial: eigenvalues of Σ, (d,), ascending.
        extremes: the interval for which the step size is.
        method: of the loop.
        steps: K_aux.

    Attributes:
        root: R; :math:`RR^\top` is what is explained of :math:`\Gamma_{mm}`.
        explained_norm, explained_trace: of :math:`E = RR^\top \otimes \Sigma`.
    """

    def __init__(
        self,
        cross: Tensor,
        values: Tensor,
        vectors: Tensor,
        spatial: Tensor,
        extremes: tuple[float, float],
        method: Method,
        steps: int,
    ) -> None:
        self.root, self._scale, self._vectors = cross @ vectors / values.sqrt(), values, vectors
        self.spatial, self.extremes, self.method, self.steps = spatial, extremes, method, steps
        largest = torch.linalg.matrix_norm(self.root, 2).item() ** 2
        self.explained_norm = largest * spatial[-1].item()
        self.explained_trace = (self.root.square().sum() * spatial.sum()).item()

    def factor(self, steps: int | None = None) -> float:
        """ρ, the method's bound on p, after K_aux steps or another number of them, 0 or more."""
        if steps is None:
            steps = self.steps
        require_count("inner_steps", steps, minimum=0)
        return self.method.bound(*self.extremes, steps)

    def rest(self) -> Tensor:
        r"""p on the eigenvalues of :math:`S_{oo}`, (d, O)."""
        values = torch.outer(self.spatial, self._scale)
        low, high = (values.new_tensor(end) for end in self.extremes)
        return self.method.error_polynomial(values, low, high, self.steps)

    def weights(self) -> Tensor:
        r""":math:`S_{mo}Q` for each eigenvalue of Σ, (d, M, O)."""
        done = (1 - self.rest()) / self._scale.sqrt()
        return (self.root * done[:, None, :]) @ self._vectors.T

    def lost(self) -> Tensor:
        r""":math:`S_{mo}(S_{oo}^{-1} - Q)S_{oo}^{1/2}`, rotated, (d, M, O)."""
        return self.spatial.sqrt()[:, None, None] * self.root * self.rest()[:, None, :]

    def unexplained(self) -> Tensor:
        r""":math:`S_{mo}(S_{oo}^{-1} - Q)S_{om}`, (d, M, M)."""
        own = (self.root * self.rest()[:, None, :]) @ self.root.T
        return self.spatial[:, None, None] * own
