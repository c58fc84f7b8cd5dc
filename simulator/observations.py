"""What runs measured, put beside the programs they ran: the material of calibration and of validation.

A run's trace says which workload it had; walking the program with it gives every operation again, in order. They must be
the traced ones, one by one, or the trace belongs to another version of the program and is refused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from halocast.errors import MisuseError
from halocast.runtime.programs import METHODS
from halocast.simulator.engine import RankWork, lower
from halocast.traces.epochs import WARM_UP_EPOCHS
from halocast.traces.operations import Direction, Operation
from halocast.traces.schema import TRACE_SCHEMA_VERSION
from halocast.traces.trace import COMMUNICATION, COMPUTE, MANIFEST, TRAIN, Trace, read_trace
from halocast.traces.wire import BitHistogram
from halocast.traces.workload import BitAssignment, ExchangeBits, LayerSpec, RankView, Workload

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Configuration:
    """What was run, as far as its time depends on it. Two runs of one configuration are repeats."""

    graph: str
    fingerprint: str
    model: str
    ranks: int
    method: str
    bits: str
    link: float
    """Bytes per second of each rank's port; 0: not shaped."""
    partition: str
    device: str
    threads: int

    def __str__(self) -> str:
        width = "" if self.bits in ("", "32") else f" {self.bits} bits"
        return f"{self.graph} {self.ranks} ranks {self.method}{width} {link_name(self.link)} {self.partition}"


def link_name(rate: float) -> str:
    """12,500,000 bytes per second as ``100mbit``."""
    if rate == 0:
        return "unshaped"
    bits = 8 * rate
    return f"{bits / 1e9:g}gbit" if bits >= 1e9 else f"{bits / 1e6:g}mbit"


@dataclass(frozen=True, eq=False)
class Observation:
    """One run: its workload, its programs, its times."""

    folder: Path
    trace: Trace
    configuration: Configuration
    workload: Workload
    bits: tuple[BitAssignment | None, ...]
    """By rank: the widths of the last whole epoch, where the method quantises."""
    epochs: tuple[int, ...]
    """The epochs that count: after warming up, the last unfinished one left out, all at one assignment of widths."""
    epoch_seconds: Floats
    """[epochs] as rank 0 measured them."""
    peak_bytes: tuple[int, ...]
    """By rank; empty where the run left none."""

    @property
    def seconds(self) -> float:
        """The run's epoch time: the median."""
        return float(np.median(self.epoch_seconds))

    def views(self) -> list[RankView]:
        return [self.workload.view(rank, self.bits[rank]) for rank in range(self.workload.world_size)]

    @cached_property
    def unpriced(self) -> list[RankWork]:
        """By rank: the operations of an epoch, and what waits for what; nothing costs anything yet."""
        method = METHODS[self.configuration.method]
        return [lower(method.epoch(view), lambda _: 0.0) for view in self.views()]

    @property
    def operations(self) -> list[Sequence[Operation]]:
        """By rank: the operations of an epoch in order, Keep and Free left out."""
        return [each.operations for each in self.unpriced]

    @cached_property
    def spans(self) -> pd.DataFrame:
        """Compute spans of the epochs that count, on one clock."""
        spans = self.trace.aligned().spans
        return spans[(spans["phase"] == TRAIN) & spans["epoch"].isin(self.epochs) & (spans["stream"] == COMPUTE)]

    @cached_property
    def flights(self) -> pd.DataFrame:
        """Communication spans of the epochs that count."""
        spans = self.trace.aligned().spans
        return spans[(spans["phase"] == TRAIN) & spans["epoch"].isin(self.epochs) & (spans["stream"] == COMMUNICATION)]

    @cached_property
    def messages(self) -> pd.DataFrame:
        messages = self.trace.aligned().messages
        return messages[(messages["phase"] == TRAIN) & messages["epoch"].isin(self.epochs)]

    @cached_property
    def cpu_seconds(self) -> list[Floats]:
        """By rank: each operation's CPU (or device) time, the median over epochs."""
        table = self.spans.groupby(["rank", "index"])["cpu_ns"].median() / 1e9
        return [table[rank].to_numpy() for rank in range(self.workload.world_size)]


