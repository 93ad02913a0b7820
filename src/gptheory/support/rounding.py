r"""How far rounding reaches: every limit below which a number counts as rounding comes from here.

A floating-point operation returns its exact result times :math:`1 + \delta`,
:math:`|\delta| \le u`, u the unit roundoff. Whatever is built from operations errs by u times a
number of operations times a magnitude (Higham 2002, *Accuracy and Stability of Numerical
Algorithms*, 2nd ed.), so a limit follows from the precision in which a number was made, never from
what looked small once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SUMMED = 2**16  # terms in an entry of a covariance that was computed: what its limit allows for


def unit_roundoff(dtype: torch.dtype) -> float:
    """u, half the distance from 1 to the next number: 1e-16, 6e-8, 5e-4 (half), 4e-3 (bfloat16).

    Integers are exact, and computed with in float64: they have its u.
    """
    return torch.finfo(dtype if dtype.is_floating_point else torch.float64).eps / 2


def gamma(terms: float, dtype: torch.dtype = torch.float64) -> float:
    r""":math:`\gamma_n = nu/(1 - nu)`: n operations err by that at most, relatively (Higham, 3.1).

    Raises:
        ValueError: for nu >= 1, of which no operation is worth anything.
    """
    error = terms * unit_roundoff(dtype)
    if error >= 1:
        raise ValueError(f"{terms:g} operations in {dtype} may lose everything: expected n u < 1")
    return error / (1 - error)


def spectrum_rounding(
    values: Tensor, dtype: torch.dtype = torch.float64, terms: float = 0
) -> Tensor:
    r"""What rounding may do to an eigenvalue of a symmetric matrix A that arrived in ``dtype``,

    .. math:: \left(u + \sqrt m\,u_+\right)\|A\|_F + \gamma_{8n}\,\|A\|_2.

    An error E moves no eigenvalue by more than :math:`\|E\|_2 \le \|E\|_F` (Weyl), and E has three
    parts. Entries that are rounded to ``dtype`` have :math:`|E_{ij}| \le u|a_{ij}|`. Entries that
    are sums of m products err by :math:`\sqrt m\,u_+` (Higham and Mary 2019: the signs of roundings
    are as good as random, else m would stand there), and :math:`u_+` is that of float32 where the
    dtype is narrower, since products of matrices add in float32 then. Eigenvalues are computed in
    float64 as those of a matrix that is off by :math:`p(n)u\|A\|_2`, p a modest multiple of n.

    Args:
        values: computed eigenvalues of A, (..., n).
        dtype: the precision in which A was made.
        terms: m, 0 for entries that were rounded and nothing else.

    Returns:
        (..., 1).
    """
    accumulated = min(unit_roundoff(dtype), unit_roundoff(torch.float32))
    entries = unit_roundoff(dtype) + math.sqrt(terms) * accumulated
    solver = gamma(8 * values.shape[-1])
    largest = values.abs().amax(dim=-1, keepdim=True)
    return entries * values.norm(dim=-1, keepdim=True) + solver * largest
