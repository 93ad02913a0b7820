"""Whatever the caller's context is, exact things stay exact, and what is kept outlives it."""

from __future__ import annotations

import dataclasses
import sys
import threading
from contextlib import contextmanager, nullcontext

import api_tour
import pytest
import torch
from settings import default_dtype, products
from strategies import DEVICES, process, seeded
from tolerances import relative_norm
from torch.utils._python_dispatch import TorchDispatchMode

from gptheory.attention import (
    exact_attention_gradient,
    exp_polynomial,
    logit_bound,
    poly_attention,
    uniform_inputs,
)
from gptheory.construction import build_score_transformer
from gptheory.data import decaying_process, random_mixture
from gptheory.diffusion import ExactScore, UnrolledScore, WienerScore
from gptheory.latent import SubspaceData, random_basis
from gptheory.measures import path_kl, temporal_covariance
from gptheory.networks import DiT
from gptheory.probing import recording
from gptheory.support.precision import full_precision, without_autocast
from gptheory.training import TrainConfig, fit
from gptheory.training.loop import Training

CPU = torch.device("cpu")
SCORE_BAR = 1e-5  # the issue's, float32 beside float64, relative
EXACT = [stop for stop in api_tour.stops() if stop.kind == "exact"]


@contextmanager
def autocast_and_medium():
    with torch.autocast("cpu", torch.bfloat16), products("medium"):
        yield


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "high": lambda: products("high"),
    "medium": lambda: products("medium"),
    "both": autocast_and_medium,
    "inference": torch.inference_mode,
    "double by default": lambda: default_dtype(torch.float64),
    "half by default": lambda: default_dtype(torch.bfloat16),
}
in_every_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


# ---- the whole API ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    """What every exact stop of the tour finds where the context is torch's own."""
    return {stop.name: stop.visit(CPU, torch.float32) for stop in EXACT}


@in_every_context
@pytest.mark.parametrize("stop", EXACT, ids=lambda stop: stop.name)
def test_exact_results_are_the_same_in_every_context(plain, stop, context):
    """Bit for bit: the guard leaves nothing to differ."""
    with context():
        found = stop.visit(CPU, torch.float32)
    for name, value in plain[stop.name].items():
        other = found[name]
        assert torch.equal(*(torch.as_tensor(x).detach() for x in (value, other))), name


# what autocast and the precision of products change, by torch's names
PRODUCTS = frozenset(
    ["mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr", "einsum"]
)
PRODUCTS |= {"matmul", "linear", "convolution", "_cdist_forward", "_euclidean_dist"}
# where trainable networks multiply, which obey their caller
NETWORKS = {
    "attention/layer.py": "", "attention/window.py": "", "networks/dit.py": "",
    "attention/certified.py": "NormalisedAttention.", "latent/networks.py": "LatentScore.",
}  # fmt: skip


class Unguarded(TorchDispatchMode):
    """Notes every product of matrices that is neither guarded, nor in double, nor a network's."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded, self.found = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtypes = {x.dtype for x in args if isinstance(x, torch.Tensor)}
        if func.overloadpacket.__name__ in PRODUCTS and dtypes != {torch.float64}:
            full = torch.get_float32_matmul_precision() == "highest" and dtypes == {torch.float32}
            self.guarded += full
            forward = torch._C._current_autograd_node() is None
            if not full and forward and (where := _place()):
                self.found.add(f"{func.overloadpacket.__name__} of {dtypes} in {where}")
        return func(*args, **(kwargs or {}))


def _place() -> str | None:
    """The line of the package that multiplies; None for a network's, or one of the tour itself."""
    frame, layer = sys._getframe(2), False
    while frame is not None:
        path = frame.f_code.co_filename
        layer = layer or "torch/nn/modules" in path
        if "/tour/" in path or path == __file__:
            return None
        if "/gptheory/" in path and not path.endswith("precision.py"):
            file, name = "/".join(path.split("/")[-2:]), frame.f_code.co_qualname
            network = file in NETWORKS and name.startswith(NETWORKS[file])
            return None if layer or network else f"{file}:{frame.f_lineno} ({name})"
        frame = frame.f_back
    return None


@pytest.mark.parametrize("stop", api_tour.stops(), ids=lambda stop: stop.name)
def test_every_product_outside_networks_is_guarded(stop):
    """On every machine, whether or not its processor has units for short numbers."""
    with autocast_and_medium(), Unguarded() as spy:
        stop.visit(CPU, torch.float32)
    assert not spy.found
    print(f"{spy.guarded} guarded products")


def test_the_spy_sees_what_is_not_guarded():
    unguarded, inputs = exact_attention_gradient.__wrapped__, [torch.ones(3, 3)] * 5
    for context, dtype in (("both", "bfloat16"), ("medium", "float32")):
        with CONTEXTS[context](), Unguarded() as spy:
            unguarded(*inputs)
        assert any(dtype in x and "exact_attention_gradient" in x for x in spy.found)


