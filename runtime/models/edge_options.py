"""What layers want of edges, and what a graph's edges have; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halocast.errors import MisuseError, nearest


@dataclass(frozen=True, slots=True)
class EdgeShape:
    """What the edges of a graph carry.

    Where a function takes ``EdgeShape | None``, None stands for a graph that is not known yet: it has what is wanted.
    """

    dim: int = 0
    """Features an edge; 0 where edges have none."""
    relations: tuple[str, ...] = ()
    """Names by type; empty where edges have no types."""

    @classmethod
    def of(cls, graph: Mapping[str, Any]) -> EdgeShape:
        """From `ShardSet.graph`."""
        return cls(int(graph["edge_dim"]), tuple(graph["relations"]))


NO_EDGE_DATA = EdgeShape()


def attention_edge_dim(name: str, edge_features: Any, edges: EdgeShape | None) -> int:
    """Features of an edge that attention reads; 0 where it is not to. Raises MisuseError where it cannot."""
    if not isinstance(edge_features, bool):
        raise MisuseError(f"model.options.edge_features = {edge_features!r}; allowed: true, false")
    if not edge_features:
        return 0
    if name != "gat":
        raise MisuseError(f"model.options.edge_features: layer '{name}' has no edge part; use --model gat, or leave it out")
    if edges is None:
        return 1
    if not edges.dim:
        raise MisuseError(
            "model.options.edge_features = true, but the graph's edges have no features; leave it out, "
            "or give the graph edge_features"
        )
    return edges.dim


def chosen_relations(chosen: Any, edges: EdgeShape | None) -> tuple[int, ...]:
    """Types of the relations that R-GCN tells apart: the `chosen` names', by default all.

    Raises MisuseError for an untyped graph, and names that it does not have.
    """
    if chosen is not None and not (isinstance(chosen, list | tuple) and all(isinstance(each, str) for each in chosen)):
        raise MisuseError(f"model.options.relations = {chosen!r} is not a list of names")
    if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
        raise MisuseError(f"model.options.relations = {list(chosen)!r}; give one name or more, each once, or leave it out")
    if edges is None:
        return tuple(range(len(chosen or ("any",))))
    if not edges.relations:
        raise MisuseError("layer 'rgcn' needs relations, and the graph's edges have no types; use gcn, or give it edge_types")
    if chosen is None:
        return tuple(range(len(edges.relations)))
    for name in chosen:
        if name not in edges.relations:
            raise MisuseError(f"model.options.relations: the graph has no relation '{name}'{nearest(name, edges.relations)}")
    return tuple(edges.relations.index(name) for name in chosen)


def chosen_bases(bases: Any) -> int | None:
    """How many matrices R-GCN's are made of; None: each relation has its own."""
    if bases is not None and (isinstance(bases, bool) or not isinstance(bases, int) or bases < 1):
        raise MisuseError(f"model.options.bases = {bases!r} is out of range; allowed: 1 or more")
    return bases
