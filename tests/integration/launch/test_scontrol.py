"""Slurm's own tool is asked for the host names where it is there, and done without where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from halocast.runtime.launch import detect_launch_environment

SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODELIST": "node[3-4]",
}


@pytest.mark.parametrize(
    ("script", "host"),
    [
        ('test "$1 $2 $3" = "show hostnames node[3-4]" && printf "alpha\\nbeta\\n"', "alpha"),
        ("echo broken >&2; exit 1", "node3"),
        ("exit 0", "node3"),
    ],
)
def test_the_first_host_is_the_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, host: str) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\n{script}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    context = detect_launch_environment(SLURM)
    assert context is not None
    assert context.master_address == host
