import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import Scenario, synthetic_manifest, write_synthetic_run

from halocast.reports import comparison
from halocast.reports.comparison import Curve, Timeline, draw_curves_legend, draw_timelines, seconds_done, timelines_height
from halocast.reports.figures import BLUE, MUTED, view_epoch
from halocast.traces.operations import Aggregate, Loss
from halocast.traces.trace import TraceWriter, read_trace, write_manifest


def write_epochs(folder, starts_ms, *, ranks=1):
    """A 10 ms epoch a start."""
    write_manifest(folder, synthetic_manifest(Scenario(world_size=ranks, clock_offsets_ns=(0,) * ranks)))
    for rank in range(ranks):
        with TraceWriter(folder, rank) as writer:
            for epoch, start in enumerate(starts_ms):
                writer.span("train", epoch, 0, Aggregate(0), "compute", start * 10**6, 9 * 10**6, 0, 0)
                writer.span("train", epoch, 1, Loss(0), "compute", (start + 9) * 10**6, 10**6, 0, 0)
    return read_trace(folder)


def make_metrics(epochs, seconds=0.01):
    return pd.DataFrame(
        {
            "epoch": range(epochs),
            "loss": np.linspace(2, 1, epochs),
            "epoch_seconds": seconds,
            "val": np.linspace(0.5, 0.7, epochs),
        }
    )


def make_curves(**changes):
    plain = Curve("plain", MUTED, make_metrics(3), np.array([1.0, 2.0, 3.0]))
    plan = {"name": "plan", "colour": BLUE, "metrics": make_metrics(3), "seconds": np.array([2.1, 2.2, 2.3]), "head_start": 2.0}
    return [plain, Curve(**{**plan, **changes})]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_time_between_epochs_counts(tmp_path):
    trace = write_epochs(tmp_path, [1000, 1010, 1500])
    np.testing.assert_allclose(seconds_done(trace, make_metrics(3)), [0.01, 0.02, 0.51])


@pytest.mark.parametrize("starts", [[1000, 1010], [1000, 1010, 5]])
def test_without_a_whole_trace_epoch_times_are_added_up(tmp_path, starts):
    trace = write_epochs(tmp_path, starts)
    np.testing.assert_allclose(seconds_done(trace, make_metrics(3, 0.25)), [0.25, 0.5, 0.75])


def test_curves_by_the_clock_start_after_the_head_start():
    axes = Figure().add_subplot()
    comparison.draw_loss_by_clock(axes, make_curves())
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"plain": [[1, 2], [2, 1.5], [3, 1]], "plan": [[2.1, 2], [2.2, 1.5], [2.3, 1]]}
    (shaded,) = axes.patches
    assert (shaded.get_x(), shaded.get_width()) == (0.0, 2.0)
    assert axes.get_xlim()[0] == 0.0
    assert "done: plain 3.00 s, plan 2.30 s" in texts(axes)


def test_curves_by_epoch_have_no_head_start():
    axes = Figure().add_subplot()
    comparison.draw_loss_by_epoch(axes, make_curves())
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 1, 2]] * 2
    assert len(axes.patches) == 0
    assert axes.lines[0].get_linewidth() > axes.lines[1].get_linewidth()  # equal curves are both seen
    assert "plain 1, plan 1 at the end" in texts(axes)


def test_the_metric_only_where_it_was_evaluated():
    axes = Figure().add_subplot()
    partly = make_metrics(3).assign(val=[np.nan, 0.9, 0.8])
    comparison.draw_metric_by_clock(axes, make_curves(metrics=partly), "micro-F1")
    assert axes.lines[1].get_xydata().tolist() == [[2.2, 0.9], [2.3, 0.8]]
    assert "best: plain 0.7000 after 3.00 s, plan 0.9000 after 2.20 s" in texts(axes)
    assert "Micro-F1 on validation by the clock" in texts(axes)


def test_no_evaluation_at_all():
    never = make_metrics(3).assign(val=np.nan)
    figure = Figure()
    axes = figure.add_subplot()
    comparison.draw_metric_by_epoch(axes, [Curve("plain", MUTED, never, np.arange(3.0))], "accuracy")
    figure.draw_without_rendering()
    assert "not evaluated" in texts(axes)


@pytest.mark.parametrize(
    ("head_start", "names"), [(2.0, ["plain", "plan", "before the plan's first epoch"]), (0.0, ["plain", "plan"])]
)
def test_the_legend_of_the_curves(head_start, names):
    figure = Figure(layout="constrained")
    draw_curves_legend(figure, make_curves(head_start=head_start))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_the_forecast_is_marked_in_its_timeline(tmp_path):
    write_synthetic_run(tmp_path, Scenario(epochs=1))
    view = view_epoch(read_trace(tmp_path))
    late = 2 * view.milliseconds
    shown = [Timeline("one", "first", view), Timeline("two", "second", view, (10.0, 20.0, late))]
    figure = Figure(layout="constrained")
    draw_timelines(figure, shown)
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim() == (0.0, 1.01 * late)
    assert (second.patches[0].get_x(), second.patches[0].get_width()) == (10.0, late - 10.0)
    assert [20.0, 20.0] in [list(line.get_xdata()) for line in second.lines]
    assert len(first.patches) == 0
    assert {"one", "first"} <= set(texts(first))


def test_many_ranks_stay_on_a_page(tmp_path):
    view = view_epoch(write_epochs(tmp_path, [0], ranks=40))
    shown = [Timeline("one", "", view)] * 3
    assert timelines_height(shown) < 11
    figure = Figure(figsize=(10, timelines_height(shown)), layout="constrained")
    draw_timelines(figure, shown)
    figure.draw_without_rendering()
    assert len(figure.axes[0].get_yticklabels()) <= 12
