"""Real runs under a cap that their buffers do not fit in."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.communication_errors import free_port

CAP = 6_000_000_000
"""Address space: more than the interpreter and torch reserve, less than a rank's buffers (which nothing ever touches)."""
WIDE = ["generated:nodes=200000,degree=2,features=8,classes=4,seed=1", "--layers", "2", "--hidden", "8000", "--epochs", "2"]


def under_cap(*arguments: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "halocast", "train", *WIDE, *arguments],
        cwd=folder,
        env={**os.environ, "HALOCAST_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (CAP, CAP)),
    )


LINE = (
    r"ran out of memory: \d.* GB more were asked for with .* GB held; the cap is 6\.0 GB \(ulimit -v\); "
    r"rank [01] needs about (?P<needs>\S+) GB beside what Python and torch take \(--dry-run\): "
    r"use more --ranks, or --method sar"
)


@pytest.mark.timeout(180)
def test_a_run_that_does_not_fit_says_so_in_one_line(tmp_path: Path) -> None:
    process = under_cap("--ranks", "2", "--out", "run", folder=tmp_path)
    out, error = process.communicate(timeout=150)
    assert process.returncode == 1
    lines = [line for line in error.splitlines() if line.startswith("halocast: ")]
    assert len(lines) == 1
    found = re.match(rf"halocast: rank [01] {LINE}; logs in run/logs; ", lines[0])
    assert found, lines
    assert "Traceback" not in out + error
    dry = under_cap("--ranks", "2", "--dry-run", "--json", folder=tmp_path)
    estimate = json.loads(dry.communicate(timeout=100)[0])
    needs = max(rank["memory"] for rank in estimate["ranks"])
    assert float(found["needs"]) == pytest.approx(needs / 1e9, abs=0.06)
    assert needs + 1e9 > CAP  # it was right to refuse


@pytest.mark.timeout(180)
def test_ranks_on_their_own_say_it_too(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [under_cap("--out", "run", folder=tmp_path, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    lines = [rank.communicate(timeout=150)[1].splitlines()[-1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    for rank, line in enumerate(lines):
        assert re.match(rf"halocast: rank {rank}: (stopped, because rank [01] failed: )?{LINE}", line), lines
