"""Reads a static graph in the .npz layout that halocast uses, into plain NumPy, without importing halocast.

The layout: `edge_index` [2, edges] (each undirected edge once), dense `x` or the CSR quadruple `x_indptr`, `x_indices`,
`x_data`, `x_shape`, labels `y`, three masks and a JSON text `meta`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class PlainGraph:
    """A symmetric graph with dense features; rows may have been reordered, labels and masks with them."""

    name: str
    indptr: npt.NDArray[np.int64]
    """[nodes + 1]"""
    indices: npt.NDArray[np.int32]
    """[directed edges], ascending within a row, no self loops"""
    features: npt.NDArray[np.float32]
    """[nodes, feature_dim]"""
    labels: Array
    """int64 [nodes] (-1: none) or uint8 [nodes, classes]"""
    train_mask: npt.NDArray[np.bool_]
    val_mask: npt.NDArray[np.bool_]
    test_mask: npt.NDArray[np.bool_]
    classes: int

    @property
    def nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def feature_dim(self) -> int:
        return int(self.features.shape[1])

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2

    @property
    def degrees(self) -> npt.NDArray[np.int64]:
        """Neighbours of each node, itself not counted: int64 [nodes]."""
        return np.diff(self.indptr)


def load_graph(path: Path, order: Path | None = None) -> PlainGraph:
    """Reads the graph; `order` names a .npy permutation whose entry i is the id of the node that row i shall hold.

    Raises ValueError where the order is no permutation of the nodes.
    """
    with np.load(path, allow_pickle=False) as arrays:
        features = _dense_features(arrays)
        labels = arrays["y"]
        masks = {name: arrays[name] for name in ("train_mask", "val_mask", "test_mask")}
        edges = arrays["edge_index"]
        meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
    nodes = len(features)
    if order is not None:
        rows = _read_order(order, nodes)
        position = np.empty(nodes, dtype=np.int32)
        position[rows] = np.arange(nodes, dtype=np.int32)
        edges, features, labels = position[edges], features[rows], labels[rows]
        masks = {name: mask[rows] for name, mask in masks.items()}
    indptr, indices = _symmetric_csr(edges, nodes)
    multilabel = labels.ndim == 2
    return PlainGraph(
        name=str(meta.get("name", path.stem)),
        indptr=indptr,
        indices=indices,
        features=features,
        labels=labels if multilabel else labels.astype(np.int64),
        classes=labels.shape[1] if multilabel else int(labels.max()) + 1,
        **masks,
    )


def add_self_loops(graph: PlainGraph) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """`indptr` and `indices` of A + I, columns ascending."""
    nodes = graph.nodes
    rows = np.repeat(np.arange(nodes, dtype=np.int64), graph.degrees)
    loops = np.arange(nodes, dtype=np.int64)
    keys = np.sort(np.concatenate([rows * nodes + graph.indices, loops * nodes + loops]))
    return graph.indptr + np.arange(nodes + 1), (keys % nodes).astype(np.int32)


def _dense_features(arrays: np.lib.npyio.NpzFile) -> npt.NDArray[np.float32]:
    if "x" in arrays:
        return np.ascontiguousarray(arrays["x"], dtype=np.float32)
    rows, columns = (int(size) for size in arrays["x_shape"])
    dense = np.zeros((rows, columns), dtype=np.float32)
    dense[np.repeat(np.arange(rows), np.diff(arrays["x_indptr"])), arrays["x_indices"]] = arrays["x_data"]
    return dense


def _read_order(path: Path, nodes: int) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = np.load(path, allow_pickle=False).astype(np.int64)
    if order.shape != (nodes,) or not np.array_equal(np.sort(order), np.arange(nodes)):
        raise ValueError(f"{path}: not a permutation of the {nodes} nodes")
    return order


def _symmetric_csr(edges: Array, nodes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    u, v = edges.astype(np.int64)
    keys = np.sort(np.concatenate([u * nodes + v, v * nodes + u]))
    degrees = np.bincount(keys // nodes, minlength=nodes)
    return np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64), (keys % nodes).astype(np.int32)
