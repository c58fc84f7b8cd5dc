"""Training within a memory limit: which method, and what its layers keep, chosen by the forecast before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halocast.errors import MisuseError
from halocast.runtime.memory_limit import parse_size
from halocast.words import byte_count

if TYPE_CHECKING:
    from halocast.runtime.config import RunConfig
    from halocast.simulator.planner.rematerialisation import Assess, Outcome
    from halocast.traces.workload import ExactSavings

Report = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """A run that was made to fit."""

    config: RunConfig
    limit: int
    """Bytes a rank, above its interpreter and libraries."""
    outcome: Outcome
    considered: int

    @property
    def keeps_halo_features(self) -> bool:
        return self.config.method.exact.keep_halo_features

    @property
    def words(self) -> str:
        """What was chosen, for people."""
        halo = "" if self.keeps_halo_features else ", the halo's features not kept"
        return (
            f"the fastest of {self.considered} ways that stays within {byte_count(self.limit)} a rank: "
            f"{self.outcome.candidate.words}{halo}; "
            f"forecast peak {byte_count(int(self.outcome.peak))}"
        )

    def document(self) -> dict[str, Any]:
        """What a result says of it, before anything is measured."""
        candidate = self.outcome.candidate
        return {
            "limit_bytes": self.limit,
            "method": candidate.method,
            "kept_layers": list(candidate.kept_layers),
            "prefetch": candidate.prefetch,
            "keep_halo_features": self.keeps_halo_features,
            "considered": self.considered,
            "forecast_peak_bytes": [round(each) for each in self.outcome.peak_bytes],
            "forecast_epoch_seconds": self.outcome.seconds,
        }


def fit(config: RunConfig, *, method_is_given: bool, costs: Path | None, report: Report) -> Fitted:
    """The fastest way to train that fits into ``config.memory``.

    Without costs, time is told by bytes and memory by the program's buffers, the shards and an allowance. Raises
    MisuseError for a method that leaves no choice, and where nothing fits, naming the least that is needed.
    """
    from halocast.runtime.graph.store import find_shards
    from halocast.runtime.models.edge_options import EdgeShape
    from halocast.runtime.models.registry import shapes_alone
    from halocast.runtime.run import check, with_likely_aggregated
    from halocast.runtime.session import build_network, build_view
    from halocast.simulator.planner.rematerialisation import assess_all, choose, foreseeing

    limit = parse_size(config.memory)
    check(config)
    _refuse_what_is_chosen(config)
    methods = (config.method.name,) if method_is_given else ("full", "sar")
    shards = find_shards(config, report)
    graph = shards.graph
    with shapes_alone(config.model.layer):
        network = build_network(config, int(graph["feature_dim"]), int(graph["classes"]), EdgeShape.of(graph))
    views = [with_likely_aggregated(build_view(config, network, shards, rank)) for rank in range(shards.parts)]
    if not all(layer.linear_aggregation or layer.is_blockwise for layer in views[0].layers):
        methods = ("full",)  # sequential aggregation cannot run a layer that wants all its neighbours at once
    forecasting = None if costs is None else _forecasting(costs, config, report)
    exact = config.method.exact.savings()
    found: list[tuple[Outcome, ExactSavings]] = []
    for savings in dict.fromkeys((exact, replace(exact, keep_halo_features=False))):
        mine = [replace(view, exact=savings) for view in views]
        assess = foreseeing(mine) if forecasting is None else forecasting(savings)
        found += [(outcome, savings) for outcome in assess_all(mine[0], assess, methods)]
    chosen = choose((outcome for outcome, _ in found), limit)
    savings = next(savings for outcome, savings in found if outcome is chosen)
    return Fitted(_chosen(config, limit, chosen, savings), limit, chosen, len(found))


def _forecasting(costs: Path, config: RunConfig, report: Report) -> Callable[[ExactSavings], Assess]:
    """How candidates are assessed by costs, with some savings or others."""
    from halocast.cli.scenario import build_scenario
    from halocast.runtime.worker import threads_per_rank
    from halocast.simulator.costs import Costs
    from halocast.simulator.planner.rematerialisation import forecasting

    asked = build_scenario(
        config, bits_from=None, threads=threads_per_rank(config, config.ranks), partitions="real", report=report
    )
    known, scenario = Costs.load(costs), asked.scenario
    return lambda savings: forecasting(known, replace(scenario, workload=replace(scenario.workload, exact=savings)))


def _chosen(config: RunConfig, limit: int, outcome: Outcome, savings: ExactSavings) -> RunConfig:
    candidate = outcome.candidate
    exact = config.method.exact.model_copy(update={"keep_halo_features": savings.keep_halo_features})
    update: dict[str, Any] = {"name": candidate.method, "exact": exact}
    if candidate.method == "sar":
        update |= {"prefetch": candidate.prefetch, "keep": candidate.kept_layers or False}
    return config.model_copy(update={"method": config.method.model_copy(update=update), "memory": "", "fitted_memory": limit})


def _refuse_what_is_chosen(config: RunConfig) -> None:
    """Raises MisuseError for settings that a choice would overrule."""
    method = config.method
    if config.plan:
        raise MisuseError("memory: a plan has chosen already; leave the limit out, or give it to `halocast plan --memory`")
    if method.quantises:
        raise MisuseError(
            "--memory chooses between full and sar, which send rows as they are: leave it out where messages are quantised, or "
            "leave the method and its bits out"
        )
    if method.keep is not False:
        raise MisuseError("--memory chooses method.keep (and method.prefetch): leave one or the other out")


def refuse_where_others_start_ranks(config: RunConfig, launcher: str) -> None:
    """Ranks that another launcher started cannot wait for one to choose."""
    if config.memory:
        raise MisuseError(
            f"--memory chooses before ranks start, and {launcher} has started them: let `halocast train --memory ... --dry-run`"
            " choose, and pass what it says (method.name, .keep, .prefetch, .exact.keep_halo_features)"
        )
