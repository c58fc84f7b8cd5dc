"""Sessions of several ranks in one process, and the dense reference's answer to the same question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.graph.shard import ShardSet, write_shards
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.network import GraphNetwork
from halocast.runtime.session import RankSession, build_network, build_session
from tests.reference import DenseModel, aggregation_matrix, dense_adjacency, dense_loss
from tests.support.graphs import Case
from tests.support.threads import Hub, ThreadTransport, run_ranks

EPOCH = 3


def shards_of(case: Case, folder: Path) -> ShardSet:
    position = np.random.default_rng(1).permutation(case.graph.nodes)
    return write_shards(case.graph, case.assignment, position, folder, partition={"method": "test"})


def run_config(parts: int, **sections: Any) -> RunConfig:
    return resolve({"graph": "small", "ranks": parts, **sections}, "test")


def network_of(case: Case, config: RunConfig) -> GraphNetwork:
    edges = EdgeShape(case.graph.edge_dim, case.graph.relations)
    return build_network(config, case.graph.feature_dim, case.graph.classes, edges)


@dataclass(frozen=True)
class RankAnswer:
    """What one rank has after an epoch."""

    loss: float
    gradients: dict[str, Tensor]
    logits: Tensor
    session: RankSession


def train_one_epoch(case: Case, config: RunConfig, folder: Path, device: str = "cpu") -> tuple[list[RankAnswer], Hub]:
    """One epoch (number `EPOCH`) on as many ranks as the case has parts."""
    shards = shards_of(case, folder)

    def work(transport: ThreadTransport) -> RankAnswer:
        session = build_session(config, shards, transport, device=torch.device(device))
        loss = session.executor.train_epoch(EPOCH)
        gradients = {
            name: value.grad.cpu().clone() for name, value in session.network.named_parameters() if value.grad is not None
        }
        return RankAnswer(loss, gradients, session.executor.evaluate(EPOCH).clone(), session)

    return run_ranks(shards.parts, work)


def reference_epoch(
    case: Case, config: RunConfig, running: dict[int, tuple[Tensor, Tensor]] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the dense model with the run's initial parameters, in float64; `running` as in `dense_loss`."""
    network = network_of(case, config)
    parameters: list[dict[str, Tensor]] = []
    names: list[dict[str, str]] = []
    for index in range(config.model.layers):
        layer = {name: f"layers.{index}.{name}" for name in ("weight", "self_weight", "bias")}
        if config.model.norm != "none" and index < config.model.layers - 1:
            layer |= {"gamma": f"norms.{index}.weight", "beta": f"norms.{index}.bias"}
        state = network.state_dict()
        names.append({key: name for key, name in layer.items() if name in state})
        parameters.append({key: state[name].double().requires_grad_() for key, name in names[-1].items()})
    graph = case.graph
    features = graph.features.toarray() if sp.issparse(graph.features) else graph.features
    model = DenseModel(config.model.layer, config.model.dropout, config.model.norm, config.model.residual, config.seed)
    loss = dense_loss(
        model,
        parameters,
        aggregation_matrix(dense_adjacency(graph.nodes, case.edges), config.model.layer),
        torch.from_numpy(np.asarray(features)).double(),
        torch.from_numpy(graph.labels),
        torch.from_numpy(graph.train_mask),
        EPOCH,
        running,
    )
    loss.backward()
    return float(loss.detach()), {
        name: _gradient(parameters[index][key]) for index, layer in enumerate(names) for key, name in layer.items()
    }


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def largest_relative_error(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Over all parameters: largest absolute error of an element over the largest element of that gradient."""
    assert actual.keys() == expected.keys()
    return max(
        float((actual[name].double() - value).abs().max() / value.abs().max().clamp(min=1e-300))
        for name, value in expected.items()
    )
