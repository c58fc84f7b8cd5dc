"""Memory of sequential aggregation on a dense random graph: `python -m benchmarks.sar_memory --out benchmarks/results`.

16,384 nodes of degree 32, cut at random, so that nearly every row is needed by every part. Three layers of 128 (attention: 2
heads of 64), every lossless saving off. For each method and number of ranks: by how much a rank's resident memory rises in
training above what it held before (the largest rank's, and the sum over ranks), and the most bytes of the program's buffers
alive at once, beside what SAR's release was seen to take.
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


def one_run(name: str, ranks: int, epochs: int, folder: Path) -> dict[str, Any]:
    model, classes, settings = RUNS[name]
    options = ["--set", "model.options.heads=2"] if model == "gat" else []
    exact = [f"method.exact.{each}=false" for each in SAVINGS]
    sets = [part for each in ("method.name=sar", *exact, *settings, "partition.method=random") for part in ("--set", each)]
    run = folder / "run"
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
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            for ranks in arguments.ranks:
                rows.append(one_run(name, ranks, arguments.epochs, Path(folder)))
                print(rows[-1], flush=True)
    text = table(rows)
    print(text)
    if arguments.out:
        today = date.today().isoformat()
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        document = {"date": today, "machine": machine, "graph": GRAPH, "epochs": arguments.epochs, "rows": rows}
        (arguments.out / f"sar-memory-{today}.json").write_text(json.dumps(document, indent=1) + "\n")
        head = f"# Memory of sequential aggregation, {today}\n\n{machine}; {GRAPH.format(classes='64 (SAGE 128)')}.\n"
        (arguments.out / f"sar-memory-{today}.md").write_text("\n".join([head, text]))


if __name__ == "__main__":
    main()
