"""Test metrics of AdaQP beside plain full-graph training's: same model, seeds, partition and steps, other messages.

    python -m benchmarks.adaqp_accuracy GRAPH.npz ... --models gcn sage --seeds 5 --out benchmarks/results

A method is `full`, or a rule for widths (`adaptive`, `random`, `uniform:2`), which `/nearest` or `/rotated` may follow. What
counts is the test metric at the first epoch with the highest validation metric, and that at the last epoch. Differences to
`full` are taken seed by seed; their standard error is that of the mean of those differences. Lossless savings are off, so
that every message that plain training sends is quantised.

The ranks of a run are threads of one process that take turns (`--harness threads`): the sessions, programs, kernels, codec
and training loop are those of the launcher's ranks (`--harness launcher`), only messages and sums go through memory. On two
ranks losses are equal, bit for bit; on more, the order in which a sum over ranks adds up differs in the last bit, and
training carries that on (`--check` measures both). The launcher spends most of such short runs on starting its ranks.

Every run is written down when it ends; `--resume` goes on with the newest results in `--out` and skips what they have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.support import threads
from tests.support.threads import ThreadTransport

from halocast.errors import HalocastError
from halocast.reports import figures
from halocast.runtime.bits.assigners import histogram_of
from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.graph.shard import ShardSet, open_shards
from halocast.runtime.graph.store import find_shards
from halocast.runtime.run import check, train
from halocast.runtime.session import build_session, use_threads
from halocast.runtime.trainer import RunFolder, Trainer, write_text
from halocast.runtime.worker import run_identity, versions
from halocast.traces.trace import cpu_name

Answer = TypeVar("Answer")
Run = dict[str, Any]
FloatArray = npt.NDArray[np.float64]

NAME = "adaqp-accuracy"
TOLERANCE_POINTS = 0.30
"""The largest difference to plain training that counts as none."""
PLAIN = "full"
ALL_SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")
A_DAY_S = 86_400
COLOURS = (figures.VERMILION, figures.ORANGE, figures.GREEN, figures.PURPLE, figures.TEAL, figures.PLUM, figures.SKY)
CHECK_EPOCHS = 20
PROGRESS_DIGITS = 7
"""Significant digits of the losses and metrics that are written down."""


# -- what is run ----------------------------------------------------------------------------------------------------


def method_section(name: str) -> dict[str, Any]:
    """A method's name on the command line in the words of a run file."""
    if name == PLAIN:
        return {"name": "full"}
    bits, _, rounding = name.partition("/")
    return {"name": "adaqp", "bits": bits, **({"rounding": rounding} if rounding else {})}


def savings_section(on: bool) -> dict[str, bool]:
    """All of the lossless savings, or none."""
    return dict.fromkeys(ALL_SAVINGS, on)


def run_config(arguments: argparse.Namespace, graph: Path, model: str, method: str, seed: int) -> RunConfig:
    """One run of the comparison."""
    document = {
        "graph": str(graph),
        "ranks": arguments.ranks,
        "threads": 1,
        "seed": seed,
        "model": {
            "layer": model,
            "layers": arguments.layers,
            "hidden": arguments.hidden,
            "dropout": arguments.dropout,
            "norm": arguments.norm,
        },
        "method": {
            "exact": savings_section(arguments.savings == "on"),
            "reassign_every": 0 if method == PLAIN else arguments.reassign_every,
            **method_section(method),
        },
        "training": {
            "epochs": arguments.epochs,
            "learning_rate": arguments.learning_rate,
            "weight_decay": arguments.weight_decay,
            "evaluate_every": arguments.evaluate_every,
            "checkpoint_every": 0,
        },
        "trace": {"enabled": False},
    }
    return resolve(document, method)


def run_ranks(world_size: int, work: Callable[[ThreadTransport], Answer]) -> list[Answer]:
    """`work` once a rank, in threads that take turns, for longer than a test may take."""
    with patch.object(threads, "PATIENCE_S", A_DAY_S):
        return threads.run_ranks(world_size, work)[0]


