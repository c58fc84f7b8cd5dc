"""A rank's quantised messages: which rows go where, at which width, and their way through the codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halocast.errors import MisuseError, RunError
from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.runtime.exchange.dropping import DroppingPair, all_dropped
from halocast.runtime.programs.adaqp import ExchangeShape
from halocast.traces.operations import Direction
from halocast.traces.wire import DROPPED, WIDTHS, BitHistogram
from halocast.traces.workload import BitAssignment, ExchangeBits, PartStatistics

ExchangeKey = tuple[int, Direction]
WidthArray = npt.NDArray[np.uint8]
DIRECTION_WORDS = {Direction.FORWARD: 0, Direction.BACKWARD: 1}
"""The direction as random streams count it."""


@dataclass(frozen=True)
class MessageWidths:
    """The width of each message that one rank sends and receives: uint8, peer after peer, by (layer, direction)."""

    outgoing: Mapping[ExchangeKey, WidthArray]
    incoming: Mapping[ExchangeKey, WidthArray]

    def check(self, shapes: Sequence[ExchangeShape], *, dropping: bool = False) -> None:
        """Raise MisuseError for a missing or unknown exchange, a wrong length or an unknown width.

        dropping: messages may have width 0, as long as another of the same pair of ranks has not.
        """
        for way, arrays in (("sent", self.outgoing), ("received", self.incoming)):
            for shape in shapes:
                where = f"widths of layer {shape.layer} {shape.direction}, {way}"
                expected = sum(shape.rows_out if way == "sent" else shape.rows_in)
                if (shape.layer, shape.direction) not in arrays:
                    raise MisuseError(f"{where}: missing; give one width for each of the {expected} messages")
                widths = arrays[shape.layer, shape.direction]
                if widths.shape != (expected,):
                    raise MisuseError(f"{where}: {widths.size} widths for {expected} messages; give one a message")
                unknown = np.setdiff1d(widths, (DROPPED, *WIDTHS) if dropping else WIDTHS)
                if unknown.size and unknown[0] == DROPPED:
                    raise MisuseError(f"{where}: width 0 drops messages; set method.dropping = true for that")
                if unknown.size:
                    raise MisuseError(f"{where}: width {unknown[0]} is unknown; allowed: {', '.join(map(str, WIDTHS))}")
                rows = shape.rows_out if way == "sent" else shape.rows_in
                lost = all_dropped(widths, rows)
                if lost is not None:
                    raise MisuseError(
                        f"{where}: all {rows[lost]} messages {'to' if way == 'sent' else 'of'} rank {lost} have width 0, and "
                        "none is left to be scaled in their place; give at least one another width"
                    )
            unexpected = set(arrays) - {(shape.layer, shape.direction) for shape in shapes}
            if unexpected:
                layer, direction = min(unexpected)
                raise MisuseError(f"widths of layer {layer} {direction}: nothing is exchanged there")

    def assignment(self, shapes: Sequence[ExchangeShape], *, rotated: bool) -> BitAssignment:
        """How many messages have which width, which is all that programs look at."""
        return BitAssignment(
            {
                (shape.layer, shape.direction): ExchangeBits(
                    _histograms(self.outgoing[shape.layer, shape.direction], shape.rows_out, shape.rows_out),
                    _histograms(self.incoming[shape.layer, shape.direction], shape.rows_in, shape.rows_in),
                    _histograms(self.outgoing[shape.layer, shape.direction], shape.rows_out, shape.again_out),
                    _histograms(self.incoming[shape.layer, shape.direction], shape.rows_in, shape.again_in),
                )
                for shape in shapes
            },
            rotated=rotated,
        )

    def same_as(self, other: MessageWidths) -> bool:
        return all(
            mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)
            for mine, theirs in ((self.outgoing, other.outgoing), (self.incoming, other.incoming))
        )


def _histograms(widths: WidthArray, rows: Sequence[int], first: Sequence[int]) -> tuple[BitHistogram, ...]:
    """Widths of the `first` of each peer's `rows`; none where `first` is empty."""
    starts = np.cumsum(rows) - rows
    histograms = []
    for start, count in zip(starts[: len(first)], first, strict=True):
        values, counts = np.unique(widths[start : start + count], return_counts=True)
        histograms.append(tuple(zip(values.tolist(), counts.tolist(), strict=True)))
    return tuple(histograms)


