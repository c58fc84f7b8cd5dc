"""The layers: GCN and GraphSAGE-mean, and the interface through which any other layer trains unchanged.

A layer is a torch module with a local ``forward(block, h)``. Layers whose aggregation is fixed and linear say so by
deriving from `LinearAggregation`; the runtime then runs the two halves as separate operations, on persistent buffers,
with the lossless savings. Any other layer is run whole, under autograd, on one rank at a time.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from halocast.errors import MisuseError, nearest
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
        self.weight = nn.Parameter(_glorot(dim_in, dim_out))
        self.self_weight = nn.Parameter(_glorot(dim_in, dim_out)) if self_weight else None
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


BUILT_IN: dict[str, type[GCN] | type[GraphSAGE]] = {"gcn": GCN, "sage": GraphSAGE}


def build_layer(name: str, dim_in: int, dim_out: int, options: dict[str, Any]) -> nn.Module:
    """A built-in layer by name, or ``package.module:Class`` called as ``Class(dim_in, dim_out, **options)``.

    Raises MisuseError for an unknown name, a module that does not import, or options the class does not take.
    """
    if name in BUILT_IN:
        if options:
            raise MisuseError(f"model.options: layer '{name}' takes no options, got {', '.join(sorted(options))}")
        return BUILT_IN[name](dim_in, dim_out)
    if ":" not in name:
        raise MisuseError(f"unknown layer '{name}'{nearest(name, BUILT_IN)} (or your own, as package.module:Class)")
    module_name, _, class_name = name.partition(":")
    try:
        layer_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        remedy = "; pip install torch_geometric" if module_name.startswith("torch_geometric") else ""
        raise MisuseError(f"model.layer '{name}' cannot be imported: {error}{remedy}") from error
    try:
        layer = layer_class(dim_in, dim_out, **options)
    except TypeError as error:
        raise MisuseError(f"model.layer '{name}' does not take ({dim_in}, {dim_out}, {options}): {error}") from error
    except Exception as error:  # whatever a user's constructor raises
        raise MisuseError(f"model.layer '{name}' raised {type(error).__name__}: {error}") from error
    if not _is_pyg_convolution(layer):
        module: nn.Module = layer
        return module
    if getattr(layer, "add_self_loops", False):
        raise MisuseError(
            f"model.layer '{name}' would add self loops between unrelated rows; use --set model.options.add_self_loops=false"
        )
    return PyGLayer(layer)


def _is_pyg_convolution(layer: object) -> bool:
    return any(
        base.__module__.startswith("torch_geometric.") and base.__name__ == "MessagePassing" for base in type(layer).__mro__
    )


def _glorot(dim_in: int, dim_out: int) -> Tensor:
    """Uniform in ±√(6 / (in + out)). Source: Glorot and Bengio, AISTATS 2010, eq. 16."""
    bound = (6.0 / (dim_in + dim_out)) ** 0.5
    return torch.empty(dim_in, dim_out).uniform_(-bound, bound)
