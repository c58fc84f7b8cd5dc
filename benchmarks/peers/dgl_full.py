"""DGL's GraphConv and SAGEConv: `python -m benchmarks.peers.dgl_full GRAPH.npz --model gcn --threads 2`.

Written as its user guide says: self loops added once, sparse formats built before training, int32 ids (the default
int64 ones: `--variant int64`), the zero-degree check switched off.
"""

from __future__ import annotations

import os

os.environ.setdefault("DGLBACKEND", "pytorch")  # DGL asks for a backend when it is imported without one

import dgl  # type: ignore[import-not-found]
import dgl.nn  # type: ignore[import-not-found]
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


class BoundConvolution(nn.Module):
    """A DGL layer with the graph that it is called with."""

    def __init__(self, convolution: nn.Module, structure: dgl.DGLGraph) -> None:
        super().__init__()
        self.convolution = convolution
        self.structure = structure

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.convolution(self.structure, rows)
        return out


def dgl_structure(graph: PlainGraph, model: str, variant: str) -> dgl.DGLGraph:
    """The graph as DGL holds it, with all that can be done before training done."""
    indptr, indices = torch.from_numpy(graph.indptr), torch.from_numpy(graph.indices).long()
    structure = dgl.graph(("csr", (indptr, indices, torch.empty(0, dtype=torch.int64))), num_nodes=graph.nodes)
    if variant == "int32":
        structure = structure.int()
    if model == "gcn":
        structure = dgl.add_self_loop(structure)
    structure.create_formats_()
    return structure


def convolution(weights: LayerWeights) -> nn.Module:
    """A GraphConv, or a SAGEConv where there is a weight for the node's own row."""
    dim_in, dim_out = weights.neighbour.shape
    neighbour = torch.from_numpy(weights.neighbour)
    with torch.no_grad():
        if weights.own is None:
            layer = dgl.nn.GraphConv(dim_in, dim_out, norm="both", allow_zero_in_degree=True)
            layer.weight.copy_(neighbour)
            layer.bias.zero_()
        else:
            layer = dgl.nn.SAGEConv(dim_in, dim_out, "mean")
            layer.fc_neigh.weight.copy_(neighbour.T)
            layer.fc_self.weight.copy_(torch.from_numpy(weights.own).T)
            layer.fc_self.bias.zero_()
    made: nn.Module = layer
    return made


def main() -> None:
    options = parse_options(__doc__, variants=("int32", "int64"))
    torch.set_num_threads(options.threads)
    graph = load_single_label_graph(options)
    structure = dgl_structure(graph, options.model, options.variant)
    layers = [BoundConvolution(convolution(weights), structure) for weights in initial_weights(graph, options)]
    peer = "dgl" if options.variant == "int32" else "dgl-int64"
    measure(peer, options, epoch_of(Stack(layers), graph))


if __name__ == "__main__":
    main()
