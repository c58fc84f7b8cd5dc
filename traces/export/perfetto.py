"""Traces as Chrome trace events: for ui.perfetto.dev, and for Holistic Trace Analysis (HTA).

A rank is a process, a stream a thread, a span a complete event (``"ph": "X"``). Format: "Trace Event Format", Google,
2016. What HTA 0.5 asks beyond it: an event with ``args.stream`` and ``args.correlation`` counts as device work, all
others as host work; device work named ``nccl...Kernel`` is communication and the rest computation; the file says
``"rank": N`` with a space.
"""

from __future__ import annotations

import gzip
import heapq
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halocast.errors import RunError
from halocast.traces.flights import pair_ends, waits_with_flights
from halocast.traces.trace import COMMUNICATION, COMPUTE, Trace

COMMUNICATION_KERNELS = {
    "Exchange": "ncclDevKernel_SendRecv",
    "Fetch": "ncclDevKernel_SendRecv",
    "AllToAll": "ncclDevKernel_SendRecv",
    "AllReduce": "ncclDevKernel_AllReduce_Sum",
}
HOST_OPERATIONS = ("Wait", "Keep", "Free")
"""Neither computation nor communication: on the compute stream, where they block or mark, but host work to HTA."""
ALWAYS_SHOWN = ("op", "phase", "epoch", "index")
SHOWN_WHERE_SET: dict[str, Any] = {
    "detail": "",
    "layer": -1,
    "direction": "",
    "part": "",
    "peer": -1,
    **dict.fromkeys(("rows", "nnz", "dim_in", "dim_out", "flops", "bytes_out", "bytes_in", "bits"), 0),
    "cpu_ns": 0,
    "live_bytes": 0,
}
"""Columns that become arguments, each with the value that says nothing."""


def export_perfetto(trace: Trace, out: Path) -> Path:
    """Write all ranks into one file, gzipped where its name ends in ``.gz``; returns the path.

    One slice a span, an arrow from each message's exchange to the wait that received it, and a counter of live bytes
    a rank. Times are µs from the first span, exact to the ns, on rank 0's clock. Raises RunError where writing fails.
    """
    header = {"schemaVersion": 1, "displayTimeUnit": "ms", "distributedInfo": _distributed_info(trace, 0)}
    _write_events(out, header, _run_events(trace, Place()))
    return out


def export_side_by_side(traces: Mapping[str, Trace], out: Path) -> Path:
    """Write several traces into one file, the first on top; otherwise as `export_perfetto`.

    Ranks are called by their trace's key: ``forecast: rank 3``. Each trace starts at time 0, so give traces of one
    epoch each (`halocast.traces.epochs.one_epoch`) to compare epochs.
    """
    place = Place()
    runs = []
    for label, trace in traces.items():
        runs.append(_run_events(trace, replace(place, label=f"{label}: ")))
        place = replace(place, process=place.process + trace.manifest.world_size, message=place.message + len(trace.messages))
    _write_events(out, {"schemaVersion": 1, "displayTimeUnit": "ms"}, itertools.chain.from_iterable(runs))
    return out


@dataclass(frozen=True)
class Place:
    """Where a trace goes in a file that may hold others: names and numbers that must not meet."""

    label: str = ""
    """Before the names of its ranks."""
    process: int = 0
    """Of rank 0; the others follow."""
    message: int = 1
    """Number of its first message."""


def _run_events(trace: Trace, place: Place) -> Iterator[dict[str, Any]]:
    aligned = trace.aligned()
    slices = lay_out(aligned.spans)
    arrows = match_messages(slices, aligned.messages)
    origin = _origin(slices)
    slices["process"] = slices["rank"] + place.process
    yield from _names(slices, place.label)
    yield from _slice_events(slices, _exact_microseconds(slices, origin))
    yield from _flow_events(arrows, origin, place)
    yield from _counter_events(slices, origin)


