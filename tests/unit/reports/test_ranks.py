"""Parts of an epoch against a timeline that was drawn by hand."""

import pytest
from synthetic import Scenario, synthetic_manifest, write_synthetic_run
from tests.support.simulated import simulated

from halocast.reports.ranks import HIDDEN, PARTS, last_shares, last_to_send, rank_times
from halocast.traces.epochs import steady_epochs
from halocast.traces.operations import Aggregate, AllReduce, Direction, Exchange, PeerMessage, Quantize, Step, Wait, Work
from halocast.traces.trace import TraceWriter, read_trace, write_manifest

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
MS = 1_000_000
#   ms       0        10       20       30       40       50
#   rank 0   compute  | wait (of rank 1: 10..26; it sends at 18) | reduce 26..27 | wait 27..40 | step 40..41
#   rank 1   compute | quantise 16..18 | exchange 18..19 | wait 19..20 | compute ..31 | reduce 32..33 | wait ..40 | step ..41
TIMELINE = {
    0: [
        (Aggregate(0), "compute", 0, 9, -1),
        (Exchange(0, FORWARD), "compute", 9, 1, -1),
        (Exchange(0, FORWARD), "communication", 9, 17, -1),
        (Wait(0, FORWARD), "compute", 10, 16, 1),
        (AllReduce(0, BACKWARD), "compute", 26, 1, -1),
        (AllReduce(0, BACKWARD), "communication", 26, 14, -1),
        (Wait(0, BACKWARD), "compute", 27, 13, -1),
        (Step(), "compute", 40, 1, -1),
    ],
    1: [
        (Aggregate(0), "compute", 0, 16, -1),
        (Quantize(0, FORWARD, work=Work(bits=4)), "compute", 16, 1, -1),
        (Quantize(0, FORWARD, work=Work(bits=32)), "compute", 17, 1, -1),
        (Exchange(0, FORWARD), "compute", 18, 1, -1),
        (Exchange(0, FORWARD), "communication", 18, 4, -1),
        (Wait(0, FORWARD), "compute", 19, 1, 0),
        (Aggregate(0), "compute", 20, 11, -1),
        (AllReduce(0, BACKWARD), "compute", 32, 1, -1),
        (AllReduce(0, BACKWARD), "communication", 32, 8, -1),
        (Wait(0, BACKWARD), "compute", 33, 7, -1),
        (Step(), "compute", 40, 1, -1),
    ],
}
EXPECTED = {
    0: {
        "compute": 10,
        "quantise": 0,
        "posting messages": 2,
        "exchange exposed": 8,
        "all-reduce exposed": 8,
        "wait for late ranks": 8 + 5,
        "between operations": 0,
        HIDDEN: 1,
    },
    1: {
        "compute": 28,
        "quantise": 1,
        "posting messages": 3,
        "exchange exposed": 1,
        "all-reduce exposed": 7,
        "wait for late ranks": 0,
        "between operations": 1,
        HIDDEN: 3,
    },
}


def write_timeline(folder, timeline, *, epochs=1, offset_ns=0):
    """The same epoch `epochs` times; rank 1's clock is ahead by `offset_ns`."""
    offsets = (0, offset_ns)[: len(timeline)]
    write_manifest(folder, synthetic_manifest(Scenario(world_size=len(timeline), clock_offsets_ns=offsets)))
    for rank, spans in timeline.items():
        with TraceWriter(folder, rank) as writer:
            for epoch in range(epochs):
                index = -1
                for operation, stream, start, wall, peer in spans:
                    index += stream == "compute"  # a flight has its start's
                    begins = (100 * epoch + start) * MS + offsets[rank]
                    writer.span("train", epoch, index, operation, stream, begins, wall * MS, wall * MS, 0, peer)
                    if isinstance(operation, Exchange) and stream == "communication":
                        message, landed = PeerMessage(1 - rank, 1, 8), begins + wall * MS
                        place = index, operation.layer, operation.direction
                        writer.message("train", epoch, *place, message, message, begins, landed, landed)
    return read_trace(folder)


@pytest.mark.parametrize("offset_ns", [0, 3_000_000_000])
def test_the_parts_of_a_timeline(tmp_path, offset_ns):
    times = rank_times(write_timeline(tmp_path, TIMELINE, offset_ns=offset_ns))
    for rank, parts in EXPECTED.items():
        for name, milliseconds in parts.items():
            assert times.parts.at[rank, name] == pytest.approx(milliseconds / 1e3, abs=1e-12), (rank, name)
    assert times.epoch_seconds == pytest.approx(0.041)
    assert times.waiting == pytest.approx((8 + 8 + 13 + 1 + 7) / 82)
    assert times.shares.sum() == pytest.approx(1.0)
    assert times.holdups.tolist() == pytest.approx([0.0, 0.013])  # rank 1 made rank 0 wait 8 ms, and 5 in the all-reduce


