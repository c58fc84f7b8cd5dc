"""An edge list in a text file with a table of nodes beside it.

Edge list: CSV, TSV or space-separated, the first two columns being node ids, with or without a header, ``#`` starting a
comment line. Both directions of every edge are expected; ``symmetrise`` takes each line as an undirected edge. Under a
header, a column ``relation`` gives each edge its relation by name and columns ``feature:NAME`` its features. A comment line
``# relations: cites, extends`` declares the relations there are, in their order; without it they are those found, sorted.

Node table (CSV, TSV or Parquet), one row a node: ``id``; ``label`` (integers as they are, anything else numbered in
sorted order, missing for none) or several ``label:NAME`` columns of zeros and ones for multi-label; optionally
``split`` (train, val or valid, test, or empty); every other column is a feature, in the table's order.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from halocast.errors import GraphError, nearest
from halocast.runtime.graph.adjacency import undirected_pairs
from halocast.runtime.graph.edges import list_arguments
from halocast.runtime.graph.graph import Graph, Labels, Mask, random_split, validate

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "": "",
}
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
MULTILABEL_PREFIX = "label:"
RELATION = "relation"
FEATURE_PREFIX = "feature:"
DECLARATION = "relations:"
ENDPOINTS = frozenset(
    {"source", "target", "src", "dst", "from", "to", "u", "v", "node1", "node2", "id1", "id2", "node_1", "node_2"}
)
READ_ERRORS = (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError, OSError, pa.ArrowException)


def load_csv(edges: Path | str, table: Path | str | None = None, *, symmetrise: bool = False) -> Graph:
    """Load and validate a graph from an edge list and a node table.

    Args:
        edges: the edge list.
        table: the node table; by default ``STEM.nodes.*`` or ``nodes.*`` beside the edge list.
        symmetrise: take every line as an undirected edge instead of refusing an asymmetric list.

    Raises:
        GraphError: one line on a missing, empty or malformed file, an unknown id, or an unusable graph.
    """
    edges = Path(edges)
    table = Path(table) if table is not None else find_table(edges)
    nodes = _read_table(table)
    listed = _node_rows(edges, table, nodes)
    pairs = undirected_pairs(listed, len(nodes), str(edges), symmetrise=symmetrise)
    edge_data = list_arguments(listed, len(nodes), *_edge_data(edges))
    labels, label_names = _labels(nodes, table)
    train, val, test = _split(nodes, labels, table)
    graph = Graph.from_edges(
        *(listed if edge_data else pairs),
        name=edges.stem,
        features=_features(nodes, table),
        labels=labels,
        train_mask=train,
        val_mask=val,
        test_mask=test,
        meta={"source": f"{edges.name}, {table.name}", "label_names": label_names},
        source=str(edges),
        **edge_data,
    )
    return validate(graph, str(edges))


def find_table(edges: Path) -> Path:
    """The node table that belongs to an edge list."""
    names = [f"{stem}{suffix}" for stem in (f"{edges.stem}.nodes", "nodes") for suffix in TABLE_SUFFIXES]
    for name in names:
        if (edges.parent / name).is_file():
            return edges.parent / name
    raise GraphError(f"{edges}: no table of nodes beside it; name one as {edges.name}+TABLE, or add {' or '.join(names[::3])}")


def _read_table(path: Path) -> pd.DataFrame:
    _check_file(path)
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    except READ_ERRORS as error:
        raise GraphError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from error
    table.columns = table.columns.map(str)
    if "id" not in table:
        raise GraphError(f"{path}: column 'id' is missing{nearest('id', table.columns)}")
    repeated = table["id"].duplicated()
    if repeated.any():
        raise GraphError(f"{path}: id '{table['id'][repeated].iloc[0]}' appears more than once")
    return table


def _node_rows(path: Path, table: Path, nodes: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Rows of the table that each edge's two ids mean, int64 [2, edges]."""
    edges = _read_edges(path)
    ids = pd.Index(nodes["id"])
    if not all(pd.api.types.is_integer_dtype(kind) for kind in (ids.dtype, *edges.dtypes)):
        edges = _read_edges(path, dtype=str)
        ids = pd.Index(nodes["id"] if table.suffix == ".parquet" else _ids_as_text(table)).astype(str)
    rows = np.stack([ids.get_indexer(pd.Index(edges[column])) for column in edges.columns])
    unknown = (rows < 0).any(axis=0)
    if unknown.any():
        at = int(unknown.argmax())
        name = str(edges.iloc[at, int(rows[0, at] >= 0)])
        raise GraphError(
            f"{path}: edge {at} names node '{name}', which {table.name} does not have ({int(unknown.sum())} such edges)"
        )
    return rows.astype(np.int64)


def _ids_as_text(table: Path) -> pd.Series[Any]:
    separator = "\t" if table.suffix == ".tsv" else ","
    return pd.read_csv(table, sep=separator, usecols=["id"], dtype=str, keep_default_na=False)["id"]


def _read_edges(path: Path, dtype: type[str] | None = None) -> pd.DataFrame:
    return _read_columns(path, [0, 1], dtype).set_axis(["source", "target"], axis=1)


def _read_columns(path: Path, columns: list[int], dtype: type[str] | None = None) -> pd.DataFrame:
    """Columns of an edge list by number, ascending."""
    _check_file(path)
    separator, header = _edge_format(path)
    try:
        return pd.read_csv(
            path,
            sep=separator,
            header=0 if header else None,
            usecols=columns,
            comment="#",
            dtype=cast(Any, dtype),
            keep_default_na=False,
        )
    except READ_ERRORS as error:
        raise GraphError(f"{path}: cannot be read as an edge list: {' '.join(str(error).split())}") from error


