"""Drives the same programs as the runtime, on a virtual clock: SimPy instead of torch.

Each rank is a process that works through its operations. Computing is a job on its host's cores (or a device of its own);
starting an exchange makes messages ready; waiting blocks until both ways of a peer's messages are through. A message
crosses three stations: its sender's transport thread, the network, its receiver's transport thread. It sets off when both
ends have reached the exchange, as gloo's and NCCL's rendezvous has it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from halocast.simulator.cores import OwnCore, SharedCores
from halocast.simulator.costs import HostCosts, NetworkCosts
from halocast.simulator.network import Fabric, Topology
from halocast.traces.operations import AllReduce, Dequantize, Direction, Exchange, Operation, Program, Quantize, Wait
from halocast.traces.operations import Free as FreeBuffer
from halocast.traces.operations import Keep as KeepBuffer

Floats = npt.NDArray[np.float64]
Key = tuple[int, str, int, Direction]
"""(epoch, "exchange" or "reduce" and the round, layer, direction): what all ranks call one exchange."""


@dataclass(frozen=True, slots=True)
class Token:
    """What the engine sends back into a program for a flight: which operation started it."""

    index: int


class Component(IntEnum):
    """What an epoch's time is told apart into."""

    COMPUTE = 0
    QUANTISE = 1
    EXCHANGE_EXPOSED = 2
    REDUCE_EXPOSED = 3
    POSTING = 4
    WAIT = 5


def component_of(operation: Operation) -> Component:
    """Waiting for a peer is waiting for an exchange; for no peer, for an all-reduce."""
    match operation:
        case Wait():
            return Component.EXCHANGE_EXPOSED if operation.peer >= 0 else Component.REDUCE_EXPOSED
        case Dequantize():
            return Component.QUANTISE
        case Quantize():
            return Component.QUANTISE if operation.work.bits < 32 else Component.POSTING  # 0: of several widths
        case Exchange() | AllReduce():
            return Component.POSTING
    return Component.COMPUTE


@dataclass(frozen=True)
class RankWork:
    """One rank's operations of an epoch, and what each costs alone on a core."""

    operations: Sequence[Operation]
    seconds: Floats
    """[operations]; of a Wait 0."""
    flights: Mapping[int, int]
    """The operation that started it, by the index of the Wait that waits for it."""

    @cached_property
    def components(self) -> npt.NDArray[np.int64]:
        """[operations] the Component of an epoch that each counts to."""
        return np.array([component_of(operation) for operation in self.operations], dtype=np.int64)

    @cached_property
    def rounds(self) -> Mapping[int, int]:
        """By the index of an Exchange (or AllReduce): how many of its layer and direction came before it; ranks meet in the
        same one.
        """
        met: Counter[tuple[type[Operation], int, Direction]] = Counter()
        rounds = {}
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Exchange | AllReduce):
                place = type(operation), operation.layer, operation.direction
                rounds[index] = met[place]
                met[place] += 1
        return rounds


def lower(program: Program, price: Callable[[Operation], float]) -> RankWork:
    """Walk a program to its end; values are opaque to it, so that a token stands for each flight."""
    operations: list[Operation] = []
    seconds: list[float] = []
    flights: dict[int, int] = {}
    value: Any = None
    try:
        while True:
            operation = program.send(value)
            value = None
            if isinstance(operation, KeepBuffer | FreeBuffer):
                continue
            index = len(operations)
            operations.append(operation)
            if isinstance(operation, Wait):
                flights[index] = operation.flight.index
                seconds.append(0.0)
                continue
            seconds.append(price(operation))
            if isinstance(operation, Exchange | AllReduce):
                value = Token(index)
    except StopIteration:
        return RankWork(operations, np.array(seconds), flights)


@dataclass(frozen=True)
class Machine:
    """What the ranks run on."""

    topology: Topology
    host: HostCosts
    network: NetworkCosts
    hosts: Sequence[int] | None = None
    """By rank: the host whose cores it shares; None: every rank has a device of its own."""


@dataclass
class RankTimeline:
    """When each operation of the last epoch began and how long it took, in seconds from that epoch's start."""

    start: Floats
    wall: Floats
    landed: dict[tuple[int, int], float] = field(default_factory=dict)
    """When the messages from a peer were through, by (operation that started the exchange, peer)."""
    done: dict[int, float] = field(default_factory=dict)
    """When a whole flight was, by the operation that started it."""
    begin: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Simulation:
    """What a simulation says of one epoch."""

    work: Sequence[RankWork]
    ranks: Sequence[RankTimeline]
    """Of the last epoch."""
    samples: Floats
    """[epochs that count] rank 0's epoch times."""

    @property
    def epoch_seconds(self) -> float:
        """As rank 0 measures it: the mean over the epochs that count."""
        return float(self.samples.mean())


