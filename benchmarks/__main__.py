"""``make bench``: what halocast's own environment can measure; results go to ``benchmarks/results``, dated."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

from halocast.runtime.testbed import testbed_available

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    today = date.today().isoformat()
    commands = {
        "neighbourhood sums": ["-m", "benchmarks.aggregate", "--out", str(RESULTS)],
        "quantised messages, against copying": ["-m", "benchmarks.codec", "--quick", "--out", str(RESULTS)],
        "ranks, savings, tracing, memory": ["-m", "benchmarks.scaling", "--out", str(RESULTS / f"scaling-{today}.json")],
    }
    if testbed_available() is None:
        adaqp = ["-m", "benchmarks.adaqp", "debian", "--rates", "4=600mbit", "--repeats", "1", "--out", str(RESULTS)]
        commands["AdaQP beside plain training on shaped links"] = adaqp
    for what, command in commands.items():
        print(f"== {what}", flush=True)
        if subprocess.run([sys.executable, *command], check=False).returncode:
            return 1
    print(f"results in {RESULTS}; beside other frameworks: see benchmarks/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
