import gzip
import itertools
import json
import os
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hta.trace_analysis import TraceAnalysis
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Scenario, synthetic_manifest, write_synthetic_run
from tests.support.chrome_trace import import_chrome_trace
from tests.support.simulated import simulated

from halocast.errors import RunError
from halocast.reports.breakdown import epoch_parts
from halocast.reports.figures import view_epoch
from halocast.traces.epochs import one_epoch
from halocast.traces.export.perfetto import (
    _exact_microseconds,
    export_hta,
    export_perfetto,
    export_side_by_side,
    lay_out,
)
from halocast.traces.operations import Direction, Exchange, PeerMessage, Wait
from halocast.traces.trace import TraceWriter, read_trace, write_manifest

ORIGIN_NS = 5_000_000_000  # of the first span of a synthetic run, on rank 0's clock


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "trace"
    write_synthetic_run(folder, Scenario(world_size=3, layers=3, epochs=3, bytes_per_second=3e8))
    return read_trace(folder)


@pytest.fixture(scope="module")
def document(trace, tmp_path_factory):
    return json.loads(export_perfetto(trace, tmp_path_factory.mktemp("out") / "trace.json").read_text())


def imported_from(path):
    """What trace processor would make of the file."""
    raw = path.read_bytes()
    return import_chrome_trace((gzip.decompress(raw) if path.suffix == ".gz" else raw).decode())


def events(document, phase):
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def assert_no_overlap(document):
    threads = defaultdict(list)
    for slice_ in events(document, "X"):
        threads[slice_["pid"], slice_["tid"]].append((slice_["ts"], slice_["ts"] + slice_["dur"]))
    for intervals in threads.values():
        intervals.sort()
        for (_, end), (start, _) in itertools.pairwise(intervals):
            assert start >= end - 1e-6  # µs: the sum of two exact decimals


def test_a_slice_a_span_and_none_overlap(trace, document):
    assert len(events(document, "X")) == len(trace.spans)
    assert_no_overlap(document)


def test_slices_carry_the_aligned_times_and_the_work(trace, document):
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events(document, "M") if e["name"] == "thread_name"}
    slices = {
        (s["pid"], names[s["pid"], s["tid"]].partition(" ")[0], s["args"]["epoch"], s["args"]["index"]): s
        for s in events(document, "X")
    }
    offsets = [clock.offset_ns for clock in trace.manifest.clock_offsets]
    for span in trace.spans.to_dict("records"):
        slice_ = slices[span["rank"], span["stream"], span["epoch"], span["index"]]
        assert round(1000 * slice_["ts"]) == span["start_ns"] - offsets[span["rank"]] - ORIGIN_NS
        assert round(1000 * slice_["dur"]) == span["wall_ns"]
        for key in ("op", "phase", "detail", "layer", "direction", "peer", "rows", "bytes_out", "live_bytes"):
            unset = {"detail": "", "layer": -1, "peer": -1}.get(key, 0)
            assert slice_["args"].get(key, unset) == span[key]


def test_names_and_categories(document):
    kinds = {(s["args"]["op"], s["name"], s["cat"]) for s in events(document, "X")}
    assert {kind for kind in kinds if kind[0] in ("Exchange", "AllReduce", "Wait", "Aggregate")} == {
        ("Exchange", "Exchange", "cpu_op"),
        ("Exchange", "ncclDevKernel_SendRecv", "kernel"),
        ("AllReduce", "AllReduce", "cpu_op"),
        ("AllReduce", "ncclDevKernel_AllReduce_Sum", "kernel"),
        ("Wait", "Wait", "cpu_op"),
        ("Aggregate", "Aggregate central", "kernel"),
        ("Aggregate", "Aggregate marginal", "kernel"),
        ("Aggregate", "Aggregate halo", "kernel"),
        ("Aggregate", "Aggregate own", "kernel"),
    }
    assert ("Transform", "Transform whole central", "kernel") in kinds
    kernels = [s for s in events(document, "X") if s["cat"] == "kernel"]
    assert all(s["args"]["stream"] == s["tid"] for s in kernels)
    correlations = [s["args"]["correlation"] for s in kernels]
    assert len(set(correlations)) == len(correlations)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events(document, "M") if e["name"] == "thread_name"}
    assert names[0, 1] == "compute"
    assert names[0, 2] == "communication"
    ranks = {e["pid"]: e["args"]["name"] for e in events(document, "M") if e["name"] == "process_name"}
    assert ranks == {0: "rank 0", 1: "rank 1", 2: "rank 2"}


