"""The training loop: draw, noise, loss, step, average.

Where the exact score of the data is known, a run can watch its exact score error instead of its
loss, whose floor is not zero.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..data.law import KnownLaw, Law
from ..data.masks import MaskLaw, draw_masks, require_masks
from ..diffusion.exact import ExactScore
from ..diffusion.imputer import ConditionalScore
from ..measures.scores import score_error
from ..support.draws import TorchDraws
from ..support.files import digest, to_json
from ..support.precision import without_autocast
from ..support.validation import require_count, require_finite, require_sequences
from ..support.wrappers import plain_name, uncompiled
from .config import TrainConfig, TrainingDivergedError, TrainResult
from .objective import matching_loss, matching_steps

EVALUATION_SEED = 2**31 - 1  # every evaluation of every run draws the same sequences


class Training:
    """The state of a run: iterate over it to train, save it, restore it.

    Args:
        model: any module called as (v, t) that returns a score, compiled or not; trained in place.
        data: a training set, sequences (n, N, d) drawn from with replacement, or a
            :class:`.Law` that supplies fresh ones.
        config: see :class:`.TrainConfig`.
        law: of the data, for evaluations, where its exact score is known; ``data`` itself if that
            is such a law. With masks a law that can be conditioned, a :class:`.GaussianProcess`:
            evaluations are then beside the exact conditional score, of sequences and masks that
            are drawn once.
        masks: for a model that is called as (v, t, observed): a :class:`.MaskLaw` such as
            :func:`.strategy` makes, or a table (m, N), True where a frame is seen, drawn from with
            replacement.

    Attributes:
        model, average: the network as trained, and with averaged weights (never compiled).
        step: updates done.

    Raises:
        ValueError: for data of the wrong shape or not finite, a model made for other sizes, one
            without trainable weights, or masks for a model that takes none, and the other way.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Tensor | Law,
        config: TrainConfig,
        law: KnownLaw | None = None,
        masks: Tensor | MaskLaw | None = None,
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
        self.masks = masks_at_home(masks, model, self.data, self.device)
        self.model, self.config = model, config
        uncompiled(model).t_range = (config.t_min, config.t_max)  # samplers ask for it
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
        self._unread: list[Tensor] = []  # loss and norm of the gradient, left where they are
        self._examined = self._examination()

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
        values = torch.stack(self._unread)  # (steps, 2)
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
        import pandas as pd  # only here: it costs more to load than the room

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
                    **self._masks_name,
                }
            )
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the run needs to go on, as tensors and as JSON values.

        Raises:
            TrainingDivergedError: if the run is no longer finite.
        """
        self.require_finite()
        moments = self.optimiser.state_dict()["state"]
        arrays = {
            **{f"model.{name}": value for name, value in _weights(self.model).items()},
            **{f"average.{name}": value for name, value in _weights(self.average).items()},
            **{f"optimiser.{i}.{k}": x for i, state in moments.items() for k, x in state.items()},
            "generator": self.generator.get_state(),
            **{f"torch.{kind}": state for kind, state in self.draws.states.items()},
        }
        if self._unread:
            arrays["unread"] = torch.stack(self._unread)
        return arrays, {name: getattr(self, name) for name in PROGRESS}

    @torch.no_grad()
    def restore(self, arrays: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned for a run of the same :meth:`identity`."""
        for part, model in (("model", self.model), ("average", self.average)):
            for name, value in _weights(model).items():
                value.copy_(arrays[f"{part}.{name}"])
        optimiser = self.optimiser.state_dict() | {"state": {}}
        for name, value in arrays.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                optimiser["state"].setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict(optimiser)
        self.generator.set_state(arrays["generator"])
        self.draws.states = {kind: arrays[f"torch.{kind}"] for kind in self.draws.states}
        self._unread = list(arrays["unread"].to(self.device)) if "unread" in arrays else []
        for name in PROGRESS:
            setattr(self, name, record[name])

    @cached_property
    def _data_name(self) -> str:
        data = self.data
        if isinstance(data, Tensor):
            return f"{len(data)} sequences, {digest(data)[:12]}"
        return f"{data}, {digest(*data.parts)[:12]}"

    @cached_property
    def _masks_name(self) -> dict[str, str]:
        if self.masks is None:
            return {}
        if isinstance(self.masks, Tensor):
            return {"masks": f"{len(self.masks)} masks, {digest(self.masks)[:12]}"}
        return {"masks": f"{self.masks}, {digest(*self.masks.parts)[:12]}"}

    def _update(self) -> Tensor:
        config = self.config
        x = draw_batch(self.data, config.batch_size, self.generator, self.dtype)
        t = matching_steps(len(x), config.times, config.t_min, config.t_max, self.generator)
        seen = None if self.masks is None else draw_masks(self.masks, len(x), self.generator)
        self.optimiser.zero_grad()
        with self.draws:  # backward() too: what is computed again there must draw the same
            loss = matching_loss(self.model, x, t, self.generator, config.weight, seen)
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
        return torch.stack([loss.detach(), norm])

    def _log(self) -> None:
        self.require_finite()
        loss, norm = torch.stack(self._unread).mean(dim=0).tolist()
        rate = self.config.learning_rate_at(self.step - 1)
        row = (self.step, self.seconds, rate, loss, norm)
        self.history.append(dict(zip(HISTORY, row, strict=True)))
        self._unread.clear()

    def _examination(self) -> tuple[KnownLaw, Tensor | None, Tensor | None] | None:
        """The law of evaluations; with masks that of what is missing in sequences drawn once."""
        if self.law is None or not self.config.evaluate_at:
            return None
        if self.masks is None:
            return self.law, None, None
        if not hasattr(self.law, "condition"):
            return None
        generator = torch.Generator(self.device).manual_seed(EVALUATION_SEED)
        x = self.law.sample(self.config.evaluate_n, generator, self.dtype)
        observed = draw_masks(self.masks, len(x), generator)
        return self.law.condition(x, observed), x, observed

    def _evaluate(self) -> None:
        if self._examined is None:
            return
        law, x, observed = self._examined
        score = self.average if x is None else ConditionalScore(self.average, x, observed)
        for t in self.config.evaluate_at:
            generator = torch.Generator(self.device).manual_seed(EVALUATION_SEED)
            with TorchDraws(EVALUATION_SEED, self.device):
                error = score_error(score, law, t, self.config.evaluate_n, generator, self.dtype)
            self.evaluations.append(dict(zip(EVALUATIONS, (self.step, t, error), strict=True)))


