"""The validation of the simulator: one table in Markdown, one picture, the figures behind them in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from halocast.reports import figures
from halocast.simulator.observations import link_name
from halocast.simulator.validation import (
    BASELINES,
    Forecasts,
    Row,
    Summary,
    Validation,
    Which,
    component_errors,
    coverage,
    memory_errors,
    order_kept,
    summarise,
)

PNG_DPI = 160
REGIMES = ("ranks ≤ cores", "ranks > cores")


def write_validation(validation: Validation, folder: Path) -> dict[str, Path]:
    """Write ``validation.md``, ``.json`` and ``.png`` to `folder`; returns their paths by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        kind: folder / f"validation.{suffix}" for kind, suffix in (("table", "md"), ("figures", "json"), ("scatter", "png"))
    }
    paths["table"].write_text(validation_table(validation))
    paths["figures"].write_text(json.dumps(validation_document(validation), indent=1) + "\n")
    scatter(validation).savefig(paths["scatter"], dpi=PNG_DPI)
    return paths


def regimes(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows whose ranks have cores of their own apart from those whose ranks share; empty ones left out."""
    parted = {
        REGIMES[0]: [row for row in rows if not row.oversubscribed],
        REGIMES[1]: [row for row in rows if row.oversubscribed],
    }
    return {name: some for name, some in {**parted, "all": list(rows)}.items() if some}


SPEEDS: dict[str, Which] = {
    "machine at its usual speed": lambda row: row.usual,
    "at the machine's speed in those runs": lambda row: row.at_speed,
}
"""Which forecasts: the machine as fast as it usually was, or as it was in a configuration's runs."""


def forecasts() -> dict[str, Callable[[Forecasts], float | None]]:
    """Every forecast of the table, by name."""
    found: dict[str, Callable[[Forecasts], float | None]] = {
        "halocast, one configuration left out": lambda each: each.seconds,
        "halocast, its link left out": lambda each: each.held_out_link,
        "halocast, its number of ranks left out": lambda each: each.held_out_ranks,
    }
    for name in BASELINES:
        found[f"baseline: {name}"] = lambda each, name=name: each.baselines.get(name)  # type: ignore[misc]
    return found


def _summarise(rows: Sequence[Row], which: Which, value: Callable[[Forecasts], float | None]) -> Summary | None:
    return summarise(rows, lambda row: value(which(row)))


def validation_table(validation: Validation) -> str:
    """All of it as Markdown."""
    rows, costs = validation.rows, validation.calibration.costs
    repeats = np.sqrt(_typical_repeats(rows))
    noise, at_speed = 100 * validation.noise, 100 * validation.noise_at_speed
    repeats = _typical_repeats(rows)
    lines = [
        "# Forecast against measured",
        "",
        f"{len(rows)} configurations, {sum(len(row.runs) for row in rows)} runs on {costs.machine} with "
        f"{costs.host.cores} cores. A run's epoch time is the median of its epochs after the first two; a configuration's is "
        "the mean of its runs'.",
        "",
        f"Repeats of one configuration scatter by {noise:.1f} % (standard deviation of one run), so that the mean of {repeats} "
        f"is itself uncertain by {noise / np.sqrt(repeats):.1f} %. Most of it is the machine: the CPU time of the same work "
        f"differs by {100 * costs.host.slowness_spread:.0f} % from run to run. One number a run, its operations' CPU time over "
        f"the models', takes that out and leaves {at_speed:.1f} % a run, {at_speed / np.sqrt(repeats):.1f} % a mean. So "
        "every forecast is shown twice: with the machine as fast as it was in the configuration's runs (only that number is "
        "taken from them), "
        "and with the machine as it usually was (nothing is).",
        "",
    ]
    for speed, which in SPEEDS.items():
        noise = validation.noise_at_speed if which(rows[0]) is rows[0].at_speed else validation.noise
        lines += _epoch_times(rows, speed, which, noise)
    lines += [
        f"- Bytes: {sum(row.bytes_traced == row.bytes_forecast for row in rows)} of {len(rows)} configurations exact.",
        _memory_line(rows),
        "",
        "Where the error is, at the machine's speed (share of the epoch; median, and median of absolute values):",
        "",
        "| component | " + " | ".join(regimes(rows)) + " |",
        "| --- |" + " ---: |" * len(regimes(rows)),
    ]
    parts = {name: component_errors(some) for name, some in regimes(rows).items()}
    lines += [
        f"| {component} | "
        + " | ".join(f"{100 * each[component][0]:+.1f} %, {100 * each[component][1]:.1f} %" for each in parts.values())
        + " |"
        for component in next(iter(parts.values()))
    ]
    lines += ["", "![forecast against measured](validation.png)", "", "## Every configuration", "", *_configurations(rows), ""]
    return "\n".join(lines)


def _epoch_times(rows: Sequence[Row], speed: str, which: Which, noise: float) -> list[str]:
    lines = [
        f"## Epoch time, {speed}",
        "",
        "| forecast | regime | configurations | median | 95th percentile | worst | median, signed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, value in forecasts().items():
        for regime, some in regimes(rows).items():
            summary = _summarise(some, which, value)
            if summary is not None:
                lines.append(f"| {name} | {regime} | {_summary_cells(summary)} |")
    held, runs = coverage(rows, which)
    right, pairs = order_kept(rows, which, noise)
    return [
        *lines,
        "",
        f"- 90 % intervals hold {held} of {runs} runs ({_percent(held, runs)}).",
        f"- Order by epoch time: {right} of {pairs} pairs that differ by more than the noise ({_percent(right, pairs)}).",
        "",
    ]


def _configurations(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| graph | ranks | method | link | partition | measured ms | scatter | machine | forecast ms | 90 % interval | error "
        "| link left out | ranks left out | error at the machine's speed |",
        "| --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda each: each.configuration):
        each, found = row.configuration, row.usual
        cells = [
            each.graph, str(each.ranks), f"{each.method} {each.bits}".rstrip(), link_name(each.link), each.partition,
            f"{1e3 * row.measured:.0f}",
            f"{100 * float(np.std(np.log(row.runs), ddof=1)):.1f} %" if len(row.runs) > 1 else "",
            f"{row.machine:.2f}",
            f"{1e3 * found.seconds:.0f}",
            "" if found.interval is None else f"{1e3 * found.interval.low:.0f} to {1e3 * found.interval.high:.0f}",
            *(_error_cell(row, value) for value in (found.seconds, found.held_out_link, found.held_out_ranks)),
            _error_cell(row, row.at_speed.seconds),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "*machine*: CPU time over the models'; above 1 it was slower than usual."]


def _error_cell(row: Row, value: float | None) -> str:
    return "" if value is None else f"{100 * row.error(value):+.1f} %"


def _summary_cells(summary: Summary) -> str:
    return (
        f"{summary.configurations} | {100 * summary.median:.1f} % | {100 * summary.p95:.1f} % | {100 * summary.worst:.1f} % "
        f"| {100 * summary.signed:+.1f} %"
    )


def _memory_line(rows: Sequence[Row]) -> str:
    errors = memory_errors(rows)
    if errors.size == 0:
        return "- Peak memory: no run left its peaks."
    return (
        f"- Peak memory a rank: median error {100 * float(np.median(np.abs(errors))):.1f} %, from {100 * errors.min():+.1f} % (too low) "  # noqa: E501
        f"to {100 * errors.max():+.1f} %."
    )


def _typical_repeats(rows: Sequence[Row]) -> int:
    return int(np.median([len(row.runs) for row in rows]))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"


def validation_document(validation: Validation) -> dict[str, Any]:
    """The figures, for scripts."""
    rows = validation.rows
    memory = memory_errors(rows)
    return {
        "machine": validation.calibration.costs.machine,
        "cores": validation.calibration.costs.host.cores,
        "noise": validation.noise,
        "noise_at_speed": validation.noise_at_speed,
        "at_speed": _figures(rows, lambda row: row.at_speed, validation.noise_at_speed),
        "usual": _figures(rows, lambda row: row.usual, validation.noise),
        "bytes_exact": sum(row.bytes_traced == row.bytes_forecast for row in rows),
        "memory": {"median": float(np.median(np.abs(memory))), "lowest": float(memory.min())} if memory.size else None,
        "configurations": [
            {
                "graph": row.configuration.graph,
                "ranks": row.configuration.ranks,
                "method": row.configuration.method,
                "bits": row.configuration.bits,
                "link": link_name(row.configuration.link),
                "partition": row.configuration.partition,
                "runs": row.runs,
                "slowness": row.slowness,
                "at_speed": _forecast_figures(row.at_speed),
                "usual": _forecast_figures(row.usual),
                "components": {"measured": row.measured_components.tolist(), "forecast": row.forecast_components.tolist()},
            }
            for row in rows
        ],
    }


def _figures(rows: Sequence[Row], which: Which, noise: float) -> dict[str, Any]:
    held, runs = coverage(rows, which)
    right, pairs = order_kept(rows, which, noise)
    times = {
        name: {
            regime: asdict(found)
            for regime, some in regimes(rows).items()
            if (found := _summarise(some, which, value)) is not None
        }
        for name, value in forecasts().items()
    }
    return {
        "epoch_time": {name: table for name, table in times.items() if table},
        "coverage": {"held": held, "runs": runs},
        "order": {"right": right, "pairs": pairs},
    }


def _forecast_figures(found: Forecasts) -> dict[str, Any]:
    return {
        "forecast": found.seconds,
        "low": None if found.interval is None else found.interval.low,
        "high": None if found.interval is None else found.interval.high,
        "held_out_link": found.held_out_link,
        "held_out_ranks": found.held_out_ranks,
        "baselines": found.baselines,
    }


def scatter(validation: Validation) -> Figure:
    """Forecast over measured epoch time with the intervals; the best baseline beside."""
    rows = validation.rows
    best = min(
        BASELINES,
        key=lambda name: found.median if (found := summarise(rows, lambda row: row.usual.baselines[name])) else np.inf,
    )
    figure = Figure(figsize=(10.0, 5.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    times = [1e3 * row.measured for row in rows] + [1e3 * row.usual.seconds for row in rows]
    bounds = (0.8 * min(times), 1.25 * max(times))
    panels: tuple[tuple[Axes, str, Callable[[Row], float]], ...] = (
        (left, "halocast, left out of its calibration", lambda row: row.usual.seconds),
        (right, f"baseline: {best}", lambda row: row.usual.baselines[best]),
    )
    for axes, title, value in panels:
        axes.plot(bounds, bounds, color=figures.MUTED, linewidth=0.8, zorder=1)
        for regime, colour, marker in ((False, figures.BLUE, "o"), (True, figures.PLUM, "s")):
            some = [row for row in rows if row.oversubscribed is regime]
            if not some:
                continue
            x, y = [1e3 * row.measured for row in some], [1e3 * value(row) for row in some]
            axes.scatter(x, y, s=22, color=colour, marker=marker, zorder=3, label=REGIMES[int(regime)], linewidths=0)
            if axes is left:
                low = [1e3 * (row.usual.interval.low if row.usual.interval else value(row)) for row in some]
                high = [1e3 * (row.usual.interval.high if row.usual.interval else value(row)) for row in some]
                axes.vlines(x, low, high, color=colour, alpha=0.45, linewidth=1.4, zorder=2)
        found = summarise(rows, value)
        subtitle = f"median error {100 * found.median:.1f} %, 95th percentile {100 * found.p95:.1f} %" if found else ""
        figures.headline(axes, title, subtitle)
        axes.set(xscale="log", yscale="log", xlim=bounds, ylim=bounds, xlabel="measured epoch, ms")
        axes.grid(color=figures.GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.set_ylabel("forecast epoch, ms")
    left.legend(frameon=False, loc="upper left", fontsize=9)
    return figure