UNCOUNTED_EPOCHS = 2
"""Epochs before those that count: the ranks fall into step, the host's utilisation settles."""
RANDOM_EPOCHS = 6
"""Epochs that count where stalls make them differ."""


def simulate(work: Sequence[RankWork], machine: Machine, *, epochs: int | None = None, seed: int = 0) -> Simulation:
    """Run epoch after epoch, each rank going on as it finishes; `epochs` of them count (by default 1, more with stalls)."""
    stalls = machine.hosts is not None and machine.host.stall_rate > 0.0
    return _Run(work, machine, UNCOUNTED_EPOCHS + (epochs or (RANDOM_EPOCHS if stalls else 1)), seed).finish()


class _Stalls:
    """A Poisson process over a rank's computing time, the same for the same seed."""

    def __init__(self, host: HostCosts, seed: int, rank: int) -> None:
        self._random = random.Random(1_000_003 * seed + rank)
        self._rate, self._mean = host.stall_rate, host.stall_seconds
        self._until = self._random.expovariate(self._rate)

    def during(self, seconds: float) -> float:
        """How long the rank is stalled while it computes for `seconds`."""
        stalled = 0.0
        while seconds >= self._until:
            seconds -= self._until
            stalled += self._random.expovariate(1.0 / self._mean)
            self._until = self._random.expovariate(self._rate)
        self._until -= seconds
        return stalled


class _TransportThread:
    """What moves a rank's messages: one thread, a message at a time, on the rank's host's cores."""

    def __init__(self, cores: SharedCores | OwnCore) -> None:
        self._cores, self._thread = cores, cores.thread()
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._busy = False

    def do(self, seconds: float, then: Callable[[], None]) -> None:
        if seconds <= 0.0:
            then()
            return
        self._queue.append((seconds, then))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        if not self._queue:
            self._busy = False
            return
        self._busy = True
        seconds, then = self._queue.popleft()

        def finished(_: simpy.Event) -> None:
            then()
            self._next()

        _on(self._cores.run(self._thread, seconds), finished)


@dataclass
class _Flight:
    """One rank's side of an exchange: what is still missing from each peer."""

    missing: dict[int, int]
    events: dict[int, simpy.Event] = field(default_factory=dict)
    index: int = 0
    rank: int = 0


