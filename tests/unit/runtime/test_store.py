"""Shards are cut once, found again, and cut anew when what they were made of has changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from halocast.errors import MisuseError
from halocast.runtime.config import resolve
from halocast.runtime.graph.shard import MANIFEST, ShardSet
from halocast.runtime.graph.store import find_shards, prepare_shards

GRAPH = "generated:nodes=80,degree=4,features=4"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALOCAST_CACHE", str(tmp_path / "cache"))


def shards(method: str = "metis", seed: int = 0, folder: Path | None = None) -> tuple[ShardSet, list[str]]:
    steps: list[str] = []
    made = prepare_shards(
        GRAPH, 2, method=method, objective="cut", balance="nodes", seed=seed, folder=folder, report=steps.append
    )
    return made, steps


def test_the_second_time_nothing_is_cut() -> None:
    first, steps = shards()
    assert any("partitioning" in step for step in steps)
    again, steps = shards()
    assert again.folder == first.folder
    assert not any("partitioning" in step for step in steps)
    assert shards(seed=1)[0].folder != first.folder


@pytest.mark.parametrize("change", [{"version": 0}, {"partition": {"method": "metis"}}])
def test_the_cache_of_another_version_is_made_anew(change: dict[str, object]) -> None:
    first, _ = shards()
    path = first.folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    again, steps = shards()
    assert any("partitioning" in step for step in steps)
    assert again.manifest == first.manifest


def test_a_partition_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "parts.npy"
    np.save(path, np.arange(80) % 2)
    first, _ = shards(method=str(path))
    np.save(path, np.arange(80) // 40)
    second, _ = shards(method=str(path))
    assert first.folder != second.folder
    assert second.statistics(0).own == 40


def test_a_folder_of_ones_own_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shards(folder=folder)
    with pytest.raises(MisuseError, match="holds the shards of another partition"):
        shards(seed=1, folder=folder)
    assert shards(folder=folder)[0].folder == folder


def test_shares_are_part_of_what_shards_are_found_by() -> None:
    def of(shares: tuple[float, ...]) -> tuple[ShardSet, list[str]]:
        steps: list[str] = []
        made = prepare_shards(
            GRAPH, 2, method="metis", objective="cut", balance="nodes", seed=0, shares=shares, report=steps.append
        )
        return made, steps

    plain, unequal = shards()[0], of((1.0, 3.0))[0]
    assert of(())[0].folder == plain.folder
    assert "shares" not in plain.manifest["partition"]  # what was cut before there were shares stays valid
    assert unequal.folder != plain.folder
    assert unequal.statistics(0).own < 0.35 * 80 < unequal.statistics(1).own
    again, steps = of((1.0, 3.0))
    assert again.folder == unequal.folder
    assert not any("partitioning" in step for step in steps)
    assert of((3.0, 1.0))[0].folder != unequal.folder


def test_a_runs_shares_are_those_of_its_ranks() -> None:
    document = {"graph": GRAPH, "ranks": 2, "partition": {"shares": [1.0, 3.0]}}
    config = resolve(document, "test")
    assert find_shards(config, lambda text: None).statistics(1).own > 0.65 * 80
    assert find_shards(config, lambda text: None, parts=4).parts == 4  # coarser ones, to fit sizes to, are even
    with pytest.raises(MisuseError, match=r"^test: 2 partition shares for 3 ranks: give one a rank"):
        resolve({**document, "ranks": 3}, "test")
    with pytest.raises(MisuseError, match="greater than 0"):
        resolve({**document, "partition": {"shares": [1.0, 0.0]}}, "test")
