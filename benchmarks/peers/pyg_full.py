"""PyG's GCNConv and SAGEConv: `python -m benchmarks.peers.pyg_full GRAPH.npz --variant edge-index --model gcn`.

- edge-index: an EdgeIndex sorted by column with its caches filled, multiplied as GraphConv does it. GCNConv and
  SAGEConv of PyG 2.8 gather and scatter when they are given one, so two subclasses hand it to its own sparse product.
- csr: the layers as they are, on a torch.sparse CSR matrix, which they multiply with `message_and_aggregate`. Its
  indices stay int64, as PyG makes them: with int32, torch 2.13's gradient of the mean is wrong at 100,000 nodes.
- gather: the layers as they are on a plain edge list; a message tensor of [edges, dim] per layer.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from benchmarks.peers.graph import PlainGraph
from benchmarks.peers.measure import (
    LayerWeights,
    initial_weights,
    load_single_label_graph,
    measure,
    parse_options,
)
from benchmarks.peers.training import Stack, epoch_of
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm


class EdgeIndexGCNConv(GCNConv):  # type: ignore[misc]
    """GCNConv whose sum is EdgeIndex.matmul, as in PyG's GraphConv."""

    SUPPORTS_FUSED_EDGE_INDEX = True

    def message_and_aggregate(self, edge_index: EdgeIndex, x: Tensor, edge_weight: Tensor) -> Tensor:
        sums: Tensor = edge_index.matmul(x, input_value=edge_weight, reduce="sum", transpose=True)
        return sums


class EdgeIndexSAGEConv(SAGEConv):  # type: ignore[misc]
    """SAGEConv whose mean is EdgeIndex.matmul, as in PyG's GraphConv."""

    SUPPORTS_FUSED_EDGE_INDEX = True

    def message_and_aggregate(self, edge_index: EdgeIndex, x: tuple[Tensor, Tensor]) -> Tensor:
        means: Tensor = edge_index.matmul(x[0], reduce="mean", transpose=True)
        return means


class BoundConvolution(nn.Module):
    """A PyG layer with the structure and edge weights that it is called with."""

    def __init__(self, convolution: nn.Module, structure: Tensor, edge_weights: Tensor | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.structure = structure
        self.edge_weights = edge_weights

    def forward(self, rows: Tensor) -> Tensor:
        if self.edge_weights is None:
            out: Tensor = self.convolution(rows, self.structure)
        else:
            out = self.convolution(rows, self.structure, self.edge_weights)
        return out


def pyg_structure(graph: PlainGraph, model: str, variant: str) -> tuple[Tensor, Tensor | None]:
    """The adjacency in the form of `variant`, normalised once for a GCN, and its edge weights where they are apart."""
    rows = torch.from_numpy(np.repeat(np.arange(graph.nodes), graph.degrees))
    edge_index = torch.stack([torch.from_numpy(graph.indices).long(), rows])
    size = (graph.nodes, graph.nodes)
    weights: Tensor | None = None
    if model == "gcn":
        edge_index, weights = gcn_norm(edge_index, None, graph.nodes)
    if variant == "gather":
        return edge_index, weights
    order = torch.argsort(edge_index[1] * graph.nodes + edge_index[0])
    edge_index = edge_index[:, order].contiguous()
    weights = None if weights is None else weights[order]
    if variant == "csr":
        values = torch.ones(edge_index.shape[1]) if weights is None else weights
        degrees = torch.bincount(edge_index[1], minlength=graph.nodes)
        indptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
        return torch.sparse_csr_tensor(indptr, edge_index[0], values, size=size), None
    sorted_index = EdgeIndex(edge_index, sparse_size=size, sort_order="col", is_undirected=True)
    return sorted_index.fill_cache_(), weights


def convolution(weights: LayerWeights, variant: str) -> nn.Module:
    """A GCNConv (the normalisation is in the structure), or a SAGEConv where there is a weight for the own row."""
    dim_in, dim_out = weights.neighbour.shape
    neighbour = torch.from_numpy(weights.neighbour)
    fused = variant == "edge-index"
    with torch.no_grad():
        if weights.own is None:
            layer = (EdgeIndexGCNConv if fused else GCNConv)(dim_in, dim_out, normalize=False)
            layer.lin.weight.copy_(neighbour.T)
            layer.bias.zero_()
        else:
            layer = (EdgeIndexSAGEConv if fused else SAGEConv)(dim_in, dim_out, aggr="mean")
            layer.lin_l.weight.copy_(neighbour.T)
            layer.lin_r.weight.copy_(torch.from_numpy(weights.own).T)
            layer.lin_l.bias.zero_()
    return layer


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse CS[RC] tensor support is in beta")
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    options = parse_options(__doc__, variants=("edge-index", "csr", "gather"))
    torch.set_num_threads(options.threads)
    graph = load_single_label_graph(options)
    structure, edge_weights = pyg_structure(graph, options.model, options.variant)
    layers = [
        BoundConvolution(convolution(weights, options.variant), structure, edge_weights)
        for weights in initial_weights(graph, options)
    ]
    measure(f"pyg-{options.variant}", options, epoch_of(Stack(layers), graph))


if __name__ == "__main__":
    main()
