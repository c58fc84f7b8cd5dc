"""The page of a closed loop: what was planned, what was forecast, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halocast.cli.folders import train_run

if TYPE_CHECKING:
    from halocast.cli.tune import Outcome
    from halocast.reports.pareto import Candidate
    from halocast.reports.train import TrainRun

BEFORE_TRAINING = ("tracing", "calibrating", "planning", "trying")


def draw_loop(outcome: Outcome) -> dict[str, str]:
    """Write the loop's picture and page beside its plan; returns their paths."""
    from halocast.reports.loop import LoopRun, Stage, write_loop_report
    from halocast.traces.trace import read_trace

    folder = outcome.plan_folder.parent
    picture, page = folder / "report.png", folder / "report.html"
    plan, measured = outcome.plan, outcome.seconds
    assert plan.baseline is not None
    write_loop_report(
        LoopRun(
            plain=loop_run(outcome.plain, "plain training, no savings, 32 bits"),
            planned=loop_run(outcome.result, _method_of(outcome)),
            forecast_trace=read_trace(outcome.forecast_folder / "trace"),
            plan=plan,
            verdict=str(outcome.result["verdict"]),
            plain_seconds=plan.baseline.epoch_seconds,
            measured_seconds=measured,
            candidates=_candidates(outcome),
            stages=[Stage(what, seconds, what.split()[0] in BEFORE_TRAINING) for what, seconds in outcome.stages],
            history=_history(outcome),
            files={
                "plan": str(outcome.plan_folder),
                "run": str(outcome.run_folder),
                "costs": str(folder / "costs.json"),
                "plain run": str(outcome.plain_folder),
                "forecast epoch": str(outcome.forecast_folder / "trace"),
            },
            next_command=f"halocast export {outcome.run_folder} --to perfetto",
        ),
        picture,
        page,
    )
    return {"picture": str(picture), "page": str(page)}


def loop_run(result: Mapping[str, Any], method: str) -> TrainRun:
    """A run as reports take it, from its result document."""
    from halocast.traces.trace import read_trace

    folder = Path(result["run"])
    return train_run(folder, result, read_trace(folder / "trace"), method=method)


def _method_of(outcome: Outcome) -> str:
    rows = {width: 0 for exchange in outcome.plan.exchanges for width in exchange.histogram}
    for exchange in outcome.plan.exchanges:
        for width, count in exchange.histogram.items():
            rows[width] += count
    total = sum(rows.values())
    name = str(outcome.plan.method["name"])
    return f"{name}, {sum(width * count for width, count in rows.items()) / total:.1f} bits" if total else name


def _candidates(outcome: Outcome) -> list[Candidate]:
    """What the planner compared, the chosen one first and its runner-up next."""
    from halocast.reports.pareto import Candidate

    if outcome.planned is None:
        return []
    answer = outcome.planned.answer
    first = {id(answer.chosen): 0, id(answer.runner_up): 1}
    ordered = sorted(answer.options, key=lambda each: (first.get(id(each), 2), each.seconds))
    return [
        Candidate(
            each.label,
            each.seconds,
            each.forecast.epoch_seconds.low,
            each.forecast.epoch_seconds.high,
            each.variance,
            each.peak_bytes,
            any(each is other for other in answer.front),
            each is answer.chosen,
        )
        for each in ordered
    ]


def _history(outcome: Outcome) -> list[tuple[int, dict[int, int]]]:
    """Rank 0's messages by width: as planned, then as renewed."""
    import numpy as np

    from halocast.traces.plan import ARRAYS, widths_name

    renewed = outcome.result.get("assignments") or []
    if not renewed:
        return []
    found = [(int(each["epoch"]), {int(bits): int(rows) for bits, rows in each["histogram"].items()}) for each in renewed]
    with np.load(outcome.plan_folder / ARRAYS, allow_pickle=False) as arrays:
        names = [widths_name(each.layer, each.direction, 0) for each in outcome.plan.exchanges]
        planned = np.concatenate([arrays[name] for name in names])
    values, counts = np.unique(planned, return_counts=True)
    return [(0, dict(zip(values.tolist(), counts.tolist(), strict=True))), *found]