@dataclass(frozen=True)
class MessageRows:
    """The local row behind each message of one exchange, int64, peer after peer."""

    outgoing: npt.NDArray[np.int64]
    incoming: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shape: ExchangeShape, part: PartStatistics, boundary: npt.NDArray[np.integer]) -> MessageRows:
        """Forward: boundary rows out, halo rows in. Backward: the other way round, the first rows of each peer's."""
        forward = shape.direction is Direction.FORWARD
        boundary_rows, halo_rows = (shape.rows_out, shape.rows_in) if forward else (shape.rows_in, shape.rows_out)
        own = np.asarray(boundary, dtype=np.int64)[_prefixes(part.boundary_to, boundary_rows)]
        halo = part.own + _prefixes(part.halo_from, halo_rows)
        return cls(own, halo) if forward else cls(halo, own)


def _prefixes(sizes: Sequence[int], counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Positions of the first `counts[p]` of each peer's `sizes[p]` rows."""
    starts = np.cumsum(sizes) - sizes
    return np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)]).astype(np.int64)


class _Draws:
    """Which of the messages that a rank sends, or receives, in one exchange have a record in an epoch, where some have none."""

    def __init__(self, pairs: Mapping[int, DroppingPair], layout: codec.Layout, counts: Sequence[int]) -> None:
        """pairs: by peer, those that drop messages. layout: of the exchange. counts: messages by peer."""
        self._pairs, self._epoch, self._device = pairs, -1, layout.offsets.device
        self._starts = {peer: sum(counts[:peer]) for peer in layout.peers}
        self._dropped: dict[int, Tensor] = {}
        self.layout = layout
        self.kept = torch.zeros(len(layout), dtype=torch.int64, device=self._device)
        """[records], the message of each."""
        self.factors = torch.ones(sum(counts), dtype=torch.float32)
        """[messages], what a receiver multiplies each by, which is the same in every epoch."""
        for peer, pair in pairs.items():
            self.factors[self._starts[peer] :][: counts[peer]] = torch.from_numpy(pair.factors)
        self.factors = self.factors.to(self._device)
        for peer in set(layout.peers) - set(pairs):
            start = self._starts[peer]
            self.kept[layout.rows(peer)] = torch.arange(start, start + counts[peer], device=self._device)

    def draw(self, seed: int, epoch: int, layer: int, direction: Direction) -> None:
        """Choose for an epoch; what belongs to pairs that drop nothing stays as it is."""
        if epoch == self._epoch:
            return
        orders: dict[int, Tensor] = {}
        for peer, pair in self._pairs.items():
            widths = pair.draw(seed, epoch, layer, DIRECTION_WORDS[direction])
            kept, dropped = np.flatnonzero(widths), np.flatnonzero(widths == DROPPED)
            here, start = self.layout.rows(peer), self._starts[peer]
            self.kept[here] = torch.from_numpy(kept + start).to(self._device)
            self._dropped[peer] = torch.from_numpy(dropped + start).to(self._device)
            orders[peer] = torch.from_numpy(widths)
        self.layout = self.layout.reordered(orders)
        self._epoch = epoch

    def dropped(self, peer: int) -> Tensor:
        """int64, the peer's messages without a record; none where it drops nothing."""
        return self._dropped.get(peer, self.kept[:0])

    def drops(self, peer: int) -> bool:
        """Whether any of the peer's messages may be without a record."""
        return peer in self._pairs


@dataclass
class _Channel:
    """One exchange: where its rows are, and how they lie on the wire."""

    shape: ExchangeShape
    source: slice | None
    """The rows sent, where they are one range of the buffer; else `index` lists them."""
    index: Tensor | None
    sent_nodes: Tensor
    received_rows: Tensor
    received_nodes: Tensor
    outgoing: codec.Layout | _Draws
    incoming: codec.Layout | _Draws
    ranges: Tensor
    """float32 [rows sent]: max − min of each row, as last recorded."""
    energies: Tensor
    """float32 [rows sent]: Σ of squares of each row, as last recorded; empty before."""


