"""The kernels of :mod:`halocast.runtime.attention_kernels` in plain torch operations, for other devices than the CPU.

Same arithmetic and the same random bits as ``cpp/``; arguments come checked. A bounded number of edges is held at a
time. Sums on CUDA may differ in their last bits from run to run where torch adds atomically.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from halocast.runtime import kernels_torch
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    Edges,
    ExtremeState,
    GatGradients,
    GatLogits,
    Gatv2Logits,
    Gradients,
    Logits,
)

# Elements of gathered rows held at once.
_GATHERED_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class _Piece:
    """Some edges, int64 ``[n]`` each."""

    entries: Tensor
    targets: Tensor
    sources: Tensor


def _pieces(edges: Edges, width: int) -> Iterator[_Piece]:
    """All edges by target, a bounded number of rows of `width` elements at a time."""
    degree = edges.end - edges.begin
    targets = torch.repeat_interleave(torch.arange(edges.target_count, device=degree.device), degree)
    before = degree.cumsum(0) - degree
    entries = torch.arange(targets.numel(), device=degree.device) + (edges.begin - before)[targets]
    step = max(1, _GATHERED_ELEMENTS // max(1, width))
    for start in range(0, entries.numel(), step):
        some = entries[start : start + step]
        yield _Piece(some, targets[start : start + step], edges.sources[some].long())


def _per_head(rows: Tensor, heads: int) -> Tensor:
    """``[n, heads · dim]`` as ``[n, heads, dim]``."""
    return rows.view(rows.shape[0], heads, rows.shape[1] // heads)


def _before_leaky(piece: _Piece, values: Tensor, logits: Logits, heads: int) -> Tensor:
    """What leaky_relu takes: ``[n, heads]``, and for GATv2 ``[n, heads, dim]``."""
    if isinstance(logits, Gatv2Logits):
        return _per_head(values[piece.sources] + logits.target[piece.targets], heads)
    total = logits.source[piece.sources] + logits.target[piece.targets]
    return total if logits.edge is None else total + logits.edge[piece.entries]


def _logit(before: Tensor, logits: Logits) -> Tensor:
    """``[n, heads]``."""
    after = leaky_relu(before, logits.slope)
    return (after * logits.weight).sum(2) if isinstance(logits, Gatv2Logits) else after


def _kept(piece: _Piece, dropout: AttentionDropout, heads: int, dtype: torch.dtype) -> Tensor:
    """Dropout's factors, ``[n, heads]``: 0 or 1 / (1 − p)."""
    per_edge = -(-heads // 4)
    blocks = dropout.sources[piece.sources][:, None] * per_edge + torch.arange(per_edge, device=piece.sources.device)
    nodes = dropout.targets[piece.targets][:, None].expand(blocks.shape)
    words = kernels_torch.philox_blocks(dropout.dropout.stream, nodes, blocks).flatten(1)[:, :heads]
    return (words >= dropout.dropout.threshold).to(dtype) * dropout.dropout.scale


@torch.no_grad()
def attend(
    edges: Edges,
    state: AttentionState,
    values: Tensor,
    logits: Logits,
    dropout: AttentionDropout | None,
) -> None:
    """See :func:`halocast.runtime.attention_kernels.attend`."""
    heads = state.sum.shape[1]
    out = _per_head(state.out, heads)
    for piece in _pieces(edges, values.shape[1]):
        logit = _logit(_before_leaky(piece, values, logits, heads), logits)
        to = piece.targets[:, None].expand(logit.shape)
        now = state.maximum.scatter_reduce(0, to, logit, "amax")
        shift = now.masked_fill(now == -torch.inf, 0.0)
        factor = (state.maximum - shift).exp().masked_fill(state.maximum == now, 1.0)
        share = (logit - shift[piece.targets]).exp()
        state.sum.mul_(factor).index_add_(0, piece.targets, share)
        if dropout is not None:
            share = share * _kept(piece, dropout, heads, share.dtype)
        rows = _per_head(values[piece.sources], heads)
        out.mul_(factor[:, :, None]).index_add_(0, piece.targets, share[:, :, None] * rows)
        state.maximum.copy_(now)


@torch.no_grad()
def finish_attention(state: AttentionState) -> None:
    """See :func:`halocast.runtime.attention_kernels.finish_attention`."""
    _per_head(state.out, state.sum.shape[1]).mul_(_inverse(state.sum)[:, :, None])


def _inverse(total: Tensor) -> Tensor:
    return total.reciprocal().masked_fill(total == 0, 0.0)


@torch.no_grad()
def pack_targets(state: AttentionState, grad: Tensor, half: Tensor | None, packed: Tensor) -> None:
    """See :func:`halocast.runtime.attention_kernels.pack_targets`; half: of the target, for GAT."""
    heads = state.sum.shape[1]
    product = _per_head(state.out * grad, heads).sum(2)
    first = torch.zeros_like(product) if half is None else half
    maximum = state.maximum.masked_fill(state.maximum == -torch.inf, 0.0)
    torch.cat([first, maximum, _inverse(state.sum), product], 1, out=packed)


@torch.no_grad()
def attend_backward(
    edges: Edges,
    packed: Tensor,
    grad: Tensor,
    values: Tensor,
    logits: Logits,
    gradients: Gradients,
    dropout: AttentionDropout | None,
    accumulate: bool,
) -> None:
    """See :func:`halocast.runtime.attention_kernels.attend_backward`; the formulas are those of cpp/attend_backward.h."""
    heads = packed.shape[1] // 4
    _, maximum, inverse, product = packed.view(packed.shape[0], 4, heads).unbind(1)
    values = _apart(values, gradients.values)
    if isinstance(logits, GatLogits) and isinstance(gradients, GatGradients):
        logits = dataclasses.replace(logits, source=_apart(logits.source, gradients.source))
    if not accumulate:
        gradients.values.zero_()
        if isinstance(gradients, GatGradients):
            gradients.source.zero_()
    for piece in _pieces(edges, values.shape[1]):
        to = piece.targets
        before = _before_leaky(piece, values, logits, heads)
        share = (_logit(before, logits) - maximum[to]).exp() * inverse[to]
        outer = _per_head(grad[to], heads)
        dot = (outer * _per_head(values[piece.sources], heads)).sum(2)
        weight = share
        if dropout is not None:
            kept = _kept(piece, dropout, heads, share.dtype)
            weight, dot = share * kept, dot * kept
        slope = share * (dot - product[to])
        gradients.values.index_add_(0, piece.sources, (weight[:, :, None] * outer).flatten(1))
        _add_logit_gradients(piece, before, slope, logits, gradients)


def _apart(features: Tensor, gradient: Tensor) -> Tensor:
    """The features, copied if their gradient is written over them."""
    return features.clone() if features.data_ptr() == gradient.data_ptr() else features


def _add_logit_gradients(piece: _Piece, before: Tensor, slope: Tensor, logits: Logits, gradients: Gradients) -> None:
    """From the gradient of each logit, ``[n, heads]``, to those of its parts."""
    derivative = torch.full_like(before, logits.slope).masked_fill_(before > 0, 1.0)
    if isinstance(gradients, GatGradients):
        inner = slope * derivative
        gradients.source.index_add_(0, piece.sources, inner)
        gradients.target.index_add_(0, piece.targets, inner)
        if gradients.edge is not None:
            gradients.edge[piece.entries] = inner
    elif isinstance(logits, Gatv2Logits):
        inner = slope[:, :, None] * derivative
        gradients.weight.add_((inner * before).sum(0))
        row = (inner * logits.weight).flatten(1)
        gradients.values.index_add_(0, piece.sources, row)
        gradients.target.index_add_(0, piece.targets, row)


@torch.no_grad()
def merge_extremes(edges: Edges, state: ExtremeState, features: Tensor) -> None:
    """See :func:`halocast.runtime.attention_kernels.merge_extremes`."""
    for piece in _pieces(edges, features.shape[1]):
        rows = features[piece.sources]
        to = piece.targets[:, None].expand(rows.shape)
        now = state.value.scatter_reduce(0, to, rows, "amin" if state.minimum else "amax")
        state.ties.masked_fill_(now != state.value, 0.0)
        state.ties.index_add_(0, piece.targets, (rows == now[piece.targets]).to(rows.dtype))
        state.ties.masked_fill_(now.isnan(), 1.0)
        state.value.copy_(now)


@torch.no_grad()
def extremes_backward(
    edges: Edges, state: ExtremeState, share: Tensor, features: Tensor, grad: Tensor, accumulate: bool
) -> None:
    """See :func:`halocast.runtime.attention_kernels.extremes_backward`."""
    features = _apart(features, grad)
    if not accumulate:
        grad.zero_()
    for piece in _pieces(edges, features.shape[1]):
        has_it = features[piece.sources] == state.value[piece.targets]
        grad.index_add_(0, piece.sources, torch.where(has_it, share[piece.targets], 0.0))
