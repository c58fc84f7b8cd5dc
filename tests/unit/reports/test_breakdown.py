import pytest
from matplotlib.figure import Figure
from synthetic import Scenario, synthetic_manifest, write_synthetic_run

from halocast.reports.breakdown import PART_COLOURS, draw_breakdown, epoch_parts
from halocast.reports.figures import view_epoch
from halocast.traces.operations import Aggregate, AllReduce, Dequantize, Exchange, Loss, Quantize, Wait, Work
from halocast.traces.trace import TraceWriter, read_trace, write_manifest


def parts_of(folder, operations):
    """One rank that does (operation, ms) after each other."""
    write_manifest(folder, synthetic_manifest(Scenario(world_size=1)))
    with TraceWriter(folder, 0) as writer:
        start = 0
        for index, (operation, milliseconds) in enumerate(operations):
            wall = milliseconds * 10**6
            peer = getattr(operation, "peer", -1)
            writer.span("train", 0, index, operation, "compute", start, wall, 0, 0, peer=peer)
            start += wall
    return epoch_parts(view_epoch(read_trace(folder)))


@pytest.mark.parametrize(("bits", "quantised"), [(4, 10), (0, 10), (32, 0), (64, 0)])
def test_every_operation_counts_to_one_part(tmp_path, bits, quantised):
    work = Work(bits=bits)
    parts = parts_of(
        tmp_path,
        [
            (Aggregate(0), 20),
            (Quantize(0, work=work), 7),
            (Exchange(0), 1),
            (Wait(0, peer=1), 30),
            (Dequantize(0, work=work, peer=1), 3),
            (Loss(0), 2),
            (AllReduce(0), 4),
            (Wait(0), 50),
        ],
    )
    assert parts == pytest.approx(
        {"compute": 22, "quantise": quantised, "exchange exposed": 30, "all-reduce exposed": 50, "other": 15 - quantised}
    )
    assert list(parts) == list(PART_COLOURS)


def test_parts_are_means_over_ranks_and_add_up_to_the_epoch(tmp_path):
    write_synthetic_run(tmp_path, Scenario(world_size=4, epochs=1, bits=8))
    trace = read_trace(tmp_path)
    view = view_epoch(trace)
    parts = epoch_parts(view)
    assert sum(parts.values()) == pytest.approx(view.milliseconds, rel=1e-12)
    spans = trace.spans
    waits = spans[(spans["op"] == "Wait") & (spans["peer"] >= 0)]
    assert parts["exchange exposed"] == pytest.approx(waits["wall_ns"].sum() / 4e6, rel=1e-12)


def test_bars_are_stacked_in_order():
    axes = Figure().add_subplot()
    parts = dict(zip(PART_COLOURS, (50.0, 0.0, 30.0, 1.0, 19.0), strict=True))
    draw_breakdown(axes, [("plain", parts), ("plan", {**parts, "compute": 10.0})])
    bars = [(patch.get_x(), patch.get_width()) for patch in axes.patches]
    assert bars[0::2] == [(0, 50), (50, 0), (50, 30), (80, 1), (81, 19)]
    assert bars[1::2] == [(0, 10), (10, 0), (10, 30), (40, 1), (41, 19)]
    written = [text.get_text() for text in axes.texts]
    assert {"50.0", "30.0", "19.0", "100 ms", "60.0 ms"} <= set(written)
    assert "1.00" not in written  # too narrow for its number
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "plan"]
    assert axes.get_xlabel() == "ms of the epoch, mean over ranks"
