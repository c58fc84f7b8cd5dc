"""Layers that meet their neighbours' messages block by block: what they define, and a message of one's own.

Such a layer never sees all neighbours of a row at once. Its messages are rows of its input, or of their product with a matrix
(`projection`); they arrive in blocks, in any order, and merge into one result a row. So the same layer trains with the whole
halo in memory (`--method full`), quantised (adaqp), or one part at a time (sar).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halocast.runtime import kernels
from halocast.runtime.block_edges import BlockEdges
from halocast.runtime.models.block import Block
from halocast.runtime.models.layers import GraphLayer

PIECE_VALUES = 1 << 19
"""Values of gathered rows that a message of one's own is computed on at a time."""


NOTHING = torch.empty(0)
"""Stands for rows that a step does not have."""


@dataclass(frozen=True)
class MergingRows:
    """The own rows' side of merging, as far as a step has it. Each tensor has a row an own row."""

    reduced: Tensor = NOTHING
    """[own, reduced_dim] the running, then the finished result."""
    state: Tensor = NOTHING
    """[own · state_dim], flat: a layer lays out in it what it likes, matrix after matrix."""
    queries: Tensor = NOTHING
    """[own, query_dim]"""
    degrees: Tensor = NOTHING
    """int64 [own] neighbours in the whole graph, self loops not counted."""
    gradient: Tensor = NOTHING
    """[own, reduced_dim] of the finished result."""
    context: Tensor = NOTHING
    """[own, context_dim] what `prepare_backward` leaves for every block."""
    kept_share: float | None = None
    """Where `reduced` holds ``relu(merged + bias)`` by now, dropped out and scaled by 1 / share: the share. Else None."""
    query_gradient: Tensor = NOTHING
    """[own, query_dim] added to by every block."""
    entries: Tensor = NOTHING
    """[entries, entry_dim] room for what merging makes of the block's edges, [2 · entries, entry_dim] going backward."""


class BlockwiseLayer(GraphLayer):
    """A layer by blocks. All methods but `projection` and `finish` run without autograd."""

    bias: nn.Parameter | None
    """Added after `finish` by the runtime; may be None."""
    relation_types: tuple[int, ...] = ()
    """Types of the relations that its blocks tell apart, as many as its shape has `relations`."""

    def shape(self) -> dict[str, Any]:
        """The fields of `LayerSpec` from `reduction` on."""
        raise TypeError(f"{type(self).__name__} must define shape()")

    def projection(self) -> Tensor | None:
        """[dim_in, message_dim + query_dim], differentiable in the parameters; None: messages are the input rows."""
        return None

    def finish(self, inputs: Tensor | None, reduced: Tensor) -> Tensor:
        """[rows, dim_out] of the merged results, row by row, without the bias; differentiable. Needed if `finishes`."""
        return reduced

    def start(self, rows: MergingRows) -> None:
        """No neighbours yet."""
        raise TypeError(f"{type(self).__name__} must define start(rows)")

    def merge(self, block: BlockEdges, messages: Tensor, rows: MergingRows, stream: kernels.Stream | None) -> None:
        """Merge one block. `stream`: of the epoch's random numbers, None in evaluation."""
        raise TypeError(f"{type(self).__name__} must define merge(block, messages, rows, stream)")

    def conclude(self, rows: MergingRows) -> None:
        """All blocks have come."""

    def prepare_backward(self, rows: MergingRows) -> None:
        """Fill `rows.context`, or change `rows.gradient` in place, before the blocks come again."""

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
        """Write (or add) the gradient of one block's messages to `target`, which may be `messages` itself where
        `accumulate` is False; add to the queries' and the parameters' gradients."""
        raise TypeError(f"{type(self).__name__} must define merge_backward(...)")

    def forward(self, block: Block, h: Tensor) -> Tensor:
        """A block of everything, under autograd."""
        raise TypeError(f"{type(self).__name__} is run block by block, by the runtime")


