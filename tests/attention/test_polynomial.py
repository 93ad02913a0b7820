"""Polynomial attention: against dense references, within its bounds, and almost linear."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, seeded, seeds
from tolerances import assert_at_most, assert_float32, assert_identity
from torch.utils.flop_counter import FlopCounterMode

from gptheory.attention import (
    attention_gradient,
    exact_attention_gradient,
    exp_polynomial,
    logit_bound,
    monomials,
    poly_attention,
)
from gptheory.attention.polynomial import BeyondRangeWarning, DenseIsCheaperWarning
from gptheory.measures import MemoryMeter
from gptheory.studies import growth_exponent
from gptheory.support.rounding import gamma

F64 = torch.float64
LENGTHS = [2**e for e in range(11, 17)]


def uniform(*shape, seed=0, dtype=F64, bound=1.0):
    return bound * (2 * torch.rand(*shape, generator=seeded(seed), dtype=F64) - 1).to(dtype)


def softmax_attention(q, k, v, scale):
    return (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v


def dense_reference(q, k, v, polynomial, scale):
    """The L × L map of P itself, by numpy's evaluation of the polynomial."""
    logits = (scale * q @ k.transpose(-1, -2)).numpy()
    maps = torch.from_numpy(sum(c * logits**m for m, c in enumerate(polynomial.coefficients)))
    return maps @ v / maps.sum(-1, keepdim=True)


