"""Attention and extremes over neighbours that come block by block: checked wrappers, as :mod:`halocast.runtime.kernels`.

A rank's rows meet their neighbours in blocks: its own part, then one remote part after another, each forgotten before
the next comes (SAR: H. Mostafa, MLSys 2022). What is kept for a row does not grow with its neighbours:

    attention   state = AttentionState.start(...); attend(...) for each block; out = finish_attention(state)
                packed = pack_targets(...); attend_backward(...) for each block, fetched again
    extremes    state = ExtremeState.start(...); merge_extremes(...) for each block; out = finish_extremes(state)
                shares = share_among_ties(...); extremes_backward(...) for each block, fetched again

No number per edge and head is stored, except the gradients of edge logits where there are any. Formulas and their
sources stand in ``cpp/attend.h``, ``cpp/attend_backward.h`` and ``cpp/extreme.h``. float32 and float64; rows may be
strided, so that features and half-logits can be columns of one message. Results have the same bits for any number of
threads, and each time on one kind of GPU; masks of dropout are the same for any split into blocks and on any device. The
split itself changes sums by rounding only. CUDA tensors are served by the kernels in ``cpp/cuda`` if the module was built
with them, other devices by torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import attention_torch, kernels
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

MOST_HEADS = 64


def attend(
    edges: Edges,
    state: AttentionState,
    values: Tensor,
    logits: Logits,
    *,
    dropout: AttentionDropout | None = None,
) -> None:
    """Merge a block into the state. values ``[sources, heads · dim]``. Raises MisuseError on any mismatch.

    A logit of −∞ leaves its edge out; +∞ and NaN make the row NaN.
    """
    name = "attend"
    heads, dim = _check_attention(name, edges, values, logits, dropout, state.maximum)
    _check_contiguous(name, "state.maximum", state.maximum, values, (edges.target_count, heads))
    _check_contiguous(name, "state.sum", state.sum, values, (edges.target_count, heads))
    kernels.check_like(name, "state.out", state.out, values, (edges.target_count, heads * dim))
    run = _native(values, "attend_forward")
    if run is None:
        attention_torch.attend(edges, state, values, logits, dropout)
        return
    run(
        values.dtype == torch.float64, _attention(values, logits, dropout, heads, dim), _by_target(edges),
        state.maximum.data_ptr(), state.sum.data_ptr(), *kernels.place(state.out),
    )  # fmt: skip


def finish_attention(state: AttentionState) -> Tensor:
    """Divide ``state.out`` by the sums, in place, and return it; rows without neighbours become zeros."""
    name = "finish_attention"
    out = kernels.check_matrix(name, "state.out", state.out)
    targets, heads = state.sum.shape
    _check_contiguous(name, "state.sum", state.sum, out, (out.shape[0], heads))
    run = _native(out, "attend_finish")
    if run is None:
        attention_torch.finish_attention(state)
        return out
    run(
        out.dtype == torch.float64, targets, heads, out.shape[1] // heads, state.sum.data_ptr(), *kernels.place(out),
    )  # fmt: skip
    return out


def pack_targets(state: AttentionState, grad: Tensor, logits: Logits, out: Tensor | None = None) -> Tensor:
    """What the backward pass reads of each target, side by side: ``[targets, 4 · heads]`` of (target half-logit, maximum,
    1 / sum, grad · out). state: finished. grad: of the output, ``[targets, heads · dim]``. out: where to put it, contiguous.
    """
    name = "pack_targets"
    rows = kernels.check_matrix(name, "state.out", state.out)
    targets, heads = state.sum.shape
    for what in ("maximum", "sum"):
        _check_contiguous(name, f"state.{what}", getattr(state, what), rows, (rows.shape[0], heads))
    kernels.check_like(name, "grad", grad, rows, (targets, rows.shape[1]))
    half = logits.target if isinstance(logits, GatLogits) else None
    if half is not None:
        kernels.check_like(name, "logits.target", half, rows, (targets, heads))
    packed = rows.new_empty(targets, 4 * heads) if out is None else out
    _check_contiguous(name, "out", packed, rows, (targets, 4 * heads))
    run = _native(rows, "attend_pack")
    if run is None:
        attention_torch.pack_targets(state, grad, half, packed)
        return packed
    run(
        rows.dtype == torch.float64, targets, heads, rows.shape[1] // heads, *kernels.place(half),
        state.maximum.data_ptr(), state.sum.data_ptr(), *kernels.place(rows), *kernels.place(grad), packed.data_ptr(),
    )  # fmt: skip
    return packed


def attend_backward(
    edges: Edges,
    packed: Tensor,
    grad: Tensor,
    values: Tensor,
    logits: Logits,
    gradients: Gradients,
    *,
    dropout: AttentionDropout | None = None,
    accumulate: bool = False,
) -> None:
    """Gradients of one block, in one pass over it. packed: from :func:`pack_targets`, with the same ``grad``.

    values, logits and dropout: as in the block's :func:`attend`. Gradients of sources are overwritten, or added to with
    ``accumulate``; those of targets and of the weight are added to, block after block. Without ``accumulate`` the block
    can turn into its gradient: ``gradients.values`` may be the memory of ``values``, and ``gradients.source`` that of
    ``logits.source``.
    """
    name = "attend_backward"
    heads, dim = _check_attention(name, edges, values, logits, dropout, packed[:, : packed.shape[1] // 4])
    _check_contiguous(name, "packed", packed, values, (edges.target_count, 4 * heads))
    kernels.check_like(name, "grad", grad, values, (edges.target_count, heads * dim))
    _check_gradients(name, values, logits, gradients)
    _check_place(name, "gradients.values", gradients.values, values, accumulate)
    if isinstance(logits, GatLogits) and isinstance(gradients, GatGradients):
        _check_place(name, "gradients.source", gradients.source, logits.source, accumulate)
    run = _native(values, "attend_backward")
    if run is None:
        attention_torch.attend_backward(edges, packed, grad, values, logits, gradients, dropout, accumulate)
        return
    gat = gradients if isinstance(gradients, GatGradients) else None
    gatv2 = gradients if isinstance(gradients, Gatv2Gradients) else None
    workspace = None
    if _has_cuda_kernels(values):
        values = _apart_if_wide(values, gradients.values, dim)
        workspace = _weight_sums(values, edges.target_count) if gatv2 else None
    run(
        values.dtype == torch.float64, _attention(values, logits, dropout, heads, dim), _by_target(edges),
        _by_source(edges), edges.entry.data_ptr(), packed.data_ptr(), *kernels.place(grad), accumulate,
        *kernels.place(gradients.values), *kernels.place(gat.source if gat else None),
        *kernels.place(gat.target if gat else None), kernels.address(gat.edge if gat else None),
        *kernels.place(gatv2.target if gatv2 else None), kernels.address(gatv2.weight if gatv2 else None),
        kernels.address(workspace),
    )  # fmt: skip


def merge_extremes(edges: Edges, state: ExtremeState, features: Tensor) -> None:
    """Merge a block into the state. features ``[sources, dim]``. NaN wins over every number."""
    name = "merge_extremes"
    features = kernels.check_matrix(name, "features", features)
    _check_edges(name, edges, features)
    shape = (edges.target_count, features.shape[1])
    kernels.check_like(name, "state.value", state.value, features, shape)
    kernels.check_like(name, "state.ties", state.ties, features, shape)
    run = _native(features, "extreme_forward")
    if run is None:
        attention_torch.merge_extremes(edges, state, features)
        return
    run(
        features.dtype == torch.float64, _by_target(edges), state.minimum, features.shape[1], *kernels.place(features),
        *kernels.place(state.value), *kernels.place(state.ties),
    )  # fmt: skip


def finish_extremes(state: ExtremeState) -> Tensor:
    """Return ``state.value``, with zeros where a row has no neighbours."""
    return state.value.masked_fill_(_without_neighbours(state), 0.0)


def share_among_ties(state: ExtremeState, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """Each tied neighbour's share of the gradient, ``[targets, dim]``: the rule of torch.scatter_reduce's amax.

    Zero where a row has no neighbours. out: where to put it; may be ``grad``.
    """
    name = "share_among_ties"
    shape = (state.value.shape[0], state.value.shape[1])
    kernels.check_like(name, "grad", grad, state.value, shape)
    if out is not None:
        kernels.check_like(name, "out", out, state.value, shape)
    return torch.div(grad, state.ties, out=out).masked_fill_(_without_neighbours(state), 0.0)


def _without_neighbours(state: ExtremeState) -> Tensor:
    """bool ``[targets, 1]``: where a row has a neighbour, each of its columns has one that is the extreme."""
    return state.ties[:, :1] == 0


def extremes_backward(
    edges: Edges, state: ExtremeState, share: Tensor, features: Tensor, grad: Tensor, *, accumulate: bool = False
) -> None:
    """Gradient of one block's features, ``grad [sources, dim]``: overwritten, or added to with ``accumulate``.

    features: bit for bit what was merged (a neighbour has the extreme if it equals it). share: from
    :func:`share_among_ties`. Without ``accumulate``, grad may be the memory of ``features``.
    """
    name = "extremes_backward"
    features = kernels.check_matrix(name, "features", features)
    _check_edges(name, edges, features)
    shape = (edges.target_count, features.shape[1])
    kernels.check_like(name, "state.value", state.value, features, shape)
    kernels.check_like(name, "share", share, features, shape)
    kernels.check_like(name, "grad", grad, features, (features.shape[0], features.shape[1]))
    _check_place(name, "grad", grad, features, accumulate)
    run = _native(features, "extreme_backward")
    if run is None:
        attention_torch.extremes_backward(edges, state, share, features, grad, accumulate)
        return
    run(
        features.dtype == torch.float64, _by_source(edges), features.shape[1], *kernels.place(features),
        *kernels.place(state.value), *kernels.place(share), *kernels.place(grad), accumulate,
    )  # fmt: skip


def _check_edges(where: str, edges: Edges, pattern: Tensor) -> None:
    device = pattern.device
    if edges.source_count != pattern.shape[0]:
        raise MisuseError(f"{where}: the edges leave {edges.source_count} sources, the matrix has {pattern.shape[0]} rows")
    for what, dtype, count in (
        ("begin", torch.int64, edges.target_count),
        ("end", torch.int64, edges.target_count),
        ("sources", torch.int32, edges.sources.numel()),
        ("source_begin", torch.int64, edges.source_count),
        ("source_end", torch.int64, edges.source_count),
        ("targets", torch.int32, edges.targets.numel()),
    ):
        kernels.check_vector(where, f"edges.{what}", getattr(edges, what), dtype, count, device)


def _check_attention(
    where: str,
    edges: Edges,
    values: Tensor,
    logits: Logits,
    dropout: AttentionDropout | None,
    per_head: Tensor,
) -> tuple[int, int]:
    """Check what both passes read; returns (heads, dim of one). per_head: any matrix ``[targets, heads]``."""
    values = kernels.check_matrix(where, "values", values)
    _check_edges(where, edges, values)
    heads, width = per_head.shape[1], values.shape[1]
    if not 1 <= heads <= MOST_HEADS:
        raise MisuseError(f"{where}: {heads} heads; allowed: 1 to {MOST_HEADS}")
    if width == 0 or width % heads:
        raise MisuseError(
            f"{where}: values have {width} columns, which {heads} heads do not divide; give a multiple of {heads}"
        )
    if not 0.0 <= logits.slope <= 1.0:
        raise MisuseError(f"{where}: slope {logits.slope} is out of range; allowed: 0 to 1")
    if isinstance(logits, GatLogits):
        kernels.check_like(where, "logits.source", logits.source, values, (values.shape[0], heads))
        kernels.check_like(where, "logits.target", logits.target, values, (edges.target_count, heads))
        _check_contiguous(where, "logits.edge", logits.edge, values, (edges.sources.numel(), heads))
        if logits.edge is not None:
            kernels.check_vector(where, "edges.entry", edges.entry, torch.int64, edges.targets.numel(), values.device)
    else:
        kernels.check_like(where, "logits.target", logits.target, values, (edges.target_count, width))
        _check_contiguous(where, "logits.weight", logits.weight, values, (heads, width // heads))
    _check_dropout(where, edges, heads, dropout, values)
    return heads, width // heads


def _check_contiguous(where: str, what: str, tensor: Tensor | None, pattern: Tensor, shape: tuple[int, int]) -> None:
    if tensor is None:
        return
    kernels.check_like(where, what, tensor, pattern, shape)
    if not tensor.is_contiguous():
        raise MisuseError(f"{where}: {what} is not contiguous; call .contiguous() first")


def _check_dropout(where: str, edges: Edges, heads: int, dropout: AttentionDropout | None, pattern: Tensor) -> None:
    if dropout is None:
        return
    kernels.check_vector(where, "dropout.targets", dropout.targets, torch.int64, edges.target_count, pattern.device)
    kernels.check_vector(where, "dropout.sources", dropout.sources, torch.int64, edges.source_count, pattern.device)
    limit = (1 << 32) // -(-heads // 4)
    if dropout.sources.numel() and int(dropout.sources.max()) >= limit:
        raise MisuseError(
            f"{where}: dropout.sources holds node {int(dropout.sources.max())}; with {heads} heads random words reach "
            f"nodes 0 to {limit - 1}: use fewer heads"
        )


def _check_gradients(where: str, values: Tensor, logits: Logits, gradients: Gradients) -> None:
    if isinstance(logits, GatLogits) != isinstance(gradients, GatGradients):
        raise MisuseError(
            f"{where}: {type(gradients).__name__} do not fit {type(logits).__name__}; give both of one kind of attention"
        )
    kernels.check_like(where, "gradients.values", gradients.values, values, (values.shape[0], values.shape[1]))
    for what in ("source", "target"):
        pattern = getattr(logits, what, None)
        if pattern is not None:
            kernels.check_like(where, f"gradients.{what}", getattr(gradients, what), pattern, tuple(pattern.shape))
    for what in ("edge", "weight"):
        pattern, given = getattr(logits, what, None), getattr(gradients, what, None)
        if (pattern is None) != (given is None):
            raise MisuseError(f"{where}: give gradients.{what} if and only if the logits have {what}")
        if pattern is not None:
            _check_contiguous(where, f"gradients.{what}", given, pattern, tuple(pattern.shape))


def _check_place(where: str, what: str, gradient: Tensor, features: Tensor, accumulate: bool) -> None:
    """A gradient lies beside the features or wholly in their place."""
    if gradient.numel() == 0 or gradient.data_ptr() != features.data_ptr():
        return
    if accumulate:
        raise MisuseError(f"{where}: {what} is the memory of what is read, and cannot be added to; drop accumulate")
    if gradient.shape[0] > 1 and gradient.stride(0) != features.stride(0):
        raise MisuseError(
            f"{where}: {what} begins where what is read does, with rows of stride {gradient.stride(0)} instead of "
            f"{features.stride(0)}; give the very same matrix or memory of its own"
        )


def _native(tensor: Tensor, name: str) -> Callable[..., None] | None:
    """The native function that serves this tensor's device, its last argument (threads, or torch's stream) given already;
    ``None`` if plain torch operations do.
    """
    if kernels.is_native(tensor):
        function = getattr(kernels.native(), name)
        return lambda *arguments: function(*arguments, torch.get_num_threads())
    if _has_cuda_kernels(tensor):
        start = getattr(kernels.native(), f"{name}_cuda")
        return lambda *arguments: _launch(start, tensor.device, arguments)
    return None


def _has_cuda_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda and kernels.has_cuda_kernels()


def _launch(start: Callable[..., None], device: torch.device, arguments: tuple[Any, ...]) -> None:
    with torch.cuda.device(device):
        start(*arguments, torch.cuda.current_stream().cuda_stream)


def _apart_if_wide(values: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """The values, copied if the CUDA kernel cannot write their gradient over heads so wide."""
    in_place = gradient.data_ptr() == values.data_ptr()
    return values.clone() if in_place and dim > kernels.native().attend_in_place_dim else values


def _weight_sums(values: Tensor, targets: int) -> Tensor:
    """Where the CUDA kernels put the parts of the gradient of GATv2's weight."""
    return values.new_empty(-(-targets // kernels.native().attend_chunk_targets), values.shape[1])


def _attention(values: Tensor, logits: Logits, dropout: AttentionDropout | None, heads: int, dim: int) -> Any:
    """What both native passes read."""
    gat = logits if isinstance(logits, GatLogits) else None
    gatv2 = logits if isinstance(logits, Gatv2Logits) else None
    return kernels.native().Attention(
        heads, dim, logits.slope, *kernels.place(values), *kernels.place(gat.source if gat else None),
        *kernels.place(gat.target if gat else None), kernels.address(gat.edge if gat else None),
        *kernels.place(gatv2.target if gatv2 else None), kernels.address(gatv2.weight if gatv2 else None),
        *kernels.dropout_words(dropout.dropout if dropout else None),
        kernels.address(dropout.targets if dropout else None), kernels.address(dropout.sources if dropout else None),
    )  # fmt: skip


def _by_target(edges: Edges) -> Any:
    return kernels.native().BlockRows(
        edges.begin.data_ptr(), edges.end.data_ptr(), edges.sources.data_ptr(), edges.target_count
    )


def _by_source(edges: Edges) -> Any:
    return kernels.native().BlockRows(
        edges.source_begin.data_ptr(), edges.source_end.data_ptr(), edges.targets.data_ptr(), edges.source_count
    )
