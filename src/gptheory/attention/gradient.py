"""The gradient of attention in almost-linear time, beside the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.precision import full_precision
from ..support.validation import require_finite
from .polynomial import poly_attention, require_comparable


@full_precision()
def attention_gradient(
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    values: Tensor,
    target: Tensor,
    degree: int,
    scale: float | None = None,
    **options: object,
) -> Tensor:
    r"""Gradient of a one-layer attention loss in almost-linear time.

    For :math:`\ell(X) = \tfrac12 \|fH - E\|^2` with :math:`f = \mathrm{softmax}(\lambda A_1 X
    A_2^\top)`, rows being tokens,

    .. math:: \nabla_X \ell = \lambda\,A_1^\top p\,A_2, \qquad
        p = p_1 - p_2 = f \circ (c H^\top) - \mathrm{diag}(\rho) f, \qquad
        c = fH - E, \quad \rho_i = \langle c_i, (fH)_i\rangle.

    With :math:`f \approx U_1 V_1^\top` both parts have low rank: :math:`p_1 = (U_1 \bullet c)
    (V_1 \bullet H)^\top`, • the row-wise Khatri-Rao product, and :math:`p_2 = (\mathrm{diag}(\rho)
    U_1) V_1^\top`. Multiplied by A_2 from the right they are contractions of
    :math:`f\,[H,\ A_2,\ H \bullet A_2]`, which is :func:`.poly_attention` with wider values.

    Source: HWLSL Problem 1; HWLSL Theorem 4.1; HWLSL Lemma G.4; HWLSL Lemma G.5;
    HWLSL Lemma G.6; HWLSL Lemma G.7. In print λ = 1, in the loss and in its gradient,
    which is right; only Lemma G.7 puts ρ on the columns. The default 1/d is that of the theorem
    which the paper cites (chapter 10 says why it is needed).

    Args:
        left, right: :math:`A_1` (L, d) and :math:`A_2` (M, d); the same for unconditional
            attention, different for conditional.
        weight: X, (d, d), the product of the query and the key matrix.
        values: H, (M, d_v).
        target: E, (L, d_v).
        degree: g.
        scale: λ, by default 1/d; 1 is the loss as printed.
        options: of :func:`.poly_attention`.

    Returns:
        (d, d), dtype and device of ``left``.

    Raises:
        ValueError: as :func:`.poly_attention`, or for shapes that do not fit.

    Accuracy: with β = ``error_bound`` of the polynomial, h, a the largest entries of H and A_2, and
    :math:`\gamma = \max_i \|c_i\|_1`, an entry in row b is off by at most
    :math:`\lambda\,\beta\,h\,a\,(3\gamma + 2 d_v h) \sum_i |A_{1,ib}|`.
    """
    _require_gradient(left, right, weight, values, target)
    scale = 1 / left.shape[-1] if scale is None else scale
    products = (values[:, :, None] * right[:, None]).flatten(1)  # H • A_2, (M, d_v d)
    wide = torch.cat([values, right, products], dim=1)
    mixed = poly_attention(left @ weight, right, wide, degree, scale, **options)
    sizes = [values.shape[1], right.shape[1], products.shape[1]]
    output, keys, pairs = mixed.split(sizes, dim=1)  # f H, f A_2, f (H • A_2)
    residual = output - target  # c
    rho = (residual * output).sum(dim=1, keepdim=True)
    p1 = (residual[:, None] @ pairs.unflatten(1, (sizes[0], sizes[1])))[:, 0]  # p_1 A_2, (L, d)
    return scale * left.T @ (p1 - rho * keys)


@full_precision()
def exact_attention_gradient(
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    values: Tensor,
    target: Tensor,
    scale: float | None = None,
) -> Tensor:
    """The same gradient from the L × M maps f and p themselves: the reference, quadratic in L.

    Source: HWLSL Definition 4.1; HWLSL Remark 4.1; HWLSL Lemma G.1; HWLSL Lemma G.2;
    HWLSL Definition G.1; HWLSL Definition G.2; HWLSL Definition G.3; HWLSL Definition G.4;
    HWLSL Definition G.5; HWLSL Definition G.6; HWLSL Definition G.7.

    Takes and returns what :func:`attention_gradient` does, without the polynomial's arguments.
    """
    _require_gradient(left, right, weight, values, target)
    scale = 1 / left.shape[-1] if scale is None else scale
    f = (scale * left @ weight @ right.T).softmax(dim=1)
    q = (f @ values - target) @ values.T
    rho = (f * q).sum(dim=1, keepdim=True)
    return scale * left.T @ (f * q - rho * f) @ right


def _require_gradient(
    left: Tensor, right: Tensor, weight: Tensor, values: Tensor, target: Tensor
) -> None:
    """Raise unless shapes, dtypes and devices fit together, and all entries are finite."""
    given = {"left": left, "right": right, "weight": weight, "values": values, "target": target}
    require_comparable(**given)
    shapes = [tuple(x.shape) for x in given.values()]
    fits = all(len(shape) == 2 and min(shape) > 0 for shape in shapes)
    if fits:
        (n, d), (m, width) = shapes[0], values.shape
        fits = shapes == [(n, d), (m, d), (d, d), (m, width), (n, width)]
    if not fits:
        raise ValueError(
            "expected left (L, d), right (M, d), weight (d, d), values (M, d_v) and target"
            f" (L, d_v), got {', '.join(map(str, shapes))}"
        )
    if len({x.dtype for x in given.values()}) > 1:
        dtypes = ", ".join(f"{name} of {x.dtype}" for name, x in given.items())
        raise ValueError(f"{', '.join(given)} must have one dtype, got {dtypes}")
    for name, x in given.items():
        require_finite(name, x)
