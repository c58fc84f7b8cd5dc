"""AdaQP: full-graph training whose messages are quantised, each row at a width of its own, in both directions.

B. Wan, J. Zhao, C. Wu: Adaptive Message Quantization and Parallelization for Distributed Full-graph GNN Training (MLSys
2023). Everything but the exchanges is plain full-graph training's: rows are encoded, sent while central rows are
computed, and decoded peer by peer, in ring order, as they land. Evaluation sends rows as they are.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from halocast.runtime.programs.full import FullGraph, LayerProgram, Steps, describe_layers, width_of
from halocast.traces.operations import Direction, Free, Keep, Operation, PeerMessage, Quantize, Wait, Work
from halocast.traces.wire import BitHistogram, message_bytes
from halocast.traces.workload import BitAssignment, ExchangeBits, RankView

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


class AdaQP(FullGraph):
    """Needs `RankView.bits`: the widths of the epoch's messages."""

    name = "adaqp"

    def layers(self, view: RankView) -> list[LayerProgram]:
        return describe_layers(view, QuantizedLayer)


@dataclass(frozen=True, slots=True)
class ExchangeShape:
    """What one rank's exchange of one layer and direction carries, whatever the widths."""

    layer: int
    direction: Direction
    dim: int
    rows_out: tuple[int, ...]
    """Rows sent to each peer."""
    rows_in: tuple[int, ...]
    """Rows received from each peer."""
    one_sided: bool
    """No value is negative, as after ReLU: a row's minimum is taken to be 0 and not sent."""
    again_out: tuple[int, ...] = ()
    """Of each peer's rows the first so many are all that sequential aggregation sends a second time; (): no such limit."""
    again_in: tuple[int, ...] = ()
    """The same of those received."""


def exchange_shapes(view: RankView) -> tuple[ExchangeShape, ...]:
    """All exchanges of an epoch; the ones that may be given widths."""
    return tuple(
        shape
        for layer in describe_layers(view, QuantizedLayer)
        if isinstance(layer, QuantizedLayer)
        for shape in layer.shapes()
    )


def uniform_bits(view: RankView, bits: int, *, rotated: bool = False) -> BitAssignment:
    """Every message at one width."""
    return BitAssignment(
        {
            (shape.layer, shape.direction): ExchangeBits(
                *(
                    tuple(((bits, count),) if count else () for count in rows)
                    for rows in (shape.rows_out, shape.rows_in, shape.again_out, shape.again_in)
                )
            )
            for shape in exchange_shapes(view)
        },
        rotated=rotated,
    )


@dataclass(frozen=True)
class QuantizedLayer(LayerProgram):
    """A layer whose exchanges go through the codec: both ends keep wire buffers."""

    def shapes(self) -> list[ExchangeShape]:
        """The layer's exchanges."""
        part, schedule, shapes = self.view.part, self.schedule, []
        if schedule.sends_forward:
            shape = self.shape(FORWARD, part.boundary_to, part.halo_from)
            if self.spec.refetches and schedule.labelled_only and schedule.sends_backward:
                shape = replace(shape, again_out=part.labelled_boundary_to, again_in=part.labelled_halo_from)
            shapes.append(shape)
        if schedule.sends_backward:
            shapes.append(self.shape(BACKWARD, *self.backward_rows))
        return shapes

    def shape(self, direction: Direction, rows_out: tuple[int, ...], rows_in: tuple[int, ...]) -> ExchangeShape:
        return ExchangeShape(self.index, direction, self.exchange_dim, rows_out, rows_in, self.is_one_sided(direction))

    def is_one_sided(self, direction: Direction) -> bool:
        """Whether the rows come straight out of a ReLU (and dropout): nothing else promises its sign."""
        follows_activation = self.index > 0 and self.view.layers[self.index - 1].activation
        return direction is FORWARD and follows_activation and not self.schedule.exchanges_projected

    def received(self, direction: Direction) -> str:
        return f"received{self.index}" if direction is FORWARD else self.gradient_wire

    def encoded(self, direction: Direction) -> str:
        return self.wire if direction is FORWARD else f"encoded_gradients{self.index}"

    def message(self, direction: Direction, peer: int, rows: int, *, incoming: bool = False) -> PeerMessage:
        assert self.view.bits is not None, "quantised messages need widths"
        histogram = self.histogram(self.view.bits.exchanges[self.index, direction], direction, peer, rows, incoming=incoming)
        size = message_bytes(
            histogram, self.exchange_dim, one_sided=self.is_one_sided(direction), rotated=self.view.bits.rotated
        )
        return PeerMessage(peer, rows, size, histogram)

    def histogram(self, bits: ExchangeBits, direction: Direction, peer: int, rows: int, *, incoming: bool) -> BitHistogram:
        """The widths of a peer's message of so many rows."""
        return (bits.incoming if incoming else bits.outgoing)[peer]

    def send_boundary(self, rows: str) -> Generator[Operation, Any, Any]:
        part = self.view.part
        return (yield from self.send_encoded(FORWARD, part.boundary_to, part.halo_from, rows))

    def send_halo_gradients(self, gradients: str) -> Generator[Operation, Any, Any]:
        return (yield from self.send_encoded(BACKWARD, *self.backward_rows, gradients))

    def send_encoded(
        self, direction: Direction, rows_out: tuple[int, ...], rows_in: tuple[int, ...], rows: str
    ) -> Generator[Operation, Any, Any]:
        """Encode the rows into one wire buffer a peer and start sending; peers' messages land in buffers of their own."""
        exchange = self.exchange(direction, rows_out, rows_in, self.encoded(direction), self.received(direction))
        yield self.keep_wire(direction, self.encoded(direction), exchange.work.bytes_out)
        work = Work(
            rows=sum(rows_out),
            dim_in=self.exchange_dim,
            dim_out=self.exchange_dim,
            bytes_out=exchange.work.bytes_out,
            bits=width_of(exchange.outgoing),
        )
        yield Quantize(self.index, direction, work=work, source=rows, target=self.encoded(direction))
        yield self.keep_wire(direction, self.received(direction), exchange.work.bytes_in)
        return (yield exchange)

    def keep_wire(self, direction: Direction, name: str, size: int) -> Keep:
        return Keep(self.index, direction, work=Work(rows=1, dim_out=size, bytes_out=size), is_wire=True, name=name)

    def receive_halo_from(self, peer: int, flight: Any) -> Steps:
        part = self.view.part
        if part.halo_from[peer] or part.boundary_to[peer]:
            yield Wait(self.index, FORWARD, peer=peer, flight=flight)
        if part.halo_from[peer]:
            yield self.dequantize(FORWARD, peer, part.halo_from[peer], self.received(FORWARD), self.exchanged)

    def release_wires(self, direction: Direction) -> Steps:
        yield Free(self.index, direction, name=self.encoded(direction))
        yield Free(self.index, direction, name=self.received(direction))
