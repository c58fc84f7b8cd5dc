"""The closed loop against plain training and against a grid of what one might have tried by hand, all of it really run.

    python -m benchmarks.planner_loop GRAPH.npz ... --ranks 4 --link 200mbit --out benchmarks/results --work FOLDER

For each graph `halocast tune` traces plain training (no lossless savings, 32 bits) and one quantised run, plans, tries the
plan once and trains with it. The grid is uniform widths 2, 4, 8, 16, 32 x METIS cut and volume x all lossless savings or none,
each run by itself. Then plain, plain with all savings, the grid's best and the plan take turns, several times: factors and
ratios are of the medians of those turns. An epoch's time is the median after the first two epochs of a run. Accuracy
(`--seeds`) is the test metric after `--epochs` epochs, plan beside plain, on the loopback.

What is in `--work` is not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.adaqp_accuracy import footer

from halocast.cli.console import Console
from halocast.cli.tune import ALL_SAVINGS, NO_SAVINGS, Tuning
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.planned import follow
from halocast.runtime.run import train
from halocast.simulator.planner.search import Goal
from halocast.traces.plan import read_plan
from halocast.traces.trace import read_trace

WIDTHS = (2, 4, 8, 16, 32)
PARTITIONS = ("cut", "volume")
NAME = "planner-loop"


def document(graph: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a graph share."""
    return {
        "graph": str(graph),
        "ranks": options.ranks,
        "hosts": f"shaped:{options.link}",
        "model": {"layer": options.model, "layers": 3, "hidden": options.hidden, "norm": "layer", "dropout": 0.5},
        "training": {
            "epochs": options.short,
            "learning_rate": 0.01,
            "evaluate_every": 0,
            "checkpoint_every": 0,
        },
    }


def grid() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what it changes) of every combination."""
    for bits, objective, savings in product(WIDTHS, PARTITIONS, (True, False)):
        method: dict[str, Any] = {"name": "full"} if bits == 32 else {"name": "adaqp", "bits": bits}
        method["exact"] = ALL_SAVINGS if savings else NO_SAVINGS
        name = f"{bits} bits, {objective}, {'all savings' if savings else 'no savings'}"
        yield name, {"method": method, "partition": {"objective": objective}}


def measure(config: RunConfig, folder: Path) -> float:
    """Seconds of an epoch of a run; taken from `folder` where it was run before."""
    if not (folder / "result.json").is_file():
        train(config, folder, force=folder.exists())
    return epoch_seconds(folder)


def epoch_seconds(folder: Path) -> float:
    table = pd.read_csv(folder / "metrics.csv")
    return float(table.loc[table["epoch"] >= 2, "epoch_seconds"].median())


def exchange_share(folder: Path) -> float:
    """Of plain training's epochs: posting exchanges and waiting for them, mean over ranks."""
    spans = read_trace(folder / "trace").spans
    spans = spans[(spans["phase"] == "train") & (spans["epoch"] >= 2) & (spans["stream"] == "compute")]
    waiting = spans[((spans["op"] == "Wait") & (spans["peer"] >= 0)) | (spans["op"] == "Exchange")]
    begin, end = spans.groupby(["rank", "epoch"])["start_ns"].min(), (spans["start_ns"] + spans["wall_ns"])
    whole = end.groupby([spans["rank"], spans["epoch"]]).max() - begin
    return float((waiting.groupby(["rank", "epoch"])["wall_ns"].sum() / whole).median())


def in_turns(graph: Path, options: argparse.Namespace, work: Path, best: dict[str, Any]) -> dict[str, float]:
    """Medians of runs that take turns: plain, plain with all savings, the grid's best, the plan."""
    shared = document(graph, options)
    plan = work / "tune" / "plan"
    planned = follow({key: value for key, value in shared.items() if key != "model"}, read_plan(plan), str(plan))
    runs = {
        "plain": {**shared, "method": {"name": "full", "exact": NO_SAVINGS}},
        "savings": {**shared, "method": {"name": "full", "exact": ALL_SAVINGS}},
        "grid": {**shared, **best},
        "plan": planned,
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.turns):
        for name, each in runs.items():
            found[name].append(measure(resolve(each, "benchmark"), work / f"turn-{turn}-{name}"))
    return {name: statistics.median(values) for name, values in found.items()}


