"""Networks that are trained: the diffusion transformer, its baselines, learned iterations."""

from .baselines import UNet1d
from .conditional import ConditionalDiT
from .dit import DiT
from .learned import LearnedSteps
from .polynomial import with_polynomial_attention
