"""Operations under the roof of their machine: how much they compute for each byte they move, and how fast.

S. Williams, A. Waterman, D. Patterson, Roofline: an insightful visual performance model, CACM 52(4), 2009. Flops and times are
the trace's; bytes of memory are nowhere measured: they are what an operation must at least read and write (`moved_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from halocast.reports.document import Basis, Column, Picture, Table
from halocast.reports.figures import (
    DARK,
    INK,
    INK_ON_COLOUR,
    MARKS,
    MUTED,
    OPERATION_COLOURS,
    PAPER,
    UNKNOWN_COLOUR,
    headline,
    new_figure,
    style,
)
from halocast.reports.page import marks_of
from halocast.simulator.costs import Ceilings
from halocast.traces.trace import COMPUTE, TRAIN, Trace
from halocast.words import three_digits, time_span

OPERATIONS = "operations"
"""Identity of the table."""
KEY = ["op", "detail", "layer", "direction"]
INDEX_BYTES = 4
NUMBER_SPACING = 0.06, 0.1
"""Decades across and up that two numbers need between them."""
HEIGHT = 4.6
WAITING = ("Wait", "Exchange", "AllReduce", "Fetch", "AllToAll", "Upload")


@dataclass(frozen=True)
class OperationTotals:
    """All executions of one kind of operation in an epoch, over all ranks."""

    name: str
    op: str
    count: float
    seconds: float
    """Of wall time."""
    core_seconds: float
    """On its core, or device."""
    flops: float
    moved: float
    """Bytes, at least."""

    @property
    def intensity(self) -> float | None:
        """Flop for each byte."""
        return self.flops / self.moved if self.flops and self.moved else None

    @property
    def rate(self) -> float | None:
        """Flop/s of one rank while it does this."""
        return self.flops / self.core_seconds if self.flops and self.core_seconds else None


def moved_bytes(spans: pd.DataFrame, value_bytes: int) -> pd.Series:
    """Bytes that each span reads and writes if every row comes from memory once; those of neighbours once a nonzero.

    A product with sparse features reads its nonzeros once, and the weights once: they stay in a cache.
    """
    width_in, width_out = spans["dim_in"], spans["dim_out"]
    rows = value_bytes * spans["rows"]
    sums = value_bytes * (spans["nnz"] + spans["rows"]) * width_out + INDEX_BYTES * spans["nnz"]
    weights = value_bytes * width_in * width_out
    products = rows * (width_in + width_out) + weights
    sparse = (value_bytes + INDEX_BYTES) * spans["nnz"] + weights + rows * width_out
    is_product = spans["op"] == "Transform"
    moved = np.select([(spans["nnz"] > 0) & is_product, spans["nnz"] > 0], [sparse, sums], products)
    return pd.Series(moved, index=spans.index)


def operation_totals(trace: Trace, epochs: Sequence[int]) -> list[OperationTotals]:
    """By kind, detail, layer and direction; the one that takes longest first."""
    spans = trace.spans
    spans = spans[(spans["phase"] == TRAIN) & spans["epoch"].isin(epochs) & (spans["stream"] == COMPUTE)]
    spans = spans[~spans["op"].isin(MARKS)]
    spans = spans.assign(moved=moved_bytes(spans, trace.manifest.value_bytes))
    groups = spans.groupby(KEY, as_index=False)
    sums = groups[["wall_ns", "cpu_ns", "flops", "moved"]].sum().assign(count=groups.size()["size"])
    found = []
    for row in sums.sort_values("cpu_ns", ascending=False).to_dict("records"):
        layer = f"layer {row['layer']} {row['direction']}" if row["layer"] >= 0 else ""
        found.append(
            OperationTotals(
                ", ".join(filter(None, (f"{row['op']} {row['detail']}".rstrip(), layer))),
                str(row["op"]),
                *(
                    float(row[name]) * scale / len(epochs)
                    for name, scale in (("count", 1.0), ("wall_ns", 1e-9), ("cpu_ns", 1e-9), ("flops", 1.0), ("moved", 1.0))
                ),
            )
        )
    return found


def roofline_picture(operations: Sequence[OperationTotals], ceilings: Ceilings | None, basis: Basis) -> Picture | None:
    """Flop/s against flop for each byte; the area is the time on the core. None where nothing counts flops."""
    shown = [(place, each) for place, each in enumerate(operations, start=1) if each.rate and each.intensity]
    if not shown:
        return None
    x = np.array([each.intensity for _, each in shown], dtype=np.float64)
    y = np.array([each.rate for _, each in shown], dtype=np.float64) / 1e9
    time = np.array([each.core_seconds for _, each in shown])
    figure = new_figure(HEIGHT)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    colours = [OPERATION_COLOURS.get(each.op, UNKNOWN_COLOUR) for _, each in shown]
    axes.scatter(x, y, s=60 + 900 * time / time.max(), c=colours, edgecolors=PAPER, linewidths=0.8, alpha=0.9, zorder=2)
    for place in apart(np.log10(np.column_stack([x, y]))):
        ink = PAPER if colours[place] in DARK else INK_ON_COLOUR
        number = str(shown[place][0])
        axes.annotate(number, (x[place], y[place]), ha="center", va="center", fontsize=7.5, color=ink, zorder=3)
    low, high = float(x.min()) / 2, float(x.max()) * 2
    if ceilings is not None:
        across = np.geomspace(low, max(high, 2 * ceilings.gemm_rate / ceilings.memory_rate), 200)
        axes.plot(across, np.minimum(across * ceilings.memory_rate, ceilings.gemm_rate) / 1e9, color=INK, linewidth=1.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    style(axes, xlabel="flop for each byte moved (assumed: every row once)", grid="y")
    axes.set_ylabel("Gflop/s of a rank", fontsize=8.5, color=MUTED)
    roof = (
        "no ceilings: --costs COSTS draws them"
        if ceilings is None
        else f"line: {three_digits(ceilings.memory_rate / 1e9)} GB/s and {three_digits(ceilings.gemm_rate / 1e9)} Gflop/s, "
        f"measured on {ceilings.machine}, {ceilings.threads} thread{'s' * (ceilings.threads > 1)}"
    )
    headline(axes, "Operations under the roofline", f"areas are times on the core; numbers as in the table; {roof}")
    texts = [
        f"{number}: {each.name}\n"
        f"{three_digits((each.rate or 0) / 1e9)} Gflop/s at {three_digits(each.intensity or 0)} flop a byte\n"
        f"{time_span(each.core_seconds)} an epoch, all ranks"
        for number, each in shown
    ]
    longest = shown[0][1]
    return Picture(
        "roofline",
        figure,
        f"Roofline of {len(shown)} kinds of operations: the longest, {longest.name}, reaches "
        f"{three_digits((longest.rate or 0) / 1e9)} Gflop/s at {three_digits(longest.intensity or 0)} flop a byte; {roof}",
        basis,
        caption="Flops and times are measured; bytes are assumed: what an operation must at least read and write, "
        "neighbours' rows once a nonzero. What counts no flops (widths, loss, epilogues) is in the table only.",
        marks=marks_of(figure, axes, x, y, texts),
        rows=OPERATIONS,
    )


def apart(points: npt.NDArray[np.float64]) -> list[int]:
    """Places of those points, the first ones first, that no chosen one is too near to for a number in each."""
    chosen: list[int] = []
    for place, point in enumerate(points):
        distances = np.abs(points[chosen] - point) / NUMBER_SPACING
        if not chosen or (distances > 1.0).any(axis=1).all():
            chosen.append(place)
    return chosen


def operations_table(operations: Sequence[OperationTotals], basis: Basis, source: str) -> Table:
    """A row a kind of operation, an epoch of all ranks."""
    whole = sum(each.core_seconds for each in operations if each.op not in WAITING)
    return Table(
        OPERATIONS,
        "Operations of an epoch, all ranks together",
        (
            Column("no.", "count", key="number"),
            Column("operation"),
            Column("times", "count", key="count"),
            Column("time", "seconds", key="wall_seconds"),
            Column("on its core", "seconds", key="core_seconds"),
            Column("of all computing", "percent", key="share"),
            Column("flop", "prefixed", key="flops"),
            Column("bytes moved", "bytes", Basis.ASSUMED, key="moved_bytes"),
            Column("flop a byte", "number", Basis.ASSUMED, key="intensity"),
            Column("flop/s of a rank", "prefixed", key="flop_rate"),
        ),
        [
            (
                number,
                each.name,
                each.count,
                each.seconds,
                each.core_seconds,
                each.core_seconds / whole if whole and each.op not in WAITING else None,
                each.flops or None,
                each.moved if each.op not in WAITING else None,
                each.intensity,
                each.rate,
            )
            for number, each in enumerate(operations, start=1)
        ],
        basis,
        source,
    )
