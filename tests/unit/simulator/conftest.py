"""The runs that the repository carries, read and calibrated once."""

from pathlib import Path

import pytest

from halocast.simulator.calibrate import calibrate
from halocast.simulator.observations import find_runs, observe_all

SAMPLES = Path(__file__).resolve().parents[3] / "traces" / "samples"


@pytest.fixture(scope="session")
def samples():
    return observe_all(find_runs([SAMPLES]))


@pytest.fixture(scope="session")
def calibration(samples):
    return calibrate(samples, jobs=1)


@pytest.fixture(scope="session")
def costs_file(calibration, tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    calibration.costs.save(path)
    return path
