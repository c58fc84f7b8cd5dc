"""The forecast report: simulated epochs beside measured ones, and how right forecasts have been.

A reporter takes data; it parses no arguments and reads no folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from halocast.errors import MisuseError
from halocast.reports.breakdown import epoch_parts
from halocast.reports.comparison import Timeline, draw_timelines, timelines_height
from halocast.reports.document import (
    Basis,
    Block,
    Column,
    Document,
    Fact,
    Picture,
    Section,
    Table,
    Text,
    Tiles,
    Value,
)
from halocast.reports.figures import duration, new_figure, view_epoch
from halocast.reports.forecast_figures import BAND, FEW, HERE, MANY, Point, components_figure, median_error, scatter_figure
from halocast.reports.train import TrainRun
from halocast.reports.words import byte_count, time_span, written
from halocast.simulator.calibrate import COMPONENTS
from halocast.simulator.observations import WARM_UP_EPOCHS
from halocast.traces.trace import Trace

SPEEDS = {"usual": "machine at its usual speed", "at_speed": "at the machine's speed in those runs"}
MOST_SEPARATE = 12
"""Pairs whose epochs are drawn; of more, the first."""


@dataclass(frozen=True)
class ForecastPair:
    """A run, and what `halocast forecast --out` said of it."""

    run: TrainRun
    forecast: Mapping[str, Any]
    """``forecast.json``."""
    trace: Trace
    """Of the simulated epoch."""
    name: str

    @property
    def seconds(self) -> float:
        """Of an epoch, measured: the median of those after warming up, or of all where there are no others.

        Raises MisuseError where none was timed.
        """
        metrics = self.run.metrics
        timed = metrics["epoch_seconds"].dropna()
        warm = timed[metrics.loc[timed.index, "epoch"] >= WARM_UP_EPOCHS]
        if timed.empty:
            raise MisuseError(f"{self.name}: no epoch of this run was timed, so there is nothing to compare with")
        return float((warm if len(warm) else timed).median())

    @property
    def point(self) -> Point:
        low, high = float(self.forecast["low"]), float(self.forecast["high"])
        return Point(self.name, HERE, self.seconds, float(self.forecast["epoch_seconds"]), low, high)

    @property
    def holds(self) -> bool:
        """The interval holds what was measured."""
        return self.point.low <= self.seconds <= self.point.high


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


def forecast_document(pairs: Sequence[ForecastPair], validation: Mapping[str, Any] | None, source: str) -> Document:
    """The report of runs with their forecasts, of a validation, or of both.

    `source`: the folder of the validation, or of the runs, as users would find it. Raises MisuseError where there is neither,
    for a validation that is none, and for a trace without a training epoch.
    """
    if not pairs and validation is None:
        raise MisuseError(f"{source}: neither a run with its forecast nor a validation: nothing to report")
    checked = None if validation is None else read_validation(validation, source)
    points = ([] if checked is None else validation_points(checked)) + [pair.point for pair in pairs]
    sections = [Section("", tiles(pairs, checked))]
    for place, pair in enumerate(pairs[:MOST_SEPARATE], start=1):
        sections.append(Section(pair.name, beside(pair, place)))
    sections.append(Section("Every forecast", scattered(points, source)))
    if checked is not None:
        sections += [
            Section("How often the intervals hold", coverage(checked, source)),
            Section("Error by component", components(checked, source)),
            Section("Against simpler forecasts", accuracy(checked, source)),
        ]
    return Document(
        kind="forecast",
        title="Forecast against measured",
        lead=lead(pairs, checked),
        verdict=verdict(pairs, checked),
        sections=sections,
        notes=notes(pairs),
        data={
            "runs": [
                {"name": pair.name, "epoch_seconds": pair.seconds, "forecast": dict(pair.forecast), "error": pair.point.error, "inside": pair.holds}
                for pair in pairs
            ],
            "validation": None if checked is None else {"usual": checked.usual, "at_speed": checked.at_speed},
        },
        footer=footer(pairs, checked),
    )


# -- words ------------------------------------------------------------------------------------------------------


def verdict(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> str:
    """The sentence that one would say aloud."""
    if len(pairs) == 1:
        pair = pairs[0]
        held = "inside" if pair.holds else "outside"
        return (
            f"{pair.name}: {time_span(pair.point.forecast)} an epoch forecast, {time_span(pair.seconds)} measured: "
            f"{written(pair.point.error, 'change')}, {held} the 90 % interval."
        )
    if pairs:
        held = sum(pair.holds for pair in pairs)
        return (
            f"{len(pairs)} runs forecast with a median error of {median_error([pair.point for pair in pairs])}; "
            f"{held} of {len(pairs)} were inside their 90 % interval."
        )
    assert validation is not None
    points = validation_points(validation)
    held, runs = held_runs(validation.configurations, "usual")
    within = sum(abs(each.error) <= BAND for each in points)
    return (
        f"{len(points)} configurations, each forecast from the others: median error {median_error(points)}, {within} within 10 %; "
        f"90 % intervals held {held} of {runs} runs ({written(held / runs, 'percent')})."
    )


def lead(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> str:
    words = [f"{len(pairs)} run{'s' * (len(pairs) > 1)} beside {'their' if len(pairs) > 1 else 'its'} forecast"] if pairs else []
    if validation is not None:
        runs = sum(len(each.runs) for each in validation.configurations)
        words.append(f"a validation of {len(validation.configurations)} configurations, {runs} runs on {validation.machine}")
    return " and ".join(words)


def notes(pairs: Sequence[ForecastPair]) -> list[str]:
    """Unfinished runs, what forecasts had to extrapolate, what is not drawn."""
    found = [f"{pair.name}: {note}" for pair in pairs for note in pair.run.trace.notes]
    for pair in pairs:
        reasons = list(pair.forecast.get("extrapolated", ()))
        if reasons:
            more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            found.append(f"{pair.name}: the forecast goes beyond what was calibrated: {reasons[0]}{more}.")
    if len(pairs) > MOST_SEPARATE:
        found.append(f"Of {len(pairs)} runs the epochs of the first {MOST_SEPARATE} are drawn; all are in the table and the scatter.")
    return found


def footer(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> str:
    words = []
    if pairs:
        manifest = pairs[0].run.trace.manifest
        words = [f"halocast {manifest.halocast}", f"{manifest.machine.cpu}, {manifest.machine.cores} cores", f"graph {manifest.graph.fingerprint}"]
    if validation is not None:
        words.append(f"validated on {validation.machine}, {validation.cores} cores")
    return "; ".join(words)


def tiles(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> list[Block]:
    facts = []
    if len(pairs) == 1:
        point = pairs[0].point
        facts = [
            Fact("epoch", time_span(point.measured), Basis.MEASURED, f"median after the first {WARM_UP_EPOCHS}", "pairs"),
            Fact("epoch", time_span(point.forecast), Basis.FORECAST, f"90 % between {time_span(point.low)} and {time_span(point.high)}", "pairs"),
            Fact("error", written(point.error, "change"), Basis.FORECAST, "forecast over measured, minus 1", "pairs"),
        ]  # fmt: skip
    elif pairs:
        held = sum(pair.holds for pair in pairs)
        facts = [
            Fact("median error", median_error([pair.point for pair in pairs]), Basis.FORECAST, f"of {len(pairs)} runs", "pairs"),
            Fact("inside the 90 % interval", f"{held} of {len(pairs)}", Basis.FORECAST, "", "pairs"),
        ]
    if validation is not None:
        held, runs = held_runs(validation.configurations, "usual")
        facts += [
            Fact("median error, validation", median_error(validation_points(validation)), Basis.FORECAST,
                 f"of {len(validation.configurations)} configurations", "configurations"),
            Fact("intervals that held", written(held / runs, "percent"), Basis.FORECAST, f"{held} of {runs} runs; 90 % asked", "coverage"),
            Fact("noise of repeats", written(validation.noise, "percent"), Basis.MEASURED, "standard deviation of one run", "configurations"),
            Fact("bytes exact", f"{validation.bytes_exact} of {len(validation.configurations)}", Basis.FORECAST, "configurations", ""),
        ]  # fmt: skip
    return [Tiles(facts)]


# -- pairs ------------------------------------------------------------------------------------------------------


def beside(pair: ForecastPair, place: int) -> list[Block]:
    """One run: its median epoch, the simulated one, and tables of both."""
    measured, forecast = view_epoch(pair.run.trace), view_epoch(pair.trace)
    point = pair.point
    timelines = [
        Timeline(f"Measured: {duration(measured.milliseconds)}", f"epoch {measured.epoch}, the median; shaded: the forecast's 90 % interval, the line: its value",
                 measured, (1e3 * point.low, 1e3 * point.forecast, 1e3 * point.high)),
        Timeline(f"Forecast: {duration(forecast.milliseconds)}", "the simulated epoch; compute above, communication below", forecast),
    ]  # fmt: skip
    figure = new_figure(timelines_height(timelines))
    draw_timelines(figure, timelines)
    return [
        Picture(f"epochs-{place}", figure,
                f"Two Gantt charts on one time scale, {measured.world_size} ranks: the measured epoch of "
                f"{duration(measured.milliseconds)} above the simulated one of {duration(forecast.milliseconds)}.",
                caption="Above measured, below forecast.", rows=f"components-{place}"),
        component_table(pair, place),
        amounts(pair, place),
    ]  # fmt: skip


def component_table(pair: ForecastPair, place: int) -> Table:
    """Seconds of the drawn epochs by part, told from both traces in the same way."""
    measured, forecast = epoch_parts(view_epoch(pair.run.trace)), epoch_parts(view_epoch(pair.trace))
    total = sum(measured.values())
    parts = {**measured, "epoch": total}
    simulated = {**forecast, "epoch": sum(forecast.values())}
    rows: list[list[Value]] = [
        [name, parts[name] / 1e3, simulated[name] / 1e3,
         simulated[name] / parts[name] - 1.0 if parts[name] else None, (simulated[name] - parts[name]) / total]
        for name in parts
    ]  # fmt: skip
    columns = [
        Column("part"), Column("measured", "seconds", Basis.MEASURED, "measured_seconds"), Column("forecast", "seconds", Basis.FORECAST, "forecast_seconds"),
        Column("error", "change"), Column("of the epoch", "change", key="share_of_epoch"),
    ]  # fmt: skip
    return Table(f"components-{place}", "The drawn epochs by part, mean over ranks", columns, rows, source=f"{pair.run.trace.folder}")


def amounts(pair: ForecastPair, place: int) -> Table:
    """Bytes and memory."""
    forecast, run = pair.forecast, pair.run
    rows: list[list[Value]] = [
        ["sent in exchanges, an epoch", run.exchange_bytes_per_epoch, int(forecast["exchange_bytes_per_epoch"])],
        ["sent in all, an epoch", run.bytes_per_epoch, int(forecast["bytes_per_epoch"])],
    ]
    for rank, (measured, peak) in enumerate(zip(run.peak_bytes, forecast.get("peak_bytes", ()), strict=False)):
        rows.append([f"peak memory of rank {rank}", measured, int(peak)])
    table = [[*row, float(row[2]) / float(row[1]) - 1.0 if row[1] else None] for row in rows]  # type: ignore[arg-type]
    columns = [
        Column("amount"), Column("measured", "bytes", Basis.MEASURED, "measured_bytes"),
        Column("forecast", "bytes", Basis.FORECAST, "forecast_bytes"), Column("error", "change"),
    ]  # fmt: skip
    return Table(f"amounts-{place}", "Bytes and memory", columns, table)


# -- all of them ------------------------------------------------------------------------------------------------


def validation_points(validation: ValidationFile) -> list[Point]:
    """Left out of their calibration, the machine at its usual speed."""
    return [
        Point(each.name, validation.regime(each), each.measured, each.usual.forecast, _known(each.usual.low), _known(each.usual.high))
        for each in validation.configurations
    ]


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def scattered(points: Sequence[Point], source: str) -> list[Block]:
    """The scatter, and the table behind it."""
    columns = [
        Column("name"), Column("regime"), Column("measured", "seconds", Basis.MEASURED, "measured_seconds"),
        Column("forecast", "seconds", Basis.FORECAST, "forecast_seconds"), Column("low", "seconds", key="low"), Column("high", "seconds", key="high"),
        Column("error", "change"), Column("inside the interval", key="inside"),
    ]  # fmt: skip
    rows: list[list[Value]] = [
        [each.name, each.group, each.measured, each.forecast, each.low, each.high, each.error, inside(each)] for each in points
    ]
    blocks: list[Block] = []
    identity = "pairs" if any(each.group == HERE for each in points) else "configurations"
    if len(points) > 1:
        figure, marks = scatter_figure(points)
        worst = max(points, key=lambda each: abs(each.error))
        blocks.append(
            Picture("scatter", figure,
                    f"Forecast over measured epoch time of {len(points)} configurations, both logarithmic, with the 10 % band; median error "
                    f"{median_error(points)}; worst {written(worst.error, 'change')}: {worst.name}.",
                    Basis.FORECAST, "Point at one, or focus the figure and use the arrow keys.", marks, identity)
        )  # fmt: skip
    here = [row for row in rows if row[1] == HERE]
    others = [row for row in rows if row[1] != HERE]
    if here:
        blocks.append(Table("pairs", "Runs of this report", columns, here, main=not others))
    if others:
        blocks.append(Table("configurations", "Every configuration of the validation; measured: the mean of its repeats", columns, others,
                            source=f"{source}/validation.json", main=True))  # fmt: skip
    return blocks


def inside(point: Point) -> str | None:
    """Whether the interval holds the mean of the repeats."""
    return None if math.isnan(point.low) else "yes" if point.low <= point.measured <= point.high else "no"


def held_runs(configurations: Sequence[Configuration], speed: str) -> tuple[int, int]:
    """(runs inside their configuration's interval, runs)."""
    held = [getattr(each, speed).holds(run) for each in configurations for run in each.runs if getattr(each, speed).low is not None]
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
    columns = [Column("forecast"), Column("regime"), Column("held", "count"), Column("runs", "count"), Column("share", "percent")]
    text = "A 90 % interval is right when it holds nine runs in ten: more is too wide, less is too narrow."
    return [Text(text), Table("coverage", "Runs inside their 90 % interval", columns, rows, Basis.FORECAST, f"{source}/validation.json")]


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
        Column("component"), Column("regime"), Column("configurations", "count"), Column("median, signed", "change"), Column("median", "percent"),
        Column("worst", "percent"),
    ]  # fmt: skip
    largest = max(rows, key=lambda row: float(row[4] or 0.0))
    return [
        Picture("components", components_figure(errors),
                f"Signed error by component for {len(validation.configurations)} configurations; the largest median is {largest[0]}'s with "
                f"{largest[1]}: {written(largest[4], 'percent')} of the epoch.",
                Basis.FORECAST, "The machine taken to be as fast as it was in those runs.", rows="component-errors"),
        Table("component-errors", "Error as a share of the measured epoch", columns, rows, Basis.FORECAST, f"{source}/validation.json"),
    ]  # fmt: skip


def accuracy(validation: ValidationFile, source: str) -> list[Block]:
    """Median, 95th percentile and worst error of every forecast and baseline."""
    rows: list[list[Value]] = [
        [SPEEDS[speed], name, regime, summary["configurations"], summary["median"], summary["p95"], summary["worst"], summary["signed"]]
        for speed, figures in (("usual", validation.usual), ("at_speed", validation.at_speed))
        for name, by_regime in figures.get("epoch_time", {}).items()
        for regime, summary in by_regime.items()
    ]
    if not rows:
        return []
    columns = [
        Column("speed"), Column("forecast"), Column("regime"), Column("configurations", "count"), Column("median", "percent"),
        Column("95th percentile", "percent"), Column("worst", "percent"), Column("median, signed", "change"),
    ]  # fmt: skip
    blocks: list[Block] = [Table("accuracy", "Error of the epoch time", columns, rows, Basis.FORECAST, f"{source}/validation.json")]
    if validation.memory is not None:
        lowest = written(validation.memory["lowest"], "change")
        blocks.append(Text(f"Peak memory a rank: median error {written(validation.memory['median'], 'percent')}; the lowest forecast was off by {lowest}."))
    return blocks
