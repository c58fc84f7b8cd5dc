"""Which exchange a wait is for, against what the program says it waits for."""

import pandas as pd
import pytest
from synthetic import Scenario, synthetic_manifest
from tests.support.simulated import simulated

from halocast.traces.flights import NO_FLIGHT, peers_flights, rounds, waits_with_flights
from halocast.traces.operations import AllReduce, Exchange, PeerMessage, Wait
from halocast.traces.trace import TraceWriter, read_trace, write_manifest


def flights_by_wait(trace):
    """(rank, index of the wait): index of the flight."""
    waits = waits_with_flights(trace.spans, trace.messages)
    return dict(zip(zip(waits["rank"], waits["index"], strict=True), waits["flight"], strict=True))


def flights_of_programs(simulation):
    return {(rank, wait): flight for rank, work in enumerate(simulation.work) for wait, flight in work.flights.items()}


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("method", "overlap", "prefetch", "bits"),
    [
        *((method, overlap, 1, 0) for method in ("full", "adaqp") for overlap in (False, True)),
        *(("sar", False, 1, bits) for bits in (0, 4)),
        *(("sar", True, prefetch, bits) for prefetch in (0, 1, 3) for bits in (0, 4)),
    ],
)
def test_a_wait_is_for_what_the_program_waits_for(tmp_path, ranks, method, overlap, prefetch, bits):
    batch_norm = ranks % 2 == 1  # several all-reduces of a layer and direction
    options = {"overlap": overlap, "prefetch": prefetch, "bits": bits, "batch_norm": batch_norm}
    trace, simulation = simulated(tmp_path, ranks, method, **options)
    expected = flights_of_programs(simulation)
    assert flights_by_wait(trace) == expected
    assert len(expected) == (trace.spans["op"] == "Wait").sum()


@pytest.mark.parametrize(("ranks", "prefetch"), [(3, 1), (4, 3)])
def test_ranks_meet_in_the_same_round(tmp_path, ranks, prefetch):
    trace, simulation = simulated(tmp_path, ranks, prefetch=prefetch, batch_norm=True)
    found, turns = {}, {}
    for op in ("Exchange", "AllReduce"):
        flights = trace.spans[(trace.spans["op"] == op) & (trace.spans["stream"] == "compute")]
        turns[op] = dict(zip(zip(flights["rank"], flights["index"], strict=True), rounds(flights), strict=True))
        found |= turns[op]
    expected = {(rank, index): turn for rank, work in enumerate(simulation.work) for index, turn in work.rounds.items()}
    assert found == expected
    assert set(turns["Exchange"].values()) == set(range(ranks - 1))
    assert set(turns["AllReduce"].values()) == {0, 1}
    places = {
        (rank, index): (each.layer, each.direction)
        for rank, work in enumerate(simulation.work)
        for index, each in enumerate(work.operations)
    }
    met = peers_flights(trace.messages)
    assert len(met) == len(trace.messages)
    for rank, flight, peer, peer_flight in met[["rank", "flight", "peer", "peer_flight"]].itertuples(index=False):
        assert expected[rank, flight] == expected[peer, peer_flight]
        assert places[rank, flight] == places[peer, peer_flight]


def write_rank(folder, operations):
    """One rank's operations in order; an exchange is given as the peers it has messages with."""
    write_manifest(folder, synthetic_manifest(Scenario(world_size=1)))
    with TraceWriter(folder, 0) as writer:
        for index, operation in enumerate(operations):
            if isinstance(operation, list):
                exchange, message = Exchange(0), PeerMessage(1, 1, 8)
                writer.span("train", 0, index, exchange, "compute", 10 * index, 5, 0, 0)
                writer.span("train", 0, index, exchange, "communication", 10 * index, 50, 0, 0)
                for peer in operation:
                    outgoing = PeerMessage(peer, message.rows, message.bytes)
                    writer.message("train", 0, index, 0, exchange.direction, outgoing, None, 10 * index, 0, 0)
            else:
                peer = getattr(operation, "peer", -1)
                writer.span("train", 0, index, operation, "compute", 10 * index, 5, 0, 0, peer=peer)
    return read_trace(folder)


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([[1, 2], Wait(0, peer=2), Wait(0, peer=1)], [0, 0]),
        ([[1], [1], Wait(0, peer=1), Wait(0, peer=1)], [0, 1]),
        ([[1], Wait(0, peer=1), Wait(0, peer=1), [1], Wait(0, peer=1)], [0, NO_FLIGHT, 3]),  # the second one: in vain
        ([Wait(0, peer=1), [2], Wait(0, peer=1), [1], Wait(0, peer=1)], [NO_FLIGHT, NO_FLIGHT, 3]),
        ([[1], Wait(1, peer=1), Wait(0, peer=1)], [NO_FLIGHT, 0]),  # of another layer
        ([[1, 2], AllReduce(0), Wait(0), Wait(0), Wait(0)], [1, 0, NO_FLIGHT]),  # the sum, then all of the exchange
        ([[1], [2], Wait(0), Wait(0)], [0, 1]),
    ],
)
def test_waits_in_the_order_of_a_program(tmp_path, operations, expected):
    trace = write_rank(tmp_path, operations)
    found = flights_by_wait(trace)
    assert [found[0, index] for index, each in enumerate(operations) if isinstance(each, Wait)] == expected


def test_nothing_traced_has_no_waits(tmp_path):
    write_manifest(tmp_path, synthetic_manifest(Scenario(world_size=1)))
    trace = read_trace(tmp_path)
    found = waits_with_flights(trace.spans, trace.messages)
    assert found.empty
    assert pd.api.types.is_integer_dtype(found["flight"])
