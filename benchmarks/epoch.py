"""Epoch time and memory of halocast as one JSON line, for `benchmarks.peers.run --also` and by itself.

    python -m benchmarks.epoch GRAPH.npz --model gcn --threads 2 --ranks 1 --epochs 7 [--plain] [--no-trace]

The model is the peers': three layers of 128 with ReLU, no norm, no dropout, Adam. `--plain` switches every lossless saving off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import pandas as pd

from halocast.runtime.config import resolve
from halocast.runtime.run import train

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graph")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--no-trace", action="store_true")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--norm", default="none")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    from halocast.runtime.config import override

    switches = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
    document = {
        "graph": arguments.graph,
        "ranks": arguments.ranks,
        "threads": arguments.threads,
        "model": {
            "layer": arguments.model,
            "layers": 3,
            "hidden": arguments.hidden,
            "dropout": arguments.dropout,
            "norm": arguments.norm,
        },
        "method": {"exact": dict.fromkeys(switches, not arguments.plain)},
        "training": {"epochs": WARM_UP + arguments.epochs, "evaluate_every": 0, "checkpoint_every": 0},
        "trace": {"enabled": not arguments.no_trace},
    }
    with tempfile.TemporaryDirectory() as folder:
        result = train(resolve(override(document, arguments.set), "benchmark"), Path(folder) / "run")
        seconds = pd.read_csv(Path(folder) / "run" / "metrics.csv")["epoch_seconds"].tolist()[WARM_UP:]
    before = max(each["interpreter"] + each["before_training"] for each in result["footprint"])
    peak = max(each["interpreter"] + each["peak"] for each in result["footprint"])
    print(
        json.dumps(
            {
                "peer": f"halocast{'-plain' if arguments.plain else ''}-{arguments.ranks}x{arguments.threads}",
                "model": arguments.model,
                "threads": arguments.threads,
                "epoch_ms": [1000 * each for each in seconds],
                "median_ms": 1000 * statistics.median(seconds),
                "rss_before_mb": before / 1e6,
                "peak_mb": peak / 1e6,
                "peak_bytes": result["peak_bytes"],
                "exchange_bytes_per_epoch": result["exchange_bytes_per_epoch"],
            }
        )
    )


if __name__ == "__main__":
    main()
