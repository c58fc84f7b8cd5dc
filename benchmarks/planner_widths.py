"""How fast widths are chosen, and how close to the optimum: `python -m benchmarks.planner_widths --out benchmarks/results`.

Random messages with AdaQP's variance and the wire format's lengths (docs/wire-format.md). A million of them by price, against
a budget; then smaller instances also by HiGHS' mixed-integer solver, one core each.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.aggregate import processor
from benchmarks.simulator_speed import taken
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from halocast.simulator.planner.widths import Choices, within_bytes
from halocast.traces.wire import WIDTHS, record_bytes

DIMS = (16, 32, 64, 100, 128, 602)
MEAN_BITS = 3
TIME_LIMIT = 300.0
"""Seconds after which HiGHS gives up."""


def messages(count: int, seed: int = 0) -> Choices:
    """Random dims, rows and ranges."""
    random = np.random.default_rng(seed)
    rows, dims = random.integers(1, 400, count), random.choice(DIMS, count)
    record = {dim: np.array([record_bytes(bits, dim, one_sided=False) for bits in WIDTHS], dtype=np.float64) for dim in DIMS}
    size = np.stack([record[dim] for dim in DIMS])[np.searchsorted(DIMS, dims)] * rows[:, None]
    error = np.array([0.0 if bits == 32 else 1.0 / (2.0**bits - 1.0) ** 2 for bits in WIDTHS])
    beta = random.lognormal(0.0, 2.0, count) * rows
    return Choices(WIDTHS, size, beta[:, None] * error[None, :])


def budget_of(table: Choices) -> float:
    """The bytes of `MEAN_BITS` for everything."""
    return float(table.bytes[:, WIDTHS.index(MEAN_BITS)].sum())


def by_integers(table: Choices, budget: float) -> float:
    """HiGHS' least variance. Raises SystemExit where it finds none in `TIME_LIMIT`."""
    count, widths = table.bytes.shape
    one_each = LinearConstraint(sparse.kron(sparse.eye(count), np.ones((1, widths))), 1.0, 1.0)
    fits = LinearConstraint(sparse.csr_array(table.bytes.reshape(1, -1) / budget), -np.inf, 1.0)
    scale = float(table.variance.max())
    found = milp(
        table.variance.ravel() / scale, constraints=[one_each, fits], integrality=np.ones(count * widths),
        bounds=Bounds(0.0, 1.0), options={"mip_rel_gap": 1e-4, "time_limit": TIME_LIMIT},
    )  # fmt: skip
    if found.x is None:
        raise SystemExit(f"HiGHS found nothing for {count} messages in {TIME_LIMIT:.0f} s")
    return float(found.fun * scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown file")
    options = parser.parse_args()
    lines = [
        "| messages | by price s | HiGHS s | ratio | variance over HiGHS' | gap to the bound |",
        "| ---: |" + " ---: |" * 5,
    ]
    for count in (100, 1_000, 10_000, 1_000_000):
        table = messages(count)
        budget = budget_of(table)

        def choose(table: Choices = table, budget: float = budget) -> Any:
            return within_bytes(Choices(table.widths, table.bytes, table.variance), budget)

        seconds, found = taken(choose, 3 if count > 10_000 else 7)
        slow, over = "", ""
        if count <= 10_000:
            whole, least = taken(lambda table=table, budget=budget: by_integers(table, budget), 1)
            slow, over = f"{whole:.2f} | {whole / seconds:.0f}", f"{found.variance / least:.6f}"
        lines.append(f"| {count:,} | {seconds:.4f} | {slow or ' | '} | {over} | {found.gap:.1e} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        today = datetime.date.today().isoformat()
        head = [f"# Choosing widths, {today}", f"{processor()}; nine widths each; the bytes of {MEAN_BITS} bits for all."]
        (options.out / f"planner-widths-{today}.md").write_text("\n\n".join([*head, "\n".join(lines)]) + "\n")


if __name__ == "__main__":
    main()
