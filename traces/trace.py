"""The trace of a run on disk: a manifest and Parquet parts per rank, written while the run goes on, read back whole.

    trace/manifest.json                     what ran where, and each rank's clock offset
    trace/spans-r00003-000017.parquet       part 17 of rank 3's operations with their times
    trace/messages-r00003-000017.parquet    the same for its exchanges, a row per peer

A part appears under its final name only when it is complete and is never written again, so a killed run leaves a
trace that reads, minus its last seconds. Columns are in `halocast.traces.schema`.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from halocast.errors import MisuseError, RunError
from halocast.traces.operations import Direction, Operation, PeerMessage
from halocast.traces.schema import MESSAGES, SPANS, TRACE_SCHEMA_VERSION

MANIFEST = "manifest.json"
TRAIN = "train"
COMPUTE, COMMUNICATION = "compute", "communication"
PART_NAME = re.compile(r"(?P<table>spans|messages)-r(?P<rank>\d{5,})-(?P<part>\d{6,})\.parquet")
VALUE_BYTES = MappingProxyType({"float32": 4, "float64": 8})
NO_MESSAGE = PeerMessage(peer=-1, rows=0, bytes=0)


class Machine(BaseModel):
    """The machine of rank 0."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: PositiveInt
    memory_bytes: NonNegativeInt
    devices: tuple[str, ...] = ()
    """One name a rank, such as ``cpu`` or ``cuda:0 NVIDIA H200``."""


def cpu_name() -> str:
    """What a trace calls this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class TracedGraph(BaseModel):
    """Which graph the run trained on; edges are counted once, undirected."""

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    nodes: NonNegativeInt
    edges: NonNegativeInt


class ClockOffset(BaseModel):
    """A rank's monotonic clock minus rank 0's at the same instant, and half the width of what it could be, in ns."""

    model_config = ConfigDict(frozen=True)

    offset_ns: int = 0
    uncertainty_ns: NonNegativeInt = 0


class TraceManifest(BaseModel):
    """What a reader must know besides the tables."""

    model_config = ConfigDict(frozen=True)

    schema_version: PositiveInt = TRACE_SCHEMA_VERSION
    halocast: str
    """The version that wrote the trace."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of Python, torch, numpy."""
    machine: Machine
    config: dict[str, Any] = Field(default_factory=dict)
    """The resolved run configuration."""
    seed: int
    world_size: PositiveInt
    graph: TracedGraph
    workload: dict[str, Any] = Field(default_factory=dict)
    """Workload statistics per rank, as their own module writes and reads them."""
    clock_offsets: tuple[ClockOffset, ...]
    """One a rank."""
    date: str = ""
    """ISO date of the run; spans carry monotonic times only."""
    finished: bool = False
    """False while the run goes on, and for ever if it was killed."""

    @property
    def is_forecast(self) -> bool:
        """Whether the simulator wrote it."""
        return bool(self.config.get("forecast", False))

    @property
    def value_bytes(self) -> int:
        """Of one value in memory and, unquantised, on the wire."""
        return VALUE_BYTES.get(str(self.config.get("dtype", "float32")), 4)

    @model_validator(mode="after")
    def one_clock_offset_a_rank(self) -> Self:
        if len(self.clock_offsets) != self.world_size:
            raise ValueError(f"{len(self.clock_offsets)} clock offsets for {self.world_size} ranks")
        return self


