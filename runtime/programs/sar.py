"""SAR: sequential aggregation. A rank visits the remote parts one after the other and keeps none of their rows.

In round k of an exchange rank r takes from rank r − k and gives to rank r + k (modulo the number of ranks); round 0 is its own
part. A remote block is freed after its round, so that what a rank holds beside its own rows does not grow with the
halo: memory falls as 1 / K. Up to `view.prefetch` rounds are in flight while another is computed; nothing waits for all
ranks. Mostafa, "Sequential Aggregation and Rematerialization", MLSys 2022, sections 3.1 and 3.2.

A layer that sums or averages plain copies of its neighbours' rows (GCN, GraphSAGE-mean) needs no remote row again in
backward (case 1 of section 3.2): rank r computes the gradient of what it took and pushes it to its owner. So each exchanged
row crosses the network once in each direction, as in plain training, and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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


class SequentialAggregation(FullGraph):
    """Full-graph training whose remote rows come, and whose gradients go, one part at a time."""

    name = "sar"

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
        part = self.view.part
        rounds = self.rounds(part.boundary_to, part.halo_from)
        flights: dict[int, Any] = {}
        for each in rounds[: self.depth]:
            flights[each.number] = yield from self.start_fetch(each, source)
        yield self.aggregate(FORWARD, Part.OWN, source, target, columns=Part.OWN)
        for place, each in enumerate(rounds):
            if each.number not in flights:
                flights[each.number] = yield from self.start_fetch(each, source)
            flight = flights[each.number]
            yield from self.wait_for(FORWARD, each.giver, each.incoming, flight)
            if self.depth and place + self.depth < len(rounds):
                ahead = rounds[place + self.depth]
                flights[ahead.number] = yield from self.start_fetch(ahead, source)
            if each.incoming:
                block = self.block(FORWARD, each)
                summed = self.aggregate(FORWARD, Part.MARGINAL, block, target, columns=Part.HALO, peer=each.giver)
                yield replace(summed, in_place=False)
            if each.taker != each.giver or not each.incoming:
                yield from self.wait_for(FORWARD, each.taker, each.outgoing, flight)
            yield Free(self.index, FORWARD, name=self.block(FORWARD, each))
            yield Free(self.index, FORWARD, name=self.own_block(FORWARD, each))

    def start_fetch(self, each: Round, source: str) -> Generator[Operation, Any, Any]:
        """Gather what the taker needs and set both messages of the round going."""
        dim, value_bytes = self.exchange_dim, self.view.value_bytes
        yield self.keep_block(FORWARD, each.outgoing, self.own_block(FORWARD, each))
        size = each.outgoing * dim * value_bytes
        yield Quantize(
            self.index,
            FORWARD,
            work=Work(rows=each.outgoing, dim_in=dim, dim_out=dim, bytes_out=size, bits=8 * value_bytes),
            peer=each.taker,
            source=source,
            target=self.own_block(FORWARD, each),
        )
        yield self.keep_block(FORWARD, each.incoming, self.block(FORWARD, each))
        return (yield self.swap(FORWARD, each, self.own_block(FORWARD, each), self.block(FORWARD, each)))

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
        yield from self.push_blocks(inner, self.input_gradient, own_path=True)
        yield Free(self.index, name=inner)
        return reduction

    def backward_transform_first(self) -> Backward:
        if not self.schedule.sends_backward:
            return (yield from super().backward_transform_first())
        inner = f"dp{self.index}"
        yield self.keep(inner, Part.OWN, self.spec.dim_out)
        yield from self.push_blocks(self.gradient, inner, own_path=False)
        reduction = yield from self.weights(Part.OWN, gradient=inner)
        if self.schedule.needs_input_gradient:
            yield self.keep(self.input_gradient, Part.OWN, self.spec.dim_in)
            yield self.transform(Stage.INPUTS, BACKWARD, Part.OWN, gradient=inner, target=self.input_gradient)
            yield from self.add_self_inputs()
        yield Free(self.index, name=inner)
        return reduction

    def push_blocks(self, source: str, target: str, *, own_path: bool) -> Steps:
        """``target = Aᵀ source``: the own rows' share here, the others' each pushed to its owner as soon as it is summed.

        `own_path`: add the rows' own path around the aggregation before others' shares, which come in ring order.
        """
        rounds = self.rounds(*self.backward_rows)
        flights: dict[int, Any] = {}
        for each in rounds[: self.depth]:
            flights[each.number] = yield from self.start_push(each, source)
        yield self.aggregate(BACKWARD, Part.OWN, source, target)
        if own_path:
            yield from self.add_self_inputs()
        for place, each in enumerate(rounds):
            if place + self.depth < len(rounds):
                ahead = rounds[place + self.depth]
                flights[ahead.number] = yield from self.start_push(ahead, source)
            flight = flights[each.number]
            yield from self.wait_for(BACKWARD, each.giver, each.incoming, flight)
            if each.incoming:
                yield self.dequantize(BACKWARD, each.giver, each.incoming, self.own_block(BACKWARD, each), target)
            if each.taker != each.giver or not each.incoming:
                yield from self.wait_for(BACKWARD, each.taker, each.outgoing, flight)
            yield Free(self.index, BACKWARD, name=self.block(BACKWARD, each))
            yield Free(self.index, BACKWARD, name=self.own_block(BACKWARD, each))

    def start_push(self, each: Round, source: str) -> Generator[Operation, Any, Any]:
        """Sum the gradient of the taker's rows that were here, and set both messages of the round going."""
        dim, block = self.exchange_dim, self.block(BACKWARD, each)
        yield self.keep_block(BACKWARD, each.outgoing, block)
        if each.outgoing:
            nnz = self.view.part.nnz_halo_from[each.taker]
            work = Work(rows=each.outgoing, nnz=nnz, dim_in=dim, dim_out=dim, flops=2 * nnz * dim)
            yield Aggregate(self.index, BACKWARD, Part.HALO, work, peer=each.taker, source=source, target=block)
        yield self.keep_block(BACKWARD, each.incoming, self.own_block(BACKWARD, each))
        return (yield self.swap(BACKWARD, each, block, self.own_block(BACKWARD, each)))

    # -- rounds -------------------------------------------------------------------------------------------------

    def block(self, direction: Direction, each: Round) -> str:
        """Another part's rows, or their gradients."""
        return f"block{self.index}.{each.number}" if direction is FORWARD else f"gradient_block{self.index}.{each.number}"

    def own_block(self, direction: Direction, each: Round) -> str:
        """Own rows for another part, or what it sends of their gradients."""
        return f"{self.wire if direction is FORWARD else self.gradient_wire}.{each.number}"

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
