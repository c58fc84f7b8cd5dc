"""Partitions that nobody made: as consistent as real ones, and near those that METIS makes of more parts than were fitted."""

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
from halocast.runtime.programs.full import FullGraph
from halocast.simulator.forecast import Scenario, forecast
from halocast.simulator.scaling import Growth, PartitionScaling, allocate, balanced, fit_scaling, stretched
from halocast.traces.buffers import walk
from halocast.traces.operations import Exchange
from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, Workload

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("HALOCAST_DATA", str(REPOSITORY.parent / "shared" / "data")).split(os.pathsep)[0])
FITTED = (2, 4, 8, 16)
LAYERS = (
    LayerSpec(64, 64, self_loop=True, norm=True, dropout=0.5, parameters=4160),
    LayerSpec(64, 64, self_loop=True, norm=True, dropout=0.5, parameters=4160),
    LayerSpec(64, 8, self_loop=True, activation=False, parameters=520),
)


def partitioned(graph: Graph, counts: Sequence[int], method: str = "metis") -> dict[int, list[PartStatistics]]:
    return {parts: partition_statistics(graph, partition_graph(graph, parts, method=method)) for parts in counts}


def fitted(partitions: dict[int, list[PartStatistics]], counts: Sequence[int] = FITTED) -> PartitionScaling:
    return fit_scaling([partitions[parts] for parts in counts])


@cache
def made() -> dict[int, list[PartStatistics]]:
    graph = generate_graph(12_000, 12, communities=400, community_mixing=0.15, features=64, seed=3)
    return partitioned(graph, (*FITTED, 32, 64))


@cache
def real(name: str) -> dict[int, list[PartStatistics]]:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{name}.npz is not in $HALOCAST_DATA or ../shared/data")
    return partitioned(load_npz(path), (*FITTED, 32))


def summary(statistics: Sequence[PartStatistics]) -> dict[str, float]:
    return {
        "halo": sum(part.halo for part in statistics),
        "largest halo": max(part.halo for part in statistics),
        "marginal": sum(part.marginal for part in statistics),
        "peers": float(np.mean([np.count_nonzero(part.halo_from) for part in statistics])),
        "cut": sum(part.nnz_halo for part in statistics),
        "most entries": max(part.nnz_central + part.nnz_marginal for part in statistics),
    }


def errors(forecasted: Sequence[PartStatistics], measured: Sequence[PartStatistics]) -> dict[str, float]:
    found, expected = summary(forecasted), summary(measured)
    return {name: abs(found[name] / expected[name] - 1.0) for name in expected}


def check_consistent(statistics: Sequence[PartStatistics], *, nodes: int, entries: int, labelled: int) -> None:
    """Everything that holds for the parts of any real partition of a symmetric graph."""

    def matrix(name: str) -> np.ndarray:
        rows = np.array([getattr(part, name) for part in statistics])
        assert rows.shape == (len(statistics),) * 2
        assert (rows >= 0).all()
        assert not rows.diagonal().any()
        return rows

    halo, boundary, cut = matrix("halo_from"), matrix("boundary_to"), matrix("nnz_halo_from")
    beside, beside_peers = matrix("labelled_halo_from"), matrix("labelled_boundary_to")
    own = np.array([part.own for part in statistics])
    marginal = np.array([part.marginal for part in statistics])
    np.testing.assert_array_equal(halo, boundary.T)
    np.testing.assert_array_equal(beside, beside_peers.T)
    np.testing.assert_array_equal(cut, cut.T)
    np.testing.assert_array_equal(cut > 0, halo > 0)
    assert (cut >= halo).all()
    assert (cut <= halo * halo.T).all()  # every node on one side beside every one on the other
    assert (beside <= halo).all()
    assert (boundary.max(axis=1) <= marginal).all()
    assert (marginal <= np.minimum(boundary.sum(axis=1), own)).all()
    assert own.min() >= 1
    assert own.sum() == nodes
    assert sum(part.nnz_central + part.nnz_marginal for part in statistics) == entries
    assert sum(part.labelled for part in statistics) == labelled
    for part in statistics:
        assert min(part.central, part.nnz_central, part.labelled) >= 0
        assert part.labelled <= part.own
        assert part.nnz_marginal >= part.nnz_halo
        assert part.nnz_central == 0 or part.central > 0
        for values, rows in zip(part.feature_nnz, (part.central, part.marginal, part.halo), strict=True):
            assert 0 <= values <= part.feature_dim * rows
        assert type(part.central) is int
        assert type(part.halo_from[0]) is int


