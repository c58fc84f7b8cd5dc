"""Runs of synthetic traces, as reports take them."""

from pathlib import Path

import numpy as np
import pandas as pd
from synthetic import Scenario, write_synthetic_run

from halocast.reports.train import TrainRun
from halocast.traces.trace import read_trace


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
