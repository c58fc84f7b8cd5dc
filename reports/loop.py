"""The report of a closed loop: a plain run, the plan made from it as forecast, and the run trained with the plan.

A reporter takes data and paths; it parses no arguments and reads no run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halocast.reports import figures
from halocast.reports.breakdown import PART_COLOURS, draw_breakdown, epoch_parts
from halocast.reports.comparison import (
    Curve,
    Timeline,
    draw_curves_legend,
    draw_loss_by_clock,
    draw_loss_by_epoch,
    draw_metric_by_clock,
    draw_metric_by_epoch,
    draw_timelines,
    seconds_done,
    timelines_height,
)
from halocast.reports.page import inline_svg, page_template, png, write_files
from halocast.reports.pareto import Candidate, draw_candidates, runner_up
from halocast.reports.train import SPLITS, TrainRun, byte_range
from halocast.reports.widths import Histogram, draw_renewals, draw_widths, mean_bits
from halocast.traces.plan import Plan
from halocast.traces.trace import Trace
from halocast.words import byte_count, duration, three_digits

PLAIN_COLOUR, PLAN_COLOUR = figures.MUTED, figures.BLUE
BAR_HEIGHT, PANEL_HEIGHT, MARGINS = 0.4, 3.1, 1.35
"""Inches: of a bar, of a panel of curves, of a bar chart's title, axis and legend."""
MOST_ROWS = 40
"""Candidates in the table."""


@dataclass(frozen=True)
class Stage:
    """A part of the loop and what it took."""

    what: str
    seconds: float
    is_head_start: bool = False
    """The plan's first epoch had to wait for it: it counts to the planned run's time by the clock."""


@dataclass(frozen=True)
class LoopRun:
    """What the report of a loop shows."""

    plain: TrainRun
    """As the literature runs it: no savings, 32 bits."""
    planned: TrainRun
    """Trained with the plan."""
    forecast_trace: Trace
    """The plan's simulated epoch, as `simulator.timeline` writes it."""
    plan: Plan
    verdict: str
    """One sentence."""
    plain_seconds: float
    """Of an epoch, measured."""
    measured_seconds: float
    """Of an epoch of the planned run."""
    candidates: Sequence[Candidate] = ()
    """In the planner's order, best first; the first that was not chosen is the runner-up."""
    stages: Sequence[Stage] = ()
    history: Sequence[tuple[int, Histogram]] = ()
    """(epoch, all messages by width) as widths were assigned in the run; empty where they were not renewed."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path by what it is."""
    next_command: str = ""

    @property
    def head_start(self) -> float:
        """Seconds before the plan's first epoch."""
        return sum(stage.seconds for stage in self.stages if stage.is_head_start)

    @property
    def error(self) -> float:
        """Of the forecast, signed: forecast / measured − 1."""
        return self.plan.forecast.epoch_seconds / self.measured_seconds - 1.0

    @property
    def holds(self) -> bool:
        """The interval holds what was measured."""
        return self.plan.forecast.low <= self.measured_seconds <= self.plan.forecast.high

    @property
    def quantises(self) -> bool:
        """The plan gives messages a width."""
        return any(sum(each.histogram.values()) for each in self.plan.exchanges)


@dataclass(frozen=True)
class Epochs:
    """The three epochs that are compared."""

    loop: LoopRun

    @cached_property
    def plain(self) -> figures.EpochView:
        return figures.view_epoch(self.loop.plain.trace)

    @cached_property
    def forecast(self) -> figures.EpochView:
        return figures.view_epoch(self.loop.forecast_trace)

    @cached_property
    def measured(self) -> figures.EpochView:
        return figures.view_epoch(self.loop.planned.trace)

    @property
    def all(self) -> tuple[figures.EpochView, ...]:
        return self.plain, self.forecast, self.measured


Row = tuple[str, ...]
"""Cells of a table's row, in words; "" where not known."""
COLUMNS = ("plain, measured", "plan, forecast", "plan, measured")


def write_loop_report(loop: LoopRun, picture: Path, page: Path) -> None:
    """Write the picture (PNG) and the page (HTML).

    Raises MisuseError where a trace has no training epoch, RunError where writing fails.
    """
    epochs = Epochs(loop)
    write_files({picture: png(loop_picture(loop, epochs)), page: render_page(loop, epochs).encode()})


