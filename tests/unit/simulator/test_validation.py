"""The protocol on the repository's sample runs, and its parts against arithmetic."""

import json

import numpy as np
import pytest
from tests.unit.simulator.conftest import SAMPLES

from halocast.cli import run
from halocast.errors import MisuseError
from halocast.simulator.observations import Configuration
from halocast.simulator.validation import BASELINES, Forecasts, Row, coverage, order_kept, summarise, validate


def row(name: str, measured: float, forecast: float, ranks: int = 2) -> Row:
    configuration = Configuration(name, name, "gcn", ranks, "full", "", 1e6, "metis", "cpu", 1)
    return Row(configuration, [measured, measured], [1.0, 1.0], False, Forecasts(forecast), Forecasts(forecast))


def at_speed(each: Row) -> Forecasts:
    return each.at_speed


def test_errors_are_relative_and_signed():
    rows = [row("a", 1.0, 1.1), row("b", 2.0, 1.8)]
    assert rows[0].error(1.1) == pytest.approx(0.1)
    summary = summarise(rows, lambda each: each.at_speed.seconds)
    assert summary is not None
    assert (summary.median, summary.worst) == (pytest.approx(0.1), pytest.approx(0.1))
    assert summary.signed == pytest.approx(0.0, abs=1e-12)


def test_order_counts_pairs_of_one_graph_that_differ_by_more_than_the_noise():
    rows = [row("a", 1.0, 1.0, 2), row("a", 2.0, 0.9, 4), row("a", 1.001, 0.5, 8), row("b", 9.0, 0.1)]
    assert order_kept(rows, at_speed, noise=0.01) == (1, 2)  # 1.0 and 1.001 are one to the noise, b is another graph


def test_too_few_configurations_are_refused(samples):
    with pytest.raises(MisuseError, match="record 4 or more"):
        validate(samples[:1])


def test_the_samples_validate_on_the_command_line(tmp_path, capsys):
    code = run(["validate", str(SAMPLES), "--out", str(tmp_path / "out"), "--no-hold-out-values", "--jobs", "1", "--json"])
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes_exact"] == len(document["configurations"])
    errors = document["usual"]["epoch_time"]
    ours = errors["halocast, one configuration left out"]["all"]["median"]
    assert ours < 0.10
    assert all(ours <= errors[f"baseline: {name}"]["all"]["median"] for name in BASELINES)
    assert document["usual"]["coverage"]["runs"] >= len(document["configurations"])
    for path in document["files"].values():
        assert (tmp_path / "out" / path.rpartition("/")[2]).stat().st_size > 1000
    table = (tmp_path / "out" / "validation.md").read_text()
    assert "one configuration left out" in table
    assert "generated" in table


def test_coverage_counts_runs():
    from halocast.simulator.intervals import Interval

    each = row("a", 1.0, 1.0)
    each.at_speed.interval = Interval(value=1.0, low=0.9, high=1.05)
    each.runs = [0.95, 1.2]
    assert coverage([each], at_speed) == (1, 2)
    assert np.isclose(each.measured, np.sqrt(0.95 * 1.2))
