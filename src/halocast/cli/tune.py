"""``halocast tune``: the closed loop. Trace, calibrate, plan, try, refine, train, and say how right it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.errors import MisuseError, RunError

if TYPE_CHECKING:
    from halocast.cli.planning import Planned
    from halocast.runtime.config import RunConfig
    from halocast.simulator.planner.search import Goal
    from halocast.traces.plan import Baseline, Plan

Flag = Annotated[bool, Parameter(negative=())]
TRACED_EPOCHS = 8
"""Of each recorded run; the first two do not count."""
TRACED_BITS = 4
NO_SAVINGS = {
    "aggregate_features_once": False,
    "transform_first": False,
    "labelled_gradients_only": False,
    "keep_halo_features": False,
}
ALL_SAVINGS = dict.fromkeys(NO_SAVINGS, True)
STATE = "tune.json"


def tune(
    run: str,
    *,
    ranks: int | None = None,
    model: str | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    hosts: str | None = None,
    risk: float | None = None,
    epoch_seconds: float | None = None,
    variance: float | None = None,
    memory: float | None = None,
    partitions: int = 5,
    trials: int = 1,
    traced_epochs: int = TRACED_EPOCHS,
    baseline: Flag = False,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    out: Path | None = None,
    json: Flag = False,
) -> int:
    """Trace a few epochs, calibrate, plan, try the plan, refine it, train with it, and compare with what was forecast.

    What is on disk is not done again: an interrupted tune goes on when the same command is given with the same --out.

    Parameters
    ----------
    run:
        A run file (.toml) or a graph, as ``halocast train`` takes it.
    ranks:
        Processes that share the graph.
    model:
        Layer: gcn or sage.
    layers:
        Number of layers.
    hidden:
        Width of the hidden layers.
    epochs:
        Passes over the graph of the training at the end.
    seed:
        Of parameters and dropout.
    hosts:
        local, or shaped:RATE: each rank in a network namespace behind a link of that rate.
    risk:
        Points of accuracy that may be at risk; 0.3 by default.
    epoch_seconds:
        Instead: the least variance in so many seconds an epoch.
    variance:
        Instead: as fast as possible with at most this relative variance of the weights' gradient.
    memory:
        Bytes that a rank has.
    partitions:
        Partitions to consider.
    trials:
        How often a plan is tried for a few epochs and made again with what that showed, before the training.
    traced_epochs:
        Epochs of each recorded run and trial.
    baseline:
        Train plain as long as the plan, to compare accuracy too.
    set_:
        Any key of the run file.
    out:
        Folder for everything; by default a new one under runs/.
    json:
        One JSON document on standard output.
    """
    from halocast.cli.scenario import resolve_flags
    from halocast.simulator.planner.risk import DEFAULT_POINTS
    from halocast.simulator.planner.search import Goal

    console = Console(as_json=json)
    if epoch_seconds is not None and variance is not None:
        raise MisuseError("--epoch-seconds and --variance are different goals: give one of them")
    if traced_epochs < 4:
        raise MisuseError(f"--traced-epochs {traced_epochs} is too few: the first two do not count; allowed: 4 or more")
    if trials < 0:
        raise MisuseError(f"--trials {trials} is out of range; allowed: 0 or more")
    flags = {
        "ranks": ranks, "hosts": hosts, "model.layer": model, "model.layers": layers, "model.hidden": hidden,
        "training.epochs": epochs, "seed": seed,
    }  # fmt: skip
    config = resolve_flags(run, flags, set_ or [])
    goal = Goal(epoch_seconds, variance, None, DEFAULT_POINTS if risk is None else risk, memory)
    folder = out or new_folder(config)
    loop = Tuning(
        config,
        goal,
        folder,
        console,
        partitions=partitions,
        trials=trials,
        traced_epochs=traced_epochs,
        whole_baseline=baseline,
    )
    return finish(console, loop.run())


def finish(console: Console, outcome: Outcome) -> int:
    """Draw the page, and say what came of it."""
    console.note("drawing forecast beside measurement ...")
    report = outcome.write_page()
    files = {"plan": str(outcome.plan_folder), "run": str(outcome.run_folder), **report}
    console.document({**outcome.result, "stages": outcome.spent, "files": {**outcome.result["files"], **files}})
    show(console, outcome)
    console.closing(files, f"halocast export {outcome.run_folder} --to perfetto")
    return 0


def new_folder(config: RunConfig) -> Path:
    """One under runs/ that is not there yet."""
    from halocast.runtime.run import short_name

    stem, number = f"{short_name(config.graph)}-tuned-{config.ranks}", 1
    while (path := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return path


@dataclass
class Outcome:
    """What a tuning did."""

    plan: Plan
    plan_folder: Path
    run_folder: Path
    plain_folder: Path
    result: Mapping[str, Any]
    """Of the training with the plan."""
    plain: Mapping[str, Any]
    planned: Planned | None
    """What the plan was chosen from; None where it was on disk already."""
    stages: list[tuple[str, float]]
    """Seconds that each took."""
    forecast_folder: Path
    seconds: float
    """An epoch of the training, as forecasts are compared with it."""

    @property
    def spent(self) -> dict[str, float]:
        """Seconds by stage; those that came twice together."""
        seconds: dict[str, float] = {}
        for name, each in self.stages:
            seconds[name] = seconds.get(name, 0.0) + each
        return seconds

    def write_page(self) -> dict[str, str]:
        """The page and its picture, beside the plan."""
        from halocast.cli.loop import draw_loop

        return draw_loop(self)


@dataclass
class Tuning:
    """The loop, its stages on disk: what is there is taken as it is."""

    config: RunConfig
    goal: Goal
    folder: Path
    console: Console
    partitions: int = 5
    trials: int = 1
    traced_epochs: int = TRACED_EPOCHS
    whole_baseline: bool = False
    """Train plain as long as the plan, to compare accuracy too."""
    stages: list[tuple[str, float]] = field(default_factory=list)

    @property
    def costs(self) -> Path:
        return self.folder / "costs.json"

    def run(self) -> Outcome:
        """All stages that are left to do."""
        self._check_state()
        plain = self._record_plain(self.whole_baseline)
        folders = [self.folder / "plain"]
        if self.config.ranks > 1:
            self._record_quantised()
            folders.append(self.folder / "quantised")
        planned: Planned | None = None
        plan_folder = self.folder / "plan"
        if not (plan_folder / "plan.json").is_file():
            planned = self._plan(folders, self.folder / "plan-0" if self.trials else plan_folder)
            for trial in range(self.trials):
                folders.append(self._try(self.folder / f"plan-{trial}", self.folder / f"trial-{trial}"))
                last = trial + 1 == self.trials
                target = plan_folder if last else self.folder / f"plan-{trial + 1}"
                planned = self._plan(folders, target, tried=self.folder / f"plan-{trial}")
        result = self._train(plan_folder)
        from halocast.traces.plan import read_plan

        self._write_state()
        return Outcome(
            read_plan(plan_folder),
            plan_folder,
            self.folder / "run",
            self.folder / "plain",
            result,
            plain,
            planned,
            self.stages,
            self.folder / "forecast",
            _measured(self.folder / "run"),
        )

    # -- what is on disk -----------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        from dataclasses import asdict

        return {
            "config": self.config.model_dump(mode="json"),
            "goal": asdict(self.goal),
            "partitions": self.partitions,
            "trials": self.trials,
            "traced_epochs": self.traced_epochs,
            "baseline": self.whole_baseline,
        }

    def _check_state(self) -> None:
        """Refuse a folder that holds something else, naming what differs."""
        import json

        path = self.folder / STATE
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise MisuseError(f"{self.folder} exists and holds no tuning; choose another --out")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_state()
            return
        try:
            state = json.loads(path.read_text())
            known, asked = state["asked"], json.loads(json.dumps(self._identity()))
            self.stages[:] = [(name, seconds) for name, seconds in state["stages"]]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise MisuseError(f"{path} is damaged ({error}); choose another --out") from error
        for name, value in asked.items():
            if known.get(name) != value:
                different = _difference(known.get(name), value)
                raise MisuseError(f"{self.folder} holds a tuning of another {name} ({different}); choose another --out")
        self.console.note(f"going on with {self.folder} ...")

    def _write_state(self) -> None:
        from halocast.runtime.trainer import write_json

        write_json(self.folder / STATE, {"asked": self._identity(), "stages": [list(each) for each in self.stages]})

    def _timed(self, name: str) -> AbstractContextManager[None]:
        return _Stage(self.stages, name, self._write_state)

    # -- stages --------------------------------------------------------------------------------------------------

    def _config(self, *, epochs: int, method: Mapping[str, Any], trace_rows: bool = False, quiet: bool = True) -> RunConfig:
        """The run's configuration with another method; `quiet`: without evaluations and checkpoints."""
        from halocast.runtime.config import resolve, without_none

        document = self.config.model_dump(mode="json")
        document["method"] = {**document["method"], **method}
        document["training"]["epochs"] = epochs
        if quiet:
            document["training"].update(evaluate_every=0, checkpoint_every=0, patience=0)
        document["trace"]["rows"] = trace_rows
        return resolve(without_none(document), "tune")

    def _record_plain(self, whole: bool) -> dict[str, Any]:
        epochs = self.config.training.epochs if whole else self.traced_epochs
        config = self._config(epochs=epochs, method={"name": "full", "bits": None, "exact": NO_SAVINGS}, quiet=not whole)
        what = "plain training, the whole of it" if whole else f"plain training, {epochs} epochs"
        result = self._record("plain", config, what)
        if whole and self.stages and self.stages[-1][0] == "tracing plain":  # a loop needs but its first epochs
            traced = self.stages[-1][1] * min(1.0, self.traced_epochs / max(1, epochs))
            self.stages[-1:] = [("tracing plain", traced), ("plain, to compare", self.stages[-1][1] - traced)]
        return result

    def _record_quantised(self) -> dict[str, Any]:
        config = self._config(
            epochs=self.traced_epochs,
            method={"name": "adaqp", "bits": TRACED_BITS, "exact": ALL_SAVINGS},
            trace_rows=True,
        )
        return self._record("quantised", config, f"quantised training, {self.traced_epochs} epochs")

    def _record(self, name: str, config: RunConfig, what: str) -> dict[str, Any]:
        from halocast.traces.rows import read_rows

        folder = self.folder / name
        done = _result_of(folder)
        if done is not None and not (config.trace.rows and read_rows(folder) is None):
            return done
        self.console.note(f"tracing {what} ...")
        with self._timed(f"tracing {name}"):
            return _train(config, folder, self.console)

    def _baseline(self, *, final: bool) -> Baseline:
        """Plain training as it was recorded; its accuracy only where it was trained as long as the plan will be."""
        from halocast.traces.plan import Baseline

        plain = _result_of(self.folder / "plain")
        whole = self.whole_baseline and final and plain is not None
        accuracy = plain["accuracy"].get("test") if whole and plain is not None else None
        return Baseline(epoch_seconds=_measured(self.folder / "plain"), measured=True, accuracy=accuracy)

    def _plan(self, folders: list[Path], target: Path, *, tried: Path | None = None) -> Planned | None:
        """Calibrate on what was recorded so far and plan; `tried`: the plan that the last of it was recorded with."""
        from halocast.cli.planning import correct_by_trial, make_plan, save
        from halocast.simulator.calibrate import calibrate
        from halocast.simulator.observations import observe_all
        from halocast.simulator.planner.rowmodel import row_model, rows_beside

        if (target / "plan.json").is_file():
            return None
        self.console.note(f"calibrating on {', '.join(each.name for each in folders)} ...")
        with self._timed("calibrating"):
            observations = observe_all(folders)
            costs = calibrate(observations, jobs=os.cpu_count() or 1).costs
            costs.save(self.costs)
            rows = row_model(observations)
            rows.save(rows_beside(self.costs))
        with self._timed("planning"):
            planned = make_plan(
                self.config,
                costs,
                rows,
                self.goal,
                partitions=self.partitions,
                baseline=self._baseline(final=target.name == "plan"),
                tried=tried,
                report=lambda text: self.console.note(f"{text} ..."),
            )
            if tried is not None:
                planned = correct_by_trial(planned, observations[-1])
            planned = save(planned, target)
        seconds = planned.plan.forecast
        self.console.note(
            f"plan: {planned.plan.why.partition(';')[0]}; {1e3 * seconds.epoch_seconds:.1f} ms an epoch "
            f"[{1e3 * seconds.low:.1f}, {1e3 * seconds.high:.1f}]"
        )
        self._write_forecast(planned)
        return planned

    def _write_forecast(self, planned: Planned) -> None:
        """The simulated epoch, to open beside the measured one."""
        import shutil

        from halocast.simulator.timeline import write_timeline

        chosen = planned.answer.chosen
        target = self.folder / "forecast"
        shutil.rmtree(target, ignore_errors=True)
        graph = chosen.partition
        write_timeline(
            target / "trace",
            planned.costs,
            chosen.scenario,
            chosen.simulation,
            nodes=planned.plan.graph.nodes,
            edges=getattr(graph, "edges", 0),
            config=self.config.model_dump(mode="json"),
        )

    def _try(self, plan_folder: Path, folder: Path) -> Path:
        """A few epochs with a plan, for what it shows of the plan's own costs."""
        if _result_of(folder) is None:
            config = self._planned_config(plan_folder, epochs=self.traced_epochs, quiet=True)
            self.console.note(f"trying the plan, {self.traced_epochs} epochs ...")
            with self._timed("trying"):
                result = _train(config, folder, self.console)
            self.console.note(f"{result.get('verdict', '')}")
        return folder

    def _planned_config(self, plan_folder: Path, *, epochs: int, quiet: bool) -> RunConfig:
        from halocast.runtime.config import resolve, without_none
        from halocast.runtime.planned import follow
        from halocast.traces.plan import read_plan

        document = without_none(self._config(epochs=epochs, method={}, quiet=quiet).model_dump(mode="json"))
        for section in ("method", "partition", "plan"):  # the plan's to say
            document.pop(section, None)
        if quiet:  # a trial keeps its widths: what it measures is the plan's own epoch
            document["method"] = {"reassign_every": 0}
        return resolve(follow(document, read_plan(plan_folder), str(plan_folder)), "tune")

    def _train(self, plan_folder: Path) -> dict[str, Any]:
        folder = self.folder / "run"
        done = _result_of(folder)
        if done is not None:
            return done
        config = self._planned_config(plan_folder, epochs=self.config.training.epochs, quiet=False)
        started = (folder / "config.toml").is_file()
        self.console.note("training with the plan ..." if not started else "going on with the training ...")
        with self._timed("training"):
            return _train(config, folder, self.console, resume=started)


