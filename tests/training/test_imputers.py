"""Training with masks: what is drawn and looked at, checkpoints, many imputers at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from strategies import DEVICES, process, seeded
from tolerances import assert_identity, assert_statistical

from gptheory.data import Blocks, GaussianProcess, MaskMixture, random_mixture, strategy
from gptheory.data.masks import draw_masks
from gptheory.diffusion import ConditionalScore, alpha, perturb, sigma
from gptheory.measures import path_kl, score_error
from gptheory.networks import ConditionalDiT, DiT
from gptheory.support.files import load_arrays
from gptheory.training import TrainConfig, fit, fit_ensemble, matching_loss, resume
from gptheory.training import loop as training_loop
from gptheory.training.ensemble import Member
from gptheory.training.loop import Training, masks_at_home
from gptheory.training.objective import missing_mean

F64 = torch.float64
LAW = process(4, 2)
SHORT = TrainConfig(steps=6, batch_size=4, log_every=4, evaluate_n=8, evaluate_at=(0.1,))
BLOCKS = MaskMixture([Blocks(4, 1, 1), Blocks(4, 1, 2)])
TABLE = torch.tensor([[True, False, True, True], [False, False, True, True]])
MASKS = {"law": BLOCKS, "table": TABLE}
every_kind = pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)


def imputer(seed: int = 0, **options) -> ConditionalDiT:
    return ConditionalDiT(2, 4, 8, 1, 1, generator=seeded(seed), **options)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def exact(v, t, observed):
    return LAW.condition(v, observed).score(v, t)


# ---- the loss -----------------------------------------------------------------------------------


@pytest.mark.statement("YC Algorithm 1")
@pytest.mark.parametrize("weight", ["noise", "velocity"])
def test_missing_frames_are_noised_and_looked_at_and_no_others(weight):
    x, t = LAW.sample(5, seeded(1), F64), torch.linspace(0.05, 2.0, 5, dtype=F64)
    observed, given = draw_masks(BLOCKS, 5, seeded(2)), []

    def score(v, t, observed):
        given.append((v, t, observed))
        return 3 * v + 1  # also at seen frames, where nobody asked

    loss = matching_loss(score, x, t, seeded(3), weight, observed)
    v, noise = perturb(x, t, seeded(3))
    ((seen_v, seen_t, seen_mask),) = given
    assert torch.equal(seen_v[observed], x[observed]) and seen_mask is observed
    assert torch.equal(seen_v[~observed], v[~observed]) and torch.equal(seen_t, t)
    total = 0.0
    for k, frame in (~observed).nonzero().tolist():
        size = sigma(t[k]) ** 2 if weight == "noise" else (sigma(t[k]) / alpha(t[k])) ** 2
        off = 3 * v[k, frame] + 1 + noise[k, frame] / sigma(t[k])
        total += size * off.square().sum()
    assert_identity(loss, total / (2 * (~observed).sum()))


def test_loss_of_an_imputer_is_its_error_above_that_of_the_exact_one():
    """With the same noise the two losses differ by the weighted squared error, on average."""
    n, t = 20_000, 0.3
    x, observed = LAW.sample(n, seeded(1), F64), draw_masks(BLOCKS, n, seeded(2))

    def wrong(v, t, observed):
        return 0.7 * exact(v, t, observed) + 0.2

    parts = [slice(k, k + n // 40) for k in range(0, n, n // 40)]
    gaps, errors = [], []
    for k, part in enumerate(parts):
        losses = [
            matching_loss(each, x[part], t, seeded(k), "noise", observed[part])
            for each in (wrong, exact)
        ]
        v = torch.where(observed[part][..., None], x[part], perturb(x[part], t, seeded(k))[0])
        off = (wrong(v, t, observed[part]) - exact(v, t, observed[part])).square()
        gaps.append(losses[0] - losses[1])
        errors.append(sigma(t) ** 2 * missing_mean(off, observed[part]))
    gap = torch.stack(gaps) - torch.stack(errors)
    assert torch.stack(errors).mean() > 20 * gap.std() / 40**0.5
    assert_statistical(gap.mean(), 0.0, gap.std() / 40**0.5, 40)


def test_averages_over_missing_frames_leave_the_others_out():
    values, observed = torch.randn(3, 5, 4, 2, generator=seeded(1), dtype=F64), BLOCKS.draw(15)
    observed = observed.view(3, 5, 4)
    spoilt = values.masked_fill(observed[..., None], torch.nan)
    for k, found in enumerate(missing_mean(spoilt, observed)):
        assert_identity(found, values[k][~observed[k]].mean())


# ---- the loop -----------------------------------------------------------------------------------


@every_kind
def test_every_update_has_masks_of_its_own(masks, monkeypatch):
    """Drawn by the run's generator, after sequences and steps: a seed decides them."""
    seen = []

    def spy(score, x, t, generator, weight, observed):
        seen.append(observed)
        return matching_loss(score, x, t, generator, weight, observed)

    monkeypatch.setattr(training_loop, "matching_loss", spy)
    fit(imputer(), LAW, dataclasses.replace(SHORT, steps=40, evaluate_at=()), masks=masks)
    drawn = torch.cat(seen)
    assert drawn.shape == (160, 4) and len({tuple(each.flatten().tolist()) for each in seen}) > 8
    kinds = {tuple(row) for row in drawn.tolist()}
    assert kinds == {tuple(row) for row in (TABLE if masks is TABLE else BLOCKS.draw(500)).tolist()}