def train_in_threads(config: RunConfig, shards: ShardSet) -> Run:
    """The trainer's rows and the widths at the end; Raises HalocastError where training fails."""
    check(config)
    with tempfile.TemporaryDirectory() as folder:

        def work(transport: ThreadTransport) -> tuple[list[dict[str, float]], dict[int, int]]:
            use_threads(1)
            session = build_session(config, shards, transport, device=torch.device("cpu"))
            # A folder each: every rank takes itself for the only one when it writes its checkpoint.
            run_folder = RunFolder(Path(folder) / f"rank{transport.rank}")
            run_folder.path.mkdir()
            metric = str(shards.graph["metric"])
            identity = run_identity(config, shards)
            trainer = Trainer(config, session, transport, run_folder, identity, metric, trace=None, emit=lambda event: None)
            trainer.train()
            messages = session.executor.messages
            return trainer.rows, {} if messages is None else histogram_of(messages.widths)

        answers = run_ranks(shards.parts, work)
    bits: dict[str, int] = {}
    for _, histogram in answers:
        for width, count in histogram.items():
            bits[str(width)] = bits.get(str(width), 0) + count
    return {"rows": answers[0][0], "bits": dict(sorted(bits.items(), key=lambda item: int(item[0])))}


def train_in_processes(config: RunConfig) -> Run:
    """The same through the launcher; widths are those of rank 0's messages."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = train(config, run)
        rows = pd.read_csv(run / "metrics.csv").to_dict("records")
    return {"rows": rows, "bits": result.get("bits", {})}


def one_run(config: RunConfig, shards: Path, harness: str) -> Run:
    """Train, and keep the curves and what the comparison is about; `error` instead of them where training fails."""
    began = time.perf_counter()
    try:
        answer = train_in_threads(config, open_shards(shards)) if harness == "threads" else train_in_processes(config)
    except HalocastError as error:
        return {"error": str(error).splitlines()[0], "seconds": time.perf_counter() - began}
    table = pd.DataFrame(answer["rows"])
    evaluated = table.dropna(subset=["val", "test"])
    best, last = evaluated.iloc[int(evaluated["val"].argmax())], evaluated.iloc[-1]
    return {
        "best_epoch": int(best["epoch"]),
        "test": float(best["test"]),
        "validation": float(best["val"]),
        "last_test": float(last["test"]),
        "last_validation": float(last["val"]),
        "bits": answer["bits"],
        "seconds": round(time.perf_counter() - began, 1),
        "loss": shortened(table["loss"]),
        "evaluated_epoch": [int(each) for each in evaluated["epoch"]],
        "validation_curve": shortened(evaluated["val"]),
        "test_curve": shortened(evaluated["test"]),
    }


def shortened(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{PROGRESS_DIGITS}g}") for value in values]


# -- many runs, and their files -------------------------------------------------------------------------------------


@dataclass
class Results:
    """The dated files of one benchmark. The JSON document is complete after every `add`."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    """What must be the same for all runs of one document."""
    day: str = field(default_factory=lambda: date.today().isoformat())
    runs: list[Run] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the document holds: summaries, choices made on the way."""

    @classmethod
    def open(cls, name: str, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> Results:
        """New results, or the newest ones in `folder`; exits where those were made with other settings."""
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.glob(f"{name}-20??-??-??.json")) if resume else []
        if not found:
            return cls(name, folder, settings)
        document = json.loads(found[-1].read_text())
        ours, theirs = json.loads(json.dumps(dict(settings))), document["settings"]
        different = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        if different:
            raise SystemExit(f"--resume: {found[-1].name} was made with another {', '.join(different)}; choose another --out")
        return cls(name, folder, settings, document["date"], document["runs"], document.get("extra", {}))

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.day}"

    def find(self, **key: Any) -> Run | None:
        """The successful run with these values, if there is one."""
        return next((run for run in self.select(**key) if "error" not in run), None)

    def select(self, **key: Any) -> list[Run]:
        return [run for run in self.runs if all(run.get(name) == value for name, value in key.items())]

    def add(self, run: Run, **key: Any) -> None:
        """Put a run in (over a failed one of the same key), and write the document."""
        self.runs = [each for each in self.runs if each not in self.select(**key)] + [{**key, **run}]
        self.write()

    def write(self) -> None:
        """The document, one run a line."""
        head = {
            "benchmark": self.name,
            "date": self.day,
            "machine": machine(),
            "versions": versions(),
            "settings": self.settings,
            "extra": self.extra,
        }
        lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in self.runs)
        start = json.dumps(head, indent=1).rstrip().removesuffix("}").rstrip()
        write_text(self.folder / f"{self.stem}.json", f'{start},\n "runs": [\n{lines}\n]\n}}\n')

    def write_table(self, text: str) -> None:
        write_text(self.folder / f"{self.stem}.md", text)

    def write_figure(self, figure: Figure, suffix: str) -> None:
        figure.savefig(self.folder / f"{self.stem}-{suffix}.png", dpi=150)


