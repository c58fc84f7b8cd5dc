"""Test metrics of halocast beside PyG's with the same model: `python -m benchmarks.accuracy --reference FILE --out FILE`.

The settings are those that the reference file records, the protocol is the reference's: evaluated after every step, the
test metric at the first epoch with the highest validation metric, mean over the seeds. Training runs on two ranks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from halocast.runtime.config import resolve
from halocast.runtime.run import train

RANKS = 2


def run_config(dataset: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The reference's settings in the words of a run file."""
    return {
        "graph": dataset,
        "ranks": RANKS,
        "seed": seed,
        "model": {
            "layer": settings["model"],
            "layers": settings["layers"],
            "hidden": settings["hidden"],
            "norm": "layer" if settings["layer_norm"] else "none",
            "dropout": settings["dropout"],
        },
        "training": {
            "epochs": settings["epochs"],
            "learning_rate": settings["learning_rate"],
            "weight_decay": settings["weight_decay"],
            "evaluate_every": 1,
            "checkpoint_every": 0,
        },
        "trace": {"enabled": False},
    }


def one_seed(dataset: str, settings: dict[str, Any], seed: int) -> float:
    """The test metric at the best validation epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(resolve(run_config(dataset, settings, seed), dataset), run)
        metrics = pd.read_csv(run / "metrics.csv")
    return float(metrics.loc[metrics["val"].idxmax(), "test"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("datasets", nargs="*")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for reference in json.loads(arguments.reference.read_text())["results"]:
        name, settings = reference["dataset"], reference["settings"]
        if arguments.datasets and name not in arguments.datasets:
            continue
        scores = [one_seed(name, settings, seed) for seed in range(arguments.seeds)]
        theirs = [each["test"] for each in reference["seeds"]]
        row = {
            "dataset": name,
            "model": settings["model"],
            "metric": settings["metric"],
            "halocast": statistics.mean(scores),
            "halocast_std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "halocast_seeds": scores,
            "pyg": statistics.mean(theirs),
            "pyg_std": statistics.stdev(theirs) if len(theirs) > 1 else 0.0,
            "pyg_seeds": len(theirs),
        }
        row["difference_points"] = 100 * (row["halocast"] - row["pyg"])
        rows.append(row)
        print(
            f"{name:<18} {settings['model']:<5} {settings['metric']:<9} halocast {100 * row['halocast']:.2f} ± "
            f"{100 * row['halocast_std']:.2f}  PyG {100 * row['pyg']:.2f} ± {100 * row['pyg_std']:.2f}  "
            f"difference {row['difference_points']:+.2f} points",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"ranks": RANKS, "reference": arguments.reference.name, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
