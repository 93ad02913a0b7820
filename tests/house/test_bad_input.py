"""Bad input gets one clear error that names both sides: what was given, and what is expected.

What is spoilt are calls that the tour of the API makes (tools/api_tour.py): each public callable
that is handed a tensor of floating point there is called again with that tensor turned into
integers, into complex numbers, with a NaN in it, or on another device. The tables below say what
must then happen; an argument that is in none of them is noticed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import api_tour
import pytest
import torch
from strategies import DEVICES, covariance, seeded
from torch import Tensor

from gptheory.attention import poly_attention, positions
from gptheory.construction.network import StepFeatures
from gptheory.data import GaussianMixture, GaussianProcess, decaying_process, kernels
from gptheory.diffusion import ExactScore, schedule
from gptheory.latent import SubspaceData, random_basis, subspace
from gptheory.latent.errors import sliced_distance
from gptheory.measures import gaussian_kl, gaussian_w2, relative_error, temporal_covariance
from gptheory.networks import DiT
from gptheory.networks.score_network import Clock
from gptheory.probing import maps
from gptheory.support.validation import as_real, require_floating, require_one_device
from gptheory.training import TrainConfig, fit_ensemble
from gptheory.training.ensemble import Member

# ---- kinds of bad input -------------------------------------------------------------------------


def with_nan(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[0] = float("nan")
    return x


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "integers": lambda x: x.round().long(),
    "complex": lambda x: x.to(torch.complex128),
    "nan": with_nan,
    "device": lambda x: x.to("meta"),
}
EXPECTED = {
    "integers": r"must be a floating-point.*got a tensor of torch\.int64; pass .*\.float\(\)",
    "complex": r"must be (a floating-point|real).*got a tensor of torch\.complex128; .*\.real",
    "nan": r"(must be( all)?|lie) (finite|in \[-1, 1\]).*got .*[Nn]a[Nn]",
    "device": r"must be on one device, got .*(on cpu.*on meta|on meta.*on cpu)",
}

# ---- what is refused where ----------------------------------------------------------------------

# lags, steps, and what stands for them: integers count as float64
NUMBERS = """
    Kernel.__call__ lag; embedding_distance lag; toeplitz values; alpha t; sigma t; half_log_snr t;
    step_at half_log_snr; floating_step t; step_tensor t; Clock.forward t; StepFeatures.forward t;
    Lift.forward t; matching_error t; levels t; as_real values; as_floating values;
    TrainingSchedule.step timestep; ToeplitzSolver.solve shift; ToeplitzSolver.solution shift;
    ToeplitzSolver.log_det shift; ToeplitzSolver.solve scale; ToeplitzSolver.log_det scale
"""
# steps that are looked at, where they lie on the CPU
STEPS = """
    perturb t; matching_loss t; UnrolledScore.extremes t; UnrolledScore.limit t;
    UnrolledScore.condition_number t; require_step t; LearnedSteps.coefficients t;
    LatentScore.forward t; FullScore.forward t; UnrolledScore.filtered t; ExactScore.__call__ t;
    Conditional.score t; UnrolledScore.__call__ t; WienerScore.__call__ t; LearnedSteps.forward t;
    LearnedCovariance.forward t; PredictedScore.forward t; TrainingSchedule.timestep t;
    OneLoopScore.__call__ t; OneLoopScore.extremes t; OneLoopScore.condition_number t;
    ConditionalScore.__call__ t; ConditionalDiT.forward t;
    NestedScore.__call__ t; NestedScore.extremes t; NestedScore.system t;
    NestedScore.drift t; OneLoopScore.iterates t; OneLoopScore.coefficients t