def machine() -> str:
    return f"{cpu_name()}, {os.cpu_count()} cores"


def footer(settings: Mapping[str, Any], *notes: str) -> str:
    """Where a table comes from, and what it does not say."""
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([f"{machine()}; {software}.", "", f"Settings: {shown}.", *(f"\n{note}" for note in notes), ""])


def in_parallel(
    jobs: int, tasks: Sequence[tuple[dict[str, Any], Callable[..., Run], tuple[Any, ...]]]
) -> Iterator[tuple[dict[str, Any], Run]]:
    """Do (key, function, arguments) in `jobs` processes that last; yields (key, answer) as they come.

    Every process computes on one thread: the variable must be set before torch is loaded there.
    """
    with (
        patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}),
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        futures = {pool.submit(function, *arguments): key for key, function, arguments in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def cut(graph: Path, config: RunConfig) -> ShardSet:
    """The graph's shards, made here so that no two processes cut the same graph."""
    return find_shards(config, lambda text: print(f"  {graph.stem}: {text}", flush=True))


# -- tables and figures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its spread."""

    mean: float
    deviation: float
    """Of one seed's value."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        return cls(statistics.fmean(values) if values else float("nan"), deviation, len(values))

    @property
    def standard_error(self) -> float:
        return self.deviation / self.count**0.5 if self.count else float("nan")


def compare(results: Results, graph: str, model: str, method: str) -> dict[str, Any] | None:
    """A table's row: metrics in percent, differences to plain training in points, seed by seed; None without a run."""
    runs = {run["seed"]: run for run in results.select(graph=graph, model=model, method=method) if "error" not in run}
    plain = {run["seed"]: run for run in results.select(graph=graph, model=model, method=PLAIN) if "error" not in run}
    if not runs:
        return None
    row: dict[str, Any] = {"graph": graph, "model": model, "method": method, "seeds": len(runs)}
    row["metric"] = next(iter(runs.values()))["metric"]
    for key, column in (("best", "test"), ("last", "last_test")):
        row[key] = Estimate.of([100 * run[column] for run in runs.values()])
        paired = sorted(runs.keys() & plain.keys())
        row[f"{key}_difference"] = Estimate.of([100 * (runs[seed][column] - plain[seed][column]) for seed in paired])
    return row


def summary(results: Results, graphs: Sequence[str], models: Sequence[str], methods: Sequence[str]) -> list[dict[str, Any]]:
    rows = (compare(results, graph, model, method) for graph in graphs for model in models for method in methods)
    return [row for row in rows if row is not None]


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its estimates spelt out; JSON has no NaN."""

    def plain(value: Any) -> Any:
        if not isinstance(value, Estimate):
            return value
        numbers = {"mean": value.mean, "std": value.deviation, "standard_error": value.standard_error}
        return {**{key: None if np.isnan(number) else number for key, number in numbers.items()}, "seeds": value.count}

    return {key: plain(value) for key, value in row.items()}


def plus_minus(value: Estimate, error: float, *, sign: bool = False) -> str:
    if not value.count:
        return ""
    mean = f"{value.mean:{'+' if sign else ''}.2f}"
    return mean if np.isnan(error) else f"{mean} ± {error:.2f}"


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        f"| graph | model | method | metric | test at best validation | difference | within {TOLERANCE_POINTS:.2f} "
        "| test at the last epoch | difference | seeds |",
        "| --- | --- | --- | --- " + "| ---: " * 6 + "|",
    ]
    for row in rows:
        differences, verdict = ["", ""], ""
        if row["method"] != PLAIN and row["best_difference"].count:
            differences = [
                plus_minus(row[key], row[key].standard_error, sign=True) for key in ("best_difference", "last_difference")
            ]
            verdict = "yes" if abs(row["best_difference"].mean) <= TOLERANCE_POINTS else "**no**"
        lines.append(
            f"| {row['graph']} | {row['model']} | {row['method']} | {row['metric']} "
            f"| {plus_minus(row['best'], row['best'].deviation)} | {differences[0]} | {verdict} "
            f"| {plus_minus(row['last'], row['last'].deviation)} | {differences[1]} | {row['seeds']} |"
        )
    return "\n".join([*lines, ""])


def draw_curves(results: Results, graph: str, models: Sequence[str], methods: Sequence[str]) -> Figure | None:
    """Loss and validation metric against the epoch: mean over seeds, and a band of a standard deviation to each side."""
    models = [model for model in models if results.select(graph=graph, model=model)]
    if not models:
        return None
    figure = figures.new_figure(3.1 * len(models))
    for index, model in enumerate(models):
        loss_axes = figure.add_subplot(len(models), 2, 2 * index + 1)
        metric_axes = figure.add_subplot(len(models), 2, 2 * index + 2)
        metric, seeds = "", 0
        for colour, method in zip((figures.INK, figures.BLUE, *COLOURS), methods, strict=False):
            runs = [run for run in results.select(graph=graph, model=model, method=method) if "error" not in run]
            if not runs:
                continue
            metric, seeds = runs[0]["metric"], max(seeds, len(runs))
            name = "plain" if method == PLAIN else method
            losses = np.array([run["loss"] for run in runs])
            draw_band(loss_axes, np.arange(losses.shape[1]), losses, colour, name)
            scores = np.array([run["validation_curve"] for run in runs])
            draw_band(metric_axes, np.array(runs[0]["evaluated_epoch"]), scores, colour, name)
        subtitle = f"{graph}, {model}; mean and standard deviation over {seeds} seed{'s' * (seeds != 1)}"
        for axes, title in ((loss_axes, "Training loss"), (metric_axes, f"Validation {metric}")):
            figures.headline(axes, title, subtitle)
            figures.style(axes, xlabel="epoch", grid="y")
            axes.legend(frameon=False, fontsize=8.5, labelcolor=figures.INK)
    return figure


def draw_band(axes: Axes, epochs: npt.NDArray[np.int64], values: FloatArray, colour: str, name: str) -> None:
    """values: [seeds, epochs]."""
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    # Curves lie on one another: plain training's shows below the others.
    axes.plot(epochs, mean, color=colour, linewidth=2.6 if colour == figures.INK else 1.2, label=name)
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)


def write_reports(results: Results, arguments: argparse.Namespace, drawn: Sequence[str] | None = None) -> None:
    """The table of all runs so far, and the figures of the graphs `drawn`, by default all."""
    graphs = list(dict.fromkeys([*(run["graph"] for run in results.runs), *(path.stem for path in arguments.graphs)]))
    models = list(dict.fromkeys([*arguments.models, *(run["model"] for run in results.runs)]))
    methods = list(dict.fromkeys([PLAIN, *arguments.methods, *(run["method"] for run in results.runs)]))
    rows = summary(results, graphs, models, methods)
    results.extra["rows"] = [as_json(row) for row in rows]
    results.write()
    failures = [run for run in results.runs if "error" in run]
    notes = [
        "Metrics in percent, mean ± standard deviation over the seeds; differences to full in points, paired by seed, mean ± "
        "standard error. The verdict looks at the mean difference alone: where the standard error is as large as the "
        "tolerance, more seeds are needed to tell.",
        *(f"Failed: {run['graph']} {run['model']} {run['method']} seed {run['seed']}: {run['error']}." for run in failures),
    ]
    head = f"# Accuracy of AdaQP beside plain training, {results.day}\n"
    results.write_table("\n".join([head, table(rows), footer(results.settings, *notes)]))
    for graph in graphs if drawn is None else drawn:
        figure = draw_curves(results, graph, models, arguments.curves)
        if figure is not None:
            results.write_figure(figure, graph)


# -- the command ----------------------------------------------------------------------------------------------------


def check_harness(arguments: argparse.Namespace) -> None:
    """Losses of thread ranks beside the launcher's, on two ranks and on as many as asked for, and the time of either."""
    graph, model = arguments.graphs[0], arguments.models[0]
    for ranks in sorted({2, arguments.ranks}):
        for method in (PLAIN, "adaptive"):
            settings = argparse.Namespace(**{**vars(arguments), "ranks": ranks, "epochs": CHECK_EPOCHS, "reassign_every": 5})
            config = run_config(settings, graph, model, method, 0)
            shards = cut(graph, config)
            began = time.perf_counter()
            ours = [row["loss"] for row in train_in_threads(config, shards)["rows"]]
            middle = time.perf_counter()
            theirs = [row["loss"] for row in train_in_processes(config)["rows"]]
            difference = np.abs(np.array(ours) - np.array(theirs))
            print(
                f"{graph.stem} {model} {method:<9} {ranks} ranks, {len(ours)} epochs: largest difference of a loss "
                f"{difference.max():.1e} (first 5 epochs {difference[:5].max():.1e}); threads {middle - began:.1f} s, "
                f"launcher {time.perf_counter() - middle:.1f} s",
                flush=True,
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["gcn", "sage"])
    parser.add_argument("--methods", nargs="+", default=[PLAIN, "adaptive", "uniform:2", "uniform:4"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=1)
    parser.add_argument("--reassign-every", type=int, default=0, help="epochs in a period of widths; 0: a fifth of all")
    parser.add_argument("--savings", choices=["off", "on"], default="off")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--norm", choices=["layer", "none"], default="layer")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--curves", nargs="+", default=[PLAIN, "adaptive"], help="methods in the figures")
    parser.add_argument("--harness", choices=["threads", "launcher"], default="threads")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--check", action="store_true", help="only compare the harnesses, on the first graph and model")
    parser.add_argument("--resume", action="store_true", help="go on with the newest results in --out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not arguments.check and arguments.out is None:
        parser.error("--out FOLDER is missing")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.check:
        check_harness(arguments)
        return
    which = {"graphs", "models", "methods", "seeds", "curves", "jobs", "resume", "out", "check"}
    settings = {key: value for key, value in vars(arguments).items() if key not in which}
    results = Results.open(NAME, arguments.out, settings, resume=arguments.resume)
    tasks = []
    for graph in arguments.graphs:
        shards: ShardSet | None = None
        for model in arguments.models:
            for seed in range(arguments.seeds):
                for method in arguments.methods:
                    key = {"graph": graph.stem, "model": model, "method": method, "seed": seed}
                    if results.find(**key) is not None:
                        continue
                    config = run_config(arguments, graph, model, method, seed)
                    shards = shards or cut(graph, config)
                    key["metric"] = shards.graph["metric"]
                    tasks.append((key, one_run, (config, shards.folder, arguments.harness)))
    waiting = Counter(key["graph"] for key, _, _ in tasks)
    print(f"{len(tasks)} runs to do, {len(results.runs)} known", flush=True)
    for done, (key, run) in enumerate(in_parallel(arguments.jobs, tasks), start=1):
        results.add(run, **key)
        waiting[key["graph"]] -= 1
        write_reports(results, arguments, [] if waiting[key["graph"]] else [key["graph"]])
        outcome = run.get("error") or (
            f"test {100 * run['test']:.2f} at epoch {run['best_epoch']}, {100 * run['last_test']:.2f} at the end"
        )
        print(
            f"{done}/{len(tasks)} {key['graph']} {key['model']} {key['method']} seed {key['seed']}: {outcome}  "
            f"{run['seconds']:.0f} s",
            flush=True,
        )
    write_reports(results, arguments)
    print(table(summary(results, [path.stem for path in arguments.graphs], arguments.models, arguments.methods)), flush=True)


if __name__ == "__main__":
    main()
