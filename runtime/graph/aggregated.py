"""How many values ÂX stores, counted from the graph alone: what a program must know of features aggregated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.shard import ShardSet
from halocast.traces.workload import PartStatistics

DENSE_FROM = 0.05
"""Share of stored values from which aggregated rows are kept dense: a dense product is about 20 times faster a value."""


@dataclass(frozen=True, eq=False)
class StoredValues:
    """How many values of each node's row of ÂX are stored, where it stays sparse."""

    of_node: npt.NDArray[np.int64]
    """[nodes]"""

    def fill(self, part: PartStatistics, nodes: npt.NDArray[np.int64]) -> PartStatistics:
        """The statistics of a part whose rows are those of `nodes` [own + halo]."""
        rows = self.of_node[nodes]
        counts = (int(rows[: part.central].sum()), int(rows[part.central : part.own].sum()), int(rows[part.own :].sum()))
        return replace(part, aggregated_sparse=True, aggregated_nnz=counts)


def count_stored(graph: Graph, *, self_loop: bool) -> StoredValues | None:
    """Of the graph's aggregated features; None where they are kept dense."""
    if isinstance(graph.features, np.ndarray):
        return None
    features = sp.csr_matrix(
        (np.ones(graph.features.nnz, dtype=np.float32), graph.features.indices, graph.features.indptr), graph.features.shape
    )
    ones = np.ones(len(graph.indices), dtype=np.float32)
    adjacency = sp.csr_matrix((ones, graph.indices, graph.indptr), shape=(graph.nodes, graph.nodes))
    if self_loop:
        adjacency = adjacency + sp.identity(graph.nodes, dtype=np.float32, format="csr")
    sample = np.unique(np.linspace(0, graph.nodes - 1, min(graph.nodes, 2048)).astype(np.int64))
    if (adjacency[sample] @ features).nnz / (len(sample) * features.shape[1]) >= DENSE_FROM:
        return None
    return StoredValues(np.diff((adjacency @ features).indptr).astype(np.int64))


def with_aggregated_features(
    graph: Graph, shards: ShardSet, parts: Sequence[PartStatistics], *, self_loop: bool
) -> list[PartStatistics]:
    """The statistics with the stored values of ÂX by part, where it stays sparse; as they are otherwise."""
    stored = count_stored(graph, self_loop=self_loop)
    if stored is None:
        return list(parts)
    return [stored.fill(part, np.asarray(shards.open(number).global_ids)) for number, part in enumerate(parts)]
