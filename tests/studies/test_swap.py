"""A transformer with polynomials for its softmax: close to the network, refused where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import process, seeded
from tolerances import assert_identity

from gptheory.attention import exp_polynomial, logit_bound, poly_attention
from gptheory.attention.layer import Attention
from gptheory.attention.polynomial import DenseIsCheaperWarning
from gptheory.networks import DiT, with_polynomial_attention
from gptheory.networks.polynomial import PolynomialAttention
from gptheory.probing import logit_ranges
from gptheory.studies import growth, load_result
from gptheory.studies.growth import Growth, attention_growth
from gptheory.studies.run import Run
from gptheory.studies.swap import Swap, swap
from gptheory.training import TrainConfig

N, DIM, F64 = 6, 3, torch.float64


def network(size=0.5):
    model = DiT(DIM, N, hidden=16, heads=2, depth=2, generator=seeded(0)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=seeded(1)).to(p))
    return model.eval().requires_grad_(False)


def tokens(batch=3, width=16):
    return torch.randn(batch, N, width, generator=seeded(2), dtype=F64)


def test_high_degree_reproduces_the_network_and_low_degree_does_not():
    model, v = network(0.2), torch.randn(4, N, DIM, generator=seeded(3), dtype=F64)
    exact = model(v, 0.3)
    errors = []
    for degree in (2, 4, 8, 12, 20):
        swapped = with_polynomial_attention(model, degree)
        errors.append(((swapped(v, 0.3) - exact).norm() / exact.norm()).item())
    assert errors[0] > 1e-3 and errors[-1] < 1e-8
    assert errors == sorted(errors, reverse=True)


def test_weights_are_those_of_the_network_and_the_network_is_left_alone():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    swapped = with_polynomial_attention(model, 8)
    assert all(type(block.attention) is Attention for block in model.blocks)
    assert all(type(block.attention) is PolynomialAttention for block in swapped.blocks)
    assert swapped.state_dict().keys() == before.keys()
    for name, value in swapped.state_dict().items():
        assert torch.equal(value, before[name])


def test_maps_are_squares_of_certified_polynomials_within_their_bound():
    layer, y = network(0.3).blocks[1].attention, tokens()
    query, key, _ = layer.query_key_value(y)
    logits = query @ (key - key.mean(2, keepdim=True)).mT / math.sqrt(8)
    radius = 1.1 * logits.abs().max().item()
    for degree in (10, 16, 22):
        ours = PolynomialAttention(layer, degree, radius)
        root = exp_polynomial(degree // 2, radius / 2)
        weights = sum(c * (logits / 2) ** m for m, c in enumerate(root.coefficients)) ** 2
        expected = weights / weights.sum(-1, keepdim=True)
        assert_identity(ours.maps(y), expected)
        moved = (ours.maps(y) - layer.maps(y)).abs().sum(-1).max()
        assert 0 < moved <= 2 * root.relative_error * (1 + 1e-9)


def test_maps_are_those_of_polynomial_attention():
    """The map that is formed is the low-rank one: degree 2 · 1 at R, as (c_0 + c_1 s / 2)²."""
    layer, y = network(0.2).blocks[0].attention, tokens()
    query, key, value = layer.query_key_value(y)
    key = key - key.mean(2, keepdim=True)
    root = exp_polynomial(1, 2.0)
    ours = PolynomialAttention(layer, 2, 4.0)
    c0, c1 = root.coefficients
    features = torch.cat([torch.full_like(query[..., :1], c0), c1 * query / 2], dim=-1)
    reads = torch.cat([torch.ones_like(key[..., :1]), key / math.sqrt(8)], dim=-1)
    maps = (features @ reads.mT) ** 2
    assert_identity(ours.maps(y), maps / maps.sum(-1, keepdim=True))
    with pytest.warns(DenseIsCheaperWarning):
        low_rank = poly_attention(query, key, value, 12, scale=8**-0.5)
    moved = (low_rank - layer.maps(y) @ value).abs().max()
    bound = exp_polynomial(12, logit_bound(query, key, 8**-0.5)).error_bound
    assert 0 < moved <= bound * value.abs().max()


def test_shifted_keys_change_nothing():
    """A bias on the keys is a constant in every row of logits: centring takes it away."""
    layer, y = PolynomialAttention(network().blocks[0].attention, 8), tokens()
    before = layer.maps(y)
    layer.project.bias[16:32] += 3.0
    assert_identity(layer.maps(y), before, condition=1e3)


def test_what_cannot_be_exchanged_is_refused():
    model = network()
    layer = model.blocks[0].attention
    with pytest.raises(ValueError, match="degree must be even, got 3"):
        PolynomialAttention(layer, 3)
    with pytest.raises(ValueError, match="degree must be an integer"):
        PolynomialAttention(layer, -2)
    with pytest.raises(ValueError, match="only softmax"):
        with_polynomial_attention(DiT(DIM, N, hidden=16, heads=2, attention="relu"), 4)
    with pytest.raises(ValueError, match=r"logits reach .*, the radius is 0.01"):
        PolynomialAttention(layer, 4, 0.01)(tokens())
    with pytest.raises(ValueError, match="below 1"):
        PolynomialAttention(layer, 4)(1e3 * tokens() * tokens().abs())


def test_ranges_of_logits():
    model, law = network().float(), process(N, DIM)
    rows = logit_ranges(model, law, (0.1, 1.0), n=5, generator=seeded(4))
    assert [(row["layer"], row["t"]) for row in rows] == [
        (1, 0.1), (2, 0.1), (1, 1.0), (2, 1.0),
    ]  # fmt: skip
    seen = []
    hook = model.blocks[0].attention.register_forward_pre_hook(
        lambda layer, args: seen.append(layer.logits(*layer.query_key_value(args[0])[:2]))
    )
    logit_ranges(model, law, (0.1,), n=5, generator=seeded(4))
    hook.remove()
    assert rows[0]["range"] == pytest.approx(seen[0].abs().max().item())
    assert not model.blocks[0].attention._forward_pre_hooks  # nothing stays behind


def test_experiments_run_and_are_stored(tmp_path):
    training = TrainConfig(steps=2, batch_size=4, evaluate_n=4)
    settings = Swap(
        None, {"seq_len": 4, "dim": 2, "lengthscale": 2.0}, training, degrees=(0, 12),
        steps=(0.1, 1.0), score_steps=(0.1,), monte_carlo=8, samples=6, solver_steps=3,
    )  # fmt: skip
    swap(settings, Run("swap-tiny", torch.device("cpu"), tmp_path, False))
    result = load_result("swap-tiny", tmp_path)
    quality = result.table("quality").set_index("degree")
    assert list(quality.index) == [-1, 0, 12]
    assert quality.loc[12, "path_kl"] == pytest.approx(quality.loc[-1, "path_kl"], rel=1e-3)
    assert len(result.table("ranges")) == 2 * 4
    assert result.arrays["paths.12"].shape == (4, 4, 2)


def test_clock_of_an_accelerator_waits_for_it(monkeypatch):
    """With what torch 2.4 has: ``torch.accelerator`` is younger."""
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.delattr(torch, "accelerator", raising=False)
    assert growth._timed(lambda: calls.append("work"), torch.device("cuda")) >= 0
    assert calls == ["wait", "work", "wait"]
    growth._timed(lambda: calls.append("work"), torch.device("cpu"))
    assert calls == ["wait", "work", "wait", "work"]


def test_growth_is_measured_and_stored(tmp_path):
    settings = Growth(
        2, 2, 2, lengths=(64, 2048, 4096), rounds=1,
        dense_limits=(("softmax", 2048), ("torch SDPA", 64), ("exact gradient", 64)),
    )  # fmt: skip
    attention_growth(settings, Run("attention-tiny", torch.device("cpu"), tmp_path, False))
    result = load_result("attention-tiny", tmp_path)
    table = result.table("growth").set_index(["method", "L"])
    assert table.loc[("softmax", 2048), "largest tensor"] == 2048**2
    assert table.loc[("polynomial", 4096), "largest tensor"] == 4096 * 2
    assert set(result.numbers) == {"polynomial", "gradient"}
    with pytest.raises(ValueError, match="lengths must exceed the rank 6"):
        attention_growth(
            Growth(2, 2, 2, lengths=(6,)), Run("attention-short", torch.device("cpu"), tmp_path)
        )