def test_an_arrow_a_message_from_exchange_to_wait(trace, document):
    imported = import_chrome_trace(json.dumps(document))
    assert imported.problems == []
    assert len(imported.slices) == len(trace.spans)
    assert len(imported.flows) == len(trace.messages)
    pairs = set()
    for sender, receiver in imported.flows:
        assert sender.name == "ncclDevKernel_SendRecv"
        assert receiver.args["op"] == "Wait"
        assert receiver.args["peer"] == sender.process != receiver.process
        place = tuple(sender.args[key] for key in ("epoch", "layer", "direction"))
        assert place == tuple(receiver.args[key] for key in ("epoch", "layer", "direction"))
        pairs.add((sender.process, receiver.process, *place))
    sent = trace.messages[["rank", "peer", "epoch", "layer", "direction"]].itertuples(index=False, name=None)
    assert pairs == set(sent)
    starts = {event["id"]: event["ts"] for event in events(document, "s")}
    assert all(event["ts"] >= starts[event["id"]] for event in events(document, "f"))


def test_arrows_end_at_a_wait_for_all_peers_too(trace, tmp_path):
    waits = (trace.spans["op"] == "Wait") & (trace.spans["peer"] >= 0)
    spans = trace.spans.assign(peer=trace.spans["peer"].where(~waits, -1))
    changed = type(trace)(trace.folder, trace.manifest, spans, trace.messages)
    exported = json.loads(export_perfetto(changed, tmp_path / "t.json").read_text())
    assert len(events(exported, "f")) == len(trace.messages)


@pytest.mark.parametrize(("batch_norm", "bits"), [(False, 0), (True, 0), (False, 4)])
@pytest.mark.parametrize(("ranks", "prefetch"), [(3, 1), (4, 1), (4, 3)])
def test_arrows_end_at_the_wait_of_their_own_round(tmp_path, ranks, prefetch, batch_norm, bits):
    """Method sar: a peer occurs in two rounds of a layer, as giver and as taker; only the giver's message arrives."""
    trace, simulation = simulated(tmp_path / "trace", ranks, prefetch=prefetch, batch_norm=batch_norm, bits=bits)
    waits = trace.spans["op"] == "Wait"  # some take no time in a simulation: an arrow has no slice to end at
    apart = {"start_ns": trace.spans["start_ns"] + 4 * trace.spans["index"], "wall_ns": trace.spans["wall_ns"] + 3 * waits}
    imported = imported_from(export_perfetto(replace(trace, spans=trace.spans.assign(**apart)), tmp_path / "t.json"))
    assert imported.problems == []
    assert len(imported.flows) == (trace.messages["bytes_in"] > 0).sum()
    for sender, receiver in imported.flows:
        sent, taken = (simulation.work[each.process] for each in (sender, receiver))
        exchange = taken.flights[receiver.args["index"]]
        assert taken.operations[receiver.args["index"]].peer == sender.process
        assert sender.process in {message.peer for message in taken.operations[exchange].incoming}
        assert sent.rounds[sender.args["index"]] == taken.rounds[exchange]