def _edge_data(path: Path) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.int32] | None, list[str] | None]:
    """Features [edges, E], types [edges] and names of the relations, as far as the header names such columns."""
    _, header = _edge_format(path)
    features = [at for at, name in enumerate(header) if name.startswith(FEATURE_PREFIX)]
    rows = _edge_features(path, features) if features else None
    declared = _declared_relations(path)
    if RELATION not in header:
        if declared is not None:
            raise GraphError(f"{path}: relations are declared, but the header has no column '{RELATION}'")
        return rows, None, None
    names = _read_columns(path, [header.index(RELATION)], str).iloc[:, 0].str.strip()
    if (names == "").any():
        raise GraphError(f"{path}: edge {int((names == '').to_numpy().argmax())} has no relation; name one for every edge")
    relations = sorted(names.unique()) if declared is None else declared
    types = pd.Index(relations).get_indexer(pd.Index(names))
    if (types < 0).any():
        at = int((types < 0).argmax())
        raise GraphError(f"{path}: relation '{names.iloc[at]}' of edge {at} is unknown{nearest(names.iloc[at], relations)}")
    return rows, types.astype(np.int32), relations


def _edge_features(path: Path, columns: list[int]) -> npt.NDArray[np.float32]:
    table = _read_columns(path, columns)
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            wrong = int(pd.to_numeric(table[name], errors="coerce").isna().to_numpy().argmax())
            raise GraphError(f"{path}: column '{name}' of edge {wrong} is '{table[name].iloc[wrong]}', needed is a number")
    return table.to_numpy(dtype=np.float32)


def _declared_relations(path: Path) -> list[str] | None:
    """The relations that a comment line above the edges declares; None without one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in takewhile(lambda line: not line.strip() or line.startswith("#"), file):
            comment = line.removeprefix("#").strip()
            if comment.lower().startswith(DECLARATION):
                names = [name.strip() for name in comment[len(DECLARATION) :].split(",")]
                if not all(names) or len(set(names)) < len(names):
                    raise GraphError(f"{path}: '{comment}' must name different relations, with commas between them")
                return names
    return None


def _edge_format(path: Path) -> tuple[str, list[str]]:
    """(separator, names of the columns or none of them) of an edge list, from its first line that is no comment.

    A header is a line whose first two fields are column names, not ids.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.strip() and not line.startswith("#")), "")
    if not line:
        raise GraphError(f"{path}: the edge list is empty")
    separator = next((mark for mark in ("\t", ",", ";") if mark in line), r"\s+")
    fields = [field.strip().strip('"').lower() for field in (line.split() if separator == r"\s+" else line.split(separator))]
    return separator, fields if all(field in ENDPOINTS for field in fields[:2]) else []


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise GraphError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise GraphError(f"{path}: the file is empty")


def _labels(nodes: pd.DataFrame, path: Path) -> tuple[Labels, list[str]]:
    """Labels and the names of the classes."""
    several = [name for name in nodes.columns if name.startswith(MULTILABEL_PREFIX)]
    if several:
        names = [name.removeprefix(MULTILABEL_PREFIX) for name in several]
        values = nodes[several].to_numpy()
        if not np.isin(values, (0, 1)).all():
            row, column = np.argwhere(~np.isin(values, (0, 1)))[0]
            raise GraphError(f"{path}: '{several[column]}' of row {row} is {values[row, column]}; allowed: 0 and 1")
        return values.astype(np.uint8), names
    if "label" not in nodes:
        raise GraphError(
            f"{path}: column 'label' (or several '{MULTILABEL_PREFIX}NAME') is missing{nearest('label', map(str, nodes))}"
        )
    column = nodes["label"]
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        whole = np.where(np.isnan(numbers), -1, numbers)
        if not np.array_equal(whole, np.floor(whole)):
            raise GraphError(f"{path}: the label of row {int((whole != np.floor(whole)).argmax())} is not a whole number")
        return whole.astype(np.int64), []
    codes, values_in_order = pd.factorize(column, sort=True)
    return codes.astype(np.int64), [str(value) for value in values_in_order]


def _split(nodes: pd.DataFrame, labels: Labels, path: Path) -> tuple[Mask, Mask, Mask]:
    if "split" not in nodes:
        return random_split(labels)
    asked = nodes["split"].fillna("").astype(str).str.strip().str.lower()
    unknown = ~asked.isin(list(SPLITS))
    if unknown.any():
        value = asked[unknown].iloc[0]
        raise GraphError(f"{path}: split '{value}' is unknown{nearest(value, [name for name in SPLITS if name])}")
    chosen = asked.map(SPLITS).to_numpy()
    return chosen == "train", chosen == "val", chosen == "test"


def _features(nodes: pd.DataFrame, path: Path) -> npt.NDArray[np.float32]:
    reserved = {"id", "label", "split"}
    names = [name for name in nodes.columns if name not in reserved and not name.startswith(MULTILABEL_PREFIX)]
    if not names:
        raise GraphError(f"{path}: no feature columns beside {', '.join(nodes.columns)}")
    for name in names:
        if not pd.api.types.is_numeric_dtype(nodes[name]):
            raise GraphError(f"{path}: feature column '{name}' is {nodes[name].dtype}, needed are numbers")
    return nodes[names].to_numpy(dtype=np.float32, na_value=np.nan)
