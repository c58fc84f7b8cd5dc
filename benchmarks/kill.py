"""Kill a random rank at a random moment and resume, again and again: `python -m benchmarks.kill --times 50 --out FILE`.

After every kill: exactly one line of error that names the rank, no process of the run left, no network namespace left. In the
end the broken run's losses must equal an unbroken run's, bit for bit. Exits 3 where any of it is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

GRAPH = "generated:nodes=4000,degree=10,features=32,classes=6,communities=20,seed=5"
START_S = 5.0
"""Kills fall within so many seconds of a start: during loading, joining, training, checkpoints."""


def command(out: str, ranks: int, epochs: int, hosts: str) -> list[str]:
    return [
        *(sys.executable, "-m", "halocast", "train", GRAPH, "--ranks", str(ranks), "--epochs", str(epochs), "--out", out),
        *("--hosts", hosts, "--hidden", "32", "--set", "training.checkpoint_every=25", "--set", "timeout_seconds=60"),
    ]


def processes(marker: str) -> dict[int, int]:
    """Pid of every living process whose environment has the marker, by pid: its rank, −1 for the launcher."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker.encode() in environment and state != "Z":
            ranks = [int(each[5:]) for each in environment if each.startswith(b"RANK=")]
            found[int(entry.name)] = ranks[0] if ranks else -1
    return found


def namespaces() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.add(os.readlink(entry / "ns" / "net"))
            except OSError:
                continue
    return found


def kill_once(run: list[str], marker: str, environment: dict[str, str], dice: random.Random, ranks: int) -> dict[str, object]:
    """One start, one kill; what was wrong about it, and how long the rest took to stop. Empty "finished" if none was killed."""
    spaces = namespaces()
    started = time.monotonic()
    launcher = subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victim, due = dice.randrange(ranks), started + dice.uniform(0.3, START_S)
    pid = None
    while launcher.poll() is None and pid is None:
        if time.monotonic() >= due:
            pid = next((pid for pid, rank in processes(marker).items() if rank == victim), None)
        time.sleep(0.02)
    if pid is None:
        _, error = launcher.communicate()
        return {"finished": launcher.returncode == 0, "problems": [] if launcher.returncode == 0 else [error[-300:]]}
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _, error = launcher.communicate(timeout=60)
    stopped = time.monotonic() - killed
    lines = [line for line in error.splitlines() if line.startswith("halocast: ")]
    problems = []
    if not error.endswith(f"{lines[-1]}\n" if lines else "\n") or "Traceback" in error:
        problems.append(f"more than one line: {error[-300:]}")
    if launcher.returncode != 1 or len(lines) != 1 or f"rank {victim} was killed by signal 9" not in lines[0]:
        problems.append(f"exit {launcher.returncode}, lines {lines}")
    if left := processes(marker):
        problems.append(f"orphans {left}")
    if stale := namespaces() - spaces:
        problems.append(f"namespaces {stale}")
    return {"finished": False, "after_s": killed - started, "stopped_s": stopped, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6000)
    parser.add_argument("--hosts", default="local")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    problems: list[str] = []
    stops: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        marker = f"HALOCAST_KILL_TEST={folder}"
        environment = {**os.environ, "HALOCAST_KILL_TEST": folder, "HALOCAST_CACHE": f"{folder}/cache"}
        whole, broken = (
            command(f"{folder}/{name}", arguments.ranks, arguments.epochs, arguments.hosts) for name in ("whole", "broken")
        )
        subprocess.run(whole, env=environment, check=True, capture_output=True)
        kills, finished = 0, False
        while kills < arguments.times and not finished:
            resume = ["--resume"] if Path(f"{folder}/broken/config.toml").exists() else []
            answer = kill_once([*broken, *resume], marker, environment, dice, arguments.ranks)
            finished = bool(answer["finished"])
            kills += not finished
            problems += [str(each) for each in answer["problems"]]  # type: ignore[attr-defined]
            if "stopped_s" in answer:
                stops.append(float(str(answer["stopped_s"])))
            print(f"kill {kills}: {answer}", file=sys.stderr, flush=True)
        if not finished:
            subprocess.run([*broken, "--resume"], env=environment, check=True, capture_output=True)
        losses = [pd.read_csv(f"{folder}/{name}/metrics.csv")["loss"] for name in ("whole", "broken")]
        same = losses[0].tolist() == losses[1].tolist()
    document = {
        "kills": kills,
        "hosts": arguments.hosts,
        "ranks": arguments.ranks,
        "epochs": arguments.epochs,
        "problems": problems,
        "losses_equal_bit_for_bit": same,
        "seconds_to_stop": {"median": statistics.median(stops), "worst": max(stops)} if stops else {},
    }
    print(json.dumps(document, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 3 if problems or not same or kills < arguments.times else 0


if __name__ == "__main__":
    sys.exit(main())
