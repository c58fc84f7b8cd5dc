import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from halocast.reports.widths import WIDTH_COLOURS, colour_of, draw_renewals, draw_widths, mean_bits, together
from halocast.traces.operations import Direction
from halocast.traces.plan import PlannedExchange


def exchange(layer, direction, histogram):
    return PlannedExchange(layer=layer, direction=direction, effect=1.0, variance=0.1, bytes=1, histogram=histogram)


EXCHANGES = (
    exchange(0, Direction.FORWARD, {8: 25, 2: 75}),
    exchange(1, Direction.FORWARD, {}),
    exchange(1, Direction.BACKWARD, {4: 1200}),
)


def bars(axes):
    """(row or left edge, colour, left, bottom, width, height) of every bar."""
    return [(p.get_facecolor(), p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches]


def test_shares_of_each_exchange():
    axes = Figure().add_subplot()
    draw_widths(axes, EXCHANGES)
    drawn = [(colour, x, round(y + height / 2), width) for colour, x, y, width, height in bars(axes)]
    assert drawn == [
        (to_rgba(WIDTH_COLOURS[2]), 0.0, 0, 0.75),
        (to_rgba(WIDTH_COLOURS[8]), 0.75, 0, 0.25),
        (to_rgba(WIDTH_COLOURS[4]), 0.0, 2, 1.0),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("layer 0 forward\n100 messages", "layer 1 forward\n0 messages", "layer 1 backward\n1,200 messages"),
    ]
    assert "3.96 bits in the mean" in [text.get_text() for text in axes.texts]
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["2 bits", "4", "8"]


def test_renewals_last_until_the_next_one():
    axes = Figure().add_subplot()
    draw_renewals(axes, [(0, {8: 10}), (4, {2: 5, 8: 5}), (6, {1: 10})], epochs=20)
    assert [box[1:] for box in bars(axes)] == [(0, 0, 4, 1), (4, 0, 2, 0.5), (4, 0.5, 2, 0.5), (6, 0, 14, 1)]
    assert "2 times; 8.00 bits a message at first, 1.00 at the end" in [text.get_text() for text in axes.texts]


def test_a_renewal_after_the_last_epoch_is_seen():
    axes = Figure().add_subplot()
    draw_renewals(axes, [(0, {8: 10}), (20, {4: 10})], epochs=20)
    assert [box[1:] for box in bars(axes)] == [(0, 0, 20, 1), (20, 0, 1, 1)]


def test_histograms_together_and_their_mean():
    assert together(EXCHANGES) == {2: 75, 4: 1200, 8: 25}
    assert list(together(EXCHANGES)) == [2, 4, 8]
    assert mean_bits({2: 3, 8: 1}) == 3.5
    assert mean_bits({}) == 0.0


@pytest.mark.parametrize(("bits", "alike"), [(1, 1), (7, 8), (12, 16), (64, 32)])
def test_every_width_has_a_colour(bits, alike):
    assert colour_of(bits) == WIDTH_COLOURS[alike]
