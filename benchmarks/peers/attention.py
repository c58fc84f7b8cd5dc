"""GATConv of DGL or PyG, 4 heads: `python -m benchmarks.peers.attention GRAPH.npz --variant dgl --threads 2`.

Heads side by side in hidden layers, averaged in the last one; self loops; ReLU between layers; no dropout. Weights are the
libraries' own: epochs are compared, not losses.
"""

from __future__ import annotations

import os

os.environ.setdefault("DGLBACKEND", "pytorch")  # DGL asks for a backend when it is imported without one

import numpy as np
import torch
from benchmarks.peers.graph import PlainGraph
from benchmarks.peers.measure import Options, layer_dims, load_single_label_graph, measure, parse_options
from benchmarks.peers.training import Stack, epoch_of
from torch import Tensor, nn

HEADS = 4


class DglAttention(nn.Module):
    """DGL's GATConv with the graph that it is called with; its heads side by side, or their mean."""

    def __init__(self, structure: object, dim_in: int, dim_out: int, *, average: bool) -> None:
        import dgl.nn  # type: ignore[import-not-found]

        super().__init__()
        width = dim_out if average else dim_out // HEADS
        self.structure, self.average = structure, average
        self.convolution = dgl.nn.GATConv(dim_in, width, HEADS, allow_zero_in_degree=True)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.convolution(self.structure, rows)
        return out.mean(1) if self.average else out.flatten(1)


class PygAttention(nn.Module):
    """PyG's GATConv with the edges that it is called with."""

    def __init__(self, edge_index: Tensor, dim_in: int, dim_out: int, *, average: bool) -> None:
        from torch_geometric.nn import GATConv

        super().__init__()
        width = dim_out if average else dim_out // HEADS
        self.edge_index = edge_index
        self.convolution = GATConv(dim_in, width, HEADS, concat=not average, add_self_loops=False)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.convolution(rows, self.edge_index)
        return out


def stack(graph: PlainGraph, options: Options) -> Stack:
    rows = torch.from_numpy(np.repeat(np.arange(graph.nodes), graph.degrees))
    loops = torch.arange(graph.nodes)
    edge_index = torch.stack([torch.cat([torch.from_numpy(graph.indices).long(), loops]), torch.cat([rows, loops])])
    dims = layer_dims(graph, options)
    last = len(dims) - 1
    if options.variant == "pyg":
        return Stack([PygAttention(edge_index, *each, average=index == last) for index, each in enumerate(dims)])
    import dgl

    structure = dgl.graph((edge_index[0], edge_index[1]), num_nodes=graph.nodes).int()
    structure.create_formats_()
    return Stack([DglAttention(structure, *each, average=index == last) for index, each in enumerate(dims)])


def main() -> None:
    options = parse_options(__doc__, variants=("dgl", "pyg"), models=("gat",))
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    graph = load_single_label_graph(options)
    measure(options.variant, options, epoch_of(stack(graph, options), graph))


if __name__ == "__main__":
    main()
