"""The graph that is trained on: symmetric structure, features, labels and masks, and what makes one unusable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse

from halocast.errors import GraphError, nearest
from halocast.runtime.graph.adjacency import IntArray, check_range, index_dtype, symmetric_structure
from halocast.runtime.graph.edges import FeatureRows, Types, check_edge_data, entry_data

Metric = Literal["accuracy", "micro_f1", "roc_auc"]
METRICS: tuple[Metric, ...] = ("accuracy", "micro_f1", "roc_auc")
UNBALANCED_MINORITY = 0.25  # two classes, the rarer below this share: accuracy would flatter a constant answer

Features = npt.NDArray[np.float32] | sparse.csr_matrix
Labels = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Graph:
    """A static undirected graph with node features, labels and a split. Arrays are shared, not copied: do not write.

    Attributes:
        name: what it is called in tables and messages.
        indptr: int64 [N+1], row starts of the symmetric CSR structure.
        indices: int32 [nnz] (int64 from 2³¹ nodes on): neighbours, ascending in each row, both directions, no self
            loops, no repeats.
        features: float32 [N, F], C-contiguous, or a CSR matrix of float32.
        labels: int64 [N] with -1 for none, or uint8 [N, C] of zeros and ones where `multilabel`.
        train_mask: bool [N]; `val_mask` and `test_mask` likewise, disjoint.
        classes: C.
        multilabel: whether a node may have several classes.
        metric: what quality is reported as.
        meta: facts about its origin, JSON-able.
        edge_features: float32 [nnz, E] in the order of `indices` (entry (row i, column j) is the message from j to i), or None.
        edge_types: int32 [nnz] in the same order, each a relation of the message, or None.
        relations: names by type, empty where `edge_types` is None.
    """

    name: str
    indptr: npt.NDArray[np.int64]
    indices: IntArray
    features: Features
    labels: Labels
    train_mask: Mask
    val_mask: Mask
    test_mask: Mask
    classes: int
    multilabel: bool
    metric: Metric
    meta: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    edge_features: FeatureRows | None = None
    edge_types: Types | None = None
    relations: tuple[str, ...] = ()

    @classmethod
    def from_edges(
        cls,
        first: IntArray,
        second: IntArray,
        *,
        name: str,
        features: npt.ArrayLike | sparse.sparray | sparse.spmatrix,
        labels: npt.ArrayLike,
        train_mask: npt.ArrayLike,
        val_mask: npt.ArrayLike,
        test_mask: npt.ArrayLike,
        classes: int | None = None,
        metric: str | None = None,
        meta: Mapping[str, object] | None = None,
        source: str | None = None,
        edge_features: npt.ArrayLike | None = None,
        edge_types: npt.ArrayLike | None = None,
        relations: Sequence[str] | None = None,
        both_ways: bool = False,
    ) -> Graph:
        """Build a graph from pairs of node ids, each taken as undirected; N is the number of feature rows.

        Args:
            first: [pairs] ids in 0..N-1; `second` likewise. Repeats, reverses and self loops are merged or dropped.
            features: [N, F], dense or any scipy sparse matrix; becomes float32.
            labels: [N] class ids with -1 for none, or [N, C] zeros and ones.
            classes: C, by default the largest label + 1 (or the columns).
            metric: one of `METRICS`, by default what `meta` says or `default_metric`.
            source: what the message of an error starts with, by default the name.
            edge_features: [pairs, E] or [pairs]; a pair's go to both of its entries.
            edge_types: [pairs] relations of first -> second, 0..R-1; second -> first gets the inverse relation, R more.
            relations: names of the R relations; the graph has those and their inverses ("inverse of NAME").
            both_ways: the list has both directions of every edge, each with edge data of its own: none is made.

        Raises:
            GraphError: an id out of range, a fractional label, an unknown metric, edge data that does not fit the pairs
                or says two things of one entry. Everything else is `validate`'s.
        """
        facts, where = dict(meta or {}), source or name
        rows = as_features(features)
        truth = as_labels(labels, where)
        count = int(classes) if classes is not None else count_classes(truth)
        first, second, nodes = np.asarray(first), np.asarray(second), cast(int, rows.shape[0])
        check_range(first, second, nodes, where)
        indptr, indices = symmetric_structure(first, second, nodes)
        data = entry_data(
            *(first, second, nodes, where),
            features=edge_features,
            types=edge_types,
            relations=relations,
            both_ways=both_ways,
        )
        return cls(
            name=name,
            indptr=indptr,
            indices=indices,
            features=rows,
            labels=truth,
            train_mask=np.asarray(train_mask, dtype=np.bool_),
            val_mask=np.asarray(val_mask, dtype=np.bool_),
            test_mask=np.asarray(test_mask, dtype=np.bool_),
            classes=count,
            multilabel=truth.ndim == 2,
            metric=choose_metric(metric or cast("str | None", facts.get("metric")), truth, where),
            meta=MappingProxyType(facts),
            edge_features=data.features,
            edge_types=data.types,
            relations=data.relations,
        )

    @property
    def nodes(self) -> int:
        """N."""
        return self.indptr.size - 1

    @property
    def nnz(self) -> int:
        """Stored entries of the structure: each undirected edge counts twice."""
        return self.indices.size

    @property
    def edges(self) -> int:
        """Undirected edges."""
        return self.indices.size // 2

    @property
    def feature_dim(self) -> int:
        """F."""
        return cast(int, self.features.shape[1])

    @property
    def edge_dim(self) -> int:
        """E; 0 without edge features."""
        return 0 if self.edge_features is None else int(self.edge_features.shape[1])

    @property
    def degrees(self) -> npt.NDArray[np.int64]:
        """Neighbours of each node, int64 [N]."""
        return np.diff(self.indptr)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the structure, features, labels, masks or edge data, and with nothing else."""
        digest = hashlib.blake2b(digest_size=8)
        for array in self._contents():
            digest.update(f"{array.dtype.str}{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
        return digest.hexdigest()

    def _contents(self) -> list[npt.NDArray[Any]]:
        rows = self.features
        features: list[npt.NDArray[Any]] = [rows] if isinstance(rows, np.ndarray) else []
        if isinstance(rows, sparse.csr_matrix):  # scipy picks the index type by size and version: hash one type
            features = [np.array(rows.shape), rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data]
        edges: list[npt.NDArray[Any]] = [] if self.edge_features is None else [self.edge_features]
        if self.edge_types is not None:
            names = np.frombuffer(json.dumps(self.relations).encode(), dtype=np.uint8)
            edges += [self.edge_types, names]
        return [self.indptr, self.indices, *features, self.labels, self.train_mask, self.val_mask, self.test_mask, *edges]


def as_features(features: npt.ArrayLike | sparse.sparray | sparse.spmatrix) -> Features:
    """Features as `Graph` holds them: C-contiguous float32, or CSR float32 with ascending columns."""
    if isinstance(features, (sparse.sparray, sparse.spmatrix)):
        rows: sparse.csr_matrix = sparse.csr_matrix(cast(Any, features), dtype=np.float32)
        if not rows.has_canonical_format:
            rows = rows.copy()  # it may share the caller's arrays
            rows.sum_duplicates()
        return rows
    return np.ascontiguousarray(features, dtype=np.float32)


def as_labels(labels: npt.ArrayLike, source: str = "labels") -> Labels:
    """Labels as `Graph` holds them: [N] int64 (NaN means none), or [N, C] uint8 (255 where neither 0 nor 1).

    Raises:
        GraphError: a fractional class id.
    """
    array = np.asarray(labels)
    if array.ndim < 2:
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), -1, array)
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise GraphError(f"{source}: the label of node {int(np.argmax(whole != array))} is not a whole number")
        return whole
    return np.where((array == 0) | (array == 1), array, 255).astype(np.uint8)


