"""What attention looks at in any transformer of this package, and what follows from it."""

from .edits import Edited, batch_mean, only, uniform, without
from .maps import lag_profile, mean_lag, off_diagonal_correlation
from .nulls import permuted_positions, untrained
from .recording import contributions, logit_ranges, logit_shares, query_key_products, record
