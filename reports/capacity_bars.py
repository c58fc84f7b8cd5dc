"""Cells and bars of the capacity report: ranks by link, what moves the answer, what binds."""

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
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator

from halocast.reports.capacity_view import PARTS, View, describe
from halocast.reports.document import Marks
from halocast.reports.figures import (
    BLUE,
    DARK,
    GRID,
    IDLE,
    INK,
    INK_ON_COLOUR,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    headline,
    legend_below,
    new_figure,
    plotted,
    style,
)
from halocast.reports.page import boxes_of
from halocast.reports.times import show_counts, show_times, thinned
from halocast.reports.words import written
from halocast.words import money, time_span

MOST_MEMBERS = 12
MOST_TORNADO_TICKS = 4


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
ON_DARK = "#fdfdfd"
"""Not quite the paper's white, which a dark page would replace: cells keep their colours there."""


Words = Callable[[float], str]


Show = Callable[[Axis], None]


def heat_figure(view: View) -> tuple[Figure, Marks] | None:
    """Training time by ranks and link, all else as in the reference; None where one of them has but one value."""
    rows = view.slice(*("ranks", "hosts", view.link)) if view.link else view.table.iloc[:0]
    rows = rows.sort_values("training_seconds").drop_duplicates(["ranks", view.link]) if len(rows) else rows
    if (
        len(rows) == 0
        or rows["ranks"].nunique() < 2
        or rows[view.link].nunique() < 2
        or rows["training_seconds"].notna().sum() < 2
    ):
        return None
    links = list(rows.sort_values(["network_rate", view.link])[view.link].unique())
    ranks = sorted(rows["ranks"].unique())
    figure = new_figure(1.35 + 0.42 * len(links))
    axes = figure.add_subplot()
    norm = LogNorm(rows["training_seconds"].min(), max(rows["training_seconds"].max(), rows["training_seconds"].min() * 1.01))
    chosen = None if view.reference is None else view.reference["scenario"]
    cells = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    places = [(ranks.index(cell["ranks"]), links.index(cell[view.link])) for cell in cells]
    for cell, (column, line) in zip(cells, places, strict=True):
        draw_cell(axes, column, line, cell, norm, is_chosen=cell["scenario"] == chosen)
    axes.set_xlim(-0.5, len(ranks) - 0.5)
    axes.set_ylim(len(links) - 0.5, -0.5)
    axes.set_xticks(range(len(ranks)), [f"{each}" for each in ranks])
    axes.set_yticks(range(len(links)), [plotted(describe(pd.Series({view.link: each}), [view.link])) or "–" for each in links])
    style(axes, xlabel="ranks", grid="x")
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    reference = view.reference
    others = (
        ""
        if reference is None
        else describe(reference, [name for name in view.varying if name not in {*view.moving, "price_per_hour", view.link}])
    )
    headline(
        axes,
        "Training time by ranks and link",
        "; ".join(filter(None, (others, "darker is longer, crossed misses a filter, framed is the reference"))),
    )
    left, top = np.array(places, dtype=float).T - 0.5
    one = np.ones(len(cells))
    return figure, boxes_of(figure, axes, left, top, one, one, [cell_text(view, cell) for cell in cells])


def draw_cell(axes: Axes, column: int, line: int, row: Mapping[str, Any], norm: LogNorm, *, is_chosen: bool) -> None:
    seconds = row["training_seconds"]
    known = seconds is not None and not pd.isna(seconds)
    shade = float(norm(seconds)) if known else 0.0
    axes.add_patch(
        Rectangle((column - 0.48, line - 0.47), 0.96, 0.94, facecolor=HEAT(shade) if known else "none", edgecolor="none")
    )
    colour = ON_DARK if shade > HEAT_IS_DARK else INK_ON_COLOUR
    axes.text(
        column,
        line,
        time_span(seconds) if known else "no forecast",
        ha="center",
        va="center_baseline",
        fontsize=8.5,
        color=colour if known else MUTED,
    )
    if known and not row["feasible"]:
        axes.plot([column - 0.44, column - 0.32], [line - 0.4, line - 0.14], color=colour, linewidth=1.2)
        axes.plot([column - 0.44, column - 0.32], [line - 0.14, line - 0.4], color=colour, linewidth=1.2)
    if is_chosen:
        axes.add_patch(
            Rectangle((column - 0.46, line - 0.44), 0.92, 0.88, facecolor="none", edgecolor=VERMILION, linewidth=2.2)
        )


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
    draw_tornado(
        panels[0], [(each.seconds_low, each.seconds_high) for each in ordered], seconds, "Training time", time_span, show_times
    )
    if cost is not None:
        pairs = [(each.cost_low, each.cost_high) for each in ordered]
        draw_tornado(
            panels[1],
            pairs,
            cost,
            f"Cost of a training, {view.currency}",
            lambda value: money(value, view.currency),
            show_counts,
        )
    names = [f"{each.label}\n{each.low} | {each.high}" for each in ordered]
    panels[0].set_yticks(range(len(ordered)), names, parse_math=False)
    panels[0].set_ylim(len(ordered) - 0.5, -0.6)
    handles = [Patch(color=SKY, label="input 20 % lower"), Patch(color=ORANGE, label="input 20 % higher")]
    legend_below(figure, handles)
    return figure


def draw_tornado(
    axes: Axes, pairs: Sequence[tuple[float | None, float | None]], base: float, title: str, words: Words, show: Show
) -> None:
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
            axes.annotate(
                f"{change:+.1f} %".replace("-", "−"),
                (value, line + up),
                (3 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.axvline(base, color=INK, linewidth=1.0)
    axes.set_xlim(base - 1.45 * reach, base + 1.45 * reach)  # room for the percentages
    style(axes, xlabel="", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    show(axes.xaxis)
    axes.xaxis.set_major_locator(FixedLocator(thinned(axes.get_xticks(), MOST_TORNADO_TICKS)))
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
        axes.barh(
            places,
            share,
            0.66,
            left=left,
            color=PART_COLOURS[part],
            edgecolor=MUTED if waiting else PAPER,
            linewidth=0.4,
            hatch="//////" if waiting else None,
            hatch_linewidth=0.35,
            label=name,
        )
        for place, start, width in zip(places.tolist(), left.tolist(), share.tolist(), strict=True):
            if width >= LABELLED_SHARE:
                dark = PART_COLOURS[part] in DARK
                ink = INK if part in ("wait", "posting_messages") else PAPER if dark else INK_ON_COLOUR
                axes.text(
                    start + width / 2,
                    place,
                    written(width, "percent"),
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=ink,
                )
        left += share
    for place, seconds in zip(places.tolist(), members["epoch_seconds"].astype(float), strict=True):
        axes.annotate(
            time_span(seconds), (1.0, place), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
        )
    axes.set_yticks(places, members["name"], parse_math=False)
    axes.set_xlim(0, 1.1)
    axes.set_ylim(len(members) - 0.5, -0.5)
    axes.set_xticks(np.linspace(0, 1, 5), [written(float(share), "percent") for share in np.linspace(0, 1, 5)])
    style(axes, xlabel="share of an epoch, mean over ranks; behind the bar: the epoch", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    headline(axes, "Where the epoch goes", "exposed: what ranks wait for; the fastest on top")
    legend_below(figure, axes.get_legend_handles_labels()[0], columns=6)
    return figure
