"""Axes of times and of amounts: ticks where people would put them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from halocast.reports.words import compact

Units = tuple[tuple[float, str], ...]
Floats = npt.NDArray[np.float64]
WIDE = 3.0
"""A largest over a smallest value beyond this is drawn on a logarithmic axis."""
FEWEST_TICKS = 3
TIMES: Units = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
"""Units, and from how many seconds on they are used."""
TIME_STEPS = (
    *(step * 10.0**power for power in range(-4, 1) for step in (1, 2, 5)),
    *(
        10.0,
        20.0,
        30.0,
        *(60.0 * minutes for minutes in (1, 2, 5, 10, 20, 30)),
        *(3600.0 * hours for hours in (1, 2, 4, 8, 12)),
    ),
    *(86400.0 * days for days in (1, 2, 5, 10, 20, 50, 100)),
)
"""Seconds that make good ticks of a logarithmic axis."""


def spread(axis: Axis, values: Floats) -> None:
    """A logarithmic axis where values lie far apart."""
    known = values[np.isfinite(values) & (values > 0)]
    if len(known) and len(known) == len(values) and known.max() > WIDE * known.min():
        (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")


def show_times(axis: Axis) -> None:
    """Ticks at times that people say: 30 s, 10 min, 2 h."""
    low, high = sorted(axis.get_view_interval())
    ticks = [each for each in TIME_STEPS if low <= each <= high] if axis.get_scale() == "log" else []
    spoken = TIMES
    if len(ticks) < FEWEST_TICKS:
        size, unit = next(((size, unit) for size, unit in TIMES if high >= 2 * size), TIMES[-1])
        spoken = ((size, unit),)
        ticks = [size * each for each in MaxNLocator(5).tick_values(low / size, high / size) if low <= size * each <= high]
    axis.set_major_locator(FixedLocator(thinned(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: round_time(value, spoken)))
    axis.set_minor_locator(NullLocator())


def round_time(seconds: float, units: Units = TIMES) -> str:
    """``30 s``, ``2 h``: as short as it can be said in one of these units, of which the last is for what is less than any."""
    size, unit = next(
        ((size, unit) for size, unit in units if seconds >= size * (2 if unit == "days" else 1) * 0.9999), units[-1]
    )
    return f"{seconds / size:.3g} {unit}"


def show_counts(axis: Axis) -> None:
    """1, 2 and 5 of a decade on a logarithmic axis; plain numbers."""
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        ticks = [step * 10.0**power for power in decades for step in (1, 2, 5) if low <= step * 10.0**power <= high]
        axis.set_major_locator(FixedLocator(thinned(ticks)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def thinned(ticks: Sequence[float] | Floats, most: int = 9) -> list[float]:
    """Every second, third ... of them where there are more than fit."""
    return list(ticks)[:: max(1, ceil(len(ticks) / most))]