def test_live_bytes_are_a_counter_a_rank(trace, document):
    counted = defaultdict(list)
    for event in events(document, "C"):
        assert event["name"] == "live bytes"
        counted[event["pid"]].append(event["args"]["bytes"])
    for rank, values in counted.items():
        spans = trace.spans[(trace.spans["rank"] == rank) & (trace.spans["stream"] == "compute")]
        series = spans.sort_values("start_ns")["live_bytes"].tolist()
        assert values == [value for i, value in enumerate(series) if i == 0 or value != series[i - 1]]


def test_flights_at_once_take_further_threads(tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario(world_size=1)))
    with TraceWriter(tmp_path, 0) as writer:
        for index, (start, wall) in enumerate([(0, 100), (50, 100), (100, 20), (130, 5), (140, 30)]):
            writer.span("train", 0, index, Exchange(0), "communication", start, wall, 0, 0)
    exported = json.loads(export_perfetto(read_trace(tmp_path), tmp_path / "t.json").read_text())
    assert_no_overlap(exported)
    names = {e["tid"]: e["args"]["name"] for e in events(exported, "M") if e["name"] == "thread_name"}
    threads = {s["args"]["index"]: names[s["tid"]] for s in events(exported, "X")}
    first, second = "communication", "communication 2"
    assert threads == {0: first, 1: second, 2: first, 3: first, 4: first}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=40))
def test_as_many_threads_as_spans_in_flight(intervals):
    starts, walls = np.array(intervals, dtype=np.int64).T
    count = len(intervals)
    spans = pd.DataFrame(
        {
            "rank": np.zeros(count, np.int32),
            "index": np.arange(count),
            "stream": np.full(count, "communication", dtype=object),
            "start_ns": starts,
            "wall_ns": walls,
        }
    )
    laid_out = lay_out(spans)
    for _, thread in laid_out.groupby("thread"):
        ends = (thread["start_ns"] + thread["wall_ns"]).to_numpy()
        assert (thread["start_ns"].to_numpy()[1:] >= ends[:-1]).all()
    in_flight = [sum(start <= t < start + wall for start, wall in intervals) for t in range(75)]
    assert laid_out["thread"].nunique() == max(in_flight)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=200), st.integers(0, 10**11))
def test_slices_that_touch_stay_apart_when_their_times_are_cut_to_whole_ns(walls, offset):
    starts = offset + np.concatenate([[0], np.cumsum(walls)[:-1]])
    slices = pd.DataFrame({"start_ns": starts, "wall_ns": walls})
    edges = _exact_microseconds(slices, 0)
    assert [int(ts * 1000.0) for ts in edges["ts"]] == starts.tolist()
    ends = [int(ts * 1000.0) + int(duration * 1000.0) for ts, duration in zip(edges["ts"], edges["dur"], strict=True)]
    assert all(end <= start for end, start in zip(ends, starts[1:].tolist(), strict=False))


def test_arrows_end_within_their_wait_however_long_it_is(tmp_path):
    """Messages that land when their wait ends: the last ns of a slice is where one that was cut off no longer is."""
    random = np.random.default_rng(0)
    write_manifest(tmp_path, synthetic_manifest(Scenario(world_size=2, clock_offsets_ns=(0, 0))))
    waits = [0, 1, 2, 3, *random.integers(4, 3_000_000, 1500).tolist()]
    for rank in (0, 1):
        start, message = 0, PeerMessage(1 - rank, 1, 8)
        with TraceWriter(tmp_path, rank) as writer:
            for epoch, wall in enumerate(waits):
                writer.span("train", epoch, 0, Exchange(0), "communication", start, wall + 7, 0, 0)
                writer.span("train", epoch, 1, Wait(0, peer=1 - rank), "compute", start + 7, wall, 0, 0, peer=1 - rank)
                landed = start + 7 + wall
                writer.message("train", epoch, 0, 0, Direction.FORWARD, message, message, start, landed, landed)
                start = landed + 11
    imported = imported_from(export_perfetto(read_trace(tmp_path), tmp_path / "t.json"))
    assert imported.problems == []
    assert len(imported.flows) == 2 * len(waits)
    assert all(sender.args["epoch"] == receiver.args["epoch"] for sender, receiver in imported.flows)
    assert {receiver.args["op"] for _, receiver in imported.flows} == {"Wait"}


