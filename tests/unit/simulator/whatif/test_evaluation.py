"""A row says what `halocast forecast` says of the same scenario."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from tests.unit.simulator.whatif.grids import RUN_FILE, grid_of

from halocast.cli import run
from halocast.cli.capacity import open_evaluator
from halocast.errors import MisuseError
from halocast.simulator.costs import Costs
from halocast.simulator.pricing import OperationTable
from halocast.simulator.whatif.change import Change
from halocast.simulator.whatif.evaluation import Evaluator
from halocast.simulator.whatif.points import Point, resolve
from halocast.simulator.whatif.tornado import tornado
from halocast.traces.operations import Wait

H100 = {"device": "H100", "network": "ethernet-100g"}
ASKED = [
    ({"ranks": 2}, ["--ranks", "2"]),
    ({"ranks": 3, "link": "200mbit"}, ["--ranks", "3", "--link", "200mbit"]),
    ({"ranks": 4, "network": "25gbit"}, ["--ranks", "4", "--network", "25gbit"]),
    (
        {"ranks": 4, "devices_per_host": 2, "network": "ethernet-10g", "inside": "pcie-5"},
        ["--ranks", "4", "--ranks-per-host", "2", "--network", "ethernet-10g", "--inside", "pcie-5"],
    ),
    ({"ranks": 4, **H100}, ["--ranks", "4", "--device", "h100", "--network", "ethernet-100g"]),
    (
        {"ranks": 4, **H100, "method": "adaqp", "bits": 2, "transport": "nccl"},
        ["--ranks", "4", "--device", "h100", "--network", "ethernet-100g", "--method", "adaqp", "--bits", "2",
         "--transport", "nccl"],
    ),
    (
        {"ranks": 8, **H100, "devices_per_host": 2, "inside": "nvlink-4", "hosts_per_switch": 2, "oversubscription": 4.0,
         "all_reduce": "tree"},
        ["--ranks", "8", "--device", "h100", "--network", "ethernet-100g", "--ranks-per-host", "2", "--inside", "nvlink-4",
         "--hosts-per-switch", "2", "--oversubscription", "4", "--all-reduce", "tree"],
    ),
    (
        {"ranks": 4, **H100, "savings": "labelled_gradients_only", "partition": "metis/volume", "hidden": 32, "layers": 2},
        ["--ranks", "4", "--device", "h100", "--network", "ethernet-100g", "--hidden", "32", "--layers", "2",
         "--set", "method.exact.labelled_gradients_only=true", "--set", "partition.objective=volume"],
    ),
    (
        {"ranks": 4, **H100, "method": "sar"},
        ["--ranks", "4", "--device", "h100", "--network", "ethernet-100g", "--method", "sar"],
    ),
    (
        {"ranks": 4, **H100, "method": "sar", "keep": "0+1", "prefetch": 2},
        ["--ranks", "4", "--device", "h100", "--network", "ethernet-100g", "--method", "sar", "--set", "method.prefetch=2",
         "--set", "method.keep=[0, 1]"],
    ),
    ({"ranks": 1, **H100}, ["--ranks", "1", "--device", "h100", "--network", "ethernet-100g"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def free(evaluator: Callable[..., Evaluator]) -> Evaluator:
    return evaluator(cluster={"ranks": [1, 2, 3, 4, 8]})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def forecast_of(
    arguments: list[str], costs: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setenv("HALOCAST_CACHE", str(cache))
    assert run(["forecast", str(costs), "--data", str(RUN_FILE), *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["forecast"]
    return found


@pytest.mark.parametrize(("point", "flags"), ASKED)
def test_a_row_is_the_forecast(
    point: dict[str, Any],
    flags: list[str],
    free: Evaluator,
    movable_file: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = forecast_of(flags, movable_file, cache, capsys, monkeypatch)
    row = free.row(point)
    for key in ("epoch_seconds", "low", "high", "bytes_per_epoch", "exchange_bytes_per_epoch", "extrapolated"):
        assert row[key] == (pytest.approx(said[key], rel=1e-12) if isinstance(said[key], float) else said[key]), key
    for part, seconds in said["breakdown"].items():
        assert row[part.replace(" ", "_").replace("-", "_")] == pytest.approx(seconds, rel=1e-12)
    assert row["peak_bytes"] == max(said["peak_bytes"])
    assert row["peak_high"] == max(said["peak_high"])
    assert row["training_seconds"] == pytest.approx(100 * said["epoch_seconds"])
    assert row["feasible"]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_rounds_in_flight_are_the_run_files(
    prefetch: int,
    movable: Costs,
    movable_file: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.read_text().replace("[method]", f"[method]\nprefetch = {prefetch}"))
    flags = ["--data", str(path), "--ranks", "4", "--device", "h100", "--network", "1gbit", "--method", "sar"]
    monkeypatch.setenv("HALOCAST_CACHE", str(cache))
    assert run(["forecast", str(movable_file), *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["forecast"]
    cluster = {"ranks": 4, "device": "H100", "network": "1gbit"}
    row = open_evaluator(grid_of(data=str(path), cluster=cluster, training={"method": "sar"}), movable, "grid").row({})
    assert row["epoch_seconds"] == pytest.approx(said["epoch_seconds"], rel=1e-12)


def test_more_ranks_than_partitions_are_fitted_as_in_a_forecast(
    evaluator: Callable[..., Evaluator],
    movable_file: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--ranks", "24", "--partitions", "fitted", "--device", "h100", "--network", "ethernet-100g"]
    said = forecast_of(flags, movable_file, cache, capsys, monkeypatch)
    row = evaluator(cluster={"ranks": 24, **H100}, partitions="fitted").row({})
    assert row["epoch_seconds"] == pytest.approx(said["epoch_seconds"], rel=1e-12)
    assert (row["low"], row["high"]) == pytest.approx((said["low"], said["high"]), rel=1e-12)
    assert row["extrapolated"] == said["extrapolated"]


def test_a_table_of_operations_is_priced_as_each_is_alone(free: Evaluator, movable: Costs) -> None:
    point = resolve({**{name: values[0] for name, values in free.grid.axes.items()}, "ranks": 4, "method": "adaqp", "bits": 3})
    for device in ("", "H100"):
        costs = free._costs(device, "", "")[0]
        work = free._structure(*point.structure).work[1]
        seconds, reasons = OperationTable.of(work.operations).price(costs, free.subject.fingerprint, 4)
        alone = [None if isinstance(each, Wait) else costs.price(each, free.subject.fingerprint, 4) for each in work.operations]
        assert seconds.tolist() == [0.0 if price is None else price.seconds for price in alone]
        texts = [text for price in alone if price for text in price.extrapolated.split("; ") if text]
        assert reasons == tuple(dict.fromkeys(texts))


def test_costs_are_of_devices_or_of_shared_hosts(evaluator: Callable[..., Evaluator]) -> None:
    prices = {"currency": "EUR", "H100": 4.0, "calibrated": 0.5}
    priced = evaluator(cluster={"ranks": [2, 4], "device": ["calibrated", "H100"], "network": "ethernet-100g"}, prices=prices)
    row = priced.row({"ranks": 4, "device": "h100"})
    assert row["cost"] == pytest.approx(row["training_seconds"] / 3600 * 4 * 4.0)
    assert row["cost_high"] == pytest.approx(row["training_high"] / 3600 * 4 * 4.0)
    twice = priced.row({"ranks": 4, "device": "h100", "price_per_hour": 8.0})
    assert twice["cost"] == pytest.approx(2 * row["cost"])
    host = priced.row({"ranks": 4, "device": "calibrated", "devices_per_host": 2, "inside": "pcie-5"})
    assert (host["hosts"], host["price_per_hour"]) == (2, 0.5)
    assert host["cost"] == pytest.approx(host["training_seconds"] / 3600 * 2 * 0.5)
    assert evaluator(cluster={"ranks": 2}).row({})["cost"] is None


def test_filters_say_everything_that_is_missed(evaluator: Callable[..., Evaluator]) -> None:
    filters = {"memory": "1kB", "deadline": 1e-3, "budget": 1e-9}
    strict = evaluator(cluster={"ranks": 2}, prices={"currency": "EUR", "default": 1.0}, filters=filters)
    row = strict.row({})
    assert not row["feasible"]
    memory, deadline, budget = row["reason"].split("; ")
    assert memory == f"may need more memory than there is: {row['peak_high'] / 1e9:.3g} GB of 1e-06 GB"
    assert deadline.startswith("misses the deadline: ")
    assert deadline.endswith(" of 1 ms")
    assert budget.startswith("is over the budget: ")
    assert row["epoch_seconds"] > 0  # it has a forecast all the same
    roomy = evaluator(cluster={"ranks": 2}, filters={"memory": "device", "deadline": "1h"})
    assert roomy.row({})["feasible"]


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ({"ranks": 8, "devices_per_host": 3, **H100, "inside": "pcie-5"}, "hosts are not full: ranks 8 on hosts of 3"),
        ({"ranks": 12_001, **H100}, "more ranks than nodes: 12001 for 12000"),
        ({"ranks": 4, "devices_per_host": 2, **H100}, "nothing joins the devices of a host: give inside, for 2 of them"),
        ({"ranks": 4, "device": "H100"}, "nothing joins the hosts: give a network"),
    ],
)
def test_what_cannot_be_says_why(free: Evaluator, point: dict[str, Any], reason: str) -> None:
    row = free.row(point)
    assert (row["feasible"], row["reason"]) == (False, reason)
    assert "epoch_seconds" not in row


def test_an_operation_that_was_never_calibrated_is_a_reason(free: Evaluator) -> None:
    row = free.row({"ranks": 2, "savings": "all"})
    assert row["reason"].startswith("no calibrated cost for Transform ")
    assert "; " not in row["reason"]


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"rank": 4}, "unknown input 'rank'; did you mean 'ranks'?"),
        ({"device": "h10"}, "unknown 'h10'; did you mean 'h100'?"),
        ({"bits": 7}, "no width"),
        ({"price_per_hour": -1}, "price_per_hour = -1: allowed are numbers from 0 on"),
        ({"price_per_hour": "dear"}, "price_per_hour: 'dear' is no number"),
    ],
)
def test_a_misspelt_point_is_refused(free: Evaluator, point: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        free.row(point)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"hosts": 2}, "point: hosts needs devices_per_host: ranks are their product"),
        ({"hosts": 2, "ranks": 4, "devices_per_host": 2}, "point: ranks and hosts both say how many"),
        ({"ranks": 2, "link": "1gbit", "network": "1gbit"}, "point: network and link both say what joins the ranks"),
    ],
)
def test_a_point_contradicts_itself_as_little_as_a_grid(free: Evaluator, point: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        free.row(point)


def test_a_point_replaces_what_the_grid_says_otherwise(evaluator: Callable[..., Evaluator]) -> None:
    by_link = evaluator(cluster={"ranks": 2, "link": ["100mbit", "1gbit"]})
    assert by_link.row({"network": "25gbit"}) == evaluator(cluster={"ranks": 2, "network": "25gbit"}).row({})
    by_hosts = evaluator(cluster={"hosts": 2, "devices_per_host": 2, **H100, "inside": "pcie-5"})
    assert by_hosts.row({"hosts": 1})["ranks"] == 2
    assert by_hosts.row({"ranks": 4})["hosts"] == 2


def test_growth_is_assumed_and_widens_the_interval(evaluator: Callable[..., Evaluator]) -> None:
    grows = evaluator(cluster={"ranks": [4], **H100}, growth={"nodes": ["x1", "x10"], "edges": ["x1", "x10"]})
    usual, grown = grows.row({}), grows.row({"nodes": 10, "edges": 10})
    assert (grown["nodes"], grown["edges"]) == (120_000, 10 * usual["edges"])
    # the same communities at ten times the size: ten times the halo, up to what the fit is off at 4 parts
    assert grown["exchange_bytes_per_epoch"] == pytest.approx(10 * usual["exchange_bytes_per_epoch"], rel=0.15)
    assert any("graph grown to 10 x its nodes" in each for each in grown["extrapolated"])
    assert grown["high"] / grown["epoch_seconds"] > usual["high"] / usual["epoch_seconds"]
    assert evaluator(cluster={"ranks": [4], **H100}, growth={"nodes": "x10"}).row({}) == grown | {"name": ANY}
    denser = grows.row({"nodes": 1, "edges": 10})
    assert usual["exchange_bytes_per_epoch"] < denser["exchange_bytes_per_epoch"] < grown["exchange_bytes_per_epoch"] * 1.2


def test_changes_move_what_they_should(free: Evaluator) -> None:
    inputs = {**{name: values[0] for name, values in free.grid.axes.items()}, "ranks": 4, **H100, "network": "200mbit"}
    point = resolve(inputs)
    usual = free.evaluate(point)
    faster = free.evaluate(point, Change(compute_speed=2.0))
    assert faster["compute"] == pytest.approx(usual["compute"] / 2, rel=0.05)  # waking up takes as long as before
    assert free.evaluate(point, Change(link_rate=0.5))["epoch_seconds"] > 1.5 * usual["epoch_seconds"]
    assert free.evaluate(point, Change(message_bytes=2.0))["epoch_seconds"] > 1.5 * usual["epoch_seconds"]
    assert free.evaluate(point, Change(gap=0.0))["wait"] < 0.5 * usual["wait"]
    assert free.evaluate(point, Change(epochs=3.0))["training_seconds"] == pytest.approx(3 * usual["training_seconds"])
    for change in (Change(latency=100.0), Change(message_costs=100.0)):
        assert free.evaluate(point, change)["epoch_seconds"] > usual["epoch_seconds"]


def test_the_widest_bar_is_what_binds(free: Evaluator) -> None:
    inputs = {**{name: values[0] for name, values in free.grid.axes.items()}, "ranks": 4, **H100, "network": "200mbit"}
    point = resolve(inputs)
    usual, bars = free.evaluate(point), tornado(free, point)
    by_input = {bar.input: bar for bar in bars}
    assert set(by_input) == {"compute_speed", "link_rate", "latency", "message_costs", "message_bytes", "gap", "epochs"}
    assert usual["binds"] == "exchange"
    assert {bar.input for bar in bars[:2]} == {"link_rate", "message_bytes"}
    assert bars[-1].input == "epochs"
    link = by_input["link_rate"]
    assert (link.low, link.high) == ("0.16 Gbit/s", "0.24 Gbit/s")
    slow, fast = free.row({**_named(point), "network": "160mbit"}), free.row({**_named(point), "network": "240mbit"})
    assert (link.seconds_low, link.seconds_high) == pytest.approx((slow["training_seconds"], fast["training_seconds"]))
    assert all(bar.cost_low is None for bar in bars)


def _named(point: Point) -> dict[str, Any]:
    return {"ranks": point.ranks, "device": point.device}
