"""Dense single-process models, written without a line of halocast's runtime: what distributed gradients must equal.

Only the counter-based dropout mask follows a specification both share (Philox4x32-10 and its counter layout); it is
implemented again here, in NumPy integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


def philox_words(
    seed: int, epoch: int, layer: int, nodes: npt.NDArray[np.int64], dim: int, purpose: int = 0
) -> npt.NDArray[np.uint64]:
    """[rows, dim] words of Philox4x32-10 (Salmon et al., SC 2011, section 3.3)."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    blocks = -(-dim // 4)
    shape = (len(nodes), blocks)
    node = nodes.astype(np.uint64)[:, None]
    counter = [
        np.broadcast_to(np.arange(blocks, dtype=np.uint64), shape),
        np.broadcast_to(node & low, shape),
        np.full(shape, epoch, dtype=np.uint64),
        np.broadcast_to(np.uint64(purpose << 28 | layer << 8) | (node >> shift & np.uint64(0xFF)), shape),
    ]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [
            (second >> shift) ^ counter[1] ^ np.uint64(key[0]),
            second & low,
            (first >> shift) ^ counter[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(counter, axis=-1).reshape(len(nodes), 4 * blocks)[:, :dim]


@dataclass(frozen=True)
class DenseModel:
    """Which model: the same choices as a run's, spelled out."""

    layer: str
    dropout: float
    norm: str
    residual: bool
    seed: int


def dense_adjacency(nodes: int, edges: npt.NDArray[np.integer]) -> Tensor:
    """[nodes, nodes] of zeros and ones, from undirected edges [2, E]."""
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    adjacency[edges[0], edges[1]] = 1.0
    adjacency[edges[1], edges[0]] = 1.0
    return adjacency


def aggregation_matrix(adjacency: Tensor, layer: str) -> Tensor:
    """Kipf and Welling's normalised adjacency for "gcn", the mean over neighbours (0 without any) for "sage"."""
    if layer == "gcn":
        looped = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype)
        inverse_root = looped.sum(1).pow(-0.5)
        return inverse_root[:, None] * looped * inverse_root[None, :]
    return adjacency / adjacency.sum(1, keepdim=True).clamp(min=1.0)


def dense_loss(
    model: DenseModel,
    parameters: list[dict[str, Tensor]],
    matrix: Tensor,
    features: Tensor,
    labels: Tensor,
    train_mask: Tensor,
    epoch: int,
    running: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Mean training loss of one forward pass; `parameters` has weight, bias, self_weight?, gamma?, beta? a layer.

    `running`: by layer (mean, variance) that batch normalization moves on, in place.
    """
    hidden = features
    for index, layer in enumerate(parameters):
        z = matrix @ hidden @ layer["weight"] + layer["bias"]
        if "self_weight" in layer:
            z = z + hidden @ layer["self_weight"]
        if model.residual and index > 0 and z.shape[1] == hidden.shape[1]:
            z = z + hidden
        if index == len(parameters) - 1:
            hidden = z
            break
        if model.norm == "layer":
            z = functional.layer_norm(z, z.shape[1:], layer["gamma"], layer["beta"])
        elif model.norm == "batch":
            mean, variance = (running or {}).get(index, (None, None))
            z = functional.batch_norm(z, mean, variance, layer["gamma"], layer["beta"], training=True)
        hidden = z.relu()
        if model.dropout:
            words = philox_words(model.seed, epoch, index, np.arange(len(hidden)), hidden.shape[1])
            kept = torch.from_numpy(words >= np.uint64(np.ceil(model.dropout * 2**32)))
            hidden = hidden * kept / (1.0 - model.dropout)
    if labels.dim() == 1:
        return functional.cross_entropy(hidden[train_mask], labels[train_mask])
    return functional.binary_cross_entropy_with_logits(hidden[train_mask], labels[train_mask].to(hidden.dtype))
