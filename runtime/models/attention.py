"""Graph attention: GAT and GATv2, merged block by block with an online softmax."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from halocast.runtime import attention_kernels, kernels
from halocast.runtime.attention_types import (
    AttentionDropout,
    AttentionState,
    GatGradients,
    GatLogits,
    Gatv2Gradients,
    Gatv2Logits,
    Gradients,
    Logits,
)
from halocast.runtime.block_edges import BlockEdges
from halocast.runtime.models.blockwise import BlockwiseLayer, MergingRows
from halocast.runtime.models.edge_options import NO_EDGE_DATA, EdgeShape, attention_edge_dim
from halocast.runtime.models.layers import glorot
from halocast.runtime.models.shapes import attention_shape, check_attention_options


class _Attention(BlockwiseLayer):
    """What both kinds share: ``z_i = Σ_j a_ij z_j`` by head, heads side by side or (last layer) averaged."""

    name: str
    bias: nn.Parameter

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        heads: int = 4,
        average: bool = False,
        slope: float = 0.2,
        attention_dropout: float = 0.0,
        self_loops: bool = True,
        edge_features: bool = False,
        edges: EdgeShape | None = NO_EDGE_DATA,
    ) -> None:
        """average: each head is as wide as the output, which is their mean. self_loops: a row attends to itself as well.
        edge_features: logits depend on those of edges, a row's own edge having zeros.

        Raises MisuseError for heads that do not divide the width, numbers out of range, and edge features that are not there.
        """
        super().__init__()
        check_attention_options(slope=slope, attention_dropout=attention_dropout, self_loops=self_loops)
        self.edge_dim = attention_edge_dim(self.name, edge_features, edges)
        self._shape = attention_shape(self.name, dim_in, dim_out, heads=heads, average=average, edge_dim=self.edge_dim)
        self.heads, self.average, self.slope = heads, average and heads > 1, slope
        self.attention_dropout, self.self_loop = attention_dropout, self_loops
        self.head_dim = dim_out if average else dim_out // heads
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def shape(self) -> dict[str, Any]:
        return {**self._shape, "self_loop": self.self_loop}

    @property
    def width(self) -> int:
        """Columns of all heads."""
        return self.heads * self.head_dim

    def finish(self, inputs: Tensor | None, reduced: Tensor) -> Tensor:
        return reduced.view(-1, self.heads, self.head_dim).mean(1) if self.average else reduced

    def start(self, rows: MergingRows) -> None:
        state = self._state(rows)
        state.maximum.fill_(-torch.inf)
        state.sum.zero_()
        state.out.zero_()

    def merge(self, block: BlockEdges, messages: Tensor, rows: MergingRows, stream: kernels.Stream | None) -> None:
        values, logits = self._inputs(block, messages, rows)
        dropout = self._dropout(block, stream)
        logits = self._with_edges(logits, block, rows)
        attention_kernels.attend(block.edges, self._state(rows, block.targets), values, logits, dropout=dropout)

    def conclude(self, rows: MergingRows) -> None:
        attention_kernels.finish_attention(self._state(rows))

    def prepare_backward(self, rows: MergingRows) -> None:
        logits = self._logits(rows.queries[:0], rows.queries)
        attention_kernels.pack_targets(self._state(rows), rows.gradient, logits, out=rows.context)
        if rows.kept_share is not None:
            self._correct_products(rows, rows.kept_share)

    def _correct_products(self, rows: MergingRows, share: float) -> None:
        """Σ g · (merged rows), packed last, from Σ g · h: where h > 0 these are share · h − bias, and elsewhere g is 0."""
        by_head = torch.eye(self.heads, dtype=self.bias.dtype, device=self.bias.device).repeat_interleave(self.head_dim, dim=0)
        by_head *= self.bias.data[:, None]
        products = rows.context[:, 3 * self.heads :]
        products.mul_(share).addmm_(rows.gradient, by_head, alpha=-1.0)

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
        values, logits = self._inputs(block, messages, rows)
        gradients = self._gradients(block, target, rows, parameter_gradient)
        attention_kernels.attend_backward(
            block.edges,
            rows.context[block.targets],
            rows.gradient[block.targets],
            values,
            self._with_edges(logits, block, rows),
            gradients,
            dropout=self._dropout(block, stream),
            accumulate=accumulate,
        )
        self._edge_gradients(block, gradients, parameter_gradient)

    def _inputs(self, block: BlockEdges, messages: Tensor, rows: MergingRows) -> tuple[Tensor, Logits]:
        return messages[:, : self.width], self._logits(messages[:, self.width :], rows.queries[block.targets])

    def _state(self, rows: MergingRows, targets: slice = slice(None)) -> AttentionState:
        maximum, total = rows.state.view(2, -1, self.heads)
        return AttentionState(maximum[targets], total[targets], rows.reduced[targets])

    def _dropout(self, block: BlockEdges, stream: kernels.Stream | None) -> AttentionDropout | None:
        if stream is None or self.attention_dropout == 0.0:
            return None
        dropout = kernels.Dropout(self.attention_dropout, replace(stream, purpose=kernels.PURPOSE_ATTENTION))
        return AttentionDropout(dropout, block.target_nodes, block.source_nodes)

    @abstractmethod
    def _logits(self, packed: Tensor, queries: Tensor) -> Logits:
        """From the half-logits packed behind the messages' values, and the targets' side."""

    @abstractmethod
    def _gradients(
        self, block: BlockEdges, target: Tensor, rows: MergingRows, parameter_gradient: Callable[[nn.Parameter], Tensor]
    ) -> Gradients:
        """Where the gradients of a block go."""

    def _with_edges(self, logits: Logits, block: BlockEdges, rows: MergingRows) -> Logits:
        """The logits of a block with what its edges add to them."""
        return logits

    def _edge_gradients(
        self, block: BlockEdges, gradients: Gradients, parameter_gradient: Callable[[nn.Parameter], Tensor]
    ) -> None:
        """Add to the gradients of parameters that edges meet."""


class GAT(_Attention):
    """``l_ij = leaky_relu(a_s · W h_j + a_t · W h_i [+ a_e · W_e f_ij])``. Source: Veličković et al., ICLR 2018, equations 1 to
    6; with edge features f_ij as PyG's GATConv and DGL's EdgeGATConv have them (there values are the neighbours' alone too).

    Half-logits are columns of the projection, ``h (W a)``, and travel behind the values: one message a row. Edge features
    never travel; ``f (W_e a_e)`` is made block by block, [entries, heads].
    """

    name = "gat"

    def __init__(self, dim_in: int, dim_out: int, **options: Any) -> None:
        super().__init__(dim_in, dim_out, **options)
        self.weight = nn.Parameter(glorot(dim_in, self.width))
        self.source_attention = nn.Parameter(glorot(self.heads, self.head_dim))
        self.target_attention = nn.Parameter(glorot(self.heads, self.head_dim))
        if self.edge_dim:
            self.edge_weight = nn.Parameter(glorot(self.edge_dim, self.width))
            self.edge_attention = nn.Parameter(glorot(self.heads, self.head_dim))

    def projection(self) -> Tensor:
        by_head = self.weight.view(-1, self.heads, self.head_dim)
        halves = [(by_head * each).sum(-1) for each in (self.source_attention, self.target_attention)]
        return torch.cat([self.weight, *halves], dim=1)

    def _logits(self, packed: Tensor, queries: Tensor) -> Logits:
        return GatLogits(packed, queries, slope=self.slope)

    def _gradients(
        self, block: BlockEdges, target: Tensor, rows: MergingRows, parameter_gradient: Callable[[nn.Parameter], Tensor]
    ) -> GatGradients:
        to_values, to_source = target[:, : self.width], target[:, self.width :]
        of_edges = None
        if block.features is not None and self.edge_dim:
            of_edges = rows.entries[len(rows.entries) // 2 :][: len(block.features)]
        return GatGradients(to_values, to_source, rows.query_gradient[block.targets], of_edges)

    def _with_edges(self, logits: Logits, block: BlockEdges, rows: MergingRows) -> Logits:
        if not self.edge_dim:
            return logits
        assert isinstance(logits, GatLogits)
        assert block.features is not None
        edge = rows.entries[: len(block.features)]
        torch.mm(block.features, (self._edges_by_head() * self.edge_attention).sum(-1), out=edge)
        return replace(logits, edge=edge)

    def _edge_gradients(
        self, block: BlockEdges, gradients: Gradients, parameter_gradient: Callable[[nn.Parameter], Tensor]
    ) -> None:
        if not self.edge_dim:
            return
        assert isinstance(gradients, GatGradients)
        assert gradients.edge is not None
        assert block.features is not None
        found = (block.features.t() @ gradients.edge)[..., None]  # of W_e a_e, [E, heads, 1]
        parameter_gradient(self.edge_weight).view(self._edges_by_head().shape).add_(found * self.edge_attention)
        parameter_gradient(self.edge_attention).add_((found * self._edges_by_head()).sum(0))

    def _edges_by_head(self) -> Tensor:
        return self.edge_weight.view(-1, self.heads, self.head_dim)


class GATv2(_Attention):
    """``l_ij = a · leaky_relu(W_s h_j + W_t h_i)``. Source: Brody et al., ICLR 2022, equation 7."""

    name = "gatv2"

    def __init__(self, dim_in: int, dim_out: int, **options: Any) -> None:
        super().__init__(dim_in, dim_out, **options)
        self.weight = nn.Parameter(glorot(dim_in, self.width))
        self.target_weight = nn.Parameter(glorot(dim_in, self.width))
        self.attention = nn.Parameter(glorot(self.heads, self.head_dim))

    def projection(self) -> Tensor:
        return torch.cat([self.weight, self.target_weight], dim=1)

    def _logits(self, packed: Tensor, queries: Tensor) -> Logits:
        return Gatv2Logits(queries, self.attention.data, self.slope)

    def _gradients(
        self, block: BlockEdges, target: Tensor, rows: MergingRows, parameter_gradient: Callable[[nn.Parameter], Tensor]
    ) -> Gatv2Gradients:
        return Gatv2Gradients(target, rows.query_gradient[block.targets], parameter_gradient(self.attention))
