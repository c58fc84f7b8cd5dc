"""Halo messages as low-bit integers: rows of float32 to the bytes of the wire and back. docs/wire-format.md has every byte.

A :class:`Layout` says where the records of some peers' messages lie in one wire buffer; :func:`pack` fills such a buffer in
one call, :func:`unpack` checks and decodes the message of one peer. Rounding is stochastic (unbiased) with counter-based
random bits, so a message is the same from every device, for any number of threads and any partition.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halocast.errors import MisuseError, RunError, nearest
from halocast.runtime import kernels, kernels_torch
from halocast.traces import wire as wire_format

MAGIC = 0x31514348
"""The bytes "HCQ1"."""
MAGNITUDE_LIMIT = 2.0**126
"""Values must be smaller to be coded (or sent as bfloat16): the difference of two of them is finite."""
ROTATED_MAGNITUDE_LIMIT = 2.0**56
"""The same for rows of the rotated codec, whose squares are summed."""
ROTATED_DIM_LIMIT = 1 << 15
"""Rows of the rotated codec must be shorter."""

_HEADER = struct.Struct("<IIIIIIQ")
_ROWS_FIELD, _WIDTHS_FIELD = 3, 5
"""Among the header's fields: how many rows, and the CRC-32 of their widths."""
_WIDTHS_BYTES = slice(20, 24)
"""The bytes of the latter."""
SCALED_VALUES = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Values that are decoded together where they are scaled: on a CPU as many for each thread as stay in its cache; a GPU is asked
seldom."""


class Rounding(StrEnum):
    """How a value becomes one of the levels beside it."""

    STOCHASTIC = "stochastic"
    """Up or down by chance, so that the mean of many messages is the value: what AdaQP's convergence needs."""
    NEAREST = "nearest"
    """To the nearer level: smaller errors, and a bias."""
    ROTATED = "rotated"
    """Rows of 1 and 2 bits after a random rotation, unbiased over the rotations; wider rows as STOCHASTIC."""

    @property
    def code(self) -> int:
        """As the header's flags have it."""
        return list(Rounding).index(self)


class WireError(RunError):
    """A message is not the one that was agreed; the text says what differs, the caller knows the peer and layer."""


class UnsendableRowError(RunError):
    """A row has a value that no code can stand for."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row} cannot be sent: {reason}")
        self.row = row
        """Its position among the packed rows."""
        self.reason = reason
        """"NaN", "infinity", "magnitude of 2^126 or more" or "negative value in a row declared non-negative"."""


@dataclass(frozen=True, eq=False)
class Records:
    """Rows and where the record of each starts in a wire buffer."""

    widths: Tensor
    """uint8 ``[rows]``, bits of a value."""
    offsets: Tensor
    """int64 ``[rows]``, bytes."""
    dim: int
    one_sided: bool
    """All values are known to be ≥ 0 (as after ReLU), so records carry no offset."""
    rounding: Rounding

    def __len__(self) -> int:
        return self.widths.numel()


@dataclass(frozen=True)
class Message:
    """One peer's part of a wire buffer."""

    rows: slice
    """Its records among those of the layout."""
    segment: slice
    """Its bytes in the buffer."""
    histogram: wire_format.BitHistogram
    header: tuple[int, ...]
    """(magic, flags, 0, rows, dim, CRC-32 of the widths, bytes): all but the stream's tag and epoch; dropped rows count."""


