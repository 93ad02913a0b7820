"""Theorem 1 as weights: a transformer that is built, not trained; and a theorem's look-up table."""

from .build import build_score_transformer
from .contextual import build_contextual_transformer
from .covering import covering_cost
from .imputation import build_imputation_transformer
from .lag_heads import cosines, lag_function
from .nested import build_nested_transformer
from .preconditioned import build_preconditioned_transformer
from .preconditioner import LagPreconditioner
