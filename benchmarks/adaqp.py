"""AdaQP beside plain full-graph training on shaped links: epoch time, exchange time and bytes, per method and graph.

    python -m benchmarks.adaqp GRAPH ... --ranks 4 8 --rates 4=200mbit 8=300mbit --out benchmarks/results

Every configuration is a run of its own behind the same shaped links; configurations take turns within each repeat, and a
ratio is taken within one repeat. Node features are replaced by `--dim` dense ones (a fixed random projection of the
graph's own), so that the first layer's exchange is as wide as the others. "exchange" is the share of an epoch that a rank
spends waiting for messages (mean over ranks), "flight" the time from the start of an exchange to its last message (mean
over ranks, summed over an epoch's exchanges). Adaptive widths are timed in their last period, after their assignment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from halocast.runtime.graph.datasets import load_graph
from halocast.runtime.graph.npz import save_npz
from halocast.traces.trace import read_trace

NO_SAVINGS = [
    "--set", "method.exact.aggregate_features_once=false", "--set", "method.exact.transform_first=false",
    "--set", "method.exact.labelled_gradients_only=false", "--set", "method.exact.keep_halo_features=false",
]  # fmt: skip
PLAIN = "plain, no overlap"
CONFIGURATIONS = {
    PLAIN: ["--method", "full", "--set", "method.overlap=false"],
    "plain, overlap": ["--method", "full"],
    "uniform 8": ["--method", "adaqp", "--bits", "8"],
    "uniform 4": ["--method", "adaqp", "--bits", "4"],
    "uniform 2": ["--method", "adaqp", "--bits", "2"],
    "adaptive": ["--method", "adaqp", "--bits", "adaptive"],
}
PERIODS = 5


def with_dense_features(spec: str, dim: int, folder: Path) -> Path:
    """The graph with `dim` dense features a node: its own, projected at random (seed 0)."""
    graph = load_graph(spec)
    projection = np.random.default_rng(0).standard_normal((graph.feature_dim, dim)).astype(np.float32)
    projected = np.asarray(graph.features @ projection, dtype=np.float32)
    projected /= np.sqrt((projected**2).mean()) + 1e-12
    target = folder / f"{Path(spec).stem}.npz"
    save_npz(replace(graph, features=projected), target)
    return target


def one_run(graph: Path, name: str, arguments: list[str], epochs: int, folder: Path) -> dict[str, Any]:
    """Train once, and read what the trace says of the epochs after the widths have settled."""
    run = folder / "run"
    command = [
        sys.executable, "-m", "halocast", "train", str(graph), "--epochs", str(epochs), "--out", str(run), "--force", "--json",
        "--set", "training.evaluate_every=0", "--set", "training.checkpoint_every=0", *arguments,
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{name}: {finished.stderr.strip().splitlines()[-1]}")
    result = json.loads(finished.stdout)
    first = epochs - epochs // PERIODS if name == "adaptive" else 2
    trace = read_trace(run).aligned()
    spans = trace.spans[(trace.spans["phase"] == "train") & (trace.spans["epoch"] >= first)]
    messages = trace.messages[(trace.messages["phase"] == "train") & (trace.messages["epoch"] >= first)]
    counted = epochs - first
    ranks = result["ranks"]
    seconds = pd.read_csv(run / "metrics.csv")["epoch_seconds"].iloc[first:]
    waits = spans[(spans["op"] == "Wait") & (spans["peer"] >= 0)]
    flights = spans[(spans["op"] == "Exchange") & (spans["stream"] == "communication")]
    codec = spans[(spans["op"].isin(["Quantize", "Dequantize"])) & (spans["stream"] == "compute")]
    return {
        "epoch_ms": float(1e3 * seconds.median()),
        "wait_ms": float(waits["wall_ns"].sum() / 1e6 / counted / ranks),
        "flight_ms": float(flights["wall_ns"].sum() / 1e6 / counted / ranks),
        "codec_ms": float(codec["wall_ns"].sum() / 1e6 / counted / ranks),
        "forward_mb": float(messages[messages["direction"] == "forward"]["bytes_out"].sum() / 1e6 / counted),
        "backward_mb": float(messages[messages["direction"] == "backward"]["bytes_out"].sum() / 1e6 / counted),
        "loss": result["loss"],
        "bits": result.get("bits", {}),
        "assignments": [
            {"seconds": each["seconds"], "solve_seconds": each["solve_seconds"]} for each in result.get("assignments", [])
        ],
    }


def compare(graph: Path, common: list[str], names: list[str], epochs: int, repeats: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            {name: one_run(graph, name, [*common, *CONFIGURATIONS[name]], epochs, Path(folder)) for name in names}
            for _ in range(repeats)
        ]
    rows = []
    for name in names:
        row: dict[str, Any] = {"configuration": name}
        for key in ("epoch_ms", "wait_ms", "flight_ms", "codec_ms", "forward_mb", "backward_mb"):
            row[key] = statistics.median(each[name][key] for each in rounds)
        row["wait_share"] = statistics.median(each[name]["wait_ms"] / each[name]["epoch_ms"] for each in rounds)
        for baseline in (PLAIN, "plain, overlap"):
            if baseline in names:
                row[f"speedup over {baseline}"] = statistics.median(
                    each[baseline]["epoch_ms"] / each[name]["epoch_ms"] for each in rounds
                )
                for key in ("wait_ms", "flight_ms"):
                    row[f"{key} cut over {baseline}"] = statistics.median(
                        1 - each[name][key] / each[baseline][key] for each in rounds
                    )
        row["bits"], row["assignments"] = rounds[-1][name]["bits"], rounds[-1][name]["assignments"]
        rows.append(row)
    return rows


def table(title: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"### {title}",
        "",
        "| configuration | epoch ms | × plain, no overlap | × plain, overlap | exchange | wait ms | flight ms | flight cut "
        "| codec ms | forward MB | backward MB |",
        "| --- " + "| ---: " * 10 + "|",
    ]
    for row in rows:
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in (f"speedup over {PLAIN}", "speedup over plain, overlap")]
        cut = row.get(f"flight_ms cut over {PLAIN}")
        lines.append(
            f"| {row['configuration']} | {row['epoch_ms']:.0f} | {ratios[0]} | {ratios[1]} | {100 * row['wait_share']:.0f} % "
            f"| {row['wait_ms']:.0f} | {row['flight_ms']:.0f} | {'' if cut is None else f'{100 * cut:.0f} %'} "
            f"| {row['codec_ms']:.0f} | {row['forward_mb']:.2f} | {row['backward_mb']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", help="a known name or an .npz")
    parser.add_argument("--ranks", nargs="+", type=int, default=[4])
    parser.add_argument("--rates", nargs="+", default=["4=300mbit", "8=300mbit"], help="RANKS=RATE, or GRAPH:RANKS=RATE")
    parser.add_argument("--models", nargs="+", default=["gcn"])
    parser.add_argument("--savings", nargs="+", choices=["off", "on"], default=["off"])
    parser.add_argument("--configurations", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rates = dict(each.split("=") for each in arguments.rates)
    results, text = [], []
    with tempfile.TemporaryDirectory() as folder:
        for spec in arguments.graphs:
            name = Path(spec).stem
            graph = with_dense_features(spec, arguments.dim, Path(folder))
            for model in arguments.models:
                for ranks in arguments.ranks:
                    rate = rates.get(f"{name}:{ranks}", rates.get(str(ranks), "300mbit"))
                    for savings in arguments.savings:
                        common = ["--model", model, "--hidden", str(arguments.hidden), "--ranks", str(ranks)]
                        common += ["--set", "model.norm=layer", "--hosts", f"shaped:{rate}"]
                        common += NO_SAVINGS if savings == "off" else []
                        rows = compare(graph, common, arguments.configurations, arguments.epochs, arguments.repeats)
                        title = f"{name}, {model}, {ranks} ranks at {rate}, savings {savings}"
                        results.append({"title": title, "graph": name, "model": model, "ranks": ranks, "rate": rate,
                                        "savings": savings, "rows": rows})  # fmt: skip
                        text.append(table(title, rows))
                        print(text[-1], flush=True)
    if arguments.out:
        today = date.today().isoformat()
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        settings = {key: value for key, value in vars(arguments).items() if key not in ("graphs", "out")}
        settings["graphs"] = [Path(spec).stem for spec in arguments.graphs]
        document = {"date": today, "machine": machine, "settings": settings, "results": results}
        (arguments.out / f"adaqp-{today}.json").write_text(json.dumps(document, indent=1) + "\n")
        head = f"# AdaQP beside plain training, {today}\n\n{machine}; {arguments.epochs} epochs, {arguments.repeats} repeats.\n"
        (arguments.out / f"adaqp-{today}.md").write_text("\n".join([head, *text]))


if __name__ == "__main__":
    main()
