"""The page of a closed loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halocast.cli.tune import Outcome


def draw_loop(outcome: Outcome) -> dict[str, str]:
    return {}
