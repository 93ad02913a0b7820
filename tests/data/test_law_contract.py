"""What holds for every law of the package: what training, sampling and measuring ask of one.

A class that can be drawn from and is not in the list below is noticed. Which law it is, its own
tests say; here its draws only have to agree with its score.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from contextlib import nullcontext

import pytest
import torch
from settings import default_device, default_dtype, products
from strategies import DEVICES, process, seeded
from tolerances import assert_float32, assert_identity, assert_statistical

import gptheory
from gptheory.data import GaussianProcess, GaussianTwin, PowerExponential, random_mixture
from gptheory.data.law import KnownLaw, Law
from gptheory.data.process import CIRCULANT_FROM
from gptheory.diffusion import ExactScore, perturb
from gptheory.latent import SubspaceData, random_basis
from gptheory.support.files import digest
from gptheory.training.loop import at_home, draw_batch, require_fitting

F32, F64 = torch.float32, torch.float64
PROCESS = process(5, 2)


def of_kernel(seq_len: int, lengthscale: float = 2.0, method: str = "auto") -> GaussianProcess:
    kernel = PowerExponential(lengthscale)
    return GaussianProcess(kernel, PROCESS.spatial, seq_len=seq_len, method=method)


def near_subspace(noise: float, seed: int = 1) -> SubspaceData:
    return SubspaceData(
        random_basis(6, 4, seeded(2)), random_mixture(2, 2, generator=seeded(seed)), noise
    )


def given(noise: float = 0.0, entries: bool = False, seed: int = 1) -> KnownLaw:
    """Of one sequence of which frames, or entries, were seen."""
    x = PROCESS.sample(1, seeded(seed), F64)[0]
    observed = torch.tensor([True, False, True, False, True])
    observed = observed[:, None] ^ torch.tensor([False, entries])
    return PROCESS.condition(x, observed, noise)


# a law, and another one of its class
LAWS = {
    "matrices": (PROCESS, process(5, 2, seed=7)),
    "kernel": (of_kernel(5), of_kernel(5, 3.0)),
    "solved": (of_kernel(5, method="conjugate-gradients"), of_kernel(5, 3.0)),
    "long": (of_kernel(CIRCULANT_FROM), of_kernel(CIRCULANT_FROM, 3.0)),
    "mixture": [random_mixture(3, 2, generator=seeded(k)) for k in (1, 2)],
    "subspace": (near_subspace(0.0), near_subspace(0.0, 3)),
    "noisy subspace": (near_subspace(0.3), near_subspace(0.4)),
    "conditional": (given(), given(seed=2)),
    "entries": (given(entries=True), given(entries=True, seed=2)),
    "noisy": (given(0.3), given(0.4)),
    "twin": [GaussianTwin(PROCESS.sample(40, seeded(k), F64)) for k in (1, 2)],
}
KNOWN = {name: law for name, (law, _) in LAWS.items() if isinstance(law, KnownLaw)}
every_law = pytest.mark.parametrize("law", [law for law, _ in LAWS.values()], ids=LAWS)


def moving(law: KnownLaw) -> torch.Tensor:
    """Entries that the law does not know beforehand, (N, d): all, but for conditional laws."""
    return getattr(law, "_free", torch.ones(1, law.seq_len, law.dim, dtype=torch.bool))[0].cpu()


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "high": lambda: products("high"),
    "medium": lambda: products("medium"),
    "inference": torch.inference_mode,
    "double by default": lambda: default_dtype(F64),
    "another device by default": lambda: default_device("meta"),
}


# ---- none is missing ----------------------------------------------------------------------------


def drawn_from() -> set[type]:
    """Public classes of the package that have a method ``sample``."""
    found = set()
    for module in pkgutil.walk_packages(gptheory.__path__, "gptheory."):
        if not module.name.endswith("__"):
            own = vars(importlib.import_module(module.name)).values()
            found |= {x for x in own if inspect.isclass(x) and hasattr(x, "sample")}
    ours = {kind for kind in found if kind.__module__.startswith("gptheory")}
    return {kind for kind in ours if not inspect.isabstract(kind)}


def test_every_law_is_here():
    assert drawn_from() == {type(law) for law, _ in LAWS.values()}


@every_law
def test_it_is_a_law(law):
    assert isinstance(law, Law)
    assert isinstance(law.seq_len, int) and isinstance(law.dim, int)
    assert not isinstance(law.sample(1), Law)  # a training set is none


def test_whose_score_is_known():
    assert set(LAWS) - set(KNOWN) == {"twin"}
    assert all(ExactScore(law).law is law for law in KNOWN.values())
    with pytest.raises(ValueError, match="a law that knows its noised_score, got GaussianTwin"):
        ExactScore(LAWS["twin"][0])


# ---- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("n", [0, 1, 3])
@every_law
def test_shape_dtype_and_device_of_draws(law, n, dtype, device):
    moved = law.to(device)
    for generator in (None, seeded(0), torch.Generator(device).manual_seed(0)):
        x = moved.sample(n, generator, dtype)
        assert (x.shape, x.dtype) == ((n, law.seq_len, law.dim), dtype)
        assert x.device == moved.device and x.device.type == device
        assert torch.isfinite(x).all()


@every_law
def test_a_seed_decides_what_is_drawn(law):
    """And nothing else: neither torch's generator, which stays as it was, nor earlier draws."""
    state = torch.get_rng_state()
    first = law.sample(3, seeded(4), F64)
    law.sample(2, seeded(5))
    assert torch.equal(law.sample(3, seeded(4), F64), first)
    assert not torch.equal(law.sample(3, seeded(5), F64), first)
    assert torch.equal(torch.get_rng_state(), state)