"""
# covariances, means, what is compared: integers convert exactly
MATRICES = """
    GaussianProcess.__init__ temporal; GaussianProcess.__init__ spatial;
    GaussianProcess.__init__ mean; GaussianMixture.__init__ covariance; truncate gram; taper gram;
    conditioned gram; band gram; require_symmetric matrix; gaussian_kl cov_p;
    gaussian_kl cov_q; gaussian_kl mean_p; gaussian_kl mean_q;
    gaussian_w2 cov_p; gaussian_w2 cov_q; gaussian_w2 mean_p; gaussian_tv cov_p;
    gaussian_tv cov_q; gaussian_tv mean_p; gaussian_tv_bounds cov_p;
    gaussian_tv_bounds cov_q; gaussian_tv_bounds mean_p; relative_error estimate;
    relative_error truth; temporal_covariance mean; mode_variances values;
    mode_variances initial; uniform_correlation gamma; from_epsilon alphas_cumprod;
    to_epsilon alphas_cumprod; PredictedScore.__init__ alphas_cumprod;
    TrainingSchedule.__init__ alphas_cumprod; encoder_error covariance;
    ToeplitzSolver.__init__ column; intervals draws; crps draws; crps truth; gaussian_crps mean;
    gaussian_crps deviation; gaussian_crps truth
"""
# sequences where they are computed with, or may be on the way to a loss: a NaN comes out as a NaN
SEQUENCES = """
    Conditional.score v; Conditional.completed v;
    ExactScore.__call__ v; denoise v; UnrolledScore.__call__ v; UnrolledScore.iterates v;
    UnrolledScore.limit v; WienerScore.__call__ v; LearnedSteps.forward v;
    LearnedCovariance.forward v; ScoreNetwork.forward v; ScoreTransformer.forward v;
    ConditionalScore.__call__ v; ConditionalScore.completed v; ConditionalDiT.forward v;
    ScoreTransformer.states v; ContextualTransformer.forward x; ContextualTransformer.ids x;
    ContextualTransformer.context x; ContextualTransformer.states x; UnrolledScore.filtered v;
    SubspaceData.encode v;
    SubspaceData.decode h; SubspaceData.split v; LatentScore.forward v; FullScore.forward v;
    perturb x; normal_like x; levels v; matching_loss x; trajectory v; restart x; record v;
    PredictedScore.forward v; Edited.__call__ v; denoiser_jacobian v; shuffled_frames x;
    LatentMap.decode latents; LatentMap.pixel_covariance covariance; Digits.recentred frames;
    Digits.recentred centres; ExpPolynomial.__call__ s; require_sequences x; require_floating x;
    ToeplitzSolver.product x; ToeplitzSolver.solve rhs; ToeplitzSolver.solution rhs;
    OneLoopScore.__call__ v; OneLoopScore.iterates v; NestedScore.__call__ v;
    NestedScore.iterates v; Region.distance x; Region.contains x
"""
# data that laws, estimators, metrics and training are made of
DATA = """
    GaussianProcess.log_prob x; GaussianProcess.condition x; Conditional.__init__ x;
    ConditionalProcess.__init__ x; ConditionalEntries.__init__ x; Conditional.log_prob x;
    GaussianMixture.__init__ means; temporal_covariance x;
    spatial_covariance x; lag_correlations temporal; WienerScore.__init__ x; kronecker_mle x;
    toeplitz_moments x; fit data; Training.__init__ data; at_home data; SubspaceData.__init__ basis;
    require_orthonormal basis; principal_angles a; principal_angles b; subspace_error a;
    subspace_error b; principal_subspace x; orthogonal_energy x; sliced_distance x;
    sliced_distance y; expected_pca_error variances; denoising_operator covariance;
    off_diagonal_correlation maps; off_diagonal_correlation target; explained maps;
    explained target; mean_lag maps; contrast maps; lag_profile maps; toeplitz_defect maps;
    Ball.render centres; Ball.locate frames; Digits.__init__ images; Digits.render centres;
    Digits.locate frames; LatentMap.fit frames; LatentMap.encode frames; GaussianTwin.__init__ x;
    measured_motion paths; log_likelihood v; stop_for source; aligned_score basis;
    encoder_error basis; encoder_error encoder; lag_products x; spectral_ratios x;
    ball_region source; ellipsoid_region source; imputation_error made; ConditionalScore.__init__ x;
    impute x
