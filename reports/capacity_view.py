"""What the capacity report looks at in a table of scenarios: inputs that vary, series over the ranks, slices, reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from halocast.reports.document import Form, Value
from halocast.simulator.whatif.points import TASK
from halocast.simulator.whatif.table import PARTS as COMPONENTS
from halocast.simulator.whatif.table import front
from halocast.words import byte_count, three_digits, time_span

if TYPE_CHECKING:
    from halocast.simulator.whatif import WhatIf

INPUTS: Mapping[str, tuple[str, Form]] = MappingProxyType(
    {
        "graph": ("graph", "text"),
        "nodes_factor": ("nodes", "ratio"),
        "edges_factor": ("edges", "ratio"),
        "ranks": ("ranks", "count"),
        "hosts": ("hosts", "count"),
        "devices_per_host": ("devices a host", "count"),
        "device": ("device", "text"),
        "network": ("network", "text"),
        "network_rate": ("rate of a host's port, bytes/s", "bytes"),
        "inside": ("inside a host", "text"),
        "hosts_per_switch": ("hosts a switch", "count"),
        "oversubscription": ("oversubscription", "number"),
        "transport": ("transport", "text"),
        "all_reduce": ("all-reduce", "text"),
        "method": ("method", "text"),
        "bits": ("bits", "text"),
        "keep": ("layers that keep blocks", "text"),
        "prefetch": ("rounds fetched ahead", "count"),
        "savings": ("savings", "text"),
        "partition": ("partition", "text"),
        "layer": ("layer", "text"),
        "layers": ("layers", "count"),
        "hidden": ("hidden width", "count"),
        "price_per_hour": ("price of a device and hour", "money"),
    }
)
"""Columns that say what was asked: how people call them, and how they are written."""
PHRASES: Mapping[str, str] = MappingProxyType(
    {
        "devices_per_host": "{} a host",
        "inside": "{} inside",
        "keep": "keeps {}",
        "prefetch": "{} ahead",
        "savings": "savings {}",
        "hosts_per_switch": "{} hosts a switch",
    }
)
"""Inputs whose value alone would not be understood."""
IMPLIED: Mapping[str, str] = MappingProxyType({"network_rate": "network", "price_per_hour": "device"})
"""Columns that say nothing new beside another one where each of its values has one of theirs."""
PARTS: Mapping[str, str] = MappingProxyType({**COMPONENTS, "wait": "between operations"})
"""Columns that together are an epoch, as people call them."""
UNITS: Mapping[str, float] = MappingProxyType({"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0})
"""Seconds of each unit of `time_span`."""
CALIBRATED = "devices as calibrated"
NUMBER = re.compile(r"(?<![A-Za-z\d-])\d[\d,.]*")
"""Not of a name, such as H100."""
TOGETHER = (("method", "bits"), ("network", "network_rate"), ("device", "price_per_hour"))
"""Inputs that are changed as one."""


@dataclass(frozen=True)
class Series:
    """Scenarios that differ in nothing but the ranks."""

    name: str
    rows: pd.DataFrame
    """By ranks; only those with a forecast."""
    is_reference: bool


@dataclass(frozen=True)
class Grouped:
    """One reason, and for how many scenarios it holds."""

    text: str
    """Numbers that differ are left out."""
    scenarios: int
    example: str
    first: int
    """A scenario of which it is said."""


@dataclass(frozen=True)
class View:
    """A what-if as the report reads it."""

    whatif: WhatIf

    @cached_property
    def table(self) -> pd.DataFrame:
        """All scenarios there are, by number; of an unfinished what-if the front among those."""
        table = self.whatif.table.reset_index(drop=True)
        table["extrapolated"] = [list(each) if each is not None else [] for each in table["extrapolated"]]
        table["feasible"] = table["feasible"].fillna(False).astype(bool)
        if not self.whatif.manifest.finished:
            table["on_front"] = False
            known = table["cost"] if table["cost"].notna().any() else table["ranks"]
            for _, rows in table.groupby(list(TASK), dropna=False):
                values = (rows["training_seconds"], known[rows.index])
                seconds, price = (each.to_numpy(dtype=float) for each in values)
                table.loc[rows.index, "on_front"] = front(seconds, price, rows["feasible"].to_numpy(dtype=bool))
        return table

    @cached_property
    def task(self) -> pd.DataFrame:
        """Scenarios that train what the grid's first one does; a graph that has grown, or another model, is another task."""
        if self.table.empty:
            return self.table
        first = self.table.sort_values("scenario").iloc[0]
        same = pd.Series(True, index=self.table.index)
        for name in TASK:
            same &= self.table[name] == first[name]
        return self.table[same]

    @property
    def has_tasks(self) -> bool:
        """Whether there are others."""
        return len(self.task) < len(self.table)

    @cached_property
    def forecast(self) -> pd.DataFrame:
        """The task's scenarios with a forecast."""
        return self.task[self.task["epoch_seconds"].notna()]

    @cached_property
    def feasible(self) -> pd.DataFrame:
        return self.forecast[self.forecast["feasible"]]

    @cached_property
    def front(self) -> pd.DataFrame:
        """Members of the Pareto front, the fastest first."""
        return self.feasible[self.feasible["on_front"]].sort_values("training_seconds")

    @cached_property
    def priced(self) -> bool:
        return self.currency != "" and bool(self.table["cost"].notna().any())

    @property
    def currency(self) -> str:
        return self.whatif.manifest.currency or ""

    @property
    def against(self) -> str:
        """What training time is weighed against."""
        return "cost" if self.priced else "ranks"

    @cached_property
    def weighed(self) -> pd.DataFrame:
        """Scenarios with a forecast of both; a device without a price has no cost."""
        return self.forecast[self.forecast[self.against].notna()]

    @cached_property
    def best(self) -> pd.DataFrame:
        """Feasible scenarios, the best first: the cheapest, or without prices the fastest."""
        order = ["cost", "training_seconds"] if self.priced else ["training_seconds", "ranks"]
        return self.feasible.sort_values(order, kind="stable")

    @cached_property
    def recommended(self) -> pd.Series | None:
        answers = self.whatif.answers
        if answers is not None and answers.recommended is not None:
            found = self.table[self.table["scenario"] == answers.recommended]
            return None if found.empty else found.iloc[0]
        return None

    @cached_property
    def reference(self) -> pd.Series | None:
        """What slices are taken through: the recommended scenario, or else the best, or the fastest of the infeasible."""
        if self.recommended is not None:
            return self.recommended
        if len(self.best):
            return self.best.iloc[0]
        return self.forecast.sort_values("training_seconds").iloc[0] if len(self.forecast) else None

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """What changes along a scaling curve; how many devices a host has only where that follows from the ranks."""
        asked = {axis.name for axis in self.whatif.manifest.axes}
        return ("ranks", "hosts") if "devices_per_host" in asked else ("ranks", "hosts", "devices_per_host")

    @cached_property
    def varying(self) -> list[str]:
        """Inputs with more than one value, in the order of `INPUTS`; those that another one implies are left out."""
        found = [name for name in INPUTS if self.table[name].nunique(dropna=False) > 1]
        return [name for name in found if not (name in IMPLIED and IMPLIED[name] in found and self._implied(name))]

    def _implied(self, name: str) -> bool:
        return bool((self.table.groupby(IMPLIED[name], dropna=False)[name].nunique(dropna=False) <= 1).all())

    @cached_property
    def series(self) -> list[Series]:
        """Curves over the ranks of at least two points: the reference's, those that differ from it in one input, by turns of
        the inputs, then the others, the fastest first."""
        keys = [name for name in self.varying if name not in (*self.moving, *TASK, "price_per_hour")]
        groups = self.forecast.groupby(keys, dropna=False, sort=False) if keys else [((), self.forecast)]
        found = [
            (describe(rows.iloc[0], keys), rows.sort_values(["ranks", "training_seconds"]), self._changed(rows.iloc[0], keys))
            for _, rows in groups
            if rows["ranks"].nunique() > 1
        ]
        turns: dict[frozenset[str], int] = {}
        ranked = []
        for name, rows, changed in sorted(found, key=lambda each: float(each[1]["training_seconds"].min())):
            turn = turns[changed] = turns.get(changed, -1) + 1
            ranked.append(((min(len(changed), 2), turn if len(changed) == 1 else 0), Series(name, rows, not changed)))
        return [series for _, series in sorted(ranked, key=lambda each: each[0])]

    def _changed(self, row: pd.Series, keys: Sequence[str]) -> frozenset[str]:
        """In what a scenario differs from the reference; inputs that go together count as one."""
        if self.reference is None:
            return frozenset(keys)
        heads = {name: group[0] for group in TOGETHER for name in group}
        return frozenset(heads.get(name, name) for name in keys if clean_input(row[name]) != clean_input(self.reference[name]))

    def slice(self, *free: str) -> pd.DataFrame:
        """Rows that share all inputs with the reference but `free` and what they imply."""
        if self.reference is None:
            return self.table.iloc[:0]
        released = {*free, *(name for name, of in IMPLIED.items() if of in free)}
        released |= set(self.moving) if "ranks" in free else set()
        rows = self.table
        for name in (each for each in INPUTS if each not in released and each != "price_per_hour"):
            value = self.reference[name]
            rows = rows[rows[name].isna() if pd.isna(value) else rows[name] == value]
        return rows

    @cached_property
    def link(self) -> str:
        """The input that says how ranks are joined, of which the grid has most values; "" where there is but one of each."""
        counts = {name: self.slice(name)[name].nunique() for name in ("network", "network_rate", "inside")}
        name = max(counts, key=lambda each: counts[each])
        return name if counts[name] > 1 else ""

    @cached_property
    def infeasible(self) -> list[Grouped]:
        """Why scenarios are not to be had, by kind, the most frequent first; one may have several reasons."""
        missed = self.table[~self.table["feasible"]]
        filters = missed["epoch_seconds"].notna()  # otherwise one sentence says why there is no forecast
        reasons = (
            missed["reason"]
            .where(~filters, missed["reason"].str.split("; "))
            .map(lambda each: [each] if isinstance(each, str) else each)
        )
        return grouped(missed["scenario"], reasons, missed_kind)

    @cached_property
    def extrapolated(self) -> list[Grouped]:
        """What lies beyond the calibration, operations of which the same is said in one line."""
        return grouped(self.table["scenario"], self.table["extrapolated"], kind_of)


