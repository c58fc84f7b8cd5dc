"""All ranks' programs as arrays, simulated by a compiled engine, for ranks that each have a device of their own.

What happens is what `halocast.simulator.engine` describes; cpp/epochs.h repeats it, without cores that ranks share. It differs
where more than 16 ranks have many flows in the air: rates are computed once for all changes within a window. Programs are
arranged once and simulated as often as rates, costs, seconds or sizes of messages differ.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.simulator import engine
from halocast.simulator.engine import UNCOUNTED_EPOCHS, Machine, RankTimeline, RankWork, Simulation
from halocast.simulator.network import FINISH_TOGETHER_S
from halocast.traces.operations import AllReduce, Exchange, Wait

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WINDOW = 0.3
"""Rates change together with those that change within this share of the time that all flows still need to drain."""
MANY_MESSAGES = 20_000
"""An epoch of fewer has windows shorter in proportion: it then takes no longer than one of so many."""
EXACT_RANKS = 16
"""Up to so many ranks there are no windows: rates are computed at every change, as `network.Fabric` does."""
EXACT_FLOWS = 64
"""With more ranks there are none while only so many flows are in the air."""
EXACT_RING = 16
"""Up to so many ranks, each message of an all-reduce meets the network as it is at its own time, not at its step's."""
STEADY = 1e-9
"""An epoch in which the ranks drift apart by less than this share of it is like those that follow."""


def run(work: Sequence[RankWork], machine: Machine) -> Simulation:
    """Simulate by the engine that suits the machine: in SimPy where ranks share cores, or the native kernels are not built."""
    return Lockstep.of(work).simulate(machine) if runs(machine) else engine.simulate(work, machine)


def runs(machine: Machine) -> bool:
    """Whether the compiled engine suits the machine, and is there."""
    return suits(machine) and importlib.util.find_spec("halocast._kernels") is not None


def suits(machine: Machine) -> bool:
    """Whether nothing is shared but the network, each rank's device has one speed, and all-reduces go around rings."""
    return machine.hosts is None and not machine.host.idleness and machine.network.all_reduce == "ring"


class Meeting(IntEnum):
    """What ends a step, as cpp/epochs.h numbers it."""

    EXCHANGE = 0
    REDUCE = 1
    WAIT = 2
    END = 3


@dataclass(frozen=True)
class Messages:
    """All messages of an epoch, by exchange, then source, then target."""

    exchange: Ints
    """[messages] which exchange: numbered in the order in which they are first met, with the all-reduces."""
    source: Ints
    target: Ints
    rows: Ints
    bytes: Floats


@dataclass(frozen=True)
class Lockstep:
    """Programs as arrays. A *step* is what a rank does up to and with an operation that meets others, or to the epoch's end."""

    work: Sequence[RankWork]
    seconds: Floats
    """[operations] of all ranks, one after the other; alone on a device."""
    messages: Messages
    bucket: Floats
    """[all-reduces] bytes."""
    first_operation: Ints
    """[ranks + 1] where a rank's operations begin."""
    step: Ints
    """[operations] which step it is in."""
    ending: Ints
    """[steps] the operation that ends it; of an epoch's end the one after the rank's last."""
    tables: dict[str, Ints]
    """What cpp/epochs.h calls Programs, besides."""
    landings: list[list[tuple[int, int]]]
    """By rank: (operation that started the exchange, peer) of messages in."""
    landing: Ints
    """[messages] which ones those are, rank after rank."""
    flights: list[list[tuple[int, int]]]
    """By rank: (operation that starts an exchange or an all-reduce, its step)."""

    @classmethod
    def of(cls, work: Sequence[RankWork]) -> Lockstep:
        """Raises ValueError, naming a rank, where the ends of a message disagree, or one never waits for it."""
        return _Arranger(work).arranged()

    def exchanged(self, *, seconds: Floats | None = None, sizes: Floats | None = None) -> Lockstep:
        """The same programs with other `seconds` [operations] or `sizes` [messages] in bytes, not arranged anew."""
        seconds = self.seconds if seconds is None else np.asarray(seconds, np.float64)
        sizes = self.messages.bytes if sizes is None else np.asarray(sizes, np.float64)
        for name, new, old in (("seconds", seconds, self.seconds), ("sizes", sizes, self.messages.bytes)):
            if new.shape != old.shape:
                raise ValueError(f"{name} of shape {new.shape}: these programs have {old.shape}")
        return replace(self, seconds=seconds, messages=replace(self.messages, bytes=sizes))

    def simulate(self, machine: Machine, *, epochs: int = 1, window: float | None = None) -> Simulation:
        """As `engine.simulate` with so many epochs that count; `window` 0 (default: see `WINDOW`) has rates at every change.

        Raises ValueError for a machine on which more than the network is shared, and for a topology of other ranks.
        """
        if not suits(machine):
            raise ValueError("ranks share cores, or their devices slow down when idle: simulate them with engine.simulate")
        if machine.topology.ranks != len(self.work):
            raise ValueError(f"{len(self.work)} ranks on a topology of {machine.topology.ranks}: build it for as many")
        if window is None:
            window = WINDOW * min(1.0, len(self.messages.bytes) / MANY_MESSAGES)
        return _Run(self, machine, window).simulate(epochs)


