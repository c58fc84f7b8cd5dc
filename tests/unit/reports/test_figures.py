from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from synthetic import Scenario, synthetic_manifest, write_synthetic_run

from halocast.errors import MisuseError
from halocast.reports import figures
from halocast.reports.ranks import rank_times
from halocast.traces.epochs import median_epoch, steady_epochs
from halocast.traces.operations import Aggregate, AllReduce, Exchange, Keep, Loss
from halocast.traces.trace import TraceWriter, read_trace, write_manifest
from halocast.words import duration


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_synthetic_run(folder, Scenario(world_size=2, epochs=4, bytes_per_second=2e8))
    return read_trace(folder)


@pytest.fixture
def metrics():
    epochs = np.arange(20)
    evaluated = epochs % 5 == 4
    return pd.DataFrame(
        {
            "epoch": epochs,
            "loss": 3.0 / (1 + epochs),
            "epoch_seconds": 0.1 + 0.001 * epochs,
            "train": np.where(evaluated, 0.5 + epochs / 50, np.nan),
            "val": np.where(evaluated, [0.6 if epoch == 14 else 0.5 for epoch in epochs], np.nan),
            "test": np.where(evaluated, 0.4 + epochs / 100, np.nan),
        }
    )


def epoch_axes(trace, epoch=None):
    """The lanes of one epoch, with their legend."""
    view = figures.view_epoch(trace, epoch)
    axes = figures.new_figure(3.0).add_subplot()
    figures.draw_lanes(axes, view, view.milliseconds)
    figures.draw_legend(axes, view.slices["op"].unique().tolist())
    return axes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def rectangles(axes):
    """(colour, left, top, right, bottom) of every span drawn."""
    found = []
    for collection in axes.collections:
        assert isinstance(collection, PolyCollection)
        for path in collection.get_paths():
            box = path.get_extents()
            found.append((tuple(collection.get_facecolor()[0]), box.x0, box.y0, box.x1, box.y1))
    return sorted(found)


def test_every_span_is_drawn_where_it_ran(trace):
    epoch = 2
    axes = epoch_axes(trace, epoch)
    offsets = [clock.offset_ns for clock in trace.manifest.clock_offsets]
    spans = trace.spans[trace.spans["epoch"] == epoch].to_dict("records")
    origin = min(span["start_ns"] - offsets[span["rank"]] for span in spans)
    expected = []
    for span in spans:
        left = (span["start_ns"] - offsets[span["rank"]] - origin) / 1e6
        top = span["rank"] + (0.55 if span["stream"] == "communication" else 0.0)
        height = 0.26 if span["stream"] == "communication" else 0.52
        colour = to_rgba(figures.OPERATION_COLOURS[span["op"]])
        expected.append((colour, left, top, left + span["wall_ns"] / 1e6, top + height))
    drawn = rectangles(axes)
    assert len(drawn) == len(expected)
    for found, wanted in zip(drawn, sorted(expected), strict=True):
        assert found[0] == wanted[0]
        assert found[1:] == pytest.approx(wanted[1:], abs=1e-9)


def test_waiting_is_hatched_and_nothing_else_is(trace):
    axes = epoch_axes(trace)
    hatched = {tuple(c.get_facecolor()[0]) for c in axes.collections if c.get_hatch()}
    assert hatched == {to_rgba(figures.IDLE)}


def test_legend_and_axes(trace):
    axes = epoch_axes(trace, 1)
    assert axes.get_xlabel() == "ms"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # rank 0 on top
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("Aggregate", "Transform", "Quantize", "Dequantize", "Loss, Step", "Wait", "Exchange", "AllReduce"),
    ]


def test_the_share_of_waiting(trace):
    view = figures.view_epoch(trace, 0)
    spans = trace.spans[(trace.spans["epoch"] == 0) & (trace.spans["op"] == "Wait")]
    assert view.waiting == pytest.approx(spans["wall_ns"].sum() / 1e6 / (2 * view.milliseconds), rel=1e-12)
    assert 0.05 < view.waiting < 0.9


def write_epochs(folder, milliseconds, *, ranks=1, killed_rank=None):
    """Epochs of one span a rank with the given durations; `killed_rank` misses the last one's second span."""
    write_manifest(folder, synthetic_manifest(Scenario(world_size=ranks, clock_offsets_ns=(0,) * ranks)))
    for rank in range(ranks):
        with TraceWriter(folder, rank) as writer:
            start = 0
            for epoch, duration in enumerate(milliseconds):
                writer.span("train", epoch, 0, Aggregate(0), "compute", start, duration * 10**6, 0, 0)
                start += duration * 10**6
                if not (rank == killed_rank and epoch == len(milliseconds) - 1):
                    writer.span("train", epoch, 1, Loss(0), "compute", start, 1000, 0, 0)
                start += 1000
    return read_trace(folder)


