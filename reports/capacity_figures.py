"""The pictures of the capacity report: what to rent, how it scales, and what moves the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from halocast.reports.capacity_view import Series, View
from halocast.reports.document import Marks
from halocast.reports.figures import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PLUM,
    SKY,
    VERMILION,
    headline,
    legend_below,
    new_figure,
    plotted,
    style,
)
from halocast.reports.labels import Name, name_points
from halocast.reports.page import marks_of
from halocast.reports.times import round_time, show_counts, show_times, spread, thinned
from halocast.reports.words import written
from halocast.simulator.whatif.table import STOPS_PAYING
from halocast.words import byte_count, money, time_span

RASTER_DPI = 200.0
"""Of points that are too many to be drawn one by one."""
WIDE = 3.0
"""A largest over a smallest value beyond this is drawn on a logarithmic axis."""
MOST_SERIES = 5
LONGEST_PAIRED = 52
"""Characters of a legend's longest name with which two still fit beside each other."""
SERIES_COLOURS = (BLUE, ORANGE, PLUM, GREEN, SKY)
SERIES_MARKERS = "osD^v"
MOST_NAMED = 7
MOST_DRAWN = 300
"""Points that are drawn one by one; more are a picture in the picture."""
LARGEST_CROSS = 40.0
LEAST_POINT, LARGEST_POINT = 22.0, 190.0
"""Area of a point by its memory, in points of 1/72 inch squared."""


Floats = npt.NDArray[np.float64]


def pareto_figure(view: View) -> tuple[Figure, Marks]:
    """Cost (or ranks) against the time of a training: dominated scenarios in grey, the front joined, size by memory."""
    figure = new_figure(4.9)
    figure.set_dpi(RASTER_DPI)
    axes = figure.add_subplot()
    drawn, front = view.weighed, view.front
    sizes = point_sizes(drawn["peak_bytes"])
    x, y = drawn["training_seconds"].to_numpy(float), drawn[view.against].to_numpy(float)
    handles = draw_others(axes, view, sizes)
    if len(front):
        draw_front(axes, view, front, sizes)
        handles.insert(
            0, Line2D([], [], color=BLUE, marker="o", markersize=5, linewidth=1.2, label="Pareto front; bars: 90 % interval")
        )
    spread(axes.xaxis, x)
    spread(axes.yaxis, y)
    axes.margins(0.06, 0.1)
    show_times(axes.xaxis)
    show_counts(axes.yaxis)
    style(axes, xlabel=f"time of a training of {view.whatif.manifest.epochs:,} epochs, 90 % intervals on the front", grid="x")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    headline(
        axes,
        "Cost against training time" if view.priced else "Ranks against training time",
        f"{len(drawn):,} scenarios, {len(view.feasible):,} feasible, {len(front)} on the front",
    )
    axes.set_ylabel(f"cost of a training, {view.currency}" if view.priced else "ranks", fontsize=8.5, color=MUTED)
    handles += memory_legend(drawn["peak_bytes"])
    legend_below(figure, handles, columns=4)
    mark_filters(axes, view)
    name_front(figure, axes, view)
    texts = [mark_text(view, row) for row in drawn.itertuples()]
    return figure, marks_of(figure, axes, x, y, texts)


def draw_others(axes: Axes, view: View, sizes: Floats) -> list[Artist]:
    """Scenarios that are on no front; returns what the legend says of them."""
    drawn, handles = view.weighed, []
    x, y = drawn["training_seconds"].to_numpy(float), drawn[view.against].to_numpy(float)
    feasible, on_front = drawn["feasible"].to_numpy(dtype=bool), drawn["on_front"].to_numpy(dtype=bool)
    if (missed := ~feasible).any():
        area = np.minimum(sizes[missed], LARGEST_CROSS)
        many = bool(missed.sum() > MOST_DRAWN)
        axes.scatter(x[missed], y[missed], area, MUTED, marker="x", alpha=0.45, linewidths=0.8, zorder=2, rasterized=many)
        handles.append(Line2D([], [], linestyle="", marker="x", color=MUTED, alpha=0.7, label="misses a filter"))
    if (dominated := feasible & ~on_front).any():
        many = bool(dominated.sum() > MOST_DRAWN)
        axes.scatter(x[dominated], y[dominated], sizes[dominated], MUTED, alpha=0.4, linewidths=0, zorder=2, rasterized=many)
        label = "another is both faster and cheaper" if view.priced else "another is faster on as few ranks"
        handles.append(Line2D([], [], linestyle="", marker="o", color=MUTED, alpha=0.7, label=label))
    return list[Artist](handles)


def point_sizes(peaks: pd.Series) -> Floats:
    """Area by memory: in proportion to it, between two bounds; one size where memory is not known."""
    known = peaks.astype(float).to_numpy()
    if not np.isfinite(known).any():
        return np.full(len(known), 30.0)
    top = np.nanmax(known)
    return np.asarray(np.nan_to_num(np.clip(LARGEST_POINT * known / top, LEAST_POINT, None), nan=LEAST_POINT))


def memory_legend(peaks: pd.Series) -> list[Line2D]:
    """Three sizes with what they stand for."""
    known = peaks.dropna().astype(float)
    if known.empty:
        return []
    top = float(known.max())
    shown = dict.fromkeys((top / 10, top / 3, top))
    return [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markerfacecolor="none",
            markeredgecolor=MUTED,
            markersize=max(LARGEST_POINT * size / top, LEAST_POINT) ** 0.5,
            label=f"{byte_count(size)} a rank",
        )
        for size in shown
    ]


