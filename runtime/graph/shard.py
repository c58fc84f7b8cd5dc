"""Shards: what one rank needs of a partitioned graph, on disk and memory-mapped.

A shard folder holds one sub-folder a part. A rank opens only its own; the whole graph is never loaded again.

Row space of a part: ``[central | marginal | halo by peer]``. Central and marginal rows keep the locality order of the
partition; the halo rows of one peer put those with a labelled neighbour here first, so that the last layer's backward
exchange, which carries only those, sends a prefix. Row i of `indices` starts with i itself, then own columns, then
halo columns, each ascending: aggregation with or without self loops, and over own columns only (the own rows of Aᵀ,
since A's pattern is symmetric), are all ranges of the same array.

Edge data, where the graph has any, lies in the order of `indices` and is stored nowhere twice: `halo_entry` says where in
it each entry of the halo rows of Aᵀ is found. It belongs to A's entries (row i, column j: the message from j to i) and, unlike
the pattern, need not be symmetric.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from halocast.errors import MisuseError
from halocast.runtime.graph.graph import Graph
from halocast.traces.workload import PartStatistics

SHARD_VERSION = 2
MANIFEST = "manifest.json"

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShardSet:
    """A partition on disk: its folder and what is true of all parts."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def parts(self) -> int:
        return int(self.manifest["parts"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["graph"]["fingerprint"])

    @property
    def graph(self) -> dict[str, Any]:
        """Name, fingerprint, nodes, edges, feature_dim, classes, multilabel, metric, training nodes, edge_dim and relations."""
        return {"edge_dim": 0, "relations": [], **self.manifest["graph"]}  # shards cut before edge data say neither

    def statistics(self, part: int) -> PartStatistics:
        return PartStatistics.from_json(self.manifest["statistics"][part])

    def open(self, part: int) -> Shard:
        """Memory-map one part's arrays."""
        return Shard(self.folder / f"part-{part:05d}", part, self.statistics(part))


@dataclass(frozen=True)
class Shard:
    """One part's arrays, each memory-mapped on use. Local row ids throughout.

    Maps are copy-on-write, so that torch may take them without a copy (it wants writable memory; nothing writes).
    """

    folder: Path
    part: int
    statistics: PartStatistics

    def _array(self, name: str) -> npt.NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            raise MisuseError(f"cannot read shard array {path}: {error}; delete the folder to build it anew") from error

    @property
    def indptr(self) -> Int64Array:
        """[own + 1] offsets into `indices`."""
        return self._array("indptr")

    @property
    def indices(self) -> Int32Array:
        """[own + nnz] columns: the row itself, then own, then halo columns."""
        return self._array("indices")

    @property
    def own_end(self) -> Int64Array:
        """[own] where each row's halo columns begin."""
        return self._array("own_end")

    @property
    def halo_indptr(self) -> Int64Array:
        """[halo + 1] offsets into `halo_indices`: the halo rows of Aᵀ."""
        return self._array("halo_indptr")

    @property
    def halo_indices(self) -> Int32Array:
        """[nnz_halo] own rows beside each halo row, ascending."""
        return self._array("halo_indices")

    @property
    def edge_features(self) -> FloatArray | None:
        """[own + nnz, edge_dim] of the entries of `indices`, zeros where a row begins with itself; None without any."""
        return self._array("edge_features") if self.statistics.edge_dim else None

    @property
    def edge_types(self) -> Int32Array | None:
        """[own + nnz] relations of the entries of `indices`, −1 where a row begins with itself; None if untyped."""
        return self._array("edge_types") if self.statistics.relations else None

    @property
    def halo_entry(self) -> Int64Array | None:
        """[nnz_halo] place in `indices` of each entry of `halo_indices`; None without edge data."""
        return self._array("halo_entry") if self.statistics.edge_dim or self.statistics.relations else None

    @property
    def global_ids(self) -> Int64Array:
        """[own + halo] node ids of the graph as loaded."""
        return self._array("global_ids")

    @property
    def degrees(self) -> Int64Array:
        """[own + halo] degrees in the whole graph, self loops not counted."""
        return self._array("degrees")

    @property
    def boundary(self) -> Int32Array:
        """[boundary] own rows to send, peer after peer, in each receiver's halo order."""
        return self._array("boundary")

    def features(self) -> FloatArray | sp.csr_matrix:
        """[own + halo, feature_dim] raw feature rows."""
        if not self.statistics.features_sparse:
            return self._array("features")
        shape = (len(self._array("features_indptr")) - 1, self.statistics.feature_dim)
        return sp.csr_matrix(
            (self._array("features_data"), self._array("features_indices"), self._array("features_indptr")), shape=shape
        )

    @property
    def labels(self) -> npt.NDArray[Any]:
        """[own] int64 class (−1: none), or uint8 [own, classes]."""
        return self._array("labels")

    def mask(self, split: str) -> npt.NDArray[np.bool_]:
        """[own] rows of "train", "val" or "test"."""
        return self._array(f"{split}_mask")


def open_shards(folder: Path) -> ShardSet:
    """Open a shard folder; raises MisuseError where there is none or it has another layout."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except OSError as error:
        raise MisuseError(f"no shards in {folder}: {error.strerror}; make them with `halocast partition`") from error
    except json.JSONDecodeError as error:
        raise MisuseError(f"{folder / MANIFEST} is not valid JSON ({error}); delete the folder to build it anew") from error
    if manifest.get("version") != SHARD_VERSION:
        raise MisuseError(
            f"{folder} holds shards of layout {manifest.get('version')}; this halocast reads {SHARD_VERSION}: "
            "delete the folder to build it anew"
        )
    return ShardSet(folder, manifest)


def write_shards(
    graph: Graph,
    assignment: Int32Array,
    position: Int64Array,
    folder: Path,
    *,
    partition: dict[str, Any],
    on_part: Callable[[int], None] = lambda part: None,
) -> ShardSet:
    """Cut `graph` into the parts of `assignment` and store them under `folder`, complete or not at all.

    `assignment` [nodes] is each node's part; `position` [nodes] its place in the locality order. `partition` is
    recorded in the manifest (method, objective, seed, ...). Raises OSError where the disk is full.
    """
    parts = int(assignment.max(initial=0)) + 1
    layout = PartitionRows(graph, assignment, position, parts)
    building = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        statistics = []
        for part in range(parts):
            statistics.append(_write_part(graph, layout, part, building / f"part-{part:05d}"))
            on_part(part)
        manifest = {
            "version": SHARD_VERSION,
            "parts": parts,
            "partition": partition,
            "graph": {
                "name": graph.name,
                "fingerprint": graph.fingerprint,
                "nodes": graph.nodes,
                "edges": graph.edges,
                "feature_dim": graph.feature_dim,
                "classes": graph.classes,
                "multilabel": graph.multilabel,
                "metric": graph.metric,
                "train_nodes": int(graph.train_mask.sum()),
                "edge_dim": graph.edge_dim,
                "relations": list(graph.relations),
            },
            "statistics": [part_statistics.to_json() for part_statistics in statistics],
        }
        (building / MANIFEST).write_text(json.dumps(manifest))
        _install(building, folder, manifest)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return ShardSet(folder, manifest)


def _install(building: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Put the finished shards in place; another process may have put the same ones there meanwhile, and be using them."""
    try:
        building.rename(folder)  # replaces an empty folder, fails on any other
    except OSError:
        if (folder / MANIFEST).is_file() and json.loads((folder / MANIFEST).read_text()) == json.loads(json.dumps(manifest)):
            shutil.rmtree(building)
            return
        raise


def partition_statistics(graph: Graph, assignment: Int32Array) -> list[PartStatistics]:
    """The statistics of every part of `assignment`, without writing shards."""
    return partition_rows(graph, assignment, np.arange(graph.nodes, dtype=np.int64)).statistics()


def partition_rows(graph: Graph, assignment: Int32Array, position: Int64Array) -> PartitionRows:
    """Which node is in which row of which part, nodes in the order of `position` [nodes]."""
    return PartitionRows(graph, assignment, position, int(assignment.max(initial=0)) + 1)


class PartitionRows:
    """Which node sits in which row of which part."""

    def __init__(self, graph: Graph, assignment: Int32Array, position: Int64Array, parts: int) -> None:
        self.graph, self.assignment, self.parts = graph, assignment, parts
        degrees = np.diff(graph.indptr)
        source = np.repeat(np.arange(graph.nodes), degrees)
        cut = assignment[source] != assignment[graph.indices]
        self.degrees = degrees
        self.marginal = np.zeros(graph.nodes, dtype=bool)
        self.marginal[source[cut]] = True
        order = np.lexsort((position, self.marginal, assignment))
        self.starts = np.searchsorted(assignment[order], np.arange(parts + 1))
        self.own = [order[self.starts[part] : self.starts[part + 1]] for part in range(parts)]
        self.local = np.empty(graph.nodes, dtype=np.int64)
        self.local[order] = np.arange(graph.nodes) - np.repeat(self.starts[:-1], np.diff(self.starts))
        self._order_halos(source[cut], graph.indices[cut].astype(np.int64), position)

    def _order_halos(self, inner: Int64Array, outer: Int64Array, position: Int64Array) -> None:
        """Per part: halo nodes sorted by (owner, no labelled neighbour here, position)."""
        nodes = self.graph.nodes
        pair = self.assignment[inner].astype(np.int64) * nodes + outer
        pairs, inverse = np.unique(pair, return_inverse=True)
        labelled = np.zeros(len(pairs), dtype=bool)
        labelled[inverse[self.graph.train_mask[inner]]] = True
        part, node = pairs // nodes, pairs % nodes
        order = np.lexsort((position[node], ~labelled, self.assignment[node], part))
        part, node, labelled = part[order], node[order], labelled[order]
        bounds = np.searchsorted(part, np.arange(self.parts + 1))
        slices = [slice(bounds[index], bounds[index + 1]) for index in range(self.parts)]
        self.halo = [node[rows] for rows in slices]
        owners = [self.assignment[halo] for halo in self.halo]
        self.halo_from = [np.bincount(owner, minlength=self.parts) for owner in owners]
        self.labelled_from = [
            np.bincount(owner[labelled[rows]], minlength=self.parts) for owner, rows in zip(owners, slices, strict=True)
        ]

    def statistics(self) -> list[PartStatistics]:
        """Of every part."""
        return [_statistics(self.graph, self, part, self.columns(part)) for part in range(self.parts)]

    def columns(self, part: int) -> tuple[Int64Array, Int64Array]:
        """(row, column) of every entry of the part's rows of A, in local ids; halo columns start at own."""
        own, halo = self.own[part], self.halo[part]
        rows = np.repeat(np.arange(len(own)), self.degrees[own])
        neighbours = self.graph.indices[self.entries(part)].astype(np.int64)
        halo_row = np.empty(self.graph.nodes, dtype=np.int64)
        halo_row[halo] = len(own) + np.arange(len(halo))
        return rows, np.where(self.assignment[neighbours] == part, self.local[neighbours], halo_row[neighbours])

    def entries(self, part: int) -> Int64Array:
        """Place in the graph's `indices` of every entry of the part's rows, row after row."""
        own = self.own[part]
        degrees = self.degrees[own]
        offsets = np.arange(degrees.sum()) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        return np.asarray(np.repeat(self.graph.indptr[own], degrees) + offsets)

    def boundary(self, part: int) -> Int64Array:
        """Own rows each peer needs, peer after peer, in the peer's halo order."""
        needed = [self.halo[peer][self.assignment[self.halo[peer]] == part] for peer in range(self.parts)]
        return np.asarray(self.local[np.concatenate(needed)])


def _statistics(graph: Graph, layout: PartitionRows, part: int, columns: tuple[Int64Array, Int64Array]) -> PartStatistics:
    own, halo = layout.own[part], layout.halo[part]
    marginal = int(layout.marginal[own].sum())
    rows, column = columns
    nnz_marginal = int((rows >= len(own) - marginal).sum())
    sparse = not isinstance(graph.features, np.ndarray)
    stored = np.zeros(0, dtype=np.int64) if isinstance(graph.features, np.ndarray) else np.diff(graph.features.indptr)
    ranges = (own[: len(own) - marginal], own[len(own) - marginal :], halo)
    owners = layout.assignment[halo[column[column >= len(own)] - len(own)]]
    central_values, marginal_values, halo_values = (int(stored[nodes].sum()) if sparse else 0 for nodes in ranges)
    return PartStatistics(
        central=len(own) - marginal,
        marginal=marginal,
        nnz_central=len(rows) - nnz_marginal,
        nnz_marginal=nnz_marginal,
        nnz_halo_from=tuple(int(count) for count in np.bincount(owners, minlength=layout.parts)),
        halo_from=tuple(int(count) for count in layout.halo_from[part]),
        boundary_to=tuple(int(layout.halo_from[peer][part]) for peer in range(layout.parts)),
        labelled=int(graph.train_mask[own].sum()),
        labelled_halo_from=tuple(int(count) for count in layout.labelled_from[part]),
        labelled_boundary_to=tuple(int(layout.labelled_from[peer][part]) for peer in range(layout.parts)),
        feature_dim=graph.feature_dim,
        features_sparse=sparse,
        feature_nnz=(central_values, marginal_values, halo_values),
        edge_dim=graph.edge_dim,
        relations=len(graph.relations),
    )


def _write_part(graph: Graph, layout: PartitionRows, part: int, folder: Path) -> PartStatistics:
    folder.mkdir(parents=True)
    own, halo = layout.own[part], layout.halo[part]
    columns = layout.columns(part)
    _write_structure(layout, part, columns, folder)
    nodes = np.concatenate([own, halo])
    _save(folder, "global_ids", nodes.astype(np.int64))
    _save(folder, "degrees", layout.degrees[nodes].astype(np.int64))
    _save(folder, "boundary", layout.boundary(part).astype(np.int32))
    if sp.issparse(graph.features):
        features = graph.features[nodes]
        _save(folder, "features_indptr", features.indptr.astype(np.int64))
        _save(folder, "features_indices", features.indices.astype(np.int32))
        _save(folder, "features_data", features.data.astype(np.float32))
    else:
        _save(folder, "features", graph.features[nodes])
    _save(folder, "labels", graph.labels[own])
    for split, mask in (("train", graph.train_mask), ("val", graph.val_mask), ("test", graph.test_mask)):
        _save(folder, f"{split}_mask", mask[own])
    return _statistics(graph, layout, part, columns)


def _write_structure(layout: PartitionRows, part: int, columns: tuple[Int64Array, Int64Array], folder: Path) -> None:
    """The part's rows of A, each led by itself, the halo rows of Aᵀ, and the edge data of both if there are any."""
    rows, column = columns
    own, halo = len(layout.own[part]), len(layout.halo[part])
    width = own + halo + 1
    keys = np.concatenate([rows * width + column + 1, np.arange(own) * width])  # key 0 of a row: itself
    has_edge_data = layout.graph.edge_features is not None or layout.graph.edge_types is not None
    if has_edge_data:
        order = np.argsort(keys)
        keys = keys[order]
        _write_edge_data(layout, part, order, folder)
    else:
        keys.sort()
    sorted_rows, sorted_columns = keys // width, keys % width - 1
    sorted_columns = np.where(sorted_columns < 0, sorted_rows, sorted_columns)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(sorted_rows, minlength=own))])
    _save(folder, "indptr", indptr.astype(np.int64))
    _save(folder, "indices", sorted_columns.astype(np.int32))

    crossing = np.flatnonzero(sorted_columns >= own)
    _save(folder, "own_end", (indptr[1:] - np.bincount(sorted_rows[crossing], minlength=own)).astype(np.int64))
    crossing = crossing[np.argsort(sorted_columns[crossing], kind="stable")]  # rows stay ascending in each halo column
    counts = np.bincount(sorted_columns[crossing] - own, minlength=halo)
    _save(folder, "halo_indptr", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    _save(folder, "halo_indices", sorted_rows[crossing].astype(np.int32))
    if has_edge_data:
        _save(folder, "halo_entry", crossing.astype(np.int64))


def _write_edge_data(layout: PartitionRows, part: int, order: Int64Array, folder: Path) -> None:
    """Edge data by stored entry; `order` [own + nnz] numbers the entries of A, row after row, and then the leading ones."""
    graph, entries = layout.graph, layout.entries(part)
    stored = np.flatnonzero(order < len(entries))
    place = entries[order[stored]]
    if graph.edge_features is not None:
        features = np.zeros((len(order), graph.edge_dim), dtype=np.float32)
        features[stored] = graph.edge_features[place]
        _save(folder, "edge_features", features)
    if graph.edge_types is not None:
        types = np.full(len(order), -1, dtype=np.int32)
        types[stored] = graph.edge_types[place]
        _save(folder, "edge_types", types)


def _save(folder: Path, name: str, array: npt.NDArray[Any]) -> None:
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
