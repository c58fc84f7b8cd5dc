import errno
import gc
import json
import os
import weakref

import pytest
from synthetic import Scenario, synthetic_manifest, write_synthetic_run

from halocast.errors import MisuseError, RunError
from halocast.traces.operations import (
    Aggregate,
    Direction,
    Exchange,
    Part,
    PeerMessage,
    Stage,
    Step,
    Transform,
    Wait,
    Work,
)
from halocast.traces.schema import MESSAGES, SPANS
from halocast.traces.trace import ClockOffset, TraceManifest, TraceWriter, read_manifest, read_trace, write_manifest

NEVER = 1e9


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path / "trace", synthetic_manifest(Scenario()))
    return tmp_path / "trace"


def span(writer, index, *, epoch=0, start=None, operation=None, stream="compute", live=0, peer=-1):
    start = 1_000 * index if start is None else start
    writer.span("train", epoch, index, operation or Step(), stream, start, 900, 800, live, peer)


def parts(folder):
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_spans_read_back_as_written(folder):
    work = Work(rows=7, nnz=70, dim_in=5, dim_out=3, flops=210, bytes_out=2**40, bytes_in=11, bits=4)
    with TraceWriter(folder, 1, flush_seconds=NEVER) as writer:
        transform = Transform(2, Direction.BACKWARD, Part.MARGINAL, work, stage=Stage.SELF_INPUTS)
        writer.span("train", 3, 0, transform, "compute", 10, 20, 15, 2**41)
        writer.span("evaluate", 3, 1, Wait(0, peer=0), "compute", 40, 5, 1, 6, peer=0)
    spans = read_trace(folder).spans
    assert list(spans.columns) == SPANS.names
    assert spans.to_dict("records") == [
        {
            "rank": 1,
            "phase": "train",
            "epoch": 3,
            "index": 0,
            "op": "Transform",
            "detail": "self_inputs",
            "layer": 2,
            "direction": "backward",
            "part": "marginal",
            "peer": -1,
            "stream": "compute",
            "start_ns": 10,
            "wall_ns": 20,
            "cpu_ns": 15,
            "rows": 7,
            "nnz": 70,
            "dim_in": 5,
            "dim_out": 3,
            "flops": 210,
            "bytes_out": 2**40,
            "bytes_in": 11,
            "bits": 4,
            "live_bytes": 2**41,
        },
        {
            "rank": 1,
            "phase": "evaluate",
            "epoch": 3,
            "index": 1,
            "op": "Wait",
            "detail": "",
            "layer": 0,
            "direction": "forward",
            "part": "own",
            "peer": 0,
            "stream": "compute",
            "start_ns": 40,
            "wall_ns": 5,
            "cpu_ns": 1,
            "rows": 0,
            "nnz": 0,
            "dim_in": 0,
            "dim_out": 0,
            "flops": 0,
            "bytes_out": 0,
            "bytes_in": 0,
            "bits": 0,
            "live_bytes": 6,
        },
    ]


def test_messages_read_back_as_written(folder):
    sent = PeerMessage(1, rows=30, bytes=400, bit_histogram=((2, 10), (8, 20)))
    received = PeerMessage(1, rows=5, bytes=60)
    with TraceWriter(folder, 0) as writer:
        writer.message("train", 0, 4, 1, Direction.FORWARD, sent, received, 100, 150, 160)
        writer.message("train", 0, 9, 1, Direction.BACKWARD, None, received, 200, 0, 260)
        writer.message("train", 0, 14, 0, Direction.BACKWARD, sent, None, 300, 350, 0)
    messages = read_trace(folder).messages
    assert list(messages.columns) == MESSAGES.names
    place = {"rank": 0, "phase": "train", "epoch": 0, "peer": 1}
    outward = {"rows_out": 30, "bytes_out": 400, "bits_out": [(2, 10), (8, 20)]}
    inward = {"rows_in": 5, "bytes_in": 60, "bits_in": []}
    no_outward = {"rows_out": 0, "bytes_out": 0, "bits_out": []}
    no_inward = {"rows_in": 0, "bytes_in": 0, "bits_in": []}
    assert messages.to_dict("records") == [
        {**place, "index": 4, "layer": 1, "direction": "forward", **outward, **inward}
        | {"start_ns": 100, "send_done_ns": 150, "receive_done_ns": 160},
        {**place, "index": 9, "layer": 1, "direction": "backward", **no_outward, **inward}
        | {"start_ns": 200, "send_done_ns": 0, "receive_done_ns": 260},
        {**place, "index": 14, "layer": 0, "direction": "backward", **outward, **no_inward}
        | {"start_ns": 300, "send_done_ns": 350, "receive_done_ns": 0},
    ]


