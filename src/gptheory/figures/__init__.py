"""One figure style, animations, and pictures of constructed networks."""

from .networks import draw_block, draw_network
from .player import animation
from .style import BOUND, CYCLE, LEARNED, NULL, TRUTH, heatmap, paths, picture, use_style
