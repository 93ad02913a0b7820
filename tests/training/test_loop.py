"""Training: the loss and its minimiser, the schedule, resuming after a kill, bad input."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import re
import signal
import sys

import mortal
import numpy as np
import pytest
import torch
from strategies import DEVICES, process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import GaussianProcess, GaussianTwin, PowerExponential, random_mixture
from gptheory.data.law import KnownLaw
from gptheory.diffusion import ExactScore, alpha, sigma
from gptheory.diffusion.schedule import half_log_snr
from gptheory.latent import LatentScore, SubspaceData, random_basis
from gptheory.latent.networks import FullScore
from gptheory.measures import path_kl, score_error
from gptheory.networks import DiT, LearnedSteps, UNet1d
from gptheory.networks.baselines import FrameMLP
from gptheory.support.files import DamagedFileError, load_arrays, save_arrays
from gptheory.training import TrainConfig, fit, matching_loss, resume
from gptheory.training import loop as training_loop
from gptheory.training.config import TrainingDivergedError
from gptheory.training.loop import Training
from gptheory.training.objective import matching_steps

LAW = process(4, 2)
SHORT = TrainConfig(steps=6, batch_size=4, log_every=4, evaluate_n=8, evaluate_at=(0.1,))


def small_dit(seed: int = 0) -> DiT:
    return DiT(2, 4, 8, 1, 1, generator=seeded(seed))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_same_run(first, second) -> None:
    """Two (model, result): every number that training decides is the same, bit for bit."""
    (model, result), (other_model, other) = first, second
    for one, two in ((model, other_model), (result.model, other.model)):
        kept = one.state_dict()
        assert kept.keys() == two.state_dict().keys()
        assert all(torch.equal(kept[name], value) for name, value in two.state_dict().items())
    assert result.history.drop(columns="seconds").equals(other.history.drop(columns="seconds"))
    assert result.evaluations.equals(other.evaluations)


class Standardised(torch.nn.Module):
    """A linear score of frames that are standardised by statistics of the data seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics, self.linear = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.linear.weight.copy_(-torch.eye(2))
            self.linear.bias.zero_()

    def forward(self, v, t):
        return self.linear(self.statistics(v.flatten(0, 1))).view_as(v)


