"""From flags to a scenario: graph, partition and model as ``halocast train`` would take them, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halocast.errors import MisuseError, nearest

if TYPE_CHECKING:
    from halocast.runtime.config import RunConfig
    from halocast.runtime.graph.shard import ShardSet
    from halocast.simulator.forecast import Scenario
    from halocast.traces.workload import BitAssignment, PartStatistics, Workload


@dataclass(frozen=True)
class Asked:
    """A scenario and the run that it stands for."""

    config: RunConfig
    scenario: Scenario
    nodes: int
    edges: int


def resolve_flags(run: str, flags: Mapping[str, Any], assignments: list[str]) -> RunConfig:
    """The run's configuration from a run file or graph, flags, and ``--set`` assignments."""
    import json

    from halocast.runtime.config import override, read_run_file, resolve

    document = read_run_file(Path(run)) if run.endswith(".toml") else {"graph": run}
    origin = run if run.endswith(".toml") else "command line"
    for key, value in flags.items():
        if value is not None:
            document = override(document, [f"{key}={json.dumps(value)}"])
    return resolve(override(document, assignments), origin)


def parse_speeds(text: str | None) -> tuple[float, ...]:
    """``1,1,0.5,1`` as numbers; none for None."""
    speeds = []
    for each in [] if text is None else text.split(","):
        try:
            speeds.append(float(each))
        except ValueError as error:
            raise MisuseError(
                f"--speeds {text}: '{each.strip()}' is no number; write one for each rank, as in 1,1,0.5,1"
            ) from error
    return tuple(speeds)


FINEST_FITTED = 16
"""No finer partition is fitted where it would be more than an eighth of the ranks asked for; no coarser one is foretold."""


def build_scenario(
    config: RunConfig, *, bits_from: Path | None, threads: int, partitions: str, report: Callable[[str], None]
) -> Asked:
    """Partition the graph (or find it partitioned, or foretell its partition) and put the scenario together.

    Raises MisuseError for more ranks than nodes, a layer that only torch knows, and widths that nobody can foresee.
    """
    from halocast.runtime.models.edge_options import EdgeShape
    from halocast.runtime.models.shapes import LAYERS, built_in_specs
    from halocast.simulator.forecast import Scenario
    from halocast.simulator.observations import parse_link
    from halocast.simulator.scaling import fit_scaling
    from halocast.traces.workload import Workload

    if partitions not in ("real", "fitted"):
        raise MisuseError(f"--partitions {partitions} is unknown{nearest(partitions, ('real', 'fitted'))}")
    fits = partitions == "fitted" and config.ranks > FINEST_FITTED
    if partitions == "fitted" and not fits:
        report(f"{config.ranks} parts are few enough to partition: nothing is fitted")
    if fits and config.partition.shares:
        raise MisuseError("--partitions fitted foretells even parts: with partition.shares take --partitions real")
    *coarser, finest = fitted_parts(config.ranks) if fits else [config.ranks]
    shards = _shards(config, finest, report, ranks=config.ranks)
    graph = shards.graph
    layers = built_in_specs(config.model, int(graph["feature_dim"]), int(graph["classes"]), EdgeShape.of(graph))
    if layers is None:
        raise MisuseError(
            f"model.layer '{config.model.layer}' cannot be forecast without building it{nearest(config.model.layer, LAYERS)}"
        )
    parts = _statistics(config, shards)
    assumed: tuple[str, ...] = ()
    spread = 0.0
    if fits:
        others = [_statistics(config, _shards(config, count, report, ranks=config.ranks)) for count in coarser]
        scaling = fit_scaling([*others, parts])
        parts, spread = scaling.statistics(config.ranks), scaling.error(config.ranks)
        assumed = (f"halo sizes fitted from partitions into {', '.join(map(str, scaling.fitted))} parts",)
    workload = Workload(
        layers=layers,
        parts=tuple(parts),
        exact=config.method.exact.savings(),
        value_bytes=8 if config.dtype == "float64" else 4,
        overlap=config.method.overlap,
        threads=threads,
        prefetch=config.method.prefetch,
        kept_layers=config.method.kept_layers(config.model.layers),
    )
    bits, notes = _widths(config, workload, bits_from)
    scenario = Scenario(
        graph=str(graph["name"]),
        fingerprint=shards.fingerprint,
        workload=workload,
        method=config.method.name,
        bits=bits,
        link=parse_link(config.hosts),
        spread=spread,
        assumed=(*assumed, *notes),
    )
    return Asked(config, scenario, int(graph["nodes"]), int(graph["edges"]))


