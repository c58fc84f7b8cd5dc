"""Simulated epochs against arithmetic, and against the program that the runtime would run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.simulator.parts import all_to_all, workload

from halocast.runtime.programs.adaqp import AdaQP, uniform_bits
from halocast.runtime.programs.full import FullGraph
from halocast.simulator.costs import HostCosts, NetworkCosts
from halocast.simulator.engine import TREE_PIECES, Machine, RankWork, lower, simulate
from halocast.simulator.network import star
from halocast.simulator.observations import structure
from halocast.traces.buffers import walk
from halocast.traces.operations import Aggregate, AllReduce, Dequantize, Exchange, Free, Keep, Transform, Wait
from halocast.traces.workload import ExactSavings

FREE = NetworkCosts(
    efficiency=1.0, latency=0.0, send_seconds=0.0, receive_seconds=0.0, byte_seconds=0.0, reduce_step_seconds=0.0,
    post_seconds=0.0, wake_seconds=0.0,
)  # fmt: skip
IDEAL = HostCosts(cores=1)
RATE = 1e6


def programs(load, method=None, bits=None):
    method = method or (FullGraph() if bits is None else AdaQP())
    views = [load.view(rank) for rank in range(load.world_size)]
    if bits is not None:
        views = [load.view(view.rank, uniform_bits(view, bits)) for view in views]
    return [method.epoch(view) for view in views]


def run(
    load, price=lambda operation: 0.0, *, rate=RATE, bits=None, network=FREE, host=IDEAL, hosts=None, topology=None, **options
):
    work = [lower(program, price) for program in programs(load, bits=bits)]
    return simulate(work, Machine(topology or star(load.world_size, rate), host, network, hosts=hosts), **options)


def executed(program):
    """The operations of a program that take time, in order."""
    return [each for each in walk(program) if not isinstance(each, Keep | Free)]


def one_second(operation):
    return 0.0 if isinstance(operation, Exchange | AllReduce) else 1.0


def test_one_rank_takes_the_sum_of_its_operations():
    load = workload(np.zeros((1, 1), dtype=int))
    operations = executed(programs(load)[0])
    assert run(load, one_second).epoch_seconds == pytest.approx(len(operations))


def test_nothing_to_wait_for_leaves_no_waiting():
    load = workload(all_to_all(2, 10))
    simulation = run(load, one_second, rate=1e15)
    for work, timeline in zip(simulation.work, simulation.ranks, strict=True):
        waits = [index for index, operation in enumerate(work.operations) if isinstance(operation, Wait)]
        assert timeline.wall[waits].max() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_symmetric_exchange_without_computing_is_the_port_bound(ranks):
    load = workload(all_to_all(ranks, 10), exact=ExactSavings.none())
    simulation = run(load)
    exchanges = [operation for operation in simulation.work[0].operations if isinstance(operation, Exchange)]
    reductions = [operation for operation in simulation.work[0].operations if isinstance(operation, AllReduce)]
    exchanged = sum(operation.work.bytes_out for operation in exchanges) / RATE
    assert len(exchanges) == 3  # forward in both layers, backward in the second
    timeline = simulation.ranks[0]
    waited = sum(timeline.wall[index] for index, each in enumerate(simulation.work[0].operations) if isinstance(each, Wait))
    assert waited == pytest.approx(simulation.epoch_seconds, rel=1e-6)
    reduced = sum(operation.work.bytes_out for operation in reductions) * 2 * (ranks - 1) / ranks / RATE
    assert exchanged < simulation.epoch_seconds <= (exchanged + reduced) * (1 + 1e-3)


@pytest.mark.parametrize(("ranks", "depth"), [(1, 0), (2, 1), (3, 1), (7, 2), (8, 3)])
def test_a_tree_all_reduce_pays_for_its_bucket_once_each_way_and_for_a_piece_a_level(ranks, depth):
    load = workload(np.zeros((ranks, ranks), dtype=int))
    latency = 0.25
    network = FREE.model_copy(update={"all_reduce": "tree", "latency": latency})
    simulation = run(load, network=network)
    buckets = [each.work.bytes_out / RATE for each in simulation.work[0].operations if isinstance(each, AllReduce)]
    level, rest = latency + np.array(buckets) / TREE_PIECES, np.array(buckets) * (1 - 1 / TREE_PIECES)
    # all of them start at once and know nothing of each other
    expected = (2 * (depth * level + rest)).max() if ranks > 1 else 0.0
    assert simulation.epoch_seconds == pytest.approx(expected, rel=1e-6)


def test_a_tree_beats_a_ring_where_latency_is_what_counts():
    load = workload(np.zeros((16, 16), dtype=int))
    seconds = [
        run(load, rate=1e12, network=FREE.model_copy(update={"all_reduce": name, "latency": 1e-3})).epoch_seconds
        for name in ("ring", "tree")
    ]
    assert seconds[0] == pytest.approx(30e-3, rel=1e-3)
    assert seconds[1] == pytest.approx(8e-3, rel=1e-3)


def test_messages_hide_under_central_work():
    load = workload(all_to_all(2, 10))
    exchange = next(each for each in executed(programs(load)[0]) if isinstance(each, Exchange))
    flight = exchange.work.bytes_out / RATE

    def price(operation):
        is_central = isinstance(operation, Aggregate | Transform) and operation.part.value == "central"
        return flight if is_central else 0.0

    timeline = run(load, price).ranks[0]
    operations = executed(programs(load)[0])
    first_wait = next(index for index, each in enumerate(operations) if isinstance(each, Wait))
    assert timeline.wall[first_wait] == pytest.approx(0.0, abs=1e-4 * flight)


def test_without_overlap_the_same_work_takes_longer():
    def price(operation):
        return 1e-3 if isinstance(operation, Aggregate) else 0.0

    overlapping = run(workload(all_to_all(2, 40)), price).epoch_seconds
    waiting = run(workload(all_to_all(2, 40), overlap=False), price).epoch_seconds
    assert waiting > overlapping


def test_ranks_of_one_core_take_turns():
    load = workload(all_to_all(2, 10))
    seconds = {hosts: run(load, one_second, rate=1e12, hosts=list(hosts)).epoch_seconds for hosts in ((0, 0), (0, 1))}
    assert seconds[0, 0] == pytest.approx(2 * seconds[0, 1], rel=0.05)


def test_a_slow_rank_is_what_the_others_wait_for():
    load = workload(all_to_all(3, 10))
    work = [lower(program, one_second) for program in programs(load)]
    slow = [work[0], work[1], lower(programs(load)[2], lambda operation: 2.0 * one_second(operation))]
    machine = Machine(star(3, 1e12), IDEAL, FREE)
    assert simulate(slow, machine).epoch_seconds == pytest.approx(2 * simulate(work, machine).epoch_seconds, rel=0.02)


@pytest.mark.parametrize("bits", [None, 8, 2])
@pytest.mark.parametrize("exact", [ExactSavings(), ExactSavings.none()])
def test_the_simulated_sequence_is_the_programs(bits, exact):
    rows = np.array([[0, 5, 0], [7, 0, 3], [0, 2, 0]])
    load = workload(rows, exact=exact, dims=(16, 16, 16, 4))
    simulation = run(load, one_second, bits=bits)
    for work, program in zip(simulation.work, programs(load, bits=bits), strict=True):
        assert structure(work.operations) == structure(executed(program))


def test_operations_of_a_rank_follow_each_other_without_overlap():
    load = workload(all_to_all(4, 25))
    simulation = run(load, lambda _: 1e-3, hosts=[0] * 4, host=HostCosts(cores=2, gap_seconds=1e-4))
    for timeline in simulation.ranks:
        ends = timeline.start + timeline.wall
        assert (timeline.start[1:] >= ends[:-1] - 1e-9).all()


def test_two_simulations_of_one_scenario_agree_to_the_bit():
    load = workload(all_to_all(4, 25))
    first, second = (run(load, lambda _: 1e-3, hosts=[0] * 4, host=HostCosts(cores=2, stall_rate=50.0)) for _ in range(2))
    assert first.samples.tolist() == second.samples.tolist()


def test_fewer_bits_are_fewer_bytes_and_never_slower():
    load = workload(all_to_all(4, 200), dims=(64, 64, 8))
    seconds = [run(load, lambda _: 1e-4, bits=bits).epoch_seconds for bits in (2, 4, 8, 16, 32)]
    assert seconds == sorted(seconds)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1), st.floats(1.1, 10.0))
def test_more_bandwidth_is_never_slower(ranks, seed, factor):
    rows = np.random.default_rng(seed).integers(0, 40, (ranks, ranks)) * (1 - np.eye(ranks, dtype=int))
    load = workload(np.minimum(rows, rows.T))
    slow, fast = (run(load, lambda _: 2e-4, rate=rate).epoch_seconds for rate in (RATE, RATE * factor))
    assert fast <= slow * 1.001


def with_more_work(ranks, seed, rate):
    """Epoch seconds of random exchanges, then of the same with rank 0 computing 2.5 times as long."""
    rows = np.random.default_rng(seed).integers(0, 40, (ranks, ranks)) * (1 - np.eye(ranks, dtype=int))
    load = workload(np.minimum(rows, rows.T))
    work = [lower(program, lambda _: 2e-4) for program in programs(load)]
    loaded = [lower(programs(load)[0], lambda _: 5e-4), *work[1:]]
    before, after = (simulate(each, Machine(star(ranks, rate), IDEAL, FREE)).epoch_seconds for each in (work, loaded))
    return before, after


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_more_work_on_one_rank_is_never_faster(ranks, seed):
    before, after = with_more_work(ranks, seed, 1e15)
    assert after >= before * (1 - 1e-9)
    before, after = with_more_work(2, seed, RATE)
    assert after >= before * (1 - 1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 8), st.integers(0, 2**32 - 1))
def test_more_work_is_never_below_what_rank_and_ports_need(ranks, seed):
    # Where flows share ports, max–min fair sharing is not monotone: a late rank leaves a port to others, whose messages end
    # sooner and free a third port for its own (docs/simulator.md). What holds is each resource's own bound.
    rows = np.random.default_rng(seed).integers(0, 40, (ranks, ranks)) * (1 - np.eye(ranks, dtype=int))
    load = workload(np.minimum(rows, rows.T))
    work = [lower(program, lambda _: 2e-4) for program in programs(load)]
    for factor in (1.0, 2.5):
        loaded = [RankWork(work[0].operations, work[0].seconds * factor, work[0].flights), *work[1:]]
        epoch = simulate(loaded, Machine(star(ranks, RATE), IDEAL, FREE)).epoch_seconds
        sent = [sum(each.work.bytes_out for each in rank.operations if isinstance(each, Exchange)) for rank in work]
        assert epoch >= float(loaded[0].seconds.sum()) * (1 - 1e-9)
        assert epoch >= max(sent) / RATE * (1 - 1e-9)


def test_idle_hosts_compute_more_slowly_where_that_was_fitted():
    load = workload(all_to_all(2, 200))
    warm = HostCosts(cores=2, idleness=0.0, reference_utilisation=1.0)
    cold = warm.model_copy(update={"idleness": 0.5})

    def price(operation):
        return 1e-3 if isinstance(operation, Aggregate | Dequantize) else 0.0

    busy = [simulation.ranks[0].wall[2] for simulation in (run(load, price, hosts=[0, 0], host=host) for host in (warm, cold))]
    assert busy[1] > busy[0] * 1.2
