"""A partition as ranks would hold it, without its shards: statistics of the parts, and who sends which node's row to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from halocast.runtime.graph.aggregated import StoredValues
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.partition import locality_order
from halocast.runtime.graph.shard import PartitionRows, partition_rows
from halocast.runtime.programs.adaqp import ExchangeShape
from halocast.traces.operations import Direction
from halocast.traces.workload import PartStatistics

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MessageNodes:
    """The messages of one exchange, sender after sender, each one's in the order of its wire buffers."""

    sender: Ints
    """[messages]"""
    receiver: Ints
    """[messages]"""
    node: Ints
    """[messages] global id."""


@dataclass(frozen=True, eq=False)
class PartitionLayout:
    """An assignment of a graph's nodes to parts, in the order in which shards of it would keep them."""

    graph: Graph
    assignment: npt.NDArray[np.int32]
    """[nodes]"""
    seed: int = 0
    """Of the partition, which the locality order depends on."""

    @property
    def parts(self) -> int:
        return int(self.assignment.max(initial=0)) + 1

    @cached_property
    def _rows(self) -> PartitionRows:
        return partition_rows(self.graph, self.assignment, locality_order(self.graph, self.assignment, seed=self.seed))

    @cached_property
    def statistics(self) -> tuple[PartStatistics, ...]:
        """By part, as shards of it would say."""
        return tuple(self._rows.statistics())

    def with_aggregated(self, stored: StoredValues | None) -> tuple[PartStatistics, ...]:
        """The statistics with what the model makes of sparse features; `stored` as `aggregated.count_stored` gives it."""
        if stored is None:
            return self.statistics
        return tuple(
            stored.fill(part, np.concatenate([self._rows.own[number], self._rows.halo[number]]))
            for number, part in enumerate(self.statistics)
        )

    def messages(self, shapes: Sequence[Sequence[ExchangeShape]]) -> Mapping[tuple[int, Direction], MessageNodes]:
        """Who sends what in every exchange; `shapes` by rank, as `exchange_shapes` gives them."""
        halos = self._rows.halo
        owners = [self.assignment[halo] for halo in halos]
        found = {}
        for number, shape in enumerate(shapes[0]):
            pieces: list[tuple[int, int, Ints]] = []
            for sender, mine in enumerate(shapes):
                for receiver, count in enumerate(mine[number].rows_out):
                    if not count:
                        continue
                    if shape.direction is Direction.FORWARD:  # the receiver's halo of this owner, in the halo's order
                        nodes = halos[receiver][owners[receiver] == sender]
                    else:  # the gradients of halo rows go back to their owner
                        nodes = halos[sender][owners[sender] == receiver]
                    pieces.append((sender, receiver, nodes[:count]))
            sizes = [len(nodes) for _, _, nodes in pieces]
            found[shape.layer, shape.direction] = MessageNodes(
                np.repeat(np.array([sender for sender, _, _ in pieces], dtype=np.int64), sizes),
                np.repeat(np.array([receiver for _, receiver, _ in pieces], dtype=np.int64), sizes),
                np.concatenate([*(nodes for _, _, nodes in pieces), np.zeros(0, dtype=np.int64)]),
            )
        return found
