"""Rebuild the embedded Debian package graph from an apt index.

    python scripts/build_debian_graph.py [PACKAGES ...] --out debian_packages.npz

PACKAGES are ``Packages`` files, plain or .gz, .xz, .bz2, .lz4; without any, those that ``apt-get update`` left on this
machine are taken, the release before its security and update lists. A package that several lists have is taken from
the first of them.

- nodes: packages by name; edges: Pre-Depends, Depends, Recommends and Suggests with all their alternatives, undirected;
  a virtual package stands for its providers unless there are more than eight; what no list has is dropped
- classes: the 29 most frequent sections and "other"; split: random 60/20/20, seed 0
- features: 256-dim signed hashed bag of words (crc32, smooth IDF, L2, rounded to 1/512) of name, short description and
  debtags. The section is no feature.

From the lists named in the shipped file's ``meta`` this gives its nodes, edges, classes and split exactly. Its features
were hashed with another function and another tokeniser: same recipe, other columns.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import gzip
import json
import lzma
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from halocast.runtime.graph.graph import random_split
from halocast.runtime.graph.npz import feature_arrays, write_npz

APT_LISTS = Path("/var/lib/apt/lists")
RELATIONS = ("Pre-Depends", "Depends", "Recommends", "Suggests")
MAX_PROVIDERS = 8
FEATURES = 256
NAMED_SECTIONS = 29
GRID = 512  # features are multiples of 1/512: they compress, and no learner sees the difference

Package = Mapping[str, str]


def read_index(path: Path) -> str:
    """The text of a ``Packages`` file, unpacked by its suffix."""
    if path.suffix == ".lz4":
        program = shutil.which("lz4")
        if program is None:
            sys.exit(f"{path}: reading .lz4 needs the lz4 program (apt-get install lz4), or unpack it first")
        return subprocess.run([program, "-dc", str(path)], check=True, capture_output=True).stdout.decode()
    openers = {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}
    content = path.read_bytes()
    return openers.get(path.suffix, bytes)(content).decode()


def parse_packages(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a ``Packages`` file as field -> value, continuation lines joined by a space (Debian policy 5.1)."""
    for stanza in re.split(r"\n{2,}", text.strip("\n")):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in {" ", "\t"}:
                fields[name] += f" {line.strip()}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def first_of_each(packages: Iterable[Package]) -> dict[str, Package]:
    """Packages by name in name order; of several with one name, the first."""
    found: dict[str, Package] = {}
    for package in packages:
        found.setdefault(package["Package"], package)
    return dict(sorted(found.items()))


def names_in(field: str) -> Iterator[str]:
    """Package names of a relation field, all alternatives, without versions and architectures."""
    for clause in re.split(r"[,|]", field):
        name = re.split(r"[\s(:\[<]", clause.strip(), maxsplit=1)[0]
        if name:
            yield name


def relate(packages: Mapping[str, Package]) -> tuple[npt.NDArray[np.int32], dict[str, int]]:
    """Undirected edges int32 [2, E], u < v, unique and sorted, and how many relations of each sort were met."""
    row = {name: number for number, name in enumerate(packages)}
    providers: dict[str, set[int]] = collections.defaultdict(set)
    for name, package in packages.items():
        for virtual in names_in(package.get("Provides", "")):
            providers[virtual].add(row[name])
    counts = dict.fromkeys(
        ("real", "virtual", f"virtual with > {MAX_PROVIDERS} providers, dropped", "not in the archive, dropped"), 0
    )
    real, virtual_, crowded, unknown = counts
    pairs: list[tuple[int, int]] = []
    for name, package in packages.items():
        for target in (each for field in RELATIONS for each in names_in(package.get(field, ""))):
            if target in row:
                counts[real] += 1
                pairs.append((row[name], row[target]))
            elif target not in providers:
                counts[unknown] += 1
            elif len(providers[target]) > MAX_PROVIDERS:
                counts[crowded] += 1
            else:
                counts[virtual_] += 1
                pairs.extend((row[name], provider) for provider in providers[target])
    ends = np.sort(np.array(pairs, dtype=np.int64).reshape(-1, 2), axis=1)
    keys = np.unique(ends[ends[:, 0] < ends[:, 1]] @ np.array([len(row), 1]))
    return np.stack(np.divmod(keys, max(len(row), 1))).astype(np.int32), counts


def classify(packages: Mapping[str, Package]) -> tuple[npt.NDArray[np.int16], list[str]]:
    """Class of each package, int16 [N], and the classes' names: the most frequent sections, then "other"."""
    sections = [package.get("Section", "").rpartition("/")[2] for package in packages.values()]
    frequent = sorted(collections.Counter(sections).items(), key=lambda item: (-item[1], item[0]))[:NAMED_SECTIONS]
    number = {section: each for each, (section, _) in enumerate(frequent)}
    return np.array([number.get(each, len(number)) for each in sections], dtype=np.int16), [*number, "other"]


