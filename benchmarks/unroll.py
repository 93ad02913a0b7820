"""K steps of an optimiser as one filter on the spectrum, and as a constructed transformer."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from gptheory.construction import build_score_transformer
from gptheory.data import GaussianProcess, PowerExponential, random_covariance
from gptheory.diffusion import UnrolledScore, perturb

from .compare import Comparison, Limit, Row

SEQ_LEN, DIM, BATCH, STEPS, T = 128, 8, 256, 50, 0.1
NETWORKS = [  # method, form, steps, seconds
    ("gradient-descent", "plain", 176, 10),
    ("heavy-ball", "plain", 38, 4),
    ("heavy-ball", "position-once", 38, 3),
]


def rows() -> list[Row]:
    """The shortcut against the loop, then one sequence through each constructed network."""
    generator = torch.Generator().manual_seed(0)
    spatial = random_covariance(DIM, generator=generator)
    law = GaussianProcess(PowerExponential(4.0), spatial, seq_len=SEQ_LEN)
    v, _ = perturb(law.sample(BATCH, generator, torch.float64), T, generator)
    shortcut = [
        Comparison(
            task=f"unrolled K={STEPS}, N={SEQ_LEN}, d={DIM}, batch {BATCH}: {method}",
            peer="the loop, fused products, f64",
            ours=lambda score=score: score(v, T),
            theirs=lambda score=score: deque(score.iterates(v, T), maxlen=1).pop(),
            agree=agree,
            bar=15,
            calls=5,
        )
        for method in ("gradient-descent", "heavy-ball")
        for score in [UnrolledScore(law, STEPS, method=method)]
    ]
    return shortcut + [network_row(law, v[:1], *network) for network in NETWORKS]


def network_row(
    law: GaussianProcess, v: Tensor, method: str, form: str, steps: int, seconds: float
) -> Limit:
    """One forward pass of one sequence."""
    built = []

    def forward() -> Tensor:
        if not built:  # in the first call, which is checked and not timed
            built.append(build_score_transformer(law, steps, method=method, form=form))
        return built[0](v, T)

    def check(score: Tensor) -> None:
        iterate = UnrolledScore(law, steps, method=method)(v, T)
        error = ((score - iterate).norm() / iterate.norm()).item()
        assert error < 1e-5, f"the network is {error:.1e} of the iterate away"

    return Limit(
        task=f"constructed {method}, {form}, K={steps}",
        peer="none builds it",
        ours=forward,
        check=check,
        units=1,
        bar=seconds * 1e3,
        rounds=3,
    )


def agree(ours: Tensor, theirs: Tensor) -> None:
    """The same numbers."""
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error < 1e-6, f"iterates differ by {error:.1e}"
