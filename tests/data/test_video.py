"""Semi-synthetic video: paths, sprites, detectors, the latent map, the Gaussian control."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES, seeded
from tolerances import (
    IDENTITY,
    assert_at_most,
    assert_float32,
    assert_identity,
    assert_statistical,
    covariance_standard_error,
)

from gptheory.data import Ball, GaussianTwin, LatentMap, PowerExponential, gram, video
from gptheory.data.digits import Digits, handwritten
from gptheory.measures import measured_motion, motion_floor, true_motion
from gptheory.studies.video import GOOD_DIGIT

KERNEL = PowerExponential(8.0)
BALL = Ball()
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(120)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expectation(f, g, gamma: float) -> float:
    """E f(u) g(w) for a normal pair of correlation gamma, by quadrature."""
    u, z = np.meshgrid(NODES, NODES, indexing="ij")
    w = gamma * u + math.sqrt(1 - gamma**2) * z
    return float(np.einsum("i,j,ij", WEIGHTS, WEIGHTS, f(u) * g(w)))


def positions(n: int, reach: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return reach * (2 * torch.rand(n, 2, generator=seeded(3), dtype=dtype) - 1)


@pytest.fixture(scope="module")
def digits() -> Digits:
    pytest.importorskip("sklearn", reason="its digits, an extra of the package")
    return Digits(*handwritten((0, 1, 4, 7)))


# ---- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [-0.9, -0.3, 0.0, 0.2, 0.6, 0.95])
def test_uniform_correlation_is_that_of_the_transformed_pair(gamma):
    def uniform(u):
        return torch.erf(torch.tensor(u) / math.sqrt(2)).numpy()

    exact = 3 * expectation(uniform, uniform, gamma)  # a uniform on (-1, 1) has variance 1/3
    given = torch.tensor(gamma, dtype=torch.float64)
    assert_identity(1 + video.uniform_correlation(given), 1 + exact)


@given(st.floats(0, 1))
def test_uniform_correlation_is_a_little_below(gamma):
    value = video.uniform_correlation(torch.tensor(gamma, dtype=torch.float64)).item()
    assert_at_most(value, gamma)
    assert_at_most(gamma - 0.0182, value)


def test_uniform_correlation_refuses_what_is_none():
    with pytest.raises(ValueError, match=r"correlations lie in \[-1, 1\], got up to 1.5"):
        video.uniform_correlation(torch.tensor([0.1, -1.5]))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(0, 0.99))
def test_no_function_of_a_gaussian_process_remembers_longer_than_the_process(coefficients, gamma):
    """Mehler: Cov f(u), f(w) = sum of positive weights times powers of gamma, the first highest."""
    if np.abs(coefficients[1:]).max() < 1e-3:
        return

    def f(u):
        return np.polynomial.polynomial.polyval(u, coefficients)

    mean = expectation(f, lambda w: w**0, 0.0)
    variance = expectation(f, f, 1.0) - mean**2
    correlation = (expectation(f, f, gamma) - mean**2) / variance
    assert_at_most(correlation, gamma + 1e-6)
    assert_at_most(-1e-6, correlation)


@pytest.mark.statement("FDGWC Semi-synthetic video")
def test_paths_are_uniform_with_the_exact_correlation():
    n, reach = 20_000, 4.5
    paths = video.uniform_paths(KERNEL, n, 4, reach, seeded(0), torch.float64)
    assert paths.shape == (n, 4, 2) and paths.dtype == torch.float64
    share = (paths[:, 0, 0] < reach / 2).double().mean()
    assert_statistical(share, 0.75, math.sqrt(0.75 * 0.25 / n), n)
    products = (paths[:, 0] * paths[:, 2]) / (reach**2 / 3)
    exact = video.uniform_correlation(gram(KERNEL, 4))[0, 2]
    error = products.std(dim=0) / math.sqrt(n)
    assert_statistical(products.mean(dim=0), exact.expand(2), error, n)
    between = (paths[:, 0, 0] * paths[:, 0, 1]) / (reach**2 / 3)
    assert_statistical(between.mean(), 0.0, between.std() / math.sqrt(n), n)


def test_paths_come_from_the_generator_and_a_positive_reach():
    draws = [video.uniform_paths(KERNEL, 2, 3, 1.0, seeded(1)) for _ in range(2)]
    assert torch.equal(*draws)
    with pytest.raises(ValueError, match="reach must be a finite number > 0"):
        video.uniform_paths(KERNEL, 2, 3, 0.0)


def test_motion_of_a_path_that_is_known():
    paths = torch.tensor([[[3.0, 0], [3, 4], [3, 4]], [[-3.0, 0], [-3, -4], [-3, -4]]])
    motion = measured_motion(paths, KERNEL)
    assert_identity(motion.jump, math.sqrt((16 + 0) / 2))
    diagonal = np.array([9, 25, 25]) / (59 / 3)
    lagged = np.array([9, 25]) / (59 / 3)
    assert_identity(motion.lag_one, lagged.mean() / diagonal.mean(), condition=1e3)
    temporal = np.array([[9, 9, 9], [9, 25, 25], [9, 25, 25]]) / (59 / 3)
    truth = video.uniform_correlation(gram(KERNEL, 3)).numpy()
    expected = np.linalg.norm(temporal - truth) / np.linalg.norm(truth)
    assert_float32(motion.error, expected)


def test_one_frame_does_not_move():
    with pytest.raises(ValueError, match="seq_len must be an integer >= 2, got 1"):
        true_motion(KERNEL, 1, 4.5)
    with pytest.raises(ValueError, match="number of frames must be an integer >= 2, got 1"):
        measured_motion(torch.ones(3, 1, 2), KERNEL)


@pytest.mark.statement("FDGWC Semi-synthetic video")
def test_measured_motion_of_true_paths_is_the_exact_one_within_its_floor():
    n = 4000
    truth = true_motion(KERNEL, 16, 4.5)
    found = measured_motion(video.uniform_paths(KERNEL, n, 16, 4.5, seeded(5)), KERNEL)
    floor = motion_floor(KERNEL, n, 16)
    assert_statistical(found.lag_one, truth.lag_one, floor.lag_one, n)
    assert_statistical(found.jump / truth.jump, 1.0, floor.jump, n)
    assert found.error < 3 * floor.error
    few = motion_floor(KERNEL, n // 16, 16)
    for name in ("lag_one", "jump", "error"):
        assert 2 < getattr(few, name) / getattr(floor, name) < 8  # the square root of 16 is 4


# ---- the ball -----------------------------------------------------------------------------------


def test_ball_has_the_brightness_of_the_formula_horizontal_first():
    centre = torch.tensor([2.0, -1.5], dtype=torch.float64)
    frame = BALL.render(centre)
    for row, column in ((0, 0), (6, 9), (6, 12), (15, 3)):
        distance = math.hypot(column - 7.5 - 2.0, row - 7.5 + 1.5)
        expected = 1 / (1 + math.exp((distance - 3) / 0.8))
        assert_identity(frame[row, column], expected)
    assert_identity(BALL.render(centre.flip(0)), frame.T)
    assert_identity(BALL.render(-centre), frame.flip(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_ball_is_found_where_it_is(dtype, device):
    centres = positions(300, BALL.reach, dtype).to(device)
    frames = BALL.render(centres)
    assert (frames.dtype, frames.device.type) == (dtype, device)
    found = BALL.locate(frames.view(20, 15, 16, 16))
    assert found.centres.shape == (20, 15, 2) and found.single.shape == (20, 15)
    assert found.centres.dtype == dtype and found.centres.device.type == device
    assert found.single.all()
    assert (found.centres.view(-1, 2) - centres).abs().max() <= 0.126  # half a grid step
    assert (found.amplitude - 1).abs().max() < 0.01
    assert found.stray.max() < 0.005


def test_ball_on_the_grid_is_found_exactly():
    centres = torch.tensor([[-4.5, 4.5], [0.0, -0.25], [1.75, 3.0]], dtype=torch.float64)
    found = BALL.locate(BALL.render(centres))
    assert_identity(found.centres, centres)
    assert_identity(found.amplitude, torch.ones(3))
    assert found.stray.max() < IDENTITY


def test_detector_is_not_fooled():
    left, right = BALL.render(torch.tensor([[-3.5, 0.0], [3.5, 0.0]], dtype=torch.float64))
    near = BALL.render(torch.tensor([-0.25, 0.0], dtype=torch.float64))
    noisy = left + 0.3 * torch.randn(16, 16, generator=seeded(0), dtype=torch.float64)
    no_balls = {
        "nothing": torch.zeros(16, 16, dtype=torch.float64),
        "two balls": left + right,
        "smear of two": (left + right) / 2,
        "smear of neighbours": (left + near) / 2,
        "half a ball": left / 2,
        "too bright": 1.15 * left,
        "negative": -left,
        "everything bright": torch.ones(16, 16, dtype=torch.float64),
        "ball in noise": noisy,
        "a ball and the ghost of another": left + 0.3 * right,
    }
    for name, frame in no_balls.items():
        assert not BALL.locate(frame).single, name
    assert BALL.locate(1.09 * left).single and BALL.locate(0.91 * left).single
    assert BALL.locate(left + 0.15 * right).single  # 2 % of a ball's energy is let pass


@pytest.mark.parametrize("size", [1, 6, 7])
def test_frames_too_small_for_the_ball(size):
    with pytest.raises(ValueError, match=r"a ball of radius 3 needs frames of more than 7 pixels"):
        Ball(size)


def test_ball_that_would_leave_the_frame_is_refused():
    path = torch.tensor([[0.0, 4.5], [4.6, 0.0], [-7.0, 2.0]])
    with pytest.raises(ValueError, match=r"2 of 3 positions leave the frame.*within 4.5 pixels"):
        BALL.render(path)
    with pytest.raises(ValueError, match="must be finite"):
        BALL.render(torch.tensor([math.nan, 0.0]))
    with pytest.raises(ValueError, match="horizontal and vertical"):
        BALL.render(torch.zeros(3))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(3, 16, 15), r"must have shape \(..., 16, 16\), got \(3, 16, 15\)"),
        (torch.zeros(3, 12, 12), r"must have shape \(..., 16, 16\)"),
        (torch.zeros(16), r"must have shape"),
        (torch.zeros(16, 16, dtype=torch.int64), "floating-point"),
        (torch.full((16, 16), math.inf), "must be finite"),
    ],
)
def test_bad_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        BALL.locate(frames)


def test_spacing_of_the_search():
    with pytest.raises(ValueError, match="spacing must be a finite number > 0"):
        BALL.locate(torch.zeros(16, 16), spacing=0)
    coarse = BALL.locate(BALL.render(torch.tensor([0.3, 0.0])), spacing=1.5)
    assert_float32(coarse.centres, torch.zeros(2))


# ---- digits -------------------------------------------------------------------------------------


def test_splines_keep_brightness_and_centroid(digits):
    which = torch.arange(len(digits.images))[:200]
    centres = positions(len(which), digits.reach)[:, None]
    frames = digits.render(centres, which)
    assert frames.shape == (len(which), 1, 20, 20) and frames.dtype == torch.float64
    brightness = digits.images[which].double().sum(dim=(1, 2))
    assert_identity(frames.sum(dim=(2, 3))[:, 0], brightness)
    assert_float32(digits.locate(frames)[0], centres)


def test_digit_moves_by_whole_pixels_and_rows_are_vertical(digits):
    at = torch.tensor([[[0.3, -0.2], [1.3, -0.2], [0.3, 1.8]]], dtype=torch.float64)
    here, right, below = digits.render(at, torch.tensor([7]))[0]
    assert_identity(right[:, 1:], here[:, :-1])
    assert_identity(below[2:], here[:-2])


def test_each_digit_is_recognised_at_any_position(digits):
    which = torch.randperm(len(digits.images), generator=seeded(0))[:300]
    centres = positions(300, digits.reach, torch.float32)[:, None]
    found, distance, label = digits.locate(digits.render(centres, which))
    assert found.dtype == torch.float32
    assert distance.max() < 0.02
    assert (label[:, 0] == digits.labels[which]).all()


def test_unseen_digits_are_near_and_smears_are_far(digits):
    half = torch.arange(len(digits.images)) % 2 == 0
    known = Digits(digits.images[half], digits.labels[half])
    unseen = Digits(digits.images[~half], digits.labels[~half])
    frames = unseen.render(torch.zeros(len(unseen.images), 1, 2), torch.arange(len(unseen.images)))
    _, distance, label = known.locate(frames)
    assert 0.97 < (distance <= GOOD_DIGIT).double().mean() < 1
    assert (label[:, 0] == unseen.labels).double().mean() > 0.97
    smears = {
        "two places at once": (frames.roll(2, -1) + frames.roll(-2, -1)) / 2,
        "upper and lower": (frames.roll(2, -2) + frames.roll(-2, -2)) / 2,
        "half as bright": frames / 2,
    }
    for name, frame in smears.items():
        assert known.locate(frame)[1].min() > GOOD_DIGIT, name


def test_recentred_frames_keep_their_energy_and_forget_the_position(digits):
    which = torch.arange(40)
    centres = positions(40, digits.reach)[:, None]
    frames = digits.render(centres, which)
    recentred = digits.recentred(frames, centres)
    energy, kept = (x.square().sum(dim=(1, 2, 3)) for x in (frames, recentred))
    assert (kept / energy - 1).abs().max() < 0.03
    middle = digits.recentred(digits.render(0 * centres, which), 0 * centres)
    assert (recentred - middle).norm() < 0.05 * middle.norm()


def test_bad_digits(digits):
    images, labels = digits.images[:3], digits.labels[:3]
    with pytest.raises(ValueError, match=r"frames of more than \d+ pixels a side, got size=10"):
        Digits(images, labels, size=10)
    with pytest.raises(ValueError, match=r"expected images \(K, h, h\) and labels"):
        Digits(images, labels[:2])
    with pytest.raises(ValueError, match="some brightness"):
        Digits(torch.zeros(1, 8, 8), labels[:1])
    with pytest.raises(ValueError, match="leave the frame"):
        digits.render(torch.full((1, 1, 2), 5.0), torch.tensor([0]))
    with pytest.raises(ValueError, match="digits from 0 to 9"):
        handwritten((3, 10))


def test_needed_frame_size_is_the_one_that_works(digits):
    with pytest.raises(ValueError, match=r"more than \d+ pixels") as error:
        Digits(digits.images, digits.labels, size=8)
    needed = int(str(error.value).split("more than ")[1].split()[0])
    assert Digits(digits.images, digits.labels, size=needed + 1).reach > 0
    with pytest.raises(ValueError, match="more than"):
        Digits(digits.images, digits.labels, size=needed - 1)


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gptheory\[digits\]'"):
        handwritten((0,))


# ---- frames and latent vectors ------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    paths = video.uniform_paths(KERNEL, 60, 8, BALL.reach, seeded(0), torch.float64)
    return BALL.render(paths)


def test_latent_map_is_the_projection_of_least_loss(frames):
    latent_map = LatentMap.fit(frames, 10)
    latents = latent_map.encode(frames)
    pixels = frames.flatten(2).flatten(0, 1)
    centred = pixels - pixels.mean(dim=0)
    singular = torch.linalg.svdvals(centred)
    lost = singular[10:].square().sum() / singular.square().sum()
    assert_identity(latent_map.lost, lost)
    rest = (frames - latent_map.decode(latents)).square().sum()
    assert_identity(rest, lost * singular.square().sum())
    assert_identity(latents.flatten(0, 1).var(dim=0, correction=0).mean(), 1.0)
    assert latents.flatten(0, 1).mean(dim=0).abs().max() < IDENTITY


def test_latents_come_back_from_frames(frames):
    latent_map = LatentMap.fit(frames, 10)
    latents = torch.randn(3, 4, 10, generator=seeded(1), dtype=torch.float64)
    decoded = latent_map.decode(latents)
    assert decoded.shape == (3, 4, 16, 16) and decoded.dtype == torch.float64
    assert_identity(latent_map.encode(decoded), latents, condition=10)


def test_pixel_covariance_is_that_of_the_decoded_frames(frames):
    latent_map = LatentMap.fit(frames, 6)
    latents = latent_map.encode(frames).flatten(0, 1)
    expected = torch.cov(latent_map.decode(latents).flatten(1).T)
    assert_identity(latent_map.pixel_covariance(torch.cov(latents.T)), expected)


def test_bad_frames_for_the_latent_map(frames):
    with pytest.raises(ValueError, match="256 pixels, so dim cannot be 257"):
        LatentMap.fit(frames, 257)
    with pytest.raises(ValueError, match="nothing to learn"):
        LatentMap.fit(torch.ones(5, 4, 4), 2)
    with pytest.raises(ValueError, match="dim must be an integer"):
        LatentMap.fit(frames, 0)
    with pytest.raises(ValueError, match=r"must have shape \(..., 16, 16\)"):
        LatentMap.fit(frames, 3).encode(torch.zeros(2, 8, 8, dtype=torch.float64))


# ---- the control --------------------------------------------------------------------------------


def test_twin_has_the_mean_and_the_covariance_of_the_data(frames):
    latents = LatentMap.fit(frames, 3).encode(frames) + 2.0
    twin = GaussianTwin(latents)
    rows = latents.flatten(1)
    assert_identity(twin.covariance, np.cov(rows.numpy().T))
    n = 20_000
    draws = twin.sample(n, seeded(2))
    assert draws.shape == (n, 8, 3) and draws.dtype == torch.float64
    own = draws.flatten(1) - rows.mean(dim=0)
    spread = twin.covariance.diagonal().sqrt() / math.sqrt(n)
    assert_statistical(own.mean(dim=0), torch.zeros(24), spread, n)
    error = covariance_standard_error(twin.covariance, n)
    assert_statistical(own.T @ own / n, twin.covariance, error, n)
    assert torch.equal(twin.sample(3, seeded(4)), twin.sample(3, seeded(4)))


def test_share_of_a_kronecker_product():
    twin = GaussianTwin(torch.randn(40, 3, 2, generator=seeded(0), dtype=torch.float64))
    temporal, spatial = gram(KERNEL, 3), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    product = torch.kron(temporal, spatial)
    twin.covariance = product
    assert_identity(twin.kronecker_share(), 1.0)
    # a second product, orthogonal to the first in both factors: shares are shares of squares
    other_temporal = torch.diag(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))
    other_spatial = torch.tensor([[1.0, 0.0], [0.0, -2.0]]).double()
    assert (other_temporal * temporal).sum() == (other_spatial * spatial).sum() == 0
    other = 0.3 * torch.kron(other_temporal, other_spatial)
    twin.covariance = product + other
    expected = product.square().sum() / (product.square().sum() + other.square().sum())
    assert_identity(twin.kronecker_share(), expected)


@pytest.mark.statement("FDGWC Semi-synthetic video")
def test_gaussian_twin_matches_covariances_and_shows_no_balls():
    paths = video.uniform_paths(KERNEL, 3000, 8, BALL.reach, seeded(0))
    frames = BALL.render(paths)
    latent_map = LatentMap.fit(frames[:500], 16)
    latents = latent_map.encode(frames)
    twin = GaussianTwin(latents).sample(1000, seeded(1))
    assert BALL.locate(latent_map.decode(latents[:200])).single.all()
    assert BALL.locate(latent_map.decode(twin)).single.double().mean() < 0.12
    theirs, own = (torch.cov(x.flatten(1).T) for x in (latents, twin))
    assert (own - theirs).norm() / theirs.norm() < 0.15  # 1000 draws: sampling noise


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4), "must have shape"),
        (torch.zeros(1, 4, 2), "the number of sequences must be an integer >= 2"),
        (torch.full((3, 4, 2), math.nan), "must be finite"),
    ],
)
def test_bad_sequences_for_the_twin(x, message):
    with pytest.raises(ValueError, match=message):
        GaussianTwin(x)
