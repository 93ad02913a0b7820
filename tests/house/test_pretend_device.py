"""The pretend device refuses what CUDA refuses; on it the whole API finds the CPU's numbers.

It needs a process of its own: ``make test-devices``, which ``make test`` calls.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pandas as pd
import pretend_device
import pytest
import torch
from pretend_device import NAME, WrongDeviceError, counts

if pretend_device.missing():  # says which part of torch it needs and does not find
    print(f"SKIPPED: {pretend_device.missing()}", file=sys.stderr)
    pytest.skip(pretend_device.missing(), allow_module_level=True)

import api_tour
import matplotlib.pyplot as plt
from strategies import DEVICES, process, seeded
from tour.networks import NETWORKS
from tour.stop import D, N, law, sequences, shaken, steps

from gptheory.construction import build_score_transformer
from gptheory.data import LatentMap, random_mixture
from gptheory.diffusion import (
    ExactScore,
    NestedScore,
    OneLoopScore,
    UnrolledScore,
    WienerScore,
    sample,
)
from gptheory.latent import SubspaceData, random_basis
from gptheory.studies import load_result, stored_network

GPU, CPU = torch.device(NAME), torch.device("cpu")
here, there = torch.ones(3, 3, device=NAME), torch.ones(3, 3)
row, number = torch.ones(3), torch.tensor(2.0)
indices = torch.tensor([0, 2])


# ---- the rules ----------------------------------------------------------------------------------

REFUSED = {
    "a sum": lambda: here + there,
    "a product": lambda: here @ there,
    "a solve": lambda: torch.linalg.solve(here + torch.eye(3, device=NAME), there),
    "cat": lambda: torch.cat([here, there]),
    "stack of numbers": lambda: torch.stack([here.sum(), number]),
    "where": lambda: torch.where(here > 0, here, there),
    "einsum": lambda: torch.einsum("ij,jk->ik", there, here),
    "index_select": lambda: here.index_select(0, indices),
    "gather": lambda: there.gather(0, torch.zeros(3, 3, dtype=torch.long, device=NAME)),
    "searchsorted": lambda: torch.searchsorted(here[0], row),
    "an index of the device into the CPU": lambda: there[indices.to(NAME)],
    "values of the CPU at an index": lambda: here.clone().index_put_((indices,), row[:2]),
    "a result written to the other device": lambda: torch.add(here, here, out=there.clone()),
    "a number of the CPU that is written to": lambda: number.clone().add_(here.sum()),
    "a linear layer": lambda: torch.nn.Linear(3, 3)(here),
    "an update of the CPU from the device": lambda: there.clone().add_(here),
    "a generator of the CPU": lambda: torch.randn(3, device=NAME, generator=seeded(0)),
    "a generator of the device": lambda: torch.rand(3, generator=torch.Generator(NAME)),
    "a permutation": lambda: torch.randperm(3, device=NAME, generator=seeded(0)),
    "a draw in place": lambda: here.clone().uniform_(generator=seeded(0)),
}
ALLOWED = {
    "a number of the CPU": lambda: here * number,
    "a number on the left": lambda: number - here,
    "where with a number": lambda: torch.where(here > 0, here, number),
    "a maximum with a number": lambda: torch.maximum(here, number),
    "an index of the CPU": lambda: here[indices],
    "a mask of the CPU": lambda: here[there > 0],
    "an assigned slice": lambda: here.clone()[:1].copy_(row),
    "an assigned number": lambda: here.clone().index_put_((indices,), number),
    "a copy": lambda: here.clone().copy_(there),
    "a move": lambda: there.to(here),
    "made there": lambda: torch.tensor([1.0, 2.0], device=NAME),
    "decompositions": lambda: torch.linalg.eigh(here)[0],
    "a transform": lambda: torch.fft.fft(here).real,
    "vmap": lambda: torch.vmap(lambda x: x.square().sum())(here),
    "a Jacobian": lambda: torch.func.jacrev(lambda x: x.square())(here[0]),
    "attention": lambda: torch.nn.functional.scaled_dot_product_attention(here, here, here),
    "another dtype": lambda: here.double().half(),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_it_refuses(rule):
    with pytest.raises(WrongDeviceError, match=r"on the same device|generator|value"):
        REFUSED[rule]()


@pytest.mark.parametrize("rule", ALLOWED)
def test_it_allows(rule):
    assert ALLOWED[rule]().device.type == NAME


@pytest.mark.parametrize(
    "take", [np.asarray, lambda x: x.numpy(), pd.Series, lambda x: plt.plot(x), plt.imshow],
    ids=["asarray", "numpy", "pandas", "plot", "imshow"],
)  # fmt: skip
def test_numbers_are_not_handed_to_the_host_by_themselves(take):
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\) to copy"):
        take(here if take is plt.imshow else here[0])
    plt.close("all")


def test_numbers_are_those_of_the_cpu_and_are_counted():
    counts.clear()
    x = there.to(NAME)
    value = (x @ x).sum().item()
    assert value == 27 and f"{x.sum():.0f}" == "9" and x.tolist() == there.tolist()
    assert repr(x).endswith("device='gpu:0')")
    assert counts["to the device"] == 1 and counts["from the device"] == 1
    assert counts["waits"] == 2 and counts["operations"] >= 6


def test_training_there_is_training():
    networks = [torch.nn.Linear(3, 1).to(device) for device in (CPU, GPU)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network in networks:
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)
        for _ in range(3):
            network(there.to(network.weight)).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    assert torch.equal(networks[0].weight, networks[1].weight.cpu())


def test_a_generator_says_where_it_is():
    generator = torch.Generator(NAME).manual_seed(3)
    assert generator.device == torch.device(NAME, 0) and torch.Generator().device == CPU
    drawn = torch.randn(5, device=NAME, generator=generator)
    assert torch.equal(drawn.cpu(), torch.randn(5, generator=seeded(3)))


# ---- the whole API ------------------------------------------------------------------------------

TOUR = [(stop, torch.float32) for stop in api_tour.stops()]
TOUR += [(stop, torch.float64) for stop in api_tour.stops() if stop.compare]


@pytest.mark.parametrize(
    ("stop", "dtype"), TOUR, ids=[f"{stop.name}-{str(dtype)[6:]}" for stop, dtype in TOUR]
)
def test_the_tour_finds_what_the_cpu_finds(stop, dtype):
    found = stop.visit(GPU, dtype)
    assert found
    if stop.compare:
        truth = stop.visit(CPU, dtype)
        bar = api_tour.FLOAT32 if dtype == torch.float32 else api_tour.FLOAT64
        for name, value in found.items():
            assert api_tour.difference(value, truth[name]) <= bar, name


# ---- what a notebook mixes ----------------------------------------------------------------------

STEPS = {
    "number": 0.3,
    **{
        f"{name} {device}": (lambda make=make, device=device: make().to(device))
        for device in DEVICES
        for name, make in {
            "no dimension": lambda: torch.tensor(0.3),
            "one entry": lambda: torch.tensor([0.3]),
            "per sequence": lambda: steps(3),
            "integers": lambda: torch.tensor([1, 2, 1]),
        }.items()
    },
}


def _data(device: torch.device) -> SubspaceData:
    return SubspaceData(
        random_basis(N * D, 4, seeded(1)).to(device), random_mixture(2, 2, generator=seeded(2)), 0.1
    )


def _construction(device: torch.device) -> torch.nn.Module:
    return build_score_transformer(law(), 2, bandwidth=4).to(device)


SCORES = {
    "exact": lambda device: ExactScore(process(N, D).to(device)),
    "unrolled": lambda device: UnrolledScore(law(device), 3),
    "banded": lambda device: UnrolledScore(law(device), 3, 4, "bohman", "chebyshev"),
    "one loop": lambda device: OneLoopScore(law(device), torch.arange(N) < 4, 3),
    "two loops": lambda device: NestedScore(law(device), torch.arange(N) < 4, 3, 60),
    "wiener": lambda device: WienerScore(sequences(1, 40, device, torch.float64)),
    "constructed": _construction,
    **{
        name: (lambda device, make=make: shaken(make(), device, torch.float32))
        for name, make in NETWORKS.items()
    },
}


@pytest.mark.parametrize("form", STEPS)
@pytest.mark.parametrize("name", SCORES)
def test_a_score_takes_a_step_of_any_form_wherever_its_law_is(name, form):
    t = STEPS[form]() if callable(STEPS[form]) else STEPS[form]
    of_the_cpu = t.cpu() if isinstance(t, torch.Tensor) else t
    truth = SCORES[name](CPU)(sequences(2, 3, CPU, torch.float32), of_the_cpu)
    for device in (CPU, GPU):
        if device == CPU and name in ("constructed", *NETWORKS):
            continue  # a network is moved by whoever calls it
        score, v = SCORES[name](device), sequences(2, 3, GPU, torch.float32)
        found = score(v, t)
        assert found.device.type == NAME and found.dtype == v.dtype
        assert api_tour.difference(found, truth) <= api_tour.FLOAT32


@pytest.mark.parametrize(("data", "v", "t"), list(itertools.product(DEVICES, repeat=3)))
def test_subspaces_and_mixtures_follow_their_argument(data, v, t):
    x = sequences(1, 3, CPU, torch.float64).flatten(1)[:, None]
    own, truth = _data(torch.device(data)), _data(CPU)
    found = ExactScore(own)(x.to(v), steps(3).to(t))
    assert found.device.type == v
    assert api_tour.difference(found, ExactScore(truth)(x, steps(3))) <= api_tour.FLOAT64
    mixed = ExactScore(own.latent)(own.encode(x.to(v)), steps(3).to(t))
    assert mixed.device.type == v


def test_a_stored_network_moves_and_its_map_follows():
    network = stored_network(load_result("fig1-paper"), "DiT").to(NAME)
    x = sample(network, 1, network.seq_len, network.dim, steps=2, show_progress=False)
    assert x.device.type == NAME
    fitted = LatentMap.fit(torch.rand(9, 4, 4, generator=seeded(1)), 3)
    assert fitted.decode(x[..., :3]).device.type == NAME


@pytest.mark.parametrize("name", ["DiT", "UNet", "MLP", "covariance", "steps"])
def test_a_number_for_t_costs_no_copy(name):
    network, v = shaken(NETWORKS[name](), GPU, torch.float32), sequences(1, 3, GPU, torch.float32)
    if name == "steps":  # its law is no part of the module, and stays where it was
        network.base = UnrolledScore(law(GPU), 3, 4)
    network(v, 0.1)  # what is cast once is kept
    counts.clear()
    network(v, 0.2)
    assert counts["to the device"] == counts["from the device"] == counts["waits"] == 0


def test_sampling_with_the_score_of_a_law_stays_where_the_law_is():
    for score in (ExactScore(law(GPU)), UnrolledScore(law(GPU), 3)):
        x = sample(score, 2, N, D, steps=3, show_progress=False)
        assert x.device.type == NAME
        assert sample(score, 2, N, D, steps=3, generator=seeded(1), device="cpu",
                      show_progress=False).device == CPU  # fmt: skip
