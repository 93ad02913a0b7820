r"""Many networks of one shape, trained at once.

A sweep trains hundreds of small networks. One alone spends its time on overhead: its matrices are
too small for the machine. Stacked, M networks are one computation with one more dimension, and
several times faster. Nothing is shared but time: each has its own data, noise, clipping and
average.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..data.law import Law
from ..data.masks import MaskLaw, draw_masks
from ..diffusion.schedule import perturb
from ..support.precision import without_autocast
from ..support.wrappers import uncompiled
from .config import TrainConfig, TrainingDivergedError
from .loop import architecture, at_home, draw_batch, masks_at_home, require_fitting
from .objective import matching_error, matching_steps, missing_mean

VECTOR = 64  # numbers; the longest vector of a processor, several times


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Args:
        model: called as (v, t); left as it is. Models of an ensemble have the same structure.
        data: sequences (n, N, d) drawn from with replacement, or a law that supplies fresh ones.
        seed: of the batches, the diffusion steps, the masks and the noise.
        masks: for imputers, as in :func:`.fit`: all members have some, or none has.
    """

    model: nn.Module
    data: Tensor | Law
    seed: int
    masks: Tensor | MaskLaw | None = None


def fit_ensemble(
    members: Sequence[Member], config: TrainConfig
) -> list[nn.Module | TrainingDivergedError]:
    """Train several networks by denoising score matching, each as :func:`.fit` does.

    Args:
        members: networks of one structure, which must not use fused attention, each with its data.
            What ``torch.compile`` has compiled is trained, and returned, as it was before.
        config: common to all; its seed and its evaluations are not used.

    Returns:
        One for each member: the network with averaged weights, in evaluation mode and frozen, or
        the error that tells where its loss was no longer finite. A network that diverges does not
        disturb the others.

    Raises:
        ValueError: without members, for data or masks that do not fit their model, for masks of
            some members only, for models that differ,
            that have frozen weights, or that draw random numbers as dropout does: with whom a
            network is trained would decide what it draws.

    Every member draws its batches from a generator of its own, as in a run of one network, so that
    its seed alone decides what it sees. That is one draw after the other: about 34 launches a
    member and step on an accelerator, against some 470 for all that is stacked, whatever M. One
    draw for all would be another stream for every member.

    Accuracy: on one thread, with a batch size that is a multiple of 16, a member ends with the same
    weights whoever else is in the ensemble, bit for bit, as long as its network makes of the
    members a *batch* of matrix products: libraries compute every matrix of a batch alike. That
    holds for all networks here but :class:`.UNet1d`. It does not hold where members
    become the columns of one product (of a weight that is a vector with a matrix that is none),
    whose order of summation M may decide; nor for convolutions, whose groups they become. (The last
    numbers of a tensor whose size is no multiple of a vector are computed by other instructions,
    and M decides which are last; hence the batch size.) Otherwise, and against
    :func:`.fit`, up to rounding, which grows with the steps.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member, got none")
    if len(members) == 1:  # torch drops a dimension of size 1, and sums in another order
        return fit_ensemble([*members, *members], config)[:1]
    members = [replace(member, model=uncompiled(member.model)) for member in members]
    stack = _Stack([member.model for member in members])
    data = [at_home(member.data, stack.dtype, stack.device) for member in members]
    for member, own in zip(members, data, strict=True):
        require_fitting(member.model, own)
    masks = [
        masks_at_home(member.masks, member.model, own, stack.device)
        for member, own in zip(members, data, strict=True)
    ]
    if len({own is None for own in masks}) > 1:
        raise ValueError("either all members of an ensemble have masks or none has, got some")
    generators = [torch.Generator(stack.device).manual_seed(member.seed) for member in members]
    optimiser = torch.optim.AdamW(
        [stack.weights], config.learning_rate, config.betas, weight_decay=config.weight_decay,
        fused=True,
    )  # fmt: skip
    average = stack.weights.detach().clone()
    last_finite = torch.full((len(members),), config.steps, device=stack.device)
    for step in range(config.steps):
        losses = _losses(stack, data, masks, generators, config)
        stack.weights.grad.zero_()
        with without_autocast():
            losses.sum().backward()
        norms = stack.clip(config.clip)
        optimiser.param_groups[0]["lr"] = config.learning_rate_at(step)
        optimiser.step()
        with torch.no_grad():
            average.lerp_(stack.weights, 1 - config.ema_decay_at(step))
            finite = torch.isfinite(losses) & torch.isfinite(norms)
            last_finite = torch.where(finite, last_finite, last_finite.clamp(max=step))
    with torch.no_grad():
        stack.weights.copy_(average)
    return [
        _member(stack, member.model, row, int(last), config)
        for row, (member, last) in enumerate(zip(members, last_finite, strict=True))
    ]


class _Stack:
    """The weights of M networks of one structure, all in one vector.

    Each weight is a stretch of that vector, (M, *shape), and so is its gradient. The vector is
    padded: AdamW computes the last numbers of a tensor by other instructions, which would let the
    result depend on M.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        _require_alike(models)
        values, self.buffers = stack_module_state(models)
        first = next(iter(values.values()))
        self.dtype, self.device = first.dtype, first.device
        size = sum(value.numel() for value in values.values())
        size += -size % VECTOR
        self.weights = nn.Parameter(torch.zeros(size, dtype=self.dtype, device=self.device))
        self.weights.grad = torch.zeros_like(self.weights)
        self.values = self._stretches(self.weights.detach(), values)
        gradients = self._stretches(self.weights.grad, values)
        for name, own in self.values.items():
            own.copy_(values[name].detach()).requires_grad_()
            own.grad = gradients[name]
        one = copy.deepcopy(models[0]).to("meta").train()
        self._all = torch.vmap(
            lambda values, buffers, *given: functional_call(one, (values, buffers), given)
        )

    def __call__(self, v: Tensor, t: Tensor, *observed: Tensor) -> Tensor:
        """(M, batch, N, d), (M, batch) and, of imputers, (M, batch, N) -> (M, batch, N, d)."""
        try:
            return self._all(self.values, self.buffers, v, t, *observed)
        except RuntimeError as error:
            if "randomness error mode" not in str(error):
                raise
            raise ValueError(
                "the models of an ensemble must not draw random numbers, as dropout does: set its"
                " p to 0, or train them one by one with gptheory.training.resume.fit"
            ) from error

    def clip(self, largest: float) -> Tensor:
        """Scale the gradient of each network to a norm of at most ``largest``; the norms, (M,)."""
        gradients = [value.grad.flatten(1) for value in self.values.values()]
        norms = sum(gradient.square().sum(dim=1) for gradient in gradients).sqrt()
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)[:, None]
        for gradient in gradients:
            gradient.mul_(factors)
        return norms

    @staticmethod
    def _stretches(vector: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes = [value.numel() for value in values.values()]
        parts = vector[: sum(sizes)].split(sizes)
        pairs = zip(values.items(), parts, strict=True)
        return {name: part.view(value.shape) for (name, value), part in pairs}


def _require_alike(models: list[nn.Module]) -> None:
    """Raise unless all models have one structure, that of the first computes for all; and no weight
    of it is frozen, since the stack trains every one.
    """
    frozen = [name for name, value in models[0].named_parameters() if not value.requires_grad]
    if frozen:
        raise ValueError(
            f"an ensemble trains all weights, but {', '.join(frozen)} of its models do not require"
            " a gradient; train such models one by one with gptheory.training.resume.fit"
        )
    first, *others = (
        {**architecture(m), **{name: (p.dtype, *p.shape) for name, p in m.named_parameters()}}
        for m in models
    )
    for k, other in enumerate(others, start=1):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"models 0 and {k} of the ensemble differ in {name}: {first.get(name)} and"
                    f" {other.get(name)}; they must have one structure"
                )


