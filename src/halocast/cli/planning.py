"""From a run's configuration and calibrated costs to a plan: partitions are made here, forecast by the simulator's planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from halocast import __version__
from halocast.errors import MisuseError, nearest
from halocast.runtime.bits import adaptive
from halocast.runtime.bits.grouping import default_group_size, group_messages, spread
from halocast.runtime.bits.links import DEFAULT_COST
from halocast.runtime.bits.problem import Pair
from halocast.runtime.graph.aggregated import StoredValues, count_stored
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.layout import PartitionLayout
from halocast.runtime.graph.partition import METHODS, partition_graph
from halocast.runtime.models.edge_options import EdgeShape
from halocast.runtime.models.shapes import LAYERS, SELF_LOOP, built_in_specs
from halocast.runtime.programs.adaqp import exchange_shapes
from halocast.simulator.costs import Costs
from halocast.simulator.forecast import Scenario, assign_uniform, forecast
from halocast.simulator.intervals import NINETY_PERCENT
from halocast.simulator.observations import Observation, model_name, parse_link
from halocast.simulator.placement import Hardware, Placement, on_hardware, threads_of
from halocast.simulator.planner.bits import Messages, WidthOption
from halocast.simulator.planner.refine import Weights, refine_by_forecast
from halocast.simulator.planner.risk import RiskCurve
from halocast.simulator.planner.rowmodel import RowModel, predict_messages
from halocast.simulator.planner.search import FIRST_BITS, Answer, Goal, Option, Partitioned, Search, alike_but_for_widths
from halocast.simulator.planner.shares import busy_seconds, find_shares
from halocast.simulator.planner.weights import weights_of
from halocast.traces.plan import (
    ARRAYS,
    PARTITION,
    Baseline,
    Plan,
    PlannedExchange,
    PlannedForecast,
    PlannedGraph,
    effect_name,
    prices_name,
    read_plan,
    widths_name,
    write_plan,
)
from halocast.traces.wire import WIDTHS
from halocast.traces.workload import ExactSavings, LayerSpec, Workload

if TYPE_CHECKING:
    from halocast.runtime.config import RunConfig

Report = Callable[[str], None]
REFINEMENTS = 2
"""Partitions that refinement forecasts, beside the one it starts from."""
WORTH_REFINING = 0.005
"""Share of the epoch that moving nodes must take away."""
LARGE = 20_000_000
"""Entries of a graph from which on partitioning takes so long that only what the run asks for is considered."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The run that is planned for, as every partition of it shares it."""

    config: RunConfig
    graph: Graph
    layers: tuple[LayerSpec, ...]
    rows: RowModel
    placement: Placement
    threads: int
    speeds: tuple[float, ...] = ()
    """By rank: 1 as calibrated; empty where all are."""
    links: tuple[float, ...] = ()
    """By rank: bytes per second of its port; empty where all have the run's."""

    @cached_property
    def stored(self) -> StoredValues | None:
        """Of the aggregated features, which the model's self loop changes."""
        return count_stored(self.graph, self_loop=SELF_LOOP[self.config.model.layer])

    @property
    def model(self) -> str:
        """As `observations.Configuration.model` has it, up to the savings."""
        return model_name(self.config.model.layer, self.layers, self.config.model.options)


