"""The edges from one block of messages, a rank's own or one peer's, into own rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halocast.runtime.attention_types import Edges


@dataclass(frozen=True)
class BlockEdges:
    """What merging one block of messages needs to know of the graph."""

    edges: Edges
    """Targets count from the first of `targets`, sources from the block's first row."""
    targets: slice
    """The own rows that may have neighbours in the block."""
    target_nodes: Tensor
    """int64, global ids of the targets."""
    source_nodes: Tensor
    """int64, global ids of the block's rows."""

    def first_sources(self, count: int) -> BlockEdges:
        """The edges from the block's first `count` rows alone."""
        edges = self.edges
        if count == edges.source_count:
            return self
        wanted = edges.sources < count
        before = torch.cat([wanted.new_zeros(1, dtype=torch.int64), wanted.cumsum(0)])
        source_end = edges.source_end[:count]
        entries = int(source_end[-1]) if count else 0
        return BlockEdges(
            Edges(
                before[edges.begin],
                before[edges.end],
                edges.sources[wanted],
                edges.source_begin[:count],
                source_end,
                edges.targets[:entries],
                edges.entry[:0],
            ),
            self.targets,
            self.target_nodes,
            self.source_nodes[:count],
        )