HISTORY = ["step", "seconds", "learning_rate", "loss", "grad_norm"]
EVALUATIONS = ["step", "t", "score_error"]
PROGRESS = ("step", "seconds", "history", "evaluations")  # of a run, besides its tensors


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


def masks_at_home(
    masks: Tensor | MaskLaw | None, model: nn.Module, data: Tensor | Law, device: torch.device
) -> Tensor | MaskLaw | None:
    """Masks that were checked, on the device of a model if they are a table.

    Raises:
        ValueError: for masks of another kind or length, or unless the model is called as
            (v, t, observed) just where there are masks.
    """
    call = inspect.signature(uncompiled(model).forward)
    given = (None,) * (2 if masks is None else 3)
    try:
        call.bind(*given)
    except TypeError:
        kind, takes = type(uncompiled(model)).__name__, f"({', '.join(call.parameters)})"
        how = "(v, t): masks=... trains an imputer" if masks is None else "(v, t, observed)"
        have = "without" if masks is None else "with"
        raise ValueError(f"{have} masks a model is called as {how}; {kind} takes {takes}") from None
    if masks is None:
        return None
    masks = require_masks(masks, data.shape[1] if isinstance(data, Tensor) else data.seq_len)
    return masks.to(device) if isinstance(masks, Tensor) else masks


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