@dataclass
class _Stage:
    stages: list[tuple[str, float]]
    name: str
    save: Callable[[], None]
    began: float = 0.0

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stages.append((self.name, time.perf_counter() - self.began))
            self.save()


def _train(config: RunConfig, folder: Path, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Train into `folder`; what a broken attempt without a checkpoint left there goes."""
    import shutil

    from halocast.runtime.run import train

    if folder.exists() and not resume:
        shutil.rmtree(folder)
    with console.training(config.training.epochs) as progress:
        return train(config, folder, resume=resume, emit=progress)


def _result_of(folder: Path) -> dict[str, Any] | None:
    """Of a run that was finished."""
    import json

    try:
        document: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return document


def _measured(folder: Path) -> float:
    """A run's epoch time as forecasts are compared with it: the median after the first two."""
    import numpy as np
    import pandas as pd

    from halocast.runtime.planned import UNMEASURED_EPOCHS

    table = pd.read_csv(folder / "metrics.csv")
    seconds = table.loc[table["epoch"] >= UNMEASURED_EPOCHS, "epoch_seconds"]
    if seconds.empty:
        raise RunError(f"{folder} has no epoch after the first two; train for 4 or more")
    return float(np.median(seconds))


def _difference(known: Any, asked: Any, path: str = "") -> str:
    """The first key in which two documents differ."""
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in {**known, **asked}:
            if known.get(key) != asked.get(key):
                return _difference(known.get(key), asked.get(key), f"{path}{key}.")
    return f"{path.rstrip('.')} {known!r}, not {asked!r}".strip()


def show(console: Console, outcome: Outcome) -> None:
    """The verdict and what the loop cost."""
    console.result(str(outcome.result.get("verdict", "")))
    console.result(f"  {outcome.plan.why}")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.spent.items())
    console.result(f"  {spent}")
