"""Networks of other people as scores, and back: the exact law comes through every convention."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, process, seeded
from tolerances import assert_float32, assert_identity
from torch import Tensor, nn

from gptheory.data import GaussianProcess
from gptheory.diffusion import (
    PREDICTIONS,
    ExactScore,
    TrainingSchedule,
    alpha,
    denoise,
    from_epsilon,
    mode_variances,
    sample,
    sigma,
    step_grid,
    to_epsilon,
    trajectory,
)
from gptheory.diffusion.sampler import stop_of

F64 = torch.float64
T = 1000


def linear(dtype: torch.dtype = F64) -> Tensor:
    """ᾱ of DDPM, Ho et al. 2020."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=dtype), 0)


def scaled() -> Tensor:
    """ᾱ of Stable Diffusion, which ends at t = 5.4."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=F64) ** 2, 0)


def cosine() -> Tensor:
    """ᾱ of Nichol and Dhariwal 2021, its betas below 0.999."""
    bar = torch.cos((torch.arange(T + 1, dtype=F64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cumprod((bar[1:] / bar[:-1]).clamp(min=0.001), 0)


SCHEDULES = {"linear": linear(), "scaled": scaled(), "cosine": cosine()}
every_schedule = pytest.mark.parametrize("kept", SCHEDULES.values(), ids=SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
LAW = process(6, 2)
EXACT = ExactScore(LAW)


# ---- the schedule -------------------------------------------------------------------------------


@every_schedule
def test_steps_are_those_of_the_forward_process(kept):
    schedule = TrainingSchedule(kept)
    assert schedule.steps.shape == (T,)
    assert_identity(alpha(schedule.steps) ** 2, kept)
    assert_identity(sigma(schedule.steps) ** 2, 1 - kept)
    assert schedule.t_range == (schedule.steps[0].item(), schedule.steps[-1].item())


@every_schedule
@given(st.floats(0, T - 1))
def test_timesteps_and_steps_are_inverse(kept, k):
    schedule = TrainingSchedule(kept)
    assert abs(schedule.timestep(schedule.step(k)) - k) < 1e-9 * T


@every_schedule
def test_between_timesteps_half_the_log_snr_is_linear(kept):
    """As diffusers interpolates (EulerDiscreteScheduler._sigma_to_t)."""
    schedule = TrainingSchedule(kept)
    log_nsr = ((1 - kept) / kept).log() / 2
    for k in (0, 17, 500, T - 2):
        t = schedule.step(k + 0.25)
        expected = 0.75 * log_nsr[k] + 0.25 * log_nsr[k + 1]
        assert_identity(math.log(sigma(t) / alpha(t)), expected)
        assert_identity(schedule.step(k), schedule.steps[k])


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_and_tensors_of_any_shape_agree(device):
    schedule = TrainingSchedule(linear())
    for convert, values in (
        (schedule.step, (0, 3, 250, 999)),
        (schedule.timestep, (0.01, 1, 2, 9)),
    ):
        numbers = [convert(value) for value in values]
        assert all(isinstance(number, float) for number in numbers)
        for dtype in (F64, torch.float32):
            given = torch.tensor(values, dtype=dtype, device=device).view(2, 1, 2)
            found = convert(given)
            assert (found.shape, found.dtype, found.device) == (given.shape, F64, given.device)
            expected = torch.tensor(numbers, dtype=F64).view(2, 1, 2)
            (assert_identity if dtype == F64 else assert_float32)(found, expected)
    whole = torch.tensor([3, 250], device=device)
    assert torch.equal(schedule.step(whole), schedule.step(whole.double()))


def test_single_precision_schedules_keep_what_they_hold():
    """The noise is 1 − ᾱ as it was rounded, not rounded again."""
    kept = linear(torch.float32)
    steps = TrainingSchedule(kept).steps
    assert_identity(sigma(steps) ** 2, 1 - kept.double())
    assert TrainingSchedule(kept.to(DEVICES[-1])).steps.device.type == "cpu"


def test_the_schedule_is_copied():
    kept = linear()
    schedule = TrainingSchedule(kept)
    kept.zero_()
    assert_identity(schedule.steps, TrainingSchedule(linear()).steps)
    with torch.inference_mode():
        made = TrainingSchedule(linear())
    assert not made.steps.is_inference()


def test_zero_terminal_snr_is_pure_noise_at_a_finite_step():
    """Of the rescaled schedule of Lin et al. 2024, whose last ᾱ is 0."""
    root = linear().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = root**2
    assert kept[-1] == 0
    schedule = TrainingSchedule(kept)
    assert_identity(schedule.t_range[1], -math.log(kept[-2] / 4))
    usual = [0.9, 0.5, 0.0]
    assert_identity(TrainingSchedule(usual).t_range[1], 24 * math.log(2))
    assert kept[-1] == 0  # still: the schedule has a copy
    x = LAW.sample(3, seeded(0), F64)
    for prediction in PREDICTIONS:
        made = to_epsilon(EXACT, kept, prediction)(x, T - 1)
        # all there is to say of pure noise is that it is noise, and of the data their mean
        expected = x if prediction == "epsilon" else LAW.mean.expand_as(x)
        sign = -1 if prediction == "v_prediction" else 1
        assert (made - sign * expected).abs().max() < 1e-3  # α = 3e-5, of numbers of size 5


BAD = {
    "empty": ([], r"shape \(T,\) with T >= 2, got \(0,\)"),
    "one": ([0.5], r"shape \(T,\) with T >= 2, got \(1,\)"),
    "matrix": ([[0.9, 0.5]], r"shape \(T,\) with T >= 2, got \(1, 2\)"),
    "rising": ([0.5, 0.9], "must decrease.*got 0.9 in place 1 after 0.5$"),
    "resting": ([0.9, 0.5, 0.5], "must decrease.*got 0.5 in place 2 after 0.5$"),
    "of one": ([1.0, 0.5], r"lie in \(0, 1\).*got 1 among 2 entries$"),
    "above": ([1.5, 0.5], r"lie in \(0, 1\).*got 1.5 among 2 entries$"),
    "negative": ([0.5, -0.1], r"lie in \(0, 1\).*got -0.1 among 2 entries$"),
    "two zeros": ([0.5, 0.0, 0.0], r"lie in \(0, 1\).*got 0 among 3 entries$"),
    "nan": ([0.5, math.nan], "alphas_cumprod must be finite"),
    "text": (["a", "b"], "alphas_cumprod must be real numbers"),
    "complex": ([0.5 + 0j, 0.1], "alphas_cumprod must be real numbers"),
}


@pytest.mark.parametrize(("kept", "message"), BAD.values(), ids=BAD)
def test_what_is_no_schedule_is_refused(kept, message):
    for make in (TrainingSchedule, lambda kept: to_epsilon(EXACT, kept)):
        with pytest.raises(ValueError, match=message):
            make(kept)


def test_betas_are_told_from_what_is_kept_of_the_signal():
    with pytest.raises(ValueError, match=r"got 0.00011.* in place 1 after 0.0001"):
        TrainingSchedule(torch.linspace(1e-4, 0.02, T))


# ---- predictions --------------------------------------------------------------------------------


@every_prediction
@every_schedule
def test_there_and_back_is_the_score(kept, prediction):
    schedule = TrainingSchedule(kept)
    score = from_epsilon(to_epsilon(EXACT, kept, prediction), kept, prediction)
    v = LAW.sample(4, seeded(1), F64)
    for t in (schedule.t_range[0], 0.01, 0.3, 2.0, min(8.0, schedule.t_range[1])):
        # data and velocity are divided by α_t, and data on the way back by σ_t²
        condition = 1 + (math.exp(t / 2) + 1 / sigma(t)) * (prediction != "epsilon")
        assert_identity(score(v, t), EXACT(v, t), condition)
    t = torch.tensor([schedule.t_range[0], 0.1, 1.0, 3.0], dtype=F64)
    assert_identity(score(v, t), EXACT(v, t), 100)


@every_schedule
def test_predictions_are_what_their_names_say(kept):
    """Against the levels of the schedule itself, at whole timesteps."""
    x = LAW.sample(5, seeded(2), F64)
    k = torch.tensor([0, 1, 17, 500, 950])
    signal, noise = (level[k].view(-1, 1, 1) for level in (kept.sqrt(), (1 - kept).sqrt()))
    epsilon, clean, velocity = (to_epsilon(EXACT, kept, each)(x, k) for each in PREDICTIONS)
    t = TrainingSchedule(kept).step(k)
    assert_identity(clean, denoise(EXACT, x, t), 1e3)
    assert_identity(signal * clean + noise * epsilon, x)
    assert_identity(velocity, signal * epsilon - noise * clean, 1e3)
    assert_identity(epsilon, -noise * EXACT(x, t))


def test_a_prediction_taken_for_another_is_another_score():
    v, kept = LAW.sample(3, seeded(3), F64), linear()
    made = to_epsilon(EXACT, kept, "v_prediction")
    assert (from_epsilon(made, kept)(v, 1.0) - EXACT(v, 1.0)).norm() > 0.5 * EXACT(v, 1.0).norm()


class Asked(nn.Module):
    """A network that notes what it is asked."""

    def __init__(self, answer=lambda x: x) -> None:
        super().__init__()
        self.weight, self.answer, self.asked = nn.Parameter(torch.ones(1)), answer, []

    def forward(self, x, timestep):
        self.asked.append((x, timestep))
        return self.answer(x)


def test_networks_are_asked_for_timesteps_of_the_batch():
    model, v = Asked(), torch.randn(3, 6, 2, generator=seeded(0))
    schedule = TrainingSchedule(linear())
    for rounded in (False, True):
        score = from_epsilon(model, linear(), rounded=rounded)
        assert [p is model.weight for p in score.parameters()] == [True]
        for dtype in (torch.float32, F64, torch.float16):
            for t in (0.5, torch.tensor([0.5]), torch.tensor([0.1, 0.5, 2.0], dtype=F64)):
                score(v.to(dtype), t)
                x, timestep = model.asked.pop()
                expected = torch.as_tensor(schedule.timestep(t)).expand(3)
                assert x.dtype == dtype and timestep.shape == (3,)
                if rounded:
                    assert timestep.dtype == torch.int64
                    assert torch.equal(timestep, expected.round().long())
                else:
                    assert timestep.dtype == (F64 if dtype == F64 else torch.float32)
                    assert_float32(timestep, expected)


def test_answers_of_diffusers_are_unwrapped_and_others_refused():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    v = torch.randn(3, 6, 2, generator=seeded(0))
    plain = from_epsilon(Asked(), linear())(v, 0.3)
    assert torch.equal(from_epsilon(Asked(Output), linear())(v, 0.3), plain)
    for answer in (lambda x: x[:, :, :1], lambda x: (x,), lambda x: Output(x[:1])):
        with pytest.raises(ValueError, match=r"must return a tensor of shape \(3, 6, 2\), got"):
            from_epsilon(Asked(answer), linear())(v, 0.3)
    with pytest.raises(ValueError, match="prediction must be one of epsilon, sample, v_prediction"):
        from_epsilon(Asked(), linear(), "noise")
    with pytest.raises(ValueError, match="prediction must be one of epsilon, sample, v_prediction"):
        to_epsilon(EXACT, linear(), "velocity")


def test_outside_of_the_schedule_nothing_was_trained():
    score, v = from_epsilon(Asked(), scaled()), torch.randn(2, 6, 2, generator=seeded(0))
    low, high = score.t_range
    message = r"t must lie in \[0.00085\d*, 5.36\d*\].*, got {}\d*; sample from t_max=5.36"
    for t, told in ((low / 2, "0.000425"), (10.0, "10"), (torch.tensor([1.0, 6.0]), "6")):
        with pytest.raises(ValueError, match=message.format(told)):
            score(v, t)
    for t in (low, high, torch.tensor([low, high])):  # in single precision, too
        assert torch.isfinite(score(v, t)).all()
    for end in score.t_range:  # as the message prints them
        assert torch.isfinite(score(v, float(f"{end:.6g}"))).all()
    ends = [score.schedule.timestep(t) for t in (low * (1 - 5e-7), high * (1 + 5e-7))]
    assert ends == [0, T - 1]  # never beyond, which an embedding table would not have
    model = to_epsilon(EXACT, scaled())
    for k in (-1, T, math.nan, math.inf, torch.tensor([0, T])):
        with pytest.raises(ValueError, match=r"timestep must lie in \[0, 999\]"):
            model(v, k)
    with pytest.raises(ValueError, match="must be real"):
        model(v, torch.tensor([0j]))
    with pytest.raises(ValueError, match="x must have shape"):
        model(v[0], 3)
    with pytest.raises(ValueError, match="the score must return a tensor of shape"):
        to_epsilon(lambda v, t: v[:, 1:], scaled())(v, 3)


@pytest.mark.parametrize("noise", [0.03, 0.4, 0.9])
def test_denoisers_and_velocities_are_other_units(noise):
    """The table of the page on other libraries' samplers, with data x and noise z drawn."""
    x, z = LAW.sample(4, seeded(4), F64), torch.randn(4, 6, 2, generator=seeded(5), dtype=F64)
    units = {
        "EDM": (math.log1p(noise**2), x + noise * z, 1.0),
        "flow": (math.log1p((noise / (1 - noise)) ** 2), (1 - noise) * x + noise * z, 1 - noise),
    }
    for t, y, kept in units.values():
        v = alpha(t) * y / kept
        assert_identity(v, alpha(t) * x + sigma(t) * z)
        clean = denoise(EXACT, v, t)
        if kept != 1:  # the mean of z - x is a velocity, and gives the guess of the data back
            velocity = mean_noise(v, t) - clean
            assert_identity(y - noise * velocity, clean, 10)
        assert_identity((alpha(t) * clean - v) / sigma(t) ** 2, EXACT(v, t), 1e2)