def check_like(statistics: Sequence[PartStatistics], scaling: PartitionScaling) -> None:
    check_consistent(statistics, nodes=scaling.nodes, entries=scaling.entries, labelled=scaling.labelled)


# -- consistent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 16, 33, 128, 500])
def test_made_up_parts_are_consistent(parts: int) -> None:
    scaling = fitted(made())
    check_like(scaling.statistics(parts), scaling)


def test_real_parts_pass_the_same_check() -> None:
    for statistics in made().values():
        check_like(statistics, fitted(made()))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(0, 1000), st.booleans())
def test_up_to_a_node_a_part(parts: int, seed: int, sparse: bool) -> None:
    case = random_case(2, nodes=90, seed=seed, sparse=sparse)
    scaling = fitted(partitioned(case.graph, (2, 5), "random"), (2, 5))
    check_like(scaling.statistics(parts), scaling)


def test_one_part_has_no_halo() -> None:
    (part,) = fitted(made()).statistics(1)
    assert (part.central, part.marginal, part.halo) == (12_000, 0, 0)


def test_a_graph_without_edges_has_no_halo() -> None:
    case, none = random_case(2, nodes=40), np.zeros(0, dtype=np.int64)
    masks = {name: getattr(case.graph, name) for name in ("labels", "train_mask", "val_mask", "test_mask")}
    empty = Graph.from_edges(none, none, name="empty", features=case.graph.features, **masks)
    scaling = fitted(partitioned(empty, (2, 4)), (2, 4))
    check_like(scaling.statistics(8), scaling)
    assert not sum(part.halo for part in scaling.statistics(8))


def test_edges_of_made_up_parts_carry_what_those_of_the_fitted_ones_do() -> None:
    fitted_on = {parts: [replace(part, edge_dim=8, relations=6) for part in made()[parts]] for parts in FITTED}
    assert {(part.edge_dim, part.relations) for part in fitted(fitted_on).statistics(32)} == {(8, 6)}


def test_the_same_answer_each_time() -> None:
    assert fitted(made()).statistics(24) == fitted(made()).statistics(24)


@pytest.mark.parametrize("exact", [ExactSavings.none(), ExactSavings()])
@pytest.mark.parametrize("parts", [2, 5, 32])
def test_programs_run_and_their_messages_match(parts: int, exact: ExactSavings) -> None:
    """What a rank sends a peer is what that peer expects, exchange by exchange."""
    workload = Workload(LAYERS, tuple(fitted(made()).statistics(parts)), exact)
    exchanges = [
        [each for each in walk(FullGraph().epoch(workload.view(rank))) if isinstance(each, Exchange)] for rank in range(parts)
    ]
    assert exchanges[0]
    for at_once in zip(*exchanges, strict=True):
        sent = {(rank, each.peer): each.bytes for rank, exchange in enumerate(at_once) for each in exchange.outgoing}
        expected = {(each.peer, rank): each.bytes for rank, exchange in enumerate(at_once) for each in exchange.incoming}
        assert sent == expected
        assert sent


# -- near real partitions ------------------------------------------------------------------------------------------


def test_fitted_partitions_come_back() -> None:
    for parts in FITTED:
        found = errors(fitted(made()).statistics(parts), made()[parts])
        assert max(found[name] for name in ("halo", "marginal", "peers", "cut")) < 0.08, (parts, found)


