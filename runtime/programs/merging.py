"""A layer whose rows meet their neighbours' messages block by block: what comes before, between and after the blocks.

Messages are rows of the layer's input, or of their product with a matrix. Each own row merges those of its neighbours into a
running result, one block of columns after another, in any order; then row-wise operations and the epilogue follow. In
backward every block is met once more. Where the blocks come from is the method's: see `LayerProgram.merge_neighbours`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halocast.runtime.programs import batchnorm
from halocast.traces.operations import Direction, Free, Keep, Merge, Operation, Part, Stage, Transform, Work

if TYPE_CHECKING:
    from halocast.runtime.programs.full import Backward, LayerProgram, Steps

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


@dataclass(frozen=True)
class Names:
    """Buffers of one pass over the blocks; an empty name stands for none."""

    messages: str
    queries: str = ""
    reduced: str = ""
    state: str = ""
    gradient: str = ""
    context: str = ""
    target: str = ""
    query_target: str = ""
    accumulate: bool = False
    """Whether the own block's gradients are added to `target`, which has values already."""


def forward(layer: LayerProgram, *, training: bool) -> Steps:
    """Project, merge all blocks, finish."""
    spec = layer.spec
    names = forward_names(layer)
    if not layer.merges_into_output:
        yield layer.keep(layer.reduced, Part.OWN, spec.reduced_dim)
    if spec.state_dim:
        yield layer.keep(layer.state, Part.OWN, spec.state_dim)
    if spec.projects:
        yield from project(layer, names.messages, names.queries)
    yield from layer.merge_neighbours(names, training=training)
    yield row_wise(layer, Stage.FINISH, FORWARD, Part.OWN, target=layer.output)
    if spec.batch_norm:
        yield from batchnorm.normalize_forward(layer, training=training)
    if spec.projects and not (training and layer.keeps_messages):
        yield from free(layer, names.messages, names.queries)
    if not training:
        yield from free(layer, "" if layer.merges_into_output else layer.reduced, layer.state if spec.state_dim else "")


def backward(layer: LayerProgram) -> Backward:
    """From the gradient of the pre-activation to those of the parameters and, above layer 0, of the inputs."""
    spec = layer.spec
    inputs = layer.input_gradient if layer.schedule.needs_input_gradient else ""
    names = backward_names(layer, inputs)
    makes_again = spec.projects and spec.refetches and not layer.keeps_messages
    if names.context and makes_again:
        yield from project(layer, names.messages, names.queries)
    if spec.finishes:
        yield layer.keep(names.gradient, Part.OWN, spec.reduced_dim)
    if names.context:
        yield layer.keep(names.context, Part.OWN, spec.context_dim)
    finish_inputs = inputs if spec.finish_reads_inputs else ""
    kept_inputs = bool(inputs) and inputs in (finish_inputs, names.query_target)
    if kept_inputs:
        yield layer.keep(inputs, layer.gradient_rows, spec.dim_in)
    if spec.projects and names.query_target:
        yield layer.keep(names.query_target, Part.OWN, spec.query_dim)
    yield row_wise(
        layer, Stage.FINISH, BACKWARD, Part.OWN, target=names.gradient, context=names.context,
        queries=names.queries if names.context else "", input_target=finish_inputs,
        query_target="" if names.query_target == finish_inputs else names.query_target,
    )  # fmt: skip
    yield from free(layer, layer.state if spec.state_dim else "", "" if names.reduced else layer.reduced)

    if names.target or spec.merge_parameters:
        if not names.context and makes_again:
            yield from project(layer, names.messages, names.queries)
        if spec.projects and names.target != names.messages:
            yield layer.keep(names.target, layer.message_gradient_rows, spec.message_dim)
        elif not spec.projects and names.target and not kept_inputs:
            yield layer.keep(names.target, layer.gradient_rows, spec.dim_in)
        yield from layer.merge_neighbours_backward(names)
    if spec.projects and spec.refetches:
        yield from free(layer, "" if names.target == names.messages else names.messages, names.queries)
    yield from free(layer, names.context, names.reduced, names.gradient if spec.finishes else "")
    if spec.projects:
        if inputs and not kept_inputs:
            yield layer.keep(inputs, layer.gradient_rows, spec.dim_in)
        yield row_wise(
            layer, Stage.PROJECT, BACKWARD, layer.projected_here, gradient=names.target, queries=names.query_target,
            target="", input_target=inputs, accumulate=kept_inputs,
        )  # fmt: skip
        yield from free(layer, names.target, names.query_target)
    return (yield from layer.reduce_gradients())


def backward_names(layer: LayerProgram, inputs: str) -> Names:
    """Buffers of the backward pass; `inputs` is the gradient of the layer's input rows, where it is needed."""
    spec, forward = layer.spec, forward_names(layer)
    messages, queries = forward.messages, forward.queries
    if spec.projects and not layer.keeps_messages:
        messages, queries = f"p{layer.index}.again", f"q{layer.index}.again" if spec.query_dim else ""
    target = f"dp{layer.index}" if spec.projects else inputs
    if spec.projects and spec.refetches and layer.view.world_size == 1:  # nobody else wants them: gradients in their place
        target = messages
    query_target = (f"dq{layer.index}" if spec.projects else inputs) if spec.query_dim else ""
    return Names(
        messages,
        queries,
        reduced=layer.reduced if spec.merge_reads_reduced else "",
        gradient=f"dr{layer.index}" if spec.finishes else layer.gradient,
        context=f"context{layer.index}" if spec.context_dim else "",
        target=target,
        query_target=query_target,
        accumulate=not spec.projects and bool(inputs) and (spec.finish_reads_inputs or target == query_target),
    )