def export_hta(trace: Trace, folder: Path) -> list[Path]:
    """Write one ``rank-N.json.gz`` a rank for ``TraceAnalysis(trace_dir=folder)``; returns the files.

    Times are whole µs on rank 0's clock: HTA cuts fractions off inwards, which takes up to 2 µs from every span and
    turns short ones negative, so they are rounded here, each edge to the nearest. No ``ProfilerStep`` marks, because
    with them HTA drops the last epoch. Raises RunError where writing fails.
    """
    slices = lay_out(trace.aligned().spans)
    slices["process"] = slices["rank"]
    edges = _whole_microseconds(slices, _origin(slices))
    paths = []
    for rank in range(trace.manifest.world_size):
        own = (slices["rank"] == rank).to_numpy()
        path = folder / f"rank-{rank:05d}.json.gz"
        header = {"schemaVersion": 1, "deviceProperties": [], "distributedInfo": _distributed_info(trace, rank)}
        _write_events(path, header, (*_names(slices[own]), *_slice_events(slices[own], edges[own])))
        paths.append(path)
    return paths


def lay_out(spans: pd.DataFrame) -> pd.DataFrame:
    """Give every span a thread on which nothing overlaps: columns ``thread`` (id, from 1 a rank) and ``lane`` (name).

    A stream takes as many threads as it has spans in flight at once; the first is named after the stream, the others
    ``communication 2`` and so on. Rows are sorted by rank, thread and start.
    """
    spans = spans.sort_values(["rank", "start_ns", "index"], kind="stable", ignore_index=True)
    lanes = np.zeros(len(spans), dtype=np.int64)
    for rows in spans.groupby(["rank", "stream"], sort=False).indices.values():
        start = spans["start_ns"].to_numpy()[rows]
        lanes[rows] = _first_free_lanes(start, start + spans["wall_ns"].to_numpy()[rows])
    streams = sorted(spans["stream"].unique(), key=lambda name: (name != COMPUTE, name != COMMUNICATION, name))
    order = spans["stream"].map({name: position for position, name in enumerate(streams)}).to_numpy(dtype=np.int64)
    depth = int(lanes.max(initial=0)) + 1
    threads = pd.Series(order * depth + lanes).groupby(spans["rank"]).rank(method="dense").astype("int64")
    suffix = np.where(lanes > 0, " " + (lanes + 1).astype(str).astype(object), "")
    laid_out = spans.assign(thread=threads, lane=spans["stream"].astype(object) + suffix)
    return laid_out.sort_values(["rank", "thread", "start_ns"], kind="stable", ignore_index=True)


