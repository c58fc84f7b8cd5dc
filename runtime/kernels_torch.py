"""The kernels in plain torch operations, for devices that the native module does not serve (CUDA).

Same arithmetic and the same random bits as ``cpp/``; arguments come checked from :mod:`halocast.runtime.kernels`.
Outputs are written in place. Sums on CUDA may differ in their last bits from run to run where torch adds atomically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from halocast.runtime.kernels import Dropout, EpilogueGradients, Normalization, Stream

# Gathered neighbour rows held at once, in elements.
_GATHERED_ELEMENTS = 1 << 26

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


@torch.no_grad()
def aggregate(
    begin: Tensor,
    end: Tensor,
    indices: Tensor,
    features: Tensor,
    out: Tensor,
    values: Tensor | None,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    rows: tuple[int, int],
    accumulate: bool,
) -> None:
    """See :func:`halocast.runtime.kernels.aggregate`: gathers and adds a bounded number of edges at a time."""
    first, last = rows
    degree = end[first:last] - begin[first:last]
    target = out[first:last]
    if not accumulate:
        target.zero_()
    before = degree.cumsum(0) - degree
    destination = torch.repeat_interleave(torch.arange(last - first, device=degree.device), degree)
    edges = torch.arange(destination.numel(), device=degree.device) + (begin[first:last] - before)[destination]
    step = max(1, _GATHERED_ELEMENTS // max(1, features.shape[1]))
    for start in range(0, edges.numel(), step):
        part, to = edges[start : start + step], destination[start : start + step]
        source = indices[part]
        message = features[source]
        if column_scale is not None:
            message *= column_scale[source, None]
        if values is not None:
            message *= values[part, None]
        if row_scale is not None:
            message *= row_scale[first:last][to, None]
        target.index_add_(0, to, message)


def philox(stream: Stream, nodes: Tensor, dim: int) -> Tensor:
    """See :func:`halocast.runtime.kernels.philox`. 32-bit words live in int64; products go in 16-bit halves to fit."""
    blocks = torch.arange((dim + 3) // 4, device=nodes.device)
    shape = (nodes.numel(), blocks.numel())
    state = [
        blocks.expand(shape),
        (nodes & _WORD)[:, None].expand(shape),
        torch.full(shape, stream.epoch, device=nodes.device),
        (stream.tag | (nodes >> 32 & 0xFF))[:, None].expand(shape),
    ]
    keys = [stream.seed & _WORD, stream.seed >> 32]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(state[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(state[2], _MULTIPLIERS[1])
        state = [high1 ^ state[1] ^ keys[0], low1, high0 ^ state[3] ^ keys[1], low0]
        keys = [(key + step) & _WORD for key, step in zip(keys, _WEYL, strict=True)]
    return torch.stack(state, dim=2).flatten(1)[:, :dim].contiguous()


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word × constant."""
    by_low = word * (constant & 0xFFFF)
    by_high = word * (constant >> 16) + (by_low >> 16)
    return by_high >> 16, (by_high & 0xFFFF) << 16 | by_low & 0xFFFF


def _kept(dropout: Dropout, nodes: Tensor, dim: int) -> Tensor:
    return philox(dropout.stream, nodes, dim) >= dropout.threshold


@torch.no_grad()
def epilogue_forward(
    z: Tensor,
    out: Tensor,
    bias: Tensor | None,
    normalization: Normalization | None,
    relu: bool,
    dropout: Dropout | None,
    nodes: Tensor | None,
) -> None:
    """See :func:`halocast.runtime.kernels.epilogue_forward`."""
    t = z if bias is None else z + bias
    if normalization is not None:
        mean = t.mean(1)
        normalization.mean.copy_(mean)
        normalization.rstd.copy_(torch.rsqrt((t - mean[:, None]).square().mean(1) + normalization.eps))
        t = _normal(t, normalization) * normalization.gamma + normalization.beta
    if relu:
        t = t.relu()
    if dropout is not None and nodes is not None:
        t = torch.where(_kept(dropout, nodes, t.shape[1]), t * dropout.scale, 0.0)
    out.copy_(t)


def _normal(t: Tensor, normalization: Normalization) -> Tensor:
    return (t - normalization.mean[:, None]) * normalization.rstd[:, None]


@torch.no_grad()
def epilogue_backward(
    grad: Tensor,
    out: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    normalization: Normalization | None,
    relu: bool,
    dropout: Dropout | None,
    nodes: Tensor | None,
    gradients: EpilogueGradients,
) -> None:
    """See :func:`halocast.runtime.kernels.epilogue_backward`."""
    if dropout is not None:
        grad *= dropout.scale
    if relu and out is not None:
        grad.masked_fill_(out <= 0, 0.0)
    elif dropout is not None and nodes is not None:
        grad.masked_fill_(~_kept(dropout, nodes, grad.shape[1]), 0.0)
    if normalization is not None and z is not None:
        normal = _normal(z if bias is None else z + bias, normalization)
        _put(gradients.beta, grad.sum(0), gradients.accumulate)
        _put(gradients.gamma, (grad * normal).sum(0), gradients.accumulate)
        d = grad * normalization.gamma
        inward = d - d.mean(1, keepdim=True) - normal * (d * normal).mean(1, keepdim=True)
        torch.mul(inward, normalization.rstd[:, None], out=grad)
    _put(gradients.bias, grad.sum(0), gradients.accumulate)


def _put(where: Tensor | None, value: Tensor, accumulate: bool) -> None:
    if where is not None:
        where.add_(value) if accumulate else where.copy_(value)


@torch.no_grad()
def cross_entropy(logits: Tensor, targets: Tensor, rows: Tensor, grad: Tensor, scale: float) -> tuple[float, int]:
    """See :func:`halocast.runtime.kernels.cross_entropy`; returns (sum of losses, a row with a bad target or −1)."""
    chosen = targets[rows]
    bad = torch.nonzero((chosen < 0) | (chosen >= logits.shape[1]))
    if bad.numel():
        return 0.0, int(rows[bad[0, 0]])
    log_softmax = functional.log_softmax(logits[rows], dim=1)
    slope = log_softmax.exp()
    slope[torch.arange(rows.numel(), device=rows.device), chosen] -= 1.0
    grad.zero_()
    grad[rows] = slope * scale
    return float(-log_softmax.gather(1, chosen[:, None]).sum(dtype=torch.float64)), -1


@torch.no_grad()
def bce(logits: Tensor, targets: Tensor, rows: Tensor, grad: Tensor, scale: float) -> float:
    """See :func:`halocast.runtime.kernels.bce`."""
    x, y = logits[rows], targets[rows].to(logits.dtype)
    total = functional.binary_cross_entropy_with_logits(x, y, reduction="none").sum(dtype=torch.float64)
    grad.zero_()
    grad[rows] = (torch.sigmoid(x) - y) * scale
    return float(total)
