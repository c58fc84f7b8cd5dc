"""SAR: sequential aggregation. A rank visits the remote parts one after the other and keeps none of their rows.

In round k of an exchange rank r takes from rank r − k and gives to rank r + k (modulo the number of ranks); round 0 is its own
part. A remote block is freed after its round, so that what a rank holds beside its own rows does not grow with the
halo: memory falls as 1 / K. Up to `view.prefetch` rounds are in flight while another is computed; nothing waits for all
ranks. Mostafa, "Sequential Aggregation and Rematerialization", MLSys 2022, sections 3.1 and 3.2.

A layer that sums or averages plain copies of its neighbours' rows (GCN, GraphSAGE-mean, GIN) needs no remote row again in
backward (case 1 of section 3.2): rank r computes the gradient of what it took and pushes it to its owner. So each exchanged
row crosses the network once in each direction, as in plain training, and gradients are the same. Where gradients depend on
the rows themselves (attention, maxima, a message of one's own: case 2), each block is fetched a second time, meets the own rows
again, turns into its gradient in place and goes back: three crossings. A layer in `view.kept_layers` keeps its blocks instead,
and costs two.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from halocast.runtime.programs import merging
from halocast.runtime.programs.full import BACKWARD, FORWARD, Backward, FullGraph, LayerProgram, Steps, describe_layers
from halocast.traces.operations import (
    Aggregate,
    Direction,
    Exchange,
    Free,
    Keep,
    Operation,
    Part,
    Program,
    Quantize,
    Stage,
    Wait,
    Work,
)
from halocast.traces.workload import RankView

AGAIN = ".again"
"""After the names of buffers of messages that are fetched a second time."""


class SequentialAggregation(FullGraph):
    """Full-graph training whose remote rows come, and whose gradients go, one part at a time."""

    name = "sar"
    receives_in_place = False

    def layers(self, view: RankView) -> list[LayerProgram]:
        return describe_layers(view, SequentialLayer)

    def evaluation(self, view: RankView) -> Program:
        for layer in self.layers(view):
            yield from layer.forward(training=False)


@dataclass(frozen=True)
class Round:
    """What one rank does in one round of an exchange."""

    number: int
    giver: int
    """The rank whose rows arrive."""
    taker: int
    """The rank that gets rows."""
    outgoing: int
    """Rows for the taker."""
    incoming: int
    """Rows from the giver."""

    @property
    def mirrored(self) -> Round:
        """The same messages' way back."""
        return Round(self.number, self.taker, self.giver, self.incoming, self.outgoing)


