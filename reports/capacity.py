"""The capacity report: what to rent for a training, what it will do, and how sure that is.

Made of a what-if folder; a reporter takes data, parses no arguments and reads no folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from halocast.reports import capacity_figures as figures
from halocast.reports.capacity_view import (
    INPUTS,
    STOPS_PAYING,
    Grouped,
    View,
    clean_input,
    describe,
    machine_words,
    significant,
    with_interval,
)
from halocast.reports.document import (
    Basis,
    Block,
    Column,
    Document,
    Fact,
    Picture,
    Question,
    Questions,
    Section,
    Table,
    Text,
    Tiles,
    Value,
)
from halocast.reports.times import round_time
from halocast.reports.words import byte_count, money, time_span, written

if TYPE_CHECKING:
    from halocast.simulator.whatif import WhatIf

TOP = 10
MOST_REASONS = 40
SCENARIOS = "scenarios"


def capacity_document(whatif: WhatIf, source: str) -> Document:
    """The report of a what-if; `source` is its folder as users would find it. An unfinished one is reported as far as it is."""
    view = View(whatif)
    rows = f"{source}/scenarios.parquet" if whatif.manifest.finished else f"{source}/parts"
    manifest = whatif.manifest
    sections = [
        Section("", summary(view)),
        Section("Questions", answered(view, source)),
        Section("What to rent" if view.priced else "How much to use", pareto(view, rows)),
        Section("Adding ranks", scaling(view, rows, source)),
        Section("Ranks and link", links(view)),
        Section("What moves the answer", sensitivity(view, source)),
        Section("What binds", binding(view, rows)),
        Section("What cannot be had", reasons(view, rows)),
        Section("How far to trust this", trust(view, source, rows)),
        Section("All scenarios", [all_scenarios(view, rows)]),
    ]
    return Document(
        kind="capacity",
        title=f"{manifest.graph.name}: what to train it on",
        lead=f"{len(view.table):,} scenarios of training {manifest.graph.name} ({manifest.graph.nodes:,} nodes, "
        f"{manifest.graph.edges:,} edges) for {manifest.epochs:,} epochs, forecast from {manifest.costs.path}",
        verdict=verdict(view),
        sections=[section for section in sections if section.blocks],
        notes=notes(view),
        data={
            "graph": manifest.graph.name,
            "scenarios": len(view.table),
            "feasible": len(view.feasible),
            "finished": manifest.finished,
            "recommended": None if view.recommended is None else int(view.recommended["scenario"]),
            "front": [int(each) for each in view.front["scenario"]],
            "currency": manifest.currency,
        },
        footer=f"halocast {manifest.halocast}; {manifest.date}; costs of {manifest.costs.machine}; "
        f"graph {manifest.graph.fingerprint}",
        next_command=f"halocast serve {source}" if manifest.finished else "",
    )


# -- words ------------------------------------------------------------------------------------------------------


def verdict(view: View) -> str:
    """The sentence that one would say aloud."""
    best, graph = view.recommended, view.whatif.manifest.graph.name
    if best is None:
        best = view.best.iloc[0] if len(view.best) else None
    if best is None:
        if view.forecast.empty:
            return f"No scenario has a forecast: {view.infeasible[0].text if view.infeasible else 'nothing was asked'}."
        nearest = view.reference
        assert nearest is not None
        return (
            f"None of {len(view.table):,} scenarios meets what was asked; the fastest, {nearest['name']}, would train {graph} in "
            f"{interval_of(nearest)}: {nearest['reason']}."
        )
    cost = f" for {money(best['cost'], view.currency)}" if view.priced else ""
    return f"{machine_words(best)} {'trains' if best['ranks'] == 1 else 'train'} {graph} in {interval_of(best)}{cost}: {merit(view, best)}."


def interval_of(row: pd.Series) -> str:
    return with_interval(row["training_seconds"], row["training_low"], row["training_high"])


def bounds(row: pd.Series, value: str, low: str, high: str) -> str:
    """``[1.80, 2.60] h``."""
    _, unit, interval = with_interval(row[value], row[low], row[high]).split(maxsplit=2)
    return f"{interval} {unit}"


def merit(view: View, best: pd.Series) -> str:
    """What the recommended scenario is the best in."""
    manifest = view.whatif.manifest
    within = [f"within {round_time(manifest.deadline_seconds)}"] if manifest.deadline_seconds else []
    if view.priced and manifest.budget:
        within.append(f"for at most {money(manifest.budget, view.currency)}")
    filters = f" {' and '.join(within)}" if within else ""
    so_far = "" if manifest.finished else " so far"
    if view.priced and best["cost"] <= view.feasible["cost"].min():
        return f"the cheapest{filters}{so_far}"
    if best["training_seconds"] <= view.feasible["training_seconds"].min():
        return f"the fastest{filters}{so_far}"
    if best["ranks"] <= view.feasible["ranks"].min():
        return f"the fewest ranks{filters}{so_far}"
    return f"recommended{filters}{so_far}"


def notes(view: View) -> list[str]:
    """What must be known before the numbers."""
    manifest, found = view.whatif.manifest, []
    if not manifest.finished:
        found.append(
            f"Unfinished: {len(view.table):,} of {manifest.scenarios:,} scenarios so far, and no answers yet. "
            "The same halocast whatif command goes on where it stopped."
        )
    if manifest.sample is not None:
        found.append(f"A sample of {manifest.scenarios:,} scenarios, drawn at random with seed {manifest.seed}: the grid has more.")
    if not view.priced:
        found.append("No prices were given: costs are left out, and training time is weighed against ranks.")
    if view.recommended is None and manifest.finished and len(view.forecast):
        found.append("Nothing is recommended: every scenario misses a filter. Figures and slices are through the fastest one.")
    count = int(view.table["extrapolated"].map(len).gt(0).sum())
    if count:
        found.append(f"{count:,} of {len(view.table):,} scenarios lie beyond what was calibrated; their intervals are wider.")
    return found


# -- sections ---------------------------------------------------------------------------------------------------


def summary(view: View) -> list[Block]:
    """The recommended scenario in tiles."""
    best = view.reference
    if best is None:
        return []
    facts = [
        Fact("training", time_span(best["training_seconds"]), Basis.FORECAST,
             f"90 % interval {bounds(best, 'training_seconds', 'training_low', 'training_high')}", "top"),
        Fact("epoch", time_span(best["epoch_seconds"]), Basis.FORECAST,
             f"90 % interval {bounds(best, 'epoch_seconds', 'low', 'high')}", "top"),
    ]  # fmt: skip
    if view.priced:
        facts.insert(1, Fact("cost of a training", money(best["cost"], view.currency), Basis.FORECAST,
                             f"{money(best['price_per_hour'], view.currency)} a device and hour, assumed", "top"))  # fmt: skip
    if not pd.isna(best["peak_bytes"]):
        room = f" of {byte_count(best['memory_bytes'])}" if not pd.isna(best["memory_bytes"]) else ""
        facts.append(Fact("memory a rank, peak", byte_count(best["peak_bytes"]), Basis.FORECAST,
                          f"at most {byte_count(best['peak_high'])}{room}", "top"))  # fmt: skip
    if not pd.isna(best["efficiency"]):
        facts.append(Fact("efficiency", written(float(best["efficiency"]), "percent"), Basis.FORECAST, "speed-up a rank, over the fewest ranks", "top"))
    return [Tiles(facts)]


def answered(view: View, source: str) -> list[Block]:
    """The questions in sentences, each linked to its scenarios."""
    answers = view.whatif.answers
    if answers is None:
        return []
    known = view.table.set_index("scenario", drop=False)
    rows: list[list[Value]] = []
    for place, each in enumerate(answers.sentences, start=1):
        for number in each.scenarios:
            if number in known.index:
                rows.append([place, *brief_row(view, known.loc[number])])
    linked = {row[0] for row in rows}
    asked = [
        Question(each.question, each.answer, Basis.FORECAST, "answered" if place in linked else "")
        for place, each in enumerate(answers.sentences, start=1)
    ]
    if not rows:
        return [Questions(asked)]
    table = Table("answered", "Scenarios that the answers are about", [Column("question", "count"), *brief_columns(view)], rows,
                  Basis.FORECAST, f"{source}/answers.json", currency=view.currency)  # fmt: skip
    return [Questions(asked), table]


def pareto(view: View, rows: str) -> list[Block]:
    """Cost against time, and the best in a table."""
    if view.forecast.empty:
        return []
    figure, marks = figures.pareto_figure(view)
    best = view.best.drop_duplicates(["training_seconds", view.against, "peak_bytes"]).head(TOP)
    chosen = -1 if view.recommended is None else view.recommended["scenario"]
    weighed = "cost" if view.priced else "ranks"
    blocks: list[Block] = []
    if len(view.forecast) > 1:
        blocks.append(
            Picture(
                "pareto",
                figure,
                f"Scatter of {len(view.forecast)} scenarios: {weighed} against training time. {len(view.front)} are on the "
                f"Pareto front{span_words(view.front)}.",
                Basis.FORECAST,
                "A point's area is the memory of the rank that needs most. Point at one, or focus the figure and use the arrow keys.",
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
                f"Of {len(view.series):,} series over the ranks, {len(shown)} are drawn: the recommended scenario's, and those that "
                "differ from it in one input, the fastest for each input by turns."
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
    columns = [
        Column("series"), Column("ranks", "count"), Column("epoch", "seconds", key="epoch_seconds"), Column("low", "seconds"),
        Column("high", "seconds"), Column("efficiency", "percent"), Column("binds"), Column("pays"),
    ]  # fmt: skip
    points = [
        [series.name, *(clean_input(row[name]) for name in ("ranks", "epoch_seconds", "low", "high", "efficiency", "binds")),
         "no" if row["efficiency"] < STOPS_PAYING else "yes"]
        for series in shown
        for _, row in series.rows.iterrows()
    ]  # fmt: skip
    blocks.append(
        Table("scaling-rows", f"The curves; adding ranks stops paying below {written(STOPS_PAYING, 'percent')} efficiency", columns, points,
              Basis.FORECAST, rows)
    )  # fmt: skip
    answers = view.whatif.answers
    if answers is not None and answers.knees:
        knees = [[each.series, each.ranks, each.efficiency] for each in answers.knees]
        blocks.append(
            Table("knees", "Where adding ranks stops paying", [Column("series"), Column("ranks", "count"), Column("efficiency", "percent")],
                  knees, Basis.FORECAST, f"{source}/answers.json")
        )  # fmt: skip
    return blocks


def links(view: View) -> list[Block]:
    """Training time by ranks and link."""
    drawn = figures.heat_figure(view)
    if drawn is None:
        return []
    figure, marks = drawn
    label = INPUTS[view.link][0]
    return [
        Picture("heat", figure, f"Training time by ranks (across) and {label} (down), everything else as in the recommended scenario.",
                Basis.FORECAST, "Point at a cell for its scenario.", marks, SCENARIOS)
    ]  # fmt: skip


def sensitivity(view: View, source: str) -> list[Block]:
    """The tornado chart with its numbers, and what upgrades bring."""
    answers, best = view.whatif.answers, view.recommended
    if answers is None or best is None:
        return []
    blocks: list[Block] = []
    if answers.tornado:
        cost = float(best["cost"]) if view.priced else None
        seconds = float(best["training_seconds"])
        widest = max(answers.tornado, key=lambda each: abs(each.seconds_high - each.seconds_low))
        columns = [
            Column("input"), Column("20 % lower", basis=Basis.ASSUMED), Column("20 % higher", basis=Basis.ASSUMED),
            Column("training, lower", "seconds", key="seconds_low"), Column("training, higher", "seconds", key="seconds_high"),
        ]  # fmt: skip
        rows: list[list[Value]] = [[each.label, each.low, each.high, each.seconds_low, each.seconds_high] for each in answers.tornado]
        if view.priced:
            columns += [Column("cost, lower", "money", key="cost_low"), Column("cost, higher", "money", key="cost_high")]
            rows = [[*row, each.cost_low, each.cost_high] for row, each in zip(rows, answers.tornado, strict=True)]
        blocks += [
            Picture("tornado", figures.tornado_figure(view, seconds, cost, answers.tornado),
                    f"Bars of what 20 % less and more of each input do to the training time; most: {widest.label}, "
                    f"{time_span(widest.seconds_low)} to {time_span(widest.seconds_high)}.",
                    Basis.FORECAST, "Each input is changed alone, around the recommended scenario.", rows="tornado-rows"),
            Table("tornado-rows", "±20 % on each input", columns, rows, Basis.FORECAST, f"{source}/answers.json", currency=view.currency),
        ]  # fmt: skip
    if answers.upgrades:
        blocks.append(upgrades(view, source))
    return blocks


def upgrades(view: View, source: str) -> Table:
    assert view.whatif.answers is not None
    known = view.table.set_index("scenario")["name"]
    columns = [Column("scenario"), Column("link"), Column("other link"), Column("training", "seconds", key="seconds_from"),
               Column("then", "seconds", key="seconds_to"), Column("speed-up", "ratio")]  # fmt: skip
    if view.priced:
        columns += [Column("cost", "money", key="cost_from"), Column("cost then", "money", key="cost_to")]
    rows: list[list[Value]] = [
        [str(known.get(each.scenario, each.scenario)), each.from_, each.to, each.seconds_from, each.seconds_to, each.seconds_from / each.seconds_to,
         *((each.cost_from, each.cost_to) if view.priced else ())]
        for each in view.whatif.answers.upgrades
    ]  # fmt: skip
    return Table("upgrades", "What another link brings, all else equal; the fastest first", columns, rows, Basis.FORECAST, f"{source}/answers.json", currency=view.currency)


def binding(view: View, rows: str) -> list[Block]:
    """The parts of an epoch, for the front's members."""
    members = view.front if len(view.front) else view.forecast.sort_values("training_seconds").head(1)
    if members.empty:
        return []
    if len(members) > figures.MOST_MEMBERS:
        members = members.iloc[np.unique(np.linspace(0, len(members) - 1, figures.MOST_MEMBERS).round().astype(int))]
    count = len(view.front)
    of = f" {len(members)} of the {count} on the front, evenly." if count > len(members) else ""
    binds = view.front["binds"].value_counts() if count else members["binds"].value_counts()
    words = ", ".join(f"{name} {number}" for name, number in binds.items())
    blocks: list[Block] = [
        Picture("binding", figures.binding_figure(view, members),
                f"Stacked bars: shares of an epoch for {len(members)} scenarios of the Pareto front. What binds: {words}.",
                Basis.FORECAST, f"What binds on the front, by scenarios: {words}.{of}", rows="front")
    ]  # fmt: skip
    columns = [Column("scenario", "count"), Column("name"), Column("epoch", "seconds", key="epoch_seconds"),
               *(Column(name, "seconds", key=part) for part, name in figures.PARTS.items()),
               Column("exchange hidden", "seconds"), Column("bytes an epoch", "bytes", key="bytes_per_epoch")]  # fmt: skip
    listed = view.front if count else members
    table = [
        [clean_input(row[name]) for name in ("scenario", "name", "epoch_seconds", *figures.PARTS, "exchange_hidden", "bytes_per_epoch")]
        for _, row in listed.iterrows()
    ]
    blocks.append(Table("front", "The Pareto front, the fastest first; seconds of an epoch, mean over ranks", columns, table, Basis.FORECAST, rows))
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