def fitted_parts(ranks: int) -> list[int]:
    """Into how many parts a graph is partitioned to foretell its partition for `ranks`: 2, 4, 8, 16, to an eighth of them."""
    finest = max(FINEST_FITTED, min(ranks // 8, 64))
    return [2**power for power in range(1, finest.bit_length())]


def _shards(config: RunConfig, parts: int, report: Callable[[str], None], *, ranks: int) -> ShardSet:
    """The graph in so many parts, for a scenario of `ranks`."""
    from halocast.runtime.graph.store import find_shards

    method = config.partition.method
    if parts != ranks and method not in ("metis", "random", "contiguous"):
        raise MisuseError(f"partition.method {method}: a file is one partition; --partitions fitted needs a method")
    shards = find_shards(config, report, parts=parts)
    nodes = int(shards.graph["nodes"])
    if ranks > nodes:
        raise MisuseError(f"{ranks} ranks for the {nodes} nodes of '{shards.graph['name']}': allowed are 1 to {nodes}")
    return shards


def _statistics(config: RunConfig, shards: ShardSet) -> list[PartStatistics]:
    """Of every part, with what the model makes of sparse features."""
    from halocast.runtime.graph.aggregated import with_aggregated_features
    from halocast.runtime.graph.datasets import load_graph
    from halocast.runtime.models.shapes import SELF_LOOP

    parts = [shards.statistics(part) for part in range(shards.parts)]
    layer, once = config.model.layer, config.method.exact.aggregate_features_once
    if not (once and parts[0].features_sparse) or layer not in SELF_LOOP:  # layers by blocks aggregate nothing beforehand
        return parts
    loaded = load_graph(config.graph, symmetrise=config.symmetrise)
    return with_aggregated_features(loaded, shards, parts, self_loop=SELF_LOOP[layer])


def _widths(
    config: RunConfig, workload: Workload, bits_from: Path | None
) -> tuple[tuple[BitAssignment | None, ...], tuple[str, ...]]:
    from halocast.simulator.forecast import assign_shares, assign_uniform, width_shares
    from halocast.simulator.observations import observe

    if not config.method.quantises and not (config.method.name == "sar" and bits_from is not None):
        return (None,) * workload.world_size, ()
    if bits_from is not None:
        run = observe(bits_from)
        if run.configuration.method != config.method.name or not run.configuration.bits:
            raise MisuseError(
                f"--bits-from {bits_from}: a run of method {run.configuration.method}, whose messages have no widths to take"
            )
        note = f"widths in the shares of {bits_from.name} ({run.configuration.ranks} ranks)"
        return assign_shares(workload, width_shares(run.bits)), (note,)
    text = "adaptive" if config.method.bits is None else str(config.method.bits).removeprefix("uniform:")
    from halocast.traces.wire import WIDTHS

    if not text.isdigit() or int(text) not in WIDTHS:
        if text in ("adaptive", "random"):
            raise MisuseError(
                f"--bits {text}: which widths that gives shows only in training; forecast a width ({', '.join(map(str, WIDTHS))}), "  # noqa: E501
                "or take a run's with --bits-from RUN"
            )
        raise MisuseError(f"--bits {text} is no width; allowed: {', '.join(map(str, WIDTHS))}")
    return assign_uniform(workload, int(text)), ()