"""
# several tensors that nothing moves
TOGETHER = """
    poly_attention q; poly_attention k; poly_attention v; attention_gradient left;
    attention_gradient right; attention_gradient weight; attention_gradient values;
    attention_gradient target; exact_attention_gradient left; exact_attention_gradient right;
    exact_attention_gradient weight; exact_attention_gradient values;
    exact_attention_gradient target
"""
# the same, where a NaN comes out as a NaN
REFERENCES = """
    softmax_attention q; softmax_attention k; softmax_attention v; logit_bound q; logit_bound k
"""
RULES = {
    NUMBERS: ["complex"],
    STEPS: ["complex", "nan"],
    MATRICES: ["complex", "nan"],
    SEQUENCES: ["integers", "complex"],
    DATA: ["integers", "complex", "nan"],
    TOGETHER: ["integers", "complex", "nan", "device"],
    REFERENCES: ["integers", "complex", "device"],
    "require_finite values": ["nan"],
}
REFUSED = {
    tuple(each.split()): kinds for names, kinds in RULES.items() for each in names.split(";")
}
# By room, module or name. Layers see what their network has checked, torch refuses the rest and
# names both sides; so do their weights, which constructions write.
INNER = {
    "networks.dit": "layers", "networks.baselines": "layers", "networks.score_network": "layers",
    "networks.polynomial": "layers", "attention.layer": "layers",
    "attention.certified": "layers", "attention.window": "layers",
    "attention.lowrank": "what a layer has normalised", "construction": "layers, weights",
    "diffusion.methods": "numbers of an unrolled score", "require_attention": "a check",
    "support.spectra": "linear algebra on matrices that were checked", "figures": "pictures",
    "support.conjugate": "systems that were checked",
    "InnerLoop": "matrices of a process that was checked", "descended": "a loop over numbers",
    "data.noise": "draws of a process that was checked", "diagonal_means": "averages",
    "require_score": "looks at shapes", "as_level": "a change of shape",
    "noised_score": "what ExactScore has checked", "noised_log_prob": "the same",
    "framewise_score": "the same", "data.framewise": "the same", "by_frames": "looks at shapes",
    "diagonal_log_density": "sums of squares",
    "monomials": "products", "matching_error": "sums of squares", "draw_batch": "checked data",
    "missing_mean": "sums of squares", "ConditionalDiT.tokens": "a layer",
    "masks_at_home": "looks at shapes",
    "require_fitting": "looks at shapes", "require_values": "looks at the device",
    "Member": "a record, checked by fit_ensemble", "Seen": "a record", "Found": "a record",
    "SamplingError": "a record", "Region.__init__": "a record",
    "LatentMap.__init__": "a record", "support.rounding": "sizes of rounding",
    "elementary": "looks at the kind",
}  # fmt: skip


# ---- the calls ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call of a public callable, with its arguments by name."""

    function: Callable[..., Any]
    arguments: dict[str, Any]

    def again(self, **changed: Any) -> None:
        """Make it once more, to the end."""
        result = self.function(**self.arguments | changed)
        if inspect.isgenerator(result):
            list(result)


def resolved(name: str, arguments: dict[str, Any]) -> Call:
    """The callable behind a documented name, bound as it was."""
    room, file, *path = name.split(".")
    found = importlib.import_module(f"gptheory.{room}.{file}")
    own = arguments.pop("self", None)
    arguments.pop("cls", None)
    if path[-1] == "__init__":
        return Call(type(own), arguments)
    if own is not None:
        return Call(getattr(own, path[-1]), arguments)
    for part in path:
        found = getattr(found, part)
    return Call(found, arguments)


@contextmanager
def recorded(calls: dict[tuple[str, str], Call]) -> Iterator[None]:
    """Keeps the first call in which an argument is a tensor of floating point."""
    names = {id(code): name for name, code in api_tour.documented().items()}

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        name = names.get(id(frame.f_code), "").removeprefix("gptheory.")
        given = given_to(frame.f_code, frame.f_locals) if name else {}
        for each, value in given.items():
            spoilable = isinstance(value, Tensor) and value.is_floating_point()
            if spoilable and (name, each) not in calls:
                calls[name, each] = resolved(name, dict(given))

    before = sys.gettrace()
    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(before)


