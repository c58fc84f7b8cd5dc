"""The codec against the wire format's reference, on every path: bytes, values, and what is refused."""

from __future__ import annotations

import functools
import itertools
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.kernels.codec_reference import pack_message, pack_row, unpack_row, value
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.runtime.exchange.codec import Layout, Rounding
from halocast.traces import wire as wire_format
from halocast.traces.wire import CODED_WIDTHS, DROPPED, WIDTHS, message_bytes

HEADER = wire_format.HEADER_BYTES
DIMS = [*range(1, 71), 100, 602]
FEW_DIMS = [*range(1, 18), 31, 32, 33, 64, 65, 70, 100]
"""For plain torch, which takes its time to start each operation."""
LONG_DIMS = [1024, 1025, 8200]
"""About where the native code begins to draw a row's random bits in parts, and where a part ends."""
STREAM = kernels.Stream(seed=0x299F31D0A4093822, epoch=7, layer=3, direction=1, purpose=kernels.PURPOSE_ROUNDING)
GUARD = 0xA5

KINDS: list[Callable[[Tensor], Tensor]] = [
    lambda normal: normal,
    lambda normal: normal * 1e-3,
    lambda normal: torch.full_like(normal, 0.75),  # constant, and a bfloat16
    lambda normal: torch.full_like(normal, 0.1),  # constant, and none
    lambda normal: normal * 0.0,  # zeros of both signs
    lambda normal: normal * 1e-42,  # subnormal
    lambda normal: normal * 1e-22,  # its squares are subnormal
    lambda normal: (normal * 2e37).clamp(-8.5e37, 8.5e37),  # up to the limit
    lambda normal: torch.cat([normal[:-1] * 1e-3, normal[-1:] * 1e6]),  # one value far from the others
    lambda normal: 1000.0 + normal * 1e-3,
    lambda normal: -1.0 - normal.abs(),
    lambda normal: normal.relu(),
    lambda normal: (normal * 8).round(),  # many values on a grid
]


def rows_of(count: int, dim: int, *, one_sided: bool = False, rotated: bool = False, first: int = 0) -> Tensor:
    """Rows of all kinds in turn, the first of kind `first`."""
    normal = torch.randn(count, dim, generator=torch.Generator().manual_seed(dim * 100 + first))
    rows = torch.stack([KINDS[(first + k) % len(KINDS)](row) for k, row in enumerate(normal)])
    if rotated:
        rows.clamp_(-7e16, 7e16)
    if one_sided:
        rows = torch.where(rows < 0, 0.0, rows)  # −0 stays
    return rows


def nodes_of(count: int) -> Tensor:
    """Ids of up to 40 bits, in no order."""
    return (torch.arange(count) * 0x1234567_89 + 17) % (1 << 40)


def mixed_widths(count: int, first: int = 0) -> Tensor:
    return torch.tensor([WIDTHS[(first + k) % len(WIDTHS)] for k in range(count)], dtype=torch.uint8)


def widths_of(width: int, count: int) -> Tensor:
    return torch.full((count,), width, dtype=torch.uint8)


def pack(rows: Tensor, layout: Layout, nodes: Tensor, stream: kernels.Stream = STREAM, **more: Any) -> Tensor:
    """Into a buffer at an odd address, whose other bytes must stay as they are."""
    everything = torch.full((layout.bytes + 24,), GUARD, dtype=torch.uint8)
    wire = everything[3 : 3 + layout.bytes]
    codec.pack(rows, wire, layout, stream, nodes, **more)
    assert (everything[:3] == GUARD).all(), "bytes before the buffer were written"
    assert (everything[3 + layout.bytes :] == GUARD).all(), "bytes after the buffer were written"
    return wire


def unpack_all(wire: Tensor, layout: Layout, nodes: Tensor, stream: kernels.Stream = STREAM) -> Tensor:
    """The rows of all peers in order. Rows of `out` beyond a peer's must stay as they are."""
    parts = []
    for peer in layout.peers:
        part = layout.rows(peer)
        count = part.stop - part.start
        out = torch.full((count + 2, layout.dim), 7.0)
        codec.unpack(wire, layout, peer, stream, nodes[part], out)
        assert (out[count:] == 7.0).all(), "rows beyond the peer's were written"
        parts.append(out[:count])
    return torch.cat(parts)


def one_message(widths: Tensor, dim: int, *, one_sided: bool = False, rounding: Rounding = Rounding.STOCHASTIC) -> Layout:
    return Layout.of(widths, [(0, widths.numel())], dim, one_sided=one_sided, rounding=rounding)


