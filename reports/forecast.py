"""The forecast report: simulated epochs beside measured ones, and how right forecasts have been.

A reporter takes data; it parses no arguments and reads no folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

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
    Tiles,
    Value,
)
from halocast.reports.figures import new_figure, view_epoch
from halocast.reports.forecast_figures import BAND, HERE, Point, median_error, scatter_figure
from halocast.reports.forecast_validation import (
    ValidationFile,
    accuracy,
    components,
    coverage,
    held_runs,
    read_validation,
    validation_points,
)
from halocast.reports.train import TrainRun, counted_seconds
from halocast.reports.train import footer as run_footer
from halocast.reports.words import written
from halocast.traces.epochs import WARM_UP_EPOCHS
from halocast.traces.trace import Trace
from halocast.words import duration, time_span

MOST_SEPARATE = 12
"""Pairs whose epochs are drawn; of more, the first."""


COMPARED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "method": ("method", "name"),
        "layer": ("model", "layer"),
        "layers": ("model", "layers"),
        "hidden": ("model", "hidden"),
    }
)
"""Keys of the configuration that a forecast has in common with its run."""


def asked(trace: Trace, *keys: str) -> str:
    """A value of the configuration in words; "none" where it has none."""
    value: Any = trace.manifest.config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "none" if value is None else str(value).removeprefix("uniform:")


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
        """Of an epoch, measured. Raises MisuseError where none was timed."""
        counted = counted_seconds(self.run.metrics)
        if not len(counted):
            raise MisuseError(f"{self.name}: no epoch of this run was timed, so there is nothing to compare with")
        return float(np.median(counted))

    def check(self) -> None:
        """Raises MisuseError where the forecast is of another run than this one."""
        for what, measured, said in (
            ("graph", *(f"{each.manifest.graph.name} ({each.manifest.graph.fingerprint[:8]})" for each in self.traces)),
            ("ranks", *(str(each.manifest.world_size) for each in self.traces)),
            *((name, *(asked(each, *keys) for each in self.traces)) for name, keys in COMPARED.items()),
            ("bits", *self.widths),
        ):
            if measured != said:
                raise MisuseError(
                    f"{self.name}: the forecast is of another run: {what} {said}, not {measured}; forecast this one with "
                    "halocast forecast COSTS --data RUN/config.toml --out DIR, or compare the two with --kind compare"
                )

    @property
    def widths(self) -> tuple[str, str]:
        """Uniform widths; what a plan or a rule decides is not told by the configuration, and not compared."""
        measured, said = (asked(each, "method", "bits") for each in self.traces)
        return (measured, said) if measured.isdigit() and said.isdigit() else ("", "")

    @property
    def traces(self) -> tuple[Trace, Trace]:
        """Measured and simulated."""
        return self.run.trace, self.trace

    @property
    def point(self) -> Point:
        low, high = float(self.forecast["low"]), float(self.forecast["high"])
        return Point(self.name, HERE, self.seconds, float(self.forecast["epoch_seconds"]), low, high)

    @property
    def holds(self) -> bool:
        """The interval holds what was measured."""
        return self.point.low <= self.seconds <= self.point.high


def forecast_document(pairs: Sequence[ForecastPair], validation: Mapping[str, Any] | None, source: str) -> Document:
    """The report of runs with their forecasts, of a validation, or of both.

    `source`: the folder of the validation, or of the runs, as users would find it. Raises MisuseError where there is neither,
    for a validation that is none, and for a trace without a training epoch.
    """
    for pair in pairs:
        pair.check()
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
                {
                    "name": pair.name,
                    "epoch_seconds": pair.seconds,
                    "forecast": dict(pair.forecast),
                    "error": pair.point.error,
                    "inside": pair.holds,
                }
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
        where = "inside" if pair.holds else "outside"
        return (
            f"{pair.name}: {time_span(pair.point.forecast)} an epoch forecast, {time_span(pair.seconds)} measured: "
            f"{written(pair.point.error, 'change')}, {where} the 90 % interval."
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
        f"{len(points)} configurations, each forecast from the others: median error {median_error(points)}, {within} within "
        f"10 %; 90 % intervals held {held} of {runs} runs ({written(held / runs, 'percent')})."
    )


def lead(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> str:
    words = (
        [f"{len(pairs)} run{'s' * (len(pairs) > 1)} beside {'their' if len(pairs) > 1 else 'its'} forecast"] if pairs else []
    )
    if validation is not None:
        runs = sum(len(each.runs) for each in validation.configurations)
        words.append(f"a validation of {len(validation.configurations)} configurations, {runs} runs on {validation.machine}")
    return " and ".join(words)


def notes(pairs: Sequence[ForecastPair]) -> list[str]:
    """Unfinished runs, what forecasts had to extrapolate, what is not drawn."""
    found = [f"{pair.name} is unfinished: {pair.run.unfinished}." for pair in pairs if pair.run.unfinished]
    found += [f"{pair.name}: {note}" for pair in pairs for note in pair.run.trace.notes]
    for pair in pairs:
        reasons = list(pair.forecast.get("extrapolated", ()))
        if reasons:
            more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            found.append(f"{pair.name}: the forecast goes beyond what was calibrated: {reasons[0]}{more}.")
    if len(pairs) > MOST_SEPARATE:
        found.append(
            f"Of {len(pairs)} runs the epochs of the first {MOST_SEPARATE} are drawn; all are in the table and the scatter."
        )
    return found


def footer(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> str:
    words = [run_footer(pairs[0].run.trace.manifest)] if pairs else []
    if validation is not None:
        words.append(f"validated on {validation.machine}, {validation.cores} cores")
    return "; ".join(words)


def tiles(pairs: Sequence[ForecastPair], validation: ValidationFile | None) -> list[Block]:
    facts = []
    if len(pairs) == 1:
        point = pairs[0].point
        facts = [
            Fact("epoch", time_span(point.measured), Basis.MEASURED, f"median after the first {WARM_UP_EPOCHS}", "pairs"),
            Fact(
                "epoch",
                time_span(point.forecast),
                Basis.FORECAST,
                f"90 % between {time_span(point.low)} and {time_span(point.high)}",
                "pairs",
            ),
            Fact("error", written(point.error, "change"), Basis.FORECAST, "forecast over measured, minus 1", "pairs"),
        ]
    elif pairs:
        held = sum(pair.holds for pair in pairs)
        facts = [
            Fact(
                "median error", median_error([pair.point for pair in pairs]), Basis.FORECAST, f"of {len(pairs)} runs", "pairs"
            ),
            Fact("inside the 90 % interval", f"{held} of {len(pairs)}", Basis.FORECAST, "", "pairs"),
        ]
    if validation is not None:
        held, runs = held_runs(validation.configurations, "usual")
        facts += [
            Fact(
                "median error, validation",
                median_error(validation_points(validation)),
                Basis.FORECAST,
                f"of {len(validation.configurations)} configurations",
                "configurations",
            ),
            Fact(
                "intervals that held",
                written(held / runs, "percent"),
                Basis.FORECAST,
                f"{held} of {runs} runs; 90 % asked",
                "coverage",
            ),
            Fact(
                "noise of repeats",
                written(validation.noise, "percent"),
                Basis.MEASURED,
                "standard deviation of one run",
                "configurations",
            ),
            Fact(
                "bytes exact",
                f"{validation.bytes_exact} of {len(validation.configurations)}",
                Basis.FORECAST,
                "configurations",
                "",
            ),
        ]
    return [Tiles(facts)]


# -- pairs ------------------------------------------------------------------------------------------------------


def beside(pair: ForecastPair, place: int) -> list[Block]:
    """One run: its median epoch, the simulated one, and tables of both."""
    measured, forecast = view_epoch(pair.run.trace), view_epoch(pair.trace)
    point = pair.point
    timelines = [
        Timeline(
            f"Measured: {duration(measured.milliseconds)}",
            f"epoch {measured.epoch}, the median; shaded: the forecast's 90 % interval, the line: its value",
            measured,
            (1e3 * point.low, 1e3 * point.forecast, 1e3 * point.high),
        ),
        Timeline(
            f"Forecast: {duration(forecast.milliseconds)}", "the simulated epoch; compute above, communication below", forecast
        ),
    ]
    figure = new_figure(timelines_height(timelines))
    draw_timelines(figure, timelines)
    return [
        Picture(
            f"epochs-{place}",
            figure,
            f"Two Gantt charts on one time scale, {measured.world_size} ranks: the measured epoch of "
            f"{duration(measured.milliseconds)} above the simulated one of {duration(forecast.milliseconds)}.",
            caption="Above measured, below forecast.",
            rows=f"components-{place}",
        ),
        component_table(pair, place),
        amounts(pair, place),
    ]


def component_table(pair: ForecastPair, place: int) -> Table:
    """Seconds of the drawn epochs by part, told from both traces in the same way."""
    measured, forecast = epoch_parts(view_epoch(pair.run.trace)), epoch_parts(view_epoch(pair.trace))
    total = sum(measured.values())
    parts = {**measured, "epoch": total}
    simulated = {**forecast, "epoch": sum(forecast.values())}
    rows: list[list[Value]] = [
        [
            name,
            parts[name] / 1e3,
            simulated[name] / 1e3,
            simulated[name] / parts[name] - 1.0 if parts[name] else None,
            (simulated[name] - parts[name]) / total,
        ]
        for name in parts
    ]
    columns = [
        Column("part"),
        Column("measured", "seconds", Basis.MEASURED, "measured_seconds"),
        Column("forecast", "seconds", Basis.FORECAST, "forecast_seconds"),
        Column("error", "change"),
        Column("of the epoch", "change", key="share_of_epoch"),
    ]
    return Table(
        f"components-{place}",
        "The drawn epochs by part, mean over ranks",
        columns,
        rows,
        source=f"{pair.run.source}/trace" if pair.run.source else "",
    )


def amounts(pair: ForecastPair, place: int) -> Table:
    """Bytes and memory."""
    forecast, run = pair.forecast, pair.run
    rows: list[list[Value]] = [
        ["sent in exchanges, an epoch", run.exchange_bytes_per_epoch, int(forecast["exchange_bytes_per_epoch"])],
        ["sent in all, an epoch", run.bytes_per_epoch, int(forecast["bytes_per_epoch"])],
    ]
    said = forecast.get("peak_bytes") or ()  # none where memory was not calibrated; a killed run left none
    for rank, (measured, peak) in enumerate(zip(run.peak_bytes, said, strict=bool(said and run.peak_bytes))):
        rows.append([f"peak memory of rank {rank}", measured, int(peak)])
    table = [[*row, float(row[2]) / float(row[1]) - 1.0 if row[1] else None] for row in rows]  # type: ignore[arg-type]
    columns = [
        Column("amount"),
        Column("measured", "bytes", Basis.MEASURED, "measured_bytes"),
        Column("forecast", "bytes", Basis.FORECAST, "forecast_bytes"),
        Column("error", "change"),
    ]
    return Table(f"amounts-{place}", "Bytes and memory", columns, table)


# -- all of them ------------------------------------------------------------------------------------------------


def scattered(points: Sequence[Point], source: str) -> list[Block]:
    """The scatter, and the table behind it."""
    columns = [
        Column("name"),
        Column("regime"),
        Column("measured", "seconds", Basis.MEASURED, "measured_seconds"),
        Column("forecast", "seconds", Basis.FORECAST, "forecast_seconds"),
        Column("low", "seconds", key="low"),
        Column("high", "seconds", key="high"),
        Column("error", "change"),
        Column("inside the interval", key="inside"),
    ]
    rows: list[list[Value]] = [
        [each.name, each.group, each.measured, each.forecast, each.low, each.high, each.error, inside(each)] for each in points
    ]
    blocks: list[Block] = []
    identity = "pairs" if any(each.group == HERE for each in points) else "configurations"
    if len(points) > 1:
        figure, marks = scatter_figure(points)
        worst = max(points, key=lambda each: abs(each.error))
        blocks.append(
            Picture(
                "scatter",
                figure,
                f"Forecast over measured epoch time of {len(points)} configurations, both logarithmic, with the 10 % band; "
                f"median error {median_error(points)}; worst {written(worst.error, 'change')}: {worst.name}.",
                Basis.FORECAST,
                "Point at one, or focus the figure and use the arrow keys.",
                marks,
                identity,
            )
        )
    here = [row for row in rows if row[1] == HERE]
    others = [row for row in rows if row[1] != HERE]
    if here:
        blocks.append(Table("pairs", "Runs of this report", columns, here, main=not others))
    if others:
        blocks.append(
            Table(
                "configurations",
                "Every configuration of the validation; measured: the mean of its repeats",
                columns,
                others,
                source=f"{source}/validation.json",
                main=True,
            )
        )
    return blocks


def inside(point: Point) -> str | None:
    """Whether the interval holds the mean of the repeats."""
    return None if math.isnan(point.low) else "yes" if point.low <= point.measured <= point.high else "no"
