"""The capacity report's tables: of a few scenarios, of reasons, of all scenarios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from halocast.reports.capacity_view import (
    INPUTS,
    Grouped,
    View,
    clean_input,
    significant,
)
from halocast.reports.document import (
    Basis,
    Column,
    Table,
    Value,
)

MOST_REASONS = 40


SCENARIOS = "scenarios"


def brief_columns(view: View) -> list[Column]:
    """Of a table of a few scenarios."""
    return [
        Column("scenario", "count"),
        Column("name"),
        Column("training", "seconds", key="training_seconds"),
        Column("low", "seconds", key="training_low"),
        Column("high", "seconds", key="training_high"),
        *([Column("cost", "money")] if view.priced else []),
        Column("peak a rank", "bytes", key="peak_bytes"),
        Column("efficiency", "percent"),
        Column("binds"),
        Column("extrapolated"),
    ]


def brief_row(view: View, row: pd.Series) -> list[Value]:
    cost = ("cost",) if view.priced else ()
    names = (
        "scenario",
        "name",
        "training_seconds",
        "training_low",
        "training_high",
        *cost,
        "peak_bytes",
        "efficiency",
        "binds",
    )
    return [*(clean_input(row[name]) for name in names), "yes" if len(row["extrapolated"]) else "no"]


def reason_table(identity: str, caption: str, found: Sequence[Grouped], rows: str) -> Table:
    columns = [
        Column("reason"),
        Column("scenarios", "count"),
        Column("for example"),
        Column("scenario", "count", key="example_scenario"),
    ]
    left = f"; the {MOST_REASONS} most frequent of {len(found)}" if len(found) > MOST_REASONS else ""
    listed: list[list[Value]] = [[each.text, each.scenarios, each.example, each.first] for each in found[:MOST_REASONS]]
    return Table(identity, f"{caption}{left}", columns, listed, Basis.FORECAST, rows)


def all_scenarios(view: View, rows: str) -> Table:
    """Every scenario with the inputs that vary; numbers to six digits."""
    table = view.table
    answers = [
        Column("training", "seconds", key="training_seconds"),
        *([Column("cost", "money")] if view.priced else []),
        Column("peak a rank", "bytes", key="peak_bytes"),
    ]
    outputs = [
        Column("epoch", "seconds", key="epoch_seconds"),
        Column("low", "seconds"),
        Column("high", "seconds"),
        Column("efficiency", "percent"),
        Column("binds"),
    ]
    inputs = [Column(INPUTS[name][0], INPUTS[name][1], key=name) for name in view.varying]
    chosen = [Column("scenario", "count"), *answers, *inputs, *outputs]  # what is asked for stays in view
    columns = [[significant(value) for value in table[each.identifier]] for each in chosen]
    columns.append(["yes" if len(each) else "no" for each in table["extrapolated"]])
    columns.append(standings(table))
    spoken = [*chosen, Column("extrapolated"), Column("standing")]
    best = view.recommended
    place = (
        frozenset() if best is None else frozenset(np.flatnonzero((table["scenario"] == best["scenario"]).to_numpy()).tolist())
    )
    return Table(
        SCENARIOS,
        f"All {len(table):,} scenarios",
        spoken,
        list(zip(*columns, strict=True)),
        Basis.FORECAST,
        rows,
        place,
        view.currency,
        main=True,
    )


def standings(table: pd.DataFrame) -> list[Value]:
    """``on the front``, ``feasible``, or why not."""
    return [
        "on the front" if front else "feasible" if feasible else reason
        for front, feasible, reason in zip(table["on_front"], table["feasible"], table["reason"], strict=True)
    ]