class Dropping(torch.nn.Module):
    """A linear score with dropout; ``always`` also where it is evaluated."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.linear, self.always = torch.nn.Linear(2, 2), always
        with torch.no_grad():
            self.linear.weight.copy_(-torch.eye(2))
            self.linear.bias.zero_()

    def forward(self, v, t):
        active = self.always or self.training
        return torch.nn.functional.dropout(self.linear(v), 0.3, active)


# ---- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["velocity", "noise"])
@pytest.mark.parametrize("t", [0.05, 1.0])
def test_loss_of_a_score_is_its_error_above_that_of_the_exact_score(weight, t):
    """The identity behind denoising score matching, for the score of another process."""
    wrong, n = ExactScore(process(4, 2, seed=9)), 20_000
    exact = ExactScore(LAW)
    x = LAW.sample(n, seeded(1), torch.float64)
    losses = [matching_loss(s, x, t, seeded(2), weight).item() for s in (wrong, exact)]
    v = alpha(t) * x + sigma(t) * torch.randn(x.shape, generator=seeded(3), dtype=torch.float64)
    scale = sigma(t) ** 2 if weight == "noise" else (sigma(t) / alpha(t)) ** 2
    squares = scale * (wrong(v, t) - exact(v, t)).square().mean(dim=(1, 2))
    # the noise of the difference is at most that of both terms: bound it from batches
    batches = [
        (matching_loss(wrong, part, t, seeded(4), weight)
         - matching_loss(exact, part, t, seeded(4), weight)).item()
        for part in x.split(n // 50)
    ]  # fmt: skip
    error = np.std(batches) / math.sqrt(50) + squares.std().item() / math.sqrt(n)
    assert_statistical(losses[0] - losses[1], squares.mean().item(), error, n)


def test_loss_of_the_zero_score_is_that_of_the_noise():
    x = LAW.sample(5, seeded(0), torch.float64)
    noise = torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    t = torch.linspace(0.1, 2, 5, dtype=torch.float64)
    expected = (noise / alpha(t)[:, None, None]).square().mean()
    zero = torch.zeros_like
    assert_identity(matching_loss(lambda v, t: zero(v), x, t, seeded(1)), expected)
    loss = matching_loss(lambda v, t: zero(v), x, t, seeded(1), "noise")
    assert_identity(loss, noise.square().mean())


@pytest.mark.parametrize("law", ["logsnr", "uniform", "normal"])
def test_diffusion_steps_follow_their_law(law):
    n = 4000
    t = matching_steps(n, law, 0.01, 8.0, seeded(0))
    assert t.shape == (n,) and t.min() >= 0.01 * (1 - 1e-9) and t.max() <= 8 * (1 + 1e-9)
    clock = {"logsnr": half_log_snr(t), "uniform": t, "normal": 2 * half_log_snr(t)}[law]
    if law == "normal":
        inside = clock[(clock > -5) & (clock < 4.5)]
        # the clipped tails leave a normal law of known median
        assert_statistical((clock < 1).double().mean(), 0.5, 0.5 / n**0.5, n)
        assert_statistical((clock < 3).double().mean(), 0.8413, 0.37 / n**0.5, n)
        assert len(inside) > 0.95 * n
        return
    low, high = sorted((f(0.01), f(8.0)) for f in [half_log_snr if law == "logsnr" else float])[0]
    low, high = min(low, high), max(low, high)
    strata = ((clock - low) / (high - low) * n).floor().clamp(0, n - 1).sort().values
    assert (strata.unique().numel()) >= n - 2  # one in each stratum, up to rounding at its edges


# ---- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [lambda g: DiT(1, 2, 16, 2, 2, generator=g), lambda g: LearnedSteps(TINY, 3, generator=g)],
)
def test_training_moves_towards_the_exact_score(build):
    model = build(seeded(0))
    before = path_kl(model, TINY, generator=seeded(1))
    config = TrainConfig(steps=150, batch_size=64, learning_rate=1e-2, evaluate_every=50)
    result = fit(model, TINY, config)
    after = path_kl(result.model, TINY, generator=seeded(1))
    print(f"path divergence {before:.3g} -> {after:.3g}")
    assert after < 0.3 * before


TINY = GaussianProcess(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), torch.eye(1))


def test_evaluations_are_exact_score_errors_of_the_averaged_weights():
    config = dataclasses.replace(SHORT, evaluate_every=3, evaluate_at=(0.1, 1.0))
    result = fit(small_dit(), LAW, config)
    assert list(result.evaluations.step) == [3, 3, 6, 6]
    assert list(result.evaluations.t) == [0.1, 1.0] * 2
    last = result.evaluations.score_error.iloc[-1]
    assert last == score_error(result.model, LAW, 1.0, 8, seeded(training_loop.EVALUATION_SEED))


def test_evaluations_do_not_change_the_run():
    often = fit(small_dit(), LAW, dataclasses.replace(SHORT, evaluate_every=1))
    assert torch.equal(weights(often.model), weights(fit(small_dit(), LAW, SHORT).model))


def test_history_is_tidy():
    history = fit(small_dit(), LAW, SHORT).history
    assert list(history.columns) == ["step", "seconds", "learning_rate", "loss", "grad_norm"]
    assert list(history.step) == [4, 6]
    assert history.notna().all(axis=None) and history.seconds.is_monotonic_increasing


def test_finite_data_are_all_that_is_seen(monkeypatch):
    """Sequences drawn from a tensor, in the dtype of the weights; the process only evaluates."""
    data = torch.arange(3.0, dtype=torch.float64)[:, None, None].expand(3, 4, 2)
    seen = []

    def spy(score, x, t, *rest):
        seen.append(x)
        return matching_loss(score, x, t, *rest)

    monkeypatch.setattr(training_loop, "matching_loss", spy)
    result = fit(small_dit(), data, SHORT, law=LAW)
    drawn = torch.cat(seen)
    assert drawn.dtype == torch.float32 and drawn.shape == (24, 4, 2)
    assert set(drawn.unique().tolist()) == {0.0, 1.0, 2.0}
    assert len(result.evaluations) == 1
    assert fit(small_dit(), data, SHORT).evaluations.empty


MIXTURES = [random_mixture(4, 2, spread=s, generator=seeded(1)) for s in (0.25, 0.5)]
TWINS = [GaussianTwin(LAW.sample(n, seeded(2))) for n in (40, 50)]
# a law, and another one of its kind
LAWS = {
    "process": (LAW, process(4, 2, seed=1)),
    "mixture": MIXTURES,
    "subspace": [SubspaceData(random_basis(8, 8, seeded(3)), law, 0.1) for law in MIXTURES],
    "twin": TWINS,
}


@pytest.mark.parametrize(("law", "other"), LAWS.values(), ids=LAWS)
def test_any_law_supplies_fresh_sequences(law, other, monkeypatch, tmp_path):
    """And evaluations, where its score is known; checkpoints say which law it was."""
    seen = []

    def spy(score, x, t, *rest):
        seen.append(x)
        return matching_loss(score, x, t, *rest)

    monkeypatch.setattr(training_loop, "matching_loss", spy)
    network = DiT(law.dim, law.seq_len, 8, 1, 1, generator=seeded(0))
    result = fit(network, law, SHORT, checkpoint=tmp_path / "run")
    assert len(torch.cat(seen).unique(dim=0)) == 24
    assert len(result.evaluations) == isinstance(law, KnownLaw)
    assert len(fit(network, law, SHORT, checkpoint=tmp_path / "run").history) == 2
    assert len(seen) == 6
    with pytest.raises(ValueError, match="the checkpoint of another run: its data is"):
        fit(network, other, SHORT, checkpoint=tmp_path / "run")


def test_evaluations_need_a_law_whose_score_is_known():
    """And say so at once, not when the first evaluation is due."""
    with pytest.raises(ValueError, match="a law that knows its noised_score, got GaussianTwin"):
        Training(small_dit(), LAW.sample(8, seeded(0)), SHORT, TWINS[0])


def test_average_starts_short_and_follows_its_decay():
    """Recomputed from the weights after every step."""
    training = Training(small_dit(), LAW, dataclasses.replace(SHORT, steps=30, ema_decay=0.5))
    expected = weights(training.model).double()
    for step in training:
        decay = min(0.5, step / (9 + step))
        expected = decay * expected + (1 - decay) * weights(training.model).double()
    torch.testing.assert_close(weights(training.average).double(), expected, rtol=1e-5, atol=1e-7)


def test_averaged_model_has_the_statistics_that_were_gathered():
    """Buffers are not averaged: those of the model count, at evaluations too."""
    training = Training(Standardised(), LAW, SHORT)
    for step in training:
        own, average = (m.statistics for m in (training.model, training.average))
        assert average.num_batches_tracked == step and own.running_mean.any()
        assert torch.equal(average.running_mean, own.running_mean)
    assert not training.average.training


def test_learning_rate_rises_linearly_and_falls_as_a_cosine():
    config = TrainConfig(steps=100, learning_rate=1.0, warmup=0.2)
    rates = np.array([config.learning_rate_at(k) for k in range(100)])
    assert_identity(rates[:20], np.arange(1, 21) / 21)
    assert_identity(rates[20:], (1 + np.cos(np.pi * np.arange(80) / 80)) / 2)
    assert TrainConfig(warmup=0.0, learning_rate=1.0).learning_rate_at(0) == 1.0


def test_each_update_uses_its_learning_rate_and_a_clipped_gradient():
    config = dataclasses.replace(SHORT, clip=1e-3, weight_decay=0.0)
    training = Training(small_dit(), LAW, config)
    for step in training:
        (group,) = training.optimiser.param_groups
        assert group["lr"] == config.learning_rate_at(step - 1)
        gradient = torch.cat([p.grad.flatten() for p in training.model.parameters()])
        assert gradient.norm() <= 1e-3 * (1 + 1e-4)
    assert (training.result().history.grad_norm > 1e-3).all()  # as it was before clipping


def test_frozen_weights_and_zeroed_gradients_stay():
    """What fine-tuning a constructed network needs: freeze some weights, mask others."""
    model = small_dit()
    model.lift.requires_grad_(False)
    mask = torch.zeros_like(model.readout.weight)
    mask[0] = 1
    model.readout.weight.register_hook(lambda gradient: gradient * mask)
    lift = model.lift.weight.clone()
    result = fit(model, LAW, SHORT)
    for network in (model, result.model):
        assert torch.equal(network.lift.weight, lift)
        assert network.readout.weight[0].abs().min() > 0
        assert not network.readout.weight[1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_run_depends_on_its_seeds_only(dtype):
    torch.manual_seed(1)
    first = fit(small_dit().to(dtype), LAW, SHORT)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = fit(small_dit().to(dtype), LAW, SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(first.model).dtype == dtype
    assert torch.equal(weights(first.model), weights(second.model))
    third = fit(small_dit().to(dtype), LAW, dataclasses.replace(SHORT, seed=1))
    assert not torch.equal(weights(first.model), weights(third.model))


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted():
    return mortal.train(None)


@pytest.fixture(scope="module")
def children():
    """Processes forked from a clean server that has imported once what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["gptheory.training.loop", "gptheory.networks.dit", "torch._dynamo"]
    )
    return context


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("kill_point", mortal.KILL_POINTS)
def test_killed_run_resumes_bit_for_bit(kill_point, uninterrupted, children, tmp_path):
    path = tmp_path / "run.safetensors"
    arguments = (kill_point, path, torch.get_num_threads())
    child = children.Process(target=mortal.run_and_die, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    kept = mortal.KILL_POINTS[kill_point]
    assert path.exists() == (kept > 0)
    if kept:
        assert load_arrays(path)[1]["step"] == kept
    leftover = len(list(tmp_path.glob(".*.tmp")))
    unfinished = ("half of a file written", "before the file takes its place")
    assert leftover == (kill_point in unfinished)
    assert_same_run(mortal.train(path), uninterrupted)


@pytest.mark.parametrize(
    "build",
    [
        small_dit,
        lambda: DiT(2, 4, 8, 2, 1, attention="certified", radius=1.5, generator=seeded(0)),
        lambda: DiT(2, 4, 8, 2, 1, attention="window", window=2, generator=seeded(0)),
        lambda: UNet1d(2, 4, 4, generator=seeded(0)),
        lambda: FrameMLP(2, hidden=8, depth=1, generator=seeded(0)).double(),
        lambda: LearnedSteps(LAW, 2, momentum=True, generator=seeded(0)),
        Standardised,
        Dropping,
        lambda: Dropping(always=True),
    ],
)
@pytest.mark.parametrize("finite", [True, False])
def test_interrupted_run_resumes_bit_for_bit(build, finite, tmp_path):
    data = LAW.sample(10, seeded(5)) if finite else LAW
    path = tmp_path / "run.safetensors"
    training = Training(build(), data, SHORT, LAW)
    for step in training:
        if step == 3:
            resume.save_checkpoint(path, training)
            break
    resumed, straight = build(), build()
    results = fit(resumed, data, SHORT, LAW, path), fit(straight, data, SHORT, LAW)
    assert_same_run((resumed, results[0]), (straight, results[1]))


@pytest.mark.parametrize("always", [False, True])
def test_draws_of_torchs_own_generator_come_from_the_seed(always):
    """Whoever has drawn from it before, and nobody after notices."""
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = Dropping(always)
        before = torch.get_rng_state()
        runs.append((model, fit(model, LAW, SHORT)))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same_run(*runs)
    other = Dropping(always)
    fit(other, LAW, dataclasses.replace(SHORT, seed=1))
    assert not torch.equal(weights(other), weights(runs[0][0]))


@pytest.mark.parametrize("device", DEVICES)
def test_draws_of_a_device_are_kept_in_its_checkpoint(device, tmp_path):
    path, states = tmp_path / "run.safetensors", []
    for stop in (True, False):
        training = Training(Dropping().to(device), LAW, SHORT)
        if not stop:
            resume.load_checkpoint(path, training)
        for step in training:
            if stop and step == 3:
                resume.save_checkpoint(path, training)
        states.append(training.draws.states)
    assert set(states[0]) == {"cpu", device}
    assert all(torch.equal(state, states[1][kind]) for kind, state in states[0].items())


def test_every_update_draws_anew_and_nothing_that_the_data_are_made_of():
    class Drawing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.drawn = torch.nn.Parameter(torch.zeros(1)), []

        def forward(self, v, t):
            if self.training:
                self.drawn.append(torch.rand(4).tolist())
            return self.weight * v

    model = Drawing()
    fit(model, LAW, SHORT)
    drawn = torch.tensor(model.drawn).flatten()
    assert len(drawn.unique()) == 4 * SHORT.steps
    stream = torch.rand(1000, generator=seeded(SHORT.seed))
    assert not torch.isin(drawn, stream).any()


def test_an_update_that_fails_gives_torchs_generator_back():
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, v, t):
            torch.rand(3)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        fit(Broken(), LAW, SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpoints_of_other_versions_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(small_dit(), LAW, SHORT, checkpoint=path)
    arrays, record = load_arrays(path)
    del record["format"]
    save_arrays(path, arrays, record)
    with pytest.raises(ValueError, match=r"another version of gptheory \(format 1, here 2\)"):
        fit(small_dit(), LAW, SHORT, checkpoint=path)


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """Compiled by the backend that needs no compiler: the graph is run as it is traced."""
    torch.compiler.reset()
    return torch.compile(model, backend="eager")


def partly_compiled() -> LatentScore:
    model = latent_score()
    model.network = compiled(model.network)
    return model


def latent_score() -> LatentScore:
    return LatentScore(8, 4, FrameMLP(2, 2, hidden=8, depth=1, generator=seeded(0)), seeded(1))


@pytest.mark.parametrize(
    ("plain", "wrapped"),
    [(small_dit, lambda: compiled(small_dit())), (latent_score, partly_compiled)],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at its inputs
def test_compiled_networks_have_the_checkpoints_of_their_own(plain, wrapped, tmp_path):
    data = torch.randn(9, *((1, 8) if plain is latent_score else (4, 2)), generator=seeded(0))
    files = tmp_path / "plain", tmp_path / "compiled"
    for build, path in zip((plain, wrapped), files, strict=True):
        training = Training(build(), data, SHORT)
        for step in training:
            if step == 3:
                resume.save_checkpoint(path, training)
                break
    (arrays, record), (others, other) = (load_arrays(path) for path in files)
    assert record["identity"] == other["identity"]
    assert arrays.keys() == others.keys()
    assert all(torch.equal(arrays[name], value) for name, value in others.items())
    ends = [fit(build(), data, SHORT, checkpoint=path)
            for build, path in zip((wrapped, plain), files, strict=True)]  # fmt: skip
    assert torch.equal(*(weights(end.model) for end in ends))


def test_a_compiled_network_is_trained_compiled_and_returned_as_it_was(tmp_path):
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    network = small_dit()
    result = fit(torch.compile(network, backend=count), LAW, SHORT)
    assert graphs
    assert type(result.model) is DiT
    assert_same_run((network, result), (other := small_dit(), fit(other, LAW, SHORT)))
    network.compile(backend="eager")  # in place: there is no other module
    assert torch.isfinite(weights(fit(network, LAW, SHORT).model)).all()


def test_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "run.safetensors"
    first, second = small_dit(0), small_dit(7)
    done = fit(first, LAW, SHORT, checkpoint=path)
    content = path.read_bytes()
    again = fit(second, LAW, SHORT, checkpoint=path)
    assert_same_run((second, again), (first, done))
    assert again.seconds == done.seconds
    assert path.read_bytes() == content


def test_seconds_add_up_over_interruptions(tmp_path):
    path = tmp_path / "run.safetensors"
    training = Training(small_dit(), LAW, SHORT)
    next(iter(training))
    training.seconds = 1000.0
    resume.save_checkpoint(path, training)
    result = fit(small_dit(), LAW, SHORT, checkpoint=path)
    assert 1000 < result.seconds < 1100 and result.history.seconds.is_monotonic_increasing


def test_weights_shared_by_blocks_are_stored_once(tmp_path):
    def build():
        model = FrameMLP(2, hidden=8, depth=2, generator=seeded(0))
        model.blocks[1] = model.blocks[0]
        return model

    path = tmp_path / "run.safetensors"
    first, second = build(), build()
    done = fit(first, LAW, SHORT, checkpoint=path)
    assert not any("blocks.1" in name for name in load_arrays(path)[0])
    assert_same_run((second, fit(second, LAW, SHORT, checkpoint=path)), (first, done))
    assert done.model.blocks[1] is done.model.blocks[0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"config": dataclasses.replace(SHORT, learning_rate=1e-3)}, "learning_rate is 0.006"),
        ({"config": dataclasses.replace(SHORT, seed=1)}, "seed is 0"),
        ({"model": lambda: DiT(2, 4, 16, 1, 1)}, "'hidden': 8"),
        ({"model": lambda: DiT(2, 4, 8, 1, 1, attention="relu")}, "'attention': 'softmax'"),
        ({"model": lambda: small_dit().double()}, "set of weights"),
        ({"model": lambda: FrameMLP(2)}, "model is ['DiT', "),
        ({"data": process(4, 2, seed=3)}, "data is 'GaussianProcess"),
        ({"data": LAW.sample(3, seeded(0))}, "data is 'GaussianProcess"),
    ],
)
def test_checkpoint_of_another_run_is_refused(change, complaint, tmp_path):
    path = tmp_path / "run.safetensors"
    fit(small_dit(), LAW, SHORT, checkpoint=path)
    run = {"model": small_dit, "data": LAW, "config": SHORT, **change}
    with pytest.raises(
        ValueError, match="checkpoint of another run: its .*" + re.escape(complaint)
    ):
        fit(run["model"](), run["data"], run["config"], checkpoint=path)


