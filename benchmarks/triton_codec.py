"""The wire format in Triton, as one would write it without CUDA: what ``benchmarks/codec_gpu.py`` measures against.

Widths 2, 4 and 8, stochastic rounding with the counters of docs/wire-format.md, so that its bytes are ours and can be
compared. It does less than the codec: one width for all rows, no headers, no index, and no look for rows that cannot be
sent. Import it only where Triton is installed: :func:`is_available`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.exchange import codec

WIDTHS = (2, 4, 8)
"""A byte holds whole codes of these, which is what keeps the Triton version short."""


def is_available() -> bool:
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Tile:
    """How one Triton program is shaped."""

    rows: int
    warps: int


TILES = tuple(Tile(rows, warps) for rows in (1, 2, 4, 8, 16, 32) for warps in (2, 4, 8))
"""Worth trying; :func:`tiles_for` chooses among them."""


def tiles_for(dim: int) -> tuple[Tile, ...]:
    """Those that give a thread 4 to 16 elements."""
    padded = 8 * _power_of_two((dim + 7) // 8)
    return tuple(tile for tile in TILES if 4 <= tile.rows * padded / (32 * tile.warps) <= 16)


def pack(rows: Tensor, wire: Tensor, layout: codec.Layout, stream: kernels.Stream, nodes: Tensor, tile: Tile) -> None:
    """Write the records (not the headers) of contiguous float32 rows ``[M, dim]`` that all have the layout's first width."""
    width, groups = _width(layout), (layout.dim + 7) // 8
    _kernels()[0][(_programs(len(layout), tile),)](
        rows, wire, layout.offsets, nodes, len(layout), layout.dim, stream.seed, stream.epoch, stream.tag,
        WIDTH=width, ONE_SIDED=layout.one_sided, ROWS=tile.rows, GROUPS=_power_of_two(groups), num_warps=tile.warps,
    )  # fmt: skip


def unpack(wire: Tensor, layout: codec.Layout, out: Tensor, tile: Tile) -> None:
    """Decode records that :func:`pack` wrote into contiguous float32 rows ``[M, dim]``."""
    _kernels()[1][(_programs(len(layout), tile),)](
        wire, layout.offsets, out, len(layout), layout.dim,
        WIDTH=_width(layout), ONE_SIDED=layout.one_sided, ROWS=tile.rows, ELEMENTS=_power_of_two(layout.dim),
        num_warps=tile.warps,
    )  # fmt: skip


def _width(layout: codec.Layout) -> int:
    (bits, _), *others = [pair for message in layout.messages.values() for pair in message.histogram]
    if bits not in WIDTHS or any(other != bits for other, _ in others):
        raise ValueError(f"the Triton codec takes one width of {WIDTHS} for all rows")
    return bits


