"""All ranks at once: a vectorised engine for ranks that each have a device of their own.

Programs are alike on all ranks: the same exchanges and all-reduces start in the same order, and what a rank does between two
of them depends on others only through messages of those before. So time is a vector over ranks. It is carried from start to
start; at each exchange all ranks' start times are known, and its messages are solved for together, once. What
`halocast.simulator.engine` does event by event, and follows exactly where cores are shared, takes a few array operations here.

An exchange under way is taken as solved when the next one starts: what ranks that run ahead send meets what is still in the
air, but does not slow it down in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.simulator.costs import NetworkCosts
from halocast.simulator.engine import UNCOUNTED_EPOCHS, Machine, RankTimeline, RankWork, Simulation
from halocast.simulator.network import Topology, max_min_rates
from halocast.traces.operations import AllReduce, Exchange, Operation, Wait

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WINDOW = 0.05
"""Flows that start or end within this share of the time since the first one started get their new rates together."""
TRANSPORT_ROUNDS = 4
"""How often an exchange is solved at most: messages that come in delay those that go out, and the other way round."""
TRANSPORT_TOLERANCE = 1e-3
"""Of the exchange's duration: delays less than this are not solved for again."""
COMPUTING, EXCHANGING, REDUCING, WAITING = range(4)
KINDS: dict[type[Operation], int] = {Exchange: EXCHANGING, AllReduce: REDUCING, Wait: WAITING}


def simulate(work: Sequence[RankWork], machine: Machine, *, epochs: int = 1) -> Simulation:
    """As `engine.simulate`, for a machine without shared hosts.

    Raises ValueError for ranks that share cores, and for programs that do not run in lockstep.
    """
    return Lockstep.of(work).simulate(machine, epochs=epochs)


@dataclass(frozen=True)
class Flows:
    """All messages of one exchange, sorted by source, then target."""

    source: Ints
    target: Ints
    size: Floats
    """[flows] bytes."""
    ring: Ints
    """[ranks] the flow from the rank before, `len(size)` where there is none."""


@dataclass(frozen=True)
class Start:
    """An exchange or an all-reduce, as all ranks start it."""

    index: Ints
    """[ranks] which of its operations."""
    flat: Ints
    """[ranks] the same among all ranks' operations."""
    flows: Flows
    """None in an all-reduce."""
    messages: Ints
    """[ranks] messages a rank posts."""
    bucket: float | None
    """Bytes of an all-reduce; None: an exchange."""


@dataclass(frozen=True)
class Awaited:
    """The waits of a section for one flight."""

    flight: int
    """Which start."""
    place: Ints
    """[waits] in the section's [rows, ranks] table, flat."""
    incoming: Ints
    """[waits] the flow awaited; the one after the last: none; rank + 1 after that: all of the rank's."""
    outgoing: Ints


@dataclass(frozen=True)
class Section:
    """What ranks do from one start to the next (or the epoch's end). Ranks with fewer waits have rows of nothing in front."""

    segments: Ints
    """[rows + 1, ranks] the operations up to each wait, then those up to the start."""
    waits: Ints
    """[rows, ranks] the wait among all ranks' operations."""
    awaited: tuple[Awaited, ...]


@dataclass(frozen=True)
class Lockstep:
    """All ranks' programs as arrays. A *segment* is a rank's operations up to and with one that meets other ranks."""

    work: Sequence[RankWork]
    first: Ints
    """[ranks + 1] where a rank's operations begin among all."""
    rank: Ints
    """[operations]"""
    seconds: Floats
    """[operations] alone on a device."""
    segment: Ints
    """[operations] which segment it is in."""
    earlier_seconds: Floats
    """[operations] of those before it in its segment."""
    earlier: Ints
    """[operations] how many those are."""
    segment_seconds: Floats
    """[segments + 1] the last is nobody's and empty."""
    segment_operations: Floats
    segment_rank: Ints
    sections: tuple[Section, ...]
    starts: tuple[Start, ...]
    landed: tuple[tuple[tuple[int, int], ...], ...]
    """[ranks] what `RankTimeline.landed` is keyed by."""
    by_target: Ints
    """[flows of all exchanges] the order of those keys, rank by rank."""

    @property
    def ranks(self) -> int:
        return len(self.work)

    @classmethod
    def of(cls, work: Sequence[RankWork]) -> Lockstep:
        """Raises ValueError, naming the rank, for programs that do not start the same exchanges and all-reduces."""
        return _arrange(work)

    def simulate(self, machine: Machine, *, epochs: int = 1) -> Simulation:
        """Epoch after epoch, as the event-driven engine runs them, until one is like the one before."""
        if machine.hosts is not None:
            raise ValueError("ranks that share a host's cores do not run in lockstep: simulate them with engine.simulate")
        if machine.topology.ranks != self.ranks:
            raise ValueError(f"{self.ranks} ranks on a topology of {machine.topology.ranks}: build it for as many")
        return _Run(self, machine).epochs(UNCOUNTED_EPOCHS + epochs)