class _Arranger:
    """From programs to arrays."""

    def __init__(self, work: Sequence[RankWork]) -> None:
        self.work, self.ranks = work, len(work)
        self.names: dict[tuple[object, ...], int] = {}  # of exchanges and all-reduces, as all ranks call them
        self.buckets: dict[int, int] = {}
        self.ending: list[int] = []
        self.meeting: list[Meeting] = []
        self.name: list[int] = []
        self.rank: list[int] = []
        self.posts: list[tuple[int, int, int, int, int, int, int, int]] = []
        self.waits: list[tuple[int, int, int]] = []
        self.flights: list[list[tuple[int, int]]] = []
        offset = 0
        for rank, each in enumerate(work):
            self._walk(rank, offset, each)
            offset += len(each.operations)

    def _walk(self, rank: int, offset: int, work: RankWork) -> None:
        steps: dict[int, int] = {}
        for index, operation in enumerate(work.operations):
            if not isinstance(operation, Exchange | AllReduce | Wait):
                continue
            step, name = len(self.ending), -1
            if isinstance(operation, Wait):
                meeting = Meeting.WAIT
                self.waits.append((step, steps[work.flights[index]], operation.peer))
            else:
                meeting = Meeting.EXCHANGE if isinstance(operation, Exchange) else Meeting.REDUCE
                name = self.names.setdefault((meeting, operation.layer, operation.direction), len(self.names))
                steps[index] = step
            if isinstance(operation, Exchange):
                for message in operation.outgoing:
                    self.posts.append((step, name, rank, message.peer, rank, message.peer, message.rows, message.bytes))
                for message in operation.incoming:
                    self.posts.append((step, name, rank, message.peer, message.peer, rank, message.rows, message.bytes))
            elif isinstance(operation, AllReduce):
                size = self.buckets.setdefault(name, operation.work.bytes_out)
                if size != operation.work.bytes_out:
                    raise ValueError(f"rank {rank}: an all-reduce of {operation.work.bytes_out} bytes has {size} on others")
            self._end_step(meeting, offset + index, name, rank)
        self.flights.append(list(steps.items()))
        self._end_step(Meeting.END, offset + len(work.operations), -1, rank)

    def _end_step(self, meeting: Meeting, operation: int, name: int, rank: int) -> None:
        self.meeting.append(meeting)
        self.ending.append(operation)
        self.name.append(name)
        self.rank.append(rank)

    def arranged(self) -> Lockstep:
        ranks, steps = self.ranks, len(self.ending)
        rank_of, ending, meeting = np.array(self.rank), np.array(self.ending), np.array(self.meeting, np.int64)
        first_operation = np.cumsum([0, *(len(each.operations) for each in self.work)])
        step, name, rank, peer, source, target, rows, size = np.array(self.posts, np.int64).reshape(-1, 8).T.copy()
        is_out = rank == source
        keys, message = np.unique((name * ranks + source) * ranks + target, return_inverse=True)
        out, due = message[is_out], message[~is_out]
        sent, expected = np.full(len(keys), -1), np.full(len(keys), -1)
        sent[out], expected[due] = size[is_out], size[~is_out]
        if (wrong := np.flatnonzero(sent != expected)).size:
            first = int(wrong[0])
            raise ValueError(
                f"rank {keys[first] // ranks % ranks} sends {sent[first]} bytes to rank {keys[first] % ranks}, "
                f"which expects {expected[first]} (-1: no message)"
            )
        moved = np.zeros(len(keys), np.int64)
        moved[out] = rows[is_out]
        messages = Messages(keys // ranks**2, keys // ranks % ranks, keys % ranks, moved, sent.astype(np.float64))

        reducing = np.flatnonzero(meeting == Meeting.REDUCE)
        slot_keys, slot, parts = np.unique(
            np.concatenate([step * ranks + peer, reducing * ranks]), return_inverse=True, return_counts=True
        )
        slot_step = slot_keys // ranks
        first_slot = np.searchsorted(slot_step, np.arange(steps))
        last_slot = np.searchsorted(slot_step, np.arange(steps), side="right")
        self._wait_for(slot_keys, first_slot, last_slot)
        sending, receiving = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        sending[out], receiving[due] = slot[: len(step)][is_out], slot[: len(step)][~is_out]

        # Connections: first the ring's, by target, then all others that messages take.
        each = np.arange(ranks)
        ring = (each - 1) % ranks * ranks + each
        pairs = keys % ranks**2
        others = np.setdiff1d(pairs, ring)
        by_ring = np.flatnonzero((messages.source + 1) % ranks == messages.target)
        connection = ranks + np.searchsorted(others, pairs)
        connection[by_ring] = messages.target[by_ring]
        connections = np.concatenate([ring, others])
        buckets = np.array(sorted(self.buckets), np.int64)
        starts = list(zip((ending[step] - first_operation[rank])[~is_out].tolist(), peer[~is_out].tolist(), strict=True))
        cuts = np.searchsorted(rank[~is_out], np.arange(ranks + 1)).tolist()
        return Lockstep(
            work=self.work,
            seconds=np.concatenate([each.seconds for each in self.work]),
            messages=messages,
            bucket=np.array([self.buckets[each] for each in buckets.tolist()], np.float64),
            first_operation=first_operation,
            step=np.searchsorted(ending + rank_of, np.arange(first_operation[-1]) + np.repeat(each, np.diff(first_operation))),
            ending=ending,
            tables={
                "first_step": np.searchsorted(rank_of, np.arange(ranks + 1)),
                "meeting": meeting,
                "reduction": np.searchsorted(buckets, self.name),
                "first_post": np.searchsorted(step, np.arange(steps + 1)),
                "posts": message,
                "first_slot": first_slot,
                "last_slot": last_slot,
                "parts": parts,
                "slot_rank": rank_of[slot_step],
                "slot_step": slot_step,
                "connection": connection,
                "sending_slot": sending,
                "receiving_slot": receiving,
                "source": connections // ranks,
                "target": connections % ranks,
            },
            landings=[starts[cuts[r] : cuts[r + 1]] for r in range(ranks)],
            landing=due,
            flights=self.flights,
        )

    def _wait_for(self, slot_keys: Ints, first_slot: Ints, last_slot: Ints) -> None:
        """Give each wait the slots that it waits for: those of the flight it names, or of one peer in it."""
        step, flight, peer = np.array(self.waits, np.int64).reshape(-1, 3).T
        of_peer = flight * self.ranks + peer
        first = np.where(peer < 0, first_slot[flight], np.searchsorted(slot_keys, of_peer))
        last = np.where(peer < 0, last_slot[flight], np.searchsorted(slot_keys, of_peer, side="right"))
        first_slot[step], last_slot[step] = first, last
        covered = np.zeros(len(slot_keys) + 1, np.int64)
        np.add.at(covered, first, 1)
        np.add.at(covered, last, -1)
        if (forgotten := np.flatnonzero(np.cumsum(covered)[:-1] <= 0)).size:
            raise ValueError(f"rank {self.rank[slot_keys[forgotten[0]] // self.ranks]} starts a flight that it never waits for")


class _Run:
    """One simulation: the arrays that the compiled engine fills."""

    def __init__(self, program: Lockstep, machine: Machine, window: float) -> None:
        from halocast import _kernels

        self.program, self.machine, self.engine = program, machine, _kernels.simulate_epochs
        tables, topology, network, host = program.tables, machine.topology, machine.network, machine.host
        steps, slowness = len(program.ending), host.slowness
        counts = np.bincount(program.step, minlength=steps)
        self.own = np.bincount(program.step, weights=program.seconds, minlength=steps) + host.gap_seconds * counts
        self.own *= slowness
        self.between = slowness * host.epoch_seconds
        self.is_end = tables["meeting"] == Meeting.END
        self.reached, self.left = np.zeros(steps), np.zeros(steps)
        self.landed, self.done = np.zeros(len(program.messages.bytes)), np.full(steps, -np.inf)
        self.inputs: dict[str, Any] = {
            **tables,
            "exchange": program.messages.exchange,
            "bytes": program.messages.bytes,
            "bucket": program.bucket,
            "compute": self.own + np.where(self.is_end, self.between, 0.0),
            "costs": np.array(
                [
                    network.efficiency, network.reduce_efficiency, slowness * network.send_seconds,
                    slowness * network.receive_seconds, slowness * network.byte_seconds, network.send_buffer_bytes,
                    slowness * network.reduce_step_seconds, network.post_seconds, slowness * network.wake_seconds,
                    slowness * host.first_rank_seconds,
                ]
            ),
            "capacity": np.asarray(topology.capacity, np.float64),
            "burst": np.asarray(topology.burst, np.float64),
            "queue_seconds": topology.queue_seconds,
            "paths": topology.paths(tables["source"], tables["target"]),
            "latency": network.latency + topology.latencies(tables["source"], tables["target"]),
            "window": window,
            "exact_flows": EXACT_FLOWS if len(program.work) > EXACT_RANKS else len(program.messages.bytes),
            "together": FINISH_TOGETHER_S,
            "exact_ring": EXACT_RING,
        }  # fmt: skip

    def simulate(self, epochs: int) -> Simulation:
        """One epoch where the next would be the same, else as many as the event engine runs."""
        if not self.machine.topology.burst.any():
            begin = self._likely_begin()
            for _ in range(1 + UNCOUNTED_EPOCHS):
                begin, end, samples = self._epochs(begin, 1)
                following = end.copy()
                following[0] += self.machine.host.slowness * self.machine.host.first_rank_seconds
                if self.landed.max(initial=-np.inf) > following.min():
                    break  # messages of one epoch meet those of the next
                if np.ptp(following - begin) <= STEADY * samples[0]:
                    return self._simulation(begin, end, np.repeat(samples, epochs))
                begin = following - following.min()
        begin, end, samples = self._epochs(np.zeros(len(self.program.work)), UNCOUNTED_EPOCHS + epochs)
        return self._simulation(begin, end, samples[UNCOUNTED_EPOCHS:])

    def _likely_begin(self) -> Floats:
        """[ranks] how far apart they begin an epoch, if they come out of the last all-reduce together."""
        begin: Floats = self.inputs["compute"][self.is_end]
        begin[0] += self.machine.host.slowness * self.machine.host.first_rank_seconds
        begin -= begin.min()
        return begin

    def _epochs(self, begin: Floats, count: int) -> tuple[Floats, Floats, Floats]:
        """(begin, end) of each rank's last epoch, and how long every epoch of rank 0 took."""
        first, end, samples = begin.copy(), np.zeros(len(begin)), np.zeros(count)
        self.engine(
            count, **self.inputs, reached=self.reached, left=self.left, landed=self.landed, done=self.done,
            begin=first, end=end, samples=samples,
        )  # fmt: skip
        return first, end, samples

    def _simulation(self, begin: Floats, end: Floats, samples: Floats) -> Simulation:
        """Share each step's time out to its operations, by what they cost alone; waking up stretches them."""
        program, host, step = self.program, self.machine.host, self.program.step
        first_step = program.tables["first_step"]
        entered = np.roll(self.left, 1)
        entered[first_step[:-1]] = begin
        computed = self.reached - np.where(self.is_end, self.between, 0.0) - entered
        stretch = np.divide(computed, self.own, out=np.zeros(len(self.own)), where=self.own > 0.0)
        spent = host.slowness * (program.seconds + host.gap_seconds)
        before = np.cumsum(spent) - spent
        opening = np.flatnonzero(np.diff(step, prepend=-1))
        earlier = before - np.repeat(before[opening], np.diff(np.append(opening, len(step))))
        start, wall = entered[step] + earlier * stretch[step], host.slowness * program.seconds * stretch[step]
        meeting = program.tables["meeting"]
        waits, exchanges = meeting == Meeting.WAIT, meeting == Meeting.EXCHANGE
        start[program.ending[waits]] = self.reached[waits]
        for some in (waits, exchanges):
            wall[program.ending[some]] += (self.left - self.reached)[some]
        return Simulation(program.work, self._timelines(start, wall, begin, end), samples)

    def _timelines(self, start: Floats, wall: Floats, begin: Floats, end: Floats) -> list[RankTimeline]:
        program = self.program
        landed, done, place = self.landed[program.landing].tolist(), self.done.tolist(), 0
        timelines = []
        for rank, keys in enumerate(program.landings):
            first, last = program.first_operation[rank : rank + 2].tolist()
            timelines.append(
                RankTimeline(
                    start=start[first:last],
                    wall=wall[first:last],
                    landed=dict(zip(keys, landed[place : place + len(keys)], strict=True)),
                    done={index: done[step] for index, step in program.flights[rank] if done[step] > -np.inf},
                    begin=float(begin[rank]),
                    end=float(end[rank]),
                )
            )
            place += len(keys)
        return timelines