def coded(rows: Tensor, widths: Tensor, stream: kernels.Stream = STREAM, **layout: Any) -> Tensor:
    """Rows to the wire and back."""
    agreed = one_message(widths, rows.shape[1], **layout)
    nodes = nodes_of(len(rows))
    return unpack_all(pack(rows, agreed, nodes, stream), agreed, nodes, stream)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    different = torch.nonzero(found.contiguous().view(torch.int32) != expected.contiguous().view(torch.int32))
    assert different.numel() == 0, f"first different at {different[0].tolist()}"


@functools.cache
def reference_message(rounding: Rounding, one_sided: bool, dim: int, count: int) -> tuple[Tensor, Layout, bytes, np.ndarray]:
    """(rows, layout of some peers, one of them without rows, the wire, the rows that come back) by the reference."""
    rotated = rounding is Rounding.ROTATED
    rows, widths, nodes = (
        rows_of(count, dim, one_sided=one_sided, rotated=rotated, first=dim),
        mixed_widths(count),
        nodes_of(count),
    )
    counts = [(4, count // 3), (9, 0), (0, 1), (2, count - count // 3 - 1)]
    layout = Layout.of(widths, counts, dim, one_sided=one_sided, rounding=rounding)
    settings: dict[str, Any] = {"one_sided": one_sided, "codec": rounding.value, "stream": STREAM}
    message, first = b"", 0
    for _, number in counts:
        part = slice(first, first + number)
        message += pack_message(rows[part].numpy(), widths[part].tolist(), nodes[part].tolist(), **settings)
        first += number
    decoded = np.empty((count, dim), dtype=np.float32)
    for row, (width, start) in enumerate(zip(widths.tolist(), layout.offsets.tolist(), strict=True)):
        length = wire_format.record_bytes(width, dim, one_sided=one_sided, rotated=rotated)
        record = message[start : start + length]
        decoded[row] = unpack_row(record, width, dim, **settings, node=int(nodes[row]))
    return rows, layout, message, decoded


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
def test_bytes_and_values_equal_the_reference(path: str, rounding: Rounding, one_sided: bool) -> None:
    """With 13 kinds of rows, 9 widths and dims one apart, each kind meets each width."""
    for dim in FEW_DIMS if path == "torch" else DIMS:
        rows, layout, message, decoded = reference_message(rounding, one_sided, dim, 13)
        nodes = nodes_of(13)
        wire = pack(rows, layout, nodes)
        assert wire.numpy().tobytes() == message, f"dim {dim}"
        assert_same_bits(unpack_all(wire, layout, nodes), torch.from_numpy(decoded))


@pytest.mark.parametrize("dim", LONG_DIMS)
@pytest.mark.parametrize(("rounding", "one_sided"), [(Rounding.STOCHASTIC, True), (Rounding.ROTATED, False)])
def test_long_rows_equal_the_reference(path: str, rounding: Rounding, one_sided: bool, dim: int) -> None:
    rows, layout, message, decoded = reference_message(rounding, one_sided, dim, 9)
    nodes = nodes_of(9)
    wire = pack(rows, layout, nodes)
    assert wire.numpy().tobytes() == message
    assert_same_bits(unpack_all(wire, layout, nodes), torch.from_numpy(decoded))


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
def test_many_threads_send_what_one_does(path: str, rounding: Rounding, one_sided: bool) -> None:
    """Over several chunks of rows, with and without an index; some rows again by the reference."""
    count, dim = 100 if path == "torch" else 700, 200
    rows = rows_of(count, dim, one_sided=one_sided, rotated=rounding is Rounding.ROTATED)
    widths, nodes = mixed_widths(count), nodes_of(count)
    layout = one_message(widths, dim, one_sided=one_sided, rounding=rounding)
    index = torch.arange(count - 1, -1, -1)
    ranges = torch.zeros(count)
    first = pack(rows, layout, nodes, ranges=ranges)
    back = unpack_all(first, layout, nodes)
    for threads in (1, 2, 3) if path != "torch" else (2,):
        torch.set_num_threads(threads)
        again = torch.zeros(count)
        assert torch.equal(pack(rows.flip(0), layout, nodes, index=index, ranges=again), first)
        assert torch.equal(again, ranges)
        assert_same_bits(unpack_all(first, layout, nodes), back)
    starts = [*layout.offsets.tolist(), layout.bytes]
    for row in range(5, count, 47):
        record = pack_row(
            rows[row].numpy(), int(widths[row]),
            one_sided=one_sided, codec=rounding.value, stream=STREAM, node=int(nodes[row]),
        )  # fmt: skip
        assert first[starts[row] : starts[row + 1]].numpy().tobytes() == record


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
def test_messages_are_as_long_as_the_closed_formula_says(rounding: Rounding, one_sided: bool) -> None:
    rotated = rounding is Rounding.ROTATED
    for dim in DIMS:
        widths = mixed_widths(20)
        layout = Layout.of(widths, [(3, 12), (1, 0), (0, 8)], dim, one_sided=one_sided, rounding=rounding)
        place = 0
        for peer in layout.peers:
            bits, rows = np.unique(widths[layout.rows(peer)].numpy(), return_counts=True)
            assert layout.histogram(peer) == tuple(zip(bits.tolist(), rows.tolist(), strict=True))
            length = wire_format.message_bytes(layout.histogram(peer), dim, one_sided=one_sided, rotated=rotated)
            assert layout.segment(peer) == slice(place, place + length)
            place += length
        assert layout.bytes == place
        assert layout.peers == (3, 1, 0)
        assert [layout.rows(peer) for peer in layout.peers] == [slice(0, 12), slice(12, 12), slice(12, 20)]


def test_a_row_is_sent_alike_whatever_is_sent_with_it(path: str) -> None:
    """Partition, order and company do not change a record."""
    rows, widths, nodes = rows_of(40, 37), mixed_widths(40), nodes_of(40)
    together = one_message(widths, 37)
    wire = pack(rows, together, nodes)
    ends = [*together.offsets.tolist(), together.bytes]
    records = [wire[start:end] for start, end in itertools.pairwise(ends)]
    for row in range(0, 40, 3):
        alone = pack(rows[row : row + 1], one_message(widths[row : row + 1], 37), nodes[row : row + 1])
        assert torch.equal(alone[HEADER:], records[row])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    other = Layout.of(widths[order], [(peer, 8) for peer in range(5)], 37, one_sided=False)
    shuffled = pack(rows[order], other, nodes[order])
    for place, row in enumerate(order.tolist()):
        start = int(other.offsets[place])
        assert torch.equal(shuffled[start : start + records[row].numel()], records[row])


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("columns", [(0, 20), (1, 66), (3, 10)], ids=str)
def test_chosen_and_strided_rows(path: str, index_type: torch.dtype, columns: tuple[int, int]) -> None:
    """Columns of wider matrices, to and from: elements beside them, and rows that no index names, stay as they are."""
    matrix = rows_of(50, 67)[:, columns[0] : columns[1]]
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(50, (33,), generator=generator).to(index_type)
    widths, nodes = mixed_widths(33), nodes_of(33)
    layout = Layout.of(widths, [(0, 20), (1, 13)], matrix.shape[1], one_sided=False)
    wire = pack(matrix, layout, nodes, index=index)
    chosen = matrix[index.long()].contiguous()
    assert torch.equal(wire, pack(chosen, layout, nodes))
    assert torch.equal(pack(matrix[:33], layout, nodes), pack(matrix[:33].contiguous(), layout, nodes))

    decoded = unpack_all(wire, layout, nodes)
    for accumulate in (False, True):
        start = torch.randn(60, 67, generator=generator)
        expected, whole = start.clone(), start.clone()
        target = torch.randperm(60, generator=generator)[:33].to(index_type)
        area = expected[:, columns[0] : columns[1]]
        area[target.long()] = area[target.long()] + decoded if accumulate else decoded
        for peer in layout.peers:
            part = layout.rows(peer)
            codec.unpack(
                wire, layout, peer, STREAM, nodes[part], whole[:, columns[0] : columns[1]],
                index=target[part], accumulate=accumulate,
            )  # fmt: skip
        assert_same_bits(whole, expected)


def test_accumulation_without_an_index(path: str) -> None:
    rows, widths, nodes = rows_of(20, 33, one_sided=True), mixed_widths(20), nodes_of(20)
    layout = one_message(widths, 33, one_sided=True)
    wire = pack(rows, layout, nodes)
    out = torch.randn(23, 33, generator=torch.Generator().manual_seed(0))
    expected = out.clone()
    expected[:20] += unpack_all(wire, layout, nodes)
    codec.unpack(wire, layout, 0, STREAM, nodes, out, accumulate=True)
    assert_same_bits(out, expected)


def test_no_rows_and_no_peers(path: str) -> None:
    none = torch.empty(0, dtype=torch.uint8)
    layout = Layout.of(none, [(2, 0), (5, 0)], 12, one_sided=True)
    wire = pack(torch.empty(0, 12), layout, nodes_of(0))
    assert wire.numpy().tobytes() == 2 * pack_message(
        np.empty((0, 12), np.float32), [], [], one_sided=True, codec="stochastic", stream=STREAM
    )
    assert unpack_all(wire, layout, nodes_of(0)).shape == (0, 12)
    nobody = Layout.of(none, [], 12, one_sided=False)
    assert (nobody.bytes, nobody.peers, len(nobody)) == (0, (), 0)
    assert pack(torch.empty(0, 12), nobody, nodes_of(0)).numel() == 0


@pytest.mark.parametrize("width", CODED_WIDTHS)
def test_values_on_the_grid_are_exact(path: str, width: int) -> None:
    """Offsets and scales that the format can express exactly, all codes, in several epochs and both roundings."""
    top = (1 << width) - 1
    generator = torch.Generator().manual_seed(width)
    offset = torch.tensor([-3.5, 0.0, 96.0, -0.0078125])[:, None]
    scale = torch.tensor([0.25, 2.0**-20, 1.0, 3.0 * 2.0**-9])[:, None]
    codes = torch.randint(top + 1, (4, 75), generator=generator)
    codes[:, 10], codes[:, 11] = 0, top
    rows = offset + scale * codes
    for epoch in (0, 1, 2):
        stream = kernels.Stream(seed=5, epoch=epoch, layer=0, purpose=kernels.PURPOSE_ROUNDING)
        for rounding in (Rounding.STOCHASTIC, Rounding.NEAREST):
            assert torch.equal(coded(rows, widths_of(width, 4), stream, rounding=rounding), rows)
            after_relu = (torch.randn(9, 130, generator=generator) * 10).relu()
            back = coded(after_relu, widths_of(width, 9), stream, rounding=rounding, one_sided=True)
            assert (back[after_relu == 0] == 0).all()


def test_rows_without_a_range(path: str) -> None:
    """Constants that bfloat16 has come back exactly, others within one step of it; zeros of either sign as +0."""
    widths = torch.tensor([1, 2, 3, 4, 5, 6, 8], dtype=torch.uint8)
    for constant in (0.75, -2.0, 0.0, -0.0, 2.0**-126, 2.0**-133, -(2.0**125)):
        rows = torch.full((7, 50), constant)
        back = coded(rows, widths)
        assert_same_bits(back, rows + 0.0)
    for constant in (0.1, -0.1, 1e-30, 12345.678):
        rows = torch.full((7, 50), constant)
        assert ((coded(rows, widths) - rows).abs() <= rows.abs() / 128).all()
    assert_same_bits(coded(torch.full((7, 50), -0.0), widths, one_sided=True), torch.zeros(7, 50))


def test_a_maximum_that_arithmetic_lifts_above_the_last_level_keeps_its_code(path: str) -> None:
    """At 8 bits, float32 can make one unit more than 255 · 65,536 of a row's maximum; the largest random bits add up to 256."""
    scale = (1 + np.arange(256, dtype=np.float32) / np.float32(256)).astype(np.float32)
    maximum = scale * np.float32(255)
    fraction = np.rint(maximum * (np.float32(65536) / scale)).astype(np.int64)
    lifted = np.flatnonzero(fraction > 255 * 65536)
    assert lifted.size > 0

    nodes = torch.arange(4096)
    words = kernels.philox(STREAM, nodes, 64)
    random = torch.stack([words & 0xFFFF, words >> 16], 2).flatten(1)
    assert ((int(fraction[lifted[0]]) + random >> 16) > 255).any(), "the case does not arise"

    rows = torch.full((4096, 128), float(maximum[lifted[0]]))
    layout = one_message(widths_of(8, 4096), 128, one_sided=True)
    assert torch.equal(unpack_all(pack(rows, layout, nodes), layout, nodes), rows)


@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("width", CODED_WIDTHS)
def test_values_come_back_within_a_step(path: str, width: int, one_sided: bool) -> None:
    """The sent scale is that of the row to within its rounding, and no error is larger: half of it if to the nearest."""
    rows = rows_of(39, 80, one_sided=one_sided)
    low, high = rows.amin(1).double(), rows.amax(1).double()
    nodes, widths = nodes_of(39), widths_of(width, 39)
    for rounding, share in ((Rounding.STOCHASTIC, 1.0), (Rounding.NEAREST, 0.5)):
        layout = one_message(widths, 80, one_sided=one_sided, rounding=rounding)
        wire = pack(rows, layout, nodes)
        at = layout.offsets[:, None] + (0 if one_sided else 2) + torch.arange(2)
        scale = torch.tensor([float(value((low_byte | high_byte << 8) << 15)) for low_byte, high_byte in wire[at].tolist()])
        offset_error = torch.zeros(39) if one_sided else low.abs() / 128 + 2.0**-133
        tight = ((high if one_sided else high - low) + offset_error) / ((1 << width) - 1)
        assert (scale <= tight * (1 + 1 / 256) * (1 + 1e-6) + 2.0**-111).all()
        error = (unpack_all(wire, layout, nodes).double() - rows.double()).abs().amax(1)
        # Besides, one rounding of float32 in the decoded value and one on the way to its code.
        assert (error <= scale * share * (1 + 1e-4) + rows.abs().amax(1) * 1e-6).all()


@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
def test_ranges_of_rows_of_any_width(path: str, one_sided: bool) -> None:
    rows, widths = rows_of(90, 47, one_sided=one_sided), mixed_widths(90)
    ranges = torch.full((90,), -1.0)
    pack(rows, one_message(widths, 47, one_sided=one_sided), nodes_of(90), ranges=ranges)
    expected = rows.amax(1) if one_sided else rows.amax(1) - rows.amin(1)
    assert_same_bits(ranges, expected + 0.0)  # a range of −0 is +0


UNSENDABLE = [
    (float("nan"), False, "NaN"),
    (float("inf"), True, "infinity"),
    (float("-inf"), False, "infinity"),
    (2.0**126, True, "magnitude of 2^126 or more"),
    (-(2.0**126), False, "magnitude of 2^126 or more"),
    (-1e-45, True, "negative value in a row declared non-negative"),
]


@pytest.mark.parametrize(("bad", "one_sided", "reason"), UNSENDABLE, ids=[str(each[0]) for each in UNSENDABLE])
def test_the_lowest_row_that_cannot_be_sent_is_named(path: str, bad: float, one_sided: bool, reason: str) -> None:
    """On any number of threads and wherever it lies; each is in another chunk of rows."""
    dim, count = 602, 230
    rows = torch.rand(count, dim, generator=torch.Generator().manual_seed(0)) + 1.0
    for row, column in ((229, 0), (111, 601), (57, 300)):
        rows[row, column] = bad
    index = torch.arange(count - 1, -1, -1, dtype=torch.int32)
    for width in WIDTHS if path != "torch" else (4, 16, 32):
        layout = one_message(widths_of(width, count), dim, one_sided=one_sided)
        if width == 32 or (width == 16 and reason.startswith("negative")):
            pack(rows, layout, nodes_of(count))
            continue
        for threads in (1, 2, 3) if path != "torch" else (1,):
            torch.set_num_threads(threads)
            with pytest.raises(codec.UnsendableRowError, match=f"row 57 cannot be sent: {reason.replace('^', '.')}") as caught:
                pack(rows, layout, nodes_of(count))
            assert (caught.value.row, caught.value.reason) == (57, reason)
            with pytest.raises(codec.UnsendableRowError) as caught:
                pack(rows, layout, nodes_of(count), index=index)
            assert (caught.value.row, caught.value.reason) == (0, reason)  # the row 229 of rows


def test_a_bad_value_is_found_in_every_column(path: str) -> None:
    for dim in (1, 7, 8, 15, 16, 17, 33, 63, 64, 65, 70):
        columns = range(dim) if path != "torch" else (0, dim - 1)
        for column in columns:
            for bad, one_sided in ((float("nan"), False), (float("nan"), True), (float("-inf"), False), (-1.0, True)):
                rows = torch.ones(3, dim)
                rows[1, column] = bad
                with pytest.raises(codec.UnsendableRowError) as caught:
                    pack(rows, one_message(widths_of(4, 3), dim, one_sided=one_sided), nodes_of(3))
                assert caught.value.row == 1


def test_the_limits_of_magnitude_are_exact(path: str) -> None:
    below, limit = float(np.nextafter(np.float32(2.0**126), np.float32(0))), 2.0**126
    for width in (*CODED_WIDTHS, 16):
        row = torch.tensor([[below, -below, 0.0]])
        back = coded(row, widths_of(width, 1))
        assert back.isfinite().all()
        with pytest.raises(codec.UnsendableRowError, match=r"2\^126"):
            coded(row * (limit / below), widths_of(width, 1))
    rotated: dict[str, Any] = {"rounding": Rounding.ROTATED}
    rows = torch.full((3, 9), 2.0**56)
    coded(rows, torch.tensor([3, 8, 16], dtype=torch.uint8), **rotated)  # only the narrow rows are rotated
    with pytest.raises(codec.UnsendableRowError, match=r"row 1 cannot be sent: magnitude of 2\^56 or more"):
        coded(rows, torch.tensor([3, 2, 1], dtype=torch.uint8), **rotated)
    below = float(np.nextafter(np.float32(2.0**56), np.float32(0)))
    long = torch.full((1, codec.ROTATED_DIM_LIMIT - 1), below)
    assert coded(long, widths_of(2, 1), **rotated).isfinite().all()


def agreed_message() -> tuple[Tensor, Layout, Tensor]:
    rows, widths = rows_of(12, 20), mixed_widths(12)
    layout = Layout.of(widths, [(1, 5), (6, 7)], 20, one_sided=False)
    return pack(rows, layout, nodes_of(12)), layout, nodes_of(12)


HEADER_FIELDS = [
    (range(4), r"message starts with .*, not with 48 43 51 31"),
    (range(4, 8), r"message is of layer \d+, direction \d+, purpose \d+, .* was agreed"),
    (range(8, 12), r"message is of epoch \d+, 7 is under way"),
    (range(12, 16), r"message says it has \d+ rows, 7 were agreed"),
    (range(16, 20), r"message says it has \d+ values a row, 20 were agreed"),
    (range(20, 24), r"the widths of the rows differ: their CRC-32 is 0x\w{8} in the message, 0x\w{8} here"),
    (range(24, 32), r"message says it has \d+ bytes, \d+ were agreed"),
]


@pytest.mark.parametrize(("field", "words"), HEADER_FIELDS, ids=["magic", "tag", "epoch", "rows", "dim", "crc", "length"])
def test_every_bit_of_the_header_is_checked(field: range, words: str) -> None:
    """And nothing is decoded where one differs."""
    wire, layout, nodes = agreed_message()
    part = layout.rows(6)
    for byte in field:
        for bit in range(8):
            damaged = wire.clone()
            damaged[layout.segment(6).start + byte] ^= 1 << bit
            out = torch.full((7, 20), 7.0)
            with pytest.raises(codec.WireError, match=words):
                codec.unpack(damaged, layout, 6, STREAM, nodes[part], out)
            assert (out == 7.0).all()
            codec.unpack(damaged, layout, 1, STREAM, nodes[layout.rows(1)], out)  # the other's is whole


def test_a_truncated_message_is_refused() -> None:
    wire, layout, nodes = agreed_message()
    segment, part = layout.segment(6), layout.rows(6)
    agreed = segment.stop - segment.start
    for length in (0, 1, HEADER - 1, HEADER, agreed - 1):
        out = torch.full((7, 20), 7.0)
        with pytest.raises(codec.WireError, match=f"message is {length} bytes long, {agreed} were agreed"):
            codec.unpack(wire[: segment.start + length].clone(), layout, 6, STREAM, nodes[part], out)
        assert (out == 7.0).all()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"epoch": 8}, "message is of epoch 7, 8 is under way"),
        ({"layer": 4}, "message is of layer 3, .*; layer 4, .* was agreed"),
        ({"direction": 0}, "message is of layer 3, direction 1, .*; layer 3, direction 0, .* was agreed"),
    ],
    ids=["epoch", "layer", "direction"],
)
def test_a_message_of_another_exchange_is_refused(other: dict[str, int], words: str) -> None:
    wire, layout, nodes = agreed_message()
    stream = kernels.Stream(**{**vars(STREAM), **other})
    with pytest.raises(codec.WireError, match=words):
        codec.unpack(wire, layout, 1, stream, nodes[:5], torch.zeros(5, 20))


