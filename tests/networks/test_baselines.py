"""The baselines: what they can see, and that their size is comparable."""

from __future__ import annotations

import pytest
import torch
from strategies import seeded
from test_dit import disturbed
from tolerances import assert_identity

from gptheory.networks import DiT, UNet1d
from gptheory.networks.baselines import FrameMLP


def influence(model: torch.nn.Module, seq_len: int, dim: int = 2) -> torch.Tensor:
    """(N, N): largest |∂F_i/∂v_j| between frames i and j."""
    v = torch.randn(1, seq_len, dim, generator=seeded(0), dtype=torch.float64)
    clock = model.clock(torch.tensor([0.3], dtype=torch.float64))
    jacobian = torch.autograd.functional.jacobian(lambda v: model.velocity(v, clock), v)
    return jacobian[0, :, :, 0].abs().amax(dim=(1, 3))


@pytest.mark.parametrize("sizes", [(4, 32), (8, 128), (2, 16)])
def test_sizes_are_within_a_fifth_of_the_transformer(sizes):
    count = {m: sum(p.numel() for p in m(*sizes).parameters()) for m in (DiT, UNet1d, FrameMLP)}
    print(count)
    assert 0.8 < count[UNet1d] / count[DiT] < 1.2
    assert 0.8 < count[FrameMLP] / count[DiT] < 1.2


def test_mlp_mixes_no_frames():
    matrix = influence(disturbed(FrameMLP(2, hidden=8, depth=2)).double(), 6)
    assert (matrix.diagonal() > 0).all()
    assert torch.equal(matrix, matrix.diagonal().diag())


@pytest.mark.parametrize("seq_len", [1, 2, 5, 16])
def test_unet_reaches_every_frame_at_any_length(seq_len):
    model = disturbed(UNet1d(2, seq_len, 8, generator=seeded(0))).double()
    v = torch.randn(3, seq_len, 2, dtype=torch.float64)
    assert model(v, 0.1).shape == v.shape
    assert (influence(model, seq_len) > 0).all()


def test_unet_scales_feed_each_other():
    """Cut one level after another: each matters."""
    model = disturbed(UNet1d(2, 16, 8, generator=seeded(0))).double()
    v = torch.randn(2, 16, 2, generator=seeded(1), dtype=torch.float64)
    full = model(v, 0.1)
    for name in ("down_1", "down_2", "middle_1", "middle_2", "up_2", "up_1"):
        hook = getattr(model, name).register_forward_hook(lambda m, args, out: out.flip(0))
        assert (model(v, 0.1) - full).abs().max() > 1e-3 * full.abs().max(), name
        hook.remove()
    assert_identity(model(v, 0.1), full)


@pytest.mark.parametrize("build", [UNet1d, FrameMLP])
def test_the_diffusion_step_modulates_the_baselines(build):
    model = disturbed(build(2, 8)).double()
    v = torch.randn(1, 8, 2, generator=seeded(1), dtype=torch.float64)
    clocks = model.clock(torch.tensor([0.01, 1.0], dtype=torch.float64))
    low, high = (model.velocity(v, clock[None]) for clock in clocks)
    assert (low - high).abs().max() > 1e-2 * low.abs().max()


def test_networks_can_be_rebuilt_from_their_configuration():
    for model in (UNet1d(2, 8, 8), FrameMLP(2, 8, 12, 3)):
        type(model)(**model.config).load_state_dict(model.state_dict())


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="channels must be a multiple of 4, got 6"):
        UNet1d(2, 8, 6)
    with pytest.raises(ValueError, match="channels"):
        UNet1d(2, 8, 0)
    with pytest.raises(ValueError, match="hidden"):
        FrameMLP(2, hidden=0)
    with pytest.raises(ValueError, match="depth"):
        FrameMLP(2, depth=-1)
