"""Laws of sequences, their covariances, moving pictures; laws estimated from samples."""

from .conditional import ConditionalProcess
from .covariance import conditioned, gram, random_covariance, taper, truncate
from .entries import ConditionalEntries
from .estimate import GaussianTwin, kronecker_mle, toeplitz_moments
from .kernels import Matern, Periodic, PowerExponential, WhiteNoise
from .masks import PATTERNS, STRATEGIES, Blocks, MaskMixture, pattern, random_gaps, strategy
from .mixture import GaussianMixture, random_mixture
from .process import GaussianProcess, decaying_process
from .stationary import ToeplitzSolver
from .video import Ball, LatentMap, uniform_correlation, uniform_paths
