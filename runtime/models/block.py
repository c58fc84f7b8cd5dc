"""What a layer sees of the graph: the rows it computes, their neighbours, and nothing of ranks or exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from halocast.runtime import kernels


@dataclass(frozen=True)
class Block:
    """The bipartite piece of the graph that one call of a layer covers.

    Sources are the rows of the layer's input ``h`` (own rows, then halo rows); targets are a contiguous range of the
    own rows. Edges run from sources to targets; the graph's pattern is symmetric.
    """

    begin: Tensor
    """int64 [targets] first neighbour of each target in `indices`; the target itself is not among them."""
    end: Tensor
    """int64 [targets] past its last neighbour."""
    indices: Tensor
    """int32 source rows."""
    first_target: int
    """Source row of target 0: ``h[first_target : first_target + targets]`` are the targets' own inputs."""
    sources: int
    degrees: Tensor
    """int64 [sources] neighbours in the whole graph, self loops not counted."""
    global_ids: Tensor
    """int64 [sources] node ids of the graph as loaded; randomness is keyed by these."""
    dropout_stream: kernels.Stream | None
    """None in evaluation: `dropout` then does nothing."""

    @property
    def targets(self) -> int:
        """Rows this call computes."""
        return self.begin.numel()

    def own_inputs(self, h: Tensor) -> Tensor:
        """The targets' own rows of ``h`` [targets, dim]."""
        return h[self.first_target : self.first_target + self.targets]

    @cached_property
    def edge_index(self) -> Tensor:
        """int64 [2, edges]: (source row, target number), grouped by target; targets count from 0."""
        counts = self.end - self.begin
        target = torch.repeat_interleave(torch.arange(self.targets, device=counts.device), counts)
        offset = torch.arange(target.numel(), device=counts.device) - torch.repeat_interleave(
            torch.cumsum(counts, 0) - counts, counts
        )
        source = self.indices[torch.repeat_interleave(self.begin, counts) + offset].long()
        return torch.stack([source, target])

    @property
    def target_degrees(self) -> Tensor:
        """int64 [targets]."""
        return self.own_inputs(self.degrees)

    def sum_neighbours(self, h: Tensor, source_scale: Tensor | None = None) -> Tensor:
        """``out[t] = Σ_s source_scale[s] h[s]`` over the neighbours s of t [targets, dim]; differentiable in h."""
        source, target = self.edge_index
        rows = h[source] if source_scale is None else h[source] * source_scale[source].unsqueeze(1)
        return h.new_zeros(self.targets, h.shape[1]).index_add(0, target, rows)

    def dropout(self, rows: Tensor, probability: float) -> Tensor:
        """Dropout of rows that belong to the targets (or to the sources), the same for any number of ranks."""
        if self.dropout_stream is None or probability == 0.0:
            return rows
        nodes = self.global_ids if rows.shape[0] == self.sources else self.own_inputs(self.global_ids)
        dropout = kernels.Dropout(probability, self.dropout_stream)
        words = kernels.philox(self.dropout_stream, nodes.contiguous(), rows.shape[1])
        return rows * (words >= dropout.threshold) * dropout.scale
