"""The animation player: plain HTML that says what it shows, and starts at rest."""

import json

import matplotlib.pyplot as plt
import pytest
import torch

from gptheory.figures import player as figures_player
from gptheory.figures import style as figures_style


def player(loop=False, captions=("one", "two <b>", "three"), label='a "label"'):
    figure, ax = plt.subplots(figsize=(1, 1))
    (line,) = ax.plot([0, 1], [0, 0])
    return figures_player.animation(figure, lambda k: line.set_ydata([0, k]), captions, label, loop)


def test_player_has_every_frame_words_for_it_and_no_network():
    page = player()
    # the last frame is there twice: it is shown before anything is played
    assert page.count("data:image/png;base64,") == 4
    assert 'alt="a &quot;label&quot;"' in page and r"two \u003cb>" in page
    assert 'max="2" value="2"' in page and "http" not in page
    assert page == player()  # the same bytes every time


def test_player_starts_at_rest_and_loops_only_if_asked():
    once, forever = player(), player(loop=True)
    assert "if (k > 2) { stop(); }" in once and "if (k > 2) { show(0); }" in forever
    for page in (once, forever):
        before_click = page.split('addEventListener("click"')[0]
        assert "setInterval" not in before_click and "autoplay" not in page


def test_captions_reach_the_screen_as_they_are():
    """In the script they are strings, set as text; in the page's markup they are escaped."""
    captions = ['t < 1 & "x"', r"C:\new </script>", "σ² − 1"]
    page = figures_player.animation(plt.figure(), lambda k: None, captions, "words")
    literal = next(x for x in page.splitlines() if x.startswith("  const captions = "))
    assert json.loads(literal.removeprefix("  const captions = ").removesuffix(";")) == captions
    assert page.count("</script>") == 1 and ">σ² − 1</output>" in page
    page = figures_player.animation(plt.figure(), lambda k: None, captions[:1], "words")
    assert ">t &lt; 1 &amp; &quot;x&quot;</output>" in page


def test_player_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(figures_player, "ANIMATION_LIMIT", 1000)
    with pytest.raises(ValueError, match="at most 1000 are allowed"):
        player()


def test_picture_has_fixed_greys():
    ax = plt.subplots()[1]
    shown = figures_style.picture(ax, torch.full((3, 4), 0.5), "a frame")
    assert shown.get_clim() == (0, 1) and shown.get_array().shape == (3, 4)
    assert ax.get_title() == "a frame" and not len(ax.get_xticks())
