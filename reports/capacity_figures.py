"""The pictures of the capacity report: what to rent, how it scales, and what moves the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from halocast.reports.capacity_view import PARTS, STOPS_PAYING, Series, View, describe
from halocast.reports.document import Marks
from halocast.reports.figures import (
    BLUE,
    DARK,
    GRID,
    GREEN,
    IDLE,
    INK,
    INK_ON_COLOUR,
    MUTED,
    ORANGE,
    PAPER,
    PLUM,
    PURPLE,
    SKY,
    VERMILION,
    headline,
    legend_below,
    new_figure,
    style,
)
from halocast.reports.labels import Name, name_points
from halocast.reports.page import marks_of
from halocast.reports.times import round_time, show_counts, show_times, spread, thinned
from halocast.reports.words import byte_count, money, time_span, written

RASTER_DPI = 200.0
"""Of points that are too many to be drawn one by one."""
WIDE = 3.0
"""A largest over a smallest value beyond this is drawn on a logarithmic axis."""
MOST_SERIES = 5
SERIES_COLOURS = (BLUE, ORANGE, PLUM, GREEN, SKY)
SERIES_MARKERS = "osD^v"
MOST_NAMED = 7
MOST_MEMBERS = 12
PART_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "compute": BLUE,
        "quantise": PURPLE,
        "exchange_exposed": ORANGE,
        "all_reduce_exposed": VERMILION,
        "posting_messages": GRID,
        "wait": IDLE,
    }
)
LABELLED_SHARE = 0.06
HEAT = LinearSegmentedColormap.from_list("heat", ["#e8f1f8", "#7db3d8", "#0072b2", "#00395c"])
"""From short to long, one hue."""
HEAT_IS_DARK = 0.5
LEAST_POINT, LARGEST_POINT = 14.0, 190.0
"""Area of a point by its memory, in points of 1/72 inch squared."""


Words = Callable[[float], str]
Show = Callable[[Axis], None]


def pareto_figure(view: View) -> tuple[Figure, Marks]:
    """Cost (or ranks) against the time of a training: dominated scenarios in grey, the front joined, size by memory."""
    figure = new_figure(4.9)
    figure.set_dpi(RASTER_DPI)
    axes = figure.add_subplot()
    drawn, front = view.forecast, view.front
    sizes = point_sizes(drawn["peak_bytes"])
    on_front = drawn["scenario"].isin(front["scenario"]).to_numpy()
    kinds = (
        (~drawn["feasible"].to_numpy(dtype=bool), "x", MUTED, "misses a filter"),
        (drawn["feasible"].to_numpy(dtype=bool) & ~on_front, "o", MUTED, "another is both faster and cheaper"),
    )
    x, y = drawn["training_seconds"].to_numpy(float), drawn[view.against].to_numpy(float)
    handles: list[Any] = []
    for chosen, marker, colour, label in kinds:
        if not chosen.any():
            continue
        area = np.minimum(sizes[chosen], 40.0) if marker == "x" else sizes[chosen]
        axes.scatter(x[chosen], y[chosen], s=area, marker=marker, color=colour, alpha=0.4 if marker == "o" else 0.22,
                     linewidths=0.7 if marker == "x" else 0, zorder=2, rasterized=chosen.sum() > 300)  # fmt: skip
        text = label if view.priced or marker == "x" else "another is faster on as few ranks"
        handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, alpha=0.7, label=text))
    if len(front):
        draw_front(axes, view, front, sizes[on_front])
        handles.insert(0, Line2D([], [], color=BLUE, marker="o", markersize=5, linewidth=1.2, label="Pareto front; bars: 90 % interval"))
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


def point_sizes(peaks: pd.Series) -> np.ndarray[Any, np.dtype[np.float64]]:
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
        Line2D([], [], linestyle="", marker="o", markerfacecolor="none", markeredgecolor=MUTED,
               markersize=max(LARGEST_POINT * size / top, LEAST_POINT) ** 0.5, label=f"{byte_count(size)} a rank")
        for size in shown
    ]  # fmt: skip


def draw_front(axes: Axes, view: View, front: pd.DataFrame, sizes: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    times, heights = front["training_seconds"].astype(float), front[view.against].astype(float)
    axes.hlines(heights, front["training_low"].astype(float), front["training_high"].astype(float), color=SKY, linewidth=1.6, zorder=2.5)
    axes.step(times, heights, where="post", color=BLUE, linewidth=1.2, zorder=3)
    order = front.index
    by_index = pd.Series(sizes, index=view.forecast.index[view.forecast["scenario"].isin(front["scenario"])])
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
        place, coordinates = ((value, 1.0), ("data", "axes fraction")) if along == "x" else ((1.0, value), ("axes fraction", "data"))
        axes.annotate(text, place, (-4, -3) if along == "x" else (-2, 4), xycoords=coordinates, textcoords="offset points",
                      ha="right", va="top" if along == "x" else "bottom", fontsize=8.5, color=INK,
                      path_effects=[withStroke(linewidth=2.5, foreground=PAPER)])  # fmt: skip


def name_front(figure: Figure, axes: Axes, view: View) -> None:
    """Name the recommended one, the ends of the front and a few between them."""
    front = view.front.drop_duplicates(["training_seconds", view.against])
    places = np.unique(np.linspace(0, len(front) - 1, min(len(front), MOST_NAMED)).round().astype(int)) if len(front) else []
    rows = [front.iloc[place] for place in sorted(places, key=lambda at: (at not in (0, len(front) - 1), at))]
    names = []
    if view.recommended is not None:
        chosen = view.recommended
        axes.scatter([chosen["training_seconds"]], [chosen[view.against]], s=230, facecolors="none", edgecolors=VERMILION, linewidths=1.7, zorder=5)
        rows = [row for row in rows if row["scenario"] != chosen["scenario"]]
        names = [Name(chosen["training_seconds"], chosen[view.against], f"recommended: {chosen['name']}", VERMILION, bold=True)]
    names += [Name(row["training_seconds"], row[view.against], row["name"]) for row in rows]
    points = list(zip(front["training_seconds"].astype(float), front[view.against].astype(float), strict=True))
    name_points(figure, axes, names, points)


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
        draw_series(axes, series, colour, marker)
    first = shown[0].rows.iloc[0]
    ranks = np.array(sorted({int(each) for series in shown for each in series.rows["ranks"]}), dtype=float)
    ideal = ranks[ranks >= first["ranks"]]
    axes.plot(ideal, first["epoch_seconds"] * first["ranks"] / ideal, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(thinned(ranks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    show_times(axes.yaxis)
    style(axes, xlabel="ranks", grid="x")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_ylabel("epoch as forecast", fontsize=8.5, color=MUTED)
    more = f"{len(shown)} of {len(view.series):,} series" if len(view.series) > len(shown) else "every series"
    headline(axes, "Epoch time against ranks", f"{more}; bands: 90 % interval; ring: the first with less than {written(STOPS_PAYING, 'percent')} of the ideal")
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.6, label=series.name or "all scenarios")
        for series, colour, marker in zip(shown, SERIES_COLOURS, SERIES_MARKERS, strict=False)
    ]
    handles.append(Line2D([], [], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label="ideal: twice the ranks, half the time"))
    legend_below(figure, handles, columns=2)
    return figure


def draw_series(axes: Axes, series: Series, colour: str, marker: str) -> None:
    rows = series.rows.drop_duplicates("ranks")  # of the same ranks on more or fewer hosts the faster
    ranks, seconds = rows["ranks"].to_numpy(float), rows["epoch_seconds"].to_numpy(float)
    axes.fill_between(ranks, rows["low"].to_numpy(float), rows["high"].to_numpy(float), color=colour, alpha=0.13, linewidth=0)
    axes.plot(ranks, seconds, color=colour, marker=marker, markersize=5, linewidth=1.6, zorder=3)
    knee = rows[rows["efficiency"].to_numpy(float) < STOPS_PAYING].head(1)
    axes.scatter(knee["ranks"], knee["epoch_seconds"], s=130, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)


def heat_figure(view: View) -> tuple[Figure, Marks] | None:
    """Training time by ranks and link, all else as in the reference; None where one of them has but one value."""
    rows = view.slice(*("ranks", "hosts", view.link)) if view.link else view.table.iloc[:0]
    rows = rows.sort_values("training_seconds").drop_duplicates(["ranks", view.link]) if len(rows) else rows
    if len(rows) == 0 or rows["ranks"].nunique() < 2 or rows[view.link].nunique() < 2 or rows["training_seconds"].notna().sum() < 2:
        return None
    links = list(rows.sort_values(["network_rate", view.link])[view.link].unique())
    ranks = sorted(rows["ranks"].unique())
    figure = new_figure(1.35 + 0.42 * len(links))
    axes = figure.add_subplot()
    norm = LogNorm(rows["training_seconds"].min(), max(rows["training_seconds"].max(), rows["training_seconds"].min() * 1.01))
    x, y, texts = [], [], []
    for row in rows.to_dict("records"):
        column, line = ranks.index(row["ranks"]), links.index(row[view.link])
        draw_cell(axes, column, line, row, norm, is_chosen=view.reference is not None and row["scenario"] == view.reference["scenario"])
        x, y, texts = [*x, column - 0.5], [*y, line - 0.5], [*texts, cell_text(view, row)]
    axes.set_xlim(-0.5, len(ranks) - 0.5)
    axes.set_ylim(len(links) - 0.5, -0.5)
    axes.set_xticks(range(len(ranks)), [f"{each}" for each in ranks])
    axes.set_yticks(range(len(links)), [describe(pd.Series({view.link: each}), [view.link]) or "–" for each in links])
    style(axes, xlabel="ranks", grid="x")
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    reference = view.reference
    others = "" if reference is None else describe(reference, [name for name in view.varying if name not in {*view.moving, "price_per_hour", view.link}])
    headline(axes, "Training time by ranks and link", "; ".join(filter(None, (others, "darker is longer, crossed misses a filter, framed is the reference"))))
    points = marks_of(figure, axes, x, y, texts)
    far = marks_of(figure, axes, [1.0 + each for each in x], [1.0 + each for each in y], texts)
    width = [b - a for a, b in zip(points.x, far.x, strict=True)]
    height = [b - a for a, b in zip(points.y, far.y, strict=True)]
    return figure, Marks(points.x, points.y, texts, width, height)


def draw_cell(axes: Axes, column: int, line: int, row: Mapping[str, Any], norm: LogNorm, *, is_chosen: bool) -> None:
    seconds = row["training_seconds"]
    known = seconds is not None and not pd.isna(seconds)
    shade = float(norm(seconds)) if known else 0.0
    axes.add_patch(Rectangle((column - 0.48, line - 0.47), 0.96, 0.94, facecolor=HEAT(shade) if known else "none", edgecolor="none"))
    colour = "#ffffff" if shade > HEAT_IS_DARK else INK_ON_COLOUR
    axes.text(column, line, time_span(seconds) if known else "no forecast", ha="center", va="center_baseline", fontsize=8.5,
              color=colour if known else MUTED)  # fmt: skip
    if known and not row["feasible"]:
        axes.plot([column - 0.44, column - 0.32], [line - 0.4, line - 0.14], color=colour, linewidth=1.2)
        axes.plot([column - 0.44, column - 0.32], [line - 0.14, line - 0.4], color=colour, linewidth=1.2)
    if is_chosen:
        axes.add_patch(Rectangle((column - 0.46, line - 0.44), 0.92, 0.88, facecolor="none", edgecolor=VERMILION, linewidth=2.2))


def cell_text(view: View, row: Mapping[str, Any]) -> str:
    if pd.isna(row["training_seconds"]):
        return f"{row['name']}\n{row['reason']}"
    cost = f", {money(row['cost'], view.currency)}" if view.priced and not pd.isna(row["cost"]) else ""
    missed = "" if row["feasible"] else f"\n{row['reason']}"
    return f"{row['name']}\n{time_span(row['training_seconds'])}{cost}{missed}"


def tornado_figure(view: View, seconds: float, cost: float | None, bars: Sequence[Any]) -> Figure:
    """What ±20 % on each input does to the recommended scenario: its time, and its cost where there are prices."""
    figure = new_figure(1.75 + 0.42 * len(bars))
    ordered = sorted(bars, key=lambda each: abs(each.seconds_high - each.seconds_low), reverse=True)
    panels = figure.subplots(1, 1 if cost is None else 2, sharey=True, squeeze=False)[0]
    draw_tornado(panels[0], [(each.seconds_low, each.seconds_high) for each in ordered], seconds, "Training time", time_span, show_times)
    if cost is not None:
        pairs = [(each.cost_low, each.cost_high) for each in ordered]
        draw_tornado(panels[1], pairs, cost, f"Cost of a training, {view.currency}", lambda value: money(value, view.currency), show_counts)
    names = [f"{each.label}\n{each.low} | {each.high}" for each in ordered]
    panels[0].set_yticks(range(len(ordered)), names, parse_math=False)
    panels[0].set_ylim(len(ordered) - 0.5, -0.6)
    handles = [Patch(color=SKY, label="input 20 % lower"), Patch(color=ORANGE, label="input 20 % higher")]
    legend_below(figure, handles)
    return figure


def draw_tornado(axes: Axes, pairs: Sequence[tuple[float | None, float | None]], base: float, title: str, words: Words, show: Show) -> None:
    values = [value for pair in pairs for value in pair if value is not None]
    reach = max([abs(value - base) for value in values] + [0.02 * base])
    for line, (low, high) in enumerate(pairs):
        for value, colour, up in ((low, SKY, -0.19), (high, ORANGE, 0.19)):
            if value is None:
                continue
            axes.barh(line + up, value - base, 0.34, left=base, color=colour)
            change = 100 * (value / base - 1) if base else 0.0
            if abs(change) < 0.05:
                continue
            side = 1 if value > base else -1
            axes.annotate(f"{change:+.1f} %".replace("-", "−"), (value, line + up), (3 * side, 0), textcoords="offset points",
                          ha="left" if side > 0 else "right", va="center", fontsize=8, color=INK)  # fmt: skip
    axes.axvline(base, color=INK, linewidth=1.0)
    axes.set_xlim(base - 1.3 * reach, base + 1.3 * reach)
    style(axes, xlabel="", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    show(axes.xaxis)
    headline(axes, title, f"the line: {words(base)}, as recommended")


def binding_figure(view: View, members: pd.DataFrame) -> Figure:
    """Shares of an epoch by part, a bar a member of the front, its epoch time behind it."""
    figure = new_figure(1.6 + 0.36 * len(members))
    axes = figure.add_subplot()
    left = np.zeros(len(members))
    places = np.arange(len(members))
    total = members[list(PARTS)].astype(float).sum(axis=1).to_numpy()
    for part, name in PARTS.items():
        share = members[part].to_numpy(float) / total
        waiting = part == "wait"
        axes.barh(places, share, 0.66, left=left, color=PART_COLOURS[part], edgecolor=MUTED if waiting else PAPER, linewidth=0.4,
                  hatch="//////" if waiting else None, hatch_linewidth=0.35, label=name)  # fmt: skip
        for place, start, width in zip(places, left, share, strict=True):
            if width >= LABELLED_SHARE:
                dark = PART_COLOURS[part] in DARK
                ink = INK if part in ("wait", "posting_messages") else PAPER if dark else INK_ON_COLOUR
                axes.text(start + width / 2, place, written(float(width), "percent"), ha="center", va="center_baseline", fontsize=8, color=ink)
        left += share
    for place, seconds in zip(places, members["epoch_seconds"].astype(float), strict=True):
        axes.annotate(time_span(seconds), (1.0, place), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(places, members["name"], parse_math=False)
    axes.set_xlim(0, 1.1)
    axes.set_ylim(len(members) - 0.5, -0.5)
    axes.set_xticks(np.linspace(0, 1, 5), [written(float(share), "percent") for share in np.linspace(0, 1, 5)])
    style(axes, xlabel="share of an epoch, mean over ranks; behind the bar: the epoch", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    headline(axes, "Where the epoch goes", "exposed: what ranks wait for; the fastest on top")
    legend_below(figure, axes.get_legend_handles_labels()[0], columns=6)
    return figure
