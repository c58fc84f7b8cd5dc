"""The script that rebuilds the embedded graph, on a made-up package index worked out by hand."""

from __future__ import annotations

import gzip
import importlib.util
import json
import lzma
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from halocast.runtime.graph.npz import load_npz, write_npz

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "build_debian_graph.py"

MAIN = """Package: editor
Version: 2.0
Depends: libtext (>= 1.0) | libtext-old, mail-agent, python3:any
Pre-Depends: base
Recommends: absent-package
Description: edits text
Tag: role::program,
 works-with::text
Section: text

Package: libtext
Version: 1.4
Description: text library
Section: libs

Package: base
Version: 1
Description: the base system
Section: admin

Package: python3
Version: 3.11
Suggests: editor [amd64], python3
Depends: many
Description: interpreter
Section: contrib/python

Package: postfix
Provides: mail-agent (= 1), many
Description: mail
Section: mail

Package: exim
Provides: mail-agent, many
Description: mail
Section: mail
"""
SECURITY = """Package: editor
Version: 2.1
Depends: exim, nothing-else
Section: text

"""
CROWD = "".join(f"Package: crowd{number}\nProvides: many\nDescription: crowd\nSection: misc\n\n" for number in range(7))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_debian_graph", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_relations(script: ModuleType) -> None:
    packages = script.first_of_each([*script.parse_packages(MAIN), *script.parse_packages(SECURITY)])
    assert list(packages) == ["base", "editor", "exim", "libtext", "postfix", "python3"]
    assert packages["editor"]["Version"] == "2.0"
    assert packages["editor"]["Tag"] == "role::program, works-with::text"
    edges, counts = script.relate(packages)
    expected = [("base", "editor"), ("editor", "exim"), ("editor", "libtext"), ("editor", "postfix"), ("editor", "python3")]
    expected += [("exim", "python3"), ("postfix", "python3")]
    names = list(packages)
    assert [(names[u], names[v]) for u, v in edges.T] == expected
    assert counts == {
        "real": 5,  # libtext, python3, base; editor and itself from python3
        "virtual": 2,  # mail-agent, many
        "virtual with > 8 providers, dropped": 0,
        "not in the archive, dropped": 2,  # libtext-old, absent-package
    }


def test_crowded_virtual_packages_are_dropped(script: ModuleType) -> None:
    packages = script.first_of_each(script.parse_packages(MAIN + "\n" + CROWD))
    edges, counts = script.relate(packages)
    assert edges.shape[1] == 5
    assert counts["virtual with > 8 providers, dropped"] == 1


def test_classes(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "NAMED_SECTIONS", 2)
    labels, names = script.classify(script.first_of_each(script.parse_packages(MAIN)))
    assert names == ["mail", "admin", "other"]
    assert labels.tolist() == [1, 2, 0, 2, 0, 2]


def test_hashing_equals_the_formula(script: ModuleType) -> None:
    documents = [["a", "b", "a"], ["b"], []]
    rows = script.hash_words(documents).toarray()
    assert rows.dtype == np.float32
    code = {"a": 0xE8B7BE43, "b": 0x71BEEFF9}  # CRC-32 of the two letters
    idf = {"a": np.log(4 / 2) + 1, "b": np.log(4 / 3) + 1}
    expected = np.zeros((3, 256))
    expected[0, code["a"] % 256] = -2 * idf["a"]
    expected[0, code["b"] % 256] = idf["b"]
    expected[0] /= np.linalg.norm(expected[0])
    expected[1, code["b"] % 256] = 1
    np.testing.assert_allclose(rows, expected, atol=0.5 / 512 + 1e-7)
    np.testing.assert_array_equal(rows * 512, np.rint(rows * 512))


def test_the_section_is_no_word(script: ModuleType) -> None:
    package = next(iter(script.parse_packages(MAIN)))
    assert script.words(package) == ["editor", "edits", "text", "role::program", "works-with::text"]


def test_built_graph_loads_and_is_reproducible(script: ModuleType, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, script.build([MAIN, SECURITY], "made up"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    graph = load_npz(tmp_path / "a.npz")
    assert (graph.nodes, graph.edges, graph.feature_dim) == (6, 7, 256)
    assert graph.meta["source"] == "made up"
    assert (graph.train_mask.sum(), graph.val_mask.sum(), graph.test_mask.sum()) == (4, 1, 1)


def test_indexes_in_any_packing(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "Packages").write_text(MAIN)
    (tmp_path / "Packages.gz").write_bytes(gzip.compress(MAIN.encode()))
    (tmp_path / "Packages.xz").write_bytes(lzma.compress(MAIN.encode()))
    for path in tmp_path.iterdir():
        assert script.read_index(path) == MAIN
    if shutil.which("lz4"):
        subprocess.run(["lz4", "-q", str(tmp_path / "Packages"), str(tmp_path / "Packages.lz4")], check=True)
        assert script.read_index(tmp_path / "Packages.lz4") == MAIN


def test_the_release_comes_before_its_updates(script: ModuleType, tmp_path: Path) -> None:
    names = ["deb_dists_x-security_main_Packages", "deb_dists_x-updates_main_Packages", "deb_dists_x_main_Packages.lz4"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in script.installed_indexes(tmp_path)] == [names[2], names[0], names[1]]


def test_shipped_graph_states_what_the_script_counts(script: ModuleType) -> None:
    """The embedded file's facts have the keys that a rebuilt one has."""
    shipped = load_npz(SCRIPT.parents[1] / "runtime" / "graph" / "data" / "debian_packages.npz").meta
    built = json.loads(str(script.build([MAIN], "made up")["meta"]))
    assert set(built) <= set(shipped)
    assert set(built["relations"]) == set(shipped["relations"])  # type: ignore[call-overload]
