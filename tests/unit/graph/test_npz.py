"""The .npz layout: round trips, and one clear line for every damaged file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from halocast.errors import GraphError
from halocast.runtime.graph.npz import load_npz, save_npz

NODES = 6


def arrays(**changes: Any) -> dict[str, Any]:
    """A ring of six nodes in the layout; a change to None leaves the array out."""
    ring = {
        "edge_index": np.array([[0, 0, 1, 2, 3, 4], [1, 5, 2, 3, 4, 5]], dtype=np.int32),
        "x": np.arange(12, dtype=np.float16).reshape(NODES, 2),
        "y": np.array([0, 1, 0, 1, 0, -1], dtype=np.int16),
        "train_mask": np.arange(NODES) < 2,
        "val_mask": np.arange(NODES) == 2,
        "test_mask": np.isin(np.arange(NODES), (3, 4)),
        "meta": np.array(json.dumps({"name": "ring", "classes": 2})),
    }
    return {key: value for key, value in (ring | changes).items() if value is not None}


def write(path: Path, **changes: Any) -> Path:
    np.savez_compressed(path, **arrays(**changes))
    return path


def sparse_features() -> dict[str, Any]:
    rows = sparse.csr_matrix(sparse.random(NODES, 4, density=0.5, random_state=0, dtype=np.float32))
    return {
        "x": None,
        "x_indptr": rows.indptr.astype(np.int64),
        "x_indices": rows.indices,
        "x_data": rows.data,
        "x_shape": np.array(rows.shape),
    }


def test_dense(tmp_path: Path) -> None:
    graph = load_npz(write(tmp_path / "g.npz"))
    assert (graph.name, graph.nodes, graph.edges, graph.classes, graph.metric) == ("ring", 6, 6, 2, "accuracy")
    assert graph.indices.reshape(NODES, 2).tolist() == [sorted(((i - 1) % 6, (i + 1) % 6)) for i in range(NODES)]
    assert isinstance(graph.features, np.ndarray)
    assert graph.features.dtype == np.float32
    np.testing.assert_array_equal(graph.features, np.arange(12).reshape(NODES, 2))
    assert graph.labels.dtype == np.int64
    assert graph.labels.tolist() == [0, 1, 0, 1, 0, -1]


def test_sparse_and_multilabel(tmp_path: Path) -> None:
    labels = np.array([[1, 0, 1]] * NODES, dtype=np.uint8)
    stored = sparse_features()
    graph = load_npz(write(tmp_path / "g.npz", y=labels, meta=None, **stored))
    assert (graph.name, graph.classes, graph.multilabel, graph.metric) == ("g", 3, True, "micro_f1")
    assert isinstance(graph.features, sparse.csr_matrix)
    np.testing.assert_array_equal(graph.features.indptr, stored["x_indptr"])
    np.testing.assert_array_equal(graph.features.data, stored["x_data"])


@pytest.mark.parametrize("changes", [{}, sparse_features()], ids=["dense", "sparse"])
def test_round_trip_is_exact_and_reproducible(tmp_path: Path, changes: dict[str, Any]) -> None:
    graph = load_npz(write(tmp_path / "g.npz", **changes))
    save_npz(graph, tmp_path / "a.npz")
    again = load_npz(tmp_path / "a.npz")
    save_npz(again, tmp_path / "b.npz")
    assert again.fingerprint == graph.fingerprint
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz", "g.npz"]


def test_both_directions_read_as_well(tmp_path: Path) -> None:
    once = arrays()["edge_index"]
    both = np.concatenate([once, once[::-1]], axis=1).astype(np.int64)
    graph = load_npz(write(tmp_path / "g.npz", edge_index=both))
    assert graph.fingerprint == load_npz(write(tmp_path / "h.npz")).fingerprint


def test_asymmetric_is_refused_unless_symmetrised(tmp_path: Path) -> None:
    edges = np.array([[0, 5], [1, 0]], dtype=np.int32)
    path = write(tmp_path / "g.npz", edge_index=edges)
    with pytest.raises(GraphError, match=r"g.npz: edges are not symmetric: 0 -> 1 .*--symmetrise"):
        load_npz(path)
    assert load_npz(path, symmetrise=True).indices.tolist() == [1, 5, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": None}, "array 'edge_index' is missing; found: x, y"),
        ({"train_mask": None}, "array 'train_mask' is missing"),
        ({"x": None}, r"no features: array 'x' \(dense\) or x_indptr"),
        ({"x": None, "x_data": np.ones(1)}, "array 'x_indptr' is missing"),
        ({"x": np.full((NODES, 2), np.nan)}, "feature 0 of node 0 is nan"),
        ({"x": np.array(["a"] * NODES)}, "x is <U1, needed are numbers"),
        ({"x": np.ones((NODES - 1, 2))}, r"edge 1 is \(0, 5\), but node ids run from 0 to 4"),
        ({"x": np.ones(NODES)}, "features have shape"),
        ({"y": np.array([{}] * NODES, dtype=object)}, "holds Python objects; files from outside are never unpickled"),
        ({"y": np.array(["a"] * NODES)}, "y is <U1, needed are integers"),
        ({"y": np.zeros(NODES + 1, np.int16)}, "labels has 7 rows for 6 nodes"),
        ({"train_mask": np.arange(2)}, "train_mask is int64, needed is bool"),
        ({"train_mask": np.zeros(NODES, bool)}, "no training nodes"),
        ({"meta": np.array("{")}, "meta is not JSON"),
        ({"meta": np.array("[]")}, "meta is not a JSON object"),
        ({"meta": np.array('{"classes": "two"}')}, "meta says classes = 'two'; needed is a whole number"),
        ({"meta": np.array('{"metric": "f1"}')}, "metric 'f1' is unknown"),
        ({"edge_index": np.array([[0], [9]], np.int32)}, r"edge 0 is \(0, 9\), but node ids run from 0 to 5"),
        ({"src": np.zeros(1), "dst": np.zeros(1), "t": np.zeros(1)}, "a dynamic graph"),
        (sparse_features() | {"x_indices": np.full(12, 9, np.int32)}, "not a CSR matrix"),
    ],
)
def test_bad_contents(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        load_npz(write(tmp_path / "g.npz", **changes))
    assert "\n" not in str(caught.value)
    assert "g.npz" in str(caught.value)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    with pytest.raises(GraphError, match="no such file"):
        load_npz(path)
    path.write_bytes(b"")
    with pytest.raises(GraphError, match="the file is empty"):
        load_npz(path)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(GraphError, match=r"not an \.npz file"):
        load_npz(path)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_truncated_anywhere(tmp_path: Path, fraction: float) -> None:
    path = write(tmp_path / "g.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(GraphError, match=r"g\.npz: the file is truncated or damaged"):
        load_npz(path)


def test_flipped_byte_in_an_array(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    at = content.index(np.arange(12, dtype=np.float16).tobytes())
    content[at + 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(GraphError, match="truncated or damaged"):
        load_npz(path)


def header_only(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Replace an array by a header that promises `shape`, with no data behind it."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in arrays().items():
            with archive.open(f"{key}.npy", "w") as member:
                if key == name:
                    facts = {"descr": dtype, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, facts)
                else:
                    np.lib.format.write_array(member, value)


def test_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header_only(tmp_path / "g.npz", "x", (NODES, 2**40), "<f4")
    with pytest.raises(GraphError, match=r"array 'x' should take 26388279066\d+ bytes .* truncated"):
        load_npz(tmp_path / "g.npz")


def test_2_to_31_edges_with_int32_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halocast.runtime.graph.adjacency.INT32_LIMIT", 11)
    with pytest.raises(GraphError, match=r"g.npz: 6 edges are 12 entries in both directions.*store edge_index as int64"):
        load_npz(write(tmp_path / "g.npz"))
    assert load_npz(write(tmp_path / "h.npz", edge_index=arrays()["edge_index"].astype(np.int64))).edges == 6


RING_TYPES = np.array([0, 1, 0, 2, 1, 0])
RING_FEATURES = np.arange(12, dtype=np.float64).reshape(6, 2) / 4
RELATIONS = np.array(["next", "wraps", "skips"])


def test_edge_data_of_edges_stored_once(tmp_path: Path) -> None:
    path = write(tmp_path / "g.npz", edge_type=RING_TYPES, edge_attr=RING_FEATURES, relations=RELATIONS)
    graph = load_npz(path)
    assert graph.relations == ("next", "wraps", "skips", "inverse of next", "inverse of wraps", "inverse of skips")
    assert graph.edge_types is not None
    assert graph.edge_features is not None
    # Row 0 hears from 1 (the reverse of edge 0) and 5 (of edge 1); row 5 from 0 (edge 1) and 4 (edge 5).
    assert graph.edge_types[[0, 1, 10, 11]].tolist() == [3, 4, 1, 0]
    np.testing.assert_array_equal(graph.edge_features[[0, 1, 10, 11]], RING_FEATURES[[0, 1, 1, 5]])


@pytest.mark.parametrize("left_out", [{}, {"edge_attr": None}, {"edge_type": None, "relations": None}], ids=str)
def test_edge_data_round_trip_is_exact_and_reproducible(tmp_path: Path, left_out: dict[str, Any]) -> None:
    stored = {"edge_type": RING_TYPES, "edge_attr": RING_FEATURES, "relations": RELATIONS}
    graph = load_npz(write(tmp_path / "g.npz", **stored | left_out))
    assert graph.fingerprint != load_npz(write(tmp_path / "bare.npz")).fingerprint
    save_npz(graph, tmp_path / "a.npz")
    again = load_npz(tmp_path / "a.npz")
    save_npz(again, tmp_path / "b.npz")
    assert again.fingerprint == graph.fingerprint
    assert again.relations == graph.relations
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert load_npz(tmp_path / "a.npz", symmetrise=True).fingerprint == graph.fingerprint


def test_both_directions_keep_types_of_their_own(tmp_path: Path) -> None:
    edges = np.array([[0, 1, 2, 1], [1, 0, 1, 2]])
    graph = load_npz(write(tmp_path / "g.npz", edge_index=edges, edge_type=np.array([0, 1, 1, 1])))
    assert graph.relations == ("relation 0", "relation 1")
    assert graph.edge_types is not None
    assert graph.edge_types.tolist() == [1, 0, 1, 1]  # 1 -> 0, 0 -> 1, 2 -> 1, 1 -> 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_type": RING_TYPES[:5]}, r"edge types have shape \[5\], needed is \[6\]"),
        ({"edge_type": RING_TYPES + 1, "relations": RELATIONS}, "edge type 3 of edge 3 is unknown; relations are 0 to 2"),
        ({"relations": RELATIONS}, "3 relations are named, but no edge has a type"),
        ({"edge_type": RING_TYPES, "relations": np.arange(3)}, r"relations are int64 \[3\], needed is text \[relations\]"),
        ({"edge_type": RING_TYPES, "relations": np.array([None])}, "holds Python objects"),
        ({"edge_attr": np.full((6, 1), np.nan)}, r"edge feature 0 of entry 0 \(1 -> 0\) is nan"),
        ({"edge_attr": np.ones((5, 2))}, "edge features have 5 rows for 6 edges"),
    ],
)
def test_bad_edge_data(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=rf"g\.npz: .*{message}") as caught:
        load_npz(write(tmp_path / "g.npz", **changes))
    assert "\n" not in str(caught.value)