def test_sorted_by_rank_and_start_whatever_the_order_of_appending(folder):
    for rank in (1, 0):
        with TraceWriter(folder, rank) as writer:
            span(writer, 1, start=50)  # a flight is appended when it lands, after what started later
            span(writer, 0, start=10)
    spans = read_trace(folder).spans
    assert spans[["rank", "index", "start_ns"]].to_numpy().tolist() == [[0, 0, 10], [0, 1, 50], [1, 0, 10], [1, 1, 50]]


def test_a_part_is_never_written_again(folder):
    writer = TraceWriter(folder, 0, flush_seconds=NEVER)
    span(writer, 0)
    writer.flush()
    first = (folder / "spans-r00000-000000.parquet").read_bytes()
    span(writer, 1)
    writer.flush()
    writer.flush()  # nothing collected: no part
    writer.close()
    writer.close()
    assert parts(folder) == ["spans-r00000-000000.parquet", "spans-r00000-000001.parquet"]
    assert (folder / "spans-r00000-000000.parquet").read_bytes() == first


@pytest.mark.parametrize(("flush_seconds", "written"), [(0.0, 1), (NEVER, 0)])
def test_flush_if_due(folder, flush_seconds, written):
    writer = TraceWriter(folder, 0, flush_seconds=flush_seconds)
    span(writer, 0)
    writer.flush_if_due()
    assert len(parts(folder)) == written


def test_the_writer_does_not_keep_flights_alive(folder):
    class Flight:
        pass

    flight = Flight()
    alive = weakref.ref(flight)
    writer = TraceWriter(folder, 0, flush_seconds=NEVER)
    span(writer, 0, operation=Wait(0, flight=flight))
    del flight
    gc.collect()
    assert alive() is None


def test_a_killed_run_reads_minus_what_was_not_written(folder):
    writer = TraceWriter(folder, 0, flush_seconds=NEVER)
    for index in range(3):
        span(writer, index)
        writer.flush()
    span(writer, 3)  # collected, never written
    truncated = folder / "spans-r00000-000001.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    (folder / ".spans-r00000-000003.parquet.tmp").write_bytes(b"PAR1 half a par")
    write_manifest(folder, read_manifest(folder).model_copy(update={"finished": False}))
    trace = read_trace(folder)
    assert trace.spans["index"].tolist() == [0, 2]
    assert len(trace.notes) == 3
    assert "1 unfinished part" in trace.notes[0]
    assert trace.notes[1].startswith("spans-r00000-000001.parquet left out: it is truncated or damaged")
    assert trace.notes[2] == "the run did not finish: its last seconds are missing"
    assert all("\n" not in note for note in trace.notes)


def test_foreign_files_are_left_alone_and_foreign_tables_noted(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with TraceWriter(folder, 0) as writer:
        span(writer, 0)
    (folder / "spans-of-mine.parquet").write_bytes(b"nothing to do with us")
    pq.write_table(pa.table({"a": [1]}), folder / "spans-r00001-000000.parquet")
    pq.write_table(SPANS.empty_table(), folder / "spans-r00007-000000.parquet")
    trace = read_trace(folder)
    assert trace.spans["index"].tolist() == [0]
    assert [note.partition(":")[0] for note in trace.notes] == [
        "spans-r00001-000000.parquet left out",
        "spans-r00007-000000.parquet left out",
    ]
    assert trace.notes[1].endswith("the run had 2 ranks")


def test_a_trace_without_parts_is_empty(folder):
    trace = read_trace(folder).aligned()
    assert len(trace.spans) == len(trace.messages) == len(trace.epoch_bounds()) == 0
    assert list(trace.spans.columns) == SPANS.names


def test_a_resumed_run_adds_parts_and_replaces_what_it_ran_again(folder):
    with TraceWriter(folder, 0) as writer:
        span(writer, 0, epoch=0, start=10)
        span(writer, 0, epoch=1, start=20)
    with TraceWriter(folder, 0) as writer:
        span(writer, 0, epoch=1, start=120)
        span(writer, 0, epoch=2, start=130)
    trace = read_trace(folder)
    assert parts(folder) == ["spans-r00000-000000.parquet", "spans-r00000-000001.parquet"]
    assert trace.spans[["epoch", "start_ns"]].to_numpy().tolist() == [[0, 10], [1, 120], [2, 130]]
    assert trace.notes == ("1 spans executed again after a resume: the later ones are kept",)


def test_a_full_disk_is_one_line_and_loses_nothing(folder, monkeypatch):
    writer = TraceWriter(folder, 0, flush_seconds=NEVER)
    span(writer, 0)

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"cannot write trace part .*spans-r00000-000000.parquet: No space left") as raised:
        writer.flush()
    assert "\n" not in str(raised.value)
    assert list(folder.glob(".*")) == []
    monkeypatch.undo()
    span(writer, 1)
    writer.close()
    assert read_trace(folder).spans["index"].tolist() == [0, 1]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "trace").write_text("")
    with pytest.raises(RunError, match="cannot write a trace to"):
        TraceWriter(tmp_path / "trace", 0)


