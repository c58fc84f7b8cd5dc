"""Real processes over gloo: `halocast train` from its command line to its run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch.distributed.checkpoint as dcp

from halocast.runtime.programs.full import FullGraph
from halocast.simulator.observations import observe
from halocast.traces.buffers import walk
from halocast.traces.trace import read_trace
from halocast.traces.workload import PartStatistics, RankView

GRAPH = "generated:nodes=600,degree=8,features=24,classes=5,communities=12,seed=3"
SMALL = ["--layers", "3", "--hidden", "16", "--set", "training.evaluate_every=2", "--set", "timeout_seconds=60"]


def halocast(*arguments: str, cwd: Path, check: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, "-m", "halocast", *arguments],
        cwd=cwd,
        env={**os.environ, "HALOCAST_CACHE": str(cwd / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if check is not None:
        assert finished.returncode == check, finished.stderr
    return finished


def train(tmp_path: Path, *arguments: str, check: int | None = 0) -> dict[str, Any]:
    finished = halocast("train", GRAPH, *SMALL, *arguments, "--json", cwd=tmp_path, check=check)
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    results = [
        train(tmp_path, "--ranks", str(ranks), "--epochs", "6", "--out", f"run{ranks}", "--set", "dtype=float64")
        for ranks in (1, 2, 3)
    ]
    losses = [pd.read_csv(tmp_path / f"run{ranks}" / "metrics.csv")["loss"].to_numpy() for ranks in (1, 2, 3)]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=1e-9)
    assert losses[0][-1] < losses[0][0]
    for result in results:
        assert result["accuracy"] == pytest.approx(results[0]["accuracy"])
        assert result["epochs"] == 6


def test_the_result_document_and_the_run_folder(tmp_path: Path) -> None:
    result = train(tmp_path, "--ranks", "2", "--epochs", "4", "--out", "run")
    keys = {
        "run", "method", "ranks", "epochs", "loss", "epoch_seconds", "bytes_per_epoch", "exchange_bytes_per_epoch",
        "peak_bytes", "accuracy", "files",
    }  # fmt: skip
    assert keys <= result.keys()
    assert set(result["epoch_seconds"]) == {"median", "p10", "p90"}
    assert set(result["accuracy"]) == {"train", "val", "test"}
    assert len(result["peak_bytes"]) == 2
    for path in result["files"].values():
        assert (tmp_path / path).exists()
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1, 2, 3]
    assert metrics["val"].notna().tolist() == [False, True, False, True]
    assert metrics["loss"].iloc[-1] == pytest.approx(result["loss"])


def test_the_trace_is_the_program_with_times_on_it(tmp_path: Path) -> None:
    savings = ["--set", "method.exact.keep_halo_features=false"]
    result = train(tmp_path, "--ranks", "3", "--epochs", "3", "--out", "run", *savings)
    trace = read_trace(tmp_path / "run" / "trace")
    assert trace.manifest.finished
    assert trace.manifest.world_size == 3
    assert not trace.notes
    for rank in range(3):
        operations = [each for each in walk(FullGraph().epoch(view_of(trace.manifest, rank))) if each_is_span(each)]
        spans = trace.spans.query(f"rank == {rank} and phase == 'train' and epoch == 1 and stream == 'compute'")
        spans = spans.sort_values("index")
        assert spans["op"].tolist() == [type(each).__name__ for each in operations]
        assert spans["detail"].tolist() == [each.detail for each in operations]
        for column in ("rows", "nnz", "dim_in", "dim_out", "flops", "bytes_out", "bytes_in"):
            assert spans[column].tolist() == [getattr(each.work, column) for each in operations], column
        starts, ends = spans["start_ns"].to_numpy(), (spans["start_ns"] + spans["wall_ns"]).to_numpy()
        assert (starts[1:] >= ends[:-1]).all()
        assert spans["live_bytes"].min() >= 0
    messages = trace.messages.query("phase == 'train' and epoch == 2")
    assert messages["bytes_out"].sum() == result["exchange_bytes_per_epoch"]
    assert messages["bytes_out"].sum() == messages["bytes_in"].sum()
    assert (messages.loc[messages["bytes_out"] > 0, "send_done_ns"] > 0).all()
    assert (messages.loc[messages["bytes_in"] > 0, "receive_done_ns"] >= messages["start_ns"]).all()


def view_of(manifest: Any, rank: int) -> RankView:
    """The program's view, from nothing but the trace's manifest."""
    from halocast.runtime.config import RunConfig
    from halocast.runtime.session import build_network

    config = RunConfig.model_validate(manifest.config)
    part = PartStatistics.from_json(manifest.workload["parts"][rank])
    network = build_network(config, part.feature_dim, 5)
    return RankView(rank, manifest.world_size, network.specs(), part, config.method.exact.savings())


def each_is_span(operation: object) -> bool:
    return type(operation).__name__ not in {"Keep", "Free"}


def test_resume_reproduces_the_unbroken_run_bit_for_bit(tmp_path: Path) -> None:
    every = ["--set", "training.checkpoint_every=3", "--set", "training.schedule=cosine", "--set", "training.warmup_epochs=2"]
    train(tmp_path, "--ranks", "2", "--epochs", "10", "--out", "whole", *every)
    train(tmp_path, "--ranks", "2", "--epochs", "10", "--out", "broken", *every, "--set", "trace.flush_seconds=0.01")
    # go back to what a run killed in epoch 8 leaves behind
    for path in (tmp_path / "broken" / "checkpoints").glob("epoch-000010*"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink()
        path.rmdir()
    assert (tmp_path / "broken" / "checkpoints" / "epoch-000009").is_dir()
    finished = halocast("train", "--out", "broken", "--resume", "--json", cwd=tmp_path)
    assert "resumed after epoch 9" in finished.stderr
    whole, broken = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "broken"))
    assert whole["loss"].tolist() == broken["loss"].tolist()
    assert whole["test"].tolist()[-1] == broken["test"].tolist()[-1]
    states = [_state(tmp_path / name / "checkpoints" / "epoch-000010") for name in ("whole", "broken")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert (value == states[1][name]).all(), name


def test_a_refused_resume_keeps_the_result_and_says_what_differs(tmp_path: Path) -> None:
    train(tmp_path, "--epochs", "3", "--out", "run")
    result = (tmp_path / "run" / "result.json").read_text()
    finished = halocast("train", "--out", "run", "--resume", "--seed", "5", cwd=tmp_path, check=2)
    assert finished.stderr.strip().splitlines()[-1].endswith("is of another run (seed 0 → 5); use another --out")
    assert (tmp_path / "run" / "result.json").read_text() == result
    finished = halocast("train", "other.toml", "--out", "run", "--resume", cwd=tmp_path, check=2)
    assert "leave 'other.toml' out" in finished.stderr


def test_more_epochs_asked_for_at_a_resume_are_remembered(tmp_path: Path) -> None:
    train(tmp_path, "--epochs", "3", "--out", "run")
    halocast("train", "--out", "run", "--resume", "--epochs", "5", cwd=tmp_path)
    assert len(pd.read_csv(tmp_path / "run" / "metrics.csv")) == 5
    assert "epochs = 5" in (tmp_path / "run" / "config.toml").read_text()


def _state(folder: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    _load_state_dict(state, dcp.FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {f"{part}.{name}": value for part, tensors in state.items() for name, value in tensors.items()}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_stops_all_with_one_line_and_leaves_a_trace_that_reads(victim: int, tmp_path: Path) -> None:
    arguments = ["train", GRAPH, *SMALL, "--ranks", "2", "--epochs", "1000000", "--out", "run"]
    quick = ["--set", "trace.flush_seconds=0.2", "--set", "training.checkpoint_every=20"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "halocast", *arguments, *quick],
        cwd=tmp_path,
        env={**os.environ, "HALOCAST_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ranks = _wait_for_ranks(launcher.pid, 2, tmp_path / "run" / "checkpoints")
    _wait_for_parts(tmp_path / "run" / "trace", 2)
    os.kill(ranks[victim], signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    line = stderr.strip().splitlines()[-1]
    assert f"rank {victim} was killed by signal 9" in line
    assert "--resume" in line
    for pid in ranks:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    trace = read_trace(tmp_path / "run" / "trace")
    assert not trace.manifest.finished
    assert trace.spans["epoch"].max() > 5
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    halocast("train", "--out", "run", "--resume", "--epochs", str(len(metrics) + 5), "--json", cwd=tmp_path)


def _wait_for_parts(trace: Path, count: int) -> None:
    """Until each rank has written a part of its trace after the first checkpoint (epoch 20): its clock, not ours."""
    before = set(trace.glob("spans-*.parquet"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        fresh = {path.name[: len("spans-r00000")] for path in set(trace.glob("spans-*.parquet")) - before}
        if len(fresh) == count:
            return
        time.sleep(0.05)
    raise AssertionError("the ranks wrote no parts of their traces")


def _wait_for_ranks(launcher: int, count: int, checkpoints: Path) -> list[int]:
    """Pids by rank, once training is under way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ranks: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"halocast.runtime.worker" in command and any(
                each == b"HALOCAST_CACHE=" + str(checkpoints.parent.parent / "cache").encode() for each in environment
            ):
                for variable in environment:
                    if variable.startswith(b"RANK="):
                        ranks[int(variable[5:])] = int(entry.name)
        if len(ranks) == count and checkpoints.is_dir() and any(checkpoints.glob("epoch-*")):
            return [ranks[rank] for rank in range(count)]
        time.sleep(0.1)
    raise AssertionError("the ranks did not start to train")


def test_a_run_that_keeps_blocks_can_be_observed_and_repeated_by_the_simulator(tmp_path: Path) -> None:
    train(
        tmp_path, "--ranks", "2", "--epochs", "5", "--out", "run", "--model", "gat", "--method", "sar",
        "--set", "method.keep=[1]", "--set", "trace.enabled=true",
    )  # fmt: skip
    run = observe(tmp_path / "run")  # refuses a trace whose operations are not the program's
    assert run.workload.kept_layers == (1,)
    assert "kept 1" in run.configuration.model
