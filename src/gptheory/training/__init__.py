"""Denoising score matching: the loss, the loop, checkpoints, many networks at once."""

from .config import TrainConfig
from .ensemble import fit_ensemble
from .objective import matching_loss
from .resume import fit
