"""One rank's share of a run, put together: shard, network, static features, executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halocast.errors import MisuseError, nearest
from halocast.runtime import kernels
from halocast.runtime.adjacency import Adjacency
from halocast.runtime.bits.assigners import (
    AdaptiveAssigner,
    Assigner,
    FixedAssigner,
    MessageTable,
    RandomAssigner,
    equal_links,
    first_widths,
    measure_links,
    receiver_coefficients,
)
from halocast.runtime.bits.pricing import PricedAssigner, read_prices
from halocast.runtime.bits.rules import AdaptiveRule, FileRule, RandomRule, Rule, parse_rule
from halocast.runtime.clock import Clock
from halocast.runtime.config import RunConfig
from halocast.runtime.exchange.codec import Rounding
from halocast.runtime.exchange.quantized import ExchangeKey, MessageRows, QuantizedMessages
from halocast.runtime.exchange.separate import SeparateMessages
from halocast.runtime.exchange.transport import Transport
from halocast.runtime.executor import Executor, Method, RankData, Recorder, with_aggregated_statistics
from halocast.runtime.features import FeatureRows, aggregated_features, raw_features
from halocast.runtime.graph.shard import Shard, ShardSet
from halocast.runtime.launch_context import detect_launch_environment
from halocast.runtime.metrics import SPLITS
from halocast.runtime.models.edge_options import NO_EDGE_DATA, EdgeShape
from halocast.runtime.models.layers import LinearAggregation
from halocast.runtime.models.network import GraphNetwork, NetworkShape
from halocast.runtime.programs import METHODS
from halocast.runtime.programs.adaqp import exchange_shapes
from halocast.runtime.programs.full import AGGREGATED_FEATURES, FEATURES
from halocast.runtime.programs.holdings import receives_in_place
from halocast.runtime.programs.schedule import Order, schedule_layers
from halocast.runtime.supervise import heartbeat
from halocast.traces.operations import Part
from halocast.traces.workload import RankView

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankSession:
    """What a rank trains with."""

    network: GraphNetwork
    optimizer: torch.optim.Optimizer
    executor: Executor
    labels: Tensor
    masks: dict[str, Tensor]
    assigner: Assigner | None = None
    """Decides on the widths of quantised messages."""

    @property
    def view(self) -> RankView:
        """What programs see of this rank now: a re-assignment of widths changes it."""
        return self.executor.view


def find_method(name: str) -> Method:
    """The method of that name; raises MisuseError with the nearest match."""
    if name not in METHODS:
        raise MisuseError(f"unknown method '{name}'{nearest(name, METHODS)}")
    return METHODS[name]


def build_network(config: RunConfig, dim_in: int, classes: int, edges: EdgeShape = NO_EDGE_DATA) -> GraphNetwork:
    """The run's network with its initial parameters, the same on every rank. edges: what the graph's edges carry."""
    shape = NetworkShape(**config.model.model_dump())
    return GraphNetwork(shape, dim_in, classes, seed=config.seed, dtype=getattr(torch, config.dtype), edges=edges)


def build_view(config: RunConfig, network: GraphNetwork, shards: ShardSet, rank: int) -> RankView:
    """What programs see of `rank`; without the widths of quantised messages."""
    return RankView(
        rank=rank,
        world_size=shards.parts,
        layers=network.specs(),
        part=shards.statistics(rank),
        exact=config.method.exact.savings(),
        value_bytes=getattr(torch, config.dtype).itemsize,
        overlap=config.method.overlap,
        prefetch=config.method.prefetch,
        kept_layers=config.method.kept_layers(config.model.layers),
    )


def message_table(config: RunConfig, network: GraphNetwork, shards: ShardSet, rank: int) -> MessageTable:
    """Who sends what to whom, over all ranks, and `rank`'s own messages node by node."""
    shapes = [exchange_shapes(build_view(config, network, shards, each)) for each in range(shards.parts)]
    shard = shards.open(rank)
    rows = {
        (shape.layer, shape.direction): MessageRows.of(shape, shard.statistics, np.asarray(shard.boundary))
        for shape in shapes[rank]
    }
    return MessageTable.of(rank, shapes, rows, np.asarray(shard.global_ids))


def with_first_bits(config: RunConfig, network: GraphNetwork, shards: ShardSet, view: RankView) -> RankView:
    """The view with the widths of the run's first epoch, where the method quantises."""
    if not config.method.quantises:
        return view
    table = message_table(config, network, shards, view.rank)
    widths = first_widths(width_rule(config), table, config.seed)
    return replace(view, bits=widths.assignment(table.own, rotated=Rounding(config.method.rounding) is Rounding.ROTATED))


