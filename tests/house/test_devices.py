"""Device cases of what no other file has: a law, data and t on either device; see DEVICES."""

from __future__ import annotations

import json

import check_gpu
import matplotlib.pyplot as plt
import pretend_device
import pytest
import torch
from strategies import DEVICES, process, seeded
from tolerances import assert_float32, assert_identity

from gptheory.construction import build_score_transformer
from gptheory.data import decaying_process, random_mixture
from gptheory.data.covariance import toeplitz
from gptheory.diffusion import ExactScore, UnrolledScore, WienerScore
from gptheory.figures import style as figures_style
from gptheory.latent import SubspaceData, random_basis
from gptheory.networks import DiT
from gptheory.probing import query_key_products, record
from gptheory.probing.recording import block_norms
from gptheory.support import session

LAW = process(6, 2)
DATA = SubspaceData(random_basis(9, 4, seeded(1)), random_mixture(2, 2, generator=seeded(2)), 0.1)
X = LAW.sample(40, seeded(3), torch.float64)
POINTS = DATA.sample(3, seeded(4), torch.float64)
SCORES = {
    "unrolled": (lambda device: UnrolledScore(LAW.to(device), 3), X[:3]),
    "wiener": (lambda device: WienerScore(X.to(device)), X[:3]),
    "mixture": (lambda device: ExactScore(DATA.latent.to(device)), DATA.encode(POINTS)),
    "subspace": (lambda device: ExactScore(DATA.to(device)), POINTS),
}


@pytest.mark.parametrize("law", DEVICES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_where_its_argument_is(name, device, law):
    make, v = SCORES[name]
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for step, truth in ((0.3, 0.3), (t, t), (t.to(device), t)):
        found = make(law)(v.to(device), step)
        assert found.device.type == device
        assert_identity(found, make("cpu")(v, truth))


@pytest.mark.parametrize("device", DEVICES)
def test_toeplitz_matrices_and_heads_stay_on_the_device(device):
    values = torch.tensor([1.0, 0.5, 0.2]).to(device)
    assert toeplitz(values).device.type == device
    network = DiT(2, 6, 8, 2, 1, generator=seeded(0)).to(device)
    layer = network.blocks[0].attention
    assert query_key_products(layer).device.type == device
    (seen,) = record(network, X[:3].to(network.embedding), 0.1)
    assert seen.maps.device.type == device and block_norms(network).device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_drawn_may_be_on_the_device_and_carry_a_gradient(device):
    x = X[:2].to(device).requires_grad_()
    figure, (left, right) = plt.subplots(1, 2)
    figures_style.paths(left, x)
    image = figures_style.picture(right, x[0])
    assert_float32(image.get_array(), X[0])
    plt.close(figure)


def test_norms_of_layers_with_other_numbers_of_heads_are_refused():
    network = build_score_transformer(decaying_process(6, 2), 2, form="position-once")
    with pytest.raises(ValueError, match="different numbers of heads"):
        block_norms(network)


def test_a_chapter_that_uses_no_device_does_not_name_one(monkeypatch, capsys):
    monkeypatch.delenv("GPTHEORY_SCALE", raising=False)
    monkeypatch.setenv("GPTHEORY_DEVICE", "meta")
    session.opening(1)
    session.opening(1, on="auto")
    assert [line[:20] for line in capsys.readouterr().out.splitlines()] == [
        "quick scale on cpu: ", "quick scale on meta:",
    ]  # fmt: skip


@pytest.mark.skipif(
    DEVICES != ["cpu", pretend_device.NAME], reason="make test-devices rehearses it"
)
def test_the_check_of_a_gpu_is_rehearsed_on_gpu_pretend(tmp_path, capsys):
    assert check_gpu.main(["--out", str(tmp_path), "--device", "gpu", "--rehearse"]) == 0
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    statuses = {name: part["status"] for name, part in parts.items()}
    skipped = {name for name, status in statuses.items() if status == "skipped"}
    assert set(statuses.values()) == {"passed", "skipped"}, statuses
    assert all(parts[name]["error"] == "needs cuda" for name in skipped) and len(skipped) == 3
    assert len(capsys.readouterr().out.splitlines()) == len(parts) + 1