# -- from programs to arrays ------------------------------------------------------------------------------------


def _arrange(work: Sequence[RankWork]) -> Lockstep:
    ranks = len(work)
    lengths = [len(each.operations) for each in work]
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    operations = [operation for each in work for operation in each.operations]
    kind = np.array([KINDS.get(type(operation), COMPUTING) for operation in operations], dtype=np.int64)
    rank = np.repeat(np.arange(ranks), lengths)
    meets = kind != COMPUTING
    segment = np.cumsum(meets) - meets + rank
    segments = int(meets.sum()) + ranks

    seconds = np.concatenate([each.seconds for each in work]) if operations else np.zeros(0)
    before = np.cumsum(seconds) - seconds
    opening = np.zeros(segments + 1, dtype=np.int64)
    opening[segment[::-1]] = np.arange(len(operations))[::-1]
    tails = np.cumsum(np.bincount(rank[meets], minlength=ranks) + 1) - 1
    segment_rank = np.zeros(segments + 1, dtype=np.int64)
    segment_rank[:segments] = np.repeat(np.arange(ranks), np.diff(tails, prepend=-1))

    starting = np.flatnonzero((kind == EXCHANGING) | (kind == REDUCING))
    table = _starts_by_rank(operations, starting, rank, ranks)
    starts = tuple(_start(row, [operations[flat] for flat in row], row - first[:-1]) for row in table)
    sections = _sections(work, operations, kind, first, rank, segment, tails, table, starts)
    keys, by_target = _landing(starts, ranks)
    return Lockstep(
        work=work,
        first=first,
        rank=rank,
        seconds=seconds,
        segment=segment,
        earlier_seconds=before - before[opening[segment]] if operations else before,
        earlier=np.arange(len(operations)) - opening[segment],
        segment_seconds=np.bincount(segment, weights=seconds, minlength=segments + 1),
        segment_operations=np.bincount(segment, minlength=segments + 1).astype(np.float64),
        segment_rank=segment_rank,
        sections=sections,
        starts=starts,
        landed=keys,
        by_target=by_target,
    )


def _starts_by_rank(operations: Sequence[Operation], starting: Ints, rank: Ints, ranks: int) -> Ints:
    """[starts, ranks] all ranks' exchanges and all-reduces, in order. Raises ValueError where they differ."""
    names = [f"{type(each).__name__} of layer {each.layer} {each.direction}" for each in (operations[flat] for flat in starting)]
    ends = np.cumsum(np.bincount(rank[starting], minlength=ranks))
    expected = names[: ends[0]] if ranks else []
    for other, (begin, end) in enumerate(pairwise([0, *ends.tolist()])):
        if names[begin:end] == expected:
            continue
        own = names[begin:end]
        step = next((i for i, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b), min(len(own), len(expected)))
        ours, theirs = ([*each, "nothing"][step] if step <= len(each) else "nothing" for each in (own, expected))
        raise ValueError(
            f"rank {other} does not run in lockstep with rank 0: as number {step} it starts {ours}, rank 0 {theirs}; "
            "simulate these programs with engine.simulate"
        )
    return starting.reshape(ranks, len(expected)).T


def _start(flat: Ints, operations: Sequence[Operation], index: Ints) -> Start:
    ranks = len(operations)
    if isinstance(operations[0], Exchange):
        exchanges = [each for each in operations if isinstance(each, Exchange)]
        messages = np.array([len(each.outgoing) + len(each.incoming) for each in exchanges])
        return Start(index, flat, _match(exchanges), messages, None)
    buckets = {each.work.bytes_out for each in operations}
    if len(buckets) > 1:
        raise ValueError(
            f"the all-reduce of layer {operations[0].layer} has {min(buckets)} bytes on one rank and {max(buckets)} on another: "
            "a sum needs as many on each"
        )
    none = np.zeros(0, dtype=np.int64)
    flows = Flows(none, none, np.zeros(0), np.zeros(ranks, dtype=np.int64))
    return Start(index, flat, flows, np.zeros(ranks, dtype=np.int64), float(buckets.pop()))