@pytest.mark.parametrize("counts", [(2, 4, 8), FITTED])
@pytest.mark.parametrize("parts", [32, 64])
def test_finer_partitions_of_a_made_graph(counts: tuple[int, ...], parts: int) -> None:
    found = errors(fitted(made(), counts).statistics(parts), made()[parts])
    limits = {"halo": 0.15, "largest halo": 0.25, "marginal": 0.1, "peers": 0.12, "cut": 0.15, "most entries": 0.25}
    assert {name: error for name, error in found.items() if error > limits[name]} == {}


@pytest.mark.parametrize("name", ["amazon_photo", "deezer_hu", "debian_packages", "github_social", "pubmed", "tolokers"])
def test_finer_partitions_of_a_real_graph(name: str) -> None:
    found = errors(fitted(real(name)).statistics(32), real(name)[32])
    limits = {"halo": 0.15, "largest halo": 0.35, "marginal": 0.15, "peers": 0.2, "cut": 0.25, "most entries": 0.4}
    assert {name: error for name, error in found.items() if error > limits[name]} == {}
    check_like(fitted(real(name)).statistics(32), fitted(real(name)))


def test_an_epoch_takes_as_long_on_made_up_parts(calibration) -> None:
    """Links so slow that halo rows are most of the epoch: what the statistics miss shows."""

    def seconds(statistics: Sequence[PartStatistics], link: float) -> float:
        workload = Workload(LAYERS, tuple(statistics), ExactSavings.none())
        scenario = Scenario("made", "", workload, "full", (None,) * len(statistics), link, ranks_per_host=0)
        return forecast(calibration.costs, scenario)[0].epoch_seconds.value

    real_seconds = seconds(made()[32], 1.25e6)
    assert real_seconds > 3 * seconds(made()[32], 1.25e9)
    assert seconds(fitted(made()).statistics(32), 1.25e6) == pytest.approx(real_seconds, rel=0.15)


@pytest.mark.parametrize(
    ("law", "limit"),
    [
        (lambda parts: 0.4 * (np.sqrt(parts) - 1) / (1 + 0.05 * (np.sqrt(parts) - 1)), 8.0),
        (lambda parts: 0.25 * np.log(parts) / (1 + 0.25 * np.log(parts)), 1.0),
    ],
)
def test_the_law_is_found(law, limit) -> None:
    known = np.array([2.0, 4, 8, 16])
    curve = Growth.fit(known, law(known), limit)
    assert curve.at(128) == pytest.approx(law(128.0), rel=0.01)
    assert curve.at(1) == 0.0
    assert curve.at(10**9) <= limit