def mean_noise(v: Tensor, t: float) -> Tensor:
    """The mean of the noise in v."""
    return -sigma(t) * EXACT(v, t)


# ---- sampling -----------------------------------------------------------------------------------

VALUES = torch.logspace(-3, 1, 41, dtype=F64)
MODES = ExactScore(GaussianProcess(VALUES.diag(), torch.eye(1)))


def ratios(score, grid) -> Tensor:
    """Variances of what is sampled over those of the law, mode by mode, without a sample."""
    start = torch.ones(1, len(VALUES), 1, dtype=F64)
    _t, made = deque(trajectory(score, start, grid), maxlen=1).pop()
    return made.flatten() ** 2 / VALUES


@every_prediction
@every_schedule
def test_sampling_with_a_prediction_gives_the_variances_of_sampling_with_the_score(
    kept, prediction
):
    score = from_epsilon(to_epsilon(MODES, kept, prediction), kept, prediction)
    t_min, t_max = stop_of(score), min(10.0, score.t_range[1])
    assert t_min == score.t_range[0]
    grid = step_grid(20, t_min, t_max)
    expected = mode_variances(VALUES, grid, final_denoise=True) / VALUES
    # the last guess divides a score by σ, of 1e-4 or 4e-5, and data by its square
    assert_identity(ratios(score, grid), expected, 1e3)
    # all that it loses is what the schedule's first step hides: λ / (λ + s²)
    s2 = math.expm1(t_min)
    fine = ratios(score, step_grid(60, t_min, t_max)) * (VALUES + s2) / VALUES
    # and what beginning at white noise costs, a variance of 1 in place of 1 + ᾱ (λ - 1)
    started = 1 + math.exp(-t_max) * (VALUES - 1)
    assert (fine * started - 1).abs().max() < 2e-3


