"""The kernels in plain torch operations, for devices that the native module does not serve (CUDA).

Same arithmetic and the same random bits as ``cpp/``; arguments come checked from :mod:`halocast.runtime.kernels`.
Outputs are written in place. Sums on CUDA may differ in their last bits from run to run where torch adds atomically.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from halocast.runtime.exchange.codec import Records
    from halocast.runtime.kernels import Dropout, EpilogueGradients, Normalization, Stream

# Gathered neighbour rows held at once, in elements.
_GATHERED_ELEMENTS = 1 << 26

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

# The wire format's numbers; cpp/codec_core.h says why they are what they are.
_CODED_ELEMENTS = 1 << 22  # coded at once, of one width
_MAGNITUDE_LIMIT, _ROTATED_MAGNITUDE_LIMIT = 2.0**126, 2.0**56
_FRACTION_UNITS = 65536.0
_NEAREST_BITS = 32768
_SMALLEST_SCALE = 0x08000000
_SIGN_WORDS = 4096
_SUM_LANES = 16
_LEVELS = {1: (-0.7978845608, 0.7978845608), 2: (-1.510417608, -0.4527800398, 0.4527800398, 1.510417608)}
_THRESHOLDS = {1: (0.0,), 2: (-0.9815988, 0.0, 0.9815988)}


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
    """See :func:`halocast.runtime.kernels.philox`."""
    return _philox_blocks(stream, nodes, torch.arange((dim + 3) // 4, device=nodes.device))[:, :dim].contiguous()


def _philox_blocks(stream: Stream, nodes: Tensor, blocks: Tensor) -> Tensor:
    """Words of the same blocks of each node, ``[rows, 4 · blocks]``."""
    shape = (nodes.numel(), blocks.numel())
    return philox_blocks(stream, nodes[:, None].expand(shape), blocks.expand(shape)).flatten(1)


def philox_blocks(stream: Stream, nodes: Tensor, blocks: Tensor) -> Tensor:
    """The four words of block ``blocks[i, j]`` of node ``nodes[i, j]``, ``[rows, columns, 4]``.

    32-bit words live in int64; products go in 16-bit halves to fit.
    """
    shape = nodes.shape
    state = [
        blocks,
        nodes & _WORD,
        torch.full(shape, stream.epoch, device=nodes.device),
        stream.tag | (nodes >> 32 & 0xFF),
    ]
    keys = [stream.seed & _WORD, stream.seed >> 32]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(state[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(state[2], _MULTIPLIERS[1])
        state = [high1 ^ state[1] ^ keys[0], low1, high0 ^ state[3] ^ keys[1], low0]
        keys = [(key + step) & _WORD for key, step in zip(keys, _WEYL, strict=True)]
    return torch.stack(state, dim=2)


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


def write_headers(headers: Tensor, header_offsets: Tensor, stream: Stream, wire: Tensor) -> None:
    """Put the stream's tag and epoch into prepared headers ``[messages, 32]``, and these where the messages start."""
    words = headers.clone().view(torch.int32)
    words[:, 1] |= _as_int32(stream.tag)
    words[:, 2] = _as_int32(stream.epoch)
    wire[_spans(header_offsets, headers.shape[1])] = words.view(torch.uint8)


@torch.no_grad()
def pack(
    rows: Tensor, wire: Tensor, records: Records, stream: Stream, nodes: Tensor, index: Tensor | None, ranges: Tensor | None
) -> int:
    """See :func:`halocast.runtime.exchange.codec.pack`; returns the lowest row that cannot be sent, or −1."""
    unsendable = torch.zeros_like(records.widths, dtype=torch.bool)
    for width, part in _parts_by_width(records.widths, records.dim):
        x = rows[part if index is None else index[part]]
        low, high = x.amin(1), x.amax(1)
        if ranges is not None:
            ranges[part] = (high if records.one_sided else high - low) + 0.0  # −0 becomes 0
        rotated = records.rounding == "rotated" and width in _LEVELS
        if width < 32:
            unsendable[part] = ~(x.abs().amax(1) < (_ROTATED_MAGNITUDE_LIMIT if rotated else _MAGNITUDE_LIMIT))
        if records.one_sided and width < 16:
            unsendable[part] |= low < 0
        if width == 32:
            record = _bytes_of(x.view(torch.int32), 4)
        elif width == 16:
            record = _bytes_of(_bfloat16_bits(x), 2)
        elif rotated:
            record = _pack_rotated(x, width, stream, nodes[part])
        else:
            record = _pack_codes(x, low, high, width, records, stream, nodes[part])
        wire[_spans(records.offsets[part], record.shape[1])] = record
    found = torch.nonzero(unsendable)
    return int(found[0]) if found.numel() else -1


