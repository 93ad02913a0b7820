"""How good an imputer is on one pattern of missing frames, where the true law is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..data.process import GaussianProcess
from ..diffusion.imputer import ConditionalScore, Imputer, impute
from ..diffusion.missing import require_observed
from ..diffusion.sampler import stop_of
from ..support.validation import require_count
from .imputation import ImputationError, imputation_error
from .scores import path_kl


@dataclass(frozen=True)
class ImputerError:
    """An imputer beside the exact conditional law, on average over what is seen.

    Attributes:
        path_kl: nats a missing entry, see :func:`.path_kl`: of the score alone, without a sampler.
        average: of the :class:`.ImputationError` of draws, over sequences.
        standard_error: of these averages, from the spread between sequences (inf of one).
    """

    path_kl: float
    average: ImputationError
    standard_error: ImputationError


def imputer_error(
    network: Imputer,
    process: GaussianProcess,
    observed: Tensor,
    sequences: int = 12,
    draws: int = 192,
    paths: int = 1024,
    level: float = 0.95,
    t_min: float | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> ImputerError:
    r"""How far an imputer is from the exact conditional law, on one pattern of missing frames.

    The divergence of paths judges the network; beside it stands what its draws are like, with the
    sampler that made them. Neither averages over what is seen but by Monte Carlo.

    Args:
        network: called as (v, t, observed), see :class:`.ConditionalScore`.
        process: the law of whole sequences.
        observed: (N,), boolean, True where a frame is seen, such as :func:`.pattern` makes.
        sequences: how many are drawn and imputed.
        draws: imputations of each, 2 or more.
        paths: sequences of :func:`.path_kl`.
        level: of regions and intervals.
        t_min: where generation stops and paths end; by default where the network's training began.
        generator: source of randomness.
        dtype: of the sequences handed to the network.
        options: of :func:`.sample`, such as ``solver`` and ``steps``.

    Raises:
        ValueError: for counts out of range, a mask of another kind, or one that shows or hides
            everything.
        NotPSDError: for a process too smooth to be conditioned.

    Accuracy: the standard errors, and of path_kl about 3 % at the default; coverage of a ball
    differs between sequences by .01 to .04.
    """
    require_observed(observed, process.seq_len)
    for name, count in (("sequences", sequences), ("paths", paths)):
        require_count(name, count)
    x = process.sample(paths, generator, dtype)
    score = ConditionalScore(network, x, observed)
    t_min = stop_of(score) if t_min is None else t_min
    divergence = path_kl(
        score, process.condition(x, observed), t_min, n=paths, generator=generator, dtype=dtype
    )
    x = process.sample(sequences, generator, dtype)
    made = impute(network, x, observed, draws, generator, t_min=t_min, **options)
    law, missing = process.condition(x, observed), ~observed.to(made.device)
    found = [imputation_error(made[:, k, missing], law.process(k), level) for k in range(sequences)]
    return ImputerError(divergence, *_summary(found))


def _summary(found: list[ImputationError]) -> tuple[ImputationError, ImputationError]:
    """Averages and their standard errors, field by field; None where there is no number."""
    means: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    for field in fields(ImputationError):
        values = [getattr(each, field.name) for each in found]
        if None in values:
            means[field.name] = errors[field.name] = None
            continue
        own = torch.tensor(values, dtype=torch.float64, device="cpu")
        means[field.name] = own.mean().item()
        spread = own.std().item() if len(own) > 1 else math.inf
        errors[field.name] = spread / math.sqrt(len(own))
    return ImputationError(**means), ImputationError(**errors)
