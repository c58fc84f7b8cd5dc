import numpy as np
import pytest
from matplotlib.figure import Figure

from halocast.reports.pareto import Candidate, draw_candidates, on_a_logarithm, runner_up


def candidate(label, milliseconds, variance, *, front=False, chosen=False):
    seconds = milliseconds / 1e3
    return Candidate(label, seconds, 0.9 * seconds, 1.1 * seconds, variance, is_front=front, is_chosen=chosen)


def draw(candidates):
    axes = Figure().add_subplot()
    draw_candidates(axes, candidates)
    axes.figure.draw_without_rendering()
    return axes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def points(axes, label):
    (found,) = [each for each in axes.collections if each.get_label() == label]
    return found.get_offsets().tolist()


MANY = (
    candidate("chosen one", 200, 1e-2, front=True, chosen=True),
    candidate("second", 300, 1e-4, front=True),
    candidate("third", 350, 1e-3),
    candidate("exact", 420, 0.0, front=True),
)


def test_candidates_are_where_their_numbers_are():
    axes = draw(MANY)
    front = points(axes, "Pareto front")
    assert [x for x, _ in front] == pytest.approx([200, 300, 420])
    assert [y for _, y in front][:2] == [1e-2, 1e-4]
    assert points(axes, "other candidates") == [pytest.approx([350, 1e-3])]
    (step,) = axes.lines
    assert step.get_xdata().tolist() == pytest.approx([200, 300, 420])
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "epoch as forecast, ms; bars: 90 % interval"
    assert "4 candidates, 3 of them on the Pareto front" in texts(axes)


def test_intervals_are_drawn():
    axes = draw(MANY[:1])
    (low, high), *_ = [each.get_segments()[0][:, 0] for each in axes.collections if hasattr(each, "get_segments")]
    assert (low, high) == pytest.approx((180, 220))


def test_the_chosen_one_and_the_runner_up_are_named():
    axes = draw(MANY)
    assert {"chosen: chosen one", "runner-up: second"} <= set(texts(axes))
    assert not any("third" in text for text in texts(axes))
    assert runner_up(MANY) is MANY[1]
    assert runner_up(MANY[:1]) is None


def test_a_long_name_is_cut_short():
    (name,) = [text for text in texts(draw([candidate("x" * 80, 1, 1.0, chosen=True)])) if text.startswith("chosen")]
    assert len(name) < 60
    assert name.endswith("…")


def test_nothing_rounded_stands_below_all_others():
    heights, ground = on_a_logarithm([1e-2, 0.0, 3e-5])
    assert heights[0] == 1e-2
    assert heights[2] == 3e-5
    assert heights[1] == ground < 3e-5
    assert on_a_logarithm([0.5, 0.1]) == ([0.5, 0.1], None)
    labels = [label.get_text() for label in draw(MANY).get_yticklabels()]
    assert labels[0] == "0, exact"
    assert labels[-1] == "1e-2"


@pytest.mark.parametrize("variances", [[0.0, 0.0], [0.02, 0.03], [0.5]])
def test_variances_without_a_span_of_decades(variances):
    axes = draw([candidate(f"{index}", 100 + index, value) for index, value in enumerate(variances)])
    low, high = axes.get_ylim()
    ticks = np.array(axes.get_yticks())
    assert ((ticks >= low) & (ticks <= high)).all()
    assert len(ticks) == len(set(variances))


@pytest.mark.parametrize(("slowest", "scale"), [(250, "linear"), (2000, "log")])
def test_times_far_apart_are_on_a_logarithm(slowest, scale):
    assert draw([candidate("fast", 100, 0.1), candidate("slow", slowest, 0.2)]).get_xscale() == scale