def test_a_message_that_was_agreed_otherwise_is_refused() -> None:
    """The sender's layout differs from the receiver's in one thing at a time; the receiver says in which."""
    rows, nodes = rows_of(6, 20).abs().clamp(max=1e15), nodes_of(6)

    def layout(widths: Sequence[int] = (4, 4, 2, 8, 1, 1), dim: int = 20, **settings: Any) -> Layout:
        return one_message(torch.tensor(widths, dtype=torch.uint8), dim, **settings)

    for sender, words in (
        (layout(one_sided=True), "one-sided, stochastic; .* two-sided, stochastic was agreed"),
        (layout(rounding=Rounding.NEAREST), "two-sided, nearest; .* two-sided, stochastic was agreed"),
        (layout(rounding=Rounding.ROTATED), "two-sided, rotated; .* two-sided, stochastic was agreed"),
        (layout((4, 4, 8, 2, 1, 1)), "the widths of the rows differ"),
        (layout((4, 4, 2, 8, 1)), "message says it has 5 rows, 6 were agreed"),
        (layout((5, 4, 2, 8, 1, 1), 19), "message says it has 19 values a row, 20 were agreed"),
        (layout((4, 4, 2, 8, 1, 2)), "message says it has .* bytes, .* were agreed"),
    ):
        here = layout()
        buffer = torch.zeros(max(sender.bytes, here.bytes), dtype=torch.uint8)
        codec.pack(rows[: len(sender), : sender.dim], buffer, sender, STREAM, nodes[: len(sender)])
        with pytest.raises(codec.WireError, match=words):
            codec.unpack(buffer, here, 0, STREAM, nodes, torch.zeros(6, 20))


