"""What a training is told and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from ..support.validation import (
    require_count,
    require_nonnegative,
    require_one_of,
    require_positive,
    require_range,
)
from .objective import TIMES, WEIGHTS

if TYPE_CHECKING:
    import pandas as pd


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
        times: law of t, see :func:`.matching_steps`.
        weight: w(t), see :func:`.matching_loss`.
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
        require_one_of("times", self.times, TIMES)
        require_one_of("weight", self.weight, WEIGHTS)

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
            the averaged weights (relative, see :func:`.score_error`); empty where
            the law of the data is not known.
        seconds: of training in all, interruptions left out.
    """

    model: nn.Module
    history: pd.DataFrame
    evaluations: pd.DataFrame
    seconds: float


class TrainingDivergedError(FloatingPointError):
    """The loss or its gradient is no longer finite."""
