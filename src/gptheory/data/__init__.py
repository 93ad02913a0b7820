"""Laws of sequences, their covariances, moving pictures; laws estimated from samples."""

from .covariance import conditioned, gram, random_covariance, taper, truncate
from .estimate import GaussianTwin, kronecker_mle, toeplitz_moments
from .kernels import Matern, Periodic, PowerExponential, WhiteNoise
from .masks import blocks, middle, spread, tail
from .mixture import GaussianMixture, random_mixture
from .process import GaussianProcess, decaying_process
from .stationary import ToeplitzSolver
from .video import Ball, LatentMap, uniform_correlation, uniform_paths
