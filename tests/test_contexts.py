"""Whatever the caller's context is, exact things stay exact, and what is kept outlives it."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, contextmanager

import api_tour
import pytest
import torch
from strategies import covariance, process, seeded
from tolerances import relative_norm
from torch.utils._python_dispatch import TorchDispatchMode

from gptheory.construct import build_score_transformer
from gptheory.dit import DiT
from gptheory.exppoly import exp_polynomial
from gptheory.growth import uniform_inputs
from gptheory.kernels import PowerExponential
from gptheory.latent import SubspaceData, random_basis
from gptheory.metrics import temporal_covariance
from gptheory.mixture import random_mixture
from gptheory.polyattention import exact_attention_gradient, logit_bound, poly_attention
from gptheory.precision import full_precision, without_autocast
from gptheory.process import GaussianProcess, decaying_process
from gptheory.score import ExactScore
from gptheory.structured import LearnedSteps, WienerScore
from gptheory.train import TrainConfig, fit
from gptheory.unroll import UnrolledScore

CPU = torch.device("cpu")
SCORE_BAR = 1e-5  # the issue's, float32 beside float64, relative
EXACT = [stop for stop in api_tour.stops() if stop.kind == "exact"]


@contextmanager
def products(precision: str):
    """The precision of float32 products, as a caller may set it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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


PRODUCTS = frozenset(
    ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr", "einsum")
    + ("matmul", "linear", "convolution", "_cdist_forward", "_euclidean_dist")
)  # what autocast and the precision of products change, by torch's names
# where trainable networks multiply, which obey their caller
NETWORKS = {"dit.py": "", "latent.py": "LatentScore."}


class Unguarded(TorchDispatchMode):
    """Notes every product of matrices that is neither guarded, nor in double, nor a network's."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded, self.found = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtypes = {x.dtype for x in args if isinstance(x, torch.Tensor)}
        if func.overloadpacket.__name__ in PRODUCTS and dtypes != {torch.float64}:
            where = _place()
            full = torch.get_float32_matmul_precision() == "highest" and dtypes == {torch.float32}
            self.guarded += full
            if not full and where and torch._C._current_autograd_node() is None:
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
            file, name = path.rsplit("/", 1)[1], frame.f_code.co_qualname
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


def test_the_spy_sees_what_is_not_guarded(monkeypatch):
    unguarded = exact_attention_gradient.__wrapped__
    monkeypatch.setitem(unguarded.__globals__, "__name__", "gptheory.polyattention")
    inputs = [torch.ones(3, 3)] * 5
    with products("medium"), Unguarded() as spy:
        unguarded(*inputs)
    assert any("exact_attention_gradient" in found for found in spy.found)
    with torch.autocast("cpu", torch.bfloat16), Unguarded() as spy:
        unguarded(*inputs)
    assert any("bfloat16" in found for found in spy.found)
