"""From a grid's document to what answers it: the graph of its run file, partitioned without torch and without shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halocast.cli.scenario import FINEST_FITTED, fitted_parts, resolve_flags
from halocast.errors import MisuseError
from halocast.runtime.graph.aggregated import StoredValues, count_stored
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.layout import PartitionLayout
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.shapes import LAYERS, SELF_LOOP, built_in_specs
from halocast.simulator.catalogue import load_catalogue
from halocast.simulator.costs import Costs
from halocast.simulator.scaling import fit_scaling
from halocast.simulator.whatif.axes import Names, name_savings, read_keep
from halocast.simulator.whatif.evaluation import Evaluator, Parted, Subject
from halocast.simulator.whatif.grid import Grid, check_keys, read_grid
from halocast.simulator.whatif.points import PartKey
from halocast.traces.wire import WIDTHS
from halocast.traces.workload import LayerSpec, PartStatistics

if TYPE_CHECKING:
    from halocast.runtime.config import RunConfig


@dataclass(frozen=True, eq=False)
class GraphSource:
    """The run file's graph (`evaluation.Source`). It is loaded when it is first asked about."""

    config: RunConfig
    fitted: bool
    """Whether more than 16 parts are foretold, not made."""
    _layouts: dict[tuple[int, str], PartitionLayout] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        return load_graph(self.config.graph, symmetrise=self.config.symmetrise)

    @cached_property
    def subject(self) -> Subject:
        config, graph = self.config, self.graph
        return Subject(
            name=graph.name,
            fingerprint=graph.fingerprint,
            nodes=graph.nodes,
            edges=graph.edges,
            value_bytes=8 if config.dtype == "float64" else 4,
            overlap=config.method.overlap,
            threads=config.threads,
            hosts=config.hosts,
            balance=config.partition.balance,
            seed=config.partition.seed,
        )

    def layers(self, layer: str, layers: int, hidden: int) -> tuple[LayerSpec, ...]:
        model = self.config.model.model_copy(update={"layer": layer, "layers": layers, "hidden": hidden})
        specs = built_in_specs(
            model, self.graph.feature_dim, self.graph.classes, EdgeShape(self.graph.edge_dim, self.graph.relations)
        )
        assert specs is not None, "the grid names layers that can be forecast"
        return specs

    def parted(self, key: PartKey) -> Parted:
        """Raises MisuseError for more ranks than nodes, and a partition that is not for so many."""
        grows = key.nodes_factor > 1.0 or key.edges_factor > 1.0
        if not grows and not (self.fitted and key.ranks > FINEST_FITTED):
            return Parted(self._statistics(key.ranks, key.partition, key.aggregated_for))
        counts = fitted_parts(key.ranks)
        scaling = fit_scaling([self._statistics(count, key.partition, key.aggregated_for) for count in counts])
        assumed = [f"halo sizes fitted from partitions into {', '.join(map(str, scaling.fitted))} parts"]
        if grows:
            scaling = scaling.grown(key.nodes_factor, key.edges_factor)
            assumed.append(
                f"graph grown to {key.nodes_factor:g} x its nodes and {key.edges_factor:g} x its edges: communities taken for "
                "alike, so that halo rows keep their share of the nodes and grow with the mean degree"
            )
        return Parted(tuple(scaling.statistics(key.ranks)), scaling.error(key.ranks), tuple(assumed))

    def _statistics(self, parts: int, partition: str, aggregated_for: str) -> tuple[PartStatistics, ...]:
        layout = self._layout(parts, partition)
        if aggregated_for not in SELF_LOOP or not layout.statistics[0].features_sparse:
            return layout.statistics
        return layout.with_aggregated(self._stored(aggregated_for))

    def _layout(self, parts: int, partition: str) -> PartitionLayout:
        found = self._layouts.get((parts, partition))
        if found is None:
            own = self.config.partition
            method, _, objective = partition.partition("/") if partition != own.method else (own.method, "", "")
            assignment = partition_graph(
                self.graph, parts, method=method, objective=objective or own.objective, balance=own.balance, seed=own.seed
            )
            found = self._layouts[parts, partition] = PartitionLayout(self.graph, assignment, own.seed)
        return found

    @cached_property
    def _stored(self) -> Callable[[str], StoredValues | None]:
        return lru_cache(maxsize=None)(lambda layer: count_stored(self.graph, self_loop=SELF_LOOP[layer]))


def open_grid(document: Mapping[str, Any], origin: str) -> tuple[Grid, Names, GraphSource]:
    """Check a grid's document and find what it is about; the graph is not loaded yet. Raises MisuseError."""
    check_keys(document, origin)
    config = resolve_flags(str(document["data"]), {}, [])
    if config.partition.shares:
        raise MisuseError(f"{origin}: {document['data']}: partition.shares are for one number of ranks: leave them out")
    hardware = document.get("hardware")
    names = Names(load_catalogue(None if hardware is None else Path(str(hardware))), tuple(LAYERS))
    grid = read_grid(document, names, defaults_of(config), origin)
    if unknown := [each for each in grid.axes["layer"] if each not in LAYERS]:
        raise MisuseError(
            f"{document['data']}: model.layer '{unknown[0]}' cannot be forecast without building it; "
            f"give [model] layer: {', '.join(LAYERS)}"
        )
    return grid, names, GraphSource(config, grid.partitions == "fitted")


def defaults_of(config: RunConfig) -> dict[str, Any]:
    """What a grid leaves open is as in the run file."""
    partition, method = config.partition, config.method
    own = {
        "ranks": config.ranks,
        "method": method.name,
        "keep": read_keep(method.keep, "method.keep"),
        "prefetch": method.prefetch,
        "savings": name_savings(method.exact.savings()),
        "partition": f"metis/{partition.objective}" if partition.method == "metis" else partition.method,
        "layer": config.model.layer,
        "layers": config.model.layers,
        "hidden": config.model.hidden,
        "epochs": config.training.epochs,
    }
    text = str(method.bits).removeprefix("uniform:")
    return own | ({"bits": int(text)} if text.isdigit() and int(text) in WIDTHS else {})


def open_evaluator(document: Mapping[str, Any], costs: Costs, origin: str) -> Evaluator:
    """What answers one scenario of a grid after another, for a page that is asked again and again. Raises MisuseError."""
    grid, names, source = open_grid(document, origin)
    return Evaluator(costs, grid, names, source)