def loop_picture(loop: LoopRun, epochs: Epochs) -> Figure:
    """The three epochs above the loss curves and the plan's widths."""
    shown, learned = timelines(loop, epochs), curves(loop)
    heights = [timelines_height(shown), max(PANEL_HEIGHT, bars_height(len(loop.plan.exchanges)))]
    figure = figures.new_figure(sum(heights))
    top, bottom = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flat
    draw_timelines(top, shown)
    left, right = bottom, None
    if loop.quantises:
        left, right = bottom.subfigures(1, 2, width_ratios=(2, 1.15), squeeze=False).flat
    by_epoch, by_clock = left.subplots(1, 2)
    draw_loss_by_epoch(by_epoch, learned)
    draw_loss_by_clock(by_clock, learned)
    draw_curves_legend(left, learned)
    if right is not None:
        draw_widths(right.add_subplot(), loop.plan.exchanges)
    return figure


def render_page(loop: LoopRun, epochs: Epochs) -> str:
    """The HTML page as text: no script, no style sheet, picture or font from anywhere else.

    Raises MisuseError where a trace has no training epoch.
    """
    traces = {"plain run": loop.plain.trace, "forecast": loop.forecast_trace, "planned run": loop.planned.trace}
    second = runner_up(loop.candidates)
    return page_template(
        "loop.html.j2"
    ).render(
        loop_run=loop,  # `loop` is the template language's own word
        plan=loop.plan,
        manifest=loop.planned.trace.manifest,
        lead=lead(loop),
        notes=[f"{name}: {note}" for name, trace in traces.items() for note in trace.notes],
        tiles=tiles(loop),
        columns=COLUMNS,
        rows=comparison_rows(loop, epochs),
        parts=part_rows(epochs),
        exchanges=exchange_rows(loop.plan),
        candidates=[candidate_row(each, is_runner_up=each is second) for each in loop.candidates[:MOST_ROWS]],
        omitted=max(0, len(loop.candidates) - MOST_ROWS),
        extrapolated=by_reason(loop.plan.forecast.extrapolated),
        stages=stage_rows(loop),
        **drawings(loop, epochs),
    )


def drawings(loop: LoopRun, epochs: Epochs) -> dict[str, Markup | None]:
    """The page's figures by name; None where there is nothing to draw."""
    shown, learned, plan = timelines(loop, epochs), curves(loop), loop.plan
    stack = figures.new_figure(timelines_height(shown))
    draw_timelines(stack, shown)
    bars = list(zip(COLUMNS, map(epoch_parts, epochs.all), strict=True))
    panels = figures.new_figure(2 * PANEL_HEIGHT)
    grid = panels.subplots(2, 2)
    draw_loss_by_epoch(grid[0, 0], learned)
    draw_loss_by_clock(grid[0, 1], learned)
    draw_metric_by_epoch(grid[1, 0], learned, loop.planned.metric)
    draw_metric_by_clock(grid[1, 1], learned, loop.planned.metric)
    draw_curves_legend(panels, learned)
    return {
        "timelines": inline_svg(stack, "timelines", f"One epoch as {', as '.join(COLUMNS)}, on one time scale"),
        "breakdown": one_axes(
            lambda axes: draw_breakdown(axes, bars), bars_height(len(bars)), "breakdown", breakdown_words(bars)
        ),
        "curves": inline_svg(
            panels, "curves", f"Training loss and {loop.planned.metric} of both runs against epochs and seconds"
        ),
        "widths": one_axes(
            lambda axes: draw_widths(axes, plan.exchanges),
            bars_height(len(plan.exchanges)),
            "widths",
            "Messages of the plan by width, for each exchange",
        )
        if loop.quantises
        else None,
        "renewals": one_axes(
            lambda axes: draw_renewals(axes, loop.history, len(loop.planned.metrics)),
            PANEL_HEIGHT,
            "renewals",
            "Shares of the messages' widths against the epoch",
        )
        if len(loop.history) > 1
        else None,
        "front": one_axes(
            lambda axes: draw_candidates(axes, loop.candidates),
            1.4 * PANEL_HEIGHT,
            "front",
            "Epoch time as forecast against the variance of the gradient, for each candidate",
        )
        if loop.candidates
        else None,
    }


def one_axes(draw: Callable[[Axes], None], height: float, identity: str, description: str) -> Markup:
    """A figure of one chart, for the page."""
    figure = figures.new_figure(height)
    draw(figure.add_subplot())
    return inline_svg(figure, identity, description)


def bars_height(bars: int) -> float:
    """Inches of a chart of so many bars."""
    return MARGINS + BAR_HEIGHT * max(bars, 2)