TINY = GaussianProcess(torch.tensor([[1.0, 0.9, 0.8], [0.9, 1.0, 0.9], [0.8, 0.9, 1.0]]),
                       torch.eye(1))  # fmt: skip


def test_training_moves_towards_the_exact_conditional_score():
    x, masks = TINY.sample(512, seeded(1)), Blocks(3, 1, 1)
    observed = masks.draw(512, seeded(2))
    law, model = TINY.condition(x, observed), ConditionalDiT(1, 3, 16, 2, 2, generator=seeded(0))

    def divergence(network):
        return path_kl(ConditionalScore(network, x, observed), law, n=512, generator=seeded(3))

    before = divergence(model)
    config = TrainConfig(steps=300, batch_size=64, learning_rate=1e-2, evaluate_every=100)
    result = fit(model, TINY, config, masks=masks)
    after, errors = divergence(result.model), result.evaluations.query("t == 0.1").score_error
    print(f"path divergence {before:.3g} -> {after:.3g}, score error {errors.tolist()}")
    assert after < 0.3 * before and errors.iloc[-1] < 0.5 * errors.iloc[0]


def test_evaluations_are_score_errors_beside_the_conditional_law():
    config = dataclasses.replace(SHORT, evaluate_every=3, evaluate_at=(0.1, 1.0))
    result = fit(imputer(), LAW, config, masks=BLOCKS)
    assert list(result.evaluations.step) == [3, 3, 6, 6]
    generator = seeded(training_loop.EVALUATION_SEED)
    x = LAW.sample(8, generator)
    observed = draw_masks(BLOCKS, 8, generator)
    score, law = ConditionalScore(result.model, x, observed), LAW.condition(x, observed)
    again = seeded(training_loop.EVALUATION_SEED)
    assert result.evaluations.score_error.iloc[-1] == score_error(score, law, 1.0, 8, again)
    often = fit(imputer(), LAW, dataclasses.replace(SHORT, evaluate_every=1), masks=BLOCKS)
    assert torch.equal(weights(often.model), weights(result.model))


def test_a_law_that_cannot_be_conditioned_is_trained_on_and_not_evaluated():
    mixture = random_mixture(4, 2, generator=seeded(1))
    assert fit(imputer(), mixture, SHORT, masks=BLOCKS).evaluations.empty
    assert fit(imputer(), LAW.sample(5, seeded(1)), SHORT, masks=BLOCKS).evaluations.empty
    assert len(fit(imputer(), LAW.sample(5, seeded(1)), SHORT, LAW, masks=TABLE).evaluations) == 1