def without_advice(call, *args, **kwargs):
    """Small tests have ranks above L; what the warning says is tested where it belongs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DenseIsCheaperWarning)
        return call(*args, **kwargs)


# ---- the forward pass -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["minimax", "taylor"])
@pytest.mark.parametrize(("dim", "degree"), [(1, 6), (2, 3), (3, 5), (4, 6)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_dense_map_of_the_polynomial(kind, dim, degree, scale):
    q, k = uniform(2, 64, dim, seed=1), uniform(2, 64, dim, seed=2)
    v = uniform(2, 64, 5, seed=3)
    factor = 1 / dim if scale is None else scale
    radius = logit_bound(q, k, factor)
    polynomial = exp_polynomial(degree, radius, kind)
    for chunk in (64, 7, 1000):
        output = without_advice(
            poly_attention, q, k, v, degree, scale=scale, kind=kind, chunk=chunk
        )
        reference = dense_reference(q, k, v, polynomial, factor)
        assert (output - reference).abs().max() <= 1e-12


@pytest.mark.statement("HWLSL Problem 2", "HWLSL Proposition 4.2")
@pytest.mark.parametrize("corners", [False, True])
def test_error_at_the_bar_and_its_rate(corners):
    """d = 4, B = 1: at most 1e-6 at g = 6, falling like R^{g+1} / (2^g (g+1)!), not zero at g=2."""
    q, k, v = (uniform(1024, 4, seed=s) for s in (1, 2, 3))
    if corners:
        q, k, v = q.sign(), k.sign(), v.sign()
    exact = softmax_attention(q, k, v, 1 / 4)
    errors = [
        (poly_attention(q, k, v, g, radius=1.0) - exact).abs().max().item() for g in range(2, 9)
    ]
    assert errors[4] <= 1e-6
    assert errors[0] > 1e-5
    predicted = [1 / (2**g * math.factorial(g + 1)) for g in range(2, 9)]
    shares = [error / rate for error, rate in zip(errors, predicted, strict=True)]
    assert all(1e-3 < share < 1 for share in shares), shares
    # over six degrees the error falls as predicted within a factor of 1.5 a degree
    fall, expected = math.log(errors[0] / errors[-1]), math.log(predicted[0] / predicted[-1])
    assert abs(fall - expected) < 6 * math.log(1.5)
    for g, error in zip(range(2, 9), errors, strict=True):
        assert_at_most(error, exp_polynomial(g, 1.0).error_bound * v.abs().max().item())


@given(
    seed=seeds, dim=st.integers(1, 4), degree=st.integers(0, 8), reach=st.floats(0.05, 2.5),
    corners=st.booleans(), kind=st.sampled_from(["minimax", "taylor"]),
)  # fmt: skip
def test_bound_holds_on_random_inputs(seed, dim, degree, reach, corners, kind):
    """100 draws of each a batch of 6: random, or all entries at ±B; one of the values huge."""
    q, k, v = (uniform(6, 12, dim, seed=seed + s) for s in range(3))
    if corners:
        q, k = q.sign(), k.sign()
    scale = reach / logit_bound(q, k, 1.0)
    v[0] *= 1e6
    try:
        polynomial = exp_polynomial(degree, reach, kind)
    except ValueError:
        return
    output = without_advice(
        poly_attention, q, k, v, degree, scale=scale, radius=reach * (1 + 1e-9), kind=kind
    )
    error = (output - softmax_attention(q, k, v, scale)).abs().amax((1, 2))
    size = v.abs().amax((1, 2))
    # the softmax beside it: a logit of dim + 1 operations, its exponential, two sums of 12 keys
    rounding = gamma(2 * (reach * (dim + 1) + 1 + 12))
    bound = (polynomial.error_bound + rounding) * size
    assert (error <= bound).all()
    assert polynomial.error_bound <= polynomial.relative_error / (1 - polynomial.relative_error)


@pytest.mark.parametrize("degree", range(7))
@pytest.mark.parametrize("radius", [0.2, 1.0, 3.0])
def test_bound_is_attained_by_the_worst_input_and_never_passed(degree, radius):
    """Logits where the error is ±ε, values ±1 with its sign: within 2 % of the bound, below it."""
    polynomial = exp_polynomial(degree, radius)
    grid = torch.linspace(-radius, radius, 20_001, dtype=F64)
    ratio = polynomial(grid) / grid.exp() - 1
    high, low = grid[ratio.argmax()], grid[ratio.argmin()]
    eps = polynomial.relative_error
    mass = (math.sqrt(1 - eps**2) - 1) / eps  # the mean of the values that is moved furthest
    best = 0.0
    for m in (mass, mass / 2, 0.0, 0.5, -0.5):
        share = (1 + m) / 2 * torch.exp(-high) / ((1 - m) / 2 * torch.exp(-low))
        count = 3000
        ones = max(1, min(count - 1, round(count * (share / (1 + share)).item())))
        k = torch.cat([high.expand(ones), low.expand(count - ones)])[:, None]
        v = torch.cat([torch.ones(ones), -torch.ones(count - ones)]).to(F64)[:, None]
        q = torch.ones(1, 1, dtype=F64)
        output = poly_attention(q, k, v, degree, scale=1.0, radius=radius * (1 + 1e-12))
        # softmax over two distinct keys, in closed form: one over 3000 would itself be rounded
        exact = torch.tanh((high - low + math.log(ones / (count - ones))) / 2)
        moved = (output - exact).abs().item()
        assert moved <= polynomial.error_bound * (1 + 1e-6)
        best = max(best, moved)
    assert best >= 0.98 * polynomial.error_bound


def test_default_scale_is_one_over_dim_and_torch_agrees_with_a_given_one():
    q, k, v = (uniform(2, 3, 300, 2, seed=s) for s in (1, 2, 3))
    assert torch.equal(
        poly_attention(q, k, v, 5, radius=1.0), poly_attention(q, k, v, 5, scale=0.5, radius=1.0)
    )
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert (poly_attention(q, k, v, 12, scale=2**-0.5) - theirs).abs().max() < 1e-7


def test_logit_bound_bounds_and_never_exceeds_the_papers():
    """Every logit is below it, one long key in any chunk included; at most B² where λ = 1/d."""
    q, k = uniform(2, 600, 3, seed=1), uniform(2, 1200, 3, seed=2)
    largest = (q @ k.mT / 3).abs().max().item()
    assert largest <= logit_bound(q, k, 1 / 3) <= 1
    for place in (0, 600, 1199):
        long = k.clone()
        long[1, place] = 50 * q[1, 7]
        reach = (q @ long.mT / 3).abs().max().item()
        assert_at_most(reach, logit_bound(q, long, -1 / 3))
    parallel = q[0, :1].expand(1, 1, 3)  # Cauchy-Schwarz is an equality there
    assert_identity(logit_bound(parallel, parallel, 0.5), parallel.square().sum() / 2)
    corners = torch.ones(5, 3, dtype=F64)
    assert_identity(logit_bound(corners, -corners, 1 / 3), 1.0)


def test_queries_and_keys_may_differ_in_number():
    q, k, v = uniform(50, 2, seed=1), uniform(700, 2, seed=2), uniform(700, 3, seed=3)
    assert_identity(poly_attention(q, k, v, 14), softmax_attention(q, k, v, 0.5))
    assert poly_attention(q[:1], k, v, 4).shape == (1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("device", DEVICES)
def test_keeps_dtype_and_device(dtype, device):
    q, k, v = (uniform(300, 3, seed=s, dtype=dtype).to(device) for s in (1, 2, 3))
    output = poly_attention(q, k, v, 6)
    assert (output.dtype, output.device.type) == (dtype, device)
    double = poly_attention(q.double(), k.double(), v.double(), 6)
    (assert_identity if dtype == F64 else assert_float32)(output, double)


def test_monomials_are_all_of_them_in_order():
    x = uniform(5, 3)
    exponents = sorted(
        (a for a in product(range(5), repeat=3) if sum(a) <= 4),
        key=lambda a: (sum(a), tuple(-i for i in a)),
    )
    expected = torch.stack([(x ** torch.tensor(a)).prod(dim=1) for a in exponents])
    assert_identity(monomials(x, 4), expected)
    assert monomials(x[None, None], 4).shape == (1, 1, math.comb(7, 4), 5)


def test_derivatives_agree_with_finite_differences_and_with_the_dense_map():
    q, k, v = (uniform(9, 2, seed=s).requires_grad_() for s in (1, 2, 3))

    def call(q, k, v):
        return without_advice(poly_attention, q, k, v, 4, radius=1.0, chunk=4)

    assert torch.autograd.gradcheck(call, (q, k, v))
    polynomial = exp_polynomial(4, 1.0)
    maps = polynomial(q @ k.T / 2)
    expected = torch.autograd.grad(
        (maps @ v / maps.sum(-1, keepdim=True)).square().sum(), (q, k, v)
    )
    for ours, theirs in zip(
        torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v)), expected, strict=True
    ):
        assert_identity(ours, theirs)
    only_q = uniform(9, 2, seed=1).requires_grad_()
    assert call(only_q, k.detach(), v.detach()).requires_grad
    with torch.no_grad():
        assert not call(q, k, v).requires_grad


# ---- the gradient ---------------------------------------------------------------------------


def conditional(n=300, m=400, dim=4, width=3, seed=0, dtype=F64):
    """A_1 ≠ A_2, X whose columns sum to at most 1 (so entries of A_1 X stay in [−1, 1]), H, E."""
    left, right = uniform(n, dim, seed=seed), uniform(m, dim, seed=seed + 1)
    weight = uniform(dim, dim, seed=seed + 2)
    weight = weight / weight.abs().sum(0)
    values, target = uniform(m, width, seed=seed + 3), uniform(n, width, seed=seed + 4)
    return [x.to(dtype) for x in (left, right, weight, values, target)]


def autograd_gradient(left, right, weight, values, target, scale=None):
    scale = 1 / left.shape[1] if scale is None else scale
    weight = weight.clone().requires_grad_()
    maps = torch.softmax(scale * left @ weight @ right.T, dim=1)
    (0.5 * (maps @ values - target).square().sum()).backward()
    return weight.grad


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.statement("HWLSL Problem 1", "HWLSL Theorem 4.1", "HWLSL Remark 4.1")
@pytest.mark.parametrize("seed", range(5))
def test_gradient_agrees_with_autograd(seed):
    problem = conditional(seed=10 * seed)
    expected = autograd_gradient(*problem)
    assert_identity(exact_attention_gradient(*problem), expected)
    errors = [relative(attention_gradient(*problem, g, radius=1.0), expected) for g in (2, 4, 6)]
    assert errors[2] <= 5e-6
    assert errors[0] > 1e-4 and errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.statement("HWLSL Remark 4.1")
@pytest.mark.parametrize("scale", [None, 0.2])
def test_gradient_of_self_attention_with_any_scale(scale):
    left, _, weight, _, target = conditional(n=300, m=300)
    problem = (left, left, weight, uniform(300, 3, seed=9), target)
    expected = autograd_gradient(*problem, scale)
    assert_identity(exact_attention_gradient(*problem, scale), expected)
    assert relative(attention_gradient(*problem, 6, scale), expected) < 5e-6


@pytest.mark.statement("HWLSL Problem 1", "HWLSL Definition 4.1")
@pytest.mark.parametrize("seed", range(3))
def test_the_printed_gradient_belongs_to_the_printed_loss(seed):
    """(G.3) with p row by row as in Definition G.7, beside finite differences of (G.1): no scale.

    Their error: truncation, step² / 6 times a third derivative (halving the step divides it by 4),
    and rounding, u times the loss over the step.
    """
    left, right, weight, values, target = conditional(40, 30, 3, 2, seed=10 * seed)

    def loss(x):
        maps = (left @ x @ right.T).exp()
        return ((maps / maps.sum(1, keepdim=True)) @ values - target).square().sum() / 2

    def differences(step):
        nudges = step * torch.eye(9, dtype=F64).view(9, 3, 3)
        slopes = [(loss(weight + e) - loss(weight - e)) / (2 * step) for e in nudges]
        return torch.stack(slopes).view(3, 3)

    f = (left @ weight @ right.T).softmax(1)
    q = (f @ values - target) @ values.T
    rows = [(torch.diag(a) - torch.outer(a, a)) @ b for a, b in zip(f, q, strict=True)]
    printed = left.T @ torch.stack(rows) @ right
    assert_identity(exact_attention_gradient(left, right, weight, values, target, 1.0), printed)
    errors = [relative(differences(step), printed) for step in (2e-3, 1e-3)]
    assert errors[1] < 1e-6 and 3.9 < errors[0] / errors[1] < 4.1
    assert relative(printed / 3, differences(1e-3)) == pytest.approx(2 / 3, abs=1e-5)


def test_the_printed_slips_are_not_small():
    """ρ on the columns (Lemma G.7); normalised over queries (Definition 4.1 to the letter)."""
    left, right, weight, values, target = conditional(40, 40, 3, 2)
    printed = exact_attention_gradient(left, right, weight, values, target, 1.0)
    f = (left @ weight @ right.T).softmax(1)
    q = (f @ values - target) @ values.T
    columns = left.T @ (f * q - f * (f * q).sum(1)) @ right
    unknown = weight.clone().requires_grad_()
    maps = (left @ unknown @ right.T).softmax(1).T
    (literal,) = torch.autograd.grad((maps @ values - target).square().sum() / 2, unknown)
    assert relative(columns, printed) > 0.05 and relative(literal, printed) > 0.5


def test_gradient_equals_autograd_through_the_polynomial_map():
    """The low-rank chain itself is exact: it is the softmax formula with f from the polynomial."""
    left, right, weight, values, target = conditional()
    polynomial = exp_polynomial(3, 1.0)
    maps = polynomial(left @ weight @ right.T / 4)
    f = maps / maps.sum(1, keepdim=True)
    q = (f @ values - target) @ values.T
    p = f * q - (f * q).sum(1, keepdim=True) * f
    expected = left.T @ p @ right / 4
    assert_identity(
        attention_gradient(left, right, weight, values, target, 3, radius=1.0), expected
    )


@pytest.mark.statement("HWLSL Theorem 4.1")
@given(seed=seeds, degree=st.integers(1, 6), size=st.floats(0.1, 10))
def test_gradient_bound_holds(seed, degree, size):
    left, right, weight, values, target = conditional(20, 15, 2, 3, seed)
    values, target = size * values, size * target
    problem = (left, right, weight, values, target)
    polynomial = exp_polynomial(degree, 1.0)
    ours = without_advice(attention_gradient, *problem, degree, radius=1.0)
    maps = torch.softmax(left @ weight @ right.T / 2, dim=1)
    gamma = (maps @ values - target).abs().sum(1).max()
    h, a = values.abs().max(), right.abs().max()
    factor = polynomial.error_bound * h * a * (3 * gamma + 2 * values.shape[1] * h) / 2
    bound = factor * left.abs().sum(0)[:, None]
    error = (ours - exact_attention_gradient(*problem)).abs()
    assert (error <= bound * (1 + 1e-6) + 1e-12 * size**2).all()


# ---- what is allocated, and what is multiplied ------------------------------------------------


def metered(call, *args, **options):
    with MemoryMeter() as meter:
        call(*args, **options)
    return meter


@pytest.mark.statement("HWLSL Proposition 4.2")
def test_memory_grows_linearly():
    largest, extra = [], []
    for n in LENGTHS:
        q, k, v = (uniform(n, 4, seed=s, dtype=torch.float32) for s in range(3))
        meter = metered(poly_attention, q, k, v, 4, radius=1.0)
        largest.append(meter.largest)
        extra.append(meter.peak - 4 * n * 4)  # the output is n × 4 numbers of 4 bytes
    assert growth_exponent(LENGTHS, largest) <= 1.05
    assert largest[-1] <= LENGTHS[-1] * 4  # of the size of the output, and no multiple of it
    assert len(set(extra)) == 1 and extra[0] < 10**6


@pytest.mark.statement("HWLSL Theorem 4.1")
def test_memory_and_work_of_the_gradient_grow_linearly():
    lengths, largest, flops = [2**e for e in (10, 11, 12)], [], []
    for n in lengths:
        q, k, v, target = (uniform(n, 4, seed=s, dtype=torch.float32) for s in range(4))
        problem = (q, k, torch.eye(4), v, target)
        largest.append(metered(attention_gradient, *problem, 4, radius=1.0).largest)
        with FlopCounterMode(display=False) as counter:
            attention_gradient(*problem, 4, radius=1.0)
        flops.append(counter.get_total_flops())
    assert growth_exponent(lengths, largest) <= 1.05
    assert 0.95 < growth_exponent(lengths, flops) <= 1.05


def test_the_meter_sees_a_quadratic_tensor():
    sizes = [64, 128, 256]
    meters = [metered(softmax_attention, *(uniform(n, 4) for _ in range(3)), 0.25) for n in sizes]
    assert [m.largest for m in meters] == [n * n for n in sizes]
    assert growth_exponent(sizes, [m.peak for m in meters]) > 1.9
    assert all(m.peak >= 8 * n * n for m, n in zip(meters, sizes, strict=True))


def test_backward_does_not_keep_the_monomials():
    n = 2**12
    q, k, v = (uniform(n, 4, seed=s, dtype=torch.float32).requires_grad_() for s in range(3))
    with MemoryMeter() as meter:
        poly_attention(q, k, v, 4, radius=1.0).square().sum().backward()
    assert meter.peak < 2 * 4 * 70 * n / 3  # both sets of monomials would be 2 · 4 · 70 n bytes


def test_long_sequences_fit_in_two_gigabytes():
    """L = 2^17: a map would take 64 GB. A child counts all of its memory, torch included."""
    code = (
        "import torch\n"
        "from benchmarks.memory import peak_resident_bytes\n"
        "from gptheory.attention import poly_attention\n"
        "q, k, v = (torch.rand(2**17, 4) for _ in range(3))\n"
        "assert torch.isfinite(poly_attention(q, k, v, 4)).all()\n"
        "print(peak_resident_bytes())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert 5e7 < int(run.stdout) < 2e9


# ---- bad input ------------------------------------------------------------------------------


def test_logits_beyond_the_range_are_refused_or_warned_about():
    q, k, v = (uniform(300, 2, seed=s) for s in (1, 2, 3))
    with pytest.raises(ValueError, match=r"may reach .* certified up to 0.1"):
        poly_attention(q, k, v, 4, radius=0.1)
    with pytest.raises(ValueError, match="certified up to"):
        attention_gradient(q, k, 5 * torch.eye(2, dtype=F64), v, v, 4, radius=1.0)
    with pytest.warns(BeyondRangeWarning, match="may reach"):
        output = poly_attention(q, k, v, 4, radius=0.1, beyond="warn")
    assert output.shape == v.shape
    with pytest.raises(ValueError, match="beyond must be"):
        poly_attention(q, k, v, 4, beyond="ignore")


def test_a_polynomial_without_a_certificate_is_refused():
    q = torch.full((300, 1), 2.0, dtype=F64)
    with pytest.raises(ValueError, match="below 1"):
        poly_attention(q, q, q, 3, radius=4.0 + 1e-9, kind="taylor")
    with pytest.raises(ValueError, match="below 1"):
        poly_attention(4 * q, q, q, 3, kind="minimax", scale=4.0)
    ten = torch.full((300, 1), 10**0.5, dtype=torch.float32)
    with pytest.raises(ValueError, match="use float64"):
        poly_attention(ten, ten, ten, 14)
    assert torch.isfinite(poly_attention(*[ten.double()] * 3, 14)).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"degree": -1}, "degree must be an integer >= 0"),
        ({"degree": 2.5}, "degree must be an integer >= 0"),
        ({"radius": 0.0}, "radius must be a finite number > 0"),
        ({"chunk": 0}, "chunk must be an integer >= 1"),
        ({"kind": "chebyshev"}, "kind must be one of"),
        ({"k": torch.zeros(300, 3, dtype=F64)}, "expected q"),
        ({"k": torch.zeros(299, 2, dtype=F64)}, "expected q"),
        ({"v": torch.zeros(2, 300, 2, dtype=F64)}, "expected q"),
        ({"v": torch.zeros(300, 2)}, "must all be float32 or all float64"),
        ({"q": torch.zeros(0, 2, dtype=F64)}, "expected q"),
        ({"q": torch.zeros(300, 0, dtype=F64)}, "expected q"),
        ({"q": torch.tensor(1.0, dtype=F64)}, "expected q"),
        ({"q": torch.full((300, 2), math.nan, dtype=F64)}, "must be finite"),
        ({"k": torch.full((300, 2), math.inf, dtype=F64)}, "must be finite"),
        ({n: torch.zeros(300, 2).half() for n in "qkv"}, "must all be float32 or all float64"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, match):
    given = {"degree": 4, **{name: uniform(300, 2, seed=1) for name in "qkv"}, **change}
    with pytest.raises(ValueError, match=match):
        poly_attention(**given)


def test_gradient_refuses_shapes_that_do_not_fit():
    problem = conditional()
    for place, wrong in (
        (0, torch.zeros(300, 5)),
        (2, torch.zeros(4, 3)),
        (4, torch.zeros(400, 3)),
    ):
        bad = [wrong.double() if i == place else x for i, x in enumerate(problem)]
        for call in (attention_gradient, exact_attention_gradient):
            with pytest.raises(ValueError, match="expected left"):
                call(*bad, *([4] if call is attention_gradient else []))
    empty, point = torch.zeros(3, 0).double(), torch.tensor(1.0).double()
    for bad in ([empty, empty, torch.zeros(0, 0).double(), empty, empty], [point, *problem[1:]]):
        with pytest.raises(ValueError, match="expected left"):
            attention_gradient(*bad, 4)
        with pytest.raises(ValueError, match="expected left"):
            exact_attention_gradient(*bad)


def test_rank_above_the_length_is_warned_about():
    q = uniform(69, 4)
    with pytest.warns(DenseIsCheaperWarning, match=r"rank 70 .* exceeds the 69 keys"):
        poly_attention(q, q, q, 4)
    longer = uniform(70, 4)
    poly_attention(longer, longer, longer, 4)


def test_zero_queries_average_the_values():
    q, v = torch.zeros(300, 2, dtype=F64), uniform(300, 2)
    assert_identity(poly_attention(q, q, v, 2), v.mean(0).expand(300, 2))
