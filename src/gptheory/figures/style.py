"""One figure style, one colour for each role.

Imported by notebooks, never by the numerics.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Okabe and Ito's palette: told apart by readers with any kind of colour vision.
TRUTH, LEARNED, BOUND, NULL = "#1a1a1a", "#0072b2", "#d55e00", "#8a8a8a"
CYCLE = (LEARNED, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", BOUND)
WIDTH = 7.0  # inches: the text column of the book at 100 dpi


def use_style() -> None:
    """Set the book's figure style: call once, at the top of a notebook.

    Figures keep a white ground in dark mode, so that one committed picture serves both.
    """
    sns.set_theme(
        context="notebook",
        style="ticks",
        font="DejaVu Sans",
        rc={
            "figure.dpi": 100,
            "figure.figsize": (WIDTH, 3.0),
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=CYCLE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "font.size": 10,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.title_fontsize": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        },
    )


def heatmap(
    ax: Axes, matrix: Tensor | np.ndarray, title: str = "", limit: float | None = None
) -> QuadMesh:
    """Draw a matrix with square cells, row 1 on top, zero always the same neutral colour.

    Args:
        ax: where to draw.
        matrix: (rows, columns), indexed by frames or coordinates counted from 1.
        title: above the map.
        limit: colour scale, −limit to limit; by default the largest absolute entry. Give the same
            limit to maps that are compared.

    Returns:
        The drawn mesh, for ``figure.colorbar``.
    """
    values = np.asarray(matrix.detach().cpu() if isinstance(matrix, Tensor) else matrix)
    limit = float(np.abs(values).max()) if limit is None else limit
    rows, columns = values.shape
    edges = np.arange(columns + 1) + 0.5, np.arange(rows + 1) + 0.5
    mesh = ax.pcolormesh(*edges, values, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=True)
    ax.set(title=title, aspect="equal")
    ax.invert_yaxis()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    return mesh


def paths(ax: Axes, x: Tensor, coordinate: int = 0, **style: object) -> None:
    """Draw one coordinate of sequences (n, N, d) against the frame i = 1..N."""
    frames = np.arange(1, x.shape[1] + 1)
    ax.plot(frames, x[:, :, coordinate].T.detach().cpu().numpy(), **style)
    ax.set(xlabel="frame i", xlim=(1, x.shape[1]))


def picture(ax: Axes, frame: Tensor, title: str = "") -> AxesImage:
    """Draw a frame of brightnesses from 0 to 1, (rows, columns), in grey and without axes.

    Returns:
        The image; its ``set_data`` takes an array of the same shape.
    """
    ax.set(title=title, xticks=[], yticks=[])
    return ax.imshow(frame.detach().cpu().numpy(), cmap="gray", vmin=0, vmax=1)
