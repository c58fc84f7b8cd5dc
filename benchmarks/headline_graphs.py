"""Stand-ins for the graphs of published claims: their statistics, and partitions of made graphs grown to their size.

The graphs themselves are gigabytes. What a forecast needs of one are its partition's statistics; here they come from a made
graph of the same mean degree (halocast.runtime.graph.generator), smaller by a factor and partitioned by METIS into as many
parts; then every count is multiplied by the factor. With degree, communities and parts held, the share of rows that have
remote neighbours does not depend on the size. What the published graph's communities are like is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from halocast.runtime.graph.generator import generate_graph
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.traces.workload import PartStatistics

MIXING = 0.25
"""Share of edges that leave their community: the generator's default, assumed."""
LEAST_COMMUNITY = 3.0
"""Nodes of a community over a node's degree: fewer, and its edges hardly fit."""


@dataclass(frozen=True)
class PublishedGraph:
    """A data set as its publisher counts it; `entries` are those of the adjacency, both directions."""

    name: str
    nodes: int
    entries: int
    features: int
    classes: int
    source: str

    @property
    def degree(self) -> float:
        return self.entries / self.nodes


REDDIT = PublishedGraph("reddit", 232_965, 114_615_892, 602, 41, "data set page, torch_geometric.datasets.Reddit")
YELP = PublishedGraph("yelp", 716_847, 13_954_819, 300, 100, "data set page, torch_geometric.datasets.Yelp")
PRODUCTS = PublishedGraph("ogbn-products", 2_449_029, 2 * 61_859_140, 100, 47, "Open Graph Benchmark, node property prediction")
AMAZON = PublishedGraph(
    "amazonProducts", 1_569_960, 264_339_468, 200, 107, "data set page, torch_geometric.datasets.AmazonProducts"
)
PAPERS = PublishedGraph(
    "ogbn-papers100M", 111_059_956, 2 * 1_615_685_872, 128, 172, "Open Graph Benchmark; 3.2 B as SAR counts it"
)


@cache
def stand_in(
    graph: PublishedGraph, parts: int, nodes: int, communities: int, mixing: float = MIXING
) -> tuple[PartStatistics, ...]:
    """Statistics of `parts` parts of the published graph, grown from a made one of about `nodes` nodes."""
    nodes = min(graph.nodes, max(nodes, int(LEAST_COMMUNITY * graph.degree * communities)))
    made = generate_graph(
        nodes, graph.degree, communities=communities, community_mixing=mixing, classes=communities, features=1
    )  # fmt: skip
    assignment = partition_graph(made, parts)
    factor = graph.nodes / nodes
    return tuple(grown(part, factor, graph.features) for part in partition_statistics(made, assignment))


def grown(part: PartStatistics, factor: float, features: int) -> PartStatistics:
    """Every count times `factor`; the ends of a pair round alike, so what one sends the other still expects."""

    def times(count: int) -> int:
        return round(count * factor)

    def each(counts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(times(count) for count in counts)

    return replace(
        part,
        central=times(part.central),
        marginal=times(part.marginal),
        nnz_central=times(part.nnz_central),
        nnz_marginal=times(part.nnz_marginal),
        nnz_halo_from=each(part.nnz_halo_from),
        halo_from=each(part.halo_from),
        boundary_to=each(part.boundary_to),
        labelled=times(part.labelled),
        labelled_halo_from=each(part.labelled_halo_from),
        labelled_boundary_to=each(part.labelled_boundary_to),
        feature_dim=features,
        features_sparse=False,
        feature_nnz=(0, 0, 0),
    )