def test_means_over_epochs_and_warming_up(tmp_path):
    trace = write_timeline(tmp_path, TIMELINE, epochs=5)
    assert steady_epochs(trace) == (2, 3, 4)
    times = rank_times(trace)
    assert times.parts.at[0, "compute"] == pytest.approx(0.010)
    assert times.parts.at[1, HIDDEN] == pytest.approx(0.003)
    last = last_to_send(trace, times.epochs)
    assert last["rank"].tolist() == [1, 1, 1]
    assert last_shares(last, 2).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("ranks", "prefetch"), [(3, 0), (3, 1), (4, 1), (4, 3)])
def test_rounds_that_are_in_flight_at_once(tmp_path, ranks, prefetch, batch_norm):
    """Method sar: a wait is late until its peer comes to the same round, whatever other rounds it came to before."""
    trace, simulation = simulated(tmp_path, ranks, prefetch=prefetch, batch_norm=batch_norm)
    late = {rank: dict.fromkeys(range(ranks), 0.0) for rank in range(ranks)}  # who waits, for whom
    begun = {}  # (kind, layer, direction, round): start by rank
    for rank, (work, timeline) in enumerate(zip(simulation.work, simulation.ranks, strict=True)):
        for index, each in enumerate(work.operations):
            if isinstance(each, Exchange | AllReduce):
                place = type(each), each.layer, each.direction, work.rounds[index]
                begun.setdefault(place, {})[rank] = timeline.start[index]
    for rank, (work, timeline) in enumerate(zip(simulation.work, simulation.ranks, strict=True)):
        for index, flight in work.flights.items():
            each = work.operations[index]
            starts = begun[type(work.operations[flight]), each.layer, each.direction, work.rounds[flight]]
            culprit = max(starts, key=starts.get) if each.peer < 0 else each.peer
            missing = max(0.0, starts[culprit] - timeline.start[index])
            late[rank][culprit] += min(missing, timeline.wall[index]) if culprit != rank else 0.0
    times = rank_times(trace)
    expected = [sum(late[rank].values()) for rank in range(ranks)]
    assert times.parts["wait for late ranks"].tolist() == pytest.approx(expected, abs=1e-7)
    holdups = [sum(late[rank][culprit] for rank in range(ranks)) / (ranks - 1) for culprit in range(ranks)]
    assert times.holdups.tolist() == pytest.approx(holdups, abs=1e-7)
    last = last_to_send(trace, times.epochs)
    found = last.set_index(["layer", "direction", "round"])["rank"].to_dict()
    assert found == {place[1:]: max(starts, key=starts.get) for place, starts in begun.items() if place[0] is Exchange}
    assert len(found) == (ranks - 1) * len({place[:2] for place in found})


def test_an_epoch_that_a_rank_did_not_finish_does_not_count(tmp_path):
    cut = {0: TIMELINE[0], 1: TIMELINE[1][:-1]}
    assert rank_times(write_timeline(tmp_path / "cut", cut)) is None
    write_manifest(tmp_path / "none", synthetic_manifest(Scenario()))
    assert rank_times(read_trace(tmp_path / "none")) is None


def test_one_rank_waits_for_nobody(tmp_path):
    times = rank_times(write_timeline(tmp_path, {0: [(Aggregate(0), "compute", 0, 9, -1), (Step(), "compute", 9, 1, -1)]}))
    assert times.waiting == 0
    assert times.holdups.tolist() == [0.0]
    assert times.parts.at[0, "compute"] == pytest.approx(0.010)


def test_parts_of_every_rank_are_its_epoch(tmp_path):
    write_synthetic_run(tmp_path, Scenario(world_size=4, epochs=6, bytes_per_second=2e8))
    trace = read_trace(tmp_path)
    times = rank_times(trace)
    spans = trace.spans[trace.spans["stream"] == "compute"]
    ends = (spans["start_ns"] + spans["wall_ns"]).groupby([spans["rank"], spans["epoch"]]).max()
    starts = spans["start_ns"].groupby([spans["rank"], spans["epoch"]]).min()
    lengths = ((ends - starts) / 1e9).unstack()[[2, 3, 4, 5]].mean(axis=1)
    assert times.parts[list(PARTS)].sum(axis=1).tolist() == pytest.approx(lengths.tolist())
    waits = spans[(spans["op"] == "Wait") & (spans["epoch"] >= 2)]["wall_ns"].sum() / 1e9 / 4
    assert times.parts[list(PARTS[3:6])].to_numpy().sum() == pytest.approx(waits)
