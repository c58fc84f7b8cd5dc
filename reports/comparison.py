"""Runs beside each other: epochs on one time scale, and how each run learned by epoch and by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from halocast.reports.figures import (
    BLUE,
    IDLE,
    INK,
    MUTED,
    EpochView,
    draw_lanes,
    draw_legend,
    headline,
    legend_below,
    markers,
    sentence_case,
    show_epochs,
    style,
)
from halocast.traces.trace import Trace
from halocast.words import three_digits

TITLE_HEIGHT, LANE_HEIGHT, LEGEND_HEIGHT = 0.85, 0.56, 0.55
"""Inches: above a timeline, of a rank in it, and below the last."""
TALLEST = 2.2
"""Inches of one timeline's lanes; more ranks get thinner ones."""
MOST_NAMED = 14
"""Ranks whose names fit beside lanes that tall."""
MOST_TOLD = 2
"""Curves whose values fit above a panel; of more the legend names them and a table has the values."""


@dataclass(frozen=True)
class Timeline:
    """One epoch in a stack of them."""

    title: str
    subtitle: str
    view: EpochView
    forecast: tuple[float, float, float] | None = None
    """The epoch's time as forecast, ms: low, shaded up to high, and a line at the value between them."""


@dataclass(frozen=True)
class Curve:
    """How one run learned."""

    name: str
    colour: str
    metrics: pd.DataFrame
    """Columns epoch, loss, val; NaN where an epoch was not evaluated."""
    seconds: NDArray[np.float64]
    """[epochs] on the clock when the epoch was done; what the run had to wait for first is in it."""
    head_start: float = 0.0
    """Of those, the seconds before the run's first epoch."""


def timelines_height(timelines: Sequence[Timeline]) -> float:
    """Inches that `draw_timelines` needs."""
    return LEGEND_HEIGHT + sum(TITLE_HEIGHT + lanes_height(each) for each in timelines)


def lanes_height(timeline: Timeline) -> float:
    return min(LANE_HEIGHT * timeline.view.world_size, TALLEST)