def count_classes(labels: Labels) -> int:
    """Columns of multi-label truth, or the largest class id + 1."""
    if labels.ndim == 2:
        return int(labels.shape[1])
    return int(labels.max(initial=-1)) + 1


def choose_metric(asked: str | None, labels: Labels, source: str) -> Metric:
    """The metric asked for, or the one that suits the labels; GraphError on an unknown name."""
    if asked is None:
        return default_metric(labels)
    for metric in METRICS:
        if asked == metric:
            return metric
    raise GraphError(f"{source}: metric '{asked}' is unknown{nearest(asked, METRICS)}")


def default_metric(labels: Labels) -> Metric:
    """Micro-F1 for multi-label truth, ROC AUC for two unbalanced classes, accuracy otherwise."""
    if labels.ndim == 2:
        return "micro_f1"
    counts = np.bincount(labels[labels >= 0])
    if counts.size == 2 and counts.min() < UNBALANCED_MINORITY * counts.sum():
        return "roc_auc"
    return "accuracy"


def random_split(labels: Labels, seed: int = 0) -> tuple[Mask, Mask, Mask]:
    """A 60/20/20 split of the labelled nodes, for graphs that come without one: three bool [N] masks."""
    labelled = np.flatnonzero(labels >= 0) if labels.ndim == 1 else np.arange(labels.shape[0])
    shuffled = np.random.default_rng(seed).permutation(labelled)
    train, held_out = round(0.6 * labelled.size), round(0.2 * labelled.size)
    masks = np.zeros((3, labels.shape[0]), dtype=np.bool_)
    for mask, chosen in zip(masks, np.split(shuffled, [train, train + held_out]), strict=True):
        mask[chosen] = True
    return masks[0], masks[1], masks[2]


