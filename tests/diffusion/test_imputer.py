"""The score of a network given frames, and what is drawn with it: beside the exact law's."""

from __future__ import annotations

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_identity

from gptheory.construction import build_imputation_transformer
from gptheory.data import GaussianProcess, PowerExponential, decaying_process
from gptheory.diffusion import ConditionalScore, ExactScore, OneLoopScore, impute, sample
from gptheory.diffusion.sampler import stop_of
from gptheory.measures import log_likelihood
from gptheory.networks import ConditionalDiT

F32, F64 = torch.float32, torch.float64
LAW = process(6, 2)
SEEN = torch.tensor([True, False, True, True, False, True])
MASKS = torch.stack([SEEN, ~SEEN, SEEN.roll(1)])
X = LAW.sample(3, seeded(1), F64)
T = torch.linspace(0.05, 2.0, 6, dtype=F64)
QUICK = {"steps": 8, "show_progress": False}


def exact(v: torch.Tensor, t: float | torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """The perfect network: it conditions on the frames it is shown."""
    return LAW.condition(v, observed).score(v, t)


def noised(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 6, 2, generator=seeded(2), dtype=F64)


@pytest.mark.parametrize("observed", [SEEN, MASKS], ids=["one mask", "masks"])
def test_the_perfect_network_has_the_exact_score(observed):
    """n draws for each of a batch, draw by draw, each beside what was seen of its own sequence."""
    found = ConditionalScore(exact, X, observed)(noised(), T)
    assert_identity(found, ExactScore(LAW.condition(X, observed))(noised(), T))
    assert (found == 0).all(dim=2).equal(observed.expand(3, 6).repeat(2, 1))


def test_one_sequence_needs_no_batch():
    score = ConditionalScore(exact, X[0], SEEN)
    assert_identity(score(noised(), 0.3), ExactScore(LAW.condition(X[0], SEEN))(noised(), 0.3))


def test_v_is_looked_at_where_frames_are_missing_and_x_where_they_are_seen():
    x, v = X.clone(), noised()
    x[~MASKS], v.view(2, 3, 6, 2)[:, MASKS] = torch.nan, torch.nan
    found = ConditionalScore(exact, x, MASKS)
    assert_identity(found(v, T), ConditionalScore(exact, X, MASKS)(noised(), T))
    whole = found.completed(v).view(2, 3, 6, 2)
    assert torch.equal(whole[:, MASKS], X[MASKS].expand(2, -1, -1))
    assert torch.equal(whole[:, ~MASKS], noised().view(2, 3, 6, 2)[:, ~MASKS])


def test_whatever_a_network_says_of_seen_frames_the_score_is_zero_there():
    score = ConditionalScore(lambda v, t, observed: torch.ones_like(v), X, MASKS)(noised(3), 0.3)
    assert torch.equal(score, (~MASKS).double()[..., None].expand_as(score))


def test_a_constructed_network_is_an_imputer():
    law = GaussianProcess(PowerExponential(2.0), LAW.spatial, seq_len=6)
    network = build_imputation_transformer(law, 12)
    found = ConditionalScore(network, X, SEEN)
    expected = OneLoopScore(law, SEEN, 12, "heavy-ball", every_mask=True)
    assert_identity(found(noised(), T), expected(found.completed(noised()), T), condition=100)


@pytest.mark.parametrize("k", [0, 1])
def test_missing_frames_alone_have_the_score_of_their_own_law(k):
    """Of a perfect network; densities by the flow are then those in closed form."""
    found, law = ConditionalScore(exact, X, MASKS).of_missing(k), LAW.condition(X, MASKS).process(k)
    v = torch.randn(5, law.seq_len, 2, generator=seeded(6), dtype=F64)
    assert_identity(found(v, T[:5]), ExactScore(law)(v, T[:5]))
    flow = [log_likelihood(each, v, 0.01, steps=12) for each in (found, ExactScore(law))]
    assert_identity(*flow)
    with pytest.raises(ValueError, match=rf"v must have shape \(batch, {law.seq_len}, 2\)"):
        found(noised(), 0.3)
    with pytest.raises(ValueError, match=r"k must lie in 0\.\.2, the sequences, got 3"):
        ConditionalScore(exact, X, MASKS).of_missing(3)


@pytest.mark.statement("YC Algorithm 1")
@pytest.mark.parametrize("observed", [SEEN, MASKS], ids=["one mask", "masks"])
def test_imputations_are_samples_of_the_score_completed(observed):
    """With the perfect network those of the exact law: the same noise, the same numbers."""
    found = impute(exact, X, observed, 4, seeded(3), t_min=0.01, **QUICK)
    law = LAW.condition(X, observed)
    v = sample(ExactScore(law), 12, 6, 2, generator=seeded(3), dtype=F64, t_min=0.01, **QUICK)
    assert found.shape == (4, 3, 6, 2) and found.dtype == F64
    assert_identity(found, law.completed(v).view(4, 3, 6, 2), condition=100)
    seen = observed.expand(3, 6)
    assert torch.equal(found[:, seen], X[seen].expand(4, -1, -1))
    alone = impute(exact, X[0], SEEN, 2, seeded(3), t_min=0.01, **QUICK)
    assert alone.shape == (2, 6, 2) and torch.equal(alone[:, SEEN], X[0, SEEN].expand(2, -1, -1))
    none = impute(ConditionalDiT(2, 6, 8, 2, 1), X, observed, 0, **QUICK)
    assert none.shape == (0, 3, 6, 2)


def test_generation_stops_where_training_began_and_has_the_dtype_of_the_sequences(recwarn):
    network = ConditionalDiT(2, 6, 8, 2, 1, generator=seeded(0))
    assert ConditionalScore(network, X, SEEN).t_range is None
    network.t_range = (0.02, 6.0)
    assert stop_of(ConditionalScore(network, X, SEEN)) == 0.02
    assert stop_of(ConditionalScore(network, X, SEEN).of_missing(1)) == 0.02
    found = impute(network, X.float(), SEEN, 2, seeded(3), **QUICK)
    assert found.dtype == F32 and torch.isfinite(found).all()
    asked = impute(network, X.float(), SEEN, 2, seeded(3), t_min=0.02, **QUICK)
    assert torch.equal(found, asked) and not recwarn.list
    with pytest.warns(UserWarning, match="asks the score below the diffusion steps"):
        impute(network, X.float(), SEEN, 2, seeded(3), t_min=0.01, **QUICK)


HOLE = X.clone()
HOLE[1, 0, 1] = torch.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConditionalScore(exact, X.long(), SEEN), "x must be a floating-point.*int64"),
        (lambda: ConditionalScore(exact, X[0, 0], SEEN), r"x must have shape .*, got \(2,\)"),
        (lambda: ConditionalScore(exact, X[:0], SEEN), "number of sequences in x must be an int"),
        (lambda: ConditionalScore(exact, X, SEEN[1:]), r"observed must have shape \(6,\), \(3, 6"),
        (lambda: ConditionalScore(exact, X, SEEN.int()), "observed must be a boolean tensor"),
        (lambda: ConditionalScore(exact, X, X > 0), r"told of whole frames; got \(3, 6, 2\)"),
        (lambda: ConditionalScore(exact, X, SEEN | True), "nothing is missing in sequence 0"),
        (lambda: ConditionalScore(exact, X, SEEN & False), "everything is missing in sequence 0"),
        (lambda: ConditionalScore(exact, HOLE, SEEN), "x where it was observed must be finite"),
        (lambda: ConditionalScore(exact, X, SEEN)(noised(4), 0.3), "as x, 3, or a multiple of tha"),
        (lambda: ConditionalScore(exact, X, SEEN).completed(noised(4)), "as x, 3, or a multiple"),
        (lambda: ConditionalScore(exact, X, SEEN)(X[..., :1], 0.3), r"v must have shape .*6, 2"),
        (lambda: impute(exact, X, SEEN, -1), "n must be an integer >= 0, got -1"),
        (
            lambda: ConditionalScore(lambda v, t, seen: v[0], X, SEEN)(noised(), 0.3),
            r"score must return a tensor of shape \(6, 6, 2\), got \(6, 2\)",
        ),
    ],
)
def test_what_cannot_be_imputed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_first_horizon_does_not_move_the_mean_of_a_trained_imputer():
    """An untrained one draws white noise about nothing, whatever was seen."""
    law = decaying_process(6, 2, 20.0)
    x = 3 * law.sample(1, seeded(5), F64)
    found = impute(ConditionalDiT(2, 6, 8, 2, 1), x, SEEN, 2000, seeded(4), **QUICK)
    assert found[:, 0, ~SEEN].mean(dim=0).abs().max() < 5 / 2000**0.5 * 1.1
