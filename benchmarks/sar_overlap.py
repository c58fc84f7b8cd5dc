"""Does prefetching hide the messages of sequential aggregation? `python -m benchmarks.sar_overlap --out FILE` (root).

A dense random graph, GAT with rematerialisation, four ranks. First without shaped links: what an epoch computes. Then links are
shaped so that the messages of an epoch, one after the other, take as long as the remote blocks' share of that, and the epoch is
measured with nothing ahead and with one round ahead. Runs take turns; ratios are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.sar_memory import GRAPH, SAVINGS


def epoch(ranks: int, hosts: str, prefetch: int, epochs: int, folder: Path) -> dict[str, Any]:
    settings = [f"method.exact.{each}=false" for each in SAVINGS]
    settings += ["partition.method=random", f"method.prefetch={prefetch}", "model.options.heads=2", "model.dropout=0"]
    settings += ["training.evaluate_every=0", "training.checkpoint_every=0"]
    command = [
        *(sys.executable, "-m", "halocast", "train", GRAPH.format(classes=64), "--model", "gat", "--method", "sar"),
        *("--ranks", str(ranks), "--hosts", hosts, "--epochs", str(epochs), "--out", str(folder / "run"), "--force", "--json"),
        *(part for each in settings for part in ("--set", each)),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr.strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    ranks = arguments.ranks
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = epoch(ranks, "local", 0, arguments.epochs, folder)
        compute = first["epoch_seconds"]["median"]
        sent = first["exchange_bytes_per_epoch"] / ranks
        rate = round(8 * sent / (compute * (ranks - 1) / ranks) / 1e6)
        for _ in range(arguments.repeats):
            compute = epoch(ranks, "local", 0, arguments.epochs, folder)["epoch_seconds"]["median"]
            delays = 8 * sent / (rate * 1e6)
            row = {"compute_ms": 1e3 * compute, "delays_ms": 1e3 * delays, "rate_mbit": rate}
            for prefetch in (0, 1):
                found = epoch(ranks, f"shaped:{rate}mbit", prefetch, arguments.epochs, folder)["epoch_seconds"]["median"]
                row |= {f"epoch_ms_{prefetch}_ahead": 1e3 * found, f"ratio_{prefetch}_ahead": found / (compute + delays)}
            rows.append(row)
            print(row, flush=True)
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print({"median of": len(rows), **{key: round(value, 3) for key, value in medians.items()}})
    if arguments.out:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        document = {"date": date.today().isoformat(), "machine": machine, "ranks": ranks, "rows": rows, "medians": medians}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
