"""Drive other libraries' samplers with the exact prediction; write down the variance they make.

For Gaussian data of which every mode is known, a scheduler that is linear acts on each mode by
itself. So nothing is sampled: the scheduler runs on unit impulses, one for the initial draw and one
for each noise that it asks for, and the squared responses add up to the variance that it makes.
Schedulers that clip are not linear: they run on sequences, with a standard error.

Outside CI, and never imported by the package. An environment of its own, outside the repository
(the CPU build of torch is enough), and then a minute:

    python3.11 -m venv ../peers && ../peers/bin/pip install -r tools/peers/requirements.txt
    PYTHONPATH=src ../peers/bin/python tools/peers/measure.py
    python tools/peers_page.py

The result is book/samplers-elsewhere.json, which the page and its figure are made from.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import itertools
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import diffusers
import torch
import torchdiffeq
from torch import Tensor

from gptheory.data import GaussianProcess, PowerExponential, WhiteNoise
from gptheory.diffusion import (
    ExactScore,
    alpha,
    from_epsilon,
    sigma,
    step_grid,
    stop_for,
    to_epsilon,
    trajectory,
)
from gptheory.diffusion.sampler import stop_of
from gptheory.diffusion.schedule import half_log_snr, step_at

ROOT = Path(__file__).resolve().parent.parent.parent
RESULT = ROOT / "book/samplers-elsewhere.json"
F64 = torch.float64
FRAMES = 32
LAWS = {
    "white": GaussianProcess(WhiteNoise(), torch.eye(1), seq_len=1),
    "exponential": GaussianProcess(PowerExponential(8.0), torch.eye(1), seq_len=FRAMES),
    "smooth": GaussianProcess(PowerExponential(8.0, 1.5), torch.eye(1), seq_len=FRAMES),
}
SIZES = torch.logspace(-4, 1, 41, dtype=F64)  # the axis of the figure
SPECTRA = {name: law.temporal_spectrum[0] for name, law in LAWS.items()} | {"sizes": SIZES}
VALUES = torch.cat(list(SPECTRA.values()))
MODES = ExactScore(GaussianProcess(VALUES.diag(), torch.eye(1)))
SAMPLES, SEED = 20_000, 0
COUNTS = (10, 20, 50, 100, 1000)
DRAWN = (20, 100)  # those in the picture
BUDGET = 20  # calls at which options are compared
TRAINED = {"beta_start": 1e-4, "beta_end": 0.02}  # the schedule of most, where a default is another
TOLERANCES = ({"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-5, "atol": 1e-5}, {})


# ---- one scheduler of diffusers ---------------------------------------------------------------


class Impulses:
    """In place of a scheduler's noise: the j-th draw is one in row j + 1, and zero elsewhere."""

    def __init__(self, rows: int) -> None:
        self.rows, self.drawn = rows, 0

    def __call__(self, shape: tuple[int, ...], **_options: object) -> Tensor:
        """The next draw."""
        self.drawn += 1
        if self.drawn >= self.rows:
            raise RuntimeError(f"more than {self.rows - 1} draws")
        unit = torch.zeros(shape, dtype=F64)
        unit[self.drawn] = 1
        return unit


class Normal:
    """In place of a scheduler's noise: draws from one generator, whatever the scheduler names."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, shape: tuple[int, ...], **_options: object) -> Tensor:
        """The next draw."""
        return torch.randn(shape, generator=self.generator, dtype=F64)


Network = Callable[[Tensor, Tensor], Tensor]


def noise_of(scheduler: Any, score: Any = MODES) -> Network:
    """What a network trained on the scheduler's own schedule would say, asked as it is asked."""
    return to_epsilon(score, scheduler.alphas_cumprod)


def edm(scheduler: Any) -> Network:
    """F of Karras et al.: asked at c_in x and log(sigma) / 4, it answers in c_out."""

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        data, noise = scheduler.config.sigma_data, (4 * timestep.double()).exp()
        state = x * (noise**2 + data**2).sqrt()
        clean = VALUES[:, None] / (VALUES[:, None] + noise**2) * state
        skip, out = data**2 / (noise**2 + data**2), noise * data / (noise**2 + data**2).sqrt()
        return (clean - skip * state) / out

    return network


