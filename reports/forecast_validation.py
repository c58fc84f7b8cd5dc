"""What a validation says of forecasts: how often intervals hold, where the error is, what simpler forecasts would have said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from halocast.errors import MisuseError
from halocast.reports.document import (
    Basis,
    Block,
    Column,
    Picture,
    Table,
    Text,
    Value,
)
from halocast.reports.forecast_figures import FEW, MANY, Point, components_figure
from halocast.reports.words import written
from halocast.simulator.calibrate import COMPONENTS

SPEEDS = {"usual": "machine at its usual speed", "at_speed": "at the machine's speed in those runs"}


class Outcome(BaseModel):
    """What was forecast of one configuration, seconds."""

    model_config = ConfigDict(frozen=True)

    forecast: float
    low: float | None = None
    high: float | None = None

    def holds(self, seconds: float) -> bool:
        return self.low is not None and self.high is not None and self.low <= seconds <= self.high


class Configuration(BaseModel):
    """One line of ``validation.json``."""

    model_config = ConfigDict(frozen=True)

    graph: str
    ranks: int
    method: str
    bits: str = ""
    link: str
    partition: str = ""
    runs: list[float]
    usual: Outcome
    at_speed: Outcome
    components: dict[str, list[float]]

    @property
    def name(self) -> str:
        return f"{self.graph}, {self.ranks} ranks, {f'{self.method} {self.bits}'.strip()}, {self.link}"

    @property
    def measured(self) -> float:
        """Geometric mean of the repeats, seconds."""
        return math.exp(float(np.mean(np.log(self.runs))))


class ValidationFile(BaseModel):
    """``validation.json`` of `halocast validate`, as far as it is reported."""

    model_config = ConfigDict(frozen=True)

    machine: str
    cores: int
    noise: float
    usual: dict[str, Any]
    at_speed: dict[str, Any]
    bytes_exact: int
    memory: dict[str, float] | None = None
    configurations: list[Configuration]

    def regime(self, configuration: Configuration) -> str:
        return FEW if configuration.ranks <= self.cores else MANY


def read_validation(document: Mapping[str, Any], source: str) -> ValidationFile:
    """Check what was read from ``validation.json``. Raises MisuseError naming the first key that is wrong."""
    try:
        found = ValidationFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MisuseError(f"{source}: no validation.json of halocast validate: {where}: {first['msg'].lower()}") from error
    if not found.configurations:
        raise MisuseError(f"{source}: a validation of no configurations: nothing to report")
    return found


def validation_points(validation: ValidationFile) -> list[Point]:
    """Left out of their calibration, the machine at its usual speed."""
    return [
        Point(
            each.name,
            validation.regime(each),
            each.measured,
            each.usual.forecast,
            _known(each.usual.low),
            _known(each.usual.high),
        )
        for each in validation.configurations
    ]


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def held_runs(configurations: Sequence[Configuration], speed: str) -> tuple[int, int]:
    """(runs inside their configuration's interval, runs)."""
    held = [
        getattr(each, speed).holds(run) for each in configurations for run in each.runs if getattr(each, speed).low is not None
    ]
    return sum(held), len(held)


def coverage(validation: ValidationFile, source: str) -> list[Block]:
    """By speed and regime, each run on its own."""
    rows: list[list[Value]] = []
    for speed, words in SPEEDS.items():
        for regime in (FEW, MANY, "all"):
            some = [each for each in validation.configurations if regime in ("all", validation.regime(each))]
            held, runs = held_runs(some, speed)
            if runs:
                rows.append([words, regime, held, runs, held / runs])
    columns = [
        Column("forecast"),
        Column("regime"),
        Column("held", "count"),
        Column("runs", "count"),
        Column("share", "percent"),
    ]
    text = "A 90 % interval is right when it holds nine runs in ten: more is too wide, less is too narrow."
    return [
        Text(text),
        Table("coverage", "Runs inside their 90 % interval", columns, rows, Basis.FORECAST, f"{source}/validation.json"),
    ]


def components(validation: ValidationFile, source: str) -> list[Block]:
    """Errors as shares of the measured epoch, at the machine's speed."""
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in COMPONENTS}
    for each in validation.configurations:
        measured, forecast = each.components["measured"], each.components["forecast"]
        for name, one, other in zip(COMPONENTS, measured, forecast, strict=True):
            errors[name].setdefault(validation.regime(each), []).append((other - one) / each.measured)
    rows: list[list[Value]] = [
        [name, regime, len(values), float(np.median(values)), float(np.median(np.abs(values))), float(np.max(np.abs(values)))]
        for name, by_regime in errors.items()
        for regime, values in by_regime.items()
    ]
    columns = [
        Column("component"),
        Column("regime"),
        Column("configurations", "count"),
        Column("median, signed", "change"),
        Column("median", "percent"),
        Column("worst", "percent"),
    ]
    largest = max(rows, key=lambda row: float(row[4] or 0.0))
    return [
        Picture(
            "components",
            components_figure(errors),
            f"Signed error by component, {len(validation.configurations)} configurations; the largest median is {largest[0]}'s "
            f"with {largest[1]}: {written(largest[4], 'percent')} of the epoch.",
            Basis.FORECAST,
            "The machine taken to be as fast as it was in those runs.",
            rows="component-errors",
        ),
        Table(
            "component-errors",
            "Error as a share of the measured epoch",
            columns,
            rows,
            Basis.FORECAST,
            f"{source}/validation.json",
        ),
    ]


def accuracy(validation: ValidationFile, source: str) -> list[Block]:
    """Median, 95th percentile and worst error of every forecast and baseline."""
    rows: list[list[Value]] = [
        [
            SPEEDS[speed],
            name,
            regime,
            summary["configurations"],
            summary["median"],
            summary["p95"],
            summary["worst"],
            summary["signed"],
        ]
        for speed, figures in (("usual", validation.usual), ("at_speed", validation.at_speed))
        for name, by_regime in figures.get("epoch_time", {}).items()
        for regime, summary in by_regime.items()
    ]
    if not rows:
        return []
    columns = [
        Column("speed"),
        Column("forecast"),
        Column("regime"),
        Column("configurations", "count"),
        Column("median", "percent"),
        Column("95th percentile", "percent"),
        Column("worst", "percent"),
        Column("median, signed", "change"),
    ]
    blocks: list[Block] = [
        Table("accuracy", "Error of the epoch time", columns, rows, Basis.FORECAST, f"{source}/validation.json")
    ]
    if validation.memory is not None:
        lowest = written(validation.memory["lowest"], "change")
        blocks.append(
            Text(
                f"Peak memory a rank: median error {written(validation.memory['median'], 'percent')}; "
                f"the lowest forecast was off by {lowest}."
            )
        )
    return blocks
