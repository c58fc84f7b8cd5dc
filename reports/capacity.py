"""The capacity report: what to rent for a training, what it will do, and how sure that is.

Made of a what-if folder; a reporter takes data, parses no arguments and reads no folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from halocast.reports.capacity_sections import binding, links, pareto, reasons, scaling, sensitivity, trust
from halocast.reports.capacity_tables import all_scenarios, brief_columns, brief_row
from halocast.reports.capacity_view import (
    View,
    machine_words,
    with_interval,
)
from halocast.reports.document import (
    Basis,
    Block,
    Column,
    Document,
    Fact,
    Question,
    Questions,
    Section,
    Table,
    Tiles,
)
from halocast.reports.times import round_time
from halocast.reports.words import written
from halocast.words import byte_count, money, time_span

if TYPE_CHECKING:
    from halocast.simulator.whatif import WhatIf
    from halocast.simulator.whatif.folder import Answers


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
        lead=f"{len(view.table):,} scenarios of training {manifest.graph.name} ({graph_words(view)}) "
        f"for {manifest.epochs:,} epochs, forecast from {manifest.costs.path}",
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


def graph_words(view: View) -> str:
    """``12,000,000 nodes, 95,181,000 edges: 1,000 times the measured graph``; of the task that the figures are of."""
    graph = view.whatif.manifest.graph
    if view.task.empty:
        return f"{graph.nodes:,} nodes, {graph.edges:,} edges"
    nodes, edges = (int(view.task[name].iloc[0]) for name in ("nodes", "edges"))
    said = f"{nodes:,} nodes, {edges:,} edges"
    if (nodes, edges) == (graph.nodes, graph.edges):
        return said
    return f"{said}, grown from the measured {graph.nodes:,} and {graph.edges:,}"


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
            f"None of {len(view.table):,} scenarios meets what was asked; the fastest, {nearest['name']}, would train {graph} "
            f"in {interval_of(nearest)}: {nearest['reason']}."
        )
    cost = f" for {money(best['cost'], view.currency)}" if view.priced and not pd.isna(best["cost"]) else ""
    verb = "trains" if best["ranks"] == 1 else "train"
    grown = f" at {best['nodes_factor']:,.6g} times its nodes" if best["nodes_factor"] != 1.0 else ""
    return f"{machine_words(best)} {verb} {graph}{grown} in {interval_of(best)}{cost}: {merit(view, best)}{doubt(view, best)}."


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


def doubt(view: View, best: pd.Series) -> str:
    """Which filters the upper end of its interval misses."""
    manifest = view.whatif.manifest
    missed = []
    if manifest.deadline_seconds is not None and best["training_high"] > manifest.deadline_seconds:
        missed.append("the deadline")
    if manifest.budget is not None and view.priced and best["cost_high"] > manifest.budget:
        missed.append("the budget")
    return f", though the upper end of its interval misses {' and '.join(missed)}" if missed else ""


def notes(view: View) -> list[str]:
    """What must be known before the numbers."""
    manifest, found = view.whatif.manifest, []
    if not manifest.finished:
        found.append(
            f"Unfinished: {len(view.table):,} of {manifest.scenarios:,} scenarios so far, and no answers yet. "
            "The same halocast whatif command goes on where it stopped, with --resume."
        )
    if manifest.sample is not None:
        found.append(
            f"A sample of {manifest.scenarios:,} scenarios, drawn at random with seed {manifest.seed}: the grid has more."
        )
    if view.has_tasks:
        found.append(
            f"The grid asks about more than one task (models, or how large the graph has grown). Verdict and figures are of "
            f"the first, {len(view.task):,} scenarios; the others are in the questions and in the table of all scenarios."
        )
    if not view.priced:
        found.append("No prices were given: costs are left out, and training time is weighed against ranks.")
    if view.recommended is None and manifest.finished and len(view.forecast):
        found.append("Nothing is recommended: every scenario misses a filter. Figures and slices are through the fastest one.")
    known = view.table["epoch_seconds"].notna()
    count, forecasts = int(view.table["extrapolated"].map(len).gt(0)[known].sum()), int(known.sum())
    if count:
        share = f"All {count:,}" if count == forecasts else f"{count:,} of {forecasts:,}"
        found.append(f"{share} forecasts lie beyond what was calibrated; their intervals are wider.")
    if (view.table["bits"] != "").any():
        found.append(
            "Fewer bits may cost accuracy, which is not forecast here: halocast plan weighs it (--risk), and "
            "halocast report RUN RUN compares trained runs."
        )
    return found


# -- sections ---------------------------------------------------------------------------------------------------


def summary(view: View) -> list[Block]:
    """The recommended scenario in tiles."""
    best = view.reference
    if best is None:
        return []
    facts = [
        Fact(
            "training",
            time_span(best["training_seconds"]),
            Basis.FORECAST,
            f"90 % interval {bounds(best, 'training_seconds', 'training_low', 'training_high')}",
            "top",
        ),
        Fact(
            "epoch",
            time_span(best["epoch_seconds"]),
            Basis.FORECAST,
            f"90 % interval {bounds(best, 'epoch_seconds', 'low', 'high')}",
            "top",
        ),
    ]
    if view.priced and not pd.isna(best["cost"]):
        facts.insert(
            1,
            Fact(
                "cost of a training",
                money(best["cost"], view.currency),
                Basis.FORECAST,
                f"{money(best['price_per_hour'], view.currency)} a device and hour, assumed",
                "top",
            ),
        )
    if not pd.isna(best["peak_bytes"]):
        room = f" of {byte_count(best['memory_bytes'])}" if not pd.isna(best["memory_bytes"]) else ""
        facts.append(
            Fact(
                "memory a rank, peak",
                byte_count(best["peak_bytes"]),
                Basis.FORECAST,
                f"at most {byte_count(best['peak_high'])}{room}",
                "top",
            )
        )
    if not pd.isna(best["efficiency"]):
        facts.append(
            Fact(
                "efficiency",
                written(float(best["efficiency"]), "percent"),
                Basis.FORECAST,
                "speed-up a rank, over the fewest ranks",
                "top",
            )
        )
    return [Tiles(facts)]


def answers_named(answers: Answers) -> set[int]:
    """Scenarios that the sentences are about."""
    return {number for each in answers.sentences for number in each.scenarios}


def answered(view: View, source: str) -> list[Block]:
    """The questions in sentences, each linked to its scenarios."""
    answers = view.whatif.answers
    if answers is None:
        return []
    known = {int(row["scenario"]): row for _, row in view.table[view.table["scenario"].isin(answers_named(answers))].iterrows()}
    rows = [
        [place, *brief_row(view, known[number])]
        for place, each in enumerate(answers.sentences, start=1)
        for number in each.scenarios
        if number in known
    ]
    linked = {row[0] for row in rows}
    asked = [
        Question(each.question, each.answer, Basis.FORECAST, "answered" if place in linked else "")
        for place, each in enumerate(answers.sentences, start=1)
    ]
    if not rows:
        return [Questions(asked)]
    table = Table(
        "answered",
        "Scenarios that the answers are about",
        [Column("question", "count"), *brief_columns(view)],
        rows,
        Basis.FORECAST,
        f"{source}/answers.json",
        currency=view.currency,
        folded=True,
    )
    return [Questions(asked), table]