def test_a_random_partition_saturates_at_a_row_an_entry() -> None:
    """Of a graph of degree d, K >> d random parts need d rows a node: no fit to few parts has seen that."""
    nodes, degree = 4000, 6
    around = np.concatenate([(np.arange(nodes) + step) % nodes for step in range(1, degree // 2 + 1)])
    masks = {name: np.ones(nodes) for name in ("labels", "train_mask", "val_mask", "test_mask")}
    ids = np.tile(np.arange(nodes), degree // 2)
    graph = Graph.from_edges(ids, around, name="ring", features=np.ones((nodes, 1)), **masks)
    scaling = fitted(partitioned(graph, (2, 4, 8), "random"), (2, 4, 8))
    expected = 128 * (1 - (1 - 1 / 128) ** degree) * 127 / 128
    assert sum(part.halo for part in scaling.statistics(128)) / nodes == pytest.approx(expected, rel=0.2)


def test_more_doublings_are_less_sure() -> None:
    scaling = fitted(made())
    assert scaling.error(16) == 0.0
    assert 0.0 < scaling.error(32) < scaling.error(128)


def test_sparse_features_are_shared_out() -> None:
    graph = random_case(2, nodes=90, seed=1, sparse=True).graph
    partitions = partitioned(graph, (2, 3, 6))
    statistics = fitted(partitions, (2, 3, 6)).statistics(12)
    stored = sum(sum(part.feature_nnz[:2]) for part in statistics)
    assert stored == pytest.approx(sum(sum(part.feature_nnz[:2]) for part in partitions[2]), rel=0.1)


# -- its tools -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_allocation_keeps_total_bounds_and_proportion(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 30))
    weight = st.just(0.0) | st.floats(1e-3, 1e6)
    weights = np.array(data.draw(st.lists(weight, min_size=size, max_size=size)))
    low = np.array(data.draw(st.lists(st.integers(0, 50), min_size=size, max_size=size)))
    high = low + np.array(data.draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size)))
    total = data.draw(st.integers(0, 40_000))
    given_out = allocate(weights, total, low, high)
    assert given_out.sum() == min(max(total, low.sum()), high.sum())
    assert (low <= given_out).all()
    assert (given_out <= high).all()
    free = (given_out > low + 1) & (given_out < high - 1)
    if np.count_nonzero(free) > 1 and weights[free].min() > 1e-9 * weights.max():
        scale = given_out[free] / weights[free]
        assert scale.max() - scale.min() <= (2 / weights[free]).max() + 1e-6


def test_balancing_reaches_both_margins() -> None:
    random = np.random.default_rng(0)
    weights, rows, columns = random.random((6, 6)) + 0.1, random.random(6), random.random(6)
    rows, columns = rows / rows.sum(), columns / columns.sum()
    matrix = balanced(weights, rows, columns)
    np.testing.assert_allclose(matrix.sum(axis=1), rows)
    np.testing.assert_allclose(matrix.sum(axis=0), columns, rtol=1e-4)


def test_a_stretched_profile_has_the_largest_value_asked_for() -> None:
    profile = np.exp(np.random.default_rng(0).standard_normal(64) / 3)
    values = stretched(profile, 2.5)
    assert values.mean() == pytest.approx(1)
    assert values.max() == pytest.approx(2.5)
    np.testing.assert_array_equal(np.argsort(values), np.argsort(profile))
    np.testing.assert_array_equal(stretched(np.ones(4), 1.5), np.ones(4))


def test_bad_input_is_refused_in_one_line() -> None:
    two, four = made()[2], made()[4]
    for partitions in ([], [two], [two, two]):
        with pytest.raises(MisuseError, match="two or more numbers of parts above 1"):
            fit_scaling(partitions)
    other = [replace(four[0], central=four[0].central + 1), *four[1:]]
    with pytest.raises(MisuseError, match=r"different graphs.*12000.*12001"):
        fit_scaling([two, other])
    for parts in (0, 12_001):
        with pytest.raises(MisuseError, match=f"{parts} parts for 12000 nodes: allowed are 1 to 12000"):
            fitted(made()).statistics(parts)


def test_parts_without_neighbours_stay_consistent() -> None:
    case = chain_case(4)
    by_parts = {2: case.assignment // 3, 4: case.assignment}  # the last part touches nobody
    scaling = fit_scaling([partition_statistics(case.graph, assignment) for assignment in by_parts.values()])
    check_like(scaling.statistics(4), scaling)


@pytest.mark.parametrize(("nodes", "edges", "low", "high"), [(3, 3, 0.95, 1.05), (1, 2, 1.0, 1.25)])
def test_a_grown_graph_is_like_one_that_is_that_large(nodes: int, edges: int, low: float, high: float) -> None:
    settings = {"community_mixing": 0.1, "features": 4, "seed": 3}
    small = partitioned(generate_graph(6000, 16, **settings), FITTED)
    large = partitioned(generate_graph(6000 * nodes, 16 * edges / nodes, **settings), (4, 8))
    grown = fitted(small).grown(nodes, edges)
    for count, real_parts in large.items():
        parts = grown.statistics(count)
        check_consistent(parts, nodes=grown.nodes, entries=grown.entries, labelled=grown.labelled)
        said, measured = summary(parts), summary(real_parts)
        assert grown.nodes == sum(part.own for part in real_parts)
        assert low < said["halo"] / measured["halo"] < high
        assert 0.9 < said["cut"] / measured["cut"] < 1.1
    assert grown.error(8) > fitted(small).error(8) == 0.0
