"""The pictures of a training run: one epoch as a Gantt chart, and how the model learned.

Figures are made without pyplot, so nothing global is set or left behind. Colours are those of Okabe and Ito ("Color
Universal Design", 2008), which stay apart under the common kinds of colour blindness; waiting is hatched as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from halocast.errors import MisuseError
from halocast.traces.epochs import median_epoch
from halocast.traces.export.perfetto import lay_out
from halocast.traces.trace import COMPUTE, TRAIN, Trace

INK, MUTED, GRID, IDLE, PAPER = "#1f2328", "#59636e", "#d5dae0", "#e9ecef", "#ffffff"
"""Text, secondary text, lines, the fill of waiting, the background: what a dark page replaces."""
INK_ON_COLOUR = "#111418"
"""Text on a light span: the same on a dark page, where the spans keep their colours."""
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"
TEAL, PLUM = "#44aa99", "#882255"

OPERATION_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "Aggregate": BLUE,
        "Merge": BLUE,
        "Transform": SKY,
        "Apply": SKY,
        "Attend": TEAL,
        "Recur": TEAL,
        "Quantize": PURPLE,
        "Dequantize": PLUM,
        "Loss": GREEN,
        "Step": GREEN,
        "Wait": IDLE,
        "Exchange": ORANGE,
        "Fetch": ORANGE,
        "AllToAll": ORANGE,
        "Upload": ORANGE,
        "AllReduce": VERMILION,
    }
)
"""Operation kinds in the order of the legend; kinds that share a colour share its entry."""
UNKNOWN_COLOUR = MUTED
MARKS = ("Keep", "Free")
"""Operations without a duration of their own."""
DARK = (BLUE, VERMILION, PLUM, GREEN)
"""Colours that carry white text."""

COMPUTE_HEIGHT, COMMUNICATION_HEIGHT, GAP = 0.52, 0.26, 0.03
FIGURE_WIDTH, CURVES_HEIGHT = 10.0, 3.1
"""Inches."""
LABELLED_SHARE = 0.028
"""A span shows its layer when it takes this share of the axis."""
SPLIT_COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"train": ("training", MUTED), "val": ("validation", BLUE), "test": ("test", VERMILION)}
)


@dataclass(frozen=True)
class EpochView:
    """One epoch of a trace, laid out: slices with columns ``left`` and ``width`` in ms from its start."""

    epoch: int
    milliseconds: float
    is_median: bool
    graph: str
    world_size: int
    slices: pd.DataFrame

    @property
    def waiting(self) -> float:
        """Share of the ranks' time in which they did nothing but wait."""
        waits = self.slices.loc[self.slices["op"] == "Wait", "width"].sum()
        return float(waits / (self.world_size * self.milliseconds)) if self.milliseconds else 0.0


def view_epoch(trace: Trace, epoch: int | None = None) -> EpochView:
    """Pick a training epoch, by default the median one of those that count (`traces.epochs.median_epoch`).

    Raises MisuseError where the trace has no (such) epoch.
    """
    spans = trace.aligned().spans
    spans = spans[(spans["phase"] == TRAIN) & ~spans["op"].isin(MARKS)]
    if spans.empty:
        raise MisuseError(f"{trace.folder}: no spans of a training epoch in this trace, so there is nothing to draw")
    chosen = median_epoch(trace) if epoch is None else epoch
    spans = spans[spans["epoch"] == chosen]
    if spans.empty:
        epochs = trace.epoch_bounds().index
        raise MisuseError(f"{trace.folder}: no epoch {chosen} in this trace; it has {epochs.min()} to {epochs.max()}")
    start = int(spans["start_ns"].min())
    slices = lay_out(spans)
    slices["left"] = (slices["start_ns"] - start) / 1e6
    slices["width"] = slices["wall_ns"] / 1e6
    return EpochView(
        epoch=chosen,
        milliseconds=float((slices["left"] + slices["width"]).max()),
        is_median=epoch is None,
        graph=trace.manifest.graph.name,
        world_size=trace.manifest.world_size,
        slices=slices,
    )


def learning_curves(metrics: pd.DataFrame, *, metric: str = "accuracy") -> Figure:
    """Training loss and the metric on each split, against the epoch.

    `metrics` has columns epoch, loss, train, val, test; NaN where an epoch was not evaluated.
    """
    figure = new_figure(CURVES_HEIGHT)
    loss_axes, metric_axes = figure.subplots(1, 2)
    draw_loss(loss_axes, metrics)
    draw_metric(metric_axes, metrics, metric)
    return figure


def new_figure(height: float) -> Figure:
    """An empty figure of the common width, with a margin that keeps the last span off the edge."""
    figure = Figure(figsize=(FIGURE_WIDTH, height), facecolor=PAPER)
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.1)
    return figure


