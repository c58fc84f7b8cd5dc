"""What a rank holds under sequential aggregation and rematerialisation (SAR), as a program: for memory alone.

H. Mostafa, "Sequential Aggregation and Rematerialization: Distributed Full-batch Training of Graph Neural Networks on Large
Graphs", MLSys 2022. GraphSAGE with mean aggregation, batch normalisation and ReLU between layers, as SAR's authors ran it
(github.com/IntelLabs/SAR): neighbours' rows are fetched from one peer after another, added up and dropped, while those of
the next peer arrive; going backward the gradients of a peer's rows are pushed to it and nothing is fetched again, because the
mean is linear. Buffers live as PyTorch's autograd keeps them: a layer's input, what was aggregated, and what the
normalisation was applied to, until the layer's backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from halocast.traces.buffers import plan_arena, walk
from halocast.traces.operations import (
    Aggregate,
    Direction,
    Exchange,
    Free,
    Keep,
    Loss,
    Operation,
    Part,
    PeerMessage,
    Program,
    Stage,
    Step,
    Transform,
    Wait,
    Work,
)
from halocast.traces.workload import RankView

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
INDEX_BYTES = 8
"""DGL's default integers."""
FORMATS = 6
"""Integers an edge: source and target (COO), neighbour and edge id by row (CSR) and by column (CSC), as DGL makes for
aggregating in both directions."""
NODE_BYTES = 8 + 3
"""A label and three masks a node."""
OPTIMISER_COPIES = 4
"""Parameters, gradients and Adam's two moments."""


@dataclass(frozen=True)
class SarMemory:
    """Bytes a rank holds at its worst moment."""

    buffers: int
    """Alive at once: activations, gradients, rows under way."""
    features: int
    adjacency: int
    other: int

    @property
    def total(self) -> int:
        return self.buffers + self.features + self.adjacency + self.other


def sar_memory(view: RankView) -> SarMemory:
    part, value = view.part, view.value_bytes
    entries = part.nnz_central + part.nnz_marginal
    parameters = sum(layer.parameters for layer in view.layers)
    return SarMemory(
        buffers=plan_arena([walk(sequential_aggregation(view))]).peak_bytes,
        features=value * part.own * part.feature_dim,
        adjacency=INDEX_BYTES * FORMATS * entries,
        other=NODE_BYTES * part.own + OPTIMISER_COPIES * value * parameters,
    )


def sequential_aggregation(view: RankView) -> Program:
    """One epoch of one rank."""
    layers = [_SarLayer(view, index) for index in range(len(view.layers))]
    for layer in layers:
        yield from layer.forward()
    last = layers[-1]
    yield from _keep(view, "g_out", view.part.own, last.width_out)
    yield Loss(last.index, work=Work(rows=view.part.labelled, dim_in=last.width_out, dim_out=last.width_out))
    yield Free(name=last.output)
    for layer in reversed(layers):
        yield from layer.backward()
    yield Step(work=Work(rows=sum(spec.parameters for spec in view.layers)))


