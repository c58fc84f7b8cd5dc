"""The report of one training run: where its epochs go, who waits for whom, what it sends, learns and holds.

A reporter takes data; it parses no arguments and reads no run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd

from halocast.errors import MisuseError
from halocast.reports import figures
from halocast.reports.document import Basis, Block, Document, Fact, Picture, Section, Text, Tiles
from halocast.reports.epochs import EPOCHS, epochs_picture, epochs_table, far_words
from halocast.reports.gantt import gantt, spans_table
from halocast.reports.imbalance import (
    BREAKDOWN,
    breakdown_picture,
    breakdown_table,
    epochs_words,
    imbalance_table,
    imbalance_words,
)
from halocast.reports.memory import MEMORY, capacity_of, memory_picture, memory_table, rank_memory
from halocast.reports.ranks import RankTimes, last_to_send, rank_times
from halocast.reports.roofline import operation_totals, operations_table, roofline_picture
from halocast.reports.traffic import (
    EXCHANGES,
    exchange_widths,
    exchanges_table,
    matrix_picture,
    matrix_table,
    sent_bytes,
    widths_picture,
)
from halocast.reports.widths import mean_bits, together
from halocast.simulator.costs import Ceilings
from halocast.traces.epochs import WARM_UP_EPOCHS
from halocast.traces.trace import Trace, TraceManifest
from halocast.words import byte_count, time_span

SPLITS: Mapping[str, str] = MappingProxyType({"train": "training", "val": "validation", "test": "test"})
WORTH_NAMING = 0.02
"""A rank that holds up the others by this share of an epoch is named in the verdict."""
UNSURE_CLOCKS_NS = 1_000_000
"""Clocks that may be apart by more are told of."""


@dataclass(frozen=True)
class Promise:
    """What was forecast of a run before it was trained."""

    epoch_seconds: float
    low: float
    high: float
    """Of the 90 % interval."""
    peak_bytes: Sequence[int] = ()
    """One a rank."""


@dataclass(frozen=True)
class TrainRun:
    """What a training report shows besides what the trace itself says."""

    name: str
    method: str
    model: str
    """In words, such as ``GraphSAGE, 3 layers of 128``."""
    trace: Trace
    metrics: pd.DataFrame
    """Columns epoch, loss, epoch_seconds, train, val, test; NaN where an epoch was not evaluated."""
    bytes_per_epoch: int
    exchange_bytes_per_epoch: int
    """Of those, in halo exchanges."""
    peak_bytes: Sequence[int]
    """One a rank."""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    """The reported value on train, val and test."""
    metric: str = "accuracy"
    next_command: str = ""
    source: str = ""
    """The run's folder, as the user would write it."""
    unfinished: str = ""
    """How far it came, where it did not come to its end."""
    footprint: Sequence[dict[str, int]] = ()
    """By rank, as in the run's result: interpreter, before_training, peak; bytes."""
    promise: Promise | None = None

    @property
    def basis(self) -> Basis:
        """A simulated epoch opens as a run does."""
        return Basis.FORECAST if self.trace.manifest.config.get("forecast") else Basis.MEASURED


def train_document(run: TrainRun, ceilings: Ceilings | None = None) -> Document:
    """The report. Raises MisuseError where there is neither a training epoch nor a row of metrics."""
    times = rank_times(run.trace)
    if times is None and run.metrics.empty:
        raise MisuseError(
            f"{run.source or run.trace.folder}: no epoch was finished, so there is nothing to report; train longer"
        )
    sections = [Section("", [tiles(run, times)])]
    if times is not None:
        sections += traced_sections(run, times)
    if not run.metrics.empty:
        sections.append(Section("Learning, epoch by epoch", learning(run)))
    if run.peak_bytes:
        sections.append(Section("Memory", memory(run)))
    if times is not None:
        sections.append(Section("Operations", operations(run, times, ceilings)))
    return Document(
        kind="train",
        title=run.name,
        lead=lead(run),
        verdict=verdict(run, times),
        sections=sections,
        notes=notes(run, times, ceilings),
        data=data(run, times),
        footer=footer(run.trace.manifest),
        next_command=run.next_command,
    )