@dataclass(frozen=True, eq=False)
class Layout(Records):
    """Where the records of some peers' messages lie in one wire buffer; made where widths are assigned, used every epoch.

    Its rows are those that have a record: dropped ones are in the headers and the histograms, and nowhere else.
    """

    bytes: int
    """Length of all messages together."""
    headers: Tensor
    """uint8 ``[peers, 32]`` without tag and epoch."""
    header_offsets: Tensor
    """int64 ``[peers]``, where the messages start."""
    messages: Mapping[int, Message]

    @classmethod
    def of(
        cls,
        widths: Tensor,
        counts: Sequence[tuple[int, int]],
        dim: int,
        *,
        one_sided: bool,
        rounding: Rounding = Rounding.STOCHASTIC,
        device: torch.device | str = "cpu",
        apart: bool = False,
    ) -> Layout:
        """Lay out messages one after the other. widths: uint8 ``[rows]`` on the CPU. counts: (peer, rows) in row order.

        apart: each message is at the start of a buffer of its own (see `alone`).
        Rows of width `wire.DROPPED` get no record. A peer without rows gets a message that is a header only. The tensors of
        the layout live on `device`. Raises MisuseError for an unknown width, a wrong length, a peer named twice, and a dim
        that the format cannot express.
        """
        rounding = Rounding(rounding)
        _check_layout(widths, counts, dim, rounding)
        record_bytes = _record_sizes(dim, one_sided, rounding)[widths.int()]
        ends = torch.cumsum(record_bytes, 0)
        offsets = ends - record_bytes
        messages: dict[int, Message] = {}
        headers = bytearray()
        row = start = record = 0
        for number, (peer, count) in enumerate(counts, start=1):
            rows = slice(row, row + count)
            offsets[rows] += number * wire_format.HEADER_BYTES
            stop = number * wire_format.HEADER_BYTES + (int(ends[rows.stop - 1]) if rows.stop else 0)
            of_peer = widths[rows]
            bits, occurrences = torch.unique(of_peer, return_counts=True)
            histogram = tuple(zip(bits.tolist(), occurrences.tolist(), strict=True))
            flags = int(one_sided) | rounding.code << 1
            header = (MAGIC, flags, 0, count, dim, _checksum(of_peer), stop - start)
            headers += _HEADER.pack(*header)
            records = slice(record, record + count - dict(histogram).get(wire_format.DROPPED, 0))
            if apart:
                offsets[rows] -= start
            messages[peer] = Message(records, slice(0, stop - start) if apart else slice(start, stop), histogram, header)
            row, start, record = rows.stop, stop, records.stop
        sent = widths != wire_format.DROPPED
        return cls(
            widths=widths[sent].to(device),
            offsets=offsets[sent].to(device),
            dim=dim,
            one_sided=one_sided,
            rounding=rounding,
            bytes=start,
            headers=torch.frombuffer(headers, dtype=torch.uint8).clone().view(-1, wire_format.HEADER_BYTES).to(device)
            if headers
            else torch.empty((0, wire_format.HEADER_BYTES), dtype=torch.uint8, device=device),
            header_offsets=torch.tensor([m.segment.start for m in messages.values()], dtype=torch.int64, device=device),
            messages=messages,
        )

    def reordered(self, widths: Mapping[int, Tensor]) -> Layout:
        """The layout with the messages of some peers in other orders: who is dropped changes, how many are does not.

        widths: by peer, uint8 on the CPU, one for each row of the message, dropped ones too, each as often as it was. What
        other peers get is copied as it is. Raises MisuseError for widths that would make another message.
        """
        sizes = _record_sizes(self.dim, self.one_sided, self.rounding).numpy()
        offsets, of_records, headers = self.offsets.clone(), self.widths.clone(), self.headers.clone()
        messages = dict(self.messages)
        for number, (peer, message) in enumerate(self.messages.items()):
            if peer not in widths:
                continue
            of_peer = widths[peer].numpy()
            records = of_peer[of_peer != wire_format.DROPPED]
            record_bytes = torch.from_numpy(np.take(sizes, records))
            ends = torch.cumsum(record_bytes, 0) + (message.segment.start + wire_format.HEADER_BYTES)
            agreed = (message.header[_ROWS_FIELD], message.rows.stop - message.rows.start)
            if (len(of_peer), len(records)) != agreed or (len(records) and int(ends[-1]) != message.segment.stop):
                raise MisuseError(f"layout: the message of peer {peer} has {message.histogram}, (bits, rows); keep to it")
            offsets[message.rows] = (ends - record_bytes).to(offsets.device)
            of_records[message.rows] = torch.from_numpy(records).to(of_records.device)
            header = (*message.header[:_WIDTHS_FIELD], _checksum(widths[peer]), *message.header[_WIDTHS_FIELD + 1 :])
            checksum = torch.frombuffer(bytearray(_HEADER.pack(*header)), dtype=torch.uint8)[_WIDTHS_BYTES]
            headers[number, _WIDTHS_BYTES] = checksum.to(headers.device)
            messages[peer] = replace(message, header=header)
        return replace(self, widths=of_records, offsets=offsets, headers=headers, messages=messages)

    def alone(self, peer: int, count: int) -> Layout:
        """The message of one peer's first `count` rows in a buffer of its own; shares this layout's tensors.

        The layout must be laid out `apart`, and without dropped rows.
        """
        message = self.messages[peer]
        rows = slice(message.rows.start, message.rows.start + count)
        widths = self.widths[rows]
        bits, occurrences = torch.unique(widths.cpu(), return_counts=True)
        histogram = tuple(zip(bits.tolist(), occurrences.tolist(), strict=True))
        size = wire_format.message_bytes(
            histogram, self.dim, one_sided=self.one_sided, rotated=self.rounding is Rounding.ROTATED
        )
        header = (*message.header[:_ROWS_FIELD], count, self.dim, _checksum(widths.cpu()), size)
        packed = torch.frombuffer(bytearray(_HEADER.pack(*header)), dtype=torch.uint8)
        return replace(
            self,
            widths=widths,
            offsets=self.offsets[rows],
            bytes=size,
            headers=packed.view(1, wire_format.HEADER_BYTES).to(self.headers.device),
            header_offsets=self.header_offsets[:1],
            messages={peer: Message(slice(0, count), slice(0, size), histogram, header)},
        )

    @property
    def peers(self) -> tuple[int, ...]:
        return tuple(self.messages)

    def rows(self, peer: int) -> slice:
        """The peer's records among those of the layout."""
        return self.messages[peer].rows

    def segment(self, peer: int) -> slice:
        """The bytes of the peer's message in the wire buffer."""
        return self.messages[peer].segment

    def histogram(self, peer: int) -> wire_format.BitHistogram:
        """(bits, rows) of the peer's message, ascending bits."""
        return self.messages[peer].histogram


