"""Traces as two plain tables, CSV or Parquet, for a spreadsheet or a data frame of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from halocast.errors import MisuseError, RunError, nearest
from halocast.traces.schema import MESSAGES, SPANS
from halocast.traces.trace import Trace

FORMATS = ("csv", "parquet")


def export_tables(traces: Trace | Mapping[str, Trace], folder: Path, format: str = "csv") -> list[Path]:
    """Write ``spans`` and ``messages`` of all ranks, times on rank 0's clock; returns the files written.

    Of several traces the first column, ``run``, is the trace's key. In CSV a bit histogram is a JSON object,
    ``{"4": 120}``. Raises MisuseError for an unknown format, RunError where writing fails.
    """
    if format not in FORMATS:
        raise MisuseError(f"unknown table format '{format}'{nearest(format, FORMATS)}")
    aligned = traces.aligned() if isinstance(traces, Trace) else {name: trace.aligned() for name, trace in traces.items()}
    paths = [folder / f"{name}.{format}" for name in ("spans", "messages")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, schema in zip(paths, (SPANS, MESSAGES), strict=True):
            if isinstance(aligned, Trace):
                frame = getattr(aligned, path.stem)
            else:
                frame = pd.concat([getattr(trace, path.stem).assign(run=name) for name, trace in aligned.items()])
                schema = schema.insert(0, pa.field("run", pa.string()))
            if format == "parquet":
                pq.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), path, compression="zstd")
            else:
                _flat(frame)[schema.names].to_csv(path, index=False)
    except OSError as error:
        raise RunError(f"cannot write tables to {folder}: {error.strerror or error}") from error
    return paths


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    histograms = {column: frame[column].map(_histogram) for column in ("bits_out", "bits_in") if column in frame}
    return frame.assign(**histograms)


def _histogram(pairs: list[tuple[int, int]] | Any) -> str:
    return json.dumps({str(bits): rows for bits, rows in pairs})
