"""Graphs in one ``.npz`` file: checked member by member before anything large is allocated, never unpickled.

Layout (arrays of a static graph):

========================================== ======================== =====================================================
``edge_index``                             int32 or int64 [2, E]    undirected edges stored once as u < v, or both ways
``x``                                      float [N, F]             dense features, or instead of it:
``x_indptr, x_indices, x_data, x_shape``   int, int, float, int [2] features in CSR form
``y``                                      int [N] or uint8 [N, C]  classes with -1 for none, or multi-label
``train_mask``, ``val_mask``, ``test_mask`` bool [N]                disjoint, labelled nodes only
``meta`` (optional)                        str, 0-d                 JSON: name, classes, metric, source, licence, ...
``edge_attr`` (optional)                   float [E, D] or [E]      edge features, in the order of ``edge_index``
``edge_type`` (optional)                   int [E]                  relations 0..R-1, in the same order
``relations`` (optional)                   str [R]                  their names
========================================== ======================== =====================================================

Edge data of a list with both directions of every edge belongs to the entry it stands beside (``u, v`` is the message from u
to v). In a list of edges stored once it belongs to both entries; the reverse one has the inverse relation.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse

from halocast.errors import GraphError
from halocast.runtime.graph.adjacency import check_id_width, undirected_pairs
from halocast.runtime.graph.edges import list_arguments
from halocast.runtime.graph.graph import Features, Graph, validate

REQUIRED = ("edge_index", "y", "train_mask", "val_mask", "test_mask")
SPARSE_FEATURES = ("x_indptr", "x_indices", "x_data", "x_shape")
EVENT_LIST = ("src", "dst", "t")

Array = npt.NDArray[Any]
Header = tuple[tuple[int, ...], bool, "np.dtype[Any]"]  # shape, column-major, type


class NpzReader:
    """One open ``.npz`` archive; every fault of the file becomes a GraphError that names it."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.path = path
        self._archive = archive
        self._sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    @property
    def names(self) -> list[str]:
        """The arrays of the archive."""
        return list(self._sizes)

    def shape(self, name: str) -> tuple[int, ...]:
        """An array's shape, from its header alone."""
        return self._header(name)[0]

    def dtype(self, name: str) -> np.dtype[Any]:
        """An array's type, from its header alone."""
        return self._header(name)[2]

    def read(self, name: str) -> Array:
        """An array whole."""
        self._header(name)
        with _one_line(self.path), self._archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def _header(self, name: str) -> Header:
        """An array's header, checked against the bytes that are there so that none is allocated in vain."""
        if name not in self:
            raise GraphError(f"{self.path}: array '{name}' is missing; found: {', '.join(self.names) or 'none'}")
        with _one_line(self.path), self._archive.open(f"{name}.npy") as member:
            shape, column_major, dtype = _read_header(member)
            size = member.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            raise GraphError(f"{self.path}: array '{name}' holds Python objects; files from outside are never unpickled")
        if size != self._sizes[name]:
            raise GraphError(
                f"{self.path}: array '{name}' should take {size} bytes for shape {list(shape)} of {dtype}, "
                f"but has {self._sizes[name]}; the file is truncated or was written wrongly"
            )
        return shape, column_major, dtype