def velocity(_scheduler: Any) -> Network:
    """Flow matching, x = (1 - s) x_0 + s z: the mean of z - x_0."""

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        noise, values = timestep.double() / 1000, VALUES[:, None]
        return (noise - (1 - noise) * values) / ((1 - noise) ** 2 * values + noise**2) * x

    return network


@dataclass
class Run:
    """What a sampler made with a number of steps."""

    steps: int
    calls: int
    first: float
    last: float
    variances: Tensor | None
    error: str = ""

    def worst(self) -> float:
        """The largest deviation of a variance among the modes of the laws; None for NaN."""
        if self.variances is None:
            return math.inf
        found = ((self.variances / VALUES)[: -len(SIZES)] - 1).abs().max().item()
        return float(f"{found:.4g}") if math.isfinite(found) else math.inf


def run(scheduler: Any, network: Network, steps: int, x: Tensor, noise: Any = None) -> Run:
    """Drive a scheduler as a pipeline does, and count how often the network is asked."""
    scheduler.set_timesteps(steps)
    module = importlib.import_module(type(scheduler).__module__)
    kept = getattr(module, "randn_tensor", None)
    if noise is not None:
        module.randn_tensor = noise
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    calls = 0
    try:
        for timestep in scheduler.timesteps:
            scaled = getattr(scheduler, "scale_model_input", lambda x, _t: x)(x, timestep)
            made = network(scaled.double(), timestep)
            calls += 1
            x = scheduler.step(made, timestep, x).prev_sample
    finally:
        if kept is not None:
            module.randn_tensor = kept
    first, last = (scheduler.timesteps[k].item() for k in (0, -1))
    return Run(steps, calls, first, last, x)


def linear(scheduler: Any, network: Network, steps: int, stochastic: bool = False) -> Run:
    """Exact variances of a scheduler that does not clip."""
    rows = steps + 2 if stochastic else 1
    start = torch.zeros(rows, len(VALUES), 1, dtype=F64)
    start[0] = 1
    found = run(scheduler, network, steps, start, Impulses(rows) if stochastic else None)
    found.variances = found.variances.double().square().sum(dim=0).squeeze(1)
    return found


def drawn(make: Callable[[], Any], steps: int) -> Run:
    """Variances of a scheduler that clips, of as many sequences as SAMPLES of each law."""
    parts = []
    for law in LAWS.values():
        generator = torch.Generator().manual_seed(SEED)
        start = torch.randn(SAMPLES, law.seq_len, 1, generator=generator, dtype=F64)

        scheduler = make()
        found = run(
            scheduler, noise_of(scheduler, ExactScore(law)), steps, start, Normal(generator)
        )
        vectors = law.temporal_spectrum[1]
        parts.append((vectors.T @ found.variances).squeeze(2).square().mean(dim=0))
    parts.append(torch.full_like(SIZES, torch.nan))
    found.variances = torch.cat(parts)
    return found


# ---- what is driven ---------------------------------------------------------------------------


