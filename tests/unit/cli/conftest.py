"""A what-if of the sample runs, to be served; and what tests here share, within reach."""

import sys
from pathlib import Path

import pytest

from halocast.cli import run
from halocast.simulator.calibrate import calibrate
from halocast.simulator.costs import Ceilings
from halocast.simulator.observations import find_runs, observe_all

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parents[2] / "traces" / "samples"
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))
GRID = f"""
data = "{SAMPLES}/generated-2-100mbit-full-cut/0/config.toml"
epochs = 1000

[cluster]
ranks = [1, 2, 4]
device = ["A100", "H100"]
network = ["1gbit", "ethernet-10g"]
transport = "nccl"

[training]
method = ["full", "adaqp"]
bits = [4]
savings = "none"

[prices]
currency = "EUR"
A100 = 2.0
H100 = 4.5

[filters]
deadline = "1h"
"""


@pytest.fixture(scope="session")
def served_costs(tmp_path_factory):
    """Costs of a few sample runs, with ceilings to move them by."""
    folders = sorted(SAMPLES.glob("generated-*-100mbit-*"))
    costs = calibrate(observe_all(find_runs(folders)), jobs=1).costs
    ceilings = Ceilings(memory_rate=2e10, gemm_rate=1e11, date="2026-11-21", machine="another machine")
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    costs.model_copy(update={"ceilings": ceilings}).save(path)
    return path


@pytest.fixture(scope="session")
def served_folder(served_costs, tmp_path_factory):
    """A finished what-if folder."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "grid.toml").write_text(GRID)
    command = [
        "whatif",
        str(folder / "grid.toml"),
        "--costs",
        str(served_costs),
        "--out",
        str(folder / "capacity"),
        "--jobs",
        "1",
    ]
    assert run(command) == 0
    return folder / "capacity"
