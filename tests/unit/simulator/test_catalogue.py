"""The hardware catalogue: every figure has a source, users' entries win, topologies are what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from halocast.errors import MisuseError
from halocast.simulator.catalogue import FIGURES, Catalogue, Figure, build_topology, load_catalogue
from halocast.simulator.costs import NetworkCosts, Record
from halocast.simulator.network import max_min_rates

OWN_DEVICE = """
[devices.{name}]
title = "{title}"
kind = "gpu"
memory_rate = {{ value = 1e12, share = 0.5, share_source = "measured", source = "own measurement", date = "2026-01-02" }}
gemm_rate = {{ value = 2e13, source = "own measurement", date = "2026-01-02" }}
copy_rate = {{ value = 1e10, source = "own measurement", date = "2026-01-02" }}
memory_bytes = {{ value = 16e9, source = "own measurement", date = "2026-01-02" }}
launch_seconds = {{ value = 4e-6, source = "own measurement", date = "2026-01-02" }}
price_per_hour = {{ value = 1.5, source = "own bill", date = "2026-01-02" }}
"""
OWN_NETWORK = """
[networks.{name}]
title = "own"
rate = {{ value = {rate}, source = "own measurement", date = "2026" }}
latency_seconds = {{ value = {latency}, source = "own measurement", date = "2026" }}
"""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue()


def figures(value: object, where: str = "") -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield where, value
    elif isinstance(value, Record):
        for name, each in value:
            yield from figures(each, f"{where}.{name}")
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from figures(each, f"{where}.{name}")


def write(path: Path, *entries: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(entries))
    return path


# -- what is in it ----------------------------------------------------------------------------------------------


def test_has_what_a_scenario_may_name(catalogue: Catalogue) -> None:
    assert {"V100", "A100", "H100", "H200", "two-socket-cpu"} <= catalogue.devices.keys()
    assert {f"ethernet-{rate}g" for rate in (10, 25, 100, 200, 400)} <= catalogue.networks.keys()
    assert {"infiniband-hdr", "infiniband-ndr", "nvlink-2", "nvlink-3", "nvlink-4"} <= catalogue.networks.keys()
    assert {"pcie-3", "pcie-4", "pcie-5"} <= catalogue.networks.keys()
    assert {"gloo", "nccl"} == catalogue.transports.keys()
    assert catalogue.notes == ()


def test_every_figure_says_where_it_is_from(catalogue: Catalogue) -> None:
    found = list(figures(catalogue))
    assert len(found) > 60
    for where, figure in found:
        assert figure.source, where
        assert figure.date[:2] == "20", where
        assert figure.share == 1.0 or figure.share_source, where


def test_prices_are_the_users_own(catalogue: Catalogue) -> None:
    assert all(device.price_per_hour is None for device in catalogue.devices.values())


@pytest.mark.parametrize(
    ("name", "memory_rate", "gemm_rate", "tf32", "memory_bytes"),
    [
        # pins × bits a second, cores × 2 flop × boost clock, tensor cores × flop a clock × clock: from the white papers
        ("V100", 4096 * 1.75e9 / 8, 5120 * 2 * 1.53e9, None, 32e9),
        ("A100", 5120 * 3.186e9 / 8, 6912 * 2 * 1.41e9, 432 * 256 * 1.41e9, 80e9),
        ("H100", 5120 * 5.234e9 / 8, 16896 * 2 * 1.98e9, 528 * 512 * 1.83e9, 80e9),
        ("H200", 6144 * 6.25e9 / 8, 16896 * 2 * 1.98e9, 528 * 512 * 1.83e9, 141e9),
    ],
)
def test_data_sheets_agree_with_the_chips(
    catalogue: Catalogue, name: str, memory_rate: float, gemm_rate: float, tf32: float | None, memory_bytes: float
) -> None:
    device = catalogue.device(name)
    assert device.memory_rate.value == pytest.approx(memory_rate, rel=0.01)
    assert device.gemm_rate.value == pytest.approx(gemm_rate, rel=0.01)
    if tf32 is None:
        assert device.gemm_rate_tf32 is None
    else:
        assert device.gemm_rate_tf32 is not None
        assert device.gemm_rate_tf32.value == pytest.approx(tf32, rel=0.01)
    assert device.memory_bytes.value == memory_bytes
    assert device.memory_rate.achievable == device.memory_rate.value * device.memory_rate.share < device.memory_rate.value


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        *((f"ethernet-{gbit}g", gbit * 1e9 / 8) for gbit in (10, 25, 100, 200, 400)),
        ("infiniband-hdr", 200e9 / 8),
        ("infiniband-ndr", 400e9 / 8),
        *((f"nvlink-{generation}", links * 25e9) for generation, links in ((2, 6), (3, 12), (4, 18))),
        *((f"pcie-{generation}", 16 * transfers * 128 / 130 / 8) for generation, transfers in ((3, 8e9), (4, 16e9), (5, 32e9))),
    ],
)
def test_rates_are_bytes_per_second_one_way(catalogue: Catalogue, name: str, rate: float) -> None:
    network = catalogue.network(name)
    assert network.rate.achievable == pytest.approx(rate, rel=1e-4)
    assert 0.0 < network.latency_seconds.value < 1e-4


@pytest.mark.parametrize(("kind", "name", "close"), [("device", "H10", "H100"), ("network", "ethernet-100", "ethernet-100g")])
def test_unknown_names_get_the_nearest(catalogue: Catalogue, kind: str, name: str, close: str) -> None:
    with pytest.raises(MisuseError, match=rf"unknown {kind} '{name}'; did you mean '{close.lower()}'\?"):
        getattr(catalogue, kind)(name)


def test_unknown_names_without_a_near_one_list_all(catalogue: Catalogue) -> None:
    with pytest.raises(MisuseError, match="unknown transport 'smoke-signals'; allowed: gloo, nccl"):
        catalogue.transport("smoke-signals")


# -- transports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gloo", "nccl"])
def test_transports_stand_in_and_say_so(catalogue: Catalogue, name: str) -> None:
    transport = catalogue.transport(name)
    assert transport.network.keys() == set(FIGURES)
    assert all(figure.source.startswith("assumed: ") for figure in transport.network.values())
    costs = transport.network_costs()
    assert costs.latency == transport.network["latency"].value
    assert 0.8 < costs.efficiency <= 1.0
    lines = transport.uncalibrated
    assert len(lines) == len(FIGURES)
    assert all("is not calibrated (assumed: " in line and "\n" not in line for line in lines)


def test_fields_that_a_transport_leaves_out_are_marked_too(tmp_path: Path) -> None:
    own = '[transports.own]\ntitle = "own"\nnetwork.latency = { value = 1e-3, source = "own guess", date = "2026" }'
    transport = load_catalogue(write(tmp_path / "own.toml", own)).transport("own")
    assert transport.network_costs() == NetworkCosts(latency=1e-3)
    assert "own: latency = 0.001 is not calibrated (own guess)" in transport.uncalibrated
    assert sum("halocast's default" in line for line in transport.uncalibrated) == len(FIGURES) - 1


# -- a user's own -----------------------------------------------------------------------------------------------


def test_a_users_entry_wins_and_is_noted(catalogue: Catalogue, tmp_path: Path) -> None:
    path = write(tmp_path / "own.toml", OWN_DEVICE.format(name="H100", title="ours"), OWN_DEVICE.format(name="X1", title="new"))
    own = load_catalogue(path)
    assert own.device("H100").title == "ours"
    assert own.device("H100").memory_rate.achievable == 0.5e12
    price = own.device("X1").price_per_hour
    assert price is not None
    assert price.value == 1.5
    assert own.device("A100") == catalogue.device("A100")
    assert own.notes == (f"{path}: devices.H100 replaces an earlier entry of that name",)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", OWN_DEVICE.format(name="X1", title="first"))
    second = write(tmp_path / "b.toml", OWN_DEVICE.format(name="X1", title="second"))
    write(tmp_path / "notes.txt", "not for us")
    own = load_catalogue(tmp_path)
    assert own.device("X1").title == "second"
    assert own.notes == (f"{second}: devices.X1 replaces an earlier entry of that name",)


DEVICE = OWN_DEVICE.format(name="X1", title="new")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices = [", "is not TOML"),
        ("devices = 3", "devices: Input should be a valid dictionary"),
        ("[device.X1]", "unknown section 'device'; did you mean 'devices'?"),
        ('notes = ["none"]', "unknown section 'notes'"),
        (DEVICE.replace("memory_rate", "memory_rat"), "devices.X1.memory_rat: unknown key; did you mean 'memory_rate'?"),
        (DEVICE + 'gem_rate_tf32 = "?"', "devices.X1.gem_rate_tf32: unknown key; did you mean 'gemm_rate_tf32'?"),
        (DEVICE.replace("share_source", "share_sourc"), "memory_rate.share_sourc: unknown key; did you mean 'share_source'?"),
        (DEVICE.replace('share_source = "measured", ', ""), "devices.X1.memory_rate: share = 0.5 needs a share_source"),
        (DEVICE.replace("share = 0.5", "share = 1.5"), "devices.X1.memory_rate.share"),
        (DEVICE.replace("1e12", "0"), "devices.X1.memory_rate: value = 0 is not allowed here"),
        (DEVICE.replace("1e12", "-1"), "devices.X1.memory_rate.value"),
        (DEVICE.replace("1e12", "inf"), "devices.X1.memory_rate.value"),
        (DEVICE.replace('source = "own bill", ', ""), "devices.X1.price_per_hour.source: Field required"),
        (DEVICE.replace("2026-01-02", "last May"), "devices.X1.memory_rate.date"),
        (DEVICE.replace("launch_seconds", "#"), "devices.X1: a gpu needs launch_seconds"),
        (DEVICE.replace('"gpu"', '"tpu"'), "devices.X1.kind"),
        (OWN_NETWORK.format(name="n", rate=0, latency=0), "networks.n.rate: value = 0 is not allowed here"),
        (
            '[transports.t]\ntitle = "t"\nnetwork.latenci = { value = 1, source = "s", date = "2026" }',
            "transports.t.network: unknown field 'latenci'; did you mean 'latency'?",
        ),
    ],
)
def test_mistakes_name_the_file_and_the_entry(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "own.toml", text)
    with pytest.raises(MisuseError) as error:
        load_catalogue(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="cannot read hardware file"):
        load_catalogue(tmp_path / "missing.toml")
    with pytest.raises(MisuseError, match="no hardware file in"):
        load_catalogue(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MisuseError, match="is not TOML"):
        load_catalogue(tmp_path / "binary.toml")


# -- topologies -------------------------------------------------------------------------------------------------


def test_one_rank_a_host_is_a_star(catalogue: Catalogue) -> None:
    topology = build_topology(catalogue, 4, "ethernet-25g")
    assert topology.ranks == 4
    paths = topology.paths(np.array([0, 1, 2]), np.array([3, 3, 3]))
    assert max_min_rates(paths, topology.capacity).tolist() == pytest.approx([25e9 / 8 / 3] * 3)
    assert topology.latencies(np.array([0]), np.array([1])).tolist() == [
        catalogue.network("ethernet-25g").latency_seconds.value
    ]


@pytest.mark.parametrize(("name", "rate"), [("200mbit", 25e6), ("25gbit", 25e9 / 8), ("shaped:1gbit", 1.25e8)])
def test_a_rate_will_do_for_a_name(catalogue: Catalogue, name: str, rate: float) -> None:
    topology = build_topology(catalogue, 2, name)
    assert topology.capacity[:-1].tolist() == [rate] * 4
    assert topology.latency == 0.0


def test_a_name_goes_before_a_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "own.toml", OWN_NETWORK.format(name='"10gbit"', rate=1e9, latency=1e-3))
    topology = build_topology(load_catalogue(path), 2, "10gbit")
    assert topology.capacity[0] == 1e9
    assert topology.latency == 1e-3


def test_ranks_of_a_host_share_its_port(catalogue: Catalogue) -> None:
    topology = build_topology(catalogue, 8, "infiniband-ndr", ranks_per_host=4, inside="nvlink-4")
    assert topology.host.tolist() == [0] * 4 + [1] * 4
    between = topology.paths(np.arange(4), np.arange(4, 8))
    assert max_min_rates(between, topology.capacity).tolist() == pytest.approx([50e9 / 4] * 4)
    within = topology.paths(np.array([0]), np.array([1]))
    assert max_min_rates(within, topology.capacity).tolist() == pytest.approx([450e9])
    assert topology.latency == catalogue.network("infiniband-ndr").latency_seconds.value
    assert topology.latency_inside == catalogue.network("nvlink-4").latency_seconds.value


@pytest.mark.parametrize(("oversubscription", "rate"), [(1.0, 12.5e9), (2.0, 6.25e9), (4.0, 3.125e9)])
def test_trunks_between_switches(catalogue: Catalogue, oversubscription: float, rate: float) -> None:
    topology = build_topology(catalogue, 4, "ethernet-100g", hosts_per_switch=2, oversubscription=oversubscription)
    paths = topology.paths(np.array([0, 1]), np.array([2, 3]))
    assert max_min_rates(paths, topology.capacity).tolist() == pytest.approx([rate] * 2)


def test_a_link_inside_a_host_of_one_rank_counts(catalogue: Catalogue) -> None:
    """A device's way to its host may be narrower than the host's port."""
    topology = build_topology(catalogue, 2, "infiniband-ndr", inside="pcie-3")
    paths = topology.paths(np.array([0]), np.array([1]))
    assert max_min_rates(paths, topology.capacity).tolist() == pytest.approx([15.754e9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "ethernet-100gg"}, "unknown network 'ethernet-100gg'; did you mean 'ethernet-100g'?"),
        ({"network": "manybit"}, "link 'manybit' cannot be read"),
        ({"network": "unshaped"}, "unknown network 'unshaped'"),
        ({"ranks": 0}, "ranks = 0 is not allowed"),
        ({"ranks_per_host": 0}, "ranks_per_host = 0 is not allowed"),
        ({"hosts_per_switch": -1}, "hosts_per_switch = -1 is not allowed"),
        ({"ranks_per_host": 2}, "2 ranks a host need --inside"),
        ({"ranks_per_host": 2, "inside": "nvlnk-4"}, "unknown network 'nvlnk-4'; did you mean 'nvlink-4'?"),
        ({"oversubscription": 2.0}, "--oversubscription 2 needs --hosts-per-switch"),
        ({"hosts_per_switch": 2, "oversubscription": 0.5}, "oversubscription = 0.5 is not allowed"),
        ({"hosts_per_switch": 2, "oversubscription": float("nan")}, "oversubscription = nan is not allowed"),
    ],
)
def test_settings_without_sense_are_refused(catalogue: Catalogue, arguments: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"ranks": 4, "network": "ethernet-100g", **arguments}
    with pytest.raises(MisuseError) as error:
        build_topology(catalogue, **settings)  # type: ignore[arg-type]
    assert message in str(error.value)
