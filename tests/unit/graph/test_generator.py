"""Made graphs have the degrees, communities and homophily asked for; the stream is exact and bounded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halocast.errors import MisuseError
from halocast.runtime.graph.generator import GeneratorSettings, generate_graph, stream_edges, write_generated
from halocast.runtime.graph.graph import Graph, validate
from halocast.runtime.graph.npz import load_npz


def homophily(graph: Graph) -> float:
    rows = np.repeat(np.arange(graph.nodes), graph.degrees)
    return float((graph.labels[rows] == graph.labels[graph.indices]).mean())


def edge_keys(nodes: int, degree: float, **asked: Any) -> npt.NDArray[np.int64]:
    return np.concatenate([chunk[0].astype(np.int64) * nodes + chunk[1] for chunk in stream_edges(nodes, degree, **asked)])


@given(
    homophily_asked=st.floats(0.3, 0.9),
    mixing=st.floats(0.1, 0.6),
    degree=st.floats(6, 20),
    exponent=st.floats(2.3, 4),
    classes=st.integers(2, 12),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_homophily_and_degree_are_as_asked(
    homophily_asked: float, mixing: float, degree: float, exponent: float, classes: int, seed: int
) -> None:
    graph = generate_graph(
        8000,
        degree,
        homophily=homophily_asked,
        community_mixing=mixing,
        degree_exponent=exponent,
        classes=classes,
        communities=24,
        label_noise=0.2,
        features=2,
        seed=seed,
    )
    validate(graph)
    assert abs(homophily(graph) - homophily_asked) < 0.03
    assert abs(graph.degrees.mean() / degree - 1) < 0.05


@pytest.mark.parametrize("mixing", [0.05, 0.25, 0.6])
def test_mixing(mixing: float) -> None:
    """With as many classes as communities and no noise, leaving the class is leaving the community."""
    graph = generate_graph(
        20_000, 12, communities=20, classes=20, label_noise=0, community_mixing=mixing, homophily=1 - mixing, features=1
    )
    assert abs(homophily(graph) - (1 - mixing)) < 0.02
    assert np.bincount(graph.labels).min() > 0.4 * 20_000 / 20


@pytest.mark.parametrize("exponent", [2.3, 2.7, 3.5])
def test_degree_exponent(exponent: float) -> None:
    """Hill's estimate over the tail from twice the mean on (Clauset et al., SIAM Review 51, 2009, eq. 3.7)."""
    graph = generate_graph(60_000, 20, degree_exponent=exponent, features=1)
    lowest = 40
    tail = graph.degrees[graph.degrees >= lowest]
    assert tail.size > 1000
    estimate = 1 + tail.size / np.log(tail / (lowest - 0.5)).sum()
    assert abs(estimate - exponent) < 0.3


def test_edges_are_distinct_and_ordered_pairs() -> None:
    nodes = 5000
    chunks = list(stream_edges(nodes, 30, chunk_edges=4000))
    assert all(chunk.dtype == np.int32 and chunk.shape[0] == 2 for chunk in chunks)
    assert max(chunk.shape[1] for chunk in chunks) <= 4000 + nodes // 10
    edges = np.concatenate(chunks, axis=1)
    assert (edges[0] < edges[1]).all()
    assert edges.min() >= 0
    assert edges.max() < nodes
    assert np.unique(edges, axis=1).shape == edges.shape


@pytest.mark.parametrize("chunk_edges", [1, 777, 10**7])
def test_chunk_size_does_not_change_the_stream(chunk_edges: int) -> None:
    np.testing.assert_array_equal(edge_keys(900, 10, chunk_edges=chunk_edges), edge_keys(900, 10))


def test_same_seed_same_graph() -> None:
    first = generate_graph(2000, 8, features=6, seed=5)
    assert generate_graph(2000, 8, features=6, seed=5, chunk_edges=500).fingerprint == first.fingerprint
    assert generate_graph(2000, 8, features=6, seed=6).fingerprint != first.fingerprint
    keys = np.sort(edge_keys(2000, 8, features=6, seed=5))
    rows = np.repeat(np.arange(2000), first.degrees)
    upper = rows < first.indices
    np.testing.assert_array_equal(keys, rows[upper] * 2000 + first.indices[upper])


def test_file_equals_graph(tmp_path: Path) -> None:
    write_generated(tmp_path / "g.npz", 3000, 8, features=5, seed=2, chunk_edges=1000)
    graph = load_npz(tmp_path / "g.npz")
    assert graph.fingerprint == generate_graph(3000, 8, features=5, seed=2).fingerprint
    assert (graph.name, graph.classes) == ("g", 16)


def test_ids_tell_nothing_of_communities() -> None:
    graph = generate_graph(20_000, 10, features=1)
    rows = np.repeat(np.arange(graph.nodes), graph.degrees)
    distance = np.abs(rows - graph.indices).mean() / graph.nodes
    assert abs(distance - 1 / 3) < 0.01  # the mean distance of two uniform points


