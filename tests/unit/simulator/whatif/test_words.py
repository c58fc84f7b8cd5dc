"""Amounts as people say them."""

from __future__ import annotations

import pytest

from halocast.simulator.whatif.words import amount, duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0415, "41.5 ms"), (1.0, "1 s"), (59.96, "60 s"), (119.0, "119 s"), (150.0, "2.5 min"), (3000.0, "50 min"),
        (7199.0, "2 h 0 min"), (6720.0, "112 min"), (10_000.0, "2 h 47 min"), (200_000.0, "2.3 days"),
    ],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"), [(12.3, "12.30 EUR"), (1234.5, "1,234.50 EUR"), (0.0123, "0.0123 EUR"), (0.0, "0.00 EUR")]
)
def test_amounts(value: float, said: str) -> None:
    assert amount(value, "EUR") == said
    assert amount(2.0, None) == "2.00"