class TraceWriter:
    """Collects one rank's spans and messages and writes them as parts every `flush_seconds`.

    Appending costs about a microsecond: a tuple of references; columns are built when a part is written. It holds on
    to an operation's work, never to the operation, whose flight may own wire buffers. A folder that holds parts of
    this rank already (a resumed run) gets the next part numbers.
    """

    def __init__(self, folder: Path, rank: int, *, flush_seconds: float = 2.0) -> None:
        """Raises RunError where the folder cannot be made."""
        self.folder = folder
        self.rank = rank
        self.flush_seconds = flush_seconds
        self._spans: list[tuple[Any, ...]] = []
        self._messages: list[tuple[Any, ...]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            parts = [int(name["part"]) for name in _part_names(folder) if int(name["rank"]) == rank]
        except OSError as error:
            raise RunError(f"cannot write a trace to {folder}: {error.strerror}") from error
        self._part = max(parts, default=-1) + 1
        self._due = time.monotonic() + flush_seconds

    def span(
        self,
        phase: str,
        epoch: int,
        index: int,
        operation: Operation,
        stream: str,
        start_ns: int,
        wall_ns: int,
        cpu_ns: int,
        live_bytes: int,
        peer: int = -1,
    ) -> None:
        """Record one operation; times are monotonic ns, `live_bytes` those of live buffers after it."""
        self._spans.append(
            (
                phase,
                epoch,
                index,
                type(operation),
                operation.detail,
                operation.layer,
                operation.direction,
                operation.part,
                peer,
                stream,
                start_ns,
                wall_ns,
                cpu_ns,
                operation.work,
                live_bytes,
            )
        )

    def message(
        self,
        phase: str,
        epoch: int,
        index: int,
        layer: int,
        direction: Direction,
        outgoing: PeerMessage | None,
        incoming: PeerMessage | None,
        start_ns: int,
        send_done_ns: int,
        receive_done_ns: int,
    ) -> None:
        """Record what the exchange at `index` sent to and received from one peer; 0 stands for "nothing to do"."""
        self._messages.append(
            (
                phase,
                epoch,
                index,
                layer,
                direction,
                outgoing or NO_MESSAGE,
                incoming or NO_MESSAGE,
                start_ns,
                send_done_ns,
                receive_done_ns,
            )
        )

    def flush_if_due(self) -> None:
        """Write what was collected if `flush_seconds` have passed since the last part: a clock reading otherwise."""
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write what was collected as one part a table. Raises RunError (a full disk), keeping what was collected."""
        part = self._part
        self._due = time.monotonic() + self.flush_seconds
        if self._spans or self._messages:
            self._part += 1  # before writing: a part that failed half-way is not tried again under the same name
        if self._spans:
            self._write("spans", part, _span_table(self.rank, self._spans))
            self._spans.clear()
        if self._messages:
            self._write("messages", part, _message_table(self.rank, self._messages))
            self._messages.clear()

    def close(self) -> None:
        """Write the rest; closing twice is harmless."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _write(self, table_name: str, part: int, table: pa.Table) -> None:
        path = self.folder / f"{table_name}-r{self.rank:05d}-{part:06d}.parquet"
        temporary = _temporary(path)
        try:
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = error.strerror or str(error)
            raise RunError(f"cannot write trace part {path}: {reason}; parts already written are intact") from error


@dataclass(frozen=True)
class Trace:
    """A trace read back.

    `spans` is sorted by rank and start, `messages` by rank, start and peer; columns as in `halocast.traces.schema`
    (bit histograms as lists of (bits, rows) pairs). `notes` says what could not be read, one line each.
    """

    folder: Path
    manifest: TraceManifest
    spans: pd.DataFrame
    messages: pd.DataFrame
    notes: tuple[str, ...] = ()
    is_aligned: bool = False

    def aligned(self) -> Trace:
        """The same trace with every time on rank 0's clock."""
        if self.is_aligned:
            return self
        offsets = np.array([clock.offset_ns for clock in self.manifest.clock_offsets], dtype=np.int64)
        spans, messages = self.spans.copy(), self.messages.copy()
        spans["start_ns"] -= offsets[spans["rank"].to_numpy()]
        message_offsets = offsets[messages["rank"].to_numpy()]
        messages["start_ns"] -= message_offsets
        for column in ("send_done_ns", "receive_done_ns"):  # 0 says that there was nothing to send or receive
            messages[column] = (messages[column] - message_offsets).where(messages[column] != 0, 0)
        return replace(self, spans=spans, messages=messages, is_aligned=True)

    def epoch_bounds(self, phase: str = TRAIN) -> pd.DataFrame:
        """First start and last end over all ranks: columns start_ns, end_ns, on rank 0's clock; index epoch."""
        spans = self.aligned().spans
        spans = spans[spans["phase"] == phase]
        ends = spans["start_ns"] + spans["wall_ns"]
        epochs = spans["epoch"]
        return pd.DataFrame({"start_ns": spans["start_ns"].groupby(epochs).min(), "end_ns": ends.groupby(epochs).max()})


def write_manifest(folder: Path, manifest: TraceManifest) -> None:
    """Write or replace the manifest atomically. Raises RunError where that fails."""
    path = folder / MANIFEST
    temporary = _temporary(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def read_manifest(folder: Path) -> TraceManifest:
    """Read and check the manifest of a trace folder.

    Raises MisuseError for a folder that is no trace, a damaged manifest and a newer schema.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise MisuseError(f"{folder}: no such folder; give a run folder, or the trace folder inside it")
    try:
        document = path.read_bytes()
    except FileNotFoundError as error:
        raise MisuseError(f"{folder}: no trace here ({MANIFEST} is missing); give a folder of a traced run") from error
    except OSError as error:
        raise MisuseError(f"{path}: {error.strerror}") from error
    try:
        version = SchemaVersion.model_validate_json(document).schema_version
        if version > TRACE_SCHEMA_VERSION:
            raise MisuseError(
                f"{folder}: trace of schema {version}; this halocast reads up to {TRACE_SCHEMA_VERSION}: upgrade halocast"
            )
        return TraceManifest.model_validate_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise MisuseError(f"{path} is damaged: {f'{where}: ' if where else ''}{first['msg']}") from error


class SchemaVersion(BaseModel):
    """The part of a manifest that every version of it has."""

    schema_version: PositiveInt


def read_trace(folder: Path | str) -> Trace:
    """Read the trace in `folder`, or in the ``trace`` folder of a run folder.

    Parts that are unfinished or damaged are left out with a note. Spans that a resumed run executed again replace
    those of the run before. Raises MisuseError for what is no trace and for a newer schema.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists() and (folder / "trace").is_dir():
        folder = folder / "trace"
    manifest = read_manifest(folder)
    notes: list[str] = []
    unfinished = sum(1 for _ in folder.glob(".*.parquet.tmp"))
    if unfinished:
        notes.append(f"{unfinished} unfinished part(s) left out: the run was killed while writing")
    spans = _read_parts(folder, "spans", SPANS, manifest.world_size, notes)
    messages = _read_parts(folder, "messages", MESSAGES, manifest.world_size, notes)
    if not manifest.finished:
        notes.append("the run did not finish: its last seconds are missing")
    spans = _keep_last_execution(spans, ["rank", "phase", "epoch", "index", "stream", "peer"], "spans", notes)
    messages = _keep_last_execution(messages, ["rank", "phase", "epoch", "index", "peer"], "messages", notes)
    return Trace(
        folder=folder,
        manifest=manifest,
        spans=spans.sort_values(["rank", "start_ns"], kind="stable", ignore_index=True),
        messages=messages.sort_values(["rank", "start_ns", "peer"], kind="stable", ignore_index=True),
        notes=tuple(notes),
    )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _part_names(folder: Path) -> list[re.Match[str]]:
    """Names of complete parts, by table, rank and part number."""
    matches = [match for entry in folder.iterdir() if (match := PART_NAME.fullmatch(entry.name))]
    return sorted(matches, key=lambda match: (match["table"], int(match["rank"]), int(match["part"])))


def _span_table(rank: int, spans: Sequence[tuple[Any, ...]]) -> pa.Table:
    (phase, epoch, index, kind, detail, layer, direction, part, peer, stream, start, wall, cpu, work, live) = zip(
        *spans, strict=True
    )
    columns: dict[str, Sequence[Any]] = {
        "rank": [rank] * len(spans),
        "phase": phase,
        "epoch": epoch,
        "index": index,
        "op": [operation.__name__ for operation in kind],
        "detail": detail,
        "layer": layer,
        "direction": direction,
        "part": part,
        "peer": peer,
        "stream": stream,
        "start_ns": start,
        "wall_ns": wall,
        "cpu_ns": cpu,
        "rows": [item.rows for item in work],
        "nnz": [item.nnz for item in work],
        "dim_in": [item.dim_in for item in work],
        "dim_out": [item.dim_out for item in work],
        "flops": [item.flops for item in work],
        "bytes_out": [item.bytes_out for item in work],
        "bytes_in": [item.bytes_in for item in work],
        "bits": [item.bits for item in work],
        "live_bytes": live,
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in SPANS], schema=SPANS)


def _message_table(rank: int, messages: Sequence[tuple[Any, ...]]) -> pa.Table:
    phase, epoch, index, layer, direction, outgoing, incoming, start, send_done, receive_done = zip(*messages, strict=True)
    columns: dict[str, Sequence[Any]] = {
        "rank": [rank] * len(messages),
        "phase": phase,
        "epoch": epoch,
        "index": index,
        "layer": layer,
        "direction": direction,
        "peer": [max(out.peer, into.peer) for out, into in zip(outgoing, incoming, strict=True)],
        "rows_out": [message.rows for message in outgoing],
        "bytes_out": [message.bytes for message in outgoing],
        "rows_in": [message.rows for message in incoming],
        "bytes_in": [message.bytes for message in incoming],
        "bits_out": [message.bit_histogram for message in outgoing],
        "bits_in": [message.bit_histogram for message in incoming],
        "start_ns": start,
        "send_done_ns": send_done,
        "receive_done_ns": receive_done,
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in MESSAGES], schema=MESSAGES)


def _read_parts(folder: Path, table_name: str, schema: pa.Schema, world_size: int, notes: list[str]) -> pd.DataFrame:
    tables = [schema.empty_table()]
    for match in _part_names(folder):
        if match["table"] != table_name:
            continue
        if int(match["rank"]) >= world_size:
            notes.append(f"{match.string} left out: the run had {world_size} ranks")
            continue
        try:
            with pq.ParquetFile(folder / match.string) as file:
                tables.append(file.read(columns=schema.names).select(schema.names).cast(schema))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            notes.append(f"{match.string} left out: it is truncated or damaged ({reason})")
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame


def _keep_last_execution(frame: pd.DataFrame, key: list[str], what: str, notes: list[str]) -> pd.DataFrame:
    """Parts come in the order they were written, so the last row of a key is the latest execution."""
    repeated = frame.duplicated(key, keep="last")
    if repeated.any():
        notes.append(f"{int(repeated.sum())} {what} executed again after a resume: the later ones are kept")
    return frame[~repeated]