@pytest.fixture(scope="module")
def forecast(tmp_path_factory):
    """The same program, simulated: fewer bytes on the wire, one epoch."""
    folder = tmp_path_factory.mktemp("forecast") / "trace"
    manifest = write_synthetic_run(folder, Scenario(world_size=3, layers=3, epochs=1, bits=4, bytes_per_second=3e8))
    write_manifest(folder, manifest.model_copy(update={"config": {**manifest.config, "forecast": True}}))
    return read_trace(folder)


def test_measured_above_forecast_in_one_file(trace, forecast, tmp_path):
    measured = one_epoch(trace)
    path = export_side_by_side({"measured": measured, "forecast": forecast}, tmp_path / "both.json.gz")
    imported = imported_from(path)
    assert imported.problems == []
    on_top_first = [imported.processes[process] for process in sorted(imported.order, key=imported.order.get)]
    assert on_top_first == [f"{which}: rank {rank}" for which in ("measured", "forecast") for rank in range(3)]
    for label, source in (("measured", measured), ("forecast", forecast)):
        own = {process for process, name in imported.processes.items() if name.startswith(label)}
        slices = [slice_ for slice_ in imported.slices if slice_.process in own]
        assert len(slices) == len(source.spans)
        assert min(slice_.start for slice_ in slices) == 0  # both epochs begin together
        ends = source.aligned().spans.eval("start_ns + wall_ns")
        length = ends.max() - source.aligned().spans["start_ns"].min()
        assert abs(max(slice_.end for slice_ in slices) - length) <= 1
        arrows = [(sender, receiver) for sender, receiver in imported.flows if {sender.process, receiver.process} <= own]
        assert len(arrows) == len(source.messages)
    assert len(imported.flows) == len(measured.messages) + len(forecast.messages)
    assert {process for process, _ in imported.counters} == set(imported.processes)


def trace_processor_binary():
    """Perfetto's own shell, where somebody has it: $PERFETTO, the path, what the perfetto package once downloaded."""
    cached = sorted((Path.home() / ".local/share/perfetto/prebuilts").glob("trace_processor_shell*"))
    found = [os.environ.get("PERFETTO"), shutil.which("trace_processor_shell"), *map(str, cached)]
    return next((path for path in found if path), None)


@pytest.mark.skipif(
    trace_processor_binary() is None,
    reason="no trace_processor_shell: put it on the path, or its path in $PERFETTO (the strict importer was tested instead)",
)
def test_trace_processor_counts_the_same(trace, forecast, tmp_path):
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    measured = one_epoch(trace)
    path = export_side_by_side({"measured": measured, "forecast": forecast}, tmp_path / "both.json.gz")
    with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=trace_processor_binary())) as processor:

        def count(query):
            return next(iter(processor.query(f"select count(*) as n from ({query})"))).n

        for label, source in (("measured", measured), ("forecast", forecast)):
            of_label = f"process.name glob '{label}: *'"
            assert count(f"select 1 from thread_slice join process using (upid) where {of_label}") == len(source.spans)
        assert count("select 1 from flow") == len(measured.messages) + len(forecast.messages)
        assert count("select 1 from stats where severity in ('error', 'data_loss') and value > 0") == 0


def test_gzip_by_name_and_the_same_bytes_each_time(trace, document, tmp_path):
    first, second = export_perfetto(trace, tmp_path / "a.json.gz"), export_perfetto(trace, tmp_path / "b.json.gz")
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(gzip.decompress(first.read_bytes())) == document


def test_an_empty_trace_exports(tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario()))
    exported = json.loads(export_perfetto(read_trace(tmp_path), tmp_path / "t.json").read_text())
    assert exported["traceEvents"] == []


