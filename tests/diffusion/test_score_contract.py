"""What holds for every score of the package, whatever it is made of: the contract of score(v, t).

A class that is called as (v, t) and is not in the list below is noticed. What a score computes, its
own tests say.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from settings import default_device, products
from strategies import DEVICES, process, seeded
from tolerances import assert_float32, assert_identity
from torch import nn
from tour.stop import shaken

import gptheory
from gptheory.construction import build_imputation_transformer, build_score_transformer
from gptheory.construction.network import ScoreTransformer
from gptheory.data import GaussianProcess, PowerExponential, random_mixture
from gptheory.data.law import KnownLaw
from gptheory.diffusion import (
    METHODS,
    ConditionalScore,
    ExactScore,
    NestedScore,
    OneLoopScore,
    UnrolledScore,
    WienerScore,
    to_epsilon,
)
from gptheory.diffusion.conventions import PREDICTIONS, PredictedScore
from gptheory.diffusion.exact import Score
from gptheory.latent import LatentScore, SubspaceData, random_basis
from gptheory.latent.networks import FullScore
from gptheory.networks import ConditionalDiT, DiT, LearnedSteps, UNet1d, with_polynomial_attention
from gptheory.networks.baselines import FrameMLP
from gptheory.networks.learned import LearnedCovariance
from gptheory.probing import Edited, uniform

CPU, F32, F64, I64 = torch.device("cpu"), torch.float32, torch.float64, torch.int64
LAW = process(6, 2)
SEEN = torch.tensor([True, False, True, True, False, True])
MIXTURE = random_mixture(2, 2, generator=seeded(1))
BASIS = random_basis(12, 4, seeded(2))
KERNEL = GaussianProcess(PowerExponential(2.0), LAW.spatial, seq_len=6)
SOLVED = GaussianProcess(
    PowerExponential(2.0, 1.5), LAW.spatial, LAW.mean, 6, "conjugate-gradients"
)


SEEN = torch.tensor([True, True, False, True, False, False])
X = LAW.sample(1, seeded(6), F64)[0]
ENTRIES = LAW.condition(X, SEEN[:, None] ^ torch.tensor([True, False]))


@dataclass(frozen=True)
class Case:
    """A score of sequences (N, d), its class, and whether no context takes digits from it."""

    kind: type
    make: Callable[[], Score]
    exact: bool = False
    shape: tuple[int, int] = (6, 2)

    def on(self, device: torch.device | str, dtype: torch.dtype = F64) -> Score:
        """Made; a network with weights of the dtype that are not those of a beginning."""
        score = self.make()
        if self.exact or not isinstance(score, nn.Module):
            return score.to(device) if isinstance(score, nn.Module) else score
        return shaken(score, torch.device(device), dtype)

    def points(self, n: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(n, *self.shape, generator=seeded(seed), dtype=F64)


def transformer(**options: object) -> DiT:
    return DiT(2, 6, 8, 2, 2, generator=seeded(3), **options)


def imputer() -> ConditionalDiT:
    return shaken(ConditionalDiT(2, 6, 8, 2, 2, generator=seeded(3)), CPU, F64)


# steps from 1e-4 to 16.6, beyond all that are asked for below
KEPT = torch.cat([torch.exp(-torch.logspace(-4, 1, 50, dtype=F64)), torch.zeros(1, dtype=F64)])


def foreign(prediction: str) -> PredictedScore:
    """The exact score, through a network's prediction and back."""
    return PredictedScore(to_epsilon(ExactScore(LAW), KEPT, prediction), KEPT, prediction)


def exact(law: KnownLaw, shape: tuple[int, int] = (6, 2)) -> Case:
    """Of a law that was moved: what it keeps of earlier calls stays behind."""
    return Case(ExactScore, lambda: ExactScore(law.to(CPU)), True, shape)


