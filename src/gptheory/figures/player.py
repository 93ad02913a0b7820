"""Animations that need no network."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Callable, Sequence
from string import Template

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

ANIMATION_LIMIT = 400_000  # bytes of HTML


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
