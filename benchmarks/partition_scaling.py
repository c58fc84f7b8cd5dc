"""How well a few coarse partitions foretell finer ones: statistics, and the epoch that is simulated on them.

    halocast calibrate traces/samples --out costs.json
    python -m benchmarks.partition_scaling costs.json ../shared/data/*.npz --out benchmarks/results

METIS partitions each graph into every number of parts. `halocast.simulator.scaling` is fitted to the coarse ones (--fit); the
statistics that it makes up are compared with the finer ones (--hold). Epochs are those of the costs' own model (three GCN
layers of 64, rows sent whole), each rank on a host of its own behind a link of --link, up to --simulate parts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from halocast.errors import MisuseError
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.graph import Graph
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.simulator.costs import Costs
from halocast.simulator.forecast import Scenario, forecast
from halocast.simulator.observations import parse_link
from halocast.simulator.scaling import fit_scaling
from halocast.traces.workload import ExactSavings, LayerSpec, PartStatistics, Workload

NAME = "partition-scaling"
LEAST_NODES = 64
"""Nodes a part that a graph has to have: finer partitions are nobody's."""
MEASURES = ("halo", "largest halo", "peers", "largest message", "entries between parts", "most entries", "epoch")
Row = dict[str, Any]


def summary(statistics: Sequence[PartStatistics]) -> dict[str, float]:
    """What is compared: totals over parts, the largest part's, means."""
    return {
        "halo": sum(part.halo for part in statistics),
        "largest halo": max(part.halo for part in statistics),
        "peers": float(np.mean([np.count_nonzero(part.halo_from) for part in statistics])),
        "largest message": float(np.mean([max(part.halo_from) for part in statistics])),
        "entries between parts": sum(part.nnz_halo for part in statistics),
        "most entries": max(part.nnz_central + part.nnz_marginal for part in statistics),
    }


def epoch_seconds(costs: Costs, statistics: Sequence[PartStatistics], link: float) -> float:
    dense = {"feature_dim": 64, "features_sparse": False, "feature_nnz": (0, 0, 0)}
    layers = tuple(
        LayerSpec(
            64, out, self_loop=True, norm=not last, activation=not last, dropout=0.0 if last else 0.5, parameters=65 * out
        )
        for out, last in ((64, False), (64, False), (8, True))
    )
    workload = Workload(layers, tuple(replace(part, **dense) for part in statistics), ExactSavings.none())
    nothing = (None,) * len(statistics)
    return forecast(costs, Scenario("", "", workload, "full", nothing, link, ranks_per_host=0))[0].epoch_seconds.value


def study(graph: Graph, costs: Costs, arguments: argparse.Namespace) -> list[Row]:
    counts = [parts for parts in (*arguments.fit, *arguments.hold) if graph.nodes >= LEAST_NODES * parts]
    if not set(counts) - set(arguments.fit):
        return []
    real, seconds = {}, {}
    for parts in counts:
        started = time.perf_counter()
        real[parts] = partition_statistics(graph, partition_graph(graph, parts))
        seconds[parts] = time.perf_counter() - started
    scaling = fit_scaling([real[parts] for parts in arguments.fit])
    rows = []
    for parts in sorted(set(counts) - set(arguments.fit)):
        fitted = scaling.statistics(parts)
        measured, forecasted = summary(real[parts]), summary(fitted)
        if parts <= arguments.simulate:
            link = parse_link(arguments.link)
            measured["epoch"], forecasted["epoch"] = (epoch_seconds(costs, each, link) for each in (real[parts], fitted))
        errors = {name: forecasted[name] / measured[name] - 1.0 for name in measured}
        rows.append(
            {"graph": graph.name, "nodes": graph.nodes, "entries": graph.nnz, "parts": parts, "errors": errors}
            | {"measured": measured, "fitted": forecasted, "partitioning_seconds": seconds[parts]}
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Errors, fitted / real - 1, a row a graph and number of parts."""
    lines = [f"| graph | parts | {' | '.join(MEASURES)} |", f"| --- | ---: |{' ---: |' * len(MEASURES)}"]
    for row in rows:
        cells = [f"{100 * row['errors'][name]:+.0f} %" if name in row["errors"] else "" for name in MEASURES]
        lines.append(f"| {row['graph']} | {row['parts']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def overview(rows: Sequence[Row]) -> str:
    """Median and worst size of the error over graphs, by number of parts."""
    lines = [f"| parts | graphs | {' | '.join(MEASURES)} |", f"| ---: | ---: |{' ---: |' * len(MEASURES)}"]
    for parts in sorted({row["parts"] for row in rows}):
        chosen = [row["errors"] for row in rows if row["parts"] == parts]
        cells = []
        for name in MEASURES:
            errors = [abs(100 * each[name]) for each in chosen if name in each]
            cells.append(f"{np.median(errors):.0f} %, worst {max(errors):.0f} %" if errors else "")
        lines.append(f"| {parts} | {len(chosen)} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def error_per_doubling(rows: Sequence[Row], finest: int, name: str) -> float:
    """Root mean square of log(fitted / real) over the doublings beyond the finest partition that was fitted."""
    logs = [np.log1p(row["errors"][name]) / np.log2(row["parts"] / finest) for row in rows if name in row["errors"]]
    return float(np.sqrt(np.mean(np.square(logs))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path, help="a cost file of `halocast calibrate`")
    parser.add_argument("graphs", nargs="+", help="as of `halocast train`; dynamic ones are passed over")
    parser.add_argument("--fit", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--hold", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--link", default="100mbit")
    parser.add_argument("--simulate", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    costs, rows = Costs.load(arguments.costs), []
    for name in arguments.graphs:
        try:
            graph = load_graph(name)
        except MisuseError as error:
            print(f"{name} is passed over: {error}")
            continue
        rows += study(graph, costs, arguments)
        print(table(rows[-len(arguments.hold) :]), flush=True)
    finest = max(arguments.fit)
    doubling = {name: error_per_doubling(rows, finest, name) for name in MEASURES}
    text = (
        f"# Finer partitions foretold, {date.today().isoformat()}\n\n"
        f"METIS, fitted to {', '.join(map(str, arguments.fit))} parts. Errors are fitted / real - 1; epochs are simulated on "
        f"costs of {costs.machine}, links of {arguments.link}.\n\n{overview(rows)}\n"
        f"Root mean square of log(fitted / real) a doubling beyond {finest} parts: "
        f"{', '.join(f'{name} {value:.2f}' for name, value in doubling.items())}.\n\n{table(rows)}"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{NAME}-{date.today().isoformat()}.md"
    path.write_text(text)
    document = {"benchmark": NAME, "date": date.today().isoformat(), "machine": costs.machine, "link": arguments.link}
    document |= {"fit": arguments.fit, "error_per_doubling": doubling, "rows": rows}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{overview(rows)}\nwrote {path} and .json")


if __name__ == "__main__":
    main()
