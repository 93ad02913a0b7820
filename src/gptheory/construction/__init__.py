"""Theorem 1 as weights: a transformer that is built, not trained."""

from .build import build_score_transformer
from .lag_heads import cosines, lag_function
