"""Attention and extremes over neighbours as torch operators, for layers that rely on autograd.

``halocast::attend`` and ``halocast::extreme`` with their backward passes: one block, fused, nothing kept per edge.
``torch.compile`` and ``torch.library.opcheck`` work; a second derivative is not defined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import attention_kernels, kernels
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    Edges,
    ExtremeState,
    GatGradients,
    GatLogits,
    Gatv2Gradients,
    Gatv2Logits,
    Gradients,
    Logits,
)


def attend(edges: Edges, values: Tensor, logits: Logits, *, dropout: AttentionDropout | None = None) -> Tensor:
    """Differentiable attention over neighbours: values ``[sources, heads · dim]`` to ``[targets, heads · dim]``.

    Gradients flow to the values and to all parts of the logits. Rows without neighbours are zero. Raises MisuseError on
    a mismatch.
    """
    gat = logits if isinstance(logits, GatLogits) else None
    gatv2 = logits if isinstance(logits, Gatv2Logits) else None
    out: Tensor = torch.ops.halocast.attend(
        values,
        logits.target,
        gat.source if gat else None,
        gat.edge if gat else None,
        gatv2.weight if gatv2 else None,
        logits.slope,
        _structure(edges),
        [dropout.targets, dropout.sources] if dropout else [],
        dropout.dropout.probability if dropout else 0.0,
        _stream_numbers(dropout.dropout.stream if dropout else kernels.Stream(0, 0, 0)),
    )[0]
    return out


def extreme(edges: Edges, features: Tensor, *, minimum: bool = False) -> Tensor:
    """Differentiable maximum (or minimum) over neighbours, by column: features ``[sources, dim]`` to ``[targets, dim]``.

    Neighbours that tie share the gradient evenly, as torch.scatter_reduce's amax has it. Rows without neighbours are
    zero.
    """
    value: Tensor = torch.ops.halocast.extreme(features, _structure(edges), minimum)[0]
    return value


def _structure(edges: Edges) -> list[Tensor]:
    e = edges
    return [e.begin, e.end, e.sources, e.source_begin, e.source_end, e.targets, e.entry]


def _stream_numbers(stream: kernels.Stream) -> list[int]:
    """A stream as operators take it: their integers have 63 bits, a seed has 64."""
    return [stream.seed >> 32, stream.seed & 0xFFFFFFFF, stream.epoch, stream.layer, stream.direction, stream.purpose]


def _dropout(nodes: list[Tensor], probability: float, stream: list[int]) -> AttentionDropout | None:
    if not nodes:
        return None
    high, low, *rest = stream
    return AttentionDropout(kernels.Dropout(probability, kernels.Stream(high << 32 | low, *rest)), nodes[0], nodes[1])


def _logits(target: Tensor, source: Tensor | None, edge: Tensor | None, weight: Tensor | None, slope: float) -> Logits:
    if weight is not None:
        return Gatv2Logits(target, weight, slope)
    if source is None:
        raise MisuseError("attend: give the source's half-logits (GAT) or the weight (GATv2)")
    return GatLogits(source, target, edge, slope)


def _heads(target: Tensor, weight: Tensor | None) -> int:
    return target.shape[1] if weight is None else weight.shape[0]


@torch.library.custom_op("halocast::attend", mutates_args=())
def _attend(
    values: Tensor,
    target: Tensor,
    source: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    slope: float,
    structure: list[Tensor],
    nodes: list[Tensor],
    probability: float,
    stream: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    edges, heads = Edges(*structure), _heads(target, weight)
    if heads == 0 or values.dim() != 2:
        raise MisuseError("attend: values must be a matrix [sources, heads · dim], with at least one head")
    state = AttentionState.start(edges.target_count, heads, values.shape[1] // heads, values)
    logits, dropout = _logits(target, source, edge, weight, slope), _dropout(nodes, probability, stream)
    attention_kernels.attend(edges, state, values, logits, dropout=dropout)
    return attention_kernels.finish_attention(state), state.maximum, state.sum


@_attend.register_fake
def _attend_fake(
    values: Tensor,
    target: Tensor,
    source: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    slope: float,
    structure: list[Tensor],
    nodes: list[Tensor],
    probability: float,
    stream: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    targets, heads = structure[0].shape[0], _heads(target, weight)
    maximum = values.new_empty((targets, heads))
    return values.new_empty((targets, values.shape[1])), maximum, torch.empty_like(maximum)


@torch.library.custom_op("halocast::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    out: Tensor,
    maximum: Tensor,
    total: Tensor,
    values: Tensor,
    target: Tensor,
    source: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    slope: float,
    structure: list[Tensor],
    nodes: list[Tensor],
    probability: float,
    stream: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of values, target, source, edge, weight; empty where there is no such argument."""
    logits, dropout = _logits(target, source, edge, weight, slope), _dropout(nodes, probability, stream)
    packed = attention_kernels.pack_targets(AttentionState(maximum, total, out), grad, logits)
    made: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _empty_gradients(values, target, source, edge, weight)
    for tensor in made:
        tensor.zero_()
    to_values, to_target, to_source, to_edge, to_weight = made
    gradients: Gradients
    if weight is None:
        gradients = GatGradients(to_values, to_source, to_target, None if edge is None else to_edge)
    else:
        gradients = Gatv2Gradients(to_values, to_target, to_weight)
    attention_kernels.attend_backward(Edges(*structure), packed, grad, values, logits, gradients, dropout=dropout)
    return made