@pytest.mark.parametrize(
    ("milliseconds", "median"),
    [([90, 10, 30, 20, 25], 4), ([90, 10, 30, 20], 3), ([5], 0), ([7, 9], 0), ([7, 7, 7, 7, 7], 3), ([20, 90, 10, 30, 40], 3)],
)
def test_the_median_epoch(tmp_path, milliseconds, median):
    trace = write_epochs(tmp_path, milliseconds)
    assert median_epoch(trace) == median
    assert (figures.view_epoch(trace).epoch, figures.view_epoch(trace).is_median) == (median, True)


def test_the_tables_count_the_epochs_that_the_median_is_of(tmp_path):
    trace = write_epochs(tmp_path, [40, 40, 10, 20, 30])
    assert steady_epochs(trace) == rank_times(trace).epochs == (2, 3, 4)
    assert median_epoch(trace) == 3  # of all five it would be epoch 4


def test_without_a_whole_epoch_none_stands_for_the_run(tmp_path):
    trace = write_epochs(tmp_path, [10], ranks=2)
    alone = replace(trace, spans=trace.spans[trace.spans["rank"] == 0])
    with pytest.raises(MisuseError, match=r"no training epoch was finished by every rank.* \(0\) with --epoch"):
        median_epoch(alone)


def test_an_epoch_that_a_rank_did_not_finish_is_not_the_median(tmp_path):
    trace = write_epochs(tmp_path, [10, 30, 20], ranks=2, killed_rank=1)
    assert median_epoch(trace) == 0


def test_flights_at_once_share_the_communication_lane(tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario(world_size=1)))
    with TraceWriter(tmp_path, 0) as writer:
        writer.span("train", 0, 0, Exchange(0), "communication", 0, 4_000_000, 0, 0)
        writer.span("train", 0, 1, AllReduce(0), "communication", 1_000_000, 2_000_000, 0, 0)
        writer.span("train", 0, 2, Keep(name="buffer"), "compute", 1_000_000, 0, 0, 0)
    drawn = [box[1:] for box in rectangles(epoch_axes(read_trace(tmp_path)))]
    assert len(drawn) == 2
    np.testing.assert_allclose(sorted(drawn), [(0, 0.55, 4, 0.68), (1, 0.68, 3, 0.81)], atol=1e-12)


def test_many_ranks_are_not_all_named(tmp_path):
    trace = write_epochs(tmp_path, [3, 4, 5], ranks=40)
    axes = epoch_axes(trace)
    axes.figure.draw_without_rendering()
    assert len(axes.get_yticklabels()) <= 18
    assert len(rectangles(axes)) == 80


def test_no_such_epoch_and_no_epoch_at_all(trace, tmp_path):
    with pytest.raises(MisuseError, match="no epoch 9 in this trace; it has 0 to 3"):
        figures.view_epoch(trace, 9)
    write_manifest(tmp_path, synthetic_manifest(Scenario()))
    with pytest.raises(MisuseError, match="no spans of a training epoch"):
        figures.view_epoch(read_trace(tmp_path))


def test_unknown_operations_are_drawn_and_named(trace):
    renamed = trace.spans.assign(op=trace.spans["op"].replace({"Aggregate": "Teleport"}))
    figure = epoch_axes(type(trace)(trace.folder, trace.manifest, renamed, trace.messages)).figure
    assert "Teleport" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_are_the_metrics(metrics):
    loss_axes, metric_axes = figures.learning_curves(metrics, metric="micro-F1").axes
    np.testing.assert_array_equal(loss_axes.lines[0].get_xydata(), metrics[["epoch", "loss"]].to_numpy())
    drawn = {line.get_label(): line.get_xydata() for line in metric_axes.lines}
    for column, name in (("train", "training"), ("val", "validation"), ("test", "test")):
        np.testing.assert_array_equal(drawn[name], metrics[["epoch", column]].dropna().to_numpy())
        assert name in texts(metric_axes)
    assert "Micro-F1" in texts(metric_axes)
    assert "test 0.540 where validation is best, epoch 14" in texts(metric_axes)


def test_curves_without_evaluation_and_with_one_epoch(metrics):
    never = metrics.assign(train=np.nan, val=np.nan, test=np.nan)
    assert "not evaluated" in texts(figures.learning_curves(never).axes[1])
    figure = figures.learning_curves(metrics.iloc[4:5])
    figure.draw_without_rendering()
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim() == (3.75, 4.25)
    empty = figures.learning_curves(metrics.iloc[:0])
    empty.draw_without_rendering()


def test_names_at_the_ends_do_not_touch(metrics):
    close = metrics.assign(train=0.5, val=0.5, test=0.5)
    axes = figures.learning_curves(close).axes[1]
    heights = sorted(text.xy[1] for text in axes.texts if text.get_text() in ("training", "validation", "test"))
    low, high = axes.get_ylim()
    assert np.diff(heights).min() > 0.06 * (high - low)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.5, "0.500 ms"), (1.234, "1.23 ms"), (151.4, "151 ms"), (999.4, "999 ms"), (999.6, "1.00 s"), (1e6, "1000 s")],
)
def test_durations_in_three_digits(milliseconds, text):
    assert duration(milliseconds) == text
