"""Edge lists with node tables: formats, ids, labels, splits, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from halocast.errors import GraphError
from halocast.runtime.graph.csv import load_csv

TABLE = """id,label,split,width,height
a,blue,train,1,2
b,red,val,3,4
c,blue,test,5,6
d,,,7,8
"""
EDGES = "source,target\na,b\nb,a\nc,b\nb,c\n"


def write(folder: Path, edges: str = EDGES, table: str = TABLE, name: str = "g.csv") -> Path:
    (folder / f"{Path(name).stem}.nodes.csv").write_text(table)
    (folder / name).write_text(edges)
    return folder / name


def test_string_ids_and_labels(tmp_path: Path) -> None:
    graph = load_csv(write(tmp_path))
    assert graph.name == "g"
    assert graph.indptr.tolist() == [0, 1, 3, 4, 4]
    assert graph.indices.tolist() == [1, 0, 2, 1]
    np.testing.assert_array_equal(graph.features, np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32))
    assert graph.labels.tolist() == [0, 1, 0, -1]
    assert graph.meta["label_names"] == ["blue", "red"]
    assert [np.flatnonzero(each).tolist() for each in (graph.train_mask, graph.val_mask, graph.test_mask)] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("g.tsv", "a\tb\nb\ta\nb\tc\nc\tb\n"),
        ("g.txt", "# from somewhere\n#\na b\nb a\nb c\nc b\n"),
        ("g.csv", "# comment\na,b,0.5\nb,a,0.5\nb,c,1\nc,b,1\n"),
        ("g.csv", '"Source","Target","weight"\n"a","b",1\n"b","a",1\n"b","c",1\n"c","b",1\n'),
        ("g.csv", "u;v\na;b\nb;a\nb;c\nc;b\n"),
    ],
)
def test_edge_formats_mean_the_same(tmp_path: Path, name: str, edges: str) -> None:
    expected = load_csv(write(tmp_path)).fingerprint
    assert load_csv(write(tmp_path, edges, name=name)).fingerprint == expected


def test_integer_ids_in_any_order(tmp_path: Path) -> None:
    table = "id,label,f\n30,1,0.5\n10,0,1.5\n20,2,2.5\n"
    graph = load_csv(write(tmp_path, "10,30\n30,10\n20,10\n10,20\n", table))
    assert graph.indices.tolist() == [1, 0, 2, 1]
    assert graph.labels.tolist() == [1, 0, 2]


def test_ids_that_look_like_numbers_in_one_file_only(tmp_path: Path) -> None:
    graph = load_csv(write(tmp_path, "01,x\nx,01\n", "id,label,f\n01,1,0.5\nx,0,1.5\n1,0,2.5\n"))
    assert graph.indptr.tolist() == [0, 1, 2, 2]


def test_ids_named_na_stay_ids(tmp_path: Path) -> None:
    graph = load_csv(write(tmp_path, "NA,x\nx,NA\n", "id,label,f\nx,1,0.5\ny,1,0.5\nNA,0,1.5\n"))
    assert graph.indptr.tolist() == [0, 1, 1, 2]


def test_parquet_table_and_multilabel(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b", "c"], "f": [1.0, 2.0, 3.0], "label:x": [1, 0, 1], "label:y": [0, 0, 1]})
    frame.to_parquet(tmp_path / "table.parquet")
    (tmp_path / "e.csv").write_text("a,b\nb,a\n")
    graph = load_csv(tmp_path / "e.csv", tmp_path / "table.parquet")
    assert graph.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert graph.meta["label_names"] == ["x", "y"]
    assert (graph.train_mask.sum(), graph.val_mask.sum(), graph.test_mask.sum()) == (2, 1, 0)


def test_one_way_edges(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\nb,c\n")
    with pytest.raises(GraphError, match=r"not symmetric: 0 -> 1 \(edge 0\).*symmetrise"):
        load_csv(path)
    assert load_csv(path, symmetrise=True).indices.tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("edges", "table", "message"),
    [
        ("", TABLE, "g.csv: the file is empty"),
        ("# only\n", TABLE, "g.csv: the edge list is empty"),
        ("a\nb\n", TABLE, "g.csv: cannot be read as an edge list"),
        ("a,b\nb,a\nb,zed\n", TABLE, "g.csv: edge 2 names node 'zed', which g.nodes.csv does not have"),
        (EDGES, "", "g.nodes.csv: the file is empty"),
        (EDGES, TABLE.replace("id,", "ids,").replace("width", "w"), "column 'id' is missing; did you mean 'ids'"),
        (EDGES, TABLE.replace("label,", "labels,"), "column 'label' .* is missing; did you mean 'labels'"),
        (EDGES, TABLE + "a,red,test,1,1\n", "id 'a' appears more than once"),
        (EDGES, TABLE.replace("train,", "tran,"), "split 'tran' is unknown; did you mean 'train'"),
        (EDGES, TABLE.replace("3,4", "3,tall"), "feature column 'height' is (object|str)"),
        (EDGES, TABLE.replace("3,4", "3,"), "feature 1 of node 1 is nan"),
        (EDGES, TABLE.replace("train", "test"), "no training nodes"),
        (EDGES, TABLE.replace("d,,,", "d,,train,"), "node 3 is in train_mask but has no label"),
        (EDGES, "id,label\na,1\nb,1\nc,0\n", "no feature columns beside id, label"),
        (EDGES, "id,label,f\na,1.5,1\nb,1,1\nc,0,1\n", "the label of row 0 is not a whole number"),
        (EDGES, "id,label:x,f\na,2,1\nb,1,1\nc,0,1\n", "'label:x' of row 0 is 2; allowed: 0 and 1"),
    ],
)
def test_bad_files(tmp_path: Path, edges: str, table: str, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        load_csv(write(tmp_path, edges, table))
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"no table of nodes beside it; name one as e.csv\+TABLE"):
        load_csv(tmp_path / "e.csv")
    (tmp_path / "nodes.csv").write_text(TABLE)
    with pytest.raises(GraphError, match=r"e.csv: no such file"):
        load_csv(tmp_path / "e.csv")


TYPED = "source,target,relation,feature:weight\nb,a,cites,0.5\nb,c,extends,2\n"


def test_relations_and_features_of_one_way_edges(tmp_path: Path) -> None:
    graph = load_csv(write(tmp_path, TYPED), symmetrise=True)
    assert graph.relations == ("cites", "extends", "inverse of cites", "inverse of extends")
    assert graph.edge_types is not None
    assert graph.edge_features is not None
    assert graph.edge_types.tolist() == [0, 2, 3, 1]  # b -> a, a -> b, c -> b, b -> c
    assert graph.edge_features.tolist() == [[0.5], [0.5], [2], [2]]


def test_relations_of_edges_both_ways_in_the_declared_order(tmp_path: Path) -> None:
    edges = "# made by hand\n# relations: extends, cites\nfrom\tto\tRelation\nb\ta\tcites\na\tb\textends\n\n"
    graph = load_csv(write(tmp_path, edges, name="g.tsv"))
    assert graph.relations == ("extends", "cites")
    assert graph.edge_types is not None
    assert graph.edge_types.tolist() == [1, 0]
    spaced = edges.replace("\t", " ")
    assert load_csv(write(tmp_path, spaced, name="g.txt")).fingerprint == graph.fingerprint


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (f"# relations: cites, extend\n{TYPED}", "relation 'extends' of edge 1 is unknown; did you mean 'extend'"),
        ("# relations: cites\na,b\nb,a\n", "relations are declared, but the header has no column 'relation'"),
        (f"# relations: cites,,\n{TYPED}", "'relations: cites,,' must name different relations"),
        (f"# relations: cites, cites\n{TYPED}", "'relations: cites, cites' must name different relations"),
        (TYPED.replace("extends", ""), "edge 1 has no relation; name one for every edge"),
        (TYPED.replace("0.5", "heavy"), "column 'feature:weight' of edge 0 is 'heavy', needed is a number"),
        (TYPED.replace("0.5", ""), "column 'feature:weight' of edge 0 is '', needed is a number"),
        (TYPED + "b,a,extends,0.5\n", "edges 0 and 2 both give the message 1 -> 0 as 'cites' and as 'extends'"),
    ],
)
def test_bad_edge_data(tmp_path: Path, edges: str, message: str) -> None:
    with pytest.raises(GraphError, match=f"g.csv: {message}") as caught:
        load_csv(write(tmp_path, edges), symmetrise=True)
    assert "\n" not in str(caught.value)


def test_one_way_edges_with_relations_want_symmetrise(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"not symmetric: 1 -> 0 \(edge 0\).*symmetrise"):
        load_csv(write(tmp_path, TYPED))
