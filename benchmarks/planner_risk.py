"""How much accuracy the variance that a plan foresees costs: what `--risk` is calibrated on.

    python -m benchmarks.planner_risk GRAPH.npz ... --seeds 2 --epochs 100 --out benchmarks/results

A graph's rows are recorded as `halocast tune` does, after 8 epochs of quantised training; they say what relative variance of
the gradient uniform widths have. Then the graph is trained to the end at 1, 2 and 4 bits, without lossless savings (all
exchanges rounded) and with them, beside plain training of the same seed. Points are hundredths of the test metric after the
last epoch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.planner_variance import footer

from halocast.runtime.config import RunConfig, resolve
from halocast.runtime.run import train
from halocast.simulator.planner.risk import TrainedRun, fit_risk
from halocast.traces.rows import read_rows
from halocast.traces.wire import variance_factor

WIDTHS = (1, 2, 4)
SAVINGS = ("aggregate_features_once", "transform_first", "labelled_gradients_only", "keep_halo_features")


def configuration(
    graph: Path,
    options: argparse.Namespace,
    *,
    seed: int,
    savings: bool,
    bits: int | None = None,
    epochs: int | None = None,
    rows: bool = False,
) -> RunConfig:
    """Plain training without `bits`."""
    method: dict[str, Any] = {"name": "full"} if bits is None else {"name": "adaqp", "bits": bits}
    return resolve(
        {
            "graph": str(graph),
            "ranks": options.ranks,
            "seed": seed,
            "model": {"layer": options.model, "layers": 3, "hidden": 64, "norm": "layer", "dropout": 0.5},
            "method": {**method, "exact": dict.fromkeys(SAVINGS, savings)},
            "training": {
                "epochs": epochs or options.epochs,
                "learning_rate": 0.01,
                "evaluate_every": 0,
                "checkpoint_every": 0,
            },
            "trace": {"enabled": rows, "rows": rows},
        },
        "benchmark",
    )


def accuracy_of(config: RunConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return float(train(config, Path(folder) / "run")["accuracy"]["test"])


def effect_of(graph: Path, options: argparse.Namespace, *, savings: bool) -> float:
    """Relative variance of the gradient at factor 1, summed over exchanges."""
    config = configuration(graph, options, seed=0, savings=savings, bits=4, epochs=8, rows=True)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        rows = read_rows(Path(folder) / "run")
    if rows is None:
        return 0.0
    return float(sum(each.sensitivity * each.beta.sum() / each.energy.sum() for each in rows.exchanges))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for a dated Markdown file")
    options = parser.parse_args()
    lines = [
        "| graph | savings | bits | variance | points lost, by seed | mean |",
        "| --- | --- | ---: | ---: | --- | ---: |",
    ]
    runs: list[TrainedRun] = []
    for graph in options.graphs:
        plain = [accuracy_of(configuration(graph, options, seed=seed, savings=True)) for seed in range(options.seeds)]
        for savings in (False, True):
            effect = effect_of(graph, options, savings=savings)
            for bits in WIDTHS if not savings else WIDTHS[:2]:
                variance = effect * variance_factor(bits)
                rounded = [
                    accuracy_of(configuration(graph, options, seed=seed, savings=savings, bits=bits))
                    for seed in range(options.seeds)
                ]
                lost = [100.0 * (before - after) for before, after in zip(plain, rounded, strict=True)]
                runs += [TrainedRun(variance, each) for each in lost]
                lines.append(
                    f"| {graph.stem} | {'all' if savings else 'none'} | {bits} | {variance:.3g} "
                    f"| {', '.join(f'{each:+.2f}' for each in lost)} | {statistics.mean(lost):+.2f} |"
                )
                print(lines[-1], flush=True)
    curve = fit_risk(runs)
    found = (
        f"Fitted: nothing up to a relative variance of {curve.threshold:.3g}, then {curve.slope:.2f} points for every tenfold."
    )
    print(found)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        today = datetime.date.today().isoformat()
        settings = {"ranks": options.ranks, "model": options.model, "epochs": options.epochs, "seeds": options.seeds}
        text = [f"# Accuracy against the variance of rounding, {today}", "\n".join(lines), found, footer(settings, "")]
        (options.out / f"planner-risk-{today}.md").write_text("\n\n".join(text))
        data = [{"variance": each.variance, "points_lost": each.points_lost} for each in runs]
        (options.out / f"planner-risk-{today}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
