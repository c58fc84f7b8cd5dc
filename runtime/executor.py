"""Drives a program with torch: executes each operation for real, times it, sends its value back.

What an operation means is in `traces.operations`; this module is its meaning on tensors. Buffers are views of one
arena, planned from the programs' Keep and Free before the first epoch: no memory is allocated in an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.adjacency import Adjacency, Aggregation
from halocast.runtime.batchnorm import BatchNormalization
from halocast.runtime.clock import Clock, ThreadClock
from halocast.runtime.exchange.quantized import MessageWidths, QuantizedMessages
from halocast.runtime.exchange.separate import SeparateMessages
from halocast.runtime.exchange.transport import Flight, LostPeerError, Transport
from halocast.runtime.features import FeatureRows, SparseRows
from halocast.runtime.memory import Arena
from halocast.runtime.merging import Merging
from halocast.runtime.models.blockwise import BlockwiseLayer
from halocast.runtime.models.layers import LinearAggregation
from halocast.runtime.models.network import GradientBuckets, GraphNetwork
from halocast.runtime.operands import Operands, put
from halocast.runtime.programs.full import AGGREGATED_FEATURES, FEATURES
from halocast.runtime.programs.schedule import Order, schedule_layers
from halocast.traces.buffers import ArenaPlan, plan_arena, walk
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
    Merge,
    Operation,
    Part,
    PeerMessage,
    Program,
    Quantize,
    Stage,
    Step,
    Transform,
    Wait,
)
from halocast.traces.workload import RankView

PHASES = ("train", "evaluate")
DROPOUT_IN_LAYER = 2
"""Purpose word of the random stream that a user's layer draws from; 0 and 1 are the network's dropout and rounding."""


class Method(Protocol):
    """What the executor runs: one program an epoch, one for evaluation.

    It may have `receives_in_place` beside, as `FullGraph` does.
    """

    name: str

    def epoch(self, view: RankView) -> Program: ...

    def evaluation(self, view: RankView) -> Program: ...


class Recorder(Protocol):
    """Where spans and messages go; `traces.trace.TraceWriter` is one."""

    def span(
        self,
        phase: str,
        epoch: int,
        index: int,
        operation: Operation,
        stream: str,
        start_ns: int,
        wall_ns: int,
        cpu_ns: int,
        live_bytes: int,
        peer: int = -1,
    ) -> None: ...

    def message(
        self,
        phase: str,
        epoch: int,
        index: int,
        layer: int,
        direction: Direction,
        outgoing: PeerMessage | None,
        incoming: PeerMessage | None,
        start_ns: int,
        send_done_ns: int,
        receive_done_ns: int,
    ) -> None: ...


@dataclass(frozen=True)
class RankData:
    """Everything static a rank computes with. Row tensors follow the row space ``[central | marginal | halo]``."""

    adjacency: Adjacency
    features: Mapping[str, FeatureRows]
    """By buffer name: raw and aggregated feature rows, as far as the schedule needs them."""
    boundary: Tensor
    """int32: own rows sent to each peer, peer after peer."""
    labels: Tensor
    """[own] int64, or uint8 [own, classes]."""
    train_rows: Tensor
    """int64 own rows that are trained on."""
    nodes: int
    """Of the whole graph."""
    loss_scale: float
    """1 / number of terms of the mean loss over all ranks."""


@dataclass(frozen=True, slots=True)
class Context:
    """Which pass is running: randomness is keyed by the epoch, and evaluation draws none."""

    phase: str
    epoch: int

    @property
    def training(self) -> bool:
        return self.phase == "train"


class Executor:
    """One rank's machine for programs of one method."""

    def __init__(
        self,
        view: RankView,
        method: Method,
        network: GraphNetwork,
        optimizer: torch.optim.Optimizer,
        data: RankData,
        transport: Transport,
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
        clock: Clock | None = None,
        recorder: Recorder | None = None,
        on_operation: Callable[[], None] = lambda: None,
        messages: QuantizedMessages | None = None,
    ) -> None:
        self.view, self.method, self.network = view, method, network
        self.optimizer, self.data, self.transport = optimizer, data, transport
        self.buckets = GradientBuckets(network, dtype, device)
        self._seed, self._recorder, self._on_operation = seed, recorder, on_operation
        self._rows = data.adjacency.rows
        self._schedules = schedule_layers(view)
        self._aggregations: list[Aggregation | None] = [
            data.adjacency.aggregation(layer, dtype) if isinstance(layer, LinearAggregation) else None
            for layer in network.layers
        ]
        self.messages = messages
        """The codec's side of the method; None where rows are sent as they are."""
        self.arena_plan = self._plan_arena()
        self._arena = Arena(self.arena_plan, dtype, device)
        self._all_buffers = dict(zip(PHASES, self._arena.buffers, strict=True))
        self._buffers = self._all_buffers["train"]
        self._norm_statistics = [
            None if network.norm(index) is None else torch.empty(2, self._rows.total, dtype=dtype, device=device)
            for index in range(len(network.layers))
        ]
        self._batch_norms = {
            index: self._batch_normalization(index) for index in range(len(network.layers)) if network.batch_norm(index)
        }
        self._operands = Operands(lambda: self._buffers, data.features)
        self._merging = Merging(view, network, data.adjacency, self._operands, self.buckets, self._layer_stream)
        self._tapes: dict[tuple[int, Part], tuple[Tensor, Tensor]] = {}
        self._incoming_rows: dict[str, dict[int, int]] = {}
        self._clock = clock or ThreadClock()
        self._context = Context("train", 0)
        self._live_bytes = 0
        self._handlers: dict[type[Operation], Callable[[Any], Any]] = {
            Aggregate: self._aggregate,
            Transform: self._transform,
            Merge: self._merging.merge,
            Apply: self._apply,
            Quantize: self._gather if messages is None else self._encode,
            Dequantize: self._accumulate if messages is None else self._decode,
            Exchange: self._exchange,
            AllReduce: self._all_reduce,
            Wait: self._wait,
            Loss: self._loss,
            Step: self._step,
        }
        self._stages: dict[Stage, Callable[[Transform, slice], None]] = {
            Stage.PROJECT: self._project,
            Stage.FINISH: self._finish,
            Stage.WHOLE: self._whole,
            Stage.ACTIVATION: self._activation_backward,
            Stage.INPUTS: self._inputs_backward,
            Stage.SELF_INPUTS: self._self_inputs_backward,
            Stage.WEIGHTS: self._weights_backward,
            Stage.SUMS: self._sums,
            Stage.SQUARES: self._squares,
            Stage.NORMALIZE: self._normalize,
        }

    def _plan_arena(self) -> ArenaPlan:
        return plan_arena([walk(self.method.epoch(self.view)), walk(self.method.evaluation(self.view))])

    def install_widths(self, widths: MessageWidths) -> None:
        """Send and receive at other widths from the next epoch on; all ranks install what fits together.

        Call it between two epochs. Nothing but the wire buffers changes: the arena is laid out anew, in the memory it has
        where that is enough. Raises MisuseError where the method sends rows as they are, and for widths that do not fit.
        """
        if self.messages is None:
            raise MisuseError(
                f"method {self.method.name} sends rows as they are; widths are for method adaqp, or sar with method.bits"
            )
        self.messages.install(widths)
        self.view = replace(self.view, bits=self.messages.assignment)
        self.arena_plan = self._plan_arena()
        self._arena.install(self.arena_plan)
        self._all_buffers = dict(zip(PHASES, self._arena.buffers, strict=True))
        self._buffers = self._all_buffers[self._context.phase]

    # -- running a program --------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int) -> float:
        """One epoch; returns the mean training loss over all ranks."""
        with torch.no_grad():
            self._run(self.method.epoch(self.view), Context("train", epoch))
        return float(self.buckets.loss)

    def probe_epoch(self, epoch: int) -> None:
        """An epoch that is not learnt from and not recorded: all it leaves is the gradient in `buckets`."""
        with torch.no_grad():
            self._run(_without_step(self.method.epoch(self.view)), Context("train", epoch), recorded=False)

    def evaluate(self, epoch: int) -> Tensor:
        """The logits of the own rows [own, classes]; valid until the next run."""
        with torch.no_grad():
            self._run(self.method.evaluation(self.view), Context("evaluate", epoch))
        return self._buffers["logits"]

    def _run(self, program: Program, context: Context, *, recorded: bool = True) -> None:
        self._context, self._buffers, self._live_bytes = context, self._all_buffers[context.phase], 0
        self._tapes.clear()
        stamped: list[tuple[int, Operation, Any, Any, int]] = []
        flights: list[tuple[int, Operation, Flight]] = []
        value: Any = None
        index = 0
        stamp, settle = self._clock.stamp, self._clock.settle
        while True:
            try:
                operation = program.send(value)
            except StopIteration:
                break
            kind = type(operation)
            if kind is Keep or kind is Free:
                self._live_bytes += self._change_of_live_bytes(operation)
                value = None
                continue
            before = stamp()
            try:
                value = self._handlers[kind](operation)
            except LostPeerError as error:
                where = f"layer {operation.layer} {operation.direction}"
                raise LostPeerError(f"{error} ({where}, epoch {context.epoch})") from error
            stamped.append((index, operation, before, stamp(), self._live_bytes))
            if kind is Exchange or kind is AllReduce:
                flights.append((index, operation, value))
            index += 1
            self._on_operation()
        if recorded and self._recorder is not None:
            settle()
            self._record(stamped, flights)
            self._clock.next_epoch()

    def _change_of_live_bytes(self, operation: Operation) -> int:
        if isinstance(operation, Keep):
            return operation.work.bytes_out
        assert isinstance(operation, Free)
        buffer = self._buffers[operation.name]
        return -buffer.numel() * buffer.element_size()

    def _record(
        self, stamped: list[tuple[int, Operation, Any, Any, int]], flights: list[tuple[int, Operation, Flight]]
    ) -> None:
        assert self._recorder is not None
        phase, epoch = self._context.phase, self._context.epoch
        starts: dict[int, int] = {}
        for index, operation, before, after, live_bytes in stamped:
            timing = self._clock.timing(before, after)
            starts[index] = timing.start_ns
            self._recorder.span(
                phase, epoch, index, operation, "compute", *timing, live_bytes, peer=getattr(operation, "peer", -1)
            )
        for index, operation, flight in flights:
            start = starts[index]
            done = max(flight.sent_ns(), flight.received_ns(), start)
            self._recorder.span(phase, epoch, index, operation, "communication", start, done - start, 0, 0)
            if isinstance(operation, Exchange):
                self._record_messages(index, operation, flight, start)

    def _record_messages(self, index: int, operation: Exchange, flight: Flight, start_ns: int) -> None:
        assert self._recorder is not None
        outgoing = {message.peer: message for message in operation.outgoing}
        incoming = {message.peer: message for message in operation.incoming}
        for peer in sorted({*outgoing, *incoming}):
            self._recorder.message(
                self._context.phase,
                self._context.epoch,
                index,
                operation.layer,
                operation.direction,
                outgoing.get(peer),
                incoming.get(peer),
                start_ns,
                flight.sent_ns(peer) if peer in outgoing else 0,
                flight.received_ns(peer) if peer in incoming else 0,
            )

    # -- aggregation --------------------------------------------------------------------------------------------

    def _aggregate(self, operation: Aggregate) -> None:
        aggregation = self._aggregations[operation.layer]
        assert aggregation is not None
        source, target = self._operands.dense(operation.source), self._buffers[operation.target]
        if operation.columns is Part.HALO:
            rows = self._rows_of_peer(source, operation.peer, in_place=operation.in_place)
            aggregation.forward_from_peer(operation.peer, rows, target)
        elif operation.peer >= 0:
            aggregation.backward_to_peer(operation.peer, source, target)
        elif operation.direction is Direction.FORWARD:
            aggregation.forward(operation.part, source, target, own_columns=operation.columns is Part.OWN)
        else:
            aggregation.backward(operation.part, source, target)

    def _rows_of_peer(self, buffer: Tensor, peer: int, *, in_place: bool) -> Tensor:
        """One peer's halo rows: a part of a buffer of all rows, or a block of their own."""
        return buffer[self.data.adjacency.halo_of(peer)] if in_place else buffer

    # -- dense transforms ---------------------------------------------------------------------------------------

    def _transform(self, operation: Transform) -> None:
        self._stages[operation.stage](operation, self._rows.slice(operation.part))

    def _linear(self, index: int) -> LinearAggregation:
        layer = self.network.layers[index]
        assert isinstance(layer, LinearAggregation)
        return layer

    def _project(self, operation: Transform, rows: slice) -> None:
        if self._merging.has(operation.layer):
            forward = operation.direction is Direction.FORWARD
            (self._merging.project if forward else self._merging.project_backward)(operation, rows)
            return
        self._operands.product(
            operation.source, rows, self._linear(operation.layer).weight, self._buffers[operation.target][rows]
        )

    def _whole(self, operation: Transform, rows: slice) -> None:
        z = self._buffers[operation.preactivation][rows]
        self._operands.product(operation.aggregated, rows, self._linear(operation.layer).weight, z)
        self._finish(operation, rows)

    def _finish(self, operation: Transform, rows: slice) -> None:
        if operation.direction is Direction.BACKWARD:
            self._merging.finish_backward(operation, has_epilogue=self._has_epilogue(operation.layer))
            return
        z = self._buffers[operation.preactivation][rows]
        layer, spec = self.network.layers[operation.layer], self.view.layers[operation.layer]
        if isinstance(layer, BlockwiseLayer):
            self._merging.finish(operation)
        elif isinstance(layer, LinearAggregation) and layer.self_weight is not None:
            self._operands.product(operation.source, rows, layer.self_weight, z, accumulate=True)
        if spec.residual:
            z.add_(self._buffers[operation.source][rows])
        if spec.batch_norm:  # it needs all rows of all ranks: see `_normalize`
            return
        kernels.epilogue_forward(
            z,
            self._buffers[operation.output][rows],
            bias=self._bias(operation.layer),
            normalization=self._normalization(operation.layer, rows),
            relu=spec.activation,
            **self._dropout(operation.layer, rows),
        )

    def _bias(self, index: int) -> nn.Parameter | None:
        """What the epilogue adds; a layer that is run whole adds its own."""
        layer = self.network.layers[index]
        return layer.bias if isinstance(layer, LinearAggregation | BlockwiseLayer) else None

    def _has_epilogue(self, index: int) -> bool:
        return index < len(self.network.layers) - 1 and self.view.layers[index].has_epilogue

    def _normalization(self, index: int, rows: slice) -> kernels.Normalization | None:
        norm, statistics = self.network.norm(index), self._norm_statistics[index]
        if norm is None or statistics is None:
            return None
        mean, rstd = statistics
        return kernels.Normalization(norm.weight, norm.bias, mean[rows], rstd[rows], norm.eps)

    def _layer_stream(self, index: int) -> kernels.Stream | None:
        """Random numbers inside a layer; None in evaluation."""
        if not self._context.training:
            return None
        return kernels.Stream(self._seed, self._context.epoch, index, purpose=DROPOUT_IN_LAYER)

    def _dropout(self, index: int, rows: slice) -> dict[str, Any]:
        probability = self.view.layers[index].dropout
        if probability == 0.0 or not self._context.training:
            return {}
        stream = kernels.Stream(self._seed, self._context.epoch, index)
        return {"dropout": kernels.Dropout(probability, stream), "nodes": self.data.adjacency.global_ids[rows]}

    def _activation_backward(self, operation: Transform, rows: slice) -> None:
        index = operation.layer
        spec, norm, bias = self.view.layers[index], self.network.norm(index), self._bias(index)
        if (batch_norm := self.network.batch_norm(index)) is not None:
            bias = batch_norm.bias  # the last thing added; what comes before it is for `_normalize`
        normalization = self._normalization(index, rows)
        kernels.epilogue_backward(
            self._buffers[operation.gradient][rows],
            out=self._buffers[operation.output][rows] if spec.activation else None,
            z=None if normalization is None else self._buffers[operation.preactivation][rows],
            bias=bias,
            normalization=normalization,
            relu=spec.activation,
            gradients=kernels.EpilogueGradients(
                bias=self.buckets[bias] if bias is not None and bias.requires_grad else None,
                gamma=None if norm is None else self.buckets[norm.weight],
                beta=None if norm is None else self.buckets[norm.bias],
                accumulate=False,
            ),
            **self._dropout(index, rows),
        )

    # -- batch normalization ------------------------------------------------------------------------------------

    def _batch_normalization(self, index: int) -> BatchNormalization:
        norm = self.network.batch_norm(index)
        assert norm is not None
        return BatchNormalization(norm, self._bias(index), nodes=self.data.nodes, own=self._rows.own)

    def _sums(self, operation: Transform, rows: slice) -> None:
        batch_norm, z = self._batch_norms[operation.layer], self._buffers[operation.preactivation][rows]
        if operation.direction is Direction.FORWARD:
            batch_norm.sum_rows(z, self._buffers[operation.target])
            return
        norm, bias = self.network.batch_norm(operation.layer), self._bias(operation.layer)
        assert norm is not None
        gradient, sums = self._buffers[operation.gradient][rows], self._buffers[operation.target]
        batch_norm.sum_gradients(gradient, z, self.buckets[norm.bias], self.buckets[norm.weight], sums)
        if bias is not None:
            self.buckets[bias].zero_()

    def _squares(self, operation: Transform, rows: slice) -> None:
        total, moments = self._buffers[operation.source], self._buffers[operation.target]
        self._batch_norms[operation.layer].sum_squares(self._buffers[operation.preactivation][rows], total, moments)

    def _normalize(self, operation: Transform, rows: slice) -> None:
        index = operation.layer
        batch_norm, z = self._batch_norms[index], self._buffers[operation.preactivation][rows]
        if operation.direction is Direction.BACKWARD:
            batch_norm.propagate(self._buffers[operation.gradient][rows], z, self._buffers[operation.source])
            return
        out = self._buffers[operation.output][rows]
        if self._context.training:
            bias = batch_norm.normalize(z, out, self._buffers[operation.source])
        else:
            bias = batch_norm.normalize_by_running_statistics(z, out)
        relu = self.view.layers[index].activation
        kernels.epilogue_forward(out, out, bias=bias, relu=relu, **self._dropout(index, rows))

    # -- backward of the matrix products ------------------------------------------------------------------------

    def _inputs_backward(self, operation: Transform, rows: slice) -> None:
        weight = self._linear(operation.layer).weight
        torch.mm(self._buffers[operation.gradient][rows], weight.t(), out=self._buffers[operation.target][rows])

    def _self_inputs_backward(self, operation: Transform, rows: slice) -> None:
        gradient, target = self._buffers[operation.gradient][rows], self._buffers[operation.target][rows]
        layer = self.network.layers[operation.layer]
        if isinstance(layer, LinearAggregation) and layer.self_weight is not None:
            target.addmm_(gradient, layer.self_weight.t())
        if self.view.layers[operation.layer].residual:
            target.add_(gradient)

    def _weights_backward(self, operation: Transform, rows: slice) -> None:
        """Matrices' gradients; transform-first layers pair their inputs with the gradient of the projected rows."""
        index = operation.layer
        layer = self._linear(index)
        transform_first = self._schedules[index].order is Order.TRANSFORM_FIRST
        left = operation.source if transform_first else operation.aggregated
        self._operands.transposed_product(left, rows, self._buffers[operation.gradient][rows], self.buckets[layer.weight])
        output_gradient = self._buffers[f"g{index + 1}"] if transform_first else self._buffers[operation.gradient]
        if layer.self_weight is not None:
            own = self._rows.slice(Part.OWN) if transform_first else rows
            self._operands.transposed_product(operation.source, own, output_gradient[own], self.buckets[layer.self_weight])
        spec = self.view.layers[index]
        if not spec.has_epilogue:
            kernels.column_sum(output_gradient[: self._rows.own], self.buckets[layer.bias])

    # -- opaque layers ------------------------------------------------------------------------------------------

    def _apply(self, operation: Apply) -> None:
        if operation.direction is Direction.FORWARD:
            self._apply_forward(operation)
        else:
            self._apply_backward(operation)

    def _apply_forward(self, operation: Apply) -> None:
        layer, training = self.network.layers[operation.layer], self._context.training
        layer.train(training)
        stream = kernels.Stream(self._seed, self._context.epoch, operation.layer, purpose=DROPOUT_IN_LAYER)
        block = self.data.adjacency.block(operation.part, stream if training else None)
        with torch.set_grad_enabled(training):
            # `.data`, not `.detach()`: views of the arena share one version counter, which every later write moves on;
            # these rows themselves stay as they are until the layer's backward pass has read them
            inputs = self._operands.dense(operation.source)[: block.sources].data
            inputs.requires_grad_(training and self._schedules[operation.layer].needs_input_gradient)
            output = layer(block, inputs)
        self._buffers[operation.target][self._rows.slice(operation.part)] = output.detach()
        if training:
            self._tapes[operation.layer, operation.part] = (inputs, output)

    def _apply_backward(self, operation: Apply) -> None:
        inputs, output = self._tapes.pop((operation.layer, operation.part))
        parameters = [each for each in self.network.layers[operation.layer].parameters() if each.requires_grad]
        wanted = [*parameters, inputs] if inputs.requires_grad else parameters
        gradient = self._buffers[operation.source][self._rows.slice(operation.part)]
        gradients = torch.autograd.grad(output, wanted, gradient, allow_unused=True) if wanted else ()
        first_call = operation.part is not Part.CENTRAL  # MARGINAL runs before CENTRAL, OWN runs alone
        for parameter, value in zip(parameters, gradients, strict=False):
            put(self.buckets[parameter], value, overwrite=first_call)
        if inputs.requires_grad:
            put(self._buffers[operation.target][: inputs.shape[0]], gradients[-1], overwrite=first_call)

    # -- communication ------------------------------------------------------------------------------------------

    def _gather(self, operation: Quantize) -> None:
        rows = self.data.boundary
        if operation.peer >= 0:  # fetched again, only the first of a peer's rows may be wanted
            rows = rows[self._boundary_to(operation.peer)][: operation.work.rows]
        kernels.gather_rows(self._operands.dense(operation.source), rows, self._buffers[operation.target])

    def _boundary_to(self, peer: int) -> slice:
        """Where the rows sent to one peer are among all boundary rows."""
        first = sum(self.view.part.boundary_to[:peer])
        return slice(first, first + self.view.part.boundary_to[peer])

    def _accumulate(self, operation: Dequantize) -> None:
        """Add one peer's gradient rows to the first `rows` of what was sent to it."""
        peer, count = operation.peer, operation.work.rows
        first = self._boundary_to(peer).start
        wire = self._wire_slices(self._buffers[operation.source], self._incoming_rows[operation.source])[peer]
        kernels.scatter_add_rows(wire, self.data.boundary[first : first + count], self._buffers[operation.target])

    def _encode(self, operation: Quantize) -> None:
        if not self._context.training:  # evaluation sends rows as they are
            self._gather(operation)
            return
        assert self.messages is not None
        source, wire = self._operands.dense(operation.source), self._buffers[operation.target]
        where = operation.layer, operation.direction, self._context.epoch
        if isinstance(self.messages, SeparateMessages):
            self.messages.pack_for(operation.peer, *where, source, operation.work.rows, wire)
        else:
            self.messages.pack(*where, source, wire)

    def _decode(self, operation: Dequantize) -> None:
        assert self.messages is not None
        wire, target = self._buffers[operation.source], self._operands.dense(operation.target)
        where = operation.layer, operation.direction, self._context.epoch
        if isinstance(self.messages, SeparateMessages):
            self.messages.unpack_from(operation.peer, *where, wire, operation.work.rows, target)
        else:
            self.messages.unpack(*where, operation.peer, wire, target)

    def _exchange(self, operation: Exchange) -> Flight:
        """Forward: wire buffer → halo rows. Backward: halo rows → wire buffer. Encoded: wire → wire. Halo rows are in place, or
        a block of one peer's alone.
        """
        source, target = self._operands.dense(operation.source), self._operands.dense(operation.target)
        if self.messages is not None and self._context.training:
            outgoing, incoming = (
                self._wire_slices(wire, {message.peer: message.bytes for message in messages})
                for wire, messages in ((source, operation.outgoing), (target, operation.incoming))
            )
        elif operation.direction is Direction.FORWARD:
            outgoing = self._wire_slices(source, {message.peer: message.rows for message in operation.outgoing})
            incoming = self._peer_rows(target, operation.incoming, in_place=operation.in_place)
        else:
            outgoing = self._peer_rows(source, operation.outgoing, in_place=operation.in_place)
            rows = {message.peer: message.rows for message in operation.incoming}
            self._incoming_rows[operation.target] = rows
            incoming = self._wire_slices(target, rows)
        return self.transport.start_exchange(list(outgoing.items()), list(incoming.items()))

    def _wire_slices(self, wire: Tensor, rows: Mapping[int, int]) -> dict[int, Tensor]:
        """Each peer's rows (or bytes) of a wire buffer, peer after peer."""
        slices, start = {}, 0
        for peer in sorted(rows):
            slices[peer] = wire[start : start + rows[peer]]
            start += rows[peer]
        return slices

    def _peer_rows(self, buffer: Tensor, messages: tuple[PeerMessage, ...], *, in_place: bool) -> dict[int, Tensor]:
        """The first `message.rows` of each peer's halo rows."""
        return {each.peer: self._rows_of_peer(buffer, each.peer, in_place=in_place)[: each.rows] for each in messages}

    def _all_reduce(self, operation: AllReduce) -> Flight:
        values = self._buffers[operation.source] if operation.source else self.buckets.flat[operation.layer]
        return self.transport.start_all_reduce(values)

    def _wait(self, operation: Wait) -> None:
        operation.flight.wait(operation.peer)

    # -- loss and step ------------------------------------------------------------------------------------------

    def _loss(self, operation: Loss) -> None:
        logits, gradient = self._buffers[operation.source], self._buffers[operation.target]
        measure = kernels.cross_entropy if self.data.labels.dim() == 1 else kernels.bce
        total = measure(logits, self.data.labels, self.data.train_rows, gradient, scale=self.data.loss_scale)
        self.buckets.loss.fill_(total * self.data.loss_scale)

    def _step(self, operation: Step) -> None:
        for batch_norm in self._batch_norms.values():
            batch_norm.update_running_statistics()
        self.optimizer.step()


def _without_step(program: Program) -> Program:
    """The same operations but for the optimiser's step."""
    value: Any = None
    while True:
        try:
            operation = program.send(value)
        except StopIteration:
            return
        value = None if isinstance(operation, Step) else (yield operation)


def with_aggregated_statistics(view: RankView, features: Mapping[str, FeatureRows]) -> RankView:
    """The view with what only the prepared features know: whether ÂX is sparse, and how many values it stores."""
    rows = features.get(AGGREGATED_FEATURES)
    if not isinstance(rows, SparseRows):
        return view
    central, own = view.part.central, view.part.own
    stored = (rows.end - rows.begin).cpu()
    counts = (int(stored[:central].sum()), int(stored[central:own].sum()), int(stored[own:].sum()))
    return replace(view, part=replace(view.part, aggregated_sparse=True, aggregated_nnz=counts))


__all__ = ["AGGREGATED_FEATURES", "FEATURES", "Context", "Executor", "RankData", "with_aggregated_statistics"]
