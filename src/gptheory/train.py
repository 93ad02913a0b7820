"""Training a score network, in runs that survive being killed.

Where the exact score of the data is known, a run can watch its exact score error instead of its
loss, whose floor is not zero.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .law import KnownLaw, Law
from .matching import TIMES, WEIGHTS, matching_loss, matching_steps
from .metrics import score_error
from .precision import without_autocast
from .progress import progress
from .randomness import TorchDraws
from .score import ExactScore
from .store import DamagedFileError, digest, load_arrays, provenance, save_arrays, to_json
from .validation import (
    require_count,
    require_finite,
    require_nonnegative,
    require_positive,
    require_range,
    require_sequences,
)
from .wrappers import plain_name, uncompiled

EVALUATION_SEED = 2**31 - 1  # every evaluation of every run draws the same sequences
FORMAT = 2  # of checkpoints; 1 had no state of torch's own generators


@dataclass(frozen=True)
class TrainConfig:
    r"""Everything that decides how a run goes, besides model and data.

    Args:
        steps: updates of the weights.
        batch_size: sequences a step.
        learning_rate: its peak; it rises linearly and falls to 0 as a cosine.
        warmup: fraction of the steps in which it rises.
        betas, weight_decay: of AdamW.
        clip: largest norm of the gradient.
        ema_decay: of the exponential moving average of the weights, the model that is returned
            (shorter at the start: at most (1 + k) / (10 + k) at step k).
        t_min, t_max: range of diffusion steps.
        times: law of t, see :func:`gptheory.matching.matching_steps`.
        weight: w(t), see :func:`gptheory.matching.matching_loss`.
        seed: of the data, the steps, the noise, and of what the model draws from torch's own
            generators, as dropout does (the first weights are the model's affair).
        log_every: steps from one row of the history to the next.
        evaluate_every: steps between evaluations of the exact score error, 0 for one at the end.
        evaluate_at: diffusion steps of the evaluations.
        evaluate_n: sequences of an evaluation.

    Raises:
        ValueError: for a number out of range or an unknown name.
    """

    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 6e-3
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.99
    t_min: float = 0.005
    t_max: float = 8.0
    times: str = "logsnr"
    weight: str = "noise"
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 0
    evaluate_at: tuple[float, ...] = (0.01, 0.1, 1.0)
    evaluate_n: int = 512

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_n"):
            require_count(name, getattr(self, name))
        for name in ("seed", "evaluate_every"):
            require_count(name, getattr(self, name), minimum=0)
        for name in ("learning_rate", "clip"):
            require_positive(name, getattr(self, name))
        require_range(self.t_min, self.t_max)
        for t in self.evaluate_at:
            require_positive("every step of evaluate_at", t)
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        require_nonnegative("weight_decay", self.weight_decay)
        for name, known in (("times", TIMES), ("weight", WEIGHTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update with this number, counted from 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        done = (step - rising) / (self.steps - rising)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def ema_decay_at(self, step: int) -> float:
        """The decay of the average after the update with this number, counted from 0."""
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        model: the network with averaged weights, in evaluation mode, its weights frozen.
        history: one row every ``log_every`` steps: ``step``, ``seconds`` (of training so far),
            ``learning_rate``, and averages since the last row of ``loss`` and ``grad_norm``.
        evaluations: one row per evaluation and diffusion step: ``step``, ``t``, ``score_error`` of
            the averaged weights (relative, see :func:`gptheory.metrics.score_error`); empty where
            the law of the data is not known.
        seconds: of training in all, interruptions left out.
    """

    model: nn.Module
    history: pd.DataFrame
    evaluations: pd.DataFrame
    seconds: float


class TrainingDivergedError(FloatingPointError):
    """The loss or its gradient is no longer finite."""


class Training:
    """The state of a run: iterate over it to train, save it, restore it.

    Args:
        model: any module called as (v, t) that returns a score, compiled or not; trained in place.
        data: a training set, sequences (n, N, d) drawn from with replacement, or a
            :class:`gptheory.law.Law` that supplies fresh ones.
        config: see :class:`TrainConfig`.
        law: of the data, for evaluations, where its exact score is known; ``data`` itself if that
            is such a law.

    Attributes:
        model, average: the network as trained, and with averaged weights (never compiled).
        step: updates done.

    Raises:
        ValueError: for data of the wrong shape or not finite, a model made for other sizes, or one
            without trainable weights.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Tensor | Law,
        config: TrainConfig,
        law: KnownLaw | None = None,
    ) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("the model has no trainable weights; call model.requires_grad_()")
        self.dtype, self.device = trainable[0].dtype, trainable[0].device
        if law is None and isinstance(data, KnownLaw):
            law = data
        self.data = at_home(data, self.dtype, self.device)
        self.law = None if law is None else ExactScore(law).law.to(self.device)  # or raises
        require_fitting(model, self.data)
        self.model, self.config = model, config
        self.average = copy.deepcopy(uncompiled(model)).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            trainable, config.learning_rate, config.betas, weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip
        self.generator = torch.Generator(self.device).manual_seed(int(config.seed))  # or numpy's
        self.draws = TorchDraws(int(config.seed), self.device)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self._unread: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Updates left."""
        return self.config.steps - self.step

    def __iter__(self) -> Iterator[int]:
        """Train: yields the number of updates done, after each.

        Raises:
            TrainingDivergedError: when the loss is not finite, at the next row of the history.
        """
        self.model.train()
        while self.step < self.config.steps:
            start = time.perf_counter()
            self._unread.append(self._update())
            self.step += 1
            last = self.step == self.config.steps
            if last or self.step % self.config.log_every == 0:
                self._log()
            self.seconds += time.perf_counter() - start
            every = self.config.evaluate_every
            if last or (every and self.step % every == 0):
                self._evaluate()
            yield self.step

    def require_finite(self) -> None:
        """Read the losses that have not been read yet.

        Raises:
            TrainingDivergedError: if one of them, or the norm of its gradient, is not finite.
        """
        if not self._unread:
            return
        values = torch.stack([torch.stack(pair) for pair in self._unread])  # (steps, 2)
        bad = (~torch.isfinite(values)).any(dim=1).nonzero()
        if len(bad):
            at = self.step - len(values) + int(bad[0])
            loss, norm = values[int(bad[0])].tolist()
            raise TrainingDivergedError(
                f"training diverged at step {at + 1} of {self.config.steps}: loss {loss:.3g},"
                f" gradient norm {norm:.3g}; lower the learning rate"
                f" ({self.config.learning_rate:g}) or check the data"
            )

    def result(self) -> TrainResult:
        """The run so far."""
        return TrainResult(
            self.average,
            pd.DataFrame(self.history, columns=HISTORY),
            pd.DataFrame(self.evaluations, columns=EVALUATIONS),
            self.seconds,
        )

    def identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to continue this run: configuration, model, data."""
        shapes = {name: list(value.shape) for name, value in _weights(self.model).items()}
        count = sum(math.prod(shape) for shape in shapes.values())
        return json.loads(
            to_json(
                {
                    **asdict(self.config),
                    **architecture(self.model),
                    "set of weights": f"{count} of {self.dtype}, {digest(shapes)[:12]}",
                    "data": self._data_name,
                    "device": self.device.type,
                }
            )
        )

    @cached_property
    def _data_name(self) -> str:
        data = self.data
        if isinstance(data, Tensor):
            return f"{len(data)} sequences, {digest(data)[:12]}"
        return f"{data}, {digest(*data.parts)[:12]}"

    def _update(self) -> tuple[Tensor, Tensor]:
        config = self.config
        x = draw_batch(self.data, config.batch_size, self.generator, self.dtype)
        t = matching_steps(len(x), config.times, config.t_min, config.t_max, self.generator)
        self.optimiser.zero_grad()
        with self.draws:  # backward() too: what is computed again there must draw the same
            loss = matching_loss(self.model, x, t, self.generator, config.weight)
            with without_autocast():
                loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimiser.step()
        torch.clear_autocast_cache()  # of weights as they were before
        decay = config.ema_decay_at(self.step)
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for own, value in zip(self.average.buffers(), self.model.buffers(), strict=True):
                own.copy_(value)  # statistics of the data, say, are no weights: the last ones count
        return loss.detach(), norm

    def _log(self) -> None:
        self.require_finite()
        loss, norm = torch.stack([torch.stack(pair) for pair in self._unread]).mean(dim=0).tolist()
        rate = self.config.learning_rate_at(self.step - 1)
        row = (self.step, self.seconds, rate, loss, norm)
        self.history.append(dict(zip(HISTORY, row, strict=True)))
        self._unread.clear()

    def _evaluate(self) -> None:
        if self.law is None:
            return
        for t in self.config.evaluate_at:
            generator = torch.Generator(self.device).manual_seed(EVALUATION_SEED)
            with TorchDraws(EVALUATION_SEED, self.device):
                error = score_error(
                    self.average, self.law, t, self.config.evaluate_n, generator, self.dtype
                )
            self.evaluations.append(dict(zip(EVALUATIONS, (self.step, t, error), strict=True)))


HISTORY = ["step", "seconds", "learning_rate", "loss", "grad_norm"]
EVALUATIONS = ["step", "t", "score_error"]


def fit(
    model: nn.Module,
    data: Tensor | Law,
    config: TrainConfig,
    law: KnownLaw | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    show_progress: bool | None = None,
) -> TrainResult:
    """Train a score network by denoising score matching.

    Data, diffusion steps and loss are computed in the dtype of the weights. The network obeys its
    caller: in ``with torch.autocast("cpu", torch.bfloat16): fit(...)`` its layers multiply in
    bfloat16, while weights, optimiser, averages, data and evaluations of the exact score keep their
    precision; likewise with ``torch.set_float32_matmul_precision``. (Float16 would need a scaler of
    the loss, which there is not.)

    **Randomness.** Everything is drawn from ``config.seed``. Modules that draw from torch's own
    generators, as dropout does, find them seeded by it, and torch's global state is the same
    after the run as before. Those generators belong to the process: runs in several threads take
    turns at each update. Draws made elsewhere (numpy, Python's ``random``) are neither seeded nor
    kept.

    **A compiled network** (``torch.compile``) is trained compiled; its checkpoints are those of the
    network itself, and the averaged network that is returned is not compiled.

    Args:
        model, data, config, law: see :class:`Training`. It trains where the model is and in
            the dtype of its weights.
        checkpoint: a file. If it exists, the run continues from it and ends with the same weights,
            bit for bit, as if it had never stopped (same machine, versions, threads, autocast and
            ``torch.compile``). On an accelerator the state of its generator is kept as well, but
            the same bits come out only where its kernels are deterministic
            (``torch.use_deterministic_algorithms``).
        checkpoint_every: steps from one checkpoint to the next; the end makes one in any case.
        show_progress: see :func:`gptheory.progress.progress`.

    Returns:
        The averaged model and the history; ``model`` itself holds the weights without averaging.

    Raises:
        ValueError: for bad data or a model that does not fit it, or a checkpoint of another run.
        DamagedFileError: for a damaged checkpoint.
        TrainingDivergedError: when the loss is not finite; the last good checkpoint is kept.
    """
    require_count("checkpoint_every", checkpoint_every)
    training = Training(model, data, config, law)
    saved = None
    if checkpoint is not None and Path(checkpoint).exists():
        load_checkpoint(checkpoint, training)
        saved = training.step
    try:
        for step in progress(training, len(training), "training", show_progress):
            if checkpoint is not None and (step % checkpoint_every == 0 or not len(training)):
                save_checkpoint(checkpoint, training)
                saved = step
    except TrainingDivergedError as error:
        kept = f"{checkpoint} keeps the weights of step {saved}" if saved else "nothing was saved"
        raise TrainingDivergedError(f"{error}; {kept}") from None
    return training.result()


def architecture(model: nn.Module) -> dict[str, Any]:
    """What shapes of weights do not say: kind and settings of every part, and what is frozen.

    Settings are a part's ``config``, or what its ``repr`` shows.
    """
    parts = {  # of a compiled module and what it was made from, the second has the last word
        f"model.{plain_name(name)}".rstrip("."): [
            type(part).__qualname__,
            getattr(part, "config", None) or part.extra_repr(),
        ]
        for name, part in model.named_modules()
    }
    frozen = [
        plain_name(name) for name, weight in model.named_parameters() if not weight.requires_grad
    ]
    return {**parts, "list of frozen weights": frozen}


def draw_batch(
    data: Tensor | Law, size: int, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Sequences (size, N, d) for one update: rows with replacement, or fresh from a law."""
    if not isinstance(data, Tensor):
        return data.sample(size, generator, dtype)
    return data[torch.randint(len(data), (size,), generator=generator, device=data.device)]


def save_checkpoint(path: str | Path, training: Training) -> None:
    """Write all that a run needs to go on: weights, averages, optimiser, random state, history.

    Args:
        path: the file, replaced atomically.
        training: the run.

    Raises:
        TrainingDivergedError: if the run is no longer finite; the file stays as it was.
    """
    training.require_finite()
    moments = training.optimiser.state_dict()["state"]
    arrays = {
        **{f"model.{name}": value for name, value in _weights(training.model).items()},
        **{f"average.{name}": value for name, value in _weights(training.average).items()},
        **{f"optimiser.{i}.{k}": x for i, state in moments.items() for k, x in state.items()},
        "generator": training.generator.get_state(),
        **{f"torch.{kind}": state for kind, state in training.draws.states.items()},
    }
    if training._unread:
        arrays["unread"] = torch.stack([torch.stack(pair) for pair in training._unread])
    record = {
        "format": FORMAT,
        "identity": training.identity(),
        "step": training.step,
        "seconds": training.seconds,
        "history": training.history,
        "evaluations": training.evaluations,
        "provenance": provenance(training.device),
    }
    save_arrays(path, arrays, record)


# random streams of devices differ, so that a run cannot go on bit for bit on another one
DEVICE_REMEDY = (
    "; to go on from its weights, without its random state, load what load_arrays(path)[0] holds"
    " under 'average.' into a model and train that with another checkpoint"
)


def load_checkpoint(path: str | Path, training: Training) -> None:
    """Put a run where a checkpoint left it.

    Args:
        path: the file.
        training: a run of the same configuration, model and data.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is damaged or no checkpoint.
        ValueError: if it belongs to another run; says what differs.
    """
    arrays, record = load_arrays(path)
    if "identity" not in record:
        raise DamagedFileError(f"{path} is not a checkpoint of a training run")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of gptheory (format {record.get('format', 1)},"
            f" here {FORMAT}) and cannot be continued: train again, or with that version"
        )
    here, there = training.identity(), record["identity"]
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{path} is the checkpoint of another run: its {name} is {there.get(name)!r}, here"
                f" it is {here.get(name)!r}; use another file or the same settings"
                + DEVICE_REMEDY
                * (name == "device")
            )
    state = training.optimiser.state_dict()
    state["state"] = {}
    with torch.no_grad():
        for name, value in _weights(training.model).items():
            value.copy_(arrays[f"model.{name}"])
        for name, value in _weights(training.average).items():
            value.copy_(arrays[f"average.{name}"])
    for name, value in arrays.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            state["state"].setdefault(int(index), {})[key] = value
    training.optimiser.load_state_dict(state)
    training.generator.set_state(arrays["generator"])
    training.draws.states = {kind: arrays[f"torch.{kind}"] for kind in training.draws.states}
    training.step, training.seconds = record["step"], record["seconds"]
    training.history, training.evaluations = record["history"], record["evaluations"]
    unread = arrays["unread"].to(training.device) if "unread" in arrays else ()
    training._unread = [tuple(pair) for pair in unread]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights and persistent buffers by name, each tensor once even where blocks share it."""
    kept = model.state_dict().keys()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {plain_name(name): value for name, value in tensors if name in kept}


def at_home(data: Tensor | Law, dtype: torch.dtype, device: torch.device) -> Tensor | Law:
    """Data on the device of a model; sequences in the dtype of its weights.

    Raises:
        ValueError: for sequences of a wrong shape, none, or values that are not finite.
    """
    if isinstance(data, Law):
        return data.to(device)
    require_sequences("data", data)
    require_count("the number of sequences in data", len(data))
    require_finite("data", data)
    return data.to(device, dtype)


def require_fitting(model: nn.Module, data: Tensor | Law) -> None:
    """Raise if the model says that it is for sequences of another size."""
    sizes = data.shape[1:] if isinstance(data, Tensor) else (data.seq_len, data.dim)
    for name, size in zip(("seq_len", "dim"), sizes, strict=True):
        expected = getattr(model, name, None)
        if expected is not None and expected != size:
            raise ValueError(f"the model is for {name}={expected}, the data have {name}={size}")
