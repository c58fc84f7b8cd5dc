"""Numbers as people say them."""

from __future__ import annotations

import pytest

from halocast.words import money, round_span, time_span


@pytest.mark.parametrize(
    ("seconds", "said", "asked"),
    [
        (0.0, "0 s", "0 s"),
        (0.0415, "41.5 ms", "41.5 ms"),
        (1.0, "1.00 s", "1 s"),
        (119.0, "119 s", "119 s"),
        (150.0, "2.50 min", "2.5 min"),
        (600.0, "10.0 min", "10 min"),
        (6000.0, "100 min", "100 min"),
        (7200.0, "2.00 h", "2 h"),
        (200_000.0, "2.31 days", "2.31 days"),
        (float("nan"), "–", "–"),
    ],
)
def test_times(seconds: float, said: str, asked: str) -> None:
    assert time_span(seconds) == said
    assert round_span(seconds) == asked


@pytest.mark.parametrize(
    ("amount", "said"),
    [(12.3, "EUR 12.30"), (1234.5, "EUR 1,234"), (0.0123, "EUR 0.012"), (0.0, "EUR 0.00"), (0.1, "EUR 0.10")],
)
def test_money(amount: float, said: str) -> None:
    assert money(amount, "EUR") == said
    assert money(2.0, None) == "2.00"
