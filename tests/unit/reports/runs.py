"""Runs of synthetic traces, as reports take them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import tomli_w
from synthetic import Scenario, write_synthetic_run

from halocast.reports.train import TrainRun
from halocast.traces.trace import read_manifest, read_trace, write_manifest

CONFIG = {
    "graph": "debian",
    "ranks": 2,
    "seed": 0,
    "model": {"layer": "sage", "layers": 3, "hidden": 128},
    "method": {"name": "full", "exact": {"transform_first": True}},
    "training": {"epochs": 11},
}


def make_metrics(epochs=11, *, slow=(), start=0.100):
    """Epochs that get slower by a millisecond, every second one evaluated; those in `slow` take ten times as long."""
    numbers = np.arange(epochs)
    seconds = start + numbers / 1000
    seconds[list(slow)] *= 10
    evaluated = numbers % 2 == 1
    return pd.DataFrame(
        {
            "epoch": numbers,
            "loss": 2.0 - 0.1 * numbers,
            "epoch_seconds": seconds,
            **{split: np.where(evaluated, score, np.nan) for split, score in (("train", 0.8), ("val", 0.7), ("test", 0.6))},
        }
    )


def make_run(folder, scenario=None, **changes):
    """A run whose trace is in `folder`; written there first where it is not."""
    folder = Path(folder)
    if not (folder / "manifest.json").exists():
        write_synthetic_run(folder, scenario or Scenario(epochs=4, bytes_per_second=2e8))
    run = {
        "name": "debian on 2 ranks",
        "method": "full",
        "model": "GraphSAGE, 3 layers of 128",
        "trace": read_trace(folder),
        "metrics": make_metrics(),
        "bytes_per_epoch": 123_456_789,
        "exchange_bytes_per_epoch": 120_000_000,
        "peak_bytes": (812_000_000, 798_400_000),
        "accuracy": {"train": 0.8, "val": 0.7, "test": 0.61234},
        "next_command": "halocast export run --to perfetto",
        "source": "runs/one",
    }
    return TrainRun(**{**run, **changes})


def write_run_folder(folder, *, scenario=None, config=None, traced=True, finished=True, start=0.100, accuracy=0.6, **result):
    """A run folder as training leaves it: trace, metrics, result, configuration."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    scenario = scenario or Scenario(epochs=4, bytes_per_second=2e8)
    config = {**CONFIG, **(config or {})}
    make_metrics(start=start).to_csv(folder / "metrics.csv", index=False)
    (folder / "config.toml").write_bytes(tomli_w.dumps(config).encode())
    if traced:
        write_synthetic_run(folder / "trace", scenario, finished=finished)
        manifest = read_manifest(folder / "trace")
        write_manifest(folder / "trace", manifest.model_copy(update={"config": config}))
    if finished:
        document = {
            "run": str(folder),
            "graph": "debian",
            "fingerprint": "0123456789abcdef",
            "method": "full",
            "ranks": scenario.world_size,
            "epochs": 11,
            "loss": 1.0,
            "bytes_per_epoch": 2_000_000,
            "exchange_bytes_per_epoch": 1_500_000,
            "peak_bytes": [100_000_000] * scenario.world_size,
            "metric": "accuracy",
            "accuracy": {"train": 0.8, "val": 0.7, "test": accuracy},
        }
        (folder / "result.json").write_text(json.dumps({**document, **result}))
    return folder


def write_forecast_folder(folder, *, seconds=0.05, low=0.04, high=0.07, traced=True):
    """A forecast folder as `halocast forecast --out` leaves it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    said = {
        "epoch_seconds": seconds,
        "low": low,
        "high": high,
        "bytes_per_epoch": 1_000_000,
        "exchange_bytes_per_epoch": 500_000,
    }
    (folder / "forecast.json").write_text(json.dumps({**said, "peak_bytes": [90_000_000] * 2, "extrapolated": ["too far"]}))
    if traced:
        write_synthetic_run(folder / "trace", Scenario(epochs=1, noise=0.0))
        manifest = read_manifest(folder / "trace")
        write_manifest(folder / "trace", manifest.model_copy(update={"config": {**CONFIG, "forecast": True}}))
    return folder