class MessageLayer(BlockwiseLayer):
    """Your own message: ``z_i = update(h_i, Σ_j message(h_j, h_i)) + bias``, the sum or mean over neighbours j.

    Derive, give ``__init__`` the width of your messages, define `message` (and `update`); both run under autograd, on
    rows of any number. Messages are computed a few at a time and never stored. Nothing may be random in them.
    """

    mean = False
    """Divide the sum by the number of neighbours."""
    reads_target = True
    """Whether `message` looks at the target's row."""

    def __init__(self, dim_in: int, dim_out: int, *, message_dim: int | None = None) -> None:
        """`message_dim`: values that `message` returns a row, by default dim_in."""
        super().__init__()
        self.dim_in, self.dim_out = dim_in, dim_out
        self.reduced_dim = dim_in if message_dim is None else message_dim
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def message(self, source: Tensor, target: Tensor | None) -> Tensor:
        """[edges, message_dim] from the rows [edges, dim_in] at an edge's two ends."""
        raise TypeError(f"{type(self).__name__} must define message(source, target)")

    def update(self, inputs: Tensor, reduced: Tensor) -> Tensor:
        """[rows, dim_out] from the rows' inputs and their summed messages, without the bias."""
        return reduced

    def finish(self, inputs: Tensor | None, reduced: Tensor) -> Tensor:
        assert inputs is not None
        return self.update(inputs, reduced)

    def shape(self) -> dict[str, Any]:
        return {
            "reduction": f"{type(self).__name__} {'mean' if self.mean else 'sum'}",
            "message_dim": self.dim_in,
            "query_dim": self.dim_in if self.reads_target else 0,
            "reduced_dim": self.reduced_dim,
            "refetches": True,
            "merge_parameters": any(each.requires_grad and each is not self.bias for each in self.parameters()),
            "finishes": True,
            "finish_reads_inputs": True,
            "finish_flops": 2 * self.reduced_dim * self.dim_out,
            "merge_flops": 2 * self.dim_in * self.reduced_dim,
        }

    def start(self, rows: MergingRows) -> None:
        rows.reduced.zero_()

    def merge(self, block: BlockEdges, messages: Tensor, rows: MergingRows, stream: kernels.Stream | None) -> None:
        into = rows.reduced[block.targets]
        for _, sources, targets in self._pieces(block):
            own = rows.queries[block.targets][targets] if self.reads_target else None
            into.index_add_(0, targets, self.message(messages[sources], own))

    def conclude(self, rows: MergingRows) -> None:
        if self.mean:
            rows.reduced.mul_(self._share(rows)[:, None])

    def prepare_backward(self, rows: MergingRows) -> None:
        if self.mean:
            rows.gradient.mul_(self._share(rows)[:, None])

    @staticmethod
    def _share(rows: MergingRows) -> Tensor:
        return rows.degrees.clamp(min=1).to(rows.reduced.dtype).reciprocal()

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
        gradient = rows.gradient[block.targets]
        parameters = [each for each in self.parameters() if each.requires_grad]
        for span, sources, targets in self._pieces(block):
            with torch.enable_grad():
                source = messages[sources].requires_grad_()
                own = rows.queries[block.targets][targets].requires_grad_() if self.reads_target else None
                ends = [source] if own is None else [source, own]
                found = torch.autograd.grad(
                    self.message(source, own), [*ends, *parameters], gradient[targets], allow_unused=True
                )
            if target is not None:
                if not accumulate:
                    target[span] = 0.0
                if found[0] is not None:
                    target.index_add_(0, sources, found[0])
            if own is not None and rows.query_gradient.numel() and found[1] is not None:
                rows.query_gradient[block.targets].index_add_(0, targets, found[1])
            for parameter, value in zip(parameters, found[len(ends) :], strict=True):
                if value is not None:
                    parameter_gradient(parameter).add_(value)

    def _pieces(self, block: BlockEdges) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(sources, source and target of each of their edges), a bounded number of edges at a time but for one source's."""
        edges = block.edges
        degree = edges.source_end - edges.source_begin
        before = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        step = max(1, PIECE_VALUES // max(self.dim_in, self.reduced_dim, 1))
        first = 0
        while first < degree.numel():
            last = int(torch.searchsorted(before, before[first] + step, right=True)) - 1
            last = max(min(last, degree.numel()), first + 1)
            counts = degree[first:last]
            sources = torch.repeat_interleave(torch.arange(first, last, device=degree.device), counts)
            within = torch.arange(sources.numel(), device=degree.device) - (before[sources] - before[first])
            yield slice(first, last), sources, edges.targets[edges.source_begin[sources] + within].long()
            first = last
