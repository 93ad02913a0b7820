"""Attention that is certified by construction: its map, its gradients, its bounds, its memory."""

from __future__ import annotations

import math
import re

import pytest
import torch
from settings import default_dtype, products
from strategies import DEVICES, process, seeded
from tolerances import assert_at_most, assert_float32, assert_identity
from torch.utils.flop_counter import FlopCounterMode

from gptheory.attention.certified import CertifiedAttention, NormalisedAttention
from gptheory.attention.choice import attention_layer
from gptheory.attention.exponential import exp_polynomial
from gptheory.attention.layer import Attention
from gptheory.attention.lowrank import CHUNK, low_rank_attention
from gptheory.attention.window import WindowAttention
from gptheory.measures import MemoryMeter
from gptheory.networks import DiT
from gptheory.studies import growth_exponent
from gptheory.support.draws import weights_from
from gptheory.training import TrainConfig
from gptheory.training.loop import Training

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).to(dtype)


def on_sphere(*shape, radius, seed):
    """Columns of length √R: (…, h, N)."""
    x = normal(*shape, seed=seed)
    return x / x.norm(dim=-2, keepdim=True) * math.sqrt(radius)


def dense(q, k, v, polynomial):
    """The N × N map, forward and backward by autograd."""
    maps = polynomial(q.mT @ k)
    return (maps / maps.sum(-1, keepdim=True) @ v.mT).mT