def test_what_an_unknown_sender_set_is_spelt_out() -> None:
    wire, layout, nodes = agreed_message()
    wire[4] |= 0x86
    with pytest.raises(codec.WireError, match="unknown codec 3, unknown flags 0x80; layer 3,"):
        codec.unpack(wire, layout, 1, STREAM, nodes[:5], torch.zeros(5, 20))


# -- dropped rows ---------------------------------------------------------------------------------------------------


def with_dropped(count: int, seed: int) -> Tensor:
    """Widths of which about a third are 0."""
    dropped = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.3
    return torch.where(dropped, DROPPED, mixed_widths(count, seed)).to(torch.uint8)


@pytest.mark.parametrize("rounding", list(Rounding))
def test_a_dropped_row_is_not_on_the_wire_and_the_header_knows(rounding: Rounding) -> None:
    """Each message is what packing the other rows alone makes, but for the header's rows and checksum."""
    widths, counts, dim = with_dropped(40, 1), [(3, 17), (0, 0), (1, 23)], 21
    layout = Layout.of(widths, counts, dim, one_sided=False, rounding=rounding)
    sent = torch.nonzero(widths)[:, 0]
    rows, nodes = rows_of(40, dim, rotated=rounding is Rounding.ROTATED), nodes_of(40)
    wire = pack(rows, layout, nodes[sent], index=sent)
    assert layout.widths.tolist() == widths[sent].tolist()
    first = 0
    for peer, count in counts:
        here = torch.arange(first, first + count)
        kept = here[widths[here] != 0]
        first += count
        alone = one_message(widths[kept], dim, rounding=rounding)
        expected = pack(rows[kept], alone, nodes[kept])
        message = wire[layout.segment(peer)]
        assert message[HEADER:].tolist() == expected[HEADER:].tolist()
        fields = struct.unpack("<IIIIIIQ", message[:HEADER].numpy().tobytes())
        assert fields[3] == count
        assert fields[5] == zlib.crc32(bytes(widths[here].tolist()))
        assert fields[6] == message_bytes(layout.histogram(peer), dim, one_sided=False, rotated=rounding is Rounding.ROTATED)
        assert sum(number for _, number in layout.histogram(peer)) == count
    assert_same_bits(unpack_all(wire, layout, nodes[sent]), coded_alike(rows[sent], widths[sent], nodes[sent], rounding))


