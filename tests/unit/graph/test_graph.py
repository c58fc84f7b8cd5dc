"""Structure from pairs, fingerprints, metrics, and one clear line for every unusable graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from halocast.errors import GraphError
from halocast.runtime.graph.adjacency import symmetric_structure, undirected_pairs
from halocast.runtime.graph.graph import Graph, as_features, as_labels, default_metric, random_split, validate


def small(**changes: Any) -> Graph:
    """A path 0-1-2-3 with an isolated node 4."""
    graph = Graph.from_edges(
        np.array([0, 1, 2]),
        np.array([1, 2, 3]),
        name="path",
        features=np.arange(10, dtype=np.float32).reshape(5, 2),
        labels=[0, 1, 2, 0, -1],
        train_mask=[True, True, False, False, False],
        val_mask=[False, False, True, False, False],
        test_mask=[False, False, False, True, False],
    )
    return dataclasses.replace(graph, **changes)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_structure_equals_sets_of_neighbours(case: tuple[int, list[tuple[int, int]]]) -> None:
    nodes, pairs = case
    neighbours: list[set[int]] = [set() for _ in range(nodes)]
    for u, v in pairs:
        if u != v:
            neighbours[u].add(v)
            neighbours[v].add(u)
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    indptr, indices = symmetric_structure(columns[0], columns[1], nodes)
    assert indptr.dtype == np.int64
    assert indices.dtype == np.int32
    assert [indices[indptr[i] : indptr[i + 1]].tolist() for i in range(nodes)] == [sorted(each) for each in neighbours]


def test_small_graph() -> None:
    graph = validate(small())
    assert (graph.nodes, graph.edges, graph.nnz, graph.feature_dim, graph.classes) == (5, 3, 6, 2, 3)
    assert graph.indptr.tolist() == [0, 1, 3, 5, 6, 6]
    assert graph.indices.tolist() == [1, 0, 2, 1, 3, 2]
    assert graph.degrees.tolist() == [1, 2, 2, 1, 0]
    assert graph.metric == "accuracy"
    assert not graph.multilabel


def test_fingerprint_follows_content_only() -> None:
    graph = small()
    assert len(graph.fingerprint) == 16
    assert small(name="another", meta={"a": 1}).fingerprint == graph.fingerprint
    features, labels, mask = np.array(graph.features), graph.labels.copy(), graph.train_mask.copy()
    features[4, 1] += 1
    labels[3] = 1
    mask[0] = False
    other = Graph.from_edges(
        np.array([0, 1]),
        np.array([1, 2]),
        name="path",
        features=graph.features,
        labels=graph.labels,
        train_mask=graph.train_mask,
        val_mask=graph.val_mask,
        test_mask=graph.test_mask,
    )
    changed = [small(features=features), small(labels=labels), small(train_mask=mask), other]
    assert len({graph.fingerprint, *(each.fingerprint for each in changed)}) == 5


def test_fingerprint_of_sparse_features_ignores_index_type() -> None:
    rows = sparse.csr_matrix(np.eye(5, 3, dtype=np.float32))
    wide = rows.copy()
    wide.indptr, wide.indices = wide.indptr.astype(np.int64), wide.indices.astype(np.int64)
    assert small(features=rows).fingerprint == small(features=wide).fingerprint
    assert small(features=rows).fingerprint != small(features=rows * 2).fingerprint


def test_as_features_leaves_the_callers_matrix_alone() -> None:
    rows = sparse.csr_matrix((np.array([1, 2], np.float32), np.array([2, 0]), np.array([0, 2])), shape=(1, 3))
    taken = as_features(rows)
    assert rows.indices.tolist() == [2, 0]
    assert isinstance(taken, sparse.csr_matrix)
    assert taken.indices.tolist() == [0, 2]


def test_labels_from_floats() -> None:
    assert as_labels(np.array([0.0, np.nan, 2.0])).tolist() == [0, -1, 2]
    with pytest.raises(GraphError, match="label of node 1 is not a whole number"):
        as_labels(np.array([0.0, 0.5]))


@pytest.mark.parametrize(
    ("labels", "metric"),
    [
        (np.repeat([0, 1], [76, 24]), "roc_auc"),
        (np.repeat([0, 1], [74, 26]), "accuracy"),
        (np.repeat([0, 1, -1], [60, 40, 500]), "accuracy"),
        (np.repeat([0, 1, 2], [90, 5, 5]), "accuracy"),
        (np.zeros((4, 2), np.uint8), "micro_f1"),
    ],
)
def test_default_metric(labels: np.ndarray[Any, Any], metric: str) -> None:
    assert default_metric(labels) == metric


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(GraphError, match="metric 'acuracy' is unknown; did you mean 'accuracy'"):
        Graph.from_edges(
            np.array([0]),
            np.array([1]),
            name="g",
            features=np.ones((2, 1)),
            labels=[0, 1],
            train_mask=[1, 0],
            val_mask=[0, 0],
            test_mask=[0, 1],
            metric="acuracy",
        )


def test_random_split_is_the_documented_one() -> None:
    labels = np.array([0, -1, 1, 0, 1, 0, 1, 0, -1, 1, 0, 1])
    train, val, test = random_split(labels, seed=0)
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
    assert np.flatnonzero(train).tolist() == sorted(shuffled[:6])
    assert np.flatnonzero(val).tolist() == sorted(shuffled[6:8])
    assert np.flatnonzero(test).tolist() == sorted(shuffled[8:])


def nan_at(row: int, column: int, shape: tuple[int, int] = (5, 2)) -> np.ndarray[Any, Any]:
    values = np.ones(shape, dtype=np.float32)
    values[row, column] = np.nan
    return values


def mask(*nodes: int) -> np.ndarray[Any, Any]:
    return np.isin(np.arange(5), nodes)


INT32 = np.int32
BAD = {
    "no nodes": ({"indptr": np.zeros(1, np.int64), "indices": np.zeros(0, INT32)}, "the graph is empty"),
    "asymmetric": (
        {"indptr": np.array([0, 1, 2, 2, 2, 2]), "indices": np.array([1, 2], INT32)},
        r"not symmetric: 0 -> 1 has no 1 -> 0; .*--symmetrise",
    ),
    "id too large": ({"indices": np.array([1, 0, 2, 1, 9, 2], INT32)}, "node 2 has neighbour 9, but node ids run from 0 to 4"),
    "id negative": ({"indices": np.array([-1, 0, 2, 1, 3, 2], INT32)}, "node 0 has neighbour -1"),
    "self loop": ({"indices": np.array([0, 0, 2, 1, 3, 2], INT32)}, "node 0 has an edge to itself"),
    "unordered": ({"indices": np.array([1, 2, 0, 1, 3, 2], INT32)}, "neighbours of node 1 are not ascending"),
    "repeated": ({"indices": np.array([1, 0, 0, 1, 3, 2], INT32)}, "neighbours of node 1 are not ascending"),
    "indptr end": ({"indptr": np.array([0, 1, 3, 5, 6, 7])}, "indptr must rise from 0 to the 6 entries"),
    "indptr falls": ({"indptr": np.array([0, 3, 1, 5, 6, 6])}, "indptr must rise"),
    "wide ids": ({"indices": np.array([1, 0, 2, 1, 3, 2])}, "indices are int64, needed is int32"),
    "nan": ({"features": nan_at(3, 1)}, "feature 1 of node 3 is nan"),
    "sparse nan": ({"features": sparse.csr_matrix(nan_at(3, 1))}, "feature 1 of node 3 is nan"),
    "infinite": ({"features": np.where(np.isnan(nan_at(2, 0)), -np.inf, 1).astype(np.float32)}, "of node 2 is -inf"),
    "float64": ({"features": np.ones((5, 2))}, "features are float64"),
    "short features": ({"features": np.ones((4, 2), np.float32)}, "features has 4 rows for 5 nodes"),
    "no features": ({"features": np.ones((5, 0), np.float32)}, "features have shape"),
    "short labels": ({"labels": np.zeros(3, np.int64)}, "labels has 3 rows for 5 nodes"),
    "short mask": ({"val_mask": mask(2)[:3]}, "val_mask has 3 rows for 5 nodes"),
    "label too large": ({"labels": np.array([0, 1, 3, 0, -1])}, r"label of node 2 is 3; allowed: -1 \(none\) to 2"),
    "label too small": ({"labels": np.array([0, -2, 2, 0, -1])}, "label of node 1 is -2"),
    "multilabel flag": ({"multilabel": True}, "multilabel is True, but labels have 1 dimension"),
    "multilabel columns": ({"multilabel": True, "labels": np.zeros((5, 2), np.uint8)}, "labels have 2 columns for 3 classes"),
    "multilabel values": ({"multilabel": True, "labels": np.full((5, 3), 255, np.uint8)}, "label of node 0 is not binary"),
    "unlabelled node in mask": ({"test_mask": mask(3, 4)}, "node 4 is in test_mask but has no label"),
    "several splits": ({"train_mask": np.ones((5, 2), bool)}, "choose one split"),
    "overlap": ({"val_mask": mask(1, 2)}, r"node 1 is in both train_mask and val_mask \(1 such nodes\)"),
    "no training": ({"train_mask": mask()}, "no training nodes"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_validate_refuses_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=f"^somewhere: .*{message}") as caught:
        validate(small(**changes), "somewhere")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_multilabel_rows_without_a_label_may_be_trained_on() -> None:
    labels = np.zeros((5, 3), np.uint8)
    validate(small(labels=labels, multilabel=True))


def test_asymmetric_list_is_refused_with_the_first_pair_and_the_remedy() -> None:
    edges = np.array([[0, 1, 4, 2, 3], [1, 0, 2, 3, 2]])
    with pytest.raises(
        GraphError, match=r"^f: edges are not symmetric: 4 -> 2 \(edge 2\) has no 2 -> 4 \(1 such edges of 5\)"
    ) as caught:
        undirected_pairs(edges, 5, "f")
    assert "symmetrise=True (--symmetrise)" in str(caught.value)
    first, second = undirected_pairs(edges, 5, "f", symmetrise=True)
    assert symmetric_structure(first, second, 5)[1].tolist() == [1, 0, 3, 4, 2, 2]


def test_pairs_stored_once_need_no_reverse_where_the_format_says_so() -> None:
    edges = np.array([[0, 1], [1, 2]])
    undirected_pairs(edges, 3, "f", each_once=True)
    with pytest.raises(GraphError, match="not symmetric"):
        undirected_pairs(edges, 3, "f")
    with pytest.raises(GraphError, match="not symmetric"):
        undirected_pairs(edges[::-1], 3, "f", each_once=True)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 7], [1, 1]], r"edge 1 is \(7, 1\), but node ids run from 0 to 2"),
        ([[0, 1], [1, -1]], r"edge 1 is \(1, -1\)"),
        ([[0, 1, 2]], r"shape \[1, 3\], needed is \[2, edges\]"),
        ([[0.0], [1.0]], "type float64, needed are integers"),
    ],
)
def test_bad_pairs(edges: list[list[float]], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        undirected_pairs(np.array(edges), 3, "f")


def test_self_loops_are_dropped() -> None:
    first, second = undirected_pairs(np.array([[0, 1, 2], [1, 0, 2]]), 3, "f")
    assert (first.tolist(), second.tolist()) == ([0, 1], [1, 0])


def test_32_bit_ids_past_their_range_are_refused_without_reading_an_edge() -> None:
    edges = np.broadcast_to(np.int32(0), (2, 2**31))  # 2³¹ edges that take no memory
    with pytest.raises(GraphError, match=r"2147483648 edges are 4294967296 entries .* store edge_index as int64"):
        undirected_pairs(edges, 10, "f")
    with pytest.raises(GraphError, match=r"2147483648 nodes do not fit int32 ids"):
        undirected_pairs(edges[:, :1], 2**31, "f")
    with pytest.raises(GraphError, match="more than the 3037000499 supported"):
        undirected_pairs(np.zeros((2, 1), np.int64), 2**33, "f")