@contextmanager
def open_npz(path: Path) -> Iterator[NpzReader]:
    """Open an archive; GraphError where there is none, it is empty, truncated or no zip file."""
    if not path.is_file():
        raise GraphError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise GraphError(f"{path}: the file is empty")
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise GraphError(f"{path}: not an .npz file (it does not begin like a zip archive)")
    with _one_line(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield NpzReader(archive, path)


def load_npz(path: Path | str, *, symmetrise: bool = False) -> Graph:
    """Load and validate a graph from a file in the module's layout.

    Args:
        path: the file. Saved PyG ``Data`` arrays (both directions in ``edge_index``) read as well.
        symmetrise: take every edge as undirected instead of refusing an asymmetric list.

    Raises:
        GraphError: one line on whatever is wrong with the file or the graph in it.
    """
    path = Path(path)
    with open_npz(path) as archive:
        if all(name in archive for name in EVENT_LIST):
            raise GraphError(f"{path}: a dynamic graph (an event list of src, dst, t); only static graphs can be trained on")
        for name in REQUIRED:
            archive.shape(name)
        meta = read_meta(archive)
        source = str(path)
        features = _read_features(archive)
        shape = archive.shape("edge_index")
        check_id_width(shape[-1] if shape else 0, _rows(features), archive.dtype("edge_index").itemsize, source)
        listed = archive.read("edge_index")
        pairs = undirected_pairs(listed, _rows(features), source, each_once=True, symmetrise=symmetrise)
        edge_data = list_arguments(listed, _rows(features), *_read_edge_data(archive))
        labels, masks = archive.read("y"), {name: archive.read(name) for name in REQUIRED[2:]}
    for name, mask in masks.items():
        if mask.dtype != np.bool_:
            raise GraphError(f"{path}: {name} is {mask.dtype}, needed is bool")
    if labels.dtype.kind not in "iufb":
        raise GraphError(f"{path}: y is {labels.dtype}, needed are integers")
    graph = Graph.from_edges(
        *(listed if edge_data else pairs),
        name=str(meta.get("name", path.stem)),
        features=features,
        labels=labels,
        classes=cast("int | None", meta.get("classes")),
        meta=meta,
        source=source,
        train_mask=masks["train_mask"],
        val_mask=masks["val_mask"],
        test_mask=masks["test_mask"],
        **edge_data,
    )
    return validate(graph, source)


def read_meta(archive: NpzReader) -> dict[str, Any]:
    """The JSON facts of a file; empty where it has none."""
    if "meta" not in archive:
        return {}
    try:
        meta = json.loads(str(archive.read("meta")))
    except json.JSONDecodeError as error:
        raise GraphError(f"{archive.path}: meta is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise GraphError(f"{archive.path}: meta is not a JSON object")
    classes = meta.get("classes", 1)
    if type(classes) is not int or classes < 0:
        raise GraphError(f"{archive.path}: meta says classes = {classes!r}; needed is a whole number")
    return meta


def save_npz(graph: Graph, path: Path | str) -> None:
    """Write a graph in the module's layout; the same graph gives the same bytes.

    A graph without edge data stores each edge once, one with them both directions.
    """
    rows = np.repeat(np.arange(graph.nodes, dtype=graph.indices.dtype), graph.degrees)
    edges = np.stack([graph.indices, rows])
    if not edge_arrays(graph):
        edges = edges[::-1, rows < graph.indices]
    facts = dict(graph.meta) | {"name": graph.name, "classes": graph.classes, "metric": graph.metric}
    write_npz(
        path,
        {
            "edge_index": edges,
            **edge_arrays(graph),
            **feature_arrays(graph.features),
            "y": graph.labels,
            "train_mask": graph.train_mask,
            "val_mask": graph.val_mask,
            "test_mask": graph.test_mask,
            "meta": np.array(json.dumps(facts, sort_keys=True)),
        },
    )


def feature_arrays(features: Features) -> dict[str, Array]:
    """The layout's arrays for dense or sparse features."""
    if isinstance(features, np.ndarray):
        return {"x": features}
    return {
        "x_indptr": features.indptr.astype(np.int64),
        "x_indices": features.indices.astype(np.int32),
        "x_data": features.data,
        "x_shape": np.array(features.shape, dtype=np.int64),
    }


def edge_arrays(graph: Graph) -> dict[str, Array]:
    """The layout's arrays of edge data; empty where the graph has none."""
    features: dict[str, Array] = {} if graph.edge_features is None else {"edge_attr": graph.edge_features}
    if graph.edge_types is None:
        return features
    return {**features, "edge_type": graph.edge_types, "relations": np.array(graph.relations, dtype=np.str_)}


def write_npz(path: Path | str, arrays: Mapping[str, Array | tuple[Header, Iterable[Array]]], *, compress: bool = True) -> None:
    """Write arrays into an ``.npz`` with fixed times, so that equal contents give equal bytes.

    Args:
        path: replaced only once the new file is complete.
        arrays: by name, an array, or (header, blocks) for one that is written block by block and never held whole.
        compress: deflate the members; noise does not shrink and large files then cost time for nothing.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.part")
    try:
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(draft, "w", method) as archive:
            for name, content in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_member(member, content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _write_member(member: IO[bytes], content: Array | tuple[Header, Iterable[Array]]) -> None:
    if not isinstance(content, tuple):
        np.lib.format.write_array(member, np.ascontiguousarray(content).reshape(content.shape), allow_pickle=False)
        return
    (shape, column_major, dtype), blocks = content
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": column_major, "shape": shape}
    np.lib.format.write_array_header_2_0(member, facts)
    for block in blocks:
        member.write(np.ascontiguousarray(block, dtype=dtype).tobytes())


def _read_header(member: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _read_features(archive: NpzReader) -> Features:
    if "x" in archive:
        if archive.dtype("x").kind not in "fiub":
            raise GraphError(f"{archive.path}: x is {archive.dtype('x')}, needed are numbers")
        return np.ascontiguousarray(archive.read("x"), dtype=np.float32)
    if not any(name in archive for name in SPARSE_FEATURES):
        raise GraphError(
            f"{archive.path}: no features: array 'x' (dense) or {', '.join(SPARSE_FEATURES)} (CSR) is missing; "
            f"found: {', '.join(archive.names)}"
        )
    indptr, indices, data, shape = (archive.read(name) for name in SPARSE_FEATURES)
    try:
        rows = sparse.csr_matrix((data.astype(np.float32), indices, indptr), shape=tuple(shape.tolist()))
        rows.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise GraphError(f"{archive.path}: the sparse features are not a CSR matrix: {error}") from error
    return rows


def _read_edge_data(archive: NpzReader, *, features: bool = True) -> tuple[Array | None, Array | None, list[str] | None]:
    """Features (if asked for), types and names of the relations, as far as the file has them."""
    rows = archive.read("edge_attr") if features and "edge_attr" in archive else None
    types = archive.read("edge_type") if "edge_type" in archive else None
    if "relations" not in archive:
        return rows, types, None
    names = archive.read("relations")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise GraphError(f"{archive.path}: relations are {names.dtype} {list(names.shape)}, needed is text [relations]")
    return rows, types, names.tolist()


def edge_facts(archive: NpzReader) -> tuple[int, int]:
    """(features, relations) of an edge as the file lists them, 0 without any."""
    shape = archive.shape("edge_attr") if "edge_attr" in archive else (0, 0)
    _, types, names = _read_edge_data(archive, features=False)
    relations = int(types.max(initial=-1)) + 1 if types is not None and types.dtype.kind in "iu" else 0
    return shape[1] if len(shape) > 1 else 1, relations if names is None else len(names)


def _rows(features: Features) -> int:
    return features.shape[0] if features.ndim else 0


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what zipfile, zlib and numpy raise on a damaged file into one GraphError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GraphError(f"{path}: the file is truncated or damaged ({reason})") from error
