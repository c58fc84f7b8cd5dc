"""The layers that the hand-written torch peers share; they differ in the operator that sums over neighbours only."""

from __future__ import annotations

from typing import Protocol

import torch
from benchmarks.peers.measure import LayerWeights
from torch import Tensor, nn


class Propagation(Protocol):
    """rows [nodes, dim] -> neighbourhood sums or means [nodes, dim], differentiable in rows."""

    def __call__(self, rows: Tensor, /) -> Tensor: ...


class Convolution(nn.Module):
    """GCN where `weights.own` is None, else GraphSAGE-mean; transforms first where that narrows the rows."""

    def __init__(self, weights: LayerWeights, propagate: Propagation) -> None:
        super().__init__()
        self.propagate = propagate
        self.neighbour = nn.Parameter(torch.from_numpy(weights.neighbour))
        self.own = None if weights.own is None else nn.Parameter(torch.from_numpy(weights.own))
        dim_in, dim_out = weights.neighbour.shape
        self.bias = nn.Parameter(torch.zeros(dim_out))
        self.transform_first = dim_out < dim_in

    def forward(self, rows: Tensor) -> Tensor:
        """[nodes, dim_in] -> [nodes, dim_out]."""
        if self.transform_first:
            out = self.propagate(rows @ self.neighbour) + self.bias
        else:
            out = torch.addmm(self.bias, self.propagate(rows), self.neighbour)
        return out if self.own is None else out.addmm(rows, self.own)
