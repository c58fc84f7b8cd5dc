"""Names, paths and schemes become graphs; unknown ones name the nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halocast.errors import GraphError, MisuseError
from halocast.runtime.graph.datasets import DATA_VARIABLE, data_root, embedded_path, known_datasets, load_graph, search_path
from halocast.runtime.graph.generator import generate_graph, write_generated
from halocast.runtime.graph.npz import save_npz


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one good graph, one dynamic and one damaged file; nothing else on the search path."""
    save_npz(generate_graph(300, 4, features=3, classes=3, communities=6), tmp_path / "mini.npz")
    np.savez(tmp_path / "events.npz", src=np.zeros(2), dst=np.zeros(2), t=np.zeros(2))
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    return tmp_path


def test_known(folder: Path) -> None:
    embedded, mini = known_datasets()
    assert (embedded.name, embedded.nodes, embedded.edges, embedded.features) == ("debian", 63_666, 322_726, 256)
    assert (embedded.classes, embedded.metric, embedded.embedded) == (30, "accuracy", True)
    graph = load_graph("mini")
    assert (mini.name, mini.path, mini.embedded) == ("mini", str(folder / "mini.npz"), False)
    assert (mini.nodes, mini.edges, mini.features, mini.classes) == (300, graph.edges, 3, 3)


def test_embedded_graph_by_both_names(folder: Path) -> None:
    graph = load_graph("debian")
    assert (graph.nodes, graph.edges, graph.feature_dim, graph.classes) == (63_666, 322_726, 256, 30)
    assert (graph.train_mask.sum(), graph.val_mask.sum(), graph.test_mask.sum()) == (38_200, 12_733, 12_733)
    assert graph.degrees.max() == 21_845
    assert load_graph("debian_packages").fingerprint == graph.fingerprint
    assert embedded_path().is_file()


def test_a_path_and_a_name_are_the_same_graph(folder: Path) -> None:
    assert load_graph(str(folder / "mini.npz")).fingerprint == load_graph("mini").fingerprint


def test_search_path_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DATA_VARIABLE, f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert search_path() == [tmp_path / "a", tmp_path / "b", Path("data"), Path("../shared/data")]
    assert data_root() == tmp_path / "a"
    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == tmp_path / "halocast" / "data"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("debain", "data set 'debain' is unknown; did you mean 'debian'"),
        ("minni", "data set 'minni' is unknown; did you mean 'mini'"),
        ("zzzz", "data set 'zzzz' is unknown; allowed: debian, broken, events, mini; or a path"),
        ("generated:nodes=100", "average_degree is missing, as in generated:nodes=100000,degree=30"),
        ("generated:nodes=100,degre=3", "'degre' is unknown; did you mean 'average_degree|degre"),
        ("generated:nodes=many,degree=3", "nodes must be a number, not 'many'"),
        ("generated:nodes=100,degree=3,homophily=2", "homophily = 2.0 is out of range"),
        ("generated:nodes=100,degree=3,relations=-1", "relations = -1 is out of range; allowed: 0 to 10000"),
        ("generated:nodes=100,degree=3,edge_dims=2", "'edge_dims' is unknown; did you mean 'edge_dim'"),
        ("pyg:Nothing", "pyg:Nothing is unknown"),
    ],
)
def test_misuse(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        load_graph(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.npz", "absent.npz: no such file"),
        ("events", "a dynamic graph"),
        ("broken", "truncated or damaged"),
        ("absent.csv", "no table of nodes beside it"),
        ("data.pt", "halocast never unpickles files"),
    ],
)
def test_unusable(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load_graph(spec)


def test_generated(folder: Path) -> None:
    graph = load_graph("generated:nodes=400,degree=6,classes=4,communities=8,features=5,homophily=0.6,seed=3")
    same = generate_graph(400, 6.0, classes=4, communities=8, features=5, homophily=0.6, seed=3)
    assert graph.fingerprint == same.fingerprint


def test_generated_with_edge_data(folder: Path) -> None:
    graph = load_graph("generated:nodes=400,degree=6,relations=4,edge_dim=8")
    assert (len(graph.relations), graph.edge_dim) == (8, 8)


def test_known_datasets_say_what_edges_carry(folder: Path) -> None:
    write_generated(folder / "typed.npz", 100, 4, features=2, classes=2, communities=2, relations=3, edge_dim=5)
    write_generated(folder / "untyped.npz", 100, 4, features=2, classes=2, communities=2)
    known = {each.name: each for each in known_datasets()}
    assert (known["typed"].edge_dim, known["typed"].relations) == (5, 3)
    assert (known["untyped"].edge_dim, known["untyped"].relations) == (0, 0)
    save_npz(load_graph("typed"), folder / "both.npz")  # with inverse relations and both directions of every edge
    both = next(each for each in known_datasets() if each.name == "both")
    assert (both.edges, both.edge_dim, both.relations) == (known["typed"].edges, 5, 6)


def test_csv_with_a_named_table(folder: Path) -> None:
    (folder / "e.csv").write_text("a,b\n")
    (folder / "t.csv").write_text("id,label,f,split\na,0,1,train\nb,1,2,test\n")
    graph = load_graph(f"{folder / 'e.csv'}+{folder / 't.csv'}", symmetrise=True)
    assert graph.indices.tolist() == [1, 0]


def test_real_ogb_layout_is_looked_for_under_the_root(folder: Path) -> None:
    with pytest.raises(MisuseError, match=r"is not in .*roots.ogb.ogbn_arxiv"):
        load_graph("ogb:ogbn-arxiv", root=folder / "roots")
