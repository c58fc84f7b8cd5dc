"""Forecasts of recorded runs and of runs that never were."""

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.simulator.parts import all_to_all, lowered, workload

from halocast.errors import MisuseError
from halocast.runtime.programs import METHODS
from halocast.simulator.costs import HostCosts, NetworkCosts
from halocast.simulator.engine import Machine, simulate
from halocast.simulator.forecast import (
    Scenario,
    assign_shares,
    assign_uniform,
    beyond_range,
    breakdown,
    forecast,
    width_shares,
)
from halocast.simulator.network import star
from halocast.simulator.observations import structure, traced_structure
from halocast.simulator.timeline import write_timeline
from halocast.traces.buffers import walk
from halocast.traces.operations import Exchange
from halocast.traces.trace import read_trace
from halocast.traces.workload import ExactSavings


def scenario_of(observation, **changes):
    configuration = observation.configuration
    scenario = Scenario(
        configuration.graph,
        configuration.fingerprint,
        observation.workload,
        configuration.method,
        observation.bits,
        configuration.link,
    )
    return replace(scenario, **changes)


@pytest.fixture(scope="module")
def quantised(samples):
    return next(each for each in samples if each.configuration.bits == "4")


def test_calibrated_runs_are_forecast_closely_and_held_by_their_intervals(samples, calibration):
    errors, held = [], []
    for observation in samples:
        answer, _ = forecast(calibration.costs, scenario_of(observation))
        assert not answer.extrapolated
        errors.append(abs(answer.epoch_seconds.value / observation.seconds - 1))
        held.append(answer.epoch_seconds.holds(observation.seconds))
    assert np.median(errors) < 0.08
    assert np.mean(held) >= 0.8


def test_the_parts_add_up_to_the_epoch(samples, calibration):
    answer, _ = forecast(calibration.costs, scenario_of(samples[0]))
    parts = sum(seconds for name, seconds in answer.breakdown.items() if name != "exchange hidden")
    assert parts == pytest.approx(answer.epoch_seconds.value, rel=0.1)


@pytest.mark.parametrize("between", [0.0, 1.0, 10.0])
def test_the_parts_add_up_whatever_the_first_rank_does_between_epochs(between):
    """The others wait for it, but not in what it measures as an epoch."""
    load = workload(all_to_all(3, 40), dims=(16, 8, 4), exact=ExactSavings.none())
    work = lowered(load)
    computing = float(work[0].seconds.sum())
    host = HostCosts(cores=1, first_rank_seconds=between * computing)
    simulation = simulate(work, Machine(star(3, 1e7), host, NetworkCosts()))
    parts = breakdown(simulation)
    total = sum(seconds for name, seconds in parts.items() if name != "exchange hidden")
    assert total == pytest.approx(simulation.epoch_seconds, rel=0.05)
    assert parts["compute"] + parts["quantise"] + parts["posting messages"] == pytest.approx(
        np.mean([each.seconds.sum() for each in work]), rel=0.05
    )


def test_bytes_and_memory_are_of_all_ranks(samples, calibration):
    for observation in samples:
        answer, _ = forecast(calibration.costs, scenario_of(observation))
        spans = observation.spans
        last = spans[spans["epoch"] == observation.epochs[-1]]
        assert answer.exchange_bytes_per_epoch == last[last["op"] == "Exchange"]["bytes_out"].sum()
        assert len(answer.peak_bytes) == observation.configuration.ranks
        low = np.array(answer.peak_bytes) / np.array(observation.peak_bytes) - 1
        assert low.min() > -0.05


def test_more_bandwidth_and_fewer_bits_are_never_slower(quantised, calibration):
    def seconds(**changes):
        return forecast(calibration.costs, scenario_of(quantised, **changes))[0].epoch_seconds.value

    links = [seconds(link=rate) for rate in (12.5e6, 25e6)]
    assert links[1] <= links[0] * 1.01
    widths = [seconds(bits=assign_uniform(quantised.workload, bits), link=12.5e6) for bits in (8, 2)]
    assert widths[1] <= widths[0] * 1.01


def test_what_was_not_calibrated_is_marked(quantised, calibration):
    def reasons(**changes):
        return " / ".join(beyond_range(calibration.costs, scenario_of(quantised, **changes)))

    assert not reasons()
    assert "1gbit" in reasons(link=1.25e8)
    assert "messages of 6 bits" in reasons(bits=assign_uniform(quantised.workload, 6))
    assert "graph 'other' was not calibrated" in reasons(graph="other", fingerprint="x")
    assert "8 threads" in reasons(workload=replace(quantised.workload, threads=8))
    answer, _ = forecast(calibration.costs, scenario_of(quantised, link=1.25e8))
    usual, _ = forecast(calibration.costs, scenario_of(quantised))
    relative = [each.epoch_seconds.high / each.epoch_seconds.low for each in (usual, answer)]
    assert relative[1] > relative[0]


def test_an_unknown_method_names_the_nearest(quantised, calibration):
    with pytest.raises(MisuseError, match="did you mean 'adaqp'"):
        forecast(calibration.costs, scenario_of(quantised, method="adaqb"))


def test_shares_of_widths_carry_over_to_another_partition(samples, quantised):
    other = next(each for each in samples if each.configuration.ranks != quantised.configuration.ranks)
    shares = {key: {2: 0.25, 8: 0.75} for key in width_shares(quantised.bits)}
    bits = assign_shares(other.workload, shares)
    found = width_shares(bits)
    assert all(found[key][8] == pytest.approx(0.75, abs=0.01) for key in found)
    views = [other.workload.view(rank, bits[rank]) for rank in range(other.workload.world_size)]
    sent = {}
    for view in views:
        for operation in walk(METHODS["adaqp"].epoch(view)):
            if isinstance(operation, Exchange):
                for message in operation.outgoing:
                    sent[operation.layer, operation.direction, view.rank, message.peer] = message.bytes
    for view in views:
        for operation in walk(METHODS["adaqp"].epoch(view)):
            if isinstance(operation, Exchange):
                for message in operation.incoming:
                    assert sent[operation.layer, operation.direction, message.peer, view.rank] == message.bytes


def test_a_forecast_is_a_trace_of_the_same_operations(quantised, calibration, tmp_path):
    scenario = scenario_of(quantised)
    _, simulation = forecast(calibration.costs, scenario)
    write_timeline(tmp_path / "trace", calibration.costs, scenario, simulation, nodes=12000, edges=96000, config={})
    trace = read_trace(tmp_path)
    assert trace.manifest.finished
    assert not trace.notes
    spans = trace.spans[trace.spans["stream"] == "compute"]
    for rank, operations in enumerate(quantised.operations):
        assert traced_structure(spans, rank, 0) == structure(operations)
    assert (trace.spans["wall_ns"] >= 0).all()
    measured = quantised.messages[quantised.messages["epoch"] == quantised.epochs[-1]]
    assert sorted(trace.messages["bytes_out"]) == sorted(measured["bytes_out"])
