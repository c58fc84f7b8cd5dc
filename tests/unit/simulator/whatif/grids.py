"""A grid on the sample runs' graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[4]
RUN_FILE = REPOSITORY / "traces/samples/generated-2-100mbit-full-cut/0/config.toml"


def grid_of(**tables: Any) -> dict[str, Any]:
    """The document; trainings of 100 epochs where it says nothing else."""
    return {"data": str(RUN_FILE), "epochs": 100, **tables}
