"""How fast the exact gradient vanishes in training with quantised messages, beside plain training.

    python -m benchmarks.adaqp_convergence GRAPH.npz ... --models gcn sage --seeds 3 --out benchmarks/results

AdaQP's convergence theorem (Wan, Zhao and Wu, MLSys 2023, section 4) bounds the mean over the first T epochs of the squared
norm of the exact gradient by a multiple of 1 / T, and a term of the variance that rounding adds. Training is as the
theorem has it: full-batch gradient descent with a constant rate, without momentum, weight decay and dropout. After each
epoch a second session of plain training takes over the parameters and computes the exact gradient there, without a step.

The rate is the largest of `--rates` with which plain training's loss falls in every epoch, for every seed. Ranks are threads
that take turns, as in benchmarks.adaqp_accuracy.

How to read the ratios: the sum of the squared norms can only grow, so that a mean over twice as many epochs is at least half
of the mean before. A ratio of 0.5 is the best there is, and means that the sum has stopped growing: faster than c / T. A
ratio towards 1 is a gradient that does not vanish. The late mean, over the second half of all epochs, has no such limit and
shows the floor that rounding leaves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.adaqp_accuracy import (
    COLOURS,
    PLAIN,
    Results,
    Run,
    cut,
    footer,
    in_parallel,
    method_section,
    run_ranks,
    savings_section,
    shortened,
)
from matplotlib.figure import Figure
from tests.support.threads import ThreadTransport

from halocast.errors import HalocastError
from halocast.reports import figures
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.graph.shard import open_shards
from halocast.runtime.session import RankSession, build_session, use_threads

FloatArray = npt.NDArray[np.float64]

NAME = "adaqp-convergence"
METHODS = (PLAIN, "adaptive", "uniform:2", "uniform:4", "uniform:8", "uniform:2/nearest")
RATES = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
HORIZONS = (25, 50, 100, 200, 400)
GUIDE_SPAN = 16
"""The line of c / T reaches back so many times."""
ROUNDING = 1e-6
"""A loss may rise by this share of it, which is what float32 leaves of a step that changes nothing."""


def run_config(arguments: argparse.Namespace, graph: Path, model: str, method: str, rate: float, seed: int) -> RunConfig:
    """Gradient descent as the theorem has it."""
    document = {
        "graph": str(graph),
        "ranks": arguments.ranks,
        "threads": 1,
        "seed": seed,
        "model": {
            "layer": model,
            "layers": arguments.layers,
            "hidden": arguments.hidden,
            "dropout": 0.0,
            "norm": arguments.norm,
        },
        "method": {
            "exact": savings_section(False),
            "reassign_every": 0 if method == PLAIN else arguments.reassign_every,
            **method_section(method),
        },
        "training": {
            "epochs": max(arguments.horizons),
            "optimizer": "sgd",
            "momentum": 0.0,
            "learning_rate": rate,
        },
        "trace": {"enabled": False},
    }
    return resolve(document, method)


class ExactGradient:
    """Plain training's gradient at another session's parameters; it never moves them."""

    def __init__(self, session: RankSession) -> None:
        self._session = session
        for group in session.optimizer.param_groups:
            group["lr"] = 0.0

    def squared_norm(self, network: torch.nn.Module, epoch: int) -> float:
        """‖∇L‖² over all parameters; all ranks call it together and get the same."""
        self._session.network.load_state_dict(network.state_dict())
        self._session.executor.train_epoch(epoch)
        gradients = [parameter.grad for parameter in self._session.network.parameters() if parameter.grad is not None]
        return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum())


def train_epoch(session: RankSession, epoch: int, epochs: int) -> float:
    """One epoch and the re-assignment of widths after it, as the trainer has them."""
    executor, assigner = session.executor, session.assigner
    if assigner is None or executor.messages is None:
        return executor.train_epoch(epoch)
    executor.messages.traces_ranges = assigner.wants_ranges(epoch)
    loss = executor.train_epoch(epoch)
    if epoch + 1 < epochs:
        assigned = assigner.next(epoch + 1, executor.messages.widths, executor.messages.ranges)
        if assigned is not None:
            executor.install_widths(assigned[0])
    return loss


def descend(config: RunConfig, exact: RunConfig, shards: Path) -> Run:
    """Losses of all epochs, and the squared norm of the exact gradient after each."""
    began = time.perf_counter()
    opened = open_shards(shards)

    def work(transport: ThreadTransport) -> tuple[list[float], list[float]]:
        use_threads(1)
        session = build_session(config, opened, transport, device=torch.device("cpu"))
        gradient = ExactGradient(build_session(exact, opened, transport, device=torch.device("cpu")))
        losses, norms = [], []
        for epoch in range(config.training.epochs):
            losses.append(train_epoch(session, epoch, config.training.epochs))
            norms.append(gradient.squared_norm(session.network, epoch))
        return losses, norms

    try:
        losses, norms = run_ranks(opened.parts, work)[0]
    except HalocastError as error:
        return {"error": str(error).splitlines()[0], "seconds": time.perf_counter() - began}
    return {
        "loss": shortened(losses),
        "squared_norm": shortened(norms),
        "rises": rises(losses),
        "seconds": round(time.perf_counter() - began, 1),
    }


def rises(losses: Sequence[float]) -> int:
    """Epochs whose loss is above that of the epoch before."""
    return sum(after > before * (1.0 + ROUNDING) for before, after in pairwise(losses))


def first_rise(config: RunConfig, shards: Path) -> Run:
    """Plain training until its loss rises: `epochs` done, and whether it `falls` in all of them."""
    opened = open_shards(shards)

    def work(transport: ThreadTransport) -> list[float]:
        use_threads(1)
        session = build_session(config, opened, transport, device=torch.device("cpu"))
        losses: list[float] = []
        for epoch in range(config.training.epochs):
            losses.append(session.executor.train_epoch(epoch))
            if not np.isfinite(losses[-1]) or rises(losses[-2:]):
                break
        return losses

    losses = run_ranks(opened.parts, work)[0]
    return {"epochs": len(losses), "falls": len(losses) == config.training.epochs and not rises(losses), "last": losses[-1]}


def choose_rate(arguments: argparse.Namespace, results: Results, graph: Path, model: str, shards: Path) -> float:
    """The largest rate with which plain training's loss falls throughout, for every seed; exits where there is none."""
    chosen: dict[str, float] = results.extra.setdefault("rates", {})
    name = f"{graph.stem} {model}"
    if name in chosen:
        return chosen[name]
    for rate in sorted(arguments.rates, reverse=True):
        tasks: list[Any] = [
            ({"seed": seed}, first_rise, (run_config(arguments, graph, model, PLAIN, rate, seed), shards))
            for seed in range(arguments.seeds)
        ]
        answers = [answer for _, answer in in_parallel(arguments.jobs, tasks)]
        falls = all(answer["falls"] for answer in answers)
        epochs = min(answer["epochs"] for answer in answers)
        print(f"{name} rate {rate:g}: {'falls throughout' if falls else f'loss rises in epoch {epochs - 1}'}", flush=True)
        if falls:
            chosen[name] = rate
            results.write()
            return float(rate)
    raise SystemExit(f"{name}: plain training's loss rises with every rate of {arguments.rates}; add smaller --rates")


