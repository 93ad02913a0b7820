"""The transformer that is told which frames are seen: tokens, masks, and where it is continued."""

from __future__ import annotations

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_float32, assert_identity
from tour.stop import shaken

from gptheory.diffusion import ExactScore, alpha, sigma
from gptheory.networks import ConditionalDiT, DiT

F32, F64 = torch.float32, torch.float64
N, DIM = 6, 3
SEEN = torch.tensor([True, False, True, True, False, True])
MASKS = torch.stack([SEEN, ~SEEN, SEEN.roll(1), SEEN])


def fresh(**options) -> ConditionalDiT:
    return ConditionalDiT(DIM, N, **{"hidden": 16, "heads": 2, "depth": 2, **options})


def network(**options) -> ConditionalDiT:
    """With weights that are not those of a beginning."""
    return shaken(fresh(generator=seeded(0), **options), torch.device("cpu"), F64)


def sequences(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, N, DIM, generator=seeded(1), dtype=F64)


def test_before_training_missing_frames_have_the_score_of_white_noise():
    v = sequences().float()
    for t in (0.005, torch.tensor(0.3), torch.linspace(0.01, 12, 4)):
        score = fresh()(v, t, MASKS)
        assert torch.equal(score, torch.where(MASKS[..., None], 0.0, -v))


def test_a_token_is_the_lifted_frame_and_its_flag_beside_its_position():
    model, v = network(), sequences()
    weight, bias = model.lift.weight, model.lift.bias
    tokens = model.tokens(v, MASKS[..., None])
    missing = (~MASKS).double()[..., None]
    lifted = v @ weight[:, :DIM].T + missing * weight[:, DIM] + bias
    assert weight.shape == (8, DIM + 1) and tokens.shape == (4, N, 16)
    assert_identity(tokens[..., :8], lifted)
    assert_identity(tokens[..., 8:], model.embedding.double().expand(4, -1, -1))


def test_the_score_is_that_of_the_velocity_at_missing_frames_and_zero_at_seen_ones():
    model, v, t = network(), sequences(), 0.3
    clock = model.clock(torch.tensor([t], dtype=F64))
    velocity = model.velocity(v, clock, MASKS[..., None])
    expected = torch.where(MASKS[..., None], 0.0, -v + alpha(t) / sigma(t) * velocity)
    assert_identity(model(v, t, MASKS), expected, condition=10)
    assert (velocity.abs() > 1e-3).all()  # nothing hides behind a zero gate


def test_seen_frames_are_looked_at_and_so_is_the_mask():
    model, v = network(), sequences(1)
    plain = model(v, 0.3, SEEN)
    moved = v.clone()
    moved[:, 0] += 1.0  # seen
    assert ((model(moved, 0.3, SEEN) - plain)[:, ~SEEN].abs() > 1e-6).all()
    other = SEEN.clone()
    other[0] = False  # the same numbers, noised
    assert ((model(v, 0.3, other) - plain)[:, ~SEEN].abs() > 1e-6).all()


def test_every_sequence_has_its_own_mask_and_step():
    model, v = network(), sequences()
    t = torch.tensor([0.05, 0.3, 1.0, 9.0], dtype=F64)
    together = model(v, t, MASKS)
    for k in range(4):
        assert_identity(model(v[[k]], t[k].item(), MASKS[k]), together[[k]])
    assert torch.equal(model(v, t, SEEN), model(v, t, SEEN.expand(4, -1)))
    assert model(v[:0], 0.3, SEEN).shape == (0, N, DIM)


def test_dtype_is_that_of_the_argument():
    model, v = network(), sequences()
    single = model(v.float(), 0.3, MASKS)
    assert single.dtype == F32
    assert_float32(single.detach(), model(v, 0.3, MASKS).detach())


def test_the_asymptote_beyond_the_horizon_knows_the_mean_of_what_is_missing():
    r"""A network that is exact at T = 8 stays so, to first order in α_t.

    With A = I + α²(C − I), F = σ/α (v − A⁻¹(v − αμ)) = σμ + σα(C − I)(v − αμ) + O(α²), so that the
    continued score is off by α_t (F_T − F_t)/σ_t, in norm below α_t α_T (‖C − I‖ ‖v‖ + ‖μ‖) up to
    terms smaller by another α_T = .018, for which there is a factor of 1.1. Had it faded, it would
    be off by α_t (1 − α_t/α_T) ‖μ‖.
    """
    law = process(N, DIM, mean=False)
    x, v = law.sample(1, seeded(2), F64)[0], sequences(200)
    given = law.condition(5 * x, SEEN)
    exact, model = ExactScore(given), fresh().double()
    model.velocity = lambda v, clock, seen: (exact(v, 8.0) + v) * sigma(8.0) / alpha(8.0)
    stretch = (given.covariance() - torch.eye(2 * DIM)).norm(2)
    mean = given.mean[~SEEN].norm()
    for t in (8.0, 9.0, 10.0, 14.0):
        off = (model(v, t, SEEN) - exact(v, t))[:, ~SEEN].flatten(1).norm(dim=1)
        size = stretch * v[:, ~SEEN].flatten(1).norm(dim=1) + mean
        assert (off <= 1.1 * alpha(t) * alpha(8.0) * size + 1e-12).all()
        faded = alpha(t) * (1 - alpha(t) / alpha(8.0)) * mean
        assert t < 9.5 or off.median() < faded / 3


def test_all_weights_are_trained():
    model = fresh(generator=seeded(0))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.parameters()]
    for _ in range(4):
        loss = (model(sequences().float(), 0.3, MASKS) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_its_config_makes_it_again():
    model = fresh(attention="relu-rows", position="learned", fused=False)
    again = ConditionalDiT(**model.config)
    again.load_state_dict(model.state_dict())
    plain = DiT(**model.config)
    assert plain.lift.weight.shape == (8, DIM) and model.lift.weight.shape == (8, DIM + 1)


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (SEEN.int(), "observed must be a boolean tensor, True where seen, got torch.int32"),
        ([True] * N, "observed must be a boolean tensor, True where seen, got list"),
        (SEEN[1:], r"observed must have shape \(6,\) or \(4, 6\), got \(5,\)"),
        (MASKS[:2], r"observed must have shape \(6,\) or \(4, 6\), got \(2, 6\)"),
    ],
)
def test_masks_of_another_kind_are_refused(observed, message):
    with pytest.raises(ValueError, match=message):
        fresh()(sequences(), 0.3, observed)


@pytest.mark.parametrize(
    ("v", "t", "message"),
    [
        (torch.ones(4, N + 1, DIM), 0.3, r"v must have shape \(batch, 6, 3\)"),
        (torch.ones(4, N, DIM), 0.0, "must be finite and > 0, got 0.0"),
        (torch.ones(4, N, DIM), torch.ones(3), r"t must be a number or have shape \(4,\)"),
    ],
)
def test_sequences_and_steps_are_checked(v, t, message):
    with pytest.raises(ValueError, match=message):
        fresh()(v, t, SEEN)