def reason_table(identity: str, caption: str, found: Sequence[Grouped], rows: str) -> Table:
    columns = [Column("reason"), Column("scenarios", "count"), Column("for example"), Column("scenario", "count", key="example_scenario")]
    left = f"; the {MOST_REASONS} most frequent of {len(found)}" if len(found) > MOST_REASONS else ""
    listed = [[each.text, each.scenarios, each.example, each.first] for each in found[:MOST_REASONS]]
    return Table(identity, f"{caption}{left}", columns, listed, Basis.FORECAST, rows)


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
        blocks.append(Table("prices", "Prices", columns, prices, Basis.ASSUMED, f"{source}/whatif.json", currency=view.currency))
    return blocks


# -- rows -------------------------------------------------------------------------------------------------------


def brief_columns(view: View) -> list[Column]:
    """Of a table of a few scenarios."""
    return [
        Column("scenario", "count"), Column("name"), Column("training", "seconds", key="training_seconds"),
        Column("low", "seconds", key="training_low"), Column("high", "seconds", key="training_high"),
        *([Column("cost", "money")] if view.priced else []), Column("peak a rank", "bytes", key="peak_bytes"),
        Column("efficiency", "percent"), Column("binds"), Column("extrapolated"),
    ]  # fmt: skip


def brief_row(view: View, row: pd.Series) -> list[Value]:
    cost = ("cost",) if view.priced else ()
    names = ("scenario", "name", "training_seconds", "training_low", "training_high", *cost, "peak_bytes", "efficiency", "binds")
    return [*(clean_input(row[name]) for name in names), "yes" if len(row["extrapolated"]) else "no"]