def pack(
    rows: Tensor,
    wire: Tensor,
    layout: Layout,
    stream: kernels.Stream,
    nodes: Tensor,
    *,
    index: Tensor | None = None,
    ranges: Tensor | None = None,
) -> None:
    """Write the messages of all peers: headers and records.

    rows: float32 ``[M, dim]``, strided rows are fine. wire: uint8, at least ``layout.bytes`` long. stream: of purpose
    rounding. nodes: int64 ``[layout rows]``, global ids, which with the stream decide the random bits. index: int32 or int64
    ``[layout rows]``, the row of `rows` to send, trusted; without it `rows` has the layout's rows in order. ranges: float32
    ``[layout rows]``, receives maximum − minimum of each row (one-sided: the maximum) whatever its width.

    Raises UnsendableRowError for the lowest row with a NaN, an infinity, a magnitude of 2^126 or more or, where declared
    non-negative, a value below 0 (rows of 32 bits are sent as they are); the buffer is then unspecified.
    """
    _check_rows("pack", "rows", rows, layout)
    if index is None:
        if rows.shape[0] != len(layout):
            raise MisuseError(f"pack: rows has {rows.shape[0]} rows, the layout {len(layout)}; give an index to choose some")
    else:
        kernels._row_index("pack", index, rows)
        kernels.check_vector("pack", "index", index, index.dtype, len(layout), rows.device)
    _check_wire("pack", wire, rows)
    if wire.numel() < layout.bytes:
        raise MisuseError(f"pack: wire has {wire.numel()} bytes, the layout needs {layout.bytes}")
    _check_stream("pack", stream)
    kernels.check_vector("pack", "nodes", nodes, torch.int64, len(layout), rows.device)
    kernels.check_optional("pack", "ranges", ranges, rows, len(layout))
    offender = _pack(rows, wire, layout, layout.headers, layout.header_offsets, stream, nodes, index, ranges)
    if offender >= 0:
        row = rows[offender if index is None else int(index[offender])]
        raise UnsendableRowError(offender, _reason(row, int(layout.widths[offender]), layout))


