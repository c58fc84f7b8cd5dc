"""Costs that can be moved, and what answers grids with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.simulator.whatif.grids import GRID, command, grid_of

from halocast.cli import run
from halocast.cli.capacity import open_evaluator
from halocast.simulator.costs import Ceilings, Costs
from halocast.simulator.whatif.evaluation import Evaluator

CEILINGS = Ceilings(memory_rate=2e10, gemm_rate=1e11, date="2026-11-21", machine="another machine")


@pytest.fixture(scope="session")
def movable(calibration: Any) -> Costs:
    """Costs of the sample runs, with ceilings to move them by."""
    costs: Costs = calibration.costs.model_copy(update={"ceilings": CEILINGS})
    return costs


@pytest.fixture(scope="session")
def movable_file(movable: Costs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("movable") / "costs.json"
    movable.save(path)
    return path


@pytest.fixture(scope="session")
def evaluator(movable: Costs) -> Callable[..., Evaluator]:
    return lambda **tables: open_evaluator(grid_of(**tables), movable, "grid")


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="session")
def folder(grid: Path, movable_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whatif") / "out"
    assert run(command(grid, movable_file, out)) == 0
    return out
