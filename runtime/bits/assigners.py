"""Who decides on the widths of a run's messages, and when: an assigner sets the first ones and replaces them between epochs.

All ranks hold one and call it together after every epoch. What an assignment needs travels as arrays, each rank getting
what is addressed to it: sums of β per group to the rank that solves the problem, a width per group back to the sender,
and widths per message, only where one changed, to the receiver.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from halocast.runtime.bits import adaptive
from halocast.runtime.bits.grouping import Groups, default_group_size, group_messages, spread
from halocast.runtime.bits.links import LinkCost, fit_link_costs
from halocast.runtime.bits.problem import Pair
from halocast.runtime.bits.rules import AdaptiveRule, FileRule, RandomRule, Rule, UniformRule, random_widths, read_width_file
from halocast.runtime.bits.variance import message_beta
from halocast.runtime.exchange.quantized import ExchangeKey, MessageRows, MessageWidths
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.programs.adaqp import ExchangeShape
from halocast.traces.operations import Direction
from halocast.traces.wire import message_bytes

FIRST_BITS = 8
"""Width of all messages in an adaptive run's first period, in which their ranges become known."""
PROBES = (0.125, 0.5, 1.0)
"""Sizes of the messages that links are measured with, as shares of a pair's largest message at `FIRST_BITS`."""
PROBE_REPEATS = 3


@dataclass(frozen=True)
class MessageTable:
    """All that the ranks agree on about who sends what: exchange shapes of every rank, and this rank's nodes."""

    rank: int
    shapes: tuple[tuple[ExchangeShape, ...], ...]
    """By rank; the same exchanges in the same order on each."""
    sent_nodes: Mapping[ExchangeKey, npt.NDArray[np.int64]]
    """Global node of each message sent."""
    received_nodes: Mapping[ExchangeKey, npt.NDArray[np.int64]]

    @classmethod
    def of(
        cls,
        rank: int,
        shapes: Sequence[tuple[ExchangeShape, ...]],
        rows: Mapping[ExchangeKey, MessageRows],
        global_ids: npt.NDArray[np.int64],
    ) -> MessageTable:
        return cls(
            rank,
            tuple(shapes),
            {key: global_ids[each.outgoing] for key, each in rows.items()},
            {key: global_ids[each.incoming] for key, each in rows.items()},
        )

    @property
    def world_size(self) -> int:
        return len(self.shapes)

    @property
    def own(self) -> tuple[ExchangeShape, ...]:
        return self.shapes[self.rank]

    def fill(self, width_of: Callable[[ExchangeShape, int, bool], npt.NDArray[np.uint8]]) -> MessageWidths:
        """Widths from a function of (exchange, peer, whether sent) that both ends can evaluate alike."""

        def one_way(sent: bool) -> dict[ExchangeKey, npt.NDArray[np.uint8]]:
            return {
                (shape.layer, shape.direction): np.concatenate(
                    [width_of(shape, peer, sent) for peer in range(self.world_size)]
                ).astype(np.uint8)
                for shape in self.own
            }

        return MessageWidths(one_way(True), one_way(False))


def segment(rows: Sequence[int], peer: int) -> slice:
    """Where a peer's messages lie among all, peer after peer."""
    start = sum(rows[:peer])
    return slice(start, start + rows[peer])


@dataclass(frozen=True)
class Reassignment:
    """What one (re-)assignment did, for the log and the run's result."""

    epoch: int
    """The first epoch that uses the widths."""
    seconds: float
    """All of it, on this rank: deciding, telling the others, laying out the buffers."""
    solve_seconds: float
    histogram: dict[int, int]
    """Messages this rank sends in an epoch, by width."""
    changed: int
    """Messages this rank sends at another width than before."""
    solutions: tuple[dict[str, Any], ...] = ()
    """One report a problem that this rank solved."""

    def to_json(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "solve_seconds": self.solve_seconds,
            "histogram": {str(bits): count for bits, count in sorted(self.histogram.items())},
            "changed": self.changed,
            "problems": list(self.solutions),
        }


def histogram_of(widths: MessageWidths) -> dict[int, int]:
    """Messages sent, by width."""
    counts: Counter[int] = Counter()
    for array in widths.outgoing.values():
        counts.update(dict(zip(*(each.tolist() for each in np.unique(array, return_counts=True)), strict=True)))
    return dict(sorted(counts.items()))


