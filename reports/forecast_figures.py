"""Pictures of how right forecasts were: forecast over measured, and where the error is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from halocast.reports.document import Marks
from halocast.reports.figures import BLUE, GRID, IDLE, INK, MUTED, PLUM, VERMILION, headline, legend_below, new_figure, style
from halocast.reports.page import marks_of
from halocast.reports.times import show_times
from halocast.reports.words import written
from halocast.words import time_span

BAND = 0.10
"""Errors up to this are within the band."""
FEW, MANY, HERE = "ranks ≤ cores", "ranks > cores", "runs of this report"
GROUP_STYLES: Mapping[str, tuple[str, str]] = MappingProxyType({FEW: (BLUE, "o"), MANY: (PLUM, "s"), HERE: (VERMILION, "D")})
"""Colour and marker by group."""


@dataclass(frozen=True)
class Point:
    """One configuration's epoch: as forecast and as measured, seconds."""

    name: str
    group: str
    measured: float
    forecast: float
    low: float
    high: float
    """Of the 90 % interval; NaN where there is none."""

    @property
    def error(self) -> float:
        return self.forecast / self.measured - 1.0


def scatter_figure(points: Sequence[Point]) -> tuple[Figure, Marks]:
    """Forecast over measured, both logarithmic, with intervals and the ±10 % band."""
    figure = new_figure(5.4)
    axes = figure.add_subplot()
    measured, forecast = np.array([each.measured for each in points]), np.array([each.forecast for each in points])
    ends = np.concatenate([measured, forecast])
    bounds = np.array([0.75 * ends.min(), 1.33 * ends.max()])
    band = axes.fill_between(
        bounds, (1 - BAND) * bounds, (1 + BAND) * bounds, color=IDLE, linewidth=0, zorder=0.5, label="within 10 %"
    )
    (line,) = axes.plot(bounds, bounds, color=MUTED, linewidth=0.9, zorder=1, label="forecast = measured")
    handles: list[Artist] = [band, line]
    for group in dict.fromkeys(each.group for each in points):
        colour, marker = GROUP_STYLES[group]
        some = [each for each in points if each.group == group]
        x = [each.measured for each in some]
        axes.vlines(
            x, [each.low for each in some], [each.high for each in some], color=colour, alpha=0.4, linewidth=1.5, zorder=2
        )
        dots = axes.scatter(
            x, [each.forecast for each in some], s=26, color=colour, marker=marker, linewidths=0, zorder=3, label=group
        )
        handles.append(dots)
    axes.set(xscale="log", yscale="log", xlim=bounds, ylim=bounds)
    show_times(axes.xaxis)
    show_times(axes.yaxis)
    style(axes, xlabel="epoch as measured", grid="x")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_ylabel("epoch as forecast; bars: 90 % interval", fontsize=8.5, color=MUTED)
    within = sum(abs(each.error) <= BAND for each in points)
    headline(axes, "Forecast against measured", f"{within} of {len(points)} within 10 %; median error {median_error(points)}")
    legend_below(figure, handles)
    return figure, marks_of(figure, axes, measured, forecast, [point_text(each) for each in points])


def median_error(points: Sequence[Point]) -> str:
    """Of absolute values."""
    return written(float(np.median([abs(each.error) for each in points])), "percent")


def point_text(point: Point) -> str:
    interval = f" [{time_span(point.low)}, {time_span(point.high)}]" if np.isfinite(point.low) else ""
    error = written(point.error, "change")
    return f"{point.name}\nmeasured {time_span(point.measured)}, forecast {time_span(point.forecast)}{interval}: {error}"


def components_figure(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Signed errors by component and group, as shares of the measured epoch: every configuration a tick, the median a bar."""
    groups = list(dict.fromkeys(group for each in errors.values() for group in each))
    figure = new_figure(1.3 + 0.34 * len(errors) * len(groups) + 0.3)
    axes = figure.add_subplot()
    handles: list[Artist] = []
    for line, by_group in enumerate(errors.values()):
        for place, group in enumerate(groups):
            values = 100 * np.asarray(by_group.get(group, ()))
            if values.size == 0:
                continue
            colour, marker = GROUP_STYLES[group]
            height = line + 0.8 * ((place + 0.5) / len(groups) - 0.5)
            label = f"{group}, a configuration"
            dots = axes.scatter(
                values, np.full(len(values), height), s=20, color=colour, marker=marker, alpha=0.45, linewidths=0, label=label
            )
            axes.vlines(np.median(values), height - 0.16, height + 0.16, color=INK, linewidth=2.4, zorder=3)
            if label not in {each.get_label() for each in handles}:
                handles.append(dots)
    axes.axvline(0.0, color=MUTED, linewidth=0.9, zorder=0.5)
    axes.set_yticks(range(len(errors)), list(errors))
    axes.set_ylim(len(errors) - 0.5, -0.5)
    style(axes, xlabel="forecast − measured, % of the measured epoch", grid="x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %".replace("-", "−") if value else "0"))
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    headline(axes, "Where the error is", "right of 0: forecast too long; the bar: the median")
    legend_below(figure, handles)
    return figure