def test_contributions_of_heads_in_single_precision_are_guarded():
    law = decaying_process(6, 2, lengthscale=2.0)
    network = build_score_transformer(law, 1, bandwidth=3, dtype=torch.float32)
    seen, spaces = recording.record(network, law.sample(2, seeded(0)), 0.5)[-1], network.spaces
    with autocast_and_medium(), Unguarded() as spy:
        recording.contributions(seen, spaces["frame"], spaces["frame"])
    assert spy.guarded and not spy.found


# ---- the bars -----------------------------------------------------------------------------------


@in_every_context
@pytest.mark.parametrize("kind", ["exact", "unrolled", "wiener", "mixture", "subspace"])
def test_scores_in_single_precision_meet_their_bar_in_every_context(kind, context):
    law = decaying_process(64, 4)
    mixture = random_mixture(2, 4, generator=seeded(1))
    subspace = SubspaceData(random_basis(32, 8, seeded(3)), mixture)
    scores = {
        "exact": (ExactScore(law), law),
        "unrolled": (UnrolledScore(law, 20, method="chebyshev"), law),
        "wiener": (WienerScore(law.sample(600, seeded(2), torch.float64)), law),
        "mixture": (ExactScore(mixture), mixture),
        "subspace": (ExactScore(subspace), subspace),
    }
    score, own = scores[kind]
    v = own.sample(8, seeded(4), torch.float64)
    truth = score(v, 0.1)
    with context():
        found = score(v.float(), 0.1)
    assert found.dtype == torch.float32
    assert relative_norm(found, truth) <= SCORE_BAR


@in_every_context
def test_attention_is_within_its_certificate_in_every_context(context):
    q, k, v = uniform_inputs(1024, 4)
    exact = torch.softmax(q.double() @ k.double().T / 4, dim=1) @ v.double()
    with context():
        radius = logit_bound(q, k, 1 / 4)
        found = poly_attention(q, k, v, 6, radius=radius)
    polynomial = exp_polynomial(6, radius)
    bound = (polynomial.error_bound + polynomial.rounding(q.dtype)) * v.abs().max()
    assert bound < 1e-4  # half precision would be off by more
    assert (found - exact).abs().max() <= bound


@in_every_context
def test_constructed_transformers_keep_their_accuracy_in_every_context(context):
    law = decaying_process(8, 2, lengthscale=2.0)
    network = build_score_transformer(law, 3, form="position-once", heads="shared-knots")
    single = build_score_transformer(
        law, 3, form="position-once", heads="shared-knots", dtype=torch.float32
    )
    v = law.sample(4, seeded(0))
    plain = single(v, 0.5)
    with context():
        assert torch.equal(single(v, 0.5), plain)
        assert torch.equal(network(v, 0.5), network(v, 0.5))
    assert relative_norm(plain, network(v.double(), 0.5)) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_products_are_full_on_every_device(device):
    """Where there is a GPU, TF32 would be 1e-3 off."""
    law, (q, k, h) = decaying_process(128, 8).to(device), uniform_inputs(1024, 4)
    v = law.sample(16, seeded(0), torch.float64)
    truth = ExactScore(law)(v, 0.1)
    q, k, h = (x.to(device) for x in (q, k, h))
    plain = poly_attention(q, k, h, 6)
    for precision in ("high", "medium"):
        with products(precision), torch.autocast(device, torch.bfloat16):
            assert relative_norm(ExactScore(law)(v.float(), 0.1), truth) <= SCORE_BAR
            assert torch.equal(poly_attention(q, k, h, 6), plain)
            assert relative_norm(temporal_covariance(v.float()), temporal_covariance(v)) < 1e-5


# ---- the guard ----------------------------------------------------------------------------------


def state() -> tuple:
    return torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision()


@pytest.mark.parametrize("context", [CONTEXTS["both"], CONTEXTS["medium"], CONTEXTS["autocast"]])
def test_settings_are_full_inside_and_back_outside(context):
    with context():
        before = state()
        with full_precision():
            assert state() == (False, "highest")
            with full_precision():
                assert state() == (False, "highest")
            assert state() == (False, "highest")
        assert state() == before
        with pytest.raises(KeyError), full_precision():
            raise KeyError
        assert state() == before
    assert state() == (False, "highest")


def test_the_guard_decorates_functions_and_generators():
    @full_precision()
    def function(x: int) -> tuple:
        """Says so."""
        return state(), x

    @full_precision()
    def generator(n: int):
        try:
            for _ in range(n):
                yield state()
        finally:
            closed.append(state())

    closed = []
    with autocast_and_medium():
        before = state()
        assert function(x=3) == ((False, "highest"), 3)
        for inside in generator(2):
            assert inside == (False, "highest")
            assert state() == before  # its consumer has the caller's settings
        abandoned = generator(2)
        next(abandoned)
        abandoned.close()
        assert state() == before
    assert closed == [(False, "highest")] * 2
    assert function.__name__ == "function" and function.__doc__ == "Says so."


