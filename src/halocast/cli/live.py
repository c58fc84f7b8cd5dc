"""A what-if that answers again and again: moves of a page's sliders, from the engine that made the folder, in this process."""

from __future__ import annotations

import math
import reprlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from halocast.cli.capacity import open_evaluator
from halocast.cli.forecast import grouped
from halocast.errors import MisuseError, nearest
from halocast.reports.capacity_view import PARTS, View
from halocast.reports.words import written
from halocast.simulator.costs import Costs
from halocast.simulator.whatif import Evaluator, WhatIf
from halocast.simulator.whatif.axes import AXES
from halocast.simulator.whatif.change import Change
from halocast.simulator.whatif.evaluation import KEPT_STRUCTURES
from halocast.simulator.whatif.points import Point, resolve
from halocast.simulator.whatif.run import digest_of, digest_of_inputs
from halocast.words import byte_count, money, time_span

LEAST_RATE, MOST_RATE = 0.01, 10_000.0
"""Gbit/s of a link of one's own."""
MOST_PRICE = 1e6
"""A device and hour."""
MOST_EPOCHS = 10_000_000
LINKS = ("network", "link")
FEWEST = 2
"""Values that are worth a control."""
CALIBRATED = "as calibrated"


@dataclass(frozen=True)
class Control:
    """An input that the page moves: one of the grid's values."""

    name: str
    label: str
    unit: str
    values: Sequence[Any]
    start: int
    """Place of the value that the page begins with."""

    @property
    def is_slider(self) -> bool:
        """Numbers are slid, names are chosen from a list."""
        return all(isinstance(value, int | float) for value in self.values)

    @property
    def texts(self) -> list[str]:
        return [f"{value:g}" if isinstance(value, int | float) else str(value) or CALIBRATED for value in self.values]


@dataclass(frozen=True)
class Move:
    """What is asked: one value for each control, and numbers within bounds."""

    inputs: Mapping[str, Any]
    epochs: int
    rate: float | None = None
    """Gbit/s of every host's port, in the place of the grid's network or link."""
    price: float | None = None
    """Of a device and hour."""


@dataclass(frozen=True)
class Preparing:
    """An answer that has to be waited for: its programs are not in the cache."""

    text: str


