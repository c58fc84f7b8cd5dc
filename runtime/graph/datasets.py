"""The graphs that have a name, and how a name, path or ``scheme:`` becomes a graph."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from halocast.errors import GraphError, MisuseError, nearest
from halocast.runtime.graph.graph import Graph

EMBEDDED = "debian"
EMBEDDED_ALIAS = "debian_packages"
SCHEMES = ("pyg", "ogb", "generated")
TABLE_FILES = (".csv", ".tsv", ".txt")
DATA_VARIABLE = "HALOCAST_DATA"


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a named graph without loading it; -1 and "" where its file does not say."""

    name: str
    nodes: int
    edges: int
    features: int
    classes: int
    multilabel: bool
    metric: str
    licence: str
    path: str
    embedded: bool
    edge_dim: int = 0
    relations: int = 0


def search_path() -> list[Path]:
    """Folders whose ``.npz`` files have names: those of ``$HALOCAST_DATA``, ``data`` and ``../shared/data``."""
    named = [Path(each) for each in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if each]
    return [*named, Path("data"), Path("..") / "shared" / "data"]


def data_root() -> Path:
    """Where PyG and OGB keep what they download: the first folder of ``$HALOCAST_DATA``, by default the user's cache."""
    named = [each for each in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if each]
    if named:
        return Path(named[0])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "halocast" / "data"


def embedded_path() -> Path:
    """The Debian package graph that ships inside the package."""
    return Path(str(resources.files("halocast.runtime.graph").joinpath("data", f"{EMBEDDED_ALIAS}.npz")))


def known_datasets() -> list[DatasetInfo]:
    """The embedded graph, then every static graph on the search path, by name."""
    found = {EMBEDDED: _describe(embedded_path(), EMBEDDED, embedded=True)}
    for name, path in sorted(_files().items()):
        info = _describe(path, name, embedded=False)
        if info is not None:
            found.setdefault(name, info)
    return [info for info in found.values() if info is not None]


def load_graph(spec: str, *, symmetrise: bool = False, root: Path | str | None = None) -> Graph:
    """Load and validate the graph that `spec` names.

    Args:
        spec: a known name, the path of an ``.npz``, ``EDGES.csv`` or ``EDGES.csv+TABLE``, ``pyg:NAME``, ``ogb:NAME``
            or ``generated:KEY=VALUE,...`` with the fields of `GeneratorSettings` (``degree`` for short).
        symmetrise: take every edge as undirected instead of refusing an asymmetric list.
        root: where PyG and OGB data lies, by default `data_root`.

    Raises:
        MisuseError: an unknown name, with the nearest one. GraphError: the graph cannot be trained on.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        return _load_scheme(scheme, rest, symmetrise, Path(root) if root is not None else data_root())
    edges, _, table = spec.partition("+")
    if Path(edges).suffix.lower() in TABLE_FILES:
        from halocast.runtime.graph.csv import load_csv

        return load_csv(edges, table or None, symmetrise=symmetrise)
    if Path(spec).suffix.lower() in {".pt", ".pth", ".pkl", ".pickle"}:
        raise GraphError(f"{spec}: a pickle; halocast never unpickles files: save its arrays as .npz instead")
    from halocast.runtime.graph.npz import load_npz

    return load_npz(_path_of(spec), symmetrise=symmetrise)


def _path_of(spec: str) -> Path:
    if spec in {EMBEDDED, EMBEDDED_ALIAS}:
        return embedded_path()
    if spec.endswith(".npz"):
        return Path(spec)
    files = _files()
    if spec in files:
        return files[spec]
    raise MisuseError(
        f"data set '{spec}' is unknown{nearest(spec, [EMBEDDED, *sorted(files)])}; "
        "or a path ending in .npz or .csv, pyg:NAME, ogb:NAME, generated:nodes=N,degree=D"
    )


def _load_scheme(scheme: str, rest: str, symmetrise: bool, root: Path) -> Graph:
    if scheme == "pyg":
        from halocast.runtime.graph.pyg import load_pyg

        return load_pyg(rest, root / "pyg", symmetrise=symmetrise)
    if scheme == "ogb":
        from halocast.runtime.graph.ogb import load_ogb

        return load_ogb(rest, root / "ogb", symmetrise=symmetrise)
    return _generate(rest)


def _generate(text: str) -> Graph:
    from halocast.runtime.graph.generator import GeneratorSettings, generate_graph

    kinds = {field.name: int if field.type in {"int", int} else float for field in fields(GeneratorSettings)}
    settings: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        name = "average_degree" if key == "degree" else key
        if not equals or name not in kinds:
            raise MisuseError(f"generated:{text}: '{key}' is unknown{nearest(key, kinds)}")
        try:
            settings[name] = kinds[name](value)
        except ValueError as error:
            raise MisuseError(f"generated:{text}: {key} must be a number, not '{value}'") from error
    for needed in ("nodes", "average_degree"):
        if needed not in settings:
            raise MisuseError(f"generated:{text}: {needed} is missing, as in generated:nodes=100000,degree=30")
    nodes, degree = int(settings.pop("nodes")), float(settings.pop("average_degree"))
    communities = settings.setdefault("communities", max(4, min(GeneratorSettings.communities, nodes // 20)))
    settings.setdefault("classes", max(2, min(GeneratorSettings.classes, communities)))
    return generate_graph(nodes, degree, **settings)


def _files() -> dict[str, Path]:
    """Names on the search path; the first folder that has one wins."""
    found: dict[str, Path] = {}
    for folder in search_path():
        for path in _npz_in(folder):
            found.setdefault(path.stem, path)
    found.pop(EMBEDDED_ALIAS, None)
    return found


def _npz_in(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("*.npz"))) if folder.is_dir() else iter(())


def _describe(path: Path, name: str, *, embedded: bool) -> DatasetInfo | None:
    """A file's facts from its headers and small arrays; None for anything but a readable static graph."""
    from halocast.runtime.graph.graph import choose_metric, count_classes
    from halocast.runtime.graph.npz import SPARSE_FEATURES, edge_facts, open_npz, read_meta

    try:
        with open_npz(path) as archive:
            edges, labels, meta = archive.shape("edge_index"), archive.read("y"), read_meta(archive)
            shape = archive.shape("x") if "x" in archive else tuple(archive.read(SPARSE_FEATURES[-1]).tolist())
            edge_dim, relations = edge_facts(archive)
            listed = archive.read("edge_index") if edge_dim or relations else None
    except GraphError:
        return None
    if len(edges) != 2 or len(shape) != 2 or labels.ndim not in {1, 2} or labels.dtype.kind not in "iu":
        return None
    count = edges[1] if listed is None else int((listed[0] < listed[1]).sum())  # edge data may come for both directions
    truth = labels if labels.ndim == 2 else labels.astype(np.int64)
    asked = meta.get("metric")
    return DatasetInfo(
        name=name,
        nodes=shape[0],
        edges=count,
        features=shape[1],
        classes=int(meta.get("classes") or count_classes(truth)),
        multilabel=labels.ndim == 2,
        metric=choose_metric(str(asked) if asked else None, truth, str(path)),
        licence=str(meta.get("licence", "")),
        path=str(path),
        embedded=embedded,
        edge_dim=edge_dim,
        relations=relations,
    )
