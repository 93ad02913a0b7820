"""The experiment behind chapter 7: what attention has learned, beside networks that could not.

There are five kinds of networks: ``trained``; ``untrained``; ``permuted``, the trained one with its
positions permuted; ``white noise``, trained on sequences without memory; and ``shuffled``, trained
on sequences whose frames come in random order, so that positions say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data.process import GaussianProcess, decaying_process
from ..diffusion import denoiser
from ..diffusion.schedule import perturb
from ..measures.covariances import relative_error
from ..measures.scores import score_error
from ..networks.dit import DiT
from ..probing import edits, maps, nulls, recording
from ..probing.nulls import shuffled_frames
from ..training.config import TrainConfig
from .run import PAPER_DATA, QUICK_DATA, Run, half_weights, in_half_precision, new_network, seeded

SHUFFLED = 8192  # sequences with frames in random order
STEPS = (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # diffusion steps, as denoising meets them
AT = 0.1  # of edits of one layer, and of the maps that are kept
NULLS = ("white noise", "shuffled")  # those that are trained
EDITS = {
    "only e-e": edits.only("ee"),
    "without e-e": edits.without("ee"),
    "without x-x": edits.without("xx"),
    "without x-e and e-x": edits.without("xe", "ex"),
    "uniform": edits.uniform,
    "batch mean": edits.batch_mean,
    "only e-e by batch": edits.only("ee", split="batch"),
    "without e-e by batch": edits.without("ee", split="batch"),
}


@dataclass(frozen=True)
class Probing:
    """Settings of :func:`probing`.

    Args:
        data: the law of the sequences, as in :class:`.Figure1`.
        training: of the networks; its seed is replaced.
        null_steps: updates of the null models.
        seeds: of the trained networks, and of their untrained and permuted twins.
        null_seeds: of the null models that are trained.
        keep: whether to keep the weights of the first trained network, in half precision.
        sequences, ablated, jacobians: how many are looked at, how many a score error is measured
            on, and at how many the Jacobian is taken.
        edited_at: diffusion steps of score errors and Jacobians; the one at which single layers
            are edited, 0.1, is among them.
    """

    data: Mapping[str, Any]
    training: TrainConfig
    null_steps: int
    seeds: tuple[int, ...] = (0, 1, 2)
    null_seeds: tuple[int, ...] = (0, 1, 2)
    keep: bool = False
    sequences: int = 64
    ablated: int = 512
    jacobians: int = 4
    edited_at: tuple[float, ...] = (0.01, 0.1, 1.0)


PROBING = {
    "quick": Probing(QUICK_DATA, TrainConfig(steps=800), null_steps=800),
    "paper": Probing(
        PAPER_DATA, TrainConfig(steps=2000), null_steps=600, seeds=(1, 2, 0), null_seeds=(),
        keep=True, sequences=16, ablated=32, jacobians=1, edited_at=(0.1,),
    ),
}  # fmt: skip


def probing(settings: Probing, run: Run) -> Path:
    """Look at trained networks and at their nulls, then change their attention maps.

    Source: FDGWC Fig. 4b; FDGWC Fig. 5.

    Layers are counted from 1. Table ``maps``, by network, seed, layer and t: shares of the blocks
    of the logits (``xx``, ``xe``, ``ex``, ``ee``; ``ee by batch``), deviation of the logits over
    keys (``spread``), share of the maps' deviation from uniform that differs from sequence to
    sequence (``content``), and of the average maps, means over heads: off-diagonal correlation with
    Γ and W_t, R² of W_t on the heads with and without the diagonal, mean lag and contrast. Table
    ``norms``: the paper's Frobenius norms, means over heads. Table ``ablations``: score errors
    after each edit of all layers (layer 0) or one. Table ``jacobians``: relative error and
    off-diagonal correlation. Arrays: maps of trained nulls at t = 0.1, averaged over sequences and
    heads, (layers, N, N), half precision; weights for
    :func:`.stored_network`, if they are kept.

    Takes and returns what :func:`.figure1` does.
    """
    process = decaying_process(**settings.data).to(run.device)
    arrays, tables = {}, defaultdict(list)
    for seed in dict.fromkeys([*settings.seeds, *settings.null_seeds]):
        networks = _networks(seed, settings, run)
        for kind, network in networks.items():
            for table, rows in _measured(kind, networks, process, settings).items():
                tables[table] += [{"network": kind, "seed": seed, **row} for row in rows]
            if kind in NULLS and seed == settings.null_seeds[0]:
                arrays[kind] = _pictures(network, process, settings)
        if settings.keep and seed == settings.seeds[0]:
            arrays |= half_weights(networks["trained"], "DiT.weights.")
    looks = pd.DataFrame(tables["maps"]).query("t == @AT").groupby("network")
    at = looks[["ee", "correlation with W"]].mean()
    record = {"networks": {"DiT": network.config} if settings.keep else {}, **asdict(settings)}
    return run.save(record, at.to_dict("index"), tables, arrays)


def learned(null: str, seed: int, settings: Probing, run: Run) -> DiT:
    """Train one network, with a checkpoint in the folder.

    Args:
        null: ``"trained"``, ``"white noise"`` or ``"shuffled"``.
        seed: of everything but the shuffled sequences.
        settings, run: as in :func:`probing`.
    """
    process = decaying_process(**settings.data).to(run.device)
    steps = settings.training.steps if null == "trained" else settings.null_steps
    config = replace(settings.training, steps=steps, seed=seed)
    network = new_network("DiT", process.seq_len, process.dim, seed)
    return run.train(f"{null}-{seed}", network, training_data(null, process), config).model


def training_data(null: str, process: GaussianProcess) -> GaussianProcess | Tensor:
    """What a network or a null model is trained on, on the device of the law; see :func:`learned`.

    Args:
        null: ``"trained"``, ``"white noise"`` or ``"shuffled"``.
        process: the law of the sequences.
    """
    if null == "trained":
        return process
    if null == "white noise":
        white = torch.eye(process.seq_len, device=process.mean.device)
        return GaussianProcess(white, process.spatial)
    if null != "shuffled":
        raise ValueError(f"null must be 'trained', 'white noise' or 'shuffled', got {null!r}")
    generator = seeded(process, SHUFFLED)
    return shuffled_frames(process.sample(SHUFFLED, generator), generator)


def looked_at(
    network: DiT, process: GaussianProcess, settings: Probing
) -> Iterator[dict[str, Any]]:
    """Rows of the table ``maps`` for one network."""
    temporal = process.gram()
    for t in STEPS:
        operator = denoiser.denoising_operator(temporal, t)
        for seen in recording.record(network, _noised(process, settings.sequences, t), t):
            each, logits = seen.maps.double(), seen.logits
            mean = each.mean(dim=0)
            row = {
                "spread": _centred(logits).square().mean().sqrt(),
                "content": (each - mean).square().sum() / _centred(each).square().sum(),
                "correlation with Γ": maps.off_diagonal_correlation(mean, temporal).mean(),
                "correlation with W": maps.off_diagonal_correlation(mean, operator).mean(),
                "R²": maps.explained(operator, mean),
                "R² off the diagonal": maps.explained(operator, mean, diagonal=False),
                "mean lag": maps.mean_lag(mean).mean(),
                "contrast": maps.contrast(mean).mean(),
                **recording.logit_shares(seen),
                "ee by batch": recording.logit_shares(seen, "batch")["ee"],
            }
            yield {"layer": seen.index + 1, "t": t, **{k: float(x) for k, x in row.items()}}


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def _networks(seed: int, settings: Probing, run: Run) -> dict[str, DiT]:
    """The networks of a seed, by kind."""
    kinds = ["trained"] * (seed in settings.seeds)
    kinds += NULLS * (seed in settings.null_seeds)
    networks = {kind: in_half_precision(learned(kind, seed, settings, run)) for kind in kinds}
    twins = {"untrained": nulls.untrained, "permuted": nulls.permuted_positions}
    for kind, twin in twins.items() if "trained" in networks else ():
        networks[kind] = twin(networks["trained"], torch.Generator().manual_seed(seed))
    return networks


def _measured(
    kind: str, networks: dict[str, DiT], process: GaussianProcess, settings: Probing
) -> dict[str, Iterator[dict[str, Any]]]:
    """Rows of every table for one network."""
    network = networks[kind]
    rows = {"maps": looked_at(network, process, settings), "norms": _norms(network)}
    if kind == "trained":
        rows["ablations"] = _ablations(network, networks["permuted"], process, settings)
        rows["jacobians"] = _jacobians(network, process, settings)
    return rows


def _norms(network: DiT) -> Iterator[dict[str, Any]]:
    for layer, norms in enumerate(recording.block_norms(network).mean(dim=1).tolist()):
        yield {"layer": layer + 1, **dict(zip(recording.BLOCKS, norms, strict=True))}


def _ablations(
    network: DiT, permuted: DiT, process: GaussianProcess, settings: Probing
) -> Iterator[dict[str, Any]]:
    scores = {label: edits.Edited(network, edit) for label, edit in EDITS.items()}
    scores = {"none": network, "permuted positions": permuted, **scores}
    cases = [(label, 0, t, score) for t in settings.edited_at for label, score in scores.items()]
    for layer in range(len(network.blocks)):
        for label in ("without e-e", "uniform"):
            edited = edits.Edited(network, EDITS[label], [layer])
            cases.append((label, layer + 1, AT, edited))
    full = {}
    for label, layer, t, score in cases:
        error = score_error(score, process, t, settings.ablated, seeded(process, 103))
        ratio = error / full.setdefault(t, error)  # "none" comes first
        yield {"edit": label, "layer": layer, "t": t, "score_error": error, "ratio": ratio}


def _jacobians(
    network: DiT, process: GaussianProcess, settings: Probing
) -> Iterator[dict[str, Any]]:
    for t in settings.edited_at:
        exact, v = denoiser.exact_jacobian(process, t), _noised(process, settings.jacobians, t)
        for jacobian in denoiser.denoiser_jacobian(network, v, t).double():
            alike = maps.off_diagonal_correlation(jacobian, exact).item()
            yield {"t": t, "error": relative_error(jacobian, exact), "correlation": alike}


def _pictures(network: DiT, process: GaussianProcess, settings: Probing) -> Tensor:
    seen = recording.record(network, _noised(process, settings.sequences, AT), AT)
    return torch.stack([layer.maps.mean(dim=(0, 1)) for layer in seen]).half()


def _noised(process: GaussianProcess, n: int, t: float) -> Tensor:
    """n noised sequences, the same ones on every call, (n, N, d)."""
    generator = seeded(process, 104)
    return perturb(process.sample(n, generator), t, generator)[0]
