"""Plain full-graph training: exact gradients, halo exchange in both directions, overlap with central rows."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from halocast.runtime.programs import batchnorm, merging
from halocast.runtime.programs.schedule import LayerSchedule, Order, schedule_layers
from halocast.traces.operations import (
    Aggregate,
    AllReduce,
    Apply,
    Dequantize,
    Direction,
    Exchange,
    Free,
    Keep,
    Loss,
    Operation,
    Part,
    PeerMessage,
    Program,
    Quantize,
    Stage,
    Step,
    Transform,
    Wait,
    Work,
)
from halocast.traces.workload import LayerSpec, RankView

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
Steps = Generator[Operation, Any, None]
Backward = Generator[Operation, Any, Any]

FEATURES = "features"
"""Static buffer: raw feature rows [ALL]."""
AGGREGATED_FEATURES = "aggregated_features"
"""Static buffer: ÂX rows [ALL]."""
LOGITS = "logits"
"""What `evaluation` leaves behind: the last layer's output [OWN]."""
NOTHING_TO_REDUCE = object()
"""Stands for the flight of an all-reduce that a single rank does not need."""


class FullGraph:
    """The method as it is published for full-graph training, with the lossless savings of the plan."""

    name = "full"
    receives_in_place = True
    """Whether halo rows land behind the own rows of the buffer that they belong to."""

    def layers(self, view: RankView) -> list[LayerProgram]:
        """The layers as training runs them; another method puts its own kind here."""
        return describe_layers(view)

    def epoch(self, view: RankView) -> Program:
        """Forward, loss, backward, all-reduce and step of one rank."""
        layers = self.layers(view)
        for layer in layers:
            yield from layer.forward(training=True)
        last = layers[-1]
        yield last.keep(last.gradient, Part.OWN, last.spec.dim_out)
        yield Loss(
            last.index,
            work=Work(rows=view.part.labelled, dim_in=last.spec.dim_out, dim_out=last.spec.dim_out),
            source=last.output,
            target=last.gradient,
        )
        yield Free(name=last.output)
        flights = []
        for layer in reversed(layers):
            flight = yield from layer.backward()
            flights.append((layer, flight))
        for layer, flight in flights:
            if flight is not NOTHING_TO_REDUCE:
                yield Wait(layer.index, BACKWARD, flight=flight)
        yield Step(work=Work(rows=sum(spec.parameters for spec in view.layers)))

    def evaluation(self, view: RankView) -> Program:
        """Forward only, rows sent as they are; leaves the logits of the own rows in the buffer `LOGITS`."""
        for layer in describe_layers(view):
            yield from layer.forward(training=False)


def describe_layers(view: RankView, kind: type[LayerProgram] | None = None) -> list[LayerProgram]:
    """One `LayerProgram` (or a `kind` of it) a layer, with the buffer shapes its neighbours imply."""
    kind = kind or LayerProgram
    schedules = schedule_layers(view)
    last = len(schedules) - 1
    programs = []
    for index, (spec, schedule) in enumerate(zip(view.layers, schedules, strict=True)):
        output_rows = schedule.rows
        if index < last:
            following = schedules[index + 1]
            if kind.receives_in_place and following.sends_forward and not following.exchanges_projected:
                output_rows = Part.ALL
        programs.append(kind(view, index, spec, schedule, output_rows, is_last=index == last))
    return programs


def width_of(messages: Iterable[PeerMessage]) -> int:
    """The one width of all messages' rows, or 0 where they differ."""
    widths = {bits for message in messages for bits, _ in message.bit_histogram}
    return widths.pop() if len(widths) == 1 else 0


