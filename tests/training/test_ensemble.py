"""Networks trained together: each as it would be alone, and as `fit` trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from strategies import DEVICES, process, seeded
from torch.utils._python_dispatch import TorchDispatchMode

from gptheory.data import GaussianTwin, random_mixture
from gptheory.measures import path_kl
from gptheory.networks import DiT, LearnedSteps, UNet1d
from gptheory.networks.baselines import FrameMLP
from gptheory.networks.learned import LearnedCovariance
from gptheory.training import TrainConfig, fit, fit_ensemble
from gptheory.training.config import TrainingDivergedError
from gptheory.training.ensemble import Member, _Stack

LAW = process(5, 3)  # odd sizes: no tensor is a multiple of a vector
CONFIG = TrainConfig(steps=6, batch_size=3, evaluate_at=())


def small_dit(seed: int) -> DiT:
    return DiT(3, 5, 8, 2, 1, fused=False, generator=seeded(seed))


def learned(seed: int) -> LearnedCovariance:
    return LearnedCovariance(3, 5, 2, stationary=seed % 2 == 0, generator=seeded(seed))


def members(build=small_dit, count: int = 5) -> list[Member]:
    """Half of them with fresh data, half with a training set of their own size."""
    return [
        Member(build(k), LAW if k % 2 else LAW.sample(3 + k, seeded(k)), 100 + k)
        for k in range(count)
    ]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def other_dit(seed: int, **options) -> DiT:
    return DiT(3, 5, 8, 2, 1, fused=False, generator=seeded(seed), **options)


BUILDS = [
    small_dit,
    lambda seed: other_dit(seed, attention="certified", radius=1.5, degree=3),
    lambda seed: other_dit(seed, attention="normalised", radius=1.5),
    lambda seed: other_dit(seed, attention="window", window=2),
    lambda seed: learned(0),
    lambda seed: learned(1),
    lambda seed: LearnedSteps(LAW, 3, momentum=True, generator=seeded(seed)),
    lambda seed: FrameMLP(3, hidden=8, depth=2, generator=seeded(seed)),
]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("batch_size", [16, 3])
def test_who_else_is_in_the_ensemble_does_not_matter(build, batch_size):
    """Not a bit for batches of full vectors, rounding otherwise."""
    config = dataclasses.replace(CONFIG, batch_size=batch_size)
    with threads(1):
        together = fit_ensemble(members(build), config)
        groups = {(k,): members(build)[k : k + 1] for k in range(5)}
        groups[2, 3] = members(build)[2:4]
        for rows, group in groups.items():
            for row, own in zip(rows, fit_ensemble(group, config), strict=True):
                gap = (weights(own) - weights(together[row])).abs().max()
                assert gap == 0 if batch_size == 16 else gap < 1e-4


class Products(TorchDispatchMode):
    """What sums over an axis that is not a member's: kind and shapes without the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
        if name in ("bmm", "baddbmm"):  # alike, whatever the size of the batch
            shapes = [shape[-2:] for shape in shapes]
        elif name == "mm":  # by the same matrix; rows stand for members and sequences, in vectors
            shapes = [(shapes[0][0] % 16, shapes[0][1]), shapes[1]]
        if name in ("bmm", "baddbmm", "mm", "addmm", "mv", "dot") or "convolution" in name:
            self.seen.add((name, *shapes))
        return func(*args, **(kwargs or {}))


def products(build, count: int) -> set:
    """Of one step of training M networks."""
    stack = _Stack([build(k) for k in range(count)])
    v = torch.randn(count, 16, 5, 3, generator=seeded(0))
    with Products() as found:
        stack(v, torch.full((count, 16), 0.5)).square().sum().backward()
    return found.seen


