import re

import pytest
from pages import Page
from synthetic import Scenario, write_synthetic_run

from halocast.reports.document import Basis
from halocast.reports.figures import OPERATION_COLOURS, view_epoch
from halocast.reports.gantt import LABEL_WIDTH, LEFT, RIGHT, WIDTH, gantt, spans_table, ticks
from halocast.traces.trace import read_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_synthetic_run(folder, Scenario(world_size=3, epochs=3, bytes_per_second=2e8))
    return read_trace(folder)


class Drawing(Page):
    """The bars and labels of the chart."""

    def __init__(self, document):
        super().__init__(document)
        rects = [attributes for tag, attributes in self.elements if tag == "rect"]
        self.bars = [each for each in rects if "style" in each and each["height"] != "11" and each["width"] != "5"]
        self.labels = [attributes for tag, attributes in self.elements if tag == "text" and "data-span" in attributes]


def test_every_span_is_drawn_where_it_ran(trace):
    view = view_epoch(trace, 1)
    picture = gantt(view, Basis.MEASURED)
    drawing = Drawing(str(picture.figure))
    offsets = [clock.offset_ns for clock in trace.manifest.clock_offsets]
    spans = trace.spans[trace.spans["epoch"] == 1].to_dict("records")
    origin = min(span["start_ns"] - offsets[span["rank"]] for span in spans)
    scale = (WIDTH - LEFT - RIGHT) / view.milliseconds
    expected = sorted(
        (LEFT + scale * (span["start_ns"] - offsets[span["rank"]] - origin) / 1e6, scale * span["wall_ns"] / 1e6)
        for span in spans
    )
    drawn = sorted((float(bar["x"]), float(bar["width"])) for bar in drawing.bars)
    assert len(drawn) == len(expected)
    for found, wanted in zip(drawn, expected, strict=True):
        assert found == pytest.approx(wanted, abs=0.011)
    data = picture.script_data
    assert [LEFT + scale * each for each in data["start"]] == pytest.approx(
        [float(bar["x"]) for bar in drawing.bars], abs=0.011
    )
    assert len(data["texts"]) == len(spans)


def test_waiting_is_hatched_and_colours_are_the_operations(trace):
    view = view_epoch(trace, 1)
    drawing = Drawing(str(gantt(view, Basis.MEASURED, "other").figure))
    hatched = [bar for bar in drawing.bars if bar["style"] == "fill: url(#other-hatch)"]
    assert len(hatched) == (view.slices["op"] == "Wait").sum()
    assert (
        sum(bar["style"] == f"fill: {OPERATION_COLOURS['Transform']}" for bar in drawing.bars)
        == (view.slices["op"] == "Transform").sum()
    )


def test_spans_with_room_show_their_layer(trace):
    view = view_epoch(trace, 1)
    drawing = Drawing(str(gantt(view, Basis.MEASURED).figure))
    shown = [label for label in drawing.labels if "visibility" not in label]
    assert 0 < len(shown) < len(drawing.labels)
    for label in drawing.labels:
        wide = float(drawing.bars[int(label["data-span"])]["width"]) >= LABEL_WIDTH
        assert ("visibility" not in label) == wide


def test_what_spans_say(trace):
    view = view_epoch(trace, 1)
    texts = gantt(view, Basis.MEASURED).script_data["texts"]
    (first,) = [
        text for text in texts if text.startswith("rank 2: Wait") and "layer 1 backward" in text and "of rank 0" in text
    ]
    wait = trace.spans[(trace.spans["rank"] == 2) & (trace.spans["epoch"] == 1) & (trace.spans["op"] == "Wait")]
    wait = wait[(wait["layer"] == 1) & (wait["direction"] == "backward") & (wait["peer"] == 0)].iloc[0]
    assert re.search(r"^(\S+) ms, from", first, flags=re.MULTILINE)[1] == f"{wait['wall_ns'] / 1e6:#.3g}".rstrip(".")
    flights = [text for text in texts if "Exchange in flight" in text]
    assert len(flights) == 3 * 5
    assert all("8.19 MB out, 8.19 MB in" in text for text in flights)


def test_the_table_is_the_epoch(trace):
    table = spans_table(view_epoch(trace, 1), Basis.MEASURED, "run/trace")
    spans = trace.spans[trace.spans["epoch"] == 1]
    assert len(table.rows) == len(spans)
    names = [column.identifier for column in table.columns]
    assert sum(row[names.index("wall_seconds")] for row in table.rows) == pytest.approx(spans["wall_ns"].sum() / 1e9)
    assert sum(row[names.index("bytes_out")] for row in table.rows) == spans["bytes_out"].sum()
    assert {row[names.index("peer")] for row in table.rows} == {None, 0, 1, 2}
    assert table.folded


@pytest.mark.parametrize(
    ("extent", "expected"),
    [(0.0, [0]), (12, list(range(13))), (100, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]), (234.9, list(range(0, 221, 20)))],
)
def test_ticks_are_round(extent, expected):
    assert ticks(extent) == pytest.approx(expected)


def test_ticks_are_few_whatever_the_extent():
    for extent in (0.0123, 0.5, 3.7, 41, 999, 123_456.7):
        found = ticks(extent)
        assert 4 <= len(found) <= 13
        assert found[-1] <= extent
