"""One figure style, one colour for each role, and an animation that needs no network.

Imported by notebooks, never by the numerics.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Callable, Sequence
from string import Template

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

# Okabe and Ito's palette: told apart by readers with any kind of colour vision.
TRUTH, LEARNED, BOUND, NULL = "#1a1a1a", "#0072b2", "#d55e00", "#8a8a8a"
CYCLE = (LEARNED, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", BOUND)
WIDTH = 7.0  # inches: the text column of the book at 100 dpi
ANIMATION_LIMIT = 400_000  # bytes of HTML


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


def animation(
    figure: Figure,
    draw: Callable[[int], None],
    captions: Sequence[str],
    label: str,
    loop: bool = False,
) -> str:
    """Frames behind a slider and a play button: plain HTML, no network, the same bytes every time.

    It starts at rest on the last frame, so that a printed page shows the result, and readers who
    asked for reduced motion see none unless they press play.

    Args:
        figure: redrawn for every frame, then closed.
        draw: called with the number of the frame, changes the figure.
        captions: one a frame, shown beside the slider.
        label: what the animation shows, for readers who do not see it.
        loop: once playing, start again after the last frame until paused.

    Returns:
        HTML for ``IPython.display.HTML``.

    Raises:
        ValueError: above 400 kB: use fewer frames or a smaller figure.
    """
    pictures = []
    for k in range(len(captions)):
        draw(k)
        pictures.append(_png(figure))
    plt.close(figure)
    name = "anim" + hashlib.sha256("".join([label, *captions]).encode()).hexdigest()[:8]
    page = _PLAYER.substitute(
        name=name,
        label=html.escape(label),
        last=len(captions) - 1,
        at_end="show(0)" if loop else "stop()",
        picture=pictures[-1],
        pictures=",\n".join(f'"{p}"' for p in pictures),
        caption=html.escape(captions[-1]),
        captions=",".join(_javascript(c) for c in captions),
    )
    if len(page) > ANIMATION_LIMIT:
        raise ValueError(
            f"the animation takes {len(page)} bytes, at most {ANIMATION_LIMIT} are allowed:"
            " use fewer frames or a smaller figure"
        )
    return page


def _javascript(text: str) -> str:
    """A string literal; no tag in it can end the script that it stands in."""
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c")


def _png(figure: Figure) -> str:
    """The figure as a data address; 20 colours are enough for lines and a quarter of the size."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=80)
    picture = Image.open(raw).convert("RGB")
    picture = picture.quantize(20, Image.Quantize.MAXCOVERAGE)  # median cut merges line colours
    picture.save(small, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


_PLAYER = Template("""\
<div id="$name" role="group" aria-label="$label" style="max-width:100%;text-align:center">
<img alt="$label" src="$picture" style="max-width:100%;background:#fff">
<div style="display:flex;gap:.7em;align-items:center;justify-content:center;flex-wrap:wrap">
<button type="button" aria-label="play or pause">&#9654; play</button>
<input type="range" min="0" max="$last" value="$last" aria-label="frame of the animation">
<output style="min-width:9em;text-align:left">$caption</output></div></div>
<script>
(function () {
  const root = document.getElementById("$name"), find = (tag) => root.querySelector(tag);
  const pictures = [$pictures];
  const captions = [$captions];
  let timer = null;
  function show(k) {
    find("input").value = k;
    find("img").src = pictures[k];
    find("output").textContent = captions[k];
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    find("button").textContent = "\u25b6 play";
  }
  function step() {
    const k = Number(find("input").value) + 1;
    if (k > $last) { $at_end; } else { show(k); }
  }
  find("input").addEventListener("input", function () { stop(); show(Number(this.value)); });
  find("button").addEventListener("click", function () {
    if (timer) { stop(); return; }
    if (Number(find("input").value) == $last) { show(0); }
    timer = setInterval(step, 160);
    find("button").textContent = "\u23f8 pause";
  });
})();
</script>""")