def forward_names(layer: LayerProgram) -> Names:
    """Buffers of the forward pass."""
    spec = layer.spec
    queries = (f"q{layer.index}" if spec.projects else layer.source) if spec.query_dim else ""
    return Names(layer.exchanged, queries, layer.reduced, layer.state if spec.state_dim else "")


def project(layer: LayerProgram, messages: str, queries: str) -> Steps:
    """Make the messages (and queries) of all rows whose inputs are here."""
    spec = layer.spec
    yield layer.keep(messages, layer.message_rows, spec.message_dim)
    if queries:
        yield layer.keep(queries, Part.OWN, spec.query_dim)
    yield row_wise(layer, Stage.PROJECT, FORWARD, layer.projected_here, target=messages, queries=queries)


def free(layer: LayerProgram, *names: str) -> Steps:
    """Free those that there are."""
    for name in names:
        if name:
            yield Free(layer.index, name=name)


def merge(layer: LayerProgram, direction: Direction, names: Names, peer: int = -1, **places: Any) -> Merge:
    """The own block's messages, or those of a peer."""
    spec, part = layer.spec, layer.view.part
    if peer < 0:
        rows, nnz = part.own, part.nnz(Part.OWN, self_loop=spec.self_loop) - part.nnz_halo
    elif direction is FORWARD:
        rows, nnz = part.boundary_to[peer], part.nnz_halo_from[peer]
    else:
        rows = (part.labelled_halo_from if places.get("labelled") else part.halo_from)[peer]
        nnz = part.nnz_halo_from[peer]
    passes = 2 if direction is BACKWARD else 1
    flops = passes * nnz * spec.merge_flops
    work = Work(rows=rows, nnz=nnz, dim_in=spec.message_dim, dim_out=spec.reduced_dim, flops=flops)
    options: dict[str, Any] = {
        "messages": names.messages,
        "target": names.target,
        "accumulate": names.accumulate and peer < 0,
        **places,
    }
    return Merge(
        layer.index,
        direction,
        Part.OWN if peer < 0 else (Part.MARGINAL if direction is FORWARD else Part.HALO),
        work,
        columns=Part.OWN if peer < 0 else Part.HALO,
        peer=peer,
        reduction=spec.reduction,
        queries=names.queries,
        reduced=names.reduced,
        state=names.state,
        gradient=names.gradient,
        context=names.context,
        query_target=names.query_target,
        entries=f"{direction.value}_entries{layer.index}.{peer}" if spec.entry_dim else "",
        **options,
    )


def with_room(layer: LayerProgram, operation: Operation) -> Steps:
    """The operation, with memory for what it makes of a block's edges as long as it takes."""
    if not isinstance(operation, Merge) or not operation.entries:
        yield operation
        return
    rows = operation.work.nnz * (2 if operation.direction is BACKWARD else 1)
    dim = layer.spec.entry_dim
    work = Work(rows=rows, dim_out=dim, bytes_out=rows * dim * layer.view.value_bytes)
    yield Keep(layer.index, operation.direction, work=work, name=operation.entries)
    yield operation
    yield Free(layer.index, operation.direction, name=operation.entries)


def row_wise(
    layer: LayerProgram,
    stage: Stage,
    direction: Direction,
    part: Part,
    *,
    target: str,
    gradient: str | None = None,
    context: str = "",
    queries: str = "",
    input_target: str = "",
    query_target: str = "",
    accumulate: bool = False,
) -> Transform:
    """A `Transform` before or after the blocks."""
    spec, rows = layer.spec, layer.view.part.rows(part)
    flops = rows * spec.finish_flops
    nnz = 0
    if stage is Stage.PROJECT:
        sparse = layer.index == 0 and layer.view.part.features_sparse
        nnz = layer.view.part.stored_values(part, aggregated=False) if sparse else 0
        inputs = nnz if sparse else rows * spec.dim_in
        flops = 2 * inputs * (spec.message_dim + spec.query_dim)
        if direction is BACKWARD and input_target:
            flops *= 2
    elif direction is BACKWARD:
        flops *= 2
    return Transform(
        layer.index,
        direction,
        part,
        Work(rows=rows, nnz=nnz, dim_in=spec.dim_in, dim_out=spec.dim_out, flops=flops),
        stage=stage,
        reduction=spec.reduction,
        source=layer.source,
        aggregated=layer.reduced,
        preactivation=layer.preactivation,
        output=layer.output,
        gradient=layer.gradient if gradient is None else gradient,
        target=target,
        queries=queries,
        state=layer.state if spec.state_dim else "",
        context=context,
        input_target=input_target,
        query_target=query_target,
        accumulate=accumulate,
    )
