"""Refinement against counts of the finished partition, brute force over single moves, and forecasts that fall."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.graphs import random_case
from tests.unit.simulator.parts import layer

from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.generator import generate_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.simulator.forecast import Scenario, forecast
from halocast.simulator.network import cluster, star
from halocast.simulator.planner import refine as module
from halocast.simulator.planner.refine import Loads, Refined, Weights, refine, refine_by_forecast
from halocast.simulator.planner.weights import port_rates, shares_of, weights_of
from halocast.traces.operations import Dequantize, Direction, Part, Quantize, Stage, Transform
from halocast.traces.workload import ExactSavings, PartStatistics, Workload


def some_weights(parts: int, seed: int = 0) -> Weights:
    """Different for every part, in proportions as on 200 Mbit/s links."""
    random = np.random.default_rng(seed)
    usual = {"node": 1e-6, "entry": 2e-8, "halo": 2e-7, "boundary": 1e-7, "row": 2e-5, "labelled_row": 5e-6, "fixed": 1e-3}
    return Weights(**{name: value * random.uniform(0.5, 2.0, parts) for name, value in usual.items()})


def alike(parts: int, **some: float) -> Weights:
    """All parts' alike, and 0 where not said."""
    return Weights(**{each.name: np.full(parts, some.get(each.name, 0.0)) for each in fields(Weights)})


def counted(graph: Graph, assignment: np.ndarray) -> Loads:
    """From the statistics that the runtime trains by."""
    parts = partition_statistics(graph, assignment)
    return Loads(
        nodes=np.array([part.own for part in parts]),
        entries=np.array([part.nnz_central + part.nnz_marginal for part in parts]),
        rows=np.array([part.boundary_to for part in parts]),
        labelled_rows=np.array([part.labelled_boundary_to for part in parts]),
    )


def refined(graph: Graph, assignment: np.ndarray, weights: Weights, **options: Any) -> Refined:
    return refine(graph.indptr, graph.indices, assignment, weights, train_mask=graph.train_mask, **options)


