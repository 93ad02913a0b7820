"""The loss of denoising score matching: names and ranges (its values are in test_train)."""

from __future__ import annotations

import math

import pytest
import torch

from gptheory.training import matching_loss
from gptheory.training.objective import matching_steps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matching_steps(3, "logSNR", 0.01, 8.0), "law must be one of .* got 'logSNR'"),
        (lambda: matching_steps(3, "uniform", 8.0, 0.005), "expected t_min < t_max, got t_min=8.0"),
        (lambda: matching_steps(3, "normal", 0.0, 8.0), "t_min must be a finite number > 0"),
        (lambda: matching_steps(3, "normal", 0.1, math.inf), "t_max must be a finite number > 0"),
        (lambda: matching_steps(0, "uniform", 0.01, 8.0), "n must be an integer >= 1"),
        (
            lambda: matching_loss(lambda v, t: v, torch.ones(2, 3, 1), 0.1, weight="Velocity"),
            "weight must be one of .* got 'Velocity'",
        ),
    ],
)
def test_unknown_names_do_not_mean_something_else(call, message):
    with pytest.raises(ValueError, match=message):
        call()