def _match(exchanges: Sequence[Exchange]) -> Flows:
    """The messages that one end sends and the other expects. Raises ValueError where they disagree."""
    ranks = len(exchanges)
    sent = {(rank, each.peer): each.bytes for rank, exchange in enumerate(exchanges) for each in exchange.outgoing}
    due = {(each.peer, rank): each.bytes for rank, exchange in enumerate(exchanges) for each in exchange.incoming}
    if sent != due:
        source, target = min(pair for pair in sent.keys() | due.keys() if sent.get(pair) != due.get(pair))
        first = exchanges[0]
        raise ValueError(
            f"exchange of layer {first.layer} {first.direction}: rank {source} sends rank {target} "
            f"{sent.get((source, target), 'no')} bytes, which expects {due.get((source, target), 'no')}"
        )
    pairs = np.array(list(sent), dtype=np.int64).reshape(-1, 2)
    keys = pairs[:, 0] * ranks + pairs[:, 1]
    order = np.argsort(keys)
    keys = keys[order]
    size = np.array(list(sent.values()), dtype=np.float64)[order]
    ring = _find(keys, (np.arange(ranks) - 1) % ranks * ranks + np.arange(ranks))
    return Flows(keys // ranks, keys % ranks, size, ring)


def _find(keys: Ints, wanted: Ints) -> Ints:
    """Where each of `wanted` is in the sorted `keys`; their number where it is not."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, len(keys))


def _sections(
    work: Sequence[RankWork],
    operations: Sequence[Operation],
    kind: Ints,
    first: Ints,
    rank: Ints,
    segment: Ints,
    tails: Ints,
    table: Ints,
    starts: Sequence[Start],
) -> tuple[Section, ...]:
    ranks, count = len(work), len(starts)
    flat = np.flatnonzero(kind == WAITING)
    whose = rank[flat]
    peer = np.array([getattr(operations[each], "peer", -1) for each in flat], dtype=np.int64)
    ordinal = np.full(len(operations) + 1, -1, dtype=np.int64)  # of the start that an operation is
    ordinal[table] = np.arange(count)[:, None]
    flights = [work[r].flights.get(each) for r, each in zip(whose.tolist(), (flat - first[whose]).tolist(), strict=True)]
    flight = np.array([-1 if each is None else each for each in flights], dtype=np.int64)
    flight = np.where(flight >= 0, ordinal[first[whose] + flight], -1)
    passed = np.cumsum((kind == EXCHANGING) | (kind == REDUCING))
    section = passed[flat] - whose * count
    stray = np.flatnonzero((flight < 0) | (flight >= section))
    if stray.size:
        raise ValueError(f"rank {whose[stray[0]]} waits for what it has not started: {operations[flat[stray[0]]]}")

    group = whose * (count + 1) + section
    waits = np.bincount(group, minlength=ranks * (count + 1)).reshape(ranks, count + 1)
    rows = waits.max(axis=0, initial=0)
    begins = np.cumsum(waits.ravel()) - waits.ravel()
    row = np.arange(len(flat)) - begins[group] + rows[section] - waits[whose, section]

    sections = []
    for number in range(count + 1):
        mine = section == number
        at, by = row[mine], whose[mine]
        segments = np.full((rows[number] + 1, ranks), tails[-1] + 1, dtype=np.int64)
        segments[at, by] = segment[flat[mine]]
        segments[-1] = segment[table[number]] if number < count else tails
        places = np.full((rows[number], ranks), len(operations), dtype=np.int64)
        places[at, by] = flat[mine]
        awaited = []
        for each in np.unique(flight[mine]).tolist():
            chosen = flight[mine] == each
            awaited.append(
                _awaited(each, starts[each].flows, at[chosen] * ranks + by[chosen], by[chosen], peer[mine][chosen], ranks)
            )
        sections.append(Section(segments, places, tuple(awaited)))
    return tuple(sections)


def _awaited(flight: int, flows: Flows, place: Ints, rank: Ints, peer: Ints, ranks: int) -> Awaited:
    keys, everything = flows.source * ranks + flows.target, len(flows.size) + 1 + rank
    incoming, outgoing = _find(keys, peer * ranks + rank), _find(keys, rank * ranks + peer)
    return Awaited(flight, place, np.where(peer < 0, everything, incoming), np.where(peer < 0, everything, outgoing))


def _landing(starts: Sequence[Start], ranks: int) -> tuple[tuple[tuple[tuple[int, int], ...], ...], Ints]:
    """By rank: (operation that started the exchange, peer) of all messages to it; and their order among all flows."""
    if not starts:
        return ((),) * ranks, np.zeros(0, dtype=np.int64)
    target = np.concatenate([start.flows.target for start in starts])
    source = np.concatenate([start.flows.source for start in starts])
    index = np.concatenate([start.index[start.flows.target] for start in starts])
    order = np.argsort(target, kind="stable")
    keys = list(zip(index[order].tolist(), source[order].tolist(), strict=True))
    ends = np.cumsum(np.bincount(target, minlength=ranks)).tolist()
    return tuple(tuple(keys[begin:end]) for begin, end in pairwise([0, *ends])), order


# -- time -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Landed:
    """An exchange or all-reduce, solved. The tables have two more parts than flows: nothing, and all of a rank's."""

    incoming: Floats
    """[flows + 1 + ranks] when they had landed."""
    outgoing: Floats
    """[flows + 1 + ranks] when the sender was rid of them."""
    release: Floats
    """[flows] when they entered the network."""
    arrived: Floats
    """[flows] when they left it."""


@dataclass
class _Airborne:
    """Flows that may still be in the network when the next exchange starts."""

    paths: Ints
    size: Floats
    release: Floats
    end: Floats

    def left(self, now: float) -> _Airborne:
        """What of them is there from `now` on, as if each kept one rate."""
        flying = self.end > now
        release, end = self.release[flying], self.end[flying]
        share = (end - np.maximum(release, now)) / np.maximum(end - release, 1e-300)
        return _Airborne(self.paths[flying], self.size[flying] * np.minimum(share, 1.0), np.maximum(release, now), end)


class _Run:
    """One simulation: the clock of every rank, and what of the network lasts from one exchange to the next."""

    def __init__(self, program: Lockstep, machine: Machine) -> None:
        self.program, self.machine, self.topology = program, machine, machine.topology
        self.network: NetworkCosts = machine.network
        self.slowness = np.ones(program.ranks)
        self.credit, self.idle_since = self.topology.burst.copy(), np.zeros(len(self.topology.burst))
        self.has_burst = bool(self.credit.any())
        self.solved: dict[int, _Landed] = {}
        self.posted: dict[int, Floats] = {}
        nothing = np.zeros(0)
        self.airborne = _Airborne(np.zeros((0, self.topology.paths(np.zeros(1, np.int64), np.zeros(1, np.int64)).shape[1]), np.int64), nothing, nothing, nothing)  # fmt: skip
        segments, operations = len(program.segment_seconds), len(program.seconds)
        self.segment_begin, self.woken = np.zeros(segments), np.zeros(segments)
        self.wait_start, self.wait_wall = np.zeros(operations + 1), np.zeros(operations + 1)

    def epochs(self, count: int) -> Simulation:
        """`count` epochs, those that would repeat the one before left out."""
        host = self.machine.host
        first = np.zeros(self.program.ranks)
        first[0] = host.first_rank_seconds
        # Where all ranks come out of the last all-reduce together, this is how they enter an epoch; if not, it shows below.
        tail = self._costs()[self.program.sections[-1].segments[-1]] + host.epoch_seconds + first
        begin = tail - tail.min()
        samples: list[float] = []
        demand = np.array([each.seconds.sum() for each in self.program.work])
        while len(samples) < count:
            end = self._epoch(begin)
            samples.append(float(end[0] - begin[0]))
            slowness = self._slowness(demand, end - begin)
            following = end + first
            drift = np.ptp(following - begin)
            if not self.has_burst and drift <= 1e-9 * samples[-1] and np.array_equal(slowness, self.slowness):
                samples += samples[-1:] * (count - len(samples))
            elif len(samples) < count:
                self.slowness, begin = slowness, following
        return Simulation(self.program.work, self._timelines(begin, end), np.array(samples[UNCOUNTED_EPOCHS:]))

    def _slowness(self, demand: Floats, seconds: Floats) -> Floats:
        """[ranks] of the next epoch, by how busy the devices were in this one."""
        host = self.machine.host
        if not host.idleness:
            return self.slowness
        busy = demand * self.slowness / np.maximum(seconds, 1e-300)
        return np.array([host.inflation(each) for each in busy.tolist()])

    def _costs(self) -> Floats:
        """[segments + 1] seconds, what lies between operations included."""
        program = self.program
        gaps = self.machine.host.gap_seconds * program.segment_operations
        costs: Floats = (program.segment_seconds + gaps) * self.slowness[program.segment_rank]
        return costs

    def _epoch(self, begin: Floats) -> Floats:
        """[ranks] when each ends the epoch that it began at `begin`."""
        self.costs = self._costs()
        self.solved.clear()
        self.posted.clear()
        now = begin
        for number, section in enumerate(self.program.sections):
            now = self._pass(section, now)
            if number < len(self.program.starts):
                start = self.program.starts[number]
                if start.bucket is None:
                    now = now + self.network.post_seconds * start.messages
                    self.solved[number] = self._exchange(start.flows, now)
                self.posted[number] = now
        return now + self.machine.host.epoch_seconds

    def _pass(self, section: Section, now: Floats) -> Floats:
        """Take all ranks through a section, wait by wait."""
        rows, ranks = section.waits.shape
        ready = np.full(rows * ranks, -np.inf)
        for each in section.awaited:
            landed = self._landed(each.flight)
            ready[each.place] = np.maximum(landed.incoming[each.incoming], landed.outgoing[each.outgoing])
        ready = ready.reshape(rows, ranks)
        costs, wake = self.costs[section.segments], self.network.wake_seconds * self.slowness
        begin, started, ended = np.empty((rows + 1, ranks)), np.empty((rows, ranks)), np.empty((rows, ranks))
        woken = np.zeros((rows + 1, ranks))
        for row in range(rows):
            begin[row] = now
            np.add(now, costs[row], out=started[row])
            started[row] += woken[row]
            now = np.maximum(started[row], ready[row], out=ended[row])
            np.multiply(ready[row] > started[row], wake, out=woken[row + 1])
        begin[rows] = now
        self.segment_begin[section.segments], self.woken[section.segments] = begin, woken
        self.wait_start[section.waits], self.wait_wall[section.waits] = started, ended - started
        total: Floats = now + costs[rows] + woken[rows]
        return total

    def _landed(self, flight: int) -> _Landed:
        """All-reduces are solved when they are waited for: then all exchanges beside them are known."""
        if flight not in self.solved:
            bucket = self.program.starts[flight].bucket
            assert bucket is not None
            done = np.concatenate([[-np.inf], self._reduce(flight, bucket)])
            self.solved[flight] = _Landed(done, done, np.zeros(0), np.zeros(0))
        return self.solved[flight]

    # -- messages -----------------------------------------------------------------------------------------------

    def _exchange(self, flows: Flows, posted: Floats) -> _Landed:
        """Sender's transport, network, receiver's transport, for all messages at once."""
        network, ranks = self.network, self.program.ranks
        if not len(flows.size):
            nothing = np.full(1 + ranks, -np.inf)
            return _Landed(nothing, nothing, np.zeros(0), np.zeros(0))
        source, target, count = flows.source, flows.target, len(flows.size)
        met = np.maximum(posted[source], posted[target])
        send = (network.send_seconds + network.byte_seconds * flows.size) * self.slowness[source]
        receive = (network.receive_seconds + network.byte_seconds * flows.size) * self.slowness[target]
        latency = network.latency + self.topology.latencies(source, target)
        paths = self.topology.paths(source, target)
        taken = serve(source, met, send)
        for _ in range(TRANSPORT_ROUNDS):
            release = taken + latency
            size = flows.size / network.efficiency
            if self.has_burst:
                size, credit = self._spend(paths, size, release)
            around = self.airborne.left(float(release.min()))
            arrived = fluid_ends(
                np.concatenate([paths, around.paths]),
                np.concatenate([size, around.size]),
                np.concatenate([release, around.release]),
                self.topology.capacity,
            )[:count]
            ends = serve(np.concatenate([source, target]), np.concatenate([met, arrived]), np.concatenate([send, receive]))
            landed, moved = ends[count:], np.abs(ends[:count] - taken).max()
            if moved <= TRANSPORT_TOLERANCE * (landed.max() - met.min()):
                break
            taken = ends[:count]
        if self.has_burst:
            self.credit = credit
            np.maximum.at(self.idle_since, paths.ravel(), np.repeat(arrived, paths.shape[1]))
        self.airborne = _Airborne(
            *(np.concatenate(pair) for pair in ((around.paths, paths), (around.size, size), (around.release, release), (around.end, arrived)))
        )  # fmt: skip
        rid = np.where(flows.size <= network.send_buffer_bytes, taken, arrived)
        return _Landed(_with_totals(landed, target, ranks), _with_totals(rid, source, ranks), release, arrived)

    def _spend(self, paths: Ints, size: Floats, release: Floats) -> tuple[Floats, Floats]:
        """Bytes left of flows after the token buckets on their way, first come, first served; and what the buckets then hold.

        Buckets fill until an exchange's first message crosses them, not between its messages.
        """
        topology = self.topology
        begin = np.full(len(self.credit), np.inf)
        np.minimum.at(begin, paths.ravel(), np.repeat(release, paths.shape[1]))
        pause = np.where(np.isfinite(begin), np.maximum(begin - self.idle_since, 0.0), 0.0)
        earned = np.where(topology.burst > 0.0, pause * np.where(topology.burst > 0.0, topology.capacity, 0.0), 0.0)
        credit = np.minimum(topology.burst, self.credit + earned).tolist()
        shaped = (topology.burst > 0.0).tolist()
        left, crossed = size.tolist(), paths.tolist()
        for flow in np.argsort(release, kind="stable").tolist():
            on_way = [each for each in crossed[flow] if shaped[each]]
            taken = min([left[flow], *(credit[each] for each in on_way)]) if on_way else 0.0
            left[flow] -= taken
            for each in on_way:
                credit[each] -= taken
        return np.array(left), np.array(credit)

    # -- all-reduces --------------------------------------------------------------------------------------------

    def _reduce(self, flight: int, bucket: float) -> Floats:
        """[ranks] when a ring all-reduce is through: 2 (K − 1) times, take a K-th of the bucket from the rank before.

        Its messages wait for those of an exchange on the same connection, and for a part of a port's queue.
        """
        ranks = self.program.ranks
        now, steps = np.full(ranks, self.posted[flight].max()), 2 * (ranks - 1)
        each = np.arange(ranks)
        before = (each - 1) % ranks
        narrowest = self.topology.capacity[self.topology.paths(before, each)].min(axis=1)
        chunk = bucket / ranks / self.network.efficiency
        transit = self.network.latency + self.topology.latencies(before, each) + chunk / narrowest
        turn = self.network.reduce_step_seconds * self.slowness
        slowest, is_uniform = float((turn + transit).max()), np.ptp(turn) == 0.0 and np.ptp(transit) == 0.0
        traffic = [found for found in (self._traffic(number) for number in self.solved) if found is not None]
        while steps:
            latest = float(now.max()) + steps * slowest
            traffic = [each for each in traffic if each.last > now.min()]
            if is_uniform and steps >= ranks - 1 and all(each.begin > latest for each in traffic):
                return np.full(ranks, latest)
            now = now + turn
            now = np.maximum(now, now[before])
            for other in traffic:
                now = other.let_pass(now, before, narrowest, self.topology.queue_seconds)
            now = now + transit
            steps -= 1
        return now

    def _traffic(self, number: int) -> _Traffic | None:
        """An exchange as an all-reduce's messages meet it."""
        solved, flows, ranks = self.solved[number], self.program.starts[number].flows, self.program.ranks
        if not len(flows.size):
            return None
        begin, end = np.append(solved.release, np.inf)[flows.ring], np.append(solved.arrived, -np.inf)[flows.ring]
        ports = []
        if self.topology.queue_seconds:
            for whose in (flows.source, flows.target):
                size = np.bincount(whose, weights=flows.size / self.network.efficiency, minlength=ranks)
                opening, closing = np.full(ranks, np.inf), np.full(ranks, -np.inf)
                np.minimum.at(opening, whose, solved.release)
                np.maximum.at(closing, whose, solved.arrived)
                ports.append((size, opening, closing))
            return _Traffic(begin, end, float(solved.release.min()), float(solved.arrived.max()), tuple(ports))
        return _Traffic(begin, end, float(begin.min()), float(end.max()), ())

    # -- what is told of it -------------------------------------------------------------------------------------

    def _timelines(self, begin: Floats, end: Floats) -> list[RankTimeline]:
        """Share out segments' times to their operations, by what each costs alone; waking up stretches them."""
        program, gap = self.program, self.machine.host.gap_seconds
        stretch = np.divide(self.costs + self.woken, self.costs, out=np.zeros(len(self.costs)), where=self.costs > 0.0)
        stretch = stretch[program.segment] * self.slowness[program.rank]
        start = self.segment_begin[program.segment] + (program.earlier_seconds + gap * program.earlier) * stretch
        wall = program.seconds * stretch
        for section in program.sections:
            places = section.waits[section.waits < len(start)]
            start[places], wall[places] = self.wait_start[places], self.wait_wall[places]
        for each in program.starts:
            wall[each.flat] += self.network.post_seconds * each.messages
        landed = self._landing_times()
        done = self._done()
        cuts = program.first[1:-1]
        return [
            RankTimeline(*parts, begin=float(begin[rank]), end=float(end[rank]), landed=landed[rank], done=done[rank])
            for rank, parts in enumerate(zip(np.split(start, cuts), np.split(wall, cuts), strict=True))
        ]

    def _landing_times(self) -> list[dict[tuple[int, int], float]]:
        program = self.program
        times: list[float] = []
        if program.starts:
            parts = [self._landed(number).incoming[: len(start.flows.size)] for number, start in enumerate(program.starts)]
            times = np.concatenate(parts)[program.by_target].tolist()
        found, begin = [], 0
        for keys in program.landed:
            found.append(dict(zip(keys, times[begin : begin + len(keys)], strict=True)))
            begin += len(keys)
        return found

    def _done(self) -> list[dict[int, float]]:
        """By rank: when each of its flights was through, by the operation that started it."""
        ranks = self.program.ranks
        found: list[dict[int, float]] = [{} for _ in range(ranks)]
        for number, start in enumerate(self.program.starts):
            solved = self._landed(number)
            times = np.maximum(solved.incoming[-ranks:], solved.outgoing[-ranks:]).tolist()
            for table, index, time in zip(found, start.index.tolist(), times, strict=True):
                if time > -np.inf:
                    table[index] = time
        return found


@dataclass(frozen=True)
class _Traffic:
    """What of an exchange is in the way of small messages."""

    begins: Floats
    """[ranks] when the flow from the rank before enters the network; inf where there is none."""
    ends: Floats
    """[ranks] when it leaves it."""
    begin: float
    last: float
    ports: tuple[tuple[Floats, Floats, Floats], ...]
    """(bytes, begin, end) [ranks] of all that leaves a rank, and of all that comes in; empty where ports have no queue."""

    def let_pass(self, now: Floats, before: Ints, rate: Floats, longest: float) -> Floats:
        """[ranks] when a message from the rank before that sets off `now` has the way free: queues drain evenly."""
        free = np.where((self.begins <= now) & (self.ends > now), self.ends, now)
        if not self.ports:
            return free
        waiting = np.zeros(len(now))
        for (size, begin, end), whose in zip(self.ports, (before, np.arange(len(now))), strict=True):
            first, last = begin[whose], end[whose]
            inside = (first <= now) & (last > now)
            share = np.divide(last - now, last - first, out=np.zeros(len(now)), where=inside)
            waiting += size[whose] * share / rate
        return np.maximum(free, now + np.minimum(waiting, longest))


def _with_totals(times: Floats, rank: Ints, ranks: int) -> Floats:
    """`times`, then that of nothing, then by rank the last of its own."""
    last = np.full(ranks, -np.inf)
    np.maximum.at(last, rank, times)
    return np.concatenate([times, [-np.inf], last])


def serve(server: Ints, arrival: Floats, seconds: Floats) -> Floats:
    """[jobs] when each is done by its server, which takes one at a time, first come, first served.

    Jobs that take no time do not queue. Of jobs that arrive together the one named first goes first.
    """
    order = np.lexsort((arrival, server))
    length = seconds[order]
    through = np.cumsum(length)
    idle = arrival[order] - (through - length)
    # one running maximum for all servers: each one's times lie above those of the servers before it
    lift = server[order] * (np.ptp(idle) + 1.0)
    ends = np.empty(len(order))
    ends[order] = np.maximum.accumulate(idle + lift) - lift + through
    return np.where(seconds > 0.0, ends, arrival)


def fluid_ends(paths: Ints, size: Floats, release: Floats, capacity: Floats) -> Floats:
    """[flows] seconds when flows of `size` bytes that start at `release` across `paths` [flows, hops] end, at max–min fair rates.

    Rates are computed once for all flows that start or end within a window (`WINDOW`). What a resource gained or lost in
    the meantime, because a flow across it ended or started before the window did, is made good to the flows that share it:
    the error is of second order in the window. Flows that all end at once are exact.
    """
    ends = release.copy()
    limit = capacity[paths].min(axis=1)
    flowing = np.flatnonzero((size > 0.0) & np.isfinite(limit))
    if not flowing.size:
        return ends
    flowing = flowing[np.argsort(release[flowing], kind="stable")]
    limited = np.isfinite(capacity)
    crossed = paths[flowing]
    crossed = crossed[:, limited[crossed].any(axis=0)]
    left, starts = size[flowing].astype(np.float64), release[flowing]
    soonest = starts + left / limit[flowing]
    begin = float(starts[0])
    grain = _least_duration(crossed, left, soonest - begin, capacity)
    found = np.empty(len(flowing))
    active, rates = np.zeros(0, dtype=np.int64), np.zeros(0)
    now, waiting = begin, 0
    while active.size or waiting < len(flowing):
        finish = now + left[active] / rates
        first = min(finish.min(initial=np.inf), starts[waiting] if waiting < len(flowing) else np.inf)
        horizon = max(now, first + WINDOW * max(first - begin, grain))
        is_over = finish <= horizon
        over, joined = active[is_over], np.arange(waiting, np.searchsorted(starts, horizon, side="right"))
        found[over] = finish[is_over]
        stayed, old = active[~is_over], rates[~is_over]
        active = np.concatenate([stayed, joined])
        if waiting + len(joined) == len(flowing) and not active.size:
            break
        new = max_min_rates(crossed[active], capacity)
        changed = np.concatenate([over, joined])
        weight = np.concatenate([rates[is_over], new[len(stayed) :]])
        moment = np.concatenate([finish[is_over], starts[joined]]) - now
        turning = _turning_points(crossed, stayed, changed, weight, moment, limited)
        left[stayed] -= old * turning + new[: len(stayed)] * (horizon - now - turning)
        left[joined] -= new[len(stayed) :] * (horizon - starts[joined])
        rates, now, waiting = new, horizon, waiting + len(joined)
    ends[flowing] = np.maximum(found, soonest)
    return ends


def _least_duration(crossed: Ints, size: Floats, alone: Floats, capacity: Floats) -> float:
    """A lower bound on when the first resource has all its flows through: of a rank's port, when its last message can be in."""
    load = np.bincount(crossed.ravel(), weights=np.repeat(size, crossed.shape[1]), minlength=len(capacity))
    last = load / capacity
    np.maximum.at(last, crossed.ravel(), np.repeat(alone, crossed.shape[1]))
    is_used = (load > 0.0) & np.isfinite(capacity)
    return float(last[is_used].min())


def _turning_points(crossed: Ints, flows: Ints, changed: Ints, weight: Floats, moment: Floats, limited: npt.NDArray[Any]) -> Floats:
    """[flows] when in a window each flow's rate changed: the mean moment of the starts and ends on its way, by their rates."""
    resources, hops = len(limited), crossed.shape[1]
    across = crossed[changed].ravel()
    total = np.bincount(across, weights=np.repeat(weight, hops), minlength=resources) * limited
    moments = np.bincount(across, weights=np.repeat(weight * moment, hops), minlength=resources) * limited
    near, near_moments = total[crossed[flows]].sum(axis=1), moments[crossed[flows]].sum(axis=1)
    overall = float((weight * moment).sum() / weight.sum())
    return np.divide(near_moments, near, out=np.full(len(flows), overall), where=near > 0.0)
