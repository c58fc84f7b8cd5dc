"""Ranks of their own speed behind ports of their own rate, in both engines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.simulator.parts import all_to_all, workload

from halocast.cli import run
from halocast.errors import MisuseError
from halocast.simulator import engine, network
from halocast.simulator.forecast import Scenario, beyond_range, forecast, machine_of, price_programs
from halocast.simulator.network import BURST_SECONDS, LEAST_BURST, cluster, star, with_ports

RUN_FILE = Path(__file__).resolve().parents[3] / "traces/samples/generated-2-100mbit-full-cut/0/config.toml"
UNEQUAL = {"speeds": (1.0, 0.5, 1.0, 2.0), "links": (25e6, 25e6, 12.5e6, 25e6)}


def scenario(**changes: Any) -> Scenario:
    load = workload(all_to_all(4, 300), own=2000, dims=(64, 64, 8))
    usual = Scenario("", "", load, "full", (None,) * 4, 25e6, ranks_per_host=0)
    return replace(usual, **changes)


def test_operations_take_as_long_as_the_rank_is_slow(calibration: Any) -> None:
    usual, unequal = (price_programs(calibration.costs, scenario(speeds=each), []) for each in ((), (1.0, 0.5, 1.0, 2.0)))
    for rank, times in enumerate((1.0, 2.0, 1.0, 0.5)):
        np.testing.assert_allclose(unequal[rank].seconds, times * usual[rank].seconds)
        assert unequal[rank].operations == usual[rank].operations


@pytest.mark.parametrize("per_host", [0, 1, None])
def test_equal_ranks_are_forecast_as_before_to_the_bit(calibration: Any, per_host: int | None) -> None:
    usual, _ = forecast(calibration.costs, scenario(ranks_per_host=per_host))
    equal, _ = forecast(calibration.costs, scenario(ranks_per_host=per_host, speeds=(1.0,) * 4, links=(25e6,) * 4))
    assert equal == usual


@pytest.mark.parametrize("changes", [UNEQUAL, {"speeds": UNEQUAL["speeds"]}, {"links": UNEQUAL["links"]}])
def test_both_engines_agree_on_unequal_ranks(calibration: Any, changes: dict[str, Any]) -> None:
    costs = calibration.costs
    asked = scenario(topology=star(4, 25e6), **changes)  # no token buckets: they let the engines' epochs differ
    compiled, _ = forecast(costs, asked)
    events = engine.simulate(price_programs(costs, asked, []), machine_of(costs, asked))
    assert compiled.epoch_seconds.value == pytest.approx(events.epoch_seconds, rel=1e-3)


def test_a_slower_rank_or_link_makes_the_epoch_longer(calibration: Any) -> None:
    def seconds(**changes: Any) -> float:
        return forecast(calibration.costs, scenario(**changes))[0].epoch_seconds.value

    usual = seconds()
    slow, slower = (seconds(speeds=(1.0, 1.0, speed, 1.0)) for speed in (0.5, 0.25))
    assert usual < slow < slower
    narrow, narrower = (seconds(links=(25e6, 25e6, rate, 25e6)) for rate in (12.5e6, 5e6))
    assert 1.3 * usual < narrow < narrower
    assert seconds(links=(12.5e6,) * 4) == seconds(link=12.5e6)
    assert seconds(topology=star(4, 25e6), links=(25e6, 25e6, 12.5e6, 25e6)) > 1.3 * seconds(topology=star(4, 25e6))


def test_every_port_of_the_testbed_has_its_own_rate_and_bucket() -> None:
    topology = network.testbed(3, (2e8, 0.0, 1e6), 1e9)
    np.testing.assert_allclose(topology.capacity, [2e8, 1e9, 1e6, 2e8, 1e9, 1e6, np.inf])
    np.testing.assert_allclose(topology.burst[:3], [2e8 * BURST_SECONDS, 0.0, LEAST_BURST])
    np.testing.assert_allclose(topology.burst[3:6], topology.burst[:3])
    assert network.testbed(3, (0.0,) * 3, 1e9).queue_seconds == network.testbed(3, 0.0, 1e9).queue_seconds == 0.0


def test_a_clusters_hosts_and_trunks_keep_their_rate() -> None:
    hosts = cluster(4, 2, port_rate=100.0, inside_rate=1000.0, latency=0.0, latency_inside=0.0, hosts_per_switch=1)
    changed = with_ports(hosts, (10.0, 20.0, 30.0, 40.0))
    np.testing.assert_allclose(changed.capacity[:8], [10.0, 20.0, 30.0, 40.0] * 2)
    np.testing.assert_allclose(changed.capacity[8:], hosts.capacity[8:])
    assert hosts.capacity[0] == 1000.0


def test_what_was_not_calibrated_is_said(calibration: Any) -> None:
    reasons = beyond_range(calibration.costs, scenario(speeds=(1.0, 0.5, 1.0, 2.0), links=(25e6, 25e6, 1.25e6, 12.5e6)))
    assert "ranks at 0.5, 2 times the calibrated speed" in reasons
    assert any(reason.startswith("links of 10mbit: calibrated with") for reason in reasons)
    equal = beyond_range(calibration.costs, scenario(speeds=(1.0,) * 4))
    assert equal == beyond_range(calibration.costs, scenario())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"speeds": (1.0, 0.5)}, "2 speeds for 4 ranks"),
        ({"links": (1e6,) * 5}, "5 links for 4 ranks"),
        ({"speeds": (1.0, 0.0, 1.0, 1.0)}, "each must be a number above 0"),
        ({"links": (1e6, 0.0, 1e6, 1e6), "topology": star(4, 1e6)}, "on a cluster give every rank a rate"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(MisuseError, match=text):
        scenario(**changes)


# -- on the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def arguments(costs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HALOCAST_CACHE", str(tmp_path))
    return ["forecast", str(costs_file), "--data", str(RUN_FILE), "--ranks", "4"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_forecast_takes_speeds_and_links(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = [*arguments, "--ranks-per-host", "1"]
    usual = answer(capsys, *own, "--link", "200mbit")["forecast"]
    slow = answer(capsys, *own, "--link", "200mbit", "--speeds", "1,1,0.25,1")["forecast"]
    narrow = answer(capsys, *own, "--links", "200mbit,200mbit,50mbit,200mbit")["forecast"]
    assert slow["epoch_seconds"] > usual["epoch_seconds"]
    assert narrow["epoch_seconds"] > 1.5 * usual["epoch_seconds"]
    assert "ranks at 0.25 times the calibrated speed" in slow["extrapolated"]


def test_links_alone_are_the_testbeds(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(capsys, *arguments, "--links", "200mbit,200mbit,50mbit,200mbit")
    assert document["hardware"] == document["link"] == "200mbit, 200mbit, 50mbit, 200mbit"
    assert (
        document["forecast"]["epoch_seconds"]
        > 1.5 * answer(capsys, *arguments, "--link", "200mbit")["forecast"]["epoch_seconds"]
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--speeds", "1,1,fast,1"], "--speeds 1,1,fast,1: 'fast' is no number; write one for each rank, as in 1,1,0.5,1"),
        (["--speeds", "1,2"], "2 speeds for 4 ranks: give one a rank"),
        (["--speeds", "1,1,-1,1"], "each must be a number above 0"),
        (["--links", "200mbit,1,200mbit,200mbit"], "link '1' cannot be read"),
        (["--links", "200mbit"], "1 links for 4 ranks: give one a rank"),
        (["--links", "1mbit,1mbit,1mbit,1mbit", "--link", "1mbit"], "--links and --link both say"),
        (["--links", "1mbit,1mbit,1mbit,1mbit", "--network", "ethernet-100g"], "--links and --network both say"),
    ],
)
def test_flags_without_sense_get_one_line(
    arguments: list[str], flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, *flags]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