class _Run:
    def __init__(self, work: Sequence[RankWork], machine: Machine, epochs: int, seed: int) -> None:
        self.work, self.machine, self.epochs, self.seed = work, machine, epochs, seed
        self.samples: list[float] = []
        self.environment = simpy.Environment()
        self.fabric = Fabric(self.environment, machine.topology)
        self.cores: list[SharedCores | OwnCore]
        if machine.hosts is None:
            self.cores = [OwnCore(self.environment) for _ in work]
        else:
            shared = {
                host: SharedCores(self.environment, machine.host.cores, machine.host.scheduling) for host in set(machine.hosts)
            }
            self.cores = [shared[host] for host in machine.hosts]
        self.mains = [cores.thread() for cores in self.cores]
        self.threads = [_TransportThread(cores) for cores in self.cores]
        self.flights: dict[Key, dict[int, _Flight]] = {}
        self.turns: dict[Key, int] = {}
        self.handed: dict[Key, dict[tuple[int, int], simpy.Event]] = {}
        self.slowness = [machine.host.slowness] * len(work)
        self.demand = self._demand()
        self.timelines = [RankTimeline(np.zeros(len(each.operations)), np.zeros(len(each.operations))) for each in work]

    def finish(self) -> Simulation:
        processes = [self.environment.process(self._rank(rank)) for rank in range(len(self.work))]
        self.environment.run(simpy.AllOf(self.environment, processes))
        return Simulation(self.work, self.timelines, np.array(self.samples))

    def _demand(self) -> list[float]:
        """By rank: core-seconds of an epoch over the cores of the rank's host, all its ranks together."""
        own = [float(each.seconds.sum()) for each in self.work]
        if self.machine.hosts is None:
            return own
        totals: dict[int, float] = {}
        for host, seconds in zip(self.machine.hosts, own, strict=True):
            totals[host] = totals.get(host, 0.0) + seconds / self.machine.host.cores
        return [totals[host] for host in self.machine.hosts]

    # -- a rank -------------------------------------------------------------------------------------------------

    def _rank(self, rank: int) -> Generator[simpy.Event, Any, None]:
        environment, host, network = self.environment, self.machine.host, self.machine.network
        work, timeline, cores, thread = self.work[rank], self.timelines[rank], self.cores[rank], self.mains[rank]
        stalls = _Stalls(host, self.seed, rank) if self.machine.hosts is not None and host.stall_rate > 0.0 else None
        slowness = host.slowness
        for epoch in range(self.epochs):
            is_last, counts = epoch == self.epochs - 1, epoch >= UNCOUNTED_EPOCHS
            timeline.begin = environment.now
            costs, gap = (work.seconds * slowness).tolist(), host.gap_seconds * slowness
            between = host.epoch_seconds * slowness
            self.slowness[rank] = slowness
            open_flights: dict[int, _Flight] = {}
            pending, first, woken = 0.0, 0, -1
            for index, operation in enumerate(work.operations):
                pending += costs[index] + gap
                if not isinstance(operation, Exchange | AllReduce | Wait):
                    continue
                began = yield cores.run(thread, pending)
                if stalls is not None and (stall := stalls.during(pending)):
                    yield environment.timeout(stall)
                if is_last:
                    self._note(timeline, costs, gap, first, index + 1, woken, began, environment.now)
                pending, first, woken = 0.0, index + 1, -1
                if isinstance(operation, Exchange):
                    blocked = network.post_seconds * (len(operation.outgoing) + len(operation.incoming))
                    if blocked:
                        yield environment.timeout(blocked)
                    timeline.wall[index] += blocked
                    open_flights[index] = self._start_exchange(rank, epoch, index, operation)
                elif isinstance(operation, AllReduce):
                    open_flights[index] = self._start_reduction(rank, epoch, index, operation)
                else:
                    flight = open_flights[work.flights[index]]
                    timeline.start[index] = environment.now
                    for peer in [operation.peer] if operation.peer >= 0 else sorted(flight.missing):
                        if flight.missing.get(peer):
                            woken = index
                            event = flight.events[peer] = environment.event()
                            yield event
                    timeline.wall[index] = environment.now - timeline.start[index]
                    if woken == index:
                        pending = network.wake_seconds * slowness
            began = yield cores.run(thread, pending + between)
            if stalls is not None and (stall := stalls.during(pending)):
                yield environment.timeout(stall)
            if is_last:
                share = pending / (pending + between) if pending + between > 0.0 else 1.0
                self._note(timeline, costs, gap, first, len(costs), woken, began, began + (environment.now - began) * share)
            timeline.end = environment.now
            if rank == 0 and counts:
                self.samples.append(timeline.end - timeline.begin)
            if host.idleness and timeline.end > timeline.begin:
                slowness = host.inflation(self.demand[rank] * slowness / (timeline.end - timeline.begin))
            if rank == 0 and host.first_rank_seconds and not is_last:
                yield cores.run(thread, host.first_rank_seconds * slowness)

    @staticmethod
    def _note(
        timeline: RankTimeline, costs: Sequence[float], gap: float, first: int, last: int, woken: int, start: float, end: float
    ) -> None:
        """Share a job's time out to its operations, by what each costs alone; queueing for a core is part of the wait."""
        if woken >= 0:
            timeline.wall[woken] = start - timeline.start[woken]
        total = sum(costs[first:last]) + gap * (last - first)
        stretch = (end - start) / total if total > 0.0 else 0.0
        now = start
        for index in range(first, last):
            timeline.start[index], timeline.wall[index] = now, costs[index] * stretch
            now += (costs[index] + gap) * stretch

    # -- messages -----------------------------------------------------------------------------------------------

    def _start_exchange(self, rank: int, epoch: int, index: int, operation: Exchange) -> _Flight:
        key = (epoch, f"exchange {self.work[rank].rounds[index]}", operation.layer, operation.direction)
        missing: dict[int, int] = {}
        for message in (*operation.outgoing, *operation.incoming):
            missing[message.peer] = missing.get(message.peer, 0) + 1
        flight = _Flight(missing, index=index, rank=rank)
        posted = self.flights.setdefault(key, {})
        self.turns.setdefault(key, len(self.turns))
        posted[rank] = flight
        for message in operation.outgoing:
            if message.peer in posted:
                self._send(key, rank, message.peer, message.bytes)
        for message in operation.incoming:
            if message.peer in posted:
                self._send(key, message.peer, rank, message.bytes)
        return flight

    def _send(self, key: Key, source: int, target: int, size: float) -> None:
        network = self.machine.network
        flights, turn = self.flights[key], self.turns[key]

        def transfer() -> None:
            if size <= network.send_buffer_bytes:  # the rest is the network's: the sender's rows are free again
                self._complete(flights[source], target)
            _on(
                self.environment.timeout(latency),
                lambda _: _on(self.fabric.send(source, target, size / network.efficiency, turn), arrived),
            )

        def arrived(_: simpy.Event) -> None:
            if size > network.send_buffer_bytes:
                self._complete(flights[source], target)
            self.threads[target].do((network.receive_seconds + network.byte_seconds * size) * self.slowness[target], landed)

        def landed() -> None:
            if key[0] == self.epochs - 1:
                self.timelines[target].landed[flights[target].index, source] = self.environment.now
            self._complete(flights[target], source)

        latency = self._latency(source, target)
        self.threads[source].do((network.send_seconds + network.byte_seconds * size) * self.slowness[source], transfer)

    def _complete(self, flight: _Flight, peer: int) -> None:
        flight.missing[peer] -= 1
        if flight.missing[peer] == 0:
            self.timelines[flight.rank].done[flight.index] = self.environment.now
            event = flight.events.pop(peer, None)
            if event is not None:
                event.succeed()

    def _start_reduction(self, rank: int, epoch: int, index: int, operation: AllReduce) -> _Flight:
        """It sets off when the last rank is there."""
        key = (epoch, f"reduce {self.work[rank].rounds[index]}", operation.layer, operation.direction)
        posted = self.flights.setdefault(key, {})
        flight = _Flight({-1: 1}, index=index, rank=rank)
        posted[rank] = flight
        if len(posted) == len(self.work):
            reduce = self._reduce if self.machine.network.all_reduce == "ring" else self._reduce_in_tree
            for each in range(len(self.work)):
                self.environment.process(reduce(key, each, operation.work.bytes_out))
        return flight

    def _reduce(self, key: Key, rank: int, size: int) -> Generator[simpy.Event, Any, None]:
        """One rank's part in a ring all-reduce: 2 (K − 1) times, take a K-th of the bucket from the rank before.

        Its messages are small and queue behind those of exchanges under way: they share a connection, and ports serve first
        come, first served.
        """
        environment, network = self.environment, self.machine.network
        world, thread = len(self.work), self.cores[rank].thread()
        before = (rank - 1) % world
        chunk = size / world / network.reduce_efficiency
        handed = self.handed.setdefault(key, {})
        for step in range(2 * (world - 1)):
            yield self.cores[rank].run(thread, network.reduce_step_seconds * self.slowness[rank])
            _event(handed, environment, (rank, step)).succeed()
            arrival = _event(handed, environment, (before, step))
            if not arrival.processed:
                yield arrival
            yield from self._hand_on(before, rank, chunk)
        self._complete(self.flights[key][rank], -1)

    def _reduce_in_tree(self, key: Key, rank: int, size: int) -> Generator[simpy.Event, Any, None]:
        """One rank's part in a tree all-reduce: add what the children send, pass it up, then pass the sum down.

        Pieces are passed on as they come, so that a level adds one piece's time and the whole bucket is paid for once each
        way: what two trees, each with the other's leaves inside, reach (Sanders, Speck and Träff, Parallel Computing 35, 2009).
        """
        environment, network, cores = self.environment, self.machine.network, self.cores[rank]
        world, thread = len(self.work), self.cores[rank].thread()
        size_sent = size / network.reduce_efficiency
        piece, rest = size_sent / TREE_PIECES, size_sent * (1.0 - 1.0 / TREE_PIECES)
        parent, children = (rank - 1) // 2, [each for each in (2 * rank + 1, 2 * rank + 2) if each < world]
        events = self.handed.setdefault(key, {})
        up, down = 0, 1
        for child in children:
            arrival = _event(events, environment, (child, up))
            if not arrival.processed:
                yield arrival
        yield cores.run(thread, network.reduce_step_seconds * self.slowness[rank])
        if rank:
            yield from self._hand_on(rank, parent, piece)
            _event(events, environment, (rank, up)).succeed()
            arrival = _event(events, environment, (parent, down))
            if not arrival.processed:
                yield arrival
            yield from self._hand_on(parent, rank, piece)
            yield cores.run(thread, network.reduce_step_seconds * self.slowness[rank])
        elif children:
            yield self.fabric.follow(children[0], rank, rest)
        _event(events, environment, (rank, down)).succeed()
        if rank:
            yield self.fabric.follow(parent, rank, rest)
        self._complete(self.flights[key][rank], -1)

    def _hand_on(self, source: int, target: int, size: float) -> Generator[simpy.Event, Any, None]:
        """A small message: the transport's and the network's latency, then its turn."""
        yield self.environment.timeout(self._latency(source, target))
        yield self.fabric.follow(source, target, size)

    def _latency(self, source: int, target: int) -> float:
        """Seconds beside the transfer: the transport's and the network's."""
        topology = self.machine.topology
        same = topology.host[source] == topology.host[target]
        return self.machine.network.latency + (topology.latency_inside if same else topology.latency)


TREE_PIECES = 8
"""Pieces that a tree all-reduce is passed on in."""


def _event(events: dict[tuple[int, int], simpy.Event], environment: simpy.Environment, key: tuple[int, int]) -> simpy.Event:
    if key not in events:
        events[key] = environment.event()
    return events[key]


def _on(event: simpy.Event, callback: Callable[[simpy.Event], None]) -> None:
    assert event.callbacks is not None
    event.callbacks.append(callback)
