"""Edge data: the features and relations of a graph's entries, made from what a list says of its pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from halocast.errors import GraphError
from halocast.runtime.graph.adjacency import IntArray, check_symmetric, is_symmetric

if TYPE_CHECKING:
    from halocast.runtime.graph.graph import Graph

INVERSE = "inverse of "

FeatureRows = npt.NDArray[np.float32]
Types = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EntryData:
    """Edge data in the order of a graph's `indices`: entry (row i, column j) is the message from j to i."""

    features: FeatureRows | None = None
    """[nnz, E]"""
    types: Types | None = None
    """[nnz]"""
    relations: tuple[str, ...] = ()
    """Names by type; empty where `types` is None."""


def entry_data(
    first: IntArray,
    second: IntArray,
    nodes: int,
    source: str,
    *,
    features: npt.ArrayLike | None = None,
    types: npt.ArrayLike | None = None,
    relations: Sequence[str] | None = None,
    both_ways: bool = False,
) -> EntryData:
    """What a list of edges first -> second says of the entries of its symmetric structure; self loops are dropped.

    Args:
        first: [pairs] ids in 0..nodes-1; `second` likewise.
        features: [pairs, E] or [pairs]; an edge's go to both of its entries.
        types: [pairs] in 0..R-1: the entry (second, first) gets type t, the reverse entry R + t, the inverse relation.
        relations: R names, by default "relation 0" and so on.
        both_ways: the list has both directions of every edge, each with its own features and type: nothing is added.

    Raises:
        GraphError: arrays that do not fit, an unknown type, or two edges that say different things of one entry.
    """
    if types is None and relations:
        raise GraphError(f"{source}: {len(relations)} relations are named, but no edge has a type; pass edge_types too")
    if types is None and features is None:
        return EntryData()
    if both_ways:
        check_symmetric(first, second, nodes, source, "to have the reverse entries made leave both_ways out")
    rows = None if features is None else as_edge_features(features, first.size, source)
    kinds, names = _kinds(types, relations, first.size, source)
    if not both_ways:
        names += tuple(INVERSE + name for name in names)
    _check_names(names, source)

    keys, listed, reverse = _entries(first, second, nodes, both_ways=both_ways)
    if kinds is not None:
        kinds = kinds[listed] + np.where(reverse, len(names) // 2, 0).astype(np.int32)
    _check_agreement(keys, listed, rows, kinds, names, nodes, source)
    new = np.concatenate([np.ones(min(keys.size, 1), dtype=np.bool_), keys[1:] != keys[:-1]])
    return EntryData(None if rows is None else rows[listed[new]], None if kinds is None else kinds[new], names)


def _entries(first: IntArray, second: IntArray, nodes: int, *, both_ways: bool) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Entries that a list gives, with repeats: ascending keys row * nodes + column, the pair each is of, whether reversed."""
    proper = np.flatnonzero(first != second)
    come_from, to = first[proper].astype(np.int64), second[proper].astype(np.int64)
    keys, listed, reverse = to * nodes + come_from, proper, np.zeros(proper.size, dtype=np.bool_)
    if not both_ways:
        keys, listed = np.concatenate([keys, come_from * nodes + to]), np.concatenate([proper, proper])
        reverse = np.concatenate([reverse, ~reverse])
    order = np.argsort(keys, kind="stable")
    return keys[order], listed[order], reverse[order]


def relation_names(count: int) -> tuple[str, ...]:
    """What relations are called that come without names."""
    return tuple(f"relation {number}" for number in range(count))


def list_arguments(
    edge_index: IntArray, nodes: int, features: Any | None, types: Any | None, relations: Sequence[str] | None = None
) -> dict[str, Any]:
    """Keywords of `Graph.from_edges` for a list from outside [2, pairs] with edge data; empty where there is none.

    A list with both directions of every edge says everything itself; any other one gets inverse relations.
    """
    if features is None and types is None and not relations:
        return {}
    return {
        "edge_features": features,
        "edge_types": types,
        "relations": relations,
        "both_ways": is_symmetric(edge_index[0], edge_index[1], nodes),
    }


def as_edge_features(features: npt.ArrayLike, pairs: int, source: str) -> FeatureRows:
    """Edge features as float32 [pairs, E]; a single column may come as [pairs]."""
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise GraphError(f"{source}: edge features are {array.dtype}, needed are numbers")
    rows = array[:, None] if array.ndim == 1 else array
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise GraphError(f"{source}: edge features have shape {list(array.shape)}, needed is [edges, at least 1]")
    if rows.shape[0] != pairs:
        raise GraphError(f"{source}: edge features have {rows.shape[0]} rows for {pairs} edges")
    return np.ascontiguousarray(rows, dtype=np.float32)


def _kinds(
    types: npt.ArrayLike | None, relations: Sequence[str] | None, pairs: int, source: str
) -> tuple[Types | None, tuple[str, ...]]:
    """Types [pairs] and the names of the relations that the list itself has."""
    if types is None:
        return None, ()
    array = np.asarray(types)
    if array.dtype.kind not in "iu":
        raise GraphError(f"{source}: edge types are {array.dtype}, needed are integers")
    if array.shape != (pairs,):
        raise GraphError(f"{source}: edge types have shape {list(array.shape)}, needed is [{pairs}], one an edge")
    count = int(array.max(initial=0)) + 1 if relations is None else len(relations)
    names = tuple(relations) if relations is not None else relation_names(count)
    wrong = (array < 0) | (array >= count)
    if wrong.any():
        at = int(wrong.argmax())
        raise GraphError(f"{source}: edge type {int(array[at])} of edge {at} is unknown; {_allowed(count)}")
    return array.astype(np.int32), names


def _allowed(count: int) -> str:
    return f"relations are 0 to {count - 1}" if count else "no relation is named"


def _check_names(names: Sequence[str], source: str) -> None:
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise GraphError(f"{source}: two relations are named '{repeated}'; rename one of them")


def _check_agreement(
    keys: Ints,
    listed: Ints,
    rows: FeatureRows | None,
    kinds: Types | None,
    names: Sequence[str],
    nodes: int,
    source: str,
) -> None:
    """Refuse two edges that fall on one entry and differ; all arrays in the order of the ascending `keys`."""
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    if kinds is not None:
        unlike = again[kinds[again] != kinds[again - 1]]
        if unlike.size:
            at = int(unlike[np.argmin(np.maximum(kinds[unlike], kinds[unlike - 1]))])  # relations as listed before inverses
            raise GraphError(
                f"{source}: {_twice(keys, listed, at, nodes)} as '{names[kinds[at - 1]]}' and as '{names[kinds[at]]}', "
                "and a pair of nodes has one relation each way; keep one of them, or make a relation of the two together"
            )
    if rows is not None:
        one, other = rows[listed[again]], rows[listed[again - 1]]
        unlike = again[((one != other) & ~(np.isnan(one) & np.isnan(other))).any(axis=1)]
        if unlike.size:
            raise GraphError(
                f"{source}: {_twice(keys, listed, int(unlike[0]), nodes)} with different features; "
                "merge them into one, or list both directions of every edge (both_ways=True)"
            )


def _twice(keys: Ints, listed: Ints, at: int, nodes: int) -> str:
    to, come_from = divmod(int(keys[at]), nodes)
    return f"edges {int(listed[at - 1])} and {int(listed[at])} both give the message {come_from} -> {to}"


def check_edge_data(graph: Graph, where: str) -> None:
    """Refuse edge data that does not fit its graph; GraphError names the first entry that is wrong."""
    if graph.edge_types is None and graph.relations:
        raise GraphError(f"{where}: {len(graph.relations)} relations are named, but edge_types is None")
    if graph.edge_types is not None:
        _check_types(graph, graph.edge_types, where)
    if graph.edge_features is not None:
        _check_features(graph, graph.edge_features, where)


def _check_types(graph: Graph, types: Types, where: str) -> None:
    if types.dtype != np.int32 or types.shape != (graph.nnz,):
        raise GraphError(f"{where}: edge_types are {types.dtype} {list(types.shape)}, needed is int32 [{graph.nnz}]")
    _check_names(graph.relations, where)
    wrong = (types < 0) | (types >= len(graph.relations))
    if wrong.any():
        at = int(wrong.argmax())
        raise GraphError(
            f"{where}: edge type {int(types[at])} of entry {_entry(graph, at)} is unknown; {_allowed(len(graph.relations))}"
        )


def _check_features(graph: Graph, features: FeatureRows, where: str) -> None:
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] < 1 or features.shape[0] != graph.nnz:
        raise GraphError(
            f"{where}: edge_features are {features.dtype} {list(features.shape)}, needed is float32 [{graph.nnz}, at least 1]"
        )
    wrong = ~np.isfinite(features)
    if wrong.any():
        at, column = np.argwhere(wrong)[0]
        raise GraphError(
            f"{where}: edge feature {int(column)} of entry {_entry(graph, int(at))} is {features[at, column]} "
            f"({int(wrong.sum())} values are not finite); replace or drop them"
        )


def _entry(graph: Graph, at: int) -> str:
    """An entry by number and by the message it is."""
    row = int(np.searchsorted(graph.indptr, at, side="right")) - 1
    return f"{at} ({int(graph.indices[at])} -> {row})"
