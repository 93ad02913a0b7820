"""Draw the picture of the front page: noise becoming a sequence with memory.

One draw of white noise is carried by the exact probability flow (chapter 2) to a sequence of a
squared-exponential process. Each line is the whole sequence at one diffusion step, from noise at
the back to data in front. Nothing is smoothed and nothing is learned: the lines are what the
sampler of the package returns.

    python tools/cover.py            # rewrite book/_static/cover-light.png and cover-dark.png
    python tools/cover.py --check    # only tell, exit 1 when they would look different
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from normalise_notebooks import BOOK, look_alike
from PIL import Image

from gptheory.data import GaussianProcess, PowerExponential
from gptheory.diffusion import ExactScore, trajectory
from gptheory.figures import LEARNED, NULL, TRUTH, use_style

SEED, FRAMES, LENGTHSCALE, LINES = 4, 200, 15.0, 40
NOISE_STEP, LAST_STEP = 6.0, 0.002  # the lines divide this range evenly in log t
# Height of one standard deviation, in distances between lines: what is in front is nearer.
BACK, FRONT = 0.55, 2.6
# ground, ink of the sequence in front, colours from the back to the front
THEMES = {
    "light": ("#ffffff", TRUTH, ("#c9c9c9", NULL, LEARNED)),
    "dark": ("#14181e", "#ffffff", ("#3b424d", NULL, "#56b4e9")),
}


def states() -> tuple[list[float], np.ndarray]:
    """Diffusion steps and the sequence at each of them, (LINES, FRAMES)."""
    process = GaussianProcess(
        PowerExponential(LENGTHSCALE, exponent=2.0), torch.eye(1), seq_len=FRAMES
    )
    noise = torch.randn(
        1, FRAMES, 1, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64
    )
    grid = np.geomspace(NOISE_STEP, LAST_STEP, LINES - 1).tolist()
    path = [(grid[0], noise), *trajectory(ExactScore(process), noise, grid)]
    return [t for t, _ in path], np.stack([v[0, :, 0].numpy() for _, v in path])


def draw(theme: str) -> bytes:
    """The picture for one colour scheme, as a PNG."""
    ground, ink, colours = THEMES[theme]
    steps, lines = states()
    shade = LinearSegmentedColormap.from_list("depth", colours)
    figure, ax = plt.subplots(figsize=(7, 2.9), facecolor=ground)
    ax.set_facecolor(ground)
    frames = np.arange(1, FRAMES + 1)
    for k, line in enumerate(lines):
        depth, last = k / (len(lines) - 1), k == len(lines) - 1
        height = (BACK + (FRONT - BACK) * depth) * line - k
        ax.fill_between(frames, height, -len(lines) - 9, color=ground, lw=0, zorder=2 * k)
        width, colour = (2.2, ink) if last else (0.5 + 0.7 * depth, shade(depth))
        ax.plot(frames, height, lw=width, color=colour, zorder=2 * k + 1)
    words = {"fontsize": 9, "color": ink, "zorder": 1000}
    ax.text(1, 2.2, f"noise, t = {steps[0]:.0f}", **words)
    ax.text(1, -len(lines) - 6.5, "data, t = 0", **words)
    ax.text(FRAMES, -len(lines) - 6.5, f"frame i = {FRAMES}", ha="right", **words)
    ax.set(xlim=(1, FRAMES), ylim=(-len(lines) - 7, 4))
    ax.axis("off")
    return encode(figure)


def encode(figure: plt.Figure) -> bytes:
    """A small PNG of a figure: a palette of 48 colours is enough for lines of few colours."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=200, facecolor=figure.get_facecolor())
    plt.close(figure)
    Image.open(raw).convert("RGB").quantize(48).save(small, format="png", optimize=True)
    return small.getvalue()


def path(theme: str) -> Path:
    """Where a picture lies."""
    return BOOK / "_static" / f"cover-{theme}.png"


def stale(theme: str, picture: bytes) -> bool:
    """Whether the committed picture is missing or looks different."""
    if not path(theme).exists():
        return True
    pair = (picture, path(theme).read_bytes())
    return not look_alike(*(base64.b64encode(content).decode() for content in pair))


def main() -> int:
    """Draw the pictures that would look different, or only name them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if needed")
    arguments = parser.parse_args()
    matplotlib.use("agg")
    use_style()
    pictures = {theme: draw(theme) for theme in THEMES}
    changed = [theme for theme in THEMES if stale(theme, pictures[theme])]
    for theme in changed:
        print(f"{'stale' if arguments.check else 'drawn'}: {path(theme).name}")
        if not arguments.check:
            path(theme).write_bytes(pictures[theme])
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
