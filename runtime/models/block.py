"""What a layer sees of the graph: the rows it computes, their neighbours, and nothing of ranks or exchanges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.aggregation import Neighbours, aggregate


@dataclass(frozen=True)
class BlockStructure:
    """The bipartite piece of the graph behind a block; made once, used in every epoch."""

    indptr: Tensor
    """int64 [targets + 1] offsets into `indices`."""
    indices: Tensor
    """int32 [edges] source rows, target by target; a target itself is not among its neighbours."""
    first_target: int
    degrees: Tensor
    """int64 [sources] neighbours in the whole graph, self loops not counted."""
    global_ids: Tensor
    """int64 [sources] node ids of the graph as loaded."""

    @cached_property
    def neighbours(self) -> Neighbours:
        """The same with its transpose, for differentiable sums."""
        return Neighbours.from_csr(self.indptr, self.indices, self.degrees.numel())

    @cached_property
    def edge_index(self) -> Tensor:
        """int64 [2, edges]: (source row, target number)."""
        targets = torch.arange(self.indptr.numel() - 1, device=self.indptr.device)
        return torch.stack([self.indices.long(), torch.repeat_interleave(targets, self.indptr.diff())])


@dataclass
class Block:
    """The bipartite piece of the graph that one call of a layer covers.

    Sources are the rows of the layer's input ``h`` (own rows, then halo rows); targets are a contiguous range of the
    own rows. Edges run from sources to targets; the graph's pattern is symmetric.
    """

    structure: BlockStructure
    dropout_stream: kernels.Stream | None
    """None in evaluation: `dropout` then does nothing."""
    _dropouts: int = field(default=0, repr=False)

    @property
    def targets(self) -> int:
        """Rows this call computes."""
        return self.structure.indptr.numel() - 1

    @property
    def sources(self) -> int:
        """Rows of ``h``."""
        return self.structure.degrees.numel()

    @property
    def edge_index(self) -> Tensor:
        """int64 [2, edges]: (source row, target number), grouped by target; targets count from 0."""
        return self.structure.edge_index

    @property
    def degrees(self) -> Tensor:
        """int64 [sources] neighbours in the whole graph, self loops not counted."""
        return self.structure.degrees

    @property
    def target_degrees(self) -> Tensor:
        """int64 [targets]."""
        return self.own_inputs(self.degrees)

    @property
    def global_ids(self) -> Tensor:
        """int64 [sources] node ids of the graph as loaded."""
        return self.structure.global_ids

    def own_inputs(self, h: Tensor) -> Tensor:
        """The targets' own rows of ``h`` (or of any tensor with a row a source)."""
        return h[self.structure.first_target : self.structure.first_target + self.targets]

    def sum_neighbours(self, h: Tensor, source_scale: Tensor | None = None) -> Tensor:
        """``out[t] = Σ_s source_scale[s] h[s]`` over the neighbours s of t [targets, dim]; differentiable in h."""
        return aggregate(self.structure.neighbours, h, column_scale=source_scale)

    def dropout(self, rows: Tensor, probability: float) -> Tensor:
        """Dropout of rows that belong to the targets (or to the sources), the same for any number of ranks.

        Each call within one `forward` draws a mask of its own, the first call the same one in every block.
        """
        call, self._dropouts = self._dropouts, self._dropouts + 1
        if self.dropout_stream is None or probability == 0.0:
            return rows
        nodes = self.global_ids if rows.shape[0] == self.sources else self.own_inputs(self.global_ids)
        stream = replace(self.dropout_stream, direction=call)
        dropout = kernels.Dropout(probability, stream)
        words = kernels.philox(stream, nodes.contiguous(), rows.shape[1])
        return rows * (words >= dropout.threshold) * dropout.scale
