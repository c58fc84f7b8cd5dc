"""torch's embedding_bag by hand: `python -m benchmarks.peers.embedding_bag GRAPH.npz --model gcn --threads 2`.

A node's neighbours are a bag of rows. Its own backward scatters into a dense table; on a symmetric structure the
gradient is one more embedding_bag, over the same bags with the transposed weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.peers.graph import PlainGraph, add_self_loops
from benchmarks.peers.measure import initial_weights, load_single_label_graph, measure, parse_options
from benchmarks.peers.propagation import Convolution, Propagation
from benchmarks.peers.training import Stack, epoch_of
from torch import Tensor
from torch.nn import functional


class _WeightedSum(torch.autograd.Function):
    """rows [nodes, dim] -> weighted sum of each node's bag [nodes, dim]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bags: Bags, weights: Tensor, transposed: Tensor) -> Tensor:
        ctx.bags, ctx.transposed = bags, transposed
        return bags.sum(rows, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.bags.sum(gradients[0].contiguous(), ctx.transposed), None, None, None


@dataclass(frozen=True)
class Bags:
    """The neighbours of all nodes."""

    indices: Tensor
    """int32 [directed edges]"""
    offsets: Tensor
    """int32 [nodes + 1]"""

    def sum(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Weights cost nothing measurable here, and save the pass over the rows that a division by the degree takes."""
        return functional.embedding_bag(
            self.indices, rows, self.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )


def propagation(graph: PlainGraph, model: str) -> Propagation:
    """Weighted neighbourhood sums of `model`: D^-1/2 (A + I) D^-1/2, its own transpose, or D^-1 A with A D^-1."""
    if model == "gcn":
        indptr, indices = add_self_loops(graph)
        scale = (graph.degrees + 1.0) ** -0.5
        weights = transposed = torch.from_numpy((np.repeat(scale, np.diff(indptr)) * scale[indices]).astype(np.float32))
    else:
        indptr, indices = graph.indptr, graph.indices
        scale = (1.0 / np.maximum(graph.degrees, 1)).astype(np.float32)
        weights, transposed = torch.from_numpy(np.repeat(scale, graph.degrees)), torch.from_numpy(scale[indices])
    bags = Bags(torch.from_numpy(indices), torch.from_numpy(indptr.astype(np.int32)))

    def propagate(rows: Tensor) -> Tensor:
        sums: Tensor = _WeightedSum.apply(rows, bags, weights, transposed)  # type: ignore[no-untyped-call]
        return sums

    return propagate


def main() -> None:
    options = parse_options(__doc__)
    torch.set_num_threads(options.threads)
    graph = load_single_label_graph(options)
    propagate = propagation(graph, options.model)
    model = Stack([Convolution(weights, propagate) for weights in initial_weights(graph, options)])
    measure("embedding-bag", options, epoch_of(model, graph))


if __name__ == "__main__":
    main()