def _losses(
    stack: _Stack,
    data: list[Tensor | Law],
    masks: list[Tensor | MaskLaw | None],
    generators: list[torch.Generator],
    config: TrainConfig,
) -> Tensor:
    """One loss for each network, (M,); every generator is used as in a run of one network."""
    drawn = [
        _draw(*each, stack.dtype, config) for each in zip(data, masks, generators, strict=True)
    ]
    t, v, noise, *observed = (torch.stack(each) for each in zip(*drawn, strict=True))
    scores = stack(v, t, *observed)
    errors = matching_error(scores.flatten(0, 1), noise.flatten(0, 1), t.flatten(), config.weight)
    if observed:
        return missing_mean(errors.square().view_as(v), *observed)
    return errors.square().view(len(data), -1).mean(dim=1)


def _draw(
    data: Tensor | Law,
    masks: Tensor | MaskLaw | None,
    generator: torch.Generator,
    dtype: torch.dtype,
    config: TrainConfig,
) -> tuple[Tensor, ...]:
    """Steps, noised sequences and noise of one network's batch, and its masks if it has any."""
    x = draw_batch(data, config.batch_size, generator, dtype)
    t = matching_steps(len(x), config.times, config.t_min, config.t_max, generator)
    observed = [] if masks is None else [draw_masks(masks, len(x), generator)]
    v, noise = perturb(x, t, generator)
    for seen in observed:
        v = torch.where(seen[..., None], x, v)
    return t, v, noise, *observed


def _member(
    stack: _Stack, model: nn.Module, row: int, last: int, config: TrainConfig
) -> nn.Module | TrainingDivergedError:
    if last < config.steps:
        return TrainingDivergedError(
            f"training diverged at step {last + 1} of {config.steps}; lower the learning rate"
            f" ({config.learning_rate:g}) or check the data"
        )
    trained = copy.deepcopy(model)
    stacked = stack.values | stack.buffers
    with torch.no_grad():
        for name, value in [*trained.named_parameters(), *trained.named_buffers()]:
            value.copy_(stacked[name][row])
    trained.t_range = (config.t_min, config.t_max)  # as Training says
    return trained.eval().requires_grad_(False)