def coded_alike(rows: Tensor, widths: Tensor, nodes: Tensor, rounding: Rounding) -> Tensor:
    layout = one_message(widths, rows.shape[1], rounding=rounding)
    return unpack_all(pack(rows, layout, nodes), layout, nodes)


def test_reordering_a_message_is_laying_all_out_anew() -> None:
    widths, counts, dim = with_dropped(60, 2), [(5, 20), (1, 15), (2, 0), (7, 25)], 19
    layout = Layout.of(widths, counts, dim, one_sided=True)
    turned = torch.cat([widths[:20].flip(0), widths[20:35], widths[35:].roll(3)])
    found = layout.reordered({5: turned[:20], 7: turned[35:]})
    expected = Layout.of(turned, counts, dim, one_sided=True)
    assert found.messages == expected.messages
    for name in ("widths", "offsets", "headers", "header_offsets"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert found.bytes == expected.bytes == layout.bytes
    assert layout.headers.tolist() == Layout.of(widths, counts, dim, one_sided=True).headers.tolist()
    nodes = nodes_of(len(found))
    wire = pack(rows_of(len(found), dim, one_sided=True), found, nodes)
    here = layout.rows(5)
    with pytest.raises(codec.WireError, match="the widths of the rows differ"):
        codec.unpack(wire, layout, 5, STREAM, nodes[here], torch.zeros(20, dim))
    with pytest.raises(MisuseError, match="keep to it"):
        layout.reordered({5: turned[:20].roll(1)[:19]})


@pytest.mark.parametrize("values_at_once", [1, 100, 1 << 17])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_factors_scale_what_is_added(values_at_once: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.SCALED_VALUES, "cpu", values_at_once)
    wire, layout, nodes = agreed_message()
    here = layout.rows(6)
    index = torch.tensor([8, 0, 3, 9, 1, 7, 4], dtype=kind)
    factors = torch.tensor([1.0, 2.5, 1.0, 4 / 3, 1.0, 0.1, 7.0])
    plain = torch.zeros(7, 20)
    codec.unpack(wire, layout, 6, STREAM, nodes[here], plain)
    out = rows_of(10, 20)
    expected = out.clone()
    expected[index.long()] += plain * factors[:, None]
    codec.unpack(wire, layout, 6, STREAM, nodes[here], out, index=index, accumulate=True, factors=factors)
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("widths", "counts", "dim", "words"),
    [
        ([4, 7], [(0, 2)], 3, "layout: row 1 has width 7"),
        ([4, 4], [(0, 3)], 3, "layout: widths has 2 entries, the peers have 3 rows"),
        ([4, 4], [(0, 3), (1, -1)], 3, "layout: widths has 2 entries"),
        ([4, 4], [(0, 1), (0, 1)], 3, "layout: a peer is named twice"),
        ([4], [(0, 1)], 0, "layout: dim 0 is out of range; allowed: 1 to 4294967295"),
    ],
)
def test_layouts_that_cannot_be(widths: list[int], counts: list[tuple[int, int]], dim: int, words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        Layout.of(torch.tensor(widths, dtype=torch.uint8), counts, dim, one_sided=False)


def test_misuse_gets_one_clear_line() -> None:
    wire, layout, nodes = agreed_message()
    rows, out = rows_of(12, 20), torch.zeros(7, 20)
    dropout = kernels.Stream(seed=0, epoch=0, layer=0)
    index = torch.arange(12)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: codec.pack(rows.double(), wire, layout, STREAM, nodes), "rows is float64; messages are made of float32"),
        (lambda: codec.pack(rows[:, :19], wire, layout, STREAM, nodes), "rows has dim 19, the layout 20"),
        (lambda: codec.pack(rows[:9], wire, layout, STREAM, nodes), "rows has 9 rows, the layout 12; give an index"),
        (lambda: codec.pack(rows, wire[1:], layout, STREAM, nodes), r"wire has \d+ bytes, the layout needs \d+"),
        (lambda: codec.pack(rows, wire.char(), layout, STREAM, nodes), "wire must be uint8"),
        (lambda: codec.pack(rows, wire, layout, dropout, nodes), "the stream's purpose is 0; rounding takes 1"),
        (lambda: codec.pack(rows, wire, layout, STREAM, nodes[1:]), r"nodes must be int64 \[12\]"),
        (lambda: codec.pack(rows, wire, layout, STREAM, nodes, index=index[:9]), r"index must be int64 \[12\]"),
        (
            lambda: codec.pack(rows, wire, layout, STREAM, nodes, index=index.double()),
            "index is float64; allowed: int32, int64",
        ),
        (lambda: codec.pack(rows, wire, layout, STREAM, nodes, ranges=torch.zeros(9)), r"ranges must be float32 \[12\]"),
        (lambda: codec.unpack(wire, layout, 2, STREAM, nodes[:5], out), "no message of peer 2; its peers: 1, 6"),
        (lambda: codec.unpack(wire, layout, 6, STREAM, nodes[:7], out[:6]), "out has 6 rows for the 7 of peer 6"),
        (lambda: codec.unpack(wire, layout, 6, STREAM, nodes[:7], out.double()), "out is float64"),
        (lambda: codec.unpack(wire, layout, 6, STREAM, nodes[:6], out), r"nodes must be int64 \[7\]"),
        (lambda: codec.unpack(wire, layout, 6, STREAM, nodes[:7], out, index=index[:6]), r"index must be int64 \[7\]"),
        (lambda: codec.unpack(wire, layout, 6, dropout, nodes[:7], out), "the stream's purpose is 0; rounding takes 1"),
        (
            lambda: codec.unpack(wire, layout, 6, STREAM, nodes[5:], out, factors=torch.ones(7)),
            "factors scale what is added by an index",
        ),
        (
            lambda: codec.unpack(wire, layout, 6, STREAM, nodes[:7], out, index=index[:7], factors=torch.ones(6)),
            r"factors must be float32 \[7\]",
        ),
        (lambda: layout.reordered({6: layout.widths[:7].flip(0) + 1}), "the message of peer 6 has "),
        (lambda: Layout.of(torch.ones(2), [(0, 2)], 3, one_sided=False), r"widths must be uint8 \[rows\] on cpu, not float32"),
        (
            lambda: Layout.of(widths_of(2, 1), [(0, 1)], 1 << 15, one_sided=False, rounding=Rounding.ROTATED),
            "dim 32768 is out of range; allowed: 1 to 32767 with rotated rounding",
        ),
    ]
    for run, words in cases:
        with pytest.raises(MisuseError, match=words) as caught:
            run()
        assert "\n" not in str(caught.value)


