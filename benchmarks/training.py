"""Training steps: the diffusion transformer against its textbook form, a stack against a loop."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptheory.data import GaussianProcess, decaying_process
from gptheory.networks import DiT
from gptheory.training import TrainConfig, fit, fit_ensemble, matching_loss
from gptheory.training.ensemble import Member

from .compare import Comparison, Row

SEQ_LEN, DIM, BATCH = 128, 8, 64
MODELS, UPDATES = 16, 10  # of an ensemble


def rows() -> list[Row]:
    """Fused attention and optimiser against explicit attention and a loop over weights."""
    ours, theirs = disturbed(0), disturbed(0)
    for k, block in enumerate(theirs.blocks):
        theirs.blocks[k] = TextbookBlock(block)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, SEQ_LEN, DIM, generator=generator)
    return [
        Comparison(
            task=f"DiT step N={SEQ_LEN}, batch {BATCH}, f32: loss to update",
            peer="textbook block, for-loop AdamW",
            ours=stepper(ours, x, fused=True),
            theirs=stepper(theirs, x, foreach=False, fused=False),
            agree=agree,
            bar=1.0,
        ),
        ensemble_row(),
    ]


def ensemble_row() -> Row:
    """Sixteen small networks at once, against one after the other."""
    law = decaying_process(32, 2)
    config = TrainConfig(steps=UPDATES, batch_size=8, evaluate_at=())
    return Comparison(
        task=f"{MODELS} DiTs N=32, batch 8, width 32: {UPDATES} updates each",
        peer="the same, one after the other (train.fit)",
        ours=lambda: together(law, config),
        theirs=lambda: in_turn(law, config),
        agree=same_weights,
        bar=2.0,
        rounds=3,
    )


def small(seed: int, fused: bool) -> DiT:
    """A network of the sweeps."""
    generator = torch.Generator().manual_seed(seed)
    return DiT(2, 32, hidden=32, heads=2, depth=2, fused=fused, generator=generator)


def together(law: GaussianProcess, config: TrainConfig) -> Tensor:
    """Weights (models, parameters) after training as a stack."""
    members = [Member(small(seed, fused=False), law, seed) for seed in range(MODELS)]
    return torch.stack([flat(model) for model in fit_ensemble(members, config)])


def in_turn(law: GaussianProcess, config: TrainConfig) -> Tensor:
    """The same in a loop, with fused attention."""
    runs = (
        fit(small(seed, fused=True), law, dataclasses.replace(config, seed=seed))
        for seed in range(MODELS)
    )
    return torch.stack([flat(run.model) for run in runs])


def flat(model: nn.Module) -> Tensor:
    """All weights of a network."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same_weights(ours: Tensor, theirs: Tensor) -> None:
    """The same networks: AdamW divides by tiny gradients at first, which magnifies rounding."""
    start = torch.stack([flat(small(seed, fused=True)) for seed in range(MODELS)])
    error = ((ours - theirs).norm() / (theirs - start).norm()).item()
    assert error < 1e-3, f"weights differ by {error:.1e} of what training moved"


def disturbed(seed: int) -> DiT:
    """A DiT whose zero weights are random too, so that the outputs compared depend on all."""
    generator = torch.Generator().manual_seed(seed)
    model = DiT(DIM, SEQ_LEN, generator=generator)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def stepper(model: nn.Module, x: Tensor, **options: bool) -> Callable[[], Tensor]:
    """A call makes one update, too small to matter; it returns its loss and its gradient."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-9, **options)
    t = torch.linspace(0.01, 5.0, len(x), dtype=torch.float64)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = matching_loss(model, x, t, torch.Generator().manual_seed(2))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return torch.cat([loss.detach()[None], gradient])

    return step


class TextbookBlock(nn.Module):
    """adaLN-zero as Peebles and Xie print it: a LayerNorm, an explicit softmax, separate terms."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        block = copy.deepcopy(block)
        self.modulation, self.attention, self.mlp = block.modulation, block.attention, block.mlp
        width = self.attention.output.in_features
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, y: Tensor, clock: Tensor) -> Tensor:
        """(batch, N, width) and (batch, width) -> (batch, N, width)."""
        b1, a1, g1, b2, a2, g2 = self.modulation.linear(clock).chunk(6, dim=1)
        y = y + g1.unsqueeze(1) * self.attend(
            self.norm(y) * (1 + a1.unsqueeze(1)) + b1.unsqueeze(1)
        )
        return y + g2.unsqueeze(1) * self.mlp(
            self.norm(y) * (1 + a2.unsqueeze(1)) + b2.unsqueeze(1)
        )

    def attend(self, y: Tensor) -> Tensor:
        """Multi-head attention with its (N, N) maps."""
        batch, seq_len, width = y.shape
        heads = self.attention.heads
        qkv = self.attention.project(y).reshape(batch, seq_len, 3, heads, width // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        maps = (query @ key.transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1)
        return self.attention.output((maps @ value).transpose(1, 2).reshape(y.shape))


def agree(ours: Tensor, theirs: Tensor) -> None:
    """The same loss, and the same gradient to 1e-5 of its largest entry."""
    for name, part in (("losses", slice(1)), ("gradients", slice(1, None))):
        error = ((ours - theirs)[part].abs().max() / theirs[part].abs().max()).item()
        assert error < 1e-5, f"{name} differ by {error:.1e}"