def observe(folder: Path) -> Observation:
    """Read one run. Raises MisuseError for a trace that is empty, cut too short, or not of these programs."""
    trace = read_trace(folder)
    manifest = trace.manifest
    if manifest.schema_version != TRACE_SCHEMA_VERSION:
        raise MisuseError(
            f"{folder}: trace of schema {manifest.schema_version}, others of {TRACE_SCHEMA_VERSION}: not to be mixed"
        )
    try:
        workload = Workload.from_json(manifest.workload)
    except (KeyError, TypeError) as error:
        raise MisuseError(
            f"{folder}: the trace does not say what its ranks worked on ({error}); record the run again"
        ) from error
    epochs, seconds = _steady_epochs(folder, trace)
    if not epochs:
        raise MisuseError(
            f"{folder}: no whole epoch after the first {WARM_UP_EPOCHS}, which do not count; train for {WARM_UP_EPOCHS + 2} or more"  # noqa: E501
        )
    configuration = _configuration(
        manifest.config, manifest.graph.name, manifest.graph.fingerprint, workload, manifest.machine.devices
    )
    bits = _traced_bits(trace, workload, epochs[-1], rotated=manifest.config["method"].get("rounding") == "rotated")
    if not configuration.bits:
        bits = (None,) * workload.world_size
    observation = Observation(folder, trace, configuration, workload, bits, epochs, seconds, _peaks(folder))
    _check_structure(observation)
    return observation


def _configuration(
    config: dict[str, Any], graph: str, fingerprint: str, workload: Workload, devices: Sequence[str]
) -> Configuration:
    method, model, partition = config["method"], config["model"], config["partition"]
    exact = "".join("1" if value else "0" for value in method["exact"].values())
    bits = str(method.get("bits") or ("adaptive" if method["name"] == "adaqp" else "")).removeprefix("uniform:")
    return Configuration(
        graph=graph,
        fingerprint=fingerprint,
        model=f"{model_name(model['layer'], workload.layers, model.get('options', {}))} exact {exact}"
        + (" batch norm" if any(layer.batch_norm for layer in workload.layers) else "")
        + ("" if workload.overlap else " no overlap")
        + (f" prefetch {workload.prefetch}" if method["name"] == "sar" else "")
        + (f" kept {','.join(map(str, workload.kept_layers))}" if workload.kept_layers else ""),
        ranks=workload.world_size,
        method=method["name"],
        bits=bits,
        link=parse_link(config["hosts"]),
        partition=f"{partition['method']}-{partition['objective']}-{partition['balance']}-{partition['seed']}",
        device=devices[0].partition(" ")[2] or devices[0],
        threads=workload.threads,
    )


def model_name(layer: str, specs: Sequence[LayerSpec], options: Mapping[str, Any]) -> str:
    """A model as far as its time depends on it, up to the savings."""
    widths = "x".join(str(spec.dim_out) for spec in specs)
    return " ".join([f"{layer} {specs[0].dim_in}x{widths}", *(f"{key} {options[key]}" for key in sorted(options))])


