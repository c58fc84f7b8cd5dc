"""What a sweep knows of a graph is what shards of it say."""

from __future__ import annotations

from pathlib import Path

import pytest

from halocast.cli.capacity import GraphSource, open_grid
from halocast.cli.scenario import _statistics, resolve_flags
from halocast.errors import MisuseError
from halocast.runtime.graph.store import find_shards
from halocast.simulator.whatif.points import PartKey


@pytest.mark.parametrize(("objective", "layer"), [("cut", "sage"), ("volume", "gcn")])
def test_statistics_are_those_of_shards(objective: str, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALOCAST_CACHE", str(tmp_path))
    flags = {"ranks": 3, "partition.objective": objective, "model.layer": layer}
    config = resolve_flags("debian", flags, [])
    expected = _statistics(config, find_shards(config, lambda text: None))
    assert expected[0].features_sparse  # the embedded graph's are, so that aggregated values count
    source = GraphSource(resolve_flags("debian", {}, []), fitted=False)
    found = source.parted(PartKey(3, f"metis/{objective}", layer, 1.0, 1.0))
    assert found.parts == tuple(expected)
    assert (found.spread, found.assumed) == (0.0, ())


def test_a_graph_is_loaded_when_it_is_asked_about() -> None:
    _, _, source = open_grid({"data": "nowhere.npz", "cluster": {"ranks": 2}}, "grid")
    with pytest.raises(MisuseError, match="nowhere"):
        _ = source.subject


def test_layers_of_ones_own_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('graph = "debian"\n[model]\nlayer = "my.module:Layer"\n')
    with pytest.raises(MisuseError, match=r"'my\.module:Layer' cannot be forecast without building it; give"):
        open_grid({"data": str(path)}, "grid")
    grid, _, _ = open_grid({"data": str(path), "model": {"layer": ["gcn", "sage"]}}, "grid")
    assert grid.axes["layer"] == ("gcn", "sage")


def test_shares_are_of_one_number_of_ranks(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('graph = "debian"\nranks = 2\n[partition]\nshares = [1, 2]\n')
    with pytest.raises(MisuseError, match=r"partition\.shares are for one number of ranks"):
        open_grid({"data": str(path)}, "grid")
