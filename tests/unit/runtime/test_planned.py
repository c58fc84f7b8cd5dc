"""What a plan says of a run, what a run may not contradict, and the sentence at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.plans import EXACT, MODEL, make_plan

from halocast.errors import GraphError, MisuseError
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.partition import read_assignment
from halocast.runtime.graph.store import find_shards
from halocast.runtime.planned import compare_with_plan, follow, plan_of
from halocast.runtime.run import check
from halocast.traces.plan import Plan

SPEC = "generated:nodes=120,degree=6,features=8,classes=3,communities=4,seed=3"
ACCURACY = {"train": 0.9, "val": 0.8, "test": 0.702}
EPOCHS = {0: 9.0, 1: 5.0, 2: 0.419, 3: 0.419, 4: 3.0}
"""Of which the first two are not counted."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plans") / "plan"
    make_plan(place, SPEC, reassign_every=4)
    return place


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    planned = plan_of(resolve(follow({}, read(folder), str(folder)), "test"))
    assert planned is not None
    return planned


def read(folder: Path) -> Plan:
    from halocast.traces.plan import read_plan

    return read_plan(folder)


def config_of(folder: Path, **document: Any) -> RunConfig:
    return resolve(follow(document, read(folder), str(folder)), "test")


def test_the_plan_alone_makes_a_run(folder: Path) -> None:
    config = config_of(folder)
    arrays = str(folder / "arrays.npz")
    assert (config.graph, config.ranks, config.hosts, config.plan) == (SPEC, 2, "local", str(folder))
    assert config.model.model_dump() | MODEL == config.model.model_dump()
    assert config.method.exact.model_dump() == EXACT
    assert (config.method.name, config.method.bits, config.method.reassign_every) == ("adaqp", arrays, 4)
    assert config.partition.method == arrays


def test_what_the_user_says_stays_and_the_plan_fills_in_around_it(folder: Path) -> None:
    config = config_of(
        folder, hosts="shaped:1gbit", seed=5, training={"epochs": 7}, method={"bits": 4, "exact": {"transform_first": True}}
    )
    assert (config.hosts, config.seed, config.training.epochs, config.method.bits) == ("shaped:1gbit", 5, 7, 4)
    assert config.method.exact.transform_first
    assert not config.method.exact.aggregate_features_once
    assert config.model.hidden == MODEL["hidden"]


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"ranks": 4}, r"ranks = 4, but the plan in .*plan is for 2: leave it out, or make a plan for 4 with"),
        ({"model": {"hidden": 64}}, r"model\.hidden = 64, but the plan in .*plan is for 16"),
        ({"model": {"layer": "gcn"}}, r"model\.layer = 'gcn', but the plan in .*plan is for 'sage'"),
        ({"model": {"dropout": 0.5}}, r"model\.dropout = 0\.5, but .* is for 0\.2"),
        ({"method": {"name": "full", "bits": None}}, r"method\.name = 'full', but the plan in .*plan is for 'adaqp'"),
    ],
)
def test_a_run_that_contradicts_its_plan_is_refused(folder: Path, document: dict[str, Any], line: str) -> None:
    with pytest.raises(MisuseError, match=line):
        check(config_of(folder, **document).model_copy(update={"hosts": "local"}))


def test_another_graph_is_refused_by_name_before_its_partition_is_looked_at(folder: Path, plan: Plan) -> None:
    other = SPEC.replace("seed=3", "seed=4").replace("nodes=120", "nodes=130")
    graph = load_graph(other)
    with pytest.raises(MisuseError) as refused:
        find_shards(config_of(folder, graph=other), lambda text: None)
    assert f"'{plan.graph.name}' ({plan.graph.fingerprint[:12]})" in str(refused.value)
    assert f"'{graph.name}' ({graph.fingerprint[:12]})" in str(refused.value)


@pytest.mark.parametrize(
    ("partition", "line"),
    [
        (np.full(120, 2, np.int32), r"puts node 0 in part 2, but parts run from 0 to 1"),
        (np.zeros(120, np.int32), r"leaves part 1 of 2 empty"),
        (np.arange(119, dtype=np.int32) % 2, r"119 entries for the 120 nodes"),
        (np.zeros(120), r"must hold one integer a node"),
    ],
)
def test_a_partition_that_does_not_fit_is_one_line(partition: np.ndarray, line: str, tmp_path: Path) -> None:
    make_plan(tmp_path / "plan", SPEC, arrays={"partition": partition})
    with pytest.raises(GraphError, match=line) as refused:
        find_shards(config_of(tmp_path / "plan"), lambda text: None)
    assert "\n" not in str(refused.value)