@_attend_backward.register_fake
def _attend_backward_fake(
    grad: Tensor,
    out: Tensor,
    maximum: Tensor,
    total: Tensor,
    values: Tensor,
    target: Tensor,
    source: Tensor | None,
    edge: Tensor | None,
    weight: Tensor | None,
    slope: float,
    structure: list[Tensor],
    nodes: list[Tensor],
    probability: float,
    stream: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(values, target, source, edge, weight)


def _empty_gradients(
    values: Tensor, target: Tensor, source: Tensor | None, edge: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(part: Tensor | None) -> Tensor:
        return values.new_empty(0 if part is None else part.shape)

    return like(values), like(target), like(source), like(edge), like(weight)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    values, target, source, edge, weight, ctx.slope, structure, nodes, ctx.probability, ctx.stream = inputs
    ctx.nodes = len(nodes)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(*output, values, target, source, edge, weight, *nodes, *structure)


def _attention_gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    out, maximum, total, values, target, source, edge, weight, *rest = ctx.saved_tensors
    nodes, structure = rest[: ctx.nodes], rest[ctx.nodes :]
    to_values, to_target, to_source, to_edge, to_weight = torch.ops.halocast.attend_backward(
        grad.contiguous(), out, maximum, total, values, target, source, edge, weight, ctx.slope, structure, nodes,
        ctx.probability, ctx.stream,
    )  # fmt: skip
    return (
        to_values,
        to_target,
        None if source is None else to_source,
        None if edge is None else to_edge,
        None if weight is None else to_weight,
        None,
        [None] * len(structure),
        [None] * len(nodes),
        None,
        None,
    )


_attend.register_autograd(_attention_gradients, setup_context=_save_attention)


@torch.library.custom_op("halocast::extreme", mutates_args=())
def _extreme(features: Tensor, structure: list[Tensor], minimum: bool) -> tuple[Tensor, Tensor]:
    edges = Edges(*structure)
    features = kernels.check_matrix("extreme", "features", features)
    state = ExtremeState.start(edges.target_count, features.shape[1], features, minimum=minimum)
    attention_kernels.merge_extremes(edges, state, features)
    return attention_kernels.finish_extremes(state), state.ties


@_extreme.register_fake
def _extreme_fake(features: Tensor, structure: list[Tensor], minimum: bool) -> tuple[Tensor, Tensor]:
    value = features.new_empty((structure[0].shape[0], features.shape[1]))
    return value, torch.empty_like(value)


@torch.library.custom_op("halocast::extreme_backward", mutates_args=())
def _extreme_backward(
    grad: Tensor, value: Tensor, ties: Tensor, features: Tensor, structure: list[Tensor], minimum: bool
) -> Tensor:
    state = ExtremeState(value, ties, minimum)
    share = attention_kernels.share_among_ties(state, grad)
    to = features.new_empty(features.shape)
    attention_kernels.extremes_backward(Edges(*structure), state, share, features, to)
    return to


@_extreme_backward.register_fake
def _extreme_backward_fake(
    grad: Tensor, value: Tensor, ties: Tensor, features: Tensor, structure: list[Tensor], minimum: bool
) -> Tensor:
    return features.new_empty(features.shape)


def _save_extreme(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, structure, ctx.minimum = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, features, *structure)


def _extreme_gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    value, ties, features, *structure = ctx.saved_tensors
    to = torch.ops.halocast.extreme_backward(grad.contiguous(), value, ties, features, structure, ctx.minimum)
    return to, [None] * len(structure), None


_extreme.register_autograd(_extreme_gradients, setup_context=_save_extreme)