class Desk:
    """Answers moves of one what-if. What is not prepared is made in the background, one after the other, the newest first.

    Raises MisuseError for costs, hardware, a graph or a run file that are not those of the folder.
    """

    def __init__(self, whatif: WhatIf, costs: Costs, costs_path: Path) -> None:
        manifest = whatif.manifest
        if digest_of(costs) != manifest.costs.digest:
            raise MisuseError(
                f"{costs_path} is not what {whatif.folder} was made from ({manifest.costs.path}): give that with --costs"
            )
        self.whatif = whatif
        self.evaluator: Evaluator = open_evaluator(manifest.grid, costs, str(whatif.folder))
        if digest_of_inputs(self.evaluator.names.catalogue, self.evaluator.subject) != manifest.digest:
            raise MisuseError(
                f"{whatif.folder} was made of another graph, run file or hardware file than are there now "
                f"({manifest.grid.get('data')}): make it again with `halocast whatif`"
            )
        self.view = View(whatif)
        self.start = self._start()
        self._ready: OrderedDict[tuple[Any, ...], None] = OrderedDict()
        self._wanted: OrderedDict[tuple[Any, ...], Point] = OrderedDict()
        self._failed: dict[tuple[Any, ...], str] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._worker = threading.Thread(target=self._prepare, name="prepare", daemon=True)

    # -- what can be asked --------------------------------------------------------------------------------------

    @property
    def controls(self) -> list[Control]:
        """Inputs with more than one value, as the grid has them."""
        return [
            Control(name, AXES[name].label, AXES[name].unit, values, values.index(self.start.inputs[name]))
            for name, values in self.evaluator.grid.axes.items()
            if len(values) >= FEWEST
        ]

    @property
    def link(self) -> str:
        """The input that a rate of one's own takes the place of; "" where ranks have none."""
        return next((name for name in LINKS if any(self.evaluator.grid.axes.get(name, ()))), "")

    @property
    def is_priced(self) -> bool:
        return self.evaluator.grid.prices.currency is not None

    def read(self, document: object) -> Move:
        """Check what a page sends. Raises MisuseError: one line on the first thing that is wrong."""
        if not isinstance(document, dict):
            raise MisuseError('a JSON object is expected, such as {"inputs": {}}')
        known = ("inputs", "epochs", "rate_gbit", "price_per_hour")
        for key in document:
            if key not in known:
                raise MisuseError(f"unknown key '{key}'{nearest(str(key), known)}")
        inputs = document.get("inputs", {})
        if not isinstance(inputs, dict):
            raise MisuseError("inputs: an object of names and values is expected")
        rate = document.get("rate_gbit")
        if rate is not None and not self.link:
            raise MisuseError("rate_gbit: the grid has no link between ranks")
        price = document.get("price_per_hour")
        if price is not None and not self.is_priced:
            raise MisuseError("price_per_hour: the grid has no prices")
        return Move(
            inputs={name: self._value(name, value) for name, value in inputs.items()},
            epochs=int(_number("epochs", document.get("epochs", self.start.epochs), 1, MOST_EPOCHS, whole=True)),
            rate=None if rate is None else _number("rate_gbit", rate, LEAST_RATE, MOST_RATE),
            price=None if price is None else _number("price_per_hour", price, 0.0, MOST_PRICE),
        )

    def _value(self, name: str, value: object) -> Any:
        axes = self.evaluator.grid.axes
        if name not in axes:
            raise MisuseError(f"unknown input '{name}'{nearest(name, axes)}")
        if isinstance(value, str):  # names as the catalogue takes them, and in the grid's own word
            spoken = {str(each).lower(): each for each in axes[name]} | (
                {"calibrated": "", CALIBRATED: ""} if "" in axes[name] else {}
            )
            value = spoken.get(value.lower(), value)
        for allowed in axes[name]:
            if value == allowed and isinstance(value, bool) is isinstance(allowed, bool):
                return allowed
        values = ", ".join(str(each) or CALIBRATED for each in axes[name])
        raise MisuseError(f"{name} = {_short(value)} is not in the grid; allowed: {values}")

    def _start(self) -> Move:
        """The recommended scenario, as far as it is one of the grid's combinations; the first of the grid otherwise."""
        axes, row = self.evaluator.grid.axes, self.view.reference
        inputs = {name: values[0] for name, values in axes.items()}
        columns = {"nodes": "nodes_factor", "edges": "edges_factor", "link": "network"}
        for name, values in axes.items() if row is not None else ():
            assert row is not None
            told = str(row[columns.get(name, name)])
            inputs[name] = next((value for value in values if _same(value, told)), values[0])
        price = None if row is None or pd.isna(row["price_per_hour"]) else float(row["price_per_hour"])
        return Move(inputs, self.evaluator.grid.epochs, price=price)

    def price_of(self, device: str) -> float | None:
        """What a device costs an hour where nobody says: as in the scenario that the page begins with, else its first price."""
        if device == self.start.inputs["device"] and self.start.price is not None:
            return self.start.price
        price = self.evaluator.grid.prices.of(device)
        return None if price is None else price.values[0]

    def point_of(self, move: Move) -> Point:
        combination = {**self.start.inputs, **move.inputs}
        if move.rate is not None:
            combination[self.link] = f"{move.rate:g}gbit"
        price = self.price_of(combination["device"]) if move.price is None else move.price
        return resolve({**combination, "price_per_hour": price})

    # -- answers ------------------------------------------------------------------------------------------------

    def answer(self, move: Move) -> dict[str, Any] | Preparing:
        """The forecast for a page, in words and numbers; or what it waits for. Raises MisuseError where preparing failed."""
        point = self.point_of(move)
        if not point.impossible(self.evaluator.subject.nodes) and not self._take(point):
            return Preparing(f"preparing {point.ranks} ranks: the partition and the programs are not in the cache ...")
        epochs = move.epochs / self.evaluator.grid.epochs
        return self.spoken(self.evaluator.evaluate(point, Change(epochs=epochs)))

    def spoken(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as the page shows it."""
        found: dict[str, Any] = {"name": row["name"], "feasible": row["feasible"], "reason": row["reason"]}
        if row.get("epoch_seconds") is None:
            return {**found, "forecast": None}
        currency = self.evaluator.grid.prices.currency or ""
        total = math.fsum(row[part] for part in PARTS)
        cost = row["cost"]
        texts = {
            "training": time_span(row["training_seconds"]),
            "training-interval": f"90 % between {time_span(row['training_low'])} and {time_span(row['training_high'])}",
            "epoch": time_span(row["epoch_seconds"]),
            "epoch-interval": f"90 % between {time_span(row['low'])} and {time_span(row['high'])}",
            "cost": "no price" if cost is None else money(cost, currency),
            "cost-interval": ""
            if cost is None
            else f"90 % between {money(row['cost_low'], currency)} and {money(row['cost_high'], currency)}",
            "memory": "not calibrated" if row["peak_bytes"] is None else byte_count(row["peak_bytes"]),
            "memory-room": ""
            if row["peak_bytes"] is None
            else f"at most {byte_count(row['peak_high'])} of {byte_count(row['memory_bytes'])}",
            "bytes": byte_count(row["bytes_per_epoch"]),
            "binds": row["binds"],
        }
        forecast = {
            name: row[name]
            for name in (
                "training_seconds",
                "training_low",
                "training_high",
                "epoch_seconds",
                "low",
                "high",
                "cost",
                "peak_bytes",
                "ranks",
            )
        }
        shares = {name: row[part] / total if total else 0.0 for part, name in PARTS.items()}
        parts = [{"name": name, "share": share, "text": written(share, "percent")} for name, share in shares.items()]
        return {
            **found,
            "forecast": forecast,
            "texts": texts,
            "parts": parts,
            "parts_text": ", ".join(f"{each['name']} {each['text']}" for each in parts),
            "extrapolated": grouped(row["extrapolated"]),
        }

    # -- preparing ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Prepare what the page begins with, and its neighbours on every slider, the first first."""
        points = [self.point_of(self.start)]
        for control in self.controls:
            points += [self.point_of(Move({control.name: value}, self.start.epochs)) for value in control.values]
        firsts = list({point.structure: point for point in points}.items())[:KEPT_STRUCTURES]
        with self._changed:
            self._wanted.update(reversed(firsts))
        self._worker.start()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self, point: Point) -> bool:
        """Whether the point's programs are kept; otherwise they are made next."""
        with self._changed:
            if point.structure in self._ready:
                self._ready.move_to_end(point.structure)
                return True
            if point.structure in self._failed:
                raise MisuseError(self._failed.pop(point.structure))
            self._wanted[point.structure] = point
            self._wanted.move_to_end(point.structure)
            self._changed.notify_all()
            return False

    def _prepare(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._is_closed)
                if self._is_closed:
                    return
                _, point = self._wanted.popitem()
                if point.structure in self._ready:
                    continue
            failure = ""
            try:
                self.evaluator.evaluate(point)
            except Exception as error:  # noqa: BLE001 - told to whoever asked for it; the others go on
                failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
            with self._changed:
                if failure:
                    self._failed[point.structure] = failure
                    continue
                self._ready[point.structure] = None
                while len(self._ready) > KEPT_STRUCTURES:
                    self._ready.popitem(last=False)


def _number(name: str, value: object, least: float, most: float, *, whole: bool = False) -> float:
    """A finite number within bounds. Raises MisuseError."""
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:  # nor is NaN
        kind = "a whole number" if whole else "a number"
        raise MisuseError(f"{name} = {_short(value)}: {kind} from {least:g} to {most:g} is expected")
    return float(value)


def _same(value: object, told: str) -> bool:
    """A value of an axis beside the text of a table's cell."""
    try:
        return float(str(value)) == float(told)
    except ValueError:
        return str(value) == told


def _short(value: object) -> str:
    text = " ".join(reprlib.repr(value).split())  # which bears any depth and length
    return text if len(text) <= 40 else f"{text[:39]}…"
