"""Pictures of constructed networks show what the weights say."""

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba

from gptheory.construction import build_score_transformer
from gptheory.construction.subspaces import Subspaces
from gptheory.data import GaussianProcess, kernels
from gptheory.figures import BOUND, LEARNED, networks


@pytest.fixture(scope="module")
def network():
    process = GaussianProcess(kernels.PowerExponential(2.0), torch.eye(2), seq_len=6)
    return build_score_transformer(process, 2, multiplication_depth=3)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def cells(figure, color, shift):
    """(block, row) of every half cell of one colour."""
    patches = [p for p in figure.axes[0].patches if p.get_facecolor() == to_rgba(color)]
    corners = [p.get_xy() for p in patches if p.get_height() == 1 and p.get_width() == 0.5]
    return {(int(x), int(y)) for x, y in corners if x % 1 == shift}


@pytest.mark.statement("FDGWC Fig. 2")
def test_network_picture_marks_exactly_what_blocks_read_and_write(network):
    figure = networks.draw_network(network)
    spaces = network.spaces
    for color, shift, sides in ((LEARNED, 0.0, _reading), (BOUND, 0.5, _writing)):
        expected = {
            (column, row)
            for column, block in enumerate(network.blocks)
            for row, name in enumerate(spaces.names)
            if any((side[..., spaces[name]] != 0).any() for side in sides(block))
        }
        assert cells(figure, color, shift) == expected
        assert expected


def _reading(block):
    attention = block.attention
    return attention.query, attention.key, attention.value, block.feed_forward.up


def _writing(block):
    return block.attention.output.transpose(1, 2), block.feed_forward.down.T


@pytest.mark.statement("FDGWC Fig. 3")
def test_block_picture_shows_the_weights_of_the_head(network):
    block = network.blocks[-1]
    figure = networks.draw_block(block, network.spaces, head=1)
    panels = {ax.get_title(): ax for sub in figure.subfigs for ax in sub.axes}
    shown = panels["value V"].collections[0].get_array()
    value = (block.attention.output[1] @ block.attention.value[1]).numpy()
    assert (shown.reshape(value.shape) == value).all()
    assert [x.get_text() for x in panels["value V"].get_xticklabels()] == ["product"]
    assert [y.get_text() for y in panels["value V"].get_yticklabels()] == ["score"]


def test_weight_of_another_width_is_refused():
    spaces = Subspaces({"frame": 2, "one": 1})
    with pytest.raises(ValueError, match="columns has width 3, but the matrix has 4 there"):
        networks.draw_weight(plt.subplots()[1], torch.zeros(3, 4), columns=spaces)
