r"""What attention looks at in any transformer of this package, and what follows from it.

A hook on every attention layer sees its inputs, and the layer itself says what maps it makes of
them: there is no second forward pass that could drift away from the first. The same hook can hand
back what the layer *would* have returned with other maps, so that a claim about attention becomes
an experiment: change the maps, measure the score.

Logits are sums of four blocks. With inputs :math:`y = y^x + y^e`, x for the content of a frame and
e for its position, and q, k affine in y,

.. math:: l_{ij} = \sum_{a,b\in\{x,e\}} \langle q^a_i, k^b_j\rangle / \sqrt h, \qquad
          q^e = Q y^e + b_q, \quad q^x = Q y^x, \quad \text{and likewise } k.

There are two ways to split y. By **coordinate** a token is [lifted frame, position], as in the
paper; but only the first layer sees that (up to the scale of its layer norm, which is common to
both), since every layer after it finds a residual stream in which either half holds both. By
**batch**, :math:`y^e` is the average of y over noised sequences, what can be known from position
and diffusion step alone; this has a meaning in every layer.

All maps here have the shape (…, N (receives), N (is read)); the sum of attention runs over the
last axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention.certified import NormalisedAttention
from ..attention.layer import Attention
from ..construction.network import ScoreTransformer
from ..data.process import GaussianProcess
from ..diffusion.schedule import perturb
from ..networks.dit import DiT
from ..support.precision import full_precision
from ..support.validation import require_one_of
from ..support.wrappers import uncompiled

BLOCKS = ("xx", "xe", "ex", "ee")  # what the query reads, what the key reads
SPLITS = ("coordinate", "batch")
# subspaces of a ScoreTransformer that hold the frame and what is computed from it
CONTENT = ("frame", "score", "momentum", "offset", "product", "teeth")

Transformer = DiT | ScoreTransformer


@dataclass(frozen=True)
class Seen:
    """An attention layer at work.

    Attributes:
        index: its number, counted from 0 in the order of evaluation.
        layer: the module.
        inputs: what it was given, (batch, N, width).
        content: which coordinates of a token hold the frame, (width,) of bool; the others hold
            its position.
    """

    index: int
    layer: nn.Module
    inputs: Tensor
    content: Tensor

    @property
    def maps(self) -> Tensor:
        """A, (batch, heads, N, N)."""
        return self.layer.maps(self.inputs)

    @property
    def logits(self) -> Tensor:
        """What the maps are made from, (batch, heads, N, N)."""
        self._require_room(1)
        query, key, _ = self.layer.query_key_value(self.inputs)
        return self.layer.logits(query, key)

    def blocks(self, split: str = "coordinate") -> dict[str, Tensor]:
        """The four summands of the logits, by name (``BLOCKS``); each (batch, heads, N, N).

        Where queries and keys are normalised, both parts are scaled as their sum is.

        Args:
            split: ``"coordinate"`` or ``"batch"``, see above.

        Raises:
            ValueError: for an unknown split, tokens without coordinates for the position, or
                blocks that do not fit into memory.
        """
        require_one_of("split", split, SPLITS)
        if split == "coordinate":
            require_positions(self.content)
            position = self.inputs.masked_fill(self.content, 0)
        else:
            position = self.inputs.mean(dim=0, keepdim=True).expand_as(self.inputs)
        self._require_room(len(BLOCKS))
        whole, part = (self.layer.query_key_value(y)[:2] for y in (self.inputs, position))
        logits = self.layer.logits
        if isinstance(self.layer, NormalisedAttention):
            scales = [self.layer.stretch(w) for w in whole]
            whole, part = ([x * s for x, s in zip(y, scales, strict=True)] for y in (whole, part))
            logits = self.layer.products
        query, key = ({"x": w - p, "e": p} for w, p in zip(whole, part, strict=True))
        return {name: logits(query[name[0]], key[name[1]]) for name in BLOCKS}

    def _require_room(self, count: int) -> None:
        if isinstance(self.layer, Attention):
            self.layer.require_room(self.inputs, count)


@torch.no_grad()
def record(
    model: Transformer, v: Tensor, t: float | Tensor, layers: Sequence[int] | None = None
) -> list[Seen]:
    """Evaluate a transformer and keep what its attention layers see.

    Args:
        model: a DiT or a constructed transformer; its output and its speed are not changed. One
            that is compiled is evaluated as it was before, for a compiled graph has no layers.
        v, t: what it is called with.
        layers: which, counted from 0; all by default.

    Returns:
        One record per layer, in the order of evaluation (a block that serves several steps is seen
        several times).

    Raises:
        ValueError: for a model without attention, or a layer that it does not have.
    """
    model = uncompiled(model)
    content, seen = content_coordinates(model), []

    def keep(index: int, layer: nn.Module, inputs: Tensor) -> None:
        seen.append(Seen(index, layer, inputs.detach(), content))

    with _tapped(model, _chosen(model, layers), keep):
        model(v, t)
    return seen


def content_coordinates(model: Transformer) -> Tensor:
    """Which coordinates of a token hold the frame, and what follows from it: (width,) of bool.

    Raises:
        ValueError: for a model that is no transformer.
    """
    model = uncompiled(model)
    attention_layers(model)
    if isinstance(model, DiT):
        return torch.arange(model.config["hidden"], device=model.embedding.device) < model.lift_dim
    content = torch.ones(model.readout.shape[1], dtype=torch.bool, device=model.readout.device)
    for name in model.spaces.names if model.spaces else ():
        content[model.spaces[name]] = name in CONTENT
    return content


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention layers of a transformer, in the order of evaluation.

    Raises:
        ValueError: for a model that has none.
    """
    model = uncompiled(model)
    if not isinstance(model, Transformer):
        raise ValueError(f"a {type(model).__name__} has no attention to look at; give a DiT")
    return [block.attention for block in model.blocks]