def all_scenarios(view: View, rows: str) -> Table:
    """Every scenario with the inputs that vary; numbers to six digits."""
    table = view.table
    outputs = [
        Column("epoch", "seconds", key="epoch_seconds"), Column("low", "seconds"), Column("high", "seconds"),
        Column("training", "seconds", key="training_seconds"), *([Column("cost", "money")] if view.priced else []),
        Column("peak a rank", "bytes", key="peak_bytes"), Column("efficiency", "percent"), Column("binds"),
    ]  # fmt: skip
    inputs = [Column(INPUTS[name][0], INPUTS[name][1], key=name) for name in view.varying]
    chosen = [Column("scenario", "count"), *inputs, *outputs]
    columns = [[significant(value) for value in table[each.identifier]] for each in chosen]
    columns.append(["yes" if len(each) else "no" for each in table["extrapolated"]])
    columns.append(standings(table))
    spoken = [*chosen, Column("extrapolated"), Column("standing")]
    best = view.recommended
    place = frozenset() if best is None else frozenset(np.flatnonzero((table["scenario"] == best["scenario"]).to_numpy()).tolist())
    return Table(SCENARIOS, f"All {len(table):,} scenarios", spoken, list(zip(*columns, strict=True)), Basis.FORECAST, rows, place,
                 view.currency, main=True)  # fmt: skip


def standings(table: pd.DataFrame) -> list[Value]:
    """``on the front``, ``feasible``, or why not."""
    return [
        "on the front" if front else "feasible" if feasible else reason
        for front, feasible, reason in zip(table["on_front"], table["feasible"], table["reason"], strict=True)
    ]
