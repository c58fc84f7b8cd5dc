"""The capacity report's sections, each a figure with its rows: what to rent, scaling, links, sensitivity, what binds, trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from halocast.reports import capacity_bars as bars
from halocast.reports import capacity_figures as figures
from halocast.reports.capacity_tables import SCENARIOS, brief_columns, brief_row, reason_table
from halocast.reports.capacity_view import (
    INPUTS,
    PARTS,
    Series,
    View,
    clean_input,
    significant,
)
from halocast.reports.document import (
    Basis,
    Block,
    Column,
    Picture,
    Table,
    Text,
    Value,
)
from halocast.reports.words import written
from halocast.simulator.whatif.table import STOPS_PAYING
from halocast.words import time_span

if TYPE_CHECKING:
    from halocast.simulator.whatif.folder import Knee, Swing

TOP = 10


def pareto(view: View, rows: str) -> list[Block]:
    """Cost against time, and the best in a table."""
    if view.forecast.empty:
        return []
    best = view.best.drop_duplicates(["training_seconds", view.against, "peak_bytes"]).head(TOP)
    chosen = -1 if view.recommended is None else view.recommended["scenario"]
    weighed = "cost" if view.priced else "ranks"
    blocks: list[Block] = []
    if len(view.weighed) > 1:
        figure, marks = figures.pareto_figure(view)
        blocks.append(
            Picture(
                "pareto",
                figure,
                f"Scatter of {len(view.weighed)} scenarios: {weighed} against training time. {len(view.front)} are on the "
                f"Pareto front{span_words(view.front)}.",
                Basis.FORECAST,
                "A point's area is the memory of the rank that needs most. Point at one, or focus the figure and use arrows.",
                marks,
                SCENARIOS,
            )
        )
    listed = best if len(best) else view.forecast.sort_values("training_seconds").head(TOP)
    order = ("the cheapest first" if view.priced else "the fastest first") if len(best) else "none is feasible: the fastest"
    blocks.append(
        Table(
            "top",
            f"The {len(listed)} best, {order}; of those alike only the first" if len(listed) > 1 else "The only one",
            brief_columns(view),
            [brief_row(view, row) for _, row in listed.iterrows()],
            Basis.FORECAST,
            rows,
            frozenset(np.flatnonzero((listed["scenario"] == chosen).to_numpy()).tolist()),
            view.currency,
        )
    )
    return blocks


def span_words(front: pd.DataFrame) -> str:
    if front.empty:
        return ""
    return f", from {front.iloc[0]['name']} (fastest) to {front.iloc[-1]['name']}"


def scaling(view: View, rows: str, source: str) -> list[Block]:
    """Epoch time against ranks, and where adding them stops paying."""
    if not view.series:
        return []
    shown = view.series[: figures.MOST_SERIES]
    blocks: list[Block] = []
    if len(view.series) > len(shown):
        blocks.append(
            Text(
                f"Of {len(view.series):,} series over the ranks, {len(shown)} are drawn: the recommended scenario's, and those "
                "that differ from it in one input, the fastest for each input by turns."
            )
        )
    first = shown[0].rows
    blocks.append(
        Picture(
            "scaling",
            figures.scaling_figure(view),
            f"Epoch time against ranks, both logarithmic, {len(shown)} series. {shown[0].name or 'All scenarios'}: from "
            f"{time_span(first['epoch_seconds'].iloc[0])} on {first['ranks'].iloc[0]} to "
            f"{time_span(first['epoch_seconds'].iloc[-1])} on {first['ranks'].iloc[-1]} ranks.",
            Basis.FORECAST,
            rows="scaling-rows",
        )
    )
    blocks.append(curves(shown, rows))
    answers = view.whatif.answers
    if answers is not None and answers.knees:
        blocks.append(knees(answers.knees, f"{source}/answers.json"))
    return blocks


def curves(shown: Sequence[Series], rows: str) -> Table:
    """The points of the drawn series."""
    columns = [
        Column("series"),
        Column("ranks", "count"),
        Column("epoch", "seconds", key="epoch_seconds"),
        Column("low", "seconds"),
        Column("high", "seconds"),
        Column("efficiency", "percent"),
        Column("binds"),
        Column("pays"),
    ]
    points: list[list[Value]] = [
        [
            series.name,
            *(clean_input(row[name]) for name in ("ranks", "epoch_seconds", "low", "high", "efficiency", "binds")),
            None if pd.isna(row["efficiency"]) else "no" if row["efficiency"] < STOPS_PAYING else "yes",
        ]
        for series in shown
        for _, row in series.rows.iterrows()
    ]
    caption = f"The curves; adding ranks stops paying below {written(STOPS_PAYING, 'percent')} efficiency"
    return Table("scaling-rows", caption, columns, points, Basis.FORECAST, rows, folded=True)


def knees(found: Sequence[Knee], source: str) -> Table:
    """Where series fall below half their efficiency."""
    columns = [Column("series"), Column("ranks", "count"), Column("efficiency", "percent")]
    rows: list[list[Value]] = [[each.series, each.ranks, each.efficiency] for each in found]
    return Table("knees", "Where adding ranks stops paying", columns, rows, Basis.FORECAST, source, folded=True)


def links(view: View) -> list[Block]:
    """Training time by ranks and link."""
    drawn = bars.heat_figure(view)
    if drawn is None:
        return []
    figure, marks = drawn
    label = INPUTS[view.link][0]
    return [
        Picture(
            "heat",
            figure,
            f"Training time by ranks (across) and {label} (down), everything else as in the recommended scenario.",
            Basis.FORECAST,
            "Point at a cell for its scenario.",
            marks,
            SCENARIOS,
        )
    ]


def sensitivity(view: View, source: str) -> list[Block]:
    """The tornado chart with its numbers, and what upgrades bring."""
    answers, best = view.whatif.answers, view.recommended
    if answers is None or best is None:
        return []
    blocks: list[Block] = []
    if answers.tornado:
        blocks += tornado(view, best, answers.tornado, f"{source}/answers.json")
    if answers.upgrades:
        blocks.append(upgrades(view, source))
    return blocks


def tornado(view: View, best: pd.Series, swings: Sequence[Swing], source: str) -> list[Block]:
    """The chart, and its numbers."""
    priced = view.priced and not pd.isna(best["cost"])
    cost = float(best["cost"]) if priced else None
    widest = max(swings, key=lambda each: abs(each.seconds_high - each.seconds_low))
    columns = [
        Column("input"),
        Column("20 % lower", basis=Basis.ASSUMED),
        Column("20 % higher", basis=Basis.ASSUMED),
        Column("training, lower", "seconds", key="seconds_low"),
        Column("training, higher", "seconds", key="seconds_high"),
    ]
    rows: list[list[Value]] = [[each.label, each.low, each.high, each.seconds_low, each.seconds_high] for each in swings]
    if priced:
        columns += [Column("cost, lower", "money", key="cost_low"), Column("cost, higher", "money", key="cost_high")]
        rows = [[*row, each.cost_low, each.cost_high] for row, each in zip(rows, swings, strict=True)]
    picture = Picture(
        "tornado",
        bars.tornado_figure(view, float(best["training_seconds"]), cost, swings),
        f"Bars of what 20 % less and more of each input do to the training time; most: {widest.label}, "
        f"{time_span(widest.seconds_low)} to {time_span(widest.seconds_high)}.",
        Basis.FORECAST,
        "Each input is changed alone, around the recommended scenario.",
        rows="tornado-rows",
    )
    caption = "±20 % on each input"
    return [picture, Table("tornado-rows", caption, columns, rows, Basis.FORECAST, source, currency=view.currency)]


def upgrades(view: View, source: str) -> Table:
    """What other links make of the recommended scenario."""
    assert view.whatif.answers is not None
    known = view.table.set_index("scenario")["name"]
    columns = [
        Column("scenario"),
        Column("link"),
        Column("other link"),
        Column("training", "seconds", key="seconds_from"),
        Column("then", "seconds", key="seconds_to"),
        Column("speed-up", "ratio"),
    ]
    if view.priced:
        columns += [Column("cost", "money", key="cost_from"), Column("cost then", "money", key="cost_to")]
    rows: list[list[Value]] = [
        [
            str(known.get(each.scenario, each.scenario)),
            each.from_,
            each.to,
            each.seconds_from,
            each.seconds_to,
            each.seconds_from / each.seconds_to,
            *((each.cost_from, each.cost_to) if view.priced else ()),
        ]
        for each in view.whatif.answers.upgrades
    ]
    return Table(
        "upgrades",
        "What another link brings, all else equal; the fastest first",
        columns,
        rows,
        Basis.FORECAST,
        f"{source}/answers.json",
        currency=view.currency,
    )


def binding(view: View, rows: str) -> list[Block]:
    """The parts of an epoch, for the front's members."""
    members = view.front if len(view.front) else view.forecast.sort_values("training_seconds").head(1)
    if members.empty:
        return []
    if len(members) > bars.MOST_MEMBERS:
        members = members.iloc[figures.evenly(len(members), bars.MOST_MEMBERS)]
    count = len(view.front)
    of = f" {len(members)} of the {count} on the front, evenly." if count > len(members) else ""
    binds = view.front["binds"].value_counts() if count else members["binds"].value_counts()
    words = ", ".join(f"{name} {number}" for name, number in binds.items())
    blocks: list[Block] = [
        Picture(
            "binding",
            bars.binding_figure(view, members),
            f"Stacked bars: shares of an epoch for {len(members)} scenarios of the Pareto front. What binds: {words}.",
            Basis.FORECAST,
            f"What binds on the front, by scenarios: {words}.{of}",
            rows="front",
        )
    ]
    columns = [
        Column("scenario", "count"),
        Column("name"),
        Column("epoch", "seconds", key="epoch_seconds"),
        *(Column(name, "seconds", key=part) for part, name in PARTS.items()),
        Column("exchange hidden", "seconds"),
        Column("bytes an epoch", "bytes", key="bytes_per_epoch"),
    ]
    listed = view.front if count else members
    table = [
        [clean_input(row[name]) for name in ("scenario", "name", "epoch_seconds", *PARTS, "exchange_hidden", "bytes_per_epoch")]
        for _, row in listed.iterrows()
    ]
    blocks.append(
        Table(
            "front",
            "The Pareto front, the fastest first; seconds of an epoch, mean over ranks",
            columns,
            table,
            Basis.FORECAST,
            rows,
        )
    )
    return blocks