def test_writing_where_a_file_is_in_the_way(trace, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        export_perfetto(trace, tmp_path / "file" / "t.json")


def union(intervals):
    """Disjoint intervals that cover the same points."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def length(intervals):
    return sum(end - start for start, end in intervals)


def overlap(left, right):
    return sum(max(min(a[1], b[1]) - max(a[0], b[0]), 0) for a in left for b in right)


@pytest.mark.timeout(120)
def test_holistic_trace_analysis_finds_the_same_numbers(trace, tmp_path):
    paths = export_hta(trace, tmp_path / "hta")
    assert '"rank": 2' in gzip.decompress(paths[2].read_bytes()).decode().partition("\n")[0]
    for path in paths:
        assert_no_overlap(json.loads(gzip.decompress(path.read_bytes())))
    analysis = TraceAnalysis(trace_dir=str(tmp_path / "hta"))
    breakdown = analysis.get_temporal_breakdown(visualize=False).set_index("rank")
    overlaps = analysis.get_comm_comp_overlap(visualize=False).set_index("rank")
    assert breakdown.index.tolist() == [0, 1, 2]
    for rank in range(3):
        spans = trace.spans[trace.spans["rank"] == rank]
        host = spans["op"].isin(["Wait", "Exchange", "AllReduce"]) & (spans["stream"] == "compute")
        intervals = {
            name: union(zip(rows["start_ns"] / 1e3, (rows["start_ns"] + rows["wall_ns"]) / 1e3, strict=True))
            for name, rows in (
                ("computing", spans[(spans["stream"] == "compute") & ~host]),
                ("communicating", spans[spans["stream"] == "communication"]),
                ("busy", spans[~host]),
            )
        }
        total = max(end for _, end in intervals["busy"]) - min(start for start, _ in intervals["busy"])
        found = breakdown.loc[rank]
        assert found["kernel_time(us)"] == pytest.approx(total, rel=0.01)
        assert found["compute_time(us)"] == pytest.approx(length(intervals["computing"]), rel=0.01)
        assert found["idle_time(us)"] == pytest.approx(total - length(intervals["busy"]), rel=0.01)
        alone = length(intervals["busy"]) - length(intervals["computing"])
        assert found["non_compute_time(us)"] == pytest.approx(alone, rel=0.01)
        hidden = overlap(intervals["computing"], intervals["communicating"]) / length(intervals["communicating"])
        assert overlaps.loc[rank, "comp_comm_overlap_pctg"] == pytest.approx(100 * hidden, rel=0.01)


SAMPLE = Path(__file__).resolve().parents[3] / "traces" / "samples" / "generated-4-100mbit-adaqp4-cut" / "0"


@pytest.mark.timeout(120)
def test_holistic_trace_analysis_agrees_with_the_report_of_a_recorded_run(tmp_path):
    epoch = one_epoch(read_trace(SAMPLE))
    export_hta(epoch, tmp_path / "hta")
    analysis = TraceAnalysis(trace_dir=str(tmp_path / "hta"))
    found = analysis.get_temporal_breakdown(visualize=False).mean(numeric_only=True) / 1e3  # ms, mean over ranks
    view = view_epoch(epoch)
    parts = epoch_parts(view)
    computing = parts["compute"] + parts["quantise"]
    assert found["compute_time(us)"] == pytest.approx(computing, rel=0.01)
    exposed = parts["exchange exposed"] + parts["all-reduce exposed"] + parts["other"]
    # The report's epoch is that of all ranks; to HTA each rank's lasts from its own first kernel to its own last.
    spans = epoch.aligned().spans
    own = spans.assign(end_ns=spans["start_ns"] + spans["wall_ns"]).groupby("rank").agg({"start_ns": "min", "end_ns": "max"})
    apart = view.milliseconds - (own["end_ns"] - own["start_ns"]).mean() / 1e6
    outside = found["non_compute_time(us)"] + found["idle_time(us)"]
    assert outside == pytest.approx(exposed - apart, rel=0.01)