def require_positions(content: Tensor) -> None:
    """Raise unless some coordinates of a token hold its position."""
    if content.all():
        raise ValueError(
            "the tokens of this model have no coordinates for the position (position='none', or no"
            " named subspaces), so its queries and keys have no block e"
        )


@full_precision()
def query_key_products(layer: nn.Module) -> Tensor:
    r"""The bilinear form of each head, :math:`Q_h^\top K_h`, (heads, width, width)."""
    weight = next(layer.parameters())  # (…, width)
    units = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)[None]
    ends = zip(*(layer.query_key_value(y)[:2] for y in (units, 0 * units)), strict=True)
    query, key = (of_units - bias for of_units, bias in ends)
    return (query @ key.transpose(-1, -2))[0].detach()


def block_norms(model: Transformer) -> Tensor:
    r"""Frobenius norms of the blocks of :math:`Q_h^\top K_h`, the paper's way to see what matters.

    Source: FDGWC Fig. 4b.

    The norm of a block does not know how large are the inputs that it meets, nor that softmax
    ignores what is constant over keys; :func:`logit_shares` does.

    Args:
        model: a transformer with coordinates for the position.

    Returns:
        (layers, heads, 4), in the order of ``BLOCKS``.

    Raises:
        ValueError: for a model without attention or without positions, or whose layers have
            different numbers of heads, as those of a constructed transformer.
    """
    content = content_coordinates(model)
    require_positions(content)
    parts = {"x": content, "e": ~content}
    layers, norms = attention_layers(model), {}
    for layer in layers:
        product = query_key_products(layer)
        blocks = (product[:, parts[a]][:, :, parts[b]] for a, b in BLOCKS)
        norms[layer] = torch.stack([torch.linalg.matrix_norm(b) for b in blocks], dim=-1)
    heads = [len(each) for each in norms.values()]
    if len(set(heads)) > 1:
        raise ValueError(
            f"layers with different numbers of heads, {heads}, have no common table of norms; look"
            " at them one by one with query_key_products"
        )
    return torch.stack([norms[layer] for layer in layers])


