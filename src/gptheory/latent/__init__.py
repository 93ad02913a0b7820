"""Data on a linear subspace: the law, networks with an encoder, errors on it and off it."""

from .errors import error_scale, orthogonal_energy, support_errors
from .networks import LatentScore, aligned_score
from .rates import expected_pca_error, log_rate
from .recovery import encoder_error, orthogonal_variance, recovery_bound
from .subspace import (
    SubspaceData,
    principal_angles,
    principal_subspace,
    random_basis,
    subspace_error,
)