@pytest.mark.parametrize(("dim", "degree", "width"), [(1, 5, 2), (2, 3, 2), (4, 4, 4), (3, 6, 1)])
@pytest.mark.parametrize("length", [1, 40, 1100])
def test_low_rank_attention_and_its_gradients_are_those_of_the_dense_map(
    dim, degree, width, length
):
    polynomial = exp_polynomial(degree, 2.0)
    q, k = (on_sphere(2, 3, dim, length, radius=2.0, seed=s) for s in (1, 2))
    v, slope = normal(2, 3, width, length, seed=3), normal(2, 3, width, length, seed=4)
    results = []
    for call in (
        lambda *x: low_rank_attention(*x, polynomial.coefficients),
        lambda *x: dense(*x, polynomial),
    ):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        output = call(*inputs)
        results.append((output, *torch.autograd.grad(output, inputs, slope)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * max(1.0, theirs.abs().max().item())


def layer(kind=CertifiedAttention, width=12, heads=3, **options):
    with weights_from(seeded(0)):
        return kind(width, heads, **options)


# ---- logits that cannot leave ------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("radius", [0.5, 2.0, 5.0])
def test_no_weights_move_a_logit_out_of_the_range(size, dtype, radius):
    own = layer(NormalisedAttention, radius=radius).to(dtype)
    with torch.no_grad():
        for weight in own.parameters():
            weight.mul_(size)
    y = normal(4, 30, 12, dtype=dtype)
    query, key, _ = own.query_key_value(y)
    for other in (key, query, -query):  # parallel ones reach it
        logits = own.logits(query, other)
        assert torch.isfinite(logits).all()
        assert logits.abs().max().item() <= radius
    if size >= 1:
        assert own.logits(query, query).max().item() > radius * (1 - 1e-3)
    assert own.largest_logit(y) <= radius


def test_output_is_within_the_certificate_of_normalised_softmax():
    y = 10 * normal(3, 50, 12)
    for radius, degree in ((1.0, 2), (2.0, 4), (3.0, 6), (4.0, 4)):
        own = layer(radius=radius, degree=degree).double()
        exact = layer(NormalisedAttention, radius=radius).double()
        exact.load_state_dict(own.state_dict())
        certificate = own.certificate()
        gap = (own.maps(y) - exact.maps(y)).abs().sum(-1).max()
        assert_at_most(gap.item(), certificate.error_bound)
        value = own.query_key_value(y)[2]
        moved = (own.mix(*own.query_key_value(y)) - exact.mix(*exact.query_key_value(y))).abs()
        assert_at_most(moved.max().item(), certificate.error_bound * value.abs().max().item())


def test_maps_are_those_of_the_layer():
    own, y = layer().double(), normal(2, 20, 12)
    assert_identity(own.attend(own.maps(y), y), own(y))
    assert own.maps(y).min() > 0


def test_every_argument_is_kept():
    model = DiT(3, 6, 16, 4, 1, attention="certified", radius=3.0, degree=6)
    assert (model.config["radius"], model.config["degree"]) == (3.0, 6)
    again = DiT(**model.config)
    assert again.blocks[0].attention.certificate() == model.blocks[0].attention.certificate()


@pytest.mark.parametrize("head", [1, 2, 7, 16, 64])
def test_rounding_leads_no_logit_out(head):
    """Parallel queries and keys of any direction and size are at R but for the margin, below it."""
    own = layer(NormalisedAttention, head, 1, radius=2.0)
    x = normal(1, 1, 4000, head, dtype=torch.float32) * 10 ** torch.linspace(-1, 9, 4000)[:, None]
    unit = own.normalised(x)
    reach = (unit * unit).sum(-1).double()[0, 0]
    assert reach.max() <= 2.0 and unit.double().square().sum(-1).max() <= 2.0
    assert reach[2000:].min() > 2.0 * (1 - 4 * (head + 12) * 2**-23)


def test_the_certificate_of_every_layer_holds_at_every_step_of_training():
    """At a learning rate that makes weights wild; what the layer promised before the first step."""
    model = DiT(2, 4, 8, 2, 2, attention="certified", radius=2.0, degree=4, generator=seeded(0))
    promised = [block.attention.certificate() for block in model.blocks]
    reached: list[float] = []

    def note(own: CertifiedAttention, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        reached.append(own.largest_logit(inputs[0]))
        assert own.certificate() in promised
        exact = own.products(*(own.normalised(x) for x in own.query_key_value(inputs[0])[:2]))
        assert exact.abs().max().item() <= own.radius
        gap = (own.maps(inputs[0]).double() - exact.double().softmax(-1)).abs().sum(-1).max().item()
        assert gap <= own.certificate().error_bound

    for block in model.blocks:
        block.attention.register_forward_hook(note)
    config = TrainConfig(steps=60, batch_size=4, learning_rate=0.5, evaluate_at=())
    before = model.blocks[0].attention.project.weight.norm().item()
    assert sum(1 for _ in Training(model, process(4, 2), config)) == 60
    assert model.blocks[0].attention.project.weight.norm().item() > 5 * before
    assert len(reached) == 60 * 2 and max(reached) <= 2.0 and min(reached) > 1.9


# ---- contexts ----------------------------------------------------------------------------------


def test_attention_is_computed_in_full_precision_whatever_the_context():
    own, y = layer(), normal(2, 700, 12, dtype=torch.float32)
    inputs = [x.detach().requires_grad_() for x in own.query_key_value(y)]
    results = []
    for context in (products("highest"), torch.autocast("cpu", torch.bfloat16), products("medium")):
        with context:
            mixed = own.mix(*inputs)
            results.append((mixed, *torch.autograd.grad(mixed.square().sum(), inputs)))
    for other in results[1:]:
        # bit for bit: the guard leaves the same kernels on the same shapes
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert own(y).dtype == torch.bfloat16  # projections obey the caller
        assert torch.isfinite(own.maps(y)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_keeps_dtype_and_device(device, dtype):
    own, y = layer().to(device, dtype), normal(2, 20, 12, dtype=dtype).to(device)
    output = own(y)
    assert (output.dtype, output.device.type) == (dtype, device)
    if dtype == torch.float32:
        assert_float32(output, layer().double()(y.cpu().double()))


def test_gradients_map_over_weights_and_over_cotangents():
    """vmap around attention, around its gradient, and gradients of many outputs at once."""
    inputs = [on_sphere(3, 2, 2, 9, radius=1.0, seed=s) for s in range(3)]
    coefficients = exp_polynomial(3, 1.0).coefficients

    def call(q, k, v):
        return low_rank_attention(q, k, v, coefficients)

    def slopes(q, k, v):
        return torch.func.grad(lambda *x: call(*x).sin().sum(), argnums=(0, 1, 2))(q, k, v)

    assert_identity(torch.vmap(call, (0, 0, 0))(*inputs), call(*inputs))
    assert_identity(torch.vmap(call, (1, 1, 1), 1)(*inputs), call(*inputs))
    alone = call(inputs[0], inputs[1][:1].expand(3, -1, -1, -1), inputs[2])
    assert_identity(torch.vmap(call, (0, None, 0))(inputs[0], inputs[1][0], inputs[2]), alone)
    for one, other in zip(torch.vmap(slopes)(*inputs), slopes(*inputs), strict=True):
        assert_identity(one, other)
    jacobian = torch.func.jacrev(call)(*inputs)
    reference = torch.func.jacrev(lambda q, k, v: dense(q, k, v, exp_polynomial(3, 1.0)))(*inputs)
    assert_identity(jacobian, reference)
    single = inputs[0].clone().requires_grad_()
    slope = torch.autograd.grad(call(single, *inputs[1:]).sum(), single, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once"):
        slope.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at its inputs
def test_compiled_networks_are_what_they_were():
    torch.compiler.reset()
    model = DiT(1, 600, 8, 2, 1, attention="certified", generator=seeded(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * normal(*weight.shape, dtype=torch.float32))
    v, slopes = normal(2, 600, 1, dtype=torch.float32), []
    for each in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        each(v, 0.3).square().sum().backward()
        slopes.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert_float32(slopes[1] / slopes[0].norm(), slopes[0] / slopes[0].norm())


# ---- what is allocated, and what is multiplied ---------------------------------------------------

LENGTHS = [2**e for e in (11, 12, 13)]


def a_step(n, **options):
    """Forward and backward of a network, measured: the largest tensor, the peak, and products."""
    model = DiT(1, n, 16, 4, 2, generator=seeded(0), **options)
    v = normal(1, n, 1, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter, MemoryMeter() as meter:
        model(v, 0.3).square().sum().backward()
    return meter.largest, meter.peak, counter.get_total_flops()


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "certified"}, {"attention": "window", "window": 8},
        {"attention": "window", "window": 8, "fused": False},
    ],
)  # fmt: skip
def test_memory_and_work_of_a_step_grow_linearly(options):
    largest, peaks, flops = zip(*(a_step(n, **options) for n in LENGTHS), strict=True)
    for counted in (largest, peaks, flops):
        assert growth_exponent(LENGTHS, counted) <= 1.02
    assert largest[-1] < LENGTHS[-1] ** 2 / 16


def test_the_meter_sees_the_maps_of_softmax():
    largest, *_ = a_step(512, attention="normalised", fused=False)
    assert largest == 4 * 512**2


def test_monomials_are_held_a_chunk_at_a_time():
    """Kept, or of all tokens at once, those of keys alone would be r / h = 9 times the keys."""
    n, dim, degree = 2**14, 4, 3
    q, k, v = (
        on_sphere(1, 4, dim, n, radius=1.0, seed=s).float().requires_grad_() for s in range(3)
    )
    coefficients = exp_polynomial(degree, 1.0).coefficients
    with MemoryMeter() as meter:
        low_rank_attention(q, k, v, coefficients).sum().backward()
    rows = 4 * math.comb(dim + degree, degree) * CHUNK * 4
    assert meter.peak < 12 * q.numel() * 4 + 2 * rows


# ---- a window ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("window", "length"), [(1, 1), (1, 50), (3, 16), (20, 50), (40, 31)])
def test_window_attention_is_softmax_over_what_is_near(window, length, fused):
    own, y = layer(WindowAttention, window=window, fused=fused).double(), normal(2, length, 12)
    query, key, value = own.query_key_value(y)
    place = torch.arange(length)
    logits = query @ key.mT / 2.0  # h = 4
    logits[..., (place[:, None] - place).abs() > window] = -torch.inf
    maps = logits.softmax(-1)
    assert_identity(own.mix(query, key, value), maps @ value)
    assert_identity(own.maps(y), maps)
    if window >= length - 1:
        plain = layer(Attention).double()
        plain.load_state_dict(own.state_dict())
        assert_identity(own(y), plain(y))


def test_gradients_of_a_window_are_finite_and_those_of_its_map():
    own, y = layer(WindowAttention, window=3).double(), normal(2, 21, 12)
    slopes = []
    for call in (own, lambda y: own.attend(own.maps(y), y)):
        own.zero_grad()
        call(y).square().sum().backward()
        slopes.append(own.project.weight.grad.clone())
    assert_identity(*slopes)


# ---- bad input ---------------------------------------------------------------------------------


def built(**options):
    return DiT(1, 4, 8, 2, 1, attention="certified", **options)


def refused(**options):
    with pytest.raises(ValueError, match="has no certificate") as caught:
        built(**options)
    return str(caught.value)


def test_radius_and_degree_without_a_certificate_are_refused_with_what_would_do():
    """Radius 9 and degree 12: rounding in single precision alone is above 1."""
    message = refused(radius=9.0, degree=12)
    assert "in torch.float32, its relative error with rounding is" in message
    radius = float(re.search(r"with this degree a radius of ([\d.]+) would do", message)[1])
    assert 6 < radius < 7
    built(radius=radius, degree=12)
    refused(radius=radius + 0.02, degree=12)
    assert "on this radius degree" not in message
    other = re.search(
        r"on this radius degree (\d+), with an error of", refused(radius=7, degree=12)
    )
    built(radius=7.0, degree=int(other[1]))
    assert "or weights in float64" in message
    with default_dtype(F64):
        model, v = built(radius=9.0, degree=12), normal(1, 4, 1)
        assert torch.isfinite(model(v, 0.3)).all()
    with pytest.raises(ValueError, match=r"no certificate on .* in torch\.float32"):
        model.float()(v.float(), 0.3)


def test_nothing_helps_beyond_what_double_precision_certifies():
    message = refused(radius=30.0, degree=4)
    assert "on this radius" not in message and "float64" not in message


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attention": "softmax", "radius": 2.0}, "radius=2.0 belongs to .*'certified' or 'normal"),
        ({"attention": "normalised", "degree": 4}, "degree=4 belongs to attention='certified'"),
        ({"attention": "certified", "window": 4}, "window=4 belongs to attention='window'"),
        ({"attention": "window"}, "attention='window' needs window, got None"),
        ({"attention": "window", "window": 0}, "window must be an integer >= 1"),
        ({"attention": "window", "window": 2.5}, "window must be an integer >= 1"),
        ({"attention": "certified", "radius": 0.0}, "radius must be a finite number > 0"),
        ({"attention": "normalised", "radius": math.inf}, "radius must be a finite number > 0"),
        ({"attention": "certified", "degree": -1}, "degree must be an integer >= 0"),
        ({"attention": "linear"}, "attention must be one of .*certified.*window"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_belong_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        DiT(1, 4, 8, 2, 1, **options)


def test_layers_are_made_by_name_and_say_what_they_are():
    made = {
        kind: attention_layer(kind, 8, 2, True, **options)
        for kind, options in {
            "softmax": {}, "relu": {}, "certified": {"radius": 1.5, "degree": 3},
            "normalised": {"radius": 1.5}, "window": {"window": 5},
        }.items()
    }  # fmt: skip
    assert all(own.kind == kind for kind, own in made.items())
    assert made["certified"].extra_repr() == "radius=1.5, degree=3"
    assert made["normalised"].extra_repr() == "radius=1.5"
    assert made["window"].extra_repr() == "window=5"
    with pytest.raises(ValueError, match="kind must be one of"):
        Attention(8, 2, "certified")
