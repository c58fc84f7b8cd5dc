"""Time to a target accuracy, everything counted: plain training, AdaQP as published, and `halocast tune`.

    python -m benchmarks.planner_race GRAPH.npz ... --ranks 4 --link 200mbit --out benchmarks/results --work FOLDER

The clock starts with the command and runs through loading, starting ranks, training and evaluating; for `tune` also through
tracing, calibrating, planning and trying. The target is `--share` of the best validation metric that plain training reaches;
what counts is the first evaluation that is at least as good. "With the plan at hand" leaves out what came before the training,
as every further training with the same plan does: against plain, against AdaQP. Plain and AdaQP (adaptive widths 2, 4, 8)
train without lossless savings, as published.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.adaqp_accuracy import footer
from benchmarks.planner_loop import document

from halocast.cli.console import Console
from halocast.cli.tune import NO_SAVINGS, Tuning
from halocast.runtime.config import resolve
from halocast.runtime.run import train
from halocast.simulator.planner.search import Goal

Curve = list[tuple[float, float]]
"""(seconds, validation metric) of every evaluation."""


class Clock(Console):
    """Notes when evaluations happened, and prints nothing."""

    def __init__(self, traced: int) -> None:
        super().__init__()
        self.traced = traced
        """Epochs of runs that are recorded only: their evaluations do not count."""
        self.curve: Curve = []
        self.began = time.perf_counter()

    def note(self, text: str) -> None:
        pass

    def training(self, epochs: int) -> Any:
        return _Progress(self, epochs)

    def event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "epoch" and "val" in event:
            self.curve.append((time.perf_counter() - self.began, event["val"]))


class _Progress:
    def __init__(self, clock: Clock, epochs: int) -> None:
        self._clock, self._counts = clock, epochs > clock.traced

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def __call__(self, event: dict[str, Any]) -> None:
        if self._counts:
            self._clock.event(event)


def reached(curve: Curve, target: float) -> float | None:
    """Seconds until the first evaluation that is at least as good."""
    return next((seconds for seconds, score in curve if score >= target), None)


def race(graph: Path, options: argparse.Namespace) -> dict[str, Curve]:
    """The curve of each way to train."""
    shared = document(graph, options)
    shared["training"] = {**shared["training"], "epochs": options.epochs, "evaluate_every": 5}
    work = options.work / f"race-{graph.stem}-{options.ranks}"

    def trained(name: str, method: dict[str, Any]) -> Curve:
        clock = Clock(0)
        train(resolve({**shared, "method": method}, "race"), work / name, emit=clock.event)
        return clock.curve

    def tuned() -> Curve:
        clock = Clock(options.traced)
        settings = {"trials": options.trials, "traced_epochs": options.traced, "partitions": options.partitions}
        Tuning(resolve(shared, "race"), Goal(), work / f"tune-{options.trials}-{options.traced}", clock, **settings).run()
        return clock.curve

    adaqp = {"name": "adaqp", "bits": "adaptive", "exact": NO_SAVINGS}
    return {
        "plain": kept(work / "plain.json", lambda: trained("plain", {"name": "full", "exact": NO_SAVINGS})),
        "AdaQP as published": kept(work / "adaqp.json", lambda: trained("adaqp", adaqp)),
        "tune": kept(work / f"tune-{options.trials}-{options.traced}.json", tuned),
    }


def before_training(work: Path) -> float:
    """Seconds that a tuning took until its training began."""
    stages = json.loads((work / "tune.json").read_text())["stages"]
    return float(sum(seconds for name, seconds in stages if name != "training"))


def kept(path: Path, run: Callable[[], Curve]) -> Curve:
    """A curve, from `path` where it was measured before."""
    if path.is_file():
        return [(float(seconds), float(score)) for seconds, score in json.loads(path.read_text())]
    path.parent.mkdir(parents=True, exist_ok=True)
    curve = run()
    path.write_text(json.dumps(curve) + "\n")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.995)
    parser.add_argument("--trials", type=int, default=0, help="of the plan, before it is trained")
    parser.add_argument("--traced", type=int, default=5, help="epochs of each recorded run")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.short = options.epochs
    lines = [
        "| graph | target (validation) | plain, s | AdaQP as published, s | tune, s | of it before training, s "
        "| against plain | against AdaQP | with the plan at hand |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    everything = {}
    for graph in options.graphs:
        curves = everything[graph.stem] = race(graph, options)
        target = options.share * max(score for _, score in curves["plain"])
        plain, published, tuned = (reached(curve, target) for curve in curves.values())
        shown = [f"{each:.1f}" if each is not None else "never" for each in (plain, published, tuned)]
        spent = before_training(options.work / f"race-{graph.stem}-{options.ranks}" / f"tune-{options.trials}-{options.traced}")
        ratios = [f"**{each / tuned:.2f} ×**" if each and tuned else "" for each in (plain, published)]
        again = [f"{each / (tuned - spent):.2f}" if each and tuned else "" for each in (plain, published)]
        columns = [graph.stem, f"{target:.4f}", *shown, f"{spent:.1f}", *ratios, " ×, ".join(again) + " ×"]
        lines.append(f"| {' | '.join(columns)} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = f"planner-race-{datetime.date.today().isoformat()}"
        shown = ("ranks", "link", "model", "hidden", "epochs", "share", "trials", "traced", "partitions")
        settings = {name: getattr(options, name) for name in shown}
        text = ["# Time to a target accuracy", "\n".join(lines), footer(settings)]
        (options.out / f"{stem}.md").write_text("\n\n".join(text))
        (options.out / f"{stem}.json").write_text(json.dumps(everything) + "\n")


if __name__ == "__main__":
    main()