CASES = {
    "exact, of matrices": exact(LAW),
    "exact, of a kernel": exact(KERNEL),
    "exact, by conjugate gradients": exact(SOLVED),
    "exact, of a mixture": exact(MIXTURE, (2, 2)),
    "exact, on a subspace": exact(SubspaceData(BASIS, MIXTURE), (1, 12)),
    "exact, near a subspace": exact(SubspaceData(BASIS, MIXTURE, 0.3), (1, 12)),
    "exact, given frames": exact(LAW.condition(X, SEEN)),
    "exact, given entries": exact(ENTRIES),
    "exact, given noisy frames": exact(LAW.condition(X, SEEN, 0.2)),
    "Wiener's": Case(WienerScore, lambda: WienerScore(LAW.sample(40, seeded(4), F64)), True),
    **{
        method: Case(UnrolledScore, lambda m=method: UnrolledScore(LAW, 3, method=m), True)
        for method in METHODS
    },
    "one loop": Case(OneLoopScore, lambda: OneLoopScore(LAW, SEEN, 5, "heavy-ball"), True),
    "two loops": Case(NestedScore, lambda: NestedScore(LAW, SEEN, 5, 60), True),
    "of a band": Case(UnrolledScore, lambda: UnrolledScore(LAW, 3, 4, "bohman"), True),
    **{f"of {p}": Case(PredictedScore, lambda p=p: foreign(p), True) for p in PREDICTIONS},
    "constructed": Case(ScoreTransformer, lambda: build_score_transformer(KERNEL, 2), True),
    "constructed, sine": Case(
        ScoreTransformer,
        lambda: build_score_transformer(
            KERNEL, 2, form="position-once", heads="sine", multiplication="attention"
        ),
        True,
    ),
    "transformer": Case(DiT, transformer),
    "transformer, ReLU": Case(
        DiT, lambda: transformer(attention="relu-rows", position="none", fused=False)
    ),
    "transformer, certified": Case(DiT, lambda: transformer(attention="certified", radius=1.5)),
    "transformer, normalised": Case(
        DiT, lambda: transformer(attention="normalised", radius=1.5, fused=False)
    ),
    "transformer, window": Case(
        DiT, lambda: transformer(attention="window", window=2, fused=False)
    ),
    "transformer, polynomial": Case(
        DiT, lambda: with_polynomial_attention(transformer(), 6, 2.0)
    ),
    "UNet": Case(UNet1d, lambda: UNet1d(2, 6, 8, generator=seeded(3))),
    "MLP": Case(FrameMLP, lambda: FrameMLP(2, 6, 8, 2, generator=seeded(3))),
    "learned steps": Case(
        LearnedSteps, lambda: LearnedSteps(LAW, 3, 4, "bohman", True, seeded(3))
    ),
    "learned covariance": Case(LearnedCovariance, lambda: LearnedCovariance(2, 6, 2)),
    "learned root": Case(LearnedCovariance, lambda: LearnedCovariance(2, 6, 2, False)),
    "latent": Case(
        LatentScore, lambda: LatentScore(12, 12, transformer(), seeded(5)), shape=(1, 12)
    ),
    "latent, of noisy data": Case(
        LatentScore, lambda: LatentScore(12, 12, transformer(), seeded(5), noise=0.3),
        shape=(1, 12),
    ),
    "given frames, of a network": Case(
        ConditionalScore, lambda: ConditionalScore(imputer(), X, SEEN), True
    ),
    "given frames, constructed": Case(
        ConditionalScore,
        lambda: ConditionalScore(build_imputation_transformer(KERNEL, 4), X, SEEN), True,
    ),
    "full": Case(FullScore, lambda: FullScore(transformer()), shape=(1, 12)),
    "full, no skip": Case(FullScore, lambda: FullScore(transformer(), False), shape=(1, 12)),
    "edited": Case(Edited, lambda: Edited(shaken(transformer(), CPU, F64), uniform)),
}  # fmt: skip
every_score = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_exact_score = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.exact], ids=[k for k, c in CASES.items() if c.exact]
)


# ---- none is missing ----------------------------------------------------------------------------


def called_as_scores() -> set[type]:
    """Public classes of the package that are called as (v, t)."""
    found = set()
    for module in pkgutil.walk_packages(gptheory.__path__, "gptheory."):
        if not module.name.endswith("__"):
            own = importlib.import_module(module.name)
            found |= {x for x in vars(own).values() if inspect.isclass(x) and _takes_v_and_t(x)}
    return {kind for kind in found if not kind.__name__.startswith("_")}