@pytest.fixture(scope="module")
def made() -> Graph:
    return generate_graph(3000, 10, communities=12, community_mixing=0.15, features=1, seed=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_what_is_counted_on_the_way_is_what_the_partition_has(parts: int, seed: int, moves: int) -> None:
    case = random_case(parts, seed=seed % 50)
    random = np.random.default_rng(seed)
    state = module._State(case.graph.indptr, case.graph.indices, case.assignment, parts, case.graph.train_mask)
    start = (state.assignment.copy(), state.neighbours.copy(), state.labelled.copy(), state.loads)
    undo = []
    for _ in range(2):
        nodes = np.sort(random.choice(case.graph.nodes, moves, replace=False))  # adjacent ones too
        targets = random.integers(0, parts, moves).astype(np.int32)
        undo.append(state.move(module._Moves(nodes, targets)))
        again = module._State(case.graph.indptr, case.graph.indices, state.assignment, parts, case.graph.train_mask)
        np.testing.assert_array_equal(state.neighbours, again.neighbours)
        np.testing.assert_array_equal(state.labelled, again.labelled)
        if state.loads.nodes.all():  # statistics number parts by the largest
            expected = counted(case.graph, state.assignment)
            for each in fields(Loads):
                np.testing.assert_array_equal(getattr(state.loads, each.name), getattr(expected, each.name))
    for before in reversed(undo):
        state.take_back(before)
    for mine, theirs in zip((state.assignment, state.neighbours, state.labelled), start, strict=False):
        np.testing.assert_array_equal(mine, theirs)
    assert state.loads is start[3]


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("power", [1.0, 32.0])
def test_a_change_to_first_order_is_exact_at_fixed_prices(parts: int, power: float) -> None:
    """At fixed prices the load of a single move is a sum: it must be what moving the node and counting anew gives."""
    case = random_case(parts, seed=4)
    graph, weights = case.graph, some_weights(parts)
    state = module._State(graph.indptr, graph.indices, case.assignment, parts, graph.train_mask)
    search = module._Search(state, weights, graph.nodes, np.random.default_rng(0))
    _, prices = search.norm(power)

    def worth(loads: Loads) -> float:
        own = prices.node @ loads.nodes + prices.entry @ loads.entries
        all_rows = prices.into @ loads.rows.sum(axis=0) + prices.out @ loads.rows.sum(axis=1)
        labelled = loads.labelled_rows
        return float(own + all_rows + prices.labelled_into @ labelled.sum(axis=0) + prices.labelled_out @ labelled.sum(axis=1))

    nodes = np.flatnonzero(state.degrees > 0)
    change = search._changes(nodes, *state.edges(nodes), prices)
    before, checked = worth(state.loads), 0
    for place, node in enumerate(nodes.tolist()):
        for part in np.flatnonzero(np.isfinite(change[place])).tolist():
            undo = state.move(module._Moves(np.array([node]), np.array([part], dtype=np.int32)))
            assert worth(state.loads) - before == pytest.approx(change[place, part], abs=1e-9 * before)
            state.take_back(undo)
            checked += 1
    assert checked > 50


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_objective_never_rises_and_no_part_becomes_empty(parts: int, seed: int) -> None:
    case = random_case(parts, seed=seed % 40)
    weights = some_weights(parts, seed)
    found = refined(case.graph, case.assignment, weights, seed=seed % 7)
    assert set(found.assignment.tolist()) == set(range(parts))
    assert found.before == pytest.approx(counted(case.graph, case.assignment).seconds(weights))
    assert found.after == pytest.approx(counted(case.graph, found.assignment).seconds(weights))
    assert found.after <= found.before
    assert found.moves == np.count_nonzero(found.assignment != case.assignment)
    assert (found.moves > 0) == (found.after < found.before)


def test_parts_that_would_rather_be_one_stay_apart() -> None:
    """Only rows cost anything: with all nodes in one part none would be sent."""
    case = random_case(3, nodes=20, degree=4.0)
    found = refined(case.graph, case.assignment, alike(3, row=1.0))
    assert set(found.assignment.tolist()) == {0, 1, 2}
    assert found.after < found.before


def test_the_busiest_port_carries_less_and_the_same_again(made: Graph) -> None:
    start = partition_graph(made, 6)
    weights = alike(6, node=1e-6, row=2e-5)
    found, again = (refined(made, start, weights) for _ in range(2))
    np.testing.assert_array_equal(found.assignment, again.assignment)
    before, after = (counted(made, each).ports(weights)[0].max() for each in (start, found.assignment))
    assert after < 0.9 * before
    assert set(start.tolist()) == set(range(6))


def test_compute_alone_is_evened_out(made: Graph) -> None:
    start = np.sort(np.random.default_rng(0).choice(4, made.nodes, p=[0.55, 0.15, 0.15, 0.15])).astype(np.int32)
    found = refined(made, start, alike(4, entry=1e-6))
    entries = counted(made, found.assignment).entries
    assert entries.max() < 1.05 * entries.mean()


def test_a_narrow_port_and_a_slow_device_get_less(made: Graph) -> None:
    start, usual = partition_graph(made, 4), alike(4, node=2e-6, row=2e-5)
    other, any_size = np.array([1.0, 1.0, 3.0, 1.0]), made.nodes
    alone = counted(made, refined(made, start, usual, most_rows=any_size).assignment)
    narrow = counted(made, refined(made, start, replace(usual, row=usual.row * other), most_rows=any_size).assignment)
    assert narrow.rows[:, 2].sum() < 0.9 * alone.rows[:, 2].sum()
    slow = counted(made, refined(made, start, replace(alike(4), node=1e-4 * other), most_rows=any_size).assignment)
    assert slow.nodes[2] < 0.5 * slow.nodes[[0, 1, 3]].min()


def test_labelled_rows_alone_can_be_what_counts() -> None:
    graph = generate_graph(2000, 8, communities=8, community_mixing=0.2, features=1, seed=2)
    start, weights = partition_graph(graph, 4), alike(4, labelled_row=1e-5)
    found = refined(graph, start, weights)
    before, after = (counted(graph, each).labelled_rows.sum(axis=0).max() for each in (start, found.assignment))
    assert after < 0.9 * before


def test_limits_are_kept(made: Graph) -> None:
    start, weights = partition_graph(made, 4), some_weights(4)
    few = refined(made, start, weights, most_moves=25)
    assert 0 < few.moves <= 25
    assert refined(made, start, weights, rounds=0).moves == 0
    assert refined(made, start, weights, most_moves=0).moves == 0


@pytest.mark.parametrize("most_rows", [None, 1800, 3000])
def test_narrow_ports_do_not_gather_the_graph_in_one_memory(made: Graph, most_rows: int | None) -> None:
    start, weights = partition_graph(made, 4), replace(alike(4), row=np.array([1.0, 10.0, 10.0, 10.0]))
    found = refined(made, start, weights, most_rows=most_rows)
    assert found.after < found.before
    held = counted(made, found.assignment).held.max()
    if most_rows is None:
        assert held <= 1.05 * counted(made, start).held.max()
    elif most_rows < made.nodes:
        assert held <= most_rows
    else:  # where nothing holds it back, it does
        assert held > 2500


def test_an_assignment_needs_weights_for_all_its_parts(made: Graph) -> None:
    with pytest.raises(ValueError, match="an assignment to 4 parts with weights for 3"):
        refined(made, partition_graph(made, 4), some_weights(3))


def test_nothing_to_gain_is_left_alone(made: Graph) -> None:
    one = np.zeros(made.nodes, dtype=np.int32)
    assert refined(made, one, some_weights(1)).moves == 0
    assert refined(made, partition_graph(made, 4), alike(4)).moves == 0
    apart = random_case(2, nodes=40, degree=0.0)
    split = np.where(np.arange(40) < 34, 0, 1).astype(np.int32)  # the hub and its neighbours, and isolated nodes
    assert refined(apart.graph, split, alike(2, row=1.0)).moves == 0


def test_weights_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights of row \(3,\): those of nodes are \(4,\)"):
        replace(alike(4), row=np.zeros(3))


# -- with a forecast --------------------------------------------------------------------------------------------


def scenario_of(graph: Graph, assignment: np.ndarray, exact: ExactSavings, **changes: Any) -> Scenario:
    """Three layers of 64 on dense features, as the samples' are, a device a rank."""
    dense = {"feature_dim": 64, "features_sparse": False, "feature_nnz": (0, 0, 0)}
    parts = tuple(replace(part, **dense) for part in partition_statistics(graph, assignment))
    load = Workload((layer(64, 64), layer(64, 64), layer(64, 8, last=True)), parts, exact)
    return Scenario("", "", load, "full", (None,) * len(parts), 25e6, ranks_per_host=0, **changes)


@pytest.mark.parametrize("parts", [4, 8])
def test_the_forecast_of_a_real_graph_falls(calibration: Any, parts: int) -> None:
    graph = load_graph("debian")
    start = partition_graph(graph, parts)

    def forecast_of(assignment: np.ndarray) -> tuple[float, Weights]:
        scenario = scenario_of(graph, assignment, ExactSavings.none())
        answer, simulation = forecast(calibration.costs, scenario)
        return answer.epoch_seconds.value, weights_of(calibration.costs, scenario, simulation)

    found = refine_by_forecast(graph.indptr, graph.indices, start, forecast_of, train_mask=graph.train_mask, tries=1, rounds=60)
    assert found.after < 0.85 * found.before
    assert forecast_of(found.assignment)[0] == found.after
    before, after = (max(part.halo for part in partition_statistics(graph, each)) for each in (start, found.assignment))
    assert after < 0.85 * before


def test_a_partition_whose_forecast_rises_is_not_kept(made: Graph) -> None:
    """The forecast here knows nothing of the weights: it rises with every move, so fewer and fewer are tried."""
    start = partition_graph(made, 4)
    asked: list[int] = []

    def forecast_of(assignment: np.ndarray) -> tuple[float, Weights]:
        asked.append(int(np.count_nonzero(assignment != start)))
        return 1.0 + asked[-1], some_weights(4)

    found = refine_by_forecast(made.indptr, made.indices, start, forecast_of, train_mask=made.train_mask, tries=3)
    np.testing.assert_array_equal(found.assignment, start)
    assert (found.before, found.after) == (1.0, 1.0)
    assert [step.kept for step in found.steps] == [False] * 3
    assert asked[0] == 0
    assert asked[1] > 4 * asked[2] - 4 > 0
    assert asked[2] >= 4 * asked[3] > 0


def test_weights_give_back_the_compute_of_the_simulated_epoch(calibration: Any, made: Graph) -> None:
    scenario = scenario_of(made, partition_graph(made, 4), ExactSavings(transform_first=False))
    _, simulation = forecast(calibration.costs, scenario)
    weights = weights_of(calibration.costs, scenario, simulation)
    loads = counted(made, partition_graph(made, 4))
    host = calibration.costs.host
    computed = sum(host.slowness * (work.seconds + host.gap_seconds).sum() for work in simulation.work)
    assert loads.compute(weights).sum() == pytest.approx(computed)
    assert weights.halo[0] > 0.0  # each rank computes its halo's first hidden rows itself
    sent = {}
    for work in simulation.work:
        for operation in work.operations:
            if type(operation).__name__ == "Exchange":
                key = (operation.layer, operation.direction)
                sent[key] = sent.get(key, 0) + operation.work.bytes_out
    rate = 25e6 * calibration.costs.network.efficiency
    total = loads.rows.sum() * weights.row[0] + loads.labelled_rows.sum() * weights.labelled_row[0]
    assert set(sent) == {(2, Direction.FORWARD), (2, Direction.BACKWARD)}
    assert total == pytest.approx(sum(sent.values()) / rate)


def test_slow_ranks_and_narrow_ports_weigh_more(calibration: Any, made: Graph) -> None:
    scenario = scenario_of(
        made, partition_graph(made, 4), ExactSavings.none(), speeds=(1.0, 1.0, 0.5, 1.0), links=(25e6, 25e6, 25e6, 5e6)
    )
    weights = weights_of(calibration.costs, scenario, forecast(calibration.costs, scenario)[1])
    for name in ("node", "entry"):
        np.testing.assert_allclose(getattr(weights, name) / getattr(weights, name)[0], [1, 1, 2, 1])
    np.testing.assert_allclose(weights.row / weights.row[0], [1, 1, 1, 5])


def test_what_an_operation_grows_with() -> None:
    part = PartStatistics(
        central=30, marginal=30, nnz_central=100, nnz_marginal=100, nnz_halo_from=(0, 50), halo_from=(0, 20),
        boundary_to=(0, 25), labelled=10, labelled_halo_from=(0, 5), labelled_boundary_to=(0, 5), feature_dim=4,
    )  # fmt: skip
    assert shares_of(Transform(0, Direction.FORWARD, Part.ALL, stage=Stage.WHOLE), part) == ((0.75, "node"), (0.25, "halo"))
    assert shares_of(Transform(0, Direction.FORWARD, Part.HALO, stage=Stage.WHOLE), part) == ((1.0, "halo"),)
    assert shares_of(Transform(0, Direction.FORWARD, Part.MARGINAL, stage=Stage.WHOLE), part) == ((1.0, "node"),)
    assert shares_of(Quantize(0, Direction.FORWARD), part) == shares_of(Dequantize(0, Direction.BACKWARD), part)
    assert shares_of(Quantize(0, Direction.FORWARD), part) == ((1.0, "boundary"),)


def test_a_hosts_port_is_shared_by_its_ranks() -> None:
    np.testing.assert_allclose(port_rates(star(3, 100.0)), 100.0)
    hosts = cluster(4, 2, port_rate=100.0, inside_rate=1000.0, latency=0.0, latency_inside=0.0)
    np.testing.assert_allclose(port_rates(hosts), 50.0)
    alone = cluster(2, 2, port_rate=100.0, inside_rate=1000.0, latency=0.0, latency_inside=0.0)
    np.testing.assert_allclose(port_rates(alone), 1000.0)