def test_a_layout_keeps_its_own_widths() -> None:
    widths = widths_of(4, 5)
    layout = one_message(widths, 10)
    widths.fill_(8)
    assert layout.widths.tolist() == [4] * 5
    crc = struct.unpack_from("<I", layout.headers[0].numpy().tobytes(), 20)[0]
    assert crc == one_message(widths_of(4, 5), 10).messages[0].header[5]


def test_records_that_leave_the_buffer_are_reported(path: str) -> None:
    """Native code looks at every record's place itself, whatever the layout says."""
    if path == "torch":
        pytest.skip("torch's indexing checks on its own")
    for width in WIDTHS:
        rows, nodes = torch.rand(40, 21), nodes_of(40)
        layout = one_message(widths_of(width, 40), 21)
        wire = pack(rows, layout, nodes)
        for row, place in ((39, layout.bytes), (30, int(layout.offsets[39]) + 1), (12, -1), (5, 1 << 62), (3, -(1 << 63))):
            layout.offsets[row] = place
            out = torch.full((40, 21), 7.0)
            with pytest.raises(codec.WireError, match=f"the record of row {row} is not within the {layout.bytes} bytes"):
                codec.unpack(wire, layout, 0, STREAM, nodes, out)
            assert (out[row] == 7.0).all()
