"""Writes a locality order of a graph: `python -m benchmarks.peers.order GRAPH.npz ORDER.npy`.

METIS cuts the graph into many small clusters by recursive bisection, whose numbering keeps siblings of the bisection
next to each other; nodes are then stored cluster after cluster.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pymetis
from benchmarks.peers.graph import PlainGraph, load_graph


def metis_order(graph: PlainGraph, clusters: int) -> npt.NDArray[np.int64]:
    """Entry i is the id of the node that row i shall hold: int64 [nodes]."""
    adjacency = pymetis.CSRAdjacency(graph.indptr, graph.indices)
    _, cluster = pymetis.part_graph(clusters, adjacency=adjacency, recursive=True, options=pymetis.Options(seed=0))
    return np.argsort(np.asarray(cluster), kind="stable").astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cluster-size", type=int, default=1024, help="nodes a cluster, on average")
    options = parser.parse_args()
    graph = load_graph(options.graph)
    np.save(options.out, metis_order(graph, max(2, graph.nodes // options.cluster_size)))


if __name__ == "__main__":
    main()