def unpack(
    wire: Tensor,
    layout: Layout,
    peer: int,
    stream: kernels.Stream,
    nodes: Tensor,
    out: Tensor,
    *,
    index: Tensor | None = None,
    accumulate: bool = False,
    factors: Tensor | None = None,
) -> None:
    """Check the message of one peer, then decode its rows into ``out[:rows]`` or ``out[index]``.

    wire: uint8, the buffer of the whole layout. nodes: int64 ``[rows of the peer]``, global ids. out: float32 ``[N, dim]``.
    index: int32 or int64 ``[rows of the peer]``, trusted, *without repeats*. accumulate: add to what is there. factors:
    float32 ``[rows of the peer]``, what each row is multiplied by before it is added; only with `accumulate` and an index. Rows
    without a record do not count.

    Raises WireError where the message is shorter than agreed or its header differs in any field from what the layout and
    the stream say; nothing is decoded then.
    """
    if peer not in layout.messages:
        raise MisuseError(f"unpack: the layout has no message of peer {peer}; its peers: {', '.join(map(str, layout.peers))}")
    message = layout.messages[peer]
    count = message.rows.stop - message.rows.start
    _check_rows("unpack", "out", out, layout)
    if index is None:
        if out.shape[0] < count:
            raise MisuseError(f"unpack: out has {out.shape[0]} rows for the {count} of peer {peer}")
    else:
        kernels._row_index("unpack", index, out)
        kernels.check_vector("unpack", "index", index, index.dtype, count, out.device)
    _check_wire("unpack", wire, out)
    _check_stream("unpack", stream)
    kernels.check_vector("unpack", "nodes", nodes, torch.int64, count, out.device)
    if factors is not None:
        kernels.check_vector("unpack", "factors", factors, torch.float32, count, out.device)
    _check_header(wire[message.segment], message.header, stream)
    if factors is None:
        offender = _unpack(wire, layout, message.rows, stream, nodes, out, index, accumulate)
    elif accumulate and index is not None:
        offender = _add_scaled(wire, layout, message.rows, stream, nodes, out, index, factors)
    else:
        raise MisuseError("unpack: factors scale what is added by an index; scale rows that are written where they are")
    if offender >= 0:
        raise WireError(f"the record of row {offender} is not within the {wire.numel()} bytes of the buffer")


def _pack(
    rows: Tensor,
    wire: Tensor,
    records: Records,
    headers: Tensor,
    header_offsets: Tensor,
    stream: kernels.Stream,
    nodes: Tensor,
    index: Tensor | None,
    ranges: Tensor | None,
) -> int:
    """Pack checked tensors on whatever serves their device; returns the lowest row that cannot be sent, or −1."""
    where = _implementation(rows)
    if where is None:
        kernels_torch.write_headers(headers, header_offsets, stream, wire)
        return kernels_torch.pack(rows, wire, records, stream, nodes, index, ranges)
    run = (
        kernels.native().pack if where == "cpu" else functools.partial(_on_gpu, kernels.native().pack_cuda, wire, len(records))
    )
    offender: int = run(
        *kernels.place(rows), _is_index64(index), kernels.address(index), wire.data_ptr(), wire.numel(),
        records.widths.data_ptr(), records.offsets.data_ptr(), len(records), records.dim, records.one_sided,
        records.rounding.code, stream.seed, stream.epoch, stream.tag, nodes.data_ptr(), headers.data_ptr(),
        header_offsets.data_ptr(), header_offsets.numel(), kernels.address(ranges), torch.get_num_threads(),
    )  # fmt: skip
    return offender


def _unpack(
    wire: Tensor,
    records: Records,
    part: slice,
    stream: kernels.Stream,
    nodes: Tensor,
    out: Tensor,
    index: Tensor | None,
    accumulate: bool,
) -> int:
    """Decode `part` of the records on whatever serves their device; returns a row that is not within the wire, or −1."""
    where = _implementation(out)
    widths, offsets = records.widths[part], records.offsets[part]
    if where is None:
        kernels_torch.unpack(wire, records, widths, offsets, stream, nodes, out, index, accumulate)
        return -1
    run = (
        kernels.native().unpack
        if where == "cpu"
        else functools.partial(_on_gpu, kernels.native().unpack_cuda, wire, widths.numel())
    )
    offender: int = run(
        wire.data_ptr(), wire.numel(), widths.data_ptr(), offsets.data_ptr(), widths.numel(), records.dim,
        records.one_sided, records.rounding.code, stream.seed, stream.epoch, stream.tag, nodes.data_ptr(),
        *kernels.place(out), _is_index64(index), kernels.address(index), accumulate, torch.get_num_threads(),
    )  # fmt: skip
    return offender


