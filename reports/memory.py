"""What each rank holds at its peak, beside what it may hold and what was forecast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halocast.reports.document import Basis, Column, Picture, Table, Value
from halocast.reports.figures import BLUE, GRID, INK, SKY, VERMILION, headline, legend_below, new_figure, style
from halocast.reports.page import boxes_of
from halocast.reports.words import byte_unit
from halocast.simulator.catalogue import load_catalogue
from halocast.traces.trace import Trace
from halocast.words import byte_count

MEMORY = "memory"
"""Identity of the table."""
FAR = 2.5
"""A capacity so many times the highest bar is told, not drawn."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    interpreter: int
    """Python and its libraries; 0 on a GPU, and where the run does not say."""
    before_training: int
    """Graph, features, parameters."""
    training: int
    """What training takes at its peak besides."""
    forecast: int | None = None
    """Of all but the interpreter."""

    @property
    def whole(self) -> int:
        return self.interpreter + self.before_training + self.training


@dataclass(frozen=True)
class Capacity:
    """What a rank may hold."""

    bytes: int
    words: str
    basis: Basis


def rank_memory(peak_bytes: Sequence[int], footprint: Sequence[dict[str, int]], forecast: Sequence[int]) -> list[RankMemory]:
    """By rank, from what the result says; a peak on a GPU is not told apart."""
    found = []
    for rank, peak in enumerate(peak_bytes):
        known = footprint[rank] if rank < len(footprint) else {}
        on_host = bool(known) and known.get("peak") == peak
        before = min(peak, known.get("before_training", 0)) if on_host else 0
        said = forecast[rank] if rank < len(forecast) else None
        found.append(RankMemory(known.get("interpreter", 0) if on_host else 0, before, peak - before, said))
    return found


def capacity_of(trace: Trace) -> Capacity | None:
    """Of a GPU, by its data sheet; of ranks on a CPU, an equal share of the machine that rank 0 is on."""
    manifest = trace.manifest
    device = manifest.machine.devices[0] if manifest.machine.devices else ""
    if "cuda" in device:
        words = set(re.findall(r"\w+", device))
        for name, entry in load_catalogue().devices.items():
            if name in words:
                return Capacity(int(entry.memory_bytes.value), f"of an {entry.title}, by its data sheet", Basis.ASSUMED)
        return None
    if not manifest.machine.memory_bytes:
        return None
    return Capacity(
        manifest.machine.memory_bytes // manifest.world_size,
        f"an equal share of the machine's {byte_count(manifest.machine.memory_bytes)}",
        Basis.MEASURED,
    )


def memory_picture(ranks: Sequence[RankMemory], capacity: Capacity | None, basis: Basis) -> Picture:
    """Stacked bars by rank; a line at the capacity, a diamond at each forecast."""
    bars = len(ranks)
    highest = max(max(each.whole, each.interpreter + (each.forecast or 0)) for each in ranks)
    unit, unit_name = byte_unit(highest)
    figure = new_figure(min(9.0, 1.5 + 0.36 * max(2, bars)))
    axes = figure.add_subplot()
    largest = max(each.whole for each in ranks)
    rows = np.arange(bars)
    left = np.zeros(bars)
    parts = [
        ("Python and its libraries", GRID, [each.interpreter for each in ranks]),
        ("graph, features and weights", SKY, [each.before_training for each in ranks]),
        ("training, at its peak", BLUE, [each.training for each in ranks]),
    ]
    marks: list[tuple[float, float, float, str]] = []
    for name, colour, sizes in parts:
        if any(sizes):
            widths = np.array(sizes) / unit
            axes.barh(rows, widths, 0.6, left=left, color=colour, label=name)
            marks += [
                (start, row - 0.3, width, f"rank {row}: {name}\n{byte_count(size)}")
                for start, row, width, size in zip(left, rows.tolist(), widths, sizes, strict=True)
            ]
            left = left + widths
    said = [(row, each.interpreter + each.forecast) for row, each in enumerate(ranks) if each.forecast is not None]
    if said:
        places = [size / unit for _, size in said], [row for row, _ in said]
        axes.plot(*places, linestyle="", marker="D", markersize=5, color=INK, label="peak as forecast")
    drawn = capacity is not None and capacity.bytes <= FAR * highest
    if capacity is not None and drawn:
        axes.axvline(capacity.bytes / unit, color=VERMILION, linewidth=1.6, label="capacity")
    for row, each in enumerate(ranks):
        end = max(each.whole, each.interpreter + (each.forecast or 0)) / unit
        axes.annotate(
            byte_count(each.whole), (end, row), (7, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
        )
    every = max(1, -(-bars // 32))
    axes.set_yticks(rows[::every], [f"rank {rank}" for rank in range(0, bars, every)])
    axes.set_ylim(bars - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max(highest, capacity.bytes if capacity is not None and drawn else 0) / unit)
    style(axes, xlabel=f"{unit_name} at the peak", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    used = (
        "" if capacity is None else f"{100 * largest / capacity.bytes:.0f} % of {byte_count(capacity.bytes)}, {capacity.words}"
    )
    off = "; the capacity is off the axis" if capacity is not None and not drawn else ""
    headline(axes, f"The largest rank holds {byte_count(largest)}", used + off)
    legend_below(figure, axes.get_legend_handles_labels()[0], columns=5)
    texts = [text for *_, text in marks]
    x, y, extents = np.array([box for *box, _ in marks], dtype=np.float64).reshape(-1, 3).T
    return Picture(
        f"{MEMORY}-picture",
        figure,
        f"Peak memory by rank: {', '.join(byte_count(each.whole) for each in ranks[:16])}{' ...' * (bars > 16)}. {used}{off}",
        basis,
        marks=boxes_of(figure, axes, x, y, extents, np.full(len(x), 0.6), texts),
        rows=MEMORY,
    )


def memory_table(ranks: Sequence[RankMemory], capacity: Capacity | None, basis: Basis, source: str) -> Table:
    """A row a rank; columns of forecast and capacity where there are such."""
    columns = [
        Column("rank", "count"),
        Column("Python and its libraries", "bytes", key="interpreter_bytes"),
        Column("graph, features and weights", "bytes", key="before_training_bytes"),
        Column("training", "bytes", key="training_bytes"),
        Column("all", "bytes", key="whole_bytes"),
    ]
    rows: list[list[Value]] = [
        [rank, each.interpreter, each.before_training, each.training, each.whole] for rank, each in enumerate(ranks)
    ]
    if any(each.forecast is not None for each in ranks):
        columns += [
            Column("all but Python, as forecast", "bytes", Basis.FORECAST, key="forecast_bytes"),
            Column("off by", "change", key="forecast_error"),
        ]
        for row, each in zip(rows, ranks, strict=True):
            row += [each.forecast, off_by(each)]
    if capacity is not None:
        columns.append(Column("capacity", "bytes", capacity.basis, key="capacity_bytes"))
        for row in rows:
            row.append(capacity.bytes)
    caption = "Memory at the peak" + (f"; capacity: {capacity.words}" if capacity is not None else "")
    return Table(MEMORY, caption, columns, rows, basis, source)


def off_by(rank: RankMemory) -> float | None:
    """Of the forecast: signed, forecast / measured - 1."""
    measured = rank.whole - rank.interpreter
    return None if rank.forecast is None or not measured else rank.forecast / measured - 1.0
