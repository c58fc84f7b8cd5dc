"""Made-up partitions are as consistent as real ones, and near those that METIS makes of more parts than were fitted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.graphs import chain_case, random_case

from halocast.errors import MisuseError
from halocast.runtime.graph.generator import generate_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.npz import load_npz
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.runtime.memory import walk
from halocast.runtime.programs.full import FullGraph
from halocast.simulator.scaling import (
    GROWING,
    PartitionScaling,
    allocate,
    at_random,
    balanced,
    fit_curve,
    fit_scaling,
    stretched,
)
from halocast.traces.operations import Exchange
from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, Workload

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("HALOCAST_DATA", str(REPOSITORY.parent / "shared" / "data")).split(os.pathsep)[0])
FITTED, HELD_OUT = (2, 4, 8, 16), 32
LAYERS = (
    LayerSpec(32, 16, parameters=528),
    LayerSpec(16, 16, parameters=272),
    LayerSpec(16, 4, parameters=68, activation=False),
)


def partitioned(graph: Graph, counts: Sequence[int]) -> dict[int, list[PartStatistics]]:
    return {parts: partition_statistics(graph, partition_graph(graph, parts)) for parts in counts}


@cache
def made_partitions(communities: int = 24) -> tuple[Graph, dict[int, list[PartStatistics]]]:
    graph = generate_graph(12_000, 12, communities=communities, community_mixing=0.15, features=32, seed=3)
    return graph, partitioned(graph, (*FITTED, HELD_OUT))


@cache
def made_scaling(communities: int = 24) -> PartitionScaling:
    graph, partitions = made_partitions(communities)
    return fit_scaling({parts: partitions[parts] for parts in FITTED}, nodes=graph.nodes, entries=graph.nnz)


@cache
def small_scaling(sparse: bool = False) -> PartitionScaling:
    case = random_case(2, nodes=90, seed=1, sparse=sparse)
    return fit_scaling(partitioned(case.graph, (2, 3, 6)), nodes=90, entries=case.graph.nnz)


def halo_of(statistics: Sequence[PartStatistics]) -> int:
    return sum(part.halo for part in statistics)


def largest_halo(statistics: Sequence[PartStatistics]) -> int:
    return max(part.halo for part in statistics)


def check_consistent(statistics: Sequence[PartStatistics], scaling: PartitionScaling) -> None:
    """Everything that holds for the parts of any real partition."""
    parts = len(statistics)

    def matrix(name: str) -> np.ndarray:
        rows = np.array([getattr(part, name) for part in statistics])
        assert rows.shape == (parts, parts)
        assert (rows >= 0).all()
        assert not rows.diagonal().any()
        return rows

    halo, boundary, cut = matrix("halo_from"), matrix("boundary_to"), matrix("nnz_halo_from")
    labelled, labelled_boundary = matrix("labelled_halo_from"), matrix("labelled_boundary_to")
    own = np.array([part.own for part in statistics])
    marginal = np.array([part.marginal for part in statistics])
    np.testing.assert_array_equal(halo, boundary.T)
    np.testing.assert_array_equal(labelled, labelled_boundary.T)
    np.testing.assert_array_equal(cut, cut.T)
    np.testing.assert_array_equal(cut > 0, halo > 0)
    assert (cut >= halo).all()
    assert (cut <= halo * halo.T).all()  # every node on one side beside every one on the other
    assert (labelled <= halo).all()
    assert (boundary.max(axis=1) <= marginal).all()
    assert (marginal <= np.minimum(boundary.sum(axis=1), own)).all()
    assert own.sum() == scaling.nodes
    assert own.min() >= 1
    assert sum(part.nnz_central + part.nnz_marginal for part in statistics) == scaling.entries
    assert sum(part.labelled for part in statistics) == scaling.labelled
    for part in statistics:
        assert min(part.central, part.nnz_central, part.labelled) >= 0
        assert part.labelled <= part.own
        assert part.nnz_marginal >= part.nnz_halo
        assert part.nnz_central == 0 or part.central > 0
        for values, rows in zip(part.feature_nnz, (part.central, part.marginal, part.halo), strict=True):
            assert 0 <= values <= part.feature_dim * rows
    stored = sum(sum(part.feature_nnz[:2]) for part in statistics)
    assert stored == (scaling.values["feature"] if scaling.features_sparse else 0)
    assert all(isinstance(part.central, int) and type(part.halo_from[0]) is int for part in statistics)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 16, 33, 128, 500])
def test_made_up_parts_are_consistent(parts: int) -> None:
    check_consistent(made_scaling().statistics(parts), made_scaling())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(0, 1000), st.booleans())
def test_made_up_parts_are_consistent_up_to_a_node_a_part(parts: int, seed: int, sparse: bool) -> None:
    case = random_case(2, nodes=90, seed=seed, sparse=sparse)
    known = {count: partition_statistics(case.graph, partition_graph(case.graph, count, method="random")) for count in (2, 5)}
    scaling = fit_scaling(known, nodes=90, entries=case.graph.nnz)
    check_consistent(scaling.statistics(parts), scaling)


def test_real_parts_pass_the_same_check() -> None:
    _, partitions = made_partitions()
    for statistics in partitions.values():
        check_consistent(statistics, made_scaling())


def test_one_part_has_no_halo() -> None:
    (part,) = made_scaling().statistics(1)
    assert (part.central, part.marginal, part.halo) == (12_000, 0, 0)


def test_parts_without_neighbours_have_none() -> None:
    case = chain_case(4)
    split = {2: case.assignment // 3, 4: case.assignment}  # the last part touches nobody
    known = {parts: partition_statistics(case.graph, assignment) for parts, assignment in split.items()}
    scaling = fit_scaling(known, nodes=case.graph.nodes, entries=case.graph.nnz)
    assert scaling.totals["halo"].at(2) > 0 or halo_of(known[2]) == 0
    assert min(part.halo for part in scaling.statistics(4)) == 0
    check_consistent(scaling.statistics(4), scaling)


def test_a_graph_without_edges_has_no_halo() -> None:
    case = random_case(2, nodes=40)
    empty = Graph.from_edges(
        np.zeros(0, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        name="empty",
        features=case.graph.features,
        labels=case.graph.labels,
        train_mask=case.graph.train_mask,
        val_mask=case.graph.val_mask,
        test_mask=case.graph.test_mask,
    )
    scaling = fit_scaling(partitioned(empty, (2, 4)), nodes=40, entries=0)
    check_consistent(scaling.statistics(8), scaling)
    assert halo_of(scaling.statistics(8)) == 0


def test_the_same_answer_each_time_and_after_a_round_trip() -> None:
    scaling = made_scaling()
    again = PartitionScaling.model_validate_json(scaling.model_dump_json())
    assert again == scaling
    assert scaling.statistics(24) == scaling.statistics(24) == again.statistics(24)


@pytest.mark.parametrize("communities", [24, 400])
def test_held_out_partition_of_a_made_graph(communities: int) -> None:
    _, partitions = made_partitions(communities)
    forecast, measured = made_scaling(communities).statistics(HELD_OUT), partitions[HELD_OUT]
    assert halo_of(forecast) == pytest.approx(halo_of(measured), rel=0.10)
    assert largest_halo(forecast) == pytest.approx(largest_halo(measured), rel=0.20)


@pytest.mark.parametrize(
    "name", ["amazon_photo", "coauthor_physics", "deezer_hu", "debian_packages", "github_social", "tolokers"]
)
def test_held_out_partition_of_a_real_graph(name: str) -> None:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{name}.npz is not in $HALOCAST_DATA or ../shared/data")
    graph = load_npz(path)
    partitions = partitioned(graph, (*FITTED, HELD_OUT))
    measured = partitions.pop(HELD_OUT)
    scaling = fit_scaling(partitions, nodes=graph.nodes, entries=graph.nnz)
    forecast = scaling.statistics(HELD_OUT)
    check_consistent(forecast, scaling)
    assert halo_of(forecast) == pytest.approx(halo_of(measured), rel=0.10)
    assert largest_halo(forecast) == pytest.approx(largest_halo(measured), rel=0.20)


@pytest.mark.parametrize("parts", FITTED)
def test_fitted_partitions_come_back(parts: int) -> None:
    _, partitions = made_partitions()
    forecast, measured = made_scaling().statistics(parts), partitions[parts]
    assert halo_of(forecast) == pytest.approx(halo_of(measured), rel=0.08)
    for name in ("marginal", "nnz_halo", "nnz_marginal"):
        sums = [sum(getattr(part, name) for part in each) for each in (forecast, measured)]
        assert sums[0] == pytest.approx(sums[1], rel=0.08), name
    peers = [np.mean([np.count_nonzero(part.halo_from) for part in each]) for each in (forecast, measured)]
    assert peers[0] == pytest.approx(peers[1], rel=0.10)


@pytest.mark.parametrize("exact", [ExactSavings.none(), ExactSavings()])
@pytest.mark.parametrize("parts", [2, 5, 32])
def test_programs_run_and_their_messages_match(parts: int, exact: ExactSavings) -> None:
    """What a rank sends a peer is what that peer expects, exchange by exchange."""
    workload = Workload(LAYERS, tuple(made_scaling().statistics(parts)), exact)
    exchanges = [
        [each for each in walk(FullGraph().epoch(workload.view(rank))) if isinstance(each, Exchange)] for rank in range(parts)
    ]
    assert exchanges[0]
    for at_once in zip(*exchanges, strict=True):
        sent = {(rank, each.peer): each.bytes for rank, exchange in enumerate(at_once) for each in exchange.outgoing}
        expected = {(each.peer, rank): each.bytes for rank, exchange in enumerate(at_once) for each in exchange.incoming}
        assert sent == expected
        assert sent


def test_beyond_the_fitted_range_is_not_covered() -> None:
    covered = [made_scaling().covers(parts) for parts in (1, 2, 3, 16, 17, 128)]
    assert covered == [False, True, True, True, False, False]


def test_the_error_is_of_left_out_partitions() -> None:
    graph, partitions = made_partitions()
    scaling = made_scaling()
    assert set(scaling.left_out) == set(FITTED)
    without = fit_scaling({parts: partitions[parts] for parts in FITTED[:-1]}, nodes=graph.nodes, entries=graph.nnz)
    forecast = without.totals["halo"].at(16) * graph.nodes
    assert scaling.left_out[16].halo == pytest.approx(forecast / halo_of(partitions[16]) - 1)
    assert scaling.error.halo == pytest.approx(np.sqrt(np.mean([each.halo**2 for each in scaling.left_out.values()])))


def test_two_partitions_are_enough() -> None:
    graph, partitions = made_partitions()
    scaling = fit_scaling({parts: partitions[parts] for parts in (4, 8)}, nodes=graph.nodes, entries=graph.nnz)
    check_consistent(scaling.statistics(16), scaling)
    assert set(scaling.left_out) == {4, 8}


@pytest.mark.parametrize(
    ("quantity", "law"),
    [
        ("halo", lambda parts: 0.3 * parts**0.6),
        ("halo", lambda parts: 0.4 * (np.sqrt(parts) - 1)),
        ("halo", lambda parts: 0.25 * np.log(parts)),
        ("cut", lambda parts: (1 - 1 / parts) / (1 + 8 / parts)),
    ],
)
def test_a_law_of_the_family_is_found(quantity, law) -> None:
    known, asked = np.array([2.0, 4, 8, 16]), 128
    curve = fit_curve(known, law(known), quantity, GROWING, degree=40.0)
    assert curve.at(asked) == pytest.approx(law(asked), rel=0.01)
    assert curve.error < 0.01


def test_totals_stay_below_what_a_graph_can_have() -> None:
    for name in ("halo", "cut", "marginal"):
        curve = fit_curve(np.array([2.0, 4.0]), np.array([0.2, 0.9]), name, GROWING, degree=3.0)
        assert curve.at(1) == 0
        assert 0 < curve.at(1000) <= (3 if name == "halo" else 1)


def test_a_random_partition_of_a_regular_graph() -> None:
    nodes, degree, parts = 4000, 6, 8
    around = np.concatenate([(np.arange(nodes) + step) % nodes for step in range(1, degree // 2 + 1)])
    graph = Graph.from_edges(
        np.tile(np.arange(nodes), degree // 2),
        around,
        name="ring",
        features=np.ones((nodes, 1)),
        labels=np.zeros(nodes),
        train_mask=np.ones(nodes),
        val_mask=np.zeros(nodes),
        test_mask=np.zeros(nodes),
    )
    assignment = np.random.default_rng(0).permutation(nodes).astype(np.int32) % parts
    statistics = partition_statistics(graph, assignment)
    found = {"halo": halo_of(statistics) / nodes, "cut": sum(part.nnz_halo for part in statistics) / graph.nnz}
    found["marginal"] = sum(part.marginal for part in statistics) / nodes
    for name, value in found.items():
        assert value == pytest.approx(float(at_random(name, np.array([8.0]), degree)[0]), rel=0.02)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_allocation_keeps_total_bounds_and_proportion(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 30))
    weights = np.array(data.draw(st.lists(st.floats(0, 1e6), min_size=size, max_size=size)))
    low = np.array(data.draw(st.lists(st.integers(0, 50), min_size=size, max_size=size)))
    high = low + np.array(data.draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size)))
    total = data.draw(st.integers(0, 40_000))
    given_out = allocate(weights, total, low, high)
    assert given_out.sum() == min(max(total, low.sum()), high.sum())
    assert (low <= given_out).all()
    assert (given_out <= high).all()
    free = (given_out > low + 1) & (given_out < high - 1)
    if np.count_nonzero(free) > 1 and weights[free].min() > 0:
        scale = given_out[free] / weights[free]
        assert scale.max() - scale.min() <= (2 / weights[free]).max() + 1e-6


def test_balancing_reaches_both_margins() -> None:
    random = np.random.default_rng(0)
    weights, rows, columns = random.random((6, 6)) + 0.1, random.random(6), random.random(6)
    rows, columns = rows / rows.sum(), columns / columns.sum()
    matrix = balanced(weights, rows, columns)
    np.testing.assert_allclose(matrix.sum(axis=1), rows)
    np.testing.assert_allclose(matrix.sum(axis=0), columns, rtol=1e-6)


def test_a_stretched_profile_has_the_largest_value_asked_for() -> None:
    profile = np.exp(np.random.default_rng(0).standard_normal(64) / 3)
    values = stretched(profile, 1.5, 0.6)
    assert values.mean() == pytest.approx(1)
    assert values.max() == pytest.approx(2.5, rel=0.05)
    assert values.std() == pytest.approx(0.6, rel=0.2)
    np.testing.assert_array_equal(np.argsort(values), np.argsort(profile))
    np.testing.assert_array_equal(stretched(np.ones(4), 0.5, 0.5), np.ones(4))


def test_bad_input_is_refused_in_one_line() -> None:
    graph, partitions = made_partitions()
    two, four = partitions[2], partitions[4]
    sizes = {"nodes": graph.nodes, "entries": graph.nnz}
    cases = {
        r"two or more numbers of parts above 1, not 2; record another run": ({2: two}, sizes),
        r"above 1, not none": ({}, sizes),
        r"into 4 parts has 12000 nodes, the graph 11999|into 2 parts has 12000 nodes, the graph 11999": (
            {2: two, 4: four},
            {**sizes, "nodes": graph.nodes - 1},
        ),
        rf"has {graph.nnz} entries, the graph {graph.nnz + 2}: all must be of one graph": (
            {2: two, 4: four},
            {**sizes, "entries": graph.nnz + 2},
        ),
        r"the partition into 8 parts has statistics of 4 parts": ({2: two, 8: four}, sizes),
        r"the partitions into 2 and 4 parts differ in feature dims \(\[32\], \[33\]\)": (
            {2: two, 4: [replace(part, feature_dim=33) for part in four]},
            sizes,
        ),
        r"differ in training nodes": ({2: two, 4: [replace(part, labelled=part.labelled + 1) for part in four]}, sizes),
    }
    for message, (given_partitions, asked) in cases.items():
        with pytest.raises(MisuseError, match=message) as raised:
            fit_scaling(given_partitions, **asked)
        assert "\n" not in str(raised.value)
    with pytest.raises(MisuseError, match="into 4 parts is of more parts than the graph has nodes"):
        fit_scaling({2: two, 4: four}, nodes=3, entries=graph.nnz)
    for parts in (0, graph.nodes + 1):
        with pytest.raises(MisuseError, match=f"{parts} parts for 12000 nodes: allowed are 1 to 12000"):
            made_scaling().statistics(parts)


def test_sparse_features_are_shared_out() -> None:
    scaling = small_scaling(sparse=True)
    assert scaling.features_sparse
    statistics = scaling.statistics(12)
    check_consistent(statistics, scaling)
    per_own_row = scaling.values["feature"] / scaling.nodes
    per_halo_row = sum(part.feature_nnz[2] for part in statistics) / halo_of(statistics)
    assert per_halo_row == pytest.approx(per_own_row, rel=0.8)
