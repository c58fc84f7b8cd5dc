"""A trace written by schema version 1 reads the same for ever. Never change the folder or what is expected of it."""

from pathlib import Path

import pytest

from halocast.traces.trace import read_trace

FOLDER = Path(__file__).parent / "trace-v1"


@pytest.fixture(scope="module")
def trace():
    return read_trace(FOLDER)


def test_manifest(trace):
    manifest = trace.manifest
    assert (manifest.schema_version, manifest.halocast, manifest.seed, manifest.world_size) == (1, "0.1.0", 0, 2)
    assert manifest.graph.model_dump() == {
        "name": "debian",
        "fingerprint": "0123456789abcdef",
        "nodes": 63_666,
        "edges": 322_726,
    }
    assert [(clock.offset_ns, clock.uncertainty_ns) for clock in manifest.clock_offsets] == [
        (0, 0),
        (1_234_567, 20_000),
    ]
    assert manifest.finished
    assert manifest.config["model"] == {"kind": "sage", "layers": 2, "hidden": 16}
    assert trace.notes == ()


def test_operations_in_order(trace):
    forward = ["Quantize", "Exchange", "Aggregate", "Transform", "Wait", "Aggregate", "Transform"]
    backward = ["Transform", "Aggregate", "Exchange", "Aggregate", "Transform", "Wait", "Dequantize", "AllReduce"]
    expected = [*forward, *forward, "Loss", *backward, "Transform", "AllReduce", "Wait", "Wait", "Step"]
    for rank in (0, 1):
        spans = trace.spans[trace.spans["rank"] == rank]
        assert spans["op"].tolist() == expected
        assert spans["index"].tolist() == list(range(len(expected)))


def test_a_span(trace):
    span = trace.spans[(trace.spans["rank"] == 1) & (trace.spans["index"] == 19)].iloc[0]
    assert span.to_dict() == {
        "rank": 1,
        "phase": "train",
        "epoch": 0,
        "index": 19,
        "op": "Transform",
        "detail": "weights",
        "layer": 1,
        "direction": "backward",
        "part": "own",
        "peer": -1,
        "stream": "compute",
        "start_ns": 5_075_200_567,
        "wall_ns": 6_000_000,
        "cpu_ns": 5_700_000,
        "rows": 1_000,
        "nnz": 0,
        "dim_in": 0,
        "dim_out": 0,
        "flops": 0,
        "bytes_out": 0,
        "bytes_in": 0,
        "bits": 0,
        "live_bytes": 40_000_000,
    }


def test_a_message(trace):
    message = trace.messages[(trace.messages["rank"] == 0) & (trace.messages["index"] == 17)].iloc[0]
    assert message.to_dict() == {
        "rank": 0,
        "phase": "train",
        "epoch": 0,
        "index": 17,
        "layer": 1,
        "direction": "backward",
        "peer": 1,
        "rows_out": 250,
        "bytes_out": 16_000,
        "rows_in": 250,
        "bytes_in": 16_000,
        "bits_out": [(32, 250)],
        "bits_in": [(32, 250)],
        "start_ns": 5_059_923_000,
        "send_done_ns": 5_060_089_000,
        "receive_done_ns": 5_060_089_000,
    }


def test_one_clock(trace):
    starts = trace.aligned().spans.groupby("rank")["start_ns"].min()
    assert starts.to_dict() == {0: 5_000_000_000, 1: 5_000_000_000}
