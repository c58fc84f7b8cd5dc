"""Training behind shaped links: the same losses as on the loopback, more slowly, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from halocast.runtime import testbed
from halocast.traces.trace import read_trace

GRAPH = "generated:nodes=600,degree=8,features=24"
PLAIN = ["--set", "method.exact.keep_halo_features=false", "--set", "training.checkpoint_every=0"]


def halocast(cwd: Path, *arguments: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "halocast", *arguments],
        cwd=cwd,
        env={**os.environ, "HALOCAST_CACHE": str(cwd / "cache")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


def test_shaped_links_change_times_and_nothing_else(tmp_path: Path) -> None:
    reason = testbed.testbed_available()
    if reason is not None:
        pytest.skip(reason)
    for name, hosts in (("near", "local"), ("far", "shaped:20mbit")):
        halocast(tmp_path, "train", GRAPH, "--ranks", "3", "--epochs", "6", "--hosts", hosts, "--out", name, *PLAIN)
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")["loss"].tolist() for name in ("near", "far")]
    assert losses[0] == losses[1]
    slow = read_trace(tmp_path / "far" / "trace").messages.query("phase == 'train' and bytes_in > 0")
    seconds = (slow["receive_done_ns"] - slow["start_ns"]) / 1e9
    assert (seconds > 0).all()


def test_a_real_trace_exports_whole(tmp_path: Path) -> None:
    halocast(tmp_path, "train", GRAPH, "--ranks", "2", "--epochs", "3", "--out", "run", *PLAIN)
    halocast(tmp_path, "export", "run", "--to", "perfetto")
    halocast(tmp_path, "export", "run", "--to", "hta")
    trace = read_trace(tmp_path / "run" / "trace")
    document = json.loads(gzip.decompress((tmp_path / "run" / "trace.perfetto.json.gz").read_bytes()))
    slices = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == len(trace.spans)
    lanes: dict[tuple[int, int], float] = {}
    for event in sorted(slices, key=lambda each: (each["pid"], each["tid"], each["ts"])):
        lane = (event["pid"], event["tid"])
        assert event["ts"] >= lanes.get(lane, 0.0) - 1e-6
        lanes[lane] = event["ts"] + event["dur"]
    assert len(list((tmp_path / "run" / "hta").iterdir())) == 2