class QuantizedMessages:
    """Encodes and decodes one rank's messages; widths can be replaced between two epochs."""

    _messages_are_apart: ClassVar[bool] = False
    """Whether each peer's message is in a buffer of its own."""

    def __init__(
        self,
        shapes: Sequence[ExchangeShape],
        part: PartStatistics,
        boundary: npt.NDArray[np.integer],
        global_ids: Tensor,
        widths: MessageWidths,
        *,
        rank: int,
        seed: int,
        rounding: codec.Rounding,
        device: torch.device,
        dropping: bool = False,
    ) -> None:
        """dropping: widths may be 0, now and where they are replaced."""
        self.shapes = tuple(shapes)
        self.rounding = rounding
        self.widths = widths
        self.traces_ranges = False
        """Whether `pack` records the range of each row it sends."""
        self.traces_energies = False
        """Whether `pack` records the sum of squares of each row it sends, which takes a pass of its own over the rows."""
        self._rank, self._seed, self._device, self._part, self._dropping = rank, seed, device, part, dropping
        self._channels: dict[ExchangeKey, _Channel] = {}
        widths.check(shapes, dropping=dropping)
        ids = global_ids.cpu().numpy()
        for shape in self.shapes:
            rows = MessageRows.of(shape, part, boundary)
            whole = _as_slice(rows.outgoing)
            key = (shape.layer, shape.direction)
            self._channels[key] = _Channel(
                shape,
                whole,
                None if whole is not None else torch.from_numpy(rows.outgoing).to(device),
                torch.from_numpy(ids[rows.outgoing]).to(device),
                torch.from_numpy(rows.incoming).to(device),
                torch.from_numpy(ids[rows.incoming]).to(device),
                self._outgoing(shape, widths.outgoing[key]),
                self._incoming(shape, widths.incoming[key]),
                torch.zeros(len(rows.outgoing), dtype=torch.float32, device=device),
                torch.zeros(0, dtype=torch.float32, device=device),
            )

    @property
    def assignment(self) -> BitAssignment:
        """The widths as programs see them."""
        return self.widths.assignment(self.shapes, rotated=self.rounding is codec.Rounding.ROTATED)

    def install(self, widths: MessageWidths) -> None:
        """Use other widths from now on; the messages' rows stay. Raises MisuseError, having changed nothing."""
        widths.check(self.shapes, dropping=self._dropping)
        for key, channel in self._channels.items():
            if not np.array_equal(widths.outgoing[key], self.widths.outgoing[key]):
                channel.outgoing = self._outgoing(channel.shape, widths.outgoing[key])
            if not np.array_equal(widths.incoming[key], self.widths.incoming[key]):
                channel.incoming = self._incoming(channel.shape, widths.incoming[key])
        self.widths = widths

    def ranges(self, key: ExchangeKey) -> npt.NDArray[np.float32]:
        """max − min of each row sent, peer after peer, from the last pass with `traces_ranges`."""
        values: npt.NDArray[np.float32] = self._channels[key].ranges.cpu().numpy()
        return values

    def energies(self, key: ExchangeKey) -> npt.NDArray[np.float32]:
        """Σ of squares of each row sent, peer after peer, from the last pass with `traces_energies`."""
        values: npt.NDArray[np.float32] = self._channels[key].energies.cpu().numpy()
        return values

    def pack(self, layer: int, direction: Direction, epoch: int, rows: Tensor, wire: Tensor) -> None:
        """Encode the rows to send of a buffer into `wire`; raises RunError for one that cannot be sent, naming its node."""
        channel = self._channels[layer, direction]
        rows = rows if channel.source is None else rows[channel.source]
        if self.traces_energies:
            squares = torch.linalg.vector_norm(rows, dim=1).square_()
            channel.energies = squares if channel.index is None else squares[channel.index]
        index, nodes, layout = channel.index, channel.sent_nodes, channel.outgoing
        ranges = channel.ranges if self.traces_ranges else None
        draws = None
        if isinstance(layout, _Draws):
            draws = layout
            draws.draw(self._seed, epoch, layer, direction)
            layout, nodes = draws.layout, nodes[draws.kept]
            index = draws.kept if index is None else index[draws.kept]
            ranges = None if ranges is None else ranges[draws.kept]
        with naming_the_node(layer, direction, epoch, nodes):
            codec.pack(rows, wire, layout, self._stream(layer, direction, epoch), nodes, index=index, ranges=ranges)
        if draws is not None and ranges is not None:
            channel.ranges[draws.kept] = ranges
            self._measure_dropped(channel, draws, rows)

    def unpack(self, layer: int, direction: Direction, epoch: int, peer: int, wire: Tensor, rows: Tensor) -> None:
        """Decode one peer's message: into its halo rows going forward, added to own rows going backward.

        A dropped message is a row of zeros; those kept in its place are scaled.
        """
        channel = self._channels[layer, direction]
        start = sum(channel.shape.rows_in[:peer])
        messages = slice(start, start + channel.shape.rows_in[peer])
        nodes, index = channel.received_nodes[messages], channel.received_rows[messages]
        layout, forward = channel.incoming, direction is Direction.FORWARD
        factors: Tensor | None = None  # of the messages going forward, of the records going backward
        if isinstance(layout, _Draws):
            draws = layout
            draws.draw(self._seed, epoch, layer, direction)
            layout = draws.layout
            if draws.drops(peer):
                kept = draws.kept[layout.rows(peer)]
                nodes, index = channel.received_nodes[kept], channel.received_rows[kept]
                factors = draws.factors[messages if forward else kept]
                if forward:
                    rows.index_fill_(0, channel.received_rows[draws.dropped(peer)], 0.0)
        in_order = forward and factors is None  # a peer's halo rows are one range
        first = self._part.own + sum(self._part.halo_from[:peer])
        halo = rows[first : first + messages.stop - messages.start]
        with naming_the_sender(layer, direction, epoch, peer):
            codec.unpack(
                wire,
                layout,
                peer,
                self._stream(layer, direction, epoch),
                nodes,
                halo if in_order else rows,
                index=None if in_order else index,
                accumulate=not forward,
                factors=None if forward else factors,
            )
        if forward and factors is not None:
            halo.mul_(factors[:, None])

    def _measure_dropped(self, channel: _Channel, draws: _Draws, rows: Tensor) -> None:
        """Record the ranges of rows that were not sent, as the codec does of those that were."""
        for peer in draws.layout.peers:
            messages = draws.dropped(peer)
            values = rows[messages if channel.index is None else channel.index[messages]]
            low, high = values.aminmax(dim=1)
            channel.ranges[messages] = (high if channel.shape.one_sided else high - low) + 0.0  # −0 becomes 0

    def _stream(self, layer: int, direction: Direction, epoch: int) -> kernels.Stream:
        return kernels.Stream(self._seed, epoch, layer, DIRECTION_WORDS[direction], kernels.PURPOSE_ROUNDING)

    def _outgoing(self, shape: ExchangeShape, widths: WidthArray) -> codec.Layout | _Draws:
        return self._layout(shape, shape.rows_out, widths, lambda peer: (self._rank, peer))

    def _incoming(self, shape: ExchangeShape, widths: WidthArray) -> codec.Layout | _Draws:
        return self._layout(shape, shape.rows_in, widths, lambda peer: (peer, self._rank))

    def _layout(
        self, shape: ExchangeShape, rows: Sequence[int], widths: WidthArray, pair: Callable[[int], tuple[int, int]]
    ) -> codec.Layout | _Draws:
        """rows: messages by peer. pair: the sender and the receiver of a peer's messages."""
        counts = [(peer, count) for peer, count in enumerate(rows) if count]
        layout = codec.Layout.of(
            torch.from_numpy(widths),
            counts,
            shape.dim,
            one_sided=shape.one_sided,
            rounding=self.rounding,
            device=self._device,
            apart=self._messages_are_apart,
        )
        if (widths != DROPPED).all():
            return layout
        ends = np.cumsum(rows).tolist()
        pairs = {
            peer: DroppingPair.of(widths[end - count : end], *pair(peer))
            for peer, (count, end) in enumerate(zip(rows, ends, strict=True))
            if count
        }
        return _Draws({peer: each for peer, each in pairs.items() if each is not None}, layout, rows)


@contextmanager
def naming_the_node(layer: int, direction: Direction, epoch: int, nodes: Tensor) -> Iterator[None]:
    """Raise RunError for a row that cannot be sent. nodes: those of the message's rows."""
    try:
        yield
    except codec.UnsendableRowError as error:
        raise RunError(
            f"layer {layer} {direction}, epoch {epoch}: the row of node {int(nodes[error.row])} cannot be sent "
            f"({error.reason}); check the features, or lower training.learning_rate"
        ) from error


@contextmanager
def naming_the_sender(layer: int, direction: Direction, epoch: int, peer: int) -> Iterator[None]:
    """Raise RunError for a message that is not the one agreed."""
    try:
        yield
    except codec.WireError as error:
        raise RunError(f"layer {layer} {direction}, epoch {epoch}: the message of rank {peer} is broken: {error}") from error


def _as_slice(rows: npt.NDArray[np.int64]) -> slice | None:
    """The range that ascending, gapless rows are."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return None
