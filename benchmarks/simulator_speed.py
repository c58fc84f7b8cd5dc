"""What a simulated epoch costs: `python -m benchmarks.simulator_speed --out benchmarks/results`.

Ranks have a device each. One epoch is one call that yields its time and breakdown; lowering programs and arranging them as
arrays is timed beside it. All-to-all among 64 ranks (4,032 messages an exchange), 1,024 ranks with some 47 peers each in a 3-D
neighbourhood, thousands of different scenarios of at most 16 ranks on two processes; then the growth in ranks and layers.
Figures are medians of repeats; the event-driven engine runs once, and only up to `--event-ranks`. "Error" is the epoch's
against rates computed at every change (up to `EXACT_MESSAGES` messages).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from benchmarks.aggregate import processor
from matplotlib.figure import Figure
from tests.unit.simulator.parts import exchanged_bytes, lowered, neighbourhood, workload

from halocast.reports import figures
from halocast.simulator import engine
from halocast.simulator.costs import HostCosts, NetworkCosts
from halocast.simulator.engine import Machine, RankWork
from halocast.simulator.forecast import breakdown
from halocast.simulator.lockstep import Lockstep
from halocast.simulator.network import star
from halocast.traces.workload import ExactSavings

HOST = HostCosts(cores=1, gap_seconds=5e-6)
NETWORK = NetworkCosts(
    latency=1e-5, send_seconds=2e-6, receive_seconds=2e-6, byte_seconds=1e-11, reduce_step_seconds=5e-6, wake_seconds=2e-6
)
WIDTH, PEERS, LAYERS = 64, 40, 3
EXACT_MESSAGES = 50_000
"""An epoch with more messages is not simulated with rates at every change."""


def programs(ranks: int, peers: int, layers: int = LAYERS, bits: int = 0, seed: int = 0) -> list[RankWork]:
    dims = (WIDTH,) * layers + (16,)
    load = workload(neighbourhood(ranks, peers, seed), own=2000, dims=dims, exact=ExactSavings.none())
    return lowered(load, bits=bits, mean_seconds=1e-4, seed=seed)


def machine(work: Sequence[RankWork], share: float = 1.0) -> Machine:
    """Ports on which an epoch's messages take `share` of the time that its computing takes."""
    computing = float(np.mean([each.seconds.sum() for each in work]))
    return Machine(star(len(work), max(exchanged_bytes(list(work)), 1.0) / (share * computing)), HOST, NETWORK)


def taken(task: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Median seconds of a task, and what it returned."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = task()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def measure(ranks: int, peers: int, layers: int, repeats: int, event_ranks: int) -> dict[str, Any]:
    """One configuration: seconds of every stage."""
    lowering, work = taken(lambda: programs(ranks, peers, layers))
    arranging, program = taken(lambda: Lockstep.of(work))
    on = machine(work)

    def epoch() -> float:
        simulation = program.simulate(on)
        breakdown(simulation)
        return simulation.epoch_seconds

    epoch()  # the operations' components are looked up once
    seconds, found = taken(epoch, repeats)
    messages, exchanges = len(program.messages.bytes), len(np.unique(program.messages.exchange))
    met = round(messages / ranks / exchanges)
    row = {"ranks": ranks, "peers": met, "layers": layers, "messages": messages, "lowering": lowering, "arranging": arranging,
           "epoch": seconds}  # fmt: skip
    if messages <= EXACT_MESSAGES:
        row["error"] = found / program.simulate(on, window=0.0).epoch_seconds - 1.0
    if ranks <= event_ranks:
        row["event engine"], simulation = taken(lambda: engine.simulate(work, on))
        row["error against it"] = found / simulation.epoch_seconds - 1.0
    print({key: float(f"{value:.3g}") for key, value in row.items()}, flush=True)
    return row


def scenario(seed: int, *, by_events: bool = False) -> float:
    """Programs, costs and rate of their own: lowered, arranged and simulated. Seconds of the epoch."""
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(2, 17))
    work = programs(ranks, int(rng.integers(2, 17)), int(rng.integers(2, 4)), int(rng.choice([0, 2, 4, 8])), seed)
    on = machine(work, float(10 ** rng.uniform(-1.0, 1.0)))
    simulation = engine.simulate(work, on) if by_events else Lockstep.of(work).simulate(on)
    breakdown(simulation)
    return simulation.epoch_seconds