@pytest.mark.parametrize("kept", [linear(), scaled()], ids=["linear", "scaled"])
def test_whole_timesteps_cost_what_the_docstring_says(kept):
    whole = from_epsilon(to_epsilon(MODES, kept), kept, rounded=True)
    for steps in (19, 49, 99, 199):
        grid = step_grid(steps, whole.t_range[0], min(10.0, whole.t_range[1]))
        moved = (ratios(whole, grid) / ratios(MODES, grid) - 1).abs()
        for smallest, bar in ((0.1, 0.002), (0.01, 0.01), (0.001, 0.05)):
            assert moved[0.99 * smallest < VALUES].max() < bar, (steps, smallest)


def test_samplers_ask_where_the_network_was_trained():
    """By default; below they warn, above the network says so."""
    model = Asked()
    score = from_epsilon(model, linear())
    x = sample(score, 2, 6, 2, steps=5, generator=seeded(0), show_progress=False)
    assert torch.isfinite(x).all()
    asked = [k[0].item() for _x, k in model.asked]
    assert len(asked) == 6 and abs(asked[-1]) < 1e-4 and asked == sorted(asked, reverse=True)
    with (
        pytest.warns(UserWarning, match="below the diffusion steps it was made for"),
        pytest.raises(ValueError, match="must lie in"),
    ):
        sample(score, 2, 6, 2, steps=5, t_min=1e-5, show_progress=False)
    with pytest.raises(ValueError, match=r"sample from t_max=5\.36"):
        sample(from_epsilon(model, scaled()), 2, 6, 2, steps=5, show_progress=False)