def logit_shares(seen: Seen, split: str = "coordinate") -> dict[str, float]:
    r"""Which block makes the logits differ from key to key.

    .. math:: \text{share}_{ab} = \frac{E\,\|C\,l^{ab}\|^2}{\sum_{a'b'} E\,\|C\,l^{a'b'}\|^2},
              \qquad (C\,l)_{ij} = l_{ij} - \tfrac1N\textstyle\sum_{j'} l_{ij'}.

    Logits are centred over keys, because softmax does not see what is constant there; that also
    takes away b_k. The constant part of a query, b_q, counts as e. Heads are pooled.

    Args:
        seen: of :func:`record`, with as many sequences as the expectation needs (32 are plenty).
        split: ``"coordinate"`` or ``"batch"``.

    Returns:
        Shares by block, which add up to 1 (all 0 where no logit depends on the key).
    """
    blocks = seen.blocks(split)
    energy = {
        name: (logits - logits.mean(dim=-1, keepdim=True)).double().square().sum().item()
        for name, logits in blocks.items()
    }
    total = sum(energy.values()) or 1.0
    return {name: value / total for name, value in energy.items()}


@contextmanager
def _tapped(
    model: Transformer, layers: set[int], tap: Callable[[int, nn.Module, Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside, ``tap`` sees the inputs of these layers; what it returns replaces their output."""
    calls = itertools.count()

    def hook(layer: nn.Module, arguments: tuple[Tensor], _output: Tensor) -> Tensor | None:
        index = next(calls)
        return tap(index, layer, arguments[0]) if index in layers else None

    # a layer that serves several steps has one hook
    handles = [x.register_forward_hook(hook) for x in dict.fromkeys(attention_layers(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_known(blocks: Sequence[str], split: str) -> None:
    require_one_of("split", split, SPLITS)
    for name in blocks:
        require_one_of("block", name, BLOCKS)


def _chosen(model: Transformer, layers: Sequence[int] | None) -> set[int]:
    depth = len(attention_layers(model))
    chosen = set(range(depth) if layers is None else layers)
    for layer in chosen:
        if not 0 <= layer < depth:
            raise ValueError(f"layers must lie in 0..{depth - 1}, got {layer!r}")
    return chosen


@full_precision()
def contributions(seen: Seen, read: slice, write: slice, queried: slice | None = None) -> Tensor:
    r"""What the heads of a constructed layer move from one subspace to another, frame to frame.

    .. math:: \tfrac1d \operatorname{tr}\left((V_h)_{write,\,read}\right) A_h

    Where the heads are those of Theorem 1 their sum is a negative multiple of :math:`\bar\Gamma`.

    Args:
        seen: a layer of a :class:`.ScoreTransformer`.
        read, write: coordinates of the two subspaces, of one size d.
        queried: leave out heads whose query does not look at these coordinates.

    Returns:
        (batch, heads, N, N).
    """
    layer = seen.layer
    gain = (layer.output @ layer.value)[:, write, read].diagonal(dim1=1, dim2=2).mean(dim=1)
    looking = layer.query[:, :, slice(None) if queried is None else queried].flatten(1).any(dim=1)
    return (gain[:, None, None] * seen.maps)[:, looking]


@torch.no_grad()
def logit_ranges(
    network: DiT,
    process: GaussianProcess,
    steps: tuple[float, ...],
    n: int = 64,
    generator: torch.Generator | None = None,
) -> list[dict[str, float]]:
    """The largest logit, in size, of every layer at some diffusion steps, keys as is and centred.

    Args:
        network: with softmax attention.
        process: law of the clean sequences.
        steps: diffusion steps t.
        n: sequences at each.
        generator: source of randomness.

    Returns:
        One row per step and layer: ``layer`` (from 1), ``t``, ``range`` and ``centred``.
    """
    x, rows = process.sample(n, generator), []
    for t in steps:
        for seen in record(network, perturb(x, t, generator)[0], t):
            query, key, _ = seen.layer.query_key_value(seen.inputs)
            centred = key - key.mean(dim=-2, keepdim=True)
            reach = [seen.layer.logits(query, k).abs().max().item() for k in (key, centred)]
            rows.append({"layer": seen.index + 1, "t": t, "range": reach[0], "centred": reach[1]})
    return rows
