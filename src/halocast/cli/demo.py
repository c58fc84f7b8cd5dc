"""``halocast demo``: the main job on the graph that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.cli.train import report_result

EPOCHS = 60
RUN = {
    "graph": "debian",
    "ranks": 2,
    "model": {"layer": "sage", "layers": 3, "hidden": 128, "norm": "layer", "dropout": 0.5},
    "training": {"epochs": EPOCHS, "learning_rate": 0.01, "evaluate_every": 5, "checkpoint_every": 0},
}


def demo(*, out: Path | None = None, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Train GraphSAGE on the Debian package graph over 2 local ranks, traced, and draw what happened.

    Parameters
    ----------
    out:
        Run folder; by default a new one under runs/.
    json:
        One JSON document on standard output.
    """
    from halocast.runtime.config import resolve
    from halocast.runtime.run import train

    console = Console(as_json=json)
    config = resolve(RUN, "demo")
    with console.training(EPOCHS) as progress:
        result = train(config, out, emit=progress)
    console.note("drawing the median epoch and the learning curves ...")
    result["files"].update(draw(result))
    console.document(result)
    report_result(console, result)
    return 0


def draw(result: dict[str, Any]) -> dict[str, str]:
    """Write the run's picture and page beside its trace; returns their paths."""
    import pandas as pd

    from halocast.reports.train import TrainRun, write_train_report
    from halocast.traces.trace import read_trace

    folder = Path(result["run"])
    picture, page = folder / "report.png", folder / "report.html"
    trace = read_trace(folder / "trace")
    model = trace.manifest.config["model"]
    write_train_report(
        TrainRun(
            name=f"{result['graph']} on {result['ranks']} ranks",
            method=result["method"],
            model=f"{NAMES.get(model['layer'], model['layer'])}, {model['layers']} layers of {model['hidden']}",
            trace=trace,
            metrics=pd.read_csv(folder / "metrics.csv"),
            bytes_per_epoch=result["bytes_per_epoch"],
            exchange_bytes_per_epoch=result["exchange_bytes_per_epoch"],
            peak_bytes=result["peak_bytes"],
            accuracy={split: score for split, score in result["accuracy"].items() if score is not None},
            metric=result["metric"],
            next_command=f"halocast export {result['run']} --to perfetto",
        ),
        picture,
        page,
    )
    return {"picture": str(picture), "page": str(page)}


NAMES = {"sage": "GraphSAGE", "gcn": "GCN"}
