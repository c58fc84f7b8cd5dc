"""``make bench``: what halocast's own environment can measure; results go to ``benchmarks/results``, dated."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    today = date.today().isoformat()
    commands = {
        "neighbourhood sums": ["-m", "benchmarks.aggregate", "--out", str(RESULTS)],
        "ranks, savings, tracing, memory": ["-m", "benchmarks.scaling", "--out", str(RESULTS / f"scaling-{today}.json")],
    }
    for what, command in commands.items():
        print(f"== {what}", flush=True)
        if subprocess.run([sys.executable, *command], check=False).returncode:
            return 1
    print(f"results in {RESULTS}; beside other frameworks: see benchmarks/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
