"""Does prefetching hide the messages of sequential aggregation? `python -m benchmarks.sar_overlap --out FILE`.

A dense random graph, GAT with rematerialisation. First without delays: what an epoch computes. Then every exchange lands late
by what a block takes to compute (see `benchmarks.delayed_rank`: a delay costs no core), with nothing ahead and with one round
ahead. Runs take turns; ratios to the sum of delays and computing are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.sar_memory import GRAPH, SAVINGS

from halocast.runtime import run
from halocast.runtime.config import resolve

LAYERS = 3


def epoch_seconds(ranks: int, delay_s: float, prefetch: int, epochs: int) -> float:
    """The median epoch of a run whose exchanges land late by `delay_s`."""
    config = resolve(
        {
            "graph": GRAPH.format(classes=64),
            "ranks": ranks,
            "threads": 1,
            "model": {"layer": "gat", "layers": LAYERS, "hidden": 128, "dropout": 0.0, "options": {"heads": 2}},
            "method": {"name": "sar", "prefetch": prefetch, "exact": dict.fromkeys(SAVINGS, False)},
            "partition": {"method": "random"},
            "training": {"epochs": epochs, "evaluate_every": 0, "checkpoint_every": 0},
        },
        "benchmark",
    )
    launch: Callable[..., Any] = run.launch_local
    os.environ["HALOCAST_DELAY_MS"] = str(1e3 * delay_s)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(run, "launch_local", lambda _, *rest, **more: launch("benchmarks.delayed_rank", *rest, **more)),
    ):
        return float(run.train(config, Path(folder) / "run")["epoch_seconds"]["median"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = []
    for ranks in arguments.ranks:
        exchanges = 3 * LAYERS * (ranks - 1)  # each round fetches, fetches again and pushes
        blocks = 2 * LAYERS * ranks
        delay = epoch_seconds(ranks, 0.0, 0, arguments.epochs) / blocks
        rows = []
        for _ in range(arguments.repeats):
            compute = epoch_seconds(ranks, 0.0, 0, arguments.epochs)
            row = {"compute_ms": 1e3 * compute, "delay_ms": 1e3 * delay, "delays_ms": 1e3 * delay * exchanges}
            for prefetch in (0, 1):
                found = epoch_seconds(ranks, delay, prefetch, arguments.epochs)
                row |= {
                    f"epoch_ms_{prefetch}_ahead": 1e3 * found,
                    f"ratio_{prefetch}_ahead": found / (compute + delay * exchanges),
                }
            rows.append(row)
        medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        results.append({"ranks": ranks, "medians": medians, "rows": rows})
        print(ranks, {key: round(value, 3) for key, value in medians.items()}, flush=True)
    if arguments.out:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        document = {"date": date.today().isoformat(), "machine": machine, "results": results}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
