"""Numbers as people say them, the same in every room: three digits, decimal units."""

from __future__ import annotations

import math

NOTHING = "–"
"""What stands for a value that is not there."""
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent below a million: ``1.27``, ``151``, ``20480``."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def duration(milliseconds: float) -> str:
    """Three digits with a unit: ``0.812 ms``, ``151 ms``, ``1.27 s``."""
    if milliseconds >= 999.5:
        return f"{three_digits(milliseconds / 1e3)} s"
    return f"{three_digits(milliseconds)} ms"


def time_span(seconds: float) -> str:
    """``0.812 ms``, ``1.27 s``, ``12.5 min``, ``3.20 h``, ``4.10 days``."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds == 0.0:
        return "0 s"
    if seconds < 2 * MINUTE:
        return duration(1e3 * seconds)
    for unit, name, upper in ((MINUTE, "min", 2 * HOUR), (HOUR, "h", 2 * DAY)):
        if seconds < upper:
            return f"{three_digits(seconds / unit)} {name}"
    return f"{three_digits(seconds / DAY)} days"


def round_span(seconds: float) -> str:
    """The same without zeros that say nothing, for what somebody asked for: ``10 min``, ``1.5 h``."""
    number, _, unit = time_span(seconds).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}".rstrip()


def byte_count(size: float) -> str:
    """``512 B``, ``1.27 MB``: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{three_digits(size)} {unit}"
        size /= 1000
    return f"{three_digits(size)} TB"


def money(amount: float, currency: str | None) -> str:
    """``EUR 4.20``, ``EUR 0.0031``, ``EUR 12,300``."""
    digits = f"{amount:,.0f}" if amount >= 1000 else f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"
    return f"{currency or ''} {digits}".strip()
