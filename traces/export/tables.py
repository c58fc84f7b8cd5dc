"""A trace as two plain tables, CSV or Parquet, for a spreadsheet or a data frame of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from halocast.errors import MisuseError, RunError, nearest
from halocast.traces.schema import MESSAGES, SPANS
from halocast.traces.trace import Trace

FORMATS = ("csv", "parquet")


def export_tables(trace: Trace, folder: Path, format: str = "csv") -> list[Path]:
    """Write ``spans`` and ``messages`` of all ranks, times on rank 0's clock; returns the files written.

    In CSV a bit histogram is a JSON object, ``{"4": 120}``. Raises MisuseError for an unknown format, RunError where
    writing fails.
    """
    if format not in FORMATS:
        raise MisuseError(f"unknown table format '{format}'{nearest(format, FORMATS)}")
    aligned = trace.aligned()
    tables = (("spans", aligned.spans, SPANS), ("messages", aligned.messages, MESSAGES))
    paths = [folder / f"{name}.{format}" for name, _, _ in tables]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, (_, frame, schema) in zip(paths, tables, strict=True):
            if format == "parquet":
                pq.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), path, compression="zstd")
            else:
                _flat(frame).to_csv(path, index=False)
    except OSError as error:
        raise RunError(f"cannot write tables to {folder}: {error.strerror or error}") from error
    return paths


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    histograms = {column: frame[column].map(_histogram) for column in ("bits_out", "bits_in") if column in frame}
    return frame.assign(**histograms)


def _histogram(pairs: list[tuple[int, int]] | Any) -> str:
    return json.dumps({str(bits): rows for bits, rows in pairs})