@dataclass(frozen=True, eq=False)
class GraphPartition:
    """A partition of the run's graph (`search.Partitioned`)."""

    asked: Asked
    name: str
    description: Mapping[str, Any]
    layout: PartitionLayout

    @property
    def ranks(self) -> int:
        return self.layout.parts

    def scenario(self, method: str, exact: ExactSavings) -> Scenario:
        asked = self.asked
        parts = self.layout.statistics
        if exact.aggregate_features_once and parts[0].features_sparse and asked.config.model.layer in SELF_LOOP:
            parts = self._with_aggregated
        workload = Workload(asked.layers, parts, exact, 4, asked.config.method.overlap, asked.threads)
        return asked.placement.of(
            Scenario(
                graph=asked.graph.name,
                fingerprint=asked.graph.fingerprint,
                workload=workload,
                method=method,
                bits=(None,) * self.ranks,
                link=parse_link(asked.config.hosts),
                speeds=asked.speeds,
                links=asked.links,
            )
        )

    @cached_property
    def _with_aggregated(self) -> tuple[Any, ...]:
        return self.layout.with_aggregated(self.asked.stored)

    def messages(self, scenario: Scenario) -> tuple[list[Messages], list[str]]:
        asked, exact = self.asked, scenario.workload.exact
        savings = "".join("1" if getattr(exact, name) else "0" for name in exact.__slots__)
        overlap = "" if scenario.workload.overlap else " no overlap"
        recorded, note = asked.rows.find(asked.graph.fingerprint, f"{asked.model} exact {savings}{overlap}", self.ranks)
        known = {} if recorded is None else {each.key: each for each in recorded.exchanges}
        shapes = [exchange_shapes(view) for view in scenario.views()]
        nodes = self.layout.messages(shapes)
        found, notes = [], [note] if note else []
        for shape in shapes[0]:
            key = (shape.layer, shape.direction)
            rows = known.get(key)
            if recorded is not None and (rows is None or rows.dim != shape.dim):
                notes.append(f"rows of layer {shape.layer} {shape.direction} were never recorded: taken as alike")
            found.append(
                predict_messages(
                    rows,
                    key,
                    shape.dim,
                    one_sided=shape.one_sided,
                    ranks=self.ranks,
                    sender=nodes[key].sender,
                    receiver=nodes[key].receiver,
                    node=nodes[key].node,
                    degrees=asked.graph.degrees,
                )
            )
        return found, notes


def prepare(
    config: RunConfig,
    costs: Costs,
    rows: RowModel,
    placed: Hardware,
    *,
    speeds: tuple[float, ...] = (),
    links: tuple[float, ...] = (),
) -> tuple[Costs, Asked]:
    """Load the graph and put together what all candidates share. Raises MisuseError for what cannot be planned."""
    if config.model.layer not in LAYERS:
        raise MisuseError(
            f"model.layer '{config.model.layer}' cannot be planned without building it{nearest(config.model.layer, LAYERS)}"
        )
    if config.dtype != "float32":
        raise MisuseError(f"dtype {config.dtype} cannot be planned: messages are quantised from float32; leave dtype out")
    graph = load_graph(config.graph, symmetrise=config.symmetrise)
    layers = built_in_specs(config.model, graph.feature_dim, graph.classes, EdgeShape(graph.edge_dim, graph.relations))
    assert layers is not None
    moved, placement = on_hardware(costs, config.ranks, placed)
    threads = threads_of(costs, config.ranks, placed, config.threads)
    return moved, Asked(config, graph, layers, rows, placement, threads, speeds, links)


def partitions_of(asked: Asked, *, tried: int, report: Report) -> list[GraphPartition]:
    """The run's own partition first, then up to `tried` - 1 others by METIS' objectives, balances and seeds."""
    partition = asked.config.partition
    own = (partition.method, partition.objective, partition.balance, partition.seed)
    others: list[tuple[str, str, str, int]] = []
    if partition.method == "metis" and asked.graph.nnz <= LARGE and asked.config.ranks > 1:
        seed = partition.seed
        others = [
            ("metis", "volume", "nodes", seed),
            ("metis", "cut", "edges", seed),
            ("metis", "cut", "train", seed),
            ("metis", "cut", "nodes", seed + 1),
            ("metis", "cut", "nodes", seed + 2),
            ("metis", "volume", "edges", seed),
            ("metis", "cut", "edges", seed + 1),
        ]
    wanted = list(dict.fromkeys([own, *others]))[: max(1, tried)]
    report(f"partitioning {asked.graph.name} into {asked.config.ranks}, {len(wanted)} ways")
    return [_partition(asked, *each) for each in wanted]


def _partition(
    asked: Asked, method: str, objective: str, balance: str, seed: int, shares: tuple[float, ...] = ()
) -> GraphPartition:
    assignment = partition_graph(
        asked.graph,
        asked.config.ranks,
        method=method,
        objective=objective,
        balance=balance,
        seed=seed,
        shares=shares or None,
    )
    description: dict[str, Any] = {"method": method, "objective": objective, "balance": balance, "seed": seed}
    if shares:
        description["shares"] = [round(share, 4) for share in shares]
    return as_partition(asked, assignment, description)


