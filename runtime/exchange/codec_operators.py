"""The codec as torch operators, ``halocast::pack`` and ``halocast::unpack``, for programs that are traced or compiled.

They return new tensors instead of writing into given ones; the exchange itself calls :mod:`halocast.runtime.exchange.codec`,
which costs no dispatch. Shapes follow from the arguments alone, the length of the wire among them, so that ``torch.compile``
and ``torch.library.opcheck`` work. No gradient flows through a message: the backward exchange sends its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.runtime.exchange.codec import Layout, Message, Rounding

_SEED_LIMIT = 1 << 64
_ONLY_PEER = 0
"""The operator knows one message and no peers."""


def pack(
    rows: Tensor,
    layout: Layout,
    stream: kernels.Stream,
    nodes: Tensor,
    *,
    index: Tensor | None = None,
    with_ranges: bool = False,
) -> tuple[Tensor, Tensor]:
    """Messages of all peers, as a new tensor: (wire uint8 ``[layout.bytes]``, ranges float32 ``[layout rows]``).

    Arguments and errors are those of :func:`halocast.runtime.exchange.codec.pack`. Without `with_ranges`, which may cost a pass
    over the rows, ranges is empty.
    """
    wire, ranges = torch.ops.halocast.pack(
        rows,
        layout.widths,
        layout.offsets,
        layout.headers,
        layout.header_offsets,
        nodes,
        index,
        layout.bytes,
        layout.dim,
        layout.one_sided,
        layout.rounding.code,
        *_numbers_of(stream),
        with_ranges,
    )
    return wire, ranges


def unpack(wire: Tensor, layout: Layout, peer: int, stream: kernels.Stream, nodes: Tensor) -> Tensor:
    """Check and decode the message of one peer: float32 ``[rows of the peer, dim]``, a new tensor.

    Arguments and errors are those of :func:`halocast.runtime.exchange.codec.unpack`.
    """
    if peer not in layout.messages:
        raise MisuseError(f"unpack: the layout has no message of peer {peer}; its peers: {', '.join(map(str, layout.peers))}")
    message = layout.messages[peer]
    rows: Tensor = torch.ops.halocast.unpack(
        wire,
        layout.widths[message.rows],
        layout.offsets[message.rows],
        nodes,
        message.segment.start,
        message.header,
        layout.dim,
        layout.one_sided,
        layout.rounding.code,
        *_numbers_of(stream),
    )
    return rows


def _numbers_of(stream: kernels.Stream) -> tuple[int, int, int, int, int]:
    """(seed, epoch, layer, direction, purpose) as an operator's integers, which are signed: large seeds become negative."""
    seed = stream.seed - _SEED_LIMIT if stream.seed >= _SEED_LIMIT // 2 else stream.seed
    return seed, stream.epoch, stream.layer, stream.direction, stream.purpose


def _stream_of(seed: int, epoch: int, layer: int, direction: int, purpose: int) -> kernels.Stream:
    return kernels.Stream(seed % _SEED_LIMIT, epoch, layer, direction, purpose)


@torch.library.custom_op("halocast::pack", mutates_args=())
def _pack(
    rows: Tensor,
    widths: Tensor,
    offsets: Tensor,
    headers: Tensor,
    header_offsets: Tensor,
    nodes: Tensor,
    index: Tensor | None,
    wire_bytes: int,
    dim: int,
    one_sided: bool,
    rounding: int,
    seed: int,
    epoch: int,
    layer: int,
    direction: int,
    purpose: int,
    with_ranges: bool,
) -> tuple[Tensor, Tensor]:
    layout = Layout(
        widths=widths,
        offsets=offsets,
        dim=dim,
        one_sided=one_sided,
        rounding=list(Rounding)[rounding],
        bytes=wire_bytes,
        headers=headers,
        header_offsets=header_offsets,
        messages={},
    )
    wire = rows.new_empty(wire_bytes, dtype=torch.uint8)
    ranges = rows.new_empty(widths.shape[0] if with_ranges else 0)
    stream = _stream_of(seed, epoch, layer, direction, purpose)
    codec.pack(rows, wire, layout, stream, nodes, index=index, ranges=ranges if with_ranges else None)
    return wire, ranges


@_pack.register_fake
def _fake_pack(
    rows: Tensor,
    widths: Tensor,
    offsets: Tensor,
    headers: Tensor,
    header_offsets: Tensor,
    nodes: Tensor,
    index: Tensor | None,
    wire_bytes: int,
    dim: int,
    one_sided: bool,
    rounding: int,
    seed: int,
    epoch: int,
    layer: int,
    direction: int,
    purpose: int,
    with_ranges: bool,
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(wire_bytes, dtype=torch.uint8), rows.new_empty(widths.shape[0] if with_ranges else 0)


@torch.library.custom_op("halocast::unpack", mutates_args=())
def _unpack(
    wire: Tensor,
    widths: Tensor,
    offsets: Tensor,
    nodes: Tensor,
    start: int,
    header: Sequence[int],
    dim: int,
    one_sided: bool,
    rounding: int,
    seed: int,
    epoch: int,
    layer: int,
    direction: int,
    purpose: int,
) -> Tensor:
    """start: where the message begins in the wire. header: as :class:`halocast.runtime.exchange.codec.Message` has it."""
    *_, message_bytes = header
    rows = slice(0, widths.shape[0])
    layout = Layout(
        widths=widths,
        offsets=offsets,
        dim=dim,
        one_sided=one_sided,
        rounding=list(Rounding)[rounding],
        bytes=start + message_bytes,
        headers=wire.new_empty((0, 0)),
        header_offsets=offsets.new_empty(0),
        messages={_ONLY_PEER: Message(rows, slice(start, start + message_bytes), (), tuple(header))},
    )
    out = torch.empty((widths.shape[0], dim), dtype=torch.float32, device=wire.device)
    codec.unpack(wire, layout, _ONLY_PEER, _stream_of(seed, epoch, layer, direction, purpose), nodes, out)
    return out


@_unpack.register_fake
def _fake_unpack(
    wire: Tensor,
    widths: Tensor,
    offsets: Tensor,
    nodes: Tensor,
    start: int,
    header: Sequence[int],
    dim: int,
    one_sided: bool,
    rounding: int,
    seed: int,
    epoch: int,
    layer: int,
    direction: int,
    purpose: int,
) -> Tensor:
    return wire.new_empty((widths.shape[0], dim), dtype=torch.float32)