def _takes_v_and_t(kind: type) -> bool:
    if inspect.isabstract(kind) or not kind.__module__.startswith("gptheory"):
        return False
    call = kind.forward if issubclass(kind, nn.Module) else vars(kind).get("__call__")
    return call is not None and list(inspect.signature(call).parameters) == ["self", "v", "t"]


def test_every_score_is_here():
    layers = {"Lift"}  # (v, t) to tokens
    found = {kind.__name__ for kind in called_as_scores()} - layers
    assert found == {case.kind.__name__ for case in CASES.values()}


# ---- shape, dtype, device -----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("n", [0, 1, 3])
@every_score
def test_shape_dtype_and_device_are_those_of_the_argument(case, n, dtype, device):
    score, v = case.on(device), case.points(n).to(device, dtype)
    assert isinstance(case.make(), case.kind)
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((n,), 0.5, dtype=F64)):
        value = score(v, t)
        assert (value.shape, value.dtype, value.device) == (v.shape, dtype, v.device)
        assert torch.isfinite(value).all()


@every_score
def test_single_precision_finds_what_double_precision_does(case):
    v, t = case.points(4), torch.tensor([0.05, 0.3, 1.0, 5.0], dtype=F64)
    score = case.on(CPU)
    assert_float32(score(v.float(), t).detach(), score(v, t).detach())


@every_score
def test_default_devices_are_ignored(case):
    score, v = case.on(CPU), case.points(2)
    plain = score(v, 0.3)
    with default_device("meta"):
        assert torch.equal(score(v, 0.3), plain)


# ---- the diffusion step -------------------------------------------------------------------------


@every_score
def test_every_form_of_one_step_means_the_same(case):
    score, v = case.on(CPU), case.points(4)
    # a step keeps its own dtype: integers are exact, single precision rounds
    forms = [(0.3, F64), (2, I64), (9, I64), (0.3, F32)]
    for t, dtype in forms:
        assert_close = assert_float32 if dtype == F32 else assert_identity
        expected = score(v, float(t)).detach()
        for shape in ((), (1,), (4,)):
            assert_close(score(v, torch.full(shape, t, dtype=dtype)).detach(), expected)


@every_score
def test_sequences_of_a_batch_do_not_mix(case):
    score, v = case.on(CPU), case.points(4)
    t = torch.tensor([0.05, 0.3, 1.0, 5.0], dtype=F64)
    alone = [score(v[k : k + 1], t[k].item()) for k in range(4)]
    assert_identity(score(v, t).detach(), torch.cat(alone).detach())


# ---- what a call leaves behind ------------------------------------------------------------------


@every_score
def test_a_call_changes_nothing(case):
    """Neither its arguments nor torch's generator; asked again, a score says the same."""
    score, v, t = case.on(CPU), case.points(3), torch.tensor([0.1, 0.5, 2.0], dtype=F64)
    kept, state = (v.clone(), t.clone()), torch.get_rng_state()
    first = score(v, t)
    score(v.float(), 0.3)
    assert torch.equal(score(v, t), first)
    assert torch.equal(v, kept[0]) and torch.equal(t, kept[1])
    assert torch.equal(torch.get_rng_state(), state)


@every_score
def test_strides_do_not_matter(case):
    score, v = case.on(CPU), case.points(3)
    turned = v.transpose(1, 2).contiguous().transpose(1, 2)
    assert_identity(score(turned, 0.3).detach(), score(v, 0.3).detach())


@pytest.mark.parametrize("dtype", [F32, F64])
@every_score
def test_what_inference_mode_asked_for_first_passes_gradients_later(case, dtype):
    score, v = case.on(CPU), case.points(2).to(dtype)
    with torch.inference_mode():
        first = score(v, 0.3)
    leaf = v.clone().requires_grad_()
    later = score(leaf, 0.3)
    # torch may choose another kernel where gradients are asked for
    assert_close = assert_float32 if dtype == F32 else assert_identity
    assert_close(later.detach(), first)
    later.square().sum().backward()
    assert torch.isfinite(leaf.grad).all() and (leaf.grad.abs().amax(dim=(1, 2)) > 0).all()