# -- tables and figures ---------------------------------------------------------------------------------------------


def norms_of(results: Results, graph: str, model: str, method: str) -> FloatArray | None:
    """Squared norms after each epoch, [seeds, epochs]."""
    runs = [run for run in results.select(graph=graph, model=model, method=method) if "error" not in run]
    return np.array([run["squared_norm"] for run in runs]) if runs else None


def running_mean(norms: FloatArray) -> FloatArray:
    """Mean of the first T values, for every T: [seeds, epochs]."""
    means: FloatArray = np.cumsum(norms, axis=1) / np.arange(1, norms.shape[1] + 1)
    return means


def summary(results: Results, graph: str, model: str, methods: Sequence[str], horizons: Sequence[int]) -> list[dict[str, Any]]:
    """One row a method: means over seeds, and the ratios of those means."""
    rows = []
    plain = norms_of(results, graph, model, PLAIN)
    for method in methods:
        norms = norms_of(results, graph, model, method)
        if norms is None:
            continue
        means = running_mean(norms)[:, np.array(horizons) - 1]
        late = norms[:, norms.shape[1] // 2 :].mean()
        runs = [run for run in results.select(graph=graph, model=model, method=method) if "error" not in run]
        row: dict[str, Any] = {"graph": graph, "model": model, "method": method, "seeds": len(norms)}
        row["means"] = means.mean(0).tolist()
        row["deviations"] = (means.std(0, ddof=1) if len(means) > 1 else np.zeros(means.shape[1])).tolist()
        row["ratios"] = [after / before for before, after in pairwise(row["means"])]
        row["late"] = float(late)
        row["loss"] = float(np.mean([run["loss"][-1] for run in runs]))
        row["rises"] = float(np.mean([run["rises"] for run in runs]))
        if plain is not None:
            row["mean_over_plain"] = row["means"][-1] / float(running_mean(plain)[:, horizons[-1] - 1].mean())
            row["late_over_plain"] = row["late"] / float(plain[:, plain.shape[1] // 2 :].mean())
        rows.append(row)
    return rows


def table(title: str, rows: Sequence[dict[str, Any]], horizons: Sequence[int]) -> str:
    last = horizons[-1]
    ratio_names = [f"{after} / {before}" for before, after in pairwise(horizons)]
    head = [
        "method",
        *(f"T = {horizon}" for horizon in horizons),
        *ratio_names,
        f"sum at {last}",
        "late mean",
        "mean / plain's",
        "late / plain's",
        "last loss",
        "epochs in which the loss rises",
    ]
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for row in rows:
        cells = [
            row["method"],
            *(f"{value:.3e}" for value in row["means"]),
            *(f"{value:.3f}" for value in row["ratios"]),
            f"{last * row['means'][-1]:.3g}",
            f"{row['late']:.2e}",
            *(f"{row[key]:.3f}" if key in row else "" for key in ("mean_over_plain", "late_over_plain")),
            f"{row['loss']:.4f}",
            f"{row['rises']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw(results: Results, graph: str, model: str, methods: Sequence[str]) -> Figure:
    """Mean over the first T epochs beside a line of 1 / T, and the squared norm after each epoch; both axes logarithmic."""
    figure = figures.new_figure(3.9)
    mean_axes, norm_axes = figure.subplots(1, 2)
    seeds = 0
    for colour, method in zip((figures.INK, figures.BLUE, *COLOURS), methods, strict=False):
        norms = norms_of(results, graph, model, method)
        if norms is None:
            continue
        epochs, seeds = np.arange(1, norms.shape[1] + 1), max(seeds, len(norms))
        means, name = running_mean(norms).mean(0), "plain" if method == PLAIN else method
        width = 2.6 if method == PLAIN else 1.2
        mean_axes.plot(epochs, means, color=colour, linewidth=width, label=name)
        norm_axes.plot(epochs, norms.mean(0), color=colour, linewidth=width, label=name)
        if method == PLAIN:
            late = epochs[epochs * GUIDE_SPAN >= epochs[-1]]
            mean_axes.plot(
                late, means[-1] * late[-1] / late, color=figures.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="c / T"
            )
    subtitle = f"{graph}, {model}; mean over {seeds} seed{'s' * (seeds != 1)}"
    for axes, title, label in (
        (mean_axes, "Mean of ‖∇L‖² over the first T epochs", "T"),
        (norm_axes, "‖∇L‖² after each epoch", "epoch"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        figures.headline(axes, title, subtitle)
        figures.style(axes, xlabel=label, grid="y")
        axes.tick_params(which="minor", labelsize=8.5, labelcolor=figures.MUTED, color=figures.GRID)
    mean_axes.legend(frameon=False, fontsize=8.5, labelcolor=figures.INK)
    return figure


def write_reports(results: Results, arguments: argparse.Namespace, drawn: Sequence[tuple[str, str]] | None = None) -> None:
    """All tables, and the figures of the (graph, model) pairs in `drawn`, by default all."""
    pairs = list(dict.fromkeys((run["graph"], run["model"]) for run in results.runs))
    methods = list(dict.fromkeys([*METHODS, *arguments.methods]))
    text, rows = [f"# Gradient norms of AdaQP beside plain training's, {results.day}\n"], []
    for graph, model in pairs:
        rows += summary(results, graph, model, methods, arguments.horizons)
        title = f"{graph}, {model}, rate {results.extra['rates'][f'{graph} {model}']:g}"
        text.append(table(title, [row for row in rows if (row["graph"], row["model"]) == (graph, model)], arguments.horizons))
    failures = [
        f"Failed: {run['graph']} {run['model']} {run['method']} seed {run['seed']}: {run['error']}."
        for run in results.runs
        if "error" in run
    ]
    note = (
        "Columns T: mean of the squared norm of the exact gradient over the first T epochs, mean over the seeds; then the "
        "ratios of those means, of which none can be below 0.5; the sum that O(1/T) says is bounded; the mean over the second "
        "half of all epochs; the mean over all epochs and the late mean over plain training's. Plain training's parameters are "
        "other ones after the first step: a ratio to plain below 1 is a shorter path, not a better gradient."
    )
    results.extra["rows"] = rows
    results.write()
    results.write_table("\n".join([*text, footer(results.settings, note, *failures)]))
    for graph, model in pairs if drawn is None else drawn:
        results.write_figure(draw(results, graph, model, methods), f"{graph}-{model}")


# -- the command ----------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["gcn", "sage"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--horizons", nargs="+", type=int, default=list(HORIZONS), help="T, each twice the one before")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--reassign-every", type=int, default=0, help="epochs in a period of widths; 0: a fifth of all")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--norm", choices=["layer", "none"], default="layer")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--resume", action="store_true", help="go on with the newest results in --out")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.horizons = sorted(arguments.horizons)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    settings = {
        key: value
        for key, value in vars(arguments).items()
        if key not in {"graphs", "models", "methods", "seeds", "jobs", "resume", "out"}
    }
    results = Results.open(NAME, arguments.out, settings, resume=arguments.resume)
    for graph in arguments.graphs:
        shards = cut(graph, run_config(arguments, graph, arguments.models[0], PLAIN, arguments.rates[0], 0)).folder
        for model in arguments.models:
            rate = choose_rate(arguments, results, graph, model, shards)
            tasks: list[Any] = []
            for seed in range(arguments.seeds):
                for method in arguments.methods:
                    key = {"graph": graph.stem, "model": model, "method": method, "seed": seed}
                    if results.find(**key) is None:
                        config, exact = (run_config(arguments, graph, model, each, rate, seed) for each in (method, PLAIN))
                        tasks.append((key, descend, (config, exact, shards)))
            for done, (key, run) in enumerate(in_parallel(arguments.jobs, tasks), start=1):
                results.add(run, **key)
                write_reports(results, arguments, [])
                outcome = run.get("error") or (
                    f"mean squared norm {np.mean(run['squared_norm']):.3e}, last {run['squared_norm'][-1]:.3e}, "
                    f"loss {run['loss'][-1]:.4f}"
                )
                print(
                    f"{done}/{len(tasks)} {graph.stem} {model} {key['method']} seed {key['seed']}: {outcome}  "
                    f"{run['seconds']:.0f} s",
                    flush=True,
                )
            write_reports(results, arguments, [(graph.stem, model)])
    print((arguments.out / f"{results.stem}.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
