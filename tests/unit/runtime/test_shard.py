"""Shards hold what their parts need, in the promised order; checked edge by edge against the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.graphs import Case, chain_case, random_case, with_edge_data
from tests.support.sessions import shards_of

from halocast.errors import MisuseError
from halocast.runtime.graph.shard import MANIFEST, SHARD_VERSION, open_shards, partition_statistics, write_shards
from halocast.traces.workload import PartStatistics


def neighbours(case: Case) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in range(case.graph.nodes)]
    for u, v in case.edges.T:
        found[u].add(int(v))
        found[v].add(int(u))
    return found


@pytest.mark.parametrize("case", [random_case(1), random_case(4), random_case(8, nodes=40), chain_case(4)], ids=str)
def test_every_part_holds_its_rows_and_their_neighbours(case: Case, tmp_path: Path) -> None:
    shards = shards_of(case, tmp_path / "shards")
    adjacent = neighbours(case)
    seen: set[int] = set()
    for part in range(shards.parts):
        shard, statistics = shards.open(part), shards.statistics(part)
        ids = np.asarray(shard.global_ids)
        own, halo = ids[: statistics.own], ids[statistics.own :]
        assert set(own) == set(np.flatnonzero(case.assignment == part))
        seen |= set(own.tolist())
        central = [node for node in own if all(case.assignment[other] == part for other in adjacent[node])]
        assert set(own[: statistics.central]) == set(central)
        assert set(halo) == {other for node in own for other in adjacent[node] if case.assignment[other] != part}
        for row, node in enumerate(own):
            columns = np.asarray(shard.indices[shard.indptr[row] : shard.indptr[row + 1]])
            assert columns[0] == row
            assert set(ids[columns[1:]]) == adjacent[node]
            local_end = shard.own_end[row] - shard.indptr[row]
            assert (columns[1:local_end] < statistics.own).all()
            assert (columns[local_end:] >= statistics.own).all()
            assert shard.degrees[row] == len(adjacent[node])
        for row, node in enumerate(halo):
            rows = np.asarray(shard.halo_indices[shard.halo_indptr[row] : shard.halo_indptr[row + 1]])
            assert set(own[rows]) == {other for other in adjacent[node] if case.assignment[other] == part}
        np.testing.assert_array_equal(np.asarray(shard.labels), case.graph.labels[own])
        np.testing.assert_array_equal(np.asarray(shard.mask("train")), case.graph.train_mask[own])
        np.testing.assert_array_equal(np.asarray(shard.features()), case.graph.features[ids])
    assert seen == set(range(case.graph.nodes))


@pytest.mark.parametrize("case", [random_case(4), chain_case(4)], ids=str)
def test_senders_and_receivers_agree_on_the_order_of_rows(case: Case, tmp_path: Path) -> None:
    shards = shards_of(case, tmp_path / "shards")
    for sender in range(shards.parts):
        sent, start = shards.statistics(sender), 0
        ids, boundary = np.asarray(shards.open(sender).global_ids), np.asarray(shards.open(sender).boundary)
        for receiver in range(shards.parts):
            rows = boundary[start : start + sent.boundary_to[receiver]]
            start += sent.boundary_to[receiver]
            got = shards.statistics(receiver)
            first = got.own + sum(got.halo_from[:sender])
            expected = np.asarray(shards.open(receiver).global_ids)[first : first + got.halo_from[sender]]
            np.testing.assert_array_equal(ids[rows], expected)
            assert sent.labelled_boundary_to[receiver] == got.labelled_halo_from[sender]


def test_halo_rows_beside_a_labelled_row_come_first(tmp_path: Path) -> None:
    case = random_case(4)
    shards, adjacent = shards_of(case, tmp_path / "shards"), neighbours(case)
    for part in range(shards.parts):
        statistics = shards.statistics(part)
        ids = np.asarray(shards.open(part).global_ids)
        start = statistics.own
        for peer in range(shards.parts):
            nodes = ids[start : start + statistics.halo_from[peer]]
            start += statistics.halo_from[peer]
            labelled = [
                any(case.graph.train_mask[other] and case.assignment[other] == part for other in adjacent[node])
                for node in nodes
            ]
            assert labelled == sorted(labelled, reverse=True)
            assert sum(labelled) == statistics.labelled_halo_from[peer]


@pytest.mark.parametrize(
    "case", [random_case(1), random_case(3), random_case(4), random_case(8, nodes=40), chain_case(4)], ids=str
)
def test_edge_data_of_a_part_is_the_graphs(case: Case, tmp_path: Path) -> None:
    case = with_edge_data(case)
    graph = case.graph
    assert graph.edge_features is not None
    assert graph.edge_types is not None
    place = {
        (row, int(graph.indices[at])): at
        for row in range(graph.nodes)
        for at in range(graph.indptr[row], graph.indptr[row + 1])
    }
    shards, seen = shards_of(case, tmp_path / "shards"), 0
    for part in range(shards.parts):
        shard = shards.open(part)
        assert shard.edge_features is not None
        assert shard.edge_types is not None
        ids, own = np.asarray(shard.global_ids), shard.statistics.own
        rows = np.repeat(np.arange(own), np.diff(shard.indptr))
        columns = np.asarray(shard.indices)
        assert len(shard.edge_features) == len(shard.edge_types) == len(columns)
        for entry, (row, column) in enumerate(zip(rows, columns, strict=True)):
            if row == column:
                assert shard.edge_types[entry] == -1
                assert not shard.edge_features[entry].any()
                continue
            at = place[int(ids[row]), int(ids[column])]
            assert shard.edge_types[entry] == graph.edge_types[at]
            np.testing.assert_array_equal(shard.edge_features[entry], graph.edge_features[at])
            seen += 1
    assert seen == graph.nnz


@pytest.mark.parametrize("case", [random_case(1), random_case(3), random_case(4), chain_case(4)], ids=str)
def test_halo_entries_are_found_in_the_rows_they_belong_to(case: Case, tmp_path: Path) -> None:
    shards = shards_of(with_edge_data(case), tmp_path / "shards")
    for part in range(shards.parts):
        shard, statistics = shards.open(part), shards.statistics(part)
        assert shard.halo_entry is not None
        assert shard.halo_entry.dtype == np.int64
        rows = np.repeat(np.arange(statistics.own), np.diff(shard.indptr))
        halo = statistics.own + np.repeat(np.arange(statistics.halo), np.diff(shard.halo_indptr))
        assert len(shard.halo_entry) == statistics.nnz_halo
        np.testing.assert_array_equal(rows[shard.halo_entry], shard.halo_indices)
        np.testing.assert_array_equal(np.asarray(shard.indices)[shard.halo_entry], halo)


@pytest.mark.parametrize(("features", "types"), [(True, True), (True, False), (False, True), (False, False)])
def test_shards_say_what_edge_data_they_hold(features: bool, types: bool, tmp_path: Path) -> None:
    case = with_edge_data(random_case(3), features=features, types=types)
    shards = open_shards(shards_of(case, tmp_path / "shards").folder)
    assert shards.graph["edge_dim"] == (3 if features else 0)
    assert tuple(shards.graph["relations"]) == case.graph.relations
    for shard in (shards.open(part) for part in range(3)):
        assert (shard.statistics.edge_dim, shard.statistics.relations) == (3 * features, 4 * types)
        assert (shard.edge_features is None, shard.edge_types is None) == (not features, not types)
        assert (shard.halo_entry is None) == (not features and not types)
        edge_files = {path.stem for path in shard.folder.iterdir()} & {"edge_features", "edge_types", "halo_entry"}
        held = {"edge_features": features, "edge_types": types, "halo_entry": features or types}
        assert edge_files == {name for name, there in held.items() if there}


def test_edge_data_changes_no_other_array(tmp_path: Path) -> None:
    bare = shards_of(random_case(3), tmp_path / "bare")
    rich = shards_of(with_edge_data(random_case(3)), tmp_path / "rich")
    for part in range(3):
        for path in bare.open(part).folder.iterdir():
            assert path.read_bytes() == (rich.open(part).folder / path.name).read_bytes(), path.name


def test_shards_from_before_edge_data_still_open(tmp_path: Path) -> None:
    shards = shards_of(random_case(2), tmp_path / "shards")
    manifest = json.loads((shards.folder / MANIFEST).read_text())
    for document in (manifest["graph"], *manifest["statistics"]):
        del document["edge_dim"], document["relations"]
    (shards.folder / MANIFEST).write_text(json.dumps(manifest))
    old = open_shards(shards.folder)
    assert (old.graph["edge_dim"], old.graph["relations"]) == (0, [])
    assert old.statistics(1) == shards.statistics(1)
    assert old.open(1).edge_types is None
    assert PartStatistics.from_json(shards.statistics(1).to_json()) == shards.statistics(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10_000))
def test_statistics_add_up_over_parts(parts: int, seed: int) -> None:
    case = random_case(parts, nodes=50, seed=seed, sparse=True)
    statistics = partition_statistics(case.graph, case.assignment)
    assert sum(each.own for each in statistics) == case.graph.nodes
    assert sum(each.nnz_central + each.nnz_marginal for each in statistics) == case.graph.nnz
    assert sum(each.halo for each in statistics) == sum(each.boundary for each in statistics)
    cut = (case.assignment[case.edges[0]] != case.assignment[case.edges[1]]).sum()
    assert sum(each.nnz_halo for each in statistics) == 2 * cut
    assert sum(each.labelled for each in statistics) == case.graph.train_mask.sum()
    assert sum(sum(each.feature_nnz[:2]) for each in statistics) == case.graph.features.nnz


def test_sparse_features_stay_sparse(tmp_path: Path) -> None:
    case = random_case(3, sparse=True)
    shards = shards_of(case, tmp_path / "shards")
    for part in range(3):
        features = shards.open(part).features()
        assert sp.issparse(features)
        ids = np.asarray(shards.open(part).global_ids)
        np.testing.assert_array_equal(features.toarray(), case.graph.features[ids].toarray())


def test_a_rank_opens_its_own_folder_only(tmp_path: Path) -> None:
    shards = shards_of(random_case(3), tmp_path / "shards")
    for other in (0, 2):
        for file in (shards.folder / f"part-{other:05d}").iterdir():
            file.unlink()
    shard = open_shards(shards.folder).open(1)
    assert len(shard.indptr) == shard.statistics.own + 1
    assert isinstance(shard.indices, np.memmap)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    case = random_case(2)

    def fail(part: int) -> None:
        raise OSError(28, "No space left on device")

    position = np.arange(case.graph.nodes)
    with pytest.raises(OSError, match="No space left"):
        write_shards(case.graph, case.assignment, position, tmp_path / "shards", partition={}, on_part=fail)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_shards(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no shards in"):
        open_shards(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(MisuseError, match="is not valid JSON"):
        open_shards(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"version": 99}))
    with pytest.raises(MisuseError, match=f"layout 99; this halocast reads {SHARD_VERSION}"):
        open_shards(tmp_path)
    shards = shards_of(random_case(2), tmp_path / "shards")
    (shards.folder / "part-00000" / "indptr.npy").write_bytes(b"broken")
    with pytest.raises(MisuseError, match=r"cannot read shard array .*indptr.npy"):
        _ = shards.open(0).indptr
