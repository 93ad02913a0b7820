"""The forward process, exact scores, denoisers, unrolled scores, sampling."""

from .denoiser import denoise, denoiser_jacobian, denoising_operator, exact_jacobian
from .exact import ExactScore, WienerScore
from .methods import METHODS
from .sampler import SOLVERS, restart, sample, step_grid, trajectory
from .schedule import alpha, perturb, sigma, stratified_steps
from .stopping import Budget, budget, horizon_tv, stopping_tv
from .unrolled import UnrolledScore