def sweep(count: int, jobs: int, event_count: int) -> dict[str, Any]:
    """Many scenarios; the event engine's share is measured on fewer and in one process."""
    parallel = joblib.Parallel(n_jobs=jobs)
    parallel(joblib.delayed(scenario)(seed) for seed in range(jobs))  # processes start and import
    seconds, epochs = taken(lambda: parallel(joblib.delayed(scenario)(seed) for seed in range(count)))
    slow, expected = taken(lambda: [scenario(seed, by_events=True) for seed in range(event_count)])
    errors = np.abs(np.array(epochs[:event_count]) / np.array(expected) - 1.0)
    row = {"scenarios": count, "processes": jobs, "seconds": seconds, "event engine, seconds a scenario": slow / event_count,
           "median error": float(np.median(errors)), "worst error": float(errors.max())}  # fmt: skip
    print(row, flush=True)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["ranks", "peers", "layers", "messages", "lowering s", "arranging s", "**epoch ms**", "event engine s", "error %",
            "error against it %"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    for row in rows:
        cells = [f"{row[key]:,}" for key in ("ranks", "peers", "layers", "messages")]
        cells += [f"{row['lowering']:.2f}", f"{row['arranging']:.3f}", f"{1e3 * row['epoch']:.1f}"]
        cells.append(f"{row['event engine']:.2f}" if "event engine" in row else "")
        cells += [f"{100 * row[key]:+.3f}" if key in row else "" for key in ("error", "error against it")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TARGETS = ((64, 20e-3), (1024, 0.5))
"""(ranks, seconds an epoch) asked for."""


def exponent(rows: list[dict[str, Any]], by: str, key: str = "epoch", least: int = 1) -> float:
    """The power of `by` that the seconds grow with, from its value `least` on."""
    points = np.array([(row[by], row[key]) for row in rows if key in row and row[by] >= least])
    return float(np.polyfit(np.log(points[:, 0]), np.log(points[:, 1]), 1)[0])


def picture(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure = Figure(figsize=(10.0, 4.4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    lines = (
        ("epoch", "compiled engine", figures.BLUE),
        ("arranging", "programs to arrays, once", figures.SKY),
        ("event engine", "SimPy", figures.ORANGE),
    )
    for axes, by in zip(panels, ("ranks", "layers"), strict=True):
        for key, label, colour in lines:
            points = [(row[by], 1e3 * row[key]) for row in rows[by] if key in row]
            if points:
                axes.loglog(*zip(*points, strict=True), marker="o", markersize=3.5, color=colour, label=label)
        ticks = sorted({row[by] for row in rows[by]})
        axes.set_xticks(ticks, [f"{each:,}" for each in ticks])
        axes.minorticks_off()
        axes.set_xlabel(by)
        axes.grid(color=figures.GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    ranks, seconds = zip(*TARGETS, strict=True)
    panels[0].plot(ranks, [1e3 * each for each in seconds], "_", color=figures.INK, markersize=14, label="asked for")
    power = exponent(rows["ranks"], "ranks", least=64)
    figures.headline(panels[0], "ranks", f"three layers; from 64 ranks on it grows with ranks to the power {power:.2f}")
    power = exponent(rows["layers"], "layers")
    figures.headline(panels[1], "layers", f"16 ranks; it grows with layers to the power {power:.2f}")
    panels[0].set_ylabel("ms for a simulated epoch")
    panels[0].legend(frameon=False, loc="lower right", fontsize=9)
    figure.savefig(path, dpi=150)


def described(setting: dict[str, Any]) -> str:
    load = ", ".join(map(str, setting["load average"]))
    return f"{setting['processor']}; medians of {setting['repeats']} repeats; load average {load}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--event-ranks", type=int, default=32, help="the event engine runs up to so many ranks")
    parser.add_argument("--scenarios", type=int, default=10_000)
    parser.add_argument("--event-scenarios", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown, JSON and PNG file")
    options = parser.parse_args()
    settled = (options.repeats, options.event_ranks)
    targets = [measure(64, 63, LAYERS, *settled), measure(1024, PEERS, LAYERS, *settled)]
    many = sweep(options.scenarios, options.jobs, options.event_scenarios)
    growth = {
        "ranks": [measure(ranks, PEERS, LAYERS, *settled) for ranks in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)],
        "layers": [measure(16, PEERS, layers, *settled) for layers in (2, 4, 8, 16)],
    }
    setting = {"date": datetime.date.today().isoformat(), "processor": processor(), "repeats": options.repeats,
               "load average": [round(load, 2) for load in os.getloadavg()]}  # fmt: skip
    verdict = "\n".join(
        [
            f"* one epoch of 64 ranks ≤ 20 ms: {1e3 * targets[0]['epoch']:.1f} ms",
            f"* one epoch of 1,024 ranks ≤ 0.5 s: {targets[1]['epoch']:.2f} s",
            f"* {many['scenarios']:,} scenarios of 2 to 16 ranks on {many['processes']} processes (10,000 in ≤ 120 s): "
            f"{many['seconds']:.0f} s, lowering and arranging included; the event engine would need "
            f"{many['event engine, seconds a scenario'] * many['scenarios'] / many['processes']:.0f} s. "
            f"Error against it: median {100 * many['median error']:.3f} %, worst {100 * many['worst error']:.3f} %",
        ]
    )
    print(verdict)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"simulator-speed-{setting['date']}"
        growing = table(growth["ranks"] + growth["layers"])
        parts = [f"# The simulator's speed, {setting['date']}", described(setting), verdict, table(targets)]
        parts += ["Growth in ranks and in layers:", growing, f"![growth]({stem.name}.png)"]
        stem.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
        document = {"setting": setting, "targets": targets, "sweep": many, "growth": growth}
        stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        picture(growth, stem.with_suffix(".png"))
        print(f"written: {stem}.md, {stem}.json, {stem}.png")


if __name__ == "__main__":
    main()
