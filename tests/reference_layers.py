"""Layers over dense matrices, without a line of halocast's runtime: what layers by blocks must equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from halocast.runtime.graph.graph import Graph
from tests.reference import philox_words

ATTENTION_PURPOSE = 5


@dataclass(frozen=True)
class DenseEdges:
    """What edges carry; entry (i, j) is the message from j to i."""

    features: Tensor
    """[nodes, nodes, E], zeros where there is no edge."""
    types: Tensor
    """[nodes, nodes], −1 where there is no edge."""
    relations: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph, dtype: torch.dtype) -> DenseEdges:
        rows = np.repeat(np.arange(graph.nodes), np.diff(graph.indptr))
        dim = 0 if graph.edge_features is None else graph.edge_features.shape[1]
        features = torch.zeros(graph.nodes, graph.nodes, dim, dtype=dtype)
        types = torch.full((graph.nodes, graph.nodes), -1)
        if graph.edge_features is not None:
            features[rows, graph.indices] = torch.from_numpy(graph.edge_features).to(dtype)
        if graph.edge_types is not None:
            types[rows, graph.indices] = torch.from_numpy(graph.edge_types).long()
        return cls(features, types, graph.relations)


@dataclass(frozen=True)
class Surroundings:
    """What a layer may look at beside its input."""

    adjacency: Tensor
    """[nodes, nodes] of zeros and ones; row i has i's neighbours."""
    edges: DenseEdges
    options: Mapping[str, Any]
    seed: int
    epoch: int
    index: int
    last: bool


def dense_layer(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    """The layer's pre-activation [nodes, dim_out]."""
    kinds = {"gat": _gat, "gatv2": _gat, "sage-max": _sage_max, "gin": _gin, "gcn": _gcn, "sage": _sage, "rgcn": _rgcn}
    return kinds.get(name, _own_message)(name, h, parameters, around) + parameters["bias"]


def _gcn(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    looped = around.adjacency + torch.eye(len(h), dtype=h.dtype)
    root = looped.sum(1).rsqrt()
    return (root[:, None] * looped * root[None, :]) @ h @ parameters["weight"]


def _sage(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    mean = around.adjacency @ h / around.adjacency.sum(1, keepdim=True).clamp(min=1.0)
    return mean @ parameters["weight"] + h @ parameters["self_weight"]


def _gat(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    options, nodes = around.options, len(h)
    heads, slope = options.get("heads", 4), options.get("slope", 0.2)
    values = (h @ parameters["weight"]).view(nodes, heads, -1)
    if name == "gat":
        source = (values * parameters["source_attention"]).sum(-1)
        target = (values * parameters["target_attention"]).sum(-1)
        sums = target[:, None] + source[None, :]
        if options.get("edge_features", False):
            of_edges = (around.edges.features @ parameters["edge_weight"]).view(nodes, nodes, heads, -1)
            sums = sums + (of_edges * parameters["edge_attention"]).sum(-1)
        logits = functional.leaky_relu(sums, slope)
    else:
        targets = (h @ parameters["target_weight"]).view(nodes, heads, -1)
        logits = (functional.leaky_relu(targets[:, None] + values[None, :], slope) * parameters["attention"]).sum(-1)
    mask = around.adjacency > 0
    if options.get("self_loops", True):
        mask = mask | torch.eye(nodes, dtype=torch.bool)
    attention = torch.softmax(logits.masked_fill(~mask[..., None], -torch.inf), dim=1).nan_to_num(0.0)
    probability = options.get("attention_dropout", 0.0)
    if probability:
        width = 4 * -(-heads // 4)
        words = philox_words(
            around.seed, around.epoch, around.index, np.arange(nodes), nodes * width, purpose=ATTENTION_PURPOSE
        ).reshape(nodes, nodes, width)[..., :heads]
        attention = attention * torch.from_numpy(words >= np.uint64(np.ceil(probability * 2**32))) / (1.0 - probability)
    out = torch.einsum("ijh,jhd->ihd", attention, values)
    return out.mean(1) if around.last else out.reshape(nodes, -1)


def _sage_max(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    spread = h[None, :, :].expand(len(h), -1, -1).masked_fill(around.adjacency[..., None] == 0, -torch.inf)
    highest = spread.amax(1)  # shares the gradient among ties evenly
    highest = torch.where(around.adjacency.sum(1, keepdim=True) > 0, highest, 0.0)
    return highest @ parameters["weight"] + h @ parameters["self_weight"]


def _gin(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    total = (1 + parameters["epsilon"]) * h + around.adjacency @ h
    return (total @ parameters["weight"] + parameters["inner_bias"]).relu() @ parameters["outer_weight"]


def _rgcn(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    z = h @ parameters["self_weight"]
    for place, relation in enumerate(around.options.get("relations", around.edges.relations)):
        if "coefficients" in parameters:
            shares = zip(parameters["coefficients"][place], parameters["weight"], strict=True)
            weight = torch.stack([share * base for share, base in shares]).sum(0)
        else:
            weight = parameters["weight"][place]
        neighbours = (around.edges.types == around.edges.relations.index(relation)).to(h.dtype)
        z = z + (neighbours @ h / neighbours.sum(1, keepdim=True).clamp(min=1.0)) @ weight
    return z


def _own_message(name: str, h: Tensor, parameters: Mapping[str, Tensor], around: Surroundings) -> Tensor:
    """`tests.support.messages.Gated`: Σ_j σ(h_j G + h_i T) · (h_j M), or its mean."""
    gate = torch.sigmoid((h @ parameters["gate"])[None, :] + (h @ parameters["target_gate"])[:, None])
    messages = gate * (h @ parameters["message_weight"])[None, :]
    total = (around.adjacency[..., None] * messages).sum(1)
    if around.options.get("mean", False):
        total = total / around.adjacency.sum(1, keepdim=True).clamp(min=1.0)
    return total @ parameters["weight"] + h @ parameters["self_weight"]


def dense_epoch(
    name: str,
    parameters: list[dict[str, Tensor]],
    features: Tensor,
    labels: Tensor,
    train_mask: Tensor,
    adjacency: Tensor,
    edges: DenseEdges,
    *,
    options: Mapping[str, Any],
    dropout: float,
    norm: str,
    residual: bool,
    seed: int,
    epoch: int,
) -> Tensor:
    """Mean training loss; `parameters`: by layer and name, with gamma and beta of the norm."""
    hidden = features
    last = len(parameters) - 1
    for index, layer in enumerate(parameters):
        around = Surroundings(adjacency, edges, options, seed, epoch, index, last=index == last)
        z = dense_layer(name, hidden, layer, around)
        if residual and index > 0 and z.shape[1] == hidden.shape[1]:
            z = z + hidden
        if index == last:
            hidden = z
            break
        if norm == "layer":
            z = functional.layer_norm(z, z.shape[1:], layer["gamma"], layer["beta"])
        elif norm == "batch":
            z = functional.batch_norm(z, None, None, layer["gamma"], layer["beta"], training=True)
        hidden = z.relu()
        if dropout:
            words = philox_words(seed, epoch, index, np.arange(len(hidden)), hidden.shape[1])
            hidden = hidden * torch.from_numpy(words >= np.uint64(np.ceil(dropout * 2**32))) / (1.0 - dropout)
    return functional.cross_entropy(hidden[train_mask], labels[train_mask])
