"""OGB's node-property format on disk, text and binary, written small by hand."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halocast.errors import GraphError, MisuseError
from halocast.runtime.graph.ogb import load_ogb

FEATURES = np.array([[0.5, 1], [1.5, 2], [2.5, 3], [3.5, 4]])
ONCE = np.array([[0, 1], [1, 2], [3, 1]])
BOTH = np.concatenate([ONCE, ONCE[:, ::-1]])


def table(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        for row in np.atleast_2d(np.asarray(values)):
            file.write(",".join(map(str, row.tolist())) + "\n")


def split(folder: Path) -> None:
    for name, ids in (("train", [[0], [1]]), ("valid", [[2]]), ("test", [[3]])):
        table(folder / "split" / "time" / f"{name}.csv.gz", ids)


def text_form(root: Path, name: str = "ogbn_small", edges: Any = BOTH, labels: Any = ((1,), (0,), (1,), (2,))) -> Path:
    raw = root / name / "raw"
    table(raw / "edge.csv.gz", edges)
    table(raw / "node-feat.csv.gz", FEATURES)
    table(raw / "node-label.csv.gz", labels)
    table(raw / "num-node-list.csv.gz", [[4]])
    table(raw / "num-edge-list.csv.gz", [[len(edges)]])
    split(root / name)
    return raw


def binary_form(root: Path, labels: Any) -> Path:
    raw = root / "ogbn_small" / "raw"
    raw.mkdir(parents=True)
    np.savez(raw / "data.npz", edge_index=BOTH.T, node_feat=FEATURES.astype(np.float16), num_nodes_list=[4])
    np.savez(raw / "node-label.npz", node_label=labels)
    split(root / "ogbn_small")
    return raw


def check(graph: Any) -> None:
    assert graph.indices.tolist() == [1, 0, 2, 3, 1, 1]
    np.testing.assert_array_equal(graph.features, FEATURES.astype(np.float32))
    assert np.flatnonzero(graph.train_mask).tolist() == [0, 1]
    assert np.flatnonzero(graph.val_mask).tolist() == [2]
    assert np.flatnonzero(graph.test_mask).tolist() == [3]


def test_text_form(tmp_path: Path) -> None:
    text_form(tmp_path)
    graph = load_ogb("ogbn-small", tmp_path)
    check(graph)
    assert graph.name == "ogbn-small"
    assert graph.labels.tolist() == [1, 0, 1, 2]


def test_binary_form(tmp_path: Path) -> None:
    binary_form(tmp_path, np.array([[1.0], [0.0], [2.0], [1.0]], np.float32))
    graph = load_ogb("ogbn-small", tmp_path)
    check(graph)
    assert graph.labels.tolist() == [1, 0, 2, 1]


def test_binary_form_without_some_labels(tmp_path: Path) -> None:
    raw = binary_form(tmp_path, np.array([[1.0], [0.0], [2.0], [np.nan]], np.float32))
    with pytest.raises(GraphError, match="node 3 is in test_mask but has no label"):
        load_ogb("ogbn-small", tmp_path)
    table(raw.parent / "split" / "time" / "test.csv.gz", [[2]])
    table(raw.parent / "split" / "time" / "valid.csv.gz", np.zeros((0, 1)))
    graph = load_ogb("ogbn-small", tmp_path)
    assert graph.labels.tolist() == [1, 0, 2, -1]
    assert not graph.val_mask.any()


def test_multilabel(tmp_path: Path) -> None:
    text_form(tmp_path, labels=[[0, 1], [1, 1], [0, 0], [1, 0]])
    graph = load_ogb("ogbn-small", tmp_path)
    assert graph.multilabel
    assert graph.labels.tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]


def test_products_stores_edges_once(tmp_path: Path) -> None:
    text_form(tmp_path, "ogbn_products", edges=ONCE)
    check(load_ogb("ogbn-products", tmp_path))


def test_directed_needs_symmetrise(tmp_path: Path) -> None:
    text_form(tmp_path, "ogbn_arxiv", edges=ONCE)
    with pytest.raises(GraphError, match=r"^ogb:ogbn-arxiv: edges are not symmetric: 0 -> 1 .*--symmetrise"):
        load_ogb("ogbn-arxiv", tmp_path)
    check(load_ogb("ogbn-arxiv", tmp_path, symmetrise=True))


def test_damaged_files(tmp_path: Path) -> None:
    raw = text_form(tmp_path)
    (raw / "node-feat.csv.gz").unlink()
    with pytest.raises(GraphError, match=r"node-feat.csv.gz: no such file; halocast needs node features"):
        load_ogb("ogbn-small", tmp_path)
    table(raw / "node-feat.csv.gz", FEATURES[:3])
    with pytest.raises(GraphError, match=r"node-feat.csv.gz has 3 rows for the 4 nodes"):
        load_ogb("ogbn-small", tmp_path)
    table(raw / "node-feat.csv.gz", FEATURES)
    content = (raw / "edge.csv.gz").read_bytes()
    (raw / "edge.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(GraphError, match=r"edge.csv.gz: the file is truncated or damaged"):
        load_ogb("ogbn-small", tmp_path)


def test_bad_splits(tmp_path: Path) -> None:
    raw = text_form(tmp_path)
    table(raw.parent / "split" / "time" / "test.csv.gz", [[8]])
    with pytest.raises(GraphError, match=r"test.csv.gz names a node outside 0..3"):
        load_ogb("ogbn-small", tmp_path)
    (raw.parent / "split" / "random").mkdir()
    with pytest.raises(GraphError, match="needed is one folder with a split, found 2"):
        load_ogb("ogbn-small", tmp_path)


def test_absent_data_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogb", None)
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", None)
    with pytest.raises(MisuseError, match=r"is not in .*ogbn_arxiv.*pip install 'halocast\[ogb\]'"):
        load_ogb("ogbn-arxiv", tmp_path)


def test_edge_features_of_both_forms(tmp_path: Path) -> None:
    values = np.arange(12).reshape(6, 2) / 2
    raw = text_form(tmp_path / "text")
    table(raw / "edge-feat.csv.gz", values)
    graph = load_ogb("ogbn-small", tmp_path / "text")
    assert graph.edge_features is not None
    # BOTH lists 0 -> 1, 1 -> 2, 3 -> 1 and their reverses; the rows of 0 to 3 hear from [1], [0, 2, 3], [1], [1].
    np.testing.assert_array_equal(graph.edge_features, values[[3, 0, 4, 2, 1, 5]])
    raw = binary_form(tmp_path / "binary", np.array([[1], [0], [1], [2]]))
    np.savez(raw / "data.npz", edge_index=BOTH.T, node_feat=FEATURES, edge_feat=values)
    assert load_ogb("ogbn-small", tmp_path / "binary").fingerprint == graph.fingerprint