def parse_link(hosts: str) -> float:
    """``shaped:200mbit`` or ``200mbit`` as bytes per second; ``local`` as 0. Raises MisuseError for what is neither."""
    text = hosts.removeprefix("shaped:").strip().lower()
    if text in ("local", "unshaped"):
        return 0.0
    for unit, factor in (("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)):
        if text.endswith(unit):
            try:
                rate = float(text.removesuffix(unit)) * factor / 8
            except ValueError:
                break
            if rate > 0:
                return rate
    raise MisuseError(f"link '{hosts}' cannot be read: write a number and kbit, mbit or gbit, as in 200mbit, or unshaped")


def _steady_epochs(folder: Path, trace: Trace) -> tuple[tuple[int, ...], Floats]:
    """Whole epochs after warming up, at the widths of the last one, and how long rank 0 says they took."""
    spans = trace.spans[trace.spans["phase"] == TRAIN]
    steps = spans[spans["op"] == "Step"].groupby("epoch")["rank"].nunique()
    whole = [int(str(epoch)) for epoch, ranks in steps.items() if ranks == trace.manifest.world_size]
    epochs = [epoch for epoch in whole if epoch >= WARM_UP_EPOCHS]
    if not epochs:
        return (), np.zeros(0)
    sent = spans[spans["op"] == "Exchange"].groupby("epoch")["bytes_out"].sum()
    epochs = [epoch for epoch in epochs if sent.get(epoch, 0) == sent.get(epochs[-1], 0)]
    measured = {}
    table = folder / "metrics.csv"
    if table.is_file():
        metrics = pd.read_csv(table)
        measured = dict(zip(metrics["epoch"], metrics["epoch_seconds"], strict=True))
    first = spans[spans["rank"] == 0].groupby("epoch")
    start, end = first["start_ns"].min(), first.apply(lambda rows: (rows["start_ns"] + rows["wall_ns"]).max())
    seconds = [measured.get(epoch, (end[epoch] - start[epoch]) / 1e9) for epoch in epochs]
    return tuple(epochs), np.array(seconds)


def _traced_bits(trace: Trace, workload: Workload, epoch: int, *, rotated: bool) -> tuple[BitAssignment | None, ...]:
    """The widths that the ranks' messages had in `epoch`."""
    messages = trace.messages
    messages = messages[(messages["phase"] == TRAIN) & (messages["epoch"] == epoch)]
    world = workload.world_size
    tables: list[dict[tuple[int, Direction], list[list[BitHistogram]]]] = [
        defaultdict(lambda: [[()] * world for _ in range(4)]) for _ in range(world)
    ]
    for row in messages.sort_values("index").to_dict("records"):
        outgoing, incoming, again_outgoing, again_incoming = tables[row["rank"]][row["layer"], Direction(row["direction"])]
        for bits, first, again in (("bits_out", outgoing, again_outgoing), ("bits_in", incoming, again_incoming)):
            histogram = _histogram(row[bits])
            if histogram:  # a message may go one way only
                (again if first[row["peer"]] else first)[row["peer"]] = histogram
    return tuple(
        BitAssignment({key: ExchangeBits(*map(tuple, widths)) for key, widths in table.items()}, rotated=rotated)
        for table in tables
    )


def _histogram(pairs: Iterable[tuple[int, int]]) -> BitHistogram:
    return tuple((int(bits), int(rows)) for bits, rows in pairs)


def _peaks(folder: Path) -> tuple[int, ...]:
    try:
        return tuple(json.loads((folder / "result.json").read_text())["peak_bytes"])
    except (OSError, json.JSONDecodeError, KeyError):
        return ()


STRUCTURE = [
    "op", "detail", "layer", "direction", "part", "peer", "rows", "nnz", "dim_in", "dim_out", "flops", "bytes_out", "bytes_in",
    "bits",
]  # fmt: skip


def structure(operations: Iterable[Operation]) -> list[tuple[Any, ...]]:
    """What a trace says of operations besides their times: one tuple each, columns `STRUCTURE`."""
    return [
        (
            type(each).__name__, each.detail, each.layer, str(each.direction), str(each.part), getattr(each, "peer", -1),
            each.work.rows, each.work.nnz, each.work.dim_in, each.work.dim_out, each.work.flops, each.work.bytes_out,
            each.work.bytes_in, each.work.bits,
        )
        for each in operations
    ]  # fmt: skip


def traced_structure(spans: pd.DataFrame, rank: int, epoch: int) -> list[tuple[Any, ...]]:
    """The same of what a rank executed in one epoch."""
    rows = spans[(spans["rank"] == rank) & (spans["epoch"] == epoch)].sort_values("index")
    return list(rows[STRUCTURE].itertuples(index=False, name=None))


def _check_structure(observation: Observation) -> None:
    for rank, operations in enumerate(observation.operations):
        traced, expected = traced_structure(observation.spans, rank, observation.epochs[-1]), structure(operations)
        if traced == expected:
            continue
        different = next(
            (i for i, (a, b) in enumerate(zip(traced, expected, strict=False)) if a != b), min(len(traced), len(expected))
        )
        raise MisuseError(
            f"{observation.folder}: rank {rank}'s trace is not of this version's program (operation {different} of "
            f"{len(expected)} differs); record the run again"
        )


def observe_all(folders: Sequence[Path]) -> list[Observation]:
    """Read runs that may be calibrated together: one machine, one device. Raises MisuseError naming the odd one out."""
    if not folders:
        raise MisuseError("no run folders given; record some with `halocast train`")
    observations = [observe(folder) for folder in folders]
    first = observations[0].trace.manifest.machine
    for each in observations[1:]:
        machine = each.trace.manifest.machine
        if (machine.cpu, machine.cores) != (first.cpu, first.cores):
            raise MisuseError(
                f"{each.folder} was recorded on {machine.cpu} with {machine.cores} cores, {observations[0].folder} on {first.cpu} "  # noqa: E501
                f"with {first.cores}: calibrate each machine by itself"
            )
        if each.configuration.device != observations[0].configuration.device:
            raise MisuseError(
                f"{each.folder} ran on {each.configuration.device}, {observations[0].folder} on "
                f"{observations[0].configuration.device}: calibrate each device by itself"
            )
    return observations


def find_runs(places: Sequence[Path]) -> list[Path]:
    """The run folders among `places` and, for a folder that is none itself, those anywhere below it, sorted.

    Raises MisuseError for a place that does not exist or holds none.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise MisuseError(f"{place}: no such folder; give run folders, or folders that hold them")
        if (place / MANIFEST).is_file() or (place / "trace" / MANIFEST).is_file():
            found.append(place)
            continue
        below = sorted(manifest.parent for manifest in place.rglob(MANIFEST))
        runs = [folder.parent if folder.name == "trace" else folder for folder in below]
        if not runs:
            raise MisuseError(f"{place}: no run folder in it (none holds a trace); record one with `halocast train`")
        found += runs
    return found
