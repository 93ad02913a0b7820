"""Divergence of paths given frames, and the report of an imputer on one pattern."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import PATTERNS, ConditionalProcess, decaying_process, pattern
from gptheory.diffusion import ConditionalScore, ExactScore, alpha, impute, sample, sigma
from gptheory.measures import (
    coupled_ode_error,
    gaussian_kl,
    imputation_error,
    imputer_error,
    path_kl,
    score_error,
    total_variation,
)
from gptheory.measures import imputer as report
from gptheory.measures import scores as measured

F64 = torch.float64
P, Q = process(5, 2, seed=1), process(5, 2, seed=4)
SEEN = torch.tensor([True, False, True, True, False])
MASKS = torch.stack([SEEN, torch.tensor([True, True, False, True, True])])
X = P.sample(2, seeded(3), F64)
ENDS = (0.01, 6.0)


def divergence(k: int, t: float) -> float:
    """KL of what is missing in sequence k, given what is seen and noised to t: in closed form."""
    p, q = (law.condition(X, MASKS).process(k) for law in (P, Q))
    covariances, means = [], []
    for law in (p, q):
        eye = torch.eye(law.mean.numel(), dtype=F64)
        covariances.append(alpha(t) ** 2 * law.covariance() + sigma(t) ** 2 * eye)
        means.append(alpha(t) * law.mean.flatten())
    return gaussian_kl(*covariances, *means)


def repeated(score, law, n: int = 4000) -> torch.Tensor:
    """Estimates of the path divergence that differ in nothing but their draws."""
    return torch.tensor(
        [path_kl(score, law, *ENDS, n=n, generator=seeded(s), dtype=F64) for s in range(8)]
    )


def test_path_divergence_given_frames_is_the_fall_of_the_conditional_divergence():
    """A missing entry, and of a batch on average over its sequences, however many each misses."""
    falls = [divergence(k, ENDS[0]) - divergence(k, ENDS[1]) for k in range(2)]
    p, q = (law.condition(X[0], SEEN) for law in (P, Q))
    alone = repeated(ExactScore(q), p)
    assert_statistical(alone.mean(), falls[0] / 4, alone.std() / math.sqrt(8), 8)
    assert falls[0] / 4 > 5 * alone.std()  # so that a factor of N / M would be noticed
    p, q = (law.condition(X, MASKS) for law in (P, Q))
    both = repeated(ExactScore(q), p)
    assert_statistical(both.mean(), sum(falls) / (4 + 2), both.std() / math.sqrt(8), 8)


def test_path_divergence_of_what_was_seen_through_noise_counts_all_entries():
    """There nothing is known: the ordinary divergence of the law it is."""
    p, q = (law.condition(X[0], SEEN, 0.3) for law in (P, Q))
    assert p.open_share == 1.0 and P.condition(X, MASKS).open_share == 6 / 20
    entries = MASKS[..., None] ^ torch.tensor([True, False])
    assert P.condition(X, entries).open_share == pytest.approx(0.5)
    estimates = repeated(ExactScore(q), p, 400)
    assert (estimates > 0).all()


def test_batches_are_not_torn_apart(monkeypatch):
    monkeypatch.setattr(measured, "CHUNK_VALUES", 50)  # 5 sequences
    law, sizes = P.condition(X, MASKS), []

    def spy(v, t):
        sizes.append((len(v), len(t)))
        return ExactScore(law)(v, t)

    assert path_kl(spy, law, n=10, generator=seeded(1)) == 0
    assert sizes == [(4, 4), (4, 4), (2, 2)]
    monkeypatch.setattr(measured, "CHUNK_VALUES", 1)
    assert path_kl(ExactScore(law), law, n=4, generator=seeded(1)) == 0


def test_score_errors_are_those_of_a_batch():
    law = P.condition(X, MASKS)
    assert law.batch == 2 and P.condition(X[0], SEEN).batch == 1
    assert score_error(ExactScore(law), law, 0.3, 10, seeded(1)) == 0
    assert score_error(lambda v, t: torch.zeros_like(v), law, 0.3, 10, seeded(1)) == 1


def test_coupled_errors_are_those_of_what_is_missing():
    """By hand: both flows from the same noise, entry by entry that is not seen."""
    p, q = (law.condition(X, MASKS) for law in (P, Q))
    options = {"steps": 12, "t_min": 0.01}
    found = coupled_ode_error(ExactScore(q), p, 6, generator=seeded(2), dtype=F64, **options)
    made = [
        sample(
            ExactScore(law), 6, 5, 2, generator=seeded(2), dtype=F64, show_progress=False, **options
        ).view(3, 2, 5, 2)[:, ~MASKS]
        for law in (q, p)
    ]  # fmt: skip
    assert_identity(found, (made[0] - made[1]).norm() / made[1].norm())
    assert coupled_ode_error(ExactScore(p), p, 6, steps=12, t_min=0.01) == 0


def test_total_variation_asks_for_the_law_of_what_is_missing():
    law = P.condition(X[0], SEEN)
    with pytest.raises(ValueError, match=r"take law\.process\(k\)"):
        total_variation(ExactScore(law), law, n=4)
    own, other = (each.condition(X[0], SEEN).process() for each in (P, Q))
    assert total_variation(ExactScore(other), own, n=64, generator=seeded(1)).value > 0.1


@pytest.mark.parametrize("call", [path_kl, lambda *a, **k: score_error(*a, t=0.1, **k)])
def test_draws_that_do_not_divide_among_a_batch_are_refused(call):
    law = P.condition(X, MASKS)
    with pytest.raises(ValueError, match=r"multiple of the 2 sequences .* law, got 7"):
        call(ExactScore(law), law, n=7)


# ---- an imputer ---------------------------------------------------------------------------------

LAW = decaying_process(8, 2, 4.0)
TAIL = pattern("tail", 8, 2)
SMALL = {"sequences": 3, "draws": 40, "paths": 64, "t_min": 0.001, "show_progress": False}


def exact(v, t, observed):
    return LAW.condition(v, observed).score(v, t)


def short(v, t, observed):
    """As if every conditional variance were a fifth smaller."""
    law = LAW.condition(v, observed)
    narrow = ConditionalProcess(LAW, v, observed)
    narrow._temporal = 0.8 * law._temporal
    return narrow.score(v, t)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_perfect_imputer_has_no_error_but_chance(name):
    observed = pattern(name, 8, 2 if name != "four" else 4)[:8]
    found = imputer_error(
        exact, LAW, observed, 6, 400, 64, t_min=1e-4, generator=seeded(1), dtype=F64,
        steps=30, show_progress=False,
    )  # fmt: skip
    own, error = found.average, found.standard_error
    assert found.path_kl < 1e-20 and own.kl is None and error.kl is None
    for value, truth, chance in (
        (own.mean_error, 0.0, error.mean_error), (own.variance_ratio, 1.0, error.variance_ratio),
        (own.pointwise, 0.95, error.pointwise),
    ):  # fmt: skip
        # six sequences: Student's t has five degrees of freedom, beyond 8 in 5e-4 of cases; the
        # sampler adds 1e-3, quantiles of 400 draws are short by .004 of coverage
        assert abs(value - truth) < 8 * chance + 5e-3


def test_an_imputer_that_is_too_sure_is_found_out():
    options = {"sequences": 4, "draws": 200, "paths": 512, "t_min": 1e-4, "show_progress": False}
    found = imputer_error(short, LAW, TAIL, generator=seeded(1), dtype=F64, steps=30, **options)
    law = LAW.condition(LAW.sample(1, seeded(2), F64)[0], TAIL).process()
    narrow = type(law)(0.8 * law.gram(), law.spatial, law.mean)
    expected = gaussian_kl(law.covariance(), narrow.covariance()) / 4
    print(
        f"path {found.path_kl:.4f} of {expected:.4f}, variance {found.average.variance_ratio:.3f}"
    )
    assert abs(found.path_kl / expected - 1) < 0.2  # 512 draws of 4 entries, see path_kl
    assert abs(found.average.variance_ratio - 0.8) < 8 * found.standard_error.variance_ratio
    assert found.average.ball < 0.94 and found.average.width < 0.95


def test_its_numbers_are_those_of_its_parts(monkeypatch):
    """The path divergence over what is seen, then draws of sequences, one report for each."""
    each, asked = [], []

    def spy(*given):
        asked.append(given)
        each.append(imputation_error(*given))
        return each[-1]

    monkeypatch.setattr(report, "imputation_error", spy)
    found = imputer_error(short, LAW, TAIL, level=0.9, generator=seeded(1), **SMALL)
    generator = seeded(1)
    x = LAW.sample(64, generator)
    score, law = ConditionalScore(short, x, TAIL), LAW.condition(x, TAIL)
    assert found.path_kl == path_kl(score, law, 0.001, n=64, generator=generator)
    x = LAW.sample(3, generator)
    made = impute(short, x, TAIL, 40, generator, t_min=0.001, show_progress=False)
    for k, (draws, law, level) in enumerate(asked):
        own = LAW.condition(x[k], TAIL).process()
        assert torch.equal(draws, made[:, k, ~TAIL]) and level == 0.9
        assert_identity(law.mean, own.mean)
        assert_identity(law.covariance(), own.covariance())
    assert len(each) == 3
    for name in ("mean_error", "variance_ratio", "ball", "pointwise", "width", "crps"):
        values = torch.tensor([getattr(own, name) for own in each], dtype=F64)
        assert_identity(getattr(found.average, name), values.mean())
        assert_identity(getattr(found.standard_error, name), values.std() / math.sqrt(3))
    assert found.average.pointwise < 0.9


def test_one_sequence_has_no_standard_error():
    found = imputer_error(exact, LAW, TAIL, generator=seeded(1), **SMALL | {"sequences": 1})
    assert math.isinf(found.standard_error.ball) and found.average.ball > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, "sequences must be an integer >= 1"),
        ({"paths": 0}, "paths must be an integer >= 1"),
        ({"draws": 1}, "draws"),
        ({"level": 1.0}, r"level must lie in \(0, 1\)"),
        ({"observed": TAIL[1:]}, r"observed must have shape \(8,\), got \(7,\)"),
        ({"observed": TAIL | True}, "observed must say True of some frames .* got 8 of 8"),
        ({"observed": TAIL.int()}, "observed must be a boolean tensor"),
    ],
)
def test_reports_that_cannot_be_are_refused(change, message):
    given = {"observed": TAIL, **SMALL, **change}
    with pytest.raises(ValueError, match=message):
        imputer_error(exact, LAW, generator=seeded(1), **given)
