r"""Stationary covariances of long sequences: products, systems, determinants, never a matrix.

A symmetric Toeplitz matrix :math:`\Gamma_{ij} = \gamma_{|i-j|}` is the corner of a circulant of
twice the size, which the Fourier transform makes diagonal: a product costs O(N log N). Systems are
solved by conjugate gradients with a circulant as preconditioner, which turns the spectrum into one
cluster with few outliers: the number of steps does not grow with N (R. Chan and Strang 1989).
"""

from __future__ import annotations

import math
from typing import Any

import scipy.fft
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..support.conjugate import Solution, System, conjugate_gradients
from ..support.precision import full_precision
from ..support.rounding import gamma
from ..support.validation import (
    NotPSDError,
    as_real,
    require_count,
    require_finite,
    require_floating,
    require_one_of,
    require_positive,
)
from ..support.wrappers import lasting

PRECONDITIONERS = ("embedding", "chan", "strang", "none")
TOLERANCE = 1e-10  # relative residual
MAX_STEPS = 500
# numbers in the right-hand sides that are solved together: what stays in a cache of the CPU, and
# what keeps an accelerator busy; transforms gain from coming in fours
CHUNK_VALUES, ACCELERATOR_VALUES, LEAST_ROWS = 2**17, 2**22, 4