def words(package: Package) -> list[str]:
    """Tokens of the name, the short description (words) and the debtags (whole)."""
    text = f"{package['Package']} {package.get('Description', '')}".lower()
    tags = [tag.strip() for tag in package.get("Tag", "").split(",") if tag.strip()]
    return re.findall(r"[a-z][a-z0-9+]+", text) + tags


def hash_words(documents: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """Signed feature hashing (Weinberger et al., ICML 2009), smooth IDF, rows of length about 1: float32 [N, FEATURES]."""
    vocabulary: dict[str, int] = {}
    columns = np.array([vocabulary.setdefault(word, len(vocabulary)) for words in documents for word in words], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum([len(words) for words in documents])])
    counts = sparse.csr_matrix((np.ones(columns.size), columns, starts), shape=(len(documents), len(vocabulary)))
    counts.sum_duplicates()
    appearances = np.bincount(counts.indices, minlength=len(vocabulary))
    weight = np.log((1 + len(documents)) / (1 + appearances)) + 1
    code = np.array([zlib.crc32(word.encode()) for word in vocabulary], dtype=np.int64)
    sign = np.where(code >> 31, -1.0, 1.0)
    place = (np.arange(len(vocabulary)), code % FEATURES)
    folded = sparse.csr_matrix(counts @ sparse.csr_matrix((weight * sign, place), shape=(len(vocabulary), FEATURES)))
    folded.eliminate_zeros()
    folded.sort_indices()
    length = np.sqrt(np.asarray(folded.multiply(folded).sum(axis=1)).ravel())
    folded.data = np.rint(folded.data / np.repeat(length, np.diff(folded.indptr)) * GRID) / GRID
    folded.eliminate_zeros()
    return folded.astype(np.float32)


def build(texts: Iterable[str], source: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the .npz layout from the texts of ``Packages`` files, the first of which wins."""
    packages = first_of_each(package for text in texts for package in parse_packages(text))
    if not packages:
        sys.exit("no packages in the index")
    edges, relations = relate(packages)
    labels, sections = classify(packages)
    features = hash_words([words(package) for package in packages.values()])
    train, val, test = random_split(labels.astype(np.int64))
    meta = {
        "name": "debian_packages",
        "kind": "static",
        "nodes": len(packages),
        "edges": int(edges.shape[1]),
        "features": FEATURES,
        "feature_nnz": int(features.nnz),
        "classes": len(sections),
        "multilabel": False,
        "label_names": sections,
        "relations": relations,
        "x_kind": "256-dim signed hashed bag of words (IDF, L2) of name + short description + debtags; Section excluded",
        "split": "random 60/20/20, seed 0",
        "train": int(train.sum()),
        "val": int(val.sum()),
        "test": int(test.sum()),
        "unlabelled": 0,
        "source": source,
        "citation": "Debian Project, package lists; graph built here",
        "licence": "package metadata of Debian: facts and short descriptions under each package's own free licence (DFSG); "
        "redistributable",
    }
    masks = {"train_mask": train, "val_mask": val, "test_mask": test}
    return {
        "edge_index": edges,
        **feature_arrays(features),
        "y": labels,
        **masks,
        "meta": np.array(json.dumps(meta, sort_keys=True)),
    }


def installed_indexes(folder: Path) -> list[Path]:
    """The apt lists in a folder: a release's own first, then its security list, then its updates."""

    def rank(path: Path) -> tuple[int, str]:
        return (2 if "-updates_" in path.name else 1 if "-security_" in path.name else 0, path.name)

    return sorted((path for path in folder.glob("*_Packages*") if path.is_file()), key=rank)


def main() -> None:
    """Build the graph from the command line's indexes and say what is in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", nargs="*", type=Path, help="Packages files; by default apt's own")
    parser.add_argument("--out", type=Path, default=Path("debian_packages.npz"))
    arguments = parser.parse_args()
    indexes = arguments.packages or installed_indexes(APT_LISTS)
    if not indexes:
        parser.error(f"no Packages files given and none in {APT_LISTS}; run apt-get update, or name one")
    missing = [path for path in indexes if not path.is_file()]
    if missing:
        parser.error(f"{missing[0]} does not exist")
    source = f"Debian package lists ({', '.join(path.name for path in indexes)})"
    arrays = build((read_index(path) for path in indexes), source)
    write_npz(arguments.out, arrays)
    meta = json.loads(str(arrays["meta"]))
    shown = {key: meta[key] for key in ("nodes", "edges", "feature_nnz", "classes", "train", "val", "test", "relations")}
    print(f"{arguments.out}: {json.dumps(shown)}")


if __name__ == "__main__":
    main()