@torch.no_grad()
def unpack(
    wire: Tensor,
    records: Records,
    widths: Tensor,
    offsets: Tensor,
    stream: Stream,
    nodes: Tensor,
    out: Tensor,
    index: Tensor | None,
    accumulate: bool,
) -> None:
    """See :func:`halocast.runtime.exchange.codec.unpack`; widths and offsets are those of the peer's rows."""
    for width, part in _parts_by_width(widths, records.dim):
        start = offsets[part]
        if width == 32:
            x = _numbers_of(wire[_spans(start, 4 * records.dim)], 4).view(torch.float32)
        elif width == 16:
            x = (_numbers_of(wire[_spans(start, 2 * records.dim)], 2) << 16).view(torch.float32)
        elif records.rounding == "rotated" and width in _LEVELS:
            x = _unpack_rotated(wire, start, width, records.dim, stream, nodes[part])
        else:
            x = _unpack_codes(wire, start, width, records)
        where = part if index is None else index[part]
        out[where] = out[where] + x if accumulate else x


def _parts_by_width(widths: Tensor, dim: int) -> Iterator[tuple[int, Tensor]]:
    """(width, rows of that width), a bounded number of elements at a time."""
    for width in torch.bincount(widths).nonzero()[:, 0].tolist():
        for part in torch.split(torch.nonzero(widths == width)[:, 0], max(1, _CODED_ELEMENTS // dim)):
            yield width, part


def _pack_codes(x: Tensor, low: Tensor, high: Tensor, width: int, records: Records, stream: Stream, nodes: Tensor) -> Tensor:
    """Records of rows, uint8 ``[rows, bytes]``; low and high are each row's minimum and maximum."""
    offset_code = torch.zeros_like(low, dtype=torch.int32) if records.one_sided else _offset_code(low)
    offset = (offset_code << 16).view(torch.float32)
    # Divisions by tensors only: torch multiplies by the reciprocal of a number on some devices.
    scale_code = _scale_code_up((high - offset) / torch.full_like(low, (1 << width) - 1))
    scale = (scale_code << 15).view(torch.float32)
    inverse = torch.where(scale > 0, torch.full_like(scale, _FRACTION_UNITS) / scale, 0.0)
    fraction = ((x - offset[:, None]) * inverse[:, None]).round_().to(torch.int32)
    if records.rounding == "nearest":
        fraction += _NEAREST_BITS
    else:
        fraction += _random_bits(stream, nodes, records.dim)
    codes = (fraction >> 16).clamp_(max=(1 << width) - 1)
    side = [scale_code] if records.one_sided else [offset_code, scale_code]
    return torch.cat([_bytes_of(torch.stack(side, 1), 2), _bit_stream(codes, width)], 1)


def _unpack_codes(wire: Tensor, start: Tensor, width: int, records: Records) -> Tensor:
    side_bytes = 2 if records.one_sided else 4
    side = _numbers_of(wire[_spans(start, side_bytes)], 2)
    scale = (side[:, -1:] << 15).view(torch.float32)
    codes = _codes_of(wire[_spans(start + side_bytes, (records.dim * width + 7) // 8)], width, records.dim)
    product = scale * codes.to(torch.float32)
    return product + (torch.zeros_like(scale) if records.one_sided else (side[:, :1] << 16).view(torch.float32))


def _offset_code(minimum: Tensor) -> Tensor:
    """bfloat16 towards −∞."""
    bits = minimum.view(torch.int32)
    away_from_zero = (bits < 0) & ((bits & 0xFFFF) != 0)
    return torch.where(minimum == 0, 0, (bits >> 16 & 0xFFFF) + away_from_zero.int())


def _scale_code_up(scale: Tensor) -> Tensor:
    bits = scale.view(torch.int32)
    code = torch.where(bits < _SMALLEST_SCALE, _SMALLEST_SCALE >> 15, bits + 0x7FFF >> 15)
    return torch.where(scale > 0, code, 0)


def _scale_code_nearest(scale: Tensor) -> Tensor:
    bits = scale.view(torch.int32)
    return torch.where(scale > 0, bits + 0x3FFF + (bits >> 15 & 1) >> 15, 0)


def _bfloat16_bits(x: Tensor) -> Tensor:
    """To nearest even, in integers: some processors' own conversion loses subnormal numbers."""
    bits = x.view(torch.int32)
    return bits + 0x7FFF + (bits >> 16 & 1) >> 16 & 0xFFFF


def _random_bits(stream: Stream, nodes: Tensor, dim: int) -> Tensor:
    """16 random bits of each element, int32 ``[rows, dim]``: the halves of the words, the lower first."""
    words = philox(stream, nodes, (dim + 1) // 2)
    return torch.stack([words & 0xFFFF, words >> 16], 2).flatten(1)[:, :dim].to(torch.int32)


def _bit_stream(codes: Tensor, width: int) -> Tensor:
    """Codes ``[rows, dim]`` as bytes; eight codes are `width` bytes."""
    rows, dim = codes.shape
    groups = functional.pad(codes, (0, -dim % 8)).view(rows, -1, 8).to(torch.int64)
    lanes = torch.arange(8, device=codes.device)
    words = (groups << lanes * width).sum(2)
    return _bytes_of(words, width)[:, : (dim * width + 7) // 8]


def _codes_of(stream: Tensor, width: int, dim: int) -> Tensor:
    """Back from bytes ``[rows, bytes]`` to codes ``[rows, dim]``."""
    padded = functional.pad(stream, (0, -stream.shape[1] % width))
    words = _numbers_of(padded, width, torch.int64)
    lanes = torch.arange(8, device=stream.device)
    return (words[:, :, None] >> lanes * width & (1 << width) - 1).flatten(1)[:, :dim]


def _bytes_of(numbers: Tensor, size: int) -> Tensor:
    """Integers ``[rows, n]`` as uint8 ``[rows, n · size]``, the lowest byte first."""
    lanes = torch.arange(size, device=numbers.device, dtype=numbers.dtype)
    return (numbers[:, :, None] >> lanes * 8 & 0xFF).to(torch.uint8).flatten(1)


def _numbers_of(stream: Tensor, size: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Back from bytes to integers."""
    lanes = torch.arange(size, device=stream.device, dtype=dtype)
    return (stream.view(stream.shape[0], -1, size).to(dtype) << lanes * 8).sum(2, dtype=dtype)


def _spans(starts: Tensor, size: int) -> Tensor:
    """Positions ``[spans, size]`` of runs of bytes."""
    return starts[:, None] + torch.arange(size, device=starts.device)


def _as_int32(word: int) -> int:
    """The signed number with the same 32 bits."""
    return word - (1 << 32) if word >> 31 else word


def _pack_rotated(x: Tensor, width: int, stream: Stream, nodes: Tensor) -> Tensor:
    """Records of the rotated codec. Vargaftik et al., EDEN (ICML 2022)."""
    rotated = x.clone()
    for first, signs in _passes(stream, nodes, x.shape[1]):
        window = rotated[:, first : first + signs.shape[1]]
        window.copy_(_hadamard(window * signs))
    squares = _ordered_sum(rotated * rotated)
    root = torch.sqrt(squares / torch.full_like(squares, x.shape[1]))
    codes = torch.zeros_like(x, dtype=torch.int32)
    for threshold in _THRESHOLDS[width]:
        codes += rotated >= threshold * root[:, None]
    levels = torch.tensor(_LEVELS[width], dtype=torch.float32, device=x.device)
    products = _ordered_sum(rotated * levels[codes])
    empty = ~(squares > 0)
    scale_code = _scale_code_nearest(torch.where(empty, 0.0, squares / products))
    codes.masked_fill_(empty[:, None], 0)
    return torch.cat([_bytes_of(scale_code[:, None], 2), _bit_stream(codes, width)], 1)


def _unpack_rotated(wire: Tensor, start: Tensor, width: int, dim: int, stream: Stream, nodes: Tensor) -> Tensor:
    scale = (_numbers_of(wire[_spans(start, 2)], 2) << 15).view(torch.float32)
    codes = _codes_of(wire[_spans(start + 2, (dim * width + 7) // 8)], width, dim)
    levels = torch.tensor(_LEVELS[width], dtype=torch.float32, device=wire.device)
    rotated = scale * levels[codes]
    for first, signs in reversed(_passes(stream, nodes, dim)):
        window = rotated[:, first : first + signs.shape[1]]
        window.copy_(_hadamard(window) * signs)
    return rotated


def _passes(stream: Stream, nodes: Tensor, dim: int) -> list[tuple[int, Tensor]]:
    """(first element of the window, signs ``[rows, window]``) of each pass of the rotation."""
    size = 1 << dim.bit_length() - 1
    starts = [0, dim - size, 0]
    blocks = torch.arange((dim + 127) // 128, device=nodes.device)
    bits = torch.arange(32, device=nodes.device)
    passes = []
    for number, first in enumerate(starts, start=1):
        words = _philox_blocks(stream, nodes, blocks + _SIGN_WORDS // 4 * number)
        negative = (words[:, :, None] >> bits & 1).flatten(1)[:, first : first + size]
        passes.append((first, 1.0 - 2.0 * negative.to(torch.float32)))
    return passes


def _hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh–Hadamard transform of each row, with butterflies in the wire format's order."""
    rows, size = x.shape
    stride = 1
    while stride < size:
        pairs = x.reshape(rows, -1, 2, stride)
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
        stride *= 2
    scale: float = size**-0.5
    return x.reshape(rows, size) * scale


def _ordered_sum(terms: Tensor) -> Tensor:
    """Sum of each row with 16 interleaved accumulators, then by halves."""
    lanes = functional.pad(terms, (0, -terms.shape[1] % _SUM_LANES)).view(terms.shape[0], -1, _SUM_LANES)
    total = torch.zeros_like(lanes[:, 0])
    for step in range(lanes.shape[1]):
        total += lanes[:, step]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[:, 0]