def width_rule(config: RunConfig) -> Rule:
    """The rule behind `method.bits`; raises MisuseError for one that does not exist."""
    return parse_rule("adaptive" if config.method.bits is None else config.method.bits, dropping=config.method.dropping)


def build_assigner(
    config: RunConfig, table: MessageTable, adjacency: Adjacency, network: GraphNetwork, transport: Transport
) -> Assigner:
    """The rule at work; all ranks call it together (coefficients, and probes of the links, travel here)."""
    rule, adaptive = width_rule(config), config.method.adaptive
    if isinstance(rule, FileRule) and config.method.reassign_every:
        return PricedAssigner.of(
            table,
            transport,
            message_coefficients(table, adjacency, network, transport),
            first_widths(rule, table, config.seed),
            read_prices(rule.path, table),
            config.reassign_every,
            rotated=Rounding(config.method.rounding) is Rounding.ROTATED,
        )
    if isinstance(rule, RandomRule):
        return RandomAssigner(table, rule.choices, config.seed, config.reassign_every)
    if not isinstance(rule, AdaptiveRule):
        return FixedAssigner(first_widths(rule, table, config.seed))

    measured = adaptive.links == "measured" or (adaptive.links == "auto" and config.hosts == "local" and spans_machines())
    return AdaptiveAssigner(
        table,
        transport,
        message_coefficients(table, adjacency, network, transport),
        measure_links(table, transport) if measured else equal_links(table),
        config.reassign_every,
        adaptive.variance_weight,
        adaptive.group_size,
        adaptive.choices,
    )


def message_coefficients(
    table: MessageTable, adjacency: Adjacency, network: GraphNetwork, transport: Transport
) -> dict[ExchangeKey, FloatArray]:
    """Σ of the receiver's aggregation coefficients of each message this rank sends; all ranks call it together."""

    def halo_coefficients(layer: int) -> FloatArray:
        return adjacency.halo_coefficients(network.layers[layer])

    return receiver_coefficients(table, transport, halo_coefficients)


def spans_machines() -> bool:
    """Whether a launcher put this run's ranks on more than one machine."""
    context = detect_launch_environment()
    return context is not None and context.local_world_size < context.world_size


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
    network = build_network(config, int(graph["feature_dim"]), int(graph["classes"]), EdgeShape.of(graph)).to(device)
    adjacency = Adjacency(shard, device, network.edge_use(dtype))
    method = find_method(config.method.name)
    view = build_view(config, network, shards, transport.rank)
    on_step("aggregating features")
    features = prepare_features(view, method, network, shard, adjacency, transport, dtype, device)
    view = with_aggregated_statistics(view, features)
    messages = assigner = None
    if config.method.quantises and view.world_size > 1:
        on_step("assigning widths")
        table = message_table(config, network, shards, transport.rank)
        assigner = build_assigner(config, table, adjacency, network, transport)
        messages = (QuantizedMessages if receives_in_place(method) else SeparateMessages)(
            table.own,
            view.part,
            np.asarray(shard.boundary),
            adjacency.global_ids,
            assigner.first(),
            rank=transport.rank,
            seed=config.seed,
            rounding=Rounding(config.method.rounding),
            device=device,
            dropping=config.method.dropping,
        )
        view = replace(view, bits=messages.assignment)
    labels = torch.from_numpy(np.array(shard.labels)).to(device)
    masks = {split: torch.from_numpy(np.array(shard.mask(split))) for split in SPLITS}
    terms = int(graph["train_nodes"]) * (int(graph["classes"]) if graph["multilabel"] else 1)
    data = RankData(
        adjacency=adjacency,
        features=features,
        boundary=torch.from_numpy(shard.boundary).to(device),
        labels=labels,
        train_rows=masks["train"].nonzero().flatten().to(device),
        nodes=int(graph["nodes"]),
        loss_scale=1.0 / terms,
    )
    optimizer = build_optimizer(config, network)
    executor = Executor(
        view,
        method,
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
        messages=messages,
    )
    return RankSession(network, optimizer, executor, labels, masks, assigner)


def prepare_features(
    view: RankView,
    method: Method,
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
        lands = schedule.sends_forward and not schedule.exchanges_projected and receives_in_place(method)
        room = statistics.rows(Part.ALL if lands else known)
        features[FEATURES] = raw_features(shard, known, room, dtype, device, dense=spec.reads_plain_inputs)
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
    kernels.why_not_native()  # loads the module, now that torch has its pool