def given_to(code: CodeType, values: dict[str, Any]) -> dict[str, Any]:
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: values[name] for name in names if name in values}


@pytest.fixture(scope="module")
def calls() -> dict[tuple[str, str], Call]:
    """All that the tour hands to the API, but for studies: they make their data themselves."""
    found: dict[tuple[str, str], Call] = {}
    for stop in api_tour.stops():
        if stop.compare or not stop.visit.__module__.endswith("studies"):
            with recorded(found):
                stop.visit(torch.device("cpu"), torch.float64)
    return found


def short(name: str) -> str:
    """A name without its room and file, by which the rules know it."""
    return name.split(".", 2)[2]


def is_inner(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."


def test_every_tensor_of_the_tour_has_a_rule(calls):
    print(f"{len(calls)} arguments of {len({name for name, _ in calls})} callables,"
          f" {len(REFUSED)} with rules")  # fmt: skip
    known = {(short(name), each) for name, each in calls}
    outer = {
        (short(name), each)
        for name, each in calls
        if not any(is_inner(name, part) for part in INNER)
    }
    assert outer - set(REFUSED) == set()
    assert set(REFUSED) - known == set()
    assert [part for part in INNER if not any(is_inner(name, part) for name, _ in calls)] == []


CASES = [(*key, kind) for key, kinds in REFUSED.items() for kind in kinds]


@pytest.mark.parametrize(("name", "argument", "kind"), CASES)
def test_one_error_names_both_sides(name, argument, kind, calls):
    call = next(
        call for (full, each), call in calls.items() if (short(full), each) == (name, argument)
    )
    spoilt = SPOILT[kind](call.arguments[argument].detach())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call.again()  # as it was
    with pytest.raises(ValueError, match=EXPECTED[kind]) as caught:
        call.again(**{argument: spoilt})
    assert caught.value.__cause__ is None and len(str(caught.value)) < 300


# ---- what the tour has no call for --------------------------------------------------------------


def test_members_of_an_ensemble_are_refused_as_data_are():
    network = DiT(2, 4, 8, 2, 1, generator=seeded(0))
    good = torch.zeros(3, 4, 2)
    for kind in ("integers", "complex", "nan"):
        members = [Member(network, good, 0), Member(network, SPOILT[kind](good), 1)]
        with pytest.raises(ValueError, match=EXPECTED[kind]):
            fit_ensemble(members, TrainConfig(steps=1, batch_size=2))


def test_integers_get_a_hint_and_complex_numbers_another():
    with pytest.raises(ValueError, match=r"pass x\.float\(\) or \.double\(\)"):
        require_floating("x", torch.ones(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"a floating-point tensor \(n,\), got .*take its \.real"):
        require_floating("x", torch.ones(2, dtype=torch.complex64), "(n,)")
    with pytest.raises(ValueError, match=r"got list$"):
        require_floating("x", [1.0])
    with pytest.raises(ValueError, match=r"must be real, got a tensor of torch\.complex64.*\.real"):
        as_real("x", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"must be real numbers, got a tensor of torch\.bool$"):
        as_real("x", torch.ones(2, dtype=torch.bool))


def test_devices_are_named_with_whose_they_are():
    a, b = torch.ones(2), torch.ones(2, device="meta")
    require_one_device(a=a, b=a)
    require_one_device(b=b)
    message = "a, b, c must be on one device, got a on cpu, b on meta, c on cpu"
    with pytest.raises(ValueError, match=f"^{message}$"):
        require_one_device(a=a, b=b, c=a)


# ---- what is no bad input -----------------------------------------------------------------------


def test_integer_covariances_and_means_convert_exactly():
    whole, mean = torch.tensor([[2, 1], [1, 3]]), torch.tensor([1, -2])
    law = GaussianProcess(whole, whole, mean)
    same = GaussianProcess(whole.double(), whole.double(), mean.double())
    assert torch.equal(law.covariance(), same.covariance()) and torch.equal(law.mean, same.mean)
    eye = torch.eye(2, dtype=torch.float64)
    for distance in (gaussian_kl, gaussian_w2):
        assert distance(whole, eye, mean) == distance(whole.double(), eye, mean.double())
    means = torch.tensor([[[1.0, 2.0]]])
    mixtures = [GaussianMixture(means, each) for each in (whole, whole.double())]
    assert torch.equal(*(each.covariance() for each in mixtures))
    x = decaying_process(3, 2).sample(5, seeded(0), torch.float64)
    assert torch.equal(temporal_covariance(x, mean), temporal_covariance(x, mean.double()))


CPU, CLOCK = torch.device("cpu"), Clock(8).double()


@pytest.mark.parametrize(
    "function",
    [
        kernels.Matern(2.0, 1.5), lambda lag: positions.embedding_distance(lag, 9.0),
        schedule.alpha, schedule.sigma, schedule.half_log_snr, schedule.step_at,
        lambda t: schedule.step_tensor(t, CPU), StepFeatures((0.2, 2.0), momentum=True),
        CLOCK,
    ],
)  # fmt: skip
def test_integer_lags_and_steps_count_as_float64(function):
    whole = torch.tensor([1, 2, 5])
    assert torch.equal(function(whole), function(whole.double()))
    assert function(whole).dtype == torch.float64


EYE = torch.eye(2, dtype=torch.float64)
DRAWN = decaying_process(2, 2).sample(9, seeded(0), torch.float64)
MAPS = torch.rand(3, 2, 2, generator=seeded(1), dtype=torch.float64)
FOLLOWS: dict[str, tuple[Callable[..., Any], Tensor, Tensor]] = {
    "Γ of a process": (lambda a, b: GaussianProcess(b, a).covariance(), EYE, 2 * EYE),
    "mean of a process": (lambda a, b: GaussianProcess(a, a, b).mean, EYE, EYE[0]),
    "mixture": (lambda a, b: GaussianMixture(a, b).covariance(), MAPS[:, :1], EYE),
    "mean": (lambda a, b: temporal_covariance(a, b), DRAWN, EYE[0]),
    "estimate": (lambda a, b: relative_error(b, a), EYE, 2 * EYE),
    "covariances": (gaussian_kl, EYE, 2 * EYE),
    "bases": (subspace.subspace_error, EYE[:, :1], EYE[:, 1:]),
    "samples": (lambda a, b: sliced_distance(a, b, 8, seeded(2)), DRAWN, 2 * DRAWN),
    "target": (maps.off_diagonal_correlation, MAPS, MAPS[0]),
    "heads": (lambda a, b: maps.explained(b, a), MAPS, MAPS[0]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FOLLOWS)
def test_the_second_tensor_follows_the_first(name, device):
    """To and from an accelerator, where there is one or one is pretended (make test-devices)."""
    function, a, b = FOLLOWS[name]
    truth = torch.as_tensor(function(a, b))
    for first, second in ((a.to(device), b), (a, b.to(device))):
        found = torch.as_tensor(function(first, second))
        assert found.device == first.device or not found.ndim  # or a number
        assert torch.allclose(found.to("cpu"), truth)


def test_what_a_score_knows_follows_the_sequences():
    """A device that holds no numbers takes what comes to it."""
    data = SubspaceData(random_basis(6, 4, seeded(0)), decaying_process(2, 2))
    elsewhere = torch.zeros(3, 1, 6, dtype=torch.float64, device="meta")
    assert data.encode(elsewhere).device.type == "meta"
    assert ExactScore(data)(elsewhere, 0.5).device.type == "meta"


def test_a_nan_among_the_values_of_attention_is_found_whatever_the_chunk():
    q, k, v = torch.randn(3, 600, 2, generator=seeded(0), dtype=torch.float64)
    v[571, 1] = float("inf")
    for chunk in (64, 1000):
        with pytest.raises(ValueError, match="v must be finite, got 1 NaN or infinite"):
            poly_attention(q / 4, k / 4, v, 4, chunk=chunk)


def test_asymmetry_is_told_after_kind():
    with pytest.raises(ValueError, match="must be real"):
        GaussianProcess(covariance(3) + 1j * torch.eye(3), torch.eye(2))
