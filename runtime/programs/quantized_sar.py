"""Sequential aggregation with quantised messages: AdaQP's widths on the blocks that come, and on the gradients that go.

What is sent to one part is encoded into a buffer of its own. A block takes memory as rows only while it is visited; on its way,
and before its turn, it is as short as its message. Rounding is the same function of seed, epoch, layer, direction and node
whenever a row is sent, so a block that is fetched a second time is bit for bit what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from halocast.runtime.programs.adaqp import QuantizedLayer
from halocast.runtime.programs.full import BACKWARD, FORWARD, LayerProgram, Steps, describe_layers, width_of
from halocast.runtime.programs.sar import Round, SequentialAggregation, SequentialLayer
from halocast.traces.operations import Direction, Free, Keep, Operation, Program, Quantize, Work
from halocast.traces.wire import BitHistogram
from halocast.traces.workload import ExchangeBits, RankView


class QuantizedSequentialAggregation(SequentialAggregation):
    """Quantises where `RankView.bits` says how many rows have which width; evaluation sends rows as they are."""

    def layers(self, view: RankView) -> list[LayerProgram]:
        return super().layers(view) if view.bits is None else describe_layers(view, QuantizedSequentialLayer)

    def evaluation(self, view: RankView) -> Program:
        yield from super().evaluation(replace(view, bits=None))


@dataclass(frozen=True)
class QuantizedSequentialLayer(SequentialLayer, QuantizedLayer):
    """Blocks are encoded where they are sent, and decoded when it is their turn."""

    def histogram(self, bits: ExchangeBits, direction: Direction, peer: int, rows: int, *, incoming: bool) -> BitHistogram:
        part = self.view.part
        if direction is FORWARD and rows < (part.halo_from if incoming else part.boundary_to)[peer]:
            return (bits.again_incoming if incoming else bits.again_outgoing)[peer]
        return super().histogram(bits, direction, peer, rows, incoming=incoming)

    def gather(self, direction: Direction, peer: int, rows: int, source: str, target: str) -> Steps:
        """Encode the rows for one peer."""
        dim, messages = self.exchange_dim, [self.message(direction, peer, rows)] if rows else []
        size = sum(each.bytes for each in messages)
        yield self.keep_wire(direction, target, size)
        if rows:
            work = Work(rows=rows, dim_in=dim, dim_out=dim, bytes_out=size, bits=width_of(messages))
            yield Quantize(self.index, direction, work=work, peer=peer, source=source, target=target)

    def landing(self, peer: int) -> str:
        return f"{self.received(FORWARD)}.{peer}"

    def keep_landing(self, direction: Direction, peer: int, rows: int, name: str) -> Keep:
        return self.keep_wire(direction, name, self.message(direction, peer, rows, incoming=True).bytes if rows else 0)

    def arrive(self, peer: int, rows: int, suffix: str = "") -> Steps:
        landing, block = self.landing(peer) + suffix, self.block(FORWARD, peer) + suffix
        yield self.keep_block(FORWARD, rows, block)
        if rows:
            yield self.dequantize(FORWARD, peer, rows, landing, block)
        yield Free(self.index, FORWARD, name=landing)

    def push(self, each: Round, block: str) -> Generator[Operation, Any, Any]:
        encoded = self.encoded_gradients(each.taker)
        yield from self.gather(BACKWARD, each.taker, each.outgoing, block, encoded)
        yield Free(self.index, BACKWARD, name=block)
        return (yield from super().push(each, encoded))

    def finish_push(self, each: Round, flight: Any, sent: Callable[[int], str], target: str) -> Steps:
        yield from super().finish_push(each, flight, self.encoded_gradients, target)

    def encoded_gradients(self, peer: int) -> str:
        return f"{self.encoded(BACKWARD)}.{peer}"
