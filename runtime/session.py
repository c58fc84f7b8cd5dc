"""One rank's share of a run, put together: shard, network, static features, executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from halocast.errors import MisuseError, nearest
from halocast.runtime import kernels
from halocast.runtime.adjacency import Adjacency
from halocast.runtime.clock import Clock
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.executor import Executor, Method, RankData, Recorder, with_aggregated_statistics
from halocast.runtime.features import FeatureRows, aggregated_features, raw_features
from halocast.runtime.graph.shard import Shard, ShardSet
from halocast.runtime.metrics import SPLITS
from halocast.runtime.models.layers import LinearAggregation
from halocast.runtime.models.network import GraphNetwork, NetworkShape
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.full import AGGREGATED_FEATURES, FEATURES
from halocast.runtime.programs.schedule import Order, schedule_layers
from halocast.runtime.supervise import heartbeat
from halocast.traces.operations import Part
from halocast.traces.workload import RankView


@dataclass(frozen=True)
class RankSession:
    """What a rank trains with."""

    view: RankView
    network: GraphNetwork
    optimizer: torch.optim.Optimizer
    executor: Executor
    labels: Tensor
    masks: dict[str, Tensor]


def find_method(name: str) -> Method:
    """The method of that name; raises MisuseError with the nearest match."""
    if name not in METHODS:
        raise MisuseError(f"unknown method '{name}'{nearest(name, METHODS)}")
    return METHODS[name]


def build_network(config: RunConfig, dim_in: int, classes: int) -> GraphNetwork:
    """The run's network with its initial parameters, the same on every rank."""
    shape = NetworkShape(**config.model.model_dump())
    return GraphNetwork(shape, dim_in, classes, seed=config.seed, dtype=getattr(torch, config.dtype))


def build_view(config: RunConfig, network: GraphNetwork, shards: ShardSet, rank: int) -> RankView:
    """What programs see of `rank`."""
    return RankView(
        rank=rank,
        world_size=shards.parts,
        layers=network.specs(),
        part=shards.statistics(rank),
        exact=config.method.exact.savings(),
        value_bytes=getattr(torch, config.dtype).itemsize,
    )


def build_session(
    config: RunConfig,
    shards: ShardSet,
    transport: Transport,
    *,
    device: torch.device,
    clock: Clock | None = None,
    recorder: Recorder | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> RankSession:
    """Load the rank's shard and prepare everything static; all ranks call it together (ÂX travels here)."""
    graph = shards.graph
    dtype = getattr(torch, config.dtype)
    shard = shards.open(transport.rank)
    on_step("opening the shard")
    adjacency = Adjacency(shard, device)
    network = build_network(config, int(graph["feature_dim"]), int(graph["classes"])).to(device)
    view = build_view(config, network, shards, transport.rank)
    on_step("aggregating features")
    features = prepare_features(view, network, shard, adjacency, transport, dtype, device)
    view = with_aggregated_statistics(view, features)
    labels = torch.from_numpy(np.array(shard.labels)).to(device)
    masks = {split: torch.from_numpy(np.array(shard.mask(split))) for split in SPLITS}
    terms = int(graph["train_nodes"]) * (int(graph["classes"]) if graph["multilabel"] else 1)
    data = RankData(
        adjacency=adjacency,
        features=features,
        boundary=torch.from_numpy(shard.boundary).to(device),
        labels=labels,
        train_rows=masks["train"].nonzero().flatten().to(device),
        loss_scale=1.0 / terms,
    )
    optimizer = build_optimizer(config, network)
    executor = Executor(
        view,
        find_method(config.method.name),
        network,
        optimizer,
        data,
        transport,
        seed=config.seed,
        dtype=dtype,
        device=device,
        clock=clock,
        recorder=recorder,
        on_operation=heartbeat,
    )
    return RankSession(view, network, optimizer, executor, labels, masks)


def prepare_features(
    view: RankView,
    network: GraphNetwork,
    shard: Shard,
    adjacency: Adjacency,
    transport: Transport,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, FeatureRows]:
    """The static inputs that the first layer's schedule reads, by buffer name."""
    schedule, spec, statistics = schedule_layers(view)[0], view.layers[0], view.part
    features: dict[str, FeatureRows] = {}
    if schedule.order is not Order.AGGREGATED_ONCE:
        known = Part.OWN if schedule.sends_forward else Part.ALL
        plain = not spec.linear_aggregation  # a layer of one's own reads h[rows]
        features[FEATURES] = raw_features(shard, known, statistics.rows(Part.ALL), dtype, device, dense=plain)
        return features
    layer = network.layers[0]
    assert isinstance(layer, LinearAggregation)
    row_scale, column_scale = layer.scales(adjacency.degrees.cpu(), dtype)
    features[AGGREGATED_FEATURES] = aggregated_features(
        shard,
        (row_scale, column_scale),
        self_loop=layer.self_loop,
        part=schedule.rows,
        transport=transport,
        dtype=dtype,
        device=device,
    )
    if spec.self_weight:
        features[FEATURES] = raw_features(shard, schedule.rows, statistics.rows(schedule.rows), dtype, device)
    return features


def build_optimizer(config: RunConfig, network: GraphNetwork) -> torch.optim.Optimizer:
    training = config.training
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, training.learning_rate, weight_decay=training.weight_decay)


def use_threads(threads: int) -> None:
    """Threads of torch's and our own kernels in this process."""
    torch.set_num_threads(threads)
    kernels.native()
