"""All scenarios of a grid, side by side: what shares its programs is evaluated together, the longest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import joblib

from halocast.errors import MisuseError, nearest
from halocast.simulator.costs import Costs
from halocast.simulator.whatif.axes import Names
from halocast.simulator.whatif.evaluation import Evaluator, Parted, Source, Subject
from halocast.simulator.whatif.folder import Writer
from halocast.simulator.whatif.grid import Grid
from halocast.simulator.whatif.points import PartKey, Point
from halocast.traces.workload import LayerSpec

BACKENDS = ("loky", "threading", "dask", "ray")
DISTRIBUTED = {"dask": "distributed", "ray": "ray"}
"""The package of those that reach other machines."""
FLUSH_SECONDS = 3.0
"""Rows are written when so many seconds have passed: what a killed sweep loses, with what is under way."""
TASK_SECONDS, LEAST_TASK_SECONDS, TASKS_A_JOB = 4.0, 0.3, 8
"""About how long a task takes, so that answers come steadily and starting one costs little; and how many there should be."""
SECONDS_BETWEEN_REPORTS = 2.0
Row = dict[str, Any]
Specs = tuple[str, int, int]
"""(layer, layers, hidden)."""


@dataclass(frozen=True)
class Setup:
    """What every task needs."""

    costs: Costs
    grid: Grid
    names: Names
    subject: Subject


@dataclass(frozen=True)
class Handed:
    """A source that was asked already: what it said goes where the graph is not."""

    subject: Subject
    specs: Mapping[Specs, tuple[LayerSpec, ...]]
    partitions: Mapping[PartKey, Parted | str]
    """Or why there can be none."""

    def layers(self, layer: str, layers: int, hidden: int) -> tuple[LayerSpec, ...]:
        return self.specs[layer, layers, hidden]

    def parted(self, key: PartKey) -> Parted:
        found = self.partitions[key]
        if isinstance(found, str):
            raise MisuseError(found)
        return found


@dataclass(frozen=True)
class Task:
    """Scenarios that are evaluated by one process, one after the other."""

    scenarios: tuple[tuple[int, Point], ...]
    weight: float
    """Seconds that it may take; only ratios count."""


def evaluate(setup: Setup, handed: Handed, task: Task) -> tuple[Task, list[Row]]:
    """What a worker does."""
    evaluator = Evaluator(setup.costs, setup.grid, setup.names, handed)
    return task, [evaluator.evaluate(point) | {"scenario": number} for number, point in task.scenarios]


def plan_tasks(scenarios: Iterable[tuple[int, Point]], *, jobs: int = 1) -> list[Task]:
    """Tasks of up to `TASK_SECONDS`, shorter where there are few for `jobs`, the longest first.

    Scenarios with the same programs stay together where they fit.
    """
    ordered = sorted(scenarios, key=lambda each: (-each[1].ranks, str(each[1].structure), str(_epoch_of(each[1]))))
    structures = [list(group) for _, group in groupby(ordered, key=lambda each: each[1].structure)]
    whole = sum(_seconds(group) for group in structures)
    limit = min(TASK_SECONDS, max(LEAST_TASK_SECONDS, whole / (jobs * TASKS_A_JOB)))
    chunks = [chunk for group in structures for chunk in _chunks(group, limit)]
    tasks: list[Task] = []
    held: list[tuple[int, Point]] = []
    weight = 0.0
    for chunk in chunks:
        held, weight = held + chunk, weight + _seconds(chunk)
        if weight >= limit:
            tasks.append(Task(tuple(held), weight))
            held, weight = [], 0.0
    if held:
        tasks.append(Task(tuple(held), weight))
    return sorted(tasks, key=lambda task: -task.weight)


Scenarios = list[tuple[int, Point]]


def _chunks(group: Scenarios, limit: float) -> Iterator[Scenarios]:
    """Scenarios with the same programs, as many at once as take `limit` beside making the programs; prices stay together."""
    held: Scenarios = []
    weight = 0.0
    for epoch, prices in groupby(group, key=lambda each: _epoch_of(each[1])):
        held += prices
        weight += seconds_of_epoch(epoch)
        if weight >= limit:
            yield held
            held, weight = [], 0.0
    if held:
        yield held


def _seconds(group: Scenarios) -> float:
    """About how long scenarios with the same programs take on one core."""
    epochs = {_epoch_of(point) for _, point in group}
    return seconds_of_programs(group[0][1]) + sum(seconds_of_epoch(point) for point in epochs)


def _epoch_of(point: Point) -> Point:
    """What is simulated: one epoch for all prices."""
    return replace(point, price_per_hour=None)


def seconds_of_programs(point: Point) -> float:
    """About how long they take to be walked and arranged, on one core, where all parts touch each other."""
    return 0.003 + 3e-4 * point.ranks**2


def seconds_of_epoch(point: Point) -> float:
    """The same of simulating an epoch."""
    return 0.01 + 5e-3 * point.ranks**2 if by_events(point) else 5e-4 + 6e-6 * point.ranks**2


def sweep(
    setup: Setup,
    source: Source,
    scenarios: Sequence[tuple[int, Point]],
    writer: Writer,
    *,
    backend: str,
    jobs: int,
    address: str | None,
    on_start: Callable[[float], None],
    on_task: Callable[[int, float], None],
    report: Callable[[str], None],
) -> list[Row]:
    """Evaluate all, writing rows as they come, also when interrupted.

    `on_start` is told the weight of all tasks, `on_task` how many scenarios a task had and its weight.
    """
    tasks = plan_tasks(scenarios, jobs=jobs)
    handed = ask(source, [point for _, point in scenarios], report)
    rows: list[Row] = []
    unwritten: list[Row] = []
    on_start(sum(task.weight for task in tasks))
    written = time.monotonic()
    try:
        with side_by_side(backend, jobs, address) as run:
            for task, found in run(joblib.delayed(evaluate)(setup, handed_for(handed, task), task) for task in tasks):
                rows += found
                unwritten += found
                on_task(len(found), task.weight)
                if time.monotonic() - written > FLUSH_SECONDS:
                    handed_over, unwritten, written = unwritten, [], time.monotonic()
                    writer.part(handed_over)  # interrupted here, they may be lost, but are not written twice
    finally:
        if unwritten:
            writer.part(unwritten)
    return rows


def by_events(point: Point) -> bool:
    """Whether the compiled engine does not suit: ranks share cores, or all-reduces go up and down a tree."""
    return not point.device or point.all_reduce == "tree"


def ask(source: Source, points: Sequence[Point], report: Callable[[str], None]) -> Handed:
    """Everything of the graph that the points need, once."""
    keys = list(dict.fromkeys(point.parted for point in points if not point.impossible(source.subject.nodes)))
    partitions: dict[PartKey, Parted | str] = {}
    said = -SECONDS_BETWEEN_REPORTS
    for number, key in enumerate(sorted(keys, key=lambda key: key.ranks)):
        if time.monotonic() - said > SECONDS_BETWEEN_REPORTS:
            said = time.monotonic()
            report(f"partitioning {source.subject.name} into {key.ranks} ({number + 1} of {len(keys)} partitions)")
        try:
            partitions[key] = source.parted(key)
        except MisuseError as error:
            partitions[key] = str(error)
    specs = {(point.layer, point.layers, point.hidden) for point in points}
    return Handed(source.subject, {each: source.layers(*each) for each in specs}, partitions)


def handed_for(handed: Handed, task: Task) -> Handed:
    """The share of one task, which is what travels."""
    keys = {point.parted for _, point in task.scenarios}
    return Handed(handed.subject, handed.specs, {key: handed.partitions[key] for key in keys if key in handed.partitions})


def check_backend(backend: str, address: str | None) -> None:
    """Raises MisuseError for one that is unknown or not installed, and for a cluster where there can be none."""
    if backend not in BACKENDS:
        raise MisuseError(f"--backend {backend} is unknown{nearest(backend, BACKENDS)}")
    package = DISTRIBUTED.get(backend)
    if package is not None and find_spec(package) is None:
        raise MisuseError(f"--backend {backend} needs {backend}: pip install 'halocast[{backend}]'")
    if package is None and address is not None:
        raise MisuseError(f"--cluster {address} needs --backend dask or ray: {backend} stays on this machine")


Run = Callable[[Iterable[Any]], Iterable[Any]]


@contextmanager
def side_by_side(backend: str, jobs: int, address: str | None) -> Iterator[Run]:
    """Something that runs joblib's delayed calls on `jobs` processes (or threads), and gives answers as they come.

    dask and ray: on the cluster at `address`, or on one of `jobs` workers made here for the while. Every worker has one thread.
    """
    with ExitStack() as stack:
        if backend == "dask":
            stack.enter_context(_dask(jobs, address))
        elif backend == "ray":
            stack.enter_context(_ray(jobs, address))
        threads = {"inner_max_num_threads": 1} if backend == "loky" else {}
        stack.enter_context(joblib.parallel_config(backend=backend, n_jobs=jobs if address is None else -1, **threads))
        yield joblib.Parallel(return_as="generator_unordered")


def _dask(jobs: int, address: str | None) -> AbstractContextManager[Any]:
    import distributed

    if address is not None:
        return distributed.Client(address)
    return distributed.Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None)


@contextmanager
def _ray(jobs: int, address: str | None) -> Iterator[None]:
    import ray
    from ray.util.joblib import register_ray

    ray.init(address=address, num_cpus=jobs if address is None else None)
    register_ray()
    try:
        yield
    finally:
        ray.shutdown()
