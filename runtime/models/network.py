"""The network: layers one after the other, each hidden one followed by norm, ReLU and dropout."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from halocast.runtime.edge_data import EdgeUse
from halocast.runtime.models.blockwise import BlockwiseLayer
from halocast.runtime.models.edge_options import NO_EDGE_DATA, EdgeShape
from halocast.runtime.models.layers import LinearAggregation
from halocast.runtime.models.registry import build_layer
from halocast.runtime.models.shapes import layer_spec
from halocast.traces.workload import LayerSpec


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """The model section of a run, resolved."""

    layer: str = "sage"
    layers: int = 3
    hidden: int = 128
    dropout: float = 0.5
    """On the output of every hidden layer."""
    norm: str = "none"
    """"none", "layer" or "batch"."""
    residual: bool = False
    """Add a layer's input to its pre-activation wherever the widths agree (from the second layer on)."""
    options: dict[str, Any] = field(default_factory=dict)


class GraphNetwork(nn.Module):
    """Parameters and shapes of the whole model; the executor runs it operation by operation."""

    def __init__(
        self,
        shape: NetworkShape,
        dim_in: int,
        classes: int,
        *,
        seed: int,
        dtype: torch.dtype,
        edges: EdgeShape = NO_EDGE_DATA,
    ) -> None:
        """The same seed gives the same parameters on every rank. edges: what the graph's edges carry."""
        super().__init__()
        self.shape = shape
        widths = [dim_in, *[shape.hidden] * (shape.layers - 1), classes]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(
                build_layer(shape.layer, width_in, width_out, shape.options, last=index == shape.layers - 1, edges=edges)
                for index, (width_in, width_out) in enumerate(pairwise(widths))
            )
        hidden = range(shape.layers - 1)
        norms: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
        self.norms = nn.ModuleList(norms[shape.norm](shape.hidden) for _ in hidden if shape.norm in norms)
        self.widths = widths
        self.to(dtype)

    def norm(self, index: int) -> nn.LayerNorm | None:
        """The norm within rows that follows layer `index`, if any."""
        norm = self.norms[index] if index < len(self.norms) else None
        return norm if isinstance(norm, nn.LayerNorm) else None

    def batch_norm(self, index: int) -> nn.BatchNorm1d | None:
        """The norm over all nodes that follows layer `index`, if any."""
        norm = self.norms[index] if index < len(self.norms) else None
        return norm if isinstance(norm, nn.BatchNorm1d) else None

    def layer_parameters(self, index: int) -> list[nn.Parameter]:
        """The parameters whose gradients travel in the bucket of layer `index`, in a fixed order; frozen ones do not."""
        norms = self.norms[index : index + 1]
        parameters = [*self.layers[index].parameters(), *norms.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def edge_use(self, dtype: torch.dtype) -> EdgeUse:
        """What the layers read of edge data; all are of one kind."""
        first = self.layers[0]
        relations = first.relation_types if isinstance(first, BlockwiseLayer) else ()
        return EdgeUse(dtype, self._spec(0).edge_dim > 0, relations)

    def specs(self) -> tuple[LayerSpec, ...]:
        """The shapes as programs see them."""
        return tuple(self._spec(index) for index in range(self.shape.layers))

    def _spec(self, index: int) -> LayerSpec:
        layer, shape = self.layers[index], self.shape
        if isinstance(layer, BlockwiseLayer):
            fields = layer.shape()
        elif isinstance(layer, LinearAggregation):
            fields = {"self_loop": layer.self_loop, "self_weight": layer.self_weight is not None}
        else:
            fields = {"linear_aggregation": False, "bias": False}
        return layer_spec(
            self.widths[index],
            self.widths[index + 1],
            fields,
            last=index == shape.layers - 1,
            norm=shape.norm,
            dropout=shape.dropout,
            residual=shape.residual and index > 0,
            parameters=sum(parameter.numel() for parameter in self.layer_parameters(index)),
        )


class GradientBuckets:
    """One flat gradient tensor a layer, each parameter's ``grad`` a view of it; the last one has a slot for the loss."""

    def __init__(self, network: GraphNetwork, dtype: torch.dtype, device: torch.device) -> None:
        self.flat: list[Tensor] = []
        self._views: dict[nn.Parameter, Tensor] = {}
        last = network.shape.layers - 1
        for index in range(network.shape.layers):
            parameters = network.layer_parameters(index)
            size = sum(parameter.numel() for parameter in parameters)
            flat = torch.zeros(size + (1 if index == last else 0), dtype=dtype, device=device)
            offset = 0
            for parameter in parameters:
                view = flat[offset : offset + parameter.numel()].view_as(parameter)
                parameter.grad = view
                self._views[parameter] = view
                offset += parameter.numel()
            self.flat.append(flat)

    def __getitem__(self, parameter: nn.Parameter) -> Tensor:
        return self._views[parameter]

    def gradient(self) -> Tensor:
        """A copy of the whole network's gradient, [parameters], layer after layer."""
        return torch.cat([*self.flat[:-1], self.flat[-1][:-1]])

    @property
    def loss(self) -> Tensor:
        """Scalar view: the sum of the losses of the rank's training rows, over all ranks once reduced."""
        return self.flat[-1][-1]
