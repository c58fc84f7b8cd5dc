"""R-GCN: a mean of neighbours for each relation, each multiplied by a matrix of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from halocast.runtime import kernels
from halocast.runtime.block_edges import BlockEdges
from halocast.runtime.models.blockwise import BlockwiseLayer, MergingRows
from halocast.runtime.models.edge_options import NO_EDGE_DATA, EdgeShape, chosen_bases, chosen_relations
from halocast.runtime.models.layers import glorot
from halocast.runtime.models.shapes import relational_shape


class RGCN(BlockwiseLayer):
    """``h_i W_0 + Σ_r (1 / c_ir) Σ_{j ∈ N_r(i)} h_j W_r + b``, c_ir the neighbours of i under relation r in the whole graph.

    With `bases` ``W_r = Σ_b a_rb V_b``. Source: Schlichtkrull et al., ESWC 2018, equations 2 and 3.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        bases: int | None = None,
        relations: Sequence[str] | None = None,
        edges: EdgeShape | None = NO_EDGE_DATA,
    ) -> None:
        """bases: B, by default every relation has a matrix of its own. relations: names of those that count, by default all.

        Raises MisuseError for an untyped graph, relations that it does not have, and bases out of range.
        """
        super().__init__()
        self.relation_types = chosen_relations(relations, edges)
        count = len(self.relation_types)
        matrices = chosen_bases(bases) or count
        self._shape = relational_shape(dim_in, dim_out, relations=count)
        self.dim_in = dim_in
        self.weight = nn.Parameter(torch.stack([glorot(dim_in, dim_out) for _ in range(matrices)]))
        self.coefficients = nn.Parameter(glorot(count, matrices)) if bases is not None else None
        self.self_weight = nn.Parameter(glorot(dim_in, dim_out))
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def shape(self) -> dict[str, Any]:
        return self._shape

    def finish(self, inputs: Tensor | None, reduced: Tensor) -> Tensor:
        assert inputs is not None
        weight: Tensor = self.weight
        if self.coefficients is not None:
            weight = self.coefficients @ weight.flatten(1)
        return torch.addmm(reduced @ weight.reshape(reduced.shape[1], -1), inputs, self.self_weight)

    def start(self, rows: MergingRows) -> None:
        rows.reduced.zero_()

    def merge(self, block: BlockEdges, messages: Tensor, rows: MergingRows, stream: kernels.Stream | None) -> None:
        edges, means = block.relations, rows.reduced[block.targets]
        assert edges is not None
        for relation in range(edges.count):
            kernels.aggregate(
                *edges.by_target(relation),
                edges.sources,
                messages,
                means[:, self._columns(relation)],
                row_scale=edges.share[relation],
                accumulate=True,
            )

    def merge_backward(
        self,
        block: BlockEdges,
        messages: Tensor | None,
        rows: MergingRows,
        target: Tensor | None,
        stream: kernels.Stream | None,
        *,
        accumulate: bool,
        parameter_gradient: Callable[[nn.Parameter], Tensor],
    ) -> None:
        edges, gradient = block.relations, rows.gradient[block.targets]
        assert edges is not None
        assert target is not None
        for relation in range(edges.count):
            kernels.aggregate(
                *edges.by_source(relation, len(target)),
                edges.targets,
                gradient[:, self._columns(relation)],
                target,
                column_scale=edges.share[relation],
                accumulate=accumulate or relation > 0,
            )

    def _columns(self, relation: int) -> slice:
        return slice(relation * self.dim_in, (relation + 1) * self.dim_in)
