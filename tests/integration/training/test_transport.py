"""gloo between real processes: messages, sums, time stamps, host staging, and a port that is taken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from halocast.runtime.launch import launch_local

HERE = Path(__file__).parent


@pytest.mark.parametrize("ranks", [2, 3])
def test_messages_and_sums_arrive_staged_or_not(ranks: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    launch_local("transport_rank", [], ranks=ranks, log_folder=tmp_path, environment={"PYTHONPATH": path}, timeout_s=60)


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = subprocess.run(
            [
                sys.executable,
                "-m",
                "halocast",
                "train",
                "generated:nodes=60,degree=4",
                "--ranks",
                "2",
                "--set",
                f"port={port}",
            ],
            cwd=tmp_path,
            env={**os.environ, "HALOCAST_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert finished.returncode == 2
    line = finished.stderr.strip().splitlines()[-1]
    assert line.startswith("halocast: ")
    assert str(port) in line


def test_the_same_command_is_a_rank_under_torchrun(tmp_path: Path) -> None:
    command = [
        "train",
        "generated:nodes=300,degree=6,features=8",
        "--epochs",
        "3",
        "--out",
        "run",
        "--json",
    ]
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "halocast", *command],
        cwd=tmp_path,
        env={**os.environ, "HALOCAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert '"ranks": 2' in finished.stdout
    assert (tmp_path / "run" / "result.json").is_file()
    assert len(list((tmp_path / "run" / "trace").glob("spans-r00001-*.parquet"))) >= 1