@dataclass(frozen=True)
class _SarLayer:
    view: RankView
    index: int

    @property
    def width_in(self) -> int:
        return self.view.layers[self.index].dim_in

    @property
    def width_out(self) -> int:
        return self.view.layers[self.index].dim_out

    @property
    def projects_first(self) -> bool:
        """As DGL's SAGEConv: where the layer narrows the row, multiply before aggregating."""
        return self.width_in > self.width_out

    @property
    def width(self) -> int:
        """Of what is aggregated and sent."""
        return self.width_out if self.projects_first else self.width_in

    @property
    def is_last(self) -> bool:
        return self.index == len(self.view.layers) - 1

    @property
    def output(self) -> str:
        return f"h{self.index + 1}"

    def forward(self) -> Iterator[Operation]:
        own, index = self.view.part.own, self.index
        if self.projects_first:
            yield from self._kept("p", self.width)
            yield Transform(index, FORWARD, work=Work(rows=own), stage=Stage.PROJECT)
        yield from self._kept("m", self.width)
        yield Aggregate(index, FORWARD, Part.OWN, columns=Part.OWN)
        yield from self._aggregate_from_peers()
        yield from self._kept("self", self.width_out)
        yield Transform(index, FORWARD, work=Work(rows=own), stage=Stage.WHOLE)
        if self.projects_first:
            yield from self._freed("p")
        else:
            yield from self._kept("neighbours", self.width_out)
            yield Transform(index, FORWARD, work=Work(rows=own), stage=Stage.WHOLE)
        yield from self._kept("z", self.width_out)  # their sum
        yield from self._freed("self", "m" if self.projects_first else "neighbours")
        yield from _keep(self.view, self.output, own, self.width_out)  # normalised, then ReLU in place; last: log-softmax
        if not self.is_last:
            yield Transform(index, FORWARD, work=Work(rows=own), stage=Stage.FINISH)

    def backward(self) -> Iterator[Operation]:
        own, index = self.view.part.own, self.index
        arriving = "g_out" if self.is_last else f"g{index + 1}"
        yield from self._kept("gz", self.width_out)
        yield Transform(index, BACKWARD, work=Work(rows=own), stage=Stage.ACTIVATION)
        yield Free(name=arriving)
        yield from self._freed("z")
        if not self.is_last:
            yield Free(name=self.output)
        yield Transform(index, BACKWARD, work=Work(rows=own), stage=Stage.WEIGHTS)
        if index > 0:
            yield from _keep(self.view, f"g{index}", own, self.width_in)
            yield Transform(index, BACKWARD, work=Work(rows=own), stage=Stage.SELF_INPUTS)
            if not self.projects_first:
                yield from self._kept("gm", self.width)
                yield Transform(index, BACKWARD, work=Work(rows=own), stage=Stage.INPUTS)
            yield from self._push_to_peers()
            if not self.projects_first:
                yield from self._freed("gm")
        yield from self._freed("gz")
        if not self.projects_first:
            yield from self._freed("m")

    def _aggregate_from_peers(self) -> Iterator[Operation]:
        """One peer's rows are added while the next one's arrive; what is sent is gathered into a buffer of its own."""
        peers = self.view.peers_in_ring_order
        for step, peer in enumerate(peers):
            yield from self._exchange(FORWARD, peer, out=self.view.part.boundary_to[peer], into=self.view.part.halo_from[peer])
            if step > 0:
                yield from self._add(FORWARD, peers[step - 1])
        if peers:
            yield from self._add(FORWARD, peers[-1])

    def _push_to_peers(self) -> Iterator[Operation]:
        peers = self.view.peers_in_ring_order
        yield Aggregate(self.index, BACKWARD, Part.OWN, columns=Part.OWN)
        for step, peer in enumerate(peers):
            yield from self._exchange(BACKWARD, peer, out=self.view.part.halo_from[peer], into=self.view.part.boundary_to[peer])
            if step > 0:
                yield from self._add(BACKWARD, peers[step - 1])
        if peers:
            yield from self._add(BACKWARD, peers[-1])

    def _exchange(self, direction: Direction, peer: int, *, out: int, into: int) -> Iterator[Operation]:
        size = self.width * self.view.value_bytes
        yield from self._kept(f"{direction}-out-{peer}", self.width, rows=out)
        yield from self._kept(f"{direction}-in-{peer}", self.width, rows=into)
        yield Exchange(
            self.index,
            direction,
            Part.HALO,
            Work(rows=out, bytes_out=out * size, bytes_in=into * size),
            outgoing=(PeerMessage(peer, out, out * size),),
            incoming=(PeerMessage(peer, into, into * size),),
        )

    def _add(self, direction: Direction, peer: int) -> Iterator[Operation]:
        yield Wait(self.index, direction, peer=peer)
        yield Aggregate(self.index, direction, Part.MARGINAL, columns=Part.HALO, peer=peer)
        yield from self._freed(f"{direction}-out-{peer}", f"{direction}-in-{peer}")

    def _kept(self, name: str, width: int, rows: int | None = None) -> Iterator[Operation]:
        yield from _keep(self.view, f"{name}.{self.index}", self.view.part.own if rows is None else rows, width)

    def _freed(self, *names: str) -> Iterator[Operation]:
        for name in names:
            yield Free(name=f"{name}.{self.index}")


def _keep(view: RankView, name: str, rows: int, width: int) -> Iterator[Operation]:
    yield Keep(work=Work(rows=rows, dim_out=width, bytes_out=rows * width * view.value_bytes), name=name)
