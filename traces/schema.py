"""Columns of the trace tables and the version of their layout. Times are monotonic nanoseconds, sizes bytes."""

from __future__ import annotations

import pyarrow as pa

TRACE_SCHEMA_VERSION = 1

SPANS = pa.schema(
    [
        ("rank", pa.int32()),
        ("phase", pa.string()),  # "train" or "evaluate"
        ("epoch", pa.int32()),
        ("index", pa.int32()),  # position in the program, from 0 in each (phase, epoch)
        ("op", pa.string()),  # class name in traces.operations
        ("detail", pa.string()),  # Transform's stage
        ("layer", pa.int32()),  # -1: not of one layer
        ("direction", pa.string()),
        ("part", pa.string()),
        ("peer", pa.int32()),  # Wait, Dequantize: the peer waited for; -1 otherwise
        ("stream", pa.string()),  # "compute", or "communication" (an Exchange or AllReduce from start to completion)
        ("start_ns", pa.int64()),
        ("wall_ns", pa.int64()),
        ("cpu_ns", pa.int64()),  # CPU time of the driving thread, or device time on CUDA
        ("rows", pa.int64()),
        ("nnz", pa.int64()),
        ("dim_in", pa.int32()),
        ("dim_out", pa.int32()),
        ("flops", pa.int64()),
        ("bytes_out", pa.int64()),
        ("bytes_in", pa.int64()),
        ("bits", pa.int32()),
        ("live_bytes", pa.int64()),  # bytes of live buffers after the operation
    ]
)

MESSAGES = pa.schema(
    [
        ("rank", pa.int32()),
        ("phase", pa.string()),
        ("epoch", pa.int32()),
        ("index", pa.int32()),  # of the Exchange span it belongs to
        ("layer", pa.int32()),
        ("direction", pa.string()),
        ("peer", pa.int32()),
        ("rows_out", pa.int64()),
        ("bytes_out", pa.int64()),
        ("rows_in", pa.int64()),
        ("bytes_in", pa.int64()),
        ("bits_out", pa.map_(pa.int32(), pa.int64())),  # bit width -> rows sent at it
        ("bits_in", pa.map_(pa.int32(), pa.int64())),
        ("start_ns", pa.int64()),
        ("send_done_ns", pa.int64()),  # monotonic; 0 where nothing was sent
        ("receive_done_ns", pa.int64()),  # monotonic; 0 where nothing was received
    ]
)
