"""The forward process, exact scores, denoisers, unrolled scores, sampling."""

from .conventions import PREDICTIONS, TrainingSchedule, from_epsilon, to_epsilon
from .denoiser import denoise, denoiser_jacobian, denoising_operator, exact_jacobian
from .exact import ExactScore, WienerScore
from .grids import SPACINGS, step_grid, stop_for
from .imputer import ConditionalScore, impute
from .methods import METHODS
from .nested import NestedScore
from .one_loop import OneLoopScore
from .sampler import restart, sample
from .schedule import alpha, perturb, sigma, stratified_steps
from .solvers import SOLVERS, mode_variances, trajectory
from .stopping import Budget, budget, horizon_tv, stopping_tv
from .unrolled import UnrolledScore