@every_law
def test_without_a_generator_torchs_own_is_used(law):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        first = law.sample(2)
        assert not torch.equal(law.sample(2), first)
        torch.default_generator.manual_seed(3)
        assert torch.equal(law.sample(2), first)


@every_law
def test_sequences_are_drawn_one_by_one(law):
    """No two are equal, and none is zero."""
    x = law.sample(8, seeded(6), F64)
    assert len(x.unique(dim=0)) == 8 and (x.abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("n", [-1, 1.5, True, "3"])
@every_law
def test_bad_numbers_of_sequences_are_refused(law, n):
    with pytest.raises(ValueError, match="n must be an integer >= 0, got"):
        law.sample(n)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@every_law
def test_contexts_change_no_draw(law, context, dtype):
    plain = law.sample(3, seeded(1), dtype)
    with context():
        assert torch.equal(law.sample(3, seeded(1), dtype), plain)


@pytest.mark.parametrize("inside", [torch.inference_mode, nullcontext])
@pytest.mark.parametrize("name", LAWS)
def test_what_inference_mode_asked_for_first_passes_gradients_later(name, inside):
    """Whether the law was moved there, which makes it anew, or not."""
    with inside():
        law = LAWS[name][0].to("cpu")
    with torch.inference_mode():
        x = law.sample(2, seeded(1), F64)
    assert x.is_inference()
    leaf = torch.ones((), dtype=F64, requires_grad=True)
    value = leaf * law.sample(2, seeded(1), F64)
    if isinstance(law, KnownLaw):
        value = value + ExactScore(law)(value, 0.3)
    value.square().sum().backward()
    assert torch.isfinite(leaf.grad) and leaf.grad != 0


# ---- moving, telling apart ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@every_law
def test_a_law_that_was_moved_is_the_same(law, device):
    moved = law.to(device)
    assert type(moved) is type(law) and moved.device.type == device and law.device.type == "cpu"
    assert (moved.seq_len, moved.dim, repr(moved)) == (law.seq_len, law.dim, repr(law))
    assert digest(*moved.parts) == digest(*law.parts)
    x = law.sample(2, seeded(1), F64)
    assert torch.allclose(moved.sample(2, seeded(1), F64).cpu(), x, rtol=1e-9, atol=1e-9)
    assert moved.to("cpu").device == law.device


@pytest.mark.parametrize(("law", "other"), LAWS.values(), ids=LAWS)
def test_parts_tell_laws_apart(law, other):
    assert digest(*law.parts) != digest(*other.parts)
    assert "object at" not in repr(law)  # checkpoints name it


# ---- training -----------------------------------------------------------------------------------


@every_law
def test_training_takes_it(law):
    home = at_home(law, F64, torch.device("cpu"))
    assert draw_batch(home, 4, seeded(1), F64).shape == (4, law.seq_len, law.dim)
    network = torch.nn.Module()
    network.dim = law.dim
    require_fitting(network, home)
    network.seq_len = law.seq_len + 1
    with pytest.raises(ValueError, match=f"the data have seq_len={law.seq_len}"):
        require_fitting(network, home)


# ---- the score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "long"])
def test_draws_and_score_belong_together(name, t):
    r"""Stein's identities for v of the noised law: E s(v) = 0 and E v sᵀ = -I."""
    law, n = KNOWN[name], 20_000
    v, _ = perturb(law.sample(n, seeded(1), F64), t, seeded(2))
    score, v = (values[:, moving(law)] for values in (ExactScore(law)(v, t), v))
    pulls, minus_one = v[:, :, None] * score[:, None], -torch.eye(score.shape[1])
    for found, truth in ((score, torch.zeros(len(minus_one))), (pulls, minus_one)):
        assert_statistical(found.mean(0), truth, found.std(0) / n**0.5, n)


@pytest.mark.parametrize("name", KNOWN)
def test_levels_may_be_numbers_or_one_a_sequence(name):
    """Of any law in place of the forward process's: here more noise than signal."""
    law = KNOWN[name]
    v = torch.randn(3, law.seq_len, law.dim, generator=seeded(1), dtype=F64)
    plain = law.noised_score(v, 0.6, 1.5)
    levels = (torch.full((3, 1, 1), level, dtype=F64) for level in (0.6, 1.5))
    assert torch.allclose(law.noised_score(v, *levels), plain, rtol=1e-9, atol=1e-9)
    white = law.noised_score(v, 0.0, 1.5)  # nothing of the law is left
    assert torch.allclose(white, -v / 1.5**2 * moving(law), rtol=1e-9, atol=1e-9)


# ---- the density --------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(0.99, 0.07), (0.6, 1.5)])
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "long"])
def test_the_score_is_the_gradient_of_the_log_density(name, levels):
    law = KNOWN[name]
    v = torch.randn(4, law.seq_len, law.dim, generator=seeded(1), dtype=F64, requires_grad=True)
    density = law.noised_log_prob(v, *levels)
    (found,) = torch.autograd.grad(density.sum(), v)
    assert_identity(found, law.noised_score(v.detach(), *levels), condition=10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KNOWN)
def test_levels_of_a_density_may_be_numbers_or_one_a_sequence(name, device):
    """In any dtype; and where nothing of the law is left, white noise has its own density."""
    law = KNOWN[name]
    v = torch.randn(3, law.seq_len, law.dim, generator=seeded(1), dtype=F64).to(device)
    plain = law.noised_log_prob(v, 0.6, 1.5)
    assert (plain.shape, plain.dtype, plain.device) == ((3,), F64, v.device)
    levels = (torch.full((3, 1, 1), level, dtype=F64, device=device) for level in (0.6, 1.5))
    assert_identity(law.noised_log_prob(v, *levels), plain)
    single = law.noised_log_prob(v.float(), 0.6, 1.5)
    assert single.dtype == F32
    assert_float32(single, plain)
    zero = torch.zeros((), dtype=F64)
    normal = (
        torch.distributions.Normal(zero, zero + 1.5).log_prob(v.cpu())[:, moving(law)].sum(dim=1)
    )
    assert_identity(law.noised_log_prob(v, 0.0, 1.5), normal)
