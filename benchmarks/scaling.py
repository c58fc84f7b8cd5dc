"""Ranks, savings, tracing and memory of halocast against itself: `python -m benchmarks.scaling [GRAPH] --out FILE`.

Configurations take turns, A B C A B C ...; a ratio is the median over the repeats of two configurations' median epochs in
the same repeat. Memory is what a rank's process holds above its interpreter and libraries at the peak of training: shard,
features, buffers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

GRAPH = "generated:nodes=100000,degree=30"
TIMINGS = {
    "1 rank, 2 threads": ["--ranks", "1", "--threads", "2"],
    "1 rank, 2 threads, not traced": ["--ranks", "1", "--threads", "2", "--no-trace"],
    "1 rank, 1 thread": ["--ranks", "1", "--threads", "1"],
    "2 ranks": ["--ranks", "2", "--threads", "1"],
    "2 ranks, halo features not kept": [*("--ranks", "2", "--threads", "1"), "--set", "method.exact.keep_halo_features=false"],
    "2 ranks, no savings": ["--ranks", "2", "--threads", "1", "--plain"],
    "4 ranks": ["--ranks", "4", "--threads", "1"],
    "4 ranks, no savings": ["--ranks", "4", "--threads", "1", "--plain"],
}
BASELINE = "1 rank, 2 threads"
MEMORY = {
    "1 rank": ["--ranks", "1", "--threads", "1"],
    "2 ranks": ["--ranks", "2", "--threads", "1"],
    "4 ranks": ["--ranks", "4", "--threads", "1"],
    "4 ranks, halo features not kept": [*("--ranks", "4", "--threads", "1"), "--set", "method.exact.keep_halo_features=false"],
    "8 ranks": ["--ranks", "8", "--threads", "1"],
}


def measure(graph: str, model: str, arguments: list[str], epochs: int, norm: str = "none") -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.epoch", graph, "--model", model, "--epochs", str(epochs), "--norm", norm]
    finished = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return document


def timings(graph: str, model: str, names: list[str], repeats: int, epochs: int) -> list[dict[str, Any]]:
    rounds = [{name: measure(graph, model, TIMINGS[name], epochs) for name in names} for _ in range(repeats)]
    rows = []
    for name in names:
        medians = [each[name]["median_ms"] for each in rounds]
        ratios = [each[name]["median_ms"] / each[BASELINE]["median_ms"] for each in rounds]
        last = rounds[-1][name]
        rows.append(
            {
                "configuration": name,
                "median_ms": statistics.median(medians),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "exchange_bytes_per_epoch": last["exchange_bytes_per_epoch"],
                "peak_mb": [size / 1e6 for size in last["peak_bytes"]],
            }
        )
        print(
            f"{model:<5} {name:<34} {rows[-1]['median_ms']:8.1f} ms  {rows[-1]['ratio']:5.2f} × {BASELINE}  "
            f"{last['exchange_bytes_per_epoch'] / 1e6:8.1f} MB exchanged  peak {max(rows[-1]['peak_mb']):6.0f} MB a rank",
            flush=True,
        )
    return rows


def memory(graph: str, model: str, epochs: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, arguments in MEMORY.items():
        sizes = [size / 1e6 for size in measure(graph, model, arguments, epochs, norm="layer")["peak_bytes"]]
        alone = rows[0]["peak_mb"][0] if rows else sizes[0]
        worst, mean = max(sizes) / alone, statistics.mean(sizes) / alone
        rows.append({"configuration": name, "peak_mb": sizes, "worst_ratio": worst, "mean_ratio": mean})
        listed = " ".join(f"{size:.0f}" for size in sizes)
        print(
            f"{model:<5} {name:<34} peak MB a rank: {listed}; {worst:.2f} × 1 rank at worst, {mean:.2f} on average", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graph", nargs="?", default=GRAPH)
    parser.add_argument("--memory-graph", default="debian")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--models", nargs="+", default=["gcn", "sage"])
    parser.add_argument("--only", nargs="+", choices=TIMINGS, default=list(TIMINGS), metavar="NAME")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "graph": arguments.graph}
    for model in arguments.models:
        document[f"timings_{model}"] = timings(arguments.graph, model, arguments.only, arguments.repeats, arguments.epochs)
    for model in [] if arguments.no_memory else arguments.models:
        document[f"memory_{model}_{arguments.memory_graph}"] = memory(arguments.memory_graph, model, arguments.epochs)
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