GRIDS = [
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
    *({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")),
]
LU, ENDS = [{"use_lu_lambdas": True}], [{}, {"final_sigmas_type": "sigma_min"}]
ORDERS = [{"solver_order": 2}, {"solver_order": 3}]
FINAL = [{}, {"lower_order_final": False}, {"euler_at_final": True}]
EDM = [{"sigma_schedule": kind} for kind in ("karras", "exponential")]


def combined(*choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every choice of one from each list."""
    return [
        dict(itertools.chain(*(c.items() for c in each))) for each in itertools.product(*choices)
    ]


NO_CLIP = [{"clip_sample": False}]
SHIFTS = [{"shift": value} for value in (1.0, 3.0, 0.3, 0.1)]


@dataclass(frozen=True)
class Family:
    """A class of schedulers: how it is driven, as it comes, and the options that are tried."""

    kind: str
    tried: list[dict[str, Any]]
    plain: dict[str, Any] = field(default_factory=dict)
    network: Callable[[Any], Network] = noise_of
    stochastic: bool = False

    def made(self, options: dict[str, Any]) -> Any:
        """A fresh scheduler."""
        return getattr(diffusers, self.kind)(**options)

    def measured(self, options: dict[str, Any], steps: int) -> Run:
        """Run, or what stopped it; where it clips, with sequences."""
        try:
            if getattr(self.made(options).config, "clip_sample", False):
                return drawn(lambda: self.made(options), steps)
            scheduler = self.made(options)
            return linear(scheduler, self.network(scheduler), steps, self.stochastic)
        except (IndexError, ValueError, RuntimeError) as error:
            return Run(steps, 0, 0.0, 0.0, None, f"{type(error).__name__}: {error}")


def multistep(**options: Any) -> Family:
    """DPM-Solver++ with some options throughout."""
    tried = combined([options], GRIDS + LU, ENDS, FINAL)
    stochastic = "sde" in options.get("algorithm_type", "")
    return Family("DPMSolverMultistepScheduler", tried, options, stochastic=stochastic)


FAMILIES = {
    "DDPM": Family("DDPMScheduler", combined(NO_CLIP, GRIDS[:3]), stochastic=True),
    "DDIM": Family("DDIMScheduler", combined(NO_CLIP, GRIDS[:3])),
    "PNDM": Family("PNDMScheduler", combined(
        GRIDS[:3], [{}, {"skip_prk_steps": True}], [{}, {"set_alpha_to_one": True}])),
    "Euler": Family("EulerDiscreteScheduler", combined(GRIDS, ENDS)),
    "Euler ancestral": Family("EulerAncestralDiscreteScheduler", GRIDS[:3], stochastic=True),
    "Heun": Family("HeunDiscreteScheduler", combined([TRAINED], GRIDS), TRAINED),
    "DPM-Solver++ 2M": multistep(),
    "DPM-Solver++ 3M": multistep(solver_order=3),
    "DPM-Solver++ 2M SDE": multistep(algorithm_type="sde-dpmsolver++"),
    "UniPC": Family("UniPCMultistepScheduler", combined(ORDERS, GRIDS, ENDS, FINAL[:2])),
    "DEIS": Family("DEISMultistepScheduler", combined(ORDERS, GRIDS, FINAL[:2])),
    "EDM Euler": Family("EDMEulerScheduler", combined(EDM, ENDS), network=edm),
    "EDM DPM-Solver++": Family("EDMDPMSolverMultistepScheduler",
        combined(ORDERS, EDM, ENDS, FINAL), network=edm),
    "Flow matching, Euler": Family("FlowMatchEulerDiscreteScheduler",
        SHIFTS + GRIDS[3:], network=velocity),
    "Flow matching, Heun": Family("FlowMatchHeunDiscreteScheduler", SHIFTS, network=velocity),
}  # fmt: skip
TWICE = ("Heun", "Flow matching, Heun")  # these ask twice a step


def best(name: str, family: Family) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The options with which the worst mode of the three laws is best at BUDGET calls, and all."""
    found, least = [], math.inf
    for options in family.tried:
        made = family.measured(options, steps_for(name, options, BUDGET))
        if made.worst() < least:
            least, chosen = made.worst(), options
        worst = made.worst() if math.isfinite(made.worst()) else None
        found.append({"sampler": name, "options": options, "calls": made.calls, "worst": worst,
                      "error": made.error})  # fmt: skip
    return chosen, found


def steps_for(name: str, options: dict[str, Any], calls: int) -> int:
    """The steps that make as many calls, or one fewer."""
    if name in TWICE:
        return (calls + 1) // 2
    if name == "PNDM":
        return calls - 1 if options.get("skip_prk_steps") else max(calls - 9, 4)
    return calls


# ---- this package, and an adaptive solver -----------------------------------------------------


def ours(score: Any, calls: int) -> Run:
    """The default of gptheory's `sample`, which ends with one more call.

    It stops where the score was trained, or where the faintest mode of a law is.
    """
    made, grid = [], []
    for name, values in SPECTRA.items():
        grid = step_grid(calls - 1, stop_of(score) if score is not MODES else stop_for(values[0]))
        start = torch.ones(1, len(VALUES), 1, dtype=F64)
        *_, (_t, state) = trajectory(score, start, grid)
        own = [len(x) for x in SPECTRA.values()]
        made.append(state.square().flatten().split(own)[list(SPECTRA).index(name)])
    return Run(calls, calls, grid[0], grid[-1], torch.cat(made))


def network() -> Any:
    """The exact noise on the schedule of diffusers' defaults, asked at whole timesteps."""
    kept = diffusers.DDPMScheduler().alphas_cumprod.double()
    return from_epsilon(to_epsilon(MODES, kept), kept, rounded=True)


@dataclass
class Flow:
    """The probability flow of modes as torchdiffeq wants it, in t or in half the logSNR."""

    values: Tensor
    clock: str
    calls: int = 0
    lowest: float = math.inf

    def variance(self, t: float) -> Tensor:
        """Of the noised modes."""
        return alpha(t) ** 2 * self.values + sigma(t) ** 2

    def __call__(self, time: Tensor, v: Tensor) -> Tensor:
        """dv/dt, or dv/du with dt/du = -2 sigma^2."""
        t = time.item() if self.clock == "t" else step_at(time.item())
        self.calls, self.lowest = self.calls + 1, min(self.lowest, t)
        rate = 1.0 if self.clock == "t" else -2 * sigma(t) ** 2
        return rate * (v / self.variance(t) - v) / 2


def adaptive(flow: Flow, tolerance: dict[str, float], stays: bool = True) -> Tensor:
    """Variances of dopri5 with all modes in one state, and a last guess.

    Left to itself it looks for a first step outside the interval, and steps over its end.
    """
    ends = (10.0, stop_for(flow.values.min()))
    points = ends if flow.clock == "t" else [half_log_snr(t) for t in ends]
    times = torch.tensor(points, dtype=F64)
    options = {"first_step": 0.1, "step_t": times[1:]} if stays else {}
    state = torch.ones(len(flow.values), dtype=F64)
    made = torchdiffeq.odeint(flow, state, times, method="dopri5", options=options, **tolerance)
    flow.calls += 1
    return (alpha(ends[1]) * flow.values / flow.variance(ends[1]) * made[-1]).square()


def adapted(tolerance: dict[str, float], clock: str) -> dict[str, Any]:
    """Each law by itself, since the modes share their steps."""
    row: dict[str, Any] = {"sampler": "dopri5", "setting": clock, "options": tolerance}
    row |= {"asked": 0, "calls": {}}
    for name, values in SPECTRA.items():
        flow = Flow(values, clock)
        made = adaptive(flow, tolerance)
        row["calls"][name], row[name] = flow.calls, digits(made / values)
    return row


def crowd(tolerance: dict[str, float]) -> dict[str, Any]:
    """One mode of variance 0.001 alone, and among 9999 of variance one."""
    found: dict[str, Any] = {"options": tolerance}
    for name, others in (("alone", 0), ("among", 9999)):
        flow = Flow(torch.tensor([1e-3] + others * [1.0], dtype=F64), "t")
        ratio = digits(adaptive(flow, tolerance)[:1] / 1e-3)[0]
        found[name] = {"calls": flow.calls, "ratio": ratio}
    return found


def overshot() -> dict[str, float]:
    """The least t that dopri5 asks for when nobody tells it to stay inside, and where it ends."""
    values, found = SPECTRA["exponential"], {}
    for clock in ("t", "log-snr"):
        flow = Flow(values, clock)
        with contextlib.suppress(ValueError):  # there is no noise below t = 0
            adaptive(flow, TOLERANCES[0], stays=False)
        found[clock] = float(f"{flow.lowest:.4g}")
    return found | {"end": float(f"{stop_for(values.min()):.4g}")}


# ---- what is written --------------------------------------------------------------------------


def digits(values: Tensor) -> list[float | None]:
    """Four significant digits; None for what is no number."""
    return [None if x != x else float(f"{x:.4g}") for x in values.tolist()]


def row(name: str, setting: str, options: dict[str, Any], asked: int, made: Run) -> dict[str, Any]:
    """A run as it is stored: variances over the true ones, law by law."""
    found = {"sampler": name, "setting": setting, "options": options, "asked": asked,
             "steps": made.steps, "calls": made.calls, "first": made.first,
             "last": made.last}  # fmt: skip
    if made.variances is None:
        return found | {"error": made.error}
    parts = (made.variances / VALUES).split([len(x) for x in SPECTRA.values()])
    found |= {name: digits(part) for name, part in zip(SPECTRA, parts, strict=True)}
    if asked not in DRAWN:
        del found["sizes"]
    return found


def every_run() -> Iterator[dict[str, Any]]:
    """As it comes, and at its best."""
    for name, family in FAMILIES.items():
        print(name, flush=True)
        chosen, tried = best(name, family)
        yield from ({"tried": each} for each in tried)
        for steps in COUNTS:
            plain = family.measured(family.plain, steps)
            yield row(name, "as it comes", family.plain, steps, plain)
            if "clip_sample" in chosen:
                free = family.measured(NO_CLIP[0], steps)
                yield row(name, "without clip", NO_CLIP[0], steps, free)
            at_best = family.measured(chosen, steps_for(name, chosen, steps))
            yield row(name, "best", chosen, steps, at_best)
    score = network()
    for calls in COUNTS[:-1]:
        yield row("gptheory", "exact score", {}, calls, ours(MODES, calls))
        yield row("gptheory", "whole timesteps", {}, calls, ours(score, calls))
    for tolerance in TOLERANCES:
        yield from (adapted(tolerance, clock) for clock in ("t", "log-snr"))


def noise_left() -> list[float | None]:
    """s^2 = (1 - kept) / kept at the timesteps of the common schedule, first to last."""
    kept = diffusers.DDPMScheduler().alphas_cumprod.double()
    return digits((1 - kept) / kept)


def terminal(kind: str) -> dict[str, Any]:
    """The last entries of a schedule that was rescaled to zero terminal SNR."""
    kept = getattr(diffusers, kind)(rescale_betas_zero_snr=True).alphas_cumprod
    return {"scheduler": kind, "alphas_cumprod": digits(kept[-5:])}


def provenance() -> dict[str, Any]:
    """What made it, and nothing about whose machine it was."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    packages = ("torch", "numpy", "scipy", "diffusers", "torchdiffeq")
    return {
        "date": datetime.date.today().isoformat(), "commit": commit.strip(),
        "python": platform.python_version(), **{each: metadata.version(each) for each in packages},
        "machine": f"{platform.system()} {platform.machine()}, one thread",
        "seed": SEED, "samples": SAMPLES, "budget": BUDGET,
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = list(every_run())
    result = {
        "provenance": provenance(),
        "laws": {name: digits(values) for name, values in SPECTRA.items()},
        "terminal": [terminal(k) for k in ("DDIMScheduler", "DPMSolverMultistepScheduler")],
        "noise": noise_left(),
        "crowd": crowd(TOLERANCES[0]),
        "overshot": overshot(),
        "tried": [each["tried"] for each in rows if "tried" in each],
        "runs": [each for each in rows if "tried" not in each],
    }
    lines = ",\n".join(f"{json.dumps(k)}: {listed(v)}" for k, v in result.items())
    out.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def listed(value: Any) -> str:
    """JSON with one item of a list in a line."""
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(each) for each in value) + "\n]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
