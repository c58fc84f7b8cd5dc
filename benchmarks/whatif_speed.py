"""How long a grid takes: `python -m benchmarks.whatif_speed COSTS --out benchmarks/results`.

    halocast calibrate traces/samples --out costs.json

More than 10,000 scenarios of the sample runs' graph on 2 to 64 ranks, a device each, by one call of `halocast whatif`, Python's
own start included; then one scenario at a time from an `Evaluator` that knows the programs, as a live page asks it. CPU seconds
do not count what else the machine does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.aggregate import processor

from halocast.cli.capacity import open_evaluator
from halocast.simulator.costs import Costs
from halocast.simulator.whatif import read_whatif

DATA = Path(__file__).resolve().parent.parent / "traces/samples/generated-2-100mbit-full-cut/0/config.toml"
GRID = f"""
data = "{DATA}"
epochs = 500

[cluster]
ranks = "2..64 +2"
device = ["V100", "A100", "H100"]
network = [
  "ethernet-10g", "ethernet-25g", "ethernet-100g", "ethernet-200g", "ethernet-400g", "infiniband-hdr", "infiniband-ndr",
]
transport = ["nccl", "gloo"]

[training]
method = ["full", "adaqp"]
bits = [2, 4, 8]

[prices]
currency = "EUR"
V100 = [0.5, 1.0]
A100 = [1.0, 2.0]
H100 = [2.0, 4.0]

[filters]
memory = "device"
deadline = "10s"
budget = 0.5
"""
ASKED_SECONDS, ASKED_MOVE_MS = 150.0, 200.0
"""Asked for: 10,000 scenarios, and one scenario of programs that are known."""
RANKS = (4, 16, 64)


def sweep(costs: Path, jobs: int, sample: int | None) -> dict[str, Any]:
    """The whole command."""
    with tempfile.TemporaryDirectory() as folder:
        grid, out = Path(folder) / "grid.toml", Path(folder) / "out"
        grid.write_text(GRID)
        command = [sys.executable, "-m", "halocast", "whatif", str(grid), "--costs", str(costs), "--out", str(out)]
        command += ["--jobs", str(jobs), *(["--sample", str(sample)] if sample else [])]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = len(read_whatif(out).table)
        size = (out / "scenarios.parquet").stat().st_size
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"scenarios": rows, "jobs": jobs, "seconds": seconds, "cpu_seconds": cpu, "parquet_bytes": size}


def moves(costs: Path, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of one row by ranks: the first, which makes the programs, and others on networks not seen before."""
    evaluator = open_evaluator(tomllib.loads(GRID), Costs.load(costs), "grid")
    rows = []
    for ranks in RANKS:
        taken = []
        for step in range(repeats + 1):
            begin = time.perf_counter()
            evaluator.row({"ranks": ranks, "method": "adaqp", "bits": 4, "network": f"{10 + step}gbit"})
            taken.append(1e3 * (time.perf_counter() - begin))
        row = {"ranks": ranks, "first": taken[0], "median": statistics.median(taken[1:]), "worst": max(taken[1:])}
        print(row, flush=True)
        rows.append(row)
    return rows


def page(setting: dict[str, Any], found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    load, after = (", ".join(map(str, setting[when])) for when in ("load average", "load average after"))
    lines = [
        f"# The speed of what-if sweeps, {setting['date']}",
        f"{setting['processor']}, {setting['cores']} cores; load average {load} before (other work), {after} after.",
        f"* {found['scenarios']:,} scenarios on {found['jobs']} processes (10,000 in ≤ {ASKED_SECONDS:.0f} s): "
        f"{found['seconds']:.0f} s, {found['cpu_seconds']:.0f} s of CPU; {found['parquet_bytes'] / 1e6:.1f} MB of rows.",
        f"* One scenario of known programs (≤ {ASKED_MOVE_MS:.0f} ms), in ms:",
        "| ranks | first, programs made | others, median | worst |\n| ---: | ---: | ---: | ---: |\n"
        + "\n".join(f"| {row['ranks']} | {row['first']:.0f} | {row['median']:.1f} | {row['worst']:.1f} |" for row in rows),
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path, help="a cost file of `halocast calibrate`, with ceilings")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sample", type=int, help="so many scenarios only, to try the benchmark out")
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown and JSON file")
    options = parser.parse_args()
    setting = {"date": datetime.date.today().isoformat(), "processor": processor(), "cores": os.cpu_count(),
               "load average": [round(load, 2) for load in os.getloadavg()]}  # fmt: skip
    found = sweep(options.costs, options.jobs, options.sample)
    print(found, flush=True)
    setting["load average after"] = [round(load, 2) for load in os.getloadavg()]
    rows = moves(options.costs, options.repeats)
    text = page(setting, found, rows)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"whatif-speed-{setting['date']}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps({"setting": setting, "sweep": found, "moves": rows}, indent=1) + "\n")
        print(f"written: {stem}.md, {stem}.json")


if __name__ == "__main__":
    main()