def whole(skip: bool = True, heads: int = 2) -> FullScore:
    return FullScore(DiT(2, 2, 8, heads, 1, generator=seeded(0)), skip)


def encoded(noise: float) -> LatentScore:
    return LatentScore(4, 2, DiT(2, 1, 8, 2, 1, generator=seeded(0)), seeded(0), noise=noise)


def partly_frozen(*names: str) -> DiT:
    model = small_dit()
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("build", "other", "complaint"),
    [
        (whole, lambda: whole(skip=False), "its model is ['FullScore', {'skip': True}], here"),
        (whole, lambda: whole(heads=4), "its model.network is ['DiT', {'dim': 2"),
        (lambda: encoded(0.0), lambda: encoded(0.5), "'noise': 0.0}], here it is"),
        (
            lambda: LearnedSteps(process(4, 2, seed=1), 3, generator=seeded(0)),
            lambda: LearnedSteps(process(4, 2, seed=2), 3, generator=seeded(0)),
            "its model is ['LearnedSteps', ",
        ),
        (
            small_dit,
            lambda: partly_frozen("lift"),
            "its list of frozen weights is [], here it is ['lift.",
        ),
        (
            lambda: torch.nn.ModuleList([Standardised(), torch.nn.Dropout(0.1)]),
            lambda: torch.nn.ModuleList([Standardised(), torch.nn.Dropout(0.5)]),
            "its model.1 is ['Dropout', 'p=0.1, ",
        ),
    ],
)
def test_checkpoint_of_another_network_of_the_same_shapes_is_refused(
    build, other, complaint, tmp_path
):
    path = tmp_path / "run.safetensors"
    seq_len, dim = (getattr(build(), name, size) for name, size in (("seq_len", 4), ("dim", 2)))
    data = torch.randn(8, seq_len, dim, generator=seeded(0))
    resume.save_checkpoint(path, Training(build(), data, SHORT))
    resume.load_checkpoint(path, Training(build(), data, SHORT))
    with pytest.raises(ValueError, match="another run: .*" + re.escape(complaint)):
        resume.load_checkpoint(path, Training(other(), data, SHORT))


