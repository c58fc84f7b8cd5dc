"""Small graphs with the corners that distributed training must get right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from halocast.runtime.graph.graph import Graph

FEATURES = 11
CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A graph, its edges [2, E], and an assignment of its nodes to parts."""

    graph: Graph
    edges: npt.NDArray[np.int64]
    assignment: npt.NDArray[np.int32]


def random_case(
    parts: int, *, nodes: int = 90, degree: float = 5.0, seed: int = 0, sparse: bool = False, multilabel: bool = False
) -> Case:
    """A random graph with isolated nodes and a hub, cut at random."""
    random = np.random.default_rng(seed)
    pairs = random.integers(0, nodes - 6, size=(2, int(nodes * degree / 2)))  # the last six nodes stay isolated
    hub = np.stack([np.zeros(nodes // 2, dtype=np.int64), np.arange(1, nodes // 2 + 1)])
    edges = unique_edges(np.concatenate([pairs, hub], axis=1))
    assignment = random.integers(0, parts, nodes).astype(np.int32)
    assignment[:parts] = np.arange(parts)
    return Case(make_graph(nodes, edges, seed, sparse=sparse, multilabel=multilabel), edges, assignment)


def chain_case(parts: int, *, seed: int = 3) -> Case:
    """Parts in a row, each touching only its neighbours; the last one touches nobody (no marginal rows).

    Part 1 has no training node, and there is no message between parts two apart.
    """
    random = np.random.default_rng(seed)
    size = 14
    inside = [random.integers(0, size, size=(2, 30)) + size * part for part in range(parts)]
    between = [
        np.stack([random.integers(0, size, 8) + size * part, random.integers(0, size, 8) + size * (part + 1)])
        for part in range(parts - 2)
    ]
    edges = unique_edges(np.concatenate([*inside, *between], axis=1))
    nodes = size * parts
    graph = make_graph(nodes, edges, seed, untrained=np.arange(size, 2 * size))
    return Case(graph, edges, (np.arange(nodes) // size).astype(np.int32))


def with_edge_data(case: Case, *, features: bool = True, types: bool = True) -> Case:
    """The case with random edge data, every entry's of its own."""
    random, nnz = np.random.default_rng(7), case.graph.nnz
    graph = replace(
        case.graph,
        edge_features=random.standard_normal((nnz, 3)).astype(np.float32) if features else None,
        edge_types=random.integers(0, 4, nnz).astype(np.int32) if types else None,
        relations=("a", "b", "inverse of a", "inverse of b") if types else (),
    )
    return replace(case, graph=graph)


def unique_edges(pairs: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    ordered = np.sort(pairs, axis=0)
    return np.unique(ordered[:, ordered[0] != ordered[1]], axis=1).astype(np.int64)


def make_graph(
    nodes: int,
    edges: npt.NDArray[np.int64],
    seed: int,
    *,
    sparse: bool = False,
    multilabel: bool = False,
    untrained: npt.NDArray[np.int64] | None = None,
) -> Graph:
    random = np.random.default_rng(seed + 1)
    features = random.standard_normal((nodes, FEATURES)).astype(np.float32)
    if sparse:
        features[random.random((nodes, FEATURES)) < 0.97] = 0.0
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8] = random.integers(0, CLASSES, nodes)
    if multilabel:
        labels = random.integers(0, 2, (nodes, CLASSES)).astype(np.uint8)
    draw = random.random(nodes)
    train = draw < 0.4
    if untrained is not None:
        train[untrained] = False
    return Graph.from_edges(
        edges[0],
        edges[1],
        name="small",
        features=sp.csr_matrix(features) if sparse else features,
        labels=labels,
        train_mask=train,
        val_mask=(draw >= 0.4) & (draw < 0.6),
        test_mask=draw >= 0.6,
        classes=CLASSES,
        metric="micro_f1" if multilabel else "accuracy",
    )