def draw_lanes(axes: Axes, view: EpochView, extent: float, *, most_named: int = 24) -> None:
    """Draw the lanes of all ranks, rank 0 on top, on an axis from 0 to `extent` ms.

    `most_named`: of more ranks than that only some are named, and of more than half of it no span shows its layer.
    """
    slices = place_lanes(view.slices)
    colours = slices["op"].map(OPERATION_COLOURS).fillna(UNKNOWN_COLOUR)
    for colour, group in slices.groupby(colours, sort=False):
        waiting = colour == IDLE
        axes.add_collection(
            PolyCollection(
                corners(group),
                facecolors=colour,
                edgecolors=MUTED if waiting else PAPER,
                linewidths=0.3,
                hatch="//////" if waiting else None,
                hatch_linewidth=0.35,
            )
        )
    if view.world_size <= most_named // 2:
        label_layers(axes, slices, colours, extent)
    mark_direction(axes, view)
    axes.set_xlim(0, extent)
    axes.set_ylim(view.world_size - 0.08, -0.02)
    axes.set_yticks(np.arange(view.world_size) + COMPUTE_HEIGHT / 2, [f"rank {r}" for r in range(view.world_size)])
    if view.world_size > most_named:
        axes.yaxis.set_major_locator(MaxNLocator(2 * most_named // 3, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"rank {value:.0f}"))
    style(axes, xlabel="ms", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)


def place_lanes(slices: pd.DataFrame) -> pd.DataFrame:
    """Add ``top`` and ``height``: communication runs below compute, thinner where several flights overlap."""
    computing = slices["stream"] == COMPUTE
    threads = slices["thread"].where(~computing)
    first = threads.groupby(slices["rank"]).transform("min")
    flights = threads.groupby(slices["rank"]).transform("nunique").clip(lower=1)
    height = np.where(computing, COMPUTE_HEIGHT, COMMUNICATION_HEIGHT / flights)
    below = COMPUTE_HEIGHT + GAP + (threads - first) * COMMUNICATION_HEIGHT / flights
    return slices.assign(top=slices["rank"] + np.where(computing, 0.0, below), height=height)


def corners(slices: pd.DataFrame) -> list[NDArray[np.float64]]:
    """Rectangles as polygons, one ``[4, 2]`` a span."""
    left, top = slices["left"].to_numpy(), slices["top"].to_numpy()
    right, bottom = left + slices["width"].to_numpy(), top + slices["height"].to_numpy()
    polygons = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1)
    return list(polygons.reshape(-1, 4, 2))


def label_layers(axes: Axes, slices: pd.DataFrame, colours: pd.Series, extent: float) -> None:
    """Write the layer into every span that is wide and tall enough for it."""
    wide = (slices["width"] >= LABELLED_SHARE * extent) & (slices["layer"] >= 0) & (slices["op"] != "Wait")
    wide &= slices["height"] >= COMMUNICATION_HEIGHT  # a lane that flights share is too thin for text
    spans, colours = slices[wide], colours[wide]
    middle = spans["left"] + spans["width"] / 2
    height = spans["top"] + spans["height"] / 2
    computing = spans["stream"] == COMPUTE
    columns = (column.tolist() for column in (middle, height, spans["layer"], computing, colours))
    for x, y, layer, is_compute, colour in zip(*columns, strict=True):
        axes.text(
            *(x, y, f"L{layer}" if is_compute else f"{layer}"),
            ha="center",
            va="center_baseline",
            fontsize=7.5 if is_compute else 6,
            color=PAPER if colour in DARK else INK_ON_COLOUR,
            clip_on=True,
        )


def mark_direction(axes: Axes, view: EpochView) -> None:
    """A line where the last rank has its loss, with "forward" and "backward" on its sides."""
    losses = view.slices[view.slices["op"] == "Loss"]
    if losses.empty:
        return
    turn = float((losses["left"] + losses["width"]).max())
    axes.axvline(turn, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    for text, side, offset in (("forward", "right", -4), ("backward", "left", 4)):
        axes.annotate(
            text,
            (turn, 1.0),
            (offset, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=8,
            color=MUTED,
        )


def draw_legend(axes: Axes, present: Sequence[str]) -> None:
    """One entry a colour, below the axis, in the order of `OPERATION_COLOURS`."""
    entries: dict[str, list[str]] = {}
    for kind in [kind for kind in OPERATION_COLOURS if kind in present]:
        entries.setdefault(OPERATION_COLOURS[kind], []).append(kind)
    unknown = sorted(set(present) - set(OPERATION_COLOURS))
    if unknown:
        entries.setdefault(UNKNOWN_COLOUR, []).extend(unknown)
    handles = [
        Patch(
            facecolor=colour,
            edgecolor=MUTED if colour == IDLE else colour,
            linewidth=0.4,
            hatch="//////" if colour == IDLE else None,
            hatch_linewidth=0.35,
            label=", ".join(kinds),
        )
        for colour, kinds in entries.items()
    ]
    legend_below(axes.figure, handles)


def legend_below(figure: FigureBase, handles: Sequence[Artist], columns: int = 8) -> None:
    """A legend in a row below the axes of a figure, or of a part of one."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), columns),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.5,
    )


def draw_loss(axes: Axes, metrics: pd.DataFrame) -> None:
    """The training loss, with its last value."""
    known = metrics.dropna(subset="loss")
    axes.plot(known["epoch"], known["loss"], color=INK, linewidth=1.6, marker=markers(len(known)), markersize=3)
    last = f", {known['loss'].iloc[-1]:.4g} at the end" if len(known) else ""
    headline(axes, "Training loss", f"per epoch{last}")
    style(axes, xlabel="epoch", grid="y")
    show_epochs(axes, metrics)


def draw_metric(axes: Axes, metrics: pd.DataFrame, metric: str) -> None:
    """The metric on every split, each line named at its end; a ring at the epoch of the best validation value."""
    ends: list[tuple[float, float, str, str]] = []
    for column, (name, colour) in SPLIT_COLOURS.items():
        known = metrics[["epoch", column]].dropna()
        if known.empty:
            continue
        axes.plot(
            *(known["epoch"], known[column]),
            color=colour,
            linewidth=1.6,
            marker=markers(len(known)),
            markersize=3,
            label=name,
        )
        ends.append((float(known["epoch"].iloc[-1]), float(known[column].iloc[-1]), name, colour))
    style(axes, xlabel="epoch", grid="y")
    show_epochs(axes, metrics)
    headline(axes, sentence_case(metric), mark_best(axes, metrics))
    if ends:
        name_lines(axes, ends)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)


def show_epochs(axes: Axes, metrics: pd.DataFrame) -> None:
    """The same epochs under both curves, however few of them were evaluated."""
    if len(metrics):
        first, last = float(metrics["epoch"].min()), float(metrics["epoch"].max())
        margin = max(0.04 * (last - first), 0.25)
        axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def mark_best(axes: Axes, metrics: pd.DataFrame) -> str:
    """Ring the test value at the best validation epoch; returns the sentence that says it."""
    evaluated = metrics.dropna(subset=["val", "test"])
    if evaluated.empty:
        return ""
    best = evaluated.iloc[int(evaluated["val"].argmax())]
    ring = SPLIT_COLOURS["test"][1]
    axes.plot(best["epoch"], best["test"], marker="o", markersize=7, markerfacecolor="none", color=ring, linestyle="")
    return f"test {best['test']:.3f} where validation is best, epoch {best['epoch']:.0f}"


def name_lines(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    spacing = 0.085 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, value, _, _ in ends:
        heights.append(max(value, heights[-1] + spacing) if heights else value)
    pushed = float(np.mean(heights)) - float(np.mean([value for _, value, _, _ in ends]))
    for (epoch, _, name, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (epoch, height - pushed),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
            annotation_clip=False,
        )
    axes.set_ylim(low, max(high, heights[-1] - pushed + 0.4 * spacing))


def markers(points: int) -> str | None:
    """Few points are shown as points, so that a line through two of them does not look like a curve."""
    return "o" if points <= 12 else None


def headline(axes: Axes, title: str, subtitle: str, *, pad: float = 4.0) -> None:
    """A bold statement at the left, and below it, in grey, what qualifies it; plain text, never mathtext."""
    for text, height, size, weight, colour in (
        (title, pad + 14, 11, "bold", INK),
        (subtitle, pad, 8.5, "normal", MUTED),
    ):
        axes.annotate(
            text,
            (0, 1),
            (0, height),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=size,
            fontweight=weight,
            color=colour,
            parse_math=False,
        )


def style(axes: Axes, *, xlabel: str, grid: Literal["x", "y"]) -> None:
    """No frame but the axis lines, a light grid behind the data."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(labelsize=8.5, labelcolor=MUTED, color=GRID)
    axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED)


def plotted(name: str) -> str:
    """A name that matplotlib writes as it is: no mathtext, and no leading underscore, which would keep it off the legend."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def sentence_case(text: str) -> str:
    """The first letter raised and the others as they are: ``Micro-F1``, ``ROC AUC``."""
    return text[:1].upper() + text[1:]