def draw_front(axes: Axes, view: View, front: pd.DataFrame, sizes: Floats) -> None:
    times, heights = front["training_seconds"].astype(float), front[view.against].astype(float)
    axes.hlines(
        heights, front["training_low"].astype(float), front["training_high"].astype(float), color=SKY, linewidth=1.6, zorder=2.5
    )
    axes.step(times, heights, where="post", color=BLUE, linewidth=1.2, zorder=3)
    order = front.index
    by_index = pd.Series(sizes, index=view.weighed.index)
    axes.scatter(times, heights, s=by_index.loc[order], color=BLUE, edgecolors=PAPER, linewidths=0.5, zorder=4)


def mark_filters(axes: Axes, view: View) -> None:
    """Lines at the deadline and at the budget."""
    manifest = view.whatif.manifest
    lines = [(axes.axvline, manifest.deadline_seconds, "x"), (axes.axhline, manifest.budget if view.priced else None, "y")]
    for draw, value, along in lines:
        if value is None:
            continue
        draw(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
        text = f"deadline {round_time(value)}" if along == "x" else f"budget {money(value, view.currency)}"
        place, coordinates = (
            ((value, 1.0), ("data", "axes fraction")) if along == "x" else ((1.0, value), ("axes fraction", "data"))
        )
        axes.annotate(
            text,
            place,
            (-4, -3) if along == "x" else (-2, 4),
            xycoords=coordinates,
            textcoords="offset points",
            ha="right",
            va="top" if along == "x" else "bottom",
            fontsize=8.5,
            color=INK,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )


def name_front(figure: Figure, axes: Axes, view: View) -> None:
    """Name the recommended one, the ends of the front and a few between them."""
    front = view.front.drop_duplicates(["training_seconds", view.against])
    places = evenly(len(front), MOST_NAMED)
    rows = [front.iloc[place] for place in sorted(places, key=lambda at: (at not in (0, len(front) - 1), at))]
    names = []
    if view.recommended is not None:
        chosen = view.recommended
        axes.scatter(
            [chosen["training_seconds"]],
            [chosen[view.against]],
            s=230,
            facecolors="none",
            edgecolors=VERMILION,
            linewidths=1.7,
            zorder=5,
        )
        rows = [row for row in rows if row["scenario"] != chosen["scenario"]]
        names = [Name(chosen["training_seconds"], chosen[view.against], f"recommended: {chosen['name']}", VERMILION, bold=True)]
    names += [Name(row["training_seconds"], row[view.against], row["name"]) for row in rows]
    points = list(zip(front["training_seconds"].astype(float), front[view.against].astype(float), strict=True))
    name_points(figure, axes, names, points)


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` places of so many, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())) if count else []


def mark_text(view: View, row: Any) -> str:
    """What the page says of a point under the pointer."""
    parts = [time_span(row.training_seconds)]
    if view.priced:
        parts.append(money(row.cost, view.currency))
    if row.peak_bytes is not None and not pd.isna(row.peak_bytes):
        parts.append(f"{byte_count(row.peak_bytes)} a rank")
    missed = "" if row.feasible else f"\n{row.reason}"
    return f"{row.name}\n{', '.join(parts)}{missed}"


def scaling_figure(view: View) -> Figure:
    """Epoch time against ranks, both logarithmic: series with their 90 % bands, the ideal line, the knee."""
    figure = new_figure(4.6)
    axes = figure.add_subplot()
    shown = view.series[:MOST_SERIES]
    for series, colour, marker in zip(shown, SERIES_COLOURS, SERIES_MARKERS, strict=False):
        draw_series(axes, series, colour, marker, with_band=series is shown[0])
    first = shown[0].rows.iloc[0]
    ranks = np.array(sorted({int(each) for series in shown for each in series.rows["ranks"]}), dtype=float)
    ideal = ranks[ranks >= first["ranks"]]
    axes.plot(
        ideal, first["epoch_seconds"] * first["ranks"] / ideal, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5
    )
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(thinned(ranks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    show_times(axes.yaxis)
    style(axes, xlabel="ranks", grid="x")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_ylabel("epoch as forecast", fontsize=8.5, color=MUTED)
    more = f"{len(shown)} of {len(view.series):,} series" if len(view.series) > len(shown) else "every series"
    headline(
        axes,
        "Epoch time against ranks",
        f"{more}; band: 90 % interval of the first; ring: below {written(STOPS_PAYING, 'percent')} of the ideal",
    )
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.6, label=plotted(series.name) or "all scenarios")
        for series, colour, marker in zip(shown, SERIES_COLOURS, SERIES_MARKERS, strict=False)
    ]
    handles.append(
        Line2D([], [], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label="ideal: twice the ranks, half the time")
    )
    legend_below(figure, handles, columns=2 if max(len(each.get_label()) for each in handles) <= LONGEST_PAIRED else 1)
    return figure


def draw_series(axes: Axes, series: Series, colour: str, marker: str, *, with_band: bool) -> None:
    """A curve and its knee; bands of more than one would hide each other."""
    rows = series.rows.drop_duplicates("ranks")  # of the same ranks on more or fewer hosts the faster
    ranks, seconds = rows["ranks"].to_numpy(float), rows["epoch_seconds"].to_numpy(float)
    low, high = (rows[name].to_numpy(float) for name in ("low", "high"))
    if with_band:
        axes.fill_between(ranks, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(ranks, seconds, color=colour, marker=marker, markersize=5, linewidth=1.6, zorder=3)
    knee = rows[rows["efficiency"].to_numpy(float) < STOPS_PAYING].head(1)
    axes.scatter(knee["ranks"], knee["epoch_seconds"], s=130, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)