def test_features_carry_the_class() -> None:
    graph = generate_graph(20_000, 10, features=32, classes=4, feature_signal=2.0)
    assert isinstance(graph.features, np.ndarray)
    means = np.stack([graph.features[graph.labels == each].mean(axis=0) for each in range(4)])
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 2.0, atol=0.15)
    residual = graph.features - means[graph.labels]
    np.testing.assert_allclose(residual.std(axis=0), 1.0, atol=0.03)


def test_memory_does_not_grow_with_the_edges() -> None:
    """Two million edges are 32 MB of keys; the stream may hold nodes and a chunk, not them."""
    tracemalloc.start()
    edges = sum(chunk.shape[1] for chunk in stream_edges(20_000, 200, chunk_edges=20_000, features=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert edges > 1_900_000
    assert peak < 16e6


@pytest.mark.parametrize("communities", [1, 3, 4, 50])
@pytest.mark.parametrize("classes", [1, 4, 9])
def test_any_number_of_classes_and_communities(communities: int, classes: int) -> None:
    graph = generate_graph(
        2000,
        8,
        communities=communities,
        classes=classes,
        community_mixing=0.2 if communities > 1 else 0,
        homophily=0.7 if classes > 1 else 1,
        label_noise=0.3,
        features=2,
    )
    validate(graph)
    assert set(np.unique(graph.labels)) == set(range(classes))


def test_tiny_graphs() -> None:
    pair = {"communities": 1, "classes": 1, "community_mixing": 0, "homophily": 1, "features": 1}
    assert generate_graph(2, 1, **pair).nodes == 2
    assert generate_graph(2, 0, **pair).edges == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 1}, "nodes = 1 is out of range"),
        ({"average_degree": -1}, "average_degree = -1 is out of range"),
        ({"average_degree": 600}, "average_degree = 600 is out of range; allowed: 0 to 500"),
        ({"degree_exponent": 2}, "degree_exponent = 2 is out of range"),
        ({"homophily": 1.2}, "homophily = 1.2 is out of range; allowed: 0 to 1"),
        ({"average_degree": float("nan")}, "average_degree = nan is out of range"),
        ({"communities": 0}, "communities = 0 is out of range"),
        ({"communities": 1}, "community_mixing = 0.25 and homophily = 0.7 cannot both hold with 1 communities"),
        ({"classes": 1}, "cannot both hold"),
        ({"communities": 250, "average_degree": 300}, "average_degree = 300 is more than 250 communities"),
        ({"chunk_edges": 0}, "chunk_edges = 0 must be at least 1"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"nodes": 1000, "average_degree": 5} | changes
    with pytest.raises(MisuseError, match=message):
        generate_graph(**asked)


def test_settings_are_recorded() -> None:
    graph = generate_graph(500, 4, features=3, seed=9)
    assert graph.meta["generator"] == vars(GeneratorSettings(500, 4, features=3, seed=9))


def test_edge_data_is_made_by_seed_and_streams_to_the_same_graph(tmp_path: Path) -> None:
    asked = {"features": 3, "communities": 8, "classes": 4, "seed": 5}
    bare = generate_graph(3000, 12, **asked)
    graph = validate(generate_graph(3000, 12, relations=3, edge_dim=2, **asked))
    assert (len(graph.relations), graph.edge_dim) == (6, 2)
    assert graph.edge_types is not None
    assert graph.edge_features is not None
    np.testing.assert_array_equal(graph.indices, bare.indices)
    np.testing.assert_array_equal(graph.features, bare.features)
    rows = np.repeat(np.arange(graph.nodes), graph.degrees)
    assert ((graph.edge_types < 3) == (graph.indices < rows)).all()  # the lower id speaks, the higher one hears
    counts = np.bincount(graph.edge_types, minlength=6)
    assert (counts[:3] == counts[3:]).all()
    assert counts.min() > 0.9 * counts.mean()
    assert abs(graph.edge_features.std() - 1) < 0.02
    write_generated(tmp_path / "g.npz", 3000, 12, relations=3, edge_dim=2, **asked)
    assert load_npz(tmp_path / "g.npz").fingerprint == graph.fingerprint
    typed = generate_graph(3000, 12, relations=3, **asked)
    np.testing.assert_array_equal(typed.edge_types, graph.edge_types)
    assert typed.edge_features is None
    assert generate_graph(3000, 12, relations=3, edge_dim=2, **asked | {"seed": 6}).fingerprint != graph.fingerprint


def test_edge_data_of_a_graph_without_edges(tmp_path: Path) -> None:
    asked = {"features": 2, "communities": 1, "classes": 1, "homophily": 1.0, "community_mixing": 0.0}
    graph = validate(generate_graph(6, 0, relations=2, edge_dim=3, **asked))
    assert (graph.nnz, graph.edge_dim, len(graph.relations)) == (0, 3, 4)
    write_generated(tmp_path / "g.npz", 6, 0, relations=2, edge_dim=3, **asked)
    assert load_npz(tmp_path / "g.npz").edge_dim == 3
