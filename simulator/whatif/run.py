"""A sweep from its grid to its folder: opened or gone on with, evaluated, answered."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from halocast import __version__
from halocast.errors import MisuseError
from halocast.simulator.catalogue import Catalogue
from halocast.simulator.costs import Costs
from halocast.simulator.whatif.answers import Questions
from halocast.simulator.whatif.axes import AXES, CALIBRATED, PRICE, Names
from halocast.simulator.whatif.evaluation import Evaluator, Source, Subject
from halocast.simulator.whatif.folder import (
    MANIFEST,
    AxisEntry,
    CostsEntry,
    GraphEntry,
    Manifest,
    PriceEntry,
    Writer,
    read_manifest,
    read_parts,
)
from halocast.simulator.whatif.grid import Grid
from halocast.simulator.whatif.points import Point, distinct
from halocast.simulator.whatif.sweep import Setup, sweep
from halocast.simulator.whatif.table import finished
from halocast.simulator.whatif.tornado import tornado

RESOLVED = {"link": "network", "nodes": "nodes_factor", "edges": "edges_factor"}
"""Columns that are called otherwise than their axes."""

LONGEST_AXIS = 10_000
"""Values that a manifest writes out."""


class Progress(Protocol):
    """Who is told how far a sweep is."""

    def note(self, text: str) -> None: ...

    def start(self, scenarios: int, done: int, weight: float) -> None: ...

    def advance(self, scenarios: int, weight: float) -> None: ...


@dataclass(frozen=True, eq=False)
class Sweeping:
    """What is asked, and of what."""

    grid: Grid
    names: Names
    source: Source
    costs: Costs
    costs_path: Path
    sample: int | None
    seed: int

    @cached_property
    def points(self) -> list[Point]:
        """By scenario."""
        return distinct(self.grid.points(self.sample, self.seed))

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.costs, self.grid, self.names, self.source)

    @cached_property
    def manifest(self) -> Manifest:
        """As it is before the first row."""
        grid, subject, costs = self.grid, self.source.subject, self.costs
        axes = {name: values for name, values in grid.axes.items() if len(values) > 1}
        fixed = {RESOLVED.get(name, name): values[0] for name, values in grid.axes.items() if len(values) == 1}
        entries = [
            AxisEntry(name=RESOLVED.get(name, name), label=AXES[name].label, unit=AXES[name].unit, values=self._values(name))
            for name in axes
        ]
        prices = [price for device in grid.axes["device"] if (price := grid.prices.of(device)) is not None]
        if any(len(price.values) > 1 for price in prices):
            every = sorted({value for price in prices for value in price.values})
            entries.append(
                AxisEntry(name=PRICE.name, label=PRICE.label, unit=f"{grid.prices.currency} an hour", values=tuple(every))
            )
        return Manifest(
            halocast=__version__,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            graph=GraphEntry(name=subject.name, nodes=subject.nodes, edges=subject.edges, fingerprint=subject.fingerprint),
            grid=grid.resolved(),
            sample=self.sample,
            seed=self.seed,
            axes=tuple(entries),
            fixed=fixed,
            epochs=grid.epochs,
            currency=grid.prices.currency,
            deadline_seconds=grid.filters.deadline_seconds,
            budget=grid.filters.budget,
            memory_bytes=grid.filters.memory if isinstance(grid.filters.memory, int) else None,
            costs=CostsEntry(path=str(self.costs_path), machine=costs.machine, device=costs.device, digest=digest_of(costs)),
            digest=digest_of_inputs(self.names.catalogue, subject),
            scenarios=len(self.points),
            finished=False,
            assumed=tuple(self._assumed()),
            prices={
                device or CALIBRATED: PriceEntry(value=price.values[0], source=price.source)
                for device in grid.axes["device"]
                if (price := grid.prices.of(device)) is not None
            },
        )

    def _values(self, name: str) -> tuple[Any, ...]:
        """Of an axis; of one that is too long to write out those that were drawn."""
        values = self.grid.axes[name]
        if len(values) <= LONGEST_AXIS:
            return tuple(values)
        return tuple(sorted({combination[name] for combination in self.grid.points(self.sample, self.seed)}))

    def _assumed(self) -> list[str]:
        """What holds for the whole grid, one line each."""
        grid, lines = self.grid, []
        unpriced = [device or CALIBRATED for device in grid.axes["device"] if grid.prices.of(device) is None]
        if len(unpriced) == len(grid.axes["device"]):
            lines.append("no prices were given: costs are left out, and ranks stand for them")
        elif unpriced:
            lines.append(f"no price was given for {', '.join(unpriced)}: scenarios there have no cost")
        if "" in grid.axes["device"] and "" not in unpriced:
            lines.append("the price of a calibrated host is of the whole host, which its ranks share")
        if any(factor > 1.0 for name in ("nodes", "edges") for factor in grid.axes.get(name, ())):
            lines.append(
                "larger graphs have the communities of the measured one: halo rows keep their share of the nodes, and grow "
                "with the mean degree; every doubling widens the interval by a standard deviation of 10 %"
            )
        lines += self._common_assumptions()
        return lines

    def _common_assumptions(self) -> list[str]:
        """What the costs of every device of the grid take for granted."""
        found = [
            set(self.evaluator.assumed_of(device, transport, all_reduce))
            for device in self.grid.axes["device"]
            for transport in self.grid.axes.get("transport", ("",))
            for all_reduce in self.grid.axes.get("all_reduce", ("",))
        ]
        return sorted(set.intersection(*found))


def digest_of(costs: Costs) -> str:
    return _digest(costs.model_dump_json())


def digest_of_inputs(catalogue: Catalogue, subject: Subject) -> str:
    """Of what rows rest on beside the grid and the costs: hardware, and whatever of the run file no axis varies."""
    return _digest(catalogue.model_dump_json(exclude={"notes"}) + json.dumps(asdict(subject), sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_folder(folder: Path, sweeping: Sweeping, *, resume: bool, force: bool) -> None:
    """Make the folder ready. Raises MisuseError where that would overwrite something, or go on with something else."""
    manifest = sweeping.manifest
    if resume:
        if not (folder / MANIFEST).is_file():
            raise MisuseError(f"--resume: {folder} is no what-if folder (it has no {MANIFEST})")
        _refuse_other(folder, read_manifest(folder), manifest)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not force:
            raise MisuseError(f"{folder} exists; choose another --out, go on with it by --resume, or overwrite it with --force")
        if not (folder / MANIFEST).is_file():
            raise MisuseError(f"{folder} is no what-if folder: --force does not remove it; choose another --out")
        shutil.rmtree(folder)
    Writer(folder).manifest(manifest)


def _refuse_other(folder: Path, there: Manifest, asked: Manifest) -> None:
    same = {
        "another grid": (there.grid, asked.grid),
        "another sample": ((there.sample, there.seed), (asked.sample, asked.seed)),
        "other costs": (there.costs.digest, asked.costs.digest),
        "another graph": (there.graph, asked.graph),
        "other hardware, or of a run file with other settings": (there.digest, asked.digest),
        "another version of halocast": (there.halocast, asked.halocast),
    }
    for what, (old, new) in same.items():
        if old != new:
            raise MisuseError(f"--resume: {folder} holds a sweep of {what}; choose another --out, or overwrite it with --force")


def run_sweep(sweeping: Sweeping, folder: Path, *, backend: str, jobs: int, address: str | None, progress: Progress) -> None:
    """Evaluate what is missing in the folder, then answer. Everything that was evaluated is kept when interrupted."""
    manifest = read_manifest(folder)
    if manifest.finished:
        progress.note(f"{folder} is finished: nothing to go on with")
        return
    writer = Writer(folder)
    rows: list[dict[str, Any]] = read_parts(folder).to_pylist()
    done = {row["scenario"] for row in rows}
    left = [(number, point) for number, point in enumerate(sweeping.points) if number not in done]
    if left:
        setup = Setup(sweeping.costs, sweeping.grid, sweeping.names, sweeping.source.subject)
        rows += sweep(
            setup,
            sweeping.source,
            left,
            writer,
            backend=backend,
            jobs=jobs,
            address=address,
            on_start=lambda weight: progress.start(len(sweeping.points), len(done), weight),
            on_task=progress.advance,
            report=progress.note,
        )
    progress.note("answering")
    table = finished(rows, sweeping.points)
    questions = Questions(sweeping.grid, table.to_pandas(), sweeping.points)
    recommended = questions.recommended()
    bars = () if recommended is None else tornado(sweeping.evaluator, sweeping.points[recommended])
    writer.finish(table, questions.answers(bars), manifest)