def validate(graph: Graph, source: str | None = None) -> Graph:
    """Return the graph if it can be trained on.

    Raises:
        GraphError: one line naming `source` (by default the graph) and the first thing that is wrong.
    """
    where = source or graph.name
    if graph.nodes < 1:
        raise GraphError(f"{where}: the graph is empty: it has no nodes")
    _check_lengths(graph, where)
    _check_structure(graph, where)
    _check_features(graph, where)
    _check_labels(graph, where)
    _check_masks(graph, where)
    check_edge_data(graph, where)
    if graph.metric == "roc_auc" and not graph.multilabel and graph.classes != 2:
        raise GraphError(f"{where}: metric 'roc_auc' of single labels needs 2 classes, not {graph.classes}; use accuracy")
    return graph


def _check_lengths(graph: Graph, where: str) -> None:
    if graph.features.ndim != 2 or graph.feature_dim < 1:
        raise GraphError(f"{where}: features have shape {list(graph.features.shape)}, needed is [nodes, at least 1]")
    arrays = {"features": graph.features, "labels": graph.labels} | _masks(graph)
    for name, array in arrays.items():
        if array.shape[0] != graph.nodes:
            raise GraphError(f"{where}: {name} has {array.shape[0]} rows for {graph.nodes} nodes")
    if graph.multilabel != (graph.labels.ndim == 2):
        raise GraphError(f"{where}: multilabel is {graph.multilabel}, but labels have {graph.labels.ndim} dimension(s)")


def _check_structure(graph: Graph, where: str) -> None:
    starts = graph.indptr
    if starts[0] != 0 or starts[-1] != graph.nnz or (np.diff(starts) < 0).any():
        raise GraphError(f"{where}: indptr must rise from 0 to the {graph.nnz} entries of indices")
    if graph.indices.dtype != index_dtype(graph.nodes):
        raise GraphError(f"{where}: indices are {graph.indices.dtype}, needed is {np.dtype(index_dtype(graph.nodes))}")
    rows = np.repeat(np.arange(graph.nodes, dtype=graph.indices.dtype), graph.degrees)
    if graph.nnz and (graph.indices.min() < 0 or graph.indices.max() >= graph.nodes):
        at = int(((graph.indices < 0) | (graph.indices >= graph.nodes)).argmax())
        raise GraphError(
            f"{where}: node {int(rows[at])} has neighbour {int(graph.indices[at])}, "
            f"but node ids run from 0 to {graph.nodes - 1}"
        )
    loops = graph.indices == rows
    if loops.any():
        raise GraphError(f"{where}: node {int(rows[loops.argmax()])} has an edge to itself; drop self loops")
    unordered = (np.diff(graph.indices) <= 0) & (rows[1:] == rows[:-1])
    if unordered.any():
        raise GraphError(f"{where}: neighbours of node {int(rows[unordered.argmax()])} are not ascending and unique")
    _check_symmetry(graph, rows, where)


