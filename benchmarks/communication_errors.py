"""How long an error in one rank's communication takes to reach all: `python -m benchmarks.communication_errors --out FILE`.

One of the ranks fails in each way of `tests.support.faulty_rank`, in the set-up or in mid-epoch. Told are the seconds from that
moment to the end of the last rank, under halocast's launcher and with ranks that were started one by one (as srun does), where
nobody ends the others for them. Exits 3 where any takes 5 s or more, or a rank does not name the one at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.faulty_rank import FAULTS

from halocast.runtime import launch, run
from halocast.runtime.config import resolve
from halocast.traces.trace import cpu_name

GRAPH = "generated:nodes=4000,degree=10,features=32,classes=6,communities=20,seed=5"
VICTIM = 1
AFTER = 40
"""Exchanges, or sums, until it fails: some epochs."""
PATIENCE_S = 60.0
"""For all to end, from the error on; before it ranks take what a busy machine lets them."""
LIMIT_S = 5.0


def free_port() -> int:
    """A TCP port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ranks_alone(arguments: list[str], ranks: int, environment: dict[str, str]) -> list[subprocess.Popen[str]]:
    """Every rank with torchrun's environment, and nobody to end it."""
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.faulty_rank", *arguments],
            env={**environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def train_alone(method: str, ranks: int, folder: Path) -> tuple[float | None, list[str]]:
    """When the last rank had ended (None: not within the patience), and what each said last."""
    arguments = ["train", GRAPH, "--ranks", str(ranks), "--method", method, "--epochs", "2000", "--hidden", "32"]
    processes = ranks_alone([*arguments, "--out", str(folder / "run")], ranks, dict(os.environ))
    failed = Path(os.environ["FAULT_FILE"])
    try:
        while any(each.poll() is None for each in processes):
            if failed.exists() and time.time() > failed.stat().st_mtime + PATIENCE_S:
                break
            time.sleep(0.01)
        ended = None if any(each.poll() is None for each in processes) else time.time()
    finally:
        for process in processes:
            process.kill()
    return ended, [(each.communicate()[1].strip().splitlines() or [""])[-1] for each in processes]


def train_launched(method: str, ranks: int, folder: Path) -> tuple[float | None, list[str]]:
    """The same under halocast's launcher, which speaks for all."""

    def launch_faulty(module: str, arguments: list[str], **settings: Any) -> None:
        launch.launch_local("tests.support.faulty_rank", arguments, **settings)

    document = {
        "graph": GRAPH,
        "ranks": ranks,
        "method": {"name": method},
        "model": {"hidden": 32},
        "training": {"epochs": 2000},
    }
    with mock.patch.object(run, "launch_local", launch_faulty):
        try:
            run.train(resolve(document, "benchmark"), folder / "run")
        except launch.RankFailure as failure:
            return time.time(), [str(failure)]
    return None, []


LAUNCHES: dict[str, Callable[[str, int, Path], tuple[float | None, list[str]]]] = {
    "halocast": train_launched,
    "ranks alone": train_alone,
}


def measure(launched: str, method: str, fault: str, ranks: int) -> dict[str, Any]:
    """One run that fails: the seconds from the error to the end of all, and what they said."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "failed"
        variables = {"FAULT": fault, "FAULT_RANK": str(VICTIM), "FAULT_AFTER": str(AFTER), "FAULT_FILE": str(file)}
        with mock.patch.dict(os.environ, variables):
            ended, said = LAUNCHES[launched](method, ranks, Path(name))
        seconds = None if ended is None or not file.exists() else ended - file.stat().st_mtime
    return {"launch": launched, "method": method, "fault": fault, "seconds": seconds, "said": said}


def is_as_wanted(row: dict[str, Any]) -> bool:
    """Whether all had ended in time, each (but one that was killed or aborted itself) naming the rank at fault."""
    silent = {"killed", "sockets"}
    lines = [line for rank, line in enumerate(row["said"]) if not (row["fault"] in silent and rank == VICTIM)]
    return row["seconds"] is not None and row["seconds"] < LIMIT_S and all(f"rank {VICTIM}" in line for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for launched in LAUNCHES:
        for method in ("full", "sar"):
            for fault in FAULTS:
                rows.append(measure(launched, method, fault, options.ranks))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "ranks": options.ranks,
        "not_as_wanted": [row for row in rows if not is_as_wanted(row)],
        "rows": rows,
    }
    print(json.dumps(document, indent=1))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 3 if document["not_as_wanted"] else 0


if __name__ == "__main__":
    sys.exit(main())