def as_partition(asked: Asked, assignment: npt.NDArray[np.int32], description: Mapping[str, Any]) -> GraphPartition:
    """An assignment as a candidate."""
    name = partition_name(description)
    # a run of a plan reads its partition from a file, whose locality order has the run's own seed
    return GraphPartition(asked, name, description, PartitionLayout(asked.graph, assignment, asked.config.partition.seed))


def partition_name(description: Mapping[str, Any]) -> str:
    """What a partition that was made so is called."""
    method, seed = str(description["method"]), description["seed"]
    words = [method if method in METHODS else Path(method).name]
    if method == "metis":
        words += [description["objective"], description["balance"], *([f"seed {seed}"] if seed else [])]
    words += [word for key, word in (("shares", "in unequal shares"), ("refined", "refined")) if description.get(key)]
    return " ".join(words)


def refiner(costs: Costs) -> Callable[[Partitioned, Option], Partitioned | None]:
    """Moves boundary nodes of the best partition for as long as the forecast falls."""

    def refine(partition: Partitioned, option: Option) -> Partitioned | None:
        assert isinstance(partition, GraphPartition)
        asked, graph, exact = partition.asked, partition.asked.graph, option.scenario.workload.exact
        if partition.ranks == 1 or graph.nnz > LARGE:
            return None

        def forecast_of(assignment: npt.NDArray[np.int32]) -> tuple[float, Weights]:
            scenario = as_partition(asked, assignment, partition.description).scenario(option.scenario.method, exact)
            if scenario.method == "adaqp":
                scenario = replace(scenario, bits=assign_uniform(scenario.workload, FIRST_BITS))
            answer, simulation = forecast(costs, scenario)
            return answer.epoch_seconds.value, weights_of(costs, scenario, simulation)

        found = refine_by_forecast(
            graph.indptr,
            graph.indices,
            partition.layout.assignment,
            forecast_of,
            train_mask=graph.train_mask,
            tries=REFINEMENTS,
        )
        if found.after > found.before * (1.0 - WORTH_REFINING):
            return None
        moved = int(np.count_nonzero(found.assignment != partition.layout.assignment))
        return as_partition(asked, found.assignment, {**partition.description, "refined": moved})

    return refine


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, and what it was chosen from."""

    plan: Plan
    arrays: Mapping[str, npt.NDArray[Any]]
    answer: Answer
    costs: Costs


def make_plan(
    config: RunConfig,
    costs: Costs,
    rows: RowModel,
    goal: Goal,
    *,
    placed: Hardware | None = None,
    ranks: Sequence[int] = (),
    methods: Sequence[str] = ("full", "adaqp"),
    partitions: int = 5,
    refined: bool = True,
    risk: RiskCurve | None = None,
    baseline: Baseline | None = None,
    tried: Path | None = None,
    speeds: tuple[float, ...] = (),
    links: tuple[float, ...] = (),
    report: Report = lambda text: None,
) -> Planned:
    """Search partitions, savings, methods and widths for each number of `ranks` (by default the run's).

    `tried`: a plan that was tried, whose partition others must beat clearly. `speeds` and `links`: by rank, where they differ.

    Raises MisuseError where nothing meets the goal, and for what cannot be planned.
    """
    placed = placed or Hardware()
    search: Search | None = None
    moved = costs
    for count in ranks or (config.ranks,):
        each = config.model_copy(update={"ranks": count})
        moved, asked = prepare(each, costs, rows, placed, speeds=speeds, links=links)
        if search is None:
            search = Search(moved, goal, risk or rows.risk, WIDTHS, tuple(methods), report, rules=(adaqp_widths,))
        candidates = partitions_of(asked, tried=partitions, report=report)
        if speeds or links:
            report("finding shares for unequal ranks")
            candidates.append(_in_shares(moved, asked))
        if tried is not None:
            before = _tried(asked, tried)
            search.incumbent = before.name
            candidates = [candidate for candidate in candidates if candidate.name != before.name] + [before]
        search.explore(candidates, refiner(moved) if refined else _as_it_is)
    assert search is not None
    answer = search.answer()
    plan, arrays = describe(answer, config, goal, baseline)
    if placed.is_cluster:  # its ranks are where a launcher puts them, not behind the testbed's links
        plan = plan.model_copy(update={"hosts": "local", "notes": (f"hardware: {placed.title}", *plan.notes)})
    return Planned(plan, arrays, answer, moved)


def adaqp_widths(exchanges: Sequence[Messages]) -> WidthOption:
    """AdaQP's own rule, to compare with: groups of 2, 4 or 8 bits, rounds of a ring, each exchange by itself."""
    widths = {}
    for messages in exchanges:
        size = default_group_size(len(messages.beta))
        places = {pair: np.flatnonzero(messages.pair == pair) for pair in np.unique(messages.pair).tolist()}
        groups = {pair: group_messages(messages.beta[place], size) for pair, place in places.items()}
        links = {pair: (pair // messages.ranks, pair % messages.ranks) for pair in places}
        solved = adaptive.solve(
            [Pair(*links[pair], each.variance, each.rows) for pair, each in groups.items()],
            messages.dim,
            one_sided=messages.one_sided,
            costs=dict.fromkeys(links.values(), DEFAULT_COST),
            world_size=messages.ranks,
        )
        chosen = np.zeros(len(messages.beta), dtype=np.uint8)
        for (pair, each), of_groups in zip(groups.items(), solved.widths, strict=True):
            chosen[places[pair]] = spread(of_groups, each)
        widths[messages.key] = chosen
    variance = sum(each.variance(widths[each.key]) for each in exchanges)
    return WidthOption(widths, {}, variance, 0.0, "widths by AdaQP's rule")


def _as_it_is(partition: Partitioned, option: Option) -> Partitioned | None:
    return None


def _tried(asked: Asked, plan: Path) -> GraphPartition:
    """The partition of a plan."""
    with np.load(plan / ARRAYS, allow_pickle=False) as arrays:
        assignment = arrays[PARTITION]
    return as_partition(asked, assignment, read_plan(plan).partition)


def _in_shares(costs: Costs, asked: Asked) -> GraphPartition:
    """The run's own kind of partition, slower ranks having less of it."""
    partition = asked.config.partition
    own = (partition.method, partition.objective, partition.balance, partition.seed)
    count = asked.config.ranks

    def forecast_of(shares: tuple[float, ...]) -> tuple[float, Sequence[float]]:
        scenario = _partition(asked, *own, shares).scenario("full", ExactSavings.none())
        answer, simulation = forecast(costs, scenario)
        return answer.epoch_seconds.value, busy_seconds(costs, scenario, simulation)

    return _partition(asked, *own, find_shares(forecast_of, count).shares)


def describe(
    answer: Answer, config: RunConfig, goal: Goal, baseline: Baseline | None
) -> tuple[Plan, dict[str, npt.NDArray[Any]]]:
    """The answer as a plan and its arrays."""
    chosen = answer.chosen
    partition = chosen.partition
    assert isinstance(partition, GraphPartition)
    graph, predicted = partition.asked.graph, chosen.forecast
    arrays: dict[str, npt.NDArray[Any]] = {PARTITION: partition.layout.assignment.astype(np.int32)}
    exchanges: list[PlannedExchange] = []
    if chosen.widths is not None:
        exchanges = _describe_widths(chosen, arrays)
    method = config.method.model_copy(update={"name": chosen.scenario.method})
    exact = chosen.scenario.workload.exact
    document = method.model_dump(mode="json", include={"name", "overlap", "rounding"})
    if method.name == "sar":
        document |= {"prefetch": chosen.scenario.workload.prefetch, "keep": list(chosen.scenario.workload.kept_layers) or False}
    document["exact"] = {name: getattr(exact, name) for name in exact.__slots__}
    renews = chosen.widths is not None and bool(chosen.widths.prices)
    plain = answer.baseline.forecast.epoch_seconds
    plan = Plan(
        halocast=__version__,
        graph=PlannedGraph(
            name=graph.name,
            fingerprint=graph.fingerprint,
            nodes=graph.nodes,
            spec=config.graph,
            symmetrise=config.symmetrise,
        ),
        world_size=chosen.scenario.ranks,
        model=config.model.model_dump(mode="json"),
        method=document,
        partition=dict(partition.description),
        hosts=config.hosts,
        exchanges=tuple(exchanges),
        reassign_every=config.reassign_every if renews else 0,
        variance=chosen.variance,
        forecast=PlannedForecast(
            epoch_seconds=predicted.epoch_seconds.value,
            low=predicted.epoch_seconds.low,
            high=predicted.epoch_seconds.high,
            bytes_per_epoch=predicted.bytes_per_epoch,
            exchange_bytes_per_epoch=predicted.exchange_bytes_per_epoch,
            peak_bytes=predicted.peak_bytes,
            extrapolated=predicted.extrapolated,
        ),
        baseline=baseline or Baseline(epoch_seconds=plain.value, measured=False),
        why=answer.why,
        notes=(f"goal: {goal.in_words()}", *answer.notes),
    )
    return plan, arrays


def _describe_widths(chosen: Option, arrays: dict[str, npt.NDArray[Any]]) -> list[PlannedExchange]:
    """Each exchange for the plan; its widths and prices go into `arrays`."""
    widths = chosen.widths
    assert widths is not None
    highest = max((float(prices.max()) for prices in widths.prices.values()), default=1.0)
    exchanges = []
    for messages in chosen.messages:
        mine = widths.widths[messages.key]
        ends = np.searchsorted(messages.sender, np.arange(messages.ranks + 1))
        for rank in range(messages.ranks):
            arrays[widths_name(messages.layer, messages.direction, rank)] = mine[ends[rank] : ends[rank + 1]]
        if widths.prices:
            prices = np.maximum(widths.prices[messages.key] / highest, np.finfo(np.float32).tiny)
            shape = (messages.ranks, messages.ranks)
            arrays[prices_name(messages.layer, messages.direction)] = prices.reshape(shape).astype(np.float32)
            arrays[effect_name(messages.layer, messages.direction)] = np.array(messages.effect)
        values, counts = np.unique(mine, return_counts=True)
        exchanges.append(
            PlannedExchange(
                layer=messages.layer,
                direction=messages.direction,
                effect=messages.effect,
                variance=messages.variance(mine),
                bytes=int(messages.sent(mine).sum()),
                histogram=dict(zip(values.tolist(), counts.tolist(), strict=True)),
            )
        )
    return exchanges


def save(planned: Planned, folder: Path) -> Planned:
    """Write the plan; what was there before stays until the new one is complete."""
    return replace(planned, plan=write_plan(folder, planned.plan, planned.arrays))


RUN_NOISE = 0.06
"""Standard deviation of log(epoch time) from run to run of one configuration on one machine, where repeats do not tell: what
validation found on shared machines lies between 0.04, its speed known, and 0.075."""
TRUST = 0.5
"""How much of a trial's difference to its forecast is the plan's own, and not that run's: variance of the model's errors over
that and the variance from run to run, which are about alike."""
CORRECTED_FROM = 0.01
"""Smaller differences are noise."""


def correct_by_trial(planned: Planned, trial: Observation) -> Planned:
    """The forecast of a plan that was tried for a few epochs, corrected by half of what the trial's own forecast was off by.

    `trial`: of the same partition and method, at the widths of the plan before. Where the plan has changed more than its
    widths since, it stays as it was forecast.
    """
    chosen = planned.answer.chosen
    configuration = trial.configuration
    if not alike_but_for_widths(
        chosen.scenario, replace(chosen.scenario, workload=trial.workload, method=configuration.method)
    ):
        return planned
    tried, _ = forecast(planned.costs, replace(chosen.scenario, bits=trial.bits))
    ratio = float((trial.seconds / tried.epoch_seconds.value) ** TRUST)
    seconds = planned.plan.forecast
    noise = planned.costs.noise or RUN_NOISE
    half = float(np.exp(NINETY_PERCENT * np.sqrt(1.0 + TRUST) * noise))  # of the run, and what is left of the model's
    value = seconds.epoch_seconds * ratio
    changed = seconds.model_copy(update={"epoch_seconds": value, "low": value / half, "high": value * half})
    expected = 1e3 * tried.epoch_seconds.value
    note = f"forecast × {ratio:.3f}: its trial took {1e3 * trial.seconds:.1f} ms, not the {expected:.1f} ms that were forecast"
    notes = (*planned.plan.notes, note) if abs(ratio - 1.0) >= CORRECTED_FROM else planned.plan.notes
    return replace(planned, plan=planned.plan.model_copy(update={"forecast": changed, "notes": notes}))
