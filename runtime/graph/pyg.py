"""PyTorch Geometric graphs: a ``Data`` object in memory, or a data set by name through PyG's own classes.

PyG fetches and reads a named data set itself; some of its raw files are pickles, which PyG (not halocast) opens.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from halocast.errors import GraphError, MisuseError, nearest
from halocast.runtime.graph.adjacency import undirected_pairs
from halocast.runtime.graph.edges import list_arguments
from halocast.runtime.graph.graph import Graph, as_labels, random_split, validate

SHORT_NAMES = {
    "Cora": "Planetoid/Cora",
    "CiteSeer": "Planetoid/CiteSeer",
    "PubMed": "Planetoid/PubMed",
    "Computers": "Amazon/Computers",
    "Photo": "Amazon/Photo",
    "CS": "Coauthor/CS",
    "Physics": "Coauthor/Physics",
    "Tolokers": "HeterophilousGraphDataset/Tolokers",
    "Minesweeper": "HeterophilousGraphDataset/Minesweeper",
}


def load_pyg(name: str, root: Path | str, *, symmetrise: bool = False) -> Graph:
    """Load and validate a PyG data set.

    Args:
        name: ``CLASS/NAME`` (a class of ``torch_geometric.datasets`` and its ``name``), ``CLASS`` alone where it takes
            none (``Reddit``, ``Flickr``, ``Yelp``), or one of `SHORT_NAMES`.
        root: PyG's folder; the data set lies or is downloaded in ``root/CLASS``.
        symmetrise: take every edge as undirected instead of refusing an asymmetric list.

    Raises:
        MisuseError: PyG is not installed, or the name is unknown.
        GraphError: the data set cannot be had, or is not one static graph that can be trained on.
    """
    try:
        import torch_geometric.datasets as datasets
    except ImportError as error:
        raise MisuseError(f"pyg:{name} needs PyTorch Geometric: pip install 'halocast[pyg]'") from error
    short = {key.lower(): value for key, value in SHORT_NAMES.items()}
    family, _, member = short.get(name.lower(), name).partition("/")
    if family not in datasets.__all__:
        raise MisuseError(f"pyg:{name} is unknown{nearest(family, [*datasets.__all__, *SHORT_NAMES])}")
    choice = {"name": member} if member else {}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # PyG announces its downloads there
            collection = getattr(datasets, family)(root=str(Path(root) / family), **choice)
    except Exception as error:  # whatever a PyG class raises becomes one line
        raise GraphError(f"pyg:{name}: PyG cannot load it from {root}: {_line(error)}") from error
    if len(collection) != 1:
        raise GraphError(f"pyg:{name}: the data set holds {len(collection)} graphs; needed is one")
    return from_pyg(collection[0], name=(member or family).lower(), source=f"pyg:{name}", symmetrise=symmetrise)


def from_pyg(data: Any, *, name: str = "pyg", source: str | None = None, symmetrise: bool = False) -> Graph:
    """Turn a ``torch_geometric.data.Data`` object into a validated graph.

    Args:
        data: with ``edge_index`` [2, E] (both directions), ``x`` [N, F] dense or sparse, ``y`` [N] or [N, C], and
            boolean masks [N] or [N, splits] (the first split is taken); without masks the split is a random 60/20/20.
            ``edge_attr`` [E, D] or [E] and ``edge_type`` [E] are taken along.

    Raises:
        GraphError: something is missing, or the graph cannot be trained on.
    """
    where = source or name
    for needed in ("edge_index", "x", "y"):
        if getattr(data, needed, None) is None:
            raise GraphError(f"{where}: the PyG Data object has no {needed}")
    features = _features(data.x)
    labels = data.y.detach().cpu().numpy()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = as_labels(labels, where)
    if getattr(data, "train_mask", None) is None:
        train, val, test = random_split(labels)
    else:
        train, val, test = (_mask(data, each, features.shape[0]) for each in ("train_mask", "val_mask", "test_mask"))
    edge_index = data.edge_index.detach().cpu().numpy()
    pairs = undirected_pairs(edge_index, features.shape[0], where, symmetrise=symmetrise)
    edge_data = list_arguments(edge_index, features.shape[0], _edge_array(data, "edge_attr"), _edge_array(data, "edge_type"))
    graph = Graph.from_edges(
        *(edge_index if edge_data else pairs),
        name=name,
        features=features,
        labels=labels,
        train_mask=train,
        val_mask=val,
        test_mask=test,
        meta={"source": f"PyG {where}"},
        **edge_data,
    )
    return validate(graph, where)


def _features(x: Any) -> Any:
    """Dense rows, or CSR for torch sparse tensors and PyG's SparseTensor."""
    if hasattr(x, "to_scipy"):
        return x.to_scipy(layout="csr")
    if not x.is_sparse and x.layout != _csr_layout():
        return x.detach().cpu().numpy()
    from scipy import sparse

    rows = x.detach().cpu().to_sparse_coo().coalesce()
    return sparse.csr_matrix((rows.values().numpy(), rows.indices().numpy()), shape=tuple(x.shape))


def _csr_layout() -> Any:
    import torch

    return torch.sparse_csr


def _mask(data: Any, name: str, nodes: int) -> Any:
    mask = getattr(data, name, None)
    if mask is None:
        return np.zeros(nodes, dtype=np.bool_)
    array = mask.detach().cpu().numpy()
    return array[:, 0] if array.ndim == 2 else array


def _edge_array(data: Any, name: str) -> Any:
    array = getattr(data, name, None)
    return None if array is None else array.detach().cpu().numpy()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
