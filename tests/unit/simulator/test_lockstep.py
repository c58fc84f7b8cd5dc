"""The compiled engine beside the event-driven one, whose semantics it repeats; and beside arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.simulator.parts import all_to_all, exchanged_bytes, lowered, neighbourhood, with_model, workload

from halocast.runtime.models.shapes import LAYERS
from halocast.simulator import engine, lockstep
from halocast.simulator.costs import HostCosts, NetworkCosts
from halocast.simulator.engine import Machine, RankWork
from halocast.simulator.lockstep import Lockstep
from halocast.simulator.network import cluster, star, testbed
from halocast.traces.operations import AllReduce, Exchange, Wait
from halocast.traces.workload import ExactSavings

testbed.__test__ = False  # a function of the network, not a test
FREE = NetworkCosts(
    efficiency=1.0, latency=0.0, send_seconds=0.0, receive_seconds=0.0, byte_seconds=0.0, reduce_step_seconds=0.0,
    post_seconds=0.0, wake_seconds=0.0,
)  # fmt: skip
COSTLY = NetworkCosts(efficiency=0.95, reduce_efficiency=0.9, latency=1e-4, post_seconds=2e-5, send_buffer_bytes=4e3)
BUSY = HostCosts(cores=1, slowness=1.2, gap_seconds=1e-5, epoch_seconds=1e-3, first_rank_seconds=1e-3)
IDEAL = HostCosts(cores=1)
TOPOLOGIES = {
    "star": star,
    "testbed": lambda ranks, rate: testbed(ranks, rate, 1e9),
    "cluster": lambda ranks, rate: cluster(
        ranks, 2, port_rate=2 * rate, inside_rate=8 * rate, latency=5e-5, latency_inside=1e-5
    ),
    "trunk": lambda ranks, rate: cluster(
        ranks, 1, port_rate=rate, inside_rate=8 * rate, latency=5e-5, latency_inside=1e-5, hosts_per_switch=2,
        oversubscription=2.0,
    ),
}  # fmt: skip


def random_case(seed, topology, *, most_ranks=8, least_ranks=1, sequential=False, batch_norm=False):
    """Programs and a machine on which computing and communicating take about as long."""
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(least_ranks, most_ranks + 1))
    rows = rng.integers(1, 400, (ranks, ranks)) * (rng.random((ranks, ranks)) < rng.choice([0.5, 1.0]))
    load = workload(
        rows * (1 - np.eye(ranks, dtype=int)),
        own=200,
        dims=(*rng.choice([8, 16, 32, 64], int(rng.integers(2, 5))).tolist(), 4),
        exact=ExactSavings() if rng.random() < 0.5 else ExactSavings.none(),
        overlap=bool(rng.random() < 0.6),
        batch_norm=batch_norm,
    )
    if sequential:
        layers = int(rng.integers(1, 4))
        kept = tuple(index for index in range(layers) if rng.random() < 0.3)
        load = with_model(
            load, str(rng.choice(sorted(LAYERS))), layers=layers, hidden=8, norm="batch" if batch_norm else "none"
        )
        load = replace(load, prefetch=int(rng.integers(0, 4)), kept_layers=kept)
    bits, spread = int(rng.choice([0, 1, 2, 8])), float(rng.choice([0.1, 1.0]))
    work = lowered(load, bits=bits, sequential=sequential, spread=spread, seed=seed)
    computing = np.mean([each.seconds.sum() for each in work])
    rate = max(exchanged_bytes(work), 1e3) / computing * 10 ** rng.uniform(-1.0, 1.0)
    # rounds and all-reduces that cost nothing begin at one instant, in another order in each engine
    host, network = (BUSY, COSTLY) if rng.random() < 0.5 or sequential or batch_norm else (IDEAL, FREE)
    return work, Machine(TOPOLOGIES[topology](ranks, rate), host, network)


def differences(first, second):
    """(of epochs, of operations' starts and lengths and messages' ends, the worst), as shares of the epoch."""
    seconds, worst = first.epoch_seconds, 0.0
    for one, other in zip(first.ranks, second.ranks, strict=True):
        assert one.landed.keys() == other.landed.keys()
        assert one.done.keys() == other.done.keys()
        shift = other.begin - one.begin
        pairs = [(one.start + shift, other.start), (one.wall, other.wall)]
        for table, counterpart in ((one.landed, other.landed), (one.done, other.done)):
            pairs.append((np.array([table[key] + shift for key in table]), np.array([counterpart[key] for key in table])))
        worst = max([worst, *(float(np.abs(a - b).max(initial=0.0)) for a, b in pairs)])
    return abs(second.epoch_seconds / seconds - 1.0), worst / seconds


@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rounds_of_sequential_aggregation_meet_in_both_engines(topology, seed):
    work, machine = random_case(seed, topology, least_ranks=2, sequential=True)
    epoch, timelines = differences(engine.simulate(work, machine), Lockstep.of(work).simulate(machine))
    assert epoch < 1e-6
    assert timelines < 1e-6


@pytest.mark.parametrize("seed", range(200, 212))
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_several_all_reduces_of_a_layer_and_direction_meet_in_both_engines(topology, seed):
    work, machine = random_case(seed, topology, least_ranks=2, sequential=seed % 3 == 0, batch_norm=True)
    simulation = engine.simulate(work, machine)
    epoch, timelines = differences(simulation, Lockstep.of(work).simulate(machine))
    assert epoch < 1e-6
    assert timelines < 1e-6
    sums = {}  # by layer, direction and how many came before
    for rank, timeline in zip(work, simulation.ranks, strict=True):
        for index, turn in rank.rounds.items():
            operation = rank.operations[index]
            if isinstance(operation, AllReduce):
                found = (timeline.start[index], timeline.done[index], operation.work.bytes_out)
                sums.setdefault((operation.layer, operation.direction, turn), []).append(found)
    layers = len({layer for layer, _, _ in sums})
    assert len(sums) == layers + 3 * (layers - 1)
    for ranks in sums.values():
        starts, ends, sizes = zip(*ranks, strict=True)
        assert max(starts) < min(ends)
        assert len(sizes) == len(work)
        assert len(set(sizes)) == 1


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_few_ranks_do_what_they_do_in_the_event_engine(topology, seed):
    work, machine = random_case(seed, topology)
    epoch, timelines = differences(engine.simulate(work, machine), Lockstep.of(work).simulate(machine))
    assert epoch < 1e-6
    assert timelines < 1e-6


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_more_ranks_take_as_long_as_in_the_event_engine(topology):
    work, machine = random_case(5, topology, least_ranks=17, most_ranks=18)
    program, expected = Lockstep.of(work), engine.simulate(work, machine)
    assert differences(expected, program.simulate(machine, window=0.0))[0] < 1e-4  # flows within 20 µs do not end together here
    assert differences(expected, program.simulate(machine))[0] < 0.03


def test_windows_change_few_epochs_by_more_than_three_percent():
    # The worst are no bound: an epoch may turn on which of two flows empties a token bucket (docs/simulator.md).
    errors = []
    for seed in range(40):
        work, machine = random_case(seed, sorted(TOPOLOGIES)[seed % 4], least_ranks=17, most_ranks=32)
        program = Lockstep.of(work)
        errors.append(differences(program.simulate(machine, window=0.0), program.simulate(machine))[0])
    assert np.median(errors) < 0.01
    assert np.quantile(errors, 0.95) < 0.03
    assert max(errors) > 1e-6  # or nothing was tested


@pytest.mark.parametrize("ranks", [64, 216])
def test_windows_change_sparse_exchanges_by_less_than_one_percent(ranks):
    work = lowered(workload(neighbourhood(ranks, 26), dims=(16, 16, 4)))
    rate = exchanged_bytes(work) / np.mean([each.seconds.sum() for each in work])
    program, machine = Lockstep.of(work), Machine(star(ranks, rate), IDEAL, COSTLY)
    assert 0.0 < differences(program.simulate(machine, window=0.0), program.simulate(machine))[0] < 0.01


def test_several_epochs_are_those_of_the_event_engine():
    work, machine = random_case(3, "testbed", least_ranks=3)
    expected, found = engine.simulate(work, machine, epochs=3), Lockstep.of(work).simulate(machine, epochs=3)
    assert found.samples == pytest.approx(expected.samples, rel=1e-6)


# -- closed forms -----------------------------------------------------------------------------------------------


def test_one_rank_takes_the_sum_of_its_operations():
    work = lowered(workload(np.zeros((1, 1), dtype=int)))
    simulation = Lockstep.of(work).simulate(Machine(star(1, 1.0), IDEAL, FREE))
    assert simulation.epoch_seconds == pytest.approx(work[0].seconds.sum())


@pytest.mark.parametrize("ranks", [2, 4, 64])
def test_a_symmetric_exchange_without_computing_is_the_port_bound(ranks):
    work = lowered(workload(all_to_all(ranks, 10)), mean_seconds=0.0)
    simulation = Lockstep.of(work).simulate(Machine(star(ranks, 1e6), IDEAL, FREE))
    reduced = sum(each.work.bytes_out for each in work[0].operations if isinstance(each, AllReduce))
    exchanged = exchanged_bytes(work) / 1e6
    assert exchanged < simulation.epoch_seconds <= exchanged + reduced * 2 * (ranks - 1) / ranks / 1e6 * (1 + 1e-3)


def without_reductions(work):
    """Programs of the exchanges alone."""
    kept = []
    for each in work:
        operations, flights, moved = [], {}, {}
        for index, operation in enumerate(each.operations):
            if isinstance(operation, Exchange) or (isinstance(operation, Wait) and operation.peer >= 0):
                moved[index] = len(operations)
                operations.append(operation)
                if isinstance(operation, Wait):
                    flights[moved[index]] = moved[each.flights[index]]
        kept.append(RankWork(operations, np.zeros(len(operations)), flights))
    return kept


def test_a_slow_port_is_what_an_exchange_waits_for():
    work = without_reductions(lowered(workload(all_to_all(4, 10), dims=(16, 4))))
    topology = star(4, 1e6)
    topology.capacity[1] = 1e4  # out of rank 1
    sent = exchanged_bytes(work)
    assert Lockstep.of(work).simulate(Machine(topology, IDEAL, FREE)).epoch_seconds == pytest.approx(sent / 1e4)


def test_an_oversubscribed_trunk_bounds_what_leaves_its_switch():
    work = without_reductions(lowered(workload(all_to_all(4, 10), dims=(16, 4))))
    topology = cluster(
        4, 1, port_rate=1e4, inside_rate=1e9, latency=0.0, latency_inside=0.0, hosts_per_switch=2, oversubscription=8.0
    )
    crossing = 4 * exchanged_bytes(work) / 3  # of six messages out of a switch's ranks four leave it
    assert Lockstep.of(work).simulate(Machine(topology, IDEAL, FREE)).epoch_seconds == pytest.approx(crossing / (2e4 / 8))


# -- one arrangement, many simulations --------------------------------------------------------------------------


def test_exchanged_seconds_and_sizes_are_those_of_programs_arranged_anew():
    load = workload(neighbourhood(6, 3), dims=(16, 16, 4), exact=ExactSavings.none())
    narrow, wide = (lowered(load, bits=bits, seed=bits) for bits in (2, 8))
    machine = Machine(star(6, 1e6), BUSY, COSTLY)
    fresh = Lockstep.of(wide)
    program = Lockstep.of(narrow).exchanged(seconds=np.concatenate([each.seconds for each in wide]), sizes=fresh.messages.bytes)
    assert differences(fresh.simulate(machine), program.simulate(machine)) == (0.0, 0.0)
    assert Lockstep.of(narrow).simulate(machine).epoch_seconds < fresh.simulate(machine).epoch_seconds
    with pytest.raises(ValueError, match=r"sizes of shape \(3,\)"):
        program.exchanged(sizes=np.ones(3))


def test_a_machine_with_shared_cores_goes_to_the_event_engine(monkeypatch):
    work = lowered(workload(all_to_all(2, 10)))
    own = Machine(star(2, 1e6), IDEAL, FREE)
    shared = replace(own, hosts=[0, 0])
    expected = engine.simulate(work, shared).epoch_seconds
    assert lockstep.run(work, shared).epoch_seconds == expected
    with pytest.raises(ValueError, match="share cores"):
        Lockstep.of(work).simulate(shared)
    monkeypatch.setattr(engine, "simulate", lambda *_: pytest.fail("own devices need no event engine"))
    assert lockstep.run(work, own).epoch_seconds < expected


def test_a_topology_of_other_ranks_is_refused():
    with pytest.raises(ValueError, match="2 ranks on a topology of 3"):
        Lockstep.of(lowered(workload(all_to_all(2, 10)))).simulate(Machine(star(3, 1e6), IDEAL, FREE))


def test_a_message_that_the_other_end_does_not_expect_is_refused():
    one, other = lowered(workload(all_to_all(2, 10))), lowered(workload(all_to_all(2, 11)))
    with pytest.raises(ValueError, match=r"rank 0 sends \d+ bytes to rank 1, which expects \d+"):
        Lockstep.of([one[0], other[1]])


def test_a_flight_that_is_never_waited_for_is_refused():
    work = lowered(workload(all_to_all(2, 10)))
    kept = [index for index, each in enumerate(work[1].operations) if not isinstance(each, Wait)]
    hasty = RankWork([work[1].operations[index] for index in kept], work[1].seconds[kept], {})
    with pytest.raises(ValueError, match="rank 1 starts a flight that it never waits for"):
        Lockstep.of([work[0], hasty])