def test_threads_inside_keep_the_precision_until_the_last_is_out():
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with full_precision():
            entered.set()
            leave.wait()
            seen.append(torch.get_float32_matmul_precision())

    with products("medium"):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        seen.append(torch.get_float32_matmul_precision())  # the other one is inside
        leave.set()
        thread.join()
        assert seen == ["highest", "highest"]
        assert torch.get_float32_matmul_precision() == "medium"


def test_a_precision_that_is_set_inside_stays():
    with products("medium"):
        with full_precision():
            torch.set_float32_matmul_precision("high")
            with full_precision():
                assert torch.get_float32_matmul_precision() == "highest"
            torch.set_float32_matmul_precision("high")
        assert torch.get_float32_matmul_precision() == "high"
    with products("medium"):
        with full_precision():
            torch.set_float32_matmul_precision("high")
        assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="torch has no switches before 2.9"
)
@pytest.mark.parametrize("backends", [("mkldnn",), ("cuda",), ("mkldnn", "cuda")])
def test_switches_of_backends_are_thrown_and_back(backends):
    """Where they are used, torch refuses to say what the precision is."""
    switches = [getattr(torch.backends, name).matmul for name in ("mkldnn", "cuda")]
    before = [switch.fp32_precision for switch in switches]
    try:
        for name in backends:
            getattr(torch.backends, name).matmul.fp32_precision = "tf32"
        chosen = [switch.fp32_precision for switch in switches]
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert all(switch.fp32_precision in ("none", "ieee") for switch in switches)
        assert [switch.fp32_precision for switch in switches] == chosen
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def test_backward_passes_may_leave_autocast_alone():
    with autocast_and_medium():
        with without_autocast():
            assert state() == (False, "medium")
        assert state() == (True, "medium")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_scores_turn_autocast_off(backend):
    law = process()
    v, exact = law.sample(3, seeded(0)), ExactScore(law)
    for score in (exact, UnrolledScore(law, 3)):
        torch.compiler.reset()
        compiled, plain = torch.compile(score, backend=backend, fullgraph=True), score(v, 0.3)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_norm(compiled(v, 0.3), plain) < 1e-6
            assert torch.is_autocast_enabled("cpu")


def test_gradients_inside_the_guard_are_exact():
    law = decaying_process(32, 4)
    v = law.sample(4, seeded(0), torch.float64)
    score, w = ExactScore(law), torch.randn(v.shape, generator=seeded(1), dtype=torch.float64)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        with full_precision():
            (score(x, 0.1) * w.to(x)).sum().backward()
        return x.grad

    truth = gradient(v)
    with autocast_and_medium():
        assert relative_norm(gradient(v.float()), truth) <= SCORE_BAR


def test_scores_map_over_sequences_in_every_context():
    law = process()
    v, score = law.sample(4, seeded(0)), ExactScore(law)
    with autocast_and_medium():
        mapped = torch.func.vmap(lambda one: score(one[None], 0.3)[0])(v)
        jacobian = torch.func.jacrev(lambda one: score(one[None], 0.3)[0])(v[0])
    assert relative_norm(mapped, score(v, 0.3)) < 1e-6
    assert jacobian.dtype == torch.float32


# ---- training -----------------------------------------------------------------------------------

TRAINING = TrainConfig(steps=150, batch_size=64, learning_rate=1e-2, log_every=150)


def trained(context) -> tuple[float, torch.nn.Module]:
    """A network's path divergence after training in a context."""
    law = decaying_process(4, 2)
    with context():
        model = fit(DiT(2, 4, 16, 2, 2, generator=seeded(0)), law, TRAINING).model
    return path_kl(model, law, generator=seeded(1)), model


def test_training_under_autocast_learns_as_much():
    before = path_kl(DiT(2, 4, 16, 2, 2, generator=seeded(0)), decaying_process(4, 2))
    (plain, _), (short, model) = trained(nullcontext), trained(CONTEXTS["both"])
    print(f"path divergence {before:.3g} -> {plain:.3g}, under autocast {short:.3g}")
    assert plain < 0.3 * before
    assert short < 1.5 * plain
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


class Watched(torch.nn.Module):
    """A linear score that notes the dtypes it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen, self.backward = torch.nn.Linear(2, 2), set(), []

    def forward(self, v, t):
        y = self.linear(v)
        self.seen.add((v.dtype, t.dtype, y.dtype))
        y.register_hook(lambda _: self.backward.append(torch.is_autocast_enabled("cpu")))
        return y.to(v)


def test_under_autocast_layers_are_short_and_the_loss_is_not():
    law, watched = decaying_process(4, 2), Watched()
    with torch.autocast("cpu", torch.bfloat16):
        run = Training(watched, law, dataclasses.replace(TRAINING, steps=2))
        (loss, norm), state = run._update(), torch.is_autocast_enabled("cpu")
    assert watched.seen == {(torch.float32, torch.float64, torch.bfloat16)}
    assert loss.dtype == norm.dtype == torch.float32 and state
    assert watched.backward == [False]  # where torch advises against autocast
