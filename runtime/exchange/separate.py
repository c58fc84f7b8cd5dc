"""Quantised messages of methods that visit one peer after another: each message is encoded and decoded by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from halocast.runtime.exchange import codec
from halocast.runtime.exchange.quantized import (
    ExchangeKey,
    MessageWidths,
    QuantizedMessages,
    naming_the_node,
    naming_the_sender,
)
from halocast.traces.operations import Direction


class SeparateMessages(QuantizedMessages):
    """Encodes and decodes one peer's message at a time, each in a buffer of its own: for methods that visit peers in turn."""

    _messages_are_apart = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._alone: dict[tuple[ExchangeKey, bool, int, int], codec.Layout] = {}
        super().__init__(*arguments, **options)

    def install(self, widths: MessageWidths) -> None:
        super().install(widths)
        self._alone.clear()

    def pack_for(self, peer: int, layer: int, direction: Direction, epoch: int, rows: Tensor, count: int, wire: Tensor) -> None:
        """Encode the first `count` rows for one peer into `wire`, with the same bits each time. Raises RunError as `pack`.

        rows: forward the own rows, backward the block of gradients of the peer's rows.
        """
        channel = self._channels[layer, direction]
        messages = _first_messages(channel.shape.rows_out, peer, count)
        nodes, index = channel.sent_nodes[messages], None
        if direction is Direction.BACKWARD:
            rows = rows[:count]
        elif channel.source is not None:
            rows = rows[channel.source][messages]
        else:
            assert channel.index is not None
            index = channel.index[messages]
        if self.traces_energies:
            if not channel.energies.numel():
                channel.energies = torch.zeros_like(channel.ranges)
            values = rows if index is None else rows[index]
            channel.energies[messages] = torch.linalg.vector_norm(values, dim=1).square_()
        ranges = channel.ranges[messages] if self.traces_ranges else None
        layout = self._of_peer((layer, direction), peer, count, incoming=False)
        with naming_the_node(layer, direction, epoch, nodes):
            codec.pack(rows, wire, layout, self._stream(layer, direction, epoch), nodes, index=index, ranges=ranges)

    def unpack_from(
        self, peer: int, layer: int, direction: Direction, epoch: int, wire: Tensor, count: int, rows: Tensor
    ) -> None:
        """Decode a peer's message of its first `count` rows: into a block of them going forward, added to own rows going
        backward."""
        channel = self._channels[layer, direction]
        messages = _first_messages(channel.shape.rows_in, peer, count)
        forward = direction is Direction.FORWARD
        with naming_the_sender(layer, direction, epoch, peer):
            codec.unpack(
                wire,
                self._of_peer((layer, direction), peer, count, incoming=True),
                peer,
                self._stream(layer, direction, epoch),
                channel.received_nodes[messages],
                rows,
                index=None if forward else channel.received_rows[messages],
                accumulate=not forward,
            )

    def _of_peer(self, key: ExchangeKey, peer: int, count: int, *, incoming: bool) -> codec.Layout:
        if (key, incoming, peer, count) not in self._alone:
            channel = self._channels[key]
            layout = channel.incoming if incoming else channel.outgoing
            assert isinstance(layout, codec.Layout), "methods that visit peers in turn drop no messages"
            self._alone[key, incoming, peer, count] = layout.alone(peer, count)
        return self._alone[key, incoming, peer, count]


def _first_messages(counts: Sequence[int], peer: int, count: int) -> slice:
    """The first `count` messages of one peer among those of all."""
    start = sum(counts[:peer])
    return slice(start, start + count)
