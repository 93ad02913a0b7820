r"""Conjugate gradients for many symmetric systems at once, preconditioned, each to its own end.

A step costs one product with the matrix and one with the preconditioner, and the error after k
steps is the least that a polynomial of degree k with value 1 at 0 leaves on the spectrum of the
preconditioned matrix (Hestenes and Stiefel 1952): where eigenvalues cluster, few steps do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .validation import NotPSDError

LOOK_EVERY = 4  # steps between two looks at an accelerator, each of which waits for it
SAFETY = 0.9  # of the tolerance, for the recursive residual: the true one differs by rounding

Product = Callable[[Tensor], Tensor]


class NotConvergedError(ArithmeticError):
    """An iteration ended before its tolerance was met; there is no result."""


@dataclass(frozen=True)
class System:
    """Symmetric positive definite matrices A, one for each row.

    Attributes:
        product: x to A x, (rows, N) to (rows, N).
        precondition: r to an approximation of A⁻¹ r, symmetric positive definite as well.
        rounding: (‖x‖, ‖b‖) to what rounding may do to ‖b − A x‖, (rows,) each.
    """

    product: Product
    precondition: Product
    rounding: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    r"""What conjugate gradients found.

    Attributes:
        values: x, (rows, N).
        steps: that each row took, (rows,).
        residuals: ‖b − A x‖ / ‖b‖, computed anew from x, (rows,); 0 where b = 0.
        history: the same as the recursion saw it, after 0, 1, … steps, (steps + 1, rows); a row
            that has ended stays as it is.
    """

    values: Tensor
    steps: Tensor
    residuals: Tensor
    history: Tensor

    @classmethod
    def joined(cls, parts: list[Solution]) -> Solution:
        """Of the rows of all parts; histories go on with their last residual."""
        longest = max(len(part.history) for part in parts)
        padded = [
            torch.cat([x, x[-1:].expand(longest - len(x), -1)])
            for x in (part.history for part in parts)
        ]
        columns = zip(*((part.values, part.steps, part.residuals) for part in parts), strict=True)
        return cls(*(torch.cat(each) for each in columns), torch.cat(padded, dim=1))


@torch.no_grad()
def conjugate_gradients(system: System, rhs: Tensor, tolerance: float, max_steps: int) -> Solution:
    r"""Solve A x = b, row by row, to :math:`\|b - Ax\| \le \text{tolerance}\,\|b\|`.

    The residual is computed anew from x at the end. Where the recursion has drifted from it, the
    iteration begins again from there; where rounding does not allow the tolerance, it ends at what
    rounding allows. Rows do not see each other: one that has ended stays as it is.

    Args:
        system: the matrices.
        rhs: b, (rows, N); a row that is not finite comes out as NaN.
        tolerance: of the residual, relative.
        max_steps: at most so many in all.

    Raises:
        NotConvergedError: if the steps do not suffice.
        NotPSDError: if a direction p with pᵀA p <= 0 is met.
    """
    run = _Run(system, rhs, tolerance)
    run.look()
    while run.is_open.any():
        if run.taken >= max_steps:
            raise NotConvergedError(run.complaint())
        run.descend(max_steps)
        run.look()
    values = torch.where(run.finite[:, None], run.x, torch.nan)
    size = torch.where(run.size > 0, run.size, 1)
    history = torch.stack(run.history) / size
    return Solution(values, run.steps, run.residual_size / size, history)


class _Run:
    """The state of an iteration: x, b − A x, and which rows are still open."""

    def __init__(self, system: System, rhs: Tensor, tolerance: float) -> None:
        self.system, self.rhs, self.tolerance = system, rhs, tolerance
        self.size = torch.linalg.vector_norm(rhs, dim=-1)
        self.finite = torch.isfinite(self.size)
        self.x = torch.zeros_like(rhs)
        self.steps = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
        self.taken, self.history = 0, [self.size]

    def look(self) -> None:
        """Compute the residual anew, and open the rows where it is too large."""
        self.residual = self.rhs - self.system.product(self.x) if self.taken else self.rhs.clone()
        self.residual_size = torch.linalg.vector_norm(self.residual, dim=-1)
        found = torch.linalg.vector_norm(self.x, dim=-1)
        allowed = self.tolerance * self.size
        if self.taken:
            allowed = torch.maximum(allowed, self.system.rounding(found, self.size))
        self.is_open = self.finite & (self.residual_size > allowed)

    def descend(self, max_steps: int) -> None:
        """Steps until no row is open, or none are left."""
        every = 1 if self.rhs.device.type == "cpu" else LOOK_EVERY
        z = self.system.precondition(self.residual)
        direction, descent = z, _dots(self.residual, z)
        broken = torch.zeros_like(self.is_open)
        while self.taken < max_steps:
            product = self.system.product(direction)
            curvature = _dots(direction, product)
            broken |= self.is_open & ~(curvature > 0)
            self._move(direction, product, torch.where(broken, 0, descent / curvature))
            if self.taken % every == 0 and not (self.is_open & ~broken).any():
                break
            z = self.system.precondition(self.residual)
            before, descent = descent, _dots(self.residual, z)
            share = torch.where(before > 0, descent / before, 0)
            direction = z.addcmul_(direction, share[:, None])
        self._require_positive(broken, curvature)

    def _move(self, direction: Tensor, product: Tensor, length: Tensor) -> None:
        """One step, of the rows that are open."""
        length = torch.where(self.is_open, length, 0)[:, None]
        self.x.addcmul_(direction, length)
        self.residual.addcmul_(product, length, value=-1)
        self.steps += self.is_open
        self.taken += 1
        size = torch.linalg.vector_norm(self.residual, dim=-1)
        self.history.append(torch.where(self.is_open, size, self.history[-1]))
        self.is_open = self.is_open & (size > SAFETY * self.tolerance * self.size)

    def _require_positive(self, broken: Tensor, curvature: Tensor) -> None:
        if broken.any():
            raise NotPSDError(
                "conjugate gradients met a direction p with pᵀA p <= 0"
                f" ({curvature[broken].min():.3g}): the matrix is not positive definite; a larger"
                " diffusion step or a multiple of the identity makes it so"
            )

    def complaint(self) -> str:
        """What to say of the rows that are open."""
        worst = (self.residual_size / self.size)[self.is_open].max().item()
        return (
            f"{int(self.is_open.sum())} of {len(self.rhs)} systems have not converged after"
            f" {self.taken} steps: relative residual {worst:.3g}, tolerance {self.tolerance:.3g};"
            " allow more steps (max_steps), a larger tolerance, or use eigenvectors"
        )


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
