"""The report of one training run: a picture for a README and a page that stands alone.

A reporter takes data and a path; it parses no arguments and reads no run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from halocast.reports import figures
from halocast.reports.page import inline_svg, page_template, png, write_files
from halocast.reports.words import byte_count
from halocast.traces.trace import COMMUNICATION, COMPUTE, Trace


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


@dataclass(frozen=True)
class RankRow:
    """One rank in the epoch of median time; milliseconds, and bytes at its peak."""

    rank: int
    device: str
    computing: str
    waiting: str
    communicating: str
    peak: str


def write_train_report(run: TrainRun, png_path: Path, html_path: Path) -> list[Path]:
    """Write the picture and the page; returns both paths.

    Raises MisuseError where the trace has no training epoch, RunError where writing fails.
    """
    picture = figures.train_figure(run.trace, run.metrics, metric=run.metric)
    write_files({png_path: png(picture), html_path: render_page(run).encode()})
    return [png_path, html_path]


def render_page(run: TrainRun) -> str:
    """The HTML page as text: no script, no style sheet, picture or font from anywhere else.

    Raises MisuseError where the trace has no training epoch.
    """
    view = figures.view_epoch(run.trace)
    gantt = figures.epoch_gantt(run.trace)
    curves = figures.learning_curves(run.metrics, metric=run.metric)
    return page_template("train.html.j2").render(
        run=run,
        manifest=run.trace.manifest,
        notes=run.trace.notes,
        facts=facts(run),
        ranks=rank_rows(run, view),
        epoch=view.epoch,
        gantt=inline_svg(gantt, "gantt", f"Gantt chart of epoch {view.epoch} over {view.world_size} ranks"),
        curves=inline_svg(curves, "curves", f"Training loss and {run.metric} against the epoch"),
    )


def facts(run: TrainRun) -> list[tuple[str, str]]:
    """The run in words and numbers: (name, value) pairs."""
    graph = run.trace.manifest.graph
    rows = [
        ("Graph", f"{graph.name}: {graph.nodes:,} nodes, {graph.edges:,} edges"),
        ("Model", run.model),
        ("Method", run.method),
        ("Ranks", str(run.trace.manifest.world_size)),
        ("Epochs", f"{len(run.metrics):,}"),
    ]
    seconds = run.metrics["epoch_seconds"].dropna().to_numpy(dtype=np.float64)
    if len(seconds):
        low, middle, high = (figures.duration(1e3 * value) for value in np.quantile(seconds, (0.1, 0.5, 0.9)))
        rows.append(("Epoch time", f"{middle} median, {low} p10, {high} p90"))
    exchanged = f"{byte_count(run.exchange_bytes_per_epoch)} of it in halo exchanges"
    rows.append(("Sent per epoch", f"{byte_count(run.bytes_per_epoch)}, {exchanged}"))
    if run.peak_bytes:
        rows.append(("Peak memory per rank", byte_range(run.peak_bytes)))
    losses = run.metrics["loss"].dropna()
    if len(losses):
        rows.append(("Training loss", f"{losses.iloc[-1]:.4g} in the last epoch"))
    values = [f"{run.accuracy[key]:.4f} {name}" for key, name in SPLITS.items() if key in run.accuracy]
    if values:
        rows.append((figures.sentence_case(run.metric), ", ".join(values)))
    return rows


SPLITS: Mapping[str, str] = MappingProxyType({"train": "training", "val": "validation", "test": "test"})


def rank_rows(run: TrainRun, view: figures.EpochView) -> list[RankRow]:
    """What each rank did in the epoch of median time; communication counts once where flights overlap."""
    devices = run.trace.manifest.machine.devices
    rows = []
    for rank in range(view.world_size):
        own = view.slices[view.slices["rank"] == rank]
        waiting = own["op"] == "Wait"
        rows.append(
            RankRow(
                rank=rank,
                device=devices[rank] if rank < len(devices) else "",
                computing=milliseconds(own.loc[(own["stream"] == COMPUTE) & ~waiting, "width"].sum()),
                waiting=milliseconds(own.loc[waiting, "width"].sum()),
                communicating=milliseconds(covered(own[own["stream"] == COMMUNICATION])),
                peak=byte_count(run.peak_bytes[rank]) if rank < len(run.peak_bytes) else "",
            )
        )
    return rows


def covered(slices: pd.DataFrame) -> float:
    """Length of the union of the slices, in ms."""
    ordered = slices.sort_values("left")
    left = ordered["left"].to_numpy()
    right = np.maximum.accumulate((ordered["left"] + ordered["width"]).to_numpy())
    reached = np.concatenate([left[:1], right[:-1]])
    return float(np.clip(right - np.maximum(left, reached), 0, None).sum())


def byte_range(sizes: Sequence[int]) -> str:
    """One figure, or the smallest and the largest."""
    low, high = byte_count(min(sizes)), byte_count(max(sizes))
    return low if low == high else f"{low} to {high}"


def milliseconds(value: float) -> str:
    return f"{value:,.1f}"
