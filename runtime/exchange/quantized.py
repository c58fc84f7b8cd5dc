"""A rank's quantised messages: which rows go where, at which width, and their way through the codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halocast.errors import MisuseError, RunError
from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.runtime.programs.adaqp import ExchangeShape
from halocast.traces.operations import Direction
from halocast.traces.wire import WIDTHS
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

    def check(self, shapes: Sequence[ExchangeShape]) -> None:
        """Raise MisuseError for a missing or unknown exchange, a wrong length or an unknown width."""
        for way, arrays in (("sent", self.outgoing), ("received", self.incoming)):
            for shape in shapes:
                where = f"widths of layer {shape.layer} {shape.direction}, {way}"
                expected = sum(shape.rows_out if way == "sent" else shape.rows_in)
                if (shape.layer, shape.direction) not in arrays:
                    raise MisuseError(f"{where}: missing; give one width for each of the {expected} messages")
                widths = arrays[shape.layer, shape.direction]
                if widths.shape != (expected,):
                    raise MisuseError(f"{where}: {widths.size} widths for {expected} messages; give one a message")
                unknown = np.setdiff1d(widths, WIDTHS)
                if unknown.size:
                    raise MisuseError(f"{where}: width {unknown[0]} is unknown; allowed: {', '.join(map(str, WIDTHS))}")
            unexpected = set(arrays) - {(shape.layer, shape.direction) for shape in shapes}
            if unexpected:
                layer, direction = min(unexpected)
                raise MisuseError(f"widths of layer {layer} {direction}: nothing is exchanged there")

    def assignment(self, shapes: Sequence[ExchangeShape], *, rotated: bool) -> BitAssignment:
        """How many messages have which width, which is all that programs look at."""
        return BitAssignment(
            {
                (shape.layer, shape.direction): ExchangeBits(
                    _histograms(self.outgoing[shape.layer, shape.direction], shape.rows_out),
                    _histograms(self.incoming[shape.layer, shape.direction], shape.rows_in),
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


def _histograms(widths: WidthArray, rows: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    ends = np.cumsum(rows)
    histograms = []
    for count, end in zip(rows, ends, strict=True):
        values, counts = np.unique(widths[end - count : end], return_counts=True)
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
    outgoing: codec.Layout
    incoming: codec.Layout
    ranges: Tensor
    """float32 [rows sent]: max − min of each row, as last recorded."""
    energies: Tensor
    """float32 [rows sent]: Σ of squares of each row, as last recorded; empty before."""


class QuantizedMessages:
    """Encodes and decodes one rank's messages; widths can be replaced between two epochs."""

    def __init__(
        self,
        shapes: Sequence[ExchangeShape],
        part: PartStatistics,
        boundary: npt.NDArray[np.integer],
        global_ids: Tensor,
        widths: MessageWidths,
        *,
        seed: int,
        rounding: codec.Rounding,
        device: torch.device,
    ) -> None:
        self.shapes = tuple(shapes)
        self.rounding = rounding
        self.widths = widths
        self.traces_ranges = False
        """Whether `pack` records the range of each row it sends."""
        self.traces_energies = False
        """Whether `pack` records the sum of squares of each row it sends, which takes a pass of its own over the rows."""
        self._seed, self._device, self._part = seed, device, part
        self._channels: dict[ExchangeKey, _Channel] = {}
        widths.check(shapes)
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
                self._layout(shape, shape.rows_out, widths.outgoing[key]),
                self._layout(shape, shape.rows_in, widths.incoming[key]),
                torch.zeros(len(rows.outgoing), dtype=torch.float32, device=device),
                torch.zeros(0, dtype=torch.float32, device=device),
            )

    @property
    def assignment(self) -> BitAssignment:
        """The widths as programs see them."""
        return self.widths.assignment(self.shapes, rotated=self.rounding is codec.Rounding.ROTATED)

    def install(self, widths: MessageWidths) -> None:
        """Use other widths from now on; the messages' rows stay. Raises MisuseError, having changed nothing."""
        widths.check(self.shapes)
        for key, channel in self._channels.items():
            if not np.array_equal(widths.outgoing[key], self.widths.outgoing[key]):
                channel.outgoing = self._layout(channel.shape, channel.shape.rows_out, widths.outgoing[key])
            if not np.array_equal(widths.incoming[key], self.widths.incoming[key]):
                channel.incoming = self._layout(channel.shape, channel.shape.rows_in, widths.incoming[key])
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
        source = rows if channel.source is None else rows[channel.source]
        if self.traces_energies:
            squares = torch.linalg.vector_norm(source, dim=1).square_()
            channel.energies = squares if channel.index is None else squares[channel.index]
        try:
            codec.pack(
                source,
                wire,
                channel.outgoing,
                self._stream(layer, direction, epoch),
                channel.sent_nodes,
                index=channel.index,
                ranges=channel.ranges if self.traces_ranges else None,
            )
        except codec.UnsendableRowError as error:
            node = int(channel.sent_nodes[error.row])
            raise RunError(
                f"layer {layer} {direction}, epoch {epoch}: the row of node {node} cannot be sent ({error.reason}); "
                "check the features, or lower training.learning_rate"
            ) from error

    def unpack(self, layer: int, direction: Direction, epoch: int, peer: int, wire: Tensor, rows: Tensor) -> None:
        """Decode one peer's message: into its halo rows going forward, added to own rows going backward."""
        channel = self._channels[layer, direction]
        here = channel.incoming.rows(peer)
        forward = direction is Direction.FORWARD
        if forward:
            first = self._part.own + sum(self._part.halo_from[:peer])
            target, index = rows[first : first + here.stop - here.start], None
        else:
            target, index = rows, channel.received_rows[here]
        try:
            codec.unpack(
                wire,
                channel.incoming,
                peer,
                self._stream(layer, direction, epoch),
                channel.received_nodes[here],
                target,
                index=index,
                accumulate=not forward,
            )
        except codec.WireError as error:
            raise RunError(
                f"layer {layer} {direction}, epoch {epoch}: the message of rank {peer} is broken: {error}"
            ) from error

    def _stream(self, layer: int, direction: Direction, epoch: int) -> kernels.Stream:
        return kernels.Stream(self._seed, epoch, layer, DIRECTION_WORDS[direction], kernels.PURPOSE_ROUNDING)

    def _layout(self, shape: ExchangeShape, rows: Sequence[int], widths: WidthArray) -> codec.Layout:
        counts = [(peer, count) for peer, count in enumerate(rows) if count]
        return codec.Layout.of(
            torch.from_numpy(widths),
            counts,
            shape.dim,
            one_sided=shape.one_sided,
            rounding=self.rounding,
            device=self._device,
        )


def _as_slice(rows: npt.NDArray[np.int64]) -> slice | None:
    """The range that ascending, gapless rows are."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return None
