"""Moved costs: coefficients by ceilings, wider residuals, and no price that does not say it was moved."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from halocast.errors import MisuseError, RunError
from halocast.simulator import transfer
from halocast.simulator.catalogue import Device, Figure, load_catalogue
from halocast.simulator.costs import CalibratedRange, Ceilings, Costs, EpochError, HostCosts, LinearCost, NetworkCosts
from halocast.simulator.intervals import interval
from halocast.simulator.transfer import MOVED_SPREAD, measure_ceilings, move_cost, move_costs
from halocast.traces.operations import Aggregate, Exchange, PeerMessage, Step, Work

SOURCE = Ceilings(memory_rate=2e10, gemm_rate=1e11, date="2026-11-21", machine="CPU X", threads=1)
CLASS = "Aggregate forward own 16x16"


def figure(value: float, share: float = 1.0) -> Figure:
    return Figure(value=value, share=share, share_source="test", source="test", date="2026")


def device(kind: str = "gpu", memory: float = 4e12, gemm: float = 8e13) -> Device:
    return Device(
        title="Device Y",
        kind=kind,  # type: ignore[arg-type]
        memory_rate=figure(memory, 0.5),
        gemm_rate=figure(gemm, 0.5),
        copy_rate=figure(1e10),
        memory_bytes=figure(80e9),
        launch_seconds=figure(5e-6),
    )


def linear(**coefficients: float) -> LinearCost:
    return LinearCost(
        coefficients=coefficients, residual=0.1, noise=0.02, samples=5, low={"rows": 100.0}, high={"rows": 1000.0}
    )


def costs(errors: tuple[float, ...] = (-0.02, 0.0, 0.03), **operations: LinearCost) -> Costs:
    return Costs(
        machine="CPU X",
        device="CPU X",
        memory_bytes=8_000_000_000,
        host=HostCosts(cores=2),
        network=NetworkCosts(),
        memory=None,
        operations=operations or {CLASS: linear(constant=1e-5, edge_values=1e-9), "Aggregate": linear(edge_values=2e-9)},
        errors=tuple(EpochError(oversubscribed=False, log_ratio=each, at_speed=each) for each in errors),
        noise=0.01,
        noise_at_speed=0.01,
        calibrated=CalibratedRange(
            graphs={"f" * 12: "graph"}, ranks=(2,), widths=(32,), links=(0.0,), methods=("full",), threads=(1,)
        ),
        runs=(),
        notes=("a note",),
        ceilings=SOURCE,
    )


def aggregate(rows: int = 500, dim: int = 16) -> Aggregate:
    return Aggregate(work=Work(rows=rows, nnz=10 * rows, dim_in=dim, dim_out=dim, flops=20 * rows * dim))


# -- coefficients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["row_values", "edge_values", "rows", "bytes"])
def test_what_memory_binds_goes_by_the_memory(term: str) -> None:
    moved = move_cost("Transform", linear(**{term: 1e-9}), SOURCE, device())
    assert moved.coefficients[term] == pytest.approx(1e-9 * 2e10 / 2e12)


def test_flops_go_by_the_matrix_product() -> None:
    moved = move_cost("Transform", linear(flops=1e-11), SOURCE, device())
    assert moved.coefficients["flops"] == pytest.approx(1e-11 * 1e11 / 4e13)


def test_flops_of_an_aggregation_go_by_the_memory() -> None:
    for name in ("Aggregate forward own 16x16", "0123456789ab/4/Aggregate forward own 16x16"):
        assert move_cost(name, linear(flops=1e-11), SOURCE, device()).coefficients["flops"] == pytest.approx(1e-13)


def test_on_a_gpu_constants_and_messages_are_launches() -> None:
    moved = move_cost("Transform", linear(constant=1e-4, messages=3e-5, rows=1e-9), SOURCE, device())
    assert moved.coefficients["constant"] == moved.coefficients["messages"] == 5e-6
    without = move_cost("Transform", linear(rows=1e-9), SOURCE, device())
    assert without.coefficients.keys() == {"rows", "constant"}  # nothing starts for nothing there


def test_on_a_cpu_constants_and_messages_stay() -> None:
    moved = move_cost("Transform", linear(constant=1e-4, messages=3e-5, rows=1e-9), SOURCE, device("cpu"))
    assert (moved.coefficients["constant"], moved.coefficients["messages"]) == (1e-4, 3e-5)
    assert move_cost("Transform", linear(rows=1e-9), SOURCE, device("cpu")).coefficients.keys() == {"rows"}


def test_a_device_of_the_same_ceilings_takes_as_long() -> None:
    same = device("cpu", memory=2 * SOURCE.memory_rate, gemm=2 * SOURCE.gemm_rate)
    cost = linear(constant=1e-4, row_values=1e-9, flops=1e-11, bytes=2e-10)
    assert move_cost("Transform", cost, SOURCE, same).coefficients == pytest.approx(cost.coefficients)


def test_the_fitted_range_and_noise_stay_and_the_residual_widens() -> None:
    cost = linear(rows=1e-9)
    moved = move_cost("Transform", cost, SOURCE, device())
    assert (moved.low, moved.high, moved.samples, moved.noise) == (cost.low, cost.high, cost.samples, cost.noise)
    assert moved.residual == pytest.approx(float(np.sqrt(0.1**2 + MOVED_SPREAD**2)))


@pytest.mark.parametrize("name", ["V100", "A100", "H100", "H200"])
def test_devices_of_the_catalogue_are_faster_than_a_core(name: str) -> None:
    target = load_catalogue().device(name)
    operation = aggregate(rows=900, dim=16)
    before, after = costs().price(operation, "f" * 12, 2), move_costs(costs(), target).price(operation, "f" * 12, 2)
    launch = target.launch_seconds
    assert launch is not None
    assert launch.value < after.seconds < before.seconds


# -- marks ------------------------------------------------------------------------------------------------------


def test_every_price_says_it_was_moved() -> None:
    moved = move_costs(costs(), device())
    reason = "moved from CPU X to Device Y by ceilings"
    price = moved.price(aggregate(), "f" * 12, 2)
    assert price.extrapolated == reason
    assert price.seconds == pytest.approx(5e-6 + 1e-9 * 500 * 10 * 16 * 2e10 / 2e12)
    assert price.spread == pytest.approx(float(np.sqrt(0.1**2 + MOVED_SPREAD**2 + 0.02**2)))
    assert (
        moved.price(aggregate(rows=5000), "f" * 12, 2).extrapolated == f"{reason}; {CLASS}: work outside the calibrated range"
    )
    unknown = moved.price(aggregate(dim=32), "f" * 12, 2).extrapolated
    assert unknown == f"{reason}; Aggregate forward own 32x32: its dims were not calibrated"
    assert costs().price(aggregate(), "f" * 12, 2).extrapolated == ""


def test_exchanges_pay_for_each_message() -> None:
    exchange = Exchange(
        work=Work(rows=500, dim_in=16, dim_out=16), outgoing=(PeerMessage(1, 5, 80),), incoming=(PeerMessage(1, 5, 80),)
    )
    source = costs(Exchange=linear(constant=1e-4, messages=1e-5))
    assert source.price(exchange, "", 2).seconds == pytest.approx(1.2e-4)
    assert move_costs(source, device()).price(exchange, "", 2).seconds == pytest.approx(3 * 5e-6)


def test_what_was_never_calibrated_is_refused_still() -> None:
    with pytest.raises(MisuseError, match="no calibrated cost for Step"):
        move_costs(costs(), device()).price(Step(), "", 2)


def test_the_rest_is_the_sources_and_the_notes_say_so() -> None:
    source = costs()
    moved = move_costs(source, device())
    assert (moved.device, moved.memory_bytes) == ("Device Y", 80_000_000_000)
    assert (moved.machine, moved.host, moved.network, moved.memory) == ("CPU X", source.host, source.network, source.memory)
    assert moved.notes[0] == "a note"
    assert moved.notes[1:] == (f"the standard deviation of moving, {MOVED_SPREAD:g} of a logarithm, is assumed",)
    assert source.notes == ("a note",)


def test_ceilings_of_something_else_are_noted() -> None:
    other = SOURCE.model_copy(update={"machine": "CPU Z", "threads": 2})
    notes = move_costs(costs().model_copy(update={"ceilings": other}), device()).notes
    assert "ceilings were measured on CPU Z, operations on CPU X" in notes
    assert "ceilings were measured on 2 threads, operations on 1" in notes


@pytest.mark.parametrize("errors", [(), (0.01,), (-0.02, 0.0, 0.03), tuple(np.linspace(-0.1, 0.1, 15).tolist())])
@pytest.mark.parametrize("oversubscribed", [False, True])
def test_intervals_widen_to_what_moving_may_be_wrong(errors: tuple[float, ...], oversubscribed: bool) -> None:
    source = costs(errors)
    moved = move_costs(source, device())
    before = interval(1.0, source.errors, source.noise, oversubscribed=oversubscribed)
    after = interval(1.0, moved.errors, moved.noise, oversubscribed=oversubscribed, spread=MOVED_SPREAD)
    assert after.low < before.low
    assert after.high > before.high
    # nine tenths of a normal distribution lie within 1.645 standard deviations
    assert 1.4 * MOVED_SPREAD < np.log(after.high) < 2.0 * MOVED_SPREAD
    assert 1.4 * MOVED_SPREAD < -np.log(after.low) < 2.0 * MOVED_SPREAD


def test_costs_without_ceilings_do_not_move() -> None:
    with pytest.raises(MisuseError, match="no ceilings of CPU X to move them by: calibrate again"):
        move_costs(costs().model_copy(update={"ceilings": None}), device())


def test_costs_move_once() -> None:
    moved = move_costs(costs(), device())
    with pytest.raises(MisuseError, match="costs were moved from CPU X to Device Y by ceilings already"):
        move_costs(moved, device())


def test_the_mark_survives_saving(tmp_path: Path) -> None:
    moved = move_costs(costs(), device())
    moved.save(tmp_path / "moved.json")
    again = Costs.load(tmp_path / "moved.json")
    assert again == moved
    assert again.price(aggregate(), "f" * 12, 2).extrapolated.startswith("moved from CPU X")


# -- measuring --------------------------------------------------------------------------------------------------


def test_ceilings_of_this_machine() -> None:
    found = measure_ceilings()
    assert 1e8 < found.memory_rate < 1e14
    assert 1e8 < found.gemm_rate < 1e15
    assert found.machine
    assert found.threads == 1
    assert Ceilings.model_validate(json.loads(found.model_dump_json())) == found


def test_copies_are_split_over_threads_whatever_their_number() -> None:
    assert transfer.copy_rate(3, size=1_000_001) > 0.0


def test_a_measurement_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MisuseError, match="threads = 0 is not allowed"):
        measure_ceilings(threads=0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="measuring this machine's ceilings failed: exit code 1"):
        measure_ceilings()
