"""Layers that take the maximum or the plain sum of their neighbours' rows, and transform it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from halocast.runtime import attention_kernels, kernels
from halocast.runtime.attention_types import ExtremeState
from halocast.runtime.block_edges import BlockEdges
from halocast.runtime.models.blockwise import BlockwiseLayer, MergingRows
from halocast.runtime.models.layers import glorot
from halocast.runtime.models.shapes import maximum_shape, sum_shape


class GraphSAGEMax(BlockwiseLayer):
    """``H W_self + max(neighbours) W + b``, by column; no neighbours: 0. Source: Hamilton et al., NeurIPS 2017, section 3.3.

    Neighbours that tie share the gradient evenly, as torch.scatter_reduce's amax has it.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self._shape = maximum_shape(dim_in, dim_out)
        self.weight = nn.Parameter(glorot(dim_in, dim_out))
        self.self_weight = nn.Parameter(glorot(dim_in, dim_out))
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def shape(self) -> dict[str, Any]:
        return self._shape

    def finish(self, inputs: Tensor | None, reduced: Tensor) -> Tensor:
        assert inputs is not None
        return torch.addmm(reduced @ self.weight, inputs, self.self_weight)

    def start(self, rows: MergingRows) -> None:
        state = self._state(rows)
        state.value.fill_(-torch.inf)
        state.ties.zero_()

    def merge(self, block: BlockEdges, messages: Tensor, rows: MergingRows, stream: kernels.Stream | None) -> None:
        attention_kernels.merge_extremes(block.edges, self._state(rows, block.targets), messages)

    def conclude(self, rows: MergingRows) -> None:
        attention_kernels.finish_extremes(self._state(rows))

    def prepare_backward(self, rows: MergingRows) -> None:
        attention_kernels.share_among_ties(self._state(rows), rows.gradient, out=rows.gradient)

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
        assert messages is not None
        assert target is not None
        value, share = rows.reduced[block.targets], rows.gradient[block.targets]
        state = ExtremeState(value, value)  # the ties have been shared out: their number is not read again
        attention_kernels.extremes_backward(block.edges, state, share, messages, target, accumulate=accumulate)

    def _state(self, rows: MergingRows, targets: slice = slice(None)) -> ExtremeState:
        return ExtremeState(rows.reduced[targets], rows.state.view(rows.reduced.shape)[targets])


class GIN(BlockwiseLayer):
    """``relu(((1 + ε) h + Σ neighbours) W_1 + b_1) W_2 + b_2`` with ε learnt. Source: Xu et al., ICLR 2019, equation 4.1."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self._shape = sum_shape(dim_in, dim_out)
        self.epsilon = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(glorot(dim_in, dim_out))
        self.inner_bias = nn.Parameter(torch.zeros(dim_out))
        self.outer_weight = nn.Parameter(glorot(dim_out, dim_out))
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def shape(self) -> dict[str, Any]:
        return self._shape

    def finish(self, inputs: Tensor | None, reduced: Tensor) -> Tensor:
        assert inputs is not None
        inner = torch.addmm(self.inner_bias, (1 + self.epsilon) * inputs + reduced, self.weight)
        return inner.relu() @ self.outer_weight

    def start(self, rows: MergingRows) -> None:
        rows.reduced.zero_()

    def merge(self, block: BlockEdges, messages: Tensor, rows: MergingRows, stream: kernels.Stream | None) -> None:
        edges = block.edges
        kernels.aggregate(edges.begin, edges.end, edges.sources, messages, rows.reduced[block.targets], accumulate=True)

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
        assert target is not None
        edges, gradient = block.edges, rows.gradient[block.targets]
        kernels.aggregate(edges.source_begin, edges.source_end, edges.targets, gradient, target, accumulate=accumulate)
