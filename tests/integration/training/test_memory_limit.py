"""`halocast train --memory`: what is chosen depends on the limit, fits into it, and is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.integration.training.test_train import halocast

from halocast.cli.memory import Fitted, fit
from halocast.errors import MisuseError
from halocast.runtime.config import RunConfig, resolve

GRAPH = "generated:nodes=6000,degree=24,features=16,classes=5,seed=3"
RUN = {
    "graph": GRAPH,
    "ranks": 4,
    "model": {"layer": "gat", "hidden": 128},
    "partition": {"method": "random"},
    "training": {"epochs": 3},
}


def config(memory: int, **sections: object) -> RunConfig:
    return resolve({**RUN, "memory": f"{memory}B", **sections}, "test")


def fitted(memory: int, *, given: bool = False, **sections: object) -> Fitted:
    return fit(config(memory, **sections), method_is_given=given, costs=None, report=lambda text: None)


def least_of(error: BaseException) -> int:
    """The bytes that a refusal says are needed."""
    found = re.search(r"may need (\d+) MB", str(error))
    assert found
    return int(found[1]) * 10**6


def test_less_memory_keeps_less_and_fetches_more() -> None:
    roomy = fitted(10**9)
    assert roomy.config.method.name == "full"
    chosen = []
    limit = int(roomy.outcome.peak) - 1
    while True:
        try:
            chosen.append(fitted(limit))
        except MisuseError as error:
            least = least_of(error)
            break
        assert chosen[-1].outcome.peak <= limit
        limit = int(chosen[-1].outcome.peak) - 1
    methods = [each.config.method for each in chosen]
    assert {each.name for each in methods} == {"sar"}
    exchanged = [each.outcome.exchange_bytes for each in chosen]
    assert len(chosen) > 3
    assert exchanged == sorted(exchanged)  # each step down costs bytes, or hides fewer of them
    first, last = (each.kept_layers(3) for each in (methods[0], methods[-1]))
    assert first
    assert set(last) < set(first)  # what the last layer keeps is gone before the others need most
    assert methods[-1].prefetch == 0
    assert not methods[-1].exact.keep_halo_features
    assert int(chosen[-1].outcome.peak) <= least <= int(chosen[-1].outcome.peak) + 10**6


def test_a_method_that_is_given_stays() -> None:
    assert fitted(10**9, given=True, method={"name": "sar"}).config.method.name == "sar"
    with pytest.raises(MisuseError, match=r"no way of training fits in 1 MB a rank: .* may need \d+ MB \(full\)"):
        fitted(10**6, given=True)
    with pytest.raises(MisuseError, match=r"may need \d+ MB \(sar nothing kept 0 ahead\)|\(sar layers 2 kept 0 ahead\)"):
        fitted(10**6)


def test_bad_limits_get_one_line(tmp_path: Path) -> None:
    for arguments, said in (
        (["--memory", "plenty"], "is no memory size: write a number"),
        (["--memory", "1MB"], "needs least may need"),
        (["--memory", "1GB", "--method", "adaqp"], "--memory chooses between full and sar"),
        (["--memory", "1GB", "--method", "sar", "--set", "method.keep=true"], "--memory chooses method.keep"),
        (["--set", "model.layer=gat", "--set", "model.options.self_loops=False"], "self_loops = 'False' is not allowed"),
        (["--costs", "costs.json"], "--costs tell --memory what fits"),
    ):
        finished = halocast("train", GRAPH, "--ranks", "2", *arguments, cwd=tmp_path, check=2)
        assert said in finished.stderr.splitlines()[-1]
        assert not (tmp_path / "runs").exists()


def test_a_run_says_what_it_chose_and_stays_within(tmp_path: Path) -> None:
    limit = int(fitted(10**9).outcome.peak) - 1
    (tmp_path / "run.toml").write_text(
        f'graph = "{GRAPH}"\nranks = 4\n[model]\nlayer = "gat"\n[partition]\nmethod = "random"\n[training]\nepochs = 3\n'
    )
    finished = halocast("train", "run.toml", "--memory", f"{limit}B", "--out", "run", "--json", cwd=tmp_path)
    document = json.loads(finished.stdout)
    memory = document["memory"]
    assert document == json.loads((tmp_path / "run" / "result.json").read_text())
    assert document["method"] == memory["method"] == "sar"
    assert memory["within"]
    assert max(document["peak_bytes"]) <= memory["limit_bytes"] == limit
    for measured, foreseen in zip(document["peak_bytes"], memory["forecast_peak_bytes"], strict=True):
        assert measured <= 1.03 * foreseen  # a forecast that is too low is the unsafe one
    assert re.search(r"the fastest of \d+ ways that stays within .* a rank: sar ", finished.stderr)
    again = halocast("train", "--out", "run", "--resume", "--epochs", "4", "--json", cwd=tmp_path)
    resumed = json.loads(again.stdout)
    assert resumed["memory"] == {"limit_bytes": limit, "within": True}  # chosen once: neither anew nor forgotten
    assert resumed["method"] == "sar"


def test_a_layer_that_wants_all_its_neighbours_is_not_offered_one_part_at_a_time() -> None:
    opaque = {"layer": "tests.support.layers:OpaqueSAGE", "hidden": 128}
    with pytest.raises(MisuseError, match=r"may need \d+ MB \(full\)"):
        fitted(10**6, model=opaque)
