"""Networks that could not have learned what a probe looks for."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..networks.dit import DiT
from ..support.draws import drawn
from ..support.validation import require_sequences
from ..support.wrappers import uncompiled
from .recording import content_coordinates, require_positions


def untrained(model: DiT, generator: torch.Generator | None = None) -> DiT:
    """A network like this one, as it is before training, with the same embeddings of frames."""
    model = uncompiled(model)
    fresh = type(model)(**model.config, generator=generator).to(model.embedding)
    with torch.no_grad():
        fresh.embedding.copy_(model.embedding)
    return fresh.eval().requires_grad_(False)


def permuted_positions(model: DiT, generator: torch.Generator | None = None) -> DiT:
    """The same network, with the embeddings of its frames permuted among them.

    Raises:
        ValueError: for a network without embeddings.
    """
    model = uncompiled(model)
    require_positions(content_coordinates(model))
    permuted = copy.deepcopy(model)
    order = drawn(torch.randperm, model.seq_len, generator=generator, dtype=torch.int64)
    with torch.no_grad():
        permuted.embedding.copy_(model.embedding[order.to(model.embedding.device)])
    return permuted


def shuffled_frames(x: Tensor, generator: torch.Generator) -> Tensor:
    """Sequences (n, N, d) with their frames in random order, another one for each."""
    require_sequences("x", x)
    keys = drawn(torch.rand, *x.shape[:2], generator=generator, dtype=torch.float32)
    return x.take_along_dim(keys.argsort(dim=1).to(x.device)[:, :, None], dim=1)