def test_aligned_moves_every_rank_to_the_clock_of_rank_0(tmp_path):
    manifest = synthetic_manifest(Scenario())
    manifest = manifest.model_copy(update={"clock_offsets": (ClockOffset(), ClockOffset(offset_ns=-500))})
    write_manifest(tmp_path, manifest)
    for rank, moved in ((0, 0), (1, -500)):
        with TraceWriter(tmp_path, rank) as writer:
            span(writer, 0, start=10_000 + moved, operation=Exchange(0))
            sent = PeerMessage(1 - rank, 1, 4)
            writer.message("train", 0, 0, 0, Direction.FORWARD, sent, None, 10_000 + moved, 10_100 + moved, 0)
    trace = read_trace(tmp_path)
    aligned = trace.aligned()
    assert trace.spans["start_ns"].tolist() == [10_000, 9_500]
    assert aligned.spans["start_ns"].tolist() == [10_000, 10_000]
    assert aligned.messages["send_done_ns"].tolist() == [10_100, 10_100]
    assert aligned.messages["receive_done_ns"].tolist() == [0, 0]
    assert aligned.aligned() is aligned


def test_epoch_bounds_span_all_ranks_and_one_phase(folder):
    for rank, start in ((0, 100), (1, 1_234_567 + 40)):
        with TraceWriter(folder, rank) as writer:
            span(writer, 0, epoch=5, start=start)
            writer.span("evaluate", 5, 0, Aggregate(), "compute", 10**7, 10, 10, 0)
    bounds = read_trace(folder).epoch_bounds()
    assert bounds.to_dict("index") == {5: {"start_ns": 40, "end_ns": 1_000}}


def test_a_run_folder_will_do(tmp_path):
    write_synthetic_run(tmp_path / "run" / "trace")
    assert len(read_trace(tmp_path / "run").spans) == len(read_trace(tmp_path / "run" / "trace").spans) > 0


def test_manifest_reads_back_as_written(tmp_path):
    manifest = synthetic_manifest(Scenario(world_size=3)).model_copy(update={"workload": {"parts": [{"central": 1}]}})
    write_manifest(tmp_path, manifest)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def spoil(manifest_text, **changes):
    return json.dumps({**json.loads(manifest_text), **changes})


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (
            lambda text: spoil(text, schema_version=2),
            "trace of schema 2; this halocast reads up to 1: upgrade halocast",
        ),
        (lambda text: '{"schema_version": 9, "ranks": {}}', "trace of schema 9; this halocast reads up to 1"),
        (lambda text: text[: len(text) // 2], "manifest.json is damaged: Invalid JSON"),
        (lambda text: "", "manifest.json is damaged"),
        (lambda text: "[]", "manifest.json is damaged"),
        (lambda text: spoil(text, schema_version="new"), "manifest.json is damaged: schema_version"),
        (lambda text: spoil(text, world_size=0), "manifest.json is damaged: world_size"),
        (lambda text: spoil(text, world_size=5), "2 clock offsets for 5 ranks"),
        (lambda text: spoil(text, graph={"name": "g"}), "manifest.json is damaged: graph.fingerprint"),
    ],
)
def test_bad_manifests_are_one_line(folder, spoiled, message):
    path = folder / "manifest.json"
    path.write_text(spoiled(path.read_text()))
    with pytest.raises(MisuseError) as raised:
        read_trace(folder)
    assert message in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_trace_here(tmp_path):
    with pytest.raises(MisuseError, match="no such folder"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(MisuseError, match=r"no trace here \(manifest.json is missing\)"):
        read_trace(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(MisuseError, match=r"manifest.json: Is a directory"):
        read_trace(tmp_path)


def test_clock_offsets_are_one_a_rank():
    fields = synthetic_manifest(Scenario()).model_dump() | {"clock_offsets": []}
    with pytest.raises(ValueError, match="0 clock offsets for 2 ranks"):
        TraceManifest(**fields)
