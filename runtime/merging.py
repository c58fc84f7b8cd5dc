"""Layers by blocks on tensors: the executor's side of `programs.merging`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from halocast.runtime import kernels
from halocast.runtime.adjacency import Adjacency
from halocast.runtime.block_edges import BlockEdges
from halocast.runtime.models.blockwise import NOTHING, BlockwiseLayer, MergingRows
from halocast.runtime.models.network import GradientBuckets, GraphNetwork
from halocast.runtime.operands import Operands, put
from halocast.traces.operations import Direction, Merge, Part, Transform
from halocast.traces.workload import LayerSpec, RankView

PIECE_VALUES = 1 << 19
"""Values of a row-wise operation that autograd holds at a time."""


@dataclass
class Merging:
    """What one rank's layers by blocks compute with."""

    view: RankView
    network: GraphNetwork
    adjacency: Adjacency
    operands: Operands
    buckets: GradientBuckets
    stream: Callable[[int], kernels.Stream | None]
    """The random numbers of a layer; None in evaluation."""

    def has(self, index: int) -> bool:
        """Whether the layer is one by blocks."""
        return self.view.layers[index].is_blockwise

    def layer(self, index: int) -> BlockwiseLayer:
        layer = self.network.layers[index]
        assert isinstance(layer, BlockwiseLayer)
        return layer

    # -- before the blocks --------------------------------------------------------------------------------------

    def project(self, operation: Transform, rows: slice) -> None:
        """Messages of `rows` and queries of own rows."""
        matrix, width = self._projection(operation.layer)
        self.operands.product(operation.source, rows, matrix[:, :width], self.operands.dense(operation.target)[rows])
        if operation.queries:
            own = self.adjacency.rows.slice(Part.OWN)
            self.operands.product(operation.source, own, matrix[:, width:], self.operands.dense(operation.queries)[own])

    def project_backward(self, operation: Transform, rows: slice) -> None:
        """From the messages' and queries' gradients to the parameters' and, where asked for, the inputs'."""
        gradient = self.operands.dense(operation.gradient)[rows]
        own = self.adjacency.rows.slice(Part.OWN)
        queries = self.operands.dense(operation.queries)[own] if operation.queries else None
        with torch.enable_grad():
            matrix = self.layer(operation.layer).projection()
        assert matrix is not None
        width = gradient.shape[1]
        found = matrix.new_empty(matrix.shape[0], width)
        self.operands.transposed_product(operation.source, rows, gradient, found)
        if queries is not None:
            of_queries = matrix.new_empty(matrix.shape[0], queries.shape[1])
            self.operands.transposed_product(operation.source, own, queries, of_queries)
            found = torch.cat([found, of_queries], dim=1)
        self._add_parameter_gradients(operation.layer, matrix, found)
        if not operation.input_target:
            return
        target, values = self.operands.dense(operation.input_target)[own], matrix.detach()
        if operation.accumulate:
            target.addmm_(gradient[own], values[:, :width].t())
        else:
            torch.mm(gradient[own], values[:, :width].t(), out=target)
        if queries is not None:
            target.addmm_(queries, values[:, width:].t())

    def _projection(self, index: int) -> tuple[Tensor, int]:
        matrix = self.layer(index).projection()
        assert matrix is not None
        return matrix, self.view.layers[index].message_dim

    def _add_parameter_gradients(self, index: int, output: Tensor, gradient: Tensor) -> None:
        parameters = self._parameters(index)
        self._add(parameters, torch.autograd.grad(output, parameters, gradient, allow_unused=True))

    def _add(self, parameters: list[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        for parameter, value in zip(parameters, gradients, strict=True):
            put(self.buckets[parameter], value, overwrite=False)

    def _parameters(self, index: int) -> list[nn.Parameter]:
        """All that autograd differentiates: the bias belongs to the epilogue."""
        layer = self.layer(index)
        return [each for each in layer.parameters() if each.requires_grad and each is not layer.bias]

    # -- the blocks ---------------------------------------------------------------------------------------------

    def merge(self, operation: Merge) -> None:
        """Merge one block, or meet it again going backward."""
        layer, block = self.layer(operation.layer), self._block(operation)
        rows, stream = self._rows(operation), self.stream(operation.layer)
        messages = self._block_rows(operation.messages, operation) if operation.messages else None
        if operation.direction is Direction.FORWARD:
            assert messages is not None
            if operation.peer < 0:
                layer.start(rows)
            layer.merge(block, messages, rows, stream)
            return
        layer.merge_backward(
            block,
            messages,
            rows,
            self._block_rows(operation.target, operation) if operation.target else None,
            stream,
            accumulate=operation.accumulate,
            parameter_gradient=self.buckets.__getitem__,
        )

    def _block(self, operation: Merge) -> BlockEdges:
        if operation.peer < 0:
            return self.adjacency.own_edges(self_loops=self.view.layers[operation.layer].self_loop)
        return self.adjacency.peer_edges(operation.peer, operation.work.rows if operation.labelled else None)

    def _block_rows(self, name: str, operation: Merge) -> Tensor:
        """The block's rows of a buffer of all rows, or of one of its own."""
        buffer = self.operands.dense(name)
        if operation.peer < 0:
            return buffer[self.adjacency.rows.slice(Part.OWN)]
        rows = buffer[self.adjacency.halo_of(operation.peer)] if operation.in_place else buffer
        return rows[: operation.work.rows] if operation.labelled else rows

    def _rows(self, operation: Merge | Transform) -> MergingRows:
        own = self.adjacency.rows.own

        def rows(name: str) -> Tensor:
            return self.operands.dense(name)[:own] if name else NOTHING

        reduced, gradient = (
            (operation.reduced, operation.gradient)
            if isinstance(operation, Merge)
            else (operation.aggregated, operation.target)
        )
        return MergingRows(
            reduced=rows(reduced),
            state=self.operands.dense(operation.state).view(-1) if operation.state else NOTHING,
            queries=rows(operation.queries),
            degrees=self.adjacency.degrees[:own],
            gradient=rows(gradient),
            context=rows(operation.context),
            query_gradient=rows(operation.query_target),
            entries=self.operands.dense(operation.entries) if isinstance(operation, Merge) and operation.entries else NOTHING,
        )

    # -- after the blocks ---------------------------------------------------------------------------------------

    def finish(self, operation: Transform) -> None:
        """Conclude the merged rows and do what the layer does to them, up to the pre-activation."""
        layer, spec = self.layer(operation.layer), self.view.layers[operation.layer]
        rows = self._rows(operation)
        layer.conclude(rows)
        if not spec.finishes:
            return
        z = self.operands.dense(operation.preactivation)[: len(rows.reduced)]
        for piece in _pieces(rows.reduced, _finished_values(spec)):
            z[piece] = layer.finish(self._inputs(operation, piece), rows.reduced[piece])

    def finish_backward(self, operation: Transform, *, has_epilogue: bool) -> None:
        """From the pre-activation's gradient to that of the merged rows, of the inputs and of parameters; get ready for blocks.

        The layer's parameter gradients start here from zero.
        """
        layer, spec = self.layer(operation.layer), self.view.layers[operation.layer]
        own = self.adjacency.rows.own
        gradient = self.operands.dense(operation.gradient)[:own]
        parameters = self._parameters(operation.layer)
        for parameter in parameters:
            self.buckets[parameter].zero_()
        if layer.bias is not None and layer.bias.requires_grad and not has_epilogue:
            kernels.column_sum(gradient, self.buckets[layer.bias])
        if operation.query_target:
            self.operands.dense(operation.query_target)[:own].zero_()
        if spec.finishes:
            for piece in _pieces(gradient, _finished_values(spec)):
                self._differentiate_finish(operation, piece, gradient[piece], parameters)
        activated = operation.aggregated == operation.output
        layer.prepare_backward(replace(self._rows(operation), kept_share=1.0 - spec.dropout if activated else None))

    def _differentiate_finish(
        self, operation: Transform, piece: slice, gradient: Tensor, parameters: list[nn.Parameter]
    ) -> None:
        spec = self.view.layers[operation.layer]
        with torch.enable_grad():
            reduced = self.operands.dense(operation.aggregated)[piece].data.requires_grad_()
            inputs = self._inputs(operation, piece)
            wanted = [reduced]
            if operation.input_target and inputs is not None:
                wanted.append(inputs.requires_grad_())
            output = self.layer(operation.layer).finish(inputs, reduced)
        found = torch.autograd.grad(output, [*wanted, *parameters], gradient, allow_unused=True)
        put(self.operands.dense(operation.target)[piece], found[0], overwrite=True)
        if operation.input_target:
            target = self.operands.dense(operation.input_target)[piece]
            put(target, found[1], overwrite=True)
            if spec.residual:
                target.add_(gradient)
        self._add(parameters, found[len(wanted) :])

    def _inputs(self, operation: Transform, rows: slice) -> Tensor | None:
        """Input rows by themselves, apart from the arena: `.data`, since its views share one version counter."""
        if not self.view.layers[operation.layer].finish_reads_inputs:
            return None
        return self.operands.dense(operation.source)[rows].data


def _pieces(rows: Tensor, width: int) -> Iterator[slice]:
    step = max(1, PIECE_VALUES // max(width, 1))
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


def _finished_values(spec: LayerSpec) -> int:
    """Values of one row that `finish` holds at a time, or so."""
    return max(spec.dim_in, spec.reduced_dim) + spec.dim_out
