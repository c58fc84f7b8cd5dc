"""The questions that a grid is asked for, answered in words from its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pandas as pd

from halocast.simulator.whatif.evaluation import MISSES_MEMORY, shares_of
from halocast.simulator.whatif.folder import Answers, Knee, Sentence, Swing, Upgrade
from halocast.simulator.whatif.grid import Grid
from halocast.simulator.whatif.points import TASK, Point
from halocast.simulator.whatif.table import STOPS_PAYING
from halocast.words import money, round_span, time_span

SHOWN_SERIES = 3
"""Series that the sentence names."""
SHOWN_REASONS = 4
SHOWN_TASKS = 4
LEAST_SHARE = 0.005
"""Of an epoch, to be named."""
TASK_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "layer": "{}",
        "layers": "{} layers",
        "hidden": "{} wide",
        "nodes_factor": "{:g} x the nodes",
        "edges_factor": "{:g} x the edges",
    }
)
TIE = 1e-3
"""Times or costs that differ by no more than this share are as good as equal: a better link must earn more."""
COUNTS = ("ranks", "hosts", "devices_per_host")
"""Axes that say how many ranks there are."""
LINKS = ("network", "inside")
"""Inputs that an upgrade changes; `link` stands beside `network`."""


class Questions:
    """A finished table with the points behind it."""

    def __init__(self, grid: Grid, table: pd.DataFrame, points: Sequence[Point]) -> None:
        self.grid, self.table, self.points = grid, table.set_index("scenario", drop=False).rename_axis(None), points
        self.currency = grid.prices.currency
        self.known = self.table[self.table["training_seconds"].notna()]
        # every filter but time and money: those are what is asked about; the grid's first task is what is to be trained
        fits = ~self.known["reason"].str.contains(MISSES_MEMORY, regex=False)
        self.possible = self.known[fits & self._is_task(points[0].task)]
        self.is_priced = bool(self.known["cost"].notna().any())

    def _is_task(self, task: tuple[Any, ...]) -> pd.Series:
        """[known] whether a scenario trains that."""
        return pd.Series([self.points[each].task == task for each in self.known.index], index=self.known.index, dtype=bool)

    # -- which --------------------------------------------------------------------------------------------------

    def cheapest(self) -> int | None:
        """That meets the deadline, if there is one; without prices the one of fewest ranks."""
        deadline = self.grid.filters.deadline_seconds
        inside = self.possible if deadline is None else self.possible[self.possible["training_seconds"] <= deadline]
        return _first(inside, ["cost" if self.is_priced else "ranks", "training_seconds"])

    def fastest(self) -> int | None:
        """Within the budget, if there is one."""
        budget = self.grid.filters.budget
        inside = self.possible if budget is None else self.possible[self.possible["cost"] <= budget]
        return _first(inside, ["training_seconds", "cost" if self.is_priced else "ranks"])

    def recommended(self, task: tuple[Any, ...] | None = None) -> int | None:
        """The cheapest that meets the deadline, where there is one; else the fastest within the budget; what meets all filters,
        where something does. Of the grid's first task, if no other is asked for."""
        feasible = self.known[self.known["feasible"] & self._is_task(self.points[0].task if task is None else task)]
        money = "cost" if self.is_priced else "ranks"
        by = [money, "training_seconds"] if self.grid.filters.deadline_seconds is not None else ["training_seconds", money]
        return _first(feasible, by)

    # -- in words -----------------------------------------------------------------------------------------------

    def answers(self, tornado: Sequence[Swing]) -> Answers:
        recommended = self.recommended()
        upgrades = [] if recommended is None else self.upgrades(recommended)
        knees = self.knees()
        sentences = [
            self._cheapest_sentence(),
            self._fastest_sentence(),
            self._knee_sentence(knees),
            self._upgrade_sentence(recommended, upgrades),
            self._binding_sentence(recommended),
            *self._other_tasks(),
            self._infeasible_sentence(),
        ]
        return Answers(
            sentences=tuple(sentences),
            recommended=recommended,
            tornado=tuple(tornado),
            upgrades=tuple(upgrades),
            knees=tuple(knees),
        )

    def _cheapest_sentence(self) -> Sentence:
        deadline = self.grid.filters.deadline_seconds
        kind = "cheapest" if self.is_priced else "smallest (no prices are given)"
        question = f"Which is the {kind}" + (f" that trains within {round_span(deadline)}?" if deadline else "?")
        found = self.cheapest()
        if found is None:
            quickest = self._said(_first(self.possible, ["training_seconds"]))
            return Sentence(question=question, answer=f"None. The fastest is {quickest}.", scenarios=())
        text = f"{self._said(found)}."
        if deadline is not None:
            text += self._within(float(self._row(found)["training_high"]) <= deadline, "the deadline")
        return Sentence(question=question, answer=text, scenarios=(found,))

    def _fastest_sentence(self) -> Sentence:
        budget = self.grid.filters.budget
        question = "Which is the fastest" + (f" within {money(budget, self.currency)}?" if budget is not None else "?")
        found = self.fastest()
        if found is None:
            known = self.possible[self.possible["cost"].notna()]
            if known.empty and len(self.possible):
                return Sentence(question=question, answer="None: nothing has a price, so no cost is known.", scenarios=())
            cheapest = self._said(_first(known, ["cost", "training_seconds"]))
            return Sentence(question=question, answer=f"None. The cheapest is {cheapest}.", scenarios=())
        text = f"{self._said(found)}."
        if budget is not None:
            text += self._within(float(self._row(found)["cost_high"]) <= budget, "the budget")
        return Sentence(question=question, answer=text, scenarios=(found,))

    @staticmethod
    def _within(holds: bool, what: str) -> str:
        if holds:
            return f" The upper end of its interval meets {what} too."
        return f" The upper end of its interval misses {what}: it is not certain."

    def knees(self) -> list[Knee]:
        """The first number of ranks of each series whose efficiency is below half, of series that have one."""
        found = []
        for scenarios in self._series():
            rows = self.known.loc[scenarios].sort_values("ranks")
            if (below := rows[rows["efficiency"] < STOPS_PAYING]).empty:
                continue
            first = below.iloc[0]
            found.append(
                Knee(
                    series=self._series_name(int(first["scenario"])),
                    ranks=int(first["ranks"]),
                    efficiency=float(first["efficiency"]),
                    scenarios=tuple(rows["scenario"].tolist()),
                )
            )
        return found

    def _series(self) -> list[list[int]]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for scenario in self.known.index.tolist():
            groups.setdefault(self.points[scenario].series, []).append(scenario)
        return [each for each in groups.values() if len(each) > 1]

    def _varies(self, names: Iterable[str]) -> bool:
        """Whether any of these axes of the grid has more than one value; a sample may have fewer."""
        return any(len(self.grid.axes.get(name, ())) > 1 for name in names)

    def _series_name(self, scenario: int) -> str:
        """The name without its ranks and its price."""
        ranks, _, rest = str(self._row(scenario)["name"]).partition(" x ")
        return ", ".join(part for part in (rest or ranks).split(", ") if not part.endswith(" an hour"))

    def _knee_sentence(self, knees: Sequence[Knee]) -> Sentence:
        question = "Where does adding ranks stop paying (less than half a rank's work for each)?"
        series = len(self._series())
        if not series:
            why = (
                "No two scenarios with a forecast differ in their ranks alone"
                if self._varies(COUNTS)
                else "The grid has one number of ranks"
            )
            return Sentence(question=question, answer=f"{why}: nothing to compare.", scenarios=())
        if not knees:
            return Sentence(
                question=question, answer=f"Nowhere in the grid: all {series} series stay above 50 %.", scenarios=()
            )
        recommended = self.recommended()
        own = [each for each in knees if recommended is not None and recommended in each.scenarios]
        shown = [*own, *(each for each in sorted(knees, key=lambda each: each.ranks) if each not in own)][:SHOWN_SERIES]
        listed = "; ".join(f"{each.series}: at {each.ranks} ranks ({100 * each.efficiency:.0f} %)" for each in shown)
        more = f"; and {len(knees) - len(shown)} more" if len(knees) > len(shown) else ""
        text = f"In {len(knees)} of {series} series. {listed}{more}."
        return Sentence(question=question, answer=text, scenarios=tuple(each.scenarios[0] for each in shown))

    def upgrades(self, scenario: int) -> list[Upgrade]:
        """What other links of the grid would make of the scenario, all else equal, the most seconds saved first."""
        base, here = self.points[scenario], self._row(scenario)
        found = []
        for other in self.known.index.tolist():
            if other == scenario:
                continue
            point = self.points[other]
            link = next((name for name in LINKS if self._differ_in(base, point, name)), None)
            if link is None:
                continue
            there = self._row(other)
            found.append(
                Upgrade(
                    scenario=other,
                    link=link,
                    from_=str(here[link]),
                    to=str(there[link]),
                    seconds_from=float(here["training_seconds"]),
                    seconds_to=float(there["training_seconds"]),
                    cost_from=_or_none(here["cost"]),
                    cost_to=_or_none(there["cost"]),
                )
            )
        return sorted(found, key=lambda each: each.seconds_to)

    @staticmethod
    def _differ_in(one: Point, other: Point, link: str) -> bool:
        """Whether the points differ in this link alone."""
        same = {link: getattr(one, link)} | ({"link": one.link} if link == "network" else {})
        return one != other and replace(other, **same) == one

    def _upgrade_sentence(self, recommended: int | None, upgrades: Sequence[Upgrade]) -> Sentence:
        question = "Which better link helps most?"
        if recommended is None:
            return Sentence(question=question, answer="Nothing is recommended that it could help.", scenarios=())
        if not upgrades:
            varies = self._varies((*LINKS, "link"))
            why = "No other scenario with a forecast differs in a link alone" if varies else "The grid has one link only"
            return Sentence(question=question, answer=f"{why}: nothing to compare.", scenarios=())
        best = upgrades[0]
        saved = best.seconds_from - best.seconds_to
        if saved <= TIE * best.seconds_from:
            text = f"None in the grid: {best.from_} is as good as any for {self._row(recommended)['name']}."
            return Sentence(question=question, answer=text, scenarios=(recommended,))
        text = (
            f"{best.to} instead of {best.from_} ({best.link}): a training takes {time_span(best.seconds_to)} instead of "
            f"{time_span(best.seconds_from)} ({100 * saved / best.seconds_from:.0f} % less)"
        )
        if best.cost_from is not None and best.cost_to is not None:
            text += (
                f" and costs {money(best.cost_to, self.currency)} instead of {money(best.cost_from, self.currency)}, "
                "at the same price of a device"
            )
        return Sentence(question=question, answer=f"{text}.", scenarios=(recommended, best.scenario))

    def _binding_sentence(self, recommended: int | None) -> Sentence:
        question = "What binds the recommended scenario?"
        if recommended is None:
            return Sentence(question=question, answer="Nothing meets every filter: nothing is recommended.", scenarios=())
        row = self._row(recommended)
        (word, share), *others = shares_of(row)
        rest = ", ".join(f"{name} {100 * part:.0f} %" for name, part in others if part >= LEAST_SHARE)
        text = f"{word.capitalize()}: {100 * share:.0f} % of an epoch of {row['name']}" + (f" ({rest})." if rest else ".")
        return Sentence(question=question, answer=text, scenarios=(recommended,))

    def _other_tasks(self) -> list[Sentence]:
        """The same recommendation for a graph that has grown, or another model."""
        tasks = list(dict.fromkeys(point.task for point in self.points))[1:]
        if not tasks:
            return []
        found = [(task, self.recommended(task)) for task in tasks[:SHOWN_TASKS]]
        parts = []
        for task, row in found:
            needs = "nothing meets every filter" if row is None else self._said(row)
            parts.append(f"{self._task_name(task)}: {needs}.")
        more = f" And {len(tasks) - SHOWN_TASKS} more in the table." if len(tasks) > SHOWN_TASKS else ""
        return [
            Sentence(
                question=f"The answers above are for {self._task_name(self.points[0].task)}. What would others need?",
                answer=" ".join(parts) + more,
                scenarios=tuple(row for _, row in found if row is not None),
            )
        ]

    def _task_name(self, task: tuple[Any, ...]) -> str:
        """What tells the task from the grid's others."""
        values = [dict(zip(TASK, each, strict=True)) for each in (task, *(point.task for point in self.points))]
        differing = [name for name in TASK if len({each[name] for each in values}) > 1]
        if "nodes_factor" in differing and all(each["nodes_factor"] == each["edges_factor"] for each in values):
            differing.remove("edges_factor")  # the whole graph grows
        return ", ".join(TASK_WORDS[name].format(values[0][name]) for name in differing)

    def _infeasible_sentence(self) -> Sentence:
        question = "How many scenarios are infeasible, and why?"
        bad = self.table[~self.table["feasible"]]
        if bad.empty:
            return Sentence(question=question, answer=f"None of {len(self.table):,}.", scenarios=())
        counts = Counter(reason for text in bad["reason"] for reason in grouped(text))
        listed = "; ".join(f"{reason}: {count:,}" for reason, count in counts.most_common(SHOWN_REASONS))
        more = f"; and {len(counts) - SHOWN_REASONS} other reasons" if len(counts) > SHOWN_REASONS else ""
        text = f"{len(bad):,} of {len(self.table):,}. {listed}{more}."
        return Sentence(question=question, answer=text, scenarios=())

    # -- rows ---------------------------------------------------------------------------------------------------

    def _row(self, scenario: int) -> dict[str, Any]:
        return {str(name): value for name, value in self.table.loc[scenario].items()}

    def _said(self, scenario: int | None) -> str:
        """Name, time and cost with their intervals."""
        if scenario is None:
            return "none: no scenario has a forecast"
        row = self._row(scenario)
        text = (
            f"{row['name']}: {time_span(row['training_seconds'])} "
            f"(90 % between {time_span(row['training_low'])} and {time_span(row['training_high'])})"
        )
        if self.is_priced and pd.isna(row["cost"]):
            text += ", cost unknown (no price is given)"
        elif self.is_priced:
            text += (
                f", {money(row['cost'], self.currency)} "
                f"({money(row['cost_low'], self.currency)} to {money(row['cost_high'], self.currency)})"
            )
        return text


def grouped(reason: str) -> tuple[str, ...]:
    """The reasons of one row without their details, so that like ones are counted together."""
    return tuple(each.partition(": ")[0] for each in reason.split("; "))


def _first(rows: pd.DataFrame, by: Sequence[str]) -> int | None:
    """The scenario that is least in the first column, then in the others; where they are equal to within `TIE` the one with
    the lesser link, then of fewer ranks, then the lower number. What is unknown is more than anything known."""
    for name in by:
        least = rows[name].min()
        rows = rows if pd.isna(least) else rows[rows[name] <= least * (1.0 + TIE)]
    ordered = rows.sort_values(["network_rate", "ranks", *by, "scenario"], kind="stable")
    return None if ordered.empty else int(ordered.iloc[0]["scenario"])


def _or_none(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
