"""The experiments behind the committed results, and those results."""

from .decay import along, sensitivities
from .fig4a import excess
from .latent import LatentCell, cells_like, linear_rival
from .reproduce import full_size
from .results import load_result
from .run import stored_network
from .statistics import fitted_slope, growth_exponent, within_bands
from .sweeps import grid, sweep
from .video import stored_ball
