"""torch.sparse CSR by hand: `python -m benchmarks.peers.torch_csr GRAPH.npz --model gcn --threads 2`.

Indices are int32. The gradient is a product with the transpose, which is symmetric in structure and is made once here.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from benchmarks.peers.graph import PlainGraph, add_self_loops
from benchmarks.peers.measure import initial_weights, load_single_label_graph, measure, parse_options
from benchmarks.peers.propagation import Convolution, Propagation
from benchmarks.peers.training import Stack, epoch_of
from torch import Tensor


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        return matrix @ rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transpose @ gradients[0].contiguous(), None, None


def propagation(graph: PlainGraph, model: str) -> Propagation:
    """Product with the normalised adjacency matrix of `model`."""
    if model == "gcn":
        indptr, indices = add_self_loops(graph)
        scale = (graph.degrees + 1.0) ** -0.5
        forward = backward = np.repeat(scale, np.diff(indptr)) * scale[indices]
    else:
        indptr, indices = graph.indptr, graph.indices
        scale = 1.0 / np.maximum(graph.degrees, 1)
        forward, backward = np.repeat(scale, graph.degrees), scale[indices]

    def matrix(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.sparse_csr_tensor(
            torch.from_numpy(indptr.astype(np.int32)),
            torch.from_numpy(indices),
            torch.from_numpy(values.astype(np.float32)),
            size=(graph.nodes, graph.nodes),
            check_invariants=False,
        )

    a = matrix(forward)
    a_transpose = a if backward is forward else matrix(backward)

    def propagate(rows: Tensor) -> Tensor:
        product: Tensor = _SparseProduct.apply(rows, a, a_transpose)  # type: ignore[no-untyped-call]
        return product

    return propagate


def main() -> None:
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    options = parse_options(__doc__)
    torch.set_num_threads(options.threads)
    graph = load_single_label_graph(options)
    propagate = propagation(graph, options.model)
    model = Stack([Convolution(weights, propagate) for weights in initial_weights(graph, options)])
    measure("torch-csr", options, epoch_of(model, graph))


if __name__ == "__main__":
    main()
