"""Layers as a user would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from halocast.runtime.models.block import Block
from halocast.runtime.models.layers import GraphLayer, GraphSAGE


class OpaqueSAGE(GraphLayer):
    """GraphSAGE that hides its linear aggregation from the runtime; the same parameters under the same names."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        inner = GraphSAGE(dim_in, dim_out)
        self.weight, self.self_weight, self.bias = inner.weight, inner.self_weight, inner.bias
        self._inner = [inner]  # in a list, so that torch does not register the parameters twice

    def forward(self, block: Block, h: Tensor) -> Tensor:
        return self._inner[0](block, h)


class NoisyMax(GraphLayer):
    """The maximum over neighbours of rows that have been dropped out: no linear aggregation, and its own randomness."""

    def __init__(self, dim_in: int, dim_out: int, probability: float) -> None:
        super().__init__()
        self.neighbour, self.own = nn.Linear(dim_in, dim_out), nn.Linear(dim_in, dim_out)
        self.probability = probability

    def forward(self, block: Block, h: Tensor) -> Tensor:
        source, target = block.edge_index
        rows = block.dropout(self.neighbour(h), self.probability)[source]
        index = target.unsqueeze(1).expand_as(rows)
        largest = torch.full((block.targets, rows.shape[1]), -4.0, dtype=h.dtype).scatter_reduce(0, index, rows, "amax")
        return largest + self.own(block.own_inputs(h))


class FrozenScale(GraphLayer):
    """A linear map of the row itself, its bias frozen."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)
        self.linear.bias.requires_grad_(False)

    def forward(self, block: Block, h: Tensor) -> Tensor:
        return self.linear(block.own_inputs(h))  # type: ignore[no-any-return]


class Scaled(GraphLayer):
    """A linear map of the row itself, scaled by a number that the constructor reads off a tensor."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)
        self.scale = float(self.linear.weight.detach().abs().max())

    def forward(self, block: Block, h: Tensor) -> Tensor:
        return self.linear(block.own_inputs(h)) / self.scale  # type: ignore[no-any-return]