def accuracies(graph: Path, options: argparse.Namespace, work: Path) -> list[tuple[float, float]]:
    """(plain, plan) for each seed."""
    shared = document(graph, options)
    shared["hosts"] = "local"
    shared["trace"] = {"enabled": False}
    shared["training"] = {**shared["training"], "epochs": options.epochs}
    plan = work / "tune" / "plan"
    planned = follow({key: value for key, value in shared.items() if key != "model"}, read_plan(plan), str(plan))
    planned["method"]["reassign_every"] = max(1, options.epochs // 5) if planned["method"].get("reassign_every") else 0
    found = []
    for seed in range(options.seeds):
        scores = []
        plain = {**shared, "method": {"name": "full", "exact": NO_SAVINGS}}
        for name, each in (("plain", plain), ("plan", planned)):
            folder = work / f"seed-{seed}-{name}"
            measure(resolve({**each, "seed": seed}, "benchmark"), folder)
            scores.append(json.loads((folder / "result.json").read_text())["accuracy"]["test"])
        found.append((scores[0], scores[1]))
    return found


def study(graph: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one graph."""
    work = options.work / f"{graph.stem}-{options.ranks}-{options.link}"
    shared = document(graph, options)
    config = resolve({**shared, "training": {**shared["training"], "epochs": options.long}}, "benchmark")
    outcome = Tuning(config, Goal(), work / "tune", Console()).run()
    measured: dict[str, float] = {}
    for number, (name, changes) in enumerate(grid()):
        measured[name] = measure(resolve({**shared, **changes, "trace": {"enabled": False}}, "grid"), work / f"grid-{number}")
    best = min(measured, key=measured.__getitem__)
    turns = in_turns(graph, options, work, dict(grid())[best])
    scores = accuracies(graph, options, work) if options.seeds else []
    forecast = outcome.plan.forecast
    trained = {"training": outcome.seconds, "turns": turns["plan"]}
    return {
        "graph": graph.stem,
        "ranks": options.ranks,
        "link": options.link,
        "exchange_share": exchange_share(work / "tune" / "plain"),
        "plan": outcome.plan.why.partition(";")[0],
        "stages": outcome.spent,
        "forecast": [forecast.epoch_seconds, forecast.low, forecast.high],
        "trained": trained,
        "grid": measured,
        "best": best,
        "turns": turns,
        "accuracy": scores,
    }


def table(found: list[Mapping[str, Any]]) -> str:
    lines = [
        "| graph | ranks | exchange | plain, ms | with savings | the plan | × plain | grid's best, ms | plan / best "
        "| forecast, ms | error | inside | accuracy, plan − plain |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for each in found:
        turns, (value, low, high) = each["turns"], each["forecast"]
        measured = each["trained"]["training"]
        gained = [100.0 * (after - before) for before, after in each["accuracy"]]
        plain, best, plan = turns["plain"], turns["grid"], turns["plan"]
        accuracy = f"{np.mean(gained):+.2f} ± {np.std(gained) / max(1, len(gained)) ** 0.5:.2f}" if gained else ""
        lines.append(
            f"| {each['graph']} | {each['ranks']} | {100 * each['exchange_share']:.0f} % | {1e3 * plain:.0f} "
            f"| {plain / turns['savings']:.1f} × | {1e3 * plan:.1f} | **{plain / plan:.1f}** "
            f"| {1e3 * best:.1f} ({each['best']}) | **{plan / best:.3f}** "
            f"| {1e3 * value:.1f} [{1e3 * low:.0f}, {1e3 * high:.0f}] | {100 * (value / measured - 1):+.1f} % "
            f"| {'yes' if low <= measured <= high else 'no'} | {accuracy} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--short", type=int, default=8, help="epochs of each run that is timed")
    parser.add_argument("--long", type=int, default=20, help="epochs of the tuned training")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100, help="of the runs whose accuracy is compared")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown file and its JSON")
    options = parser.parse_args()
    found: list[Mapping[str, Any]] = []
    for graph in options.graphs:
        found.append(study(graph, options))
        print(table(found[-1:]), flush=True)
        options.work.mkdir(parents=True, exist_ok=True)
        (options.work / f"{graph.stem}-{options.ranks}.json").write_text(json.dumps(found[-1], indent=1))
    if options.out:
        write(options, found)


def write(options: argparse.Namespace, found: list[Mapping[str, Any]]) -> None:
    errors = [abs(each["forecast"][0] / each["trained"]["training"] - 1) for each in found]
    inside = [each["forecast"][1] <= each["trained"]["training"] <= each["forecast"][2] for each in found]
    ratio = statistics.median(each["turns"]["plan"] / each["turns"]["grid"] for each in found)
    spent = [sum(value for name, value in each["stages"].items() if name != "training") for each in found]
    summary = (
        f"Forecasts of the plans: median error {100 * statistics.median(errors):.1f} %, inside their interval {sum(inside)} of "
        f"{len(inside)}. Plan / grid's best: median {ratio:.3f}. The loop before training: {statistics.median(spent):.0f} s in "
        "the median."
    )
    plans = "\n".join(f"- {each['graph']}, {each['ranks']} ranks: {each['plan']}" for each in found)
    settings = {
        name: getattr(options, name)
        for name in ("ranks", "link", "model", "hidden", "short", "long", "turns", "seeds", "epochs")
    }
    stem = f"{NAME}-{options.ranks}-{datetime.date.today().isoformat()}"
    options.out.mkdir(parents=True, exist_ok=True)
    text = [f"# The closed loop on {options.ranks} ranks", table(found), summary, plans, footer(settings)]
    (options.out / f"{stem}.md").write_text("\n\n".join(text))
    (options.out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