class ToeplitzSolver:
    r"""Systems :math:`(q\,\Gamma + w I)\,x = b` with a symmetric Toeplitz matrix Γ.

    Conjugate gradients in float64 with one of these preconditioners P:

    - ``"embedding"``: :math:`P^{-1}` is the corner of :math:`(q\,C + w I)^{-1}`, C the circulant of
      twice the size whose corner is Γ (cf. Hanke and Nagy 1994, for bands). So P is the covariance
      of the N frames *given* those on the other side of a circle: it differs from A where the ends
      of the sequence feel that they are ends.
    - ``"chan"``: :math:`P = q\,C + w I` with the circulant C nearest to Γ in the Frobenius norm,
      :math:`c_j = ((N-j)\gamma_j + j\,\gamma_{N-j})/N` (T. Chan 1988).
    - ``"strang"``: the same with :math:`c_j = \gamma_{\min(j, N-j)}` (Strang 1986).

    Eigenvalues of C that are negative, which cutting the kernel makes, count as 0. Steps to a
    residual of 1e-10, at w = 1 − q = 0.01 and N = 4096, for :math:`\exp(-(r/\ell)^\nu)`:

    ================  =========  ====  ======  =====
    ν, ℓ              embedding  Chan  Strang  none
    ================  =========  ====  ======  =====
    1, 8                      2     6       3    180
    1, 512                    4    13       9  > 500
    2, 8                      7    13      12    446
    2, 512                   14   219      19     79
    ================  =========  ====  ======  =====

    Where the kernel does not decay within the sequence there are more: 20 to 70 for N between ℓ/8
    and 2 ℓ, at most 12 from N = 16 ℓ on (ν from 0.5 to 2, w >= 0.01).

    Args:
        column: γ_0, …, γ_{N−1}, real.
        preconditioner: ``"embedding"``, ``"chan"``, ``"strang"`` or ``"none"``.
        tolerance: of the residual, :math:`\|b - Ax\| / \|b\|`.
        max_steps: of an iteration.

    Attributes:
        column: (N,) float64.
        preconditioner, tolerance, max_steps: as given.
        largest: a bound on the norm of Γ, the largest eigenvalue of the circulant around it.

    Raises:
        ValueError: for a column that is not one of finite numbers, or names or numbers out of
            range.

    Accuracy: that of the tolerance, or what rounding allows where that is more: the residual, which
    is computed anew, is at most :math:`7 \cdot 2 \log_2(2N)\,u\,\|A\|\|x\|` then, as a direct
    solver's would be. For w > 0 and Γ positive semidefinite the error of x is at most
    :math:`\|b - Ax\|/w`.
    """

    @lasting
    def __init__(
        self,
        column: Tensor,
        preconditioner: str = "embedding",
        tolerance: float = TOLERANCE,
        max_steps: int = MAX_STEPS,
    ) -> None:
        column = as_real("column", column)
        if column.ndim != 1 or not len(column):
            raise ValueError(f"column must have shape (N,), got {tuple(column.shape)}")
        require_finite("column", column)
        require_one_of("preconditioner", preconditioner, PRECONDITIONERS)
        require_positive("tolerance", tolerance)
        require_count("max_steps", max_steps)
        self.column = column.detach().double().clone()
        self.preconditioner, self.tolerance = preconditioner, float(tolerance)
        self.max_steps = int(max_steps)
        self._padded = scipy.fft.next_fast_len(max(2 * len(column) - 1, 2), real=True)
        around = _symbol(_mirrored(self.column, self._padded))
        within = (
            around
            if preconditioner == "embedding"
            else _symbol(_circulant(self.column, preconditioner))
        )
        symbols = around, within.clamp(min=0)
        self.largest = around.abs().max().item()
        # 7 log2(M) u a transform (Higham 2002, theorem 24.2), there and back, and two sums
        self._rounding = gamma(4 + 14 * math.log2(self._padded))
        self._symbols = {self.column.device: symbols}

    def __len__(self) -> int:
        """N."""
        return len(self.column)

    def product(self, x: Tensor) -> Tensor:
        r""":math:`\Gamma x` by transforms of length 2N or more.

        Args:
            x: (..., N).

        Returns:
            (..., N), dtype and device of x, computed in float64; differentiable.

        Raises:
            ValueError: for another shape or dtype.
        """
        self._require_rows("x", x)
        return self._product(x.double()).to(x)

    def solve(
        self, rhs: Tensor, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0
    ) -> Tensor:
        r"""x with :math:`(q\,\Gamma + w I)\,x = b`.

        The derivatives are implicit: backward solves one system more, with respect to b, q and w,
        to any order; so are those of forward mode. Γ itself is a constant.

        Args:
            rhs: b, (..., N); one that is not finite comes out as NaN.
            scale, shift: q >= 0 and w >= 0, numbers or what broadcasts to the shape of rhs without
                its last axis.

        Returns:
            (..., N), dtype and device of b.

        Raises:
            NotConvergedError: if max_steps do not suffice; says the residual.
            NotPSDError: if a direction p with pᵀA p <= 0 is met. That none was met proves nothing.
            ValueError: for another shape or dtype.
        """
        rows, scale, shift = self._rows(rhs, scale, shift)
        return _Solve.apply(rows, scale, shift, self).view(rhs.shape).to(rhs)

    def solution(
        self, rhs: Tensor, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0
    ) -> Solution:
        """The same with steps and residuals, in float64; its rows are those of b.

        Args, raises: see :meth:`solve`; it has no derivatives.
        """
        return self._solution(*(x.detach() for x in self._rows(rhs, scale, shift)))

    def log_det(self, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> Tensor:
        r""":math:`\log\det(q\,\Gamma + w I)`, exact, by Durbin's recursion.

        O(N²) time and O(N) memory for each pair (q, w); differentiable once in both.

        Args:
            scale, shift: q and w, numbers or tensors that broadcast to each other.

        Returns:
            Their shape, float64, on the device of the column unless a level says another.

        Raises:
            NotPSDError: if the matrix is not positive definite to rounding.
        """
        given = [x for x in (scale, shift) if isinstance(x, Tensor)]
        home = given[0].device if given else self.column.device
        scale, shift = torch.broadcast_tensors(*_levels(scale, shift, home))
        flat = _LogDeterminant.apply(scale.reshape(-1), shift.reshape(-1), self.column.to(home))
        return flat.view(scale.shape)

    def _rows(self, rhs: Tensor, scale: float | Tensor, shift: float | Tensor) -> list[Tensor]:
        """Right-hand sides (rows, N), q and w (rows,), in float64 on one device."""
        self._require_rows("rhs", rhs)
        levels = [
            level.expand(rhs.shape[:-1]).reshape(-1) for level in _levels(scale, shift, rhs.device)
        ]
        return [rhs.double().reshape(-1, len(self)), *levels]

    def _require_rows(self, name: str, x: Tensor) -> None:
        require_floating(name, x, f"(..., {len(self)})")
        if not x.ndim or x.shape[-1] != len(self):
            raise ValueError(f"{name} must have shape (..., {len(self)}), got {tuple(x.shape)}")

    def _product(self, x: Tensor) -> Tensor:
        return _filtered(x, self._symbols_on(x.device)[0], self._padded)

    @full_precision()
    def _solution(self, rhs: Tensor, scale: Tensor, shift: Tensor) -> Solution:
        """In chunks, so that memory does not grow with the number of rows."""
        values = CHUNK_VALUES if rhs.device.type == "cpu" else ACCELERATOR_VALUES
        size = max(LEAST_ROWS, values // len(self))
        chunks = zip(*(x.split(size) for x in (rhs, scale, shift)), strict=True)
        found = [
            conjugate_gradients(self._system(*levels), b, self.tolerance, self.max_steps)
            for b, *levels in chunks
        ]
        return found[0] if len(found) == 1 else Solution.joined(found)

    def _system(self, scale: Tensor, shift: Tensor) -> System:
        q, w = scale[:, None], shift[:, None]
        norm = scale * self.largest + shift
        _, circulant = self._symbols_on(scale.device)
        inverse = 1 / torch.maximum(q * circulant + w, (self._rounding * norm)[:, None])
        size = self._padded if self.preconditioner == "embedding" else len(self)

        def product(x: Tensor) -> Tensor:
            return torch.addcmul(w * x, q, self._product(x))

        def precondition(r: Tensor) -> Tensor:
            if self.preconditioner == "none":
                return r.clone()
            return _filtered(r, inverse, size)

        def rounding(x: Tensor, b: Tensor) -> Tensor:
            return self._rounding * (norm * x + b)

        return System(product, precondition, rounding)

    @lasting
    def _symbols_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._symbols:
            home = self._symbols[self.column.device]
            self._symbols[device] = tuple(symbol.to(device) for symbol in home)
        return self._symbols[device]


class _Solve(torch.autograd.Function):
    """x = (q Γ + w)⁻¹ b with implicit derivatives: dx = A⁻¹(db − dq Γx − dw x)."""

    @staticmethod
    def forward(rhs: Tensor, scale: Tensor, shift: Tensor, solver: ToeplitzSolver) -> Tensor:
        return solver._solution(rhs, scale, shift).values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _rhs, scale, shift, ctx.solver = inputs
        ctx.save_for_backward(output, scale, shift)
        ctx.save_for_forward(output, scale, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift = ctx.saved_tensors
        back = _Solve.apply(grad, scale, shift, ctx.solver)
        _, by_scale, by_shift, _ = ctx.needs_input_grad
        return (
            back,
            -(back * ctx.solver._product(x)).sum(dim=-1) if by_scale else None,
            -(back * x).sum(dim=-1) if by_shift else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, rhs: Tensor | None, scale: Tensor | None, shift: Tensor | None, _: None):
        x, own_scale, own_shift = ctx.saved_tensors
        total = torch.zeros_like(x) if rhs is None else rhs
        if scale is not None:
            total = total - scale[:, None] * ctx.solver._product(x)
        if shift is not None:
            total = total - shift[:, None] * x
        return _Solve.apply(total, own_scale, own_shift, ctx.solver)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, rhs: Tensor, scale: Tensor, shift: Tensor, solver: Any):
        """The mapped axis becomes rows."""
        given = zip((rhs, scale, shift), in_dims[:3], strict=True)
        parts = [
            x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0)
            for x, at in given
        ]
        found = _Solve.apply(*(x.flatten(0, 1) for x in parts), solver)
        return found.view(parts[0].shape), 0


class _LogDeterminant(torch.autograd.Function):
    """log det (q Γ + w I), with its first derivatives."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, shift: Tensor, column: Tensor) -> Tensor:
        columns = scale[:, None] * column
        columns[:, 0] += shift
        errors, predictor = _durbin(columns)
        ctx.save_for_backward(scale, shift, errors[:, -1], predictor)
        ctx.variance = column[0]
        return errors.log().sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, error, predictor = ctx.saved_tensors
        size = predictor.shape[-1]
        # the trace of the inverse, by the formula of Gohberg and Semencul
        weights = size - 2 * torch.arange(size, device=scale.device)
        trace = (weights * predictor**2).sum(dim=-1) / error
        by_scale = torch.where(
            scale > 0, (size - shift * trace) / scale, size * ctx.variance / shift
        )
        return grad * by_scale, grad * trace, None


def _durbin(columns: Tensor) -> tuple[Tensor, Tensor]:
    r"""Variances of the errors of the best linear predictions, and the last predictor.

    Of :math:`x_k` from all before it; their product is the determinant (Durbin 1960; Golub and Van
    Loan 2013, Section 4.7).

    Args:
        columns: of the matrices, (rows, N).

    Returns:
        (rows, N), and (1, a_1, …, a_{N−1}) in (rows, N).

    Raises:
        NotPSDError: if a variance is not positive.
    """
    size, back = columns.shape[-1], columns.flip(-1)
    errors, predictor = torch.empty_like(columns), torch.zeros_like(columns)
    errors[:, 0], predictor[:, 0] = columns[:, 0], 1
    for k in range(1, size):
        known = predictor[:, :k]
        share = -torch.linalg.vecdot(known, back[:, size - 1 - k : size - 1]) / errors[:, k - 1]
        predictor[:, 1 : k + 1] += share[:, None] * known.flip(-1)
        errors[:, k] = errors[:, k - 1] * (1 - share**2)
    if not (errors > 0).all():
        raise NotPSDError(
            "a determinant needs a positive definite matrix, but a linear prediction has an error"
            f" of variance {errors.min().item():.3g}: a larger diffusion step, or a multiple of the"
            " identity, makes it one"
        )
    return errors, predictor


def _levels(scale: float | Tensor, shift: float | Tensor, device: torch.device) -> list[Tensor]:
    """Both in float64, made on the device: a number that is copied there would wait for it."""
    return [
        as_real(name, level).to(device, torch.float64)
        if isinstance(level, Tensor)
        else torch.full((), level, dtype=torch.float64, device=device)
        for name, level in (("scale", scale), ("shift", shift))
    ]


def _circulant(column: Tensor, preconditioner: str) -> Tensor:
    """The first row of the circulant of the same size."""
    if preconditioner == "strang":
        return _mirrored(column, len(column))
    index = torch.arange(len(column), device=column.device)
    # γ_{N−j} in the other order, and anything for j = 0
    return ((len(column) - index) * column + index * column[-index]) / len(column)


def _mirrored(column: Tensor, size: int) -> Tensor:
    """The first row of a circulant: the lags there and back, those that are not known as the last.

    From 2N − 1 on its corner is the Toeplitz matrix.
    """
    index = torch.arange(size, device=column.device)
    return column[torch.minimum(index, size - index).clamp(max=len(column) - 1)]


def _filtered(x: Tensor, symbol: Tensor, size: int) -> Tensor:
    """The corner of a circulant times x, by transforms."""
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * symbol, n=size)[..., : x.shape[-1]]


def _symbol(row: Tensor) -> Tensor:
    """The eigenvalues of a symmetric circulant; half of them, the others are the same."""
    return torch.fft.rfft(row).real