@dataclass(frozen=True)
class SequentialLayer(LayerProgram):
    """A layer that holds its own rows, and a block or two of others' in passing."""

    receives_in_place: ClassVar[bool] = False

    @property
    def depth(self) -> int:
        """Rounds in flight beside the one that is computed."""
        return self.view.prefetch if self.view.overlap else 0

    @property
    def projected_rows(self) -> Part:
        return Part.OWN if self.schedule.sends_forward else super().projected_rows

    @property
    def gradient_rows(self) -> Part:
        return Part.OWN if self.schedule.sends_backward else super().gradient_rows

    def rounds(self, rows_out: tuple[int, ...], rows_in: tuple[int, ...]) -> list[Round]:
        """Rounds 1 to K − 1; the same number on every rank, with rows or without."""
        rank, world = self.view.rank, self.view.world_size
        rounds = []
        for number in range(1, world):
            giver, taker = (rank - number) % world, (rank + number) % world
            rounds.append(Round(number, giver, taker, rows_out[taker], rows_in[giver]))
        return rounds

    # -- forward ------------------------------------------------------------------------------------------------

    def aggregate_then_transform(self) -> Steps:
        if not self.schedule.sends_forward:
            yield from super().aggregate_then_transform()
            return
        yield self.keep(self.aggregated, Part.OWN, self.spec.dim_in)
        yield from self.sum_blocks(self.source, self.aggregated)
        yield self.transform(Stage.WHOLE, FORWARD, Part.OWN)

    def transform_then_aggregate(self) -> Steps:
        if not self.schedule.sends_forward:
            yield from super().transform_then_aggregate()
            return
        yield self.keep(self.projected, Part.OWN, self.spec.dim_out)
        yield self.transform(Stage.PROJECT, FORWARD, Part.OWN)
        yield from self.sum_blocks(self.projected, self.preactivation)
        yield self.transform(Stage.FINISH, FORWARD, Part.OWN)
        yield Free(self.index, name=self.projected)

    def sum_blocks(self, source: str, target: str) -> Steps:
        """``target = A source`` over the own columns, then over each part's as its rows come."""

        def add(each: Round, block: str) -> Operation:
            summed = self.aggregate(FORWARD, Part.MARGINAL, block, target, columns=Part.HALO, peer=each.giver)
            return replace(summed, in_place=False)

        yield from self.visit_blocks(source, self.aggregate(FORWARD, Part.OWN, source, target, columns=Part.OWN), add)

    def visit_blocks(
        self, source: str, own: Operation, visit: Callable[[Round, str], Operation], *, keeps_blocks: bool = False
    ) -> Steps:
        """Do `own`, then `visit` each part's block of `source` as it comes."""
        part = self.view.part
        rounds = self.rounds(part.boundary_to, part.halo_from)
        flights: dict[int, Any] = {}
        for each in rounds[: self.depth]:
            flights[each.number] = yield from self.start_fetch(each, source)
        yield from merging.with_room(self, own)
        for place, each in enumerate(rounds):
            if each.number not in flights:
                flights[each.number] = yield from self.start_fetch(each, source)
            flight = flights[each.number]
            yield from self.wait_for(FORWARD, each.giver, each.incoming, flight)
            if self.depth and place + self.depth < len(rounds):
                ahead = rounds[place + self.depth]
                flights[ahead.number] = yield from self.start_fetch(ahead, source)
            yield from self.arrive(each.giver, each.incoming)
            if each.incoming:
                yield from merging.with_room(self, visit(each, self.block(FORWARD, each.giver)))
            if each.taker != each.giver or not each.incoming:
                yield from self.wait_for(FORWARD, each.taker, each.outgoing, flight)
            if not keeps_blocks:
                yield Free(self.index, FORWARD, name=self.block(FORWARD, each.giver))
            yield Free(self.index, FORWARD, name=self.own_block(FORWARD, each.taker))

    def start_fetch(self, each: Round, source: str, suffix: str = "") -> Generator[Operation, Any, Any]:
        """Gather what the taker needs and set both messages of the round going. `suffix`: of the buffers' names."""
        own_block, landing = self.own_block(FORWARD, each.taker) + suffix, self.landing(each.giver) + suffix
        yield from self.gather(FORWARD, each.taker, each.outgoing, source, own_block)
        yield self.keep_landing(FORWARD, each.giver, each.incoming, landing)
        return (yield self.swap(FORWARD, each, own_block, landing))

    def gather(self, direction: Direction, peer: int, rows: int, source: str, target: str) -> Steps:
        """The rows for one peer, as they are, in a buffer of their own."""
        dim, value_bytes = self.exchange_dim, self.view.value_bytes
        yield self.keep_block(direction, rows, target)
        size = rows * dim * value_bytes
        work = Work(rows=rows, dim_in=dim, dim_out=dim, bytes_out=size, bits=8 * value_bytes)
        yield Quantize(self.index, direction, work=work, peer=peer, source=source, target=target)

    def landing(self, peer: int) -> str:
        """Where a part's rows land."""
        return self.block(FORWARD, peer)

    def keep_landing(self, direction: Direction, peer: int, rows: int, name: str) -> Keep:
        """Room for a message of `peer`."""
        return self.keep_block(direction, rows, name)

    def arrive(self, peer: int, rows: int, suffix: str = "") -> Steps:
        """Make a part's block of what landed, where that is another thing. `suffix`: of the buffers' names."""
        yield from ()

    # -- messages that merge ------------------------------------------------------------------------------------

    @property
    def keeps_messages(self) -> bool:
        return self.rereads_messages and self.index in self.view.kept_layers

    @property
    def message_rows(self) -> Part:
        return Part.OWN if self.schedule.sends_forward else super().message_rows

    def merge_neighbours(self, names: merging.Names, *, training: bool) -> Steps:
        if not self.schedule.sends_forward:
            yield from super().merge_neighbours(names, training=training)
            return

        def visit(each: Round, block: str) -> Operation:
            return merging.merge(self, FORWARD, names, each.giver, messages=block, in_place=False)

        own = merging.merge(self, FORWARD, names)
        yield from self.visit_blocks(names.messages, own, visit, keeps_blocks=training and self.keeps_messages)

    def merge_neighbours_backward(self, names: merging.Names) -> Steps:
        if not self.schedule.sends_forward:
            yield from super().merge_neighbours_backward(names)
        elif not self.spec.refetches:
            yield from self.push_merged(names)
        else:
            yield from self.meet_again(names)

    def push_merged(self, names: merging.Names) -> Steps:
        """Case 1: what a block gets needs nothing of it."""

        def gradient(each: Round, block: str) -> Operation:
            return merging.merge(
                self, BACKWARD, names, each.taker, target=block, in_place=False, labelled=self.schedule.labelled_only
            )

        def own() -> Steps:
            yield from merging.with_room(self, merging.merge(self, BACKWARD, names))

        yield from self.push_blocks(own(), gradient, names.target)

    def meet_again(self, names: merging.Names) -> Steps:
        """Case 2: each part's block is here once more (fetched, or kept), turns into its gradient and goes to its owner."""
        rows = self.backward_rows if self.schedule.sends_backward else (self.view.part.halo_from, self.view.part.boundary_to)
        rounds, fetches = self.rounds(*rows), not self.keeps_messages
        flights: dict[int, Any] = {}
        pushes: list[tuple[Round, Any]] = []
        if fetches:
            for each in rounds[: self.depth]:
                flights[each.number] = yield from self.start_fetch(each.mirrored, names.messages, AGAIN)
        yield from merging.with_room(self, merging.merge(self, BACKWARD, names))
        for place, each in enumerate(rounds):
            if fetches:
                yield from self.await_again(rounds, place, flights, names)
            if each.outgoing:
                yield from merging.with_room(self, self.turn_into_gradient(names, each))
            if fetches:
                if each.taker != each.giver or not each.outgoing:
                    yield from self.wait_for(FORWARD, each.giver, each.incoming, flights[each.number])
                yield Free(self.index, FORWARD, name=self.own_block(FORWARD, each.giver) + AGAIN)
            if not self.schedule.sends_backward:
                yield Free(self.index, FORWARD, name=self.met_block(each.taker))
                continue
            flight = yield from self.push(each, self.met_block(each.taker))
            pushes.append((each, flight))
            if len(pushes) > min(self.depth, 1):  # one gradient on its way is enough to hide it, and the least to hold
                yield from self.finish_push(*pushes.pop(0), self.met_block, names.target)
        for each, flight in pushes:
            yield from self.finish_push(each, flight, self.met_block, names.target)

    def await_again(self, rounds: list[Round], place: int, flights: dict[int, Any], names: merging.Names) -> Steps:
        """Wait for the block of one round, and set the next one going."""
        each = rounds[place]
        if each.number not in flights:
            flights[each.number] = yield from self.start_fetch(each.mirrored, names.messages, AGAIN)
        yield from self.wait_for(FORWARD, each.taker, each.outgoing, flights[each.number])
        if self.depth and place + self.depth < len(rounds):
            ahead = rounds[place + self.depth]
            flights[ahead.number] = yield from self.start_fetch(ahead.mirrored, names.messages, AGAIN)
        yield from self.arrive(each.taker, each.outgoing, AGAIN)

    def turn_into_gradient(self, names: merging.Names, each: Round) -> Operation:
        """A part's block becomes the gradient of its rows; only that of the parameters where nobody wants the former."""
        block = self.met_block(each.taker)
        return merging.merge(
            self, BACKWARD, names, each.taker, messages=block, target=block if names.target else "", in_place=False,
            labelled=self.schedule.labelled_only and self.schedule.sends_backward,
        )  # fmt: skip

    def met_block(self, peer: int) -> str:
        """A part's block as the backward pass meets it."""
        return self.block(FORWARD, peer) + ("" if self.keeps_messages else AGAIN)

    # -- backward -----------------------------------------------------------------------------------------------

    def backward_aggregate_first(self) -> Backward:
        if not self.schedule.sends_backward:
            return (yield from super().backward_aggregate_first())
        inner = f"dm{self.index}"
        yield self.keep(inner, Part.OWN, self.spec.dim_in)
        yield self.transform(Stage.INPUTS, BACKWARD, Part.OWN, target=inner)
        reduction = yield from self.weights(Part.OWN)
        yield Free(self.index, name=self.aggregated)
        yield self.keep(self.input_gradient, Part.OWN, self.spec.dim_in)
        yield from self.push_sums(inner, self.input_gradient, own_path=True)
        yield Free(self.index, name=inner)
        return reduction

    def backward_transform_first(self) -> Backward:
        if not self.schedule.sends_backward:
            return (yield from super().backward_transform_first())
        inner = f"dp{self.index}"
        yield self.keep(inner, Part.OWN, self.spec.dim_out)
        yield from self.push_sums(self.gradient, inner, own_path=False)
        reduction = yield from self.weights(Part.OWN, gradient=inner)
        if self.schedule.needs_input_gradient:
            yield self.keep(self.input_gradient, Part.OWN, self.spec.dim_in)
            yield self.transform(Stage.INPUTS, BACKWARD, Part.OWN, gradient=inner, target=self.input_gradient)
            yield from self.add_self_inputs()
        yield Free(self.index, name=inner)
        return reduction

    def push_sums(self, source: str, target: str, *, own_path: bool) -> Steps:
        """``target = Aᵀ source``: the own rows' share here, the others' each pushed to its owner as soon as it is summed.

        `own_path`: add the rows' own path around the aggregation before others' shares, which come in ring order.
        """
        dim = self.exchange_dim

        def own() -> Steps:
            yield self.aggregate(BACKWARD, Part.OWN, source, target)
            if own_path:
                yield from self.add_self_inputs()

        def gradient(each: Round, block: str) -> Operation:
            nnz = self.view.part.nnz_halo_from[each.taker]
            work = Work(rows=each.outgoing, nnz=nnz, dim_in=dim, dim_out=dim, flops=2 * nnz * dim)
            return Aggregate(self.index, BACKWARD, Part.HALO, work, peer=each.taker, source=source, target=block)

        yield from self.push_blocks(own(), gradient, target)

    def push_blocks(self, own: Steps, gradient: Callable[[Round, str], Operation], target: str) -> Steps:
        """Make the `gradient` of each part's block and push it to its owner; meanwhile do `own`, then add what comes."""
        rounds = self.rounds(*self.backward_rows)
        flights: dict[int, Any] = {}
        for each in rounds[: self.depth]:
            flights[each.number] = yield from self.start_push(each, gradient)
        yield from own
        for place, each in enumerate(rounds):
            if place + self.depth < len(rounds):
                ahead = rounds[place + self.depth]
                flights[ahead.number] = yield from self.start_push(ahead, gradient)
            yield from self.finish_push(each, flights[each.number], self.gradient_block, target)

    def start_push(self, each: Round, gradient: Callable[[Round, str], Operation]) -> Generator[Operation, Any, Any]:
        """Make the gradient of the taker's rows that were here, and set both messages of the round going."""
        block = self.gradient_block(each.taker)
        yield self.keep_block(BACKWARD, each.outgoing, block)
        if each.outgoing:
            yield from merging.with_room(self, gradient(each, block))
        return (yield from self.push(each, block))

    def push(self, each: Round, block: str) -> Generator[Operation, Any, Any]:
        """Send the gradients in `block` to their owner, and make room for those that come."""
        landing = self.own_block(BACKWARD, each.giver)
        yield self.keep_landing(BACKWARD, each.giver, each.incoming, landing)
        return (yield self.swap(BACKWARD, each, block, landing))

    def finish_push(self, each: Round, flight: Any, sent: Callable[[int], str], target: str) -> Steps:
        """Add what came of the own rows' gradients; free that and the block that was `sent`, by its owner."""
        yield from self.wait_for(BACKWARD, each.giver, each.incoming, flight)
        if each.incoming:
            yield self.dequantize(BACKWARD, each.giver, each.incoming, self.own_block(BACKWARD, each.giver), target)
        if each.taker != each.giver or not each.incoming:
            yield from self.wait_for(BACKWARD, each.taker, each.outgoing, flight)
        yield Free(self.index, BACKWARD, name=sent(each.taker))
        yield Free(self.index, BACKWARD, name=self.own_block(BACKWARD, each.giver))

    # -- rounds -------------------------------------------------------------------------------------------------

    def block(self, direction: Direction, peer: int) -> str:
        """A part's rows (forward), or the gradients of them that are made here."""
        return f"block{self.index}.{peer}" if direction is FORWARD else f"gradient_block{self.index}.{peer}"

    def gradient_block(self, peer: int) -> str:
        return self.block(BACKWARD, peer)

    def own_block(self, direction: Direction, peer: int) -> str:
        """Own rows for another part, or what it sends of their gradients."""
        return f"{self.wire if direction is FORWARD else self.gradient_wire}.{peer}"

    def keep_block(self, direction: Direction, rows: int, name: str) -> Keep:
        dim = self.exchange_dim
        work = Work(rows=rows, dim_out=dim, bytes_out=rows * dim * self.view.value_bytes)
        return Keep(self.index, direction, work=work, name=name)

    def swap(self, direction: Direction, each: Round, source: str, target: str) -> Exchange:
        """The round's two messages: blocks of their own on both sides."""
        world = self.view.world_size
        rows_out = tuple(each.outgoing if peer == each.taker else 0 for peer in range(world))
        rows_in = tuple(each.incoming if peer == each.giver else 0 for peer in range(world))
        return replace(self.exchange(direction, rows_out, rows_in, source, target), in_place=False)

    def wait_for(self, direction: Direction, peer: int, rows: int, flight: Any) -> Steps:
        if rows:
            yield Wait(self.index, direction, peer=peer, flight=flight)
