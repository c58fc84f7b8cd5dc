"""A NumPy transcription of docs/wire-format.md, one value at a time: slow, and as close to the text as can be.

Everything is np.float32 arithmetic, which rounds every operation on its own; integers are Python's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from tests.unit.kernels.philox_reference import reference

from halocast.runtime import kernels

CODEC_NUMBERS = {"stochastic": 0, "nearest": 1, "rotated": 2}
F = np.float32


def bits(x: np.float32) -> int:
    (word,) = struct.unpack("<I", struct.pack("<f", x))
    return int(word)


def value(word: int) -> np.float32:
    return F(struct.unpack("<f", struct.pack("<I", word))[0])


def random_words(stream: kernels.Stream, node: int, first: int, count: int) -> list[int]:
    """Words `first` and on of one row."""
    element = np.arange(first, first + count, dtype=np.uint64)
    fourth = stream.purpose << 28 | stream.direction << 24 | stream.layer << 8 | node >> 32
    counter = np.broadcast_arrays(element // 4, node & 0xFFFFFFFF, stream.epoch, np.uint64(fourth))
    lanes = reference(counter, [stream.seed & 0xFFFFFFFF, stream.seed >> 32])
    return [int(lanes[j % 4][k]) for k, j in enumerate(range(first, first + count))]


def bit_stream(codes: Sequence[int], width: int) -> bytes:
    number = sum(code << j * width for j, code in enumerate(codes))
    return number.to_bytes((len(codes) * width + 7) // 8, "little")


def codes_from(stream: bytes, width: int, dim: int) -> list[int]:
    number = int.from_bytes(stream, "little")
    return [number >> j * width & (1 << width) - 1 for j in range(dim)]


def offset_code(minimum: np.float32) -> int:
    """The largest bfloat16 that is not above the minimum."""
    if minimum == 0:
        return 0
    code = bits(minimum) >> 16
    return code + 1 if value(code << 16) > minimum else code


def scale_code_up(scale: np.float32) -> int:
    """The smallest number of the scale's grid that is not below it."""
    if scale == 0:
        return 0
    code = max(bits(scale) >> 15, bits(F(2.0**-111)) >> 15)
    return code + 1 if value(code << 15) < scale else code


def scale_code_nearest(scale: np.float32) -> int:
    low = bits(scale) >> 15
    below, above = (float(value(code << 15)) for code in (low, low + 1))
    if float(scale) - below == above - float(scale):
        return low + low % 2
    return low if float(scale) - below < above - float(scale) else low + 1


def bfloat16_nearest(x: np.float32) -> int:
    sign, magnitude = bits(x) >> 31, bits(x) & 0x7FFFFFFF
    low = magnitude >> 16
    rest = magnitude & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and low % 2 == 1)
    return sign << 15 | low + up


