"""The training loop of the torch peers: the same for all, so that only the layers differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from benchmarks.peers.graph import PlainGraph
from benchmarks.peers.measure import LEARNING_RATE
from torch import Tensor, nn


def epoch_of(model: nn.Module, graph: PlainGraph) -> Callable[[], float]:
    """One full-graph epoch of `model(features)`; call it after the weights were set."""
    features = torch.from_numpy(graph.features)
    train = torch.from_numpy(graph.train_mask).nonzero().squeeze(1)
    targets = torch.from_numpy(graph.labels)[train]
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def epoch() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(features)[train], targets)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.item()

    return epoch


class Stack(nn.Module):
    """Layers with ReLU between them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits [nodes, classes] from features [nodes, feature_dim]."""
        for layer in self.layers[:-1]:
            rows = layer(rows).relu()
        logits: Tensor = self.layers[-1](rows)
        return logits
