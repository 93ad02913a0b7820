"""Lags and frequencies of one long sequence."""

from __future__ import annotations

import pytest
import torch
from strategies import seeded
from tolerances import assert_identity

from gptheory.data import GaussianProcess, PowerExponential
from gptheory.data.covariance import toeplitz
from gptheory.measures import lag_products, spectral_ratios
from gptheory.support.validation import NotPSDError

SPATIAL = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
LAW = GaussianProcess(PowerExponential(5.0), SPATIAL, torch.tensor([3.0, -1.0]), 1024)
LAGS = (0, 1, 7, 40)


def draws(n: int, scale: float = 1.0) -> torch.Tensor:
    return LAW.mean + scale * (LAW.sample(n, seeded(0), torch.float64) - LAW.mean)


def test_expectations_are_those_of_the_law_and_spreads_those_of_repetitions():
    truth = LAW.autocovariance()[list(LAGS)]
    for measure, expected in ((lambda x: lag_products(x, LAW, LAGS), truth),
                              (lambda x: spectral_ratios(x, LAW, 4), torch.ones(4))):  # fmt: skip
        own = torch.stack(
            [(measure(x[None])[0] - expected) / measure(x[None])[1] for x in draws(400)]
        )
        # 400 repetitions: a mean is known to .05 deviations, a deviation to 3.5 %
        assert own.mean(dim=0).abs().max() < 4 * 0.05
        assert (own.std(dim=0) - 1).abs().max() < 4 * 0.05


def test_many_sequences_are_their_average_with_a_smaller_spread():
    x = draws(6)
    for measure in (lambda x: lag_products(x, LAW, LAGS), lambda x: spectral_ratios(x, LAW)):
        whole, error = measure(x)
        single = [measure(each[None]) for each in x]
        assert_identity(whole, torch.stack([value for value, _ in single]).mean(dim=0))
        assert_identity(error, single[0][1] / 6**0.5)


def test_a_tenth_more_and_another_memory_show():
    ratios, error = spectral_ratios(draws(20, 1.1), LAW, 2)
    assert ((ratios - 1.21).abs() < 5 * 1.21 * error).all() and (error < 0.01).all()
    other = GaussianProcess(PowerExponential(4.0), SPATIAL, LAW.mean, 1024)
    x = other.sample(80, seeded(0), torch.float64)
    ratios, error = spectral_ratios(x, LAW, 64)
    assert ratios[0] < 1 - 5 * error[0] and ratios[-1] > 1 + 5 * error[-1]
    products, error = lag_products(x, LAW, LAGS)
    assert (products - LAW.autocovariance()[list(LAGS)])[1] < -5 * error[1]


def test_products_and_powers_of_one_sequence_written_out():
    x = draws(1)
    values, vectors = LAW.spatial_spectrum
    y = ((x[0] - LAW.mean) @ vectors / values.sqrt()).T
    found, _ = lag_products(x, LAW, (3,))
    by_hand = sum(y[k, i] * y[k, i + 3] for k in range(2) for i in range(1021)) / (2 * 1021)
    assert_identity(found[0], by_hand)
    # E |Σ y_j e^{-2πifj}|² is a sum over all pairs of frames
    wave = torch.exp(2j * torch.pi * 100 / 1024 * torch.arange(1024.0, dtype=torch.float64))
    expected = (wave.conj() @ toeplitz(LAW.autocovariance()).to(wave) @ wave).real
    power = (y.to(wave) @ wave).abs().square()
    ratios, _ = spectral_ratios(x, LAW, 511)
    assert_identity(ratios[99], (power / expected).mean(), condition=1024)


def test_a_matrix_that_depends_on_the_lag_alone_will_do_and_no_other():
    kernel = PowerExponential(5.0)
    dense = GaussianProcess(toeplitz(kernel(torch.arange(64.0).double())), SPATIAL)
    x = dense.sample(3, seeded(1))
    same = GaussianProcess(kernel, SPATIAL, seq_len=64)
    assert_identity(
        torch.stack(lag_products(x, dense, LAGS)), torch.stack(lag_products(x, same, LAGS))
    )
    assert_identity(dense.autocovariance(), same.autocovariance())
    uneven = GaussianProcess(dense.gram() + torch.arange(64.0).double().diag(), SPATIAL)
    with pytest.raises(ValueError, match=r"autocovariance .* stationary .* differ by up to 63"):
        spectral_ratios(x, uneven)


@pytest.mark.parametrize("lags", [(-1,), (1024,), (1.5,)])
def test_lags_out_of_range_are_refused(lags):
    with pytest.raises(ValueError, match=r"lags must be integers in 0\.\.1023, got"):
        lag_products(draws(1), LAW, lags)


def test_nothing_to_measure_is_refused():
    for measure in (lambda x: lag_products(x, LAW, LAGS), lambda x: spectral_ratios(x, LAW)):
        with pytest.raises(ValueError, match="number of sequences in x must be"):
            measure(draws(1)[:0])
    with pytest.raises(ValueError, match="number of lags must be"):
        lag_products(draws(1), LAW, ())
    flat = GaussianProcess(PowerExponential(5.0), torch.ones(2, 2), seq_len=1024)
    with pytest.raises(NotPSDError, match="cannot be whitened"):
        lag_products(draws(1), flat, LAGS)


def test_more_bands_than_frequencies_are_refused():
    with pytest.raises(ValueError, match="fewer than 512 frequencies, got bands=512"):
        spectral_ratios(draws(1), LAW, 512)