def timelines(loop: LoopRun, epochs: Epochs) -> list[Timeline]:
    """The three epochs with their titles; the forecast is marked in both of the plan's."""
    planned = loop.plan.forecast
    forecast = (1e3 * planned.low, 1e3 * planned.epoch_seconds, 1e3 * planned.high)
    between = f"90 % between {seconds_range(planned.low, planned.high, 'and')}, shaded about the line"
    return [
        Timeline(
            f"Plain, measured: {seconds(loop.plain_seconds)}", f"{loop.plain.method}; {epoch_words(epochs.plain)}", epochs.plain
        ),
        Timeline(
            f"The plan, forecast: {seconds(planned.epoch_seconds)}",
            f"{between}; {percent(epochs.forecast.waiting)} of the time waiting",
            epochs.forecast,
            forecast,
        ),
        Timeline(
            f"The plan, measured: {seconds(loop.measured_seconds)}",
            f"{loop.planned.method}; {epoch_words(epochs.measured)}",
            epochs.measured,
            forecast,
        ),
    ]


def epoch_words(view: figures.EpochView) -> str:
    return f"epoch {view.epoch}, the median one; {percent(view.waiting)} of the time waiting"


def curves(loop: LoopRun) -> list[Curve]:
    """Both runs' learning; the planned one begins when tracing, calibrating and planning were done."""
    plain, planned = loop.plain, loop.planned
    later = loop.head_start
    return [
        Curve("plain", PLAIN_COLOUR, plain.metrics, seconds_done(plain.trace, plain.metrics)),
        Curve("plan", PLAN_COLOUR, planned.metrics, later + seconds_done(planned.trace, planned.metrics), later),
    ]


def lead(loop: LoopRun) -> str:
    """What was run where, in one line."""
    manifest = loop.planned.trace.manifest
    graph = manifest.graph
    ranks = f"{loop.plan.world_size} rank{'s' * (loop.plan.world_size > 1)}"
    return (
        f"{loop.planned.model} on {graph.name} ({graph.nodes:,} nodes, {graph.edges:,} edges), {ranks}, "
        f"{network_words(loop.plan.hosts)}, {manifest.machine.cpu}, {manifest.machine.cores} cores"
    )


def network_words(hosts: str) -> str:
    """``links of 200mbit`` for the run file's ``shaped:200mbit``."""
    kind, _, rate = hosts.partition(":")
    return f"links of {rate}" if rate else "no network between hosts" if kind == "local" else kind


def tiles(loop: LoopRun) -> list[tuple[str, str, str]]:
    """The verdict's numbers: (name, value, what qualifies it)."""
    planned = loop.plan.forecast
    where = "inside the interval" if loop.holds else "outside the interval"
    ratio = loop.plain_seconds / loop.measured_seconds
    speed = f"{three_digits(ratio)} × faster" if ratio >= 1 else f"{three_digits(1 / ratio)} × slower"
    found = [
        (
            "Forecast",
            seconds(planned.epoch_seconds),
            f"an epoch; 90 % between {seconds_range(planned.low, planned.high, 'and')}",
        ),
        ("Measured", seconds(loop.measured_seconds), f"{where}; the forecast is off by {signed(100 * loop.error, 1)} %"),
        ("Against plain", speed, f"plain takes {seconds(loop.plain_seconds)} an epoch"),
    ]
    for split in ("test", "val"):
        ours, theirs = loop.planned.accuracy.get(split), loop.plain.accuracy.get(split)
        if split == "test" and theirs is None and loop.plan.baseline is not None:
            theirs = loop.plan.baseline.accuracy
        if ours is not None:
            against = "plain was not evaluated" if theirs is None else f"plain {theirs:.4f}, {signed(ours - theirs, 4)}"
            name = f"{figures.sentence_case(loop.planned.metric)} on {SPLITS[split]}"
            return [*found, (name, f"{ours:.4f}", against)]
    return found


