"""How far samples, scores, Gaussians and motions are from the truth; what memory it costs."""

from .cost import MemoryMeter
from .covariances import (
    debiased_error,
    lag_correlations,
    relative_error,
    sampling_floor,
    spatial_covariance,
    temporal_covariance,
)
from .gaussians import gaussian_kl, gaussian_tv, gaussian_w2
from .imputation import ImputationError, crps, gaussian_crps, imputation_error, intervals
from .imputer import ImputerError, imputer_error
from .likelihood import TotalVariation, log_likelihood, total_variation
from .motion import measured_motion, motion_floor, true_motion
from .regions import Region, ball_region, ellipsoid_region
from .sampling import SamplingError, sampling_error
from .scores import coupled_ode_error, path_kl, score_error
from .spectrum import lag_products, spectral_ratios
