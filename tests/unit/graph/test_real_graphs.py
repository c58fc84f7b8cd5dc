"""Every static graph of the shared data folder loads, validates and has the counts its own facts state."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from halocast.runtime.graph.npz import load_npz
from halocast.runtime.graph.partition import communication_volume, edge_cut, partition_graph

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("HALOCAST_DATA", str(REPOSITORY.parent / "shared" / "data")).split(os.pathsep)[0])
METRICS = {"deezer_hu": "micro_f1", "tolokers": "roc_auc", "minesweeper": "roc_auc"}
STATIC = (
    "amazon_photo", "citeseer", "coauthor_physics", "cora", "dblp", "debian_packages",
    "deezer_hu", "github_social", "minesweeper", "pubmed", "tolokers", "twitch_de",
)  # fmt: skip


def real(name: str) -> Path:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{name}.npz is not in $HALOCAST_DATA or ../shared/data")
    return path


@pytest.mark.parametrize("name", STATIC)
def test_counts(name: str) -> None:
    graph = load_npz(real(name))
    facts = graph.meta
    assert graph.name == name
    counts = (graph.nodes, graph.edges, graph.feature_dim, graph.classes, graph.multilabel)
    assert counts == tuple(facts[key] for key in ("nodes", "edges", "features", "classes", "multilabel"))
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    assert tuple(int(mask.sum()) for mask in masks) == tuple(facts[key] for key in ("train", "val", "test"))
    assert graph.metric == METRICS.get(name, "accuracy")
    assert int(np.count_nonzero(graph.features if isinstance(graph.features, np.ndarray) else graph.features.data)) > 0


@pytest.mark.parametrize(
    ("name", "parts", "cut", "halo"),
    [
        ("cora", 2, 197, 273),
        ("cora", 8, 526, 766),
        ("pubmed", 4, 2612, 3252),
        ("amazon_photo", 8, 20040, 8307),
        ("debian_packages", 2, 22126, 13478),
        ("debian_packages", 4, 43822, 29634),
        ("debian_packages", 8, 61244, 45132),
    ],
)
def test_metis_gives_the_published_cut_and_halo(name: str, parts: int, cut: int, halo: int) -> None:
    """Recursive bisection, seed 0, unit weights: the figures published with the data sets."""
    graph = load_npz(real(name))
    assignment = partition_graph(graph, parts)
    assert edge_cut(graph, assignment) == cut
    assert communication_volume(graph, assignment) == halo


@pytest.mark.parametrize("name", ["cora", "pubmed", "amazon_photo", "tolokers", "debian_packages"])
def test_the_volume_objective_sends_fewer_rows_on_real_graphs(name: str) -> None:
    graph = load_npz(real(name))
    cut, volume = (partition_graph(graph, 4, objective=objective) for objective in ("cut", "volume"))
    assert communication_volume(graph, volume) < communication_volume(graph, cut)
