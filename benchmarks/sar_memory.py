"""Memory of sequential aggregation on a dense random graph: `python -m benchmarks.sar_memory --out benchmarks/results`.

16,384 nodes of degree 32, cut at random, so that nearly every row is needed by every part. Three layers of 128 (attention: 2
heads of 64), every lossless saving off. For each method and number of ranks: by how much a rank's resident memory rises in
training above what it held before (the largest rank's, and the sum over ranks), and the most bytes of the program's buffers
alive at once, beside what SAR's release was seen to take. A figure shows each rank's peak, and its forecast by a calibration on
all other configurations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from halocast.reports.figures import BLUE, GREEN, ORANGE, VERMILION, headline, style
from halocast.simulator.memory import fit_memory, peak_bytes
from halocast.simulator.observations import observe_all
from halocast.traces.trace import read_trace

GRAPH = (
    "generated:nodes=16384,degree=32,degree_exponent=50,communities=1,community_mixing=0,homophily=0.9,"
    "classes={classes},features=128,seed=0"
)
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
RUNS = {
    "GAT, remat": ("gat", 64, []),
    "GAT, remat, nothing ahead": ("gat", 64, ["method.prefetch=0"]),
    "GAT, keep": ("gat", 64, ["method.keep=true"]),
    "SAGE": ("sage", 128, []),
    "SAGE, nothing ahead": ("sage", 128, ["method.prefetch=0"]),
    "GAT, plain (full)": ("gat", 64, ["method.name=full"]),
}
RELEASE = {
    "GAT, remat": {2: 106.8, 4: 52.7, 8: 28.1},
    "GAT, keep": {2: 128.8, 4: 81.6, 8: 59.7},
    "SAGE": {2: 57.2, 4: 28.2, 8: 18.7},
}
"""MB a worker of SAR's own release, "with" rematerialisation for SAGE."""
RANKS = (2, 4, 8)


def one_run(name: str, ranks: int, epochs: int, run: Path) -> dict[str, Any]:
    model, classes, settings = RUNS[name]
    options = ["--set", "model.options.heads=2"] if model == "gat" else []
    exact = [f"method.exact.{each}=false" for each in SAVINGS]
    sets = [part for each in ("method.name=sar", *exact, *settings, "partition.method=random") for part in ("--set", each)]
    command = [
        *(sys.executable, "-m", "halocast", "train", GRAPH.format(classes=classes), "--model", model, "--ranks", str(ranks)),
        *("--layers", "3", "--hidden", "128", "--epochs", str(epochs), "--out", str(run), "--force", "--json"),
        *("--set", "training.evaluate_every=0", "--set", "training.checkpoint_every=0", *options, *sets),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{name}, {ranks} ranks: {finished.stderr.strip().splitlines()[-1]}")
    result = json.loads(finished.stdout)
    extra = [(each["peak"] - each["before_training"]) / 1e6 for each in result["footprint"]]
    spans = read_trace(run).spans
    live = spans[spans["phase"] == "train"].groupby("rank")["live_bytes"].max() / 1e6
    return {
        "run": name,
        "ranks": ranks,
        "extra_mb": max(extra),
        "extra_sum_mb": sum(extra),
        "live_mb": float(live.max()),
        "peak_mb": max(result["peak_bytes"]) / 1e6,
        "epoch_ms": 1e3 * result["epoch_seconds"]["median"],
        "exchange_mb": result["exchange_bytes_per_epoch"] / 1e6,
    }


def forecast_peaks(rows: list[dict[str, Any]], folders: list[Path]) -> None:
    """Into each row the largest rank's peak as forecast by a calibration on all other rows' runs, in MB."""
    observations = observe_all(folders)
    for place, (row, observation) in enumerate(zip(rows, observations, strict=True)):
        costs = fit_memory([*observations[:place], *observations[place + 1 :]])
        assert costs is not None
        method = observation.configuration.method
        row["forecast_mb"] = max(peak_bytes(costs, view, method) for view in observation.views()) / 1e6


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for name, colour in (("GAT, remat", BLUE), ("GAT, keep", ORANGE), ("GAT, plain (full)", VERMILION), ("SAGE", GREEN)):
        mine = [row for row in rows if row["run"] == name]
        ranks = [row["ranks"] for row in mine]
        axes.plot(ranks, [row["peak_mb"] for row in mine], color=colour, marker="o", label=f"{name}, measured")
        axes.plot(ranks, [row["forecast_mb"] for row in mine], color=colour, marker="x", linestyle=":", label="forecast")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["ranks"] for row in rows}), [str(each) for each in sorted({row["ranks"] for row in rows})])
    axes.set_ylim(0)
    axes.set_ylabel("MB a rank, above its interpreter")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    style(axes, xlabel="ranks", grid="y")
    headline(
        axes,
        "Peak memory of a rank",
        "dense random graph; forecast: each configuration left out of its calibration",
    )
    figure.savefig(path, dpi=110)