def grouped(scenarios: pd.Series, reasons: pd.Series, kind: Callable[[str], str]) -> list[Grouped]:
    """Reasons (a list of texts a scenario) by their kind, the most frequent first."""
    said = pd.DataFrame({"scenario": scenarios, "text": reasons}).explode("text").dropna()
    said = said[said["text"].astype(str) != ""]
    if said.empty:
        return []
    kinds = {text: kind(text) for text in said["text"].unique()}
    said["kind"] = said["text"].map(kinds)
    found = []
    for _, rows in said.groupby("kind", sort=False):
        texts = rows["text"].unique()
        head = texts[0] if len(texts) == 1 else rows["kind"].iloc[0]
        found.append(Grouped(head, int(rows["scenario"].nunique()), str(texts[0]), int(rows["scenario"].iloc[0])))
    return sorted(found, key=lambda each: (-each.scenarios, each.text))


def missed_kind(reason: str) -> str:
    """``misses the deadline``: a reason without its details."""
    return NUMBER.sub("…", reason.partition(": ")[0])


def kind_of(reason: str) -> str:
    """A reason without its numbers, and without the operation that it is said of."""
    head, _, text = reason.rpartition(": ")
    is_operation = head[:1].isupper() or " forward" in head or " backward" in head
    return NUMBER.sub("…", text if is_operation else reason)