@every_score
def test_gradients_are_those_of_differences(case):
    """Of a number made of the score, along one direction."""
    score, v = case.on(CPU), case.points(2)
    weights, direction, step = case.points(2, seed=1), case.points(2, seed=2), 1e-6
    leaf = v.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights * score(leaf, 0.3)).sum(), leaf)
    ahead, behind = (score(v + s * step * direction, 0.3).detach() for s in (1, -1))
    difference = (weights * (ahead - behind)).sum().item() / (2 * step)
    # rounding of the scores, u ‖s‖ / h, and the third derivative, h²: either is 1e-10 of the sizes
    assert abs((gradient * direction).sum().item() - difference) <= 1e-7 * gradient.norm().item()


# ---- contexts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["autocast", "high", "medium"])
@every_exact_score
def test_contexts_take_no_digits_from_what_is_exact(case, context):
    """Bit for bit: the guard leaves nothing to differ."""
    score, v = case.on(CPU), case.points(3).float()
    plain = score(v, 0.3)
    with torch.autocast("cpu", torch.bfloat16) if context == "autocast" else products(context):
        found = score(v, 0.3)
    assert found.dtype == F32 and torch.equal(found, plain)


@every_score
def test_autocast_changes_no_dtype(case):
    score = case.on(CPU, F32)
    with torch.autocast("cpu", torch.bfloat16):
        assert score(case.points(2).float(), 0.3).dtype == F32


# ---- bad input ----------------------------------------------------------------------------------

THREE = torch.ones(3)
STEPS = {
    "zero": (0.0, "must be finite and > 0, got 0.0"),
    "negative": (-1.0, "must be finite and > 0, got -1.0"),
    "nan": (math.nan, "must be finite and > 0, got nan"),
    "infinite, of one": (torch.tensor([0.1, math.inf, 1.0]), "must be finite and > 0, got inf"),
    "negative, of one": (torch.tensor([0.1, 0.2, -1.0]), "must be finite and > 0, got -1.0"),
    "integer zero": (torch.tensor([1, 0, 1]), "must be finite and > 0, got 0"),
    "too few": (THREE[:2], r"t must be a number or have shape \(3,\), got \(2,\)"),
    "too many axes": (THREE[:, None], r"t must be a number or have shape \(3,\), got \(3, 1\)"),
    "complex": (THREE.to(torch.complex64), "must be real, got a tensor of torch.complex64"),
    "text": ("0.5", "must be finite and > 0, got '0.5'"),
}
SEQUENCES = {
    "no batch": (lambda v: v[0], r"v must have shape \(batch, .*got \(\d+, \d+\)"),
    "more axes": (lambda v: v[None], r"v must have shape \(batch, .*got \(1, 3, \d+, \d+\)"),
    "other frames": (lambda v: v.repeat(1, 2, 1), r"v must have shape \(batch, .*got \(3, \d+"),
    "other coordinates": (lambda v: v[..., 1:], r"v must have shape \(batch, .*got \(3, \d+"),
    "integers": (
        lambda v: v.long(),
        "v must be a floating-point tensor.*got a tensor of torch.int",
    ),
    "complex": (
        lambda v: v + 0j,
        "v must be a floating-point tensor.*got a tensor of torch.complex",
    ),
    "no tensor": (lambda v: v.tolist(), "v must be a floating-point tensor.*got list"),
}


@pytest.mark.parametrize(("t", "message"), STEPS.values(), ids=STEPS)
@every_score
def test_bad_steps_are_refused(case, t, message):
    with pytest.raises(ValueError, match=message):
        case.on(CPU)(case.points(3), t)


@pytest.mark.parametrize(("spoil", "message"), SEQUENCES.values(), ids=SEQUENCES)
@every_score
def test_bad_sequences_are_refused(case, spoil, message):
    for t in (0.5, torch.full((3,), 0.5)):
        with pytest.raises(ValueError, match=message):
            case.on(CPU)(spoil(case.points(3)), t)
