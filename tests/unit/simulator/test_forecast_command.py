"""``halocast forecast`` of more ranks than are partitioned, on devices and networks that nothing was measured on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from halocast.cli import run
from halocast.cli.forecast import grouped
from halocast.cli.scenario import fitted_parts
from halocast.simulator.costs import Ceilings, Costs

RUN_FILE = Path(__file__).resolve().parents[3] / "traces/samples/generated-2-100mbit-full-cut/0/config.toml"
CEILINGS = Ceilings(memory_rate=2e10, gemm_rate=1e11, date="2026-11-21", machine="another machine")
CLUSTER = ["--device", "h100", "--network", "ethernet-100g"]
HOSTS = ["--ranks-per-host", "4", "--inside", "nvlink-4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments(calibration: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HALOCAST_CACHE", str(cache))
    path = tmp_path / "costs.json"
    calibration.costs.model_copy(update={"ceilings": CEILINGS}).save(path)
    return ["forecast", str(path), "--data", str(RUN_FILE)]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    found: dict[str, Any] = document["forecast"]
    return found


def test_more_ranks_than_partitions_are_fitted(arguments: list[str], capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    fitted = answer(capsys, *arguments, "--ranks", "24", "--partitions", "fitted", "--link", "100mbit")
    assert "halo sizes fitted from partitions into 2, 4, 8, 16 parts" in fitted["extrapolated"]
    assert not list(cache.glob("shards/*/24-*"))
    real = answer(capsys, *arguments, "--ranks", "24", "--link", "100mbit")
    assert not [each for each in real["extrapolated"] if "fitted" in each]
    assert fitted["exchange_bytes_per_epoch"] == pytest.approx(real["exchange_bytes_per_epoch"], rel=0.15)
    assert fitted["epoch_seconds"] == pytest.approx(real["epoch_seconds"], rel=0.15)
    # what fitting may be wrong widens the interval
    assert fitted["high"] / fitted["epoch_seconds"] > real["high"] / real["epoch_seconds"]


def test_few_ranks_are_partitioned_all_the_same(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    real, asked = (
        answer(capsys, *arguments, "--ranks", "4", "--link", "200mbit", "--partitions", each) for each in ("real", "fitted")
    )
    assert real == asked


def test_a_device_is_marked_and_computes_faster(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    usual = answer(capsys, *arguments, "--ranks", "4", "--network", "ethernet-100g")
    moved = answer(capsys, *arguments, "--ranks", "4", *CLUSTER)
    assert [each for each in moved["extrapolated"] if each.startswith("moved from ")] == [
        "moved from Intel(R) Xeon(R) Processor to NVIDIA H100 SXM 80GB by ceilings"
    ]
    assert moved["breakdown"]["compute"] < usual["breakdown"]["compute"]
    assert moved["high"] / moved["low"] > usual["high"] / usual["low"]
    assert "network ethernet-100g was not calibrated" in usual["extrapolated"]


def test_hosts_trunks_and_transports_matter(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    slow = ["--ranks", "8", "--device", "h100", "--network", "200mbit", "--transport", "nccl", *HOSTS]
    one_switch = answer(capsys, *arguments, *slow)
    trunk = answer(capsys, *arguments, *slow, "--hosts-per-switch", "1", "--oversubscription", "8")
    assert trunk["epoch_seconds"] > 1.5 * one_switch["epoch_seconds"]
    fast = ["--ranks", "8", "--device", "h100", "--network", "ethernet-100g", *HOSTS]
    gloo, nccl = (answer(capsys, *arguments, *fast, "--transport", each) for each in ("gloo", "nccl"))
    assert nccl["epoch_seconds"] < gloo["epoch_seconds"]


def test_hardware_of_ones_own(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        '[networks.string]\ntitle = "two cups"\nrate = { value = 1e6, source = "own", date = "2026" }\n'
        'latency_seconds = { value = 1.0, source = "own", date = "2026" }\n'
    )
    found = answer(capsys, *arguments, "--ranks", "2", "--network", "string", "--hardware", str(own))
    assert found["epoch_seconds"] > 2.0  # a latency or two of it


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--ranks", "12001"], "12001 ranks for the 12000 nodes of 'generated': allowed are 1 to 12000"),
        (
            ["--ranks", "12001", "--partitions", "fitted"],
            "12001 ranks for the 12000 nodes of 'generated': allowed are 1 to 12000",
        ),
        (["--partitions", "fited"], "--partitions fited is unknown; did you mean 'fitted'?"),
        (["--device", "h10"], "unknown device 'h10'; did you mean 'h100'? (known: "),
        ([*CLUSTER[:3], "infiniband"], "--hardware FILE"),
        (["--transport", "ncl"], "unknown transport 'ncl'; did you mean 'nccl'?"),
        (["--device", "h100"], "hosts of their own need what joins them: --network"),
        ([*CLUSTER, "--link", "1gbit"], "--network and --link both say what joins the ranks"),
        ([*CLUSTER, "--ranks-per-host", "2"], "2 ranks a host need --inside"),
        ([*CLUSTER, "--oversubscription", "4"], "--oversubscription 4 needs --hosts-per-switch"),
        ([*CLUSTER, "--ranks-per-host", "0"], "ranks_per_host = 0 is not allowed"),
        (["--all-reduce", "treee"], "--all-reduce treee is unknown; did you mean 'tree'?"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], asked: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, *asked]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("halocast: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_costs_without_ceilings_name_the_way_out(
    arguments: list[str], calibration: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    costs: Costs = calibration.costs
    costs.save(Path(arguments[1]))
    assert run([*arguments, "--ranks", "2", *CLUSTER]) == 2
    assert "calibrate again with `halocast calibrate`" in capsys.readouterr().err


def test_what_is_said_of_many_operations_is_said_once() -> None:
    assert grouped(["a: outside", "two ranks", "b: outside", "c: outside", "d: else"]) == [
        "a and 2 more: outside", "two ranks", "d: else"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "finest"), [(17, 16), (128, 16), (255, 16), (256, 32), (511, 32), (512, 64), (1024, 64), (100_000, 64)]
)
def test_more_ranks_are_foretold_from_finer_partitions(ranks: int, finest: int) -> None:
    parts = fitted_parts(ranks)
    assert parts[0] == 2
    assert parts[-1] == finest
    assert [after // before for before, after in pairwise(parts)] == [2] * (len(parts) - 1)


def test_ranks_that_share_cores_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "--ranks", "4", "--link", "200mbit"]) == 0
    assert "all 4 ranks share the 2 cores of one machine" in capsys.readouterr().out
    assert run([*arguments, "--ranks", "4", "--link", "200mbit", "--ranks-per-host", "1"]) == 0
    assert "share" not in capsys.readouterr().out.partition("exchanged")[2]