@dataclass(frozen=True)
class LayerProgram:
    """One layer's operations. Buffers are named after what they hold: h inputs, m aggregated, p projected, z, g."""

    receives_in_place: ClassVar[bool] = True
    """Whether halo rows land behind the own rows of the buffer that they belong to."""

    view: RankView
    index: int
    spec: LayerSpec
    schedule: LayerSchedule
    output_rows: Part
    """Rows of the output buffer: ALL where the next layer receives its halo rows in place."""
    is_last: bool

    # -- names of buffers ---------------------------------------------------------------------------------------

    @property
    def source(self) -> str:
        return FEATURES if self.index == 0 else f"h{self.index}"

    @property
    def output(self) -> str:
        return LOGITS if self.is_last else f"h{self.index + 1}"

    @property
    def aggregated(self) -> str:
        return AGGREGATED_FEATURES if self.schedule.order is Order.AGGREGATED_ONCE else f"m{self.index}"

    @property
    def projected(self) -> str:
        return f"p{self.index}"

    @property
    def exchanged(self) -> str:
        """Rows that travel."""
        return self.projected if self.schedule.exchanges_projected else self.source

    @property
    def reduced(self) -> str:
        """Own rows' merged messages."""
        return self.output if self.merges_into_output else f"r{self.index}"

    @property
    def merges_into_output(self) -> bool:
        """Whether merged rows become the layer's output where they are: backward can do with what the activation left."""
        spec = self.spec
        alone = not (spec.finishes or spec.norm or spec.batch_norm or self.is_last)
        return spec.backward_reads_output and alone

    @property
    def state(self) -> str:
        """What merging them takes besides."""
        return f"s{self.index}"

    @property
    def preactivation(self) -> str:
        """Norm needs its input again in backward; without norm the output is computed in place."""
        if self.merges_into_preactivation:
            return self.reduced
        return f"z{self.index}" if self.has_preactivation else self.output

    @property
    def has_preactivation(self) -> bool:
        return self.spec.norm and not self.is_last and not self.merges_into_preactivation

    @property
    def merges_into_preactivation(self) -> bool:
        """Whether nothing of the layer's own comes between merged messages and the epilogue."""
        return self.spec.is_blockwise and not self.spec.finishes

    @property
    def has_epilogue(self) -> bool:
        """Whether norm, activation or dropout follow the layer: on hidden layers only."""
        return not self.is_last and self.spec.has_epilogue

    @property
    def gradient(self) -> str:
        """Gradient of this layer's output; turned into that of its pre-activation in place."""
        return f"g{self.index + 1}"

    @property
    def input_gradient(self) -> str:
        return f"g{self.index}"

    @property
    def wire(self) -> str:
        """Rows on their way out, going forward."""
        return f"wire{self.index}"

    @property
    def gradient_wire(self) -> str:
        """Gradient rows that came in, going backward."""
        return f"gradient_wire{self.index}"

    # -- forward ------------------------------------------------------------------------------------------------

    def forward(self, *, training: bool) -> Steps:
        """Compute the output rows; in evaluation every buffer is freed after its last use, the logits apart."""
        yield self.keep(self.output, self.output_rows, self.spec.dim_out)
        if self.has_preactivation:
            yield self.keep(self.preactivation, self.schedule.rows, self.spec.dim_out)
        order = self.schedule.order
        if order is Order.AGGREGATED_ONCE:
            yield self.transform(Stage.WHOLE, FORWARD, self.schedule.rows)
        elif order is Order.TRANSFORM_FIRST:
            yield from self.transform_then_aggregate()
        elif order is Order.AGGREGATE_FIRST:
            yield from self.aggregate_then_transform()
        elif order is Order.BLOCKWISE:
            yield from merging.forward(self, training=training)
        else:
            yield from self.apply_forward()
        if self.spec.batch_norm and order is not Order.BLOCKWISE:  # merging does it itself, before it frees what it merged
            yield from batchnorm.normalize_forward(self, training=training)
        if not training:
            yield from self.free_after_evaluation()

    def aggregate_then_transform(self) -> Steps:
        yield self.keep(self.aggregated, Part.OWN, self.spec.dim_in)
        if not self.schedule.sends_forward:
            yield self.aggregate(FORWARD, Part.OWN, self.source, self.aggregated)
            yield self.transform(Stage.WHOLE, FORWARD, Part.OWN)
            return
        flight = yield from self.send_boundary(self.source)
        if not self.view.overlap:
            yield from self.receive_halo(flight)
            yield self.aggregate(FORWARD, Part.OWN, self.source, self.aggregated)
            yield self.transform(Stage.WHOLE, FORWARD, Part.OWN)
            return
        yield self.aggregate(FORWARD, Part.CENTRAL, self.source, self.aggregated)
        yield self.transform(Stage.WHOLE, FORWARD, Part.CENTRAL)
        yield from self.aggregate_marginal(flight, self.source, self.aggregated)
        yield self.transform(Stage.WHOLE, FORWARD, Part.MARGINAL)

    def aggregate_marginal(self, flight: Any, source: str, target: str) -> Steps:
        """Sum the marginal rows' own columns, then each peer's, in ring order, as its messages land."""
        yield self.aggregate(FORWARD, Part.MARGINAL, source, target, columns=Part.OWN)
        for peer in self.view.peers_in_ring_order:
            yield from self.receive_halo_from(peer, flight)
            if self.view.part.halo_from[peer]:
                yield self.aggregate(FORWARD, Part.MARGINAL, source, target, columns=Part.HALO, peer=peer)
        yield from self.release_wires(FORWARD)

    def transform_then_aggregate(self) -> Steps:
        target = self.preactivation
        yield self.keep(self.projected, self.projected_rows, self.spec.dim_out)
        if not self.schedule.sends_forward:
            yield self.transform(Stage.PROJECT, FORWARD, self.projected_rows)
            yield self.aggregate(FORWARD, Part.OWN, self.projected, target)
            yield self.transform(Stage.FINISH, FORWARD, Part.OWN)
        else:
            yield self.transform(Stage.PROJECT, FORWARD, Part.MARGINAL)
            flight = yield from self.send_boundary(self.projected)
            if self.view.overlap:
                yield self.transform(Stage.PROJECT, FORWARD, Part.CENTRAL)
                yield self.aggregate(FORWARD, Part.CENTRAL, self.projected, target)
                yield self.transform(Stage.FINISH, FORWARD, Part.CENTRAL)
                yield from self.aggregate_marginal(flight, self.projected, target)
                yield self.transform(Stage.FINISH, FORWARD, Part.MARGINAL)
            else:
                yield from self.receive_halo(flight)
                yield self.transform(Stage.PROJECT, FORWARD, Part.CENTRAL)
                yield self.aggregate(FORWARD, Part.OWN, self.projected, target)
                yield self.transform(Stage.FINISH, FORWARD, Part.OWN)
        yield Free(self.index, name=self.projected)

    def apply_forward(self) -> Steps:
        if not self.schedule.sends_forward:
            yield from self.apply_and_finish(Part.OWN)
            return
        flight = yield from self.send_boundary(self.source)
        if not self.view.overlap:
            yield from self.receive_halo(flight)
        yield from self.apply_and_finish(Part.CENTRAL)
        if self.view.overlap:
            yield from self.receive_halo(flight)
        yield from self.apply_and_finish(Part.MARGINAL)

    def apply_and_finish(self, part: Part) -> Steps:
        """What follows the layer row by row; batch norm waits for all rows, and takes the rest of the epilogue with it."""
        yield self.apply(FORWARD, part, self.source, self.preactivation)
        if self.spec.residual or (self.has_epilogue and not self.spec.batch_norm):
            yield self.transform(Stage.FINISH, FORWARD, part)

    @property
    def projected_rows(self) -> Part:
        """Rows of the projected buffer: without halo rows when there are none to read."""
        return Part.ALL if self.view.world_size > 1 else Part.OWN

    # -- messages that merge ------------------------------------------------------------------------------------

    @property
    def keeps_messages(self) -> bool:
        """Whether messages, the halo's too, stay where they are until the backward pass has read them."""
        return self.rereads_messages

    @property
    def rereads_messages(self) -> bool:
        """Whether the backward pass reads messages at all: static ones have no gradient, and plain sums do without."""
        spec = self.spec
        return spec.refetches and (self.schedule.needs_input_gradient or spec.projects or spec.merge_parameters)

    @property
    def message_rows(self) -> Part:
        """Rows of the projected messages' buffer."""
        return Part.ALL if self.view.world_size > 1 else Part.OWN

    @property
    def message_gradient_rows(self) -> Part:
        """Rows of the buffer of their gradient."""
        return self.message_rows

    @property
    def projected_here(self) -> Part:
        """Rows whose messages are made here: the halo's too where their inputs are at hand."""
        return Part.OWN if self.schedule.sends_forward else self.message_rows

    def merge_neighbours(self, names: merging.Names, *, training: bool) -> Steps:
        """Merge the own block while the others' messages fly, then each peer's as they land."""
        flight = (yield from self.send_boundary(names.messages)) if self.schedule.sends_forward else None
        if self.view.overlap or not self.schedule.sends_forward:
            yield from merging.with_room(self, merging.merge(self, FORWARD, names))
        waits = self.schedule.sends_forward and self.view.overlap
        if self.schedule.sends_forward and not self.view.overlap:
            yield from self.receive_halo(flight)
            yield from merging.with_room(self, merging.merge(self, FORWARD, names))
        for peer in self.view.peers_in_ring_order:
            if waits:
                yield from self.receive_halo_from(peer, flight)
            if self.view.part.halo_from[peer]:
                yield from merging.with_room(self, merging.merge(self, FORWARD, names, peer))
        if waits:
            yield from self.release_wires(FORWARD)

    def merge_neighbours_backward(self, names: merging.Names) -> Steps:
        """The peers' blocks first, so that their gradients fly while the own block is met again."""
        rows = self.backward_rows[0] if self.schedule.sends_backward else self.view.part.halo_from
        labelled = self.schedule.sends_backward and self.schedule.labelled_only
        for peer in self.view.peers_in_ring_order:
            if rows[peer]:
                yield from merging.with_room(self, merging.merge(self, BACKWARD, names, peer, labelled=labelled))
        if not self.schedule.sends_backward:
            yield from merging.with_room(self, merging.merge(self, BACKWARD, names))
            return
        flight = yield from self.send_halo_gradients(names.target)
        if not self.view.overlap:
            yield from self.wait_for_gradients(flight)
        yield from merging.with_room(self, merging.merge(self, BACKWARD, names))
        yield from self.receive_boundary_gradients(flight, names.target)

    def free_after_evaluation(self) -> Steps:
        if self.has_preactivation:
            yield Free(self.index, name=self.preactivation)
        if self.schedule.order is Order.AGGREGATE_FIRST:
            yield Free(self.index, name=self.aggregated)
        if self.index > 0:  # features are static and stay
            yield Free(self.index, name=self.source)

    # -- backward -----------------------------------------------------------------------------------------------

    def backward(self) -> Backward:
        """From the output's gradient to the weights' and, above layer 0, the input's; frees what it has used up.

        Returns the flight of the layer's all-reduce, started as soon as its gradients are there.
        """
        if self.has_epilogue:
            yield self.transform(Stage.ACTIVATION, BACKWARD, self.schedule.rows)
        if self.spec.batch_norm:
            yield from batchnorm.normalize_backward(self)
        if self.has_preactivation:
            yield Free(self.index, name=self.preactivation)
        if (
            not self.is_last and not self.merges_into_output
        ):  # its sign was what the activation needed; the layer above is done with it
            yield Free(self.index, name=self.output)
        order = self.schedule.order
        if order is Order.AGGREGATED_ONCE:
            reduction = yield from self.weights(self.schedule.rows)
        elif order is Order.TRANSFORM_FIRST:
            reduction = yield from self.backward_transform_first()
        elif order is Order.AGGREGATE_FIRST:
            reduction = yield from self.backward_aggregate_first()
        elif order is Order.BLOCKWISE:
            reduction = yield from merging.backward(self)
        else:
            reduction = yield from self.apply_backward()
        yield Free(self.index, name=self.gradient)
        return reduction

    def weights(self, part: Part, gradient: str | None = None) -> Backward:
        """The matrices' gradients, and at once their sum over ranks."""
        yield self.transform(Stage.WEIGHTS, BACKWARD, part, gradient=gradient)
        return (yield from self.reduce_gradients())

    def backward_aggregate_first(self) -> Backward:
        inner = f"dm{self.index}"
        if not self.schedule.sends_backward:
            reduction = yield from self.weights(Part.OWN)
            yield Free(self.index, name=self.aggregated)
            if self.schedule.needs_input_gradient:
                yield self.keep(inner, Part.OWN, self.spec.dim_in)
                yield self.transform(Stage.INPUTS, BACKWARD, Part.OWN, target=inner)
                yield self.keep(self.input_gradient, self.gradient_rows, self.spec.dim_in)
                yield self.aggregate(BACKWARD, self.gradient_rows, inner, self.input_gradient)
                yield from self.add_self_inputs()
                yield Free(self.index, name=inner)
            return reduction
        yield self.keep(inner, Part.OWN, self.spec.dim_in)
        yield self.keep(self.input_gradient, Part.ALL, self.spec.dim_in)
        yield self.transform(Stage.INPUTS, BACKWARD, Part.MARGINAL, target=inner)
        yield self.aggregate(BACKWARD, Part.HALO, inner, self.input_gradient)
        flight = yield from self.send_halo_gradients(self.input_gradient)
        if not self.view.overlap:
            yield from self.wait_for_gradients(flight)
        yield self.transform(Stage.INPUTS, BACKWARD, Part.CENTRAL, target=inner)
        yield self.aggregate(BACKWARD, Part.OWN, inner, self.input_gradient)
        yield Free(self.index, name=inner)
        yield from self.add_self_inputs()
        reduction = yield from self.weights(Part.OWN)
        yield Free(self.index, name=self.aggregated)
        yield from self.receive_boundary_gradients(flight, self.input_gradient)
        return reduction

    def backward_transform_first(self) -> Backward:
        inner = f"dp{self.index}"
        yield self.keep(inner, self.projected_rows, self.spec.dim_out)
        if self.schedule.sends_backward:
            yield self.aggregate(BACKWARD, Part.HALO, self.gradient, inner)
            flight = yield from self.send_halo_gradients(inner)
            if not self.view.overlap:
                yield from self.wait_for_gradients(flight)
            yield self.aggregate(BACKWARD, Part.OWN, self.gradient, inner)
            yield from self.receive_boundary_gradients(flight, inner)
            rows = Part.OWN
        else:
            rows = self.projected_rows
            yield self.aggregate(BACKWARD, rows, self.gradient, inner)
        reduction = yield from self.weights(rows, gradient=inner)
        if self.schedule.needs_input_gradient:
            yield self.keep(self.input_gradient, self.gradient_rows, self.spec.dim_in)
            yield self.transform(Stage.INPUTS, BACKWARD, rows, gradient=inner, target=self.input_gradient)
            yield from self.add_self_inputs()
        yield Free(self.index, name=inner)
        return reduction

    def apply_backward(self) -> Backward:
        target = self.input_gradient if self.schedule.needs_input_gradient else ""
        if target:
            yield self.keep(target, Part.ALL, self.spec.dim_in)
        if not self.schedule.sends_forward:
            yield self.apply(BACKWARD, Part.OWN, self.gradient, target)
            yield from self.add_self_inputs()
            return (yield from self.reduce_gradients())
        yield self.apply(BACKWARD, Part.MARGINAL, self.gradient, target)
        flight = (yield from self.send_halo_gradients(target)) if self.schedule.sends_backward else None
        if self.schedule.sends_backward and not self.view.overlap:
            yield from self.wait_for_gradients(flight)
        yield self.apply(BACKWARD, Part.CENTRAL, self.gradient, target)
        yield from self.add_self_inputs()
        reduction = yield from self.reduce_gradients()
        if self.schedule.sends_backward:
            yield from self.receive_boundary_gradients(flight, target)
        return reduction

    def add_self_inputs(self) -> Steps:
        """The row's own path around the aggregation: the self weight and the skip connection."""
        if self.spec.self_weight or self.spec.residual:
            yield self.transform(Stage.SELF_INPUTS, BACKWARD, Part.OWN, target=self.input_gradient)

    @property
    def gradient_rows(self) -> Part:
        """Rows of the input gradient: the halo's too where they are computed (or summed) here."""
        if self.schedule.sends_backward and not self.schedule.exchanges_projected:
            return Part.ALL
        halo_is_recomputed = self.view.world_size > 1 and not self.schedule.sends_backward
        return Part.ALL if halo_is_recomputed else Part.OWN

    def reduce_gradients(self) -> Backward:
        """Start summing the layer's gradients over ranks; the last layer's bucket carries the loss as well."""
        if self.view.world_size == 1:
            return NOTHING_TO_REDUCE
        values = self.spec.parameters + (1 if self.is_last else 0)
        size = values * self.view.value_bytes
        return (yield AllReduce(self.index, BACKWARD, work=Work(rows=values, bytes_out=size, bytes_in=size)))

    # -- exchanges ----------------------------------------------------------------------------------------------

    @cached_property
    def exchange_dim(self) -> int:
        return self.schedule.exchange_dim(self.spec)

    def send_boundary(self, rows: str) -> Generator[Operation, Any, Any]:
        """Gather the boundary rows per peer and start sending; halo rows arrive in place in the same buffer."""
        part, dim = self.view.part, self.exchange_dim
        size = part.boundary * dim * self.view.value_bytes
        yield Keep(self.index, work=Work(rows=part.boundary, dim_out=dim, bytes_out=size), name=self.wire)
        yield Quantize(
            self.index,
            FORWARD,
            work=Work(rows=part.boundary, dim_in=dim, dim_out=dim, bytes_out=size, bits=8 * self.view.value_bytes),
            source=rows,
            target=self.wire,
        )
        return (yield self.exchange(FORWARD, part.boundary_to, part.halo_from, self.wire, rows))

    def receive_halo(self, flight: Any) -> Steps:
        """All peers' rows, in ring order."""
        for peer in self.view.peers_in_ring_order:
            yield from self.receive_halo_from(peer, flight)
        yield from self.release_wires(FORWARD)

    def receive_halo_from(self, peer: int, flight: Any) -> Steps:
        """One peer's rows: they arrive in place."""
        part = self.view.part
        if part.halo_from[peer] or part.boundary_to[peer]:
            yield Wait(self.index, FORWARD, peer=peer, flight=flight)

    def release_wires(self, direction: Direction) -> Steps:
        """Free the exchange's wire buffers, once all of it has landed."""
        yield Free(self.index, direction, name=self.wire if direction is FORWARD else self.gradient_wire)

    def wait_for_gradients(self, flight: Any) -> Steps:
        """Without overlap: nothing else runs until all gradients are here."""
        rows_out, rows_in = self.backward_rows
        for peer in self.view.peers_in_ring_order:
            if rows_out[peer] or rows_in[peer]:
                yield Wait(self.index, BACKWARD, peer=peer, flight=flight)

    def send_halo_gradients(self, gradients: str) -> Generator[Operation, Any, Any]:
        """Send the halo rows' gradients to their owners straight from where they were summed."""
        rows_out, rows_in = self.backward_rows
        dim = self.exchange_dim
        size = sum(rows_in) * dim * self.view.value_bytes
        yield Keep(self.index, BACKWARD, work=Work(rows=sum(rows_in), dim_out=dim, bytes_out=size), name=self.gradient_wire)
        return (yield self.exchange(BACKWARD, rows_out, rows_in, gradients, self.gradient_wire))

    def receive_boundary_gradients(self, flight: Any, gradients: str) -> Steps:
        """Add each peer's share in ring order, so that the sums do not depend on which message lands first."""
        rows_out, rows_in = self.backward_rows
        for peer in self.view.peers_in_ring_order:
            if self.view.overlap and (rows_out[peer] or rows_in[peer]):
                yield Wait(self.index, BACKWARD, peer=peer, flight=flight)
            if rows_in[peer]:
                yield self.dequantize(BACKWARD, peer, rows_in[peer], self.gradient_wire, gradients)
        yield from self.release_wires(BACKWARD)

    def dequantize(self, direction: Direction, peer: int, rows: int, source: str, target: str) -> Dequantize:
        dim, message = self.exchange_dim, self.message(direction, peer, rows, incoming=True)
        return Dequantize(
            self.index,
            direction,
            work=Work(rows=rows, dim_in=dim, dim_out=dim, bytes_in=message.bytes, bits=width_of([message])),
            peer=peer,
            source=source,
            target=target,
        )

    @property
    def backward_rows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Gradient rows (sent to, received from) each peer."""
        part = self.view.part
        if self.schedule.labelled_only:
            return part.labelled_halo_from, part.labelled_boundary_to
        return part.halo_from, part.boundary_to

    def exchange(
        self, direction: Direction, rows_out: tuple[int, ...], rows_in: tuple[int, ...], source: str, target: str
    ) -> Exchange:
        dim = self.exchange_dim
        outgoing, incoming = self.messages(direction, rows_out), self.messages(direction, rows_in, incoming=True)
        return Exchange(
            self.index,
            direction,
            Part.HALO,
            Work(
                rows=sum(rows_out),
                dim_in=dim,
                dim_out=dim,
                bytes_out=sum(message.bytes for message in outgoing),
                bytes_in=sum(message.bytes for message in incoming),
                bits=width_of(outgoing),
            ),
            outgoing=outgoing,
            incoming=incoming,
            source=source,
            target=target,
        )

    def messages(self, direction: Direction, rows: tuple[int, ...], *, incoming: bool = False) -> tuple[PeerMessage, ...]:
        """One message a peer that has rows to send or receive."""
        return tuple(self.message(direction, peer, count, incoming=incoming) for peer, count in enumerate(rows) if count)

    def message(self, direction: Direction, peer: int, rows: int, *, incoming: bool = False) -> PeerMessage:
        """Rows as they are; a method that encodes them says how long its messages are."""
        value_bytes = self.view.value_bytes
        return PeerMessage(peer, rows, rows * self.exchange_dim * value_bytes, ((8 * value_bytes, rows),))

    # -- operations with their work -----------------------------------------------------------------------------

    def keep(self, name: str, part: Part, dim: int) -> Keep:
        rows = self.view.part.rows(part)
        return Keep(
            self.index, part=part, work=Work(rows=rows, dim_out=dim, bytes_out=rows * dim * self.view.value_bytes), name=name
        )

    def aggregate(
        self, direction: Direction, part: Part, source: str, target: str, *, columns: Part = Part.ALL, peer: int = -1
    ) -> Aggregate:
        statistics, dim = self.view.part, self.exchange_dim
        rows = statistics.rows(part)
        if columns is Part.HALO:  # edges go both ways: the rows beside a peer's nodes are those sent to it
            rows, nnz = statistics.boundary_to[peer], statistics.nnz_halo_from[peer]
        else:
            nnz = statistics.nnz(part, backward=direction is BACKWARD, self_loop=self.spec.self_loop)
            nnz -= statistics.nnz_halo if columns is Part.OWN else 0
        work = Work(rows=rows, nnz=nnz, dim_in=dim, dim_out=dim, flops=2 * nnz * dim)
        return Aggregate(self.index, direction, part, work, columns=columns, peer=peer, source=source, target=target)

    def apply(self, direction: Direction, part: Part, source: str, target: str) -> Apply:
        statistics, spec = self.view.part, self.spec
        work = Work(statistics.rows(part), statistics.nnz(part), spec.dim_in, spec.dim_out)
        return Apply(self.index, direction, part, work, source=source, target=target)

    def transform(
        self, stage: Stage, direction: Direction, part: Part, *, gradient: str | None = None, target: str | None = None
    ) -> Transform:
        default_target = {Stage.PROJECT: self.projected, Stage.ACTIVATION: self.gradient}.get(stage, self.output)
        return Transform(
            self.index,
            direction,
            part,
            self.transform_work(stage, part),
            stage=stage,
            source=self.source,
            aggregated=self.aggregated,
            preactivation=self.preactivation,
            output=self.output,
            gradient=self.gradient if gradient is None else gradient,
            target=default_target if target is None else target,
        )

    def transform_work(self, stage: Stage, part: Part) -> Work:
        """Rows, matrix products (as flops) and, for sparse features, the stored values the products read."""
        spec, statistics = self.spec, self.view.part
        rows = statistics.rows(part)
        neighbour, own, nnz = 0, 0, 0
        if spec.linear_aggregation:
            neighbour = self.product_flops(part, spec, aggregated=True)
        if self.index == 0 and statistics.features_sparse:
            nnz = statistics.stored_values(part, aggregated=self.schedule.order is Order.AGGREGATED_ONCE)
        if spec.self_weight:
            own = self.product_flops(part, spec, aggregated=False)
        flops = {
            Stage.PROJECT: neighbour,
            Stage.FINISH: own,
            Stage.WHOLE: neighbour + own,
            Stage.ACTIVATION: 0,
            Stage.INPUTS: neighbour,
            Stage.SELF_INPUTS: own,
            Stage.WEIGHTS: neighbour + own,
        }[stage]
        return Work(rows=rows, nnz=nnz, dim_in=spec.dim_in, dim_out=spec.dim_out, flops=flops)

    def product_flops(self, part: Part, spec: LayerSpec, *, aggregated: bool) -> int:
        """Flops of one product of the layer's input rows with a matrix; sparse features count stored values only."""
        statistics = self.view.part
        in_features = self.index == 0
        aggregated_once = aggregated and self.schedule.order is Order.AGGREGATED_ONCE
        if in_features and (statistics.aggregated_sparse if aggregated_once else statistics.features_sparse):
            return 2 * statistics.stored_values(part, aggregated=aggregated_once) * spec.dim_out
        return 2 * statistics.rows(part) * spec.dim_in * spec.dim_out
