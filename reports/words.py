"""Cells and axes of reports in words; what every room says alike is in `halocast.words`."""

from __future__ import annotations

import math

from halocast.reports.document import Form, Value
from halocast.words import NOTHING, byte_count, money, three_digits, time_span

BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
"""For axes, the largest first."""


def written(value: Value, form: Form, currency: str = "") -> str:
    """A value in words: ``1.27 s``, ``512 MB``, ``3.4 ×``, ``12 %``, ``EUR 4.20``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, str):
        return value
    match form:
        case "seconds":
            return time_span(value)
        case "bytes":
            return byte_count(value)
        case "ratio":
            return f"{three_digits(value)} ×"
        case "percent":
            return f"{100 * value:.0f} %" if abs(value) >= 0.0995 or value == 0 else f"{100 * value:.1f} %"
        case "change":
            return f"{100 * value:+.1f} %".replace("-", "−")
        case "money":
            return money(value, currency)
        case "bits":
            return f"{value:.2f}" if isinstance(value, float) else f"{value}"
        case "prefixed":
            return prefixed(value)
        case "count":
            return f"{value:,.0f}"
        case _:
            return compact(value)


def compact(value: float) -> str:
    """Three digits, thousands separated: ``0.0127``, ``1.27``, ``12,700``."""
    if isinstance(value, int) or (abs(value) >= 999.5 and math.isfinite(value)):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def prefixed(value: float) -> str:
    """Three digits and a decimal prefix, for the unit that the column names: ``1.27 G``."""
    for prefix in ("", " k", " M", " G", " T"):
        if abs(value) < 999.5:
            return f"{three_digits(value)}{prefix}"
        value /= 1000
    return f"{three_digits(value)} P"


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit of an axis up to `largest` bytes: its size and its name."""
    return next((unit for unit in BYTE_UNITS if largest >= unit[0]), BYTE_UNITS[-1])
