"""A grid on the sample runs' graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[4]
RUN_FILE = REPOSITORY / "traces/samples/generated-2-100mbit-full-cut/0/config.toml"
GRID = f"""
data = "{RUN_FILE}"
epochs = 1000

[cluster]
ranks = [1, 2, 3, 4, 20000]
device = ["A100", "H100"]
network = ["1gbit", "ethernet-10g"]
transport = "nccl"

[training]
method = ["full", "adaqp"]
bits = [2, 8]

[prices]
currency = "EUR"
A100 = 2.0
H100 = 4.5

[filters]
deadline = "4.5s"
budget = 0.01
"""


def grid_of(**tables: Any) -> dict[str, Any]:
    """The document; trainings of 100 epochs where it says nothing else."""
    return {"data": str(RUN_FILE), "epochs": 100, **tables}


def command(grid: Path, costs: Path, out: Path, *more: str) -> list[str]:
    return ["whatif", str(grid), "--costs", str(costs), "--out", str(out), "--jobs", "1", *more]
