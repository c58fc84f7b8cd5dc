"""How well a few partitions foretell finer ones: halo per node against the number of parts.

    python -m benchmarks.partition_scaling amazon_photo debian --fit 2 4 8 16 --hold 32 64 128 --out benchmarks/results

Each graph is partitioned by METIS into every number of parts. `halocast.simulator.scaling` is fitted to some of them; the
others are held out and compared with the statistics it makes up. Errors are forecast / measured - 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from halocast.reports import figures
from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.partition import partition_graph
from halocast.runtime.graph.shard import partition_statistics
from halocast.simulator.scaling import PartitionScaling, fit_scaling
from halocast.traces.workload import PartStatistics

NAME = "partition-scaling"
COLUMNS = 3
"""Graphs beside each other in the picture."""
Row = dict[str, Any]


def summary(statistics: Sequence[PartStatistics]) -> dict[str, float]:
    """What is compared."""
    halo = np.array([part.halo for part in statistics])
    entries = np.array([part.nnz_central + part.nnz_marginal for part in statistics])
    return {
        "halo": float(halo.sum()),
        "largest halo": float(halo.max()),
        "largest boundary": float(max(part.boundary for part in statistics)),
        "largest message": float(max(max(part.halo_from) for part in statistics)),
        "peers": float(np.mean([np.count_nonzero(part.halo_from) for part in statistics])),
        "marginal": float(sum(part.marginal for part in statistics)),
        "cut": float(sum(part.nnz_halo for part in statistics)),
        "labelled halo": float(sum(sum(part.labelled_halo_from) for part in statistics)),
        "largest entries": float(entries.max()),
        "halo feature values": float(sum(part.feature_nnz[2] for part in statistics)),
    }


def study(name: str, arguments: argparse.Namespace) -> tuple[list[Row], PartitionScaling]:
    graph = load_graph(name)
    counts = sorted({*arguments.fit, *arguments.hold})
    partitions, seconds = {}, {}
    for parts in counts:
        started = time.perf_counter()
        assignment = partition_graph(graph, parts, objective=arguments.objective)
        partitions[parts] = partition_statistics(graph, assignment)
        seconds[parts] = time.perf_counter() - started
    started = time.perf_counter()
    scaling = fit_scaling({parts: partitions[parts] for parts in arguments.fit}, nodes=graph.nodes, entries=graph.nnz)
    fitting = time.perf_counter() - started
    rows = []
    for parts in counts:
        started = time.perf_counter()
        forecast = summary(scaling.statistics(parts))
        making, measured = time.perf_counter() - started, summary(partitions[parts])
        rows.append(
            {
                "graph": graph.name,
                "nodes": graph.nodes,
                "parts": parts,
                "held out": parts not in arguments.fit,
                "measured": measured,
                "forecast": forecast,
                "errors": {key: forecast[key] / measured[key] - 1 for key in measured if measured[key]},
                "left out": scaling.left_out[parts].model_dump() if parts in scaling.left_out else None,
                "seconds": {"partitioning": seconds[parts], "fitting": fitting, "making up": making},
            }
        )
    return rows, scaling


def table(rows: Sequence[Row]) -> str:
    names = list(rows[0]["measured"])
    lines = [
        f"| graph | parts | | halo / node | forecast | {' | '.join(names)} | partitioning s | making up s |",
        f"| --- | ---: | --- | ---: | ---: | {'---: | ' * len(names)}---: | ---: |",
    ]
    for row in rows:
        per_node = [row[which]["halo"] / row["nodes"] for which in ("measured", "forecast")]
        errors = [f"{100 * row['errors'][name]:+.1f} %" if name in row["errors"] else "-" for name in names]
        seconds = row["seconds"]
        cells = [
            row["graph"],
            str(row["parts"]),
            "held out" if row["held out"] else "fitted",
            *(f"{value:.3f}" for value in per_node),
            *errors,
            f"{seconds['partitioning']:.2f}",
            f"{seconds['making up']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def held_out_table(rows: Sequence[Row]) -> str:
    """Median and worst absolute error over graphs, by held-out number of parts."""
    lines = ["| parts held out | graphs | halo | largest halo | largest message | peers | cut |", f"| ---: | {'---: | ' * 6}"]
    for parts in sorted({row["parts"] for row in rows if row["held out"]}):
        chosen = [row for row in rows if row["parts"] == parts]
        cells = []
        for name in ("halo", "largest halo", "largest message", "peers", "cut"):
            errors = [abs(100 * row["errors"][name]) for row in chosen if name in row["errors"]]
            cells.append(f"{np.median(errors):.1f} %, at worst {max(errors):.1f} %" if errors else "-")
        lines.append(f"| {parts} | {len(chosen)} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw(results: Sequence[tuple[list[Row], PartitionScaling]]) -> Figure:
    """Halo per node against the number of parts: measured points, the fit, and what was held out."""
    columns = min(COLUMNS, len(results))
    height = -(-len(results) // columns)
    figure = figures.new_figure(3.1 * height)
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for axes, (rows, scaling) in zip(panels, results, strict=False):
        draw_graph(axes, rows, scaling)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    panels[0].legend(frameon=False, fontsize=8.5, labelcolor=figures.INK)
    return figure


def draw_graph(axes: Axes, rows: Sequence[Row], scaling: PartitionScaling) -> None:
    nodes = rows[0]["nodes"]
    dense = np.geomspace(rows[0]["parts"], rows[-1]["parts"], 100)
    axes.plot(dense, scaling.totals["halo"].over(dense), color=figures.BLUE, linewidth=1.2, label="fit")
    for held_out, label, marker, colour in (
        (False, "fitted", "o", figures.INK),
        (True, "held out", "D", figures.VERMILION),
    ):
        chosen = [row for row in rows if row["held out"] == held_out]
        heights = [row["measured"]["halo"] / nodes for row in chosen]
        parts = [row["parts"] for row in chosen]
        axes.plot(parts, heights, color=colour, linestyle="", marker=marker, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    curve = scaling.totals["halo"]
    figures.headline(
        axes, f"{rows[0]['graph']}: halo rows per node", f"{curve.form}; left out {100 * scaling.error.halo:.0f} %"
    )
    figures.style(axes, xlabel="parts", grid="y")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", help="names or paths, as of `halocast train`")
    parser.add_argument("--fit", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--hold", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--objective", choices=["cut", "volume"], default="cut")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = []
    for name in arguments.graphs:
        results.append(study(name, arguments))
        print(table(results[-1][0]), flush=True)
    rows = [row for each, _ in results for row in each]
    stem = f"{NAME}-{date.today().isoformat()}"
    head = (
        f"# Finer partitions foretold, {date.today().isoformat()}\n\n"
        f"Fitted to {', '.join(map(str, arguments.fit))} parts; METIS, objective {arguments.objective}, "
        f"{platform.processor() or platform.machine()}. Columns by name are errors, forecast / measured - 1.\n"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = f"{head}\n{held_out_table(rows)}\n{table(rows)}"
    (arguments.out / f"{stem}.md").write_text(text)
    document = {
        "benchmark": NAME,
        "date": date.today().isoformat(),
        "fit": arguments.fit,
        "hold": arguments.hold,
        "objective": arguments.objective,
        "runs": rows,
        "fits": {each[0]["graph"]: scaling.model_dump(mode="json") for each, scaling in results},
    }
    (arguments.out / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(results).savefig(arguments.out / f"{stem}.png", dpi=150)
    print(held_out_table(rows))
    print(f"wrote {stem}.md, .json and .png to {arguments.out}")


if __name__ == "__main__":
    main()