def test_numbers_of_numpy_are_stored_like_those_of_python(tmp_path):
    path, two = tmp_path / "run.safetensors", np.int64(2)
    config = dataclasses.replace(
        SHORT, steps=np.int64(6), seed=np.int64(0), clip=np.float32(1), evaluate_at=(np.float64(1),)
    )
    plain = dataclasses.replace(SHORT, evaluate_at=(1.0,))
    build = (lambda: DiT(two, 4, 4 * two, 1, 1, generator=seeded(0)), small_dit)
    done = fit(build[0](), LAW, config, checkpoint=path, checkpoint_every=np.int64(4))
    again = fit(small_dit(3), LAW, plain, checkpoint=path)
    assert torch.equal(weights(done.model), weights(again.model))
    assert torch.equal(weights(done.model), weights(fit(build[1](), LAW, plain).model))


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(small_dit(), LAW, SHORT, checkpoint=path)
    content = path.read_bytes()
    foreign = tmp_path / "foreign"
    save_arrays(foreign, {"x": torch.zeros(2)}, {})
    flipped = bytearray(content)
    flipped[-1000] ^= 1
    for damaged, complaint in [
        (content[:-1], "damaged"),
        (content[: len(content) // 2], "damaged"),
        (b"", "damaged"),
        (b"not a checkpoint", "damaged"),
        (bytes(flipped), "do not match its digest"),
        (foreign.read_bytes(), "not a checkpoint of a training run"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=complaint):
            fit(small_dit(), LAW, SHORT, checkpoint=path)
    with pytest.raises(FileNotFoundError):
        resume.load_checkpoint(tmp_path / "absent", Training(small_dit(), LAW, SHORT))


def test_pickles_are_never_read(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    path = tmp_path / "run.safetensors"
    fit(small_dit(), LAW, SHORT, checkpoint=path, checkpoint_every=2)
    fit(small_dit(), LAW, SHORT, checkpoint=path)
    torch.save(small_dit().state_dict(), path)
    with pytest.raises(DamagedFileError, match="no safetensors file"):
        fit(small_dit(), LAW, SHORT, checkpoint=path)


# ---- divergence and bad input -------------------------------------------------------------------


class Bomb(torch.nn.Module):
    """A score that is not finite from its fifth call on."""

    def __init__(self, gradient_only: bool = False) -> None:
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.ones(())), 0
        self.gradient_only = gradient_only

    def forward(self, v, t):
        self.calls += 1
        if self.calls < 5:
            return -self.weight * v
        if self.gradient_only:  # √ has an infinite slope at 0
            return -v * (1 + (0 * self.weight).sqrt())
        return -self.weight * v * math.inf


@pytest.mark.parametrize("gradient_only", [True, False])
def test_divergence_keeps_the_last_good_checkpoint(gradient_only, tmp_path):
    path = tmp_path / "run.safetensors"
    config = dataclasses.replace(SHORT, steps=100, log_every=50)
    with pytest.raises(TrainingDivergedError, match=r"at step 5 of 100.*keeps .* of step 4"):
        fit(Bomb(gradient_only), LAW, config, checkpoint=path, checkpoint_every=2)
    arrays, record = load_arrays(path)
    assert record["step"] == 4
    assert all(x.isfinite().all() for x in arrays.values() if x.is_floating_point())
    with pytest.raises(TrainingDivergedError, match=r"step 5 of 100.*nothing was saved"):
        fit(Bomb(gradient_only), LAW, config)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (torch.zeros(3, 4), "data must have shape"),
        (torch.zeros(3, 4, 3), "the model is for dim=2, the data have dim=3"),
        (torch.zeros(3, 5, 2), "the model is for seq_len=4, the data have seq_len=5"),
        (process(5, 2), "the model is for seq_len=4, the data have seq_len=5"),
        (torch.zeros(0, 4, 2), "number of sequences"),
        (torch.zeros(3, 4, 2, dtype=torch.long), "data must be a floating-point tensor"),
        (torch.full((3, 4, 2), math.nan), "data must be finite, got 24"),
    ],
)
def test_bad_data_are_refused(data, complaint):
    with pytest.raises(ValueError, match=complaint):
        fit(small_dit(), data, SHORT)


def test_model_without_trainable_weights_is_refused():
    with pytest.raises(ValueError, match="no trainable weights"):
        fit(small_dit().requires_grad_(False), LAW, SHORT)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0}, {"learning_rate": -1e-3}, {"learning_rate": math.nan},
        {"steps": 0}, {"batch_size": 1.5}, {"clip": 0.0}, {"warmup": 1.0}, {"ema_decay": -0.1},
        {"weight_decay": -1.0}, {"t_min": 0.0}, {"t_max": 0.001}, {"times": "gaussian"},
        {"weight": "x"}, {"seed": -1}, {"log_every": 0}, {"evaluate_every": -1},
        {"evaluate_at": (0.1, 0.0)}, {"evaluate_at": (math.nan,)},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        TrainConfig(**bad)


def test_kernel_processes_are_trained_on_without_their_gram_matrix(tmp_path):
    law = GaussianProcess(PowerExponential(2.0), torch.eye(2), seq_len=4)
    path = tmp_path / "run.safetensors"
    fit(small_dit(), law, SHORT, checkpoint=path)
    other = GaussianProcess(PowerExponential(2.5), torch.eye(2), seq_len=4)
    with pytest.raises(ValueError, match="another run: its data"):
        fit(small_dit(), other, SHORT, checkpoint=path)
    assert os.path.getsize(path) < 100_000