def lead(run: TrainRun) -> str:
    """What was run where, in one line."""
    manifest = run.trace.manifest
    graph = manifest.graph
    return ", ".join(
        filter(
            None,
            (
                f"{run.model}, {run.method}",
                f"{graph.name} ({graph.nodes:,} nodes, {graph.edges:,} edges)",
                f"{manifest.world_size} rank{'s' * (manifest.world_size > 1)}",
                f"{manifest.machine.cpu}, {manifest.machine.cores} cores",
                manifest.date,
            ),
        )
    )


def verdict(run: TrainRun, times: RankTimes | None) -> str:
    """Where the epoch goes, and who holds it up."""
    begin = f"Unfinished: {run.unfinished}. " if run.unfinished else ""
    if times is None:
        return f"{begin}No epoch was traced to its end, so where the time goes is not known."
    whole = time_span(median_seconds(run, times))
    if run.trace.manifest.world_size == 1:
        return f"{begin}One rank, nobody to wait for: {percent(times.shares['compute'])} of an epoch of {whole} is computing."
    waiting = f"{begin}{percent(times.waiting)} of an epoch of {whole} is waiting for messages"
    worst = int(times.holdups.to_numpy().argmax())
    share = float(times.holdups.iloc[worst]) / times.epoch_seconds
    if share < WORTH_NAMING:
        return f"{waiting}; no rank holds up the others by {percent(WORTH_NAMING)} or more."
    return f"{waiting}; rank {worst} holds up each of the others by {percent(share)} of it, sending late."


