"""Progress of a sweep where nobody watches a bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from halocast.cli import console
from halocast.cli.console import SweepProgress


def test_lines_say_how_much_is_done_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with SweepProgress(RichConsole(file=text, width=120), "halocast whatif --resume") as progress:
        progress.start(scenarios=1000, done=200, weight=40.0)
        now[0] += 6.0
        progress.advance(50, 2.0)  # too soon for a line
        now[0] += 6.0
        progress.advance(150, 6.0)  # 8 of 40 in 12 s: 48 more
        now[0] += 3.0
        progress.advance(600, 32.0)
    assert text.getvalue().splitlines() == ["400/1,000 scenarios, 48 s left ..."]


def test_an_interruption_says_how_to_go_on() -> None:
    progress = SweepProgress(RichConsole(file=io.StringIO()), "halocast whatif --resume")
    progress.start(scenarios=10, done=0, weight=1.0)
    with pytest.raises(KeyboardInterrupt, match="go on with halocast whatif --resume"):
        progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
