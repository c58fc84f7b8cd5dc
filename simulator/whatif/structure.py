"""What scenarios share that differ only in hardware: all ranks' programs, walked and arranged once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from halocast.runtime.programs import METHODS
from halocast.simulator import engine
from halocast.simulator.costs import Costs, MemoryCosts
from halocast.simulator.engine import Machine, RankWork, Simulation, lower
from halocast.simulator.forecast import Scenario, bytes_of
from halocast.simulator.lockstep import Lockstep, runs
from halocast.simulator.memory import memory_terms, peaks_of
from halocast.simulator.pricing import OperationTable
from halocast.traces.operations import Exchange, Operation, Program

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Structure:
    """The programs of one scenario, to be priced on any device and simulated on any machine."""

    scenario: Scenario
    """Any of those that share them."""
    work: Sequence[RankWork]
    """By rank, without prices."""
    walked: Sequence[Sequence[Operation]]
    """By rank: all operations, those that only keep and free buffers too."""

    @classmethod
    def of(cls, scenario: Scenario) -> Structure:
        method = METHODS[scenario.method]
        walked: list[list[Operation]] = [[] for _ in range(scenario.ranks)]
        work = [
            lower(_recorded(method.epoch(view), own), lambda operation: 0.0)
            for view, own in zip(scenario.views(), walked, strict=True)
        ]
        return cls(scenario, work, walked)

    @cached_property
    def table(self) -> OperationTable:
        return OperationTable.of([operation for work in self.work for operation in work.operations])

    @cached_property
    def programs(self) -> Lockstep:
        return Lockstep.of(self.work)

    @cached_property
    def bytes(self) -> tuple[int, int]:
        """(exchanged, all) that all ranks send in an epoch."""
        return bytes_of(self.work)

    @cached_property
    def memory(self) -> Floats:
        """[ranks, terms] what each rank's peak is a sum of."""
        views, method = self.scenario.views(), self.scenario.method
        return np.array([memory_terms(view, method, own) for view, own in zip(views, self.walked, strict=True)])

    def price(self, costs: Costs) -> tuple[Floats, tuple[str, ...]]:
        """[operations] seconds alone on a device, and why any is extrapolated. Raises UncalibratedError."""
        return self.table.price(costs, self.scenario.fingerprint, self.scenario.ranks)

    def peak_bytes(self, costs: MemoryCosts) -> int:
        """Of the rank that needs most."""
        return round(float(peaks_of(costs, self.memory).max()))

    def simulate(self, seconds: Floats, machine: Machine, *, message_scale: float = 1.0) -> Simulation:
        """An epoch whose operations take `seconds` alone, and messages `message_scale` times their bytes, by what suits."""
        if runs(machine):
            sizes = None if message_scale == 1.0 else self.programs.messages.bytes * message_scale
            return self.programs.exchanged(seconds=seconds, sizes=sizes).simulate(machine)
        ends = np.cumsum([len(work.operations) for work in self.work])[:-1]
        priced = [replace(work, seconds=own) for work, own in zip(self.work, np.split(seconds, ends), strict=True)]
        return engine.simulate(priced if message_scale == 1.0 else [_resized(work, message_scale) for work in priced], machine)


def _recorded(program: Program, walked: list[Operation]) -> Program:
    """The same program, its operations noted down as they come."""
    value = None
    while True:
        try:
            operation = program.send(value)
        except StopIteration:
            return
        walked.append(operation)
        value = yield operation


def _resized(work: RankWork, scale: float) -> RankWork:
    """The same with messages `scale` times as long."""
    operations = [
        replace(
            each,
            outgoing=tuple(replace(message, bytes=round(message.bytes * scale)) for message in each.outgoing),
            incoming=tuple(replace(message, bytes=round(message.bytes * scale)) for message in each.incoming),
        )
        if isinstance(each, Exchange)
        else each
        for each in work.operations
    ]
    return replace(work, operations=operations)
