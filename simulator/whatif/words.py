"""Amounts as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``41 ms``, ``12.3 s``, ``1 h 52 min``."""
    if seconds < 1.0:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60.0)
    if minutes < 120:
        return f"{seconds / 60.0:.1f} min" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def amount(value: float, currency: str | None) -> str:
    """``12.30 EUR``."""
    digits = 2 if value == 0.0 or abs(value) >= 0.1 else 4
    return f"{value:,.{digits}f} {currency or ''}".rstrip()
