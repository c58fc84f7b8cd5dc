"""Open Graph Benchmark node-property graphs, read from OGB's own files on disk without unpickling anything.

Layout (``ogbn-arxiv`` lies in ``ROOT/ogbn_arxiv``): ``raw/edge.csv.gz``, ``node-feat.csv.gz``, ``node-label.csv.gz``,
``num-node-list.csv.gz`` and ``edge-feat.csv.gz`` if edges have features, or the binary form ``raw/data.npz`` and
``node-label.npz``; and in either case ``split/SCHEME/{train,valid,test}.csv.gz``.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from halocast.errors import GraphError, MisuseError
from halocast.runtime.graph.adjacency import undirected_pairs
from halocast.runtime.graph.edges import list_arguments
from halocast.runtime.graph.graph import Graph, as_labels, validate
from halocast.runtime.graph.npz import open_npz

# From OGB's nodeproppred/master.csv: edges stored in one direction of an undirected graph, and metrics not by labels.
STORED_ONCE = frozenset({"ogbn-products", "ogbn-proteins"})
ROC_AUC = frozenset({"ogbn-proteins"})

Array = npt.NDArray[Any]


def load_ogb(name: str, root: Path | str, *, symmetrise: bool = False) -> Graph:
    """Load and validate an OGB graph, downloading it first where it is not in `root` and the ogb package is there.

    Args:
        name: such as ``ogbn-arxiv``.
        root: the folder that holds OGB's data sets.
        symmetrise: take every edge as undirected; ogbn-arxiv and ogbn-papers100M are directed and need it.

    Raises:
        MisuseError: neither the files nor the ogb package are there. GraphError: the files or the graph are bad.
    """
    folder = Path(root) / name.replace("-", "_")
    if not (folder / "raw").is_dir():
        _download(name, root, folder)
    source = f"ogb:{name}"
    binary = (folder / "raw" / "data.npz").is_file()
    edges, features, labels, edge_features = _read_binary(folder) if binary else _read_csv(folder)
    train, val, test = (_read_mask(folder, split, features.shape[0]) for split in ("train", "valid", "test"))
    pairs = undirected_pairs(edges, features.shape[0], source, symmetrise=symmetrise or name in STORED_ONCE)
    edge_data = list_arguments(edges, features.shape[0], edge_features, None)
    graph = Graph.from_edges(
        *(edges if edge_data else pairs),
        name=name,
        features=features,
        labels=as_labels(labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels, source),
        metric="roc_auc" if name in ROC_AUC else None,
        train_mask=train,
        val_mask=val,
        test_mask=test,
        meta={"source": f"Open Graph Benchmark, {name}"},
        **edge_data,
    )
    return validate(graph, source)


def _download(name: str, root: Path | str, folder: Path) -> None:
    try:
        from ogb.nodeproppred import NodePropPredDataset
    except ImportError as error:
        raise MisuseError(
            f"ogb:{name} is not in {folder}, and downloading it needs the ogb package: pip install 'halocast[ogb]'"
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            NodePropPredDataset(name=name, root=str(root))
    except Exception as error:  # whatever OGB's download raises becomes one line
        raise GraphError(f"ogb:{name}: OGB cannot load it: {' '.join(str(error).split())}") from error
    if not (folder / "raw").is_dir():
        raise GraphError(f"ogb:{name}: OGB left no {folder / 'raw'}")


def _read_csv(folder: Path) -> tuple[Array, Array, Array, Array | None]:
    """Edges [2, E], features [N, F], labels [N, tasks] and edge features [E, D] (None without) of the text form."""
    raw = folder / "raw"
    nodes = int(_table(raw / "num-node-list.csv.gz").sum())
    features, labels = _table(raw / "node-feat.csv.gz"), _table(raw / "node-label.csv.gz")
    for name, table in (("node-feat", features), ("node-label", labels)):
        if table.shape[0] != nodes:
            raise GraphError(f"{raw}: {name}.csv.gz has {table.shape[0]} rows for the {nodes} nodes of num-node-list")
    beside = raw / "edge-feat.csv.gz"
    return _table(raw / "edge.csv.gz").T, features.astype(np.float32), labels, _table(beside) if beside.is_file() else None


def _read_binary(folder: Path) -> tuple[Array, Array, Array, Array | None]:
    """The same of the binary form."""
    with open_npz(folder / "raw" / "data.npz") as archive:
        if "node_feat" not in archive:
            raise GraphError(f"{archive.path}: the graph has no node features; halocast needs them")
        edges, features = archive.read("edge_index"), archive.read("node_feat")
        edge_features = archive.read("edge_feat") if "edge_feat" in archive else None
    with open_npz(folder / "raw" / "node-label.npz") as archive:
        return edges, features.astype(np.float32, copy=False), archive.read("node_label"), edge_features


def _read_mask(folder: Path, split: str, nodes: int) -> npt.NDArray[np.bool_]:
    schemes = sorted(path for path in (folder / "split").glob("*") if path.is_dir())
    if len(schemes) != 1:
        raise GraphError(f"{folder / 'split'}: needed is one folder with a split, found {len(schemes)}")
    ids = _table(schemes[0] / f"{split}.csv.gz").ravel().astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= nodes):
        raise GraphError(f"{schemes[0]}: {split}.csv.gz names a node outside 0..{nodes - 1}")
    mask = np.zeros(nodes, dtype=np.bool_)
    mask[ids] = True
    return mask


def _table(path: Path) -> Array:
    """A headerless numeric table; GraphError where it is missing or damaged."""
    if not path.is_file():
        hint = "; halocast needs node features" if path.name.startswith("node-feat") else ""
        raise GraphError(f"{path}: no such file{hint}")
    try:
        return cast(Array, pd.read_csv(path, header=None).to_numpy())
    except pd.errors.EmptyDataError:
        return np.zeros((0, 1), dtype=np.int64)
    except (pd.errors.ParserError, EOFError, OSError, ValueError) as error:
        raise GraphError(f"{path}: the file is truncated or damaged ({' '.join(str(error).split())})") from error