def _first_free_lanes(start: np.ndarray[Any, Any], end: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lanes of intervals sorted by start, so that none overlap in a lane: the lowest lane that is free."""
    lanes = np.zeros(len(start), dtype=np.int64)
    if len(start) < 2 or (start[1:] >= np.maximum.accumulate(end)[:-1]).all():
        return lanes
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (end, lane)
    for position, (begins, ends) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        while busy and busy[0][0] <= begins:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        lanes[position] = lane
        heapq.heappush(busy, (ends, lane))
    return lanes


def _origin(slices: pd.DataFrame) -> int:
    return int(slices["start_ns"].min()) if len(slices) else 0


def _exact_microseconds(slices: pd.DataFrame, origin: int) -> pd.DataFrame:
    return pd.DataFrame({"ts": _instants(slices["start_ns"], origin), "dur": slices["wall_ns"] / 1e3})


def _instants(times_ns: pd.Series, origin: int) -> pd.Series:
    """Times as µs that are the same whole ns rounded or cut off.

    Trace processor multiplies by 1000 and cuts off: ns / 1000 alone comes out 1 ns early in one of 130 cases, its slice
    then overlaps the one before, and is dropped.
    """
    return (times_ns - origin + 0.1) / 1e3


def _whole_microseconds(slices: pd.DataFrame, origin: int) -> pd.DataFrame:
    """Rounding both edges keeps their order, so slices that did not overlap still do not."""
    start = (slices["start_ns"] - origin + 500) // 1000
    end = (slices["start_ns"] + slices["wall_ns"] - origin + 500) // 1000
    return pd.DataFrame({"ts": start, "dur": end - start})


def _distributed_info(trace: Trace, rank: int) -> dict[str, Any]:
    return {"backend": "halocast", "rank": rank, "world_size": trace.manifest.world_size}


def _names(slices: pd.DataFrame, label: str = "") -> Iterator[dict[str, Any]]:
    """Process and thread names; with a time, because without one HTA reads all times as fractions."""

    def name(kind: str, process: int, thread: int, **args: Any) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "ts": 0, "args": args}

    for rank, process in slices[["rank", "process"]].drop_duplicates().itertuples(index=False):
        yield name("process_name", process, 0, name=f"{label}rank {rank}")
        yield name("process_sort_index", process, 0, sort_index=process)
    threads = slices[["process", "thread", "lane"]].drop_duplicates()
    for process, thread, lane in threads.itertuples(index=False):
        yield name("thread_name", process, thread, name=lane)
        yield name("thread_sort_index", process, thread, sort_index=thread)


def _slice_events(slices: pd.DataFrame, edges: pd.DataFrame) -> Iterator[dict[str, Any]]:
    kernels = slices["op"].map(COMMUNICATION_KERNELS).where(slices["stream"] == COMMUNICATION)
    labels = (slices["op"] + " " + slices["detail"] + " " + slices["part"]).str.replace("  ", " ")
    hosted = slices["op"].isin(HOST_OPERATIONS) | (
        slices["op"].isin(COMMUNICATION_KERNELS) & (slices["stream"] != COMMUNICATION)  # only its start is host work
    )
    names = kernels.where(kernels.notna(), slices["op"].where(hosted, labels))
    records = slices[[*ALWAYS_SHOWN, *SHOWN_WHERE_SET]].to_dict("records")
    rows = zip(
        *(column.tolist() for column in (names, hosted, slices["process"], slices["thread"], edges["ts"], edges["dur"])),
        records,
        strict=True,
    )
    for position, (label, host, process, thread, start, duration, record) in enumerate(rows):
        args = {key: record[key] for key in ALWAYS_SHOWN}
        args |= {key: record[key] for key, unset in SHOWN_WHERE_SET.items() if record[key] != unset}
        if not host:
            args |= {"stream": thread, "correlation": position + 1}
        yield {
            "ph": "X",
            "cat": "cpu_op" if host else "kernel",
            "name": label,
            "pid": process,
            "tid": thread,
            "ts": start,
            "dur": duration,
            "args": args,
        }


def _flow_events(arrows: pd.DataFrame, origin: int, place: Place) -> Iterator[dict[str, Any]]:
    """An arrow a message, from the start of the sender's exchange to the receiver's wait, where it arrived in it."""
    departs, arrives = (_instants(arrows[column], origin) for column in ("departs_ns", "arrives_ns"))
    sender, receiver = arrows["sender"] + place.process, arrows["receiver"] + place.process
    columns = (sender, arrows["sender_thread"], receiver, arrows["receiver_thread"], arrows["bytes"], departs, arrives)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for identity, (source, source_thread, target, target_thread, size, start, end) in enumerate(rows, start=place.message):
        common = {"cat": "message", "name": "message", "id": identity, "args": {"bytes": size}}
        yield {**common, "ph": "s", "pid": source, "tid": source_thread, "ts": start}
        yield {**common, "ph": "f", "bp": "e", "pid": target, "tid": target_thread, "ts": end}


def match_messages(slices: pd.DataFrame, messages: pd.DataFrame) -> pd.DataFrame:
    """Join every message that arrived with the sender's exchange and the receiver's wait, a row a message.

    Columns sender, sender_thread, departs_ns, receiver, receiver_thread, arrives_ns and bytes. Messages whose other
    end, exchange or wait is not in the trace (a killed run) are left out.
    """
    columns = ["sender", "sender_thread", "departs_ns", "receiver", "receiver_thread", "arrives_ns", "bytes"]
    if slices.empty or messages.empty:
        return pd.DataFrame(columns=columns, dtype="int64")
    pairs = pair_ends(messages)
    departures = _departures(slices)
    arrows = pairs.merge(departures, on=["sender", "phase", "epoch", "index"])
    arrows = _with_waits(arrows, waits_with_flights(slices, messages))
    # Inside the wait's slice, whose end is exclusive and may be cut off by 1 ns, or the arrow has no slice to end at.
    last = arrows["start_ns"] + (arrows["wall_ns"] - 2).clip(lower=0)
    arrows["arrives_ns"] = arrows["receive_done_ns"].clip(lower=arrows["start_ns"], upper=last)
    return arrows[columns].sort_values(["departs_ns", "sender", "receiver"], kind="stable", ignore_index=True)


def _departures(slices: pd.DataFrame) -> pd.DataFrame:
    """Where each exchange's arrows start: its flight, or, where only its start was traced, that."""
    exchanges = slices[slices["op"] == "Exchange"].sort_values("stream", key=lambda name: name != COMMUNICATION)
    exchanges = exchanges.drop_duplicates(["rank", "phase", "epoch", "index"])
    return exchanges[["rank", "phase", "epoch", "index", "thread", "start_ns"]].rename(
        columns={"rank": "sender", "thread": "sender_thread", "start_ns": "departs_ns"}
    )


def _with_waits(arrows: pd.DataFrame, waits: pd.DataFrame) -> pd.DataFrame:
    """Add the receiver's wait of the same exchange: for the sender, or else for all of it (−1)."""
    waits = waits.rename(columns={"rank": "receiver", "flight": "receiver_index", "thread": "receiver_thread"})
    waits = waits[["receiver", "phase", "epoch", "receiver_index", "peer", "receiver_thread", "start_ns", "wall_ns"]]
    ends = ["receiver", "phase", "epoch", "receiver_index"]
    for_sender = arrows.merge(waits[waits["peer"] >= 0].rename(columns={"peer": "sender"}), how="left", on=[*ends, "sender"])
    is_own = for_sender["start_ns"].notna()
    for_all = arrows[~is_own.to_numpy()].merge(waits[waits["peer"] < 0], on=ends)
    found = pd.concat([for_sender[is_own], for_all])
    return found.astype({"receiver_thread": "int64", "start_ns": "int64", "wall_ns": "int64"})


def _counter_events(slices: pd.DataFrame, origin: int) -> Iterator[dict[str, Any]]:
    """Bytes of live buffers, where they change; a flight's span ends late, so only the compute stream counts."""
    compute = slices[slices["stream"] == COMPUTE].sort_values(["process", "start_ns"], kind="stable")
    previous = compute.groupby("process")["live_bytes"].shift()
    changed = compute[previous != compute["live_bytes"]]
    ends = _instants(changed["start_ns"] + changed["wall_ns"], origin)
    for process, end, size in zip(changed["process"].tolist(), ends.tolist(), changed["live_bytes"].tolist(), strict=True):
        yield {"ph": "C", "name": "live bytes", "pid": process, "tid": 0, "ts": end, "args": {"bytes": size}}


def _write_events(path: Path, header: dict[str, Any], events: Iterable[dict[str, Any]]) -> None:
    """One event a line; the header comes first, because HTA looks for the rank line by line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "wb") as raw,
            # Without name and time in the gzip header the same trace gives the same bytes.
            gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw as binary,
            io.TextIOWrapper(binary, encoding="utf-8") as file,
        ):
            file.write(json.dumps(header)[:-1] + ', "traceEvents": [\n')
            separator = ""
            for event in events:
                file.write(separator + json.dumps(event))
                separator = ",\n"
            file.write("\n]}\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
