"""A graph that does not fit: plain training and `--memory` under one cap (root): `python -m benchmarks.memory_cap --out FILE`.

A control group caps what a run's processes take together. Plain training must die of it with one clear line, and
`halocast train --memory` must finish under the same cap, saying what it chose. Exits 3 where it is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halocast.runtime.memory_limit import human_size, parse_size

GRAPH = (
    "generated:nodes=60000,degree=30,degree_exponent=50,communities=1,community_mixing=0,homophily=0.9,classes=16,"
    "features=64,seed=0"
)
CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def capped(size: int) -> Iterator[Path]:
    """A control group whose processes take at most `size` bytes together, of either version."""
    second = (CGROUP / "cgroup.controllers").is_file()
    folder = (CGROUP if second else CGROUP / "memory") / f"halocast-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(size))
        yield folder
    finally:
        folder.rmdir()


def run(group: Path, arguments: list[str]) -> dict[str, Any]:
    """Train in the group; what became of it."""
    command = shlex.join([sys.executable, "-m", "halocast", "train", GRAPH, *arguments, "--json"])
    shell = f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))}; exec {command}"
    finished = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    last = finished.stderr.strip().splitlines()[-1:] or [""]
    found: dict[str, Any] = {"arguments": arguments, "exit_code": finished.returncode, "last_line": last[0]}
    if finished.returncode == 0:
        result = json.loads(finished.stdout)
        found |= {key: result.get(key) for key in ("method", "memory", "peak_bytes", "epoch_seconds", "loss")}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", default="3.1GB")
    parser.add_argument("--memory", default="390MB")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = parse_size(arguments.cap)
    common = [
        *("--model", "gat", "--hidden", str(arguments.hidden), "--ranks", str(arguments.ranks)),
        *("--epochs", str(arguments.epochs), "--set", "partition.method=random", "--force"),
    ]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(  # the partition is made, and cached, without a cap
            [sys.executable, "-m", "halocast", "train", GRAPH, *common, "--dry-run"], check=True, capture_output=True
        )
        for name, extra in (("plain", ["--method", "full"]), ("--memory", ["--memory", arguments.memory])):
            with capped(size) as group:
                rows[name] = run(group, [*common, *extra, "--out", str(Path(folder) / name.strip("-"))])
            shown = rows[name]
            print(f"{name} under {human_size(size)}: exit code {shown['exit_code']}; {shown['last_line']}", flush=True)
            if shown["exit_code"] == 0:
                print(f"  {shown['memory']}; peaks {[human_size(each) for each in shown['peak_bytes']]}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"cap_bytes": size, "graph": GRAPH, "runs": rows}, indent=1) + "\n")
    plain, fitted = rows["plain"], rows["--memory"]
    return 0 if plain["exit_code"] == 1 and "out of memory" in plain["last_line"] and fitted["exit_code"] == 0 else 3


if __name__ == "__main__":
    sys.exit(main())
