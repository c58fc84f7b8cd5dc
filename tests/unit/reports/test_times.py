"""Axes of times and amounts, and names beside points."""

import numpy as np
import pytest

from halocast.reports.figures import new_figure
from halocast.reports.labels import Name, name_points
from halocast.reports.times import round_time, show_counts, show_times, spread, thinned


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.002, "2 ms"),
        (0.5, "500 ms"),
        (1.0, "1 s"),
        (90.0, "1.5 min"),
        (7200.0, "2 h"),
        (86400.0, "24 h"),
        (172800.0, "2 days"),
    ],
)
def test_round_times(seconds, words):
    assert round_time(seconds) == words


def axes_of(low, high, scale):
    axes = new_figure(3.0).add_subplot()
    axes.set_xscale(scale)
    axes.set_xlim(low, high)
    return axes


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize(("low", "high"), [(1e-3, 2e-2), (1.0, 1.5), (50.0, 70.0), (3000.0, 40000.0), (1e4, 3e6), (9e5, 1.1e6)])
def test_times_have_a_few_ticks_within_the_axis(low, high, scale):
    axes = axes_of(low, high, scale)
    show_times(axes.xaxis)
    ticks = axes.xaxis.get_majorticklocs()
    assert 2 <= len(ticks) <= 9
    assert low <= min(ticks) < max(ticks) <= high
    labels = [axes.xaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(set(labels)) == len(labels)
    sizes = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
    told = [float(number) * sizes[unit] for number, unit in (label.split() for label in labels)]
    np.testing.assert_allclose(told, ticks, err_msg="labels are round numbers")


def test_counts_on_a_logarithm_are_ones_twos_and_fives():
    axes = axes_of(0.9, 130.0, "log")
    show_counts(axes.xaxis)
    assert axes.xaxis.get_majorticklocs().tolist() == [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 2.0], "linear"), ([1.0, 100.0], "log"), ([0.0, 100.0], "linear"), ([1.0, np.nan, 50.0], "linear")],
)
def test_values_far_apart_are_spread(values, scale):
    axes = new_figure(3.0).add_subplot()
    spread(axes.yaxis, np.array(values))
    assert axes.get_yscale() == scale


def test_ticks_are_thinned_evenly():
    assert thinned(range(20), 5) == [0, 4, 8, 12, 16]
    assert thinned([1.0, 2.0]) == [1.0, 2.0]


def drawn(names, avoided=()):
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    count = name_points(figure, axes, names, avoided)
    figure.draw_without_rendering()
    return count, axes, [text.get_window_extent() for text in axes.texts]


def test_names_of_one_place_go_around_it():
    count, axes, boxes = drawn([Name(0.5, 0.5, f"name {number}") for number in range(4)])
    assert count == len(boxes) == 4
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_where_there_is_no_room_the_later_names_go_without():
    count, _, boxes = drawn([Name(0.5, 0.5, "x" * 60) for _ in range(40)])
    assert 1 <= count == len(boxes) < 40


def test_a_name_does_not_cover_a_point():
    free, axes, (first,) = drawn([Name(0.5, 0.5, "a name")])
    middle = axes.transData.inverted().transform([(first.x0 + first.x1) / 2, (first.y0 + first.y1) / 2])
    moved, _, (second,) = drawn([Name(0.5, 0.5, "a name")], [tuple(middle)])
    assert free == moved == 1
    assert not (second.x0 <= (first.x0 + first.x1) / 2 <= second.x1 and second.y0 <= (first.y0 + first.y1) / 2 <= second.y1)


def test_a_name_at_the_edge_stays_inside():
    _, axes, (box,) = drawn([Name(1.0, 1.0, "at the corner")])
    inside = axes.get_window_extent()
    assert box.x1 <= inside.x1
    assert box.y1 <= inside.y1
