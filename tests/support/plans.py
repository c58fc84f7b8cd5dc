"""Small plans for graphs that can be named, complete with arrays that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halocast.runtime.bits.assigners import MessageTable
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import ShardSet
from halocast.runtime.graph.store import prepare_shards
from halocast.runtime.session import build_network, message_table
from halocast.traces.plan import (
    PARTITION,
    Baseline,
    Plan,
    PlannedExchange,
    PlannedForecast,
    PlannedGraph,
    effect_name,
    prices_name,
    widths_name,
    write_plan,
)

MODEL = {"layer": "sage", "layers": 3, "hidden": 16, "dropout": 0.2}
EXACT = dict.fromkeys(("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features"), False)
Arrays = dict[str, npt.NDArray[Any]]


def tables_of(config: RunConfig, shards: ShardSet) -> list[MessageTable]:
    network = build_network(config, int(shards.graph["feature_dim"]), int(shards.graph["classes"]))
    return [message_table(config, network, shards, rank) for rank in range(shards.parts)]


def width_arrays(tables: list[MessageTable], choices: tuple[int, ...], seed: int = 0) -> Arrays:
    """A width for each message, drawn."""
    random = np.random.default_rng(seed)
    return {
        widths_name(shape.layer, shape.direction, rank): random.choice(choices, sum(shape.rows_out)).astype(np.uint8)
        for rank, table in enumerate(tables)
        for shape in table.own
    }


def price_arrays(tables: list[MessageTable], seed: int = 1) -> Arrays:
    """Prices that differ by pair, and effects that differ by exchange."""
    random = np.random.default_rng(seed)
    ranks, arrays = len(tables), {}
    for shape in tables[0].own:
        arrays[prices_name(shape.layer, shape.direction)] = random.uniform(0.5e-9, 2e-9, (ranks, ranks)).astype(np.float32)
        arrays[effect_name(shape.layer, shape.direction)] = np.array(random.uniform(0.5, 2.0))
    return arrays


def make_plan(
    folder: Path,
    spec: str,
    *,
    ranks: int = 2,
    choices: tuple[int, ...] = (2, 4, 8),
    priced: bool = False,
    arrays: Arrays | None = None,
    **changes: Any,
) -> tuple[Plan, Arrays]:
    """Write a plan for a method of quantised messages; `arrays` replace or join its own, `changes` are fields of the plan."""
    graph = load_graph(spec)
    partition = partition_graph(graph, ranks, method="random", seed=7)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}-partition.npz")
    np.savez(path, **{PARTITION: partition})
    kept = folder.with_name(f"{folder.name}-shards")
    shards = prepare_shards(spec, ranks, method=str(path), objective="cut", balance="nodes", seed=0, folder=kept)
    method = {"name": "adaqp", "exact": EXACT, "overlap": True, "rounding": "stochastic"}
    config = resolve({"graph": spec, "ranks": ranks, "model": MODEL, "method": method}, "test")
    tables = tables_of(config, shards)
    own: Arrays = {PARTITION: partition, **width_arrays(tables, choices), **(price_arrays(tables) if priced else {})}
    exchanges = [
        PlannedExchange(layer=shape.layer, direction=shape.direction, effect=1.0, variance=0.1, bytes=1, histogram={4: 1})
        for shape in tables[0].own
    ]
    fields: dict[str, Any] = {
        "halocast": "0",
        "graph": PlannedGraph(name=graph.name, fingerprint=graph.fingerprint, nodes=graph.nodes, spec=spec),
        "world_size": ranks,
        "model": MODEL,
        "method": method,
        "partition": {"method": "random", "seed": 7},
        "hosts": "local",
        "exchanges": tuple(exchanges),
        "forecast": PlannedForecast(
            epoch_seconds=0.412, low=0.398, high=0.431, bytes_per_epoch=1000, exchange_bytes_per_epoch=900, peak_bytes=(7, 8)
        ),
        "baseline": Baseline(epoch_seconds=1.4246, measured=True, accuracy=0.701),
        "why": "a test",
        **changes,
    }
    own |= arrays or {}
    return write_plan(folder, Plan(**fields), own), own