def draw_timelines(figure: FigureBase, timelines: Sequence[Timeline]) -> None:
    """The epochs under each other, all starting at 0 of one axis; one legend."""
    extent = 1.01 * max(end for each in timelines for end in (each.view.milliseconds, *(each.forecast or ())))
    ratios = [TITLE_HEIGHT + lanes_height(each) for each in timelines]
    stack = figure.subplots(len(timelines), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, timeline in zip(stack, timelines, strict=True):
        if timeline.forecast is not None:
            low, value, high = timeline.forecast
            axes.axvspan(low, high, color=BLUE, alpha=0.16, linewidth=0, zorder=0.4)
            axes.axvline(value, color=INK, linewidth=1.0, zorder=3)
        draw_lanes(axes, timeline.view, extent, most_named=MOST_NAMED)
        axes.set_xlabel("")
        headline(axes, timeline.title, timeline.subtitle, pad=15)
    stack[-1].set_xlabel("ms from the epoch's start", fontsize=8.5, color=MUTED)
    present = {kind for each in timelines for kind in each.view.slices["op"].unique().tolist()}
    draw_legend(stack[-1], sorted(present))


def seconds_done(trace: Trace, metrics: pd.DataFrame) -> NDArray[np.float64]:
    """When each epoch of `metrics` was done, in seconds from the start of the first: evaluation between epochs included.

    Told from the trace; where that lacks epochs, or clocks began again in a resumed run, epoch times are added up.
    """
    bounds = trace.epoch_bounds()
    ends = bounds["end_ns"].reindex(metrics["epoch"]).to_numpy(dtype=np.float64)
    if len(ends) and np.isfinite(ends).all() and (np.diff(ends) > 0).all():
        return np.asarray((ends - float(bounds["start_ns"].min())) / 1e9)
    return np.cumsum(metrics["epoch_seconds"].fillna(0.0).to_numpy(dtype=np.float64))


def draw_loss_by_epoch(axes: Axes, curves: Sequence[Curve]) -> None:
    """Training losses against the epoch, with their last values."""
    draw_curves(axes, curves, "loss", by_clock=False)
    headline(axes, "Training loss by epoch", last_values(curves, "loss", ".4g"))


def draw_loss_by_clock(axes: Axes, curves: Sequence[Curve]) -> None:
    """Training losses against the seconds that passed, everything counted."""
    draw_curves(axes, curves, "loss", by_clock=True)
    headline(axes, "Training loss by the clock", clock_words(curves))


def draw_metric_by_epoch(axes: Axes, curves: Sequence[Curve], metric: str) -> None:
    """The metric on the validation nodes against the epoch."""
    draw_curves(axes, curves, "val", by_clock=False)
    headline(axes, f"{sentence_case(metric)} on validation by epoch", last_values(curves, "val", ".4f"))


def draw_metric_by_clock(axes: Axes, curves: Sequence[Curve], metric: str) -> None:
    """The metric on the validation nodes against the seconds that passed."""
    draw_curves(axes, curves, "val", by_clock=True)
    headline(axes, f"{sentence_case(metric)} on validation by the clock", best_values(curves))


def draw_curves(axes: Axes, curves: Sequence[Curve], column: str, *, by_clock: bool) -> None:
    """One line a run, the first one wide enough to be seen below the others; by the clock, head starts are shaded."""
    drawn = False
    for position, curve in enumerate(curves):
        known = curve.metrics[column].notna().to_numpy()
        across = curve.seconds if by_clock else curve.metrics["epoch"].to_numpy(dtype=np.float64)
        if by_clock and curve.head_start > 0.0:
            axes.axvspan(0.0, curve.head_start, facecolor=IDLE, linewidth=0, zorder=0.4)
        if known.any():
            drawn = True
            values = curve.metrics[column].to_numpy(dtype=np.float64)[known]
            width = 1.7 if position else 3.4
            axes.plot(
                *(across[known], values),
                color=curve.colour,
                linewidth=width,
                marker=markers(int(known.sum())),
                markersize=2 + width,
                label=curve.name,
            )
    style(axes, xlabel="seconds, everything counted" if by_clock else "epoch", grid="y")
    if by_clock:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(left=0.0)
    else:
        show_epochs(axes, pd.concat([curve.metrics[["epoch"]] for curve in curves]))
    if not drawn:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)


def draw_curves_legend(figure: FigureBase, curves: Sequence[Curve]) -> None:
    """One legend for all panels."""
    handles: list[Artist] = [
        Line2D([], [], color=curve.colour, linewidth=1.7 if position else 3.4, label=curve.name)
        for position, curve in enumerate(curves)
    ]
    handles += [
        Patch(facecolor=IDLE, edgecolor=MUTED, linewidth=0.4, label=f"before the {curve.name}'s first epoch")
        for curve in curves
        if curve.head_start > 0.0
    ]
    legend_below(figure, handles)


def last_values(curves: Sequence[Curve], column: str, form: str) -> str:
    """``plain 0.4213, plan 0.4220 at the end``."""
    if len(curves) > MOST_TOLD:
        return ""
    known = [(curve.name, curve.metrics[column].dropna()) for curve in curves]
    values = [f"{name} {format(float(column.iloc[-1]), form)}" for name, column in known if len(column)]
    return f"{', '.join(values)} at the end" if values else ""


def best_values(curves: Sequence[Curve]) -> str:
    """``best: plain 0.6130 after 61.0 s, plan 0.6123 after 25.2 s``."""
    values: list[str] = []
    for curve in curves if len(curves) <= MOST_TOLD else ():
        known = curve.metrics["val"].to_numpy(dtype=np.float64)
        if np.isfinite(known).any():
            best = int(np.nanargmax(known))
            values.append(f"{curve.name} {known[best]:.4f} after {three_digits(float(curve.seconds[best]))} s")
    return f"best: {', '.join(values)}" if values else ""


def clock_words(curves: Sequence[Curve]) -> str:
    """``done: plain 61.0 s, plan 25.2 s``."""
    if len(curves) > MOST_TOLD:
        return ""
    values = [f"{curve.name} {three_digits(float(curve.seconds[-1]))} s" for curve in curves if len(curve.seconds)]
    return f"done: {', '.join(values)}" if values else ""