def test_a_process_that_is_too_smooth_is_refused_before_training():
    flat = GaussianProcess(torch.ones(4, 4) + 1e-12 * torch.eye(4), torch.eye(2))
    with pytest.raises(ValueError, match="too smooth to be conditioned"):
        Training(imputer(), flat, SHORT, masks=BLOCKS)
    assert Training(imputer(), flat, dataclasses.replace(SHORT, evaluate_at=()), masks=BLOCKS)


# ---- checkpoints --------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_run_resumes_bit_for_bit(masks, finite, stop, tmp_path):
    data = LAW.sample(10, seeded(5)) if finite else LAW
    path = tmp_path / "run.safetensors"
    training = Training(imputer(), data, SHORT, LAW, masks)
    for step in training:
        if step == stop:
            resume.save_checkpoint(path, training)
            break
    resumed, straight = imputer(1), imputer()
    first = fit(resumed, data, SHORT, LAW, path, masks=masks)
    second = fit(straight, data, SHORT, LAW, masks=masks)
    assert load_arrays(path)[1]["step"] == 6
    for one, two in ((resumed, straight), (first.model, second.model)):
        assert torch.equal(weights(one), weights(two))
    assert first.history.drop(columns="seconds").equals(second.history.drop(columns="seconds"))
    assert first.evaluations.equals(second.evaluations) and len(first.evaluations) == 1


OTHERS = [Blocks(4, 1, 1), MaskMixture(BLOCKS.laws, (1, 2)), TABLE, TABLE[:1]]


@pytest.mark.parametrize("kept", [BLOCKS, TABLE], ids=["law", "table"])
def test_a_checkpoint_with_other_masks_is_refused(kept, tmp_path):
    path = tmp_path / "run.safetensors"
    fit(imputer(), LAW, SHORT, checkpoint=path, masks=kept)
    for other in OTHERS:
        if other is kept:
            continue
        with pytest.raises(ValueError, match="checkpoint of another run: its masks is"):
            fit(imputer(), LAW, SHORT, checkpoint=path, masks=other)
    again = MaskMixture([Blocks(4, 1, 1), Blocks(4, 1, 2)]) if kept is BLOCKS else TABLE.clone()
    assert len(fit(imputer(), LAW, SHORT, checkpoint=path, masks=again).history) == 2


class OneOfTwo:
    """A law of a reader's own, whose name does not say which it is."""

    seq_len = 4

    def __init__(self, frame: int) -> None:
        self.parts = (frame,)

    def __repr__(self) -> str:
        return "OneOfTwo"

    def draw(self, n, generator=None):
        return (torch.arange(4) != self.parts[0]).expand(n, 4)