@pytest.mark.parametrize("build", BUILDS)
def test_members_are_a_batch_in_every_product(build):
    """What the claim above rests on, whatever the machine: products do not see how many there are.

    A convolution does: there members are groups, and the claim is withdrawn.
    """
    assert products(build, 2) == products(build, 5) == products(build, 16)
    of_unet = [products(lambda k: UNet1d(3, 5, 8, generator=seeded(k)), count) for count in (2, 5)]
    assert all("convolution" in name for name, *_ in of_unet[0] ^ of_unet[1])


@pytest.mark.parametrize("weight", ["noise", "velocity"])
@pytest.mark.parametrize("build", [*BUILDS[:4], lambda seed: learned(0)])
def test_every_member_is_trained_as_fit_does(build, weight):
    """Batches, schedule, clipping, AdamW and average: an independent loop, up to rounding."""
    config = dataclasses.replace(CONFIG, weight=weight, clip=0.5, ema_decay=0.6, weight_decay=0.3)
    group = [dataclasses.replace(m, model=m.model.double()) for m in members(build, 3)]
    untouched = [weights(member.model) for member in group]
    for member, before, trained in zip(group, untouched, fit_ensemble(group, config), strict=True):
        assert torch.equal(weights(member.model), before)
        own = dataclasses.replace(config, seed=member.seed)
        expected = weights(fit(member.model, member.data, own).model)
        assert not trained.training and not any(p.requires_grad for p in trained.parameters())
        moved = (expected - before).norm()
        # AdamW's first steps are signs of gradients: where one is nearly 0, rounding decides
        assert (weights(trained) - expected).norm() < 1e-6 * moved


class Standardised(torch.nn.Module):
    """A network that gathers statistics of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics, self.linear = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(-torch.eye(3))
            self.linear.bias.zero_()

    def forward(self, v, t):
        return self.linear(self.statistics(v.flatten(0, 1))).view_as(v)


def test_members_draw_from_any_law():
    """Each from its own generator, as in a run of one network."""
    laws = [random_mixture(5, 3, generator=seeded(1)), GaussianTwin(LAW.sample(40, seeded(2)))]
    group = [Member(small_dit(k).double(), law, k) for k, law in enumerate(laws)]
    for seed, trained in enumerate(fit_ensemble(group, CONFIG)):
        before = weights(small_dit(seed))
        alone = fit(small_dit(seed).double(), laws[seed], dataclasses.replace(CONFIG, seed=seed))
        moved = (weights(alone.model) - before).norm()
        assert (weights(trained) - weights(alone.model)).norm() < 1e-6 * moved


def test_every_member_has_the_statistics_of_its_own_data():
    group = members(lambda seed: Standardised().double().eval(), 2)
    trained = fit_ensemble(group, CONFIG)
    assert not torch.equal(*(model.statistics.running_mean for model in trained))
    for member, own in zip(group, trained, strict=True):
        assert not member.model.statistics.running_mean.any()  # left as it was
        config = dataclasses.replace(CONFIG, seed=member.seed)
        expected = fit(member.model, member.data, config).model.state_dict()
        assert expected["statistics.num_batches_tracked"] == CONFIG.steps
        for name, value in own.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


def frozen_lift(seed: int) -> DiT:
    model = small_dit(seed)
    model.lift.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (DiT(3, 5, 8, 1, 1, fused=False), r"differ in model: .*'heads': 2.*'heads': 1"),
        (DiT(3, 5, 8, 2, 1, attention="relu", fused=False), "differ in model: .*'relu'"),
        (small_dit(0).double(), r"differ in .*weight: \(torch.float32, .*float64"),
        (DiT(3, 5, 16, 2, 1, fused=False), "differ in model: .*'hidden': 8.*'hidden': 16"),
        (learned(0), "differ in model: .*DiT.*LearnedCovariance"),
        (frozen_lift(0), r"differ in list of frozen weights: \[\] and \['lift.weight'"),
    ],
)
def test_models_that_differ_are_refused(other, complaint):
    """All are computed by the first: only its weights would be another's."""
    group = [Member(small_dit(0), LAW, 0), Member(small_dit(1), LAW, 1), Member(other, LAW, 0)]
    with pytest.raises(ValueError, match="models 0 and 2 of the ensemble " + complaint):
        fit_ensemble(group, CONFIG)


