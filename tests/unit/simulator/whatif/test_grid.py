"""Documents that are grids, and those that are not."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from halocast.errors import MisuseError
from halocast.simulator.catalogue import load_catalogue
from halocast.simulator.whatif.axes import Names, read_axis
from halocast.simulator.whatif.grid import Grid, check_keys, read_grid
from halocast.simulator.whatif.points import distinct, resolve

NAMES = Names(load_catalogue(), ("gcn", "sage"))
DEFAULTS = {
    "ranks": 2, "method": "full", "savings": "all", "partition": "metis/cut", "layer": "sage", "layers": 3, "hidden": 64,
    "epochs": 100,
}  # fmt: skip


def read(**tables: Any) -> Grid:
    document = {"data": "debian", **tables}
    check_keys(document, "g.toml")
    return read_grid(document, NAMES, DEFAULTS, "g.toml")


def test_what_is_left_open_is_the_run_files() -> None:
    (point,) = distinct(read(cluster={"device": "h100", "network": "ethernet-25g"}).points())
    assert (point.ranks, point.method, point.savings, point.layer, point.layers) == (2, "full", "all", "sage", 3)
    assert (point.device, point.network) == ("H100", "ethernet-25g")  # as the catalogue spells it


def test_the_last_axis_runs_fastest() -> None:
    grid = read(cluster={"ranks": [1, 2], "network": ["1gbit", "2gbit"]}, training={"method": "adaqp", "bits": [2, 4]})
    points = list(grid.points())
    assert grid.count == len(points) == 8
    assert [(each["ranks"], each["network"], each["bits"]) for each in points] == [
        (ranks, network, bits) for ranks in (1, 2) for network in ("1gbit", "2gbit") for bits in (2, 4)
    ]


def test_what_makes_no_difference_is_told_once() -> None:
    grid = read(
        cluster={
            "ranks": [4, 8], "devices_per_host": [1, 4], "device": "A100", "network": "10gbit",
            "inside": ["nvlink-2", "pcie-4"], "hosts_per_switch": [0, 2], "oversubscription": [1, 4],
        },
        training={"method": ["full", "adaqp"], "bits": [2, 4, 8]},
    )  # fmt: skip
    points = distinct(grid.points())
    assert grid.count == 2 * 2 * 2 * 2 * 2 * 2 * 3
    # ranks × (one a host, or four with either link) × (one switch, or two hosts a switch at 1 or 4) × (full, or three widths)
    assert len(points) == len(set(points)) == 2 * (1 + 2) * (1 + 2) * (1 + 3)
    assert Counter(point.bits for point in points) == {0: 18, 2: 18, 4: 18, 8: 18}


def test_hosts_times_devices_are_ranks() -> None:
    points = distinct(read(cluster={"hosts": [1, 2, 4], "devices_per_host": [2, 8], "device": "A100"}).points())
    assert sorted((point.hosts, point.ranks) for point in points) == [(1, 2), (1, 8), (2, 4), (2, 16), (4, 8), (4, 32)]


def test_a_series_differs_in_ranks_only() -> None:
    points = distinct(read(cluster={"ranks": [2, 4, 8], "network": ["1gbit", "10gbit"], "devices_per_host": [1, 2]}).points())
    sizes = Counter(point.series for point in points)
    assert sorted(sizes.values()) == [3, 3, 3, 3]


def test_savings_and_partitions_have_one_spelling() -> None:
    names = [["keep_halo_features", "transform_first"], "transform_first+keep_halo_features", "none", "all"]
    grid = read(training={"savings": names, "partition": ["metis", "metis/volume", "random"]})
    assert grid.axes["savings"] == ("transform_first+keep_halo_features", "none", "all")
    assert grid.axes["partition"] == ("metis/cut", "metis/volume", "random")
    everything = "keep_halo_features+aggregate_features_once+labelled_gradients_only+transform_first"
    assert read(training={"savings": everything}).axes["savings"] == ("all",)


def test_prices_multiply_their_own_device_only() -> None:
    prices = {"currency": "EUR", "A100": [1.0, 2.0], "default": 3.0}
    grid = read(cluster={"device": ["A100", "V100", "calibrated"], "network": "1gbit"}, prices=prices)
    assert grid.count == 4
    assert [(point.device, point.price_per_hour) for point in distinct(grid.points())] == [
        ("A100", 1.0), ("A100", 2.0), ("V100", 3.0), ("", 3.0)
    ]  # fmt: skip


def test_a_sample_is_some_of_all_in_their_order() -> None:
    grid = read(cluster={"ranks": "1..50", "hosts_per_switch": "0..9"}, training={"method": "adaqp", "bits": [2, 4]})
    every, some = [resolve(each) for each in grid.points()], [resolve(each) for each in grid.points(60, seed=7)]
    assert len(some) == len(set(some)) == 60
    assert [every.index(each) for each in some] == sorted(every.index(each) for each in some)
    assert some == [resolve(each) for each in grid.points(60, seed=7)] != [resolve(each) for each in grid.points(60, seed=8)]
    assert [resolve(each) for each in grid.points(10**6)] == every


def test_a_sample_of_a_billion_needs_no_billion() -> None:
    grid = read(cluster={"ranks": "1..1000000000"})
    ranks = [each["ranks"] for each in grid.points(1000, seed=3)]
    assert len(set(ranks)) == 1000
    assert ranks == sorted(ranks)
    assert 4e8 < sum(ranks) / 1000 < 6e8


def test_a_resolved_grid_reads_as_the_same() -> None:
    grid = read(
        cluster={"ranks": "2..16 x2", "device": ["a100", "calibrated"], "network": "ethernet-25g", "transport": "nccl"},
        training={"method": ["full", "adaqp"], "bits": [2, 4], "savings": [["transform_first"], "all"]},
        growth={"nodes": ["x1", "x10"]},
        prices={"currency": "EUR", "default": [1.0, 2.0]},
        filters={"memory": "80GB", "deadline": "2h", "budget": "500 EUR"},
        epochs=7,
    )
    again = read_grid(grid.resolved(), NAMES, {**DEFAULTS, "ranks": 3, "layer": "gcn", "epochs": 9}, "g.toml")
    assert distinct(again.points()) == distinct(grid.points())
    assert (again.filters, again.epochs) == (grid.filters, 7)
    assert again.filters.memory == 80_000_000_000


def test_a_billion_points_are_counted_and_refused() -> None:
    grid = read(cluster={"ranks": "1..1000000", "network": ["1gbit", "2gbit"]}, model={"hidden": "1..500"})
    with pytest.raises(MisuseError) as caught:
        grid.refuse_many(100_000, "g.toml")
    assert str(caught.value) == (
        "g.toml asks for 1,000,000,000 scenarios (ranks 1,000,000 × hidden 500 × network 2): at most 100,000 (--most); "
        'thin ranks, such as ranks = "1..64 x2", or take some at random with --sample 10000'
    )
    grid.refuse_many(10**9, "g.toml")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"clustre": {}}, "g.toml: unknown key 'clustre'; did you mean 'cluster'?"),
        ({"ranks": 4}, "unknown key 'ranks': it belongs in [cluster]"),
        ({"cluster": {"rank": 4}}, "unknown key 'cluster.rank'; did you mean 'ranks'?"),
        ({"cluster": {"bits": 4}}, "unknown key 'cluster.bits': it belongs in [training]"),
        ({"filters": {"dead_line": "2h"}}, "unknown key 'filters.dead_line'; did you mean 'deadline'?"),
        ({"cluster": 4}, "cluster is a table: write [cluster]"),
        ({"cluster": {"device": "h10"}}, "g.toml: cluster.device: unknown 'h10'; did you mean 'h100'?"),
        (
            {"cluster": {"network": "ethernet-100gb"}},
            "cluster.network: unknown 'ethernet-100gb'; did you mean 'ethernet-100g'?",
        ),
        ({"cluster": {"network": "fastbit"}}, "cluster.network: link 'fastbit' cannot be read"),
        ({"cluster": {"transport": "ncl"}}, "did you mean 'nccl'?"),
        ({"cluster": {"all_reduce": "threes"}}, "did you mean 'tree'?"),
        ({"cluster": {"ranks": []}}, "cluster.ranks = []: an empty list leaves no scenario"),
        ({"cluster": {"ranks": "-8..-1"}}, "cluster.ranks = -8: allowed are whole numbers from 1 on"),
        (
            {"cluster": {"device": {"from": "A100", "to": "H100"}}},
            "cluster.device = {'from': 'A100', 'to': 'H100'}: names have",
        ),
        ({"cluster": {"ranks": 2, "hosts": 2}}, "ranks and hosts both say how many"),
        ({"cluster": {"hosts": 2}}, "hosts needs devices_per_host"),
        ({"cluster": {"network": "1gbit", "link": "1gbit"}}, "network and link both say what joins the ranks"),
        ({"cluster": {"oversubscription": 0.5}}, "allowed are numbers from 1 on"),
        ({"training": {"method": "adaq", "bits": 2}}, "did you mean 'adaqp'?"),
        ({"training": {"method": "adaqp"}}, "training.bits is missing"),
        ({"training": {"bits": 7}}, "training.bits = 7: no width; allowed: 1, 2, 3"),
        ({"training": {"savings": "transform_frist"}}, "did you mean 'transform_first'?"),
        ({"training": {"partition": "metis/cost"}}, "did you mean 'cut'?"),
        ({"model": {"layer": "saga"}}, "did you mean 'sage'?"),
        ({"growth": {"nodes": "x0.5"}}, "allowed are factors from x1 on"),
        ({"epochs": 0}, "epochs = 0: allowed are whole numbers from 1 on"),
        ({"partitions": "fit"}, "did you mean 'fitted'?"),
        ({"prices": {"A100": 2.0}}, 'prices.currency is missing: what prices are in, such as currency = "EUR"'),
        ({"prices": {"currency": "EUR", "A10": 2.0}}, "prices.A10: unknown device; did you mean 'a100'?"),
        ({"prices": {"currency": "EUR", "A100": -2.0}}, "allowed are amounts from 0 on"),
        ({"prices": {"currency": "EUR", "A100": []}}, "an empty list leaves no scenario"),
        ({"filters": {"budget": 500}}, "without [prices] nothing costs anything"),
        (
            {"filters": {"budget": "lots"}, "prices": {"currency": "EUR", "default": 1}},
            "allowed is an amount such as 500, in EUR",
        ),
        ({"filters": {"deadline": "soon"}}, "filters.deadline = 'soon': allowed is a time such as 90min"),
        ({"filters": {"memory": "much"}}, "filters.memory = 'much': allowed is a size such as 80GB"),
    ],
)
def test_misuse_is_one_line_with_the_way_out(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        read(**tables)
    assert str(caught.value).startswith("g.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_grids_are_counted_as_they_are_walked() -> None:
    draw = random.Random(5)
    for _ in range(20):
        values = {"ranks": draw.sample(range(1, 99), draw.randint(1, 4)), "hosts_per_switch": draw.sample(range(9), 2)}
        grid = read(cluster=values, model={"hidden": draw.sample(range(1, 99), draw.randint(1, 3))})
        assert grid.count == len(list(grid.points()))


def test_a_range_is_suggested_for_numbers_only() -> None:
    grid = read(cluster={"network": [f"{rate}gbit" for rate in range(1, 41)], "ranks": [1, 2]})
    with pytest.raises(MisuseError, match=r"thin network to fewer of its values, or take some at random with --sample 50$"):
        grid.refuse_many(50, "g.toml")
    widths = read(training={"method": "adaqp", "bits": [2, 4, 8]})
    with pytest.raises(MisuseError, match="thin bits to fewer of its values"):
        widths.refuse_many(2, "g.toml")


def test_a_device_may_be_called_much_like_the_calibrated_one() -> None:
    devices = {**NAMES.catalogue.devices, "calibrated-x": NAMES.catalogue.devices["H100"]}
    names = Names(NAMES.catalogue.model_copy(update={"devices": devices}), NAMES.layers)
    assert read_axis("device", ["calibrated-x", "Calibrated"], names, "g.toml") == ("calibrated-x", "")


@pytest.mark.parametrize(
    ("written", "read_as"),
    [(True, "all"), (False, "none"), ("all", "all"), ("2+0+2", "0+2"), ([1, 0], "0+1"), ([], "none"), (1, "1")],
)
def test_layers_that_keep_blocks_are_written_in_several_ways(written: Any, read_as: str) -> None:
    (value,) = read_axis("keep", [written], NAMES, "g.toml")
    assert value == read_as


def test_layers_that_keep_blocks_are_numbers() -> None:
    with pytest.raises(MisuseError, match=r"g.toml: training.keep = 'first': allowed are all, none, or numbers of layers"):
        read(training={"keep": "first"})


def test_blocks_are_kept_by_sequential_aggregation_alone() -> None:
    grid = read(training={"method": ["full", "sar"], "keep": ["none", "all", "0+2"], "prefetch": [0, 1]})
    points = distinct(grid.points())
    assert [(each.keep, each.prefetch) for each in points if each.method == "full"] == [("none", 1)]
    assert len([each for each in points if each.method == "sar"]) == 6


def test_there_is_no_layer_beyond_the_last_to_keep_blocks() -> None:
    (point,) = distinct(read(training={"method": "sar", "keep": "1+3"}).points())
    assert point.impossible(1000) == "no such layer: keep 3 of layers 0 to 2"
