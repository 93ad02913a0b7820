"""Attention and its positions; polynomials for its exponential, in almost-linear time."""

from .exponential import degree_for, exp_polynomial, rank_exponent
from .gradient import attention_gradient, exact_attention_gradient
from .locality import (
    bounded_share,
    cancelling_gain,
    largest_share,
    low_rank_share,
    radius_for_share,
)
from .polynomial import logit_bound, monomials, poly_attention
from .positions import embedding_distance, time_embedding
from .softmax import softmax_attention, uniform_inputs