def test_frozen_weights_are_refused():
    frozen = [Member(frozen_lift(seed), LAW, seed) for seed in range(2)]
    with pytest.raises(ValueError, match=r"lift\.weight, lift\.bias of its models"):
        fit_ensemble(frozen, CONFIG)


class Dropping(torch.nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(3, 3), torch.nn.Dropout(p)

    def forward(self, v, t):
        return self.dropout(self.linear(v))


def test_models_that_draw_random_numbers_are_refused():
    with pytest.raises(ValueError, match="must not draw random numbers, as dropout does: set its"):
        fit_ensemble(members(lambda seed: Dropping(0.1), 2), CONFIG)
    assert all(
        isinstance(x, Dropping) for x in fit_ensemble(members(lambda _: Dropping(0.0)), CONFIG)
    )


def test_compiled_models_are_trained_as_they_were_before():
    torch.compiler.reset()
    plain = fit_ensemble(members(count=2), CONFIG)
    found = fit_ensemble(
        [dataclasses.replace(m, model=torch.compile(m.model, backend="eager"))
         for m in members(count=2)], CONFIG,
    )  # fmt: skip
    for one, other in zip(plain, found, strict=True):
        assert type(other) is DiT
        assert torch.equal(weights(one), weights(other))


def test_ensembles_learn_under_autocast_as_fit_does():
    config = dataclasses.replace(CONFIG, steps=60, learning_rate=1e-2)
    group = [Member(small_dit(k), LAW, k) for k in range(2)]
    plain = fit_ensemble(group, config)
    with torch.autocast("cpu", torch.bfloat16):
        short = fit_ensemble(group, config)
    for member, one, other in zip(group, plain, short, strict=True):
        before, own, theirs = (
            path_kl(model, LAW, n=512, generator=seeded(1)) for model in (member.model, one, other)
        )
        print(f"path divergence {before:.3g} -> {own:.3g}, under autocast {theirs:.3g}")
        assert own < 0.85 * before and theirs < 1.1 * own


def test_a_member_that_diverges_leaves_the_others_alone():
    group = members()
    with torch.no_grad():
        group[1].model.lift.weight.fill_(float("nan"))
    outcomes = fit_ensemble(group, CONFIG)
    assert isinstance(outcomes[1], TrainingDivergedError)
    assert "diverged at step 1 of 6" in str(outcomes[1])
    expected = fit_ensemble(members(), CONFIG)
    for k in (0, 2, 3, 4):
        assert torch.equal(weights(outcomes[k]), weights(expected[k]))


def test_ensembles_refuse_bad_input():
    with pytest.raises(ValueError, match="at least one member"):
        fit_ensemble([], CONFIG)
    with pytest.raises(ValueError, match="seq_len=5, the data have seq_len=4"):
        fit_ensemble([Member(small_dit(0), torch.zeros(2, 4, 3), 0)], CONFIG)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_ensemble([Member(small_dit(0), torch.full((2, 5, 3), torch.nan), 0)], CONFIG)


@pytest.mark.parametrize("device", DEVICES)
def test_ensembles_train_where_their_models_are(device):
    group = [dataclasses.replace(m, model=m.model.to(device)) for m in members(count=2)]
    for trained in fit_ensemble(group, CONFIG):
        assert weights(trained).device.type == device
        assert torch.isfinite(weights(trained)).all()


def test_samplers_are_told_where_a_network_was_trained():
    config = TrainConfig(steps=2, batch_size=2, t_min=0.02, t_max=6.0, evaluate_n=2)
    alone = fit(small_dit(0), LAW, config).model
    (together,) = fit_ensemble([Member(small_dit(0), LAW, 0)], config)
    assert alone.t_range == together.t_range == (0.02, 6.0)
    assert "t_range" not in alone.state_dict()