def comparison_rows(loop: LoopRun, epochs: Epochs) -> list[Row]:
    """The table of what was measured and forecast: (name, plain, forecast, measured)."""
    plain, planned, said = loop.plain, loop.planned, loop.plan.forecast
    rows = [
        (
            "Epoch time",
            seconds(loop.plain_seconds),
            f"{seconds(said.epoch_seconds)} ({seconds_range(said.low, said.high)})",
            seconds(loop.measured_seconds),
        ),
        ("Time waiting, mean over ranks", *(percent(view.waiting) for view in epochs.all)),
        (
            "Exchanged per epoch",
            byte_count(plain.exchange_bytes_per_epoch),
            byte_count(said.exchange_bytes_per_epoch),
            byte_count(planned.exchange_bytes_per_epoch),
        ),
        (
            "Sent per epoch, all-reduce included",
            byte_count(plain.bytes_per_epoch),
            byte_count(said.bytes_per_epoch),
            byte_count(planned.bytes_per_epoch),
        ),
        (
            "Peak memory per rank",
            *(byte_range(sizes) if sizes else "" for sizes in (plain.peak_bytes, said.peak_bytes, planned.peak_bytes)),
        ),
        ("Epochs trained", f"{len(plain.metrics):,}", "", f"{len(planned.metrics):,}"),
        ("Training loss at the end", last_loss(plain), "", last_loss(planned)),
    ]
    for split, name in SPLITS.items():
        values = [f"{run.accuracy[split]:.4f}" if split in run.accuracy else "" for run in (plain, planned)]
        rows.append((f"{figures.sentence_case(planned.metric)} on {name}", values[0], "", values[1]))
    return [row for row in rows if any(row[1:])]


def part_rows(epochs: Epochs) -> list[Row]:
    """The parts of the three epochs: (name, plain, forecast, measured), ms and share."""
    parts = [epoch_parts(view) for view in epochs.all]

    def cell(part: str, index: int) -> str:
        whole = sum(parts[index].values())
        return f"{three_digits(parts[index][part])} ms, {percent(parts[index][part] / whole)}" if whole else ""

    return [(part, cell(part, 0), cell(part, 1), cell(part, 2)) for part in PART_COLOURS]


def exchange_rows(plan: Plan) -> list[Row]:
    """(exchange, messages, mean bits, messages by width, bytes, variance) of each exchange of the plan."""
    return [
        (
            f"layer {each.layer} {each.direction}",
            f"{sum(each.histogram.values()):,}",
            f"{mean_bits(each.histogram):.2f}",
            ", ".join(f"{count:,} at {bits}" for bits, count in sorted(each.histogram.items())),
            byte_count(each.bytes),
            f"{each.variance:.3g}",
        )
        for each in plan.exchanges
    ]


def candidate_row(each: Candidate, *, is_runner_up: bool) -> Row:
    """(label, epoch time, interval, variance, peak memory, what it is) of a candidate."""
    role = "chosen" if each.is_chosen else "runner-up" if is_runner_up else ""
    return (
        each.label,
        seconds(each.epoch_seconds),
        seconds_range(each.low, each.high),
        f"{each.variance:.3g}" if each.variance else "0, exact",
        byte_count(each.peak_bytes) if each.peak_bytes else "",
        ", ".join(filter(None, (role, "front" if each.is_front else ""))),
    )


def stage_rows(loop: LoopRun) -> list[Row]:
    """(stage, time, share of the loop, whether the plan waited for it), the sum last."""
    total = sum(stage.seconds for stage in loop.stages)
    rows = [
        (
            stage.what,
            seconds(stage.seconds),
            percent(stage.seconds / total) if total else "",
            "before the plan's first epoch" if stage.is_head_start else "",
        )
        for stage in loop.stages
    ]
    before = f"{seconds(loop.head_start)} before the plan's first epoch" if loop.head_start else ""
    return [*rows, ("all", seconds(total), "", before)] if rows else []


def by_reason(reasons: Sequence[str]) -> list[str]:
    """One line for all operations of which the same is said: ``work outside the calibrated range: Quantize, Exchange``."""
    names: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, text = reason.rpartition(": ")
        names.setdefault(text, []).append(name)
    return [": ".join(filter(None, (text, ", ".join(filter(None, found))))) for text, found in names.items()]


def breakdown_words(bars: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """The bar chart for who cannot see it."""
    return "; ".join(
        f"{name}: {', '.join(f'{part} {duration(value)}' for part, value in parts.items())}" for name, parts in bars
    )


def last_loss(run: TrainRun) -> str:
    losses = run.metrics["loss"].dropna()
    return f"{losses.iloc[-1]:.4g}" if len(losses) else ""


def seconds(value: float) -> str:
    """Three digits with a unit."""
    return duration(1e3 * value)


def seconds_range(low: float, high: float, between: str = "to") -> str:
    """``190 to 215 ms``; both units where they differ."""
    first, last = seconds(low).split(), seconds(high)
    return f"{first[0]} {between} {last}" if last.endswith(f" {first[1]}") else f"{' '.join(first)} {between} {last}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def signed(value: float, digits: int) -> str:
    """With a sign that is a minus, not a hyphen."""
    return f"{value:+.{digits}f}".replace("-", "−")