def pack_coded(row: np.ndarray, width: int, *, one_sided: bool, nearest: bool, stream: kernels.Stream, node: int) -> bytes:
    top = (1 << width) - 1
    z_code = 0 if one_sided else offset_code(row.min())
    z = value(z_code << 16)
    s_code = scale_code_up((row.max() - z) / F(top))
    s = value(s_code << 15)
    inverse = F(65536) / s if s > 0 else F(0)
    words = random_words(stream, node, 0, (row.size + 1) // 2)
    codes = []
    for j, x in enumerate(row):
        q = int(np.rint((x - z) * inverse))
        r = 32768 if nearest else words[j // 2] >> 16 * (j % 2) & 0xFFFF
        codes.append(min(q + r >> 16, top))
    side = struct.pack("<H", s_code) if one_sided else struct.pack("<HH", z_code, s_code)
    return side + bit_stream(codes, width)


def unpack_coded(record: bytes, width: int, dim: int, *, one_sided: bool) -> np.ndarray:
    side = 2 if one_sided else 4
    z = F(0) if one_sided else value(struct.unpack_from("<H", record)[0] << 16)
    s = value(struct.unpack_from("<H", record, side - 2)[0] << 15)
    return np.array([z + s * F(code) for code in codes_from(record[side:], width, dim)], dtype=F)


LEVELS = {1: [-0.7978845608, 0.7978845608], 2: [-1.510417608, -0.4527800398, 0.4527800398, 1.510417608]}
THRESHOLDS = {1: [0.0], 2: [-0.9815988, 0.0, 0.9815988]}


def passes(dim: int) -> tuple[int, list[int]]:
    """(window, where the window of each pass starts)."""
    window = 1 << (dim.bit_length() - 1)
    return window, [0, dim - window, 0]


def signs(stream: kernels.Stream, node: int, number: int, first: int, count: int) -> list[np.float32]:
    words = random_words(stream, node, 4096 * (number + 1), (first + count + 31) // 32)
    return [F(-1) if words[j // 32] >> j % 32 & 1 else F(1) for j in range(first, first + count)]


def hadamard(x: list[np.float32]) -> list[np.float32]:
    x = list(x)
    stride = 1
    while stride < len(x):
        for i in range(len(x)):
            if not i & stride:
                a, b = x[i], x[i + stride]
                x[i], x[i + stride] = a + b, a - b
        stride *= 2
    scale = F(1 / np.sqrt(np.float64(len(x))))
    return [each * scale for each in x]


def rotate(row: np.ndarray, stream: kernels.Stream, node: int) -> list[np.float32]:
    x = list(row)
    window, starts = passes(len(x))
    for number, first in enumerate(starts):
        part = [
            each * sign
            for each, sign in zip(x[first : first + window], signs(stream, node, number, first, window), strict=True)
        ]
        x[first : first + window] = hadamard(part)
    return x


def rotate_back(x: list[np.float32], stream: kernels.Stream, node: int) -> np.ndarray:
    window, starts = passes(len(x))
    for number, first in reversed(list(enumerate(starts))):
        part = hadamard(x[first : first + window])
        x[first : first + window] = [
            each * sign for each, sign in zip(part, signs(stream, node, number, first, window), strict=True)
        ]
    return np.array(x, dtype=F)


def ordered_sum(terms: Sequence[np.float32]) -> np.float32:
    lanes = [F(0)] * 16
    for j, term in enumerate(terms):
        lanes[j % 16] = lanes[j % 16] + term
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0]


def pack_rotated(row: np.ndarray, width: int, *, stream: kernels.Stream, node: int) -> bytes:
    rotated = rotate(row, stream, node)
    squares = ordered_sum([each * each for each in rotated])
    if squares == 0:
        return struct.pack("<H", 0) + bit_stream([0] * row.size, width)
    root = np.sqrt(squares / F(row.size))
    codes = [sum(bool(each >= F(threshold) * root) for threshold in THRESHOLDS[width]) for each in rotated]
    products = ordered_sum([each * F(LEVELS[width][code]) for each, code in zip(rotated, codes, strict=True)])
    return struct.pack("<H", scale_code_nearest(squares / products)) + bit_stream(codes, width)


def unpack_rotated(record: bytes, width: int, dim: int, *, stream: kernels.Stream, node: int) -> np.ndarray:
    s = value(struct.unpack_from("<H", record)[0] << 15)
    return rotate_back([s * F(LEVELS[width][code]) for code in codes_from(record[2:], width, dim)], stream, node)


def pack_row(row: np.ndarray, width: int, *, one_sided: bool, codec: str, stream: kernels.Stream, node: int) -> bytes:
    """One record."""
    if width == 32:
        return row.tobytes()
    if width == 16:
        return b"".join(struct.pack("<H", bfloat16_nearest(x)) for x in row)
    if codec == "rotated" and width <= 2:
        return pack_rotated(row, width, stream=stream, node=node)
    return pack_coded(row, width, one_sided=one_sided, nearest=codec == "nearest", stream=stream, node=node)


def unpack_row(
    record: bytes, width: int, dim: int, *, one_sided: bool, codec: str, stream: kernels.Stream, node: int
) -> np.ndarray:
    if width == 32:
        return np.frombuffer(record, dtype="<f4")
    if width == 16:
        return np.array([value(code << 16) for code in struct.unpack(f"<{dim}H", record)], dtype=F)
    if codec == "rotated" and width <= 2:
        return unpack_rotated(record, width, dim, stream=stream, node=node)
    return unpack_coded(record, width, dim, one_sided=one_sided)


def header(widths: Sequence[int], dim: int, length: int, *, one_sided: bool, codec: str, stream: kernels.Stream) -> bytes:
    tag = 1 << 28 | stream.direction << 24 | stream.layer << 8 | CODEC_NUMBERS[codec] << 1 | one_sided
    return struct.pack("<4sIIIIIQ", b"HCQ1", tag, stream.epoch, len(widths), dim, zlib.crc32(bytes(widths)), length)


def pack_message(
    rows: np.ndarray, widths: Sequence[int], nodes: Sequence[int], *, one_sided: bool, codec: str, stream: kernels.Stream
) -> bytes:
    """Header and records of one peer's rows."""
    records = b"".join(
        pack_row(row, width, one_sided=one_sided, codec=codec, stream=stream, node=node)
        for row, width, node in zip(rows, widths, nodes, strict=True)
    )
    return header(widths, rows.shape[1], 32 + len(records), one_sided=one_sided, codec=codec, stream=stream) + records