def table(rows: list[dict[str, Any]]) -> str:
    by = {(row["run"], row["ranks"]): row for row in rows}
    ranks = sorted({row["ranks"] for row in rows})
    head = [f"K = {each}" for each in ranks]
    lines = [
        f"| extra MB a rank (program's buffers) | {' | '.join(head)} | K = {ranks[0]} ÷ K = {ranks[-1]} | sum, most ÷ least |",
        "| --- " + "| ---: " * (len(ranks) + 2) + "|",
    ]
    for name in RUNS:
        mine = [by[name, each] for each in ranks]
        cells = [f"{row['extra_mb']:.1f} ({row['live_mb']:.1f})" for row in mine]
        sums = [row["extra_sum_mb"] for row in mine]
        live = mine[0]["live_mb"] / mine[-1]["live_mb"]
        ratio = f"{mine[0]['extra_mb'] / mine[-1]['extra_mb']:.2f} ({live:.2f})"
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio} | {max(sums) / min(sums):.2f} |")
        if name in RELEASE:
            theirs = [RELEASE[name].get(each) for each in ranks]
            shown = [f"{each:.1f}" if each else "" for each in theirs]
            lines.append(f"| SAR's release | {' | '.join(shown)} | | |")
    lines += ["", "| peak MB a rank, measured / forecast | " + " | ".join(head) + " |", "| --- " + "| ---: " * len(ranks) + "|"]
    for name in RUNS:
        pairs = [f"{by[name, each]['peak_mb']:.1f} / {by[name, each]['forecast_mb']:.1f}" for each in ranks]
        lines.append(f"| {name} | {' | '.join(pairs)} |")
    lines += ["", "| MB exchanged an epoch | " + " | ".join(head) + " |", "| --- " + "| ---: " * len(ranks) + "|"]
    for name in RUNS:
        exchanged = [f"{by[name, each]['exchange_mb']:.1f}" for each in ranks]
        lines.append(f"| {name} | {' | '.join(exchanged)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, folders = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            for ranks in arguments.ranks:
                folders.append(Path(folder) / f"{len(rows)}")
                rows.append(one_run(name, ranks, arguments.epochs, folders[-1]))
                print(rows[-1], flush=True)
        forecast_peaks(rows, folders)
    text = table(rows)
    print(text)
    if arguments.out:
        today = date.today().isoformat()
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        document = {"date": today, "machine": machine, "graph": GRAPH, "epochs": arguments.epochs, "rows": rows}
        (arguments.out / f"sar-memory-{today}.json").write_text(json.dumps(document, indent=1) + "\n")
        head = f"# Memory of sequential aggregation, {today}\n\n{machine}; {GRAPH.format(classes='64 (SAGE 128)')}.\n"
        draw(rows, arguments.out / f"sar-memory-{today}.png")
        (arguments.out / f"sar-memory-{today}.md").write_text("\n".join([head, text]))


if __name__ == "__main__":
    main()