def describe(row: pd.Series, names: Sequence[str]) -> str:
    """``H100, ethernet-100g, adaqp 4 bits, hidden width 256``: the inputs named, for people."""
    words = []
    for name in names:
        value = clean_input(row[name])
        label, form = INPUTS[name]
        if name == "method" and "bits" in names and row["bits"]:
            words.append(f"{value} {row['bits']} bits")
        elif name == "bits":
            words += [f"{value} bits"] if value and "method" not in names else []
        elif name == "device":
            words.append(str(value) or CALIBRATED)
        elif name == "network_rate":
            words.append(f"{byte_count(float(value or 0))}/s")
        elif name in PHRASES:
            words += [PHRASES[name].format(value)] if value else []
        elif form == "text":
            words += [str(value)] if value else []
        elif form == "ratio":
            words.append(f"{value:g} × {label}")
        else:
            words.append(f"{label} {value:g}" if isinstance(value, float) else f"{label} {value}")
    return ", ".join(words)


def clean_input(value: Any) -> Value:
    """A cell without NumPy's own types; None where it is not there."""
    if value is None or pd.isna(value):
        return None
    found = value.item() if hasattr(value, "item") else value
    return found if isinstance(found, float | int | str) else str(found)


def with_interval(value: float, low: float, high: float) -> str:
    """``2.10 h [1.80, 2.60]``: all in the unit of the value."""
    unit = time_span(value).split()[1]
    size = UNITS[unit]
    return f"{three_digits(value / size)} {unit} [{three_digits(low / size)}, {three_digits(high / size)}]"


def machine_words(row: pd.Series) -> str:
    """``8 × H100 on ethernet-100g``."""
    device = row["device"] or CALIBRATED
    joined = row["network"] or (f"{byte_count(row['network_rate'])}/s links" if row["network_rate"] else "")
    return f"{row['ranks']} × {device}{f' on {joined}' if joined else ''}"


def significant(value: Any, digits: int = 6) -> Value:
    """A number to so many digits, as tables of 10,000 rows carry it."""
    cleaned = clean_input(value)
    return float(f"{cleaned:.{digits}g}") if isinstance(cleaned, float) else cleaned
