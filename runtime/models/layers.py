"""The layers: GCN and GraphSAGE-mean, and the interface through which any other layer trains unchanged.

A layer is a torch module with a local ``forward(block, h)``. Layers whose aggregation is fixed and linear say so by
deriving from `LinearAggregation`; the runtime then runs the two halves as separate operations, on persistent buffers,
with the lossless savings. Any other layer is run whole, under autograd, on one rank at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from halocast.runtime.models.block import Block


class GraphLayer(nn.Module):
    """What a user's own layer derives from (or merely looks like): ``(dim_in, dim_out, **options)`` and `forward`."""

    def forward(self, block: Block, h: Tensor) -> Tensor:
        """Rows ``[block.targets, dim_out]`` from the inputs ``h`` ``[block.sources, dim_in]``."""
        raise TypeError(f"{type(self).__name__} must define forward(block, h)")


class LinearAggregation(GraphLayer):
    """``z = (A h) W + [h W_self] + b`` with ``A = diag(row_scale) (adjacency [+ I]) diag(column_scale)``."""

    self_loop = False

    def __init__(self, dim_in: int, dim_out: int, *, self_weight: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(glorot(dim_in, dim_out))
        self.self_weight = nn.Parameter(glorot(dim_in, dim_out)) if self_weight else None
        self.bias = nn.Parameter(torch.zeros(dim_out))

    def scales(self, degrees: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """(row_scale, column_scale) for rows of the given degrees; None is all ones."""
        raise TypeError(f"{type(self).__name__} must define scales(degrees, dtype)")

    def forward(self, block: Block, h: Tensor) -> Tensor:
        """The same as the runtime's split operations, in one differentiable piece."""
        row_scale, column_scale = self.scales(block.degrees, h.dtype)
        total = block.sum_neighbours(h, column_scale)
        if self.self_loop:
            own = block.own_inputs(h)
            total = total + (own if column_scale is None else own * block.own_inputs(column_scale).unsqueeze(1))
        z = (block.own_inputs(row_scale).unsqueeze(1) * total) @ self.weight + self.bias
        return z if self.self_weight is None else z + block.own_inputs(h) @ self.self_weight


class GCN(LinearAggregation):
    """``D^-½ (A + I) D^-½ H W + b``, D the degrees with self loops. Source: Kipf and Welling, ICLR 2017, eq. 2."""

    self_loop = True

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, self_weight=False)

    def scales(self, degrees: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        scale = (degrees.to(dtype) + 1).rsqrt()
        return scale, scale


class GraphSAGE(LinearAggregation):
    """``H W_self + mean(neighbours) W + b``; no neighbours: mean 0. Source: Hamilton et al., NeurIPS 2017, section 3.3."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, self_weight=True)

    def scales(self, degrees: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return degrees.clamp(min=1).to(dtype).reciprocal(), None


class PyGLayer(GraphLayer):
    """A PyG bipartite convolution, called as ``conv((h, h_targets), edge_index)``.

    It must not add self loops of its own: in a bipartite block target t and source t are different nodes, and PyG
    refuses or misplaces them.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, block: Block, h: Tensor) -> Tensor:
        return self.convolution((h, block.own_inputs(h)), block.edge_index)  # type: ignore[no-any-return]


def glorot(dim_in: int, dim_out: int) -> Tensor:
    """Uniform in ±√(6 / (in + out)). Source: Glorot and Bengio, AISTATS 2010, eq. 16."""
    bound = (6.0 / (dim_in + dim_out)) ** 0.5
    return torch.empty(dim_in, dim_out).uniform_(-bound, bound)