def test_laws_of_ones_own_are_told_apart_by_their_parts(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(imputer(), LAW, SHORT, checkpoint=path, masks=OneOfTwo(1))
    assert len(fit(imputer(), LAW, SHORT, checkpoint=path, masks=OneOfTwo(1)).history) == 2
    with pytest.raises(ValueError, match="checkpoint of another run: its masks is 'OneOfTwo, "):
        fit(imputer(), LAW, SHORT, checkpoint=path, masks=OneOfTwo(2))


def test_runs_without_masks_have_the_identity_they_had():
    assert "masks" not in Training(DiT(2, 4, 8, 1, 1), LAW, SHORT).identity()


# ---- who may have masks -------------------------------------------------------------------------


class Forgetful(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, v, t):
        return self.linear(v)


@pytest.mark.parametrize(
    ("model", "masks", "message"),
    [
        (imputer(), None, r"^without masks a model is called as \(v, t\).*ConditionalDiT takes"
                          r" \(v, t, observed\)$"),
        (Forgetful(), BLOCKS, r"^with masks a model is called as \(v, t, observed\); Forgetful"
                              r" takes \(v, t\)$"),
        (imputer(), Blocks(5, 1, 1), "masks are for seq_len=5, the data have seq_len=4"),
        (imputer(), TABLE[:, 1:], r"masks must have shape \(m, 4\), got \(2, 3\)"),
        (imputer(), TABLE.float(), r"boolean tensor \(m, 4\).*got torch.float32"),
        (imputer(), TABLE | True, "True of some frames and False of others, got 4 of 4 in row 0"),
        (imputer(), "S4", "a law of masks or a boolean tensor .*got str"),
    ],
)  # fmt: skip
def test_models_and_masks_that_do_not_fit_are_refused(model, masks, message):
    for data in (LAW, LAW.sample(3, seeded(0))):
        with pytest.raises(ValueError, match=message):
            fit(model, data, SHORT, masks=masks)
    with pytest.raises(ValueError, match=message):
        fit_ensemble([Member(model, LAW, k, masks) for k in range(2)], SHORT)


def test_compiled_imputers_are_imputers():
    compiled = torch.compile(imputer(), backend="eager")
    assert masks_at_home(TABLE, compiled, LAW, torch.device("cpu")) is TABLE


# ---- many at once -------------------------------------------------------------------------------


def members(count: int = 4, dtype: torch.dtype = torch.float32) -> list[Member]:
    """Fresh data or sequences, a law of masks or a table."""
    return [
        Member(
            imputer(k, fused=False).to(dtype),
            LAW if k % 2 else LAW.sample(3 + k, seeded(k)), 100 + k, BLOCKS if k > 1 else TABLE,
        )
        for k in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("weight", ["noise", "velocity"])
def test_every_imputer_of_an_ensemble_is_trained_as_fit_does(weight):
    config = dataclasses.replace(SHORT, weight=weight, clip=0.5, ema_decay=0.6, weight_decay=0.3)
    group = members(dtype=F64)
    for member, trained in zip(group, fit_ensemble(group, config), strict=True):
        before = weights(member.model)
        own = dataclasses.replace(config, seed=member.seed)
        expected = weights(fit(member.model, member.data, own, masks=member.masks).model)
        moved = (expected - before).norm()
        # AdamW's first steps are signs of gradients: where one is nearly 0, rounding decides
        assert (weights(trained) - expected).norm() < 1e-6 * moved
        assert trained.t_range == (config.t_min, config.t_max)


def test_who_else_is_in_the_ensemble_does_not_matter():
    """Not a bit for batches of full vectors, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = dataclasses.replace(SHORT, batch_size=16)
    together = fit_ensemble(members(), config)
    for k, own in enumerate(members()):
        (alone,) = fit_ensemble([own], config)
        assert torch.equal(weights(alone), weights(together[k]))
    torch.set_num_threads(threads)


def test_an_ensemble_has_masks_or_none():
    group = [Member(imputer(0, fused=False), LAW, 0, BLOCKS), Member(imputer(1), LAW, 1)]
    with pytest.raises(ValueError, match=r"differ|without masks a model is called"):
        fit_ensemble(group, SHORT)

    class Either(Forgetful):
        def forward(self, v, t, observed=None):
            return self.linear(v)

    group = [Member(Either(), LAW, 0, BLOCKS), Member(Either(), LAW, 1)]
    with pytest.raises(ValueError, match="all members of an ensemble have masks or none has"):
        fit_ensemble(group, SHORT)


@pytest.mark.parametrize("device", DEVICES)
def test_imputers_are_trained_where_they_are(device):
    for masks in (BLOCKS, TABLE, strategy("S2", 4, 2)):
        model = imputer(0, fused=False).to(device)
        result = fit(model, LAW, SHORT, masks=masks)
        assert weights(result.model).device.type == device
        (together,) = fit_ensemble([Member(model, LAW, 0, masks)], SHORT)
        assert torch.isfinite(weights(together)).all()
