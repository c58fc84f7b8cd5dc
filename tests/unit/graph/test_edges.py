"""Edge features and relations reach the entries they belong to, change the fingerprint, and are checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halocast.errors import GraphError
from halocast.runtime.graph.graph import Graph, validate

FINGERPRINT_WITHOUT_EDGE_DATA = "9ed312ac2e059acd"  # as graphs had it before they knew edge data: plans and shards name it


def path(**edge_data: Any) -> Graph:
    """0 -> 1, 2 -> 1, 2 -> 3 and an isolated node 4."""
    masks = {f"{name}_mask": np.isin(np.arange(5), nodes) for name, nodes in (("train", (0, 1)), ("val", 2), ("test", 3))}
    return Graph.from_edges(
        np.array([0, 2, 2]),
        np.array([1, 1, 3]),
        name="path",
        features=np.arange(10, dtype=np.float32).reshape(5, 2),
        labels=[0, 1, 2, 0, -1],
        **masks,
        **edge_data,
    )


FEATURES = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
TYPES = np.array([1, 0, 1])
NAMES = ["cites", "extends"]


def messages(graph: Graph) -> dict[tuple[int, int], int]:
    """Place in `indices` of the message from j to i, by (j, i)."""
    rows = np.repeat(np.arange(graph.nodes), graph.degrees)
    return {(int(j), int(i)): at for at, (i, j) in enumerate(zip(rows, graph.indices, strict=True))}


def test_a_pair_gives_features_to_both_entries_and_its_relation_to_one() -> None:
    graph = validate(path(edge_features=FEATURES, edge_types=TYPES, relations=NAMES))
    assert graph.relations == ("cites", "extends", "inverse of cites", "inverse of extends")
    assert graph.edge_dim == 2
    assert graph.edge_features is not None
    assert graph.edge_types is not None
    assert (graph.edge_features.dtype, graph.edge_types.dtype) == (np.float32, np.int32)
    at = messages(graph)
    expected = {(0, 1): 1, (1, 0): 3, (2, 1): 0, (1, 2): 2, (2, 3): 1, (3, 2): 3}
    assert {message: int(graph.edge_types[place]) for message, place in at.items()} == expected
    lines = {(0, 1): 0, (1, 0): 0, (2, 1): 1, (1, 2): 1, (2, 3): 2, (3, 2): 2}
    assert {message: graph.edge_features[place].tolist() for message, place in at.items()} == {
        message: FEATURES[line].tolist() for message, line in lines.items()
    }


def test_without_names_relations_are_numbered_and_one_column_may_be_flat() -> None:
    graph = validate(path(edge_features=[0.5, 1.5, 2.5], edge_types=TYPES))
    assert graph.relations == ("relation 0", "relation 1", "inverse of relation 0", "inverse of relation 1")
    assert graph.edge_features is not None
    assert graph.edge_features[:, 0].tolist() == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]


def pairs(nodes: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(*[st.integers(0, nodes - 1)] * 2), max_size=40)


def graph_of(nodes: int, listed: list[tuple[int, int]], **edge_data: Any) -> Graph:
    columns = np.array(listed, dtype=np.int64).reshape(-1, 2).T
    none = np.zeros(nodes, dtype=np.bool_)
    rest = {"labels": np.zeros(nodes, np.int64), "train_mask": ~none, "val_mask": none, "test_mask": none}
    return Graph.from_edges(columns[0], columns[1], name="g", features=np.ones((nodes, 1)), **rest, **edge_data)


@given(pairs(9))
def test_any_list_of_pairs_equals_a_dictionary_of_messages(drawn: list[tuple[int, int]]) -> None:
    """Repeats that agree and self loops among them; a pair that also comes reversed would contradict itself."""
    listed = [(u, v) for number, (u, v) in enumerate(drawn) if (v, u) not in drawn[:number] or u == v]
    types = [(3 * u + v) % 4 for u, v in listed]
    features = [[u - 2.0 * v] for u, v in listed]
    expected = {(u, v): (kind, row) for (u, v), kind, row in zip(listed, types, features, strict=True) if u != v}
    expected |= {(v, u): (kind + 4, row) for (u, v), (kind, row) in expected.items()}
    graph = graph_of(
        9, listed, edge_types=types or np.zeros(0, np.int64), edge_features=np.reshape(features, (-1, 1)), relations="abcd"
    )
    validate(graph)
    assert graph.edge_types is not None
    assert graph.edge_features is not None
    found = {
        message: (int(graph.edge_types[place]), graph.edge_features[place].tolist())
        for message, place in messages(graph).items()
    }
    assert found == expected


@given(pairs(9))
def test_a_list_of_both_directions_is_taken_as_it_is(drawn: list[tuple[int, int]]) -> None:
    listed = sorted({(u, v) for u, v in drawn} | {(v, u) for u, v in drawn}, key=lambda pair: (pair[0] * 7 + pair[1] * 5) % 11)
    types = np.array([(3 * u + v) % 4 for u, v in listed], dtype=np.int64)
    graph = validate(graph_of(9, listed, edge_types=types, relations=list("abcd"), both_ways=True))
    assert graph.relations == ("a", "b", "c", "d")
    assert graph.edge_types is not None
    at = messages(graph)
    assert {message: int(graph.edge_types[place]) for message, place in at.items()} == {(u, v): (3 * u + v) % 4 for u, v in at}


def test_fingerprint_without_edge_data_is_what_it_always_was() -> None:
    assert path().fingerprint == FINGERPRINT_WITHOUT_EDGE_DATA


def test_fingerprint_follows_edge_data() -> None:
    different = [
        path(),
        path(edge_features=FEATURES),
        path(edge_features=FEATURES + 1),
        path(edge_types=TYPES),
        path(edge_types=1 - TYPES),
        path(edge_types=TYPES, relations=NAMES),
        path(edge_types=TYPES, relations=NAMES, edge_features=FEATURES),
    ]
    assert len({graph.fingerprint for graph in different}) == len(different)
    again = path(edge_types=TYPES, relations=NAMES, edge_features=FEATURES)
    assert again.fingerprint == different[-1].fingerprint


BOTH = [(0, 1), (1, 2), (1, 0)]


@pytest.mark.parametrize(
    ("listed", "edge_data", "message"),
    [
        (
            BOTH,
            {"edge_types": [0, 1, 0], "relations": NAMES},
            "edges 2 and 0 both give the message 1 -> 0 as 'cites' and as 'inverse of cites', .*keep one of them",
        ),
        (
            [(0, 1), (2, 2), (0, 1)],
            {"edge_types": [0, 1, 1], "relations": NAMES},
            "edges 0 and 2 both give the message 0 -> 1 as 'cites' and as 'extends'",
        ),
        (BOTH, {"edge_features": [1.0, 2.0, 3.0]}, r"edges 2 and 0 both .* 1 -> 0 with different features; .*both_ways=True"),
        (BOTH, {"edge_types": [0, 2, 0], "relations": NAMES}, "edge type 2 of edge 1 is unknown; relations are 0 to 1"),
        (BOTH, {"edge_types": [0, -1, 0]}, "edge type -1 of edge 1 is unknown; relations are 0 to 0"),
        (BOTH, {"edge_types": [0, 0, 0], "relations": []}, "edge type 0 of edge 0 is unknown; no relation is named"),
        (BOTH, {"edge_types": [0.0, 1.0, 0.0]}, "edge types are float64, needed are integers"),
        (BOTH, {"edge_types": [0, 1]}, r"edge types have shape \[2\], needed is \[3\]"),
        (BOTH, {"relations": NAMES}, "2 relations are named, but no edge has a type; pass edge_types"),
        (BOTH, {"relations": NAMES, "edge_features": [1, 2, 1]}, "2 relations are named, but no edge has a type"),
        (BOTH, {"edge_types": [0, 1, 0], "relations": ["a", "a"]}, "two relations are named 'a'"),
        (BOTH, {"edge_types": [0, 1, 0], "relations": ["a", "inverse of a"]}, "two relations are named 'inverse of a'"),
        (BOTH, {"edge_features": [["a"]] * 3}, "edge features are <U1, needed are numbers"),
        (BOTH, {"edge_features": np.ones((3, 0))}, r"edge features have shape \[3, 0\], needed is \[edges, at least 1\]"),
        (BOTH, {"edge_features": np.ones((2, 4))}, "edge features have 2 rows for 3 edges"),
        (BOTH, {"edge_types": [0, 1, 0], "both_ways": True}, r"not symmetric: 1 -> 2 \(edge 1\) .*leave both_ways out"),
    ],
)
def test_edge_data_that_does_not_fit_its_pairs(listed: list[tuple[int, int]], edge_data: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=f"^g: .*{message}") as caught:
        graph_of(3, listed, **edge_data)
    assert "\n" not in str(caught.value)


def test_repeats_that_agree_are_merged() -> None:
    graph = validate(graph_of(3, [(0, 1), (0, 1), (1, 0)], edge_features=[0.5, 0.5, 0.5]))
    assert graph.edge_features is not None
    assert graph.edge_features.tolist() == [[0.5], [0.5]]


INT32 = np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_types": np.array([1, 3, 7, 2, 1, 3], INT32)}, r"edge type 7 of entry 2 \(2 -> 1\) is unknown; .* 0 to 3"),
        ({"edge_types": np.array([-1, 3, 0, 2, 1, 3], INT32)}, r"edge type -1 of entry 0 \(1 -> 0\) is unknown"),
        ({"edge_types": np.zeros(5, INT32)}, r"edge_types are int32 \[5\], needed is int32 \[6\]"),
        ({"edge_types": np.zeros(6, np.int64)}, r"edge_types are int64 \[6\]"),
        ({"edge_types": None}, "4 relations are named, but edge_types is None"),
        ({"relations": ("a", "b", "a", "c")}, "two relations are named 'a'"),
        ({"edge_features": np.ones((5, 2), np.float32)}, r"edge_features are float32 \[5, 2\], needed is float32 \[6, "),
        ({"edge_features": np.ones((6, 2))}, r"edge_features are float64 \[6, 2\]"),
        ({"edge_features": np.ones(6, np.float32)}, r"edge_features are float32 \[6\]"),
        (
            {"edge_features": np.where(np.arange(12).reshape(6, 2) == 11, np.inf, 1).astype(np.float32)},
            r"edge feature 1 of entry 5 \(2 -> 3\) is inf \(1 values are not finite\)",
        ),
    ],
)
def test_validate_refuses_in_one_line(changes: dict[str, Any], message: str) -> None:
    graph = path(edge_features=FEATURES, edge_types=TYPES, relations=NAMES)
    with pytest.raises(GraphError, match=f"^somewhere: {message}") as caught:
        validate(dataclasses.replace(graph, **changes), "somewhere")
    assert "\n" not in str(caught.value)
