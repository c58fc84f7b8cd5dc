"""Shares of unequal ranks: against a closed form, and on graphs that are partitioned and forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.simulator.parts import layer

from halocast.errors import MisuseError
from halocast.runtime.graph.generator import generate_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.simulator.forecast import Scenario, forecast
from halocast.simulator.planner.shares import Portioned, busy_seconds, find_shares
from halocast.traces.operations import Exchange
from halocast.traces.workload import ExactSavings, Workload


@pytest.fixture(scope="module")
def made() -> Graph:
    return generate_graph(6000, 12, communities=60, community_mixing=0.05, features=1, seed=3)


def scenario_of(graph: Graph, shares: Sequence[float] | None, **changes: Any) -> Scenario:
    assignment = partition_graph(graph, 4, shares=shares)
    dense = {"feature_dim": 64, "features_sparse": False, "feature_nnz": (0, 0, 0)}
    parts = tuple(replace(part, **dense) for part in partition_statistics(graph, assignment))
    load = Workload((layer(64, 64), layer(64, 64), layer(64, 8, last=True)), parts, ExactSavings.none())
    scenario = Scenario("", "", load, "full", (None,) * 4, 1.25e8, ranks_per_host=0)
    return replace(scenario, **changes)


def found(costs: Any, graph: Graph, **changes: Any) -> Portioned:
    def forecast_of(shares: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
        scenario = scenario_of(graph, shares, **changes)
        answer, simulation = forecast(costs, scenario)
        return answer.epoch_seconds.value, busy_seconds(costs, scenario, simulation)

    best = find_shares(forecast_of, 4)
    assert forecast_of(best.shares)[0] == best.after
    return best


def test_shares_follow_speeds_where_nothing_but_compute_counts() -> None:
    speeds = np.array([1.0, 2.0, 0.5, 1.0])

    def forecast_of(shares: tuple[float, ...]) -> tuple[float, list[float]]:
        busy = np.array(shares) / speeds
        return float(busy.max()), busy.tolist()

    best = find_shares(forecast_of, 4, rounds=12)
    np.testing.assert_allclose(best.shares, speeds / speeds.sum(), rtol=0.02)
    assert best.before == pytest.approx(0.5)
    assert best.after == pytest.approx(1 / 4.5, rel=0.02)
    assert find_shares(forecast_of, 4, start=speeds.tolist()).rounds == 0  # already alike


def test_a_rank_of_half_speed_gets_less_and_the_forecast_falls(calibration: Any, made: Graph) -> None:
    best = found(calibration.costs, made, speeds=(1.0, 1.0, 0.5, 1.0), link=1.25e9)
    assert best.shares[2] < 0.8 * min(best.shares[rank] for rank in (0, 1, 3))
    assert best.after < 0.95 * best.before


def test_a_rank_behind_a_narrow_link_gets_less_and_the_forecast_falls(calibration: Any, made: Graph) -> None:
    best = found(calibration.costs, made, links=(2.5e7, 2.5e7, 2.5e7, 6e6))
    assert best.shares[3] < 0.8 * min(best.shares[:3])
    assert best.after < 0.95 * best.before


def test_a_forecast_that_only_rises_leaves_the_first_shares() -> None:
    asked: list[tuple[float, ...]] = []

    def forecast_of(shares: tuple[float, ...]) -> tuple[float, list[float]]:
        asked.append(shares)
        return float(len(asked)), [1.0, 2.0]

    best = find_shares(forecast_of, 2, rounds=20)
    assert best.shares == (0.5, 0.5)
    assert (best.before, best.after) == (1.0, 1.0)
    assert best.rounds == len(asked) - 1 == 5
    assert all(min(shares) > 0.005 for shares in asked)


def test_busy_time_is_compute_and_the_ways_of_the_own_port(calibration: Any, made: Graph) -> None:
    costs = calibration.costs
    scenario = scenario_of(made, None, links=(1e7, 1e7, 2e7, 1e7))
    _, simulation = forecast(costs, scenario)
    busy = busy_seconds(costs, scenario, simulation)
    work = simulation.work[2]
    carried = sum(max(each.work.bytes_out, each.work.bytes_in) for each in work.operations if isinstance(each, Exchange))
    computed = costs.host.slowness * (work.seconds.sum() + costs.host.gap_seconds * len(work.operations))
    assert busy[2] == pytest.approx(computed + carried / (2e7 * costs.network.efficiency))


@pytest.mark.parametrize("start", [(1.0, 1.0, 1.0), (1.0, 0.0), (1.0, float("inf"))])
def test_shares_that_cannot_be_are_refused(start: tuple[float, ...]) -> None:
    with pytest.raises(MisuseError, match="give 2, one a rank, each a number above 0"):
        find_shares(lambda shares: (1.0, shares), 2, start=start)
