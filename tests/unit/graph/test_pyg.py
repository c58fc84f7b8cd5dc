"""PyG Data objects, and a Planetoid data set processed by PyG from raw files on disk without a network."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from halocast.errors import GraphError, MisuseError
from halocast.runtime.graph.pyg import from_pyg, load_pyg

torch = pytest.importorskip("torch")
Data = pytest.importorskip("torch_geometric.data").Data


def data(**changes: Any) -> Any:
    fields = {
        "edge_index": torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]),
        "x": torch.arange(8, dtype=torch.float64).reshape(4, 2),
        "y": torch.tensor([0, 1, 1, 0]),
        "train_mask": torch.tensor([True, False, False, False]),
        "val_mask": torch.tensor([False, True, False, False]),
        "test_mask": torch.tensor([False, False, True, True]),
    }
    return Data(**{key: value for key, value in (fields | changes).items() if value is not None})


def test_data_object() -> None:
    graph = from_pyg(data(), name="three")
    assert (graph.name, graph.nodes, graph.edges, graph.classes) == ("three", 4, 2, 2)
    assert graph.indices.tolist() == [1, 0, 2, 1]
    np.testing.assert_array_equal(graph.features, np.arange(8, dtype=np.float32).reshape(4, 2))
    assert graph.test_mask.tolist() == [False, False, True, True]


def test_sparse_features_column_labels_and_several_splits() -> None:
    masks = torch.tensor([[True, False], [False, True], [False, False], [False, False]])
    graph = from_pyg(data(x=data().x.to_sparse(), y=data().y[:, None], train_mask=masks))
    assert isinstance(graph.features, sp.csr_matrix)
    np.testing.assert_array_equal(graph.features.toarray(), np.arange(8).reshape(4, 2))
    assert graph.train_mask.tolist() == [True, False, False, False]
    assert graph.labels.tolist() == [0, 1, 1, 0]


def test_multilabel_and_no_masks() -> None:
    graph = from_pyg(data(y=torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]), train_mask=None, val_mask=None, test_mask=None))
    assert graph.multilabel
    assert graph.metric == "micro_f1"
    assert (graph.train_mask.sum(), graph.val_mask.sum(), graph.test_mask.sum()) == (2, 1, 1)


def test_edge_attributes_and_types() -> None:
    graph = from_pyg(data(edge_attr=torch.tensor([0.5, 1.5, 2.5, 3.5]), edge_type=torch.tensor([0, 1, 2, 0])))
    assert graph.relations == ("relation 0", "relation 1", "relation 2")
    assert graph.edge_features is not None
    assert graph.edge_types is not None
    assert graph.edge_features.tolist() == [[1.5], [0.5], [3.5], [2.5]]  # 1 -> 0, 0 -> 1, 2 -> 1, 1 -> 2
    assert graph.edge_types.tolist() == [1, 0, 0, 2]
    once = from_pyg(data(edge_index=torch.tensor([[1, 2], [0, 1]]), edge_type=torch.tensor([0, 1])), symmetrise=True)
    assert once.relations == ("relation 0", "relation 1", "inverse of relation 0", "inverse of relation 1")
    assert once.edge_types is not None
    assert once.edge_types.tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_type": torch.zeros(3, dtype=torch.int64)}, r"edge types have shape \[3\], needed is \[4\]"),
        ({"x": None}, "pyg: the PyG Data object has no x"),
        ({"edge_index": torch.tensor([[0], [1]])}, r"not symmetric: 0 -> 1"),
        ({"edge_index": torch.tensor([[0, 9], [9, 0]])}, r"edge 0 is \(0, 9\), but node ids run from 0 to 3"),
        ({"x": torch.full((4, 2), float("nan"))}, "feature 0 of node 0 is nan"),
        ({"train_mask": torch.zeros(4, dtype=torch.bool)}, "no training nodes"),
    ],
)
def test_bad_data(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_pyg(data(**changes))


NODES, TRAINING, TESTED = 520, 6, 8  # Planetoid validates on the 500 nodes after the training ones


def planetoid(root: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Raw Planetoid files of a ring of 520 nodes under the name Cora; its dense features and labels."""
    random = np.random.default_rng(0)
    features = (random.random((NODES, 12)) < 0.3).astype(np.float32)
    labels = np.arange(NODES) % 3
    rest = NODES - TESTED
    one_hot = np.eye(3, dtype=np.int32)[labels]
    raw = root / "Planetoid" / "Cora" / "raw"
    raw.mkdir(parents=True)
    contents: dict[str, Any] = {
        "x": sp.csr_matrix(features[:TRAINING]),
        "tx": sp.csr_matrix(features[rest:]),
        "allx": sp.csr_matrix(features[:rest]),
        "y": one_hot[:TRAINING],
        "ty": one_hot[rest:],
        "ally": one_hot[:rest],
        "graph": {node: [(node - 1) % NODES, (node + 1) % NODES] for node in range(NODES)},
    }
    for name, content in contents.items():
        (raw / f"ind.cora.{name}").write_bytes(pickle.dumps(content, protocol=2))
    (raw / "ind.cora.test.index").write_text("".join(f"{node}\n" for node in range(rest, NODES)))
    return features, labels


@pytest.mark.parametrize("name", ["Cora", "Planetoid/Cora", "cora"])
def test_named_data_set_from_raw_files(tmp_path: Path, name: str) -> None:
    features, labels = planetoid(tmp_path)
    graph = load_pyg(name, tmp_path)
    assert graph.name == "cora"
    assert graph.edges == NODES
    rows = graph.features if isinstance(graph.features, np.ndarray) else graph.features.toarray()
    np.testing.assert_array_equal(rows, features)
    np.testing.assert_array_equal(graph.labels, labels)
    assert np.flatnonzero(graph.train_mask).tolist() == list(range(TRAINING))
    assert np.flatnonzero(graph.test_mask).tolist() == list(range(NODES - TESTED, NODES))
    ring = np.sort(np.stack([(np.arange(NODES) - 1) % NODES, (np.arange(NODES) + 1) % NODES], axis=1), axis=1)
    np.testing.assert_array_equal(graph.indices.reshape(NODES, 2), ring)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"pyg:Planetoidd/Cora is unknown; did you mean 'Planetoid'"):
        load_pyg("Planetoidd/Cora", tmp_path)


def test_unreadable_raw_files(tmp_path: Path) -> None:
    planetoid(tmp_path)
    (tmp_path / "Planetoid" / "Cora" / "raw" / "ind.cora.x").write_bytes(b"")
    with pytest.raises(GraphError, match=r"pyg:Cora: PyG cannot load it from") as caught:
        load_pyg("Cora", tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", None)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(MisuseError, match=r"pyg:Cora needs PyTorch Geometric: pip install 'halocast\[pyg\]'"):
        load_pyg("Cora", tmp_path)