def reasons(view: View, rows: str) -> list[Block]:
    """Infeasible scenarios by reason."""
    missed = len(view.table) - len(view.feasible)
    if not missed:
        return []
    return [
        Text(f"{missed:,} of {len(view.table):,} scenarios are not feasible; one may have several reasons."),
        reason_table("infeasible", "Why scenarios cannot be had", view.infeasible, rows),
    ]


def trust(view: View, source: str, rows: str) -> list[Block]:
    """What is extrapolated and assumed, and where prices come from."""
    manifest = view.whatif.manifest
    blocks: list[Block] = []
    if view.extrapolated:
        blocks.append(reason_table("extrapolated", "Beyond what was calibrated", view.extrapolated, rows))
    fixed = [f"{INPUTS[name][0] if name in INPUTS else name}: {value}" for name, value in manifest.fixed.items()]
    if fixed:
        blocks.append(Text(f"The same in every scenario: {'; '.join(fixed)}."))
    assumed = [*manifest.assumed]
    if assumed:
        blocks.append(Text("Assumed:", assumed))
    if manifest.prices:
        columns = [Column("device"), Column("price an hour", "money"), Column("source")]
        prices = [[name, significant(each.value), each.source] for name, each in manifest.prices.items()]
        blocks.append(
            Table("prices", "Prices", columns, prices, Basis.ASSUMED, f"{source}/whatif.json", currency=view.currency)
        )
    return blocks