def _add_scaled(
    wire: Tensor,
    records: Records,
    part: slice,
    stream: kernels.Stream,
    nodes: Tensor,
    out: Tensor,
    index: Tensor,
    factors: Tensor,
) -> int:
    """`_unpack` that adds each row times its factor: some rows at a time go through scratch memory that stays in the cache."""
    count = part.stop - part.start
    values = SCALED_VALUES["cpu"] * torch.get_num_threads() if out.device.type == "cpu" else SCALED_VALUES["cuda"]
    step = max(1, values // records.dim)
    scratch = out.new_empty((min(step, count), records.dim))
    for first in range(0, count, step):
        last = min(first + step, count)
        here, decoded = slice(part.start + first, part.start + last), scratch[: last - first]
        offender = _unpack(wire, records, here, stream, nodes[first:last], decoded, None, False)
        if offender >= 0:
            return first + offender
        kernels.scatter_add_rows(decoded.mul_(factors[first:last, None]), index[first:last], out)
    return -1


def _implementation(tensor: Tensor) -> str | None:
    """Who serves this tensor: "cpu" or "cuda" of the native module, or ``None`` for plain torch.

    `pack_cuda` and `unpack_cuda` take what `pack` and `unpack` take, in the same order, with the address of the CUDA
    stream in the place of the number of threads; all addresses are the device's.
    """
    if kernels.is_native(tensor):
        return "cpu"
    return "cuda" if tensor.device.type == "cuda" and kernels.has_cuda_kernels() else None


def _on_gpu(launch: Callable[..., None], wire: Tensor, count: int, *arguments: Any) -> int:
    """Run pack_cuda or unpack_cuda on torch's stream and wait for what it found: the first bad of `count` rows, or −1.

    arguments: those of the CPU's function; the last, the number of threads, gives way to the GPU's two.
    """
    first_bad = torch.full((1,), count, dtype=torch.int64, device=wire.device)
    with torch.cuda.device(wire.device):
        launch(*arguments[:-1], first_bad.data_ptr(), torch.cuda.current_stream().cuda_stream)
    row = int(first_bad)
    return row if row < count else -1


def _is_index64(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.int64


@functools.cache
def _record_sizes(dim: int, one_sided: bool, rounding: Rounding) -> Tensor:
    """Bytes of a record by width, int64 ``[256]``; 0 for widths that have none. Not to be written to."""
    sizes = torch.zeros(256, dtype=torch.int64)
    for bits in wire_format.WIDTHS:
        sizes[bits] = wire_format.record_bytes(bits, dim, one_sided=one_sided, rotated=rounding is Rounding.ROTATED)
    return sizes


def _checksum(widths: Tensor) -> int:
    """What the header says of a message's widths."""
    return zlib.crc32(widths.numpy().tobytes())


def _check_layout(widths: Tensor, counts: Sequence[tuple[int, int]], dim: int, rounding: Rounding) -> None:
    if widths.dtype != torch.uint8 or widths.dim() != 1 or widths.device.type != "cpu":
        raise MisuseError(
            f"layout: widths must be uint8 [rows] on cpu, "
            f"not {kernels._kind(widths.dtype)} {list(widths.shape)} on {widths.device}"
        )
    limit = ROTATED_DIM_LIMIT if rounding is Rounding.ROTATED else 1 << 32
    if not 1 <= dim < limit:
        raise MisuseError(f"layout: dim {dim} is out of range; allowed: 1 to {limit - 1} with {rounding} rounding")
    expected = sum(count for _, count in counts)
    if any(count < 0 for _, count in counts) or widths.numel() != expected:
        raise MisuseError(f"layout: widths has {widths.numel()} entries, the peers have {expected} rows")
    if len({peer for peer, _ in counts}) != len(counts):
        raise MisuseError(f"layout: a peer is named twice among {[peer for peer, _ in counts]}")
    known = torch.zeros(256, dtype=torch.bool)
    known[[wire_format.DROPPED, *wire_format.WIDTHS]] = True
    unknown = torch.nonzero(~known[widths.int()])
    if unknown.numel():
        row = int(unknown[0])
        width = int(widths[row])
        raise MisuseError(f"layout: row {row} has width {width}{nearest(str(width), map(str, wire_format.WIDTHS))}")


def _check_rows(where: str, what: str, rows: Tensor, layout: Layout) -> None:
    if rows.dtype != torch.float32:
        raise MisuseError(f"{where}: {what} is {kernels._kind(rows.dtype)}; messages are made of float32")
    kernels.check_matrix(where, what, rows)
    if rows.shape[1] != layout.dim:
        raise MisuseError(f"{where}: {what} has dim {rows.shape[1]}, the layout {layout.dim}")
    if rows.device != layout.offsets.device:
        raise MisuseError(f"{where}: {what} is on {rows.device}, the layout on {layout.offsets.device}")


def _check_wire(where: str, wire: Tensor, pattern: Tensor) -> None:
    kernels.check_vector(where, "wire", wire, torch.uint8, wire.numel(), pattern.device)


def _check_stream(where: str, stream: kernels.Stream) -> None:
    if stream.purpose != kernels.PURPOSE_ROUNDING:
        raise MisuseError(f"{where}: the stream's purpose is {stream.purpose}; rounding takes {kernels.PURPOSE_ROUNDING}")


def _check_header(message: Tensor, header: tuple[int, ...], stream: kernels.Stream) -> None:
    """Compare a message with what was agreed; raises WireError."""
    magic, flags, _, rows, dim, crc, length = header
    if message.numel() < length:
        raise WireError(f"message is {message.numel()} bytes long, {length} were agreed")
    if message.device.type == "cpu":
        start = ctypes.string_at(message.data_ptr(), wire_format.HEADER_BYTES)
    else:
        start = message[: wire_format.HEADER_BYTES].cpu().numpy().tobytes()
    found = _HEADER.unpack(start)
    if found == (magic, stream.tag | flags, stream.epoch, rows, dim, crc, length):
        return
    if found[0] != magic:
        raise WireError(f"message starts with {start[:4].hex(' ')}, not with {_HEADER.pack(*header)[:4].hex(' ')}")
    if found[1] != stream.tag | flags:
        raise WireError(f"message is of {_tag(found[1])}; {_tag(stream.tag | flags)} was agreed")
    if found[2] != stream.epoch:
        raise WireError(f"message is of epoch {found[2]}, {stream.epoch} is under way")
    for what, is_there, agreed in (("rows", found[3], rows), ("values a row", found[4], dim), ("bytes", found[6], length)):
        if is_there != agreed:
            raise WireError(f"message says it has {is_there} {what}, {agreed} were agreed")
    raise WireError(f"the widths of the rows differ: their CRC-32 is {found[5]:#010x} in the message, {crc:#010x} here")


def _tag(tag: int) -> str:
    """Spell out the header's second word."""
    codec = tag >> 1 & 3
    rounding = list(Rounding)[codec].value if codec < len(Rounding) else f"unknown codec {codec}"
    sides = "one-sided" if tag & 1 else "two-sided"
    # Bits 3 to 7 mean nothing yet; a message that sets them comes from another version.
    rest = f", unknown flags {tag & 0xF8:#04x}" if tag & 0xF8 else ""
    return f"layer {tag >> 8 & 0xFFFF}, direction {tag >> 24 & 0xF}, purpose {tag >> 28}, {sides}, {rounding}{rest}"


def _reason(row: Tensor, width: int, records: Records) -> str:
    """Why a row cannot be sent."""
    if row.isnan().any():
        return "NaN"
    if row.isinf().any():
        return "infinity"
    rotated = records.rounding is Rounding.ROTATED and width <= wire_format.ROTATED_WIDTH_LIMIT
    if (row.abs() >= (ROTATED_MAGNITUDE_LIMIT if rotated else MAGNITUDE_LIMIT)).any():
        return f"magnitude of 2^{56 if rotated else 126} or more"
    return "negative value in a row declared non-negative"