def test_a_partition_is_read_out_of_an_archive_and_missed_in_one(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "arrays.npz") as archive:
        assert read_assignment(folder / "arrays.npz").tolist() == archive["partition"].tolist()
    np.savez(tmp_path / "other.npz", parts=np.zeros(3))
    with pytest.raises(GraphError, match=r"other\.npz: array 'partition' is missing; found: parts"):
        read_assignment(tmp_path / "other.npz")


def test_arrays_changed_after_the_plan_was_made_are_refused(tmp_path: Path) -> None:
    _, arrays = make_plan(tmp_path / "plan", SPEC)
    config = config_of(tmp_path / "plan")
    np.savez(tmp_path / "plan" / "arrays.npz", **{**arrays, "partition": np.zeros(120, np.int32)})
    with pytest.raises(MisuseError, match=r"arrays\.npz is not the one that .*plan\.json was written with"):
        check(config)


# -- the verdict ----------------------------------------------------------------------------------------------------


def outcome(plan: Plan, folder: Path, epochs: dict[int, float] | None = None, **document: Any) -> dict[str, Any]:
    return compare_with_plan(plan, config_of(folder, **document), EPOCHS if epochs is None else epochs, ACCURACY)


def test_the_verdict_says_forecast_measured_plain_and_accuracy(plan: Plan, folder: Path) -> None:
    said = outcome(plan, folder)
    assert said["verdict"] == (
        "forecast 0.412 s [0.398, 0.431], measured 0.419 s (−1.7 %), 3.4 × plain; accuracy 0.702 against 0.701"
    )
    assert said["error"] == pytest.approx(0.412 / 0.419 - 1.0)
    assert said["plan"] == str(folder)
    assert said["forecast"] == {
        "epoch_seconds": 0.412, "low": 0.398, "high": 0.431, "peak_bytes": [7, 8], "bytes_per_epoch": 1000,
    }  # fmt: skip


def test_the_verdict_without_a_baseline_or_with_one_that_was_not_measured(plan: Plan, folder: Path) -> None:
    assert plan.baseline is not None
    bare = outcome(plan.model_copy(update={"baseline": None}), folder)["verdict"]
    assert bare == "forecast 0.412 s [0.398, 0.431], measured 0.419 s (−1.7 %)"
    forecast = plan.baseline.model_copy(update={"measured": False, "accuracy": None})
    assert outcome(plan.model_copy(update={"baseline": forecast}), folder)["verdict"] == f"{bare}, 3.4 × plain as forecast"


def test_short_epochs_are_told_in_milliseconds(plan: Plan, folder: Path) -> None:
    quick = plan.model_copy(
        update={
            "baseline": None,
            "forecast": plan.forecast.model_copy(update={"epoch_seconds": 0.0125, "low": 0.012, "high": 0.014}),
        }
    )
    said = outcome(quick, folder, {0: 1.0, 1: 1.0, 2: 0.01})["verdict"]
    assert said == "forecast 12.5 ms [12, 14], measured 10 ms (+25.0 %)"


def test_two_epochs_are_too_few_to_judge(plan: Plan, folder: Path) -> None:
    said = outcome(plan, folder, {0: 0.4, 1: 0.4})
    assert said["error"] is None
    assert said["verdict"].startswith("forecast 0.412 s [0.398, 0.431], not measured: that takes more than 2 epochs; accuracy")


def test_a_run_that_differs_from_what_was_planned_says_so(plan: Plan, folder: Path) -> None:
    planned = plan.model_copy(update={"hosts": "shaped:200mbit", "baseline": None})
    assert outcome(planned, folder)["verdict"].endswith("(−1.7 %); planned for shaped:200mbit")
    changed = outcome(planned, folder, hosts="shaped:200mbit", method={"bits": 4, "overlap": False})["verdict"]
    assert changed.endswith("(−1.7 %); not as planned: method.bits, method.overlap")
