"""What refining a partition by its forecast is worth: `python -m benchmarks.partition_refinement COSTS GRAPH ... --out DIR`.

METIS partitions for cut and for volume, forecast on ranks of a device each behind links of `--link`, refined, forecast again.
The model is three GCN layers of 64 on dense features, as the samples in traces/ are; without the lossless savings, and with
those that these samples can price (all but transforming first). Then four ranks of which one is slower or has a narrower link:
with even shares of the graph and with shares found by the forecast, each before and after refinement.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.aggregate import processor

from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.partition import Assignment, partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.simulator.costs import Costs
from halocast.simulator.forecast import Scenario, forecast
from halocast.simulator.observations import parse_link
from halocast.simulator.planner.refine import Weights, refine, refine_by_forecast
from halocast.simulator.planner.shares import busy_seconds, find_shares
from halocast.simulator.planner.weights import weights_of
from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, Workload

WIDTH, CLASSES = 64, 8
TRIES = 3
"""Partitions that are forecast, beside the first."""
UNEQUAL = 4
"""Ranks of the second table."""
COLUMNS = (
    "graph", "parts", "METIS", "savings", "epoch ms", "refined", "change", "most halo rows", "refined", "change",
    "all halo rows", "most nodes", "with halo rows", "moves", "refine s", "in all s",
)  # fmt: skip


UNEQUAL_COLUMNS = ("graph", "ranks", "even shares ms", "refined", "found shares ms", "refined", "change", "shares", "in all s")


@dataclass(frozen=True)
class Setting:
    """What is forecast for a partition."""

    costs: Costs
    link: float
    exact: ExactSavings
    speeds: tuple[float, ...] = ()
    links: tuple[float, ...] = ()

    def scenario(self, parts: Sequence[PartStatistics]) -> Scenario:
        dense = {"feature_dim": WIDTH, "features_sparse": False, "feature_nnz": (0, 0, 0)}
        layers = tuple(
            LayerSpec(WIDTH, out, self_loop=True, norm=not last, activation=not last, dropout=0.0 if last else 0.5,
                      parameters=WIDTH * out + out)
            for out, last in ((WIDTH, False), (WIDTH, False), (CLASSES, True))
        )  # fmt: skip
        workload = Workload(layers, tuple(replace(part, **dense) for part in parts), self.exact)  # type: ignore[arg-type]
        nothing = (None,) * len(parts)
        return Scenario("", "", workload, "full", nothing, self.link, ranks_per_host=0, speeds=self.speeds, links=self.links)

    def forecast(self, graph: Graph, assignment: Assignment) -> tuple[float, Weights]:
        scenario = self.scenario(partition_statistics(graph, assignment))
        answer, simulation = forecast(self.costs, scenario)
        return answer.epoch_seconds.value, weights_of(self.costs, scenario, simulation)


def study(graph: Graph, parts: int, objective: str, setting: Setting) -> list[str]:
    start = partition_graph(graph, parts, objective=objective)
    structure = (graph.indptr, graph.indices)
    _, weights = setting.forecast(graph, start)
    began = time.process_time()
    refine(*structure, start, weights, train_mask=graph.train_mask)
    once = time.process_time() - began
    began = time.process_time()
    found = refine_by_forecast(
        *structure,
        start,
        lambda assignment: setting.forecast(graph, assignment),
        train_mask=graph.train_mask,
        tries=TRIES,
    )
    total = time.process_time() - began
    before, after = (partition_statistics(graph, each) for each in (start, found.assignment))
    halo, halo_after = (max(part.halo for part in each) for each in (before, after))

    def both(count: Callable[[PartStatistics], int], over: Callable[[Iterable[int]], int] = max) -> str:
        return " → ".join(f"{over(count(part) for part in each):,}" for each in (before, after))

    return [
        graph.name, str(parts), objective, "none" if setting.exact == ExactSavings.none() else "three",
        f"{1e3 * found.before:.1f}", f"{1e3 * found.after:.1f}", f"{100 * (found.after / found.before - 1):+.1f} %",
        f"{halo:,}", f"{halo_after:,}", f"{100 * (halo_after / halo - 1):+.1f} %",
        both(lambda part: part.halo, sum), both(lambda part: part.own), both(lambda part: part.own + part.halo),
        f"{int(np.count_nonzero(start != found.assignment)):,}", f"{once:.1f}", f"{total:.1f}",
    ]  # fmt: skip


def refined(graph: Graph, assignment: Assignment, setting: Setting) -> tuple[float, float]:
    """(forecast, forecast once refined)."""
    found = refine_by_forecast(
        graph.indptr,
        graph.indices,
        assignment,
        lambda each: setting.forecast(graph, each),
        train_mask=graph.train_mask,
        tries=TRIES,
    )
    return found.before, found.after


def study_unequal(graph: Graph, name: str, setting: Setting) -> list[str]:
    def forecast_of(shares: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
        scenario = setting.scenario(partition_statistics(graph, partition_graph(graph, UNEQUAL, shares=shares)))
        answer, simulation = forecast(setting.costs, scenario)
        return answer.epoch_seconds.value, busy_seconds(setting.costs, scenario, simulation)

    began = time.process_time()
    found = find_shares(forecast_of, UNEQUAL)
    total = time.process_time() - began
    even, even_refined = refined(graph, partition_graph(graph, UNEQUAL), setting)
    some, some_refined = refined(graph, partition_graph(graph, UNEQUAL, shares=found.shares), setting)
    return [
        graph.name, name, *(f"{1e3 * seconds:.1f}" for seconds in (even, even_refined, some, some_refined)),
        f"{100 * (some_refined / even - 1):+.1f} %", " ".join(f"{share:.2f}" for share in found.shares), f"{total:.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path, help="a cost file of `halocast calibrate`")
    parser.add_argument("graphs", nargs="+", help="as of `halocast train`")
    parser.add_argument("--parts", nargs="*", type=int, default=[4, 8])
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown file")
    options = parser.parse_args()
    costs, link = Costs.load(options.costs), parse_link(options.link)
    lines = [f"| {' | '.join(COLUMNS)} |", f"| --- | ---: | --- | --- |{' ---: |' * (len(COLUMNS) - 4)}"]
    print("\n".join(lines))
    for spec in options.graphs:
        graph = load_graph(spec)
        for parts in options.parts:
            for exact in (ExactSavings.none(), ExactSavings(transform_first=False)):
                for objective in ("cut", "volume"):
                    lines.append(f"| {' | '.join(study(graph, parts, objective, Setting(costs, link, exact)))} |")
                    print(lines[-1], flush=True)
    unequal = [f"| {' | '.join(UNEQUAL_COLUMNS)} |", f"| --- | --- |{' ---: |' * (len(UNEQUAL_COLUMNS) - 2)}"]
    print("\n".join(["", *unequal]))
    for spec in options.graphs:
        graph = load_graph(spec)
        for name, speeds, links in (
            ("alike", (), ()),
            ("one of half speed", (1.0, 1.0, 0.5, 1.0), ()),
            ("one of a quarter of the link", (), (link, link, link / 4, link)),
        ):
            setting = Setting(costs, link, ExactSavings.none(), speeds, links)
            unequal.append(f"| {' | '.join(study_unequal(graph, name, setting))} |")
            print(unequal[-1], flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        today = datetime.date.today().isoformat()
        head = [
            f"# Partitions refined by their forecast, {today}",
            f"{processor()}; a device a rank, links of {options.link}; three GCN layers of {WIDTH} on dense features, float32. "
            "*refine s*: one refinement, on one core; *in all s*: with every forecast and partition that was tried.",
        ]
        second = (
            f"{UNEQUAL} ranks, some not like the others, without the savings. "
            "*in all s*: every partition and forecast to find the shares."
        )
        text = "\n\n".join([*head, "\n".join(lines), second, "\n".join(unequal)])
        (options.out / f"partition-refinement-{today}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