def counted_seconds(metrics: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Epoch times as rank 0 measured them, the first ones left out where enough remain."""
    known = metrics.dropna(subset="epoch_seconds")
    counted = known[known["epoch"] >= WARM_UP_EPOCHS]
    return (counted if len(counted) else known)["epoch_seconds"].to_numpy(dtype=np.float64)


def median_seconds(run: TrainRun, times: RankTimes | None) -> float:
    """Of an epoch; from the trace where rank 0 left no times."""
    seconds = counted_seconds(run.metrics)
    if len(seconds):
        return float(np.median(seconds))
    return times.epoch_seconds if times is not None else float("nan")


def tiles(run: TrainRun, times: RankTimes | None) -> Tiles:
    """The numbers that matter."""
    basis = run.basis
    seconds = counted_seconds(run.metrics)
    facts = []
    if len(seconds):
        low, high = np.quantile(seconds, (0.1, 0.9))
        spread = f"median of {len(seconds)} epochs; p10 {time_span(low)}, p90 {time_span(high)}"
        facts.append(Fact("Epoch time", time_span(float(np.median(seconds))), basis, spread, EPOCHS))
    elif times is not None:
        facts.append(Fact("Epoch time", time_span(times.epoch_seconds), basis, epochs_words(times.epochs), BREAKDOWN))
    if run.promise is not None and len(seconds):
        facts.append(promise_fact(run.promise, float(np.median(seconds))))
    if times is not None:
        counted = f"of the ranks' time, {epochs_words(times.epochs)}"
        facts.append(Fact("Waiting for messages", percent(times.waiting), basis, counted, BREAKDOWN))
        facts.append(Fact("Computing", percent(float(times.shares["compute"])), basis, counted, BREAKDOWN))
        widths = exchange_widths(run.trace, times.epochs)
        mean = mean_bits(together(widths))
        exchanged = f"{byte_count(run.exchange_bytes_per_epoch)} of it in halo exchanges" + (
            f", {mean:.1f} bits a value" if mean else ""
        )
        facts.append(Fact("Sent an epoch", byte_count(run.bytes_per_epoch), basis, exchanged, EXCHANGES if widths else ""))
    if run.peak_bytes:
        least = f"; the smallest {byte_count(min(run.peak_bytes))}" if len(run.peak_bytes) > 1 else ""
        qualified = f"of the largest rank, above Python and its libraries{least}"
        facts.append(Fact("Peak memory", byte_count(max(run.peak_bytes)), basis, qualified, MEMORY))
    facts += accuracy_facts(run)
    return Tiles(facts)


def promise_fact(promise: Promise, measured: float) -> Fact:
    """What was forecast, and how far it is off."""
    off = f"{100 * (promise.epoch_seconds / measured - 1):+.1f} %".replace("-", "−")
    where = "holds" if promise.low <= measured <= promise.high else "misses"
    interval = (
        f"90 % between {time_span(promise.low)} and {time_span(promise.high)}, which {where} what was measured; off by {off}"
    )
    return Fact("Epoch time, as planned", time_span(promise.epoch_seconds), Basis.FORECAST, interval, EPOCHS)


def accuracy_facts(run: TrainRun) -> list[Fact]:
    """The metric on the test nodes (or the nearest there is), and the loss."""
    facts = []
    rows = "" if run.metrics.empty else EPOCHS
    others = ", ".join(f"{run.accuracy[split]:.4f} on {SPLITS[split]}" for split in ("val", "train") if split in run.accuracy)
    if "test" in run.accuracy:
        name = f"{figures.sentence_case(run.metric.replace('_', ' '))} on test"
        facts.append(Fact(name, f"{run.accuracy['test']:.4f}", run.basis, others, rows))
    losses = run.metrics["loss"].dropna()
    if len(losses):
        facts.append(
            Fact(
                "Training loss", f"{losses.iloc[-1]:.4g}", run.basis, f"at the end, epoch {run.metrics['epoch'].iloc[-1]}", rows
            )
        )
    return facts


def traced_sections(run: TrainRun, times: RankTimes) -> list[Section]:
    """What only a trace tells: where time goes, who is late, the median epoch, the messages."""
    basis, source = run.basis, f"{run.source}/trace" if run.source else ""
    ranks = [f"rank {rank}" for rank in times.parts.index]
    title = f"Where an epoch of {time_span(times.epoch_seconds)} goes, rank by rank"
    imbalance = imbalance_table(run.trace, times, run.trace.manifest.machine.devices, basis, source)
    view = figures.view_epoch(run.trace)
    sections = [
        Section(
            "Where each rank's time goes",
            [breakdown_picture(ranks, times.parts, basis, title, BREAKDOWN), breakdown_table(times, basis, source)],
        ),
        Section("Stragglers and imbalance", [Text(points=imbalance_words(imbalance)), imbalance]),
        Section(f"Epoch {view.epoch}, operation by operation", [gantt(view, basis), spans_table(view, basis, source)]),
    ]
    return [*sections, Section("Messages", messages(run, times, source))] if run.trace.manifest.world_size > 1 else sections


def messages(run: TrainRun, times: RankTimes, source: str) -> list[Block]:
    """Bytes from rank to rank, and widths by exchange."""
    matrix = sent_bytes(run.trace, times.epochs)
    if not matrix.any():
        return [Text("No exchange sent anything: the savings left only the all-reduce of gradients to be sent.")]
    widths = exchange_widths(run.trace, times.epochs)
    blocks: list[Block] = [matrix_picture(matrix, run.basis), matrix_table(matrix, run.basis, source)]
    if any(each.histogram for each in widths):
        blocks.append(widths_picture(widths, run.basis))
    return [*blocks, exchanges_table(widths, last_to_send(run.trace, times.epochs), run.basis, source)]


def learning(run: TrainRun) -> list[Block]:
    """Loss and metric, and how long epochs took."""
    metric = run.metric.replace("_", " ")
    blocks: list[Block] = []
    if run.metrics["loss"].notna().any():
        losses = run.metrics["loss"].dropna()
        words = (
            f"Training loss and {metric} against the epoch: the loss falls from {losses.iloc[0]:.4g} to {losses.iloc[-1]:.4g}"
        )
        curves = figures.learning_curves(run.metrics, metric=metric)
        blocks.append(Picture("curves", curves, words, run.basis, rows=EPOCHS))
    if run.metrics["epoch_seconds"].notna().any():
        promise = None if run.promise is None else (run.promise.low, run.promise.epoch_seconds, run.promise.high)
        warm_up = WARM_UP_EPOCHS if run.metrics["epoch"].max() >= WARM_UP_EPOCHS else 0
        blocks.append(epochs_picture(run.metrics, warm_up, run.basis, promise))
    slow = far_words(run.metrics)
    return [
        *blocks,
        *([Text(slow)] if slow else []),
        epochs_table(run.metrics, metric, run.basis, f"{run.source}/metrics.csv" if run.source else ""),
    ]


def memory(run: TrainRun) -> list[Block]:
    """Peaks beside the capacity and the forecast."""
    ranks = rank_memory(run.peak_bytes, run.footprint, () if run.promise is None else run.promise.peak_bytes)
    capacity = capacity_of(run.trace)
    source = f"{run.source}/result.json" if run.source else ""
    return [memory_picture(ranks, capacity, run.basis), memory_table(ranks, capacity, run.basis, source)]


def operations(run: TrainRun, times: RankTimes, ceilings: Ceilings | None) -> list[Block]:
    """The roofline, and what takes the time."""
    totals = operation_totals(run.trace, times.epochs)
    picture = roofline_picture(totals, ceilings, run.basis)
    table = operations_table(totals, run.basis, f"{run.source}/trace" if run.source else "")
    return [table] if picture is None else [picture, table]


def notes(run: TrainRun, times: RankTimes | None, ceilings: Ceilings | None) -> list[str]:
    """What a reader must know first."""
    found = [f"unfinished: {run.unfinished}; what follows is of what there is"] if run.unfinished else []
    found += run.trace.notes
    if run.basis is Basis.FORECAST:
        found.append("this is a simulated epoch: nothing in it was measured")
    unsure = max((each.uncertainty_ns for each in run.trace.manifest.clock_offsets), default=0)
    if unsure > UNSURE_CLOCKS_NS:
        found.append(f"the ranks' clocks may be apart by {time_span(unsure / 1e9)}: who was late is only as sure")
    if ceilings is None and times is not None:
        found.append("the roofline has no ceilings: --costs COSTS (a file of halocast calibrate) draws them")
    return found


def data(run: TrainRun, times: RankTimes | None) -> dict[str, object]:
    """Keys that scripts rely on."""
    seconds = counted_seconds(run.metrics)
    found: dict[str, object] = {
        "run": run.source,
        "finished": not run.unfinished,
        "method": run.method,
        "ranks": run.trace.manifest.world_size,
        "epochs": len(run.metrics),
        "bytes_per_epoch": run.bytes_per_epoch,
        "exchange_bytes_per_epoch": run.exchange_bytes_per_epoch,
        "peak_bytes": list(run.peak_bytes),
        "accuracy": dict(run.accuracy),
    }
    losses = run.metrics["loss"].dropna()
    if len(losses):
        found["loss"] = float(losses.iloc[-1])
    if len(seconds):
        p10, median, p90 = (float(value) for value in np.quantile(seconds, (0.1, 0.5, 0.9)))
        found["epoch_seconds"] = {"median": median, "p10": p10, "p90": p90}
    if run.promise is not None:
        said = run.promise
        found["forecast"] = {
            "epoch_seconds": said.epoch_seconds,
            "low": said.low,
            "high": said.high,
            "peak_bytes": list(said.peak_bytes),
        }
        if len(seconds):
            found["error"] = said.epoch_seconds / float(np.median(seconds)) - 1.0
    if times is not None:
        found["epochs_counted"] = list(times.epochs)
        found["waiting_share"] = times.waiting
        found["shares"] = {name: float(value) for name, value in times.shares.items()}
    return found


def footer(manifest: TraceManifest) -> str:
    """What would repeat it."""
    versions = "".join(f", {name} {version}" for name, version in manifest.versions.items())
    return (
        f"halocast {manifest.halocast}{versions}; {manifest.machine.cpu}, {manifest.machine.cores} cores; "
        f"seed {manifest.seed}; graph {manifest.graph.fingerprint}"
    )


def byte_range(sizes: Sequence[int]) -> str:
    """One figure, or the smallest and the largest."""
    low, high = byte_count(min(sizes)), byte_count(max(sizes))
    return low if low == high else f"{low} to {high}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