def _programs(rows: int, tile: Tile) -> int:
    return -(-rows // tile.rows)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@cache
def _kernels() -> tuple[Any, Any]:
    """Both kernels: compiled on first use, since the module must import without Triton."""
    tl = importlib.import_module("triton.language")
    jit: Callable[[Any], Any] = importlib.import_module("triton").jit
    # Triton looks names up in the module of a kernel.
    globals().update(tl=tl, _nearest_even=jit(_nearest_even_source), _scale=jit(_scale_source))
    return jit(_pack_source), jit(_unpack_source)


# Kernels are written without annotations: Triton reads those as its own. tl is bound by _kernels.
# mypy: disable-error-code="no-untyped-def, name-defined, no-untyped-call"
# ruff: noqa: F821


def _nearest_even_source(x):
    """Round a float32 ≥ 0 to the nearest integer, ties to even."""
    low = x.to(tl.int32)
    rest = x - low.to(tl.float32)
    return low + ((rest > 0.5) | ((rest == 0.5) & (low % 2 == 1))).to(tl.int32)


def _scale_source(low, high, WIDTH: tl.constexpr, ONE_SIDED: tl.constexpr):
    """(offset's code, scale's code, offset, inverse): see docs/wire-format.md."""
    bits = low.to(tl.uint32, bitcast=True)
    down = (bits >> 16) + (((bits >> 31) != 0) & ((bits & 0xFFFF) != 0)).to(tl.uint32)
    offset_code = tl.where(low == 0.0, 0, down)
    if ONE_SIDED:
        offset_code = offset_code * 0
    offset = (offset_code << 16).to(tl.float32, bitcast=True)
    step = tl.div_rn(high - offset, tl.full(low.shape, (1 << WIDTH) - 1, tl.float32))
    step_bits = step.to(tl.uint32, bitcast=True)
    scale_code = tl.where(step_bits < 0x08000000, 0x08000000 >> 15, (step_bits + 0x7FFF) >> 15)
    scale_code = tl.where(step > 0.0, scale_code, 0)
    scale = (scale_code << 15).to(tl.float32, bitcast=True)
    inverse = tl.where(step > 0.0, tl.div_rn(tl.full(low.shape, 65536.0, tl.float32), tl.where(step > 0.0, scale, 1.0)), 0.0)
    return offset_code, scale_code, offset, inverse


def _pack_source(
    rows,
    wire,
    offsets,
    nodes,
    count,
    dim,
    seed,
    epoch,
    tag,
    WIDTH: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < count
    element = tl.arange(0, GROUPS * 8)
    inside = present[:, None] & (element < dim)[None, :]
    place = row.to(tl.int64)[:, None] * dim + element[None, :]
    x = tl.load(rows + place, mask=inside, other=0.0)
    low = tl.min(tl.where(inside, x, float("inf")), 1)
    high = tl.max(tl.where(inside, x, float("-inf")), 1)
    offset_code, scale_code, offset, inverse = _scale(low, high, WIDTH, ONE_SIDED)

    # One block of random words for each group of eight elements, as four words of two numbers.
    node = tl.load(nodes + row, mask=present, other=0)
    group = tl.arange(0, GROUPS).to(tl.uint32)[None, :] + tl.zeros((ROWS, GROUPS), tl.uint32)
    node_low = (node & 0xFFFFFFFF).to(tl.uint32)[:, None] + tl.zeros((ROWS, GROUPS), tl.uint32)
    last = (tag | ((node >> 32) & 0xFF)).to(tl.uint32)[:, None] + tl.zeros((ROWS, GROUPS), tl.uint32)
    epochs = tl.full((ROWS, GROUPS), epoch, tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, group, node_low, epochs, last)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, GROUPS * 4))
    random = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (ROWS, GROUPS * 8)).to(tl.int32)

    fraction = _nearest_even((x - offset[:, None]) * inverse[:, None])
    codes = tl.minimum((fraction + random) >> 16, (1 << WIDTH) - 1)
    codes = tl.where(inside, codes, 0)
    PER_BYTE: tl.constexpr = 8 // WIDTH
    shifts = tl.arange(0, PER_BYTE) * WIDTH
    packed = tl.sum(tl.reshape(codes, (ROWS, GROUPS * WIDTH, PER_BYTE)) << shifts[None, None, :], 2)

    record = wire + tl.load(offsets + row, mask=present, other=0)
    if ONE_SIDED:
        codes_at = record + 2
    else:
        codes_at = record + 4
        tl.store(record, (offset_code & 0xFF).to(tl.uint8), mask=present)
        tl.store(record + 1, (offset_code >> 8).to(tl.uint8), mask=present)
    tl.store(codes_at - 2, (scale_code & 0xFF).to(tl.uint8), mask=present)
    tl.store(codes_at - 1, (scale_code >> 8).to(tl.uint8), mask=present)
    byte = tl.arange(0, GROUPS * WIDTH)
    written = present[:, None] & (byte < (dim * WIDTH + 7) // 8)[None, :]
    tl.store(codes_at[:, None] + byte[None, :], packed.to(tl.uint8), mask=written)


def _unpack_source(
    wire,
    offsets,
    out,
    count,
    dim,
    WIDTH: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    ROWS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < count
    record = wire + tl.load(offsets + row, mask=present, other=0)
    if ONE_SIDED:
        codes_at = record + 2
        offset = tl.zeros((ROWS,), tl.float32)
    else:
        codes_at = record + 4
        low = tl.load(record, mask=present, other=0).to(tl.uint32)
        high = tl.load(record + 1, mask=present, other=0).to(tl.uint32)
        offset = ((low | high << 8) << 16).to(tl.float32, bitcast=True)
    low = tl.load(codes_at - 2, mask=present, other=0).to(tl.uint32)
    high = tl.load(codes_at - 1, mask=present, other=0).to(tl.uint32)
    scale = ((low | high << 8) << 15).to(tl.float32, bitcast=True)

    element = tl.arange(0, ELEMENTS)
    inside = present[:, None] & (element < dim)[None, :]
    byte = tl.load(codes_at[:, None] + (element * WIDTH // 8)[None, :], mask=inside, other=0).to(tl.uint32)
    code = (byte >> (element * WIDTH % 8).to(tl.uint32)[None, :]) & ((1 << WIDTH) - 1)
    value = offset[:, None] + scale[:, None] * code.to(tl.float32)
    place = row.to(tl.int64)[:, None] * dim + element[None, :]
    tl.store(out + place, value, mask=inside)