def _check_symmetry(graph: Graph, rows: IntArray, where: str) -> None:
    shape = (graph.nodes, graph.nodes)
    entries = np.ones(graph.nnz, dtype=np.bool_)
    transposed = sparse.csr_array((entries, graph.indices, graph.indptr), shape=shape).tocsc()
    same_counts = np.array_equal(transposed.indptr, graph.indptr)
    if same_counts and np.array_equal(transposed.indices, graph.indices):
        return
    forward = rows.astype(np.int64) * graph.nodes + graph.indices
    backward = graph.indices.astype(np.int64) * graph.nodes + rows
    at = int(np.isin(backward, forward, invert=True).argmax())
    u, v = int(rows[at]), int(graph.indices[at])
    raise GraphError(
        f"{where}: edges are not symmetric: {u} -> {v} has no {v} -> {u}; "
        "to take every edge as undirected load with symmetrise=True (--symmetrise)"
    )


def _check_features(graph: Graph, where: str) -> None:
    features = graph.features
    if features.dtype != np.float32:
        raise GraphError(f"{where}: features are {features.dtype}, needed is float32")
    values = features if isinstance(features, np.ndarray) else features.data
    if np.isfinite(values).all():
        return
    if isinstance(features, np.ndarray):
        node, column = np.argwhere(~np.isfinite(features))[0]
    else:
        at = int((~np.isfinite(values)).argmax())
        node, column = np.searchsorted(features.indptr, at, side="right") - 1, features.indices[at]
    raise GraphError(
        f"{where}: feature {int(column)} of node {int(node)} is {features[int(node), int(column)]} "
        f"({int((~np.isfinite(values)).sum())} values are not finite); replace or drop them"
    )


def _check_labels(graph: Graph, where: str) -> None:
    if graph.multilabel:
        if graph.labels.shape[1] != graph.classes:
            raise GraphError(f"{where}: labels have {graph.labels.shape[1]} columns for {graph.classes} classes")
        wrong = graph.labels.max(axis=1, initial=0) > 1
        allowed = "0 and 1"
    else:
        wrong = (graph.labels < -1) | (graph.labels >= graph.classes)
        allowed = f"-1 (none) to {graph.classes - 1}"
    if wrong.any():
        node = int(wrong.argmax())
        value = "not binary" if graph.multilabel else int(graph.labels[node])
        raise GraphError(f"{where}: the label of node {node} is {value}; allowed: {allowed}")


def _check_masks(graph: Graph, where: str) -> None:
    masks = _masks(graph)
    for name, mask in masks.items():
        if mask.ndim != 1:
            raise GraphError(f"{where}: {name} has shape {list(mask.shape)}, needed is [nodes]; choose one split")
        unlabelled = mask & (graph.labels < 0) if not graph.multilabel else np.zeros_like(mask)
        if unlabelled.any():
            raise GraphError(f"{where}: node {int(unlabelled.argmax())} is in {name} but has no label")
    overlap = sum(mask.astype(np.int8) for mask in masks.values()) > 1
    if np.any(overlap):
        node = int(np.argmax(overlap))
        both = " and ".join(name for name, mask in masks.items() if mask[node])
        raise GraphError(f"{where}: node {node} is in both {both} ({int(np.sum(overlap))} such nodes)")
    if not graph.train_mask.any():
        raise GraphError(f"{where}: no training nodes: train_mask is false everywhere")


def _masks(graph: Graph) -> dict[str, Mask]:
    return {"train_mask": graph.train_mask, "val_mask": graph.val_mask, "test_mask": graph.test_mask}
