"""A user's own message, as a test would bring it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from halocast.runtime.models.blockwise import MessageLayer


class Gated(MessageLayer):
    """``Σ_j σ(h_j G + h_i T) · (h_j M)``, then two matrices: edge weights that learn."""

    def __init__(self, dim_in: int, dim_out: int, *, mean: bool = False) -> None:
        super().__init__(dim_in, dim_out, message_dim=7)
        self.mean = mean
        self.gate = nn.Parameter(torch.randn(dim_in, 7) / 3)
        self.target_gate = nn.Parameter(torch.randn(dim_in, 7) / 3)
        self.message_weight = nn.Parameter(torch.randn(dim_in, 7) / 3)
        self.weight = nn.Parameter(torch.randn(7, dim_out) / 3)
        self.self_weight = nn.Parameter(torch.randn(dim_in, dim_out) / 3)

    def message(self, source: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return torch.sigmoid(source @ self.gate + target @ self.target_gate) * (source @ self.message_weight)

    def update(self, inputs: Tensor, reduced: Tensor) -> Tensor:
        return reduced @ self.weight + inputs @ self.self_weight


class Plain(MessageLayer):
    """The neighbours' rows by an elementwise weight that learns, without looking at the target."""

    reads_target = False

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out)
        self.edge_weight = nn.Parameter(torch.rand(dim_in))
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out) / 3)

    def message(self, source: Tensor, target: Tensor | None) -> Tensor:
        return source * self.edge_weight

    def update(self, inputs: Tensor, reduced: Tensor) -> Tensor:
        return reduced @ self.weight


class Scaled(MessageLayer):
    """The neighbours' first columns by one number that learns; no bias."""

    reads_target = False

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, message_dim=dim_out)
        self.bias = None
        self.scale = nn.Parameter(torch.ones(1))

    def message(self, source: Tensor, target: Tensor | None) -> Tensor:
        return self.scale * source[:, : self.dim_out]