class Assigner(Protocol):
    """Decides on widths. Ranks call the same methods in the same order."""

    def first(self) -> MessageWidths:
        """The widths of the first epoch."""

    def wants_ranges(self, epoch: int) -> bool:
        """Whether the rows' ranges must be recorded in `epoch`."""

    def next(
        self, epoch: int, current: MessageWidths, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]
    ) -> tuple[MessageWidths, Reassignment] | None:
        """The widths from `epoch` on, or None where they stay."""


@dataclass(frozen=True)
class FixedAssigner:
    """Widths that never change: uniform ones, or those of a file."""

    widths: MessageWidths

    def first(self) -> MessageWidths:
        return self.widths

    def wants_ranges(self, epoch: int) -> bool:
        return False

    def next(
        self, epoch: int, current: MessageWidths, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]
    ) -> tuple[MessageWidths, Reassignment] | None:
        return None


@dataclass(frozen=True)
class RandomAssigner:
    """Widths drawn anew every period, by a function of the message that both ends evaluate."""

    table: MessageTable
    choices: tuple[int, ...]
    seed: int
    period: int

    def first(self) -> MessageWidths:
        return self._draw(0)

    def wants_ranges(self, epoch: int) -> bool:
        return False

    def next(
        self, epoch: int, current: MessageWidths, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]
    ) -> tuple[MessageWidths, Reassignment] | None:
        if epoch % self.period:
            return None
        started = time.perf_counter()
        widths = self._draw(epoch // self.period)
        return widths, Reassignment(epoch, time.perf_counter() - started, 0.0, histogram_of(widths), changes(current, widths))

    def _draw(self, period: int) -> MessageWidths:
        def width_of(shape: ExchangeShape, peer: int, sent: bool) -> npt.NDArray[np.uint8]:
            key = (shape.layer, shape.direction)
            rows, nodes = (
                (shape.rows_out, self.table.sent_nodes[key]) if sent else (shape.rows_in, self.table.received_nodes[key])
            )
            receiver = peer if sent else self.table.rank
            return random_widths(
                self.seed, period, shape.layer, shape.direction, nodes[segment(rows, peer)], receiver, self.choices
            )

        return self.table.fill(width_of)


@dataclass
class AdaptiveAssigner:
    """AdaQP's rule: after each period, widths that trade the variance of rounding against the time of the exchange."""

    table: MessageTable
    transport: Transport
    coefficients: Mapping[ExchangeKey, npt.NDArray[np.float64]]
    """Σ of the receiver's aggregation coefficients, for each message sent."""
    costs: Mapping[tuple[int, int], LinkCost]
    period: int
    variance_weight: float
    group_size: int
    """0: by the number of messages."""
    choices: tuple[int, ...]
    _groups: dict[ExchangeKey, dict[int, Groups]] = field(default_factory=dict)

    def first(self) -> MessageWidths:
        return self.table.fill(lambda shape, peer, sent: _filled(shape, peer, sent, FIRST_BITS))

    def wants_ranges(self, epoch: int) -> bool:
        return (epoch + 1) % self.period == 0

    def next(
        self, epoch: int, current: MessageWidths, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]
    ) -> tuple[MessageWidths, Reassignment] | None:
        if epoch % self.period:
            return None
        started = time.perf_counter()
        table = self.table
        self._groups = {(shape.layer, shape.direction): self._group(shape, ranges) for shape in table.own}
        gathered = self._gather_group_sums()
        solving = time.perf_counter()
        solutions = {number: self._solve(number, gathered[number]) for number in gathered}
        solve_seconds = time.perf_counter() - solving
        group_widths = self._return_group_widths(solutions)
        outgoing = {key: self._spread(key, current.outgoing[key], group_widths[key]) for key in current.outgoing}
        incoming = tell_receivers(table, self.transport, current, outgoing)
        widths = MessageWidths(outgoing, incoming)
        reports = tuple(
            {"layer": shape.layer, "direction": str(shape.direction), **_report(solutions[number].report)}
            for number, shape in enumerate(table.own)
            if number in solutions
        )
        return widths, Reassignment(
            epoch,
            time.perf_counter() - started,
            solve_seconds,
            histogram_of(widths),
            changes(current, widths),
            reports,
        )

    # -- what is solved ------------------------------------------------------------------------------------------

    def _solver(self, number: int) -> int:
        """Problems are dealt to the ranks in turn."""
        return number % self.table.world_size

    def _size_of_groups(self, number: int) -> int:
        messages = sum(sum(shapes[number].rows_out) for shapes in self.table.shapes)
        return self.group_size or default_group_size(messages)

    def _group_count(self, number: int, sender: int, receiver: int) -> int:
        return -(-self.table.shapes[sender][number].rows_out[receiver] // self._size_of_groups(number))

    def _group(self, shape: ExchangeShape, ranges: Callable[[ExchangeKey], npt.NDArray[np.float32]]) -> dict[int, Groups]:
        """This rank's messages of one exchange in groups of like β, by peer."""
        key = (shape.layer, shape.direction)
        beta = message_beta(ranges(key), shape.dim, self.coefficients[key])
        size = self._size_of_groups(self.table.own.index(shape))
        return {
            peer: group_messages(beta[segment(shape.rows_out, peer)], size)
            for peer, count in enumerate(shape.rows_out)
            if count
        }

    def _gather_group_sums(self) -> dict[int, dict[tuple[int, int], npt.NDArray[np.float64]]]:
        """Σ β of each group, for the problems solved here: {problem: {(sender, receiver): sums}}."""
        table, world = self.table, range(self.table.world_size)
        outgoing: dict[int, list[npt.NDArray[np.float64]]] = {solver: [] for solver in world}
        for number, shape in enumerate(table.own):
            groups = self._groups[shape.layer, shape.direction]
            outgoing[self._solver(number)] += [groups[peer].variance for peer in world if peer in groups]
        mine = [number for number in range(len(table.own)) if self._solver(number) == table.rank]
        counts = {
            sender: sum(self._group_count(number, sender, receiver) for number in mine for receiver in world)
            for sender in world
        }
        received = self._all_to_all(
            {solver: np.concatenate([*sums, np.zeros(0)]) for solver, sums in outgoing.items()}, counts, np.dtype(np.float64)
        )
        gathered: dict[int, dict[tuple[int, int], npt.NDArray[np.float64]]] = {}
        for number in mine:
            gathered[number] = {}
            for sender in world:
                for receiver in world:
                    count = self._group_count(number, sender, receiver)
                    if count:
                        gathered[number][sender, receiver] = received[sender][:count]
                        received[sender] = received[sender][count:]
        return gathered

    def _solve(self, number: int, sums: Mapping[tuple[int, int], npt.NDArray[np.float64]]) -> adaptive.Assignment:
        shape, size = self.table.own[number], self._size_of_groups(number)
        pairs = []
        for (sender, receiver), variance in sums.items():
            rows = np.full(len(variance), size, dtype=np.int64)
            rows[-1] = self.table.shapes[sender][number].rows_out[receiver] - size * (len(variance) - 1)
            pairs.append(Pair(sender, receiver, variance, rows))
        return adaptive.solve(
            pairs,
            shape.dim,
            one_sided=shape.one_sided,
            costs=self.costs,
            world_size=self.table.world_size,
            choices=self.choices,
            variance_weight=self.variance_weight,
        )

    def _return_group_widths(
        self, solutions: Mapping[int, adaptive.Assignment]
    ) -> dict[ExchangeKey, dict[int, npt.NDArray[np.uint8]]]:
        """Each sender gets the widths of its groups back from the ranks that solved for them."""
        table, world = self.table, range(self.table.world_size)
        outgoing: dict[int, list[npt.NDArray[np.uint8]]] = {sender: [] for sender in world}
        for number, solution in solutions.items():
            widths = iter(solution.widths)  # of the pairs that send something, by sender and receiver
            for sender in world:
                for receiver in world:
                    if self._group_count(number, sender, receiver):
                        outgoing[sender].append(next(widths))
        counts = {
            solver: sum(
                self._group_count(number, table.rank, receiver)
                for number in range(len(table.own))
                if self._solver(number) == solver
                for receiver in world
            )
            for solver in world
        }
        received = self._all_to_all(
            {sender: np.concatenate([*arrays, np.zeros(0, np.uint8)]) for sender, arrays in outgoing.items()},
            counts,
            np.dtype(np.uint8),
        )
        returned: dict[ExchangeKey, dict[int, npt.NDArray[np.uint8]]] = {}
        for number, shape in enumerate(table.own):
            solver, key = self._solver(number), (shape.layer, shape.direction)
            returned[key] = {}
            for receiver in world:
                count = self._group_count(number, table.rank, receiver)
                if count:
                    returned[key][receiver] = received[solver][:count]
                    received[solver] = received[solver][count:]
        return returned

    def _spread(
        self, key: ExchangeKey, current: npt.NDArray[np.uint8], widths: Mapping[int, npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.uint8]:
        shape = next(each for each in self.table.own if (each.layer, each.direction) == key)
        spread_widths = current.copy()
        for peer, group_widths in widths.items():
            spread_widths[segment(shape.rows_out, peer)] = spread(group_widths, self._groups[key][peer])
        return spread_widths

    def _all_to_all(
        self, outgoing: Mapping[int, npt.NDArray[Any]], counts: Mapping[int, int], kind: np.dtype[Any]
    ) -> dict[int, npt.NDArray[Any]]:
        """An array to and from each rank; `counts` are the lengths to expect. Empty arrays do not travel."""
        return exchange_arrays(self.table.rank, self.transport, outgoing, counts, kind)


def _report(report: adaptive.Report) -> dict[str, float]:
    """What a run's result keeps of a solved problem."""
    return {
        "objective": report.objective,
        "variance": report.normalised_variance,
        "time": report.normalised_time,
        "gap": report.gap,
        "seconds": report.solve_seconds,
    }


def tell_receivers(
    table: MessageTable, transport: Transport, current: MessageWidths, outgoing: Mapping[ExchangeKey, npt.NDArray[np.uint8]]
) -> dict[ExchangeKey, npt.NDArray[np.uint8]]:
    """Tell each receiver the widths of the exchanges where one changed; returns all incoming widths. Ranks call it together."""
    world = range(table.world_size)
    changed = {
        peer: np.array(
            [
                not np.array_equal(
                    current.outgoing[shape.layer, shape.direction][segment(shape.rows_out, peer)],
                    outgoing[shape.layer, shape.direction][segment(shape.rows_out, peer)],
                )
                for shape in table.own
            ],
            dtype=np.uint8,
        )
        for peer in world
    }
    flags = exchange_arrays(table.rank, transport, changed, dict.fromkeys(world, len(table.own)), np.dtype(np.uint8))
    arrays = {
        peer: np.concatenate(
            [
                np.zeros(0, np.uint8),
                *(
                    outgoing[shape.layer, shape.direction][segment(shape.rows_out, peer)]
                    for shape, flag in zip(table.own, changed[peer], strict=True)
                    if flag
                ),
            ]
        )
        for peer in world
    }
    counts = {
        peer: sum(shape.rows_in[peer] for shape, flag in zip(table.own, flags[peer], strict=True) if flag) for peer in world
    }
    received = exchange_arrays(table.rank, transport, arrays, counts, np.dtype(np.uint8))
    incoming = {key: widths.copy() for key, widths in current.incoming.items()}
    for peer in world:
        for shape, flag in zip(table.own, flags[peer], strict=True):
            if flag:
                count = shape.rows_in[peer]
                incoming[shape.layer, shape.direction][segment(shape.rows_in, peer)] = received[peer][:count]
                received[peer] = received[peer][count:]
    return incoming


def exchange_arrays(
    rank: int, transport: Transport, outgoing: Mapping[int, npt.NDArray[Any]], counts: Mapping[int, int], kind: np.dtype[Any]
) -> dict[int, npt.NDArray[Any]]:
    """Give each rank its array and get one from each; what a rank has for itself stays where it is."""
    received = {peer: np.zeros(count, dtype=kind) for peer, count in counts.items()}
    if rank in outgoing:
        received[rank] = np.array(outgoing[rank], dtype=kind)
    transport.start_exchange(
        [
            (peer, torch.from_numpy(np.ascontiguousarray(array, dtype=kind)))
            for peer, array in sorted(outgoing.items())
            if peer != rank and array.size
        ],
        [(peer, torch.from_numpy(array)) for peer, array in sorted(received.items()) if peer != rank and array.size],
    ).wait()
    return received


def _filled(shape: ExchangeShape, peer: int, sent: bool, bits: int) -> npt.NDArray[np.uint8]:
    return np.full((shape.rows_out if sent else shape.rows_in)[peer], bits, dtype=np.uint8)


def changes(old: MessageWidths, new: MessageWidths) -> int:
    """Messages sent at another width."""
    return sum(int((new.outgoing[key] != old.outgoing[key]).sum()) for key in new.outgoing)


def first_widths(rule: Rule, table: MessageTable, seed: int) -> MessageWidths:
    """The widths of a run's first epoch; known without a word between ranks, whatever the rule."""
    if isinstance(rule, UniformRule):
        return table.fill(lambda shape, peer, sent: _filled(shape, peer, sent, rule.bits))
    if isinstance(rule, AdaptiveRule):
        return table.fill(lambda shape, peer, sent: _filled(shape, peer, sent, FIRST_BITS))
    if isinstance(rule, RandomRule):
        return RandomAssigner(table, rule.choices, seed, period=1).first()
    return _widths_of_file(rule, table)


def _widths_of_file(rule: FileRule, table: MessageTable) -> MessageWidths:
    sizes = {
        (shape.layer, shape.direction, rank): sum(shape.rows_out)
        for rank, shapes in enumerate(table.shapes)
        for shape in shapes
    }
    arrays = read_width_file(Path(rule.path), sizes, dropping=rule.dropping)

    def width_of(shape: ExchangeShape, peer: int, sent: bool) -> npt.NDArray[np.uint8]:
        sender, receiver = (table.rank, peer) if sent else (peer, table.rank)
        senders = next(each for each in table.shapes[sender] if (each.layer, each.direction) == (shape.layer, shape.direction))
        return arrays[shape.layer, shape.direction, sender][segment(senders.rows_out, receiver)]

    widths = table.fill(width_of)
    widths.check(table.own, dropping=rule.dropping)
    return widths


def receiver_coefficients(
    table: MessageTable,
    transport: Transport,
    forward: Callable[[int], npt.NDArray[np.float64]],
) -> dict[ExchangeKey, npt.NDArray[np.float64]]:
    """Σ of the receiver's aggregation coefficients of each message this rank sends; ranks call it together.

    `forward(layer)` gives, for each halo row of this rank, the sum of the coefficients it is aggregated with; its owner
    wants to know. Going backward a receiver adds the gradient, summed by its sender, as it is: the coefficient is 1.
    """
    coefficients: dict[ExchangeKey, npt.NDArray[np.float64]] = {}
    for shape in table.own:
        key = (shape.layer, shape.direction)
        if shape.direction is Direction.BACKWARD:
            coefficients[key] = np.ones(sum(shape.rows_out))
            continue
        sums = forward(shape.layer)
        world = range(table.world_size)
        received = exchange_arrays(
            table.rank,
            transport,
            {owner: sums[segment(shape.rows_in, owner)] for owner in world if owner != table.rank},
            {peer: shape.rows_out[peer] for peer in world if peer != table.rank},
            np.dtype(np.float64),
        )
        coefficients[key] = np.concatenate([np.zeros(0), *(received[peer] for peer in world if peer in received)])
    return coefficients


def measure_links(table: MessageTable, transport: Transport) -> dict[tuple[int, int], LinkCost]:
    """Fit each pair's line to messages of several sizes, sent round by round as AdaQP's exchange is; ranks call it together."""
    rank, world_size = table.rank, table.world_size
    largest = np.zeros((world_size, world_size))
    for sender, shapes in enumerate(table.shapes):
        for shape in shapes:
            for receiver, rows in enumerate(shape.rows_out):
                size = message_bytes(((FIRST_BITS, rows),), shape.dim, one_sided=shape.one_sided) if rows else 0
                largest[sender, receiver] = max(largest[sender, receiver], size)
    samples: list[tuple[int, float, float]] = []
    together = torch.zeros(1)
    for _ in range(PROBE_REPEATS):
        for share in PROBES:
            for step in range(1, world_size):
                receiver, sender = (rank + step) % world_size, (rank - step) % world_size
                out, into = (
                    torch.zeros(int(share * largest[pair]), dtype=torch.uint8) for pair in ((rank, receiver), (sender, rank))
                )
                transport.all_reduce(together)
                started = time.monotonic_ns()
                flight = transport.start_exchange(
                    [(receiver, out)] if out.numel() else [], [(sender, into)] if into.numel() else []
                )
                flight.wait()
                if into.numel():
                    samples.append((sender, float(into.numel()), (flight.received_ns(sender) - started) / 1e9))
    by_link: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for receiver, measured in enumerate(transport.share("link samples", samples)):
        for sender, size, seconds in measured:
            by_link.setdefault((sender, receiver), []).append((size, seconds))
    return fit_link_costs(by_link)


def equal_links(table: MessageTable) -> dict[tuple[int, int], LinkCost]:
    """Links that are all alike: only ratios count, since the problem's times are normalised."""
    world = range(table.world_size)
    return {(sender, receiver): LinkCost(1.0, 0.0) for sender in world for receiver in world if sender != receiver}
